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
import functools
import hashlib
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

import verify
from socft import theory
from socft.checks import InvalidProblem, require
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.records import Record
from socft.study.runner import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.truth.grid import Grid
from socft.truth.quadrature import Quadrature
from verify import beta_tightness, lemma_3_3, lemma_3_4, theorem_3_1
from verify.contraction import map_constants
from verify.smoothed_curvature import Pair
from verify.support.claims import WITHIN
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.iterates import Iterate, suprema
from verify.support.rewards import ScalarReward, Slope
from verify.support.scores import TanhScore
from verify.support.staircase import OneStep, Staircase, clipped
from verify.support.strategies import PseudoHuber, Sine, Softplus
from verify.support.suprema import ACCURACY, DIFFERENCED, TWICE, grids_for
from verify.theorem_2_8_iii_control_smoothness import largest_ratio, measure

BASE = {"d": 2, "T": 2, "lam": 0.5}
AXES: dict[str, tuple[float, ...]] = {
    "d": (1, 2, 8, 64),
    "T": (1, 2, 4, 8, 12),
    "lam": (0.1, 0.3, 0.5, 0.7, 0.9),
}
QUICK_AXES: dict[str, tuple[float, ...]] = {"d": (64,), "lam": (0.9,)}
LENGTHS, QUICK_LENGTHS = (2, 3, 5, 8, 12, 20, 32, 50), (2, 8)
UPDATES = (0, 1, 4)
"""Updates of PI-FT at every step that are tried; records have null for the limit of infinitely
many.
"""
SEARCHED, CONFIRMED = 1001, 4001
"""States of one step in a search, and when its result is confirmed."""
FINER = 2
"""How many times more nodes confirm what a search by quadrature found."""
RESOLVED = 1e-3
"""Largest share of a bound that the error of the measurement may be."""
SIMPLEX = 0.2
"""Size of the first simplex of a local search, in units of the box."""
NEVER_BETTER = 1 - 1e-6
"""Ratio at which a search stops."""
FAR, NARROW = 60.0, 0.05
"""Half-width of a jump's plateaus, and least width of a stair, in units of sigma."""

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

    def bounds(self, mean_L0: Tensor | None = None) -> theory.Bounds:
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
class Best:
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
        self.draw, self.best, self.tried = np.random.default_rng(seed), dict[str, Best](), 0

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
                self.best[name] = Best(sample, family, unit)
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


@dataclasses.dataclass(frozen=True)
class Embedded:
    """A line's problem along one axis of d dimensions in which nothing else is rewarded: what the
    theory knows of it.
    """

    chain: theory.ChainConstants

    @classmethod
    def of(cls, line: ProductInstance | OneStep, d: int) -> Embedded:
        """In d dimensions."""
        return cls(dataclasses.replace(line.chain, dim=d))


def weights(
    chain: theory.ChainConstants, lams: Sequence[float], statement: theory.RegularityStatement
) -> Tensor:
    """The smallest KL weights a statement admits, 1 where it admits every one, shape (T,)."""
    required = theory.constants(
        chain, torch.tensor(lams, dtype=torch.float64), statement
    ).beta_required
    require(
        bool(required.isfinite().all()),
        f"{statement.name} asks for an infinite weight; give finite constants.",
    )
    return torch.where(required > 0, required, 1.0)


def _count_iterate(
    samples: Samples,
    case: Embedded,
    beta: Tensor,
    bounds: theory.Bounds,
    found: Iterate,
    updates: int,
) -> None:
    """Lemmas 3.2 to 3.4 and Theorem 3.1 for one pass of PI-FT."""
    chain = case.chain
    constants, unit = (
        theory.constants_at(chain, beta, theory.Lemma32(bounds)),
        float(theory.score_unit(chain)[0]),
    )
    paper = isinstance(bounds, theory.PaperBounds)
    lemma, sharper = lemma_3_4.bound(case, beta, bounds, found, updates)
    theorem = theorem_3_1.bound(case, beta, bounds, updates)[0 if paper else 1][0]
    gradient_bound = lemma[0] if paper else torch.minimum(lemma, sharper)[0]
    control_bound = lemma_3_3.bound(case, beta, bounds, found, updates)[0]
    error = unit * found.control_error[0]
    _count_controls(samples, case, beta, bounds, found, updates)
    samples.add("lemma_3_3", error, control_bound, ACCURACY * unit, updates)
    samples.add("lemma_3_4", found.gradient_error[0], gradient_bound, ACCURACY, updates)
    samples.add("theorem_3_1", error, theorem, ACCURACY * unit, updates)
    for j, increment in enumerate(found.increments[0].tolist()):
        limit = (1 - constants.lam[0]) ** j * constants.L0V[1]
        samples.add("lemma_3_2_increments", increment, limit, ACCURACY, updates)


