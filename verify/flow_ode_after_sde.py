r"""A flow that was fine-tuned with a stochastic sampler may be sampled with another, if it was
trained on the memoryless schedule, and otherwise not.

Setting: Gaussian data, quadratic reward, constant beta. The optimal control of the DDIM(eta) chain
is stored as a score, :math:`U = s + \sqrt{a}\,\sigma v/g`, and used in DDIM(eta'), eta' from 0, the
ordinary differential equation, to 1.

Statement: data $N(m, S)$, $r = P x^2\/2 + q x$, $β = 1$, $p = P S < 1$, trained at $η$ and sampled
at $η'$: as $T → ∞$ and $macron(α)_0 → 0$ the law of $X_T$ tends to that with the mean $m + (P m +
q) S F integral_0^1 H_b^(−1−κ) d y$ and the variance $S integral_0^1 H_c^(−2 κ) d y$, with $κ = (1 +
η'^2)\/(1 + η^2)$, $F = b (1 + η'^2)\/(1 + η^2)$, $b = 2 η^2\/(η^2 + η'^2)$, $c = (η\/η')^2$, $H_c =
1 − p (1 − y^c)$, and is off by $O(T^(−min {1, η^2 + η'^2}))$; for $η = 1$ this is $p exp(r\/β)\/Z +
O(1\/T)$ whatever $η'$; for $η < 1$ and linear $r$ it is the tilt for $η' = η$ alone, even where the
chain forgets its start

The drift of DDIM(eta) is :math:`\tfrac q2 (Y + (1 + \eta^2) U)`; the optimum has :math:`U - s =
\tfrac{2\eta^2}{1+\eta^2} \nabla\log h` with the Doob function h of that chain, which is the score
of the noised tilt for eta = 1 only. The proof is in `socft.theory.sampler_change`, whose noise
level is :math:`\sqrt2\,\eta`. The first step leaves out the share
:math:`z^{(\eta^2+\eta'^2)/2}` of the integral for the mean, z of order :math:`T^{-2}`.

Kind: limit.

Source: derived here; the freedom of the sampler is arXiv 2409.08861, Theorem 1, and for bounds
arXiv 2510.10767.

How it is measured: the optimal affine policy in closed form, the law by recursion of mean and
variance, the limit by the hypergeometric function; random scalar instances at T = 160 and 320, the
orders at T = 640 and 1280.

What would refute it: a distance from the limit that falls more slowly, an order in 1/T that is not
one within 0.05 at eta = 1, or a law of the equation after training at eta = 1/2 that is the tilt.
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddim
from socft.theory import SamplerChange
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Another sampler after training", topics.FLOW)
NEXT = 0.1
"""Share of the next order in the distance, at T = 160."""
SECOND = 2.0
"""Of the term of order 1/T^2, for states of size one."""
WITHIN = 2**0.05 - 1
"""Of a ratio of distances, for an order within 0.05."""
FIRST, LAST = 1e-15, 1 - 1e-9
SAMPLERS = (0.0, 0.5, 1.0)


def levels(steps: int) -> torch.Tensor:
    """Levels from almost no signal to almost no noise, equal steps of time under constant rate."""
    angle = torch.linspace(math.asin(math.sqrt(FIRST)), math.asin(math.sqrt(LAST)), steps + 1)
    return angle.double().sin().square()


def fine_tuned(
    law: Gaussian, reward: Quadratic, steps: int, eta: float
) -> tuple[Schedule, torch.Tensor, torch.Tensor]:
    """The chain trained at eta and its optimal score ``U_k(y) = slope_k y + offset_k``."""
    schedule = ddim(levels(steps), eta)
    truth = LinearQuadratic(ControlProblem(affine_reference(law, schedule), reward, 1.0))
    policy = truth.affine_policy
    unit = schedule.alpha.sqrt() * schedule.sigma / schedule.score_weight
    level = schedule.abar[:-1]
    spread = level * law.covariance[0, 0] + (1 - level)
    slope = -1 / spread + unit * policy.gain.detach()[:, 0, 0]
    offset = level.sqrt() * law.mean[0] / spread + unit * policy.offset.detach()[:, 0]
    return schedule, slope, offset


def sampled(
    schedule: Schedule, slope: torch.Tensor, offset: torch.Tensor, eta: float
) -> tuple[float, float]:
    """Mean and variance of X_T when an affine score is used in DDIM(eta), from N(0, 1)."""
    noise, clean, a = 1 - schedule.abar[:-1], 1 - schedule.abar[1:], schedule.alpha
    variance = eta**2 * clean / noise * (1 - a)
    g = noise - (a * noise * (clean - variance)).sqrt()
    slopes = (1 + g * slope) / a.sqrt()
    steps = zip(slopes.tolist(), (g * offset / a.sqrt()).tolist(), variance.tolist(), strict=True)
    mean, spread = 0.0, 1.0
    for A, b, more in steps:
        mean, spread = A * mean + b, A**2 * spread + more
    return mean, spread


def distance(law: Gaussian, reward: Quadratic, steps: int, trained: float, used: float) -> float:
    """Of mean and variance from those of the tilt."""
    mean, spread = sampled(*fine_tuned(law, reward, steps, trained), used)
    tilt = law.tilted(reward, 1.0).density
    return math.hypot(mean - float(tilt.mean), spread - float(tilt.covariance))


def from_limit(law: Gaussian, reward: Quadratic, steps: int, trained: float, used: float) -> float:
    """Of mean and variance from those of the closed form."""
    mean, spread = sampled(*fine_tuned(law, reward, steps, trained), used)
    assert reward.q is not None
    m, S, P, q = map(float, (law.mean, law.covariance, reward.P, reward.q))
    limit = SamplerChange(trained * 2**0.5, used * 2**0.5).moments(m, S, P, q, 1.0)
    return math.hypot(mean - limit[0], spread - limit[1])


def instance(mean: float, S: float, P: float, q: float) -> tuple[Gaussian, Quadratic]:
    return Gaussian(mean, S), Quadratic(
        torch.tensor([[P]], dtype=torch.float64), torch.tensor([q], dtype=torch.float64)
    )


@settings(max_examples=12)
@given(numbers(-1, 1), numbers(0.2, 2), numbers(-2, 0.2), numbers(-1, 1))
def test_holds(mean: float, S: float, P: float, q: float) -> None:
    """The distance at least nearly halves, or is small already, for three samplers."""
    law, reward = instance(mean, S, P, q)
    for used in SAMPLERS:
        coarse, fine = (distance(law, reward, T, 1.0, used) for T in (160, 320))
        where = {"mean": mean, "S": S, "P": P, "q": q, "T": [160, 320], "sampler": used}
        limit = (1 + NEXT) * coarse / 2 + SECOND / 160**2
        CLAIM.holds(fine, limit, where, part="any sampler")


@settings(max_examples=12)
@given(numbers(-1, 1), numbers(0.2, 2), numbers(-2, 0.2), numbers(-1, 1), numbers(0.75, 1))
def test_holds_at_other_levels(mean: float, S: float, P: float, q: float, trained: float) -> None:
    """The distance from the closed form falls at least as fast as it should."""
    law, reward = instance(mean, S, P, q)
    for used in SAMPLERS:
        coarse, fine = (from_limit(law, reward, T, trained, used) for T in (160, 320))
        where = {"mean": mean, "S": S, "P": P, "q": q, "trained": trained, "sampler": used}
        order = min(1.0, trained**2 + used**2)
        limit = (1 + NEXT) * coarse / 2**order + SECOND / 160 ** (2 * order)
        CLAIM.holds(fine, limit, where, part="closed form")


def test_is_of_order_one_over_T() -> None:
    """N(0.7, 0.5), r = -0.75 x^2 + 0.8 x: exactly of that order, for chain and equation."""
    law, reward = instance(0.7, 0.5, -1.5, 0.8)
    for used in SAMPLERS:
        coarse, fine = (distance(law, reward, T, 1.0, used) for T in (640, 1280))
        where = {"T": [640, 1280], "sampler": used, "distances": [coarse, fine]}
        CLAIM.attained(fine, coarse / 2, where, within=WITHIN, slack=WITHIN, part="order 1/T")


def test_needs_the_memoryless_schedule() -> None:
    """Trained at eta = 1/2, which forgets: its own law is the tilt, that of the equation is not."""
    law, reward = instance(0.7, 0.5, -1.5, 0.8)
    own, other = (distance(law, reward, 1280, 0.5, used) for used in (0.5, 0.0))
    where = {"T": 1280, "trained": 0.5, "memory": ddim(levels(1280), 0.5).memory(0.5)}
    CLAIM.holds(own, 0.01, where, part="its own sampler")
    CLAIM.breaks(other, 0.05, where, "the memoryless schedule")
    CLAIM.holds(from_limit(law, reward, 1280, 0.5, 0.0), 0.02, where, part="where it goes instead")
