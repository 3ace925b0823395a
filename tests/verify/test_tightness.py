"""The tightness study: its closed forms against brute force, its search against known maxima, its
records against themselves.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gamma

from socft import theory
from socft.checks import InvalidProblem, require
from socft.cli import STUDIES
from socft.records import Record
from socft.study.digest import fingerprint
from toy.studies.tightness import AXES, BASE, STUDY, beta_task, points, ratio_task
from toy.tightness import lengths
from toy.tightness.families import GROUPS, ONE_STEP, QUADRATIC
from toy.tightness.measurements import (
    EmbeddedLine,
    measure_bend,
    measure_line,
    measure_quadratic,
    weights,
)
from toy.tightness.search import Family, Point, Sample, Samples, Search
from toy.tightness.verdicts import INEQUALITIES, records, verdict, verdicts
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, rebuild
from verify.support.scores import TanhScore
from verify.support.staircase import OneStep, Staircase, clipped
from verify.support.strategies import Sine

QUADRATURE = 1e-10  # adaptive quadrature between knots, of integrands up to 10
# central differences of values at distance 1e-4, with third derivatives up to 10, and rounding over
# 1e-4
DIFFERENCE = 1e-6
SUPREMUM = 1e-3  # suprema over 1001 states: the square of the spacing over 8
FOUND = 1e-3  # what a search with 200 evaluations in two parameters misses of a smooth maximum
ROUNDING = 1e-9  # closed forms of two steps

STAIRS = Staircase((-1.0, 0.5, 1.0, 2.5), (0.8, -1.0, 0.4))


def point(**changes) -> Point:
    place = {"d": 1, "T": 1, "lam": 0.5, "sharp": False, "axis": "base"} | changes
    return Point(**place)


def slope(value: Staircase, x: float) -> float:
    """V' by integrating the levels, centred."""
    heights = [0.0]
    for level, (left, right) in zip(value.levels, itertools.pairwise(value.knots), strict=True):
        heights.append(heights[-1] + level * (right - left))
    return float(np.interp(x, value.knots, heights)) - (max(heights) + min(heights)) / 2


def expect(value: Staircase, x: float, sigma: float, weight) -> float:
    """``E V'(x + sigma W) weight(W)`` by adaptive quadrature, piece by piece."""
    cuts = sorted({-9.0, 9.0, *(min(max((k - x) / sigma, -9.0), 9.0) for k in value.knots)})
    pieces = [
        quad(
            lambda w: slope(value, x + sigma * w) * weight(w) * math.exp(-w * w / 2),
            a,
            b,
            epsabs=1e-12,
        )[0]
        for a, b in itertools.pairwise(cuts)
    ]
    return math.fsum(pieces) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
@pytest.mark.parametrize("x", [-1.7, 0.2, 1.1])
def test_derivatives_of_a_smoothed_staircase(x: float, sigma: float):
    """By parts: orders 1, 2, 3 are means of V' against 1, w / sigma, (w^2 - 1) / sigma^2."""
    kernels = {1: lambda w: 1.0, 2: lambda w: w / sigma, 3: lambda w: (w * w - 1) / sigma**2}
    for order, kernel in kernels.items():
        found = float(STAIRS.derivative(np.array([x]), sigma, order)[0])
        assert found == pytest.approx(expect(STAIRS, x, sigma, kernel), abs=QUADRATURE / sigma**2)


def test_slopes_of_a_staircase_are_those_it_reaches():
    low, high = STAIRS.slopes
    reached = [slope(STAIRS, x) for x in np.linspace(-2, 3, 2001)]
    assert (low, high) == pytest.approx((min(reached), max(reached)), abs=SUPREMUM)
    assert clipped(0.5, 3.0).value.slopes == (-3.0, 3.0)
    assert STAIRS.curvatures == (-1.0, 0.8)


