r"""Exact solution in one and two dimensions by dynamic programming with quadrature, for any smooth
reward and reference.

Each step solves the Bellman equation at the nodes of a grid (`socft.truth.bellman`), with grids
that follow the mass of the pre-trained and of the optimal chain. The discretisation error is
reported by refinement (`socft.truth.backward`): a coarser and a finer solution on wider boxes are
compared with it where the optimal chain has all but 1e-6 of its mass. Where an accuracy is asked
for, grids are refined until the reported error is within it.
"""

from __future__ import annotations

import functools
import math
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import number, require, sizes
from socft.path import Noise, rollout
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem, require_problem
from socft.reference import Noises, Reference, States, Step, by_step
from socft.reward import PerSample
from socft.truth.backward import (
    COARSER,
    FINER,
    GridSolution,
    attempted,
    estimated,
    noise_at_end,
    resized,
    smoothing_error,
    solve_backward,
)
from socft.truth.base import ErrorBounds, Evaluation, Truth
from socft.truth.bellman import axis_sigma, mean_and_jacobian
from socft.truth.chain_law import LOST_MASS, ChainLaw, Region, chain_law
from socft.truth.grid import Grid, GridPolicy, ValueGrid, tensor_rule

NODES = {1: (601, 3001), 2: (97, 97)}  # fewest and most nodes per axis by dimension
COARSE = {1: (301,), 2: (41, 41)}
PER_SCALE = 7.0
SPREAD = 8.0  # half-width of the grids in standard deviations; what lies beyond weighs 1e-15
COARSEST = 0.5
"""Share of the nodes with which a search for an accuracy begins."""
FINEST = {1: 4.0, 2: 2.0}
"""The largest one, by dimension."""
SLOW = 0.7
"""Of an error per level: slower than any smooth problem."""
UNRESOLVED = 0.02
"""Relative error of the smoothed gradient of the reward above which it is told."""
PILOT_PATHS = 4096
GROWTHS = 12
GROWTH = 0.2
SLACK = 0.01
THINNEST = 0.01  # least width of a grid relative to the widest: a chain may start at a point


class AccuracyWarning(UserWarning):
    """A solution is less accurate than what was asked for."""


