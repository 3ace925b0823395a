r"""Exact solution in one and two dimensions by dynamic programming with quadrature, for any smooth
reward and reference.

Each step solves the Bellman equation at the nodes of a grid (`socft.truth.bellman`), with grids
that follow the mass of the pre-trained and of the optimal chain. The discretisation error is
reported by refinement: solutions on two wider boxes with 0.7 and 0.85 times the nodes per length
are compared with the finer one where the optimal chain has all but 1e-6 of its mass.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from scipy.optimize import root_scalar
from torch import Tensor

from socft.checks import InvalidProblem, number, require, sizes
from socft.path import Noise, rollout
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem, require_problem
from socft.reference import Noises, Reference, States, Step, by_step
from socft.reward import PerSample
from socft.theory import BetaChoice, beta_from_curvature
from socft.truth.base import ErrorBounds, Evaluation, Truth
from socft.truth.bellman import BellmanStep, axis_sigma, mean_and_jacobian, terminal_value
from socft.truth.chain_law import LOST_MASS, ChainLaw, Region, chain_law
from socft.truth.grid import STENCIL, Grid, GridPolicy, ValueGrid, tensor_rule

if TYPE_CHECKING:
    pass

NODES = {1: (601, 3001), 2: (97, 97)}  # fewest and most nodes per axis by dimension
COARSE = {1: (301,), 2: (41, 41)}
PER_SCALE = 7.0
SPREAD = 8.0  # half-width of the grids in standard deviations; what lies beyond weighs 1e-15
REFINEMENTS = (0.7, 0.85)
WIDENING = 0.05
ROUNDING = 1e-12
"""Relative: sums over some hundred nodes, at every step."""
PILOT_PATHS = 4096
GROWTHS = 12
GROWTH = 0.2
SLACK = 0.01
THINNEST = 0.01  # least width of a grid relative to the widest: a chain may start at a point
LARGEST_LOG_BETA = math.log(1e6)
BETA_TOLERANCE = 1e-7
NEAR = 0.2  # logarithms of beta whose optimal chains live on the same grids


class Quadrature(Truth):
    """The exact optimum by quadrature in d = 1 or 2.

    Args:
        problem: the problem; the reference's noise must act along the axes (degenerate axes
            allowed).
        grids: one grid per step 0..T; chosen from the mass of the pre-trained and the optimal chain
            when left out.
        nodes: nodes per axis of the chosen grids; by default a seventh of the scale on which the
            value varies.

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
    ):
        require_problem(problem)
        _grid_dim(problem.reference)
        self.problem = problem
        nodes = None if nodes is None else sizes(nodes, "nodes")
        self.grids = grids or choose_grids(problem, nodes)
        solution = solve_backward(problem, self.grids)
        self.values, self.shifts = solution.values, solution.shifts
        self.curvature = torch.tensor(solution.curvature, dtype=torch.float64)
        self._policy = GridPolicy.from_shifts(
            problem.reference, self.grids[:-1], self.shifts, self.values[0].extrapolation
        )
        lost = self.law.lost
        require(
            lost <= LOST_MASS,
            f"the grids lose {lost:.1e} of the optimal chain's mass, more than {LOST_MASS:g};"
            " widen, refine or omit them.",
        )

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
        """Estimates from above, by solving on two coarser and wider boxes, see `estimated`: each
        on the region that carries all but 1e-6 of the mass.
        """
        coarse, medium = (change[:4] for change in self._changes)
        each = zip(coarse, medium, self._scales(), strict=True)
        return ErrorBounds(*(estimated(c, m, scale) for c, m, scale in each))

    @property
    def curvature_error(self) -> float:
        """What any entry of `curvature` is off by, likewise."""
        coarse, medium = (change[4] for change in self._changes)
        return estimated(coarse, medium, float(self.curvature.max()))

    @functools.cached_property
    def _changes(self) -> list[tuple[float, float, float, float, float]]:
        return [self._change(share) for share in REFINEMENTS]

    def _change(self, share: float) -> tuple[float, float, float, float, float]:
        """What a solution with a share of the nodes per length on wider boxes has otherwise: in
        control, gradient, value, objective and curvature.
        """
        grids = tuple(coarsened(g, share) for g in self.grids)
        try:
            other = solve_backward(self.problem, grids)
        except InvalidProblem:
            return math.inf, math.inf, math.inf, math.inf, math.inf
        gradient, value = [], []
        for k, field in enumerate(other.values):
            x = self.points(k)
            apart = self.value_gradient(k, x) - field.gradient_at(x)
            gradient.append(float(apart.norm(dim=1).max()))
            value.append(float((self.value(k, x) - field.at(x)).abs().max()))
        policy = GridPolicy.from_shifts(
            self.problem.reference, grids[:-1], other.shifts, self._policy.extrapolation
        )
        control = float(self.control_error(policy).max())
        objective = mean_at_start(self.problem.reference, other.values[0])
        bent = self.curvature - torch.tensor(other.curvature, dtype=torch.float64)
        missed = abs(self.objective - objective)
        return control, max(gradient), max(value), missed, float(bent.abs().max())

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


