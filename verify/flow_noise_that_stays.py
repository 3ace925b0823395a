r"""Samplers whose noise does not vanish with the step do not lead to the data law.

Setting: rectified flow, data N(m, S), T uniform steps from noise s = 1 to data s = 0 with exact
velocities. Coefficient-preserving sampling (CPS) has the correlation :math:`\rho = \cos(\eta
\pi/2)` at every step, whatever its length.

Statement: as $T → ∞$ the variance that CPS ends with tends to $S cos^2 (η π\/4)$, not to $S$, with
a distance of order $T^(−2\/3)$; the mean is exact at every $T$

With :math:`P = (1-s)^2 S`, :math:`Q = s^2`, :math:`c = P + Q` a step at level s multiplies by
:math:`(P + \rho Q)/c` and adds the variance :math:`(1-\rho^2) Q`; its fixed point is
:math:`v = (1+\rho)\,c^2/(2P + (1+\rho) Q)`, which is c at noise and :math:`(1+\rho) S/2` at data.
The variance follows it until the relaxation, :math:`(1-\rho) Q/c` per step, is slower than what is
left of the chain: at :math:`s^3 \sim 1/T`, where :math:`v/(1-s)^2` is off by :math:`O(s^2)`.

Kind: limit.

Source: derived here; arXiv 2509.05952 proposes the sampler.

How it is measured: the affine recursion of mean and variance over all steps, T = 800 to 6400, for S
from 0.05 to 4 and eta from 0.1 to 1; the limit also in ball arithmetic at T = 2048.

What would refute it: a distance to the limit that shrinks by less than 2^(-2/3) when T doubles, or
a mean off by more than `ROUNDING`.
"""

from __future__ import annotations

import math

import flint
from hypothesis import given, settings

from socft.flow import cps, flow_ddim, uniform_times
from socft.flow.schedule import FlowSchedule
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Noise that does not vanish", topics.FLOW)
ROUNDING = 1e-12
ORDER = 2 ** (2 / 3)
NEXT = 0.1
"""Share of the next order in the distance to the limit, at T = 1600."""
PRECISION = 200


def end(schedule: FlowSchedule, S: float, mean: float = 0.0) -> tuple[float, float]:
    """Mean and variance of the last state, from N(0, 1)."""
    levels = schedule.starts
    a, s, e, n = (
        v.tolist()
        for v in (levels.signal, levels.noise, schedule.endpoint_weight, schedule.noise_weight)
    )
    m, v = 0.0, 1.0
    for k, sigma in enumerate(schedule.sigma.tolist()):
        c = a[k] ** 2 * S + s[k] ** 2
        slope = (e[k] * a[k] * S + n[k] * s[k]) / c
        m = slope * m + (e[k] * s[k] - n[k] * a[k]) * s[k] / c * mean
        v = slope**2 * v + sigma**2
    return m, v


@settings(max_examples=12)
@given(numbers(0.05, 4), numbers(0.1, 1), numbers(-2, 2))
def test_holds(S: float, noise_level: float, mean: float) -> None:
    """The distance to the limit shrinks as stated, and the mean is exact."""
    limit = S * math.cos(noise_level * math.pi / 4) ** 2
    found = [end(cps(uniform_times(T), noise_level), S, mean) for T in (800, 1600)]
    where = {"S": S, "noise level": noise_level, "mean": mean, "T": [800, 1600]}
    gaps = [abs(v - limit) for _, v in found]
    CLAIM.equals([m - mean for m, _ in found], [0.0, 0.0], where, ROUNDING * 1600, "mean")
    CLAIM.holds(gaps[1], (1 + NEXT) * gaps[0] / ORDER, where, floor=1e-9, part="limit")


def test_needs_noise_that_vanishes() -> None:
    """At three noise levels, N(0, 1); the order at the largest."""
    coarse, fine = (abs(end(cps(uniform_times(T), 1.0), 1.0)[1] - 0.5) for T in (3200, 6400))
    where = {"S": 1.0, "noise level": 1.0, "T": [3200, 6400], "distances": [coarse, fine]}
    CLAIM.attained(fine, coarse / ORDER, where, within=NEXT, slack=NEXT, part="order")
    for noise_level in (0.3, 0.7, 1.0):
        _, variance = end(cps(uniform_times(6400), noise_level), 1.0)
        where = {"S": 1.0, "noise level": noise_level, "T": 6400}
        CLAIM.breaks(1 - variance, 0.9 * math.sin(noise_level * math.pi / 4) ** 2, where, "S")
        CLAIM.finding(
            f"at $η = {noise_level}$ CPS ends with {variance:.3f} of the variance of $N(0, 1)$"
            " after 6400 steps",
            where,
        )


def test_noise_that_vanishes_leads_to_the_data() -> None:
    """DDIM(eta), the twin: its variance tends to S."""
    gaps = [abs(end(flow_ddim(uniform_times(T), 0.7), 1.0)[1] - 1) for T in (800, 1600)]
    CLAIM.attained(
        gaps[1], gaps[0] / 2, {"S": 1.0, "eta": 0.7}, within=NEXT, slack=NEXT, part="DDIM"
    )


def test_certified() -> None:
    """In balls: at T = 2048 and eta = 1/2 the variance is within 1 % of the limit and 14 % below
    S.
    """
    flint.ctx.prec = PRECISION
    T, S, rho = 2048, flint.arb(1), (flint.arb.pi() / 4).cos()
    v = flint.arb(1)
    for k in range(T):
        s, end_s = flint.arb(flint.fmpq(T - k, T)), flint.arb(flint.fmpq(T - k - 1, T))
        a, a_end = 1 - s, 1 - end_s
        c = a**2 * S + s**2
        v = ((a_end * a * S + rho * end_s * s) / c) ** 2 * v + end_s**2 * (1 - rho**2)
    limit, where = S * (flint.arb.pi() / 8).cos() ** 2, {"S": 1.0, "noise level": 0.5, "T": T}
    CLAIM.certified(abs(v - limit), limit / 100, where, "limit")
    CLAIM.certified(v, flint.arb("0.86"), where, "below S")