class Quadrature(Truth):
    """The exact optimum by quadrature in d = 1 or 2.

    Args:
        problem: the problem; the reference's noise must act along the axes (degenerate axes
            allowed).
        grids: one grid per step 0..T; chosen from the mass of the pre-trained and the optimal chain
            when left out.
        nodes: nodes per axis of the chosen grids; by default a seventh of the scale on which the
            value varies.
        accuracy: the largest error of the control wanted, in place of grids and nodes: grids are
            refined until `error` is within it. Where four times the usual nodes (twice in two
            dimensions) do not reach it, as at a kink, an `AccuracyWarning` says what is reached.

    Attributes:
        grids: the grids.
        values: the value function on them, k = 0..T.
        shifts: the optimal shift ``B_k v*_k`` at the nodes, k = 0..T-1.
        curvature: ``sup |Hess G V_{k+1}|`` per step, shape (T,), also between the nodes.

    Raises:
        InvalidProblem: beta too small for a well-defined control, a reward that is not finite on
            the grid, or given grids that lose more than 1e-6 of the mass.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> f"{Quadrature(problem).objective:.6f}"
    '0.063124'
    """

    def __init__(
        self,
        problem: ControlProblem,
        grids: tuple[Grid, ...] | None = None,
        nodes: tuple[int, ...] | None = None,
        accuracy: float | None = None,
    ):
        require_problem(problem)
        _grid_dim(problem.reference)
        self.problem = problem
        nodes = None if nodes is None else sizes(nodes, "nodes")
        if accuracy is None:
            self._take(solve_backward(problem, grids or choose_grids(problem, nodes)))
            if grids is None and nodes is None:
                self._warn_of_kinks()
            return
        require(grids is None and nodes is None, "an accuracy chooses its own grids; give one.")
        accuracy = number(accuracy, "accuracy")
        require(accuracy > 0, f"accuracy = {accuracy:g}; it must be positive.")
        self._refine(accuracy)

    def _take(self, solution: GridSolution) -> None:
        for known in ("law", "region", "errors", "curvature", "_neighbours", "_changes", "probe"):
            vars(self).pop(known, None)
        self._solution, self.grids = solution, solution.grids
        self.values, self.shifts = solution.values, solution.shifts
        self._policy = self._policy_of(solution)
        lost = self.law.lost
        require(
            lost <= LOST_MASS,
            f"the grids lose {lost:.1e} of the optimal chain's mass, more than {LOST_MASS:g};"
            " widen, refine or omit them.",
        )

    def _refine(self, accuracy: float) -> None:
        """Solve on finer grids until the error is within an accuracy, or as long as that is in
        sight.
        """
        problem, base = self.problem, choose_grids(self.problem)
        most = math.log(FINEST[base[0].dim] / COARSEST) / math.log(FINER)
        levels = (
            attempted(problem, resized(base, COARSEST * FINER**i, wider=i % 2 == 0))
            for i in range(math.ceil(most) + 2)
        )
        before, here = next(levels), next(levels)
        reached = math.inf
        for finer in levels:
            if here is not None:
                self._take(here)
                self._neighbours = before, finer
                slow = self.error > SLOW * reached
                reached = self.error
                if reached <= accuracy:
                    return
                if slow and reached * SLOW ** (most / 2) > accuracy:
                    break
            before, here = here, finer
        if not hasattr(self, "_solution"):
            self._take(solve_backward(problem, base))
        warnings.warn(
            f"the control is known to {self.error:.1g} and accuracy = {accuracy:g} was asked for:"
            " something varies on less than the distance of the nodes; smooth the reward, or give"
            " grids.",
            AccuracyWarning,
            stacklevel=3,
        )

    def _warn_of_kinks(self) -> None:
        off = smoothing_error(self.values[-1], noise_at_end(self.problem))
        if off > UNRESOLVED:
            warnings.warn(
                f"the gradient of the smoothed reward is off by some {100 * off:.0f} %, as at a"
                " kink: the distance of the nodes is too large for it; give an accuracy or nodes,"
                " or smooth the reward.",
                AccuracyWarning,
                stacklevel=3,
            )

    def _policy_of(self, solution: GridSolution) -> GridPolicy:
        return GridPolicy.from_shifts(
            self.problem.reference,
            solution.grids[:-1],
            solution.shifts,
            solution.values[0].extrapolation,
        )

    @functools.cached_property
    def curvature(self) -> Float[Tensor, " steps"]:
        """``sup |Hess G V_{k+1}|`` per step, also between the nodes."""
        return torch.tensor(self._solution.curvature, dtype=torch.float64)

    @functools.cached_property
    def law(self) -> ChainLaw:
        """The law of the optimal chain."""
        return self.law_of(self._policy)

    def law_of(self, policy: Policy) -> ChainLaw:
        """The law of the chain under a policy; one that leaves the grids loses mass, `lost`."""
        return chain_law(self.problem, policy, self.grids)

    @functools.cached_property
    def region(self) -> Region:
        """The boxes that carry all but 1e-6 of the optimal chain's mass at each step."""
        return self.law.region()

    def _find_errors(self) -> ErrorBounds:
        """Estimates from above, by a coarser and a finer solution on wider boxes, see `estimated`:
        each on the region that carries all but 1e-6 of the mass, also between the nodes.
        """
        each = zip(*self._changes, self._scales(), strict=True)
        return ErrorBounds(*(estimated(c, f, scale) for c, f, scale in each))

    @functools.cached_property
    def curvature_error(self) -> float:
        """What any entry of `curvature` is off by, likewise."""
        changes = [
            math.inf
            if other is None
            else float((self.curvature - torch.tensor(other.curvature)).abs().max())
            for other in self._neighbours
        ]
        return estimated(changes[0], changes[1], float(self.curvature.max()))

    @functools.cached_property
    def _neighbours(self) -> tuple[GridSolution | None, GridSolution | None]:
        """A coarser and a finer solution, on wider boxes."""
        coarser, finer = (attempted(self.problem, resized(self.grids, s)) for s in (COARSER, FINER))
        return coarser, finer

    @functools.cached_property
    def _changes(self) -> list[tuple[float, float, float, float]]:
        return [self._change(other) for other in self._neighbours]

    def _change(self, other: GridSolution | None) -> tuple[float, float, float, float]:
        """What another solution has otherwise: in control, gradient, value and objective."""
        if other is None:
            return math.inf, math.inf, math.inf, math.inf
        policy, control, gradient, value = self._policy_of(other), [], [], []
        for k, field in enumerate(other.values):
            x = self._compared(k)
            if k < self.problem.steps:
                control.append(_largest(self.control(k, x) - policy(k, x)))
            gradient.append(_largest(self.value_gradient(k, x) - field.gradient_at(x)))
            value.append(float((self.value(k, x) - field.at(x)).abs().max()))
        missed = abs(self.objective - mean_at_start(self.problem.reference, other.values[0]))
        return max(control), max(gradient), max(value), missed

    def _compared(self, k: int) -> Float[Tensor, "points d"]:
        """The nodes that carry mass, and the centres of their cells."""
        x, half = self.points(k), self.grids[k].spacing / 2
        return torch.cat([x, x - half.copysign(x - x.mean(0))])

    def _scales(self) -> tuple[float, float, float, float]:
        """The size of what `errors` bounds."""
        control, gradient, value = 0.0, 0.0, 0.0
        for k in range(self.problem.steps + 1):
            x = self.points(k)
            if k < self.problem.steps:
                control = max(control, float(self.control(k, x).norm(dim=1).max()))
            gradient = max(gradient, float(self.value_gradient(k, x).norm(dim=1).max()))
            value = max(value, float(self.value(k, x).abs().max()))
        return control, gradient, value, value

    def points(self, k: int) -> Float[Tensor, "nodes d"]:
        """Nodes of step ``k`` that carry all but 1e-6 of the mass: those of the region in one
        dimension; in two without its corners, the likeliest.
        """
        x, mass = self.grids[k].nodes, self.law.masses[k]
        kept = self.region.contains(k, x)
        if self.grids[k].dim > 1:
            order = mass.argsort(descending=True)
            beyond = mass[order].cumsum(0) > mass.sum() - LOST_MASS
            kept[order[beyond][1:]] = False
        return x[kept]

    def value(self, k: Step, x: States) -> PerSample:
        return by_step(k, x, lambda i, y: self.values[i].at(y).to(y))

    def value_gradient(self, k: Step, x: States) -> States:
        return by_step(k, x, lambda i, y: self.values[i].gradient_at(y).to(y))

    def control(self, k: Step, x: States) -> Noises:
        return self._policy(k, x)

    @property
    def policy(self) -> GridPolicy:
        return self._policy

    @property
    def objective(self) -> float:
        return mean_at_start(self.problem.reference, self.values[0])

    def evaluate(self, policy: Policy) -> Evaluation:
        """Objective, reward and KL of any policy, by pushing its law through the grids; by
        simulation if it leaves them.
        """
        law = self.law_of(policy)
        if not law.lost <= LOST_MASS:
            return super().evaluate(policy)
        with torch.no_grad():
            controls = [
                policy(k, self.grids[k].nodes).square().sum(1) / 2
                for k in range(self.problem.steps)
            ]
            costs = [self.problem.cost(k, self.grids[k].nodes) for k in range(self.problem.steps)]
        kl = torch.tensor([law.expect(k, c) for k, c in enumerate(controls)], dtype=torch.float64)
        reward = law.expect(self.problem.steps, self.problem.reward(self.grids[-1].nodes))
        running = sum(law.expect(k, c) for k, c in enumerate(costs))
        return Evaluation(reward - running - float(self.problem.beta @ kl), reward, kl)


