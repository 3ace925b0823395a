"""Theorem 3.1 of arXiv 2412.18164v4: how far PI-FT is from the optimum after some updates."""

from __future__ import annotations

import dataclasses
from types import NoneType

import torch
from torch import Tensor

from socft.checks import InvalidProblem, numbers, per_step, require, require_each
from socft.theory.arguments import checked
from socft.theory.bounds import OneSidedBounds
from socft.theory.chain import ChainConstants, proximal_step, shift_unit
from socft.theory.numbers import (
    ROUNDING,
    StateValues,
    StepValues,
    positive_beta,
    product,
    vector,
    whole_rounds,
)
from socft.theory.one_step import value_lipschitz
from socft.theory.regularity import Lemma32, Regularity, collect, run_at
from socft.theory.smoothness import Approximation


@checked()
def control_error_bound(
    value_L0: float, gradient_error: float, step: float, lam: float, rounds: int
) -> float:
    """Lemma 3.3: ``|U_t^(m) - u*_t| <= q^m kappa L0V*_{t+1} + kappa eps_{t+1} / lam``; upper bound.

    The update map contracts by q (67) and moves u* by at most ``kappa eps``, so that m updates from
    ``|s - u*| <= kappa L0V*`` leave ``q^m |s - u*| + (1 + q + q^2 + ...) kappa eps``.

    Args:
        value_L0: ``L0V*_{t+1}``, Lipschitz constant of the optimal value function.
        gradient_error: ``sup |grad V_{t+1}^(m) - grad V*_{t+1}|``.
        step: ``kappa_t`` for score units, ``rho_t`` for shifts, ``rho_t / sigma_t`` for whitened
            controls.
        rounds: m, the number of updates at this step.
    """
    return product((1 - lam) ** rounds, step, value_L0) + product(step, gradient_error) / lam


@checked()
def value_gradient_error_bound(
    value_L0: float,
    iterates_L0: float,
    gradient_error: float,
    mean_L0: float,
    lam: float,
    rounds: int,
) -> float:
    """Lemma 3.4: ``eps_t <= M ( eps_{t+1} / lam + q^{m+1} (L0V*_{t+1} + Lb0_{t+1} / lam) )``; upper
    bound.

    By (55) the error is ``Jac m^T (G_m - grad G V*) + Jac delta_m^T (G_m - G_{m-1})``. The first
    bracket is at most K times the error of Lemma 3.3 (in shifts) plus eps, the
    second term at most ``q D q^m Lb0``.

    Args:
        value_L0: ``L0V*_{t+1}``.
        iterates_L0: ``Lb0_{t+1}``, Lipschitz constant of every iterate's value function.
    """
    unfinished = product((1 - lam) ** (rounds + 1), value_L0 + iterates_L0 / lam)
    return product(mean_L0, gradient_error / lam + unfinished)


@checked()
def envelope_error_bound(
    iterates_L0: float,
    gradient_error: float,
    mean_L0: float,
    lam: float,
    rho: float,
    third_derivative_ratio: float,
    rounds: int,
) -> float:
    """``eps_t <= M ( eps_{t+1} / lam + q^{2m} Lb0 (q + c (m + q (1 - q^{2m}) / (2 lam)) / lam) )``
    with ``c = tau rho Lb0``; upper bound, tight for c = 0: attained by quadratic rewards.

    Derived here: Lemma 3.4 with the square of its rate, because the two terms of (55) cancel to
    first order, as an envelope's must. Let ``e_j = delta_j - delta`` be the distance of the updates
    from their fixed point, H_j the Hessian of G V at the j-th, and ``N_j = I + Jac delta_j^T``,
    which is at most 1 / lam and obeys ``N_j = I + N_{j-1} rho H_{j-1}``. Since a gradient is a
    shift over rho, rho times the error of (55) is

        e_{m+1} - Jac delta_m^T (e_m - e_{m+1}) = e_{2m+1} - sum_{j<m} N_j rho (H_j - H'_k) d_k,

    where ``d_k = e_k - e_{k+1}``, ``j + k = 2m - 1`` and H'_k is the mean Hessian from delta_k to
    delta_{k+1}: exchanging H_j for H'_k turns ``rho H_j d_k`` into ``d_{k+1}``. Here
    ``|e_j|`` and ``|d_j|`` are at most ``q^j rho Lb0``, so that
    ``rho |H_j - H'_k| <= q c (q^j + q^k (1 + q) / 2)``. So the m-th iterate's gradient is as close
    to the optimal one as iterate 2m + 1 is to its limit, up to the change of the curvature. And
    changing V_{t+1} by eps changes the finished envelope's gradient, delta / rho, by at most
    ``eps / lam``.

    Args:
        iterates_L0: ``Lb0_{t+1}``.
        rho: ``sigma_t^2 / beta_t``.
        third_derivative_ratio: tau, bound on ``|D^3 G V_{t+1}| / K``, of every iterate.
    """
    q, c = 1 - lam, product(third_derivative_ratio, rho, iterates_L0)
    bend = product(c, rounds + q * (1 - q ** (2 * rounds)) / (2 * lam)) / lam
    unfinished = product(q ** (2 * rounds), iterates_L0, q + bend)
    return product(mean_L0, gradient_error / lam + unfinished)


