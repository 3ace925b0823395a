"""The gradient estimators that are compared, by the name under which reports show them.

A contender makes its estimator for a situation: some need an approximate costate, which is taken
from the policy, fitted to samples, or exact. A user's estimator is a contender made from its import
path (``socft bench``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar

import torch

from socft.checks import require
from socft.costates.adjoint import Full
from socft.costates.base import Cost
from socft.costates.fields import CostateField, CostateSource, FromPolicy, Given
from socft.costates.marginal_score import (
    AffineMarginals,
    DenoisingScore,
    ImplicitScore,
    KernelScore,
    MarginalScore,
    NoiseScore,
)
from socft.costates.martingale import Antithetic, FirstOrder, SecondOrder
from socft.costates.regression import PerStep, Potential
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut, NoBaseline, RegressionBaseline
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.moment import Moment
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.refl import Prediction, ReFL
from socft.estimators.relative_entropy import RelativeEntropy
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.td_adjoint import TDAdjoint
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.estimators.variance import Variance
from socft.path import Noise, Path, rollout
from socft.path_measure import mismatch
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.regression.features import Polynomial
from socft.regression.functions import KernelRidge, LinearRegression, Regression
from socft.study.import_path import import_object
from toy.situations import Situation


@dataclasses.dataclass(frozen=True)
class Contender:
    """An estimator by name.

    Attributes:
        name: unique.
        make: the estimator for a situation; what it fits or draws besides is another in every
            `Situation.repetition`.
        labelled: ``steps -> `` those whose labels cost anything.
        fitted: what is fitted beforehand: numbers of paths, and the cost of their labels.
    """

    name: str
    make: Callable[[Situation], Estimator]
    labelled: Callable[[int], float] = float
    fitted: tuple[tuple[int, Cost], ...] = ()

    def evaluations(self, estimator: Estimator, steps: int) -> int:
        """Network evaluations of one path's labels and rollout."""
        return evaluations_per_path(estimator.cost, steps, self.labelled(steps))

    def fit_evaluations(self, steps: int) -> int:
        """Network evaluations of what is fitted beforehand."""
        return sum(paths * evaluations_per_path(cost, steps) for paths, cost in self.fitted)


def evaluations_per_path(cost: Cost, steps: int, labelled: float | None = None) -> int:
    """Network evaluations of one path's labels and rollout; a derivative counts as two evaluations.

    Args:
        labelled: the number of steps whose labels cost anything; all by default.
    """
    labels = (
        cost.reference + cost.policy + 2 * (cost.reference_derivatives + cost.policy_derivatives)
    )
    return round(2 * steps + (steps if labelled is None else labelled) * labels)


FITTED_PATHS = 1000
"""Paths from which an approximate costate is fitted, besides those of the estimate."""
CENTRES = 200
"""Paths that a kernel method sees: its fits take time in the cube of their number, its evaluations
in proportion to it.
"""
FEW_DIMENSIONS = 16
"""Largest dimension of fits that are quadratic in the state, and of the noise of time-reversed
costates.
"""
FEW_NOISES = 4
"""Largest dimension of the noise of a correction that takes a second derivative in each, and of
variants of time reversal.
"""
LAST_SHARE = 0.25
"""Of the steps, the last ones, from which ReFL draws: 10 of 40 in its publication."""
AUXILIARY_SEED, SCORE_SEED, SEEDS_APART = 77, 78, 1000
FITS_KEPT = 32


def _generator(where: Situation, seed: int = AUXILIARY_SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed + SEEDS_APART * where.repetition)


@torch.no_grad()
def _own_paths(where: Situation, count: int = FITTED_PATHS) -> Path:
    """Paths of the policy besides those of the estimate."""
    return rollout(
        where.problem.reference,
        where.policy,
        Noise.sample(where.problem.reference, count, _generator(where)),
    )


_AFFINE, _QUADRATIC, _KERNEL = (
    LinearRegression(Polynomial(1)),
    LinearRegression(Polynomial(2)),
    KernelRidge(),
)


@functools.lru_cache(maxsize=FITS_KEPT)
@torch.no_grad()
def _fitted(
    where: Situation, regression: Regression = _AFFINE, count: int = FITTED_PATHS
) -> CostateSource:
    """A costate field by regression of the full adjoint, on affine features by default, from paths
    of its own.

    The contenders that a process measures in a situation share it.
    """
    return Given(
        PerStep(regression).fit(
            FullAdjoint().costates(where.problem, where.policy, _own_paths(where, count))
        )
    )


def _require_few_noises(where: Situation, largest: int) -> None:
    (m,) = where.problem.reference.noise_dims
    require(
        m <= largest,
        f"the noise has {m} dimensions, and this estimator takes a second derivative in each; it is"
        f" measured up to {largest}: use an antithetic correction.",
    )


def _second_order(where: Situation) -> Estimator:
    _require_few_noises(where, FEW_NOISES)
    return FullMartingaleAdjoint(SecondOrder(_fitted(where, _QUADRATIC)))