def _largest(difference: Float[Tensor, "points d"]) -> float:
    return float(difference.norm(dim=1).max())


def mean_at_start(reference: Reference, value: ValueGrid) -> float:
    points, weights = tensor_rule(value.grid.dim)
    return float(weights @ value.at(reference.initial(points)))


def choose_grids(problem: ControlProblem, nodes: tuple[int, ...] | None = None) -> tuple[Grid, ...]:
    """Grids that cover `SPREAD` standard deviations of the pre-trained and the optimal chain and
    keep the optimal chain's mass.

    The boxes grow until they do: a weak KL penalty lets the optimal chain travel far.

    Args:
        problem: the problem.
        nodes: nodes per axis; by default a seventh of the scale on which each value function
            varies.
    """
    reference, d = problem.reference, _grid_dim(problem.reference)
    lower, upper = spread(reference, Uncontrolled(reference))
    for _ in range(GROWTHS):
        grids = tuple(Grid.box(lo, hi, COARSE[d]) for lo, hi in zip(lower, upper, strict=True))
        solution = solve_backward(problem, grids)
        pilot = GridPolicy.from_shifts(
            reference, grids[:-1], solution.shifts, solution.values[0].extrapolation
        )
        low, high = spread(reference, pilot)
        leaking = chain_law(problem, pilot, grids).lost > LOST_MASS
        if not leaking and covers(lower, upper, low, high):
            break
        growth = GROWTH * (upper - lower) if leaking else torch.zeros_like(lower)
        lower, upper = torch.minimum(low, lower - growth), torch.maximum(high, upper + growth)
    return resolved(problem, lower, upper, nodes)


