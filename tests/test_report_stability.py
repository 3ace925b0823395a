"""The sentences on runs that end below their best follow from the records."""

from __future__ import annotations

import re

import pytest

from sd_experiments.common import PI_FT
from socft.records import Record
from socft.report.rows import Rows
from socft.report.stable_diffusion_stability import reasons

BETA = 0.02


def drop(method: str, value: float, prompt: str = "p") -> Record:
    return Record("s", prompt, "drop", value, {"beta": BETA}, estimator=method, stderr=0.1)


def gradients(agreement: float, alignment: float, stderr: float, prompt: str = "p") -> list[Record]:
    """At the policy that method A ended with, and quite different ones at another."""

    def at(policy: str, method: str, metric: str, value: float, error: float) -> Record:
        return Record("s", prompt, metric, value, {"beta": BETA, "policy": policy}, estimator=method, stderr=error)

    return [at("B", method, metric, -0.77, 0.01) for method in (PI_FT, "A") for metric in ("agreement", "alignment")] + [
        at("A", PI_FT, "agreement", 0.8, 0.01),
        at("A", PI_FT, "alignment", 1.0, 0.0),
        at("A", "A", "agreement", agreement, stderr),
        at("A", "A", "alignment", alignment, stderr),
    ]


def told(records: list[Record]) -> str:
    """As it is read: without markup."""
    markup = reasons(Rows(tuple(records)), BETA)
    return re.sub(r'#"([^"]*)";|#text\(.*\)\[([^]]*)\]', r"\1\2", markup).replace("$", "")


def test_nothing_is_said_where_nothing_falls():
    assert told([]) == ""
    assert told([drop(PI_FT, 0.3), drop("DPOK", 0.39)]) == "No run ends below its best by more than noise."


def test_what_was_not_measured_is_not_explained():
    found = told([drop(PI_FT, 0.0), drop("DPOK", 0.5)])
    assert "DPOK on “p”: why was not measured." in found
    assert PI_FT not in found


@pytest.mark.parametrize(
    ("own", "alignment", "stderr", "reason"),
    [
        (0.8, 0.3, 0.1, "it climbs something else"),
        (0.8, -0.5, 0.1, "it climbs something else"),
        (0.8, 0.3, 0.2, "why is not decided"),
        (0.8, 1.0, 0.01, "why is not decided"),
        (0.1, 1.0, 0.01, "it is noisier"),
    ],
)
def test_a_reason_is_given_beyond_four_standard_errors(own: float, alignment: float, stderr: float, reason: str):
    assert f"A on “p”: {reason}" in told([drop("A", 5.0), *gradients(own, alignment, stderr)])


def test_every_prompt_has_its_own_reason():
    records = gradients(0.8, 0.2, 0.01, "p") + gradients(0.8, 0.7, 0.1, "q") + gradients(0.8, -1.0, 0.01, "r")
    found = told([drop("A", 5.0, "p"), drop("A", 5.0, "q"), drop("A", 0.0, "r"), *records])
    lines = [line for line in found.splitlines() if line.startswith("- ")]
    assert [line.split(":")[0] for line in lines] == ["- A on “p”", "- A on “q”"]
    assert "climbs something else" in lines[0]
    assert "not decided" in lines[1]
