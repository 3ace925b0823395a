r"""Noise flattens each side of the curvature by itself, and turns a small error of the value into
small errors of its derivatives.

Setting: :math:`|\nabla V| \le L_0`, the spectrum of :math:`\nabla^2 V` lies in :math:`[-h^-, h^+]`,
:math:`(G V)(x) = E V(x + \sigma W)`; f is a function with values in an interval of length v.

Statement: $−h^(−) op("erf")(L_0/(sqrt(2) σ h^(−))) ≤ ∇^2 G V ≤ h^+ op("erf")(L_0/(sqrt(2) σ h^+))$,
$|D^3 G V| ≤ sqrt(2/π) (h^+ + h^(−))/(2 σ)$ and $|∇G f| ≤ v/(σ sqrt(2 π))$

By parts, with the slope :math:`\varphi(w)` of V along b, :math:`b\cdot\nabla^2(G V) b =
E[\varphi(w) w]/\sigma`. Only the odd part of :math:`\varphi` counts, which is at most
:math:`\min(L_0, \sigma h^+|w|)` and never uses a falling slope. The third derivative does not see a
multiple of the identity, the gradient no constant.

Kind: tight: the clipped slopes of either sign, a curvature that jumps from one end of its range to
the other, and a step function.

Source: derived here.

How it is measured: functions whose second derivatives are staircases, and staircases, smoothed in
closed form.

What would refute it: a derivative beyond its bound.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.staircase import Staircase
from verify.support.strategies import numbers, staircases

CLAIM = Claim.of_module(__name__, __doc__, "One-sided smoothing", topics.ONE_SIDED)
FAR = 1e4
"""Length of a stretch of constant curvature, in units of sigma: a jump without ends."""


def measure(V: Staircase, sigma: float) -> tuple[float, float, float]:
    """Suprema of (G V)'', of -(G V)'' and of |(G V)'''|."""
    low, high = V.smoothed(sigma, 2)
    return max(high, 0.0), max(-low, 0.0), max(abs(x) for x in V.smoothed(sigma, 3))


def bound(V: Staircase, sigma: float) -> theory.Smoothed:
    """The statement's."""
    low, high = V.curvatures
    return theory.Smoothness(V.slopes[1], high, -low).smoothed(sigma)


def rise(V: Staircase, sigma: float) -> tuple[float, float]:
    """``sup |(G f)'|`` for f = V'', and the length of the interval of its values."""
    low, high = V.curvatures
    return max(abs(x) for x in V.smoothed(sigma, 3)), high - low


@settings(max_examples=200)
@given(staircases(), numbers(0.1, 3))
def test_holds(V: Staircase, sigma: float) -> None:
    up, down, third = measure(V, sigma)
    limit, where = bound(V, sigma), {**dataclasses.asdict(V), "sigma": sigma}
    CLAIM.holds(up, limit.up, where, part="largest eigenvalue")
    CLAIM.holds(down, limit.down, where, part="smallest eigenvalue")
    CLAIM.holds(third, limit.third, where, part="third derivative")
    slope, length = rise(V, sigma)
    CLAIM.holds(slope, length / (sigma * math.sqrt(2 * math.pi)), where, part="bounded function")


@pytest.mark.parametrize("sign", [1, -1])
def test_clipped_slopes_are_attained(sign: int) -> None:
    """A rise or a fall between flat ends, beside a longer stretch of the other sign that it does
    not feel.
    """
    corner, far, sigma = 0.7, 60.0, 0.5
    near = sign * 2.0
    away = -near * 2 * corner / 30.0
    V = Staircase((-corner, corner, far, far + 30.0), (near, 0.0, away))
    up, down, _ = measure(V, sigma)
    limit, where = bound(V, sigma), {**dataclasses.asdict(V), "sigma": sigma}
    seen, most = (up, limit.up) if sign > 0 else (down, limit.down)
    CLAIM.attained(seen, most, where, part="clipped slope")
    other = limit.down if sign > 0 else limit.up
    CLAIM.breaks(seen, other, where, "its own side")


def test_jumps_are_attained() -> None:
    """Curvature -1 below and 3 above, and the same as a function of two values."""
    sigma = 0.4
    V = Staircase((-FAR * sigma, 0.0, FAR * sigma), (-1.0, 3.0))
    where = {**dataclasses.asdict(V), "sigma": sigma}
    third = float(np.abs(V.derivative(np.zeros(1), sigma, 3))[0])
    CLAIM.attained(third, bound(V, sigma).third, where, part="jump")
    CLAIM.breaks(third, theory.SHARP * 3.0 / 2 / sigma, where, "whole width of the spectrum")
    slope = V.derivative(np.zeros(1), sigma, 3)[0]
    CLAIM.attained(float(slope), 4.0 / (sigma * math.sqrt(2 * math.pi)), where, part="step")


def test_needs_a_bounded_gradient() -> None:
    """A parabola keeps its curvature under smoothing."""
    limit = theory.Smoothness(1.0, 1.0, 0.0).smoothed(1.0).up
    CLAIM.breaks(1.0, limit, {"V": "x^2 / 2", "L0": "slope at sigma"}, "L0")
