r"""Every estimator estimates what it says it does, from the noise it may use.

Setting: an estimator's estimate is the gradient of its loss on its own labels, over paths of the
policy.

Statement: $bb(E) [∇_θ ℓ] = −∇J$ for the losses $ℓ$ of objective gradients, and $0$ at $v^*$ for
those of residuals; labels of step $k$ see $x_k$ and later noise only

What a loss estimates is `Estimator.estimates`. For a matching estimator of an objective gradient
the conditional mean of the target is :math:`B_k^\top E[\nabla V^{policy}_{k+1} \mid x_k]/\beta_k`,
an adapted control; a fixed-point residual vanishes at the optimum and nowhere else. Losses of whole
paths see all of the noise.

Kind: equality, by Monte Carlo within `STDERRS` standard errors.

Source: arXiv 2412.18164v4, equation 77; arXiv 2409.08861, section 4; derived here.

The statement about conditional means is derived here.

How it is measured: linear-quadratic problems with affine policies, whose exact gradient is
`affine_gradient`; means over `PATHS` paths with fixed seeds. Conditional means by least squares of
the targets on (x, 1), exact since they are affine. Adaptedness by starting paths anew at step k
with the same later noise, an identity without tolerance for the sampling.

What would refute it: a mean off by more than `STDERRS` standard errors, or a label that changes
with earlier noise.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.costates.fields import PolicyCostate
from socft.costates.martingale import AntitheticCorrection, FirstOrderCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator, Labels, MatchingEstimator
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.score_function import ScoreFunction
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.variance import Variance
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import KernelReference, ScalarDiffusion, Step
from socft.truth.affine_policy import affine_gradient, evaluate_affine
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance

CLAIM = Claim.of_module(__name__, __doc__, "What estimators estimate", topics.ADJOINTS)
PATHS = 20_000
STDERRS = 4.0
"""A normal variable exceeds it with chance 6e-5, the largest of the 24 entries of an estimator with
chance 2e-3: on fresh seeds one check in 600 would fail though the statement holds. The seeds are
fixed, one per check, and none was chosen.
"""
ROUNDING = 1e-12
"""Relative: the same operations on the same states."""
RESTART = 2

WHOLE_PATH: list[Estimator] = [LogVariance(), Variance()]
"""Their targets compare whole paths, with noise before step k that has mean zero against that of
step k.
"""
ONE_BETA: list[Estimator] = [CrossEntropy(), WHOLE_PATH[1], SOCM(), SOCMAdjoint()]
"""They compare path measures, which need a constant beta."""
NOISIEST = ONE_BETA[0]
"""Its expectation is that of SOCM, which negative controls detect with a hundredth of the paths."""
GRADIENTS: list[Estimator] = [
    FullAdjoint(),
    FullMartingaleAdjoint(FirstOrderCorrection(PolicyCostate())),
    ScoreFunction(),
    IntegrationByParts(),
    WHOLE_PATH[0],
]
RESIDUALS: list[Estimator] = [
    AdjointMatching(),
    MartingaleAdjoint(AntitheticCorrection(PolicyCostate(exact=False), last=False)),
    *ONE_BETA,
]
"""The corrected residual with an inexact field: with the exact one nothing is left at the optimum
to average.
"""
INSTANCES = [
    QuadraticInstance(
        levels=(0.3, 0.5, 0.7, 0.9),
        lam=(0.5,) * 3,
        score=(-0.8,),
        shift=(0.3,),
        curvature=(-2.0,),
        slope=(1.0,),
    ),
    QuadraticInstance(
        levels=(0.3, 0.5, 0.7, 0.9),
        lam=(0.6, 0.4, 0.5),
        score=(-0.8, -1.2),
        shift=(0.3, 0.0),
        curvature=(1.0, -2.0),
        slope=(1.0, 0.5),
        rotation=1,
    ),
]


def name(item: object) -> str:
    """Of an estimator or an instance, for the tests' names."""
    return f"d = {item.dim}" if isinstance(item, QuadraticInstance) else type(item).__name__


def distances(
    estimator: Estimator, problem: ControlProblem, policy: AffinePolicy, expected: Tensor, seed: int
) -> Tensor:
    """``(mean - expected) / stderr`` of the estimated gradient, per parameter; the parameters are
    gains and offsets.
    """
    path = _paths(problem, policy, seed)
    labels = estimator.label(problem, policy, path)
    samples = torch.cat(
        [_per_path(estimator, problem, policy, labels, k) for k in range(problem.steps)], 1
    )
    stderr = samples.std(0) / len(samples) ** 0.5
    return (samples.mean(0) - expected) / stderr.clamp(min=1e-300)


@pytest.mark.parametrize("instance", INSTANCES, ids=name)
@pytest.mark.parametrize("estimator", GRADIENTS, ids=name)
def test_holds_for_objective_gradients(estimator: Estimator, instance: QuadraticInstance) -> None:
    """At a policy away from the optimum, against the exact gradient."""
    problem, policy = instance.problem(instance.beta()), _perturbed(instance)
    assert estimator.estimates == "objective gradient"
    where = {"estimator": name(estimator), "instance": instance.describe(), "paths": PATHS}
    off = distances(estimator, problem, policy, _minus_gradient(problem, policy), 1)
    CLAIM.equals(off, 0.0, where, STDERRS, "objective gradient")


