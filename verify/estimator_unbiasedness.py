r"""Every estimator of the catalogue estimates what its row says, on nonlinear problems.

Setting: an estimator's estimate is the gradient of its loss on its own labels, in the coefficients
of features of every step, over paths of the policy. What it is in expectation is stated by
`EstimatorRow.estimates`, one of `socft.estimators.estimand`.

Statement: $bb(E) [∇_θ ℓ] = −∇J$ for the losses $ℓ$ of objective gradients, $0$ at $v^*$ alone for
those of residuals, $0$ at a control within $O(Δ t)$ of $v^*$ for those up to $O(Δ t)$, and neither
for biased ones; labels of step $k$ see $x_k$ and later noise only

Where a residual up to O(dt) is exactly zero is `ResidualZero`. For a matching estimator of an
objective gradient the conditional mean of the target is
:math:`B_k^\top E[\nabla V^{policy}_{k+1} \mid x_k]/\beta_k`, an adapted control. Losses of whole
paths see all of the noise.

Kind: equality, by randomised quasi-Monte Carlo within `SIGMAS` standard errors, which are bounded.

Source: arXiv 2412.18164v4, equation 77; arXiv 2409.08861, section 4; derived here.

The statements about conditional means and about zeros up to O(dt) are derived here.

How it is measured: a chain with a two-mode mixture score, a flow of one, one in the plane with more
noises than states, one whose noise turns and stretches with the state, and affine chains with a
bent reward; gradients, optima and the other controls at which residuals vanish by quadrature, in
`verify.support.nonlinear_chains`. Conditional means by least squares on (x, 1) in linear-quadratic
problems, where they are affine. Adaptedness by starting paths anew at step k with the same later
noise, an identity without tolerance for the sampling.

What would refute it: a mean that is not what its row says, a standard error above `RESOLUTION`, or
a label that changes with earlier noise. Wrong statements, `TWINS`, are refuted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator, Labels, MatchingEstimator
from socft.estimators.catalogue import ANYWHERE, CATALOGUE
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.flow import RENOISED
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.estimand import (
    ApproximateResidual,
    Biased,
    EquationResidual,
    Estimand,
    FixedPointResidual,
    Kind,
    LastStepsGradient,
    ObjectiveGradient,
    ResidualZero,
)
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import ValueIntegrationByParts, ValueOwner
from socft.estimators.log_variance import LogVariance
from socft.estimators.moment import Moment
from socft.estimators.score_function import ScoreFunctionWithoutKLToGo
from socft.estimators.truncated_backprop import TruncatedBackprop
from socft.estimators.variance import Variance
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import KernelReference, ScalarDiffusion, Step
from socft.study.vocabulary.methods import MethodName
from socft.truth.affine_policy import evaluate_affine
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.nonlinear_chains.problems import (
    BRIDGED,
    DENOISED,
    FLOW,
    MILD,
    MIXTURE,
    PLANE,
    QUADRATIC,
    TURNING,
    NonlinearProblem,
)
from verify.support.nonlinear_chains.statements import (
    RESOLUTION,
    SCRAMBLES,
    SIGMAS,
    Sentence,
    Trial,
    parts,
)
from verify.support.quadratics import LINE_QUADRATIC, PLANE_QUADRATIC

CLAIM = Claim.of_module(__name__, __doc__, "What estimators estimate", topics.ADJOINTS)

PATHS, SCRAMBLED_PATHS = 20_000, 2048
"""In linear-quadratic problems, and of every scrambling."""
PLANE_PATHS = 1024
MORE = 16
"""Times as many where paths are weighted, so that what is not zero is seen."""
NOISY = (
    MethodName.SCORE_FUNCTION_NO_BASELINE,
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
    MethodName.SCORE_FUNCTION_REGRESSION_BASELINE,
    MethodName.INTEGRATION_BY_PARTS,
    MethodName.INTEGRATION_BY_PARTS_EXACT_VALUE,
    MethodName.LOG_VARIANCE,
    MethodName.MOMENT,
    MethodName.MALLIAVIN_WEIGHTS,
)
"""Those whose labels are noisy and cheap: four times as many in the plane."""
FEWER = {MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN: 8}
"""Rules over the noise of every path: so many times fewer in the plane."""
STDERRS = 4.0
"""A normal variable exceeds it with chance 6e-5, the largest of the 24 entries of an estimator with
chance 2e-3: on fresh seeds one check in 600 would fail though the statement holds. The seeds are
fixed, one per check, and none was chosen.
"""
ROUNDING = 1e-12
"""Relative: the same operations on the same states."""
RESTART = 2
LADDER = (8, 16, 32)
RATE = 0.1
"""Distance of a measured order of convergence from 1."""

PLACES: dict[str, NonlinearProblem] = {
    MethodName.RECIPROCAL_ADJOINT_MATCHING: BRIDGED,
    MethodName.TIME_REVERSED_EXACT_SCORE: QUADRATIC,
    MethodName.VARIANCE: MILD,
    MethodName.DETERMINISTIC_ADJOINT_MATCHING: FLOW,
    MethodName.VGG_FLOW: FLOW,
    MethodName.VGG_FLOW_LOOK_AHEAD_ALONE: FLOW,
    MethodName.RESIDUAL_NABLA_DB: FLOW,
    MethodName.RESIDUAL_NABLA_DB_SIMPLE: FLOW,
} | {row.name: DENOISED for row in RENOISED}
"""Of those that take an affine chain or a flow alone, of one whose weights are too noisy elsewhere,
and of those that see the reward of samples alone; the others are held to their statements on the
mixture.
"""
STATED = [
    name
    for name, row in CATALOGUE.items()
    if row.kind is not Kind.BIASED and not isinstance(row.estimates, EquationResidual)
]
"""Those with a zero or a gradient, which are tried in the plane too."""
SMALL_BIAS = (
    MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO,
    MethodName.DPOK,
    MethodName.DPOK_NO_BASELINE,
    MethodName.DPOK_LEAVE_ONE_OUT,
    MethodName.VARIANCE,
    MethodName.DDPO_KL_IN_THE_REWARD,
    MethodName.CROSS_ENTROPY,
    MethodName.SOCM_IDENTITY,
    MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING,
    MethodName.SOCM_ADJOINT,
)
"""Those that take four times the paths to be told from what they are not."""
VARIED = {
    MethodName.TRUNCATED_RANDOM: (64, 512),
    MethodName.TD_09_FITTED_COSTATE: (16, 4096),
    MethodName.TD_0_FITTED_COSTATE: (32, 1024),
    MethodName.LEAST_SQUARES_COSTATE_FORM: (16, 1024),
    MethodName.RESIDUAL_NABLA_DB: (64, 1024),
}
"""Those that draw or fit something once for a batch: the number of batches, and their paths."""
REVERSED = (
    MethodName.TIME_REVERSED_FITTED_COSTATE,
    MethodName.TIME_REVERSED_IMPLICIT_SCORE,
    MethodName.TIME_REVERSED_EXACT_SCORE,
    MethodName.TIME_REVERSED_NEAREST_KERNEL_SCORE,
    MethodName.TIME_REVERSED_EXACT_COSTATE,
    MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING,
)
"""Those that learn a score from all paths of a scrambling and differentiate twice: half as many
scramblings.
"""
SLOW = (
    MethodName.TD_09_FITTED_COSTATE,
    MethodName.TD_0_FITTED_COSTATE,
    MethodName.LEAST_SQUARES_COSTATE_FORM,
    MethodName.RESIDUAL_NABLA_DB,
)
WEIGHTED = (ResidualZero.LEAST_CROSS_ENTROPY, ResidualZero.EQUAL_WEIGHTS)
AFFINE_ONLY = (MethodName.RECIPROCAL_ADJOINT_MATCHING,)
CONSTANT_NOISE = (MethodName.MALLIAVIN_WEIGHTS,)
"""Those of objective gradients that are refused where the noise depends on the state."""
WHOLE_PATH = (LogVariance, Moment, Variance)
"""Their targets compare whole paths, with noise before step k that has mean zero against that of
step k.
"""
MATCHED = [
    name
    for name in ANYWHERE
    if issubclass(CATALOGUE[name].estimator, MatchingEstimator)
    and CATALOGUE[name].kind is not Kind.BIASED
]
GRADIENTS = [name for name in MATCHED if CATALOGUE[name].kind is Kind.OBJECTIVE_GRADIENT]
FITTED = (MethodName.SOCM, MethodName.SOCM_DEGREE_2)
"""Their reparametrisation is fitted to the weights of the other fold, which see its whole paths."""
ADAPTED = [
    name
    for name in MATCHED
    if not issubclass(CATALOGUE[name].estimator, WHOLE_PATH) and name not in FITTED
]

INSTANCES = [LINE_QUADRATIC, PLANE_QUADRATIC]


class Doubled(FullAdjoint):
    """Twice the gradient."""

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        labels = super().label(problem, policy, path)
        return dataclasses.replace(labels, weights=torch.full_like(labels.targets[..., 0], 2.0))


def _optimal_value(context: EstimatorContext) -> Estimator:
    """Differences of the optimal value, wherever the paths are from."""
    value, _ = MIXTURE.truth.fields(MIXTURE.optimum)
    return ValueIntegrationByParts(value, ValueOwner.OPTIMUM)


def _unconstrained(estimator: Estimator) -> Callable[[EstimatorContext], Estimator]:
    return lambda context: estimator


TWINS: list[tuple[Callable[[EstimatorContext], Estimator], Estimand, str]] = [
    (_unconstrained(AdjointMatching()), ObjectiveGradient(), "the gradient, away from the optimum"),
    (_unconstrained(Doubled()), ObjectiveGradient(), "the gradient, away from the optimum"),
    (
        _unconstrained(TruncatedBackprop(1)),
        ObjectiveGradient(),
        "the gradient, away from the optimum",
    ),
    (_optimal_value, ObjectiveGradient(), "the gradient, away from the optimum"),
    (_unconstrained(ScoreFunctionWithoutKLToGo()), ObjectiveGradient(), "zero at the optimum"),
    (_unconstrained(CrossEntropy()), FixedPointResidual(), "zero at the optimum"),
    (_unconstrained(PublishedAdjointMatching()), FixedPointResidual(), "zero at the optimum"),
    (_unconstrained(FullAdjoint()), FixedPointResidual(), "not the gradient"),
    (
        _unconstrained(AdjointMatching()),
        ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY),
        "not zero at the optimum of coarse steps",
    ),
    (
        _unconstrained(PublishedAdjointMatching()),
        ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY),
        "zero at the control of least cross-entropy",
    ),
    (
        _unconstrained(CrossEntropy()),
        ApproximateResidual(ResidualZero.PREVIOUS_COSTATE),
        "zero at the control of the previous costate",
    ),
    (
        _unconstrained(TruncatedBackprop(2, kl=False)),
        LastStepsGradient(),
        "the gradient of the last steps",
    ),
    (_unconstrained(FullAdjoint()), Biased("nothing"), "not the gradient"),
    (_unconstrained(FullAdjoint()), Biased("nothing"), "not zero at the optimum"),
    (
        _unconstrained(PublishedAdjointMatching()),
        Biased("a_k", zero_at_optimum=True),
        "zero at the optimum",
    ),
]
"""Estimators, and what they do not estimate: the part of the wrong statement that is refuted."""


def name(item: object) -> str:
    """Of a class or an instance, for the tests' names."""
    return f"d = {item.dim}" if isinstance(item, QuadraticInstance) else str(item)[:40]


