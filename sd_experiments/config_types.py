"""Types of settings, and the dataclasses that check them and refuse in one sentence."""

from __future__ import annotations

import dataclasses
import functools
import re
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args

import pydantic.dataclasses
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from sd_experiments.prompt_files import read_prompts
from socft.checks import LARGEST, MOST, InvalidProblem, meant, quoted

_T = TypeVar("_T")
Text = Annotated[str, Field(strict=True)]
Flag = Annotated[bool, Field(strict=True)]
Whole = Annotated[int, Field(strict=True)]
Count = Annotated[Whole, Field(gt=0, le=MOST)]
Seed = Annotated[Whole, Field(ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-LARGEST, le=LARGEST)]
Positive = Annotated[Number, Field(gt=0)]
Name = Annotated[Text, Field(min_length=1, pattern=r"^[^\x00]+$")]
Part = Annotated[Number, Field(ge=0, le=1)]
"""A part of the whole, in [0, 1]."""
Factor = Annotated[Number, Field(ge=0, lt=1)]
"""Of an average over the past, in [0, 1)."""
Prompts = Annotated[
    tuple[Text, ...],
    Field(min_length=1),
    BeforeValidator(lambda given: read_prompts(given) if isinstance(given, str) else given),
]
"""Texts, or the file that holds them."""


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def table(kind: type[_T]) -> type[_T]:
    """A frozen dataclass that checks its fields and refuses in one sentence."""
    checked: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(
        kind
    )
    validate = checked.__init__

    @functools.wraps(validate)
    def init(self: Any, /, *values: Any, **named: Any) -> None:
        try:
            validate(self, *values, **named)
        except ValidationError as error:
            raise InvalidProblem(_refusal(checked, error.errors()[0])) from error

    checked.__init__ = init
    return checked


def _refusal(within: Any, error: ErrorDetails) -> str:
    """What is wrong, with the key, its value and what to do."""
    kind, place, value = error["type"], error["loc"], error["input"]
    where = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in place)[1:]
    if kind == "value_error":
        return str(error.get("ctx", {})["error"])
    if kind == "unexpected_keyword_argument":
        for name in place[:-1]:
            entry = isinstance(name, int)
            within = get_args(within)[0] if entry else within.__pydantic_fields__[name].annotation
        names = [field.name for field in dataclasses.fields(within)]
        inside = where.removesuffix(str(place[-1]))
        otherwise = f"give one of: {', '.join(names)}."
        remedy = meant(str(place[-1]), names, otherwise, lambda each: inside + each)
        return f"there is no key {quoted(where)}; {remedy}"
    if kind == "missing":
        return f"{where} is missing; add it."
    if kind == "dataclass_type":
        return f"{where} = {quoted(value)}; it is a table: write [{where}] and its keys below."
    remedy = re.sub(r"^\w+ should", "it should", error["msg"]).partition(" after validation")[0]
    remedy = re.sub(r"\d{20,}", lambda digits: f"{float(digits[0]):g}", remedy)
    if kind == "literal_error" and isinstance(value, str):
        known = re.findall(r"'([^']*)'", error.get("ctx", {})["expected"])
        return f"{where} = {quoted(value)}; {meant(value, known, f'{remedy}.')}"
    return f"{where} = {quoted(value)}; {remedy}."
