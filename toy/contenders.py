"""The gradient estimators that are compared, by the name under which reports show them.

A contender makes its estimator for a situation: some need an approximate costate, which is taken from the policy, fitted to
samples, or exact. A user's estimator is a contender made from its import path (``socft bench``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from socft.adjoint import Full
from socft.checks import require
from socft.cli import imported
from socft.costate import CostateSource, FromPolicy, Given
from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut, NoBaseline, RegressionBaseline
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.td_adjoint import TDAdjoint
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.estimators.variance import Variance
from socft.features import Polynomial
from socft.field_regression import PerStep
from socft.marginal_score import DenoisingScore
from socft.martingale import Antithetic, FirstOrder
from socft.regression import LinearRegression
from socft.rollout import Noise, rollout
from socft.time_reversal import Reverser
from toy.situations import Situation


@dataclasses.dataclass(frozen=True)
class Contender:
    """An estimator by name.

    Attributes:
        name: unique.
        make: the estimator for a situation.
    """

    name: str
    make: Callable[[Situation], Estimator]


FITTED_PATHS = 1000
"""Paths from which an approximate costate is fitted, besides those of the estimate."""
AUXILIARY_SEED = 77


def _fitted(where: Situation) -> CostateSource:
    """A costate field by regression of the full adjoint on affine features, from paths of its own."""
    noise = Noise.sample(where.problem.reference, FITTED_PATHS, torch.Generator().manual_seed(AUXILIARY_SEED))
    with torch.no_grad():
        path = rollout(where.problem.reference, where.policy, noise)
        costates = FullAdjoint().costates(where.problem, where.policy, path)
    return Given(PerStep(LinearRegression(Polynomial(1))).fit(costates))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(AUXILIARY_SEED)


def _reversed(field: CostateSource, published: bool = False) -> Estimator:
    score = DenoisingScore(LinearRegression(Polynomial(1)))
    return ReversedBSDE(field, Reverser(score, _generator(), published), Full())


PATHWISE = (
    Contender("full adjoint", lambda _: FullAdjoint()),
    Contender("adjoint matching", lambda _: AdjointMatching()),
    Contender("adjoint matching, published index", lambda _: PublishedAdjointMatching()),
    Contender("reciprocal adjoint matching", lambda _: ReciprocalAdjoint(_generator())),
    Contender("truncated backpropagation, 1 step", lambda _: TruncatedBackprop(1)),
    Contender("truncated backpropagation, 10 steps", lambda where: TruncatedBackprop(min(10, where.problem.steps))),
    Contender("truncated backpropagation, random", lambda _: RandomTruncation(_generator())),
)
CORRECTED = (
    Contender("martingale, policy's costate", lambda _: MartingaleAdjoint(Antithetic(FromPolicy()))),
    Contender("martingale, policy's costate, first order", lambda _: MartingaleAdjoint(FirstOrder(FromPolicy()))),
    Contender("martingale, policy's costate, cheap", lambda _: MartingaleAdjoint(Antithetic(FromPolicy(exact=False)))),
    Contender("martingale, fitted costate", lambda where: FullMartingaleAdjoint(Antithetic(_fitted(where)))),
    Contender("martingale, exact costate", lambda where: FullMartingaleAdjoint(Antithetic(Given(where.value_gradient)))),
    Contender("TD(0.9), fitted costate", lambda where: TDAdjoint(_fitted(where), 0.9)),
    Contender("TD(0), fitted costate", lambda where: TDAdjoint(_fitted(where), 0.0)),
    Contender("time-reversed, fitted costate", lambda where: _reversed(_fitted(where))),
    Contender("time-reversed, exact costate", lambda where: _reversed(Given(where.value_gradient))),
    Contender("time-reversed, exact costate, published pairing", lambda where: _reversed(Given(where.value_gradient), True)),
)
ZEROTH_ORDER = (
    Contender("score function, no baseline", lambda _: ScoreFunction(NoBaseline())),
    Contender("score function, leave-one-out", lambda _: ScoreFunction(LeaveOneOut())),
    Contender("score function, regression baseline", lambda _: ScoreFunction(RegressionBaseline())),
    Contender("score function without KL-to-go", lambda _: ScoreFunctionWithoutKLToGo(LeaveOneOut())),
    Contender("integration by parts", lambda _: IntegrationByParts(RegressionBaseline())),
    Contender("DDPO", lambda _: DDPO()),
    Contender("DPOK", lambda _: DPOK(RegressionBaseline())),
)
PATH_MEASURE = (
    Contender("log-variance", lambda _: LogVariance()),
    Contender("variance", lambda _: Variance()),
    Contender("cross entropy", lambda _: CrossEntropy()),
    Contender("SOCM", lambda _: SOCM(degree=1)),
    Contender("SOCM-adjoint", lambda _: SOCMAdjoint()),
)
CONTENDERS: dict[str, Contender] = {each.name: each for each in (*PATHWISE, *CORRECTED, *ZEROTH_ORDER, *PATH_MEASURE)}


def contender(name: str) -> Contender:
    """A built-in contender by name, or a user's estimator by its import path ``module:name``.

    What the path leads to is called without arguments and must return an `Estimator`; a class does.

    Raises:
        InvalidProblem: there is no such contender, or the path leads to something else.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    require(":" in name, f"there is no estimator {name!r}; give MODULE:NAME, or one of: {', '.join(CONTENDERS)}.")
    make: Callable[[], Estimator] = imported(name)
    require(callable(make), f"{name} is a {type(make).__name__}; it must be a class or function that makes an estimator.")
    made = make()
    require(
        isinstance(made, Estimator),
        f"{name} makes a {type(made).__name__}; it must be a socft.estimators.base.Estimator without arguments.",
    )
    return Contender(name, lambda _: make())