def smoothed_value(step: OneStep, x: np.ndarray) -> np.ndarray:
    """``(G V)(x)`` up to a constant, by integrating its slope with Gauss-Legendre on short
    pieces.
    """
    nodes, weights_ = np.polynomial.legendre.leggauss(12)
    ends = np.linspace(-4.0, x, 81)
    half = (ends[1:] - ends[:-1]) / 2
    middle = (ends[1:] + ends[:-1]) / 2
    inner = step.slope((middle[..., None] + half[..., None] * nodes).reshape(-1)).reshape(
        *middle.shape, len(nodes)
    )
    return (half * (inner @ weights_)).sum(0)


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_iterates_of_one_step_are_the_derivatives_of_their_value(rounds: int):
    """``V^(m)(y) = (G V)(y + delta_m) - delta_m^2 / (2 rho)``, differenced, with delta by the
    update map.
    """
    step, h = OneStep(0.6, STAIRS, 0.7), 1e-4
    y = np.linspace(-2, 3, 7)

    def shift(x: np.ndarray) -> np.ndarray:
        found = np.zeros_like(x)
        for _ in range(rounds):
            found = 0.6 * np.array(
                [expect(STAIRS, float(z), 0.7, lambda w: 1.0) for z in x + found]
            )
        return found

    def value(x: np.ndarray) -> np.ndarray:
        return smoothed_value(step, x + shift(x)) - shift(x) ** 2 / 1.2

    reached = step.reach(y, rounds)
    np.testing.assert_allclose(reached.shift, shift(y), atol=QUADRATURE)
    np.testing.assert_allclose(
        reached.jacobian, (shift(y + h) - shift(y - h)) / (2 * h), atol=DIFFERENCE
    )
    np.testing.assert_allclose(
        reached.value_slope, (value(y + h) - value(y - h)) / (2 * h), atol=DIFFERENCE
    )


def test_the_best_shift_maximises_and_its_derivatives_are_those_of_the_inverse():
    step = OneStep(0.6, STAIRS, 0.7)
    trial = np.linspace(-1.5, 1.5, 601)
    for i in (2000, 4000, 5000):
        y = step.states[i]
        values = smoothed_value(step, y + trial) - trial**2 / 1.2
        assert abs(trial[values.argmax()] - step.best[i]) <= trial[1] - trial[0]
    width = step.states[1] - step.states[0]
    first, second = np.gradient(step.best, width), np.diff(step.best, 2) / width**2
    assert np.abs(first).max() == pytest.approx(step.steepness(), rel=SUPREMUM)
    assert np.abs(second).max() == pytest.approx(step.bend(), rel=SUPREMUM)


@pytest.mark.parametrize("frequency", [0.5, 1.3])
def test_a_sine_fades(frequency: float):
    """Smoothing multiplies it by ``exp(-(frequency sigma)^2 / 2)``, the ratio of its curvature, and
    of the first costate.
    """
    instance = ProductInstance(
        levels=(0.4, 0.8), lam=(0.5,), factors=(Factor(TanhScore(c=-0.2), Sine(1.0, frequency)),)
    )
    found = measure_line(point(), instance, False)
    fade = math.exp(-((frequency * float(instance.schedule.sigma[0])) ** 2) / 2)
    assert found["contraction"].ratio == pytest.approx(fade, rel=SUPREMUM)
    assert found["lemma_3_2_increments"].ratio == pytest.approx(fade, rel=SUPREMUM)
    assert found["lemma_3_3"].ratio == pytest.approx(fade, rel=SUPREMUM)


def test_dimension_enters_the_bounds_alone():
    """(17) at one step with an affine score is proportional to C_d, here from the gamma
    function.
    """
    instance = ProductInstance(
        levels=(0.4, 0.8), lam=(0.5,), factors=(Factor(TanhScore(c=-0.2), Sine(1.0, 1.0)),)
    )
    name = "theorem_2_8_iii_control_smoothness"
    line, space = (measure_bend(point(d=d), instance, False)[name] for d in (1, 64))
    growth = gamma(65 / 2) / gamma(32) / (gamma(1) / gamma(0.5))
    assert space.measured == line.measured
    assert space.bound / line.bound == pytest.approx(growth, rel=ROUNDING)
    sharp = [measure_bend(point(d=d, sharp=True), instance, False)[name].bound for d in (1, 64)]
    assert sharp[0] == sharp[1]


def test_weights_admit_exactly_the_design_constant():
    instance = ProductInstance(
        levels=(0.4, 0.6, 0.8), lam=(0.3, 0.3), factors=(Factor(TanhScore(c=-0.2), Sine(1.0, 1.0)),)
    )
    case, statement = EmbeddedLine.of(instance, 8), theory.Lemma32(theory.PaperBounds())
    beta = weights(case.chain, (0.3, 0.3), statement)
    assert theory.constants_at(case.chain, beta, statement).lam.tolist() == pytest.approx(
        [0.3, 0.3], abs=ROUNDING
    )
    quadratic = QUADRATIC[0].instance(point(d=2, T=2), QUADRATIC[0].unit(QUADRATIC[0].starts[0]))
    with pytest.raises(
        InvalidProblem,
        match=r"Lemma 3\.2, paper asks for an infinite weight; give finite constants",
    ):
        weights(quadratic.chain, (0.5, 0.5), statement)


