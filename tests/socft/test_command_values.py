"""The command line with odd values: a result, or one sentence and exit status 2."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socft import cli

COUNTS = ("-1", "0", "2.5", "1e9", "9" * 300, "", "abc", "é", "nan", "\x00")
TEXTS = ("", "os:getcwd", "os:", ":", "os:no_such_name", "no_such_module:x", "é☃", "a" * 5000, "\n")
OPTIONS: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {
    ("toy", "no-such-study"): {"--workers": COUNTS, "--seeds": COUNTS, "--executor": TEXTS},
    ("toy", "linear", "--quick"): {"--executor": TEXTS, "--workers": ("-1", "0", "9" * 300)},
    ("bench",): {"": TEXTS},
    ("report",): {"": TEXTS},
    ("verify",): {"": TEXTS, "--minutes": ("abc", "", "é")},
    ("sd", "train"): {"--steps": COUNTS, "--config": TEXTS},
    ("sd", "sample"): {"--number": ("abc", "2.5", ""), "--config": TEXTS},
    ("sd", "evaluate"): {"--number": ("abc", "2.5", ""), "--config": TEXTS},
    ("sd", "check"): {"--config": TEXTS},
    ("sd", "benchmark"): {"--random": TEXTS, "--config": TEXTS},
    ("sd", "reproduce"): {"--scale": TEXTS, "--trainings": ("0", "abc", "-1")},
    ("sd", "costate-size"): {"--workers": ("0", "-1", "abc"), "--config": TEXTS},
}
CALLS = [
    [*command, *([option] if option else []), value]
    for command, options in OPTIONS.items()
    for option, values in options.items()
    for value in values
]


def status_of(call: list[str]) -> int | str | None:
    """Of the command, or of the parser that refuses it."""
    try:
        return cli.main(call)
    except SystemExit as stopped:
        return stopped.code


@pytest.mark.parametrize("executor", TEXTS)
def test_what_is_no_executor_is_refused(executor: str, capsys: pytest.CaptureFixture[str]):
    assert status_of(["toy", "linear", "--quick", "--executor", executor]) == cli.INVALID
    said = capsys.readouterr().err
    assert said.startswith("socft: ")
    assert said.count("\n") == 1


@settings(max_examples=25)
@given(st.data())
def test_odd_values_are_refused_in_one_line(data: st.DataObject):
    call = data.draw(st.sampled_from([each for each in CALLS if each[0] != "sd"]))
    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr(cli, "_say", lambda message, code: said.append(message) or code)
        status = status_of(call)
    assert status == cli.INVALID, call
    assert all("\n" not in each.strip() for each in said), (call, said)


@pytest.mark.slow
@pytest.mark.parametrize("command", list(OPTIONS), ids=" ".join)
def test_every_odd_value_of_a_command_is_refused(command: tuple[str, ...]):
    chosen = [each for each in CALLS if tuple(each[: len(command)]) == command]
    found = {tuple(call): status_of(call) for call in chosen}
    assert {call: status for call, status in found.items() if status != cli.INVALID} == {}