def _count_controls(
    samples: Samples,
    case: Embedded,
    beta: Tensor,
    bounds: theory.Bounds,
    found: Iterate,
    updates: int | None,
) -> None:
    """Lemma 3.2 for values and controls of one pass, or of the optimum, which is the limit of many
    updates.
    """
    constants, unit = (
        theory.constants_at(case.chain, beta, theory.Lemma32(bounds)),
        float(theory.score_unit(case.chain)[0]),
    )
    samples.add("lemma_3_2_lipschitz", found.value_gradient[0], constants.L0V[0], ACCURACY, updates)
    samples.add(
        "lemma_3_2_smoothness", found.value_hessian[0], constants.L1V[0], DIFFERENCED, updates
    )
    samples.add(
        "lemma_3_2_control",
        found.control_slope[0],
        constants.L0u[0],
        DIFFERENCED * (1 + unit),
        updates,
    )
    samples.add(
        "lemma_3_2_control_jacobian",
        found.control_bend[0],
        constants.L1u[0],
        TWICE * (1 + unit),
        updates,
    )


def _finished(truth: Quadrature) -> BackwardInduction:
    """The optimum as the pass of infinitely many updates."""
    return BackwardInduction(
        truth.grids,
        truth.values,
        truth.shifts,
        torch.zeros(truth.problem.steps, 0, dtype=torch.float64),
    )


def measure_one_step(point: Point, step: OneStep, confirm: bool) -> Samples:
    """All inequalities about one step, in closed form."""
    step = dataclasses.replace(step, count=CONFIRMED if confirm else SEARCHED)
    case, bounds, samples = Embedded.of(step, point.d), point.bounds(), Samples()
    optimum = theory.constants_at(case.chain, step.beta, theory.Theorem28(bounds))
    samples.add("theorem_2_8_iii_control_smoothness", step.bend(), optimum.L1u[0])
    rate = step.q * float(np.abs(step.curvature(step.states)).max())
    samples.add("contraction", rate, 1 - optimum.lam[0])
    samples.add("lemma_3_2_control", step.steepness(), optimum.L0u[0])
    samples.add("lemma_3_2_control_jacobian", step.bend(), optimum.L1u[0])
    for m in UPDATES:
        _count_iterate(samples, case, step.beta, bounds, step.iterate(m), m)
    return samples


def measure_line(point: Point, instance: ProductInstance, confirm: bool) -> Samples:
    """The statements about PI-FT's iterates, by quadrature."""
    case, bounds, samples = (
        Embedded.of(instance, point.d),
        point.bounds(instance.mean_L0),
        Samples(),
    )
    beta = weights(case.chain, point.lams, theory.Lemma32(bounds))
    truth = _solve(instance.problem(beta), confirm)
    lam = theory.constants_at(case.chain, beta, theory.Lemma32(bounds)).lam[0]
    _count_controls(samples, case, beta, bounds, suprema(truth, instance, _finished(truth)), None)
    for m in UPDATES:
        found = backward_induction(truth.problem, truth.grids, m)
        _count_iterate(samples, case, beta, bounds, suprema(truth, instance, found), m)
        if m < UPDATES[-1]:
            samples.add("contraction", map_constants(truth.problem, found)[0], 1 - lam, ACCURACY, m)
    return samples


