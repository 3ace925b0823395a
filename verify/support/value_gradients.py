r"""The two sides of identities for gradients of value functions.

One is the slope of a value function by differences of its values alone: of degree 10 along a grid,
or central ones, which are exact for quadratic functions. The other is made of costates
:math:`E\, \nabla V_{t+1}(x + \sigma_t W)` at the means x that a step leads to, by the trapezoidal
rule, and carried back by the Jacobian of the mean map. Grids are compared at some of their inner
nodes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from socft.reference import Reference
from socft.truth.bellman import axis_sigma, mean_and_jacobian
from socft.truth.grid import ValueGrid
from socft.truth.quadrature import Quadrature
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.iterates import differentiate, expected_gradient, thin
from verify.support.scores import TanhScore
from verify.support.strategies import Sine
from verify.support.suprema import ACCURACY

CURVED = ProductInstance(
    levels=(0.4, 0.95), lam=(0.5,), factors=(Factor(TanhScore(c=0.2), Sine(1.0, 1.0, 0.5)),)
)
"""One step whose value functions are neither linear nor quadratic."""
NOTICEABLE = 1e-3
"""What an identity must miss by where it is false, a hundred times the error of the measurement."""


def tolerance(instance: ProductInstance) -> float:
    """Error of the differences along a grid."""
    return ACCURACY * (1 + instance.chain.reward_L0)


def slope(value: ValueGrid) -> Tensor:
    """``dV/dy`` by differences of the values."""
    return thin(differentiate(value.grid, value.value[:, None]))


@dataclasses.dataclass(frozen=True)
class Means:
    """The mean map of a step at the nodes of its grid, and its slope and noise scale.

    Attributes:
        mean: shape (nodes, 1).
        slope: at the nodes that are compared, shape (some, 1).
        sigma: of the step.
    """

    mean: Tensor
    slope: Tensor
    sigma: float

    @classmethod
    def of(cls, truth: Quadrature, t: int) -> Means:
        """Of step t."""
        reference = truth.problem.reference
        mean, jacobian = mean_and_jacobian(reference, t, truth.grids[t].nodes)
        return cls(mean, thin(jacobian[:, :, 0]), float(axis_sigma(reference, t)))

    def costate(self, following: ValueGrid, shift: Tensor) -> Tensor:
        """``E grad V_{t+1}(m_t + shift + sigma W)``, shape (some, 1)."""
        return expected_gradient(following, thin(self.mean + shift), self.sigma)


def central_jacobian(function: Callable[[Tensor], Tensor], y: Tensor) -> Tensor:
    """Derivatives in y, shape (batch, n), of a function with values (batch, ...), last: exact for
    quadratic functions.
    """
    axes = torch.eye(y.shape[1], dtype=torch.float64)
    return torch.stack([(function(y + e) - function(y - e)) / 2 for e in axes], -1)


def carried(reference: Reference, t: int, y: Tensor, costate: Tensor) -> Tensor:
    """``Jac m_t(y)^T costate``, shape (batch, n)."""
    return torch.einsum("bij,bi->bj", mean_and_jacobian(reference, t, y)[1], costate)
