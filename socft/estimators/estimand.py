"""What an estimator estimates: the expectation of the gradient of its loss, on paths of the policy.

It is a complete statement: where the expectation is minus the gradient of the objective, where it
vanishes, and what it misses. `verify/estimator_unbiasedness` holds every row of the catalogue to
its own.
"""

from __future__ import annotations

import abc
import dataclasses
import enum


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


class FixedPointEquation(enum.StrEnum):
    r"""Equations that the limit of a method solves in place of the optimality condition.

    With the velocity u of the model, that of the pre-trained one :math:`u_0`, the law q of the
    model's samples, :math:`y = \epsilon - x_0`, the method's baseline c and its weight b of the
    divergence. Where u is the velocity of q the first one is :math:`u - u_0 = Cov_q(r, y|x)/b`.

    >>> print(EquationResidual(FixedPointEquation.ENDPOINT_COVARIANCE).equation)
    u - u_0 = E_q[(r - c) (y - u) | x] / b at every level
    """

    ENDPOINT_COVARIANCE = "u - u_0 = E_q[(r - c) (y - u) | x] / b at every level"
    NORMALISED_COVARIANCE = "u - u_0 = E_q[(r - c) (y - u) / size(y - u) | x] / b at every level"
    NO_KL_TO_GO = "v_k = B_k^T E[grad W_{k+1}] / beta_k, W the mean reward without the KL to go"
    TILT = "samples of the law p exp(r / b) / Z"
    DETERMINISTIC = "the optimal control of the equation without noise"
    REWARD_ALONE = "the greatest reward, whatever the divergence"
    LOOK_AHEAD = "guidance by the gradient of the reward of the endpoint that the model predicts"


class Estimand(abc.ABC):
    """What the gradient of a loss is in expectation.

    >>> isinstance(AdjointMatching().estimates, Estimand)
    True
    """

    @property
    @abc.abstractmethod
    def kind(self) -> Kind:
        """What records call it."""


@dataclasses.dataclass(frozen=True)
class ObjectiveGradient(Estimand):
    """Minus the gradient of the objective at every policy.

    >>> FullAdjoint().estimates == ObjectiveGradient()
    True
    """

    @property
    def kind(self) -> Kind:
        return Kind.OBJECTIVE_GRADIENT


@dataclasses.dataclass(frozen=True)
class FixedPointResidual(Estimand):
    """Zero at the optimum and nowhere else, and elsewhere not the gradient of the objective.

    Attributes:
        any_noise: whether also where :math:`B_k` depends on the state.

    >>> AdjointMatching().estimates == FixedPointResidual(any_noise=False)
    True
    """

    any_noise: bool = False

    @property
    def kind(self) -> Kind:
        return Kind.FIXED_POINT_RESIDUAL


@dataclasses.dataclass(frozen=True)
class ApproximateResidual(Estimand):
    """Zero at a control that is the optimal one up to a relative O(dt), and nowhere else.

    Attributes:
        zero: where it is exactly zero.
        any_noise: whether also where :math:`B_k` depends on the state.

    >>> print(ApproximateResidual(ResidualZero.LEAST_CROSS_ENTROPY).zero)
    the mean controlled noise of the optimal path measure
    """

    zero: ResidualZero
    any_noise: bool = False

    @property
    def kind(self) -> Kind:
        return Kind.APPROXIMATE_RESIDUAL


@dataclasses.dataclass(frozen=True)
class LastStepsGradient(Estimand):
    """Minus the gradient of the objective in the parameters of the last steps, the estimator's
    ``last``, and zero in those of earlier ones.

    >>> TruncatedBackprop(last=2).estimates == LastStepsGradient()
    True
    """

    @property
    def kind(self) -> Kind:
        return Kind.BIASED


@dataclasses.dataclass(frozen=True)
class Biased(Estimand):
    """Neither the gradient of the objective nor a field that vanishes at the optimum alone.

    Attributes:
        why: what is missing or wrong.
        zero_at_optimum: whether it vanishes at the optimum.

    >>> Biased("the KL is left out").zero_at_optimum
    False
    """

    why: str
    zero_at_optimum: bool = False

    @property
    def kind(self) -> Kind:
        return Kind.BIASED


@dataclasses.dataclass(frozen=True)
class EquationResidual(Estimand):
    """Zero where an equation holds that is not the optimality condition, at every level or step.

    Attributes:
        equation: which.

    >>> print(EquationResidual(FixedPointEquation.TILT).kind)
    fixed-point residual up to O(dt)
    >>> print(EquationResidual(FixedPointEquation.NO_KL_TO_GO).kind)
    biased
    """

    equation: FixedPointEquation

    @property
    def kind(self) -> Kind:
        tilt = self.equation is FixedPointEquation.TILT
        return Kind.APPROXIMATE_RESIDUAL if tilt else Kind.BIASED
