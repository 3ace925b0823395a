"""The forms of PI-FT that are compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.estimand import Kind
from socft.estimators.full_adjoint import FullAdjoint
from socft.pi_ft import (
    ExactPIFT,
    MonteCarloPIFT,
    PolicyGradient,
)
from socft.policy import FeaturePolicy, Policy
from socft.regression.features import RadialBasis
from socft.regression.functions import LinearRegression, NetworkRegression
from socft.study.vocabulary.methods import MethodName
from socft.train import Method
from socft.truth.quadrature import Quadrature

ITERATE_STEPS = 20
METHOD_BETA = 2.0


def _features() -> RadialBasis:
    return RadialBasis(torch.linspace(-4, 4, 25, dtype=torch.float64)[:, None], 0.5)


def _feature_policy() -> Policy:
    features = _features()
    return FeaturePolicy(
        features, torch.zeros(ITERATE_STEPS, 1, len(features.centres) + 2, dtype=torch.float64)
    )


def _linear(_: Quadrature, scale: int) -> Method:
    regression = LinearRegression(_features(), ridge=1e-6)
    return MonteCarloPIFT(8, regression, regression, paths=2048 * scale, draws=16)


def _network(_: Quadrature, scale: int) -> Method:
    regression = NetworkRegression(steps=100 * scale)
    return MonteCarloPIFT(3, regression, regression, paths=2048 * scale, draws=16)


@dataclasses.dataclass(frozen=True)
class IterativeMethod:
    """A form of PI-FT.

    Attributes:
        make: ``(truth, scale) -> method``.
        kind: what its iteration estimates.
        every: iterations between two that are recorded.
    """

    make: Callable[[Quadrature, int], Method]
    kind: str
    every: int = 1


def _gradient_ascent(estimator: Estimator) -> IterativeMethod:
    return IterativeMethod(
        lambda _, scale: PolicyGradient(_feature_policy, estimator, 300 * scale, rate=0.02),
        estimator.estimates.kind,
        25,
    )


METHODS: dict[str, IterativeMethod] = {
    MethodName.EXACT_PI_FT: IterativeMethod(lambda truth, _: ExactPIFT(12, truth.grids), "exact"),
    MethodName.MONTE_CARLO_PI_FT_LINEAR: IterativeMethod(_linear, Kind.FIXED_POINT_RESIDUAL),
    MethodName.MONTE_CARLO_PI_FT_NETWORK: IterativeMethod(_network, Kind.FIXED_POINT_RESIDUAL),
    MethodName.POLICY_GRADIENT_FULL_ADJOINT: _gradient_ascent(FullAdjoint()),
    MethodName.POLICY_GRADIENT_ADJOINT_MATCHING: _gradient_ascent(AdjointMatching()),
}
