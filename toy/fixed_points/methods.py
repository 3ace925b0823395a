r"""The methods, each with the equation that it is predicted to solve.

What is written here was written before a method was run on samples. Strengths are set so that the
KL weight that a method leaves at the pre-trained model is the problem's own, in the mean over the
steps where it depends on the step; where it moves along training, the equation moves with it. A
prediction is refuted by a mean reward, a mean or a variance of the samples that is off by more than
4 standard errors.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float

from socft.costates.regression import StepwiseRegression
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.flow import vgg_flow as vgg
from socft.estimators.flow.awm import AWM
from socft.estimators.flow.dance_grpo import DanceGRPO
from socft.estimators.flow.deterministic_adjoint import DeterministicAdjointMatching
from socft.estimators.flow.diffusion_nft import DiffusionNFT
from socft.estimators.flow.efficient_adjoint import EfficientAdjointMatching
from socft.estimators.flow.elbo_ratio import ELBORatio
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.estimators.flow.grpo import COMPARED, KLTerm
from socft.estimators.flow.grpo_guard import GRPOGuard
from socft.estimators.flow.look_ahead import (
    CostateSampler,
    FittedCorrection,
    LookAheadCostate,
    LookAheadResidual,
    signal_share,
    squared_signal,
)
from socft.estimators.flow.nabla_db import ResidualNablaDB, reverse_costates
from socft.estimators.flow.ram import RAM
from socft.estimators.flow.vgg_flow import VGGFlow
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.score_function import ScoreFunction
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.path import Path
from socft.path_measure import work_functional
from socft.reference import States
from socft.regression.functions import LinearRegression
from socft.study.vocabulary.methods import MethodName
from toy.fixed_points.equations import (
    Coefficients,
    EndpointCovariance,
    Equation,
    ImpliedCostates,
    LeanCostates,
    LookAhead,
    ReturnsToGo,
    TiltedScore,
    Weights,
)
from toy.fixed_points.line import LineChain
from toy.fixed_points.problems import Targets
from toy.fixed_points.without_noise import LookAheadWithoutNoise, WithoutNoise, best_control

UNCLIPPED = 1e9
"""A clip that never binds; ratios are one wherever a gradient is taken."""
FLOOR = 1e-4
"""Of the spread by which rewards are divided."""
FIT_PATHS, FIT_RIDGE = 1000, 1e-2
"""Of corrections, which are fitted anew for every batch; the penalty counts as a hundredth of the
paths that a node has in the mean.
"""
PerStep = Float[torch.Tensor, " steps"]


@dataclasses.dataclass(frozen=True)
class PredictedMethod:
    """A method, set to a strength.

    Attributes:
        make: the estimator, with random numbers of its own.
        equation: that it is predicted to solve; None where it is predicted to have no fixed point.
        unit: curvature of its divergence in the control, by step, on a batch of paths.
        noisy: whether its samples are made with noise.
        damping: of the sweeps that solve the equation.
        start: where they begin, of an equation with several solutions; the pre-trained model where
            left out.
        patience: by how much longer it is run, where the reward travels one step per iteration.
    """

    make: Callable[[Targets, torch.Generator], Estimator]
    equation: Callable[[Targets], Equation | None]
    unit: Callable[[Targets, Path], PerStep]
    noisy: bool = True
    damping: float = 1.0
    start: Callable[[Targets], Coefficients] | None = None
    patience: int = 1

    def line(self, targets: Targets) -> LineChain:
        """The grid on which its equation is solved: finer without noise, where points are paths,
        which nothing smooths.
        """
        return targets.line if self.noisy else targets.paths


def beta(targets: Targets, path: Path) -> PerStep:
    """The problem's KL weights, the curvature of a matching loss."""
    return targets.line.problem.beta


def over_spread(targets: Targets, path: Path) -> PerStep:
    """The same over the spread of the rewards, of methods that divide by it."""
    return targets.line.problem.beta / targets.spread


def over_spread_of_returns(targets: Targets, path: Path) -> PerStep:
    """The same over the spread of rewards less the divergence, which falls towards the optimum,
    where they vary by O(dt) alone: a Newton step of the pre-trained model would overshoot there.
    """
    problem = targets.line.problem
    return problem.beta / work_functional(problem, path.controls, path).std(correction=0)


def durations(targets: Targets) -> PerStep:
    """``|dt_k|``."""
    return -targets.line.durations


