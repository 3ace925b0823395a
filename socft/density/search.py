"""Lipschitz constants of one-dimensional mixtures by certified branch and bound, with a bound on
the tails.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.density.constants import (
    SEARCH_TOLERANCE,
    Components,
    ScoreConstants,
    Stacked,
    join_levels,
    largest_of,
    noised_variance,
    stack_lines,
)

_SEARCH_CELLS = 64  # first cells of each one-dimensional problem
_SEARCH_ROUNDS = 60  # each divides the open cells by four
_SEARCH_LIMIT = 2_000_000  # open cells at which the search settles for the bound it has
_SEARCH_CHUNK = 2048  # one-dimensional problems searched together
_TAIL_LOG_RATIO = -80.0  # of every other component to the widest, beyond the searched interval


@dataclasses.dataclass(frozen=True)
class _Lines:
    """N one-dimensional mixtures by natural parameters relative to the first component, coordinates
    centred at the mean.

    Up to a function common to all components,
    ``log(weight density)_k = height_k + slope_k x - curvature_k x^2 / 2``.
    """

    height: Float[Tensor, "N K"]
    slope: Float[Tensor, "N K"]
    curvature: Float[Tensor, "N K"]
    precision: Float[Tensor, " N"]

    def __getitem__(self, which: Tensor) -> _Lines:
        return _Lines(
            self.height[which], self.slope[which], self.curvature[which], self.precision[which]
        )


def _natural(lines: Stacked) -> _Lines:
    centred = lines.means - (lines.log_weights.exp() * lines.means).sum(1, keepdim=True)
    P = 1 / lines.variances
    height = lines.log_weights + P.log() / 2 - P * centred.square() / 2
    slope = P * centred
    return _Lines(height - height[:, :1], slope - slope[:, :1], P - P[:, :1], P[:, 0])


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Posterior weights, centred scores and centred precisions at cell centers, with bounds over
    the cells.

    Attributes:
        weight, scores, precisions: of the components at the centers, the last two centred, shape
            (cells, K).
        weight_bound, score_bound: bounds of weight and of |scores| over each cell,
            shape (cells, K).
        mean_precision: at the centers, shape (cells,).
    """

    weight: Tensor
    scores: Tensor
    precisions: Tensor
    weight_bound: Tensor
    score_bound: Tensor
    mean_precision: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over components at the centers."""
        return (self.weight * values).sum(1)

    def mean_bound(self, values: Tensor) -> Tensor:
        """Bound of the mean over each cell, given a bound of the values."""
        return (self.weight_bound * values).sum(1)

    @property
    def variance(self) -> Tensor:
        return self.mean(self.scores.square())

    @property
    def third(self) -> Tensor:
        return self.mean(self.scores * (self.scores.square() - 3 * self.precisions))

    @property
    def fourth(self) -> Tensor:
        square = self.scores.square()
        return (
            self.mean(square.square() - 6 * self.precisions * square + 3 * self.precisions.square())
            - 3 * self.variance.square()
        )

    @property
    def second_bound(self) -> Tensor:
        return self.mean_bound(self.score_bound.square() + self.precisions.abs())

    @property
    def third_bound(self) -> Tensor:
        return self.mean_bound(
            self.score_bound * (self.score_bound.square() + 3 * self.precisions.abs())
        )

    @property
    def fourth_bound(self) -> Tensor:
        square, precisions = self.score_bound.square(), self.precisions.abs()
        return (
            self.mean_bound(square.square() + 6 * precisions * square + 3 * precisions.square())
            + 3 * self.second_bound.square()
        )

    @property
    def fifth_bound(self) -> Tensor:
        square, precisions = self.score_bound.square(), self.precisions.abs()
        odd = self.mean_bound(
            self.score_bound
            * (square.square() + 10 * precisions * square + 15 * precisions.square())
        )
        return odd + 10 * self.second_bound * self.third_bound


def _cells(lines: _Lines, x: Tensor, radius: Tensor) -> _Cells:
    """Evaluate cells ``[x - radius, x + radius]``, one per line of ``lines``.

    Up to a function common to all, component k has log density ``log w_k + c_k y - e_k y^2 / 2`` at
    the center plus y.
    """
    x, r = x.unsqueeze(1), radius.unsqueeze(1)
    log_weight = torch.log_softmax(
        lines.height + lines.slope * x - lines.curvature * x.square() / 2, 1
    )
    weight = log_weight.exp()
    score = lines.slope - lines.curvature * x
    scores = score - (weight * score).sum(1, keepdim=True)
    shift = (weight * lines.curvature).sum(1, keepdim=True)
    precisions = lines.curvature - shift
    up = log_weight + scores.abs() * r + (-precisions).clamp(min=0) * r.square() / 2
    down = log_weight - scores.abs() * r - precisions.clamp(min=0) * r.square() / 2
    weight_bound = (up - torch.logsumexp(down, 1, keepdim=True)).clamp(max=0).exp()
    score_range = scores.abs() + r * precisions.abs()
    score_bound = score_range + (weight_bound * score_range).sum(1, keepdim=True)
    return _Cells(
        weight, scores, precisions, weight_bound, score_bound, lines.precision + shift.squeeze(1)
    )


@dataclasses.dataclass(frozen=True)
class _Objective:
    """What is maximised, f, at cell centers, |f'| there, and a bound of |f''| over the cells."""

    value: Callable[[_Cells], Tensor]
    slope: Callable[[_Cells], Tensor]
    second_bound: Callable[[_Cells], Tensor]


