"""Records survive the file, the file survives a crash, and damage is named."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socft import files
from socft.checks import InvalidProblem
from socft.files import write_atomically
from socft.records import Record, decode, encode, read, write

PLAIN = Record("s", "p", "m", 1.5, {"lam": 0.5, "m": 3}, "e", bound=2.0, seconds=0.25, optimum=1.0)


@given(
    value=st.floats(allow_nan=False),
    bound=st.none() | st.floats(allow_nan=False),
    setting=st.dictionaries(
        st.text(),
        st.integers()
        | st.text()
        | st.booleans()
        | st.floats(allow_nan=False, allow_infinity=False),
    ),
    estimator=st.text(),
)
def test_a_record_comes_back_as_it_was(value, bound, setting, estimator):
    record = Record("s", "p", "m", value, setting, estimator, bound=bound)
    line = encode(record)
    assert "\n" not in line
    assert decode(line) == record


def test_lines_are_strict_json():
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    row = json.loads(
        encode(Record("s", "p", "m", math.inf, {"x": -math.inf}, bound=math.nan)),
        parse_constant=refuse,
    )
    assert (row["value"], row["setting"]["x"], row["bound"]) == ("inf", "-inf", None)


def test_a_value_that_is_not_a_number_stays_one():
    assert math.isnan(decode(encode(Record("s", "p", "m", math.nan))).value)


def test_a_file_holds_the_records_in_order(tmp_path):
    file = tmp_path / "deep" / "s.jsonl"
    rows = [Record("s", "p", "m", float(i)) for i in range(5)]
    write(rows, file)
    assert read(file) == rows
    write(rows[:2], file)
    assert read(file) == rows[:2]


def test_every_record_says_where_it_was_measured():
    assert {"python", "socft", "torch", "numpy", "scipy"} <= set(PLAIN.versions)
    assert PLAIN.commit == "" or len(PLAIN.commit) == 40


DAMAGED = {
    "{": "Expecting property name .* at character 2",
    "3": "'3' is no JSON object",
    '{"study": "s"}': "it is without problem, metric, value",
    encode(PLAIN).replace('"metric"', '"metrik"'): "it is without metric",
    encode(PLAIN)[:-1] + ', "more": 1}': "more is no key of it",
    encode(PLAIN).replace("1.5", '"1.5"'): "value is '1.5', where a number belongs",
    encode(PLAIN).replace("1.5", "NaN"): "NaN is no JSON",
    encode(PLAIN).replace("1.5", "9" * 400): "value is a huge number",
    encode(PLAIN).replace('"seeds": 1', '"seeds": 1.5'): "seeds is 1.5, where a whole number",
    encode(PLAIN).replace('{"lam": 0.5, "m": 3}', "[" * 5000 + "]" * 5000): "nested too deeply",
    encode(PLAIN).replace('{"lam": 0.5, "m": 3}', "[" * 70 + "]" * 70): "nested too deeply",
}


@pytest.mark.parametrize("line", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "s.jsonl"
    file.write_text(encode(PLAIN) + "\n" + line + "\n")
    with pytest.raises(InvalidProblem) as refused:
        read(file)
    said = str(refused.value)
    assert re.fullmatch(
        rf"line 2 of {file} is damaged: .*{DAMAGED[line]}.*; measure the study again\.", said
    )


def test_what_was_written_is_read_and_nothing_else(tmp_path):
    """A sealed file knows its numbers, the order of its lines, and how many they are."""
    file = tmp_path / "s.jsonl"
    write([dataclasses.replace(PLAIN, value=float(i)) for i in range(3)], file)
    one, two, three = file.read_text().splitlines(keepends=True)
    for other in (
        [one, two.replace('"value": 1.0', '"value": 1.5'), three],
        [one, three, two],
        [one, two],
        [one, two, two],
        [one, two[: two.index(', "digest"')] + "}\n", three],
        [one, two, three.replace('"dirty": true', '"dirty": null')],
    ):
        if other != [one, two, three]:
            file.write_text("".join(other))
            with pytest.raises(InvalidProblem, match=r"^line \d of .*; measure the study again\.$"):
                read(file)
    file.write_text("".join([one, two, three]))
    assert [record.value for record in read(file)] == [0.0, 1.0, 2.0]


def test_missing_records_name_the_file_and_the_command(tmp_path):
    with pytest.raises(
        InvalidProblem, match=r"no records at .*convergence\.jsonl; .*socft toy convergence --out "
    ):
        read(tmp_path / "convergence.jsonl")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    file = tmp_path / "s.jsonl"
    write_atomically(file, b"old")
    monkeypatch.setattr(files.os, "fsync", _fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["s.jsonl"]


def _fail(_: int) -> None:
    raise OSError("disk full")
