"""The methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from socft.costates.fields import (
    CostateSource,
    PolicyCostate,
)
from socft.costates.marginal_score import DenoisingScore
from socft.costates.martingale import AntitheticCorrection
from socft.costates.network import NetworkTraining
from socft.costates.regression import FieldRegression, StepwiseRegression
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Kind
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE
from socft.study.vocabulary.methods import MethodName
from toy.learners import space_time
from toy.mixture.learning import (
    DAMPED,
    REVERSED_SEED,
    ROUNDS,
    STIFF,
    EstimatorFactory,
    PolicyFit,
    PolicyIteration,
    fitted_bellman,
    sampled_pi_ft,
)

ROUND_STEPS, BATCH = 400, 16
SEEDS, FEW_SEEDS, NETWORK_SEEDS, QUICK_SEEDS = 10, 2, 2, 1


@dataclasses.dataclass(frozen=True)
class MixtureMethod:
    """A method.

    Attributes:
        name: as reports show it.
        kind: what its samples estimate.
        function_class: "bumps" or "network".
        learn: ``(temp, seed, where to begin) -> what was learnt``.
        seeds: repetitions at full scale.
        chain: whether every temperature begins where the last ended.
        published: its column in the publication.
        gradient_steps: of its network at each temperature.
    """

    name: str
    kind: str
    function_class: str
    learn: Callable[[float, int, PolicyFit], PolicyFit]
    seeds: int = SEEDS
    chain: bool = False
    published: str | None = None
    gradient_steps: int = 0


def corrected_bellman(temp: float, seed: int, begin: PolicyFit) -> PolicyFit:
    """Policy iteration with the corrected full adjoint from where one sweep of the fitted recursion
    ended.
    """
    return PolicyIteration(_corrected(FullMartingaleAdjoint), _bumps)(
        temp, seed, fitted_bellman(temp, seed, begin, 1)
    )


def _corrected(adjoint: Callable[..., CostateEstimator]) -> EstimatorFactory:
    return lambda source, seed: adjoint(AntitheticCorrection(source))


def _implied(adjoint: Callable[..., CostateEstimator]) -> EstimatorFactory:
    return lambda source, seed: adjoint(AntitheticCorrection(PolicyCostate()))


def _reversed(published_pairing: bool) -> EstimatorFactory:
    def make(source: CostateSource, seed: int) -> CostateEstimator:
        generator = torch.Generator().manual_seed(seed + REVERSED_SEED)
        return ReversedBSDE(source, Reverser(DenoisingScore(STIFF), generator, published_pairing))

    return make


def _lean(source: CostateSource, seed: int) -> CostateEstimator:
    return AdjointMatching()


def _full(source: CostateSource, seed: int) -> CostateEstimator:
    return FullAdjoint()


def _bumps(_: int) -> FieldRegression:
    return StepwiseRegression(STIFF)


def _network(published: bool = False) -> Callable[[int], FieldRegression]:
    training = NetworkTraining(steps=ROUND_STEPS, batch=BATCH, decay_every=ROUND_STEPS // 2)
    return space_time(training, published)


def _features(
    name: str, kind: str, estimator: EstimatorFactory, seeds: int = SEEDS
) -> MixtureMethod:
    return MixtureMethod(
        name, kind, "bumps", PolicyIteration(estimator, _bumps, damped=DAMPED), seeds
    )


def _networks(name: str, kind: str, estimator: EstimatorFactory, **more) -> MixtureMethod:
    learn = PolicyIteration(estimator, _network())
    return MixtureMethod(
        name, kind, "network", learn, NETWORK_SEEDS, gradient_steps=ROUNDS * ROUND_STEPS, **more
    )


def _published(name: str, estimator: EstimatorFactory, column: str, chain: bool) -> MixtureMethod:
    learn = PolicyIteration(
        estimator, _network(published=True), published_lag=True, stale_noise=True
    )
    steps, shown = ROUNDS * ROUND_STEPS, column if chain else None
    return MixtureMethod(name, Kind.BIASED, "network", learn, NETWORK_SEEDS, chain, shown, steps)


BEST = MethodName.FITTED_BELLMAN_RECURSION
METHODS = {
    each.name: each
    for each in (
        MixtureMethod(BEST, Kind.FIXED_POINT_RESIDUAL, "bumps", fitted_bellman),
        MixtureMethod(MethodName.PI_FT_SAMPLED, Kind.FIXED_POINT_RESIDUAL, "bumps", sampled_pi_ft),
        MixtureMethod(
            MethodName.FULL_MARTINGALE_FITTED_COSTATE_AFTER_ONE_SWEEP,
            Kind.OBJECTIVE_GRADIENT,
            "bumps",
            corrected_bellman,
        ),
        _features(
            MethodName.FULL_MARTINGALE_FITTED_COSTATE,
            Kind.OBJECTIVE_GRADIENT,
            _corrected(FullMartingaleAdjoint),
        ),
        _features(
            MethodName.FULL_MARTINGALE_POLICY_COSTATE,
            Kind.OBJECTIVE_GRADIENT,
            _implied(FullMartingaleAdjoint),
            FEW_SEEDS,
        ),
        _features(MethodName.FULL_ADJOINT, Kind.OBJECTIVE_GRADIENT, _full, FEW_SEEDS),
        _features(
            MethodName.MARTINGALE_FITTED_COSTATE,
            Kind.FIXED_POINT_RESIDUAL,
            _corrected(MartingaleAdjoint),
        ),
        _features(MethodName.ADJOINT_MATCHING, Kind.FIXED_POINT_RESIDUAL, _lean),
        _networks(
            MethodName.FULL_MARTINGALE_FITTED_COSTATE_NETWORK,
            Kind.OBJECTIVE_GRADIENT,
            _corrected(FullMartingaleAdjoint),
        ),
        _networks(MethodName.ADJOINT_MATCHING_NETWORK, Kind.FIXED_POINT_RESIDUAL, _lean),
        _networks(MethodName.TIME_REVERSED_NETWORK, Kind.BIASED, _reversed(False)),
        _published(MethodName.ADJOINT_MATCHING_PUBLISHED_COLD, _lean, "adjoint_matching", False),
        _published(MethodName.ADJOINT_MATCHING_PUBLISHED, _lean, "adjoint_matching", True),
        _published(MethodName.TIME_REVERSED_PUBLISHED, _reversed(True), "tr_bsde", True),
    )
}
