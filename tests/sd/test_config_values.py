"""Settings made wrong: whatever a file says, it is taken or refused in one sentence."""

from __future__ import annotations

import datetime
import json
import math
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sd_experiments import config
from socft.checks import InvalidProblem
from tests.support.mutations import PLAIN

SHARED = (
    "nan", "minus one", "minus a half", "zero", "zero as a float", "a half", "two", "huge", "tiny",
    "text", "empty text", "true", "an empty list",
)  # fmt: skip
"""Of what arguments of functions are replaced by, what a file can say."""
VALUES: dict[str, Any] = {name: PLAIN[name] for name in SHARED} | {
    "infinity": math.inf,
    "two as a float": 2.0,
    "a number of 500 digits": 10**500,
    "a number of 5000 digits": 16**5000,
    "text with a zero": "a\x00b",
    "unicode": "é ☃ 𝔘 \u202e",
    "lines": "a\nb",
    "long text": "a" * 10_000,
    "a path": "os:getcwd",
    "a list": [1],
    "a list of empty text": [""],
    "lists in a list": [[1]],
    "a table": {"a": 1},
    "an empty table": {},
    "tables": [{"a": 1}],
    "a day": datetime.date(2000, 1, 1),
}
TABLES = config.parse_config({"problem": {"prompts": ["a red circle"]}}).plain()
PLACES = [(table,) for table in TABLES] + [
    (table, key) for table, content in TABLES.items() for key in content
]
CASES = [
    (place, name)
    for place in [*PLACES, ("unknown",), ("model", "unknown"), ("self",), ("run", "self")]
    for name in VALUES
]


def changed(place: tuple[str, ...], value: Any) -> dict[str, Any]:
    content = {table: dict(keys) for table, keys in TABLES.items()}
    if len(place) == 1:
        return content | {place[0]: value}
    content[place[0]][place[1]] = value
    return without_nothing(content)


def without_nothing(content: Mapping[str, Any]) -> dict[str, Any]:
    """TOML cannot write None."""
    return {
        table: {key: value for key, value in keys.items() if value is not None}
        for table, keys in content.items()
    }


def outcome(content: Mapping[str, Any]) -> str:
    try:
        found = config.parse_config(content)
    except InvalidProblem as error:
        said = str(error)
        return (
            "refused"
            if "\n" not in said and said.endswith((".", "?")) and len(said) < 400
            else said
        )
    plain = found.plain()
    json.dumps(plain)
    return "right" if config.parse_config(without_nothing(plain)) == found else "not the same"


@settings(max_examples=100)
@given(st.sampled_from(CASES))
def test_a_setting_that_is_changed_is_taken_or_refused(case: tuple[tuple[str, ...], str]):
    place, name = case
    assert outcome(changed(place, VALUES[name])) in ("right", "refused"), case


@pytest.mark.slow
def test_every_setting_that_is_changed_in_every_way_is_taken_or_refused():
    found = {case: outcome(changed(case[0], VALUES[case[1]])) for case in CASES}
    assert {case: said for case, said in found.items() if said not in ("right", "refused")} == {}


def documents() -> Iterator[str]:
    """TOML files, and texts that are none."""
    yield "problem = 1"
    yield "[problem]\nprompts = 'a'\n[problem.prompts]\nx = 1"
    yield "[problem]\nprompts = ['a']\n[sampler.steps.deep.deeper]\nx = 1"
    yield "[problem]\nprompts = ['a']\n[[run]]\nsteps = 1"
    yield f"[problem]\nprompts = ['a']\n[run]\nseed = {'9' * 300}"
    yield f"[problem]\nprompts = ['a']\n[run]\nseed = {'9' * 5000}"
    yield f"[problem]\nprompts = ['a']\n[run]\nsteps = 0x{'f' * 5000}"
    yield f"[problem]\nprompts = ['a']\nbeta = 1e{'9' * 300}"
    yield f"[problem]\nprompts = {'[' * 5000}{']' * 5000}"
    yield f"[{'.'.join('a' * 3000)}]\nx = 1"
    yield "[problem]\nprompts = ['a']\n[lora]\ntargets = ['']"
    yield "[problem]\nprompts = ['a']\n[sampler]\nspacing = 'even'"
    yield "[problem]\nprompts = ['a']\n'' = 1"
    yield "[problem]\nprompts = ['a']\n[estimator.options]\n'' = {a = {b = 1}}"
    yield "[problem]\n\"prömpts\" = ['a']"
    yield "\x00"
    yield "= ="


@pytest.mark.parametrize("text", list(documents()), ids=lambda text: ascii(text[:40]))
def test_files_are_read_or_refused(text: str, tmp_path: Path):
    file = tmp_path / "run.toml"
    file.write_text(text, encoding="utf-8")
    refused_or_read(file)


def refused_or_read(file: Path) -> None:
    said = "."
    try:
        config.read_config(file)
    except InvalidProblem as error:
        said = str(error)
    assert said.endswith((".", "?"))
    assert "\n" not in said
    assert len(said) < 500 + len(str(file))


@settings(max_examples=60)
@given(st.randoms(use_true_random=False))
def test_files_with_other_letters_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rng: random.Random
):
    """The settings that come along, with letters changed, doubled, left out and swapped."""
    file = tmp_path_factory.getbasetemp() / "changed.toml"
    text = list((config.CONFIGS / "tiny.toml").read_text(encoding="utf-8"))
    for _ in range(rng.randint(1, 4)):
        i = rng.randrange(len(text))
        text[i : i + rng.randint(0, 3)] = rng.choices("[]{}='\"\n.,9e-é☃\t#", k=rng.randint(0, 3))
    file.write_text("".join(text), encoding="utf-8")
    refused_or_read(file)


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("sampler", "spacing", "even", "sampler.spacing = 'even'; it should be 'leading', 'trail"),
        ("lora", "targets", [""], "lora.targets[0] = ''; it should have at least 1 character."),
        (
            "run",
            "steps",
            10**500,
            "run.steps = a whole number of 1661 bits; it should be less than",
        ),
        ("run", "seed", 2**63, "run.seed = 9223372036854775808; it should be less than"),
        ("run", "out", "a\x00", "run.out = 'a\\x00'; it should match pattern"),
        (
            "problem",
            "beta",
            1e300,
            "problem.beta = 1e+300; it should be less than or equal to 1e+50",
        ),
        ("model", "path", {"a": 1}, "model.path = {'a': 1}; it should be a valid string."),
    ],
)
def test_refusals_name_the_setting(table: str, key: str, value: Any, message: str):
    with pytest.raises(InvalidProblem) as refused:
        config.parse_config(changed((table, key), value))
    assert str(refused.value).startswith(message)