@checked()
def value_gap_bound(steepest: float, rho: float, b: float, q: float, rounds: int) -> float:
    """``v_t - v_{t+1} <= min(1, (1 + b) q^{2m}) rho Lb0^2 / 2`` with ``v = sup (V* - V^(m))``;
    upper bound (derived here).

    Smoothing and envelope carry ``v_{t+1}`` over unchanged; m updates from 0 leave
    ``|delta_m - delta| <= q^m rho Lb0`` of the maximiser, at which the gradient vanishes and the
    curvature is at most ``(1 + b) / rho``, ``b = rho K-``. Updates never lower the value.

    Args:
        steepest: ``Lb0_{t+1}``, of the iterate's value function.
    """
    return min(1.0, (1 + b) * q ** (2 * rounds)) * product(rho, steepest, steepest) / 2


@dataclasses.dataclass(frozen=True)
class Convergence:
    """Theorem 3.1 unrolled: how far PI-FT is from the optimum after m_t updates at every step.

    Attributes:
        score: bound on ``sup |U_t^(m_t) - u*_t|`` in score units, shape (T,).
        shift: the same for shifts of the mean, ``g (U - s) / sqrt(a)``, shape (T,).
        whitened: the same for whitened controls, shape (T,).
        value_gradient: bound on ``sup |grad V_t^(m_t) - grad V*_t|``, shape (T + 1,), zero at T.
        value: bound on ``sup (V*_t - V_t^(m_t))``, shape (T + 1,), zero at T: errors of values are
            added up, not multiplied.
        rates: factor by which the bound on step t shrinks per additional update of all steps as m
            grows, shape (T,).
    """

    score: StepValues
    shift: StepValues
    whitened: StepValues
    value_gradient: StateValues
    value: StateValues
    rates: StepValues

    @property
    def objective_gap(self) -> float:
        """Bound on ``J(u*) - J(U^(m))``."""
        return float(self.value[0])


@checked(chain=ChainConstants, iterates=Regularity)
def convergence(
    chain: ChainConstants, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor
) -> Convergence:
    """Theorem 3.1 with its constants, by Lemmas 3.3 and 3.4 from t = T - 1 down to 0; upper bounds.

    Args:
        iterates: constants of Lemma 3.2, from `iterate_constants` or `constants_at` with
            `Lemma32`.
        beta: KL weights, one number or shape (T,), at least ``iterates.beta_required``.
        rounds: updates m_t, one number or shape (T,).

    Raises:
        InvalidProblem: beta is below the required one, or a number of updates is negative.
    """
    return _unroll(chain, iterates, beta, rounds, guaranteed_rates(iterates.lam), sharp=False)


@checked(chain=ChainConstants, iterates=Regularity)
def sharp_convergence(
    chain: ChainConstants, iterates: Regularity, beta: float | Tensor, rounds: int | Tensor
) -> Convergence:
    """Theorem 3.1 with the smaller of Lemma 3.4 and `envelope_error_bound` at every step; upper
    bounds (derived here).

    Later steps then count with the squares of their rates: with m updates at every step and one
    lam, the control error is ``q^m kappa L0V*`` plus a term of order ``m q^{2m}``. Arguments and
    errors as in `convergence`.
    """
    return _unroll(chain, iterates, beta, rounds, sharp_rates(iterates.lam), sharp=True)


