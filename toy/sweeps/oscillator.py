"""The oscillator, what is exact there, and the policies that a costate implies."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.costates.fields import CostateField
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import MatrixDiffusion, affine_coefficients, by_step
from socft.sde import (
    EulerMaruyama,
    Exponential,
    Integrator,
    LinearSDE,
    Strang,
    Taylor,
)
from socft.study.vocabulary.problems import ProblemName
from socft.truth.quadratic import QuadraticValue, affine_of
from toy.problems import Benchmark, benchmark

INTEGRATORS: dict[str, Integrator] = {
    "Euler-Maruyama": EulerMaruyama(),
    "exponential": Exponential(),
    "Strang": Strang(),
    "Taylor": Taylor(),
}


@dataclasses.dataclass(frozen=True)
class AffineCostate:
    """``phi_k(x) = G_k x + g_k``, k = 0..T; G need not be symmetric."""

    G: Float[Tensor, "steps_plus_1 n n"]
    g: Float[Tensor, "steps_plus_1 n"]

    @classmethod
    def of(cls, field: CostateField, steps: int, n: int) -> AffineCostate:
        """The coefficients of an affine field."""
        return cls(*affine_coefficients(field, steps + 1, n))

    @property
    def field(self) -> CostateField:
        """As a function of step and state."""
        return QuadraticValue(
            self.G, self.g, torch.zeros(len(self.g), dtype=torch.float64)
        ).gradient

    def inner(self, other: AffineCostate) -> Float[Tensor, " steps_plus_1"]:
        """``E phi_k(X) . psi_k(X)``, X of law N(0, I), per step."""
        return (self.G * other.G).sum((1, 2)) + (self.g * other.g).sum(1)

    @property
    def size(self) -> float:
        """The largest coefficient."""
        return max(float(self.G.abs().max()), float(self.g.abs().max()))

    def __sub__(self, other: AffineCostate) -> AffineCostate:
        return AffineCostate(self.G - other.G, self.g - other.g)


@dataclasses.dataclass(frozen=True)
class OscillatorCase:
    """An oscillator, what is exact there, and how it may be steered.

    Attributes:
        problem: the simulated chain.
        continuous: the costate of continuous time at the times of the chain.
        chain: the costate of the chain's optimum.
        optimum: the chain's optimal policy.
        channel: orthonormal directions of the noise along which it may be steered, shape (m, c).
    """

    problem: ControlProblem
    continuous: AffineCostate
    chain: AffineCostate
    optimum: AffinePolicy
    channel: Float[Tensor, "m c"]


@functools.lru_cache(maxsize=4)
def oscillator_case(integrator: str, everywhere: bool, **settings: float) -> OscillatorCase:
    """The oscillator of settings; with noise I in place of that of the control's channel
    where ``everywhere``.
    """
    found = benchmark(ProblemName.OSCILLATOR, integrator=INTEGRATORS[integrator], **settings)
    steps, (n,) = found.problem.steps, found.problem.reference.dims
    continuous = AffineCostate.of(by_integer_step(found.continuous.gradient), steps, n)
    chain = AffineCostate.of(found.truth.value_gradient, steps, n)
    problem, channel = (
        found.problem,
        torch.eye(*found.problem.reference.noise_dims, dtype=torch.float64),
    )
    if everywhere:
        problem, channel = _everywhere(found)
    return OscillatorCase(problem, continuous, chain, steering(problem, chain, channel), channel)


def _everywhere(found: Benchmark) -> tuple[ControlProblem, Tensor]:
    """The same problem with noise I, steered along the control's channel only; costates and optimal
    controls are the same.
    """
    sde = found.sde
    assert isinstance(sde, LinearSDE)
    size = torch.linalg.matrix_norm(sde.noise, 2)
    eye = torch.eye(len(sde.noise), dtype=torch.float64)
    reference = EulerMaruyama().chain(
        LinearSDE(sde.A, size * eye, sde.horizon), found.problem.steps
    )
    problem = ControlProblem(
        reference, found.problem.reward, found.problem.beta, found.problem.running_cost
    )
    return problem, sde.noise / size


def steering(problem: ControlProblem, costate: AffineCostate, channel: Tensor) -> AffinePolicy:
    """``v_k = B_k' E[phi_{k+1}(x_{k+1}) | x_k] / beta_k`` under v itself, along the channel."""
    reference, (B, beta) = affine_of(problem), noise_and_beta(problem)
    steer, after = B @ channel, costate.G[1:]
    inner = beta * torch.eye(channel.shape[1], dtype=torch.float64) - steer.mT @ after @ steer
    pushed = after @ torch.cat([reference.transition, reference.offset.unsqueeze(2)], 2)
    pushed[:, :, -1] += costate.g[1:]
    v = channel @ torch.linalg.solve(inner, steer.mT @ pushed)
    return AffinePolicy(v[:, :, :-1], v[:, :, -1])


def published_steering(
    problem: ControlProblem, costate: AffineCostate, channel: Tensor
) -> AffinePolicy:
    """``v_k = B_k' phi_k(x_k) / beta_k`` along the channel."""
    B, beta = noise_and_beta(problem)
    pull = channel @ (B @ channel).mT / beta
    return AffinePolicy(pull @ costate.G[:-1], (pull @ costate.g[:-1].unsqueeze(2)).squeeze(2))


Rule = Callable[[ControlProblem, AffineCostate, Tensor], AffinePolicy]
RULES: dict[str, Rule | None] = {
    "given": None,
    "iterated": steering,
    "published": published_steering,
}


def noise_and_beta(problem: ControlProblem) -> tuple[Tensor, Tensor]:
    diffusion = affine_of(problem).diffusion
    assert isinstance(diffusion, MatrixDiffusion)
    return diffusion.matrices, problem.beta[:, None, None]


def by_integer_step(gradient: Callable[[int, Tensor], Tensor]) -> CostateField:
    """A field that is asked for one step at a time, as one that takes a step per sample."""
    return lambda k, x: by_step(k, x, gradient)
