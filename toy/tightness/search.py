"""The search for the largest ratio of a measurement to its bound: points, families of instances
with a few parameters, and a local search in them for every inequality.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem

RESOLVED = 1e-3
"""Largest share of a bound that the error of the measurement may be."""
SIMPLEX = 0.2
"""Size of the first simplex of a local search, in units of the box."""
NEVER_BETTER = 1 - 1e-6
"""Ratio at which a search stops."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a search takes place.

    Attributes:
        d: dimension.
        T: number of steps.
        lam: design constant of every step.
        sharp: whether the sharper constants are searched, at their weights, or the paper's.
        axis: which of d, T and lam varies at this point.
    """

    d: int
    T: int
    lam: float
    sharp: bool
    axis: str

    @property
    def lams(self) -> tuple[float, ...]:
        """One design constant per step."""
        return (self.lam,) * self.T

    def bounds(self, mean_L0: Tensor | None = None) -> theory.TwoSidedBounds:
        """The constants under search."""
        return theory.SharpBounds(mean_L0) if self.sharp else theory.PaperBounds()


@dataclasses.dataclass(frozen=True)
class Sample:
    """One measured number beside its bound; ``updates`` is PI-FT's m where it matters."""

    measured: float
    bound: float
    updates: int | None = None

    @property
    def ratio(self) -> float:
        """Measured over bound."""
        return self.measured / self.bound


class Samples(dict[str, Sample]):
    """The sample of the largest ratio of each inequality."""

    def add(
        self,
        name: str,
        measured: Tensor | float,
        bound: Tensor | float,
        error: float = 0.0,
        updates: int | None = None,
    ) -> None:
        """Count a sample unless its bound is infinite, or so small that the measurement's absolute
        error would be seen.
        """
        sample = Sample(float(measured), float(bound), updates)
        if not (
            math.isfinite(sample.bound)
            and sample.bound > error / RESOLVED
            and math.isfinite(sample.measured)
        ):
            return
        if name not in self or sample.ratio > self[name].ratio:
            self[name] = sample


@dataclasses.dataclass(frozen=True)
class Family:
    """Instances with a few continuous parameters.

    Attributes:
        name: how records call it.
        box: least and largest value of each parameter.
        starts: candidates for the largest ratio; the search adds random ones.
        build: ``(point, parameters) -> instance``, which describes itself.
        measure: ``(point, instance, confirm) -> samples``; the last one asks for a finer
            measurement.
    """

    name: str
    box: Mapping[str, tuple[float, float]]
    starts: tuple[tuple[float, ...], ...]
    build: Callable[[Point, Mapping[str, float]], Any]
    measure: Callable[[Point, Any, bool], Samples]

    def instance(self, point: Point, unit: np.ndarray) -> Any:
        """The instance at a point of the unit cube."""
        ends = np.array(list(self.box.values()))
        values = ends[:, 0] + np.clip(unit, 0, 1) * (ends[:, 1] - ends[:, 0])
        return self.build(point, dict(zip(self.box, values.tolist(), strict=True)))

    def unit(self, start: Sequence[float]) -> np.ndarray:
        """A candidate as a point of the unit cube."""
        ends = np.array(list(self.box.values()))
        return (np.array(start) - ends[:, 0]) / (ends[:, 1] - ends[:, 0])


@dataclasses.dataclass(frozen=True)
class LargestRatio:
    """The largest ratio found, and where."""

    sample: Sample
    family: Family
    unit: np.ndarray


class Search:
    """Random starts, then a Nelder-Mead search for each inequality; every evaluation counts for all
    of them.
    """

    def __init__(self, point: Point, families: Sequence[Family], seed: int):
        self.point, self.families = point, families
        self.draw, self.best, self.tried = np.random.default_rng(seed), dict[str, LargestRatio](), 0

    def run(self, evaluations: int) -> Search:
        """Spend about so many evaluations."""
        for family in self.families:
            random = evaluations // (4 * len(self.families))
            for unit in [family.unit(start) for start in family.starts] + list(
                self.draw.random((random, len(family.box)))
            ):
                self.evaluate(family, unit)
        names = sorted(self.best)
        for i, name in enumerate(names):
            self._refine(name, (evaluations - self.tried) // (len(names) - i))
        return self

    def evaluate(self, family: Family, unit: np.ndarray) -> Samples:
        """Measure one instance; one that is not well posed or not resolved counts for nothing."""
        self.tried += 1
        try:
            samples = family.measure(self.point, family.instance(self.point, unit), False)
        except InvalidProblem:
            return Samples()
        for name, sample in samples.items():
            if name not in self.best or sample.ratio > self.best[name].sample.ratio:
                self.best[name] = LargestRatio(sample, family, unit)
        return samples

    def _refine(self, name: str, evaluations: int) -> None:
        start = self.best[name]
        if start.sample.ratio >= NEVER_BETTER or evaluations <= len(start.unit):
            return
        corner = np.clip(start.unit, 0, 1)
        away = np.where(corner > 0.5, -SIMPLEX, SIMPLEX)
        simplex = np.vstack([corner, corner + np.diag(away)])

        def negative(unit: np.ndarray) -> float:
            sample = self.evaluate(start.family, unit).get(name)
            return -sample.ratio if sample else 0.0

        minimize(
            negative,
            corner,
            method="Nelder-Mead",
            bounds=[(0, 1)] * len(corner),
            options={
                "initial_simplex": simplex,
                "maxfev": evaluations,
                "xatol": 1e-6,
                "fatol": 1e-9,
            },
        )
