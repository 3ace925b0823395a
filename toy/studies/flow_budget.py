r"""Methods for flow models at an equal budget of network evaluations: what each would change of the
control, against what leads to the optimum.

Every method is asked at the pre-trained model and at the optimum of the chain of
`toy.fixed_points.problems`, at strengths that leave the problem's own KL weight at the pre-trained
model. Its slope in the control over the curvature of its divergence is a proposed change
:math:`w_k - v_k` of the control, in the same units for all, and its products with the features
(x, 1) of every step are what is compared. Right is

.. math:: E\big[(B_k E \nabla V^v_{k+1}/\beta_k - v_k)\, \phi(x_k)^\top\big],

the gradient of the objective over beta, which is zero at the optimum. It is known at the
pre-trained model to the error of `ORACLE_PATHS` paths of the full adjoint, whose norm is the unit.

* ``bias``: distance of the mean from that, without its noise, and its standard error; at the
  optimum a method of another fixed point keeps one, however many paths it has;
* ``variance``: trace of the covariance from one path;
* ``error_at_budget``: ``sqrt(bias^2 + variance / paths)`` with the paths that `BUDGET` evaluations
  buy, never less than the bias, with an interval from ``low`` to ``high`` by the bootstrap over
  repetitions;
* ``rank``: at the optimum, of this error, among the methods that have the optimum as fixed point;
  the others are beside them and have none.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float

from socft.estimators.base import Estimator
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Biased, EquationResidual, FixedPointEquation
from socft.estimators.flow.hamiltonian_adjoint import HamiltonianAdjointMatching
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, rollout
from socft.policy import Policy
from socft.records import Record
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.quadrature import Quadrature
from toy.fixed_points.contenders import CONTENDERS, Contender, beta
from toy.fixed_points.problems import Targets
from toy.measure import estimate
from toy.ranks import DOUBT, Figure, ranks
from toy.repeated import DRAWS, RepeatedGradient, draws

BETA = 2.0
PATHS, QUICK_PATHS = 2000, 400
SEEDS, QUICK_SEEDS = 10, 4
ORACLE_PATHS, QUICK_ORACLE_PATHS = 200_000, 20_000
FIRST_SEED = 1000
START, OPTIMUM = "start", "optimum"

METHODS: Mapping[MethodName, Contender] = {
    **CONTENDERS,
    MethodName.HAMILTONIAN_ADJOINT_MATCHING: Contender(
        lambda targets, generator: HamiltonianAdjointMatching(), lambda targets: None, beta
    ),
    MethodName.MALLIAVIN_WEIGHTS: Contender(
        lambda targets, generator: MalliavinAdjoint(), lambda targets: None, beta
    ),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Place:
    """Where methods are asked.

    Attributes:
        name: the pre-trained model or the optimum.
        policy: the control there.
        exact: what is right, a number per feature and step.
        unit: its norm at the pre-trained model.
        noise: standard error of ``exact``.
    """

    name: str
    policy: Policy
    exact: Float[torch.Tensor, " parameters"]
    unit: float
    noise: float


def places(targets: Targets, oracle_paths: int) -> tuple[Place, Place]:
    """The pre-trained model and the optimum."""
    line = targets.line
    start = line.hats.policy(line.problem.steps)
    generator = torch.Generator().manual_seed(0)
    noise = Noise.sample(line.reference, oracle_paths, generator)
    found = estimate(FullAdjoint(), line.problem, start, noise)
    exact = found.mean / targets.beta
    unit, error = float(exact.norm()), float(found.stderr.norm()) / targets.beta
    optimum = Quadrature(line.problem).policy
    return (
        Place(START, start, exact, unit, error),
        Place(OPTIMUM, optimum, torch.zeros_like(exact), unit, 0.0),
    )


def repeated(
    targets: Targets, name: MethodName, place: Place, paths: int, seeds: int
) -> RepeatedGradient:
    """A method's proposals at a place, over repetitions with paths of their own."""
    contender, line = METHODS[name], targets.line
    means, variances, estimator = [], [], None
    for seed in range(FIRST_SEED, FIRST_SEED + seeds):
        generator = torch.Generator().manual_seed(seed)
        estimator = contender.make(targets, generator)
        noise = Noise.sample(line.reference, paths, generator)
        found = estimate(estimator, line.problem, place.policy, noise)
        path = rollout(line.reference, place.policy, noise)
        scale = (1 / contender.unit(targets, path)).repeat_interleave(2)
        means.append(found.mean * scale)
        variances.append(float(found.variances @ scale.square()) / place.unit**2)
    assert isinstance(estimator, Estimator)
    return RepeatedGradient.of(
        torch.stack(means),
        place.exact,
        place.unit,
        kind=estimator.estimates.kind,
        noise=place.noise / place.unit,
        variances=torch.tensor(variances, dtype=torch.float64),
        paths=paths,
        evaluations=CATALOGUE[name].evaluations(estimator, line.problem.steps),
        fit_evaluations=0,
    )


