"""Synthetic records of the study ``tightness``: a simple formula with its settings and metrics."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from socft.records import Record
from socft.report.convergence import tightness
from socft.report.rows import Rows
from toy.studies.tightness import AXES
from toy.tightness.verdicts import INEQUALITIES, verdict
from verify.beta_tightness import FAMILIES

POWERS = {"necessary": -0.6, "coupled": -0.5, "one-sided": -0.4, "sharp": 1.0, "paper": 3.0}
"""Of the number of steps in synthetic weights."""
NAMES = [name for titles in tightness.GROUPS.values() for name in titles]
ATTAINED = ("theorem_2_8_i_value_lipschitz", "contraction")
NO_SINGLE_STEP = ("theorem_2_8_i_value_smoothness", *tightness.STEPLESS)
LENGTHS = (2, 8, 32)
FACTORS = {
    "paper": 4.0,
    "sharp": 2.0,
    "sharp, exact mean maps": 1.5,
    "one-sided": 1.2,
    "necessary": 1.0,
}


def value(name: str, constants: str, d: float, T: float, lam: float) -> float:
    """Decreasing in d and T, increasing in lam, different for every inequality; 0.4 or 0.8 over 2,
    3, ... at the base point.
    """
    size = (
        0.995
        if name in ATTAINED
        else (0.4 if constants == "paper" else 0.8) / (2 + NAMES.index(name))
    )
    return size if name in ATTAINED else size * (2 / d) ** 0.5 * 2 * lam * 2 / T


def ratio(
    name: str,
    constants: str = "paper",
    d: int = 2,
    T: int = 2,
    lam: float = 0.5,
    axis: str = "base",
    **fields,
) -> Record:
    found = fields.pop("value", None)
    found = value(name, constants, d, T, lam) if found is None else found
    setting = {
        "inequality": INEQUALITIES[name],
        "constants": constants,
        "axis": axis,
        "d": d,
        "T": T,
        "lam": lam,
        "updates": fields.pop("updates", None),
        "verdict": verdict(found),
        "family": f"family of {T} steps",
        "instance": {},
        "tried": 100,
    }
    return Record(
        "tightness",
        name,
        "ratio",
        found,
        setting,
        versions={"python": "3"},
        commit="",
        dirty=False,
        **fields,
    )


def points(name: str) -> Iterator[tuple[str, dict]]:
    """Axis and what varies along it; single steps at the base point too."""
    yield "base", {}
    for axis, each in AXES.items():
        yield from ((axis, {axis: x}) for x in each if x not in (2, 0.5) and (axis, x) != ("T", 1))
    if name not in NO_SINGLE_STEP:
        yield "base", {"T": 1}


def synthetic_lengths() -> list[Record]:
    """Weights against the number of steps, powers of it, and errors beside their bounds."""
    made = functools.partial(Record, "tightness", versions={"python": "3"}, commit="", dirty=False)
    rows = []
    for law, (rule, power) in itertools.product(("narrow", "wide"), POWERS.items()):
        for steps in (20, 50, 100, 200):
            setting = {"reward": "sine", "T": steps, "lam": 0.5, "rule": rule, "d": 1}
            rows.append(made(law, "sufficient_beta", 3 * steps**power, setting))
    for law, relaxed, m in itertools.product(("narrow", "wide"), (False, True), (1, 2)):
        setting = {"reward": "sine", "T": 50, "lam": 0.5, "m": m, "relaxed": relaxed}
        rows += [
            made(law, metric, 0.1**m, setting, bound=0.3**m)
            for metric in ("control_error", "value_gradient_error", "objective_gap")
        ]
    return rows


def synthetic_tightness() -> Rows:
    found: dict[tuple, Record] = {}
    for name, constants in itertools.product(NAMES, ("paper", "sharp")):
        for axis, changes in points(name):
            found[name, constants, *sorted(changes.items())] = ratio(
                name, constants, axis=axis, **changes
            )
    rows = [*found.values()]
    for size, family in enumerate(FAMILIES, 1):
        for steps, (rule, factor) in itertools.product(LENGTHS, FACTORS.items()):
            setting = {"rule": rule, "T": steps, "lam": 1e-3, "instance": {}}
            needed = 1 + 1 / steps
            asked = needed * (1 if rule == "necessary" else factor**size * steps / 2)
            rows.append(
                Record(
                    "tightness",
                    family,
                    "beta",
                    asked,
                    setting,
                    optimum=needed,
                    versions={"python": "3"},
                    commit="",
                    dirty=False,
                )
            )
    return Rows(tuple(rows))