@pytest.mark.parametrize("instance", INSTANCES, ids=name)
@pytest.mark.parametrize("estimator", RESIDUALS, ids=name)
def test_holds_for_fixed_point_residuals(estimator: Estimator, instance: QuadraticInstance) -> None:
    """At the optimum."""
    truth = instance.solve(_beta(estimator, instance))
    policy = truth.affine_policy
    assert estimator.estimates == "fixed-point residual"
    zero = torch.zeros_like(_minus_gradient(truth.problem, policy))
    where = {"estimator": name(estimator), "instance": instance.describe(), "paths": PATHS}
    CLAIM.equals(
        distances(estimator, truth.problem, policy, zero, 2),
        0.0,
        where,
        STDERRS,
        "residual at the optimum",
    )


@pytest.mark.parametrize("instance", INSTANCES, ids=name)
@pytest.mark.parametrize(
    "estimator", [e for e in GRADIENTS if isinstance(e, MatchingEstimator)], ids=name
)
def test_holds_for_conditional_means(
    estimator: MatchingEstimator, instance: QuadraticInstance
) -> None:
    """Of the targets, by regression on (x, 1)."""
    problem, policy = instance.problem(instance.beta()), _perturbed(instance)
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
            "estimator": name(estimator),
            "instance": instance.describe(),
            "step": k,
            "paths": PATHS,
        }
        CLAIM.equals(
            (found - expected) / stderr.clamp(min=1e-13), 0.0, where, STDERRS, "conditional mean"
        )


@pytest.mark.parametrize(
    "estimator", [e for e in GRADIENTS + RESIDUALS if e not in WHOLE_PATH], ids=name
)
def test_labels_are_adapted_to_later_noise(estimator: Estimator) -> None:
    """Labels from a path started at the state of step `RESTART`, with the same noise after it."""
    instance = INSTANCES[1]
    problem, policy = instance.problem(_beta(estimator, instance)), _perturbed(instance)
    path = _paths(problem, policy, 4, 64)
    whole = estimator.label(problem, policy, path).targets[RESTART:]
    later = _later(problem)
    noise = Noise(path.states[RESTART], path.noise.steps[RESTART:])
    shifted = _Later(policy)
    with torch.no_grad():
        again = rollout(later.reference, shifted, noise)
    targets = estimator.label(later, shifted, again).targets
    where = {"estimator": name(estimator), "instance": instance.describe(), "step": RESTART}
    CLAIM.equals(
        (targets - whole) / (1 + whole.abs().max()), 0.0, where, ROUNDING, "later noise only"
    )


@pytest.mark.parametrize("estimator", [e for e in RESIDUALS if e is not NOISIEST], ids=name)
def test_needs_the_optimum(estimator: Estimator) -> None:
    """At the opposite control a fixed-point residual is neither zero nor the gradient."""
    instance = INSTANCES[0]
    truth = instance.solve(_beta(estimator, instance))
    problem, best = truth.problem, truth.affine_policy
    policy = AffinePolicy(-best.gain.detach(), -best.offset.detach())
    expected = _minus_gradient(problem, policy)
    where = {"estimator": name(estimator), "instance": instance.describe(), "paths": PATHS}
    for what, target in (("gradient", expected), ("zero", torch.zeros_like(expected))):
        CLAIM.breaks(
            float(distances(estimator, problem, policy, target, 5).abs().max()),
            STDERRS,
            where,
            f"the optimum: not the {what}",
        )


@pytest.mark.parametrize("estimator", [e for e in GRADIENTS if e not in WHOLE_PATH], ids=name)
def test_needs_paths_of_the_policy(estimator: Estimator) -> None:
    """On paths of another policy an objective gradient is biased; the log-variance refuses such
    paths with random starts.
    """
    instance = INSTANCES[0]
    problem, policy = instance.problem(instance.beta()), _perturbed(instance)
    other = AffinePolicy(policy.gain.detach() - 0.5, policy.offset.detach() + 0.5)
    path = _paths(problem, other, 6)
    labels = estimator.label(problem, policy, path)
    samples = torch.cat(
        [_per_path(estimator, problem, policy, labels, k) for k in range(problem.steps)], 1
    )
    off = (samples.mean(0) - _minus_gradient(problem, policy)).abs() / (samples.std(0) / PATHS**0.5)
    CLAIM.breaks(
        float(off.max()),
        STDERRS,
        {"estimator": name(estimator), "instance": instance.describe()},
        "paths of the policy",
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


def _per_path(
    estimator: Estimator, problem: ControlProblem, policy: AffinePolicy, labels: Labels, k: int
) -> Tensor:
    """Gradient of each path's loss of step ``k`` in gain and offset of that step, shape (paths, m n
    + m).

    Through the control: the loss depends on the parameters of step k through ``v = K x + o`` alone.
    """
    x, control = labels.states[k], policy(k, labels.states[k]).detach().requires_grad_(True)
    loss = estimator.loss(problem, _Given(control), k, labels.step(k)).sum()
    (slope,) = torch.autograd.grad(loss, control)
    return torch.cat([(slope.unsqueeze(2) * x.unsqueeze(1)).flatten(1), slope], 1)


class _Given(Policy):
    """Controls given per sample."""

    def __init__(self, control: Tensor):
        self.control = control

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return self.control


def _beta(estimator: Estimator, instance: QuadraticInstance) -> Tensor:
    """The instance's KL weights, or the largest of them for all steps."""
    beta = torch.as_tensor(instance.beta(), dtype=torch.float64)
    return beta.max().expand_as(beta) if estimator in ONE_BETA else beta


def _minus_gradient(problem: ControlProblem, policy: AffinePolicy) -> Tensor:
    """``-grad J`` in the order of `_per_path`, step by step."""
    exact = affine_gradient(problem, policy)
    return -torch.cat(
        [
            torch.cat([gain.flatten(), offset])
            for gain, offset in zip(exact.gain, exact.offset, strict=True)
        ]
    )


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
