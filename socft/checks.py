"""Validation at the door: one sentence that quotes the value and names the remedy."""

from __future__ import annotations

import difflib
import math
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

_Entry: TypeAlias = Tensor | np.ndarray | float
Numbers: TypeAlias = (
    _Entry | Sequence[_Entry] | Sequence[Sequence[_Entry]] | Sequence[Sequence[Sequence[_Entry]]]
)
"""What `numbers` makes a float64 tensor of: lists up to a matrix per step."""
Shape: TypeAlias = tuple[int | str | None, ...]
"""Sizes; a name stands for any size, None at the end for any further ones."""

SYMMETRY_TOLERANCE = 1e-10
"""Relative skewness of a matrix that counts as symmetric: float64 products are to about n eps."""
LARGEST = 1e50
"""Size of the largest number that is taken, and one over the smallest positive one: quotients, and
the cubes of numbers and of their quotients, are then finite in float64.
"""
MOST = 10**9
"""The largest number of anything."""
_SHOWN = 300
"""Characters of another error's message that are quoted."""


class InvalidProblem(ValueError):
    """The mathematics refuses these inputs; the message quotes the offending value and the remedy.

    >>> try:
    ...     ddpm(50)
    ... except InvalidProblem as error:
    ...     print(error)
    abar has shape (); give a vector of at least two levels, such as linear_levels(50).
    """


def require(condition: bool, message: str) -> None:
    """Raise `InvalidProblem` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise InvalidProblem(message)


def require_each(values: Tensor, holds: Callable[[Tensor], Tensor], what: str, remedy: str) -> None:
    """Raise `InvalidProblem` naming the first entry of ``values`` for which ``holds`` is false."""
    held = holds(values)
    if bool(held.all()):
        return
    index = (~held).nonzero()[0].tolist()
    where = f"{what}{index if index else ''}"
    raise InvalidProblem(f"{where} = {values[tuple(index)].item():.6g}; {remedy}")


def require_known(name: str, known: Iterable[str], what: str, also: str = "") -> None:
    """Raise `InvalidProblem` with the nearest names unless ``name`` is one of those that are known.

    Args:
        what: what has such names.
        also: what else can be given.
    """
    names = list(known)
    if name in names:
        return
    known_ones = f"give {also and f'{also}, or '}one of: {listed(names)}."
    raise InvalidProblem(f"there is no {what} {quoted(name)}; {meant(name, names, known_ones)}")


def meant(
    name: str, known: Iterable[str], otherwise: str, shown: Callable[[str], str] = str
) -> str:
    """What to do about a name that is not known: the nearest ones as they are shown, or else what
    is given.

    >>> from socft.checks import meant
    >>> meant("gren", ["red", "green"], "give a colour.")
    'did you mean green?'
    """
    near = nearest(name, known)
    return f"did you mean {listed([shown(each) for each in near])}?" if near else otherwise


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The names, at most three, that somebody may have meant, the nearest first: the one that is
    the same but for case and separators, or else those that begin so, those that have it in them,
    those with few letters changed, and those that are words of it.

    >>> from socft.checks import nearest
    >>> nearest("Adjoint-Machting", ["full adjoint", "adjoint matching"])
    ['adjoint matching']
    """
    names, given = {_letters(each): each for each in known}, _letters(name)
    if given in names:
        return [names[given]]
    begun = [each for each in names if given and each.startswith(given)]
    inside = [each for each in names if given and given in each]
    words = [each for each in names if each and f" {each} " in f" {given} "]
    found = [*begun, *inside, *difflib.get_close_matches(given, names, n=3), *words]
    return [names[each] for each in dict.fromkeys(found)][:3]


def listed(names: Sequence[str]) -> str:
    """Names in a row, parted by semicolons where there are commas in them."""
    return ("; " if any("," in each for each in names) else ", ").join(names)


def _letters(name: str) -> str:
    return " ".join(re.split(r"[\W_]+", name.lower())).strip()


def require_finite(values: Tensor, what: str, remedy: str) -> None:
    """Raise `InvalidProblem` naming the first non-finite entry of ``values``."""
    require_each(values, torch.isfinite, what, remedy)


