"""What an estimator estimates: the expectation of the gradient of its loss, on paths of the policy.

It is a complete statement: where the expectation is minus the gradient of the objective, where it
vanishes, and what it misses. `verify/estimator_unbiasedness` holds every row of the catalogue to
its own.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
from typing import ClassVar


class Kind(enum.StrEnum):
    """The kinds of estimands, whose estimates are never compared with each other's."""

    OBJECTIVE_GRADIENT = "objective gradient"
    FIXED_POINT_RESIDUAL = "fixed-point residual"
    APPROXIMATE_RESIDUAL = "fixed-point residual up to O(dt)"
    BIASED = "biased"


class ResidualZero(enum.StrEnum):
    """Controls that are the optimal one up to a relative O(dt), and exactly so in linear-quadratic
    problems, but for `PREVIOUS_COSTATE`.

    >>> CrossEntropy().estimates.zero is ResidualZero.LEAST_CROSS_ENTROPY
    True
    """

    LEAST_CROSS_ENTROPY = "the mean controlled noise of the optimal path measure"
    EQUAL_WEIGHTS = "the control on whose paths rho and rho^2 weigh the noise of every step alike"
    PREVIOUS_COSTATE = "the control B_k^T E[a_k | x_k] / beta_k of its own lean costates"
    BRIDGES = "the control B_k^T E[a_{k+1} | x_k] / beta_k at bridges between its own ends"


class Estimand(abc.ABC):
    """What the gradient of a loss is in expectation.

    Attributes:
        kind: what records call it.

    >>> isinstance(AdjointMatching().estimates, Estimand)
    True
    """

    kind: ClassVar[Kind]


@dataclasses.dataclass(frozen=True)
class ObjectiveGradient(Estimand):
    """Minus the gradient of the objective at every policy.

    >>> FullAdjoint().estimates == ObjectiveGradient()
    True
    """

    kind: ClassVar[Kind] = Kind.OBJECTIVE_GRADIENT


@dataclasses.dataclass(frozen=True)
class FixedPointResidual(Estimand):
    """Zero at the optimum and nowhere else, and elsewhere not the gradient of the objective.

    Attributes:
        any_noise: whether also where :math:`B_k` depends on the state.

    >>> AdjointMatching().estimates == FixedPointResidual(any_noise=False)
    True
    """

    kind: ClassVar[Kind] = Kind.FIXED_POINT_RESIDUAL

    any_noise: bool = False


@dataclasses.dataclass(frozen=True)
class ApproximateResidual(Estimand):
    """Zero at a control that is the optimal one up to a relative O(dt), and nowhere else.

    Attributes:
        zero: where it is exactly zero.
        any_noise: whether also where :math:`B_k` depends on the state.

    >>> print(ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY).zero)
    the mean controlled noise of the optimal path measure
    """

    kind: ClassVar[Kind] = Kind.APPROXIMATE_RESIDUAL

    zero: ResidualZero
    any_noise: bool = False


@dataclasses.dataclass(frozen=True)
class LastStepsGradient(Estimand):
    """Minus the gradient of the objective in the parameters of the last steps, the estimator's
    ``last``, and zero in those of earlier ones.

    >>> TruncatedBackprop(last=2).estimates == LastStepsGradient()
    True
    """

    kind: ClassVar[Kind] = Kind.BIASED


@dataclasses.dataclass(frozen=True)
class Biased(Estimand):
    """Neither the gradient of the objective nor a field that vanishes at the optimum alone.

    Attributes:
        why: what is missing or wrong.
        zero_at_optimum: whether it vanishes at the optimum.

    >>> Biased("the KL is left out").zero_at_optimum
    False
    """

    kind: ClassVar[Kind] = Kind.BIASED

    why: str
    zero_at_optimum: bool = False
