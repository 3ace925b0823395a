"""What is known of a value function: its Lipschitz constant and the two sides of its Hessian's
spectrum, before and after smoothing.
"""

from __future__ import annotations

import dataclasses
import math

from socft.theory.one_step import (
    SHARP,
    SHARP_SECOND,
    SHARP_THIRD,
    smoothed_curvature,
    smoothed_third,
)


@dataclasses.dataclass(frozen=True)
class Smoothed:
    """Bounds of a smoothed function ``G V``.

    Attributes:
        L0: of ``|grad G V|``.
        up: of the largest eigenvalue of ``Hess G V``, K+ >= 0.
        down: of minus the smallest, K- >= 0.
        third_derivative_ratio: of ``|D^3 G V|`` over the larger of these two.
    """

    L0: float
    up: float
    down: float
    third_derivative_ratio: float

    @property
    def curvature(self) -> float:
        """K, of ``|Hess G V|``."""
        return max(self.up, self.down)

    @property
    def third(self) -> float:
        """Of ``|D^3 G V|``."""
        return self.third_derivative_ratio * self.curvature if self.curvature else 0.0


@dataclasses.dataclass(frozen=True)
class Smoothness:
    """Bounds of a function V.

    Attributes:
        L0: of ``|grad V|``, possibly infinite.
        up: of the largest eigenvalue of ``Hess V``, at least 0 and possibly infinite.
        down: of minus the smallest.
    """

    L0: float
    up: float
    down: float

    @property
    def L1(self) -> float:
        """Lipschitz constant of the gradient."""
        return max(self.up, self.down)

    def smoothed(self, sigma: float) -> Smoothed:
        """Bounds of G V with noise ``sigma W``, each side of the spectrum by itself.

        `smoothed_curvature` needs the bound of one side only: of the slope ``f(w)`` along b, whose
        ``E[f(w) w] / sigma`` is ``b . Hess(G V) b``, the odd part counts, which is at most
        ``min(L0, sigma up |w|)`` and at least ``-min(L0, sigma down |w|)``. And the third
        derivative, ``E[Hess V[a, b] (c.W)] / sigma``, does not see a multiple of I, so that half
        the width of the spectrum takes the place of L1 in `smoothed_third`. Tight: attained as
        these two.
        """
        up, down = (smoothed_curvature(self.L0, abs(side), sigma) for side in (self.up, self.down))
        third = smoothed_third(self.L0, abs(self.up + self.down) / 2, sigma)
        return Smoothed(self.L0, up, down, _ratio(third, max(up, down), sigma))


@dataclasses.dataclass(frozen=True)
class Approximation(Smoothness):
    """Bounds of a value function V of PI-FT, which approximates the optimal one.

    Attributes:
        optimum: bounds of the optimal V*.
        gap: of ``sup (V* - V)``, which is at least 0.
        gradient_error: of ``sup |grad V - grad V*|``.
    """

    optimum: Smoothness
    gap: float
    gradient_error: float

    def smoothed_error(self, sigma: float) -> float:
        """Of ``sup |grad G (V* - V)|``: `gradient_error`, or ``gap / (sigma sqrt(2 pi))`` if that
        is less.

        By parts, ``b . grad G f = E[f (b.W)] / sigma``, and f may be centred to ``+-gap / 2``; the
        factor is ``sqrt(2/pi) / 2``. So an error of the gradient need not be carried from step to
        step: the error of the value, which does not grow, bounds it anew.
        """
        return min(self.gradient_error, SHARP * self.gap / 2 / sigma)

    def smoothed(self, sigma: float) -> Smoothed:
        """The smaller of V's own bounds and those of V* with the smoothed error's.

        The derivatives of ``f = V* - V`` of order 2 and 3 are those of `smoothed_error` by parts
        once more: ``E|W^2 - 1|`` and ``E|W^3 - 3 W|`` with the value, ``E|W|`` and ``E|W^2 - 1|``
        with the gradient (a symmetric form is largest on the diagonal).
        """
        own, best = super().smoothed(sigma), self.optimum.smoothed(sigma)
        value, slope = self.gap / 2, self.gradient_error
        second = min(SHARP_SECOND * value / sigma**2, SHARP * slope / sigma)
        third = min(SHARP_THIRD * value / sigma**3, SHARP_SECOND * slope / sigma**2)
        up, down = min(own.up, best.up + second), min(own.down, best.down + second)
        return Smoothed(
            min(own.L0, best.L0 + self.smoothed_error(sigma)),
            up,
            down,
            _ratio(min(own.third, best.third + third), max(up, down), sigma),
        )


def _ratio(third: float, curvature: float, sigma: float) -> float:
    """``third / curvature``, and what bounds it where they are zero or infinite."""
    usual = curvature > 0 and math.isfinite(curvature)
    return third / curvature if usual else SHARP / sigma
