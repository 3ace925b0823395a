"""Estimators made of costates against exact conditional means, exact gradients, brute-force laws
and counted work.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import Adjoint, FullRecursion, LeanRecursion, full_adjoint, lean_adjoint
from socft.costates.base import Cost, Costates
from socft.costates.fields import (
    FREE,
    Correction,
    CostateField,
    CostateSource,
    GivenCostate,
    PolicyCostate,
)
from socft.costates.increments import AnalyticIncrement, CostateIncrement, FiniteDifferenceIncrement
from socft.costates.landing import OwnStepAsIs, OwnStepByJvp, OwnStepExact
from socft.costates.marginal_score import AffineMarginals, GivenScore, ReferenceScore
from socft.costates.martingale import (
    AntitheticCorrection,
    ExactCorrection,
    FieldCorrection,
    FirstOrderCorrection,
    SecondOrderCorrection,
)
from socft.costates.regression import CrossFittedPaths, StepwiseRegression, ValueRegression, refine
from socft.costates.time_reversal import Reverser
from socft.density import Gaussian, affine_reference, score_reference
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import CostateEstimator, Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint, bridge
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.estimators.td_adjoint import TDAdjoint
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, MatrixDiffusion, ScalarDiffusion, Step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.reward import FunctionReward, Linear, Quadratic
from socft.schedule import ddpm, linear_levels, subsample
from socft.sde import StateDiffusion
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from socft.truth.quadrature import Quadrature
from tests.support.costate_cases import CORRECTIONS, STEPS, quadratic_problem
from tests.support.tensors import F64, generator, randn, t
from toy.problems import fine_tuning

IDENTITY = 1e-12  # relative: the same products in another order
VANISHED = 1e-20  # relative variance: rounding squared
# relative variance left by an interpolated field, against at least 1e-4 for the other increments
QUADRATURE = 1e-8
STDERRS = 4.0  # a Monte-Carlo check fails by chance less than once in 10^4
ORDER = 0.2  # on a measured order of convergence, from the next order
MARGINAL = 0.12  # a step of 1/40 changes moments of size 1 by a few of it


def some_policy() -> AffinePolicy:
    return AffinePolicy(0.4 * randn(3, STEPS, 2, 2), 0.3 * randn(4, STEPS, 2))


def wrong_field(k: Step, x: Tensor) -> Tensor:
    """Nothing to do with any problem, of the size of the costates."""
    assert isinstance(k, int)
    return 2 * torch.tanh(x @ randn(5 + k, 2, 2)) + 0.3 * x.roll(1, 1) ** 2


def paths(problem: ControlProblem, policy: Policy, batch: int, seed: int) -> Path:
    with torch.no_grad():
        return rollout(
            problem.reference, policy, Noise.sample(problem.reference, batch, generator(seed))
        )


def lean_field(problem: ControlProblem, policy: AffinePolicy) -> CostateField:
    """The conditional mean of the lean costate, affine: L_k = A'(L_{k+1} (A + B K) x + ...) - F x -
    h, by hand.
    """
    reference, reward, cost = problem.reference, problem.reward, problem.running_cost
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, MatrixDiffusion)
    assert isinstance(reward, Quadratic)
    assert isinstance(cost, QuadraticCost)
    K, o, B = policy.gain.detach(), policy.offset.detach(), reference.diffusion.matrices
    slopes, levels = [reward.P], [reward.linear]
    for k in reversed(range(STEPS)):
        A, moved = reference.transition[k], reference.offset[k] + B[k] @ o[k]
        levels.append(A.T @ (slopes[-1] @ moved + levels[-1]) - cost.h)
        slopes.append(A.T @ slopes[-1] @ (A + B[k] @ K[k]) - cost.F)

    def field(k: Step, x: Tensor) -> Tensor:
        assert isinstance(k, int)
        return x @ slopes[STEPS - k].T + levels[STEPS - k]

    return field


def scores(samples: Tensor, x: Tensor) -> Tensor:
    """Means of samples times 1, x, x^2 and sin 2x, in standard errors: all small if the mean given
    x is zero.
    """
    tests = torch.cat([torch.ones_like(x[:, :1]), x, x.square(), torch.sin(2 * x)], 1)
    products = (tests.unsqueeze(2) * samples.unsqueeze(1)).flatten(1)
    return products.mean(0) / (products.std(0).clamp(min=IDENTITY) / len(x) ** 0.5)


# --- martingale-corrected adjoints ---


@dataclasses.dataclass(frozen=True)
class NotAMartingale(Correction):
    """The field itself, whose mean is not zero."""

    @property
    def cost(self) -> Cost:
        return FREE

    def increment(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> Tensor:
        return wrong_field(k + 1, path.states[k + 1]) / 2


def largest_scores(
    estimator: CostateEstimator, field: CostateField, problem, policy: Policy
) -> float:
    """Over costates given their states, and over what targets use given the states before."""
    path = paths(problem, policy, 8000, 6)
    costates = estimator.costates(problem, policy, path)
    assert costates.next_costate is not None
    found = [
        scores(costates.values[k] - field(k, path.states[k]), path.states[k]).abs().max()
        for k in range(STEPS)
    ]
    for k in range(STEPS):
        with torch.no_grad():
            mean = problem.reference.step(k, path.states[k], policy(k, path.states[k]))
        # the field of the quadratic problem is affine: its mean over the noise is its value at the
        # mean
        found.append(
            scores(costates.next_costate[k] - field(k + 1, mean), path.states[k]).abs().max()
        )
    return float(torch.stack(found).max())


@pytest.mark.parametrize("last", [True, False], ids=["", "last step uncorrected"])
@pytest.mark.parametrize("make", CORRECTIONS)
def test_full_costates_are_unbiased_whatever_the_field(make: type[FieldCorrection], last: bool):
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    estimator = FullMartingaleAdjoint(make(GivenCostate(wrong_field), last))
    assert largest_scores(estimator, exact, problem, policy) < STDERRS


@pytest.mark.parametrize("make", CORRECTIONS)
def test_lean_costates_keep_their_means_whatever_the_field(make: type[FieldCorrection]):
    problem, policy = quadratic_problem(), some_policy()
    estimator = MartingaleAdjoint(make(GivenCostate(wrong_field)))
    assert largest_scores(estimator, lean_field(problem, policy), problem, policy) < STDERRS
    full = FullMartingaleAdjoint(make(GivenCostate(wrong_field)))
    assert largest_scores(full, lean_field(problem, policy), problem, policy) > 2 * STDERRS


def test_what_is_not_a_martingale_increment_biases():
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    assert (
        largest_scores(FullMartingaleAdjoint(NotAMartingale()), exact, problem, policy)
        > 2 * STDERRS
    )


def variance_ratio(
    estimator: Estimator,
    plain: Estimator,
    problem: ControlProblem,
    policy: Policy,
    exact: Tensor,
    path: Path,
) -> float:
    found, noisy = (each.label(problem, policy, path).targets for each in (estimator, plain))
    assert not found.requires_grad
    return float((found - exact).square().mean() / (noisy - exact).square().mean())


@pytest.mark.parametrize("make", CORRECTIONS)
@pytest.mark.parametrize("source", ["value gradient", "policy"])
def test_no_variance_is_left_at_the_linear_quadratic_optimum(
    make: type[FieldCorrection], source: str
):
    truth = LinearQuadratic(quadratic_problem())
    field: CostateSource = (
        PolicyCostate() if source == "policy" else GivenCostate(truth.value_gradient)
    )
    path = paths(truth.problem, truth.affine_policy, 200, 7)
    exact = torch.stack([truth.control(k, path.states[k]) for k in range(STEPS)])
    for estimator, plain in (
        (MartingaleAdjoint(make(field)), AdjointMatching()),
        (FullMartingaleAdjoint(make(field)), FullAdjoint()),
    ):
        assert (
            variance_ratio(estimator, plain, truth.problem, truth.affine_policy, exact, path)
            < VANISHED
        )


@pytest.mark.parametrize("make", CORRECTIONS)
def test_no_variance_is_left_at_any_affine_policy_with_its_own_value_gradient(
    make: type[FieldCorrection],
):
    problem, policy = quadratic_problem(), some_policy()
    value, path = evaluate_affine(problem, policy).value, paths(problem, policy, 200, 8)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    B, beta = problem.reference.diffusion.matrices, problem.beta
    with torch.no_grad():
        means = [
            problem.reference.step(k, path.states[k], policy(k, path.states[k]))
            for k in range(STEPS)
        ]
        exact = torch.stack(
            [value.gradient(k + 1, m) @ B[k] / beta[k] for k, m in enumerate(means)]
        )
    estimator = FullMartingaleAdjoint(make(GivenCostate(value.gradient)))
    assert variance_ratio(estimator, FullAdjoint(), problem, policy, exact, path) < VANISHED
    assert (
        variance_ratio(
            MartingaleAdjoint(make(GivenCostate(value.gradient))),
            FullAdjoint(),
            problem,
            policy,
            exact,
            path,
        )
        > 1e-3
    )
    costates = estimator.costates(problem, policy, path)
    for k in range(STEPS + 1):
        assert (costates.values[k] - value.gradient(k, path.states[k])).abs().max() < IDENTITY * 100


def test_coarse_steps_need_the_exact_increment():
    truth = Quadrature(
        fine_tuning("mixture-huber").problem(ddpm(subsample(linear_levels(1000), 4)), 1.0)
    )
    problem, path = truth.problem, paths(truth.problem, truth.policy, 1000, 9)
    exact = torch.stack([truth.control(k, path.states[k]) for k in range(STEPS)])
    left = {
        make: variance_ratio(
            MartingaleAdjoint(correction), AdjointMatching(), problem, truth.policy, exact, path
        )
        for make, correction in (
            (FirstOrderCorrection, FirstOrderCorrection(GivenCostate(truth.value_gradient))),
            (AntitheticCorrection, AntitheticCorrection(GivenCostate(truth.value_gradient))),
            (SecondOrderCorrection, SecondOrderCorrection(GivenCostate(truth.value_gradient))),
            (ExactCorrection, ExactCorrection(GivenCostate(truth.value_gradient), nodes=80)),
        )
    }
    assert left[ExactCorrection] < QUADRATURE
    assert left[AntitheticCorrection] < 0.6
    assert min(left[FirstOrderCorrection], left[SecondOrderCorrection]) > 1


def test_costates_made_from_the_policy_are_unbiased_away_from_the_optimum():
    problem, policy = quadratic_problem(), some_policy()
    exact = evaluate_affine(problem, policy).value.gradient
    for correction in (
        FirstOrderCorrection(PolicyCostate()),
        AntitheticCorrection(PolicyCostate(exact=False)),
    ):
        assert largest_scores(FullMartingaleAdjoint(correction), exact, problem, policy) < STDERRS


# --- noise that depends on the state ---

GROWTH, BREATH = 0.9, 0.6


def geometric(steps: int = 3) -> ControlProblem:
    """x' = (g + s xi) x, reward x^2 / 2: E r = (g^2 + s^2)^(T - k) x^2 / 2, so the costate is (g^2
    + s^2)^(T - k) x.
    """
    diffusion = StateDiffusion(lambda k, x, z: BREATH * x * z, (1,), (1,))
    reference = KernelReference(lambda k, x: GROWTH * x, diffusion, steps, (1,))
    return ControlProblem(reference, FunctionReward(lambda x: x[:, 0].square() / 2), 1.0)


def test_the_lean_adjoint_is_biased_where_the_noise_depends_on_the_state():
    """It gives g^(2 (T - k)) x: what is missing is E[sum_k Jac(B_k)' q_k], q_k = a_{k+1} xi_k
    (arXiv 2604.08580).
    """
    problem = geometric()
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 20000, 10)
    exact, biased = ((GROWTH**2 + BREATH**2) ** 3, GROWTH**6)
    lean, full = lean_adjoint(problem, path)[0], full_adjoint(problem, policy, path)[0]
    x = path.states[0]
    assert scores(full - exact * x, x).abs().max() < STDERRS
    assert scores(lean - biased * x, x).abs().max() < STDERRS
    assert scores(lean - exact * x, x).abs().max() > 2 * STDERRS
    repaired = path.final
    for k in reversed(range(3)):
        repaired = GROWTH * repaired + BREATH * path.noise.steps[k] * repaired
    assert (repaired - full).abs().max() < IDENTITY * float(full.abs().max())


def test_corrections_stay_unbiased_where_the_noise_depends_on_the_state():
    """The derivative of the noise must act on the uncorrected costate: with the corrected one there
    is a bias.
    """
    problem = geometric()
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 20000, 11)
    x, exact = path.states[0], (GROWTH**2 + BREATH**2) ** 3
    correction = FirstOrderCorrection(GivenCostate(lambda k, y: 1.5 * y))
    found = FullMartingaleAdjoint(correction).costates(problem, policy, path).values[0]
    assert scores(found - exact * x, x).abs().max() < STDERRS
    naive = path.final
    for k in reversed(range(3)):
        after = naive - correction.increment(problem, policy, path, k)
        naive = (GROWTH + BREATH * path.noise.steps[k]) * after
    assert scores(naive - exact * x, x).abs().max() > 2 * STDERRS


# --- TD(lambda) ---


def test_lambda_one_is_adjoint_matching_and_lambda_zero_bootstraps():
    problem, policy = quadratic_problem(), some_policy()
    path = paths(problem, policy, 30, 12)
    one = TDAdjoint(GivenCostate(wrong_field), 1.0).label(problem, policy, path).targets
    assert (
        one - AdjointMatching().label(problem, policy, path).targets
    ).abs().max() < IDENTITY * 10
    zero = TDAdjoint(GivenCostate(wrong_field), 0.0).costates(problem, policy, path)
    assert zero.next_costate is not None
    for k in range(STEPS - 1):
        assert (
            zero.next_costate[k] - wrong_field(k + 1, path.states[k + 1])
        ).abs().max() < IDENTITY
    half = TDAdjoint(GivenCostate(wrong_field), 0.5).costates(problem, policy, path)
    assert half.next_costate is not None
    assert isinstance(problem.reference, AffineReference)
    assert isinstance(problem.running_cost, QuadraticCost)
    for k in range(STEPS):
        bootstrap = (
            wrong_field(k + 1, path.states[k + 1])
            if k + 1 < STEPS
            else problem.reward.gradient(path.final)
        )
        mixed = (half.values[k + 1] + bootstrap) / 2
        pulled = (
            mixed @ problem.reference.transition[k]
            - path.states[k] @ problem.running_cost.F
            - problem.running_cost.h
        )
        assert (half.next_costate[k] - mixed).abs().max() < IDENTITY * 10
        assert (half.values[k] - pulled).abs().max() < IDENTITY * 10


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_bootstrapping_is_unbiased_with_the_exact_field_and_biased_with_another(lam: float):
    problem, policy = quadratic_problem(), some_policy()
    exact = lean_field(problem, policy)
    assert largest_scores(TDAdjoint(GivenCostate(exact), lam), exact, problem, policy) < STDERRS
    assert (
        largest_scores(TDAdjoint(GivenCostate(wrong_field), lam), exact, problem, policy)
        > 2 * STDERRS
    )


@pytest.mark.parametrize("lam", [-0.1, 1.5])
def test_lambda_outside_the_unit_interval_is_refused(lam: float):
    with pytest.raises(InvalidProblem, match=rf"lam = {lam}; it must lie in \[0, 1\]"):
        TDAdjoint(PolicyCostate(), lam)


# --- time reversal ---


def cubic_study(steps: int) -> ControlProblem:
    """dX = -X dt / 2 + dW on [0, 1], reward x^3 / 3: the costate a^2 ... is quadratic, so the trace
    of its Hessian counts.
    """
    decay = torch.full((steps, 1, 1), 1 - 0.5 / steps, dtype=F64)
    reference = AffineReference(
        decay,
        ScalarDiffusion(torch.full((steps,), steps**-0.5)),
        initial_factor=0.7 * torch.eye(1, dtype=F64),
    )
    return ControlProblem(reference, FunctionReward(lambda x: x[:, 0] ** 3 / 3), 1.0)


def cubic_field(steps: int) -> CostateField:
    """x_T = g x + s z: V = (g^3 x^3 + 3 g s^2 x) / 3, exactly for the chain."""
    a = 1 - 0.5 / steps

    def field(k: Step, x: Tensor) -> Tensor:
        assert isinstance(k, int)
        g, s2 = a ** (steps - k), sum(a ** (2 * i) for i in range(steps - k)) / steps
        return g**3 * x**2 + g * s2

    return field


def linear_study(steps: int, controlled: bool = True) -> tuple[ControlProblem, AffinePolicy]:
    """dX = (A X + K X + o) dt + dW on [0, 2] with a running cost."""
    dt = 2.0 / steps
    A = torch.eye(2, dtype=F64) + dt * torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=F64)
    reference = AffineReference(
        A.expand(steps, 2, 2), ScalarDiffusion(torch.full((steps,), dt**0.5))
    )
    problem = ControlProblem(
        reference,
        Quadratic(-torch.eye(2, dtype=F64)),
        1.0,
        QuadraticCost(0.1 * dt * torch.eye(2, dtype=F64)),
    )
    size = 1.0 if controlled else 0.0
    gain = size * dt**0.5 * torch.tensor([[-0.3, 0.2], [0.1, -0.4]], dtype=F64)
    return problem, AffinePolicy(
        gain.expand(steps, 2, 2), size * dt**0.5 * t(0.3, -0.2).expand(steps, 2)
    )


def order(errors: list[float], steps: list[int]) -> float:
    """Slope of the logarithm of the error in that of the step size, by the last two."""
    return float((t(errors[-2]) / errors[-1]).log() / (t(steps[-1]) / steps[-2]).log())


def root_mean_square(difference: Tensor) -> float:
    return float(difference.square().mean().sqrt())


GRID = [20, 40, 80]


def reverser(seed: int, published: bool = False) -> Reverser:
    return Reverser(AffineMarginals(), generator(seed), published)


@pytest.mark.parametrize(
    "move", [AnalyticIncrement(), FiniteDifferenceIncrement()], ids=["derivatives", "differences"]
)
def test_with_exact_field_and_score_reversed_costates_are_exact_up_to_the_first_order(
    move: CostateIncrement,
):
    """In the mean; each sample of a curved field is off by the square root of the step. The trace's
    coefficient counts.
    """
    bias, spread = [], []
    for steps in GRID:
        problem = cubic_study(steps)
        policy, field = AffinePolicy.zeros(problem.reference), cubic_field(steps)
        found = ReversedBSDE(GivenCostate(field), reverser(14), move=move).costates(
            problem, policy, paths(problem, policy, 6000, 13)
        )
        off = found.values[0] - field(0, found.states[0])
        bias.append(abs(float(off.mean())))
        spread.append(float(off.std()))
    assert abs(order(spread, GRID) - 0.5) < ORDER
    assert abs(order(bias, GRID) - 1) < 2 * ORDER


@pytest.mark.parametrize("adjoint", [LeanRecursion(), FullRecursion()], ids=["lean", "full"])
def test_reversed_costates_of_a_controlled_chain_too(adjoint: Adjoint):
    errors, crossed = [], []
    for steps in GRID:
        problem, policy = linear_study(steps)
        exact = evaluate_affine(problem, policy).value.gradient
        field = exact if isinstance(adjoint, FullRecursion) else lean_of(problem, policy)
        path = paths(problem, policy, 500, 15)
        found = ReversedBSDE(GivenCostate(field), reverser(16), adjoint).costates(
            problem, policy, path
        )
        errors.append(root_mean_square(found.values[0] - field(0, found.states[0])))
        crossed.append(
            root_mean_square(
                found.values[0]
                - (lean_of(problem, policy) if isinstance(adjoint, FullRecursion) else exact)(
                    0, found.states[0]
                )
            )
        )
    assert abs(order(errors, GRID) - 1) < ORDER
    assert crossed[-1] > 2 * errors[-1]


def test_differences_are_derivatives_where_the_field_is_affine():
    """And nowhere else, sample by sample."""
    problem, policy = linear_study(20)
    path = paths(problem, policy, 50, 50)
    for field, bound in ((lean_of(problem, policy), True), (wrong_field, False)):
        values = []
        for move in (AnalyticIncrement(), FiniteDifferenceIncrement()):
            back = Reverser(AffineMarginals())
            assert torch.equal(
                back.run(problem, policy, path).states, back.run(problem, policy, path).states
            )  # of the path alone
            values.append(
                ReversedBSDE(GivenCostate(field), back, move=move)
                .costates(problem, policy, path)
                .values
            )
        apart = float((values[0] - values[1]).abs().max() / values[0].abs().max())
        assert (apart < IDENTITY * 10) is bound


def test_a_move_has_mean_zero_whatever_the_field():
    """By parts, with the score of the law of the state it starts from; with another score it has
    not. So one may be left out.
    """
    problem, policy = linear_study(20)
    path, scores = paths(problem, policy, 4000, 51), []
    for score in (AffineMarginals(), GivenScore(lambda k, x: -3 * x)):
        with_it, without = (
            ReversedBSDE(GivenCostate(wrong_field), Reverser(score), last=last)
            .costates(problem, policy, path)
            .values[-2]
            for last in (True, False)
        )
        moved = with_it - without
        scores.append(float((moved.mean(0) / (moved.std(0) / 4000**0.5)).abs().max()))
    assert scores[0] < STDERRS < scores[1] / 2


def test_the_models_own_score_is_that_of_its_marginals_before_training_and_after():
    """To first order in the step, against exact Gaussian marginals; under another control it is
    wrong at any step.
    """
    errors: dict[float, list[float]] = {0.0: [], 1.0: [], -1.0: []}
    density, reward = (
        Gaussian(t(0.5), 0.4 * torch.eye(1, dtype=F64)),
        Quadratic(-2 * torch.eye(1, dtype=F64), t(1.0)),
    )
    for steps in GRID:
        schedule = ddpm(subsample(linear_levels(1000), steps))
        problem = ControlProblem(score_reference(density, schedule), reward, 0.5)
        affine = ControlProblem(affine_reference(density, schedule), reward, 0.5)
        best, k, x = (
            LinearQuadratic(affine).affine_policy,
            round(0.9 * steps),
            0.5 + randn(53, 40, 1),
        )
        for scale, found in errors.items():
            policy = AffinePolicy(scale * best.gain.detach(), scale * best.offset.detach())
            path = paths(affine, policy, 2, 54)
            exact = AffineMarginals().fit(affine, policy, path)(k, x)
            apart = ReferenceScore().fit(problem, policy, path)(k, x) - exact
            found.append(float((apart.norm() / exact.norm()).detach()))
    for scale in (0.0, 1.0):
        assert abs(order(errors[scale], GRID) - 1) < ORDER
    assert errors[-1.0][-1] > 0.5


def test_only_a_denoising_chain_goes_by_a_score():
    problem, policy = linear_study(20)
    with pytest.raises(
        InvalidProblem,
        match="the reference is a AffineReference; only a DenoisingReference goes by a score",
    ):
        ReferenceScore().fit(problem, policy, paths(problem, policy, 2, 55))


def lean_of(problem: ControlProblem, policy: AffinePolicy) -> CostateField:
    """The lean field of `linear_study`, by the affine recursion."""
    reference, cost = problem.reference, problem.running_cost
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    assert isinstance(cost, QuadraticCost)
    slopes, levels = [-torch.eye(2, dtype=F64)], [torch.zeros(2, dtype=F64)]
    for k in reversed(range(problem.steps)):
        A, sigma = reference.transition[k], reference.diffusion.sigma[k]
        levels.append(A.T @ (slopes[-1] @ (sigma * policy.offset[k].detach()) + levels[-1]))
        slopes.append(A.T @ slopes[-1] @ (A + sigma * policy.gain[k].detach()) - cost.F)

    def field(k: Step, x: Tensor) -> Tensor:
        assert isinstance(k, int)
        return x @ slopes[problem.steps - k].T + levels[problem.steps - k]

    return field


def test_noises_of_different_indices_do_not_cancel():
    """With neighbouring indices the sum telescopes to its ends: order one half in place of one."""
    errors, paired = [], []
    for steps in GRID:
        problem, policy = linear_study(steps, controlled=False)
        exact, path = (
            evaluate_affine(problem, policy).value.gradient,
            paths(problem, policy, 500, 17),
        )
        for collected, published in ((errors, True), (paired, False)):
            found = ReversedBSDE(GivenCostate(exact), reverser(18, published)).costates(
                problem, policy, path
            )
            collected.append(root_mean_square(found.values[0] - exact(0, found.states[0])))
    assert abs(order(errors, GRID) - 0.5) < ORDER
    assert errors[-1] > 3 * paired[-1]


def test_reversed_values_are_exact_up_to_the_first_order():
    """In the mean, as above; each sample by the square root of the step."""
    bias, spread = [], []
    for steps in GRID:
        problem, policy = linear_study(steps)
        value = evaluate_affine(problem, policy).value
        found = ReversedValues(GivenCostate(value.gradient), reverser(19)).values(
            problem, policy, paths(problem, policy, 10000, 20)
        )
        off = found.values[0] - value.value(0, found.states[0])
        bias.append(abs(float(off.mean())))
        spread.append(float(off.std()))
    assert abs(order(spread, GRID) - 0.5) < ORDER
    assert abs(order(bias, GRID) - 1) < 2 * ORDER


def test_reversed_states_have_the_marginals_of_the_chain():
    problem, policy = linear_study(80)
    law = evaluate_affine(problem, policy)
    back = reverser(21).run(problem, policy, paths(problem, policy, 20000, 22))
    for k in (0, 40):
        assert (back.states[k].mean(0) - law.mean[k]).abs().max() < MARGINAL
        assert (torch.cov(back.states[k].T) - law.covariance[k]).abs().max() < MARGINAL


def test_reversed_targets_are_almost_functions_of_the_state():
    """At the optimum with the exact field, against the noise of adjoint matching at the same step
    size.
    """
    problem, _ = linear_study(80)
    truth = LinearQuadratic(problem)
    policy = truth.affine_policy
    path = paths(problem, policy, 500, 23)
    labels = ReversedBSDE(GivenCostate(truth.value_gradient), reverser(24)).label(
        problem, policy, path
    )
    plain = AdjointMatching().label(problem, policy, path)
    off, noise = (
        [root_mean_square(each.targets[k] - truth.control(k, each.states[k])) for k in (0, 40)]
        for each in (labels, plain)
    )
    assert max(a / b for a, b in zip(off, noise, strict=True)) < 0.1


def test_time_reversal_needs_noise_that_does_not_move():
    problem = geometric()
    policy = Uncontrolled(problem.reference)
    found = Reverser(GivenScore(lambda k, x: -x), generator(25))
    with pytest.raises(
        InvalidProblem,
        match=r"the diffusion is a StateDiffusion; reversing time this way needs a constant B_k",
    ):
        found.run(problem, policy, paths(problem, policy, 4, 26))


# --- least squares ---


def test_least_squares_costates_are_nested_regressions():
    """The last two steps by numpy-like normal equations, and convergence to the exact lean
    field.
    """
    problem, policy = quadratic_problem(), some_policy()
    path = paths(problem, policy, 20000, 27)
    fitted = LeastSquaresCostate(LinearRegression(Polynomial(1))).fit(problem, policy, path)
    exact, x = lean_field(problem, policy), randn(28, 50, 2)
    assert isinstance(problem.reference, AffineReference)
    assert isinstance(problem.running_cost, QuadraticCost)
    target = problem.reward.gradient(path.final)
    for k in (STEPS - 1, STEPS - 2):
        y = path.states[k]
        design = torch.cat([torch.ones(len(y), 1, dtype=F64), y], 1)
        pulled = (
            target @ problem.reference.transition[k]
            - y @ problem.running_cost.F
            - problem.running_cost.h
        )
        weight = torch.linalg.solve(design.T @ design, design.T @ pulled)
        target = design @ weight
        assert (fitted(k, y) - target).abs().max() < 1e-9
    for k in range(STEPS + 1):
        assert root_mean_square(fitted(k, x) - exact(k, x)) < 0.03


@pytest.mark.parametrize(
    "make",
    [
        LeastSquaresCostate(LinearRegression(Polynomial(1)), FullRecursion()),
        LeastSquaresValue(LinearRegression(Polynomial(2))),
    ],
)
def test_values_and_full_costates_give_the_policys_value_gradient(make):
    problem, policy = quadratic_problem(), some_policy()
    fitted = make.fit(problem, policy, paths(problem, policy, 20000, 29))
    exact, x = evaluate_affine(problem, policy).value.gradient, randn(30, 50, 2)
    errors = [root_mean_square(fitted(k, x) - exact(k, x)) for k in range(STEPS + 1)]
    assert max(errors) < 0.12
    assert root_mean_square(lean_field(problem, policy)(0, x) - exact(0, x)) > 0.3


# --- reciprocal ---


def joint_law(reference: AffineReference, first: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (T n,) and covariance of (X_1 .. X_T) given X_0, by pushing unit noises through the
    chain.
    """
    (m,), (n,), T = reference.noise_dims, reference.dims, reference.steps
    units = torch.eye(T * m, dtype=F64).reshape(T * m, T, m)
    noise = torch.cat([units, torch.zeros(1, T, m, dtype=F64)]).transpose(0, 1)
    with torch.no_grad():
        states = [first.expand(T * m + 1, n)]
        for k in range(T):
            states.append(reference.step(k, states[-1], noise[k]))
    stacked = torch.stack(states[1:], 1).flatten(1)
    slope = stacked[:-1] - stacked[-1:]
    return stacked[-1], slope.T @ slope


@pytest.mark.parametrize("degenerate", [False, True], ids=["", "degenerate"])
def test_bridges_have_the_references_conditional_law(degenerate: bool):
    """Mean and covariance of all inner states given the ends, by conditioning the joint Gaussian of
    the whole path.
    """
    problem = quadratic_problem(running=False)
    reference = problem.reference
    assert isinstance(reference, AffineReference)
    if degenerate:
        reference = AffineReference(
            reference.transition, MatrixDiffusion(0.5 * randn(31, STEPS, 2, 1)), reference.offset
        )
    first, last = t(0.4, -1.0)[None], t(0.8, 0.6)[None]
    mean, joint = joint_law(reference, first)
    inner, end = slice(0, 2 * STEPS - 2), slice(2 * STEPS - 2, 2 * STEPS)
    gain = joint[inner, end] @ torch.linalg.inv(joint[end, end])
    expected = mean[inner] + gain @ (last[0] - mean[end])
    covariance = joint[inner, inner] - gain @ joint[end, inner]
    unit = torch.eye(2 * STEPS, dtype=F64).reshape(2 * STEPS, STEPS, 2).transpose(0, 1)
    middle = (
        bridge(reference, first, last, torch.zeros(STEPS, 1, 2, dtype=F64))[1:-1]
        .transpose(0, 1)
        .flatten(1)[0]
    )
    moved = bridge(reference, first.expand(8, 2), last.expand(8, 2), unit)
    slope = moved[1:-1].transpose(0, 1).flatten(1) - middle
    assert (middle - expected).abs().max() < 1e-9
    assert (slope.T @ slope - covariance).abs().max() < 1e-9
    assert (moved[0] - first).abs().max() < 1e-7
    assert torch.equal(moved[-1], last.expand(8, 2))


def test_reciprocal_costates_are_the_lean_ones_of_the_same_ends():
    problem, policy = quadratic_problem(running=False), some_policy()
    path = paths(problem, policy, 30, 32)
    found = ReciprocalAdjoint(generator(33)).costates(problem, policy, path)
    assert (found.values - lean_adjoint(problem, path)).abs().max() < IDENTITY * 10
    assert not torch.allclose(found.states[2], path.states[2])


def test_with_a_linear_reward_reciprocal_targets_are_the_optimal_control():
    quadratic = quadratic_problem(running=False)
    problem = ControlProblem(quadratic.reference, Linear(t(1.0, -0.5)), quadratic.beta)
    truth = LinearQuadratic(problem)
    labels = ReciprocalAdjoint(generator(34)).label(
        problem, some_policy(), paths(problem, some_policy(), 5, 35)
    )
    for k in range(STEPS):
        assert (labels.targets[k] - truth.control(k, labels.states[k])).abs().max() < IDENTITY * 10


def test_the_fixed_point_of_reciprocal_matching_is_off_by_the_first_order():
    """At the optimum, targets minus control regressed on the bridged states: coefficients fall like
    dt (theory of Gaussians).

    The mean square is computed from the moments of jointly Gaussian (X_k, X_T) under the optimal
    ends and reference bridges.
    """
    errors = [reciprocal_bias(steps) for steps in (4, 8, 16)]
    assert abs(order(errors, [4, 8, 16]) - 1) < 2 * ORDER
    assert errors[0] > 1e-4


def reciprocal_bias(steps: int) -> float:
    """Sup over steps of |slope of E[target | x_k] - slope of the control| in one dimension, in
    units of sqrt(dt).
    """
    dt = 1.0 / steps
    a, s2 = 1 - dt / 2, dt
    reference = AffineReference(
        torch.full((steps, 1, 1), a, dtype=F64), ScalarDiffusion(torch.full((steps,), dt**0.5))
    )
    problem = ControlProblem(reference, Quadratic(-torch.ones(1, 1, dtype=F64)), 1.0)
    truth = LinearQuadratic(problem)
    gains = truth.affine_policy.gain.detach()[:, 0, 0]
    closed = a + dt**0.5 * gains
    variance, through = t(1.0)[0], t(1.0)[0]
    for c in closed:
        variance, through = c**2 * variance + s2, c * through
    worst = 0.0
    for k in range(1, steps):
        spread_k = s2 * sum(a ** (2 * i) for i in range(k))
        spread_T = s2 * sum(a ** (2 * i) for i in range(steps))
        to_end = a ** (steps - k)
        gain = spread_k * to_end / spread_T
        head = a**k - gain * a**steps
        cross = gain * variance + head * through
        own = (
            head**2 + gain**2 * variance + 2 * head * gain * through + spread_k - gain**2 * spread_T
        )
        target = -(dt**0.5) * a ** (steps - k - 1) * cross / own
        worst = max(worst, abs(float(target - gains[k])) / dt**0.5)
    return worst


def test_reciprocal_matching_refuses_other_problems():
    running = quadratic_problem()
    path = paths(running, some_policy(), 3, 36)
    with pytest.raises(
        InvalidProblem,
        match=r"there is a running cost; costates at bridges need a reward at the end alone",
    ):
        ReciprocalAdjoint(generator(37)).costates(running, some_policy(), path)
    curved = geometric()
    with pytest.raises(
        InvalidProblem, match=r"the reference is a KernelReference; only an AffineReference"
    ):
        ReciprocalAdjoint(generator(37)).costates(
            curved,
            Uncontrolled(curved.reference),
            paths(curved, Uncontrolled(curved.reference), 3, 38),
        )


# --- what labels cost ---


@dataclasses.dataclass
class Tally:
    """Evaluated rows and derivatives of them; a nested derivative counts once per level."""

    evaluations: float = 0
    derivatives: float = 0

    def record(self, x: Tensor) -> None:
        depth = 0
        while (inner := torch.func.debug_unwrap(x, recurse=False)) is not x:
            depth, x = depth + 1, inner
        depth += int(x.requires_grad)
        if depth == 0:
            self.evaluations += len(x)
        self.derivatives += depth * len(x)


class CountingReference(AffineReference):
    """In one dimension."""

    def __init__(self, steps: int):
        super().__init__(
            torch.full((steps, 1, 1), 0.8, dtype=F64), ScalarDiffusion(torch.full((steps,), 0.5))
        )
        self.tally = Tally()

    def mean(self, k: Step, x: Tensor) -> Tensor:
        self.tally.record(x)
        return super().mean(k, x)


class CountingPolicy(Policy):
    def __init__(self) -> None:
        self.tally = Tally()

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        self.tally.record(x)
        return torch.sin(x)


def work(estimator: Estimator | ReversedValues, steps: int) -> Cost:
    reference, policy = CountingReference(steps), CountingPolicy()
    problem = ControlProblem(reference, Quadratic(-torch.ones(1, 1, dtype=F64)), 1.0)
    path = paths(problem, policy, 10, 39)
    reference.tally, policy.tally = Tally(), Tally()
    if isinstance(estimator, ReversedValues):
        estimator.values(problem, policy, path)
    else:
        estimator.label(problem, policy, path)
    return Cost(
        reference.tally.evaluations / 10,
        reference.tally.derivatives / 10,
        policy.tally.evaluations / 10,
        policy.tally.derivatives / 10,
    )


SOURCES: list[CostateSource] = [
    GivenCostate(lambda k, x: x),
    PolicyCostate(),
    PolicyCostate(exact=False),
]
REVERSER = Reverser(GivenScore(lambda k, x: -x), generator(40))
COSTED: list[Estimator | ReversedValues] = [
    AdjointMatching(),
    FullAdjoint(),
    *(
        make(own)
        for make, own in itertools.product(
            (LeanStickingTheLanding, FullStickingTheLanding),
            (OwnStepAsIs(), OwnStepByJvp(), OwnStepExact()),
        )
    ),
    ReciprocalAdjoint(generator(41)),
    *(
        make(kind(field))
        for make, kind, field in itertools.product(
            (MartingaleAdjoint, FullMartingaleAdjoint), CORRECTIONS, SOURCES
        )
    ),
    *(TDAdjoint(field, 0.5) for field in SOURCES),
    *(
        ReversedBSDE(field, REVERSER, adjoint, move)
        for field, adjoint, move in itertools.product(
            SOURCES,
            (LeanRecursion(), FullRecursion()),
            (AnalyticIncrement(), FiniteDifferenceIncrement()),
        )
    ),
    *(ReversedValues(field, REVERSER) for field in SOURCES),
]


@pytest.mark.parametrize("estimator", COSTED, ids=lambda each: type(each).__name__)
def test_the_declared_cost_is_the_counted_work_of_one_more_step(
    estimator: Estimator | ReversedValues,
):
    """The first and the last step differ, since the field at the end is the reward's gradient;
    steps in between do not.
    """
    short, long = work(estimator, 4), work(estimator, 5)
    for name in ("reference", "reference_derivatives", "policy", "policy_derivatives"):
        assert getattr(long, name) - getattr(short, name) == pytest.approx(
            getattr(estimator.cost, name)
        )


# --- the linear study of arXiv 2603.20455v2 ---


def test_linear_study():
    """With linear features the refined martingale field is exact, adjoint matching has Monte-Carlo
    and time reversal step error.
    """
    problem, policy = linear_study(40, controlled=False)
    problem = ControlProblem(problem.reference, problem.reward, 1.0)
    exact, x = evaluate_affine(problem, policy).value, randn(42, 500, 2)
    noise, linear = (
        Noise.sample(problem.reference, 500, generator(43)),
        StepwiseRegression(LinearRegression(Polynomial(1))),
    )

    def error(field) -> float:
        return float((field(0, x) - exact.gradient(0, x)).square().sum(1).mean())

    martingale = [
        error(f)
        for f in refine(
            problem,
            policy,
            lambda s: MartingaleAdjoint(FirstOrderCorrection(s)).costates,
            linear.fit,
            CrossFittedPaths(noise),
            6,
        )
    ]
    reverse = reverser(44)
    reversed_time = [
        error(f)
        for f in refine(
            problem,
            policy,
            lambda s: ReversedBSDE(s, reverse).costates,
            linear.fit,
            CrossFittedPaths(noise, 1),
            3,
        )
    ]
    plain = error(
        linear.fit(AdjointMatching().costates(problem, policy, paths(problem, policy, 500, 43)))
    )
    assert martingale[-1] < 1e-12
    assert plain > 1e-4
    assert 5e-4 < reversed_time[-1] < 2e-2


def test_refined_reversed_values_give_the_costate_as_their_gradient():
    problem, policy = linear_study(40, controlled=False)
    exact, x = evaluate_affine(problem, policy).value, randn(45, 500, 2)
    noise, reverse = Noise.sample(problem.reference, 1000, generator(46)), reverser(47)
    fit = ValueRegression(StepwiseRegression(LinearRegression(Polynomial(2)))).fit
    fields = list(
        refine(
            problem,
            policy,
            lambda s: ReversedValues(s, reverse).values,
            fit,
            CrossFittedPaths(noise, 1),
            3,
        )
    )
    error, size = (
        (f(0, x) - exact.gradient(0, x)).square().mean() for f in (fields[-1], lambda k, y: 0 * y)
    )
    assert error < 0.1 * size


def test_costates_keep_their_own_states():
    """Labels of reversed states carry those, not the path's."""
    problem, policy = linear_study(10)
    path = paths(problem, policy, 6, 48)
    found = ReversedBSDE(PolicyCostate(), reverser(49))
    again = ReversedBSDE(PolicyCostate(), reverser(49))
    labels, costates = found.label(problem, policy, path), again.costates(problem, policy, path)
    assert isinstance(costates, Costates)
    assert torch.equal(labels.states, costates.states[:-1])
    assert not torch.allclose(labels.states[0], path.states[0])
