r"""One step with a quadratic reward and a score that bends within a short distance, in closed form.

For :math:`r(x) = p x^2/2 + q x` the optimal shift is :math:`\delta = \rho (p\, m + q)/(1 - \rho p)`
at the pre-trained mean :math:`m = m(y)`, and after j updates from zero it is
:math:`(r + r^2 + \dots + r^j)(m + q/p)` with :math:`r = \rho p`. So all derivatives of controls are
those of the score, times a number: what no other instance shows of :math:`L^1_s`.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from socft import theory
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.rewards import Parabola
from verify.support.scores import TanhScore

STATES = 4001
WIDTHS = 4.0
"""States are within four widths of the bend, whose derivatives are largest within one."""
BETWEEN = 1e-5
"""By what share a supremum over the states misses the true one."""


@dataclasses.dataclass(frozen=True)
class SteepScore:
    """``s(y) = b tanh(w y)``, and a reward of curvature ``p``.

    Attributes:
        b: height of the score.
        w: steepness.
        p: curvature of the reward.
        lam: design constant.
        levels: signal before and after the step.
    """

    b: float
    w: float
    p: float
    lam: float
    levels: tuple[float, float] = (0.45, 0.9)

    @property
    def instance(self) -> ProductInstance:
        """The problem, whose value function has no Lipschitz constants."""
        factor = Factor(TanhScore(0.0, self.b, self.w), Parabola(self.p))
        return ProductInstance(levels=self.levels, lam=(self.lam,), factors=(factor,))

    def bend(self, updates: int | None = None) -> float:
        """``sup |D^2 U|`` in score units, after some updates or of the optimum."""
        chain = self.instance.chain
        rate = math.copysign(1 - self.lam, self.p)
        gain = rate / (1 - rate) * (1 if updates is None else 1 - rate**updates)
        unit, share = theory.shift_unit(chain), chain.score_weight / chain.alpha.sqrt()
        slope = _second(self.b, self.w) * (1 + float(unit * share) * gain)
        return float(slope.abs().max())


def _second(b: float, w: float) -> Tensor:
    """``s''`` at the states."""
    y = torch.linspace(-WIDTHS / w, WIDTHS / w, STATES, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad((b * torch.tanh(w * y)).sum(), y, create_graph=True)[0]
    return torch.autograd.grad(first.sum(), y)[0]
