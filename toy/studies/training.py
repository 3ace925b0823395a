r"""Optimisation curves of gradient estimators at an equal budget of network evaluations.

Every method trains the same policy class with Adam and a cosine-decayed rate, the rate chosen from
a small grid by the final objective of a pilot run; an estimator with a dearer gradient takes fewer
steps. At `CHECKPOINTS` moments of the budget it is asked

* ``objective_gap``: exact optimum minus objective, exact; ``reward`` and ``kl``; where known,
  ``objective_gradient``, the norm of the objective's own gradient;
* ``wasserstein1`` in one dimension, ``wasserstein2`` of Gaussian laws, and ``mmd`` (the root of the
  squared discrepancy), exact, from the law of X_T to the tilt of the pre-trained law; their
  ``optimum`` is that of the optimal chain, which moves means only;
* ``gradient_norm``: norm of the mean of the estimate; ``gradient_noise``: trace of the covariance
  of the estimate from one path, relative to the squared norm of the exact or full-adjoint gradient
  of the pre-trained model; ``relative_noise``: that trace over the squared norm of the mean of the
  same moment;
* ``gradient_bias`` (linear-quadratic): distance of the mean of the estimate from the exact gradient
  of the objective, without its noise, relative to the norm of that gradient at the pre-trained
  model; of a fixed-point residual, its distance from the gradient. It is the root of the mean
  square over the repetitions, each with paths of its own, and its ``stderr`` is their noise;
* ``target_noise`` (affine policies): mean-square distance of the targets from their conditional
  mean given the state, relative to that mean; zero to rounding for a martingale correction by the
  conditional mean itself (derived here).

What a trained policy falls short of the tilt by, in objective, is a sum of exact parts. Four do not
depend on the estimator (see `gaps`): ``memory_gap``, ``discretisation_gap``, ``kernel_gap``,
``class_gap``. Two, at the end of training, do: ``bias_gap``, what the mean of the policies of all
repetitions falls short of the best in its class by, from bias and from stopping early; and
``noise_gap``, by how much better that mean is than the policies are on average. The mean of n
policies keeps an n-th of their noise, which for an objective that is quadratic around them is
counted as noise here.

``seconds`` is the time spent training so far, ``peak_mb`` the memory that labels of a batch take
beyond path and labels.

With the policy's own costate as the field of the correction the noise vanishes as the policy
converges, without the correction it tends to that of the optimum.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.base import Cost
from socft.costates.fields import FREE, CostateField, CostateSource
from socft.estimators.base import CostateEstimator, Estimator
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.context import EstimatorContext
from socft.estimators.full_adjoint import FullAdjoint
from socft.metrics import gaussian_mmd, wasserstein1
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, FeaturePolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import States
from socft.regression.features import RadialBasis
from socft.schedule import ddpm, linear_levels, subsample
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.train import Iteration, fit
from socft.truth.affine_policy import affine_gradient, evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic, wasserstein
from socft.truth.quadratic import QuadraticValue, affine_of, diffusion_apply, running_of
from socft.truth.quadrature import Quadrature, chain_law
from socft.truth.tilt import tilt_gap, tilted_law
from toy.measure import affine_features, estimate, peak_memory
from toy.problems import Benchmark, benchmark

BATCH = 64
CHECKPOINTS, QUICK_CHECKPOINTS = 11, 3
SEEDS, QUICK_SEEDS = 3, 1
RATES, QUICK_RATES = (0.003, 0.01, 0.03, 0.1), (0.05,)
BUDGET_STEPS: Mapping[str, int] = {ProblemName.LQ_FINE_TUNING: 120, ProblemName.MIXTURE: 80}
QUICK_BUDGET_STEPS = 12
"""Gradient steps that the budget allows an estimator with one derivative of the reference per step,
as adjoint matching has.
"""
NOISE_PATHS, QUICK_NOISE_PATHS = 256, 64
NOISE_SEED = 1000
STEPS = 25
BIAS, BIAS_NOISE = "squared bias", "noise of the mean"


class OwnCostate(CostateSource, abc.ABC):
    """An exact field of an affine policy in a linear-quadratic problem, solved again whenever the
    policy has changed.
    """

    def __init__(self) -> None:
        self._seen: tuple[Any, ...] | None = None
        self._field: CostateField | None = None

    @property
    def cost(self) -> Cost:
        return FREE

    @abc.abstractmethod
    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        """A quadratic function whose gradient is the field."""

    def field(self, problem: ControlProblem, policy: Policy) -> CostateField:
        if not isinstance(policy, AffinePolicy):
            raise InvalidProblem(
                f"the policy is a {type(policy).__name__}; only the costate of an AffinePolicy is"
                " known in closed form.",
            )
        parts = (problem, policy, policy.gain, policy.offset)
        seen = (*parts, policy.gain._version, policy.offset._version)
        if (
            self._field is None
            or self._seen is None
            or not all(a is b or _same(a, b) for a, b in zip(seen, self._seen, strict=True))
        ):
            self._seen, self._field = seen, self.solve(problem, policy).gradient
        return self._field


class OwnValue(OwnCostate):
    """``grad V_k`` of the policy: the conditional mean of full adjoints."""

    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        return evaluate_affine(problem, policy).value


class OwnLean(OwnCostate):
    r"""The conditional mean of lean adjoints on the policy's paths, :math:`L_k x + l_k` with a
    matrix that is not symmetric: :math:`L_k = A_k^\top L_{k+1} \bar A_k - F_k`,
    :math:`l_k = A_k^\top (L_{k+1} \bar b_k + l_{k+1}) - h_k` (derived here).
    """

    @torch.no_grad()
    def solve(self, problem: ControlProblem, policy: AffinePolicy) -> QuadraticValue:
        reference, (F, h), steps = affine_of(problem), running_of(problem), problem.steps
        closed = reference.transition + diffusion_apply(reference.diffusion, policy.gain)
        moved = reference.offset + diffusion_apply(
            reference.diffusion, policy.offset.unsqueeze(2)
        ).squeeze(2)
        end = torch.zeros(1, *reference.dims, dtype=torch.float64)
        slope = problem.reward.gradient(end)[0]
        eye = torch.eye(*reference.dims, dtype=torch.float64)
        L, q = [(problem.reward.gradient(eye) - slope).mT], [slope]
        for k in reversed(range(steps)):
            A = reference.transition[k]
            q.append(A.mT @ (L[-1] @ moved[k] + q[-1]) - h[k])
            L.append(A.mT @ L[-1] @ closed[k] - (0 if F is None else F[k]))
        return QuadraticValue(
            torch.stack(L[::-1]), torch.stack(q[::-1]), torch.zeros(steps + 1, dtype=torch.float64)
        )


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a == b


@dataclasses.dataclass(frozen=True)
class TrainingMethod:
    """An estimator of the catalogue in training.

    Attributes:
        name: in the catalogue.
        mean: makes the source of the conditional mean of its costates, where the policy is affine.
        arenas: names of the problems it is measured on; all where left out.
    """

    name: str
    mean: Callable[[], OwnCostate] | None = None
    arenas: tuple[str, ...] = ()

    def make(self, problem: ControlProblem) -> Estimator:
        """The estimator, for every policy of a problem."""
        context = EstimatorContext(
            problem, Uncontrolled(problem.reference), value_gradient=OwnValue(), lean_mean=OwnLean()
        )
        return CATALOGUE[self.name].make(context)

    def evaluations(self, problem: ControlProblem) -> int:
        """Network evaluations of one path."""
        return CATALOGUE[self.name].evaluations(self.make(problem), problem.steps)


LINE, QUADRATIC = (ProblemName.MIXTURE,), (ProblemName.LQ_FINE_TUNING,)
METHODS: dict[str, TrainingMethod] = {
    method.name: method
    for method in (
        TrainingMethod("full adjoint", OwnValue),
        TrainingMethod("adjoint matching", OwnLean),
        TrainingMethod("adjoint matching, published index", arenas=QUADRATIC),
        TrainingMethod("martingale, policy's costate", OwnLean),
        TrainingMethod("martingale, policy's costate, cheap", OwnLean),
        TrainingMethod("martingale, policy's costate, cheap, exact mean", OwnLean, LINE),
        TrainingMethod("full martingale, policy's costate", OwnValue, QUADRATIC),
        TrainingMethod("martingale, exact lean costate", OwnLean, QUADRATIC),
        TrainingMethod("full martingale, exact costate", OwnValue, QUADRATIC),
        TrainingMethod("truncated backpropagation, last fifth"),
        TrainingMethod("score function, leave-one-out"),
        TrainingMethod("log-variance"),
        TrainingMethod("DDPO", arenas=QUADRATIC),
        TrainingMethod("DDPO, KL in the reward", arenas=QUADRATIC),
        TrainingMethod("DPOK, no baseline", arenas=QUADRATIC),
    )
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        rate: first learning rate of Adam; it decays to zero along a cosine.
        iterations: gradient steps.
        checkpoints: iterations at which to stop and look, increasing; 0 is the pre-trained model.
        batch: paths per gradient.
    """

    rate: float
    iterations: int
    checkpoints: tuple[int, ...]
    batch: int = BATCH