def _unroll(
    chain: ChainConstants,
    iterates: Regularity,
    beta: float | Tensor,
    rounds: int | Tensor,
    rates: StepValues,
    *,
    sharp: bool,
) -> Convergence:
    """Backward in t: the errors of controls and gradients, the latter of Lemma 3.4 or, where
    ``sharp``, of the smaller bound.
    """
    rho = proximal_step(chain, _admitted(beta, iterates)).tolist()
    m, M, lam = whole_rounds(rounds, chain.steps), iterates.mean_L0.tolist(), iterates.lam.tolist()
    iterates_L0, ratio = iterates.L0V.tolist(), iterates.third_derivative_ratio.tolist()
    value_L0, errors, gaps, shifts = chain.reward_L0, [0.0], [0.0], []
    for t in reversed(range(chain.steps)):
        shifts.append(control_error_bound(value_L0, errors[-1], rho[t], lam[t], m[t]))
        steepest = iterates_L0[t + 1]
        error = value_gradient_error_bound(value_L0, steepest, errors[-1], M[t], lam[t], m[t])
        if sharp:
            envelope = envelope_error_bound(
                steepest, errors[-1], M[t], lam[t], rho[t], ratio[t], m[t]
            )
            error = min(error, envelope)
        errors.append(error)
        gaps.append(gaps[-1] + value_gap_bound(steepest, rho[t], 1 - lam[t], 1 - lam[t], m[t]))
        value_L0 = value_lipschitz(value_L0, M[t])
    shift = vector(shifts[::-1])
    return Convergence(
        score=shift_unit(chain) * shift,
        shift=shift,
        whitened=shift / chain.sigma,
        value_gradient=vector(errors[::-1]),
        value=vector(gaps[::-1]),
        rates=rates,
    )


@checked(chain=ChainConstants, bounds=(OneSidedBounds, NoneType))
def one_sided_convergence(
    chain: ChainConstants,
    beta: float | Tensor,
    rounds: int | Tensor,
    bounds: OneSidedBounds | None = None,
) -> Convergence:
    """Theorem 3.1 with one-sided constants, proved in `socft.theory.one_sided`; upper bounds
    (derived here).

    The constants of the iterates are those of exactly these numbers of updates. The error in front
    of a step is bounded by the errors of gradients or of values, whichever is less, so that no
    product over steps is left in it.

    Args:
        beta: KL weights, one number or shape (T,).
        rounds: updates m_t, one number or shape (T,).
        bounds: the relaxation of the inner iteration; undamped by default.

    Raises:
        InvalidProblem: beta is too small for these iterates, or a number of updates is negative.
    """
    bounds = bounds or OneSidedBounds()
    statement = Lemma32(bounds, rounds)
    steps, states = run_at(chain, beta, statement)
    fronts = [x for x in states if isinstance(x, Approximation)]
    shift = vector(
        bounds.loop(step).control_error(front.optimum.L0, front.smoothed_error(step.sigma))
        for step, front in zip(steps, fronts[1:], strict=True)
    )
    found = collect(chain, statement, steps, states)
    return Convergence(
        score=shift_unit(chain) * shift,
        shift=shift,
        whitened=shift / chain.sigma,
        value_gradient=vector(x.gradient_error for x in fronts),
        value=vector(x.gap for x in fronts),
        rates=sharp_rates(1 - found.rate),
    )


def _admitted(beta: float | Tensor, iterates: Regularity) -> StepValues:
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


def guaranteed_rates(lam: StepValues) -> StepValues:
    """``max_{s >= t} (1 - lam_s)``, the factor per update of all steps in Theorem 3.1 as m grows;
    equality for the bound, (T,).
    """
    return _largest_later(1 - _design(lam))


def sharp_rates(lam: StepValues) -> StepValues:
    """``max(q_t, max_{s > t} q_s^2)``, ``q = 1 - lam``: the factor in `sharp_convergence` as m
    grows; tight, (T,).

    Attained by a linear-quadratic problem whose rates are ``sigma^2 |P_{t+1}| / beta = q_t``.
    """
    q = 1 - _design(lam)
    later = torch.cat([_largest_later(q.square())[1:], q.new_zeros(1)])
    return torch.maximum(q, later)


def _design(lam: StepValues) -> StepValues:
    found = numbers(lam, "lam", ("steps",))
    require(len(found) > 0, "lam has shape (0,); give one design constant per step.")
    require_each(found, lambda x: (x >= 0) & (x <= 1), "lam", "it must lie in [0, 1].")
    return found


def _largest_later(values: StepValues) -> StepValues:
    return values.flip(0).cummax(0).values.flip(0)


def quadratic_rate(sigma: StepValues, beta: float | Tensor, curvature: StepValues) -> float:
    """``max_t sigma_t^2 |P_{t+1}| / beta_t``: rate of PI-FT's largest error on a linear-quadratic
    problem; equality (derived here).

    The update of a shift is the affine map ``delta <- rho (P (x + delta) + q)``, whose slowest
    error mode shrinks by ``rho |P|``. The error of one step's control has the rates of
    `sharp_rates`, whose largest is this one.

    Args:
        curvature: ``|P_{t+1}|``, spectral norms of the optimal value's Hessians, shape (T,).
    """
    scales = numbers(sigma, "sigma", ("steps",))
    require(len(scales) > 0, "sigma has shape (0,); give one noise scale per step.")
    weights = positive_beta(beta, len(scales))
    return float((scales.square() * per_step(curvature, len(scales), "curvature") / weights).max())