def covers(lower: Tensor, upper: Tensor, low: Tensor, high: Tensor, share: float = SLACK) -> bool:
    """Whether boxes hold others, up to a share of their width."""
    slack = share * (upper - lower)
    return bool(((low >= lower - slack) & (high <= upper + slack)).all())


def resolved(
    problem: ControlProblem,
    lower: Float[Tensor, "steps_plus_1 d"],
    upper: Float[Tensor, "steps_plus_1 d"],
    nodes: tuple[int, ...] | None = None,
) -> tuple[Grid, ...]:
    """Grids on boxes, by default with nodes that resolve the value functions."""
    coarse = COARSE[_grid_dim(problem.reference)]
    boxes = [Grid.box(lo, hi, coarse) for lo, hi in zip(lower, upper, strict=True)]
    return tuple(
        Grid.box(b.lower, b.upper, nodes or _resolving(problem, k, b)) for k, b in enumerate(boxes)
    )


def _grid_dim(reference: Reference) -> int:
    d = reference.dims[0] if len(reference.dims) == 1 else 0
    require(
        d in (1, 2),
        f"states of shape {reference.dims} have no grid; quadrature solves vectors of length 1"
        " and 2.",
    )
    return d


def _resolving(problem: ControlProblem, k: int, box: Grid) -> tuple[int, ...]:
    """Nodes per axis that resolve the value function of step ``k``, within `NODES`.

    V_k is a function smoothed by sigma_k composed with m_k, so it varies over
    ``sigma_k / sup |Jac m_k|``.
    """
    least, most = NODES[box.dim]
    stretch = torch.ones(box.dim, dtype=torch.float64)
    if k < problem.steps:
        stretch = mean_and_jacobian(problem.reference, k, box.nodes)[1].abs().amax((0, 1))
    scale = axis_sigma(problem.reference, min(k, problem.steps - 1)) / stretch
    wanted = [
        math.ceil(PER_SCALE * float(w / s)) + 1 if s > 0 else most
        for w, s in zip(box.upper - box.lower, scale, strict=True)
    ]
    return tuple(min(max(n, least), most) for n in wanted)


def spread(reference: Reference, policy: Policy) -> tuple[Tensor, Tensor]:
    """Mean -+ SPREAD standard deviations of a pilot simulation with fixed noise, two tensors (T +
    1, d).
    """
    noise = Noise.sample(reference, PILOT_PATHS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = rollout(reference, policy, noise).states
    mean, reach = states.mean(1), SPREAD * states.std(1)
    reach = torch.maximum(reach, THINNEST * reach.amax(0))
    return mean - reach, mean + reach