def evenly(iterations: int, count: int) -> tuple[int, ...]:
    """``count`` iterations from 0 to the last."""
    return tuple(sorted({round(i * iterations / (count - 1)) for i in range(count)}))


def descend(
    problem: ControlProblem,
    policy: Policy,
    estimator: Estimator,
    plan: Plan,
    seed: int,
    extra: Sequence[dict] = (),
) -> Iterator[Iteration]:
    """Train in place and yield at the checkpoints; ``extra`` are further parameter groups of the
    optimiser.

    Raises:
        InvalidProblem: a gradient is not finite.
    """
    optimiser = torch.optim.Adam([{"params": list(policy.parameters())}, *extra], lr=plan.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.iterations)
    generator = torch.Generator().manual_seed(seed)
    made = fit(
        problem, policy, estimator, optimiser, generator, plan.batch, plan.iterations, schedule
    )
    return (iteration for iteration in made if iteration.index in plan.checkpoints)


class Arena(abc.ABC):
    """A problem with an exact optimum and a policy class whose objective is exact.

    Attributes:
        name: of the problem.
        settings: what completes the name.
        problem: the control problem.
        optimum: what `progress` says of the optimal policy.
        gaps: what no estimator can help, see `gaps`.
    """

    name: str
    settings: Mapping[str, Any]
    problem: ControlProblem
    optimum: dict[str, float]
    gaps: dict[str, float]

    @abc.abstractmethod
    def policy(self) -> Policy:
        """The pre-trained model in the policy class."""

    @abc.abstractmethod
    def features(self, x: States) -> Float[Tensor, "batch features"]:
        """The features in whose coefficients the policy is linear at every step."""

    @abc.abstractmethod
    def progress(self, policy: Policy) -> dict[str, float]:
        """Exact measures of a policy, ``objective_gap`` among them."""

    @abc.abstractmethod
    def gradient(self, policy: Policy) -> Tensor | None:
        """The exact gradient in the coefficients of the features, step by step; None where it is
        not known.
        """


