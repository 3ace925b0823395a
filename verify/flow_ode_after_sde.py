r"""A flow that was fine-tuned with a stochastic sampler may be sampled with another, if it was
trained on the memoryless schedule, and otherwise not.

Setting: Gaussian data, quadratic reward, constant beta. The optimal control of the DDIM(eta) chain
is stored as a score, :math:`U = s + \sqrt{a}\,\sigma v/g`, and used in DDIM(eta'), eta' from 0, the
ordinary differential equation, to 1.

Statement: trained at $η = 1$ with $macron(α)_0 → 0$, the law of $X_T$ under DDIM$(η')$ is
$p exp(r\/β)\/Z + O(1\/T)$ for every $η'$ in $[0, 1]$; trained at $η < 1$ it is not for $η' ≠ η$,
even where the chain forgets its start

The drift of DDIM(eta) is :math:`\tfrac q2 (Y + (1 + \eta^2) U)`; the optimum has :math:`U - s =
\tfrac{2\eta^2}{1+\eta^2} \nabla\log h` with the Doob function h of that chain, which is the score
of the noised tilt for eta = 1 only.

Kind: limit.

Source: derived here; the freedom of the sampler is arXiv 2409.08861, Theorem 1, and for bounds
arXiv 2510.10767.

How it is measured: the optimal affine policy in closed form, the law by recursion of mean and
variance, the tilt in closed form; random scalar instances at T = 160 and 320, and the twin at T up
to 1280.

What would refute it: a distance that does not halve with 2 T at eta = 1, or one that vanishes with
T at eta = 1/2, eta' = 0.
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings

from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddim
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Another sampler after training", topics.FLOW)
NEXT = 0.1
"""Share of the next order in the distance, at T = 160."""
SECOND = 2.0
"""Of the term of order 1/T^2, for states of size one."""
FIRST, LAST = 1e-9, 1 - 1e-9
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


def test_is_of_order_one_over_T() -> None:
    """N(0.7, 0.5), r = -0.75 x^2 + 0.8 x: exactly of that order, for chain and equation."""
    law, reward = instance(0.7, 0.5, -1.5, 0.8)
    for used in SAMPLERS:
        coarse, fine = (distance(law, reward, T, 1.0, used) for T in (320, 640))
        where = {"T": [320, 640], "sampler": used, "distances": [coarse, fine]}
        CLAIM.attained(fine, coarse / 2, where, within=NEXT, slack=NEXT, part="order 1/T")


def test_needs_the_memoryless_schedule() -> None:
    """Trained at eta = 1/2, which forgets: its own law is the tilt, that of the equation is not."""
    law, reward = instance(0.7, 0.5, -1.5, 0.8)
    own, other = (distance(law, reward, 1280, 0.5, used) for used in (0.5, 0.0))
    where = {"T": 1280, "trained": 0.5, "memory": ddim(levels(1280), 0.5).memory(0.5)}
    CLAIM.holds(own, 0.01, where, part="its own sampler")
    CLAIM.breaks(other, 0.05, where, "the memoryless schedule")
