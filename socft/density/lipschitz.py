"""Closed forms and bounds of a mixture's Lipschitz constants: one Gaussian, a common covariance,
unequal covariances.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.density.constants import SEARCH_TOLERANCE, Components, ScoreConstants, largest_eigenvalue
from socft.density.search import unit_search

_COMPARABLE = 1e-10  # relative: eigenvalues of precision differences below this count as zero
_SKEW = 6 * math.sqrt(3)  # largest third central moment on [0, 1] is 1 / _SKEW
LEVEL_CHUNK = 32  # levels at which components are compared together
_BISECTIONS = 80  # more than the bits of a float64


def gaussian_constants(law: Components, abar: Tensor) -> ScoreConstants:
    L0 = 1 / (abar * law.spectra.min() + 1 - abar)
    yes = torch.ones_like(L0, dtype=torch.bool)
    return ScoreConstants(L0, torch.zeros_like(L0), yes, yes)


def common_constants(law: Components, abar: Tensor) -> ScoreConstants:
    """Common covariance: the extreme pairs of components."""
    level, (j, k) = abar.unsqueeze(1), torch.triu_indices(law.components, law.components, 1)
    precision = 1 / (level * law.spectra + 1 - level)
    centers = law.means @ law.bases[0]
    apart = (precision * level.sqrt()).unsqueeze(1) * (centers[j] - centers[k])
    top = precision.amax(1)
    bulge = _rank_one_top(precision.unsqueeze(1), apart / 2, top)
    pair = torch.full_like(top, law.components == 2, dtype=torch.bool)
    return ScoreConstants(
        torch.maximum(top, bulge),
        apart.norm(dim=2).amax(1) ** 3 / _SKEW,
        pair | (bulge <= top),
        pair,
    )


def _rank_one_top(
    p: Float[Tensor, "L 1 n"], z: Float[Tensor, "L pairs n"], floor: Float[Tensor, " L"]
) -> Float[Tensor, " L"]:
    """Largest eigenvalue of ``-diag(p) + z z'`` over pairs, from above where it exceeds ``floor``,
    else 0.

    It is the root of ``sum_i z_i^2 / (p_i + mu) = 1``, whose left side decreases in mu.
    """
    level, pair = ((z.square() / (p + floor.reshape(-1, 1, 1))).sum(2) > 1).nonzero().unbind(1)
    p, square = p[level, 0], z[level, pair].square()
    low, high = floor[level], square.sum(1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = (square / (p + middle.unsqueeze(1))).sum(1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.zeros_like(floor).scatter_reduce(0, level, high, "amax")


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Components i and j of a mixture noised to L levels; their densities' log ratio is
    ``peak - (x - x*)' excess (x - x*) / 2``.

    Attributes:
        precisions: ``P_i``, shape (L, K, n, n).
        excess: ``P_i - P_j``, shape (L, K, K, n, n).
        gap: score difference at the origin, ``P_i m_i - P_j m_j``, shape (L, K, K, n).
        peak: log ratio where the scores agree, shape (L, K, K).
        top: largest eigenvalue of the excess, shape (L, K, K).
        parallel: whether the excess is zero, so that the scores differ by ``gap`` everywhere.
        finer: whether the excess is positive semi-definite and the scores agree somewhere, or are
            parallel.
    """

    precisions: Float[Tensor, "L K n n"]
    excess: Float[Tensor, "L K K n n"]
    gap: Float[Tensor, "L K K n"]
    peak: Float[Tensor, "L K K"]
    top: Float[Tensor, "L K K"]
    parallel: Bool[Tensor, "L K K"]
    finer: Bool[Tensor, "L K K"]


def _compare(law: Components, abar: Float[Tensor, " L"]) -> _Comparison:
    level = abar.reshape(-1, 1, 1)
    variance, means = level * law.spectra + 1 - level, level.sqrt() * law.means
    precisions = (law.bases / variance.unsqueeze(2)) @ law.bases.mT
    pulls = (precisions @ means.unsqueeze(3)).squeeze(3)
    log_mass = law.weights.log() - variance.log().sum(2) / 2 - (means * pulls).sum(2) / 2
    excess, gap = (
        precisions.unsqueeze(2) - precisions.unsqueeze(1),
        pulls.unsqueeze(2) - pulls.unsqueeze(1),
    )
    values, vectors = torch.linalg.eigh(excess)
    flat = values.abs() <= _COMPARABLE * precisions.abs().amax((1, 2, 3)).reshape(-1, 1, 1, 1)
    slopes = (gap.unsqueeze(3) @ vectors).squeeze(3)
    apart = (slopes.abs() * flat).amax(3) > _COMPARABLE * pulls.abs().amax((1, 2)).reshape(-1, 1, 1)
    parallel = flat.all(3)
    finer = ((values > 0) | flat).all(3) & (parallel | ~apart)
    peak = (
        log_mass.unsqueeze(2)
        - log_mass.unsqueeze(1)
        + torch.where(flat, 0, slopes.square() / values / 2).sum(3)
    )
    return _Comparison(precisions, excess, gap, peak, values.amax(3), parallel, finer)