def gaps(found: Benchmark, kernel: float, memory: float, in_class: float) -> dict[str, float]:
    r"""What the optimal objective, relaxed more and more, gains: parts of an error that are no
    estimator's.

    ``class_gap``: the best policy of the class (its projection, which is an upper bound) is allowed
    to be any; ``kernel_gap``: kernels may change covariances; ``discretisation_gap``: time becomes
    continuous, which can cost something; ``memory_gap``: the start may be chosen. With all of them
    the law of X_T is the tilt (see `socft.truth.tilt`).
    """
    chain = found.truth.objective + kernel
    return {
        Metric.CLASS_GAP: in_class,
        Metric.KERNEL_GAP: kernel,
        Metric.DISCRETISATION_GAP: found.continuous.objective - chain,
        Metric.MEMORY_GAP: memory,
    }


class GaussianArena(Arena):
    """``lq-fine-tuning`` with affine policies: everything in closed form but the kernel
    discrepancy.
    """

    def __init__(self, d: int, steps: int):
        found = benchmark(
            ProblemName.LQ_FINE_TUNING, d=d, schedule=ddpm(subsample(linear_levels(1000), steps))
        )
        assert isinstance(found.truth, LinearQuadratic)
        self.name, self.settings, self.problem, self.truth = (
            found.name,
            found.settings,
            found.problem,
            found.truth,
        )
        self._tilt = self.truth.tilt()
        self._width = math.sqrt(
            2 * float(self._tilt.spectra.sum())
        )  # the root of the mean square distance of two samples
        self.optimum = self.progress(self.truth.affine_policy)
        self.gaps = gaps(found, float(self.truth.kernel_gap().sum()), self.truth.memory_gap(), 0.0)

    def policy(self) -> AffinePolicy:
        return AffinePolicy.zeros(self.problem.reference)

    def features(self, x: States) -> Tensor:
        return affine_features(x)

    def progress(self, policy: Policy) -> dict[str, float]:
        assert isinstance(policy, AffinePolicy)
        found, slope = evaluate_affine(self.problem, policy), affine_gradient(self.problem, policy)
        return {
            Metric.OBJECTIVE_GAP: self.truth.objective - found.objective,
            Metric.OBJECTIVE_GRADIENT: math.hypot(
                float(slope.gain.norm()), float(slope.offset.norm())
            ),
            Metric.REWARD: found.reward,
            Metric.KL: float(found.kl.sum()),
            Metric.WASSERSTEIN2: wasserstein(found.final_law, self._tilt),
            Metric.MMD: max(gaussian_mmd(found.final_law, self._tilt, self._width), 0.0) ** 0.5,
        }

    def gradient(self, policy: Policy) -> Tensor:
        assert isinstance(policy, AffinePolicy)
        exact = affine_gradient(self.problem, policy)
        return torch.cat([exact.gain, exact.offset.unsqueeze(2)], 2).flatten()


