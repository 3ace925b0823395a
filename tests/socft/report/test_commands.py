"""The commands that reports print run as they stand: a reader copies them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from socft import cli
from socft.report.claim_records import read_claims

ROOT = Path(__file__).resolve().parents[3]
RECORDS = ROOT / "reports" / "records"


def commands(source: str) -> list[str]:
    """The lines of all code blocks."""
    blocks = re.findall(r"```\n(.*?)```", source, re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", cli.REPORTS.names)
def test_every_command_of_a_report_is_one(name):
    report = cli.REPORTS.find(name)
    found = commands(report.compose(report.rows(RECORDS), read_claims(RECORDS)).source)
    assert found
    for command in found:
        program, *arguments = shlex.split(command)
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert program == "socft"
            assert cli.parse(arguments) is not None


def test_a_torn_command_is_noticed():
    with pytest.raises(SystemExit):
        cli.parse(["sd", "reproduce", "--scale"])
