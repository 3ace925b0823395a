r"""Gradient and curvature of the value in continuous time are covariances of the posterior, and
nothing in them compounds.

Setting: data :math:`x_0`, noised to :math:`x = \sqrt{\bar a}\, x_0 + \sqrt{1-\bar a}\, \epsilon`;
:math:`c = \sqrt{\bar a}/(1-\bar a)`; :math:`V(x) = \beta \log E[e^{r(x_0)/\beta} | x]`, the value
of a memoryless chain in the limit of small steps. The posterior of :math:`x_0` given x is tilted by
:math:`e^{s r/\beta}`; :math:`\mathrm{Cov}_s` and the Poincare constant :math:`C_s` are the tilted
one's, :math:`\mathrm{Var} f \le C_s E|\nabla f|^2`.

Statement: $∇V = c integral_0^1 op("Cov")_s (r, x_0) d s$ and $∇^2 V = β c^2 (op("Cov")_1 (x_0) −
op("Cov")_0 (x_0))$; hence $|∇V| ≤ c L_0 (r) sup_s C_s$ and $−β c^2 op("Cov")_0 (x_0) ≤ ∇^2 V ≤ β
c^2 op("Cov")_1 (x_0)$

The posterior's density depends on x by :math:`\exp(c\, x \cdot x_0)`: differentiate the logarithm
of :math:`E[e^{r/\beta}|x]` once and twice, and once along the tilt. By Cauchy and Schwarz and
Poincare, :math:`\mathrm{Cov}(r, b \cdot x_0) \le \sqrt{C L_0(r)^2}\, \sqrt{C}`.

Kind: tight: the gradient's bound is attained by linear rewards on Gaussian data, the curvature's by
quadratic ones as beta falls to where the tilt exists no more.

Source: derived here for V; that a posterior mean's derivative is the posterior's covariance is
Tweedie's formula of second order, and the Poincare constant of posteriors along noising is bounded
in arXiv 2201.01382.

How it is measured: derivatives of V by automatic differentiation of a quadrature in
:math:`x_0`, covariances by the same, Poincare constants from the least eigenvalue of finite
elements; mixtures of two modes, separated and overlapping.

What would refute it: a derivative that is no covariance, or beyond its bound.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import GaussianMixture
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Covariances of the posterior", topics.ONE_SIDED)
NODES, REACH = 4001, 8.0
ROUNDING = 1e-9
ELEMENTS = 2000
INTEGRATED = 2e-3
"""Relative error of a Poincare constant by finite elements, and of Gauss's rule along the tilt."""
TILTS = 12
SEPARATED = GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.16)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """Of ``x_0`` given x at a level, with the reward ``sin(2 x_0)`` or a linear one."""

    law: GaussianMixture
    level: float
    x: float
    beta: float
    linear: bool = False

    @property
    def c(self) -> float:
        return math.sqrt(self.level) / (1 - self.level)

    @property
    def points(self) -> Tensor:
        return torch.linspace(-REACH, REACH, NODES, dtype=torch.float64)

    @property
    def reward(self) -> Tensor:
        return 2 * self.points if self.linear else torch.sin(2 * self.points)

    def log_density(self, s: float, x: Tensor | None = None) -> Tensor:
        """Up to a constant."""
        at = torch.tensor(self.x, dtype=torch.float64) if x is None else x
        away = at - math.sqrt(self.level) * self.points
        own = self.law.log_prob(self.points[:, None])
        return own - away.square() / 2 / (1 - self.level) + s * self.reward / self.beta

    def weights(self, s: float) -> Tensor:
        return torch.softmax(self.log_density(s), 0)

    def covariance(self, s: float, f: Tensor) -> float:
        """``Cov_s(f, x_0)``."""
        w = self.weights(s)
        return float((w * f * self.points).sum() - (w * f).sum() * (w * self.points).sum())

    def value(self, x: Tensor) -> Tensor:
        tilted, plain = (torch.logsumexp(self.log_density(s, x), 0) for s in (1.0, 0.0))
        return self.beta * (tilted - plain)

    def derivatives(self) -> tuple[float, float]:
        """V' and V''."""
        x = torch.tensor(self.x, dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(self.value(x), x, create_graph=True)
        (second,) = torch.autograd.grad(first, x)
        return float(first.detach()), float(second)

    def poincare(self, s: float) -> float:
        """Largest ``Var f / E f'^2``: the inverse of the second eigenvalue of finite elements,
        linear between nodes where the mass is, with the mass at the nodes.
        """
        w = self.weights(s)
        inside = self.points[w > 1e-12 * w.max()]
        nodes = np.linspace(float(inside[0]), float(inside[-1]), ELEMENTS + 1)
        density = np.interp((nodes[1:] + nodes[:-1]) / 2, self.points.numpy(), w.numpy())
        h = nodes[1] - nodes[0]
        padded = np.concatenate([[0.0], density, [0.0]])
        mass = (padded[1:] + padded[:-1]) * h / 2
        diagonal = (padded[1:] + padded[:-1]) / h / mass
        beside = -density / h / np.sqrt(mass[1:] * mass[:-1])
        found = scipy.linalg.eigvalsh_tridiagonal(diagonal, beside, select="i", select_range=(1, 1))
        return 1 / float(found[0])


def measure(each: Posterior) -> tuple[float, float]:
    """V' and V''."""
    return each.derivatives()


def bound(each: Posterior, tilted: bool = True) -> tuple[float, float, float]:
    """Of ``|V'|``, V'' and -V''."""
    tilts = np.linspace(0, 1, 9) if tilted else [0.0]
    constant, scale = max(each.poincare(float(s)) for s in tilts), each.beta * each.c**2
    up, down = (scale * each.covariance(s, each.points) for s in (1.0 if tilted else 0.0, 0.0))
    return each.c * 2 * constant, up, down


@settings(max_examples=25)
@given(numbers(0.05, 0.95), numbers(-2.5, 2.5), numbers(0.3, 3), numbers(0.0, 1.5))
def test_holds(level: float, x: float, beta: float, apart: float) -> None:
    each = Posterior(GaussianMixture([0.6, 0.4], [-apart, apart], 0.3), level, x, beta)
    where = dataclasses.asdict(each) | {"law": str(each.law)}
    first, second = measure(each)
    nodes, shares = np.polynomial.legendre.leggauss(TILTS)
    along = [each.c * each.covariance(float(s + 1) / 2, each.reward) for s in nodes]
    CLAIM.equals(first, float(shares @ along) / 2, where, INTEGRATED * (1 + abs(first)), "gradient")
    up, down = (each.beta * each.c**2 * each.covariance(s, each.points) for s in (1.0, 0.0))
    tolerance = ROUNDING * (1 + up + down) / (1 - level) ** 2
    CLAIM.equals(second, up - down, where, tolerance, "curvature")
    limits = bound(each)
    CLAIM.holds(abs(first), limits[0], where, slack=INTEGRATED, part="gradient")
    CLAIM.holds(max(second, 0.0), limits[1], where, floor=tolerance, part="largest eigenvalue")
    CLAIM.holds(max(-second, 0.0), limits[2], where, floor=tolerance, part="smallest eigenvalue")


@pytest.mark.parametrize("level", [0.2, 0.9])
def test_is_attained(level: float) -> None:
    """By a linear reward on Gaussian data: the Poincare constant is the variance."""
    each = Posterior(GaussianMixture([1.0], [0.3], 0.5), level, 0.4, 1.0, linear=True)
    where = {"level": level}
    CLAIM.attained(abs(measure(each)[0]), bound(each)[0], where, within=0.01, slack=INTEGRATED)


def test_needs_both_modes() -> None:
    """On the ridge between separated modes the Poincare constant of one of them is too small: the
    covariance there is mostly between the modes.
    """
    one = Posterior(GaussianMixture([1.0], [1.5], 0.16), 0.5, 1.0, 2.0)
    steepest = max(
        (Posterior(SEPARATED, 0.5, x, 2.0) for x in np.linspace(-1, 1, 21).tolist()),
        key=lambda each: abs(measure(each)[0]),
    )
    seen = abs(measure(steepest)[0])
    CLAIM.holds(seen, bound(steepest)[0], {"x": steepest.x}, slack=INTEGRATED, part="ridge")
    CLAIM.breaks(seen, bound(one)[0], {"x": steepest.x}, "the whole posterior")


def test_needs_the_tilt() -> None:
    """The untilted covariance does not bound the largest eigenvalue: a reward may bring the modes
    into balance.
    """
    worst = max(
        measure(each)[1] / bound(each, tilted=False)[1]
        for x in np.linspace(-2, 2, 21).tolist()
        for each in [Posterior(SEPARATED, 0.5, x, 0.3)]
    )
    CLAIM.breaks(worst, 1.0, {"beta": 0.3, "level": 0.5}, "tilted covariance")