class MixtureArena(Arena):
    """``mixture`` in one dimension with radial features: laws and objectives by quadrature."""

    CENTRES, EDGE, WIDTH = 13, 3.0, 0.5

    def __init__(self, steps: int):
        found = benchmark(ProblemName.MIXTURE, d=1, steps=steps)
        assert isinstance(found.truth, Quadrature)
        self.name, self.settings, self.problem, self.truth = (
            found.name,
            found.settings,
            found.problem,
            found.truth,
        )
        centres = torch.linspace(-self.EDGE, self.EDGE, self.CENTRES, dtype=torch.float64)[:, None]
        self._basis = RadialBasis(centres, self.WIDTH)
        self._tilt = tilted_law(self.truth)
        x = self.truth.grids[-1].nodes
        mean = float(self._tilt @ x[:, 0])
        self._width = float(self._tilt @ (x[:, 0] - mean).square()) ** 0.5
        self._kernel = torch.exp(-((x - x.T) / self._width).square() / 2)
        self.optimum = self.progress(self.truth.policy)
        apart = tilt_gap(self.truth)
        self.gaps = gaps(
            found,
            apart.kernel,
            apart.memory,
            self.progress(self._projection())[Metric.OBJECTIVE_GAP],
        )

    def _projection(self) -> FeaturePolicy:
        """The optimal control's projection on the features under the law of the optimum: nearly the
        best policy of the class.
        """
        policy, law = self.policy(), self.truth.law
        with torch.no_grad():
            for k, mass in enumerate(law.masses[:-1]):
                nodes, root = self.truth.grids[k].nodes, mass.clamp(min=0).sqrt()[:, None]
                known = root * self._basis(nodes)
                policy.weight[k] = torch.linalg.lstsq(
                    known, root * self.truth.policy(k, nodes), driver="gelsd"
                ).solution.mT
        return policy

    def policy(self) -> FeaturePolicy:
        return FeaturePolicy(
            self._basis, torch.zeros(self.problem.steps, 1, self.CENTRES + 2, dtype=torch.float64)
        )

    def features(self, x: States) -> Tensor:
        return self._basis(x)

    def progress(self, policy: Policy) -> dict[str, float]:
        grids = self.truth.grids
        with torch.no_grad():
            found = self.truth.evaluate(policy)
            last = chain_law(self.problem, policy, grids).masses[-1]
        apart, nodes = last - self._tilt, grids[-1].nodes[:, 0]
        return {
            Metric.OBJECTIVE_GAP: self.truth.objective - found.objective,
            Metric.REWARD: found.reward,
            Metric.KL: float(found.kl.sum()),
            Metric.WASSERSTEIN1: wasserstein1(nodes, nodes, last, self._tilt),
            Metric.MMD: max(float(apart @ self._kernel @ apart), 0.0) ** 0.5,
        }

    def gradient(self, policy: Policy) -> None:
        return None