def measure_bend(point: Point, instance: ProductInstance, confirm: bool) -> Samples:
    """(17), by quadrature, at the weights of Theorem 2.8."""
    case, bounds, samples = (
        Embedded.of(instance, point.d),
        point.bounds(instance.mean_L0),
        Samples(),
    )
    beta = weights(case.chain, point.lams, theory.Theorem28(bounds))
    limit = theory.constants_at(case.chain, beta, theory.Theorem28(bounds)).L1u[0]
    error = TWICE * (1 + float(theory.score_unit(case.chain)[0]))
    samples.add(
        "theorem_2_8_iii_control_smoothness",
        measure(_solve(instance.problem(beta), confirm))[0],
        limit,
        error,
    )
    return samples


def _solve(problem: ControlProblem, confirm: bool) -> Quadrature:
    grids = grids_for(problem)
    if confirm:
        grids = tuple(Grid.box(g.lower, g.upper, (FINER * g.shape[0],)) for g in grids)
    return Quadrature(problem, grids)


def measure_linear(point: Point, instance: QuadraticInstance, _: bool) -> Samples:
    """(14) in closed form, where the reward is linear: the gradients are constant."""
    samples, statement = Samples(), theory.Theorem28(point.bounds(instance.mean_L0))
    gradient = instance.solve(weights(instance.chain, point.lams, statement)).slope[0].norm()
    samples.add("theorem_2_8_i_value_lipschitz", gradient, instance.regularity(statement).L0V[0])
    return samples


def measure_quadratic(point: Point, instance: QuadraticInstance, _: bool) -> Samples:
    """(15), (16) and (19) in closed form."""
    bounds, samples, chain = point.bounds(instance.mean_L0), Samples(), instance.chain
    statement = theory.Theorem28(bounds)
    beta = weights(chain, point.lams, statement)
    truth, limit = instance.solve(beta), theory.constants_at(chain, beta, statement)
    with torch.no_grad():
        gain = theory.score_unit(chain)[0] * truth.affine_policy.gain[0]
    jacobian = torch.diag(torch.tensor(instance.score, dtype=torch.float64)) + gain
    samples.add(
        "theorem_2_8_i_value_smoothness",
        torch.linalg.matrix_norm(truth.hessian(0), 2),
        limit.L1V[0],
    )
    samples.add(
        "theorem_2_8_iii_control_lipschitz", torch.linalg.matrix_norm(jacobian, 2), limit.L0u[0]
    )
    modulus = theory.concavity_modulus(
        chain, beta, torch.linalg.eigvalsh(truth.hessian(1))[-1].expand(point.T)
    )[0]
    samples.add(
        "strong_concavity", theory.concavity_modulus(chain, beta, limit.curvature)[0], modulus
    )
    return samples


def measure_pair(point: Point, pair: Pair, _: bool) -> Samples:
    """Smoothing a sum of two functions along directions at an angle, with noise of scale 1."""
    bounds, samples = point.bounds(), Samples()
    curvature = bounds.curvature(pair.L0, pair.L1, 1.0)
    third = (
        theory.smoothed_third(pair.L0, pair.L1, 1.0)
        if point.sharp
        else bounds.third_derivative_ratio(pair.L0, pair.L1, 1.0, point.d) * pair.L1
    )
    samples.add("smoothed_curvature", pair.smoothed(1.0, 2), curvature)
    samples.add("third_derivative_lemma", pair.smoothed(1.0, 3), third)
    return samples


def _one_step(point: Point, value: Staircase) -> OneStep:
    """At the smallest weight that the constants admit."""
    largest = max(abs(x) for x in value.curvatures)
    require(largest > 0, f"the levels {value.levels} are all zero; give one that is not.")
    unit = Staircase(value.knots, tuple(x / largest for x in value.levels))
    return OneStep((1 - point.lam) / point.bounds().curvature(unit.slopes[1], 1.0, 1.0), unit)


def _clip(sign: int) -> Family:
    return Family(
        f"clipped slope, {'convex' if sign > 0 else 'concave'}",
        {"log corner": (-2.0, 8.0)},
        ((7.6,), (2.0,), (0.0,)),
        lambda point, x: _one_step(point, clipped(1.0, math.exp(x["log corner"]), sign=sign).value),
        measure_one_step,
    )


