r"""The pendulum of Mei and Taghvaei (arXiv 2603.20455v2), with its value without control on a grid.

:math:`dX_1 = X_2\,dt,\ dX_2 = (\sin X_1 - 0.01 X_2)\,dt + 0.5\,dW`, T = 4, dt = 0.05, terminal cost
:math:`g(x) = x_2^2/2 + 1 - \cos x_1`. Sought is the costate of the cost,
:math:`\phi(0, x) = \nabla E g(X_T)`, with which initial states are then optimised. The rest at
:math:`x_1 = 0` is unstable.

The chain's value is :math:`V_k(x) = E V_{k+1}(m_k(x) + \sigma_k \xi e_2)`, by dynamic programming
on a grid that is periodic in :math:`x_1`: Gauss-Hermite quadrature along :math:`x_2`, then
interpolation of degree 9 at :math:`m_k(x)`, for the value and its gradient
:math:`\nabla V_k = \nabla m_k^\top E \nabla V_{k+1}`. Its error is estimated by a coarser grid.
Continuous time is approached with `socft.sde.Strang`, whose noise also acts along :math:`x_2`
alone, and one Richardson extrapolation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from torch import Tensor

from socft.checks import require
from socft.problem import ControlProblem
from socft.reference import States
from socft.reward import FunctionReward, PerSample
from socft.sde import DriftSDE, EulerMaruyama, Integrator, Strang
from socft.study.vocabulary.problems import ProblemName
from socft.truth.bellman import axis_sigma, mean_and_jacobian
from socft.truth.grid import DEGREE, Grid
from toy.problems.base import Benchmark, Solvers, ValueFunction
from toy.problems.linear_quadratic import whole_steps

PUBLISHED = {
    "source": (
        "arXiv 2603.20455v2: mean cost of 10000 initial states after descent along the estimated"
        " gradient"
    ),
    "start": 2.47,
    "non_adapted": 1.745,
    "autodiff": 1.603,
    "tr_bsde": 1.495,
    "heat_map_minimum": 1.45,
}

WRAP = DEGREE // 2 + 1  # nodes repeated at either end so that no stencil is one-sided
HERMITE_NODES = 16
REACH = 5.0  # |x_2| up to which the error is controlled
EXTENT = REACH + 10.0  # over T = 4 the drift moves x_2 by 4 at most and the noise by 6 deviations
NODES = (96, 401)
REFINEMENT = 0.7
EXTRAPOLATION = (2, 4)  # Strang steps per step of the chain


def pendulum(
    dt: float = 0.05,
    horizon: float = 4.0,
    noise: float = 0.5,
    damping: float = 0.01,
    integrator: Integrator | None = None,
    initial: Callable[[States], States] | None = None,
    nodes: tuple[int, int] = NODES,
) -> Benchmark:
    """The pendulum; its truth is `uncontrolled`, and ``phi = -grad V``. States start at N(0, I)
    unless told otherwise.

    ``nodes`` are the grid's, per period and along ``x_2``; an integrator must leave ``x_1`` without
    noise.
    """
    require(0 < noise < math.inf, f"noise = {noise}; it must be a positive finite number.")
    sde = DriftSDE(
        lambda t, x: torch.stack([x[:, 1], torch.sin(x[:, 0]) - damping * x[:, 1]], 1),
        torch.tensor([[0.0], [noise]], dtype=torch.float64),
        horizon,
        initial,
    )
    steps, integrator = whole_steps(horizon, dt), integrator or EulerMaruyama()
    problem = ControlProblem(
        integrator.chain(sde, steps), FunctionReward(lambda x: -swing_cost(x)), 1.0
    )
    return Benchmark(
        name=ProblemName.BSDE_PENDULUM,
        description=(
            "a pendulum kicked in its velocity, cost x_2^2/2 + 1 - cos x_1 at the end, costate"
            " without control"
        ),
        settings={"dt": dt, "horizon": horizon, "noise": noise, "damping": damping},
        problem=problem,
        sde=sde,
        times=integrator.times(horizon, steps),
        published={"mean cost": PUBLISHED},
        solvers=Solvers(
            uncontrolled=lambda: solve_periodic(problem, nodes),
            continuous_uncontrolled=lambda: _continuous(
                sde, problem, integrator.times(horizon, steps), dt, nodes
            ),
        ),
    )


def swing_cost(x: States) -> PerSample:
    """``x_2^2 / 2 + 1 - cos x_1``: zero upright and at rest."""
    return x[:, 1].square() / 2 + 1 - torch.cos(x[:, 0])


@dataclasses.dataclass(frozen=True)
class Valley:
    """The least expected cost over initial states and where it is attained."""

    state: Float[Tensor, " 2"]
    cost: float


def lowest(value: ValueFunction) -> Valley:
    """The best initial state: the lowest node of a fine grid, then Newton's method on the
    gradient.
    """
    x1, x2 = (
        torch.linspace(-math.pi, math.pi, 121, dtype=torch.float64),
        torch.linspace(-REACH, REACH, 201, dtype=torch.float64),
    )
    nodes = torch.cartesian_prod(x1, x2)
    best = nodes[value.value(0, nodes).argmax()].unsqueeze(0)
    for _ in range(8):
        step = 1e-4
        offsets = step * torch.eye(2, dtype=torch.float64)
        around = value.gradient(0, torch.cat([best + offsets, best - offsets]))
        hessian = (around[:2] - around[2:]) / (2 * step)
        best = best - torch.linalg.solve(
            (hessian + hessian.mT) / 2, value.gradient(0, best)[0]
        ).unsqueeze(0)
    return Valley(best[0], -float(value.value(0, best)))


@dataclasses.dataclass(frozen=True)
class PeriodicFields:
    """Value and gradient at several times on a grid of period 2 pi in ``x_1``.

    Attributes:
        wrapped: the grid with its first and last nodes repeated, so that interpolation does not see
            the seam.
        fields: value and gradient at its nodes, shape (times, nodes, 3).
    """

    wrapped: Grid
    fields: Float[Tensor, "times nodes 3"]

    def at(self, k: int, x: States) -> Float[Tensor, "batch 3"]:
        """The fields of time ``k`` anywhere, exact to interpolation with ``|x_2|`` on the grid."""
        return self.wrapped.extend(self.fields[k], fold(x))

    def gradients(self, x: States) -> Float[Tensor, "batch times 2"]:
        """The gradients of all times at states on the grid."""
        index, weight = self.wrapped.stencil(fold(x))
        ends = np.arange(len(x) + 1) * index.shape[1]
        parts = (weight.flatten().numpy(), index.flatten().numpy(), ends)
        slopes = self.fields[..., 1:].transpose(0, 1).flatten(1)
        found = csr_array(parts, shape=(len(x), len(slopes))) @ slopes.numpy()
        return torch.from_numpy(found).reshape(len(x), -1, 2)


def solve_periodic(problem: ControlProblem, nodes: tuple[int, int] = NODES) -> ValueFunction:
    """The value without control of a reference of period 2 pi in ``x_1`` with noise along ``x_2``
    only, error by refinement.

    Raises:
        InvalidProblem: the noise acts along ``x_1``.
    """
    first, second = (math.ceil(REFINEMENT * n) for n in nodes)
    fine, coarse = periodic_fields(problem, nodes), periodic_fields(problem, (first, second))
    return _value_function(problem, fine.at, _apart(fine, coarse))


def periodic_fields(problem: ControlProblem, nodes: tuple[int, int]) -> PeriodicFields:
    """Value and gradient of every step."""
    sweep = PeriodicSweep(problem, nodes)
    return sweep.wrap([fields for _, fields in sweep.backward()])


class PeriodicSweep:
    """Backward dynamic programming without control on a periodic grid.

    A step is a dense smoothing along ``x_2`` and a sparse interpolation at ``m_k(x)``; both are
    kept for steps that repeat them.

    Args:
        problem: a reference of period 2 pi in ``x_1`` with noise along ``x_2`` only, and a terminal
            reward.
        nodes: nodes per period and along ``x_2``.
    """

    def __init__(self, problem: ControlProblem, nodes: tuple[int, int]):
        self.problem, (p, q) = problem, nodes
        spacing = torch.tensor([2 * math.pi / p, 2 * EXTENT / (q - 1)], dtype=torch.float64)
        lower = torch.tensor([-math.pi - WRAP * float(spacing[0]), -EXTENT], dtype=torch.float64)
        self.wrapped = Grid(lower, spacing, (p + 2 * WRAP, q))
        self.seam = (torch.arange(p + 2 * WRAP) - WRAP) % p
        self.nodes = self.wrapped.nodes.reshape(-1, q, 2)[WRAP : WRAP + p].reshape(-1, 2)
        self._smoothings: dict[float, Tensor] = {}
        self._mean, self._interpolation = torch.empty(0), csr_array((0, 0))

    def backward(self) -> Iterator[tuple[int, Float[Tensor, "nodes 3"]]]:
        """``(k, fields)`` for k = T..0."""
        fields = torch.cat(
            [self.problem.reward(self.nodes)[:, None], self.problem.reward.gradient(self.nodes)], 1
        )
        yield self.problem.steps, fields
        for k in reversed(range(self.problem.steps)):
            sigma = axis_sigma(self.problem.reference, k)
            along = float(sigma[0])
            require(
                along == 0,
                f"step {k} has noise {along:g} along x_1; this solver takes noise along x_2 only.",
            )
            mean, jacobian = mean_and_jacobian(self.problem.reference, k, self.nodes)
            moved = torch.from_numpy(self._at(mean) @ self.smooth(fields, float(sigma[1])).numpy())
            fields = torch.cat(
                [moved[:, :1], torch.einsum("bij,bi->bj", jacobian, moved[:, 1:])], 1
            )
            yield k, fields

    def smooth(self, fields: Float[Tensor, "nodes 3"], sigma: float) -> Float[Tensor, "nodes 3"]:
        """``E f(x + sigma xi e_2)`` at the nodes, by Gauss-Hermite quadrature of the
        interpolant.
        """
        if sigma not in self._smoothings:
            line = Grid(self.wrapped.lower[1:], self.wrapped.spacing[1:], self.wrapped.shape[1:])
            node, mass = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
            eye, x = torch.eye(line.shape[0], dtype=torch.float64), line.nodes
            terms = [
                float(w) * line.extend(eye, x + sigma * float(z))
                for z, w in zip(node, mass / mass.sum(), strict=True)
            ]
            self._smoothings[sigma] = torch.stack(terms).sum(0)
        rows = fields.reshape(-1, self.wrapped.shape[1], 3)
        return torch.einsum("ij,pjf->pif", self._smoothings[sigma], rows).reshape(-1, 3)

    def wrap(self, fields: Sequence[Float[Tensor, "nodes 3"]]) -> PeriodicFields:
        """Fields in backward order, as functions of the state in forward order."""
        stacked = torch.stack(list(fields)[::-1]).reshape(len(fields), -1, self.wrapped.shape[1], 3)
        return PeriodicFields(self.wrapped, stacked[:, self.seam].reshape(len(fields), -1, 3))

    def _at(self, mean: Tensor) -> csr_array:
        if not torch.equal(mean, self._mean):
            index, weight = self.wrapped.stencil(self.wrapped.clamp(fold(mean)))
            q = self.wrapped.shape[1]
            column = self.seam[index // q] * q + index % q
            ends = torch.arange(len(mean) + 1) * index.shape[1]
            parts = (weight.flatten().numpy(), column.flatten().numpy(), ends.numpy())
            self._mean, self._interpolation = mean, csr_array(parts, shape=(len(mean), len(mean)))
        return self._interpolation


def fold(x: States) -> States:
    """The same state with ``x_1`` in [-pi, pi)."""
    return torch.stack([torch.remainder(x[:, 0] + math.pi, 2 * math.pi) - math.pi, x[:, 1]], 1)


def _continuous(
    sde: DriftSDE, problem: ControlProblem, times: Tensor, dt: float, nodes: tuple[int, int]
) -> ValueFunction:
    """Strang chains of two step sizes, extrapolated; the error estimate is what the extrapolation
    changed.
    """
    coarse, fine = (_strang(sde, problem, times, dt / ratio, nodes) for ratio in EXTRAPOLATION)

    def extrapolated(k: int, x: States) -> Tensor:
        return (4 * fine.at(k, x) - coarse.at(k, x)) / 3

    return _value_function(problem, extrapolated, _apart(fine, coarse) / 3)


def _strang(
    sde: DriftSDE, problem: ControlProblem, times: Tensor, dt: float, nodes: tuple[int, int]
) -> PeriodicFields:
    """The value at the wanted times. A state k >= 1 of a Strang chain has had the half kick that
    the next step begins with.
    """
    steps = whole_steps(sde.horizon, dt)
    sweep = PeriodicSweep(ControlProblem(Strang().chain(sde, steps), problem.reward, 1.0), nodes)
    wanted = [round(t / dt) for t in times.tolist()]
    half_kick, found = float(sde.noise[1, 0]) * (dt / 2) ** 0.5, {}
    for k, fields in sweep.backward():
        if k - 1 in wanted:
            found[k - 1] = fields if k - 1 == steps else sweep.smooth(fields, half_kick)
    return sweep.wrap([found[j] for j in reversed(wanted)])


def _apart(first: PeriodicFields, second: PeriodicFields) -> float:
    """Largest difference of two gradients over ``|x_2| <= REACH`` and all times."""
    x1, x2 = (
        torch.linspace(-math.pi, math.pi, 40, dtype=torch.float64),
        torch.linspace(-REACH, REACH, 41, dtype=torch.float64),
    )
    probe = torch.cartesian_prod(x1, x2)
    return float((first.gradients(probe) - second.gradients(probe)).norm(dim=2).max())


def _value_function(
    problem: ControlProblem, fields: Callable[[int, States], Tensor], error: float
) -> ValueFunction:
    z = torch.linspace(-6, 6, 97, dtype=torch.float64)
    mass = torch.exp(-z.square() / 2)
    weights = torch.outer(mass, mass).flatten() / mass.sum().square()
    objective = float(
        weights @ fields(0, problem.reference.initial(torch.cartesian_prod(z, z)))[:, 0]
    )
    return ValueFunction(
        lambda k, x: fields(k, x)[:, 0], lambda k, x: fields(k, x)[:, 1:], objective, error
    )
