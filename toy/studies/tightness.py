r"""How tight is the theory? For every inequality the largest ratio of what is measured to its
bound, by numerical search.

A ratio is taken at step 0, so that all T steps of a recursion count, at the smallest KL weights
that the constants admit for the design constant lambda: the paper's constants at the paper's
weights, the sharper ones at theirs. Bounds come from `socft.theory` and the claims of `verify`,
extremal candidates from the claims that are attained. Three kinds of instances are searched:

* one step in closed form, where the next value function has a staircase as second derivative
  (`verify.support.staircase`), T = 1;
* affine scores with linear or quadratic rewards in d dimensions, in closed form, any T;
* lines with affine or tanh scores and rewards with bounded gradients, by quadrature, T > 1.

A line stands for itself along one axis of d dimensions in which nothing else is rewarded: d enters
the bounds alone. What a search finds is a lower bound on the tightness; *attained* means within 1%.
The last tasks compare the constant KL weights that are sufficient by the paper's constants and by
the sharper ones with the one that is necessary (`verify.beta_tightness`).
"""

from __future__ import annotations

import dataclasses
import time
import zlib
from collections.abc import Iterator, Mapping

from socft import theory
from socft.records import Record
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from toy.tightness.families import GROUPS
from toy.tightness.lengths import tasks as against_lengths
from toy.tightness.search import Point, Search
from toy.tightness.verdicts import records
from verify import beta_tightness

BASE = {"d": 2, "T": 2, "lam": 0.5}
AXES: dict[str, tuple[float, ...]] = {
    "d": (1, 2, 8, 64),
    "T": (1, 2, 4, 8, 12),
    "lam": (0.1, 0.3, 0.5, 0.7, 0.9),
}
QUICK_AXES: dict[str, tuple[float, ...]] = {"d": (64,), "lam": (0.9,)}
LENGTHS, QUICK_LENGTHS = (2, 3, 5, 8, 12, 20, 32, 50), (2, 8)


def ratio_task(group: str, point: Point, evaluations: int) -> list[Record]:
    """The largest ratios at a point."""
    started = time.perf_counter()
    seed = zlib.crc32(f"{group} {point}".encode())
    return records(Search(point, GROUPS[group], seed).run(evaluations), started)


def beta_task(family: str, T: int) -> list[Record]:
    """The constant KL weights that are sufficient and the one that is necessary for a design
    constant near 0.
    """
    instance, lam = beta_tightness.member(beta_tightness.FAMILIES[family], T), beta_tightness.LAM
    started = time.perf_counter()
    found = {
        "paper": beta_tightness.bound(instance, lam, theory.PaperBounds()),
        "sharp": beta_tightness.bound(instance, lam, theory.SharpBounds()),
        "sharp, exact mean maps": beta_tightness.bound(instance, lam, instance.sharp),
        "one-sided": beta_tightness.bound(instance, lam, theory.OneSidedBounds()),
        "necessary": beta_tightness.measure(instance, lam),
    }
    seconds, setting = (
        time.perf_counter() - started,
        {"T": T, "lam": lam, "instance": instance.describe()},
    )
    return [
        Record(
            schemas.TIGHTNESS.name,
            family,
            Metric.BETA,
            value,
            {"rule": rule} | setting,
            optimum=found["necessary"],
            seconds=seconds,
        )
        for rule, value in found.items()
    ]


def points(axes: Mapping[str, tuple[float, ...]], sharp: bool) -> Iterator[Point]:
    """The base point and what differs from it in one of d, T and lam."""
    seen = set()
    for axis, values in [("base", (0,)), *axes.items()]:
        for value in values:
            place = BASE | ({} if axis == "base" else {axis: value})
            if tuple(place.values()) not in seen:
                seen.add(tuple(place.values()))
                yield Point(int(place["d"]), int(place["T"]), place["lam"], sharp, axis)


EVALUATIONS = {"one step": 150, "iterates": 90, "control": 80, "optimum": 200, "smoothing": 300}
QUICK_EVALUATIONS = {"one step": 12, "iterates": 0, "control": 0, "optimum": 40, "smoothing": 60}


def tasks(quick: bool) -> list[Task]:
    """Every search, at the quick or the full scale."""
    axes, lengths = (QUICK_AXES, QUICK_LENGTHS) if quick else (AXES, LENGTHS)
    evaluations = QUICK_EVALUATIONS if quick else EVALUATIONS
    out = []
    for sharp in (False, True):
        for point in points(axes, sharp):
            by_quadrature = point.axis == "base" or not quick
            out += [
                _task(group, place, evaluations[group])
                for group, place in _groups(point, by_quadrature)
            ]
    for family in beta_tightness.FAMILIES:
        out += [Task(f"beta {family} {T}", beta_task, {"family": family, "T": T}) for T in lengths]
    out += against_lengths(quick)
    return list({task.name: task for task in out}.values())


def _groups(point: Point, by_quadrature: bool) -> Iterator[tuple[str, Point]]:
    """What to search at a point; of a line and one step d changes the paper's constants alone."""
    yield "optimum", point
    if point.axis in ("base", "d"):
        yield "smoothing", point
    if point.sharp and point.axis == "d":
        return
    if point.axis != "T" or point.T == 1:
        yield "one step", dataclasses.replace(point, T=1)
    if point.T > 1 and by_quadrature:
        yield "iterates", point
        yield "control", point


def _task(group: str, point: Point, evaluations: int) -> Task:
    name = f"{group} {'sharp' if point.sharp else 'paper'} d={point.d} T={point.T} lam={point.lam}"
    return Task(
        name,
        ratio_task,
        {"group": group, "point": point, "evaluations": evaluations},
    )


STUDY = Study(schemas.TIGHTNESS, tasks)
