"""What a search found, as records, and whether each inequality is attained."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from socft import theory
from socft.records import Record
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from toy.tightness.search import Point, Samples, Search
from verify.support.claims import WITHIN
from verify.theorem_2_8_iii_control_smoothness import largest_ratio

INEQUALITIES = {
    "theorem_2_8_i_value_lipschitz": "(14)",
    "theorem_2_8_i_value_smoothness": "(15)",
    "theorem_2_8_iii_control_lipschitz": "(16)",
    "theorem_2_8_iii_control_smoothness": "(17)",
    "strong_concavity": "(19)",
    "smoothed_curvature": "smoothed curvature",
    "third_derivative_lemma": "third derivative",
    "contraction": "(67)",
    "lemma_3_2_lipschitz": "(38)",
    "lemma_3_2_smoothness": "(39)",
    "lemma_3_2_control": "Lemma 3.2, controls",
    "lemma_3_2_control_jacobian": "Lemma 3.2, Jacobians of controls",
    "lemma_3_2_increments": "Lemma 3.2, increments",
    "lemma_3_3": "Lemma 3.3",
    "lemma_3_4": "Lemma 3.4",
    "theorem_3_1": "Theorem 3.1",
}
"""What is searched, by claim, and how tables call it."""


def records(search: Search, started: float) -> list[Record]:
    """What a search found, measured again more finely, one record per inequality."""
    point, out, confirmed = search.point, [], dict[tuple[str, bytes], Samples]()
    for name, best in sorted(search.best.items()):
        instance, key = (
            best.family.instance(point, best.unit),
            (best.family.name, best.unit.tobytes()),
        )
        if key not in confirmed:
            confirmed[key] = best.family.measure(point, instance, True)
        sample = confirmed[key].get(name, best.sample)
        setting = {
            "inequality": INEQUALITIES[name],
            "constants": "sharp" if point.sharp else "paper",
            "axis": point.axis,
            "d": point.d,
            "T": point.T,
            "lam": point.lam,
            "updates": sample.updates,
            "verdict": verdict(sample.ratio),
            "family": best.family.name,
            "instance": instance.describe(),
            "tried": search.tried,
        }
        out.append(
            Record(
                schemas.TIGHTNESS.name,
                name,
                Metric.RATIO,
                sample.ratio,
                setting,
                bound=1.0,
                seconds=time.perf_counter() - started,
                optimum=_largest_possible(name, point),
            )
        )
    return out


def verdict(ratio: float) -> str:
    """``attained`` to `WITHIN`, ``loose``, or ``violated`` by more than `WITHIN`."""
    return "violated" if ratio > 1 + WITHIN else "attained" if ratio >= 1 - WITHIN else "loose"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The largest ratio over all points of the study.

    Attributes:
        name: the claim.
        constants: ``paper`` or ``sharp``.
        ratio: the largest ratio.
        worst: whether it is attained, loose or violated.
        setting: where.
    """

    name: str
    constants: str
    ratio: float
    worst: str
    setting: Mapping[str, Any]


def verdicts(found: Iterable[Record]) -> list[Verdict]:
    """For each inequality and each kind of constants whether any point attains it, else the best
    known ratio.
    """
    best: dict[tuple[str, str], Record] = {}
    for record in found:
        key = (record.problem, record.setting.get("constants", ""))
        if record.metric == Metric.RATIO and (key not in best or record.value > best[key].value):
            best[key] = record
    ordered = sorted(
        best.items(), key=lambda item: (list(INEQUALITIES).index(item[0][0]), item[0][1])
    )
    return [
        Verdict(name, constants, r.value, verdict(r.value), r.setting)
        for (name, constants), r in ordered
    ]


def _largest_possible(name: str, point: Point) -> float | None:
    """For (17) at one step with an affine score the supremum of the ratio, known in closed form in
    every dimension.
    """
    if name != "theorem_2_8_iii_control_smoothness" or point.T > 1 or point.sharp:
        return None
    return largest_ratio(point.lam) * theory.SHARP / theory.expected_norm(point.d)
