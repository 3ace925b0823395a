r"""The smallest constant KL weight under which policy iteration contracts, by measured curvature.

It solves :math:`f(\log\beta) = \log\max_k \sigma_k^2 \sup|\nabla^2 G V_{k+1}| - \log\beta -
\log(1 - \lambda) = 0` for the optimal V, which depends on beta too, but little: f falls with a
slope near -1. The root is found on a crude grid, then on finer ones, where one or two secant steps
from the last root are enough, as their slope is that of the crude one; nearby weights share grids,
mean maps and the start of Newton's method. On the way only the last steps are solved, from the
first one whose rate comes near the largest; all are in the end, which tells whether that was so.
"""

from __future__ import annotations

import math

import torch

from socft.checks import InvalidProblem, number, require
from socft.policy import Uncontrolled
from socft.problem import ControlProblem, require_problem
from socft.theory import BetaChoice, beta_from_curvature
from socft.truth.backward import FINER, GridSolution, resized, solve_backward
from socft.truth.bellman import axis_sigma
from socft.truth.grid import Grid, GridPolicy
from socft.truth.quadrature import GROWTHS, covers, resolved, spread

LARGEST_LOG_BETA = math.log(1e6)
CRUDE = {1: 0.3, 2: 0.5}
"""Share of the usual nodes where the search begins, by dimension."""
FINE, FINEST = 0.5, {1: 3.0, 2: 1.6}
"""The first share of the grids on which errors are told, and the largest."""
CRUDELY, TOLERANCE = 1e-3, 1e-8
"""Of log(beta) on the crude grids, and on the finer ones."""
NEAR = 0.5
"""Share of the largest rate from which on a step may come to be the one with the largest."""
ACCURACY = 2e-7
"""Of log(beta), as told by two grids."""
FIRST = 1.0
"""What one grid alone may be off by."""
MOST_STEPS = 40
CONTINUED = 0.25
"""Share of a box by which the optimal chain may leave it before another is tried."""
LONGEST = math.log(8.0)
STEEPEST, FLATTEST = -4.0, -0.2