ARENAS: dict[str, Callable[[], Arena]] = {
    ProblemName.LQ_FINE_TUNING: lambda: GaussianArena(4, STEPS),
    ProblemName.MIXTURE: lambda: MixtureArena(STEPS),
}


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
    arena: Arena,
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
        arena.problem.reference, paths, torch.Generator().manual_seed(NOISE_SEED + seed)
    )
    found = estimate(estimator, arena.problem, policy, noise, arena.features)
    norm = found.bias(torch.zeros_like(found.mean))[0]
    measures: dict[str, float] = {
        Metric.GRADIENT_NORM: norm / unit,
        Metric.GRADIENT_NOISE: found.variance / unit**2,
        Metric.RELATIVE_NOISE: found.variance / norm**2 if norm > 0 else math.inf,
    }
    exact = arena.gradient(policy)
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
            path = rollout(arena.problem.reference, policy, noise)
        measures[Metric.TARGET_NOISE] = target_noise(
            estimator, method.mean(), arena.problem, policy, path
        )
    return measures


def unit_of(arena: Arena, paths: int) -> float:
    """Norm of the gradient at the pre-trained model, by the full adjoint."""
    noise = Noise.sample(
        arena.problem.reference, 4 * paths, torch.Generator().manual_seed(NOISE_SEED)
    )
    found = estimate(FullAdjoint(), arena.problem, arena.policy(), noise, arena.features)
    return found.bias(torch.zeros_like(found.mean))[0]


