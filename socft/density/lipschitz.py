"""Closed forms and bounds of a mixture's Lipschitz constants: one Gaussian, a common covariance,
unequal covariances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.optimize.elementwise import find_root
from torch import Tensor

from socft.density.constants import (
    SEARCH_TOLERANCE,
    THIRD_MOMENT,
    Components,
    ScoreConstants,
    largest_eigenvalue,
    noised_variance,
)
from socft.density.search import unit_search

_COMPARABLE = 1e-10
"""Relative: eigenvalues of precision differences below this count as zero."""

_ACCURACY = {"xatol": 0.0, "xrtol": 1e-15, "fatol": 0.0, "frtol": 0.0}
"""Of roots: to rounding."""

_ROUNDING = 8 * torch.finfo(torch.float64).eps
"""Relative error of a root, at most."""

_TINY = 1e-200
"""In place of a zero that is divided by."""

LEVEL_CHUNK = 32
"""Levels at which components are compared together."""


def gaussian_constants(law: Components, abar: Tensor) -> ScoreConstants:
    """One Gaussian: the Jacobian is minus the precision everywhere."""
    up, down = (1 / noised_variance(abar, end) for end in (law.spectra.max(), law.spectra.min()))
    yes = torch.ones_like(up, dtype=torch.bool)
    return ScoreConstants(-up, down, torch.zeros_like(up), yes, yes, yes)


def common_constants(law: Components, abar: Tensor) -> ScoreConstants:
    """Common covariance: the extreme pairs of components.

    The Jacobian is a covariance of scores minus the precision, and tends to minus the precision
    where one component is alone, so that ``down`` is the largest precision.
    """
    level, (j, k) = abar.unsqueeze(1), torch.triu_indices(law.components, law.components, 1)
    precision = 1 / noised_variance(level, law.spectra)
    centers = law.means @ law.bases[0]
    difference = (precision * level.sqrt()).unsqueeze(1) * (centers[j] - centers[k])
    top = precision.amax(1)
    pair = torch.full_like(top, law.components == 2, dtype=torch.bool)
    return ScoreConstants(
        _rank_one_eigenvalue(precision.unsqueeze(1), difference / 2),
        top,
        difference.norm(dim=2).amax(1) ** 3 * THIRD_MOMENT,
        pair,
        torch.ones_like(pair),
        pair,
    )


def _rank_one_eigenvalue(
    p: Float[Tensor, "L 1 n"], z: Float[Tensor, "L pairs n"]
) -> Float[Tensor, " L"]:
    """Largest eigenvalue of ``-diag(p) + z z'`` over pairs, from above.

    It is at least ``-min p`` and at least the quadratic form along z, and where it exceeds both it
    is the root of ``sum_i z_i^2 / (p_i + mu) = 1``, whose left side decreases in mu.
    """
    square = z.square()
    along = square.sum(2) - (p * square).sum(2) / square.sum(2).clamp(min=_TINY)
    floor = torch.maximum(along.amax(1), -p[:, 0].amin(1))
    room = (p + floor.reshape(-1, 1, 1)).clamp(min=_TINY)
    level, pair = ((square / room).sum(2) > 1).nonzero().unbind(1)
    precision, square = p[level, 0].numpy(), square[level, pair].numpy()

    def excess(mu: np.ndarray, i: np.ndarray) -> np.ndarray:
        return (square[i] / np.maximum(precision[i] + mu[:, None], _TINY)).sum(1) - 1

    root = _root(excess, floor[level].numpy(), square.sum(1), np.arange(len(square)))
    return floor.scatter_reduce(0, level, root, "amax") + _ROUNDING * p.amax((1, 2))


def _root(
    function: Callable[[np.ndarray, np.ndarray], np.ndarray],
    low: np.ndarray,
    high: np.ndarray,
    argument: np.ndarray,
) -> Tensor:
    """Where ``function(x, argument)`` changes sign between ``low`` and ``high``, elementwise."""
    return torch.from_numpy(
        find_root(function, (low, high), args=(argument,), tolerances=_ACCURACY).x
    )


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Components i and j of a mixture noised to L levels; their densities' log ratio is
    ``peak - (x - x*)' (P_i - P_j) (x - x*) / 2``.

    Attributes:
        precisions: ``P_i``, shape (L, K, n, n).
        precision_difference: ``P_i - P_j``, shape (L, K, K, n, n).
        score_difference: at the origin, ``P_i m_i - P_j m_j``, shape (L, K, K, n).
        peak: log ratio where the scores agree, shape (L, K, K).
        top: largest eigenvalue of the precision difference, shape (L, K, K).
        parallel: whether the precisions agree, so that the scores differ by ``score_difference``
            everywhere.
        bounded: whether the precision difference is positive semi-definite and the scores agree
            somewhere, so that the log ratio is at most ``peak``, or are parallel.
    """

    precisions: Float[Tensor, "L K n n"]
    precision_difference: Float[Tensor, "L K K n n"]
    score_difference: Float[Tensor, "L K K n"]
    peak: Float[Tensor, "L K K"]
    top: Float[Tensor, "L K K"]
    parallel: Bool[Tensor, "L K K"]
    bounded: Bool[Tensor, "L K K"]