@dataclasses.dataclass(frozen=True)
class GridSolution:
    """Values (T + 1), optimal shifts (T) and curvatures (T) on a tuple of grids."""

    values: tuple[ValueGrid, ...]
    shifts: tuple[Tensor, ...]
    curvature: tuple[float, ...]


def mean_at_start(reference: Reference, value: ValueGrid) -> float:
    points, weights = tensor_rule(value.grid.dim)
    return float(weights @ value.at(reference.initial(points)))


def estimated(coarse: float, medium: float, scale: float) -> float:
    """The error of a solution, from above, from what it differs by from two coarser ones.

    With a share s of the nodes and errors of order p the change is ``s^-p - 1`` times the error:
    more than half of it from p = 3 on at s = 0.85, as at kinks; smooth problems have p = 10 or
    more. An eighth of the other change guards against a change that is small by chance.
    """
    found = max(2 * medium, coarse / 8) + ROUNDING * scale
    return found if math.isfinite(found) else math.inf


def coarsened(grid: Grid, share: float) -> Grid:
    """A box wider by `WIDENING` on either side, with fewer nodes per length."""
    margin = WIDENING * (grid.upper - grid.lower)
    nodes = tuple(max(STENCIL, math.ceil((1 + 2 * WIDENING) * share * n)) for n in grid.shape)
    return Grid.box(grid.lower - margin, grid.upper + margin, nodes)


def solve_backward(problem: ControlProblem, grids: tuple[Grid, ...]) -> GridSolution:
    """Dynamic programming from the reward to step 0."""
    require(
        len(grids) == problem.steps + 1,
        f"{len(grids)} grids for {problem.steps} steps; give one per step 0..T,"
        f" {problem.steps + 1}.",
    )
    dims = problem.reference.dims
    require(
        all((g.dim,) == dims for g in grids),
        f"grids of shape {grids[0].shape} for states of shape {dims}; one axis each.",
    )
    values, shifts, curvature = [terminal_value(problem, grids[-1])], [], []
    for k in reversed(range(problem.steps)):
        step = BellmanStep.build(problem, k, grids[k], values[-1])
        shifts.append(step.solve())
        values.append(step.optimal_value(shifts[-1]))
        curvature.append(step.curvature())
    return GridSolution(
        tuple(reversed(values)), tuple(reversed(shifts)), tuple(reversed(curvature))
    )