def velocity_curvature(targets: Targets, path: Path) -> PerStep:
    """That of ``|u - u_0|^2`` in the control."""
    x = torch.zeros(1, 1, dtype=torch.float64)
    reference = targets.line.reference
    units = [reference.velocity_unit(k, x).reshape(()) for k in range(reference.steps)]
    return 2 * torch.stack(units).square()


def score_curvature(targets: Targets, path: Path) -> PerStep:
    """That of the squared score of the kernel in the control."""
    return 2 / targets.line.reference.schedule.sigma.square()


def best_without_noise(targets: Targets) -> Coefficients:
    """The optimum without noise, up to the grid of Bellman's equation."""
    return best_control(targets.paths, targets.beta)


def strength(targets: Targets) -> float:
    """lambda of a method that divides rewards by their spread."""
    return targets.beta / (targets.spread + FLOOR)


def grpo_strength(targets: Targets) -> float:
    """lambda of Flow-GRPO, whose KL has the durations as weights."""
    return strength(targets) / float(durations(targets).mean())


def guard_strength(targets: Targets) -> float:
    """lambda of GRPO-Guard, whose rewards have standard deviations as weights."""
    return strength(targets) / float(_guard_weights(targets).mean())


def data_score(targets: Targets) -> Callable[[States], States]:
    """Score of the data at the last level."""
    last = targets.line.reference.schedule.levels
    signal, noise = last.signal[-1], last.noise[-1]

    def score(x: States) -> States:
        return -targets.law.posterior_means(signal, noise, x)[1] / noise

    return score


def _fitted(
    targets: Targets,
    look_ahead: LookAheadCostate,
    costates: CostateSampler,
    generator: torch.Generator,
) -> FittedCorrection:
    """What the look-ahead lacks, in the class of the controls."""
    regression = StepwiseRegression(LinearRegression(targets.line.hats, FIT_RIDGE))
    residual = LookAheadResidual(regression, look_ahead)
    return FittedCorrection(residual, costates, FIT_PATHS, generator)


def _guard_weights(targets: Targets) -> PerStep:
    return durations(targets) / targets.line.reference.schedule.sigma


def _normalised(lam: float, weights: PerStep) -> Weights:
    return Weights(tuple((lam * weights).tolist()), normalised=True, floor=FLOOR)


def _level(lam: float, targets: Targets) -> Weights:
    return _normalised(lam, torch.ones(targets.line.problem.steps, dtype=torch.float64))