def trial(row: str, place: NonlinearProblem, paths: int | None = None) -> Trial:
    """A row of the catalogue on a problem."""
    if (varied := VARIED.get(MethodName(row))) is not None:
        batches, count = varied
        return Trial(CATALOGUE[row].make, place, count, batches, True)
    count = SCRAMBLED_PATHS * (4 if row in SMALL_BIAS else 1)
    scrambles = SCRAMBLES // 2 if row in REVERSED else SCRAMBLES
    return Trial(CATALOGUE[row].make, place, paths or count, scrambles)


def check(found: list[Sentence], where: dict[str, object]) -> None:
    """Every part of a statement, and the standard error of what vanishes."""
    for part in found:
        place = where | {"stderr": part.stderr}
        if part.zero:
            CLAIM.equals(part.measured, 0.0, place, part.bound, part.name)
            CLAIM.equals(part.stderr, 0.0, place, RESOLUTION, f"standard error: {part.name}")
        else:
            CLAIM.breaks(part.measured, part.bound, place, part.name)


@pytest.mark.parametrize(
    "row", [pytest.param(row, marks=[pytest.mark.slow] * (row in SLOW)) for row in CATALOGUE]
)
def test_holds(row: str) -> None:
    """What the row says, sentence by sentence."""
    place = PLACES.get(row, MIXTURE)
    made = trial(row, place)
    where = {"estimator": row, "problem": place.describe(), "paths": made.paths}
    check(parts(CATALOGUE[row].estimates, made), where)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in STATED if row not in AFFINE_ONLY])