def measured_beta(problem: ControlProblem, lam: float) -> BetaChoice:
    """The smallest constant KL weight under which the inner loop contracts by ``1 - lam`` at every
    step, by measured curvature.

    Solves ``max_k sigma_k^2 sup |Hess G V_{k+1}| / beta = 1 - lam`` for beta, on which the optimal
    V depends. The result's ``lam`` are the design constants reached per step, its ``margin`` how
    much of beta each step could do without. The value functions of PI-FT's first iterates can be
    more curved than the optimal one, so for small lam it may need several inner iterations, or
    diverge with one.

    Args:
        problem: reference, reward and running cost; its beta is ignored.
        lam: the least design constant wanted, in (0, 1).

    Raises:
        InvalidProblem: lam outside (0, 1), or no beta between 1e-6 and 1e6 reaches it.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> f"{measured_beta(problem, lam=0.5).beta[0]:.4f}"
    '0.4624'
    """
    require_problem(problem)
    lam = number(lam, "lam")
    require(0 < lam < 1, f"lam = {lam}; the design constant must lie in (0, 1).")
    sigma = torch.stack([axis_sigma(problem.reference, k).max() for k in range(problem.steps)])

    solved: dict[float, tuple[Grid, ...]] = {}

    def excess(log_beta: float) -> float:
        weighted = _with_beta(problem, math.exp(log_beta))
        near = min(solved, key=lambda each: abs(each - log_beta), default=math.inf)
        try:
            if abs(near - log_beta) > NEAR:
                solved[near := log_beta] = choose_grids(weighted)
            curvature = solve_backward(weighted, solved[near]).curvature
        except InvalidProblem:
            solved.pop(log_beta, None)
            return math.inf
        bent = sigma.square() * torch.tensor(curvature, dtype=torch.float64)
        return math.log(float(bent.max())) - log_beta - math.log(1 - lam)

    beta = math.exp(_root(excess))
    truth = Quadrature(_with_beta(problem, beta))
    needed = beta_from_curvature(sigma, truth.curvature, lam).beta
    reached = 1 - sigma.square() * truth.curvature / beta
    return BetaChoice(
        torch.full_like(sigma, beta),
        "constant (measured curvature)",
        beta / needed,
        reached,
        torch.ones_like(sigma),
        1 - reached,
    )


def _with_beta(problem: ControlProblem, beta: float) -> ControlProblem:
    return ControlProblem(problem.reference, problem.reward, beta, problem.running_cost)


def _root(excess: Callable[[float], float]) -> float:
    """The largest log(beta) at which a function that is infinite for small ones and falls to minus
    infinity vanishes.
    """
    high, step = 0.0, math.log(4.0)
    while excess(high) > 0:
        high += step
        require(
            high < LARGEST_LOG_BETA,
            "no beta below 1e6 contracts at the wanted rate; use a smoother reward.",
        )
    low = high - step
    while (at_low := excess(low)) <= 0:
        high, low = low, low - step
        require(
            low > -LARGEST_LOG_BETA,
            "every beta above 1e-6 contracts at the wanted rate; choose it by the reward.",
        )
    while math.isinf(at_low):
        middle = (low + high) / 2
        at_middle = excess(middle)
        if at_middle > 0:
            low, at_low = middle, at_middle
        else:
            high = middle
        if high - low < BETA_TOLERANCE:
            return high
    return root_scalar(excess, bracket=(low, high), method="brentq", xtol=BETA_TOLERANCE).root


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
    lower, upper = _spread(reference, Uncontrolled(reference))
    for _ in range(GROWTHS):
        grids = tuple(Grid.box(lo, hi, COARSE[d]) for lo, hi in zip(lower, upper, strict=True))
        solution = solve_backward(problem, grids)
        pilot = GridPolicy.from_shifts(
            reference, grids[:-1], solution.shifts, solution.values[0].extrapolation
        )
        low, high = _spread(reference, pilot)
        leaking = chain_law(problem, pilot, grids).lost > LOST_MASS
        slack = SLACK * (upper - lower)
        if not leaking and bool(((low >= lower - slack) & (high <= upper + slack)).all()):
            break
        growth = GROWTH * (upper - lower) if leaking else torch.zeros_like(lower)
        lower, upper = torch.minimum(low, lower - growth), torch.maximum(high, upper + growth)
    boxes = [Grid.box(lo, hi, COARSE[d]) for lo, hi in zip(lower, upper, strict=True)]
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


def _spread(reference: Reference, policy: Policy) -> tuple[Tensor, Tensor]:
    """Mean -+ SPREAD standard deviations of a pilot simulation with fixed noise, two tensors (T +
    1, d).
    """
    noise = Noise.sample(reference, PILOT_PATHS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = rollout(reference, policy, noise).states
    mean, reach = states.mean(1), SPREAD * states.std(1)
    reach = torch.maximum(reach, THINNEST * reach.amax(0))
    return mean - reach, mean + reach
