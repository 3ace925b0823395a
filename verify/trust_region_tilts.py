r"""Trust-region iterations walk along the exponential tilts, from the pre-trained law to the tilt,
by the shares that their multipliers leave.

Setting: :math:`q_0 = p`, :math:`\pi = p\,e^{r/\beta}/Z`, and :math:`q_{i+1}` the law that minimises
:math:`\mathrm{KL}(q \,\|\, \pi) + \lambda_i \mathrm{KL}(q \,\|\, q_i)`, :math:`\lambda_i \ge 0`;
:math:`\tau_0 = 0`.

Statement: $q_i = p e^(τ_i r\/β)\/Z_i$ with $τ_(i+1) = τ_i + (1 − τ_i)\/(1 + λ_i)$, any other $q$
misses the minimum by $(1 + λ_i) op("KL")(q ∥ q_(i+1))$, and $op("KL")(q_i ∥ π) ≤ (1 − τ_i)^2
(max r − min r)^2\/(8 β^2)$

*Proof.* The logarithms of q, pi and q_i enter linearly but for that of q, so the functional is
:math:`(1 + \lambda) \mathrm{KL}(q \,\|\, \pi^{1/(1+\lambda)} q_i^{\lambda/(1+\lambda)}/c)` less
:math:`(1 + \lambda) \log c`. The divergence of two members of an exponential family is
:math:`(1 - \tau)^2/2` times a variance of :math:`r/\beta` under a member between them, at most a
quarter of the squared range. It is approached by rewards of two values, equally likely, as their
difference falls. :math:`1 - \tau_n = \prod_i \lambda_i/(1 + \lambda_i)`, which vanishes where
:math:`\sum_i 1/(1 + \lambda_i)` diverges.

In a chain the laws are those of paths, and controls move means only: the first iterate is the
optimum of :math:`(1 + \lambda_0)\beta`, the optimum is the only fixed point whatever the
multipliers, the error of the last step falls by
:math:`\lambda (1 + \lambda - B^\top P B/\beta)^{-1}`, and an iterate is the optimum of
:math:`\beta/\tau_i` up to O(dt).

Kind: equality.

Source: derived here; the iteration is that of arXiv 2508.12511.

How it is measured: minimisers by mirror descent on the functional's gradient, for random mixtures,
rewards and multipliers on a grid, and the functional at other mixtures; affine chains with
quadratic rewards by Riccati's recursion of the penalised problem.

What would refute it: a minimiser or a minimum that is another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.density import GaussianMixture
from socft.problem import ControlProblem
from verify.adjoint_matching_sweeps import equal_steps
from verify.endpoint_covariance import mixtures
from verify.jarzynski import SEEDS, drawn
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Trust regions", topics.ITERATIONS)
GRID = torch.linspace(-8, 8, 401, dtype=torch.float64)
SWEEPS, RATE = 60, 0.5
SOLVED = 1e-9
"""Of logarithms of densities after those sweeps, each of which halves the error."""
ROUNDING = 1e-10
ORDER = 0.1

Functional = Callable[[Tensor], Tensor]


def divergence(log_q: Tensor, log_p: Tensor) -> Tensor:
    """``KL(q || p)``."""
    return (log_q.exp() * (log_q - log_p)).sum()


def near_last(target: Tensor, last: Tensor, multiplier: float) -> Functional:
    """The functional of an iteration, of masses of the grid; arguments are logarithms of masses."""

    def found(q: Tensor) -> Tensor:
        return divergence(q.log(), target) + multiplier * divergence(q.log(), last)

    return found


def minimiser(functional: Functional, start: Tensor, rate: float, sweeps: int) -> Tensor:
    """Logarithms of masses, by mirror descent with the entropy from those of ``start``."""
    log_q = start
    for _ in range(sweeps):
        q = log_q.exp().requires_grad_(True)
        (slope,) = torch.autograd.grad(functional(q), q)
        log_q = torch.log_softmax(log_q - rate * slope, 0)
    return log_q


def tilted(law: GaussianMixture, reward: Tensor, tau: float) -> Tensor:
    """``log(p e^(tau r) / Z)``, with beta = 1."""
    return torch.log_softmax(law.log_prob(GRID[:, None]) + tau * reward, 0)


def bent(strength: float, frequency: float, phase: float) -> Tensor:
    """A reward on the grid."""
    return strength * torch.sin(frequency * GRID + phase)


@settings(max_examples=25)
@given(
    mixtures(),
    mixtures(),
    numbers(0.2, 2),
    numbers(0.3, 2),
    numbers(-2, 2),
    st.lists(numbers(0, 4), min_size=1, max_size=3),
)
def test_holds(
    law: GaussianMixture,
    other: GaussianMixture,
    strength: float,
    frequency: float,
    phase: float,
    multipliers: list[float],
) -> None:
    """Every iterate, its minimum, and how far the last one is from the tilt."""
    reward = bent(strength, frequency, phase)
    last, target, tau = tilted(law, reward, 0.0), tilted(law, reward, 1.0), 0.0
    where = {"strength": strength, "frequency": frequency, "phase": phase, "lam": multipliers}
    q = tilted(other, reward, 0.0)
    for lam in multipliers:
        functional = near_last(target, last, lam)
        found = minimiser(functional, last, RATE / (1 + lam), SWEEPS)
        tau += (1 - tau) / (1 + lam)
        CLAIM.equals(found - tilted(law, reward, tau), 0 * found, where, SOLVED, "iterate")
        missed = float(functional(q.exp()) - functional(found.exp()))
        gap = (1 + lam) * float(divergence(q, found))
        CLAIM.equals((missed - gap) / (1 + gap), 0.0, where, SOLVED, "minimum")
        last = found
    left = float(divergence(last, target))
    bound = ((1 - tau) * float(reward.max() - reward.min())) ** 2 / 8
    CLAIM.holds(left, bound, where, floor=SOLVED, part="divergence from the tilt")


def test_is_attained() -> None:
    """By a small reward of two values, equally likely."""
    law, size = GaussianMixture([1.0], [0.0], [1.0]), 0.02
    reward = size * torch.sign(GRID)
    lam, target = 1.0, tilted(law, reward, 1.0)
    found = minimiser(near_last(target, tilted(law, reward, 0.0), lam), target, RATE / 2, SWEEPS)
    left, bound = float(divergence(found, target)), (0.5 * 2 * size) ** 2 / 8
    CLAIM.attained(left, bound, {"r": "0.02 sign x", "lam": lam}, slack=1e-4, part="divergence")


@pytest.mark.parametrize("rounds", [10, 1000])
def test_needs_multipliers_that_do_not_grow_too_fast(rounds: int) -> None:
    """With ``lam_i = i (i + 2)`` the product of ``lam / (1 + lam)`` tends to 1/2, and the walk
    stops half-way.
    """
    left = 1.0
    for i in range(1, rounds + 1):
        left *= 1 - 1 / (1 + i * (i + 2))
    where = {"rounds": rounds}
    CLAIM.equals(left, 0.5 * (rounds + 2) / (rounds + 1), where, ROUNDING, "growing multipliers")
    CLAIM.breaks(left, 0.5, where, "$sum_i 1\\/(1 + λ_i) = ∞$")


def test_needs_the_order_of_the_two_laws() -> None:
    """The divergence of the last iterate from the next leads to no tilt: ``log(q / p)`` is then no
    affine function of the reward.
    """
    law, reward, lam = GaussianMixture([0.7, 0.3], [-1.0, 1.0], 0.4), bent(1.5, 1.0, 0.3), 1.0
    last, target = tilted(law, reward, 0.0), tilted(law, reward, 1.0)

    def reverse(q: Tensor) -> Tensor:
        return divergence(q.log(), target) - lam * last.exp() @ q.log()

    for functional, apart in ((near_last(target, last, lam), False), (reverse, True)):
        found = minimiser(functional, last, 0.1, 600)
        residual = _bend(found - last, reward, found.exp())
        if apart:
            CLAIM.breaks(residual, 1e-3, {"lam": lam}, '$op("KL")(q ∥ q_i)$')
        else:
            CLAIM.equals(residual, 0.0, {"lam": lam}, SOLVED, "a tilt")


def _bend(values: Tensor, along: Tensor, law: Tensor) -> float:
    """Standard deviation of what is no affine function of ``along``."""
    x, y = (each - law @ each for each in (along, values))
    return float((law @ (y - (law @ (x * y)) / (law @ x.square()) * x).square()).sqrt())


def penalised(chain: AffineChain, last: AffineControl, multiplier: float) -> AffineControl:
    """The control that maximises J less the multiplier times the divergence from the last one."""
    P, q, eye = chain.P, chain.q, torch.eye(chain.B.shape[2], dtype=torch.float64)
    gains, offsets = [], []
    for k in reversed(range(chain.steps)):
        A, b, B, beta, u, w = (
            each[k] for each in (chain.A, chain.b, chain.B, chain.beta, last.K, last.o)
        )
        bent_k = (1 + multiplier) * beta * eye - B.mT @ P @ B
        K = torch.linalg.solve(bent_k, B.mT @ P @ A + multiplier * beta * u)
        o = torch.linalg.solve(bent_k, B.mT @ (P @ b + q) + multiplier * beta * w)
        M, c = A + B @ K, b + B @ o
        q = M.mT @ (P @ c + q) - beta * (K.mT @ o + multiplier * (K - u).mT @ (o - w))
        P = M.mT @ P @ M - beta * (K.mT @ K + multiplier * (K - u).mT @ (K - u))
        gains.append(K)
        offsets.append(o)
    return AffineControl(torch.stack(gains[::-1]), torch.stack(offsets[::-1]))


@settings(max_examples=20)
@given(quadratic_instances(steps=5, dims=3), SEEDS, numbers(0.1, 4))
def test_holds_for_chains(instance: QuadraticInstance, seed: int, lam: float) -> None:
    """The first iterate, the fixed point, and the error of the last step."""
    beta = instance.beta()
    chain = AffineChain.of(instance.problem(beta))
    where = instance.describe() | {"lam": lam, "start": seed}
    scale = 1 + chain.optimum.size
    heavier = AffineChain.of(instance.problem((1 + lam) * beta)).optimum
    first = penalised(chain, chain.none, lam).minus(heavier).size
    CLAIM.equals(first / scale, 0.0, where, ROUNDING, "first iterate")
    still = penalised(chain, chain.optimum, lam).minus(chain.optimum).size
    CLAIM.equals(still / scale, 0.0, where, ROUNDING, "fixed point")
    apart = drawn(chain, seed, 1.0)
    moved = AffineControl(chain.optimum.K + apart.K, chain.optimum.o + apart.o)
    found = penalised(chain, moved, lam).minus(chain.optimum)
    eye = torch.eye(chain.B.shape[2], dtype=torch.float64)
    rate = torch.linalg.inv((1 + lam) * eye - chain.B[-1].mT @ chain.P @ chain.B[-1] / beta[-1])
    off = (found.K[-1] - lam * rate @ apart.K[-1]) / scale
    CLAIM.equals(off, 0 * off, where, ROUNDING, "error of the last step")


def test_chains_follow_the_tilts_up_to_the_step() -> None:
    """The second iterate from the optimum of beta over tau, at 200 and 400 steps."""
    gaps = []
    for steps in (200, 400):
        chain = equal_steps(steps, 0.6)
        second = penalised(chain, penalised(chain, chain.none, 1.0), 1.0)
        heavier = AffineChain.of(_weighted(chain, 4 / 3)).optimum
        gaps.append(second.minus(heavier).size / heavier.size)
    where = {"T": [200, 400], "lam": [1, 1], "distances": gaps}
    CLAIM.equals(gaps[0] / gaps[1], 2.0, where, ORDER, "order of the step")
    CLAIM.breaks(gaps[1], ROUNDING, where, "laws of paths")


def _weighted(chain: AffineChain, factor: float) -> ControlProblem:
    return dataclasses.replace(chain.problem, beta=factor * chain.problem.beta)
