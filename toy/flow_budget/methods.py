"""The methods that are held against each other, and what kind of comparison each allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from socft.estimators.base import Estimator
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Biased, EquationResidual, FixedPointEquation
from socft.estimators.flow.hamiltonian_adjoint import HamiltonianAdjointMatching
from socft.estimators.flow.look_ahead import FittedCorrection
from socft.estimators.flow.malliavin import MalliavinAdjoint
from socft.study.vocabulary.methods import MethodName
from toy.fixed_points.methods import FIT_PATHS, PREDICTED_METHODS, PredictedMethod, beta
from toy.fixed_points.problems import Targets

METHODS: Mapping[MethodName, PredictedMethod] = {
    **PREDICTED_METHODS,
    MethodName.HAMILTONIAN_ADJOINT_MATCHING: PredictedMethod(
        lambda targets, generator: HamiltonianAdjointMatching(), lambda targets: None, beta
    ),
    MethodName.MALLIAVIN_WEIGHTS: PredictedMethod(
        lambda targets, generator: MalliavinAdjoint(), lambda targets: None, beta
    ),
}
TWINS: Mapping[MethodName, MethodName] = {
    MethodName.HAMILTONIAN_ADJOINT_MATCHING: MethodName.ADJOINT_MATCHING,
    MethodName.DIFFUSION_NFT_VELOCITY: MethodName.AWM,
    MethodName.ELBO_RATIO: MethodName.AWM,
}
"""Methods whose gradient before an update is, step by step, a multiple of another's on these
chains: Adam cannot tell them apart.
"""
TRAINED = tuple(name for name in METHODS if name not in TWINS)


def has_the_optimum(name: MethodName) -> bool:
    """Whether the chain's optimum, or the tilt, is what a method rests at."""
    estimand = CATALOGUE[name].estimates
    if isinstance(estimand, EquationResidual):
        return estimand.equation == FixedPointEquation.TILT
    return not isinstance(estimand, Biased) or estimand.zero_at_optimum


@dataclasses.dataclass(frozen=True)
class Expense:
    """Network evaluations of a method.

    Attributes:
        path: of a path, its labels and its loss.
        fit: of what is fitted anew before every batch.
    """

    path: int
    fit: int

    @classmethod
    def of(cls, name: MethodName, estimator: Estimator, steps: int, fit_paths: int) -> Expense:
        """Of a method whose corrections are fitted to a number of paths."""
        row = CATALOGUE[name]
        share = fit_paths / FIT_PATHS
        return cls(row.evaluations(estimator, steps), round(row.fit_evaluations(steps) * share))


def made(
    targets: Targets, name: MethodName, generator: torch.Generator, fit_paths: int = FIT_PATHS
) -> Estimator:
    """A method whose corrections, where it has any, are fitted to a number of paths."""
    estimator: Any = METHODS[name].make(targets, generator)
    correction = getattr(estimator, "correction", None)
    if not isinstance(correction, FittedCorrection):
        return estimator
    fitted = dataclasses.replace(correction, paths=fit_paths)
    return dataclasses.replace(estimator, correction=fitted)
