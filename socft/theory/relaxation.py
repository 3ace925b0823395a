"""The relaxation of PI-FT's inner iteration: how far an update goes, and what that does to its
rate.
"""

from __future__ import annotations

import abc
import dataclasses

from socft.checks import keep, number, require


class Relaxation(abc.ABC):
    """How far an inner update goes: ``delta <- (1 - theta) delta + theta rho grad G V(x + delta)``.

    It is gradient ascent with the step ``theta rho`` on ``G V(x + delta) - |delta|^2 / (2 rho)``,
    whose Hessian lies between ``-(1 + b) / rho`` and ``-(1 - a) / rho`` with ``a = rho K+`` and
    ``b = rho K-``. So a < 1 makes the maximum well posed, and the factor theta decides the rest.
    """

    @abc.abstractmethod
    def factor(self, a: float, b: float) -> float:
        """theta for these curvatures."""

    @abc.abstractmethod
    def binding(self, up: float, down: float) -> float:
        """K of the condition ``rho K < 1`` under which updates contract, from K+ and K-."""

    @abc.abstractmethod
    def stretch(self, a: float, b: float) -> float:
        """``theta / (1 - q) = theta (1 + q + q^2 + ...)``, at least ``1 / (1 - a)``."""

    def rate(self, a: float, b: float) -> float:
        """``q = max(1 - theta (1 - a), theta (1 + b) - 1)``; tight.

        The Jacobian of an update, ``(1 - theta) I + theta rho H``, has its spectrum between
        ``1 - theta (1 + b)`` and ``1 - theta (1 - a)``. Attained by quadratic value functions.
        """
        theta = self.factor(a, b)
        return max(1 - theta * (1 - a), theta * (1 + b) - 1)


@dataclasses.dataclass(frozen=True)
class FixedRelaxation(Relaxation):
    """One factor for all steps, in (0, 2); 1 is the paper's iteration.

    It contracts if ``a < 1`` and ``b < (2 - theta) / theta``: undamped, theta = 1, needs both sides
    of the curvature, a smaller theta less and less of the lower side.
    """

    theta: float

    def __post_init__(self) -> None:
        theta = number(self.theta, "theta")
        require(0 < theta < 2, f"theta = {theta:g}; a relaxation factor must lie in (0, 2).")
        keep(self, theta=theta)

    def factor(self, a: float, b: float) -> float:
        return self.theta

    def binding(self, up: float, down: float) -> float:
        return max(up, self.theta / (2 - self.theta) * down)

    def stretch(self, a: float, b: float) -> float:
        return max(1 / (1 - a), self.theta / (2 - self.theta * (1 + b)))


@dataclasses.dataclass(frozen=True)
class BestRelaxation(Relaxation):
    """The factor of the smallest rate: ``theta = 2 / (2 + b - a)``, ``q = (a + b) / (2 + b - a)``.

    That is ``(kappa - 1) / (kappa + 1)`` with the condition number ``kappa = (1 + b) / (1 - a)``:
    below 1 whenever a < 1, however large b. So one side of the curvature decides whether PI-FT
    converges, the other only how fast.
    """

    def factor(self, a: float, b: float) -> float:
        return 2 / (2 + b - a)

    def binding(self, up: float, down: float) -> float:
        return up

    def stretch(self, a: float, b: float) -> float:
        return 1 / (1 - a)


UNDAMPED = FixedRelaxation(1.0)
"""The paper's iteration."""
