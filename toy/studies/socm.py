r"""Which loss brings the control nearest to the optimum? The suite of *Stochastic Optimal Control
Matching* (arXiv 2312.02027): control error along training, estimator by estimator.

``control_l2`` is the paper's metric, :math:`E_{P^*} \int |u - u^*|^2 dt` over the paths of the
optimum, here of the chain's: :math:`E \sum_k |v_k - v^*_k|^2`, in closed form for affine policies
and on paths of the exact optimum for the double well. The first checkpoint is the pre-trained
model, whose error is :math:`E \int |u^*|^2 dt`. ``objective_gap`` is exact for affine policies and
elsewhere the difference on common noise. ``effective_share`` is the effective number of paths of
importance weights over the batch.

All estimators get the same number of gradient steps, paths, rate and decay
(`toy.training.methods.train_policy`); what that costs is in ``evaluations``. Affine policies for
the Ornstein-Uhlenbeck problems, whose optimum is affine; a function per coordinate for the double
well, whose optimum is one. An estimator that diverges has infinite errors from there on, and a
note.

Fixed points differ by O(dt): adjoint matching, relative entropy, log-variance and moment losses
have the chain's optimum as theirs, those weighted to the optimal path measure the control of least
cross-entropy, which is the same in the linear-quadratic case.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from socft.checks import InvalidProblem
from socft.estimators.base import Estimator
from socft.estimators.catalogue import ANYWHERE
from socft.estimators.catalogue.rows import evaluations_per_path
from socft.estimators.moment import Moment
from socft.path import Noise, returns, rollout
from socft.path_measure import effective_size
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import Noises, States, Step
from socft.study.repetitions import record_repetitions
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import PolicyEvaluation, evaluate_affine
from socft.truth.base import Truth
from socft.truth.linear_quadratic import LinearQuadratic
from toy.problems import benchmark
from toy.training.measurement import label_memory
from toy.training.methods import TrainingPlan, checkpoint_iterations, train_policy

ITERATIONS, QUICK_ITERATIONS = 120, 8
CHECKPOINTS, QUICK_CHECKPOINTS = 7, 3
SEEDS, QUICK_SEEDS = 3, 1
TEST_PATHS, TEST_SEED = 512, 99
WEIGHT_SEED = 98
START_RATE = 10.0
"""The initial value of the moment loss learns faster than the control: it is a sum over the
steps.
"""
DIVERGED = 1e6


class ScalarParameter(nn.Module):
    """A learned number for every state."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: States) -> Tensor:
        return self.level.expand(len(x))


@dataclasses.dataclass(frozen=True)
class TrainableEstimator:
    """An estimator and what the optimiser also trains."""

    estimator: Estimator
    extra: tuple[nn.Parameter, ...] = ()


def _moment() -> TrainableEstimator:
    start = ScalarParameter()
    return TrainableEstimator(Moment(start), (start.level,))


def _named(name: str) -> Callable[[], TrainableEstimator]:
    return lambda: TrainableEstimator(ANYWHERE[name]())


METHODS: dict[str, Callable[[], TrainableEstimator]] = {
    str(name): _named(name)
    for name in (
        MethodName.ADJOINT_MATCHING,
        MethodName.RELATIVE_ENTROPY,
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
        MethodName.SOCM_DEGREE_2,
        MethodName.SOCM_IDENTITY,
        MethodName.SOCM_ADJOINT,
        MethodName.CROSS_ENTROPY,
        MethodName.LOG_VARIANCE,
        MethodName.VARIANCE,
    )
} | {MethodName.MOMENT: _moment}


class SuiteProblem(abc.ABC):
    """A problem, a policy class and the distance to the optimum.

    Attributes:
        name: of the problem.
        settings: what completes the name.
        problem: the control problem.
    """

    name: str
    settings: Mapping[str, Any]
    problem: ControlProblem

    @abc.abstractmethod
    def policy(self) -> Policy:
        """The pre-trained model in the policy class."""

    @abc.abstractmethod
    def control_l2(self, policy: Policy) -> float:
        """``E sum_k |v_k - v*_k|^2`` over paths of the optimum."""

    @abc.abstractmethod
    def objective_gap(self, policy: Policy) -> float:
        """Optimum minus objective."""