def has_the_optimum(name: MethodName) -> bool:
    """Whether the chain's optimum, or the tilt, is what a method rests at."""
    estimand = CATALOGUE[name].estimates
    if isinstance(estimand, EquationResidual):
        return estimand.equation == FixedPointEquation.TILT
    return not isinstance(estimand, Biased) or estimand.zero_at_optimum


def budget_task(
    problem: ProblemName, T: int, beta: float, paths: int, seeds: int, oracle_paths: int
) -> list[Record]:
    """All methods on one problem, ranked where they have the same aim."""
    targets = Targets.of(problem, T, beta)
    found: list[Record] = []
    for place in places(targets, oracle_paths):
        setting = {"T": T, "beta": beta, "at": place.name}
        here: dict[str, RepeatedGradient] = {}
        for name in METHODS:
            started = time.perf_counter()
            here[name] = repeated(targets, name, place, paths, seeds)
            seconds = time.perf_counter() - started
            found += _records(problem, name, here[name], setting, seconds)
        if place.name == OPTIMUM:
            found += _ranks(problem, here, setting)
    return found


def _records(
    problem: ProblemName,
    name: MethodName,
    here: RepeatedGradient,
    setting: Mapping[str, Any],
    seconds: float,
) -> Iterator[Record]:
    weights = draws(here.count, DRAWS)
    measured = {
        Metric.BIAS: (here.bias_squared(here.equal).sqrt(), here.bias_squared(weights).sqrt()),
        Metric.VARIANCE: (here.variance(here.equal), here.variance(weights)),
        Metric.ERROR_AT_BUDGET: (here.error(here.equal), here.error(weights)),
    }
    for metric, (value, drawn) in measured.items():
        ends = drawn.quantile(torch.tensor([DOUBT, 1 - DOUBT], dtype=drawn.dtype)).tolist()
        low, high = min(ends[0], float(value)), max(ends[1], float(value))
        yield Record(
            schemas.FLOW_BUDGET.name,
            problem,
            metric,
            float(value),
            {**setting, "low": low, "high": high},
            name,
            here.kind,
            stderr=here.bias_noise if metric == Metric.BIAS else None,
            seeds=here.count,
            seconds=seconds,
            evaluations=here.evaluations,
        )


def _ranks(
    problem: ProblemName, here: Mapping[str, RepeatedGradient], setting: Mapping[str, Any]
) -> Iterator[Record]:
    peers = {
        name: Figure(float(each.error(each.equal)), each.error(draws(each.count, DRAWS)), "error")
        for name, each in here.items()
        if has_the_optimum(MethodName(name))
    }
    for name, (rank, (low, high)) in ranks(peers).items():
        where = {**setting, "low": low, "high": high}
        yield Record(
            schemas.FLOW_BUDGET.name,
            problem,
            Metric.RANK,
            float(rank),
            where,
            name,
            here[name].kind,
            seeds=here[name].count,
        )


PLACES = (
    (ProblemName.FLOW_OVERLAPPING, 10),
    (ProblemName.FLOW_OVERLAPPING, 40),
    (ProblemName.FLOW_SEPARATED, 10),
)
"""Problems and numbers of steps: what falls with the latter is of the chain, not of the method."""


def tasks(quick: bool) -> list[Task]:
    """One task per problem and number of steps."""
    scale = {
        "beta": BETA,
        "paths": QUICK_PATHS if quick else PATHS,
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "oracle_paths": QUICK_ORACLE_PATHS if quick else ORACLE_PATHS,
    }
    chosen = ((ProblemName.FLOW_OVERLAPPING, 4),) if quick else PLACES
    return [
        Task(f"{problem} T={T}", budget_task, {"problem": problem, "T": T, **scale})
        for problem, T in chosen
    ]


STUDY = Study(schemas.FLOW_BUDGET, tasks)
"""Methods for flow models at equal budget."""
