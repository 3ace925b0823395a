"""Small quadratic instances."""

from __future__ import annotations

from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore

LEVELS = (0.3, 0.5, 0.7, 0.9)
LINE_QUADRATIC = QuadraticInstance(
    levels=LEVELS, lam=(0.5,) * 3, score=(-0.8,), shift=(0.3,), curvature=(-2.0,), slope=(1.0,)
)
PLANE_QUADRATIC = QuadraticInstance(
    levels=LEVELS,
    lam=(0.6, 0.4, 0.5),
    score=(-0.8, -1.2),
    shift=(0.3, 0.0),
    curvature=(1.0, -2.0),
    slope=(1.0, 0.5),
    rotation=1,
)
"""Convex in one direction and concave in the other, whose axes are not those of the score."""


def steep_quadratic(lam: tuple[float, ...], curvature: float = 1.5) -> ProductInstance:
    """A quadratic problem whose mean map is as steep as its Lipschitz constant allows."""
    levels = tuple(0.4 * (0.95 / 0.4) ** (t / len(lam)) for t in range(len(lam) + 1))
    factor = Factor(TanhScore(c=-0.2), Parabola(curvature, 0.5))
    return ProductInstance(levels=levels, lam=lam, factors=(factor,))
