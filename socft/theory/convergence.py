"""Theorem 3.1 of arXiv 2412.18164v4: how far PI-FT is from the optimum after a number of updates."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from socft.checks import InvalidProblem, per_step
from socft.theory.chain import (
    ROUNDING,
    Chain,
    PerState,
    PerStep,
    positive_beta,
    proximal_step,
    require_each,
    shift_unit,
    times,
    vector,
)
from socft.theory.one_step import value_lipschitz
from socft.theory.regularity import Regularity


def control_error_bound(size: float, eps: float, gain: float, lam: float, rounds: int) -> float:
    """Lemma 3.3: ``|U_t^(m) - u*_t| <= q^m kappa L0V*_{t+1} + kappa eps_{t+1} / lam``; upper bound.

    The update map contracts by q (67) and moves u* by at most ``kappa eps``, so that m updates from
    ``|s - u*| <= kappa L0V*`` leave ``q^m |s - u*| + (1 + q + q^2 + ...) kappa eps``.

    Args:
        size: ``L0V*_{t+1}``, Lipschitz constant of the optimal value function.
        eps: ``sup |grad V_{t+1}^(m) - grad V*_{t+1}|``.
        gain: ``kappa_t`` for score units, ``rho_t`` for shifts, ``rho_t / sigma_t`` for whitened
            controls.
        rounds: m, the number of updates at this step.
    """
    return times((1 - lam) ** rounds, gain, size) + times(gain, eps) / lam


def value_gradient_error_bound(
    size: float, steepest: float, eps: float, mean_L0: float, lam: float, rounds: int
) -> float:
    """Lemma 3.4: ``eps_t <= M ( eps_{t+1} / lam + q^{m+1} (L0V*_{t+1} + Lb0_{t+1} / lam) )``; upper
    bound.

    By (55) the error is ``Jac m^T (G_m - grad G V*) + Jac delta_m^T (G_m - G_{m-1})``. The first
    bracket is at most K times the error of Lemma 3.3 (in shifts) plus eps, the second term at most
    ``q D q^m Lb0``.

    Args:
        size: ``L0V*_{t+1}``.
        steepest: ``Lb0_{t+1}``, Lipschitz constant of every iterate's value function.
    """
    unfinished = times((1 - lam) ** (rounds + 1), size + steepest / lam)
    return times(mean_L0, eps / lam + unfinished)


def envelope_error_bound(
    steepest: float, eps: float, mean_L0: float, lam: float, rho: float, third: float, rounds: int
) -> float:
    """``eps_t <= M ( eps_{t+1} + q^{2m} Lb0 ((1 + q)(q + m c) + q c / 2) ) / lam`` with ``c = third
    rho Lb0``; upper bound.

    Derived here: Lemma 3.4 with the square of its rate, because the two terms of (55) cancel to
    first order, as an envelope's must. With e the distance of delta_m from the fixed point delta of
    the update map, H the Hessian of G V there and H' its mean over the segment between, the
    envelope's gradient is off by ``((Jac delta - Jac delta_m)(I - rho H) + (I + Jac delta_m) rho (H
    - H')) e`` over rho, up to transposition, where ``|e| <= q^m rho Lb0``, ``rho |H - H'| <= q
    third |e| / 2`` and, by induction over m, ``|Jac delta - Jac delta_m| <= q^m (q + m c) / lam``.
    And changing V_{t+1} by eps changes the finished envelope's gradient, delta / rho, by at most
    ``eps / lam``.

    Args:
        steepest: ``Lb0_{t+1}``.
        rho: ``sigma_t^2 / beta_t``.
        third: bound on ``|D^3 G V_{t+1}| / K``, of every iterate.
    """
    q, c = 1 - lam, times(third, rho, steepest)
    unfinished = times(
        q ** (2 * rounds), steepest, (1 + q) * (q + times(rounds, c)) + times(q, c) / 2
    )
    return times(mean_L0, eps + unfinished) / lam


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Theorem 3.1 unrolled: how far PI-FT is from the optimum after m_t updates at every step.

    Attributes:
        score: bound on ``sup |U_t^(m_t) - u*_t|`` in score units, shape (T,).
        shift: the same for shifts of the mean, ``g (U - s) / sqrt(a)``, shape (T,).
        whitened: the same for whitened controls, shape (T,).
        value_gradient: bound on ``sup |grad V_t^(m_t) - grad V*_t|``, shape (T + 1,), zero at T.
        rates: factor by which the bound on step t shrinks per additional update of all steps as m
            grows, shape (T,).
    """

    score: PerStep
    shift: PerStep
    whitened: PerStep
    value_gradient: PerState
    rates: PerStep


def convergence(
    chain: Chain, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor
) -> Convergence:
    """Theorem 3.1 with its constants, by Lemmas 3.3 and 3.4 from t = T - 1 down to 0; upper bounds.

    Args:
        iterates: constants of Lemma 3.2, from `iterate_constants` or `constants_at` with
            `Iterates`.
        beta: KL weights, one number or shape (T,), at least ``iterates.beta_required``.
        rounds: updates m_t, one number or shape (T,).

    Raises:
        InvalidProblem: beta is below the required one, or a number of updates is negative.
    """
    return _unroll(chain, iterates, beta, rounds, (_first_order,), guaranteed_rates(iterates.lam))


