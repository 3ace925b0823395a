"""What is measured of a policy in training: its curve, and the noise and bias of the gradient."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import torch

from socft.checks import InvalidProblem
from socft.costates.fields import CostateSource
from socft.estimators.base import CostateEstimator, Estimator
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.study.repetitions import MeanOverRepetitions, means
from socft.study.vocabulary.metrics import Metric
from toy.measure import estimate, peak_memory
from toy.training.methods import TrainingMethod, TrainingPlan, train_policy
from toy.training.problems import TrainingProblem

NOISE_SEED = 1000
BIAS, BIAS_NOISE = "squared bias", "noise of the mean"


def target_noise(
    estimator: CostateEstimator,
    mean: CostateSource,
    problem: ControlProblem,
    policy: Policy,
    path: Path,
) -> float:
    """``E |target - E[target | x]|^2 / E |E[target | x]|^2`` over all steps, where the conditional
    mean of costates is affine.
    """
    diffusion, field, apart, size = (
        problem.reference.diffusion,
        mean.field(problem, policy),
        0.0,
        0.0,
    )
    with torch.no_grad():
        targets = estimator.label(problem, policy, path).targets
        for k, x in enumerate(path.states[:-1]):
            centre = path.states[k + 1] - diffusion.apply(k, x, path.noise.steps[k])
            expected = diffusion.transpose(k, x, field(k + 1, centre)) / problem.beta[k]
            apart += float((targets[k] - expected).square().sum())
            size += float(expected.square().sum())
    return apart / size


def noise_measures(
    method: TrainingMethod,
    estimator: Estimator,
    training: TrainingProblem,
    policy: Policy,
    unit: float,
    paths: int,
    seed: int,
) -> dict[str, float]:
    """Norm, bias and noise of the gradient estimate, relative to ``unit``, and the noise of its
    targets.

    `BIAS` is the square of the bias, without its noise, and may be negative; `BIAS_NOISE` is that
    noise.
    """
    noise = Noise.sample(
        training.problem.reference, paths, torch.Generator().manual_seed(NOISE_SEED + seed)
    )
    found = estimate(estimator, training.problem, policy, noise, training.features)
    norm = found.bias(torch.zeros_like(found.mean))[0]
    measures: dict[str, float] = {
        Metric.GRADIENT_NORM: norm / unit,
        Metric.GRADIENT_NOISE: found.variance / unit**2,
        Metric.RELATIVE_NOISE: found.variance / norm**2 if norm > 0 else math.inf,
    }
    exact = training.gradient(policy)
    if exact is not None:
        noise_of_mean = found.variance / found.paths
        measures[BIAS] = (float((found.mean - exact).square().sum()) - noise_of_mean) / unit**2
        measures[BIAS_NOISE] = noise_of_mean / unit**2
    if (
        method.mean is not None
        and isinstance(policy, AffinePolicy)
        and isinstance(estimator, CostateEstimator)
    ):
        with torch.no_grad():
            path = rollout(training.problem.reference, policy, noise)
        measures[Metric.TARGET_NOISE] = target_noise(
            estimator, method.mean(), training.problem, policy, path
        )
    return measures


def gradient_scale(training: TrainingProblem, paths: int) -> float:
    """Norm of the gradient at the pre-trained model, by the full adjoint."""
    noise = Noise.sample(
        training.problem.reference, 4 * paths, torch.Generator().manual_seed(NOISE_SEED)
    )
    found = estimate(FullAdjoint(), training.problem, training.policy(), noise, training.features)
    return found.bias(torch.zeros_like(found.mean))[0]


def final_gap(
    training: TrainingProblem, method: TrainingMethod, plan: TrainingPlan, seed: int
) -> float:
    """The objective gap after training; infinite where it diverged."""
    policy = training.policy()
    try:
        for _ in train_policy(training.problem, policy, method.make(training.problem), plan, seed):
            pass
        gap = training.progress(policy)[Metric.OBJECTIVE_GAP]
    except InvalidProblem:
        return math.inf
    return gap if math.isfinite(gap) else math.inf


@dataclasses.dataclass(frozen=True)
class CurvePoint:
    """What is seen at a moment of a training.

    Attributes:
        measures: by metric.
        seconds: spent training so far.
    """

    measures: Mapping[str, float] | Mapping[Metric, float]
    seconds: float


def curve(
    training: TrainingProblem,
    method: TrainingMethod,
    policy: Policy,
    plan: TrainingPlan,
    seed: int,
    unit: float,
    noise_paths: int,
) -> Iterator[CurvePoint]:
    """Train the policy in place and yield every checkpoint; NaN, and an infinite gap, from a
    divergence on.
    """
    estimator, left = method.make(training.problem), len(plan.checkpoints)
    try:
        for iteration in train_policy(training.problem, policy, estimator, plan, seed):
            found = training.progress(policy) | noise_measures(
                method, estimator, training, policy, unit, noise_paths, seed
            )
            left -= 1
            yield CurvePoint(found, iteration.seconds)
    except InvalidProblem:
        for _ in range(left):
            yield CurvePoint(
                dict.fromkeys(training.optimum, math.nan) | {Metric.OBJECTIVE_GAP: math.inf},
                math.nan,
            )


def label_memory(
    problem: ControlProblem, policy: Policy, estimator: Estimator, batch: int
) -> float:
    """`peak_memory` of a batch of paths, in MB."""
    noise = Noise.sample(problem.reference, batch, torch.Generator().manual_seed(NOISE_SEED))
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
    return peak_memory(estimator, problem, policy, path)


def over_repetitions(measures: Sequence[Mapping[str, float]]) -> list[MeanOverRepetitions]:
    """Every metric of the first repetition, NaN where another one diverged, and the bias with the
    noise it has to stand out from.
    """
    metrics = [Metric(name) for name in measures[0] if name not in (BIAS, BIAS_NOISE)]
    found = means([{name: row.get(name, math.nan) for name in metrics} for row in measures])
    if BIAS not in measures[0]:
        return found
    count = len(measures)
    squared, noise = (
        sum(row.get(name, math.nan) for row in measures) / count for name in (BIAS, BIAS_NOISE)
    )
    bias = math.nan if math.isnan(squared) else max(squared, 0.0) ** 0.5
    return [*found, MeanOverRepetitions(Metric.GRADIENT_BIAS, bias, (noise / count) ** 0.5)]


def end_gaps(
    training: TrainingProblem, policies: Sequence[Policy], mean_gap: float
) -> dict[Metric, float]:
    """What falls short because the policies are wrong on average, and because they scatter; the sum
    is what they fall short by.
    """
    mean = training.policy()
    with torch.no_grad():
        for kept, *found in zip(
            mean.parameters(), *(each.parameters() for each in policies), strict=True
        ):
            kept.copy_(torch.stack(found).mean(0))
    centre = training.progress(mean)[Metric.OBJECTIVE_GAP]
    noise = (mean_gap - centre) * len(policies) / (len(policies) - 1)
    return {
        Metric.BIAS_GAP: mean_gap - noise - training.gaps[Metric.CLASS_GAP],
        Metric.NOISE_GAP: noise,
    }
