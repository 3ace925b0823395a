"""The training, sweep and SOCM studies: noise that vanishes and noise that does not, and errors
that split into their parts.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.cli import STUDIES
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.martingale import AntitheticCorrection, FirstOrderCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.path import Noise, rollout
from socft.policy import AffinePolicy, Uncontrolled
from socft.reference import MatrixDiffusion
from socft.reward import Quadratic
from socft.schedule import ddpm, linear_levels, subsample
from socft.study.digest import fingerprint
from socft.study.vocabulary.metrics import Metric
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from socft.truth.quadratic import affine_of, running_of
from toy.measure import estimate
from toy.problems import benchmark
from toy.problems.mixtures import LINE
from toy.situations import situation
from toy.studies import lq_sweeps, socm
from toy.studies.training import methods_for, training_task
from toy.sweeps import limits, oscillator, schemes
from toy.training.costates import OwnLean, OwnValue
from toy.training.measurement import (
    BIAS,
    BIAS_NOISE,
    curve,
    end_gaps,
    noise_measures,
    over_repetitions,
    target_noise,
)
from toy.training.methods import METHODS, TrainingPlan, checkpoint_iterations, train_policy
from toy.training.problems import TRAINING_PROBLEMS, GaussianTrainingProblem, MixtureTrainingProblem
from verify.support.sampling import STDERRS, require_estimates

# the project's claim for an exact field: rounding squared, 1e-32, times the condition of 25 steps
EXACT_NOISE = 1e-20
ROUNDING = 1e-9
LONG_HORIZON_MSE = 1.4766e-10
"""Of the time-reversed costate at dt = 0.05 and horizon 8: 59 rounds from zero in arithmetic of 600
digits.
"""
PATHS = 400
STEPS = 20
EXACT_GAP = 1e-12


def quadratic(d: int = 2, scale: float = 0.5):
    schedule = ddpm(subsample(linear_levels(1000), STEPS))
    where = situation(benchmark("lq-fine-tuning", d=d, schedule=schedule), scale)
    assert isinstance(where.policy, AffinePolicy)
    return where.problem, where.policy


def noise(problem, paths: int = PATHS, seed: int = 0) -> Noise:
    return Noise.sample(problem.reference, paths, torch.Generator().manual_seed(seed))


def path_of(problem, policy, paths: int = PATHS):
    with torch.no_grad():
        return rollout(problem.reference, policy, noise(problem, paths))


@pytest.mark.parametrize(
    ("estimator", "source"),
    [(AdjointMatching(), OwnLean()), (FullAdjoint(), OwnValue())],
    ids=["lean", "full"],
)
def test_closed_form_fields_are_conditional_means(estimator, source):
    """Costates minus the field have mean zero, also against the state, by Monte Carlo: no formula
    shared.
    """
    problem, policy = quadratic()
    path = path_of(problem, policy, 4000)
    field, found = source.field(problem, policy), estimator.costates(problem, policy, path)
    for k in (0, 10, 18):
        away, x = found.values[k] - field(k, path.states[k]), path.states[k]
        for weight in (torch.ones_like(x[:, :1]), x):
            products = (away.unsqueeze(2) * weight.unsqueeze(1)).detach()
            stderr = products.std(0) / 4000**0.5 + ROUNDING
            require_estimates(products.mean(0), stderr, 0.0, 0.0021)


@pytest.mark.parametrize(
    ("make", "source"),
    [(MartingaleAdjoint, OwnLean), (FullMartingaleAdjoint, OwnValue)],
    ids=["lean", "full"],
)
@pytest.mark.parametrize("correction", [AntitheticCorrection, FirstOrderCorrection])
def test_exact_fields_leave_no_noise(make, source, correction):
    problem, policy = quadratic()
    corrected = target_noise(
        make(correction(source())), source(), problem, policy, path_of(problem, policy, 50)
    )
    assert corrected < EXACT_NOISE


def test_the_wrong_field_leaves_noise():
    """The failing twin: the policy's value gradient is not the mean of lean adjoints, except at the
    optimum.
    """
    problem, policy = quadratic()
    path = path_of(problem, policy, 50)
    wrong = target_noise(
        MartingaleAdjoint(AntitheticCorrection(OwnValue())), OwnLean(), problem, policy, path
    )
    plain = target_noise(AdjointMatching(), OwnLean(), problem, policy, path)
    assert plain > wrong > 1e10 * EXACT_NOISE


def test_an_exact_field_follows_the_policy_as_it_trains():
    problem, policy = quadratic()
    source = OwnValue()
    x = torch.ones(1, 2, dtype=torch.float64)
    before = source.field(problem, policy)(18, x)
    with torch.no_grad():
        policy.gain.mul_(0.5)
    after = source.field(problem, policy)(18, x)
    assert torch.equal(after, OwnValue().field(problem, policy)(18, x))
    assert float((after - before).norm()) > 1e-3
    with pytest.raises(
        InvalidProblem, match="the policy is a Uncontrolled; only the costate of an AffinePolicy"
    ):
        source.field(problem, Uncontrolled(problem.reference))


def test_noise_vanishes_at_the_optimum_with_the_policys_costate_and_not_without():
    """At the optimum, and on the way there in proportion to the squared distance."""
    found = {}
    for scale in (0.9, 0.99, 1.0):
        problem, policy = quadratic(scale=scale)
        for name, estimator in {
            "plain": AdjointMatching(),
            "corrected": MartingaleAdjoint(AntitheticCorrection(PolicyCostate())),
        }.items():
            found[name, scale] = estimate(estimator, problem, policy, noise(problem)).variance
    assert found["corrected", 1.0] < EXACT_NOISE * found["plain", 1.0]
    assert 50 < found["corrected", 0.9] / found["corrected", 0.99] < 200
    assert 0.5 < found["plain", 1.0] / found["plain", 0.9] < 2


def test_training_reduces_the_noise_of_the_corrected_estimate_only():
    place, start, end = GaussianTrainingProblem(2, 10), {}, {}
    for name in ("adjoint matching", "martingale, exact lean costate"):
        rows = list(
            curve(place, METHODS[name], place.policy(), TrainingPlan(0.1, 60, (0, 60)), 0, 1.0, 100)
        )
        start[name], end[name] = rows[0].measures, rows[1].measures
        assert rows[0].seconds == 0.0 < rows[1].seconds
        assert end[name]["objective_gap"] < 0.2 * start[name]["objective_gap"]
    plain, own = start
    assert end[own]["gradient_noise"] < 0.05 * end[plain]["gradient_noise"]
    assert end[own]["target_noise"] < EXACT_NOISE
    assert end[plain]["target_noise"] > 0.1


def test_the_bias_of_a_residual_is_its_distance_from_the_gradient():
    place = GaussianTrainingProblem(2, 10)
    policy = AffinePolicy(
        0.5 * place.truth.affine_policy.gain.detach(), place.truth.affine_policy.offset.detach()
    )
    bias = {}
    for name in (
        "full martingale, exact costate",
        "martingale, exact lean costate",
        "score function, leave-one-out",
    ):
        estimator = METHODS[name].make(place.problem)
        seen = [
            noise_measures(METHODS[name], estimator, place, policy, 1.0, 20_000, seed)
            for seed in range(4)
        ]
        bias[name] = next(
            (each.value, each.stderr)
            for each in over_repetitions(seen)
            if each.metric == Metric.GRADIENT_BIAS
        )
    (unbiased, error), (residual, small), (noisy, large) = bias.values()
    assert unbiased < 4 * error < residual
    assert residual > 4 * small
    assert noisy < 4 * large


def test_repetitions_with_one_noise_would_hide_it():
    """Squares of biases without their noise average to zero, however large the noise; the error of
    that is the noise's.
    """
    seen = [{BIAS: value, BIAS_NOISE: 1.0, "kl": value} for value in (-1.0, 2.0, -1.5, 0.5)]
    found = {each.metric: (each.value, each.stderr) for each in over_repetitions(seen)}
    assert found[Metric.GRADIENT_BIAS] == (0.0, 0.5)
    assert found[Metric.KL] == (0.0, pytest.approx(torch.tensor([-1.0, 2.0, -1.5, 0.5]).std() / 2))
    assert BIAS_NOISE not in found


@pytest.mark.parametrize(
    "make",
    [lambda: GaussianTrainingProblem(2, 10), lambda: MixtureTrainingProblem(8)],
    ids=["Gaussian", "mixture"],
)
def test_optimal_policies_have_no_gap(make):
    place = make()
    assert abs(place.optimum["objective_gap"]) < ROUNDING
    start = place.progress(place.policy())
    assert start["objective_gap"] > 0.1
    assert start["kl"] == 0
    for distance in ("wasserstein1", "wasserstein2"):
        assert start.get(distance, math.inf) > 3 * place.optimum.get(distance, 0)


@pytest.mark.slow
def test_gaps_lead_from_the_optimum_to_the_tilt():
    """All together, to ``beta log E exp(r / beta)`` of the data's own law; without that of
    continuous time, of the chain's.
    """
    line, plane = MixtureTrainingProblem(25), GaussianTrainingProblem(2, 25)
    assert line.gaps[Metric.CLASS_GAP] > 0 == plane.gaps[Metric.CLASS_GAP]
    tilt = TiltedMixture(
        LINE, Quadratic(torch.tensor([[-0.5]]).double(), torch.ones(1).double()), 1.0
    )
    total = line.truth.objective + sum(line.gaps.values()) - line.gaps[Metric.CLASS_GAP]
    assert total == pytest.approx(tilt.log_normaliser, abs=2 * line.gaps[Metric.MEMORY_GAP])
    assert line.gaps[Metric.MEMORY_GAP] < 0.01 * min(
        line.gaps[Metric.KERNEL_GAP], line.gaps[Metric.DISCRETISATION_GAP]
    )
    law = evaluate_affine(plane.problem, plane.policy()).final_law
    total = plane.truth.objective + plane.gaps[Metric.KERNEL_GAP] + plane.gaps[Metric.MEMORY_GAP]
    assert total == pytest.approx(
        law.tilted(plane.problem.reward, 1.0).log_normaliser, abs=EXACT_GAP
    )


def test_scatter_is_told_from_what_all_policies_have_in_common():
    """Three policies at a time scatter about one that is wrong: in the mean, its error is the bias
    and the rest the noise.
    """
    place, draw, count = GaussianTrainingProblem(2, 10), torch.Generator().manual_seed(0), 40
    best, shift, scatter = place.truth.affine_policy, 0.05, 0.1

    def policy(size: float) -> AffinePolicy:
        offset = (
            best.offset.detach()
            + shift
            + size * torch.randn(best.offset.shape, generator=draw, dtype=torch.float64)
        )
        return AffinePolicy(best.gain.detach(), offset)

    wrong = place.progress(policy(0.0))[Metric.OBJECTIVE_GAP]
    parts = []
    for _ in range(count):
        three = [policy(scatter) for _ in range(3)]
        gap = sum(place.progress(each)[Metric.OBJECTIVE_GAP] for each in three) / 3
        parts.append(end_gaps(place, three, gap))
        assert parts[-1]["bias_gap"] + parts[-1]["noise_gap"] == pytest.approx(gap, rel=1e-9)
    bias = torch.tensor([each["bias_gap"] for each in parts])
    error = STDERRS * float(bias.std()) / count**0.5
    assert abs(float(bias.mean()) - wrong) < error
    assert wrong > error  # so that a bias would be seen
    assert sum(each["noise_gap"] for each in parts) / count > wrong


def test_equal_budgets_and_records(monkeypatch):
    monkeypatch.setitem(TRAINING_PROBLEMS, "small", lambda: GaussianTrainingProblem(2, 10))
    records = training_task("score function, leave-one-out", "small", 4, 2, (0.01, 0.03), 16, 2)
    gaps = [r for r in records if r.metric == "objective_gap"]
    assert len([r for r in records if r.metric == "pilot_gap"]) == 2
    assert gaps[0].evaluations == 0
    assert (
        gaps[-1].setting["iterations"] == 8
    )  # no derivative of the reference: twice the steps of adjoint matching
    assert (
        gaps[-1].evaluations
        == 8 * 64 * 10 * 2
        == 4 * 64 * METHODS["adjoint matching"].evaluations(TRAINING_PROBLEMS["small"]().problem)
    )
    assert "martingale, policy's costate, cheap, exact mean" not in methods_for("lq-fine-tuning")


class Divergent(CrossEntropy):
    """Refuses after the first batch."""

    def label(self, problem, policy, path):
        if float(path.controls.abs().max()) > 0:
            raise InvalidProblem("lost")
        return super().label(problem, policy, path)


def test_divergence_is_a_measurement(monkeypatch):
    monkeypatch.setitem(socm.METHODS, "divergent", lambda: socm.TrainableEstimator(Divergent()))
    records = socm.socm_task("ou-linear", "divergent", 4, 3, 2)
    errors = [r for r in records if r.metric == "control_l2"]
    assert [math.isinf(r.value) for r in errors] == [False, True, True]
    assert errors[-1].setting["note"] == "diverged: lost"
    assert "note" not in errors[0].setting


def test_the_rate_decays_to_zero():
    """The last steps hardly move the policy."""
    problem, _ = quadratic()
    policy = AffinePolicy.zeros(problem.reference)
    plan = TrainingPlan(0.1, 8, checkpoint_iterations(8, 9), batch=8)
    seen = [
        policy.gain.detach().clone()
        for _ in train_policy(problem, policy, AdjointMatching(), plan, 0)
    ]
    moves = [float((b - a).norm()) for a, b in itertools.pairwise(seen)]
    assert moves[-1] < 0.1 * max(moves)


def test_control_l2_is_the_mean_square_distance_on_optimal_paths():
    place = socm.AffineSuiteProblem("ou-linear", steps=20)
    policy = place.policy()
    with torch.no_grad():
        policy.gain.copy_(
            torch.randn(
                policy.gain.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
            )
            / 20
        )
        path = rollout(place.problem.reference, place.truth.policy, noise(place.problem, 2000))
        apart = torch.stack([policy(k, x) for k, x in enumerate(path.states[:-1])]) - path.controls
    sampled = apart.square().sum(2).sum(0)
    assert (
        abs(place.control_l2(policy) - float(sampled.mean()))
        < STDERRS * float(sampled.std()) / 2000**0.5
    )
    assert place.control_l2(place.truth.affine_policy) < ROUNDING
    assert abs(place.objective_gap(place.truth.affine_policy)) < ROUNDING


SETTINGS = {"dt": 0.2, "horizon": 1.0}


def affine_noise(where, seed: int = 0) -> oscillator.AffineCostate:
    draw = torch.Generator().manual_seed(seed)
    G = where.chain.G + torch.randn(where.chain.G.shape, generator=draw, dtype=torch.float64)
    return oscillator.AffineCostate(
        G, torch.randn(where.chain.g.shape, generator=draw, dtype=torch.float64)
    )


def test_errors_split_into_sampling_and_discretisation():
    where = oscillator.oscillator_case("Euler-Maruyama", False, **SETTINGS)
    found = affine_noise(where)
    row = lq_sweeps.distances(where, found)
    assert math.isclose(
        row[Metric.MSE],
        row[Metric.CHAIN_MSE] + row[Metric.KERNEL_GAP] + row[Metric.CROSS],
        rel_tol=ROUNDING,
    )
    assert abs(row[Metric.CROSS]) > 0.01 * row[Metric.MSE]  # the two parts alone would not do
    x = torch.randn(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    truth = benchmark("oscillator", **SETTINGS).continuous
    sampled = (found.field(0, x) - truth.gradient(0, x)).square().sum(1)
    assert (
        abs(float(sampled.mean()) - row[Metric.MSE])
        < STDERRS * float(sampled.std()) / len(x) ** 0.5
    )
    assert row[Metric.MSE_OVER_TIME] <= row[Metric.MSE_MAX]


def test_integrators_are_compared_by_their_kernel_gap_alone():
    """Against the gap that the sweeps see, and orders against the step: halved, an error of order p
    is less by 4^p in square.
    """
    found = {dt: lq_sweeps.integrator_task(dt) for dt in (0.05, 0.1)}

    def of(dt: float, integrator: str, metric: str, running: bool) -> float:
        setting = {"integrator": integrator, "running_cost": running}
        (record,) = [
            r
            for r in found[dt]
            if r.metric == metric and setting.items() <= dict(r.setting).items()
        ]
        return record.value

    where = oscillator.oscillator_case("Euler-Maruyama", False, dt=0.1)
    seen = lq_sweeps.distances(where, where.chain)[Metric.KERNEL_GAP]
    assert of(0.1, "Euler-Maruyama", "integrator_mse", True) == pytest.approx(seen, rel=ROUNDING)
    for name, order in {"Euler-Maruyama": 1, "Strang": 2, "Taylor": 2}.items():
        ratio = of(0.1, name, "integrator_mse", False) / of(0.05, name, "integrator_mse", False)
        assert math.log(ratio, 4) == pytest.approx(order, abs=0.2)
    assert of(0.1, "exponential", "integrator_mse", False) < EXACT_NOISE
    assert of(0.1, "exponential", "weak_error", False) < ROUNDING
    assert (
        of(0.1, "Strang", "integrator_mse", True)
        < of(0.1, "exponential", "integrator_mse", True) / 100
    )


def test_the_optimality_condition_of_the_chain_gives_its_optimum():
    where = oscillator.oscillator_case("Euler-Maruyama", False, **SETTINGS)
    truth = benchmark("oscillator", **SETTINGS).truth
    assert isinstance(truth, LinearQuadratic)
    best = truth.affine_policy.gain.detach()
    assert float((where.optimum.gain.detach() - best).abs().max()) < ROUNDING
    index = oscillator.published_steering(where.problem, where.chain, where.channel)
    assert float((index.gain.detach() - best).abs().max()) > 1e-2  # another policy


def test_noise_that_the_control_cannot_reach_changes_no_costate():
    where = oscillator.oscillator_case("Euler-Maruyama", True, **SETTINGS)
    assert where.problem.reference.noise_dims == (2,)
    assert float(where.optimum.gain.detach()[:, 0].abs().max()) == 0
    path = path_of(where.problem, where.optimum, 20)
    martingale = MartingaleAdjoint(AntitheticCorrection(GivenCostate(where.chain.field)))
    found = martingale.costates(where.problem, where.optimum, path)
    assert float((found.values[0] - where.chain.field(0, path.states[0])).abs().max()) < ROUNDING


@pytest.mark.parametrize("policy", ["given", "iterated"])
def test_martingale_corrected_costates_are_the_chains_own(policy):
    where = oscillator.oscillator_case("Euler-Maruyama", False, **SETTINGS)
    found = {}
    for name in ("martingale, fitted costate", "adjoint matching"):
        learnt = schemes.learn(where, schemes.SCHEMES[name], oscillator.RULES[policy], 200, 25, 0)
        assert learnt.costate is not None
        found[name] = lq_sweeps.distances(where, learnt.costate)
    assert found["martingale, fitted costate"]["chain_mse"] < 1e-10
    assert found["adjoint matching"]["chain_mse"] > 1e-6
    gap = found["martingale, fitted costate"]["kernel_gap"]
    assert abs(found["martingale, fitted costate"]["mse"] - gap) < 1e-4 * gap


def test_the_limit_of_time_reversed_costates_is_that_of_many_paths():
    where = oscillator.oscillator_case("Euler-Maruyama", True, dt=0.2, horizon=0.8)
    limit = limits.reversed_limit(where, oscillator.published_steering, 60).costate
    assert limit is not None
    scheme, rule = schemes.SCHEMES["time-reversed, exact score"], oscillator.published_steering
    away = []
    for paths in (300, 6000):
        learnt = schemes.learn(where, scheme, rule, paths, 6, 0)
        assert learnt.costate is not None
        difference = learnt.costate - limit
        away.append(float(difference.inner(difference)[0]))
    assert away[1] < 0.3 * away[0]
    assert away[1] < 1e-3 * float(limit.inner(limit)[0])


@pytest.mark.slow
def test_the_reversed_costate_inherits_the_stationary_point_of_continuous_time():
    """At a long horizon it is far closer to continuous time than its own chain is; at a short one
    it is not.
    """
    ratios = {}
    for horizon in (0.4, 6.0):
        where = oscillator.oscillator_case("Euler-Maruyama", True, dt=0.1, horizon=horizon)
        limit = limits.reversed_limit(where, oscillator.published_steering, 200).costate
        assert limit is not None
        ratios[horizon] = (
            lq_sweeps.distances(where, limit)[Metric.MSE]
            / lq_sweeps.distances(where, where.chain)[Metric.MSE]
        )
    assert ratios[6.0] < 1e-5
    assert ratios[0.4] > 1e-2


@pytest.mark.slow
def test_at_a_long_horizon_the_limit_is_that_of_the_rounds_from_zero_in_600_digits():
    where = oscillator.oscillator_case("Euler-Maruyama", True, dt=0.05, horizon=8.0)
    limit = limits.reversed_limit(where, oscillator.published_steering, 200).costate
    assert limit is not None
    assert math.isclose(
        lq_sweeps.distances(where, limit)[Metric.MSE], LONG_HORIZON_MSE, rel_tol=1e-4
    )
    assert (
        limits.reversed_limit(where, oscillator.published_steering, 5).costate is None
    )  # it has not settled yet


def offset_map(where: oscillator.OscillatorCase, G: Tensor) -> Tensor:
    """What a round makes of the offsets of a costate, as a matrix: from the means of the paths and
    of their reversal.
    """
    problem, eye = where.problem, torch.eye(2, dtype=torch.float64)
    reference, (F, _), steps = affine_of(problem), running_of(problem), problem.steps
    assert isinstance(reference.diffusion, MatrixDiffusion)
    assert F is not None
    A, B = reference.transition, reference.diffusion.matrices

    def after(g: Tensor) -> Tensor:
        policy = oscillator.published_steering(
            problem, oscillator.AffineCostate(G, g), where.channel
        )
        closed, push = (
            A + B @ policy.gain.detach(),
            (B @ policy.offset.detach().unsqueeze(2)).squeeze(2),
        )
        covariance, mean = (
            [reference.initial_factor @ reference.initial_factor.mT],
            [torch.zeros(2, dtype=torch.float64)],
        )
        for k in range(steps):
            covariance.append(closed[k] @ covariance[k] @ closed[k].mT + B[k] @ B[k].mT)
            mean.append(closed[k] @ mean[k] + push[k])
        spread, seen_mean, found = covariance[-1], mean[-1], [torch.zeros(2, dtype=torch.float64)]
        for k in reversed(range(steps)):
            pull = B[k] @ B[k].mT @ torch.linalg.inv(covariance[k + 1])
            back = 2 * eye - closed[k] - pull
            below, here = (
                back @ seen_mean - push[k] + pull @ mean[k + 1],
                back @ spread @ back.mT + B[k] @ B[k].mT,
            )
            rest = A[k].mT @ G[k + 1] - F[k] + G[k + 1] @ (closed[k] - 2 * eye)
            lost = seen_mean - spread @ back.mT @ torch.linalg.solve(here, below)
            found.append(A[k].mT @ found[-1] + G[k + 1] @ push[k] + rest @ lost)
            spread, seen_mean = here, below
        return torch.stack(found[::-1])

    units = torch.eye(2 * (steps + 1), dtype=torch.float64)
    return torch.stack([after(e.reshape(steps + 1, 2)).flatten() for e in units], 1)


@pytest.mark.parametrize(("dt", "grows"), [(0.2, False), (0.4, True)])
def test_offsets_grow_in_every_round_where_steps_are_long(dt, grows):
    where = oscillator.oscillator_case("Euler-Maruyama", True, dt=dt)
    limit = limits.reversed_limit(where, oscillator.published_steering, 200)
    assert limit.costate is not None
    largest = float(torch.linalg.eigvals(offset_map(where, limit.costate.G)).abs().max())
    assert math.isclose(limit.offset_factor, largest, rel_tol=1e-3)
    assert (limit.offset_factor > 1) is grows


@pytest.mark.slow
def test_a_costate_that_does_not_settle_is_a_divergence():
    """Its gains settle, its offsets do not: what is left is no number."""
    scheme, rule = schemes.SCHEMES["time-reversed, exact score"], oscillator.published_steering
    learnt = {}
    for dt in (0.2, 0.4):
        where = oscillator.oscillator_case("Euler-Maruyama", True, dt=dt)
        learnt[dt] = schemes.learn(where, scheme, rule, 300, 60, 0)
    assert learnt[0.2].costate is not None
    assert not learnt[0.2].note
    assert learnt[0.4].costate is None
    assert "still changing" in learnt[0.4].note


def test_every_axis_of_the_sweeps_goes_through_the_base_point():
    settings = {axis.name: axis for axis in lq_sweeps.AXES}
    (base,) = settings["base"].varied
    for name in ("paths", "horizon", "noise", "damping", "dimension"):
        axis = settings[name]
        assert (axis.policies, axis.integrators, axis.everywhere) == (
            ("given",),
            ("Euler-Maruyama",),
            False,
        )
        for each in axis.varied:
            assert len({key for key in each if each[key] != base.get(key)}) == 1
    assert base == {"dt": 0.2, "paths": 2000}


def test_studies_are_found_and_their_tasks_have_fingerprints():
    for name in ("training", "lq_sweeps", "socm"):
        study = STUDIES.find(name)
        for quick in (True, False):
            tasks = study.tasks(quick)
            assert len({task.name for task in tasks}) == len(tasks)
            assert len(fingerprint(tasks[0])) == 32
