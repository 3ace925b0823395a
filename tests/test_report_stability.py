"""The sentences on runs that end below their best follow from the records."""

from __future__ import annotations

import re
from typing import Any

import pytest

from socft.records import Record
from socft.report.rows import Rows
from socft.report.stable_diffusion_figures import PI_FT
from socft.report.stable_diffusion_stability import reasons

BETA, LAST = 0.02, 60


def drop(method: str, value: float, prompt: str = "p") -> Record:
    return Record("s", prompt, "drop", value, {"beta": BETA}, estimator=method, stderr=0.1)


def gradients(method: str, agreement: float, alignment: float, stderr: float, prompt: str = "p") -> list[Record]:
    """As they are after training, and quite different ones before it."""

    def at(metric: str, value: float, after: int) -> Record:
        return Record("sd_adjoints", prompt, metric, value, {"after": after}, estimator=method, stderr=stderr)

    return [at(metric, -0.77, 0) for metric in ("agreement", "alignment")] + [
        at("agreement", agreement, LAST),
        at("alignment", alignment, LAST),
    ]


def told(drops: list[Record], sizes: list[Any] | None = None) -> str:
    """As it is read: without markup."""
    markup = reasons(Rows(tuple(drops)), Rows(tuple(sizes or [])), BETA)
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
        (0.8, 0.3, 0.1, "it does not climb this objective"),
        (0.8, -0.5, 0.1, "it does not climb this objective"),
        (0.8, 0.3, 0.2, "why is not decided"),
        (0.8, 1.0, 0.01, "why is not decided"),
        (0.1, 1.0, 0.01, "it is noisier"),
    ],
)
def test_a_reason_is_given_beyond_four_standard_errors(own: float, alignment: float, stderr: float, reason: str):
    sizes = [*gradients(PI_FT, 0.8, 1.0, 0.01), *gradients("A", own, alignment, stderr)]
    assert f"A on “p”: {reason}" in told([drop("A", 5.0)], sizes)


def test_every_prompt_has_its_own_reason():
    sizes = [each for prompt in "pqr" for each in gradients(PI_FT, 0.8, 1.0, 0.01, prompt)]
    sizes += gradients("A", 0.8, 0.2, 0.01, "p") + gradients("A", 0.8, 0.7, 0.1, "q") + gradients("A", 0.8, -1.0, 0.01, "r")
    lines = told([drop("A", 5.0, "p"), drop("A", 5.0, "q"), drop("A", 0.0, "r")], sizes).splitlines()[2:]
    assert [line.split(":")[0] for line in lines] == ["- A on “p”", "- A on “q”"]
    assert "does not climb" in lines[0]
    assert "not decided" in lines[1]