@pytest.mark.parametrize("d", [1, 8])
@pytest.mark.parametrize("sharp", [False, True])
def test_convex_quadratics_attain_theorem_2_8_and_concave_ones_do_not(d: int, sharp: bool):
    family, place = QUADRATIC[0], point(d=d, T=3, sharp=sharp)
    convex = measure_quadratic(
        place, family.instance(place, family.unit((0.4, 0.95, 0.2, 0.1, 1.5))), False
    )
    concave = measure_quadratic(
        place, family.instance(place, family.unit((0.4, 0.95, 0.2, 0.1, -1.5))), False
    )
    assert set(convex) == {
        "theorem_2_8_i_value_smoothness",
        "theorem_2_8_iii_control_lipschitz",
        "strong_concavity",
    }
    for name, sample in convex.items():
        assert sample.ratio == pytest.approx(1.0, abs=ROUNDING)
        assert concave[name].ratio < 0.9


def peak(centre: tuple[float, float]):
    """A family whose ratio is a bump, and undefined left of 0.1."""

    def measured(_, instance, __) -> Samples:
        x, y = instance
        require(x >= 0.1, f"x = {x}")
        samples = Samples()
        samples.add("bump", math.exp(-((x - centre[0]) ** 2) - 3 * (y - centre[1]) ** 2), 1.25)
        return samples

    return Family(
        "bump",
        {"x": (0.0, 2.0), "y": (-1.0, 1.0)},
        ((1.9, -0.9),),
        lambda _, x: (x["x"], x["y"]),
        measured,
    )


def test_a_search_finds_a_known_maximum_and_skips_what_is_ill_posed():
    search = Search(point(), [peak((0.7, 0.4))], seed=0).run(200)
    best = search.best["bump"]
    assert best.sample.ratio == pytest.approx(0.8, abs=FOUND)
    assert best.family.instance(point(), best.unit) == pytest.approx((0.7, 0.4), abs=0.05)
    assert 20 < search.tried <= 250
    assert Search(point(), [peak((0.7, 0.4))], seed=0).run(200).best["bump"].sample == best.sample
    assert not Search(point(), [peak((0.7, 0.4))], seed=0).evaluate(peak((0.7, 0.4)), np.zeros(2))


def test_the_largest_ratio_to_17_is_the_closed_form():
    """The maximum over h of ``exp(-h^2 / 2) (lam / (1 - q erf(h / sqrt 2)))^3`` on a dense grid,
    approached and never exceeded.
    """
    lam, h = 0.3, np.linspace(0, 5, 50_001)
    erf = np.array([math.erf(x / math.sqrt(2)) for x in h])
    largest = float((np.exp(-(h**2) / 2) * (lam / (1 - (1 - lam) * erf)) ** 3).max())
    search = Search(point(lam=lam), ONE_STEP[2:], seed=1).run(8)
    (found,) = [r for r in records(search, 0.0) if r.setting["inequality"] == "(17)"]
    assert found.value == pytest.approx(largest, rel=SUPREMUM)
    assert found.value <= largest * (1 + ROUNDING)
    assert found.optimum == pytest.approx(largest, rel=SUPREMUM**2)


def test_samples_ignore_bounds_that_are_infinite_or_below_the_errors():
    samples = Samples()
    samples.add("a", 1.0, math.inf)
    samples.add("a", math.nan, 1.0)
    samples.add("a", 1e-6, 1e-6, error=1e-8)
    assert not samples
    samples.add("a", 0.5, 1.0, 1e-8, 2)
    samples.add("a", 0.4, 1.0, 1e-8, 3)
    assert samples == {"a": Sample(0.5, 1.0, 2)}


def test_verdicts_say_attained_loose_or_violated():
    assert [verdict(x) for x in (0.9899, 0.99, 1.0, 1.01, 1.0101)] == [
        "loose",
        "attained",
        "attained",
        "attained",
        "violated",
    ]

    def row(name: str, value: float, constants: str, metric: str = "ratio") -> Record:
        return Record(
            "tightness",
            name,
            metric,
            value,
            {"constants": constants, "T": value},
            versions={},
            commit="",
            dirty=False,
        )

    rows = [
        row("lemma_3_3", 0.3, "paper"),
        row("lemma_3_3", 0.995, "paper"),
        row("lemma_3_3", 0.2, "sharp"),
    ]
    rows += [row("contraction", 1.2, "sharp"), row("some beta", 9.0, "", metric="beta")]
    found = [(v.name, v.constants, v.ratio, v.worst, v.setting["T"]) for v in verdicts(rows)]
    assert found == [
        ("contraction", "sharp", 1.2, "violated", 1.2),
        ("lemma_3_3", "paper", 0.995, "attained", 0.995),
        ("lemma_3_3", "sharp", 0.2, "loose", 0.2),
    ]