def test_holds_in_the_plane(row: str) -> None:
    """With more noises than states, or, where that is stated, with noise that turns with them.

    Of the variance loss at the optimum alone: elsewhere its weights are too noisy.
    """
    estimand = CATALOGUE[row].estimates
    turns = getattr(estimand, "any_noise", row not in CONSTANT_NOISE)
    place = TURNING if turns else PLANE
    weighted = getattr(estimand, "zero", None) in WEIGHTED
    times = MORE if weighted else 4 if row in NOISY else 1
    made = trial(row, place, PLANE_PATHS * times // FEWER.get(MethodName(row), 1))
    where = {"estimator": row, "problem": place.describe(), "paths": made.paths}
    found = parts(estimand, made)
    check(found[:1] if row == MethodName.VARIANCE else found, where)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [MethodName.ADJOINT_MATCHING, MethodName.MARTINGALE_POLICY_COSTATE_CHEAP]
)
def test_needs_noise_that_does_not_depend_on_the_state(row: str) -> None:
    """Where a residual does not say that any noise will do, it does not vanish at the optimum."""
    assert CATALOGUE[row].estimates == FixedPointResidual(any_noise=False)
    found = trial(row, TURNING, PLANE_PATHS).at_optimum
    where = {"estimator": row, "problem": TURNING.describe(), "paths": PLANE_PATHS}
    CLAIM.breaks(found.apart(), SIGMAS * found.stderr, where, "noise of its own")


