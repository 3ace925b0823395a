r"""Where the noise depends on the state, costates keep the derivative of both the noise and the
control's push through it, and leave out only that of the control.

Setting: kernels :math:`x' = m(x) + B(x)(v + \xi)`, a value function V in front, the optimum
:math:`\beta v = B^\top E\nabla V(x')`.

Statement: at $v^*$, $∇V_k = bb(E) [(∇m_k + ∇(B_k (v + ξ)))^⊤ ∇V_(k+1) (x_(k+1))]$ with $v$ held
fixed: the recursion of lean costates with $∇(B_k (v + ξ))$ has the optimum as its fixed point for
every $B_k (x)$; without the term, or with $∇(B_k ξ)$ alone, it has not

It is the envelope identity (34) of arXiv 2412.18164v4 for such noise: the maximised bracket has no
derivative in v. What may be left out of the full adjoint is :math:`(\nabla v)^\top (B^\top a -
\beta v)`, of mean zero at the optimum.

Kind: equality.

Source: derived here for the chain; the Hamiltonian's adjoint is arXiv 2604.08580.

How it is measured: one step in up to 2 dimensions in front of sums of waves, with random noise
matrices that bend with the state: derivatives of the maximised bracket by differences, the
expectation by a tensor Gauss-Hermite rule; on a chain of one dimension by quadrature against the
derivative of its value functions.

What would refute it: a residual above `DIFFERENCE` or `QUADRATURE`.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.problem import ControlProblem
from socft.reference import KernelReference
from socft.sde import StateDiffusion
from verify.support import topics
from verify.support.claims import Claim
from verify.support.nonlinear_chains.quadrature import ChainQuadrature
from verify.support.nonlinear_chains.waves import DIFFERENCE, F64, WaveStep, differences
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Noise that depends on the state", topics.ADJOINTS)
QUADRATURE = 1e-4
"""Of derivatives of tables."""
NODES, NEWTON_STEPS = 24, 40


@dataclasses.dataclass(frozen=True, eq=False)
class BendingNoise(WaveStep):
    """With the noise ``B_il(x) = B_il (1 + 0.5 sin(x_1 + i + 2 l))``."""

    @property
    def curvature(self) -> Tensor:
        return (self.c.abs() * self.w.square().sum(1)).sum() * (1.5 * self.B).square().sum()

    def noise(self, x: Tensor) -> Tensor:
        """B at every state, shape (batch, n, m)."""
        n, m = self.B.shape
        phase = torch.arange(n)[:, None] + 2 * torch.arange(m)
        return self.B * (1 + 0.5 * torch.sin(x[:, :1, None] + phase))

    def rule(self) -> tuple[Tensor, Tensor]:
        """Noises and weights, (nodes, m) and (nodes,)."""
        z, w = np.polynomial.hermite_e.hermegauss(NODES)
        m = self.B.shape[1]
        noises = torch.tensor(list(itertools.product(z, repeat=m)), dtype=F64)
        weights = torch.tensor(list(itertools.product(w / w.sum(), repeat=m)), dtype=F64).prod(1)
        return noises, weights

    def control(self, x: Tensor) -> Tensor:
        """The optimum, with smoothed waves."""
        B, mean = self.noise(x), self.mean(x)
        c = self.c * torch.exp(-(self.w @ B).square().sum(2) / 2)
        v, eye = torch.zeros(len(x), B.shape[2], dtype=F64), torch.eye(B.shape[2], dtype=F64)
        for _ in range(NEWTON_STEPS):
            slope, bent = self.bends(mean + (B @ v.unsqueeze(2))[..., 0], c)
            residual = (B.mT @ slope.unsqueeze(2))[..., 0] - v
            v = v + torch.linalg.solve(eye - B.mT @ bent @ B, residual.unsqueeze(2))[..., 0]
        return v

    def value(self, x: Tensor) -> Tensor:
        """The maximised bracket."""
        v, (z, weight) = self.control(x), self.rule()
        there = self.mean(x)[:, None] + torch.einsum("bnm,bqm->bqn", self.noise(x), v[:, None] + z)
        return (self.angles(there).sin() @ self.c) @ weight - v.square().sum(1) / 2

    def costate(self, x: Tensor, push: float, noise: float) -> Tensor:
        """``E (grad m + grad(B (push v + noise xi)))^T grad V``, v and grad V held fixed."""
        v, (z, weight) = self.control(x), self.rule()
        there = self.mean(x)[:, None] + torch.einsum("bnm,bqm->bqn", self.noise(x), v[:, None] + z)
        slope = (self.c * self.angles(there).cos()) @ self.w
        y = x.clone().requires_grad_(True)
        pushed = torch.einsum("bnm,bqm->bqn", self.noise(y), push * v[:, None] + noise * z)
        total = ((self.mean(y)[:, None] + pushed) * slope).sum(2) @ weight
        return torch.autograd.grad(total.sum(), y)[0]


@settings(max_examples=10)
@given(st.integers(1, 2), st.integers(1, 2), st.integers(0, 10**6), numbers(0.1, 0.9))
def test_holds(n: int, m: int, seed: int, size: float) -> None:
    """One step."""
    step = BendingNoise.drawn(n, m, seed, size)
    x = torch.randn(4, n, generator=torch.Generator().manual_seed(seed), dtype=F64)
    left, right = differences(step.value, x), step.costate(x, 1.0, 1.0)
    where = {"n": n, "m": m, "seed": seed, "size": size}
    CLAIM.equals(left - right, 0 * left, where, DIFFERENCE, "one step")


def stretch(x: Tensor) -> Tensor:
    """B of the chain, times the root of T."""
    return 0.8 + 0.35 * torch.sin(1.2 * x)


def chain(steps: int) -> ChainQuadrature:
    """One dimension, a bent mean map and reward."""
    noise = StateDiffusion(lambda k, x, z: stretch(x) * z / steps**0.5, (1,), (1,))
    drift = lambda k, x: x + (torch.tanh(1.3 * x) - 0.7 * x) / steps  # noqa: E731
    reference = KernelReference(drift, noise, steps, (1,))
    problem = ControlProblem(reference, lambda x: torch.sin(1.5 * x[:, 0] + 0.3), 1.0)
    return ChainQuadrature(problem, 8.0, 193)


def costates(truth: ChainQuadrature, push: float, noise: float) -> list[Tensor]:
    """Mean costates of every step at the optimum, k = 0..T-1."""
    problem, x = truth.problem, truth.grid.nodes
    T, after, found = problem.steps, problem.reward.gradient(x)[:, 0], []
    slope = 1 + (1.3 / torch.cosh(1.3 * x).square() - 0.7) / T
    bend = 0.42 * torch.cos(1.2 * x[:, 0]) / T**0.5
    for k in reversed(range(T)):
        v = truth.optimum(k, x)
        mass, gaps = truth.kernel(k, truth.shift(k, v))
        weight = mass * (bend[:, None] * (push * v + noise * gaps[..., 0]) + slope)
        after = weight @ after
        found.append(after)
    return found[::-1]


def test_holds_along_a_chain() -> None:
    """Against derivatives of the value functions at every step."""
    truth = chain(3)
    inner = truth.grid.nodes[:, 0].abs() < 2
    values = truth.values(truth.optimum)
    for k, found in enumerate(costates(truth, 1.0, 1.0)):
        exact = truth.grid.jacobian(values[k].detach().unsqueeze(1))[:, 0, 0]
        off = (found - exact)[inner]
        CLAIM.equals(off, 0 * off, {"T": 3, "step": k}, QUADRATURE, "chain")


def test_needs_both_terms() -> None:
    """Without the derivative of the noise map, or of the control's push through it."""
    truth = chain(3)
    inner = truth.grid.nodes[:, 0].abs() < 2
    exact = costates(truth, 1.0, 1.0)[0][inner]
    step, x = BendingNoise.drawn(2, 2, 3, 0.8), torch.full((1, 2), 0.4, dtype=F64)
    whole = step.costate(x, 1.0, 1.0)
    for name, push, noise in (
        ("$∇(B (v + ξ))$", 0.0, 0.0),
        ("$∇(B v)$", 0.0, 1.0),
        ("$∇(B ξ)$", 1.0, 0.0),
    ):
        off = float((costates(truth, push, noise)[0][inner] - exact).abs().max())
        CLAIM.breaks(off, 0.02, {"T": 3}, name)
        apart = float((step.costate(x, push, noise) - whole).abs().max())
        CLAIM.breaks(apart, 1e-4, {"n": 2}, f"{name}, one step")