def _compare(law: Components, abar: Float[Tensor, " L"]) -> _Comparison:
    level = abar.reshape(-1, 1, 1)
    variance, means = noised_variance(level, law.spectra), level.sqrt() * law.means
    precisions = (law.bases / variance.unsqueeze(2)) @ law.bases.mT
    scores = (precisions @ means.unsqueeze(3)).squeeze(3)
    log_mass = law.weights.log() - variance.log().sum(2) / 2 - (means * scores).sum(2) / 2
    precision_difference, score_difference = (
        precisions.unsqueeze(2) - precisions.unsqueeze(1),
        scores.unsqueeze(2) - scores.unsqueeze(1),
    )
    values, vectors = torch.linalg.eigh(precision_difference)
    flat = values.abs() <= _COMPARABLE * precisions.abs().amax((1, 2, 3)).reshape(-1, 1, 1, 1)
    slopes = (score_difference.unsqueeze(3) @ vectors).squeeze(3)
    disagree = (slopes.abs() * flat).amax(3) > _COMPARABLE * scores.abs().amax((1, 2)).reshape(
        -1, 1, 1
    )
    parallel = flat.all(3)
    bounded = ((values > 0) | flat).all(3) & (parallel | ~disagree)
    peak = (
        log_mass.unsqueeze(2)
        - log_mass.unsqueeze(1)
        + torch.where(flat, 0, slopes.square() / values / 2).sum(3)
    )
    return _Comparison(
        precisions, precision_difference, score_difference, peak, values.amax(3), parallel, bounded
    )


def two_constants(law: Components, abar: Tensor) -> ScoreConstants:
    r"""Two components of different covariance, exact.

    With :math:`w = \sigma(\Delta^* - t)` the weight of the more precise one,
    :math:`|u^\top \delta|^2 \le 2 t\, u^\top E u` with equality where :math:`x - x^*` is along u.
    So the Jacobian is at most :math:`\kappa E - P` and at least :math:`-\sigma(\Delta^*) E - P`, P
    the smaller precision, with :math:`\kappa = \sup_t\, 2 t w (1-w) - w`, and the third derivative
    is largest along the top eigenvector of E: a one-dimensional mixture of precisions 0 and 1
    decides both suprema.
    """
    c = _compare(law, abar)
    if bool(c.parallel[:, 0, 1].any()):
        return many_constants(law, abar)
    forward = c.bounded[:, 0, 1].reshape(-1, 1, 1)
    peak = torch.where(c.bounded[:, 0, 1], c.peak[:, 0, 1], c.peak[:, 1, 0])
    E = torch.where(forward, c.precision_difference[:, 0, 1], c.precision_difference[:, 1, 0])
    base = torch.where(forward, c.precisions[:, 1], c.precisions[:, 0])
    known = c.bounded[:, 0, 1] | c.bounded[:, 1, 0]
    spread = unit_search(torch.where(known, peak, 0))
    weight = torch.sigmoid(peak).reshape(-1, 1, 1)
    up = largest_eigenvalue(spread.up.reshape(-1, 1, 1) * E - base)
    down = largest_eigenvalue(base + weight * E)
    L1 = spread.L1 * largest_eigenvalue(E).clamp(min=0) ** 1.5
    return ScoreConstants(
        torch.where(known, up, math.inf),
        torch.where(known, down, _sharpest(c)),
        torch.where(known, L1, math.inf),
        ~known | spread.up_exact,
        known,
        ~known | spread.L1_exact,
    )


def many_constants(law: Components, abar: Tensor) -> ScoreConstants:
    """Any components: bounds by all pairs or by all components against one of them; the smallest
    wins.
    """
    c = _compare(law, abar)
    spreads, thirds = [_by_pairs(c)], [_third_by_pairs(c)]
    for k in range(law.components):
        spreads.append(_by_anchor(c, k))
        thirds.append(_third_by_anchor(c, k))
    up, L1 = torch.stack(spreads).amin(0), torch.stack(thirds).amin(0)
    no = torch.zeros_like(up, dtype=torch.bool)
    return ScoreConstants(up, _sharpest(c), L1, no, no, no)


