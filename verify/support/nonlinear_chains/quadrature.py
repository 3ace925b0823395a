r"""Nonlinear chains of one or two dimensions by the trapezoidal rule on one box, for any noise
:math:`B_k(x)` that reaches every direction.

The kernels are Gaussian, so sums over nodes no further apart than the least standard deviation are
exact to about :math:`e^{-2\pi^2}`, and what leaves the box is lost. Controls are sought as mean
shifts :math:`B_k v = L_k w` with :math:`L_k L_k^\top = B_k B_k^\top`, where :math:`|v| = |w|` for
the shortest v; with the whitened gaps :math:`\eta = L_k^{-1}(x' - m_k(x)) - w`,

.. math:: \partial_w E V = E[V \eta], \qquad \partial_w^2 E V = E[V (\eta\eta^\top - I)] .

It shares no code with `socft.truth.quadrature` but the interpolation of tables.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from socft.costates.fields import CostateField
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import States, Step
from socft.truth.grid import Grid, GridPolicy

F64 = torch.float64
NEWTON_STEPS, SETTLED = 50, 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class ChainQuadrature:
    """A chain from a standard normal start.

    Attributes:
        problem: the control problem.
        half: the box is [-half, half] in every dimension.
        count: nodes per axis.
    """

    problem: ControlProblem
    half: float
    count: int

    @functools.cached_property
    def grid(self) -> Grid:
        """The nodes."""
        (d,) = self.problem.reference.dims
        corner = torch.full((d,), self.half, dtype=F64)
        return Grid.box(-corner, corner, (self.count,) * d)

    @functools.cached_property
    def _noise(self) -> list[tuple[Tensor, Tensor]]:
        """``B_k`` and ``L_k`` at the nodes."""
        reference, x = self.problem.reference, self.grid.nodes
        units = torch.eye(*reference.noise_dims, dtype=F64)
        found = []
        for k in range(self.problem.steps):
            B = torch.stack([reference.diffusion.apply(k, x, e.expand(len(x), -1)) for e in units])
            B = B.movedim(0, 2)
            found.append((B, torch.linalg.cholesky(B @ B.mT)))
        return found

    def kernel(self, k: int, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Masses of the next nodes from each node, (nodes, nodes), and gaps, (nodes, nodes, d)."""
        x, (_, L) = self.grid.nodes, self._noise[k]
        inverse = torch.linalg.inv(L)
        mean = self.problem.reference.mean(k, x)
        own = (inverse @ mean.unsqueeze(2)).squeeze(2) + shift
        gaps = (inverse @ x.T).mT - own.unsqueeze(1)
        cell = float(self.grid.spacing.prod()) / (2 * math.pi) ** (x.shape[1] / 2)
        scale = cell / torch.diagonal(L, dim1=1, dim2=2).prod(1)
        return torch.exp(-gaps.square().sum(2) / 2) * scale.unsqueeze(1), gaps

    def control(self, k: int, shift: Tensor) -> Tensor:
        """The shortest v with ``B v = L shift``."""
        B, L = self._noise[k]
        return (B.mT @ (torch.linalg.inv(L).mT @ shift.unsqueeze(2))).squeeze(2)

    def shift(self, k: int, control: Tensor) -> Tensor:
        """The w with ``L w = B control``."""
        B, L = self._noise[k]
        return (torch.linalg.inv(L) @ (B @ control.unsqueeze(2))).squeeze(2)

    def values(self, policy: Policy) -> list[Tensor]:
        """``V_k`` of a policy at the nodes, k = 0..T, with a graph to its parameters."""
        problem, x = self.problem, self.grid.nodes
        found = [problem.reward(x)]
        for k in reversed(range(problem.steps)):
            v = policy(k, x)
            mean = self.kernel(k, self.shift(k, v))[0] @ found[-1]
            found.append(mean - problem.beta[k] * v.square().sum(1) / 2 - problem.cost(k, x))
        return found[::-1]

    def objective(self, policy: Policy) -> Tensor:
        """J."""
        x = self.grid.nodes
        cell = float(self.grid.spacing.prod()) / (2 * math.pi) ** (x.shape[1] / 2)
        return (torch.exp(-x.square().sum(1) / 2) * cell) @ self.values(policy)[0]

    def gradient(self, policy: Policy, features: Callable[[Tensor], Tensor]) -> Tensor:
        """The derivative of J in the coefficients of features of every step, shape (T m p,)."""
        p = features(self.grid.nodes).shape[1]
        shape = (self.problem.steps, *self.problem.reference.noise_dims, p)
        theta = torch.zeros(shape, dtype=F64, requires_grad=True)
        moved = _Moved(policy, features, theta)
        return torch.autograd.grad(self.objective(moved), theta)[0].flatten()

    def fields(self, policy: Policy) -> tuple[Callable[[Step, States], Tensor], CostateField]:
        """The policy's value function and its gradient, interpolated."""
        values = [each.detach().unsqueeze(1) for each in self.values(policy)]

        def value(k: Step, x: States) -> Tensor:
            return self.grid.extend(values[int(k)], x)[:, 0]

        def gradient(k: Step, x: States) -> Tensor:
            slopes = self.grid.jacobian(values[int(k)])[:, 0]
            return self.grid.extend(slopes, x)

        return value, gradient

    @functools.cached_property
    def optimum(self) -> GridPolicy:
        """The optimal control, by Newton's method at every node."""
        problem, x = self.problem, self.grid.nodes
        value, found = problem.reward(x), []
        for k in reversed(range(problem.steps)):
            shift = self.best_shift(k, value)
            v = self.control(k, shift)
            mean = self.kernel(k, shift)[0] @ value
            value = mean - problem.beta[k] * v.square().sum(1) / 2 - problem.cost(k, x)
            found.append(v)
        return self._policy(found[::-1])

    def best_shift(self, k: int, value: Tensor) -> Tensor:
        """The w of the best control in front of given values at the nodes."""
        beta, eye = self.problem.beta[k], torch.eye(self.grid.dim, dtype=F64)
        shift = torch.zeros_like(self.grid.nodes)
        for _ in range(NEWTON_STEPS):
            mass, gaps = self.kernel(k, shift)
            weight = mass * value
            slope = torch.einsum("bn,bnd->bd", weight, gaps) - beta * shift
            hessian = torch.einsum("bn,bnd,bne->bde", weight, gaps, gaps)
            hessian = hessian - (weight.sum(1)[:, None, None] + beta) * eye
            step = torch.linalg.solve(hessian, slope.unsqueeze(2)).squeeze(2)
            shift = shift - step
            if float(step.abs().max()) < SETTLED:
                break
        return shift

    @functools.cached_property
    def least_cross_entropy(self) -> GridPolicy:
        r"""The mean controlled noise of the optimal path measure: with
        :math:`U_k = E[e^{(r - \sum_{j \ge k} f_j)/\beta} | x_k]` without control, the mean of
        :math:`\xi_k` under the weights :math:`U_{k+1}`.
        """
        problem, x, beta = self.problem, self.grid.nodes, float(self.problem.beta[0])
        tilt, found = (problem.reward(x) / beta).exp(), []
        for k in reversed(range(problem.steps)):
            mass, gaps = self.kernel(k, torch.zeros_like(x))
            weight = mass * tilt
            mean = torch.einsum("bn,bnd->bd", weight, gaps) / weight.sum(1, keepdim=True)
            found.append(self.control(k, mean))
            tilt = weight.sum(1) * (-problem.cost(k, x) / beta).exp()
        return self._policy(found[::-1])

    @functools.cached_property
    def previous_costate(self) -> GridPolicy:
        r"""The control with :math:`\beta_k v_k = B_k^\top E[a_k | x_k]` for the lean costates of
        its own paths, backwards by iteration.
        """
        problem, x = self.problem, self.grid.nodes
        after, found = problem.reward.gradient(x), []
        for k in reversed(range(problem.steps)):
            jacobian, slope = _derivatives(problem, k, x)
            before = shift = torch.zeros_like(x)
            for _ in range(20 * NEWTON_STEPS):
                pushed = self.kernel(k, shift)[0] @ after
                before = torch.einsum("bij,bi->bj", jacobian, pushed) - slope
                wanted = (self._noise[k][1].mT @ before.unsqueeze(2)).squeeze(2) / problem.beta[k]
                moved, shift = float((wanted - shift).abs().max()), wanted
                if moved < SETTLED:
                    break
            found.append(self.control(k, shift))
            after = before
        return self._policy(found[::-1])

    def apart(self, one: GridPolicy, other: GridPolicy) -> float:
        """Root of the mean squared difference of two controls on the first's paths, relative to
        that of the first.
        """
        x = self.grid.nodes
        law = torch.exp(-x.square().sum(1) / 2)
        law, apart, size = law / law.sum(), 0.0, 0.0
        for k in range(self.problem.steps):
            a, b = one(k, x), other(k, x)
            apart += float(law @ (a - b).square().sum(1))
            size += float(law @ a.square().sum(1))
            law = law @ self.kernel(k, self.shift(k, a))[0]
        return (apart / size) ** 0.5

    def _policy(self, controls: list[Tensor]) -> GridPolicy:
        return GridPolicy([self.grid] * self.problem.steps, controls)


class _Moved(Policy):
    """A policy and a combination of features for every step."""

    def __init__(self, policy: Policy, features: Callable[[Tensor], Tensor], theta: Tensor):
        self.policy, self.features, self.theta = policy, features, theta

    def __call__(self, k: Step, x: States) -> Tensor:
        return self.policy(k, x) + self.features(x) @ self.theta[int(k)].T


def _derivatives(problem: ControlProblem, k: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """Jacobian of the mean and gradient of the running cost at nodes."""
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        mean, cost = problem.reference.mean(k, y), problem.cost(k, y).sum()
        rows = [torch.autograd.grad(m.sum(), y, retain_graph=True)[0] for m in mean.unbind(1)]
        slope = torch.autograd.grad(cost, y)[0] if cost.requires_grad else torch.zeros_like(x)
    return torch.stack(rows, 1), slope
