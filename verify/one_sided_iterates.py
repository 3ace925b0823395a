r"""Every iterate of PI-FT is as regular as the optimum, up to what its updates have left
unfinished.

Setting: Algorithm 1 with m relaxed updates at every step, rate q; :math:`\bar L_0`, :math:`\bar
h^\pm` bound :math:`V^{(m)}_{t+1}`, :math:`\bar K^\pm` and T its smoothing, :math:`a = \rho\bar
K^+`, :math:`b = \rho\bar K^-`.

Statement: $|∇V_t^((m))| ≤ M (1 + o_m) macron(L)_0$ and $−(N_m + M^2 (macron(K)^(−)/(1 + b) + S_m +
R_m)) ≤ ∇^2 V_t^((m)) ≤ N_m + M^2 (macron(K)^+/(1 − a) + R_m)$, $N_m = N (1 + o_m) macron(L)_0$,
where $o_m$, $R_m$, $S_m$ are $O(m q^m)$

They are :math:`o_m = q^m |J_m|`, :math:`R_m = q^m |D J_m| \bar L_0` and :math:`S_m = (1/\rho + \bar
K^-) |J_m - J_m^*|^2`. Moreover :math:`\bar K^\pm` is at most the optimum's plus what the error of
the value in front allows, :math:`\sqrt{2/(\pi e)}\, v_{t+1}/\sigma^2`, so that the constants do
not compound over the steps. Proofs are in `socft.theory.one_sided`.

Kind: upper bound: it adds maxima that occur at different points.

Source: derived here, in place of Lemma 3.2 with (38) and (39) of arXiv 2412.18164v4.

How it is measured: gradients and both ends of the spectrum of PI-FT's values, and derivatives of
its controls, by quadrature, in up to 64 dimensions as rotated products, at the smallest weights
admitted; one quadratic step in closed form.

What would refute it: a gradient or an eigenvalue beyond its bound by more than quadrature error.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import ProductInstance
from verify.support.iterates import differentiate, supremum
from verify.support.one_sided import RELAXATIONS, RelaxedPass, relaxations
from verify.support.staircase import clipped
from verify.support.strategies import curved_rewards, instances
from verify.support.suprema import ACCURACY, DIFFERENCED, TWICE

CLAIM = Claim.of_module(__name__, __doc__, "One-sided Lemma 3.2", topics.ONE_SIDED)
CLOSED_FORM = 1e-12


def measure(each: RelaxedPass) -> tuple[Tensor, Tensor, Tensor]:
    """Suprema of the gradient, (T,), of both ends of the spectrum, (2, T), and of the first and
    second derivative of the whitened control, (2, T).
    """
    slopes, bends = [], []
    for found in each.found:
        first = [differentiate(g, s) for g, s in zip(found.grids[:-1], found.shifts, strict=True)]
        second = [differentiate(g, s) for g, s in zip(found.grids[:-1], first, strict=True)]
        slopes.append(supremum(first))
        bends.append(supremum(second))
    sigma = each.instance.schedule.sigma
    control = torch.stack([torch.stack(slopes).amax(0), torch.stack(bends).amax(0)]) / sigma
    return each.gradient()[:-1], each.spectrum()[:, :-1], control


def bound(found: theory.Regularity) -> tuple[Tensor, Tensor, Tensor]:
    """The same of the statement."""
    ends = torch.stack([found.up, found.down])[:, :-1]
    return found.L0V[:-1], ends, torch.stack([found.L0v, found.L1v])


@settings(max_examples=12)
@given(instances(steps=5, rewards=curved_rewards()), st.integers(0, 5), relaxations())
def test_holds(instance: ProductInstance, rounds: int, relaxation: theory.Relaxation) -> None:
    each = RelaxedPass(instance, relaxation, rounds)
    (gradient, ends, control), limits = measure(each), bound(each.constants)
    floor = ACCURACY * instance.dim**0.5
    CLAIM.holds(gradient, limits[0], each, floor=floor, part="gradient")
    CLAIM.holds(ends[0], limits[1][0], each, floor=DIFFERENCED, part="largest eigenvalue")
    CLAIM.holds(ends[1], limits[1][1], each, floor=DIFFERENCED, part="smallest eigenvalue")
    CLAIM.holds(control[0], limits[2][0], each, floor=DIFFERENCED, part="slope of the control")
    CLAIM.holds(control[1], limits[2][1], each, floor=TWICE, part="bend of the control")


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_holds_for_all_numbers_of_updates(relaxation: theory.Relaxation) -> None:
    """The constants of given numbers are below those that hold for all m >= 1 at once."""
    steep, spectra = 0.7, (0.6, 0.9)
    smooth = theory.Smoothed(steep, *spectra, 0.8)
    every = theory.InnerLoop(smooth, 0.9, relaxation)
    for rounds in range(1, 40):
        loop = theory.InnerLoop(smooth, 0.9, relaxation, rounds)
        for name in ("overshoot", "residual_bend", "sag", "gradient_error", "value_gap"):
            where = {"updates": rounds, "theta": loop.theta}
            CLAIM.holds(getattr(loop, name), getattr(every, name), where, part="all m")


@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_needs_the_sag(rounds: int) -> None:
    """A concave quadratic step with b = 0.7: an unfinished value is more curved downwards than
    ``K- / (1 + b)``.
    """
    b = 0.7
    CLAIM.breaks(_downward(b, rounds), b / (1 + b), {"b": b, "updates": rounds}, "term S_m")
    loop = theory.InnerLoop(theory.Smoothed(1.0, 0.0, b, 0.0), 1.0, theory.UNDAMPED, rounds)
    limit = b / (1 + b) + loop.sag
    CLAIM.holds(_downward(b, rounds), limit, {"b": b, "updates": rounds}, part="quadratic step")


def test_needs_the_overshoot() -> None:
    """A convex clipped slope: the value of an unfinished iterate is 1.4 times as steep as the one
    in front, and not steeper than with o_m.
    """
    step, rounds = clipped(0.9, 10.0), 2
    where = step.describe() | {"updates": rounds}
    CLAIM.breaks(step.steepest(rounds), step.L0 * (1 + CLOSED_FORM), where, "term o_m")
    smooth = theory.Smoothed(step.L0, 1.0, 0.0, theory.SHARP / 2)
    loop = theory.InnerLoop(smooth, step.q, theory.UNDAMPED, rounds)
    limit = step.L0 * (1 + loop.overshoot)
    CLAIM.holds(step.steepest(rounds), limit, where, part="clipped slope")


def test_needs_the_rate_of_the_relaxation() -> None:
    """With the undamped rate in place of its own, an iteration damped to theta = 0.3 leaves more of
    the sag than the bound allows.
    """
    b, theta, rounds = 0.3, 0.3, 4
    undamped = theory.InnerLoop(theory.Smoothed(1.0, 0.0, b, 0.0), 1.0, theory.UNDAMPED, rounds)
    J = 0.0
    for _ in range(rounds):
        J += theta * (-b * (1 + J) - J)
    measured = b * (1 + J) ** 2 + J**2
    where = {"b": b, "theta": theta, "updates": rounds}
    CLAIM.breaks(measured, b / (1 + b) + undamped.sag, where, "rate")


def _downward(b: float, rounds: int) -> float:
    """``-E_m''`` of undamped updates for ``G V = -b x^2 / 2``, rho = 1."""
    J = 0.0
    for _ in range(rounds):
        J = -b * (1 + J)
    return b * (1 + J) ** 2 + J**2
