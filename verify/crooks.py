r"""Under the optimal path law the work is distributed as under the policy, tilted by itself; so
what a policy lacks is a divergence.

Setting: as in Jarzynski's identity, with the optimal path law :math:`dP^* = e^{r/\beta} dP^0/Z` and
the work :math:`W = r(x_T)/\beta - \sum_k (|v_k|^2/2 + v_k \cdot \xi_k)` of a policy v.

Statement: $P^*(W ∈ d w) = (e^w\/Z) P_v (W ∈ d w)$ for every policy $v$, and $log Z − J(v)\/β =
op("KL")(P_v ∥ P^*) ≥ 0$

:math:`e^W/Z` is the density of P* with respect to the policy's law, so this is the change of
measure for functions of W, the relation of Crooks (1999) for the chain. Equality in the second is
attained by no policy of a chain with random noise and curved reward, which moves means only; the
optimum's own gap is that of kernels (see the kernel gap) and of the start.

Kind: equality.

Source: derived here for the chain; Crooks 1999.

How it is measured: affine chains and policies in up to 4 dimensions: logarithms of :math:`E^* e^{t
W}` and of :math:`E_v e^{(1 + t) W}/Z` on both sides of t = 0 as determinants, one in the
coordinates of the pre-trained noise, one in those of the policy's; and the divergence of the two
Gaussian path laws.

What would refute it: two sides that differ by more than `ROUNDING`.
"""

from __future__ import annotations

import math

import torch
from hypothesis import assume, given, settings
from torch import Tensor

from verify.jarzynski import SEEDS, chain_of, drawn, work
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl, Form, reward_form, square
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.quadratics import PLANE_QUADRATIC
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Crooks' relation", topics.PATH_LAWS)
ROUNDING = 1e-8
"""Relative to one and the size of what is compared: determinants near singular ones."""
TILTS = (-0.5, -0.2, 0.1, 0.3)


def pre_trained_coordinates(chain: AffineChain, control: AffineControl) -> tuple[Form, Form]:
    """``r / beta`` and W as forms of the pre-trained chain's noise, which is ``v + xi`` on the
    same path.
    """
    S, s = chain.paths(chain.none)
    total = reward_form(chain, chain.none)
    reward = total.plus(total, 1 / float(chain.beta[0]) - 1)
    found = reward
    for k in range(chain.steps):
        free = [each[k] for each in chain.noises(chain.none)]
        v = control.K[k] @ S[k], control.K[k] @ s[k] + control.o[k]
        found = found.plus(square(*free), -1.0).plus(square(free[0] - v[0], free[1] - v[1]))
    return reward, found


def divergence(chain: AffineChain, control: AffineControl) -> float:
    """``KL(P^v || P*)`` of the Gaussian laws of the start and of ``v + xi``."""
    S, s = chain.noises(control)
    n = chain.A.shape[1]
    first = torch.eye(n, S.shape[2], dtype=torch.float64)
    L, mean = torch.cat([first, S.flatten(0, 1)]), torch.cat([torch.zeros(n), s.flatten()])
    tilt, _ = pre_trained_coordinates(chain, control)
    precision = torch.eye(len(L), dtype=torch.float64) - tilt.H
    apart = mean - torch.linalg.solve(precision, tilt.g)
    spread = (precision @ L @ L.mT).trace() - len(L) + apart @ precision @ apart
    logs = torch.linalg.slogdet(precision).logabsdet + 2 * torch.linalg.slogdet(L).logabsdet
    return float(spread - logs) / 2


def sides(chain: AffineChain, control: AffineControl, t: float) -> tuple[float, float]:
    """Logarithms of ``E* e^(t W)`` and ``E_v e^((1 + t) W) / Z``."""
    own, (tilt, same) = work(chain, control), pre_trained_coordinates(chain, control)
    log_Z = tilt.log_mean_exp()
    return tilt.plus(same, t).log_mean_exp() - log_Z, own.plus(own, t).log_mean_exp() - log_Z


@settings(max_examples=30)
@given(quadratic_instances(steps=6, dims=4), SEEDS, numbers(0, 0.6))
def test_holds(instance: QuadraticInstance, seed: int, size: float) -> None:
    """Where both are finite, and both are or none is."""
    chain = chain_of(instance)
    control = drawn(chain, seed, size)
    where = instance.describe() | {"policy": seed, "size": size}
    log_Z = work(chain, chain.none).log_mean_exp()
    assume(math.isfinite(log_Z))
    for t in TILTS:
        left, right = sides(chain, control, t)
        CLAIM.equals(float(math.isinf(left)), float(math.isinf(right)), where, 0.5, "finiteness")
        if math.isfinite(left):
            gap = (left - right) / (1 + abs(left))
            CLAIM.equals(gap, 0.0, where | {"t": t}, ROUNDING, "law of the work")
    gap, mean = divergence(chain, control), work(chain, control).mean
    scale = 1 + abs(log_Z) + abs(mean) + gap
    CLAIM.equals((log_Z - mean - gap) / scale, 0.0, where, ROUNDING, "divergence")
    CLAIM.holds(max(-gap, 0.0), 0.0, where, floor=ROUNDING, part="sign")


def test_vanishes_for_linear_rewards() -> None:
    """There the optimal path law moves means only, and from one start its work does not vary."""
    chain = chain_of(PLANE_QUADRATIC)
    linear = PLANE_QUADRATIC.problem(1.0)
    straight = AffineChain(
        chain.A, chain.b, chain.B, chain.beta, torch.zeros_like(chain.P), chain.q, linear
    )
    o = [straight.q]
    for A in straight.A.flip(0)[:-1]:
        o.append(A.mT @ o[-1])
    pushed = torch.stack(o[::-1]).unsqueeze(2)
    offset = (straight.B.mT @ pushed).squeeze(2) / straight.beta[:, None]
    form = work(straight, AffineControl(torch.zeros_like(straight.none.K), offset))
    n = straight.A.shape[1]
    CLAIM.equals(_size(form.H), 0.0, PLANE_QUADRATIC, ROUNDING, "linear reward")
    CLAIM.equals(_size(form.g[n:]), 0.0, PLANE_QUADRATIC, ROUNDING, "linear reward, later noise")
    CLAIM.breaks(_size(form.g[:n]), ROUNDING, PLANE_QUADRATIC, "one start")


def _size(each: Tensor) -> float:
    return float(each.abs().max())


def test_needs_the_weight() -> None:
    """The laws themselves differ."""
    chain = chain_of(PLANE_QUADRATIC)
    control = drawn(chain, 3, 0.3)
    tilt, same = pre_trained_coordinates(chain, control)
    left = tilt.plus(same, 0.1).log_mean_exp() - tilt.log_mean_exp()
    own = work(chain, control)
    right = own.plus(own, 0.1 - 1).log_mean_exp()
    CLAIM.breaks(abs(left - right), 0.01, PLANE_QUADRATIC, "$e^w$")


def test_needs_the_order_of_the_two_laws() -> None:
    """``log Z - J / beta`` is not the divergence of P* from the policy's law."""
    chain = chain_of(PLANE_QUADRATIC)
    control = drawn(chain, 3, 0.3)
    tilt, same = pre_trained_coordinates(chain, control)
    log_Z, eps = tilt.log_mean_exp(), 1e-4
    up, down = (tilt.plus(same, t).log_mean_exp() for t in (eps, -eps))
    other = (up - down) / (2 * eps) - log_Z
    mean = work(chain, control).mean
    CLAIM.breaks(abs(other - (log_Z - mean)), 0.01, PLANE_QUADRATIC, '$op("KL")(P^* ∥ P_v)$')