@pytest.mark.parametrize("zero", ["least_cross_entropy", "previous_costate"])
def test_zeros_up_to_the_step_are_within_it_of_the_optimum(zero: str) -> None:
    """Of two controls, whose distance from the optimum halves with the step."""
    places = [dataclasses.replace(MIXTURE, steps=T, count=round(24 * T**0.5)) for T in LADDER]
    apart = [each.truth.apart(each.truth.optimum, getattr(each.truth, zero)) for each in places]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(apart)]
    where = {"zero": zero, "steps": LADDER, "apart": apart}
    CLAIM.equals(orders[-1], 1.0, where, RATE, f"order of the distance: {zero}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "row",
    [MethodName.RECIPROCAL_ADJOINT_MATCHING, MethodName.CROSS_ENTROPY],
)
def test_residuals_at_the_optimum_shrink_with_the_step(row: str) -> None:
    """With four times the steps to a quarter, between the orders 1/2 and 3/2."""
    found = [
        trial(row, dataclasses.replace(BRIDGED, steps=T, count=20 * T), 2**13).at_optimum
        for T in (4, 16)
    ]
    where = {"estimator": row, "problem": BRIDGED.describe(), "steps": [4, 16]}
    order = math.log(found[0].apart() / found[1].apart(), 4)
    CLAIM.equals(order, 1.0, where, 0.5, "order of the residual at the optimum")


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: f"{twin[1]}: {twin[2]}")
def test_needs_the_right_statement(
    twin: tuple[Callable[[EstimatorContext], Estimator], Estimand, str],
) -> None:
    """A wrong statement is refuted by the part that is wrong."""
    make, estimand, wrong = twin
    found = parts(estimand, Trial(make, MIXTURE, SCRAMBLED_PATHS))
    (part,) = [part for part in found if part.name == wrong]
    where = {"stated": str(estimand.kind), "part": wrong, "problem": MIXTURE.describe()}
    CLAIM.breaks(part.violation, 1.0, where, f"the right statement: {wrong}")