@dataclasses.dataclass(frozen=True)
class FewerPaths(MarginalScore):
    """A score fitted to the first paths alone."""

    score: MarginalScore
    count: int
    joint: ClassVar[bool] = True

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        noise = Noise(path.noise.initial[: self.count], path.noise.steps[:, : self.count])
        return self.score.fit(
            problem,
            policy,
            Path(path.states[:, : self.count], path.controls[:, : self.count], noise),
        )


_DENOISING = DenoisingScore(_AFFINE)


def _reversed(where: Situation, exact: bool = False, published: bool = False) -> Estimator:
    _require_few_noises(where, FEW_DIMENSIONS)
    field = Given(where.value_gradient) if exact else _fitted(where)
    return ReversedBSDE(field, Reverser(_DENOISING, _generator(where), published), Full())


def _reversed_by(where: Situation, score: MarginalScore) -> Estimator:
    """With a fitted costate and another score."""
    _require_few_noises(where, FEW_NOISES)
    return ReversedBSDE(_fitted(where), Reverser(score, _generator(where)), Full())


def _bootstrapped(field: CostateField) -> Estimator:
    """The field's own value at the next state in place of a costate's sample."""
    return TDAdjoint(Given(field), 0.0)


def _reversed_value(where: Situation) -> Estimator:
    """Values that ride backwards on an affine costate, fitted with quadratic features and
    differentiated.
    """
    _require_few_dimensions(where)
    reverser = Reverser(_DENOISING, _generator(where, SCORE_SEED))
    values = ReversedValues(_fitted(where), reverser).values(
        where.problem, where.policy, _own_paths(where)
    )
    return _bootstrapped(Potential(PerStep(_QUADRATIC)).fit(values))


def _least_squares_value(where: Situation) -> Estimator:
    _require_few_dimensions(where)
    return _bootstrapped(
        LeastSquaresValue(_QUADRATIC).fit(where.problem, where.policy, _own_paths(where))
    )


def _require_few_dimensions(where: Situation) -> None:
    (n,) = where.problem.reference.dims
    require(
        n <= FEW_DIMENSIONS,
        f"the state has {n} dimensions and a quadratic value {(n + 1) * (n + 2) // 2} coefficients;"
        f" it is fitted up to {FEW_DIMENSIONS} dimensions from {FITTED_PATHS} paths: use a costate"
        " form.",
    )


def _refl(where: Situation) -> Estimator:
    reference, steps = where.problem.reference, where.problem.steps
    prediction = _mean_end(reference) if isinstance(reference, AffineReference) else None
    return ReFL(steps - max(1, round(LAST_SHARE * steps)), steps - 1, _generator(where), prediction)


def _mean_end(reference: AffineReference) -> Prediction:
    """``E[X_T | x_k, v_k]`` with no control after step k, which is what Tweedie's formula predicts
    of a denoising chain.
    """
    (n,), steps = reference.dims, reference.steps
    transfers, offsets = [torch.eye(n, dtype=torch.float64)], [torch.zeros(n, dtype=torch.float64)]
    for k in reversed(range(1, steps)):
        offsets.append(transfers[-1] @ reference.offset[k] + offsets[-1])
        transfers.append(transfers[-1] @ reference.transition[k])
    transfer, offset = torch.stack(transfers[::-1]), torch.stack(offsets[::-1])
    return lambda k, x, v: (
        (transfer[k] @ reference.step(k, x, v).unsqueeze(2)).squeeze(2) + offset[k]
    )


def _moment(where: Situation) -> Estimator:
    """The loss with an initial value that has learnt: fitted to the mismatch of paths of its own,
    affine in the start.
    """
    path = _own_paths(where)
    with torch.no_grad():
        start = _AFFINE.fit(
            path.states[0], -mismatch(where.problem, path.controls, path).unsqueeze(1)
        )
    return Moment(lambda x: start(x)[:, 0])


