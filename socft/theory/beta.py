"""KL weights from the theory: the smallest that a statement, or a measured curvature, admits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from socft.checks import (
    LARGEST,
    InvalidProblem,
    numbers,
    per_step,
    require,
    require_each,
    require_positive,
)
from socft.theory.arguments import checked
from socft.theory.bounds import OneSidedBounds
from socft.theory.chain import ChainConstants
from socft.theory.numbers import StepValues, vector
from socft.theory.regularity import (
    Lemma32,
    Regularity,
    RegularityStatement,
    constants,
    constants_at,
    run_at,
)

ONE_SIDED = Lemma32(OneSidedBounds())
"""The statement by which beta is chosen unless another is given: all iterates of PI-FT are regular
and every inner update contracts, with the constants that grow least with the number of steps.
"""

_BISECTION = 1e-12
"""Relative width at which a bisection on beta stops."""


@dataclasses.dataclass(frozen=True)
class BetaChoice:
    """KL weights and what they guarantee.

    Attributes:
        beta: shape (T,).
        rule: the rule that chose it.
        margin: beta over the smallest the rule admits at that step, shape (T,); inf where every
            beta > 0 is admitted.
        lam: guaranteed design constants, shape (T,); each undamped update contracts by ``1 - lam``.
        theta: relaxation factors of the inner updates that the rule supposes, shape (T,); 1 is the
            paper's iteration.
        rate: by which these updates contract, shape (T,).
    """

    beta: StepValues
    rule: str
    margin: StepValues
    lam: StepValues
    theta: StepValues
    rate: StepValues


@checked(chain=ChainConstants, statement=RegularityStatement)
def scheduled_beta(
    chain: ChainConstants, lam: float | Tensor, statement: RegularityStatement = ONE_SIDED
) -> BetaChoice:
    """``beta_t = sigma_t^2 K_t / (1 - lam_t)``, the smallest weights with exactly the design
    constants ``lam``.

    Raises:
        InvalidProblem: a step needs no KL weight at all (zero curvature) or an infinite one.
    """
    found = constants(chain, lam, statement)
    _require_weights(found.beta_required)
    return BetaChoice(
        found.beta_required,
        f"schedule for lam ({statement.name})",
        torch.ones_like(found.lam),
        found.lam,
        found.theta,
        found.rate,
    )


def beta_from_curvature(
    sigma: StepValues, curvature: StepValues, lam: float | Tensor
) -> BetaChoice:
    """``beta_t = sigma_t^2 sup|Hess G V_{t+1}| / (1 - lam_t)`` from a curvature measured on the
    instance (derived here).

    Necessary as well as sufficient for a contraction by ``1 - lam_t``: the update map has the
    Jacobian ``rho Hess(G V_{t+1})``. As V_{t+1} depends on the later weights, measure and choose
    backwards from t = T - 1.

    Args:
        sigma: noise scales, shape (T,).
        curvature: ``sup |Hess G V_{t+1}|``, shape (T,).
        lam: design constants in (0, 1), one number or shape (T,).
    """
    scales = numbers(sigma, "sigma", ("steps",))
    require_positive(scales, "sigma", "every step has noise.")
    rates, measured = (
        per_step(each, len(scales), name) for each, name in ((lam, "lam"), (curvature, "curvature"))
    )
    require_each(
        rates, lambda x: (x > 0) & (x < 1), "lam", "every design constant must lie in (0, 1)."
    )
    beta, one = scales.square() * measured / (1 - rates), torch.ones_like(rates)
    _require_weights(beta)
    return BetaChoice(beta, "measured curvature", one, rates, one, 1 - rates)


@checked(lam=(0, 1), chain=ChainConstants, statement=RegularityStatement)
def constant_beta(
    chain: ChainConstants, lam: float, statement: RegularityStatement = ONE_SIDED
) -> BetaChoice:
    """The smallest constant beta under which a statement guarantees ``lam_t >= lam`` at every step,
    by bisection.

    A larger beta has larger design constants, so the admissible weights form a half-line: two-sided
    Lipschitz constants fall with it, and of the one-sided ones every K- / beta does, though K- does
    not.

    Args:
        lam: the least design constant wanted, in [0, 1); 0 gives the infimum of the admissible
            weights.

    Raises:
        InvalidProblem: no finite beta is admissible, or every positive one is.
    """
    require(0 <= lam < 1, f"lam = {lam:g}; the least design constant must lie in [0, 1).")

    def admissible(beta: float) -> bool:
        try:
            return all(step.lam >= lam for step in run_at(chain, beta, statement)[0])
        except InvalidProblem:
            return False

    beta = _least(admissible, statement.name)
    found = constants_at(chain, beta, statement)
    needed = chain.sigma.square() * _binding(found, statement)
    margin = beta * (1 - lam) / needed
    return BetaChoice(
        torch.full_like(chain.sigma, beta),
        f"constant ({statement.name})",
        margin,
        found.lam,
        found.theta,
        found.rate,
    )


def _binding(found: Regularity, statement: RegularityStatement) -> StepValues:
    """The curvature of the condition on beta, shape (T,)."""
    sides = zip(found.smoothed_up.tolist(), found.smoothed_down.tolist(), strict=True)
    return vector(statement.bounds.relaxation.binding(*side) for side in sides)


def _least(admissible: Callable[[float], bool], name: str) -> float:
    """The least admissible number, from above, to relative width `_BISECTION`."""
    high = 1.0
    while not admissible(high):
        high *= 16
        require(
            high < LARGEST,
            f"no beta below {LARGEST:g} satisfies {name}; give finite Lipschitz constants or"
            " sharper bounds.",
        )
    low = high
    while admissible(low):
        low /= 16
        require(
            low > 1 / LARGEST,
            f"every beta > 0 satisfies {name}, whose value functions are affine or concave; choose"
            " it by the reward.",
        )
    while high - low > _BISECTION * high:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (low, middle) if admissible(middle) else (middle, high)
    return high


def _require_weights(beta: Tensor) -> None:
    require_each(
        beta,
        lambda x: (x > 0) & x.isfinite(),
        "required beta",
        "use a constant beta or finite Lipschitz constants.",
    )