def final_gap(arena: Arena, method: TrainingMethod, plan: Plan, seed: int) -> float:
    """The objective gap after training; infinite where it diverged."""
    policy = arena.policy()
    try:
        for _ in descend(arena.problem, policy, method.make(arena.problem), plan, seed):
            pass
        gap = arena.progress(policy)[Metric.OBJECTIVE_GAP]
    except InvalidProblem:
        return math.inf
    return gap if math.isfinite(gap) else math.inf


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What is seen at a moment of a training.

    Attributes:
        measures: by metric.
        seconds: spent training so far.
    """

    measures: dict[str, float]
    seconds: float


def curve(
    arena: Arena,
    method: TrainingMethod,
    policy: Policy,
    plan: Plan,
    seed: int,
    unit: float,
    noise_paths: int,
) -> Iterator[Checkpoint]:
    """Train the policy in place and yield every checkpoint; NaN, and an infinite gap, from a
    divergence on.
    """
    estimator, left = method.make(arena.problem), len(plan.checkpoints)
    try:
        for iteration in descend(arena.problem, policy, estimator, plan, seed):
            found = arena.progress(policy) | noise_measures(
                method, estimator, arena, policy, unit, noise_paths, seed
            )
            left -= 1
            yield Checkpoint(found, iteration.seconds)
    except InvalidProblem:
        for _ in range(left):
            yield Checkpoint(
                dict.fromkeys(arena.optimum, math.nan) | {Metric.OBJECTIVE_GAP: math.inf}, math.nan
            )


def label_memory(
    problem: ControlProblem, policy: Policy, estimator: Estimator, batch: int
) -> float:
    """`peak_memory` of a batch of paths, in MB."""
    noise = Noise.sample(problem.reference, batch, torch.Generator().manual_seed(NOISE_SEED))
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
    return peak_memory(estimator, problem, policy, path)


def training_task(
    method: str,
    arena: str,
    budget_steps: int,
    checkpoints: int,
    rates: Sequence[float],
    noise_paths: int,
    seeds: int,
) -> list[Record]:
    """The curve of one method on one problem at its best rate, over independent repetitions."""
    place, chosen = ARENAS[arena](), METHODS[method]
    estimator, evaluations = chosen.make(place.problem), chosen.evaluations(place.problem)
    budget = budget_steps * METHODS["adjoint matching"].evaluations(place.problem)
    iterations = max(1, budget // evaluations)
    plans = [Plan(rate, iterations, evenly(iterations, checkpoints)) for rate in rates]
    grid = (
        {f"{plan.rate:g}": final_gap(place, chosen, plan, 0) for plan in plans}
        if len(plans) > 1
        else {}
    )
    best = min(plans, key=lambda plan: grid.get(f"{plan.rate:g}", 0.0))
    unit = unit_of(place, noise_paths)
    policies = [place.policy() for _ in range(seeds)]
    curves = [
        list(curve(place, chosen, policy, best, seed, unit, noise_paths))
        for seed, policy in enumerate(policies)
    ]
    peak = label_memory(place.problem, place.policy(), estimator, best.batch)
    common = {"rate": best.rate, "batch": best.batch, "iterations": iterations, **place.settings}
    records = [
        Record(
            schemas.TRAINING.name,
            place.name,
            Metric.PILOT_GAP,
            gap,
            common | {"rate": float(rate)},
            method,
            estimator.estimates,
            optimum=0.0,
        )
        for rate, gap in grid.items()
    ]
    ends = [run[-1].measures[Metric.OBJECTIVE_GAP] for run in curves]
    if seeds > 1 and all(map(math.isfinite, ends)):
        parts = end_gaps(place, policies, sum(ends) / seeds)
        setting = common | {"iteration": iterations}
        records += [
            Record(
                schemas.TRAINING.name,
                place.name,
                metric,
                part,
                setting,
                method,
                estimator.estimates,
                seeds=seeds,
            )
            for metric, part in parts.items()
        ]
    for j, index in enumerate(best.checkpoints):
        seconds = sum(run[j].seconds for run in curves) / seeds
        for metric, value, stderr in over_repetitions([run[j].measures for run in curves]):
            records.append(
                Record(
                    schemas.TRAINING.name,
                    place.name,
                    metric,
                    value,
                    common | {"iteration": index},
                    method,
                    estimator.estimates,
                    stderr=stderr,
                    seeds=seeds,
                    seconds=seconds if math.isfinite(seconds) else None,
                    evaluations=index * best.batch * evaluations,
                    peak_mb=peak,
                    optimum=place.optimum.get(metric),
                )
            )
    return records


def over_repetitions(
    measures: Sequence[Mapping[str, float]],
) -> Iterator[tuple[str, float, float | None]]:
    """Every metric, its mean over repetitions and the standard error of that; the bias with the
    noise it has to stand out from.
    """
    count = len(measures)
    for metric in measures[0]:
        values = torch.tensor(
            [each.get(metric, math.nan) for each in measures], dtype=torch.float64
        )
        mean = float(values.mean())
        if metric == BIAS:
            noise = sum(each.get(BIAS_NOISE, math.nan) for each in measures) / count
            yield (
                Metric.GRADIENT_BIAS,
                math.nan if math.isnan(mean) else max(mean, 0.0) ** 0.5,
                (noise / count) ** 0.5,
            )
        elif metric != BIAS_NOISE:
            yield metric, mean, float(values.std() / count**0.5) if count > 1 else None


def end_gaps(arena: Arena, policies: Sequence[Policy], mean_gap: float) -> dict[str, float]:
    """What falls short because the policies are wrong on average, and because they scatter; the sum
    is what they fall short by.
    """
    mean = arena.policy()
    with torch.no_grad():
        for kept, *found in zip(
            mean.parameters(), *(each.parameters() for each in policies), strict=True
        ):
            kept.copy_(torch.stack(found).mean(0))
    centre = arena.progress(mean)[Metric.OBJECTIVE_GAP]
    noise = (mean_gap - centre) * len(policies) / (len(policies) - 1)
    return {
        Metric.BIAS_GAP: mean_gap - noise - arena.gaps[Metric.CLASS_GAP],
        Metric.NOISE_GAP: noise,
    }


def gaps_task(arena: str) -> list[Record]:
    """The parts of an error that no estimator can help."""
    place = ARENAS[arena]()
    return [
        Record(schemas.TRAINING.name, place.name, metric, gap, dict(place.settings), kind="exact")
        for metric, gap in place.gaps.items()
    ]


def methods_for(arena: str) -> list[str]:
    """Names of the methods that apply."""
    return [name for name, each in METHODS.items() if not each.arenas or arena in each.arenas]


QUICK_METHODS = (
    "adjoint matching",
    "martingale, policy's costate, cheap",
    "score function, leave-one-out",
)


def tasks(quick: bool) -> list[Task]:
    """The gaps of both problems, then every method on them."""
    scale: dict[str, Any] = {
        "checkpoints": QUICK_CHECKPOINTS if quick else CHECKPOINTS,
        "rates": QUICK_RATES if quick else RATES,
        "noise_paths": QUICK_NOISE_PATHS if quick else NOISE_PATHS,
        "seeds": QUICK_SEEDS if quick else SEEDS,
    }
    return [Task(f"{arena}: gaps", gaps_task, {"arena": arena}) for arena in ARENAS] + [
        Task(
            f"{arena}: {method}",
            training_task,
            {
                "method": method,
                "arena": arena,
                "budget_steps": QUICK_BUDGET_STEPS if quick else BUDGET_STEPS[arena],
                **scale,
            },
        )
        for arena in ARENAS
        for method in methods_for(arena)
        if not quick or method in QUICK_METHODS
    ]


STUDY = Study(schemas.TRAINING, tasks)