def _stairs(x: Mapping[str, float], first: str = "") -> Staircase:
    """Three stairs; widths are given by their logarithms."""
    widths = [max(math.exp(x[f"{first}w{i}"]), NARROW) for i in range(3)]
    knots = (0.0, widths[0], widths[0] + widths[1], sum(widths))
    return Staircase(knots, tuple(x[f"{first}l{i}"] for i in range(3)))


STAIRS = {f"w{i}": (-2.0, math.log(FAR)) for i in range(3)} | {
    f"l{i}": (-1.0, 1.0) for i in range(3)
}
JUMP = (math.log(FAR), -2.0, math.log(FAR), -1.0, 1.0, 1.0)
BASIN = (2.0, 1.5, 2.0, -1.0, 1.0, 0.0)

ONE_STEP = (
    _clip(1),
    _clip(-1),
    Family(
        "three stairs",
        STAIRS,
        (JUMP, BASIN, (1.0, 1.0, 1.0, 1.0, -1.0, 1.0)),
        lambda point, x: _one_step(point, _stairs(x)),
        measure_one_step,
    ),
)


def _levels(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Signal levels in equal ratios."""
    return tuple(first * (last / first) ** (t / steps) for t in range(steps + 1))


LEVELS = {"first": (0.05, 0.7), "last": (0.75, 0.999)}


def _line(
    reward: Callable[[float, float], ScalarReward], bent: bool
) -> Callable[[Point, Mapping[str, float]], ProductInstance]:
    def build(point: Point, x: Mapping[str, float]) -> ProductInstance:
        score = TanhScore(x["c"], x["b"], x["w"]) if bent else TanhScore(x["c"])
        factor = Factor(score, reward(math.exp(x["log shape"]), x["place"]))
        return ProductInstance(
            levels=_levels(point.T, x["first"], x["last"]), lam=point.lams, factors=(factor,)
        )

    return build


def _lines(
    measured: Callable[[Point, Any, bool], Samples], bending: Sequence[str]
) -> tuple[Family, ...]:
    """Affine scores with every reward, nonlinear scores with some; the starts are the best of
    longer searches at the base point.
    """
    shape, place = {"log shape": (-1.2, 1.6)}, {"place": (-3.0, 3.0)}
    affine = {"c": (-2.0, 1.5)} | LEVELS | shape | place
    bent = {"c": (-2.0, 1.5), "b": (-0.5, 0.5), "w": (0.5, 3.0)} | LEVELS | shape | place
    rewards: dict[str, Callable[[float, float], ScalarReward]] = {
        "sine": lambda shape, place: Sine(1.0, shape, place),
        "softplus": lambda shape, place: Softplus(1.0, shape, place),
        "softplus, concave": lambda shape, place: Softplus(-1.0, shape, place),
        "pseudo-Huber": lambda shape, place: PseudoHuber(shape, place, 1.0),
        "pseudo-Huber, concave": lambda shape, place: PseudoHuber(shape, place, -1.0),
        "linear": lambda *_: Slope(1.0),
    }
    starts = (
        (-0.3, 0.7, 0.8, -0.86, 0.44),
        (0.0, 0.7, 0.9, 0.2, 2.8),
        (-1.13, 0.05, 0.86, -1.2, 1.3),
    )
    out = [
        Family(f"affine score, {name}", affine, starts, _line(reward, False), measured)
        for name, reward in rewards.items()
        if name != "linear"
    ]
    curved = ((-2.0, 0.35, 2.8, 0.06, 0.94, -0.58, -0.3), (0.6, 0.48, 3.0, 0.22, 0.94, 0.24, 0.6))
    out += [
        Family(f"tanh score, {name}", bent, curved, _line(rewards[name], True), measured)
        for name in bending
    ]
    return tuple(out)


def _spread(low: float, high: float, d: int) -> tuple[float, ...]:
    return tuple(torch.linspace(low, high, d, dtype=torch.float64).tolist())


def _quadratic(point: Point, x: Mapping[str, float]) -> QuadraticInstance:
    return QuadraticInstance(
        levels=_levels(point.T, x["first"], x["last"]),
        lam=point.lams,
        score=_spread(x["score"] - x["spread"], x["score"], point.d),
        shift=(0.0,) * point.d,
        curvature=_spread(x["curvature"] * (1 - x["spread"]), x["curvature"], point.d),
        slope=(0.0,) * (point.d - 1) + (1.0,),
    )


QUADRATIC = (
    Family(
        "quadratic reward",
        LEVELS | {"score": (-1.5, 1.0), "spread": (0.0, 1.0), "curvature": (-3.0, 3.0)},
        ((0.4, 0.95, 0.2, 0.1, 1.5),),
        _quadratic,
        measure_quadratic,
    ),
    Family(
        "linear reward",
        LEVELS | {"score": (-1.5, 1.0), "spread": (0.0, 1.0)},
        ((0.3, 0.95, 0.4, 0.0),),
        lambda point, x: _quadratic(point, {**x, "curvature": 0.0}),
        measure_linear,
    ),
)

KINKS = 1e-4


def _two_kinks(_: Point, x: Mapping[str, float]) -> Pair:
    """The slope ``sign(x^2 - r^2)`` with steep steps, along one axis."""
    level, r = 1 / KINKS, x["radius"]
    kinks = Staircase((-r - KINKS, -r + KINKS, r - KINKS, r + KINKS), (-level, 0.0, level))
    return Pair(kinks, Staircase((0.0, 1.0), (0.0,)), math.pi / 2)


PAIRS = (
    Family(
        "two functions at an angle",
        {f"{n}{k}": v for n in "ab" for k, v in STAIRS.items()} | {"angle": (0.1, math.pi / 2)},
        (
            (*JUMP, *JUMP[:3], 0.0, 0.0, 0.0, math.pi / 2),
            (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        ),
        lambda _, x: Pair(_stairs(x, "a"), _stairs(x, "b"), x["angle"]),
        measure_pair,
    ),
    Family("two kinks", {"radius": (0.2, 3.0)}, ((1.0,),), _two_kinks, measure_pair),
)

GROUPS: dict[str, tuple[Family, ...]] = {
    "one step": ONE_STEP,
    "iterates": _lines(measure_line, ("sine", "softplus")),
    "control": _lines(measure_bend, ("sine", "linear")),
    "optimum": QUADRATIC,
    "smoothing": PAIRS,
}


def ratio_task(group: str, point: Point, evaluations: int, claims: str) -> list[Record]:
    """The largest ratios at a point; ``claims`` is the digest of the code of the claims."""
    started = time.perf_counter()
    seed = zlib.crc32(f"{group} {point}".encode())
    return records(Search(point, GROUPS[group], seed).run(evaluations), started)


def beta_task(family: str, T: int, claims: str) -> list[Record]:
    """The constant KL weights that are sufficient and the one that is necessary for a design
    constant near 0.
    """
    instance, lam = beta_tightness.member(beta_tightness.FAMILIES[family], T), beta_tightness.LAM
    started = time.perf_counter()
    found = {
        "paper": beta_tightness.bound(instance, lam, theory.PaperBounds()),
        "sharp": beta_tightness.bound(instance, lam, theory.SharpBounds()),
        "sharp, exact mean maps": beta_tightness.bound(instance, lam, instance.sharp),
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
    evaluations, code = QUICK_EVALUATIONS if quick else EVALUATIONS, _claims()
    out = []
    for sharp in (False, True):
        for point in points(axes, sharp):
            by_quadrature = point.axis == "base" or not quick
            out += [
                _task(group, place, evaluations[group], code)
                for group, place in _groups(point, by_quadrature)
            ]
    for family in beta_tightness.FAMILIES:
        out += [
            Task(f"beta {family} {T}", beta_task, {"family": family, "T": T, "claims": code})
            for T in lengths
        ]
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


def _task(group: str, point: Point, evaluations: int, code: str) -> Task:
    name = f"{group} {'sharp' if point.sharp else 'paper'} d={point.d} T={point.T} lam={point.lam}"
    return Task(
        name,
        ratio_task,
        {"group": group, "point": point, "evaluations": evaluations, "claims": code},
    )


@functools.cache
def _claims() -> str:
    """Digest of the code of the claims, on which records depend too."""
    digest = hashlib.sha256()
    for file in sorted(Path(next(iter(verify.__path__))).rglob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


STUDY = Study(schemas.TIGHTNESS, tasks)
