"""The three sets of constants that enter every statement: the paper's, the sharper two-sided ones
and the one-sided ones.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from typing import ClassVar

from torch import Tensor

from socft.checks import InvalidProblem, numbers, per_step, require_kind
from socft.theory.chain import ChainConstants
from socft.theory.numbers import ROUNDING, StepValues, product
from socft.theory.one_sided import InnerLoop, MeanMap, iterate_step, optimal_step
from socft.theory.one_step import (
    SHARP,
    expected_norm,
    iterate_excess,
    mean_lipschitz,
    one_sided_mean_lipschitz,
    shift_lipschitz,
    shift_smoothness,
    smoothed_curvature,
    smoothed_third,
    value_lipschitz,
    value_smoothness,
)
from socft.theory.relaxation import UNDAMPED, Relaxation
from socft.theory.smoothness import Approximation, Smoothed, Smoothness


@dataclasses.dataclass(frozen=True)
class StepConstants:
    """The numbers of one step.

    Attributes:
        mean_L0: M, of the mean map.
        mean_L1: N, of its Jacobian.
        smooth: bounds of the smoothed next value function.
        rho: ``sigma^2 / beta``.
        lam: ``1 - rho K`` with the curvature K that decides whether the statement admits beta.
        sigma: noise scale.
        rounds: number of inner updates m; None where a statement is about all m.
    """

    mean_L0: float
    mean_L1: float
    smooth: Smoothed
    rho: float
    lam: float
    sigma: float
    rounds: int | None = None


class Bounds(abc.ABC):
    """Which constants enter the recursions: of the mean map, of the smoothed value function, of
    envelopes and of unfinished iterates.
    """

    name: ClassVar[str]
    relaxation: Relaxation = UNDAMPED

    @abc.abstractmethod
    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``M``, shape (T,)."""

    @abc.abstractmethod
    def reward(self, chain: ChainConstants) -> Smoothness:
        """What is known of the reward."""

    @abc.abstractmethod
    def smoothed(self, value: Smoothness, sigma: float, dim: int) -> Smoothed:
        """What is known of ``G V``."""

    @abc.abstractmethod
    def optimal(self, value: Smoothness, local: StepConstants) -> Smoothness:
        """(14) and (15): the optimal value function of the step before."""

    @abc.abstractmethod
    def iterate(self, value: Smoothness, local: StepConstants) -> Smoothness:
        """(38) and (39): the value functions of iterates of the step before."""

    @abc.abstractmethod
    def optimal_shift(self, local: StepConstants) -> tuple[float, float]:
        """Lipschitz constants of the optimal shift of the mean and of its Jacobian."""

    @abc.abstractmethod
    def iterate_shift(self, local: StepConstants) -> tuple[float, float]:
        """The same of the shifts of iterates."""

    def started(self, reward: Smoothness) -> Smoothness:
        """The value function at T as that of an iterate."""
        return reward


class TwoSidedBounds(Bounds):
    """Constants of one curvature for both signs, and with the design constant lam that bounds the
    rate of the undamped iteration.
    """

    @abc.abstractmethod
    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``K >= |Hess G V|`` for an L0-Lipschitz V with L1-Lipschitz gradient."""

    @abc.abstractmethod
    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``tau >= |D^3 G V| / K``."""

    @abc.abstractmethod
    def overshoot(self, lam: float) -> float:
        """``Lb0_t / (M Lb0_{t+1}) - 1``, by how much an unfinished iterate's value may be steeper
        than a finished one's.
        """

    def reward(self, chain: ChainConstants) -> Smoothness:
        return Smoothness(chain.reward_L0, chain.reward_L1, chain.reward_L1)

    def smoothed(self, value: Smoothness, sigma: float, dim: int) -> Smoothed:
        curvature = self.curvature(value.L0, value.L1, sigma)
        ratio = self.third_derivative_ratio(value.L0, value.L1, sigma, dim)
        return Smoothed(value.L0, curvature, curvature, ratio)

    def optimal(self, value: Smoothness, local: StepConstants) -> Smoothness:
        L1 = value_smoothness(
            value.L0, local.smooth.curvature, local.mean_L0, local.mean_L1, local.lam
        )
        return Smoothness(value_lipschitz(value.L0, local.mean_L0), L1, L1)

    def iterate(self, value: Smoothness, local: StepConstants) -> Smoothness:
        """Uniformly in the number of updates."""
        excess = iterate_excess(
            value.L0,
            local.smooth.curvature,
            local.mean_L0,
            local.mean_L1,
            local.smooth.third_derivative_ratio,
            local.lam,
        )
        L1 = self.optimal(value, local).L1 + excess
        return Smoothness(product(local.mean_L0, 1 + self.overshoot(local.lam), value.L0), L1, L1)

    def optimal_shift(self, local: StepConstants) -> tuple[float, float]:
        ratio = local.smooth.third_derivative_ratio
        return (
            shift_lipschitz(local.mean_L0, local.lam),
            shift_smoothness(local.mean_L0, local.mean_L1, ratio, local.lam),
        )

    def iterate_shift(self, local: StepConstants) -> tuple[float, float]:
        return self.optimal_shift(local)


