"""Costates along time-reversed paths against exact fields and laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.adjoint import Adjoint, FullRecursion, LeanRecursion
from socft.costates.base import Costates
from socft.costates.fields import (
    CostateField,
    GivenCostate,
    PolicyCostate,
)
from socft.costates.increments import AnalyticIncrement, CostateIncrement, FiniteDifferenceIncrement
from socft.costates.marginal_score import AffineMarginals, GivenScore, ReferenceScore
from socft.costates.martingale import FirstOrderCorrection
from socft.costates.regression import CrossFittedPaths, StepwiseRegression, ValueRegression, refine
from socft.costates.time_reversal import Reverser
from socft.density import Gaussian, affine_reference, score_reference
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Noise
from socft.policy import AffinePolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, Step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.reward import FunctionReward, Quadratic
from socft.schedule import ddpm, linear_levels, subsample
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic, QuadraticCost
from tests.support.costate_fields import (
    IDENTITY,
    ORDER,
    STDERRS,
    geometric,
    linear_study,
    order,
    paths,
    root_mean_square,
    wrong_field,
)
from tests.support.tensors import F64, generator, randn, t

MARGINAL = 0.12  # a step of 1/40 changes moments of size 1 by a few of it


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


GRID, FINE = [20, 40], [40, 80]


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
            problem, policy, paths(problem, policy, 24000, 13)
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
        path = paths(problem, policy, 2000, 15)
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
    problem, policy = linear_study(5)
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
        match="the reference is an AffineReference; only a DenoisingReference goes by a score",
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


def test_costates_one_step_ahead_keep_an_increment():
    """Paired as published the sum telescopes to its ends: order one half in place of one; the field
    is affine, so that differences are its derivatives.
    """
    errors, paired, move = [], [], FiniteDifferenceIncrement()
    for steps in FINE:
        problem, policy = linear_study(steps, controlled=False)
        exact, path = (
            evaluate_affine(problem, policy).value.gradient,
            paths(problem, policy, 800, 17),
        )
        for collected, published in ((errors, True), (paired, False)):
            estimator = ReversedBSDE(GivenCostate(exact), reverser(18, published), move=move)
            found = estimator.costates(problem, policy, path)
            collected.append(root_mean_square(found.values[0] - exact(0, found.states[0])))
    assert abs(order(errors, FINE) - 0.5) < ORDER
    assert abs(order(paired, FINE) - 1) < ORDER


def test_reversed_values_are_exact_up_to_the_first_order():
    """In the mean, as above; each sample by the square root of the step."""
    bias, spread = [], []
    for steps in FINE:
        problem, policy = linear_study(steps)
        value = evaluate_affine(problem, policy).value
        found = ReversedValues(GivenCostate(value.gradient), reverser(19)).values(
            problem, policy, paths(problem, policy, 10000, 20)
        )
        off = found.values[0] - value.value(0, found.states[0])
        bias.append(abs(float(off.mean())))
        spread.append(float(off.std()))
    assert abs(order(spread, FINE) - 0.5) < ORDER
    assert abs(order(bias, FINE) - 1) < 2 * ORDER


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
    problem, _ = linear_study(40)
    truth = LinearQuadratic(problem)
    policy = truth.affine_policy
    path = paths(problem, policy, 500, 23)
    labels = ReversedBSDE(GivenCostate(truth.value_gradient), reverser(24)).label(
        problem, policy, path
    )
    plain = AdjointMatching().label(problem, policy, path)
    off, noise = (
        [root_mean_square(each.targets[k] - truth.control(k, each.states[k])) for k in (0, 20)]
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


def test_linear_study():
    """With linear features the refined martingale field is exact, adjoint matching has Monte-Carlo
    and time reversal step error.
    """
    problem, policy = linear_study(20, controlled=False)
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
    problem, policy = linear_study(20, controlled=False)
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
    problem, policy = linear_study(3)
    path = paths(problem, policy, 6, 48)
    found = ReversedBSDE(PolicyCostate(), reverser(49))
    again = ReversedBSDE(PolicyCostate(), reverser(49))
    labels, costates = found.label(problem, policy, path), again.costates(problem, policy, path)
    assert isinstance(costates, Costates)
    assert torch.equal(labels.states, costates.states[:-1])
    assert not torch.allclose(labels.states[0], path.states[0])