def require_kind(value: object, kind: type | tuple[type, ...], what: str, remedy: str) -> None:
    """Raise `InvalidProblem` unless ``value`` is of a kind."""
    require(isinstance(value, kind), f"{what} is {described(value)}; {remedy}")


def require_kinds(made: object, **kinds: type | tuple[type, ...]) -> None:
    """Raise `InvalidProblem` unless the fields of an object are of these kinds."""
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        given = " or ".join("None" if k is NoneType else _a(k.__name__) for k in allowed)
        require_kind(getattr(made, name), allowed, name, f"give {given}.")


def require_callable(value: object, what: str, call: str) -> None:
    """Raise `InvalidProblem` unless ``value`` can be called."""
    require(callable(value), f"{what} is {described(value)}; give a function {call}.")


def numbers(values: Numbers, what: str, shape: Shape | None = None) -> Tensor:
    """A float64 tensor of a number, a tensor or array of any precision, or nested lists.

    Args:
        shape: that it must have; any by default.

    Raises:
        InvalidProblem: not real numbers, lists of unequal length, another shape, or a number that
            is not finite or exceeds `LARGEST`.
    """
    for each in _leaves(values):
        _require_real(each, what)
    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        values = np.array(values, dtype=np.float64)  # torch takes no array that is reversed
    try:
        found = torch.as_tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidProblem(
            f"{what} = {quoted(values)}; give a number, an array, or lists of equal length."
        ) from error
    require_finite(found.detach(), what, "it must be a finite number.")
    remedy = f"it must be at most {LARGEST:g} in size."
    require_each(found.detach(), lambda x: x.abs() <= LARGEST, what, remedy)
    if shape is not None:
        require_shape(found, what, shape)
    return found


def tensor(value: object, what: str, shape: Shape) -> Tensor:
    """A tensor of real floating-point numbers of a shape, as it is.

    Raises:
        InvalidProblem: no tensor, another kind of numbers, another shape, or not finite.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InvalidProblem(
            f"{what} is {described(value)}; give a tensor of floating-point numbers."
        )
    require_shape(value, what, shape)
    require_finite(value.detach(), what, "it must be a finite number.")
    return value


def require_shape(value: Tensor, what: str, shape: Shape) -> None:
    """Raise `InvalidProblem` unless a tensor has a shape; names stand for any size, None for any
    sizes that follow.
    """
    found, wanted = tuple(value.shape), tuple(each for each in shape if each is not None)
    fits = len(found) == len(wanted) or (None in shape and len(found) > len(wanted))
    fits = fits and all(w in (str(w), f) for f, w in zip(found, wanted, strict=False))
    require(fits, f"{what} has shape {found}; give {_written(shape)}.")


def number(value: Numbers, what: str) -> float:
    """One real number, finite and at most `LARGEST` in size."""
    found = numbers(value, what)
    require(found.ndim == 0, f"{what} has shape {tuple(found.shape)}; it must be one number.")
    return float(found)


def positive(value: Numbers, what: str) -> float:
    """One number between one over `LARGEST` and `LARGEST`."""
    found = number(value, what)
    require(found > 0, f"{what} = {found}; it must be a positive finite number.")
    require(found >= 1 / LARGEST, f"{what} = {found:g}; it must be at least {1 / LARGEST:g}.")
    return found


def within(value: Numbers, what: str, low: float, high: float) -> float:
    """One number in a closed interval."""
    found = number(value, what)
    require(low <= found <= high, f"{what} = {found:g}; it must lie in [{low:g}, {high:g}].")
    return found


def at_least_zero(value: Numbers, what: str) -> float:
    """One number that is not negative."""
    found = number(value, what)
    require(found >= 0, f"{what} = {found:g}; it must not be negative.")
    return found


def constant(value: Any, what: str) -> float:
    """A Lipschitz constant: not negative, infinite where there is none."""
    found = math.inf if isinstance(value, float) and value == math.inf else number(value, what)
    require(
        found >= 0,
        f"{what} = {found:g}; a Lipschitz constant is at least 0, or inf where there is none.",
    )
    return found


def whole(value: Any, what: str, least: int = 1, most: int = MOST) -> int:
    """A whole number in a closed interval."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    found = int(value) if is_whole else least - 1
    allowed = f"at most {most}" if found > most == MOST else f"at least {least}"
    allowed = allowed if most == MOST else f"between {least} and {most}"
    require(
        least <= found <= most,
        f"{what} = {quoted(value)}; give a whole number that is {allowed}.",
    )
    return found


