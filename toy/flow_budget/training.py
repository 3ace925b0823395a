r"""Training at an equal budget of network evaluations.

Every method trains the piecewise linear controls by Adam with a cosine-decayed rate. A method whose
labels are dearer, or that fits a correction before every batch, takes fewer steps. Rates are on a
logarithmic grid; where the best of the grid by the pilot seeds is at its edge, it is extended, so
that the best has a worse neighbour on either side unless `LEAST` or `MOST` is reached.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence

import torch
from scipy import stats

from socft.checks import InvalidProblem
from socft.policy import FeaturePolicy
from socft.study.comparison import LEVEL
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.train import fit
from socft.truth.quadrature import Quadrature
from toy.fixed_points.line import Field, LineChain
from toy.fixed_points.problems import Targets, samples_law
from toy.flow_budget.methods import METHODS, Expense, made

BATCH = 128
GRID = (0.03, 0.1, 0.3)
LEAST, MOST = 5e-4, 5.0
FACTOR = 10**0.5


@dataclasses.dataclass(frozen=True)
class TrainingBudget:
    """What a training may cost and how its rate is chosen.

    Attributes:
        updates: of adjoint matching, whose evaluations are everybody's budget.
        pilots: seeds by which rates are chosen.
        seeds: those that are reported.
    """

    updates: int
    pilots: Sequence[int]
    seeds: Sequence[int]


@dataclasses.dataclass(frozen=True)
class ChosenRate:
    """The rate of a method.

    Attributes:
        rate: the best by the mean gap of the pilot seeds.
        gaps: of every rate tried.
    """

    rate: float
    gaps: Mapping[float, float]

    @property
    def closed(self) -> bool:
        """Whether rates on either side of it were worse."""
        return min(self.gaps) < self.rate < max(self.gaps)


@dataclasses.dataclass(frozen=True)
class TrainedMethod:
    """Where trainings of a method end.

    Attributes:
        chosen: their rate.
        updates: of each.
        evaluations: of each.
        seconds: of the pilots and of all seeds.
        values: of every seed, by metric.
    """

    chosen: ChosenRate
    updates: int
    evaluations: int
    seconds: float
    values: Mapping[Metric, Sequence[float]]

    def mean(self, metric: Metric) -> float:
        """Over the seeds."""
        return sum(self.values[metric]) / len(self.values[metric])


def expense(targets: Targets, name: MethodName) -> int:
    """Network evaluations of an update, fits included."""
    estimator = made(targets, name, torch.Generator(), BATCH)
    found = Expense.of(name, estimator, targets.line.problem.steps, BATCH)
    return BATCH * found.path + found.fit


def updates(targets: Targets, name: MethodName, effort: TrainingBudget) -> int:
    """Updates that the budget allows."""
    budget = effort.updates * expense(targets, MethodName.ADJOINT_MATCHING)
    return max(1, budget // expense(targets, name))


def trained(targets: Targets, name: MethodName, count: int, rate: float, seed: int) -> Field:
    """The control after training, on the points of the line.

    Raises:
        InvalidProblem: a gradient is not finite.
    """
    line, generator = targets.line, torch.Generator().manual_seed(seed)
    policy: FeaturePolicy = line.hats.policy(line.problem.steps)
    optimiser = torch.optim.Adam(policy.parameters(), lr=rate)
    decayed = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, count)
    estimator = made(targets, name, generator, BATCH)
    for _ in fit(line.problem, policy, estimator, optimiser, generator, BATCH, count, decayed):
        pass
    return line.controls(policy)


def objective(line: LineChain, control: Field) -> float:
    """That of the chain with a control, by quadrature."""
    paid = line.problem.beta[:, None] * control.square() / 2
    return float(line.start @ line.backward(line.kernels(control), line.reward, paid)[0])


def best_objective(line: LineChain) -> float:
    """The largest of any control, by the same quadrature."""
    return objective(line, line.controls(Quadrature(line.problem).policy))


def ending(
    targets: Targets, best: float, name: MethodName, count: int, rate: float, seed: int
) -> dict[Metric, float]:
    """What training falls short of the optimum by, and the distance of the samples from the tilt;
    infinite and one where it diverged.
    """
    try:
        control = trained(targets, name, count, rate, seed)
    except InvalidProblem:
        return {Metric.OBJECTIVE_GAP: math.inf, Metric.TV_TO_TILT: 1.0}
    short = best - objective(targets.line, control)
    law = samples_law(targets.line, control, METHODS[name].noisy)
    return {
        Metric.OBJECTIVE_GAP: short if math.isfinite(short) else math.inf,
        Metric.TV_TO_TILT: targets.distances(law)[Metric.TV_TO_TILT],
    }


def choose(
    targets: Targets, best: float, name: MethodName, count: int, effort: TrainingBudget
) -> ChosenRate:
    """The rate with the least mean gap of the pilot seeds, on a grid that is extended until it is
    inside.
    """

    def mean(rate: float) -> float:
        found = [
            ending(targets, best, name, count, rate, seed)[Metric.OBJECTIVE_GAP]
            for seed in effort.pilots
        ]
        return sum(found) / len(found)

    gaps = {rate: mean(rate) for rate in GRID}
    while True:
        rate = min(gaps, key=gaps.__getitem__)
        edge = rate / FACTOR if rate == min(gaps) else rate * FACTOR
        inside = min(gaps) < rate < max(gaps)
        if inside or not LEAST <= edge <= MOST:
            return ChosenRate(rate, dict(sorted(gaps.items())))
        gaps[edge] = mean(edge)


def train(targets: Targets, best: float, name: MethodName, effort: TrainingBudget) -> TrainedMethod:
    """A method at its own rate, over the seeds that are reported."""
    started = time.perf_counter()
    count = updates(targets, name, effort)
    chosen = choose(targets, best, name, count, effort)
    ends = [ending(targets, best, name, count, chosen.rate, seed) for seed in effort.seeds]
    values = {metric: [each[metric] for each in ends] for metric in ends[0]}
    seconds = time.perf_counter() - started
    return TrainedMethod(chosen, count, count * expense(targets, name), seconds, values)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """Of the mean, at 95%, from independent values; infinite where one is."""
    found = torch.tensor(values, dtype=torch.float64)
    if not bool(found.isfinite().all()):
        return -math.inf, math.inf
    half = float(stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * found.std() / len(values) ** 0.5)
    return float(found.mean()) - half, float(found.mean()) + half
