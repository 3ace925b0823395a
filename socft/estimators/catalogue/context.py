"""What estimators are made for: a problem and a policy, and beside them what some estimators need,
paths of their own, random numbers, costates fitted to samples, and exact costates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeVar

import torch

from socft.checks import InvalidProblem, require
from socft.costates.fields import CostateSource, GivenCostate
from socft.costates.regression import StepwiseRegression
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, Path, rollout
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States, Step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression, Regression
from socft.reward import PerSample

FITTED_PATHS = 1000
"""Paths from which an approximate costate is fitted, besides those of the estimate."""
FEW_DIMENSIONS = 16
"""Largest dimension of fits that are quadratic in the state, and of the noise of time-reversed
costates.
"""
FEW_NOISES = 4
"""Largest dimension of the noise of a correction that takes a second derivative in each, and of
variants of time reversal.
"""
AUXILIARY_SEED, SEEDS_APART, FITS_KEPT = 77, 1000, 32
AFFINE = LinearRegression(Polynomial(1))
Exact = TypeVar("Exact")


@dataclasses.dataclass(frozen=True, eq=False)
class EstimatorContext:
    """A problem, a policy, and what estimators may need besides.

    Attributes:
        problem: the control problem.
        policy: the policy at which gradients are estimated.
        repetition: what an estimator fits or draws besides the paths of an estimate is another in
            every repetition.
        value_gradient: the conditional mean of the policy's full costates, where it is known.
        lean_mean: that of its lean costates.
        value: its value function.
    """

    problem: ControlProblem
    policy: Policy
    repetition: int = 0
    value_gradient: CostateSource | None = None
    lean_mean: CostateSource | None = None
    value: Callable[[Step, States], PerSample] | None = None

    def generator(self, seed: int = AUXILIARY_SEED) -> torch.Generator:
        """Random numbers of this repetition."""
        return torch.Generator().manual_seed(seed + SEEDS_APART * self.repetition)

    @torch.no_grad()
    def own_paths(self, count: int = FITTED_PATHS) -> Path:
        """Paths of the policy besides those of the estimate."""
        reference = self.problem.reference
        return rollout(reference, self.policy, Noise.sample(reference, count, self.generator()))

    def fitted(self, regression: Regression = AFFINE, count: int = FITTED_PATHS) -> CostateSource:
        """A costate field by regression of the full adjoint, on affine features by default, from
        `own_paths`; the estimators that a process makes in a context share it.
        """
        return _fit(self, regression, count)

    def known(self, exact: Exact | None) -> Exact:
        """Something exact, where there is such a thing.

        Raises:
            InvalidProblem: it is not known.
        """
        if exact is None:
            raise InvalidProblem(
                "no exact value is known of this policy; take a problem whose truth has one, or an"
                " estimator that fits its costate."
            )
        return exact

    def require_few_noises(self, largest: int = FEW_NOISES) -> None:
        """Refuse noise of many dimensions."""
        (m,) = self.problem.reference.noise_dims
        require(
            m <= largest,
            f"the noise has {m} dimensions, and this estimator takes a second derivative in each;"
            f" it is measured up to {largest}: use an antithetic correction.",
        )

    def require_few_dimensions(self) -> None:
        """Refuse states with too many dimensions for a quadratic fit to `own_paths`."""
        (n,) = self.problem.reference.dims
        require(
            n <= FEW_DIMENSIONS,
            f"the state has {n} dimensions and a quadratic value {(n + 1) * (n + 2) // 2}"
            f" coefficients; it is fitted up to {FEW_DIMENSIONS} dimensions from {FITTED_PATHS}"
            " paths: use a costate form.",
        )


@functools.lru_cache(maxsize=FITS_KEPT)
@torch.no_grad()
def _fit(context: EstimatorContext, regression: Regression, count: int) -> CostateSource:
    costates = FullAdjoint().costates(context.problem, context.policy, context.own_paths(count))
    return GivenCostate(StepwiseRegression(regression).fit(costates))
