"""Nonlinear control problems in one and two dimensions, and policies away from their optima, on
which estimators are held to what they say.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from socft.density import GaussianMixture
from socft.density.score import score_reference
from socft.flow import flow_reference, flow_sde, uniform_times
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Noises,
    ScalarDiffusion,
    States,
    Step,
)
from socft.reward import Quadratic
from socft.schedule import variance_preserving
from socft.sde import StateDiffusion
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support.nonlinear_chains.quadrature import F64, ChainQuadrature

BETA = 0.6
"""In one dimension; in the plane it is 1, and half of the reward with a slope, so that the optimum
is unique.
"""


def features(x: Tensor) -> Tensor:
    """Of which a gradient is taken: constant, linear and bent."""
    return torch.cat([torch.ones_like(x[:, :1]), x, torch.sin(1.7 * x)], 1)


def away(problem: ControlProblem, scale: float) -> Policy:
    """A control that is far from every optimum."""
    (m,) = problem.reference.noise_dims

    def control(k: Step, x: Tensor) -> Tensor:
        bends = 0.8 * torch.sin(1.3 * x + 0.5) - 0.4 * x.roll(1, 1).tanh()
        return scale * torch.cat([bends, 0.2 * torch.cos(x[:, :1])], 1)[:, :m]

    return FunctionPolicy(control)


def bent(x: Tensor) -> Tensor:
    """A reward, not concave."""
    return torch.sin(1.5 * x[:, 0] + 0.3) + 0.4 * torch.sin(x.sum(1) - 0.2)


@dataclasses.dataclass(frozen=True, eq=False)
class NonlinearProblem:
    """A problem and the box it is integrated on.

    Attributes:
        name: what it is.
        make: ``T -> problem`` over one unit of time.
        steps: T.
        half: half the box.
        count: nodes per axis, at T.
        any_noise: whether B depends on the state.
        affine: whether the problem is linear-quadratic, and the controls are affine.
        scale: of the control away from the optimum.
    """

    name: str
    make: Callable[[int], ControlProblem]
    steps: int
    half: float
    count: int
    any_noise: bool = False
    affine: bool = False
    scale: float = 1.0

    @functools.cached_property
    def away(self) -> Policy:
        """A control far from the optimum."""
        return _affine_away(self.problem) if self.affine else away(self.problem, self.scale)

    @functools.cached_property
    def optimum(self) -> Policy:
        """The optimal control."""
        return LinearQuadratic(self.problem).affine_policy if self.affine else self.truth.optimum

    @functools.cached_property
    def slope(self) -> Tensor:
        """The gradient of the objective at the control away from the optimum."""
        return self.truth.gradient(self.away, features)

    @functools.cached_property
    def unit(self) -> float:
        """Norm of the gradient of the objective at the pre-trained model."""
        start = self.truth.gradient(Uncontrolled(self.problem.reference), features)
        return float(start.norm())

    @functools.cached_property
    def problem(self) -> ControlProblem:
        """The problem."""
        return self.make(self.steps)

    @functools.cached_property
    def truth(self) -> ChainQuadrature:
        """Its quadrature."""
        return ChainQuadrature(self.problem, self.half, self.count)

    def describe(self) -> dict[str, str | int]:
        """For records."""
        return {"problem": self.name, "steps": self.steps}


def _mixture(steps: int) -> ControlProblem:
    density = GaussianMixture(weights=[0.6, 0.4], means=[-1.2, 1.0], covs=[0.5, 0.65])
    chain = score_reference(density, variance_preserving(steps))
    return ControlProblem(
        chain, bent, BETA, lambda k, x: 0.5 / steps * torch.cos(1.3 * x[:, 0] + 0.2)
    )


def _denoised(steps: int) -> ControlProblem:
    return ControlProblem(_mixture(steps).reference, bent, BETA)


def _flow(steps: int) -> ControlProblem:
    density = GaussianMixture(weights=[0.6, 0.4], means=[-1.2, 1.0], covs=[0.5, 0.65])
    chain = flow_reference(density, flow_sde(uniform_times(steps, last=0.1), noise_level=0.9))
    return ControlProblem(chain, bent, BETA)


def _affine(steps: int) -> ControlProblem:
    chain = AffineReference(
        [[[1 - 0.6 / steps]]] * steps,
        ScalarDiffusion([steps**-0.5] * steps),
        [[0.3 / steps]] * steps,
    )
    return ControlProblem(chain, bent, BETA)


def _drift(x: Tensor) -> Tensor:
    return torch.tanh(1.3 * x) - 0.7 * x + 0.4 * torch.sin(x.roll(1, 1))


def _plane(steps: int) -> ControlProblem:
    matrix = torch.tensor([[0.9, 0.2, 0.1], [-0.1, 0.8, 0.4]], dtype=F64) / steps**0.5
    chain = KernelReference(
        lambda k, x: x + _drift(x) / steps, MatrixDiffusion(matrix.expand(steps, 2, 3)), steps, (2,)
    )
    return ControlProblem(
        chain,
        lambda x: bent(x) / 2 + 0.7 * x[:, 0],
        1.0,
        lambda k, x: 0.3 / steps * torch.cos(x.sum(1)),
    )


def _turn(x: States, z: Noises) -> States:
    """``B(x) z`` with a matrix that turns and stretches with the state."""
    turn, stretch = 0.6 * torch.sin(x[:, 0]), 1 + 0.4 * torch.tanh(x[:, 1])
    first = stretch * z[:, 0] + turn * z[:, 1]
    return torch.stack([first, z[:, 1] / stretch - turn / 2 * z[:, 0]], 1)


def _turning(steps: int) -> ControlProblem:
    noise = StateDiffusion(lambda k, x, z: _turn(x, z) / steps**0.5, (2,), (2,))
    chain = KernelReference(lambda k, x: x + _drift(x) / steps, noise, steps, (2,))
    return ControlProblem(
        chain,
        lambda x: bent(x) / 2 + 0.7 * x[:, 0],
        1.0,
        lambda k, x: 0.3 / steps * torch.cos(x.sum(1)),
    )


def _mild(steps: int) -> ControlProblem:
    noise = ScalarDiffusion([steps**-0.5] * steps)
    chain = KernelReference(
        lambda k, x: x + 1.5 * (torch.tanh(1.3 * x) - 0.7 * x) / steps, noise, steps, (1,)
    )
    return ControlProblem(
        chain, lambda x: BETA * bent(x), 1.0, lambda k, x: 0.3 / steps * torch.cos(1.3 * x[:, 0])
    )


def _quadratic(steps: int) -> ControlProblem:
    return ControlProblem(
        _affine(steps).reference,
        Quadratic(-0.8 * torch.eye(1, dtype=F64), 0.6 * torch.ones(1, dtype=F64)),
        BETA,
    )


def _affine_away(problem: ControlProblem) -> Policy:
    return AffinePolicy([[[-0.4]]] * problem.steps, [[0.3]] * problem.steps)


QUADRATIC = NonlinearProblem("linear-quadratic", _quadratic, 4, 7.0, 71, affine=True)
FLOW = NonlinearProblem("flow of a two-mode mixture", _flow, 4, 6.0, 61)
MIXTURE = NonlinearProblem("two-mode mixture", _mixture, 4, 6.0, 61)
DENOISED = NonlinearProblem("two-mode mixture, no running cost", _denoised, 4, 6.0, 61)
BRIDGED = NonlinearProblem("affine chain, bent reward", _affine, 4, 7.0, 71)
MILD = NonlinearProblem("two wells, mild reward", _mild, 4, 7.0, 71, scale=0.3)
PLANE = NonlinearProblem("plane, 2 x 3 noise", _plane, 2, 6.0, 27, scale=0.5)
TURNING = NonlinearProblem(
    "plane, noise that depends on the state", _turning, 2, 6.0, 27, True, scale=0.5
)