@pytest.mark.parametrize("group", ["optimum", "iterates"])
def test_records_can_be_measured_again(group: str):
    place = Point(2, 2, 0.5, False, "base")
    rows = records(Search(place, GROUPS[group][:1], seed=0).run(3), 0.0)
    assert {row.problem for row in rows} <= set(INEQUALITIES)
    family = {f.name: f for f in GROUPS[group]}
    for row in rows:
        instance = rebuild(row.setting["instance"])
        again = family[row.setting["family"]].measure(place, instance, True)[row.problem]
        assert again.ratio == row.value
        assert again.updates == row.setting["updates"]
        assert row.setting["verdict"] == verdict(row.value)
        assert row.bound == 1.0
        assert 0 < row.value <= 1 + ROUNDING


def test_a_task_is_deterministic():
    place = Point(2, 2, 0.5, True, "base")
    first, second = (
        [(r.problem, r.value, r.setting) for r in ratio_task("smoothing", place, 8)]
        for _ in range(2)
    )
    assert first == second
    assert {name for name, _, __ in first} == {"smoothed_curvature", "third_derivative_lemma"}


def test_a_necessary_beta_is_below_the_sufficient_ones():
    rows = {row.setting["rule"]: row for row in beta_task("tanh score, sine reward", 2)}
    values = {rule: row.value for rule, row in rows.items()}
    assert (
        values["necessary"]
        < values["one-sided"]
        <= values["sharp, exact mean maps"]
        <= values["sharp"]
        < values["paper"]
    )
    assert all(row.optimum == values["necessary"] for row in rows.values())
    assert {row.metric for row in rows.values()} == {"beta"}


def test_points_vary_one_at_a_time():
    found = list(points(AXES, sharp=False))
    assert dataclasses.replace(found[0], axis="base") == Point(2, 2, 0.5, False, "base")
    assert len(found) == 1 + 3 + 4 + 4
    for place in found[1:]:
        assert [name for name in BASE if getattr(place, name) != BASE[name]] == [place.axis]
    assert {(p.d, p.T, p.lam) for p in found} >= {(64, 2, 0.5), (2, 12, 0.5), (2, 2, 0.1)}


def test_the_study_is_found_and_its_tasks_differ():
    assert "tightness" in STUDIES.names
    for quick in (True, False):
        tasks = STUDY.tasks(quick)
        assert len({task.name for task in tasks}) == len(tasks)
        assert len({fingerprint(task) for task in tasks}) == len(tasks)
        names = {task.name.split()[0] for task in tasks}
        bounds = {"one", "iterates", "control", "optimum", "smoothing", "beta"}
        assert names == bounds | {"errors", "weights", "coupled"}
    assert len(STUDY.tasks(True)) < len(STUDY.tasks(False))


def test_weights_against_lengths_are_in_order():
    """Necessary below one-sided, which sharp constants with exact mean maps are not below; more
    dimensions ask for more, of the steeper reward.
    """
    rows = lengths.weights_task("overlapping modes", "pseudo-Huber", 3)
    found = {(r.setting["rule"], r.setting["d"]): r.value for r in rows}
    one = [found[rule, 1] for rule in ("necessary", "one-sided", "sharp, exact mean maps", "paper")]
    assert one == sorted(one)
    assert found["one-sided, relaxed", 1] < found["one-sided", 1]
    assert found["one-sided", 1] < found["one-sided", 2] < found["one-sided", 16]
    assert {row.optimum for row in rows} == {found["necessary", 1]}


def test_coupled_weights_do_not_compound():
    """At ten steps, for separated modes: above the necessary weight, and less than a fifth of the
    one-sided one.
    """
    found = lengths.coupled_task("separated modes", "softplus", 10)[0].value
    schedule = lengths.memoryless(10)
    chain = lengths.chain_of("separated modes", "softplus", schedule, 1)
    statement = lengths.STATEMENTS["one-sided"](schedule.sigma)
    one_sided = float(theory.constant_beta(chain, lengths.LAM, statement).beta[0])
    necessary = lengths.necessary_weight("separated modes", "softplus", schedule, found)
    assert necessary < found < one_sided / 5


@pytest.mark.slow
def test_errors_against_their_one_sided_bounds():
    """All below, and with one update the control within a factor of 20, although its bound adds up
    the errors of all later steps.
    """
    rows = lengths.errors_task("Gaussian", True, 3)
    assert len(rows) == 3 * len(lengths.UPDATES)
    for row in rows:
        assert row.bound is not None
        assert row.value <= row.bound * (1 + ROUNDING) + 1e-7
    for metric, limit in (("control_error", 20), ("objective_gap", 1000)):
        first = next(row for row in rows if row.metric == metric)
        assert first.bound is not None
        assert first.bound < limit * first.value
