r"""The test problems of *Stochastic Optimal Control Matching* (arXiv 2312.02027) with lambda = 1.

The process is :math:`dX = (b + \sigma u)\,dt + \sigma\,dW`. The cost is
:math:`E[\int (f(X) + |u|^2/2)\,dt + g(X_T)]` on [0, 1].

* ``ou-quadratic-easy`` and ``ou-quadratic-hard``: d = 20, :math:`b = A x`, :math:`f = x^\top P x`,
  :math:`g = x^\top Q x`, :math:`\sigma = I`, 50 steps; A = P = 0.2 I and Q = 0.1 I, or A = P = I
  and Q = 0.5 I; one start drawn from N(0, I / 4).
* ``ou-linear``: d = 10, :math:`A = -I + \xi`, :math:`\sigma = I + \nu` with entries of
  :math:`\xi, \nu` from N(0, 0.01), :math:`f = 0`, :math:`g = \sum_i x_i`, start at 0, 100 steps.
  The optimal control does not depend on the state.
* ``double-well``: d = 10, :math:`b = -\nabla \sum_i \kappa_i (x_i^2 - 1)^2`,
  :math:`g = \sum_i \nu_i (x_i^2 - 1)^2`, :math:`\kappa = 5` and :math:`\nu = 3` for the first three
  coordinates and 1 for the others, :math:`\sigma = I`, start at 0, 200 steps. Its coordinates are
  independent: the chain's optimum is a sum of one-dimensional ones by quadrature.

In continuous time :math:`e^{V/\beta}` solves a linear equation (Cole-Hopf), so the double well's
value is :math:`V = \log E[e^{-g(X_T)} | X_t]` of the uncontrolled process, found here by Strang
splitting of exact flow and kicks on a grid and one Richardson extrapolation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.problem import ControlProblem
from socft.reference import States
from socft.reward import FunctionReward, Linear, PerSample, Separable
from socft.sde import DriftSDE, EulerMaruyama, Integrator, LinearSDE, gramian, propagator
from socft.study.vocabulary.problems import ProblemName
from socft.truth.grid import Grid
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from toy.problems.base import (
    Benchmark,
    Solvers,
    ValueFunction,
    affine_uncontrolled,
    grid_uncontrolled,
)
from toy.problems.linear_quadratic import normal, quadratic_cost_benchmark

HORIZON = 1.0
START_DEVIATION = 0.5
PERTURBATION = 0.1

WELL_EDGE = 2.75  # where the stationary law of the shallow well has density e^-86
WELL_NODES = 601
HERMITE_NODES = 16
HOPF_NODES = 401
SUBSTEPS = (8, 16)  # Strang steps per step of the chain, for the extrapolation
INTERIOR = 1.75  # |x| up to which the error of the continuous solution is estimated


def ou_quadratic_easy(
    d: int = 20, steps: int = 50, seed: int = 0, integrator: Integrator | None = None
) -> Benchmark:
    """Quadratic Ornstein-Uhlenbeck, easy: A = P = 0.2 I, Q = 0.1 I."""
    return _ou_quadratic(ProblemName.OU_QUADRATIC_EASY, 0.2, 0.1, d, steps, seed, integrator)


def ou_quadratic_hard(
    d: int = 20, steps: int = 50, seed: int = 0, integrator: Integrator | None = None
) -> Benchmark:
    """Quadratic Ornstein-Uhlenbeck, hard: A = P = I, Q = 0.5 I."""
    return _ou_quadratic(ProblemName.OU_QUADRATIC_HARD, 1.0, 0.5, d, steps, seed, integrator)


def _ou_quadratic(
    name: str,
    rate: float,
    terminal: float,
    d: int,
    steps: int,
    seed: int,
    integrator: Integrator | None,
) -> Benchmark:
    require(d >= 1, f"d = {d}; give at least 1.")
    eye = torch.eye(d, dtype=torch.float64)
    start = START_DEVIATION * normal(d, generator=torch.Generator().manual_seed(seed))
    return quadratic_cost_benchmark(
        name=name,
        description=(
            f"dX = ({rate:g} X + u) dt + dW, running cost {rate:g} |x|^2, terminal cost"
            f" {terminal:g} |x|^2, from a point"
        ),
        settings={"d": d, "steps": steps, "seed": seed},
        sde=LinearSDE(rate * eye, eye, HORIZON, initial_mean=start, initial_factor=0 * eye),
        steps=steps,
        integrator=integrator or EulerMaruyama(),
        running=2 * rate * eye,
        terminal=-2 * terminal * eye,
        beta=1.0,
    )


def ou_linear(
    d: int = 10, steps: int = 100, seed: int = 0, integrator: Integrator | None = None
) -> Benchmark:
    """Linear Ornstein-Uhlenbeck: a random stable drift, a random noise and a linear terminal
    cost.
    """
    require(d >= 1, f"d = {d}; give at least 1.")
    generator, eye = torch.Generator().manual_seed(seed), torch.eye(d, dtype=torch.float64)
    A, sigma = (sign * eye + PERTURBATION * normal(d, d, generator=generator) for sign in (-1, 1))
    sde = LinearSDE(A, sigma, HORIZON, initial_factor=0 * eye)
    slope, integrator = -torch.ones(d, dtype=torch.float64), integrator or EulerMaruyama()
    problem, times = (
        ControlProblem(integrator.chain(sde, steps), Linear(slope), 1.0),
        integrator.times(HORIZON, steps),
    )
    return Benchmark(
        name=ProblemName.OU_LINEAR,
        description=(
            "dX = (A X + sigma u) dt + sigma dW near A = -I, sigma = I, terminal cost sum x_i,"
            " from 0"
        ),
        settings={"d": d, "steps": steps, "seed": seed},
        problem=problem,
        sde=sde,
        times=times,
        solvers=Solvers(
            lambda: LinearQuadratic(problem),
            lambda: affine_uncontrolled(problem),
            lambda: _linear_value(sde, slope, times),
        ),
    )


def _linear_value(sde: LinearSDE, slope: Tensor, times: Tensor) -> ValueFunction:
    """``V = slope' e^{A (T-t)} x + slope' G slope / 2`` with the Gramian G of the time left: half
    goes into the control's cost.
    """

    def at(k: int) -> tuple[Tensor, float]:
        left = sde.horizon - float(times[k])
        return (
            slope @ propagator(sde.A, left),
            float(slope @ gramian(sde.A, sde.noise, left) @ slope) / 2,
        )

    return ValueFunction(
        lambda k, x: x @ at(k)[0].to(x) + at(k)[1],
        lambda k, x: at(k)[0].to(x).expand_as(x),
        float(at(0)[0] @ sde.initial_mean) + at(0)[1],
    )


def double_well(
    d: int = 10, deep: int = 3, steps: int = 200, integrator: Integrator | None = None
) -> Benchmark:
    """Double wells in every coordinate, the first ``deep`` of them with barriers 5 and costs 3, the
    others with 1 and 1.
    """
    require(
        d >= 1 and 0 <= deep <= d,
        f"d = {d} and deep = {deep}; give at least one coordinate and 0 <= deep <= d.",
    )
    height = torch.tensor([5.0] * deep + [1.0] * (d - deep), dtype=torch.float64)
    weight = torch.tensor([3.0] * deep + [1.0] * (d - deep), dtype=torch.float64)
    kinds = [
        _Well(float(h), float(w))
        for h, w in sorted(set(zip(height.tolist(), weight.tolist(), strict=True)))
    ]
    which = [kinds.index(_Well(float(h), float(w))) for h, w in zip(height, weight, strict=True)]
    integrator, eye = integrator or EulerMaruyama(), torch.eye(d, dtype=torch.float64)
    sde = DriftSDE(
        lambda t, x: -4 * height.to(x) * x * (x.square() - 1), eye, HORIZON, torch.zeros_like
    )
    rewards = [FunctionReward(kind.reward) for kind in kinds]
    times = integrator.times(HORIZON, steps)
    problem = ControlProblem(
        integrator.chain(sde, steps), Separable(eye, [rewards[i] for i in which]), 1.0
    )

    def part(i: int) -> ControlProblem:
        return ControlProblem(integrator.chain(kinds[i].sde, steps), rewards[i], 1.0)

    def truth() -> SeparableTruth:
        solved = [Quadrature(part(i), _grids(part(i))) for i in range(len(kinds))]
        return SeparableTruth.of_parts(problem, eye, [solved[i] for i in which])

    def uncontrolled() -> ValueFunction:
        return _sum([grid_uncontrolled(part(i), _grids(part(i))) for i in range(len(kinds))], which)

    return Benchmark(
        name=ProblemName.DOUBLE_WELL,
        description=(
            f"{d} independent double wells, {deep} of them deep, from the top of the barriers"
        ),
        settings={"d": d, "deep": deep, "steps": steps},
        problem=problem,
        sde=sde,
        times=times,
        solvers=Solvers(
            truth, uncontrolled, lambda: _sum([_cole_hopf(kind, times) for kind in kinds], which)
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Well:
    """One coordinate: drift ``-4 height x (x^2 - 1)``, reward ``-weight (x^2 - 1)^2``."""

    height: float
    weight: float

    @property
    def sde(self) -> DriftSDE:
        one = torch.ones(1, 1, dtype=torch.float64)
        return DriftSDE(
            lambda t, x: -4 * self.height * x * (x.square() - 1), one, HORIZON, torch.zeros_like
        )

    def reward(self, x: States) -> PerSample:
        return -self.weight * (x[:, 0].square() - 1).square()

    def flow(self, dt: float, x: Tensor) -> Tensor:
        """The solution of ``x' = -4 height x (x^2 - 1)``: y = 1 / x^2 - 1 decays at rate 8
        height.
        """
        decay = math.exp(-8 * self.height * dt)
        return x / (x.square() + (1 - x.square()) * decay).sqrt()


def _grids(problem: ControlProblem) -> tuple[Grid, ...]:
    """One box for all steps; beyond it an explicit step overshoots and the value there means
    nothing.
    """
    edge = torch.tensor([WELL_EDGE], dtype=torch.float64)
    reached = max(float(problem.reference.mean(k, edge[None]).abs()) for k in range(problem.steps))
    require(
        reached <= WELL_EDGE,
        f"a step takes {WELL_EDGE} to a distance of {reached:.3g} from 0, so the chain is unstable"
        " on the walls; use more steps.",
    )
    return (Grid.box(-edge, edge, (WELL_NODES,)),) * (problem.steps + 1)


def _cole_hopf(well: _Well, times: Tensor) -> ValueFunction:
    """``log E exp(r(X_T))`` on a grid at the given times, extrapolated from two step sizes."""
    edge = torch.tensor([WELL_EDGE], dtype=torch.float64)
    grid = Grid.box(-edge, edge, (HOPF_NODES,))
    coarse, fine = (_gibbs(well, grid, times, n) for n in SUBSTEPS)
    values = [(4 * b - a) / 3 for a, b in zip(coarse, fine, strict=True)]
    gradients = [grid.jacobian(v) for v in values]
    inside = grid.nodes[:, 0].abs() <= INTERIOR
    changes = [grid.jacobian(b - v)[inside].abs().max() for v, b in zip(values, fine, strict=True)]
    at_start = grid.interpolate(values[0], torch.zeros(1, 1, dtype=torch.float64))
    return ValueFunction(
        lambda k, x: grid.extend(values[k], x)[:, 0],
        lambda k, x: grid.extend(gradients[k][:, 0], x),
        float(at_start),
        float(torch.stack(changes).max()),
    )


def _gibbs(well: _Well, grid: Grid, times: Tensor, substeps: int) -> list[Float[Tensor, "nodes 1"]]:
    """``log E exp(r(X_T))`` by half a kick, the exact flow, half a kick, ``substeps`` times between
    two times.
    """
    moves: dict[float, Tensor] = {0.0: torch.eye(HOPF_NODES, dtype=torch.float64)}
    mass = [torch.exp(well.reward(grid.nodes))[:, None]]
    for span in (round(s, 12) for s in times.diff().flip(0).tolist()):
        if span not in moves:
            moves[span] = torch.linalg.matrix_power(_substep(well, grid, span / substeps), substeps)
        mass.append(moves[span] @ mass[-1])
    return [m.clamp(min=torch.finfo(torch.float64).tiny).log() for m in reversed(mass)]


def _substep(well: _Well, grid: Grid, dt: float) -> Float[Tensor, "nodes nodes"]:
    """The interpolated expectation over one Strang step as a matrix."""
    node, mass = np.polynomial.hermite_e.hermegauss(HERMITE_NODES)
    eye = torch.eye(len(grid.nodes), dtype=torch.float64)
    kicks = [
        float(w) * grid.extend(eye, grid.nodes + (dt / 2) ** 0.5 * float(z), 0.0)
        for z, w in zip(node, mass / mass.sum(), strict=True)
    ]
    kick = torch.stack(kicks).sum(0)
    return kick @ grid.interpolate(eye, well.flow(dt, grid.nodes)) @ kick


def _sum(parts: list[ValueFunction], which: list[int]) -> ValueFunction:
    """The sum of one-dimensional values over coordinates."""

    def columns(
        function: Callable[[ValueFunction], Callable[[int, States], Tensor]], k: int, x: States
    ) -> list[Tensor]:
        return [function(parts[i])(k, x[:, j : j + 1]) for j, i in enumerate(which)]

    return ValueFunction(
        lambda k, x: torch.stack(columns(lambda p: p.value, k, x)).sum(0),
        lambda k, x: torch.cat(columns(lambda p: p.gradient, k, x), 1),
        math.fsum(parts[i].objective for i in which),
        math.hypot(*(parts[i].error for i in which)),
    )