@pytest.mark.parametrize("instance", INSTANCES, ids=name)
@pytest.mark.parametrize("row", GRADIENTS)
def test_holds_for_conditional_means(row: str, instance: QuadraticInstance) -> None:
    """Of the targets, by regression on (x, 1)."""
    estimator = ANYWHERE[row]()
    problem, policy = instance.problem(_beta(instance)), _perturbed(instance)
    path = _paths(problem, policy, 3)
    labels, value = estimator.label(problem, policy, path), evaluate_affine(problem, policy).value
    for k in range(problem.steps):
        design = torch.cat([path.states[k], torch.ones(PATHS, 1, dtype=torch.float64)], 1)
        gram = torch.linalg.inv(design.T @ design)
        found = gram @ design.T @ labels.targets[k]
        stderr = ((design @ gram).square().T @ (labels.targets[k] - design @ found).square()).sqrt()
        with torch.no_grad():
            probe = torch.cat(
                [
                    torch.eye(instance.dim, dtype=torch.float64),
                    torch.zeros(1, instance.dim, dtype=torch.float64),
                ]
            )
            moved = problem.reference.step(k, probe, policy(k, probe))
            means = (
                problem.reference.diffusion.transpose(k, probe, value.gradient(k + 1, moved))
                / problem.beta[k]
            )
        expected = torch.cat([means[:-1] - means[-1], means[-1:]])
        where = {
            "estimator": row,
            "instance": instance.describe(),
            "step": k,
            "paths": PATHS,
        }
        CLAIM.equals(
            (found - expected) / stderr.clamp(min=1e-13), 0.0, where, STDERRS, "conditional mean"
        )


@pytest.mark.parametrize("row", ADAPTED)
def test_labels_are_adapted_to_later_noise(row: str) -> None:
    """Labels from a path started at the state of step `RESTART`, with the same noise after it."""
    estimator, instance = ANYWHERE[row](), INSTANCES[1]
    problem, policy = instance.problem(_beta(instance)), _perturbed(instance)
    path = _paths(problem, policy, 4, 64)
    whole = estimator.label(problem, policy, path).targets[RESTART:]
    later = _later(problem)
    noise = Noise(path.states[RESTART], path.noise.steps[RESTART:])
    shifted = _Later(policy)
    with torch.no_grad():
        again = rollout(later.reference, shifted, noise)
    targets = estimator.label(later, shifted, again).targets
    where = {"estimator": row, "instance": instance.describe(), "step": RESTART}
    CLAIM.equals(
        (targets - whole) / (1 + whole.abs().max()), 0.0, where, ROUNDING, "later noise only"
    )


class _Later(Policy):
    """A policy from step `RESTART` on."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return self.policy(k + RESTART, x)


def _later(problem: ControlProblem) -> ControlProblem:
    """The problem from step `RESTART` on, started where it is told to."""
    whole = problem.reference
    assert isinstance(whole.diffusion, ScalarDiffusion)
    noise = ScalarDiffusion(whole.diffusion.sigma[RESTART:])
    reference = KernelReference(
        lambda k, x: whole.mean(k + RESTART, x), noise, problem.steps - RESTART, whole.dims
    )
    return ControlProblem(reference, problem.reward, problem.beta[RESTART:])


def _beta(instance: QuadraticInstance) -> Tensor:
    """The largest of the instance's KL weights for all steps, as path measures need."""
    beta = torch.as_tensor(instance.beta(), dtype=torch.float64)
    return beta.max().expand_as(beta)


def _perturbed(instance: QuadraticInstance) -> AffinePolicy:
    best, draw = instance.solve().affine_policy, torch.Generator().manual_seed(0)
    gain, offset = (
        x.detach() + 0.5 * torch.randn(x.shape, generator=draw, dtype=torch.float64)
        for x in (best.gain, best.offset)
    )
    return AffinePolicy(gain, offset)


def _paths(problem: ControlProblem, policy: Policy, seed: int, count: int = PATHS) -> Path:
    noise = Noise.sample(problem.reference, count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return rollout(problem.reference, policy, noise)
