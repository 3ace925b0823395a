r"""How far a method may be pushed: the largest rate, and the least weight.

A damped sweep, or a Newton step on samples, moves the control by :math:`\theta (P(v)_k - v_k)`.
Where :math:`P(v)_k` depends on later controls alone and on its own, as along chains, its derivative
at the solution is block triangular, with the multiplications by

.. math:: h_k(x) = \partial P(v)_k(x)/\partial v_k(x)

on the diagonal, for the optimum :math:`h_k = B_k^2 E[V_{k+1}''(x_{k+1}) | x_k]/\beta_k`, so that
sweeps converge near it for :math:`\theta < 2/\max(1 - h)` and :math:`\max h < 1` only; concave
values set the limit, and lean and full costates have the same. In the class :math:`1 - h` is
:math:`(\Phi^\top M \Phi + c I)^{-1} \Phi^\top M (1 - h) \Phi`, M the masses of the states and c
those of the prior.

Regressions on re-noised samples have the curvature :math:`1 + E_q[r - c | x]/\beta` of their own:
where it is not positive the loss has no minimum, and no rate helps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import torch

from socft.checks import InvalidProblem
from socft.study.vocabulary.methods import MethodName
from toy.fixed_points.equations import Coefficients, Equation, sweeps
from toy.fixed_points.line import Field, LineChain
from toy.fixed_points.methods import PredictedMethod
from toy.fixed_points.problems import Targets

RATED = (
    MethodName.ADJOINT_MATCHING,
    MethodName.FULL_ADJOINT,
    MethodName.DPOK_LEAVE_ONE_OUT,
    MethodName.FLOW_GRPO,
)
WEIGHED = (MethodName.RAM, MethodName.RAM_GROUP_MEAN, MethodName.AWM)
DIFFERENCE, PUSHED = 1e-4, 1e-3
BISECTIONS = 7
SETTLING = 24
"""Sweeps over which growth is seen, after as many."""
SWEPT, SETTLED = 120, 1e-3
HALF = 0.5
SEEN = 1e-4
"""Mass of a state, in multiples of the mean, above which its curvature counts."""


def largest_rate(line: LineChain, equation: Equation, weight: Coefficients, prior: float) -> float:
    """theta up to which sweeps converge near a solution, by the diagonal of the derivative.

    Args:
        prior: mass of which a node is taken to know its coefficient.
    """
    control = _control(line, weight)
    fit = equation.regression(line, control)
    away, largest = fit.curvature * control - fit.wanted, 0.0
    for k in range(line.problem.steps):
        pushed = control.clone()
        pushed[k] += DIFFERENCE
        there = equation.regression(line, pushed)
        own = (there.curvature[k] * pushed[k] - there.wanted[k] - away[k]) / DIFFERENCE
        phi = line.hats(fit.states[k][:, None])
        weighted = phi * fit.mass[k][:, None]
        gram = phi.T @ weighted + prior * torch.eye(line.hats.nodes, dtype=phi.dtype)
        found = torch.linalg.eigvals(torch.linalg.solve(gram, weighted.T @ (phi * own[:, None])))
        largest = max(largest, float(found.real.max()))
    return 2 / largest


def swept_rate(
    line: LineChain, equation: Equation, weight: Coefficients, prior: float, guess: float
) -> float:
    """The same by bisection between half and twice a guess: whether sweeps of the population, from
    a random control near the solution, move less and less.
    """
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    start = weight + PUSHED * random

    def settles(rate: float) -> bool:
        found = sweeps(line, equation, rate, prior, start)
        try:
            moved = [change for _, change in itertools.islice(found, 2 * SETTLING)]
        except InvalidProblem:
            return False
        return moved[-1] < moved[SETTLING - 1]

    low, high = guess / 2, 2 * guess
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if settles(middle) else (low, middle)
    return math.sqrt(low * high)


def least_weight(
    targets_of: Callable[[float], Targets], predicted: PredictedMethod, low: float, high: float
) -> tuple[float, float]:
    """The least weight b between two at which half sweeps settle, by bisection, and the least
    curvature of the loss of a step there.
    """
    least = math.nan
    for _ in range(BISECTIONS):
        middle = math.sqrt(low * high)
        found = _settled(targets_of(middle), predicted)
        low, high = (middle, high) if found is None else (low, middle)
        least = least if found is None else found
    return high, least


def _settled(targets: Targets, predicted: PredictedMethod) -> float | None:
    """The least curvature where half sweeps settle, None where they do not."""
    equation, line = predicted.equation(targets), targets.line
    if equation is None:
        return None
    found = itertools.islice(sweeps(line, equation, HALF), SWEPT)
    try:
        weight = next((weight for weight, change in found if change < SETTLED), None)
    except InvalidProblem:
        return None
    if weight is None:
        return None
    fit = equation.regression(line, _control(line, weight))
    return float(fit.curvature[fit.mass > SEEN * fit.mass.mean()].min())


def _control(line: LineChain, weight: Coefficients) -> Field:
    return (line.features @ weight[:, 0].T).T