class PaperBounds(TwoSidedBounds):
    """The paper's constants."""

    name = "paper"

    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``(1 + g L0s) / sqrt(a)``."""
        return mean_lipschitz(chain)

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``L1V``: smoothing does not increase it."""
        return L1

    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``C_d / sigma``, from ``|E[Hess V W]| <= L1V E|W|``; it grows like ``sqrt(d)``."""
        return expected_norm(dim) / sigma

    def overshoot(self, lam: float) -> float:
        """``q^2 / lam``, from ``|Jac delta_m| <= q D`` and ``|G_m - G_{m-1}| <= q^m Lb0`` with m >=
        1 (38).
        """
        return (1 - lam) ** 2 / lam


class SharpBounds(TwoSidedBounds):
    """The constants derived here; at the same beta none is above the paper's.

    At the same lam the required beta is smaller, which may make the control rougher: L1u may then
    exceed the paper's in dimension one.

    Args:
        mean_L0: exact Lipschitz constants of the mean maps where they are known, shape (T,);
            ``(1 + g L0s) / sqrt(a)`` by default. Replacing M is allowed everywhere, because the
            score enters only through the mean map.
    """

    name = "sharp"

    def __init__(self, mean_L0: Tensor | None = None):
        self.mean_L0 = None if mean_L0 is None else numbers(mean_L0, "mean_L0")

    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``mean_L0`` where given.

        Raises:
            InvalidProblem: a given constant is negative or exceeds ``(1 + g L0s) / sqrt(a)``, and
                so is not the exact one.
        """
        largest = mean_lipschitz(chain)
        if self.mean_L0 is None:
            return largest
        exact = per_step(self.mean_L0, chain.steps, "mean_L0")
        outside = (
            (~((exact >= 0) & (exact <= largest * (1 + ROUNDING)))).nonzero().flatten().tolist()
        )
        if outside:
            t = outside[0]
            raise InvalidProblem(
                f"mean_L0[{t}] = {exact[t]:g}; it must lie between 0 and (1 + g L0s) / sqrt(a) ="
                f" {largest[t]:g}.",
            )
        return exact

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """`smoothed_curvature`."""
        return smoothed_curvature(L0, L1, sigma)

    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """`smoothed_third` over `smoothed_curvature`, between ``sqrt(2/pi) / sigma`` (where K =
        L1V) and ``1.36 / sigma``.

        ``sqrt(2/pi) / sigma`` alone would be wrong beside the smoothed curvature: the slope
        ``V' = L0 sign(x^2 - sigma^2)`` has ``D^3 G V = 2 / (sqrt(e) sigma) = 1.21 / sigma`` product
        ``sqrt(2/pi) L0 / sigma`` at x = 0.
        """
        curvature = smoothed_curvature(L0, L1, sigma)
        if curvature == 0 or math.isinf(curvature):
            return SHARP / sigma
        return smoothed_third(L0, L1, sigma) / curvature

    def overshoot(self, lam: float) -> float:
        """``max_{m >= 1} q^{m+1} (1 - q^m) / lam <= q / (4 lam)``, because
        ``|Jac delta_m| <= (q + ... + q^m) M``.

        As a function of ``x = q^m`` it is ``q x (1 - x) / lam``: an integer next to ``x = 1/2``
        attains the maximum.
        """
        if lam == 1:
            return 0.0
        log = math.log1p(-lam)
        middle = max(1, math.floor(math.log(0.5) / log))
        powers = (math.exp(m * log) for m in (middle, middle + 1))
        return max((1 - lam) * x * (1 - x) / lam for x in powers)


class OneSidedBounds(Bounds):
    """The constants of `socft.theory.one_sided`: the Jacobian of the mean map by the one-sided
    constants of the score, and curvatures with their signs.

    Under the best relaxation the condition on beta sees positive curvature only, and is that of
    well-posedness; undamped it sees both signs.

    Args:
        relaxation: of the inner iteration, the paper's by default.
    """

    name = "one-sided"

    def __init__(self, relaxation: Relaxation = UNDAMPED):
        require_kind(relaxation, Relaxation, "relaxation", "give a Relaxation, such as UNDAMPED.")
        self.relaxation = relaxation

    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """`one_sided_mean_lipschitz`."""
        return one_sided_mean_lipschitz(chain)

    def reward(self, chain: ChainConstants) -> Smoothness:
        return Smoothness(chain.reward_L0, chain.reward_up, chain.reward_down)

    def started(self, reward: Smoothness) -> Approximation:
        return Approximation(reward.L0, reward.up, reward.down, reward, 0.0, 0.0)

    def smoothed(self, value: Smoothness, sigma: float, dim: int) -> Smoothed:
        return value.smoothed(sigma)

    def optimal(self, value: Smoothness, local: StepConstants) -> Smoothness:
        return optimal_step(_mean(local), local.smooth, local.rho)

    def iterate(self, value: Smoothness, local: StepConstants) -> Smoothness:
        """For the given number of updates, or uniformly."""
        assert isinstance(value, Approximation)
        return iterate_step(_mean(local), self.loop(local), value, local.sigma)

    def optimal_shift(self, local: StepConstants) -> tuple[float, float]:
        loop = self.loop(local)
        return _composed(loop.finished_jacobian, loop.finished_bend, local)

    def iterate_shift(self, local: StepConstants) -> tuple[float, float]:
        loop = self.loop(local)
        return _composed(loop.jacobian, loop.bend, local)

    def loop(self, local: StepConstants) -> InnerLoop:
        """The inner iteration of a step."""
        return InnerLoop(local.smooth, local.rho, self.relaxation, local.rounds)


def _mean(local: StepConstants) -> MeanMap:
    return MeanMap(local.mean_L0, local.mean_L1)


def _composed(jacobian: float, bend: float, local: StepConstants) -> tuple[float, float]:
    """Lipschitz constants of a shift composed with the mean map, and of its Jacobian."""
    return (
        product(jacobian, local.mean_L0),
        product(bend, local.mean_L0, local.mean_L0) + product(jacobian, local.mean_L1),
    )