_UP = _Objective(
    lambda c: c.variance - c.mean_precision, lambda c: c.third.abs(), lambda c: c.fourth_bound
)
_DOWN = _Objective(
    lambda c: c.mean_precision - c.variance, lambda c: c.third.abs(), lambda c: c.fourth_bound
)
_THIRD = _Objective(lambda c: c.third.abs(), lambda c: c.fourth.abs(), lambda c: c.fifth_bound)


@dataclasses.dataclass(frozen=True)
class _Maximum:
    bound: Float[Tensor, " N"]
    exact: Bool[Tensor, " N"]


def _maximise(
    objective: _Objective, lines: _Lines, left: Tensor, right: Tensor, start: Tensor
) -> _Maximum:
    """Certified maximum of f on ``[left, right]`` and of ``start``, a value >= 0 known to be
    approached, for each line.
    """
    best, which = start.clone(), torch.arange(len(start)).repeat_interleave(_SEARCH_CELLS)
    fraction = ((torch.arange(_SEARCH_CELLS, dtype=torch.float64) + 0.5) / _SEARCH_CELLS).repeat(
        len(start)
    )
    x = left[which] + (right - left)[which] * fraction
    radius = (right - left)[which] / (2 * _SEARCH_CELLS)
    quarters = torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64)
    upper = x.new_zeros(0)
    for _ in range(_SEARCH_ROUNDS):
        cells = _cells(lines[which], x, radius)
        value = objective.value(cells)
        upper = (
            value
            + radius * objective.slope(cells)
            + radius.square() / 2 * objective.second_bound(cells)
        )
        best = best.scatter_reduce(0, which, value, "amax")
        unsettled = ~(upper <= best[which] * (1 + SEARCH_TOLERANCE))
        which, x, radius, upper = (
            which[unsettled],
            x[unsettled],
            radius[unsettled],
            upper[unsettled],
        )
        if not len(which) or len(which) > _SEARCH_LIMIT:
            break
        x = (x.unsqueeze(1) + radius.unsqueeze(1) * quarters).flatten()
        which, radius, upper = (
            which.repeat_interleave(4),
            radius.repeat_interleave(4) / 4,
            upper.repeat_interleave(4),
        )
    bound = (best * (1 + SEARCH_TOLERANCE)).scatter_reduce(0, which, upper, "amax")
    return _Maximum(
        bound,
        torch.ones_like(best, dtype=torch.bool).scatter(
            0, which, torch.zeros_like(which, dtype=torch.bool)
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Tail:
    """Where a tail starts, and bounds of the second derivative's distance from its limit and of the
    third derivative beyond.
    """

    start: Float[Tensor, " N"]
    second: Float[Tensor, " N"]
    third: Float[Tensor, " N"]


def _right_tail(lines: _Lines) -> _Tail:
    """The tail where the widest component (of several, the rightmost) dominates.

    With ``d_j`` the score of component j minus the widest's and ``rho_j`` the ratio of their
    densities, ``rho_j |d_j|^q`` decreases in x once ``d_j < 0`` and ``d_j^2 >= q (P_j - P)``.
    """
    real = torch.isfinite(lines.height)
    widest = torch.where(real, lines.curvature, math.inf).amin(1, keepdim=True)
    first = torch.where(real & (lines.curvature == widest), lines.slope, -math.inf).argmax(
        1, keepdim=True
    )
    height, slope, curvature = (
        v - v.gather(1, first) for v in (lines.height, lines.slope, lines.curvature)
    )
    other = real & ((slope != 0) | (curvature != 0))
    x = lines.precision.rsqrt()
    while True:
        difference = slope - curvature * x.unsqueeze(1)
        log_ratio = height + slope * x.unsqueeze(1) - curvature * x.square().unsqueeze(1) / 2
        settled = (
            (log_ratio <= _TAIL_LOG_RATIO)
            & (difference < 0)
            & (difference.square() >= 3 * curvature)
            | ~other
        ).all(1)
        if settled.all():
            break
        x = torch.where(settled, x, 2 * x)
    ratio = torch.where(other, log_ratio.exp(), 0)
    first, curved = (ratio * difference.abs()).sum(1), (ratio * curvature).sum(1)
    third = (ratio * difference.abs() * (8 * difference.square() + 3 * curvature)).sum(
        1
    ) + 3 * curved * first
    return _Tail(x, curved + (ratio * difference.square()).sum(1), third)


def line_constants(mixtures: Sequence[Components], abar: Tensor) -> ScoreConstants:
    """The largest constants of one-dimensional mixtures at each level, by certified search."""
    stacked, level = stack_lines(mixtures), abar.reshape(-1, 1, 1)
    noised = Stacked(
        stacked.log_weights.expand(len(abar), -1, -1).flatten(0, 1),
        (level.sqrt() * stacked.means).flatten(0, 1),
        noised_variance(level, stacked.variances).flatten(0, 1),
    )
    lines = _natural(noised)
    joined = join_levels(
        [_search(lines[chunk]) for chunk in torch.arange(len(lines.precision)).split(_SEARCH_CHUNK)]
    )
    return largest_of(
        ScoreConstants(
            *(v.reshape(len(abar), len(mixtures)).T for v in dataclasses.astuple(joined))
        )
    )


def _search(lines: _Lines) -> ScoreConstants:
    right, left = (
        _right_tail(lines),
        _right_tail(_Lines(lines.height, -lines.slope, lines.curvature, lines.precision)),
    )
    ends, real = (-left.start, right.start), torch.isfinite(lines.height)
    limit = lines.precision + torch.where(real, lines.curvature, math.inf).amin(1)
    sharpest = lines.precision + torch.where(real, lines.curvature, -math.inf).amax(1)
    shift = 2 * sharpest  # lifts the largest eigenvalue to at least the sharpest precision
    shifted = dataclasses.replace(lines, precision=lines.precision - shift)
    up = _maximise(_UP, shifted, *ends, shift - limit)
    down = _maximise(_DOWN, lines, *ends, limit)
    third = _maximise(_THIRD, lines, *ends, torch.zeros_like(limit))
    tail = torch.maximum(left.second, right.second)
    return ScoreConstants(
        torch.maximum(up.bound, shift - limit + tail) - shift,
        torch.maximum(down.bound, limit + tail),
        torch.maximum(third.bound, torch.maximum(left.third, right.third)),
        up.exact,
        down.exact,
        third.exact,
    )


def unit_search(peak: Float[Tensor, " L"]) -> ScoreConstants:
    """For precisions 0 and 1, means 0 and log ratio ``peak`` at 0: the extreme second and third
    log derivatives.

    Searched at precisions 1 and 2, which lowers the second derivative by 1.
    """
    zero, one = torch.zeros_like(peak), torch.ones_like(peak)
    lines = _Lines(
        torch.stack([zero, peak], 1), torch.stack([zero, zero], 1), torch.stack([zero, one], 1), one
    )
    found = _search(lines)
    return dataclasses.replace(found, up=found.up + 1, down=found.down - 1)