def sizes(value: object, what: str) -> tuple[int, ...]:
    """The shape of something: at least one whole number, all positive."""
    listed = isinstance(value, list | tuple) and len(value) > 0
    require(listed, f"{what} = {quoted(value)}; give a tuple of sizes, such as (2,).")
    return tuple(whole(each, f"a size in {what}") for each in value)  # pyright: ignore


def zeros_or(values: Numbers | None, what: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers of a shape, zero where they are left out."""
    left_out = values is None
    return torch.zeros(shape, dtype=torch.float64) if left_out else numbers(values, what, shape)


def identity_or(values: Numbers | None, what: str, n: int) -> Tensor:
    """A square matrix, the identity where it is left out."""
    left_out = values is None
    return torch.eye(n, dtype=torch.float64) if left_out else numbers(values, what, (n, n))


def require_generator(value: object) -> None:
    """Raise `InvalidProblem` unless ``value`` makes random numbers."""
    remedy = "give torch.Generator().manual_seed(0)."
    require_kind(value, torch.Generator, "the generator", remedy)


def monotone(given: Numbers, what: str, rising: bool, remedy: str, order: str) -> Tensor:
    """A float64 vector of at least two numbers, each above (or below) the one before.

    Args:
        remedy: ends the sentence about a shape.
        order: ends the sentence about two numbers, such as "levels must increase".

    Raises:
        InvalidProblem: it is none, or as for `numbers`.
    """
    values = numbers(given, what)
    require(
        values.ndim == 1 and len(values) >= 2,
        f"{what} has shape {tuple(values.shape)}; {remedy}",
    )
    steps = values.diff() if rising else -values.diff()
    wrong = (steps <= 0).nonzero().flatten().tolist()
    if wrong:
        i = wrong[0]
        raise InvalidProblem(
            f"{what}[{i}] = {values[i]:g} and {what}[{i + 1}] = {values[i + 1]:g}; {order}"
        )
    return values


def require_floating(dtype: object) -> None:
    """Raise `InvalidProblem` unless this is a dtype of real floating-point numbers."""
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    require(floating, f"dtype = {quoted(dtype)}; give torch.float64 or torch.float32.")


def require_positive(values: Tensor, what: str, remedy: str) -> None:
    """Refuse entries that are not positive, or smaller than one over `LARGEST`."""
    require_each(values, lambda x: x > 0, what, remedy)
    remedy = f"it must be at least {1 / LARGEST:g}."
    require_each(values, lambda x: x * LARGEST >= 1, what, remedy)


def per_step(values: Numbers, steps: int, what: str) -> Tensor:
    """Broadcast a scalar to one float64 value per step; a tensor must have shape (steps,)."""
    tensor = numbers(values, what)
    tensor = (tensor.expand(steps) if tensor.ndim == 0 else tensor).clone()
    require(
        tensor.shape == (steps,),
        f"{what} has shape {tuple(tensor.shape)}; give one number or {steps} values, one per step.",
    )
    return tensor


def require_states(x: object, dims: tuple[int, ...], what: str, hint: str = "") -> None:
    """Raise `InvalidProblem` unless ``x`` is a batch of floating-point states of shape ``dims``."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or tuple(x.shape[1:]) != dims:
        raise InvalidProblem(
            f"{what} got {described(x)}; give floating-point states of shape"
            f" {_written(('batch', *dims))}{hint}."
        )


def require_floating_tensors(**values: object) -> None:
    """Raise `InvalidProblem` unless these are tensors of floating-point numbers."""
    for name, each in values.items():
        if not isinstance(each, Tensor) or not each.is_floating_point():
            raise InvalidProblem(
                f"{name} is {described(each)}; give a tensor of floating-point numbers."
            )


def keep(frozen: object, **values: object) -> None:
    """Set fields of a frozen dataclass while it is made, to what was checked."""
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def returned(value: object, shape: tuple[int, ...], what: str) -> Tensor:
    """What a function that was supplied returned: real floating-point numbers of a shape.

    Raises:
        InvalidProblem: no tensor, another shape, or another kind of numbers.
    """
    if not isinstance(value, Tensor) or value.shape != shape:
        raise InvalidProblem(
            f"{what} returned {described(value)}; it must return a tensor of shape"
            f" {_written(shape)}."
        )
    require(
        value.is_floating_point(),
        f"{what} returned numbers of dtype {value.dtype}; it must return real floating-point"
        " numbers, as .double() makes them.",
    )
    return value


def tried(function: Callable[..., Any], arguments: tuple[Any, ...], what: str) -> Any:
    """What a function that was supplied returns.

    Raises:
        InvalidProblem: it raises an error, which is then the cause; the message says where.
    """
    try:
        return function(*arguments)
    except (InvalidProblem, torch.OutOfMemoryError):
        raise
    except Exception as error:
        shapes = " and ".join(str(tuple(a.shape)) for a in arguments if isinstance(a, Tensor))
        on = f" on tensors of shape {shapes}" if shapes else ""
        raise InvalidProblem(f"{what} fails{on}: {told(error)}; correct it there.") from error


def called(
    function: Callable[..., object], arguments: tuple[Any, ...], shape: tuple[int, ...], what: str
) -> Tensor:
    """What a function that was supplied returns, refused as by `returned`.

    Raises:
        InvalidProblem: see `tried` and `returned`.
    """
    return returned(tried(function, arguments, what), shape, what)


def probe(
    function: Callable[..., object], arguments: tuple[Any, ...], shape: tuple[int, ...], what: str
) -> Tensor:
    """What a function that was supplied returns, refused unless it is finite numbers of a shape.

    Raises:
        InvalidProblem: see `called`, or a number is not finite.
    """
    value = called(function, arguments, shape, what)
    remedy = f"{what} must be finite; check its domain and its weights."
    require_finite(value.detach(), what, remedy)
    return value


def told(error: BaseException) -> str:
    """What an error says, its kind and the line that raised it, in one line without an end."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(
        f" (line {each.lineno} of {each.filename})" for each in place if each.filename != __file__
    )
    text = " ".join(str(error).split())
    text = text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."
    return f"{type(error).__name__}: {text.rstrip('.')}{where}"


def described(value: object) -> str:
    """Kind, and shape of a tensor, to say what was given."""
    if isinstance(value, Tensor):
        return f"a tensor of {str(value.dtype).removeprefix('torch.')}, shape {tuple(value.shape)}"
    return "None" if value is None else _a(type(value).__name__)


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"


def _leaves(values: object) -> Iterator[object]:
    """What nested lists hold."""
    left = [values]
    while left:
        each = left.pop()
        if isinstance(each, list | tuple):
            left.extend(each)
        else:
            yield each


def _require_real(value: object, what: str) -> None:
    """Refuse complex numbers, truth values, and whole numbers too large for a float."""
    kind = str(getattr(value, "dtype", type(value).__name__))
    for refused in ("complex", "bool"):
        require(refused not in kind, f"{what} is {refused}; give real numbers.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise InvalidProblem(f"{what} = {quoted(value)}; it must be at most {LARGEST:g} in size.")


def quoted(value: object) -> str:
    """A value in a few characters on one line."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a whole number of {value.bit_length()} bits"
    try:
        return f"{' '.join(repr(value).split()):.60}"
    except ValueError:  # a whole number of more digits than are written
        return f"a {type(value).__name__}"


def _written(shape: Shape) -> str:
    sizes = ["..." if each is None else str(each) for each in shape]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"