PREDICTED_METHODS: Mapping[MethodName, PredictedMethod] = {
    MethodName.FULL_ADJOINT: PredictedMethod(
        lambda targets, generator: FullAdjoint(), lambda targets: ReturnsToGo(), beta
    ),
    MethodName.ADJOINT_MATCHING: PredictedMethod(
        lambda targets, generator: AdjointMatching(), lambda targets: LeanCostates(), beta
    ),
    MethodName.FULL_STICKING_THE_LANDING: PredictedMethod(
        lambda targets, generator: FullStickingTheLanding(), lambda targets: ReturnsToGo(), beta
    ),
    MethodName.LEAN_STICKING_THE_LANDING: PredictedMethod(
        lambda targets, generator: LeanStickingTheLanding(), lambda targets: LeanCostates(), beta
    ),
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT: PredictedMethod(
        lambda targets, generator: ScoreFunction(LeaveOneOut()),
        lambda targets: ReturnsToGo(),
        beta,
    ),
    MethodName.DDPO_KL_IN_THE_REWARD: PredictedMethod(
        lambda targets, generator: DDPO(clip=UNCLIPPED, kl_in_reward=True),
        lambda targets: ReturnsToGo(),
        over_spread_of_returns,
    ),
    MethodName.EFFICIENT_ADJOINT_MATCHING: PredictedMethod(
        lambda targets, generator: EfficientAdjointMatching(generator, data_score(targets)),
        lambda targets: TiltedScore(data_score(targets)),
        beta,
        damping=0.5,
    ),
    MethodName.DETERMINISTIC_ADJOINT_MATCHING: PredictedMethod(
        lambda targets, generator: DeterministicAdjointMatching(lam=targets.beta),
        lambda targets: WithoutNoise(lam=targets.beta),
        velocity_curvature,
        noisy=False,
        damping=0.2,
        start=best_without_noise,
    ),
    MethodName.VGG_FLOW: PredictedMethod(
        lambda targets, generator: VGGFlow(
            targets.beta,
            _fitted(targets, vgg.PUBLISHED, vgg.consistent_costates, generator),
        ),
        lambda targets: WithoutNoise(lam=targets.beta, own=True),
        velocity_curvature,
        noisy=False,
        damping=0.2,
        start=best_without_noise,
    ),
    MethodName.VGG_FLOW_LOOK_AHEAD_ALONE: PredictedMethod(
        lambda targets, generator: VGGFlow(targets.beta),
        lambda targets: LookAheadWithoutNoise(lam=targets.beta, weight=squared_signal, limit=1.0),
        velocity_curvature,
        noisy=False,
        damping=0.5,
    ),
    MethodName.RESIDUAL_NABLA_DB: PredictedMethod(
        lambda targets, generator: ResidualNablaDB(
            _fitted(targets, LookAheadCostate(), reverse_costates, generator)
        ),
        lambda targets: ImpliedCostates(),
        score_curvature,
        patience=2,
    ),
    MethodName.RESIDUAL_NABLA_DB_SIMPLE: PredictedMethod(
        lambda targets, generator: ResidualNablaDB(),
        lambda targets: LookAhead(weight=signal_share),
        score_curvature,
    ),
    MethodName.DPOK_LEAVE_ONE_OUT: PredictedMethod(
        lambda targets, generator: DPOK(LeaveOneOut(), clip=None),
        lambda targets: ReturnsToGo(kl=False),
        beta,
    ),
    MethodName.FLOW_GRPO: PredictedMethod(
        lambda targets, generator: FlowGRPO(clip=UNCLIPPED, kl=KLTerm(grpo_strength(targets))),
        lambda targets: ReturnsToGo(
            kl=False, weights=_normalised(grpo_strength(targets), durations(targets))
        ),
        lambda targets, path: grpo_strength(targets) * durations(targets),
    ),
    MethodName.GRPO_GUARD: PredictedMethod(
        lambda targets, generator: GRPOGuard(
            clip=UNCLIPPED, kl=KLTerm(guard_strength(targets)), divided_by_dt=False
        ),
        lambda targets: ReturnsToGo(
            kl=False, weights=_normalised(guard_strength(targets), _guard_weights(targets))
        ),
        lambda targets, path: guard_strength(targets) * durations(targets),
    ),
    MethodName.RAM: PredictedMethod(
        lambda targets, generator: RAM(generator),
        lambda targets: EndpointCovariance(baseline=0.0),
        velocity_curvature,
        damping=0.5,
    ),
    MethodName.RAM_GROUP_MEAN: PredictedMethod(
        lambda targets, generator: RAM(generator, advantages=COMPARED),
        lambda targets: EndpointCovariance(),
        velocity_curvature,
        damping=0.5,
    ),
    MethodName.AWM: PredictedMethod(
        lambda targets, generator: AWM(generator, clip=UNCLIPPED, lam=strength(targets), gain=1.0),
        lambda targets: EndpointCovariance(weights=_level(strength(targets), targets)),
        lambda targets, path: strength(targets) * velocity_curvature(targets, path),
        damping=0.5,
    ),
    MethodName.DIFFUSION_NFT_VELOCITY: PredictedMethod(
        lambda targets, generator: DiffusionNFT(generator, lam=strength(targets), normalised=False),
        lambda targets: EndpointCovariance(weights=_level(strength(targets), targets)),
        lambda targets, path: strength(targets) * velocity_curvature(targets, path),
        damping=0.5,
    ),
    MethodName.ELBO_RATIO: PredictedMethod(
        lambda targets, generator: ELBORatio(generator, clip=UNCLIPPED, lam=strength(targets)),
        lambda targets: EndpointCovariance(weights=_level(strength(targets), targets)),
        lambda targets, path: torch.full_like(beta(targets, path), strength(targets)),
        damping=0.5,
    ),
    MethodName.DDPO: PredictedMethod(
        lambda targets, generator: DDPO(clip=UNCLIPPED), lambda targets: None, over_spread
    ),
    MethodName.DANCE_GRPO: PredictedMethod(
        lambda targets, generator: DanceGRPO(clip=UNCLIPPED), lambda targets: None, over_spread
    ),
}
