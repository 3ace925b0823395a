r"""Many small tilts of first order make one exponential tilt, up to one over their number.

Setting: N rounds, each of which multiplies the law by :math:`1 + r/(\beta N)` and normalises, so
that after them :math:`q_N = p (1 + r/(\beta N))^N/Z_N`; :math:`q = p\,e^{r/\beta}/Z` the tilt;
:math:`|r| < \beta N`.

Statement: $N op("TV") (q_N, q) → bb(E)_q |r^2 − bb(E)_q r^2|\/(4 β^2)$ as $N → ∞$, and $q_N\/q − 1
= −(r^2 − bb(E)_q r^2)\/(2 β^2 N) + O(1\/N^2)$

By :math:`N\log(1 + r/(\beta N)) = r/\beta - r^2/(2\beta^2 N) + O(1/N^2)`.

Kind: limit.

Source: derived here; the iteration is that of arXiv 2512.03234.

How it is measured: densities on a grid, for random mixtures and bounded rewards, with N doubled.

What would refute it: another limit, or an error of the limit that does not halve with 2 N.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import GaussianMixture
from verify.endpoint_covariance import ENDPOINTS, mixtures
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Iterated tilts", topics.ITERATIONS)
ROUNDS = (256, 512)
NEXT = 0.02
"""Share of the next order at these numbers, for strengths up to 2."""
HALVED = 0.02


def normalised(log_density: Tensor) -> Tensor:
    """As probabilities of the grid."""
    return torch.softmax(log_density, 0)


def tilted(law: GaussianMixture, reward: Tensor, rounds: int, order: int = 1) -> Tensor:
    """After that many tilts of first or second order with beta = 1."""
    step = reward / rounds
    factor = 1 + step + (step.square() / 2 if order == 2 else 0)
    return normalised(law.log_prob(ENDPOINTS[:, None]) + rounds * factor.log())


def distance(p: Tensor, q: Tensor) -> float:
    """In total variation."""
    return float((p - q).abs().sum()) / 2


def bounded(strength: float, frequency: float, phase: float) -> Tensor:
    """A reward on the grid."""
    return strength * torch.tanh(frequency * ENDPOINTS + phase)


@settings(max_examples=40)
@given(mixtures(), numbers(0.3, 2), numbers(0.3, 3), numbers(-2, 2))
def test_holds(law: GaussianMixture, strength: float, frequency: float, phase: float) -> None:
    """Densities and total variation."""
    reward = bounded(strength, frequency, phase)
    tilt = normalised(law.log_prob(ENDPOINTS[:, None]) + reward)
    square = reward.square() - tilt @ reward.square()
    limit = float(tilt @ square.abs()) / 4
    where = {"strength": strength, "frequency": frequency, "phase": phase}
    scale = 1 + strength**4
    for N in ROUNDS:
        found = tilted(law, reward, N)
        CLAIM.equals(N * distance(found, tilt) / limit, 1.0, where | {"N": N}, NEXT * scale, "TV")
        off = (N * (found / tilt - 1) + square / 2)[tilt > 1e-12]
        CLAIM.equals(off, 0 * off, where | {"N": N}, 2 * scale**1.5 / N, "density")


def test_is_of_order_one_over_N() -> None:
    """The limit is approached as 1 / N, on two modes with ``r = 1.5 tanh 2x``."""
    law, reward = GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.3), bounded(1.5, 2.0, 0.0)
    tilt = normalised(law.log_prob(ENDPOINTS[:, None]) + reward)
    square = reward.square() - tilt @ reward.square()
    limit = float(tilt @ square.abs()) / 4
    coarse, fine = (
        (N * (tilted(law, reward, N) / tilt - 1) + square / 2).abs().max() for N in (128, 256)
    )
    where = {"N": [128, 256], "limit": limit}
    CLAIM.equals(float(fine / coarse), 0.5, where, HALVED, "error of the limit")
    CLAIM.finding(f'$r = 1.5 tanh 2 x$ on two modes: $N op("TV") → {limit:.4f}$', where)


def test_needs_tilts_of_first_order() -> None:
    """With the second order in each round the error is of order 1 / N^2."""
    law, reward = GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.3), bounded(1.5, 2.0, 0.0)
    tilt = normalised(law.log_prob(ENDPOINTS[:, None]) + reward)
    first, second = (64 * distance(tilted(law, reward, 64, order), tilt) for order in (1, 2))
    CLAIM.breaks(first, 10 * second, {"N": 64}, "first order")
    again = 128 * distance(tilted(law, reward, 128, 2), tilt)
    CLAIM.equals(again / second, 0.5, {"N": [64, 128]}, HALVED, "second order")


def test_needs_a_bounded_reward() -> None:
    """Where r < -beta N a density would be negative."""
    reward = 3.0 * ENDPOINTS
    least = float((1 + reward / 8).min())
    CLAIM.breaks(-least, 0.0, {"r": "3 x", "N": 8}, "$|r| < β N$")