def measured_beta(problem: ControlProblem, lam: float) -> BetaChoice:
    """The smallest constant KL weight under which the inner loop contracts by ``1 - lam`` at every
    step, by measured curvature, from above.

    Solves ``max_k sigma_k^2 sup |Hess G V_{k+1}| / beta = 1 - lam`` for beta, on which the optimal
    V depends. What two grids differ by is added, so that the design constants reached, the result's
    ``lam``, and its ``margin``, how much of beta each step could do without, are from below. The
    value functions of PI-FT's first iterates can be more curved than the optimal one, so for small
    lam it may need several inner iterations, or diverge with one.

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
    grids, at, crude = _crude_root(problem, lam)
    slope, first = crude.slope, crude.first
    share, missed, wider = FINE, math.inf, False
    while True:
        search = _Search(problem, lam, resized(grids, share, wider), slope, first)
        before, at = at, search.root(at, TOLERANCE)
        missed = abs(at - before) if share > FINE else FIRST
        if missed <= ACCURACY or share >= FINEST[grids[0].dim]:
            at = search.full_root(at, TOLERANCE)
            missed = max(missed, abs(at - before))
            return _choice(problem, lam, math.exp(at), search.found, math.exp(2 * missed))
        share, wider, slope, first = FINER * share, not wider, search.slope, search.first


def _crude_root(problem: ControlProblem, lam: float) -> tuple[tuple[Grid, ...], float, _Search]:
    """Grids that hold the pre-trained and the optimal chain under a weight near the root, that
    weight's logarithm and the search that found it.
    """
    reference, at, slope = problem.reference, 0.0, -1.0
    lower, upper = spread(reference, Uncontrolled(reference))
    for left in reversed(range(GROWTHS)):
        grids = resolved(problem, lower, upper)
        search = _Search(problem, lam, resized(grids, CRUDE[grids[0].dim]), slope)
        at = search.full_root(at, CRUDELY)
        slope, found = search.slope, search.found
        pilot = GridPolicy.from_shifts(
            reference, found.grids[:-1], found.shifts, found.values[0].extrapolation
        )
        low, high = spread(reference, pilot)
        near = covers(lower, upper, low, high, CONTINUED)
        lower, upper = torch.minimum(lower, low), torch.maximum(upper, high)
        if near or not left:
            return resolved(problem, lower, upper), at, search
    raise AssertionError("a box is tried at least once")


def _choice(
    problem: ControlProblem, lam: float, beta: float, found: GridSolution, slack: float
) -> BetaChoice:
    """What is chosen for the root beta on some grids, by a factor of slack from above."""
    sigma = torch.stack([axis_sigma(problem.reference, k).max() for k in range(problem.steps)])
    curvature = torch.tensor(found.curvature, dtype=torch.float64)
    needed = beta_from_curvature(sigma, curvature, lam).beta
    reached = 1 - sigma.square() * curvature / beta
    return BetaChoice(
        torch.full_like(sigma, beta * slack),
        "constant (measured curvature)",
        beta / needed,
        reached,
        torch.ones_like(sigma),
        1 - reached,
    )


class _Search:
    """f on some grids, whose solutions start from each other.

    Attributes:
        found: the last solution.
        slope: of f, from its last two values.
        first: the step that solutions go back to.
    """

    found: GridSolution

    def __init__(
        self,
        problem: ControlProblem,
        lam: float,
        grids: tuple[Grid, ...],
        slope: float = -1.0,
        first: int = 0,
    ):
        self.problem, self.lam, self.grids = problem, lam, grids
        self.slope, self.first = slope, first
        self._near: GridSolution | None = None
        self._whole = False

    def root(self, start: float, tolerance: float) -> float:
        """Where f vanishes, by the secant method from the given point and slope; up where there is
        no control.
        """
        at, before = start, None
        for _ in range(MOST_STEPS):
            value = self.excess(at)
            if abs(value) <= tolerance:
                return at
            if math.isinf(value):
                move = math.copysign(math.log(2.0), value)
            else:
                if before is not None:
                    self._learn((value - before[1]) / (at - before[0]))
                before = at, value
                move = -value / self.slope
            at += max(-LONGEST, min(move, LONGEST))
            self._require_within(at)
        return at

    def full_root(self, start: float, tolerance: float) -> float:
        """The same with all steps solved there; by all of them if another one decides."""
        at = self.root(start, tolerance)
        if len(self.found.steps) == self.problem.steps:
            return at
        self.first = 0
        if abs(self.excess(at)) <= 2 * tolerance:
            return at
        self.first, self._whole = 0, True
        return self.root(at, tolerance)

    def excess(self, log_beta: float) -> float:
        """f, infinite where there is no control."""
        weighted = _with_beta(self.problem, math.exp(log_beta))
        try:
            found = solve_backward(weighted, self.grids, self._near, self.first)
        except InvalidProblem:
            return math.inf
        self.found = self._near = found
        rate = found.largest_rate
        if len(found.steps) == self.problem.steps and not self._whole:
            self.first = found.earliest(NEAR * rate)
        return math.log(rate / (1 - self.lam)) if rate > 0 else -math.inf

    def _learn(self, slope: float) -> None:
        if STEEPEST < slope < FLATTEST:
            self.slope = slope

    @staticmethod
    def _require_within(log_beta: float) -> None:
        require(
            log_beta < LARGEST_LOG_BETA,
            "no beta below 1e6 contracts at the wanted rate; use a smoother reward.",
        )
        require(
            log_beta > -LARGEST_LOG_BETA,
            "every beta above 1e-6 contracts at the wanted rate; choose it by the reward.",
        )


def _with_beta(problem: ControlProblem, beta: float) -> ControlProblem:
    return ControlProblem(problem.reference, problem.reward, beta, problem.running_cost)
