r"""The exponential tilt, and how far the discrete optimum is from it.

With constant beta, relaxing the control to all of path space gives the Gibbs value
:math:`V^G_k = \beta \log E \exp(V^G_{k+1}(m_k + B_k \xi)/\beta)`, attained by the tilted path law.
The controlled kernels move means only, so :math:`V^G_0 \ge V_0`: the **kernel gap**, O(1/T). The
tilt of the law of X_T alone, with value :math:`\beta \log E \exp(r(X_T)/\beta)`, is larger still by
Jensen's inequality unless X_0 and X_T are independent: the **memory gap**, which does not vanish
with T on a schedule with memory (both derived here).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.truth.backward import COARSER, resized, solve_backward
from socft.truth.bellman import axis_sigma, terminal_value
from socft.truth.chain_law import chain_law
from socft.truth.grid import Grid, ValueGrid, tensor_rule
from socft.truth.quadrature import Quadrature, mean_at_start

HERMITE_NODES = 140
FEWER_HERMITE_NODES = 100
SAME_BETA = 1e-12
ROUNDING = 1e-12
"""Relative: sums over some hundred nodes, at every step."""
TAIL = 1e-6
"""Largest relative error of ``E exp(r / beta)``; the laws of X_0 and X_T are known where they have
mass to rounding.
"""


@dataclasses.dataclass(frozen=True)
class TiltGap:
    """Distances in objective between the discrete optimum, the tilted path law and the tilted final
    law.

    Attributes:
        kernel: Gibbs value of the path law minus the optimum.
        memory: Gibbs value of the final law minus that of the path law.
        kernel_error: what the first is off by, estimated from above by a solution with
            fewer nodes.
        memory_error: the same of the second.
    """

    kernel: float
    memory: float
    kernel_error: float
    memory_error: float


def tilt_gap(truth: Quadrature) -> TiltGap:
    """Both gaps of a one-dimensional problem with constant beta, by quadrature.

    The Gibbs value of the final law is ``beta log E exp(V^G_0(X_0) / beta)`` by the tower property.

    Raises:
        InvalidProblem: beta is not constant, the dimension is not 1, there is a running cost, or
            the tilt lies where the law of X_0 has no mass to rounding.
    """
    _require_tilt(truth)
    found = _gaps(truth, truth.grids, truth.objective, HERMITE_NODES)
    grids = resized(truth.grids, COARSER)
    value = solve_backward(truth.problem, grids).values[0]
    objective = mean_at_start(truth.problem.reference, value)
    coarse = _gaps(truth, grids, objective, FEWER_HERMITE_NODES)
    size = ROUNDING * (abs(truth.objective) + abs(sum(found)) + float(truth.problem.beta[0]))
    errors = [2 * abs(a - b) + size for a, b in zip(found, coarse, strict=True)]
    return TiltGap(*found, *errors)


def _gaps(
    truth: Quadrature, grids: tuple[Grid, ...], objective: float, nodes: int
) -> tuple[float, float]:
    path_value, final_value = _gibbs_values(truth.problem, grids, nodes)
    return path_value - objective, final_value - path_value


def tilted_law(truth: Quadrature) -> Float[Tensor, " nodes"]:
    """The law of X_T tilted by ``exp(r / beta)``, as masses at the nodes of the last grid, summing
    to 1.

    Raises:
        InvalidProblem: as for `tilt_gap`, or the tilt lies where the law of X_T has no mass to
            rounding.
    """
    _require_tilt(truth)
    problem, beta = truth.problem, float(truth.problem.beta[0])
    final_value = _gibbs_values(problem, truth.grids, HERMITE_NODES)[1]
    masses = chain_law(problem, Uncontrolled(problem.reference), truth.grids).masses[-1]
    exponent = problem.reward(truth.grids[-1].nodes) / beta
    tilted = masses * torch.exp(exponent - exponent.max())
    error = abs(float(exponent.max() + tilted.sum().log()) - final_value / beta)
    _require_mass(error, beta, "X_T")
    return tilted / tilted.sum()


def _gibbs_values(
    problem: ControlProblem, grids: tuple[Grid, ...], nodes: int
) -> tuple[float, float]:
    """``E V^G_0(X_0)`` and ``beta log E exp(V^G_0(X_0) / beta)``."""
    beta = float(problem.beta[0])
    points, weights = tensor_rule(1)
    value = _gibbs_value(problem, grids, nodes).at(problem.reference.initial(points))
    tilted = value / beta + weights.log()
    ends = tilted.softmax(0)[[0, -1]].sum() / (points[1, 0] - points[0, 0])
    _require_mass(
        float(ends), beta, "X_0"
    )  # the tail of a Gaussian weighs less than its density there
    return float(weights @ value), float(beta * torch.logsumexp(tilted, 0))


def _require_tilt(truth: Quadrature) -> None:
    problem = truth.problem
    spread = float(problem.beta.max() - problem.beta.min())
    require(
        spread <= SAME_BETA * float(problem.beta.max()),
        f"beta varies by {spread:g} over the steps; the tilt needs a constant beta.",
    )
    require(
        truth.grids[0].dim == 1,
        f"the problem has dimension {truth.grids[0].dim}; the tilt by quadrature needs"
        " dimension 1.",
    )
    require(
        problem.running_cost is None,
        "the problem has a running cost; the tilt of the final law needs a terminal reward only.",
    )


def _require_mass(error: float, beta: float, state: str) -> None:
    require(
        error <= TAIL,
        f"at beta = {beta:g} the tilt lies where {state} has no mass to rounding: E exp(r / beta)"
        f" would be off by a fraction {error:.1e}, more than {TAIL:g}; raise beta.",
    )


def _gibbs_value(problem: ControlProblem, grids: tuple[Grid, ...], nodes: int) -> ValueGrid:
    """``V^G_0`` on the grid of step 0."""
    beta = float(problem.beta[0])
    node, mass = np.polynomial.hermite_e.hermegauss(nodes)
    z, log_w = torch.from_numpy(node), torch.from_numpy(np.log(mass / mass.sum()))
    value = terminal_value(problem, grids[-1])
    for k in reversed(range(problem.steps)):
        grid = grids[k]
        with torch.no_grad():
            mean = problem.reference.mean(k, grid.nodes)
        pushed = mean + axis_sigma(problem.reference, k) * z
        next_value = value.at(pushed.reshape(-1, 1)).reshape(pushed.shape)
        nodal = beta * torch.logsumexp(next_value / beta + log_w, 1)
        value = ValueGrid(grid, nodal, grid.jacobian(nodal[:, None])[:, 0], value.extrapolation)
    return value