class AffineSuiteProblem(SuiteProblem):
    """Affine policies, in closed form."""

    def __init__(self, name: str, **settings: Any):
        found = benchmark(name, **settings)
        assert isinstance(found.truth, LinearQuadratic)
        self.name, self.settings = found.name, found.settings
        self.problem, self.truth = found.problem, found.truth
        self._optimal: PolicyEvaluation = evaluate_affine(self.problem, self.truth.affine_policy)

    def policy(self) -> AffinePolicy:
        return AffinePolicy.zeros(self.problem.reference)

    @torch.no_grad()
    def control_l2(self, policy: Policy) -> float:
        assert isinstance(policy, AffinePolicy)
        best, law = self.truth.affine_policy, self._optimal
        gain, offset = policy.gain - best.gain, policy.offset - best.offset
        mean = (gain @ law.mean[:-1].unsqueeze(2)).squeeze(2) + offset
        return float(mean.square().sum() + (gain @ law.covariance[:-1] * gain).sum())

    def objective_gap(self, policy: Policy) -> float:
        assert isinstance(policy, AffinePolicy)
        return self._optimal.objective - evaluate_affine(self.problem, policy).objective


class SeparablePolicy(Policy):
    """``v_k(x)_i = sum_pq w_ipq psi_p(x_i) tau_q(k) / sqrt(T)``: a function of its own coordinate
    and time for each entry.

    Gaussian bumps in space, exponentials of the time left, which resolve how fast a well forgets;
    starts at zero.
    """

    RATES = (0.0, 5.0, 20.0, 80.0)

    def __init__(self, steps: int, d: int, edge: float = 1.75, count: int = 11):
        self.steps = steps
        self.centres = torch.linspace(-edge, edge, count, dtype=torch.float64)
        self.rates = torch.tensor(self.RATES, dtype=torch.float64)
        self.width = 2 * edge / (count - 1)
        self.weight = nn.Parameter(torch.zeros(d, count, len(self.RATES), dtype=torch.float64))

    def __call__(self, k: Step, x: States) -> Noises:
        index = k.to(x) if isinstance(k, Tensor) else x.new_full((len(x),), k)
        bumps = torch.exp(-((x.unsqueeze(2) - self.centres) / self.width).square() / 2)
        waning = torch.exp(-(1 - index / self.steps).unsqueeze(1) * self.rates)
        return torch.einsum("bdp,dpq,bq->bd", bumps, self.weight, waning) / self.steps**0.5


class DoubleWellSuiteProblem(SuiteProblem):
    """The double well with a function per coordinate, on paths of its exact optimum."""

    def __init__(self, **settings: Any):
        found = benchmark(ProblemName.DOUBLE_WELL, **settings)
        self.name, self.settings, self.problem = found.name, found.settings, found.problem
        self.truth: Truth = found.truth
        self._noise = Noise.sample(
            self.problem.reference, TEST_PATHS, torch.Generator().manual_seed(TEST_SEED)
        )
        with torch.no_grad():
            self._path = rollout(self.problem.reference, self.truth.policy, self._noise)
            self._objective = returns(self.problem, self._path).mean()

    def policy(self) -> SeparablePolicy:
        return SeparablePolicy(self.problem.steps, *self.problem.reference.dims)

    @torch.no_grad()
    def control_l2(self, policy: Policy) -> float:
        apart = (
            torch.stack([policy(k, x) for k, x in enumerate(self._path.states[:-1])])
            - self._path.controls
        )
        return float(apart.square().sum(2).sum(0).mean())

    @torch.no_grad()
    def objective_gap(self, policy: Policy) -> float:
        return float(
            self._objective
            - returns(self.problem, rollout(self.problem.reference, policy, self._noise)).mean()
        )


@dataclasses.dataclass(frozen=True)
class SuiteEntry:
    """A problem of the suite and the rate its policy class trains with."""

    make: Callable[[], SuiteProblem]
    rate: float


SUITE: Mapping[str, SuiteEntry] = {
    ProblemName.OU_QUADRATIC_EASY: SuiteEntry(
        lambda: AffineSuiteProblem(ProblemName.OU_QUADRATIC_EASY), 0.003
    ),
    ProblemName.OU_QUADRATIC_HARD: SuiteEntry(
        lambda: AffineSuiteProblem(ProblemName.OU_QUADRATIC_HARD), 0.01
    ),
    ProblemName.OU_LINEAR: SuiteEntry(lambda: AffineSuiteProblem(ProblemName.OU_LINEAR), 0.01),
    ProblemName.DOUBLE_WELL: SuiteEntry(lambda: DoubleWellSuiteProblem(), 0.05),
}


