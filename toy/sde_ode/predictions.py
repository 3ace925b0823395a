r"""What the study is predicted to find, as intervals; written before its runs.

* A model of the optimum at noise level n forgets its start in DDIM form, so its own law is the tilt
  up to O(1/T) (`OWN_SAMPLER`), and at :math:`n = \sqrt 2` its velocity is that of the noised tilt,
  so that every sampler's is (`ANY_SAMPLER`).
* At other levels the law without noise tends to another one, on Gaussians to that of
  `socft.theory.SamplerChange` (`CLOSED_FORM`). The first step of a uniform grid passes from
  :math:`t = s/a = \infty` to about T, which leaves the share :math:`T^{-n^2/2}` of the integral for
  the mean: an order of :math:`\min(1, n^2/2)`.
* So the distance between the two laws does not fall (`GAP_STAYS`), and since the stored control is
  :math:`4/(2+n^2)` of the right one where rewards are linear, rewards are too high for
  :math:`n < \sqrt 2` (`OVERSHOOT`).
* The defect of one step without noise is a quarter of that of the memoryless one, so that the law
  without noise should be nearer the tilt (`MOSTLY_NEARER`, `NEARER_ON_MIXTURES`). But the
  variance of the chain is too small for convex and too large for very concave rewards, and in
  between it is right (`COUNTER_EXAMPLE`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from socft.study.vocabulary.predictions import SamplerPrediction
from toy.sde_ode.samplers import MEMORYLESS

WITHIN = 0.1
"""Of an order."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Where a number is predicted to lie; None is no limit.

    Attributes:
        low: the least.
        high: the largest.
    """

    low: float | None = None
    high: float | None = None


PREDICTED: Mapping[SamplerPrediction, Range] = {
    SamplerPrediction.ANY_SAMPLER: Range(1 - WITHIN, 1 + WITHIN),
    SamplerPrediction.OWN_SAMPLER: Range(1 - WITHIN, 1 + WITHIN),
    SamplerPrediction.GAP_STAYS: Range(-2 * WITHIN, 2 * WITHIN),
    SamplerPrediction.OVERSHOOT: Range(low=0.0),
    SamplerPrediction.MOSTLY_NEARER: Range(0.5, 0.99),
    SamplerPrediction.NEARER_ON_MIXTURES: Range(low=1.0),
    SamplerPrediction.COUNTER_EXAMPLE: Range(high=1.0),
}
"""Orders in 1/T; rewards above the chain's, with the sign of ``sqrt(2) - n``; a share of instances;
root divergences of the chain over those without noise.
"""


def closed_form_order(level: float) -> Range:
    """Of the distance to the closed form, trained at a level and sampled without noise."""
    order = min(1.0, level**2 / 2)
    return Range(order - WITHIN, order + WITHIN)


def is_memoryless(level: float) -> bool:
    """Whether any sampler reaches the tilt."""
    return abs(level - MEMORYLESS) < 1e-9
