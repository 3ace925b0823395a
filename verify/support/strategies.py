r"""Problems on which claims are checked: frozen dataclasses of plain numbers, drawn by hypothesis
and rebuilt from a record.

Every instance has exact Lipschitz constants, an exact solution, and design constants lambda in (0,
1) from which its KL weights are derived, so that assumptions hold by construction. Two families:

* `ProductInstance`: a rotated sum of one-dimensional problems, d = 1 to 64, from a few distinct
  `Factor` s. Solved by quadrature in one dimension; equal factors share a solution. Scores are
  those of noised Gaussians and mixtures, or :math:`s(y) = -c y + b \tanh(w y) + e`; rewards have
  bounded gradients.
* `QuadraticInstance`: an affine score and a quadratic reward in d dimensions, solved in closed
  form.

`ProductInstance.suprema` has the measured suprema that bounds are held against.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from socft.reward import PseudoHuber, Sine, Softplus
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.rewards import ScalarReward, Slope, SmoothMaximum
from verify.support.scores import MixtureScore, TanhScore
from verify.support.staircase import Staircase
from verify.support.steep import SteepScore

STEPS = 12
"""Most steps of a drawn chain."""
DIMENSIONS = (2, 3, 8, 64)
"""Dimensions of drawn rotated products."""


def numbers(low: float, high: float) -> st.SearchStrategy[float]:
    """Numbers of an interval with six decimals, so that records stay readable."""
    return st.floats(low, high, allow_nan=False).map(lambda x: round(x, 6))


def entries(count: int) -> st.SearchStrategy[list[float]]:
    """Of a state, in [-2, 2]."""
    return st.lists(numbers(-2, 2), min_size=count, max_size=count)


def design_constants() -> st.SearchStrategy[float]:
    """Lambda in (0, 1)."""
    return numbers(0.05, 0.95)


@st.composite
def levels(draw: st.DrawFn, most: int = STEPS) -> tuple[float, ...]:
    """Signal levels of up to ``most`` steps, from between 0.15 and 0.6 to between 0.9 and 0.999."""
    first, last = draw(numbers(0.15, 0.6)), draw(numbers(0.9, 0.999))
    weights = draw(st.lists(numbers(0.2, 1), min_size=1, max_size=most))
    shares = itertools.accumulate(weights, initial=0.0)
    return tuple(first * (last / first) ** (share / sum(weights)) for share in shares)


@st.composite
def staircases(draw: st.DrawFn) -> Staircase:
    """Up to six steps."""
    widths = draw(st.lists(numbers(0.05, 2), min_size=1, max_size=6))
    levels = draw(st.lists(numbers(-3, 3), min_size=len(widths), max_size=len(widths)))
    knots = tuple(float(x) for x in itertools.accumulate(widths, initial=0.0))
    return Staircase(knots, tuple(levels))


def gaussian_scores() -> st.SearchStrategy[MixtureScore]:
    """Scores of noised Gaussians: affine."""
    return st.builds(lambda m, v: MixtureScore((1.0,), (m,), (v,)), numbers(-2, 2), numbers(0.3, 3))


@st.composite
def mixture_scores(draw: st.DrawFn) -> MixtureScore:
    """Scores of noised mixtures of two or three components."""
    count = draw(st.integers(2, 3))
    weights = draw(st.lists(numbers(0.2, 1), min_size=count, max_size=count))
    means = draw(st.lists(numbers(-2, 2), min_size=count, max_size=count))
    variances = draw(st.lists(numbers(0.4, 1.5), min_size=count, max_size=count))
    return MixtureScore(tuple(w / sum(weights) for w in weights), tuple(means), tuple(variances))


def tanh_scores() -> st.SearchStrategy[TanhScore]:
    """``-c y + b tanh(w y) + e`` with slopes of either sign."""
    return st.builds(
        TanhScore, numbers(-0.5, 1.5), numbers(-0.5, 0.5), numbers(0.5, 2), numbers(-1, 1)
    )


def affine_scores() -> st.SearchStrategy[TanhScore]:
    """``-c y + e``; a negative c attains ``(1 + g L0s) / sqrt(a)``."""
    return st.builds(lambda c, e: TanhScore(c, e=e), numbers(-0.5, 1.5), numbers(-1, 1))


def any_scores() -> st.SearchStrategy[MixtureScore | TanhScore]:
    """All of them."""
    return st.one_of(affine_scores(), gaussian_scores(), tanh_scores(), mixture_scores())


def steep_scores() -> st.SearchStrategy[SteepScore]:
    """A low score that bends within a short distance, and a reward of curvature of any sign."""
    return st.builds(
        lambda b, w, p, sign, lam: SteepScore(b, w, sign * p, lam),
        numbers(0.01, 0.5),
        numbers(2, 300),
        numbers(0.1, 2),
        st.sampled_from([1, -1]),
        numbers(0.1, 0.95),
    )


def sizes() -> st.SearchStrategy[float]:
    """Sizes of a reward, of either sign."""
    return st.one_of(numbers(0.1, 3), numbers(-3, -0.1))


@st.composite
def smooth_maxima(draw: st.DrawFn) -> SmoothMaximum:
    """Log-sum-exp of two or three affine functions."""
    count = draw(st.integers(2, 3))
    slopes = draw(st.lists(numbers(-2, 2), min_size=count, max_size=count, unique=True))
    offsets = draw(st.lists(numbers(-1, 1), min_size=count, max_size=count))
    return SmoothMaximum(tuple(slopes), tuple(offsets), draw(numbers(0.4, 2)))


def curved_rewards() -> st.SearchStrategy[ScalarReward]:
    """Rewards with a bounded gradient that are not linear."""
    return st.one_of(
        st.builds(Sine, sizes(), numbers(0.3, 2.5), numbers(-3, 3)),
        st.builds(Softplus, sizes(), numbers(0.5, 3), numbers(-1, 1)),
        st.builds(PseudoHuber, numbers(0.5, 2), numbers(-1, 1), sizes()),
        smooth_maxima(),
    )


def bounded_rewards() -> st.SearchStrategy[ScalarReward]:
    """Rewards with a bounded gradient, so that every constant of the theory is finite."""
    return st.one_of(st.builds(Slope, sizes()), curved_rewards())


def _factors(
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None,
    rewards: st.SearchStrategy[ScalarReward] | None,
) -> st.SearchStrategy[Factor]:
    return st.builds(
        Factor,
        any_scores() if scores is None else scores,
        bounded_rewards() if rewards is None else rewards,
    )


@st.composite
def line_instances(
    draw: st.DrawFn,
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None = None,
    rewards: st.SearchStrategy[ScalarReward] | None = None,
    steps: int = STEPS,
    lam: st.SearchStrategy[float] | None = None,
) -> ProductInstance:
    """One-dimensional instances with any of the scores and rewards, or given ones."""
    abar = draw(levels(steps))
    factor = draw(_factors(scores, rewards))
    return ProductInstance(
        levels=abar,
        lam=_lams(draw, len(abar) - 1, lam),
        posterior=draw(st.booleans()),
        factors=(factor,),
    )


@st.composite
def rotated_instances(
    draw: st.DrawFn,
    scores: st.SearchStrategy[MixtureScore | TanhScore] | None = None,
    rewards: st.SearchStrategy[ScalarReward] | None = None,
    steps: int = 6,
    dims: Sequence[int] = DIMENSIONS,
    lam: st.SearchStrategy[float] | None = None,
) -> ProductInstance:
    """Rotated products of one or two distinct one-dimensional problems, up to d = 64."""
    abar = draw(levels(steps))
    pair = _factors(scores, rewards)
    return ProductInstance(
        levels=abar,
        lam=_lams(draw, len(abar) - 1, lam),
        posterior=draw(st.booleans()),
        factors=tuple(draw(st.lists(pair, min_size=1, max_size=2))),
        size=draw(st.sampled_from(list(dims))),
        rotation=draw(st.integers(0, 9)),
    )


def instances(**options: Any) -> st.SearchStrategy[ProductInstance]:
    """One-dimensional and rotated instances; options as for both."""
    return st.one_of(line_instances(**options), rotated_instances(**options))


@st.composite
def quadratic_instances(
    draw: st.DrawFn,
    steps: int = STEPS,
    dims: int = 5,
    convex: bool | None = None,
    lam: st.SearchStrategy[float] | None = None,
) -> QuadraticInstance:
    """Affine scores and quadratic rewards in up to ``dims`` dimensions; ``convex`` fixes the sign
    of the reward's curvature.
    """
    d = draw(st.integers(1, dims))
    sign = numbers(0.05, 3) if convex else numbers(-3, -0.05) if convex is False else sizes()
    abar = draw(levels(steps))

    def vector(entries: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(entries, min_size=d, max_size=d)))

    return QuadraticInstance(
        levels=abar,
        lam=_lams(draw, len(abar) - 1, lam),
        posterior=draw(st.booleans()),
        score=vector(numbers(-1.5, 1)),
        shift=vector(numbers(-1, 1)),
        curvature=vector(sign),
        slope=vector(numbers(-1, 1)),
        rotation=draw(st.none() | st.integers(0, 9)),
    )


def _lams(draw: st.DrawFn, steps: int, lam: st.SearchStrategy[float] | None) -> tuple[float, ...]:
    """One design constant for all steps, or one each."""
    each = design_constants() if lam is None else lam
    if draw(st.booleans()):
        return (draw(each),) * steps
    return tuple(draw(st.lists(each, min_size=steps, max_size=steps)))
