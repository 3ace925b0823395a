"""Arguments made wrong, one at a time: other kinds, sizes and shapes, not finite, huge or complex,
or functions that return what they should not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from socft.checks import InvalidProblem

PLAIN: dict[str, Any] = {
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "minus one": -1,
    "minus a half": -0.5,
    "zero": 0,
    "zero as a float": 0.0,
    "a half": 0.5,
    "two": 2,
    "huge": 1e300,
    "tiny": 1e-300,
    "a whole number of 501 digits": 10**500,
    "a whole number of 5001 digits": 10**5000,
    "complex": 1 + 2j,
    "text": "abc",
    "a digit as text": "1",
    "empty text": "",
    "nothing": None,
    "true": True,
    "float32": np.float32(0.5),
    "whole of numpy": np.int64(2),
    "an empty list": [],
    "a list": [1.0],
    "a ragged list": [[1.0], [2.0, 3.0]],
    "a list of text": ["a"],
    "a list of nothing": [None],
    "a mapping": {"a": 1.0},
    "an object": object(),
    "an array of text": np.array(["a"]),
    "an empty tensor": torch.zeros(0),
    "a tensor without axes": torch.tensor(0.5),
    "a tensor of three axes": torch.ones(1, 2, 3),
    "a complex tensor": torch.tensor([1 + 2j]),
    "true in a tensor": torch.tensor([True]),
    "a function": lambda *given: 0.5,
}
"""What any argument is replaced by."""


def of_numbers(value: Any) -> dict[str, Any]:
    """A vector, matrix or stack of numbers made wrong."""
    good = torch.as_tensor(value, dtype=torch.float64)
    return {
        "one is nan": _with_first(good, math.nan),
        "one is infinite": _with_first(good, math.inf),
        "one is huge": _with_first(good, 1e300),
        "one is negative": _with_first(good, -1.0),
        "one is zero": _with_first(good, 0.0),
        "zeros": torch.zeros_like(good),
        "negated": -good,
        "huge numbers": good * 1e300,
        "tiny numbers": good * 1e-300,
        "complex numbers": good + 1j,
        "a list with a complex number": [*good.flatten().tolist()[:-1], 1 + 2j],
        "truth values": good > 0,
        "whole numbers": good.round().long(),
        "float32": good.float(),
        "an array of float16": good.numpy().astype(np.float16),
        "a reversed array": np.ascontiguousarray(np.flip(good.numpy(), 0))[::-1],
        "nested lists": good.tolist(),
        "text in the list": [*good.flatten().tolist()[:-1], "a"],
        "a row more": torch.cat([good, good[:1]]),
        "a row less": good[:-1],
        "an axis more": good.unsqueeze(0),
        "an axis more at the end": good.unsqueeze(-1),
        "an axis less": good[0],
        "a column less": good[..., :-1],
        "transposed": good.mT if good.ndim > 1 else good.flip(0),
        "no rows": good[:0],
    }


def of_function(function: Callable[..., Any]) -> dict[str, Any]:
    """A function of tensors that returns something else."""

    def changed(change: Callable[[Tensor], Any]) -> Callable[..., Any]:
        return lambda *given: change(function(*given))

    def failing(error: BaseException) -> Callable[..., Any]:
        def fail(*given: Any) -> Any:
            raise error

        return fail

    return {
        "returns nan": changed(lambda y: y * math.nan),
        "returns infinity": changed(lambda y: y.abs() + math.inf),
        "returns nothing": changed(lambda y: None),
        "returns a number": changed(lambda y: 1.0),
        "returns an array": changed(lambda y: y.detach().numpy()),
        "returns complex numbers": changed(lambda y: y + 1j),
        "returns whole numbers": changed(lambda y: y.long()),
        "returns truth values": changed(lambda y: y > 0),
        "returns an axis more": changed(lambda y: y.unsqueeze(-1)),
        "returns an axis less": changed(lambda y: y.sum(-1)),
        "returns a sum": changed(lambda y: y.sum()),
        "returns a row less": changed(lambda y: y[:-1]),
        "returns a tuple": changed(lambda y: (y, y)),
        "raises KeyError": failing(KeyError("a")),
        "raises ZeroDivisionError": failing(ZeroDivisionError("division by zero")),
        "raises a long message": failing(RuntimeError("first line\nsecond line\n" * 50)),
        "takes no arguments": lambda: None,
    }


def mutations(value: Any) -> dict[str, Any]:
    """Everything an argument is replaced by."""
    found = dict(PLAIN)
    if _holds_numbers(value):
        found |= of_numbers(value)
    elif callable(value) and not isinstance(value, type) and type(value).__name__ == "function":
        found |= of_function(value)
    return found


@dataclasses.dataclass(frozen=True)
class Call:
    """A valid call of something public.

    Attributes:
        make: what is called.
        arguments: makes the arguments, fresh each time.
        use: tries out what is made, and returns numbers that must be finite.
    """

    make: Callable[..., Any]
    arguments: Callable[[], Mapping[str, Any]]
    use: Callable[[Any], Any]

    def outcome(self, name: str | None = None, value: Any = None) -> str:
        """What comes of the call with an argument replaced: "right", "refused", or what is wrong.

        A refusal is one sentence; what is made is used, and the numbers that come out are finite.
        """
        given = dict(self.arguments())
        if name is not None:
            given[name] = value
        try:
            found = self.use(self.make(**given))
        except InvalidProblem as error:
            return "refused" if _is_sentence(str(error)) else f"no sentence: {error!s:.200}"
        except Exception as error:
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return "right" if _all_finite(found) else f"not finite: {found!r:.200}"


def _is_sentence(message: str) -> bool:
    return "\n" not in message and message.endswith((".", "?")) and 0 < len(message) < 1000


def _all_finite(found: Any) -> bool:
    if isinstance(found, Tensor):
        return bool(found.isfinite().all())
    if isinstance(found, list | tuple):
        return all(_all_finite(each) for each in found)
    if isinstance(found, bool | str) or found is None:
        return True
    return math.isfinite(found)


def _holds_numbers(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.ndim > 0
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], int | float | list)
        and not isinstance(value[0], bool)
        and (not isinstance(value[0], list) or _holds_numbers(value[0]))
    )


def _with_first(good: Tensor, value: float) -> Tensor:
    found = good.clone()
    found.view(-1)[0] = value
    return found