def _sharpest(c: _Comparison) -> Float[Tensor, " L"]:
    """The largest precision of all components: the Jacobian is at least minus their mean."""
    return largest_eigenvalue(c.precisions).amax(1)


def _by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """Bound of the Jacobian's top eigenvalue from ``sum_ij w_i w_j d_ij d_ij'``, over pairs, minus
    the least precision.
    """
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    rank_one_bound = _spread(_BOTH, c, c.peak)
    oriented = torch.where(
        c.bounded[:, i, j, None, None], rank_one_bound[:, i, j], rank_one_bound[:, j, i]
    )
    comparable = (c.bounded[:, i, j] | c.bounded[:, j, i]).all(1)
    top = largest_eigenvalue(oriented.sum(1)) - torch.linalg.eigvalsh(c.precisions).amin((1, 2))
    return torch.where(comparable, top, math.inf)


def _by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """The same from ``sum_i w_i d_ik d_ik' - sum_i w_i E_ik - P_k``; the second sum shifts t by
    1/2.
    """
    others = torch.arange(c.peak.shape[1]) != k
    rank_one_bound = _spread(_ONE, c, c.peak - 0.5)[:, others, k].sum(1)
    return torch.where(
        c.bounded[:, others, k].all(1),
        largest_eigenvalue(rank_one_bound - c.precisions[:, k]),
        math.inf,
    )


def _third_by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """``|E c^3| <= E |s - s'|^3`` with s' an independent copy, and ``Cov(P, s)`` as a sum over
    pairs.
    """
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    terms = 2 * _moment(_BOTH, c, 3) + 3 * torch.where(c.bounded, c.top, 1) * _moment(_BOTH, c, 1)
    return torch.minimum(terms[:, i, j], terms[:, j, i]).sum(1)


def _third_by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """``E |c|^3 <= 8 E |s - s_k|^3``, and ``|Cov(P, s)| <= E |E_ik| (|d_ik| + E |d_ik|)``."""
    others = torch.arange(c.peak.shape[1]) != k
    top = torch.where(c.bounded, c.top, 1)[:, others, k]
    cubes, firsts = (_moment(_ONE, c, q)[:, others, k] for q in (3, 1))
    return (8 * cubes + 3 * (top + top.amax(1, keepdim=True)) * firsts).sum(1)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A weight as a function of the log ratio of two densities, bounded and log-concave.

    Attributes:
        log: its logarithm.
        slope: the derivative of that logarithm.
        largest: its supremum.
    """

    log: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    largest: float


_BOTH = _Weight(lambda r: -2 * torch.logaddexp(r / 2, -r / 2), lambda r: -torch.tanh(r / 2), 0.25)
_ONE = _Weight(torch.nn.functional.logsigmoid, lambda r: torch.sigmoid(-r), 1.0)


def _supremum(weight: _Weight, peak: Tensor, q: int) -> Tensor:
    """``sup_t weight(peak - t) (2 t)^(q/2)``.

    The logarithm is concave in t; the maximiser solves ``q = 2 t (log weight)'(peak - t)``.
    """
    high = peak.clamp(min=0) + q + 5
    t = _root(
        lambda t, peak: q - 2 * t * weight.slope(torch.from_numpy(peak - t)).numpy(),
        np.zeros(peak.shape),
        high.numpy(),
        peak.numpy(),
    )
    return weight.log(peak - t).exp() * (2 * t) ** (q / 2) * (1 + SEARCH_TOLERANCE)


def _spread(weight: _Weight, c: _Comparison, peak: Tensor) -> Float[Tensor, "L K K n n"]:
    """A matrix above ``weight d d'`` for every x, where the log ratio of i to j is bounded."""
    curved = _supremum(weight, peak, 2)[..., None, None] * c.precision_difference
    constant = weight.largest * c.score_difference.unsqueeze(4) * c.score_difference.unsqueeze(3)
    return torch.where(c.parallel[..., None, None], constant, curved)


def _moment(weight: _Weight, c: _Comparison, q: int) -> Float[Tensor, "L K K"]:
    """``sup_x weight |d|^q``, infinite where the log ratio of i to j is not bounded."""
    curved = _supremum(weight, c.peak, q) * c.top.clamp(min=0) ** (q / 2)
    return torch.where(
        c.bounded,
        torch.where(c.parallel, weight.largest * c.score_difference.norm(dim=3) ** q, curved),
        math.inf,
    )