_COSTATES, _VALUES = ((FITTED_PATHS, FullAdjoint().cost),), ((FITTED_PATHS, Cost()),)
"""What costates are fitted to, and what values: returns of paths cost nothing more."""
PATHWISE = (
    Contender("full adjoint", lambda _: FullAdjoint()),
    Contender("adjoint matching", lambda _: AdjointMatching()),
    Contender("adjoint matching, published index", lambda _: PublishedAdjointMatching()),
    Contender("reciprocal adjoint matching", lambda where: ReciprocalAdjoint(_generator(where))),
    Contender("truncated backpropagation, 1 step", lambda _: TruncatedBackprop(1), lambda _: 1),
    Contender(
        "truncated backpropagation, 10 steps",
        lambda where: TruncatedBackprop(min(10, where.problem.steps)),
        lambda steps: min(10, steps),
    ),
    Contender(
        "truncated backpropagation, random",
        lambda where: RandomTruncation(_generator(where)),
        lambda steps: (steps + 1) / 2,
    ),
    Contender("ReFL", _refl, lambda _: 1),
)
CORRECTED = (
    Contender(
        "martingale, policy's costate", lambda _: MartingaleAdjoint(Antithetic(FromPolicy()))
    ),
    Contender(
        "martingale, policy's costate, first order",
        lambda _: MartingaleAdjoint(FirstOrder(FromPolicy())),
    ),
    Contender(
        "martingale, policy's costate, cheap",
        lambda _: MartingaleAdjoint(Antithetic(FromPolicy(exact=False))),
    ),
    Contender(
        "martingale, fitted costate",
        lambda where: FullMartingaleAdjoint(Antithetic(_fitted(where))),
        fitted=_COSTATES,
    ),
    Contender(
        "martingale, kernel-ridge costate",
        lambda where: FullMartingaleAdjoint(Antithetic(_fitted(where, _KERNEL, CENTRES))),
        fitted=((CENTRES, FullAdjoint().cost),),
    ),
    Contender("martingale, quadratic costate, second order", _second_order, fitted=_COSTATES),
    Contender(
        "martingale, exact costate",
        lambda where: FullMartingaleAdjoint(Antithetic(Given(where.value_gradient))),
    ),
    Contender(
        "TD(0.9), fitted costate", lambda where: TDAdjoint(_fitted(where), 0.9), fitted=_COSTATES
    ),
    Contender(
        "TD(0), fitted costate", lambda where: TDAdjoint(_fitted(where), 0.0), fitted=_COSTATES
    ),
    Contender(
        "least squares, costate form",
        lambda where: _bootstrapped(
            LeastSquaresCostate(_AFFINE, Full()).fit(where.problem, where.policy, _own_paths(where))
        ),
        fitted=_COSTATES,
    ),
    Contender("least squares, value form", _least_squares_value, fitted=_VALUES),
    Contender("time-reversed, fitted costate", _reversed, fitted=_COSTATES),
    Contender(
        "time-reversed, exact score",
        lambda where: _reversed_by(where, AffineMarginals()),
        fitted=_COSTATES,
    ),
    Contender(
        "time-reversed, implicit score",
        lambda where: _reversed_by(where, ImplicitScore(Polynomial(1))),
        fitted=_COSTATES,
    ),
    Contender(
        "time-reversed, nearest-kernel score",
        lambda where: _reversed_by(where, FewerPaths(KernelScore(), CENTRES)),
        fitted=_COSTATES,
    ),
    Contender(
        "time-reversed, value form",
        _reversed_value,
        fitted=(*_COSTATES, (FITTED_PATHS, Cost(reference=1, policy=1))),
    ),
    Contender("time-reversed, exact costate", lambda where: _reversed(where, exact=True)),
    Contender(
        "time-reversed, exact costate, published pairing",
        lambda where: _reversed(where, exact=True, published=True),
    ),
)
ZEROTH_ORDER = (
    Contender("score function, no baseline", lambda _: ScoreFunction(NoBaseline())),
    Contender("score function, leave-one-out", lambda _: ScoreFunction(LeaveOneOut())),
    Contender("score function, regression baseline", lambda _: ScoreFunction(RegressionBaseline())),
    Contender(
        "score function without KL-to-go", lambda _: ScoreFunctionWithoutKLToGo(LeaveOneOut())
    ),
    Contender("integration by parts", lambda _: IntegrationByParts(RegressionBaseline())),
    Contender("DDPO", lambda _: DDPO()),
    Contender("DPOK", lambda _: DPOK(RegressionBaseline())),
)
PATH_MEASURE = (
    Contender("relative entropy", lambda _: RelativeEntropy()),
    Contender("log-variance", lambda _: LogVariance()),
    Contender("moment", _moment, fitted=_VALUES),
    Contender("variance", lambda _: Variance()),
    Contender("cross entropy", lambda _: CrossEntropy()),
    Contender("SOCM", lambda _: SOCM(degree=1)),
    Contender("SOCM-adjoint", lambda _: SOCMAdjoint()),
)
CONTENDERS: dict[str, Contender] = {
    each.name: each for each in (*PATHWISE, *CORRECTED, *ZEROTH_ORDER, *PATH_MEASURE)
}


def contender(name: str) -> Contender:
    """A built-in contender by name, or a user's estimator by its import path ``module:name``.

    What the path leads to is called without arguments and must return an `Estimator`; a class does.
    Where that call raises, so does the contender's `make`.

    Raises:
        InvalidProblem: there is no such contender, or the path leads to something else.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    require(
        ":" in name,
        f"there is no estimator {name!r}; give MODULE:NAME, or one of: {', '.join(CONTENDERS)}.",
    )
    make: Callable[[], Estimator] = import_object(name)
    require(
        callable(make),
        f"{name} is a {type(make).__name__}; it must be a class or function that makes an"
        " estimator.",
    )
    try:
        made = make()
    except Exception:  # raised again where it is measured, as that row's error
        return Contender(name, lambda _: make())
    require(
        isinstance(made, Estimator),
        f"{name} makes a {type(made).__name__}; it must be a socft.estimators.base.Estimator"
        " without arguments.",
    )
    return Contender(name, lambda _: make())