def two_constants(law: Components, abar: Tensor) -> ScoreConstants:
    r"""Two components of different covariance, exact.

    With :math:`w = \sigma(\Delta^* - t)` the weight of the finer one,
    :math:`|u^\top \delta|^2 \le 2 t\, u^\top E u` with equality where :math:`x - x^*` is along u.
    So the Jacobian is at most :math:`\kappa E - P` and at least :math:`-\sigma(\Delta^*) E - P`, P
    the smaller precision, with :math:`\kappa = \sup_t\, 2 t w (1-w) - w`, and the third derivative
    is largest along the top eigenvector of E: a one-dimensional mixture of precisions 0 and 1
    decides both suprema.
    """
    c = _compare(law, abar)
    if bool(c.parallel[:, 0, 1].any()):
        return many_constants(law, abar)
    forward = c.finer[:, 0, 1].reshape(-1, 1, 1)
    peak = torch.where(c.finer[:, 0, 1], c.peak[:, 0, 1], c.peak[:, 1, 0])
    excess = torch.where(forward, c.excess[:, 0, 1], c.excess[:, 1, 0])
    base = torch.where(forward, c.precisions[:, 1], c.precisions[:, 0])
    known = c.finer[:, 0, 1] | c.finer[:, 1, 0]
    spread = unit_search(torch.where(known, peak, 0))
    weight = torch.sigmoid(peak).reshape(-1, 1, 1)
    top = largest_eigenvalue(spread.L0.reshape(-1, 1, 1) * excess - base)
    L0 = torch.maximum(top, largest_eigenvalue(base + weight * excess))
    L1 = spread.L1 * largest_eigenvalue(excess).clamp(min=0) ** 1.5
    inf = torch.full_like(L0, math.inf)
    return ScoreConstants(
        torch.where(known, L0, inf),
        torch.where(known, L1, inf),
        ~known | spread.L0_exact,
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
    sharpest = torch.linalg.eigvalsh(c.precisions).amax((1, 2))
    L0, L1 = torch.maximum(sharpest, torch.stack(spreads).amin(0)), torch.stack(thirds).amin(0)
    no = torch.zeros_like(L0, dtype=torch.bool)
    return ScoreConstants(L0, L1, no, no)


def _by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """Bound of the Jacobian's top eigenvalue from ``sum_ij w_i w_j d_ij d_ij'``, over pairs, minus
    the least precision.
    """
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    bulge = _spread(_BOTH, c, c.peak)
    oriented = torch.where(c.finer[:, i, j, None, None], bulge[:, i, j], bulge[:, j, i])
    comparable = (c.finer[:, i, j] | c.finer[:, j, i]).all(1)
    top = largest_eigenvalue(oriented.sum(1)) - torch.linalg.eigvalsh(c.precisions).amin((1, 2))
    return torch.where(comparable, top, math.inf)


def _by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """The same from ``sum_i w_i d_ik d_ik' - sum_i w_i E_ik - P_k``; the second sum shifts t by
    1/2.
    """
    others = torch.arange(c.peak.shape[1]) != k
    bulge = _spread(_ONE, c, c.peak - 0.5)[:, others, k].sum(1)
    return torch.where(
        c.finer[:, others, k].all(1), largest_eigenvalue(bulge - c.precisions[:, k]), math.inf
    )


def _third_by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """``|E c^3| <= E |s - s'|^3`` with s' an independent copy, and ``Cov(P, s)`` as a sum over
    pairs.
    """
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    terms = 2 * _moment(_BOTH, c, 3) + 3 * torch.where(c.finer, c.top, 1) * _moment(_BOTH, c, 1)
    return torch.minimum(terms[:, i, j], terms[:, j, i]).sum(1)


def _third_by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """``E |c|^3 <= 8 E |s - s_k|^3``, and ``|Cov(P, s)| <= E |E_ik| (|d_ik| + E |d_ik|)``."""
    others = torch.arange(c.peak.shape[1]) != k
    top = torch.where(c.finer, c.top, 1)[:, others, k]
    cubes, reach = (_moment(_ONE, c, q)[:, others, k] for q in (3, 1))
    return (8 * cubes + 3 * (top + top.amax(1, keepdim=True)) * reach).sum(1)


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

    The logarithm is concave in t; the maximiser solves ``q / (2 t) = (log weight)'(peak - t)``.
    """
    low, high = torch.zeros_like(peak), peak.clamp(min=0) + q + 5
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        rising = q / (2 * t) > weight.slope(peak - t)
        low, high = torch.where(rising, t, low), torch.where(rising, high, t)
    return weight.log(peak - high).exp() * (2 * high) ** (q / 2) * (1 + SEARCH_TOLERANCE)


def _spread(weight: _Weight, c: _Comparison, peak: Tensor) -> Float[Tensor, "L K K n n"]:
    """A matrix above ``weight d d'`` for every x, where i is finer than j."""
    curved = _supremum(weight, peak, 2)[..., None, None] * c.excess
    constant = weight.largest * c.gap.unsqueeze(4) * c.gap.unsqueeze(3)
    return torch.where(c.parallel[..., None, None], constant, curved)


def _moment(weight: _Weight, c: _Comparison, q: int) -> Float[Tensor, "L K K"]:
    """``sup_x weight |d|^q``, infinite where i is not finer than j."""
    curved = _supremum(weight, c.peak, q) * c.top.clamp(min=0) ** (q / 2)
    return torch.where(
        c.finer, torch.where(c.parallel, weight.largest * c.gap.norm(dim=3) ** q, curved), math.inf
    )