def sharp_convergence(
    chain: Chain, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor
) -> Convergence:
    """Theorem 3.1 with the smaller of Lemma 3.4 and `envelope_error_bound` at every step; upper
    bounds (derived here).

    Later steps then count with the squares of their rates: with m updates at every step and one
    lam, the control error is ``q^m kappa L0V*`` plus a term of order ``m q^{2m}``. Arguments and
    errors as in `convergence`.
    """
    return _unroll(
        chain, iterates, beta, rounds, (_first_order, _second_order), sharp_rates(iterates.lam)
    )


@dataclasses.dataclass(frozen=True)
class _Round:
    """The numbers of one step of Theorem 3.1."""

    size: float
    steepest: float
    eps: float
    mean_L0: float
    lam: float
    rho: float
    third: float
    rounds: int


def _first_order(x: _Round) -> float:
    return value_gradient_error_bound(x.size, x.steepest, x.eps, x.mean_L0, x.lam, x.rounds)


def _second_order(x: _Round) -> float:
    return envelope_error_bound(x.steepest, x.eps, x.mean_L0, x.lam, x.rho, x.third, x.rounds)


def _unroll(
    chain: Chain,
    iterates: Regularity,
    beta: float | Tensor,
    rounds: int | Tensor,
    lemmas: tuple[Callable[[_Round], float], ...],
    rates: PerStep,
) -> Convergence:
    rho, m = proximal_step(chain, _admitted(beta, iterates)).tolist(), _whole(rounds, chain.steps)
    M, lam = iterates.mean_L0.tolist(), iterates.lam.tolist()
    steepest, third = iterates.L0V.tolist(), iterates.third.tolist()
    size, errors, shifts = chain.reward_L0, [0.0], []
    for t in reversed(range(chain.steps)):
        shifts.append(control_error_bound(size, errors[-1], rho[t], lam[t], m[t]))
        step = _Round(size, steepest[t + 1], errors[-1], M[t], lam[t], rho[t], third[t], m[t])
        errors.append(min(lemma(step) for lemma in lemmas))
        size = value_lipschitz(size, M[t])
    shift = vector(shifts[::-1])
    return Convergence(
        shift_unit(chain) * shift, shift, shift / chain.sigma, vector(errors[::-1]), rates
    )


def _admitted(beta: float | Tensor, iterates: Regularity) -> PerStep:
    """The weights, refused where they are below what the constants require."""
    weights, required = positive_beta(beta, len(iterates.lam)), iterates.beta_required
    low = (weights < required * (1 - ROUNDING)).nonzero().flatten().tolist()
    if low:
        t = low[0]
        raise InvalidProblem(
            f"beta[{t}] = {weights[t]:g}; these constants need beta[{t}] >= {required[t]:g}, so"
            " raise it.",
        )
    return weights


def _whole(rounds: int | Tensor, steps: int) -> list[int]:
    counts = per_step(rounds, steps, "rounds")
    require_each(
        counts,
        lambda x: (x >= 0) & (x == x.round()),
        "rounds",
        "give a whole number of updates >= 0.",
    )
    return [int(x) for x in counts.tolist()]


def guaranteed_rates(lam: PerStep) -> PerStep:
    """``max_{s >= t} (1 - lam_s)``, the factor per update of all steps in Theorem 3.1 as m grows;
    equality for the bound, (T,).
    """
    return _largest_later(1 - lam)


def sharp_rates(lam: PerStep) -> PerStep:
    """``max(q_t, max_{s > t} q_s^2)``, ``q = 1 - lam``: the factor in `sharp_convergence` as m
    grows; tight, (T,).

    Attained by a linear-quadratic problem whose rates are ``sigma^2 |P_{t+1}| / beta = q_t``.
    """
    q = 1 - lam
    later = torch.cat([_largest_later(q.square())[1:], q.new_zeros(1)])
    return torch.maximum(q, later)


def _largest_later(values: PerStep) -> PerStep:
    return values.flip(0).cummax(0).values.flip(0)


def quadratic_rate(sigma: PerStep, beta: float | Tensor, curvature: PerStep) -> float:
    """``max_t sigma_t^2 |P_{t+1}| / beta_t``: rate of PI-FT's largest error on a linear-quadratic
    problem; equality (derived here).

    The update of a shift is the affine map ``delta <- rho (P (x + delta) + q)``, whose slowest
    error mode shrinks by ``rho |P|``. The error of one step's control has the rates of
    `sharp_rates`, whose largest is this one.

    Args:
        curvature: ``|P_{t+1}|``, spectral norms of the optimal value's Hessians, shape (T,).
    """
    weights = positive_beta(beta, len(sigma))
    return float((sigma.square() * per_step(curvature, len(sigma), "curvature") / weights).max())