@torch.no_grad()
def effective_share(
    estimator: Estimator, problem: ControlProblem, policy: Policy, batch: int
) -> float | None:
    """Effective size of the importance weights of a batch, over its size; None without weights."""
    noise = Noise.sample(problem.reference, batch, torch.Generator().manual_seed(WEIGHT_SEED))
    labels = estimator.label(problem, policy, rollout(problem.reference, policy, noise))
    return None if labels.weights is None else effective_size(labels.weights[0]) / batch


@dataclasses.dataclass(frozen=True)
class ControlError:
    """What is seen at a moment of a training.

    Attributes:
        measures: by metric.
        seconds: spent training so far.
        note: why it diverged, if it did.
    """

    measures: Mapping[Metric, float]
    seconds: float = math.nan
    note: str = ""


def curve(
    place: SuiteProblem, method: str, plan: TrainingPlan, seed: int
) -> Iterator[ControlError]:
    """Every checkpoint; infinite, with a note, from a divergence on."""
    chosen, policy, left = METHODS[method](), place.policy(), len(plan.checkpoints)
    extra = [{"params": list(chosen.extra), "lr": START_RATE * plan.rate}] if chosen.extra else []
    try:
        for iteration in train_policy(place.problem, policy, chosen.estimator, plan, seed, extra):
            error, gap = place.control_l2(policy), place.objective_gap(policy)
            if not error < DIVERGED:
                raise InvalidProblem(f"control_l2 = {error:.3g} at gradient step {iteration.index}")
            row = {Metric.CONTROL_L2: error, Metric.OBJECTIVE_GAP: gap}
            share = effective_share(chosen.estimator, place.problem, policy, plan.batch)
            left -= 1
            yield ControlError(
                row if share is None else row | {Metric.EFFECTIVE_SHARE: share}, iteration.seconds
            )
    except InvalidProblem as error:
        for _ in range(left):
            yield ControlError(
                {Metric.CONTROL_L2: math.inf, Metric.OBJECTIVE_GAP: math.inf},
                note=f"diverged: {error}"[:200],
            )


def socm_task(
    problem: str, method: str, iterations: int, checkpoints: int, seeds: int
) -> list[Record]:
    """The curve of one estimator on one problem, over independent repetitions."""
    place, rate = SUITE[problem].make(), SUITE[problem].rate
    plan = TrainingPlan(rate, iterations, checkpoint_iterations(iterations, checkpoints))
    estimator = METHODS[method]().estimator
    evaluations = evaluations_per_path(estimator.cost, place.problem.steps) * plan.batch
    curves = [list(curve(place, method, plan, seed)) for seed in range(seeds)]
    peak = label_memory(place.problem, place.policy(), estimator, plan.batch)
    records = []
    for index, *points in zip(plan.checkpoints, *curves, strict=True):
        setting = {
            **place.settings,
            "rate": rate,
            "batch": plan.batch,
            "iterations": iterations,
            "iteration": index,
        }
        notes = sorted({point.note for point in points if point.note})
        records += record_repetitions(
            schemas.SOCM,
            problem,
            [point.measures for point in points],
            setting=setting | ({"note": "; ".join(notes)} if notes else {}),
            estimator=method,
            kind=estimator.estimates.kind,
            seconds=sum(point.seconds for point in points) / seeds,
            evaluations=index * evaluations,
            peak_mb=peak,
            optimum={Metric.CONTROL_L2: 0.0, Metric.OBJECTIVE_GAP: 0.0},
        )
    return records


QUICK_SUITE = {
    ProblemName.OU_QUADRATIC_HARD: (
        MethodName.ADJOINT_MATCHING,
        MethodName.SOCM_ADJOINT,
        MethodName.VARIANCE,
        MethodName.MOMENT,
    ),
    ProblemName.OU_LINEAR: (MethodName.CROSS_ENTROPY,),
}


def tasks(quick: bool) -> list[Task]:
    """Every estimator on every problem."""
    scale = (
        {"iterations": QUICK_ITERATIONS, "checkpoints": QUICK_CHECKPOINTS, "seeds": QUICK_SEEDS}
        if quick
        else {"iterations": ITERATIONS, "checkpoints": CHECKPOINTS, "seeds": SEEDS}
    )
    chosen = QUICK_SUITE if quick else dict.fromkeys(SUITE, tuple(METHODS))
    return [
        Task(f"{problem}: {method}", socm_task, {"problem": problem, "method": method, **scale})
        for problem, methods in chosen.items()
        for method in methods
    ]


STUDY = Study(schemas.SOCM, tasks)
