r"""Bounded rewards: one KL weight for every chain, every number of steps and of updates.

Setting: the undamped updates of Algorithm 1, any number of them at every step; the reward is
bounded, :math:`\mathrm{osc}\, r = \sup r - \inf r`. Nothing is asked of the score, of the dimension
or of derivatives of the reward.

Statement: $β_t ≥ sqrt(2/(π e)) op("osc") r/(1 − λ)$ for all $t$ ⇒ $ρ_t |∇^2 G V_(t+1)^((m))| ≤ 1 −
λ$ for all $t$ and $m$

By parts, :math:`b^\top \nabla^2 G V\, b = E[V(x + \sigma W)((b \cdot W)^2 - 1)]/\sigma^2`, in which
V may be centred to :math:`\pm\mathrm{osc}\, V/2`, and :math:`E|Z^2-1| = \sqrt{8/(\pi e)}`; the
noise cancels against :math:`\rho = \sigma^2/\beta`. And :math:`\mathrm{osc}\, V_t^{(m)} \le
\mathrm{osc}\, r` by induction: the value of an iterate is at most :math:`\sup V_{t+1}`, and at
least :math:`G V_{t+1}(m_t)`, because updates that contract start from no control and climb.

Kind: tight: attained at one step by the indicator of :math:`|x| < \sigma`.

Source: derived here.

How it is measured: Lipschitz constants of updates of PI-FT by quadrature, on chains with separated
modes too; the indicator in closed form.

What would refute it: an update map that contracts less.
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.pi_ft import backward_induction
from verify.contraction import map_constants
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.scores import MixtureScore
from verify.support.strategies import PseudoHuber, Sine, line_instances, numbers
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Bounded rewards", topics.ONE_SIDED)
LAM = 0.5


def measure(instance: ProductInstance, beta: Tensor, rounds: int) -> Tensor:
    """``sup rho |Hess G V^(m)|``, shape (T,)."""
    truth = instance.parts(beta)[0]
    return map_constants(truth.problem, backward_induction(truth.problem, truth.grids, rounds))


def bound(oscillation: float, lam: float) -> float:
    """The weight."""
    one = torch.ones(1, dtype=torch.float64)
    return float(theory.oscillation_curvature(oscillation, one)[0]) / (1 - lam)


@settings(max_examples=12)
@given(
    line_instances(
        steps=6, rewards=st.builds(Sine, numbers(0.2, 2), numbers(0.5, 3), numbers(-3, 3))
    ),
    st.integers(0, 4),
)
def test_holds(instance: ProductInstance, rounds: int) -> None:
    reward = instance.factors[0].reward
    assert isinstance(reward, Sine)
    beta = torch.full((instance.steps,), bound(2 * abs(reward.amplitude), LAM)).double()
    where = {"instance": instance.describe(), "updates": rounds, "beta": beta.tolist()}
    CLAIM.holds(measure(instance, beta, rounds), 1 - LAM, where, floor=ACCURACY)


def test_holds_for_separated_modes() -> None:
    """Where the one-sided constants ask for ten times as much at five steps, and for a thousand
    times at fifty.
    """
    score = MixtureScore((0.7, 0.3), (-1.5, 1.5), (0.16, 0.16))
    levels = tuple(0.02 * (0.98 / 0.02) ** (t / 10) for t in range(11))
    factor = Factor(score, Sine(1.0, 2.0))
    instance = ProductInstance(levels=levels, lam=(LAM,) * 10, factors=(factor,))
    beta = torch.full((10,), bound(2.0, LAM), dtype=torch.float64)
    for rounds in (1, 3):
        CLAIM.holds(measure(instance, beta, rounds), 1 - LAM, instance, floor=ACCURACY)


def test_is_attained() -> None:
    """``Hess G V`` of the indicator at 0 is ``-2 phi(1) / sigma^2``."""
    for sigma in (0.3, 2.0):
        seen = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
        CLAIM.attained(seen / bound(1.0, LAM), 1 - LAM, {"sigma": sigma}, within=1e-12)


def test_needs_the_whole_weight() -> None:
    """A tenth less, and the indicator's update contracts by less than ``1 - lam``."""
    seen = 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)
    CLAIM.breaks(seen / (0.9 * bound(1.0, LAM)), 1 - LAM, {"weight": 0.9}, "weight")


def test_needs_a_bound_of_the_whole_reward() -> None:
    """With the oscillation within a standard deviation of the noise, as of a reward with a kink,
    the weight is too small.
    """
    score = MixtureScore((1.0,), (0.0,), (1.0,))
    factor = Factor(score, PseudoHuber(0.06, 0.0, 16.0))
    instance = ProductInstance(levels=(0.3, 0.9), lam=(LAM,), factors=(factor,))
    sigma = float(instance.schedule.sigma[0])
    nearby = 0.06**2 * 16 * (math.sqrt(1 + (sigma / 0.06) ** 2) - 1)
    beta = torch.full((1,), bound(nearby, LAM), dtype=torch.float64)
    rate = float(measure(instance, beta, 0)[0])
    CLAIM.breaks(rate, 1 - LAM, instance, "oscillation over all states")
