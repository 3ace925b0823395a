r"""How far `socft.truth.mixture.TiltedMixture` is from the exact value in floating point, by its
closed form in ball arithmetic.

Under a quadratic reward a component ``w N(m, S)`` becomes, with ``E = I - S P / beta``,
:math:`w z\, N(E^{-1} (m + S q / \beta), E^{-1} S)`,
:math:`\log z = m' (P/\beta) E^{-1} m / 2 + (q/\beta)' E^{-1} (m + S q / (2 \beta))
- \log\det E / 2`; the value is :math:`c + \beta` times the log ratio of the two noised mixtures.
"""

from __future__ import annotations

import dataclasses
import math

import flint
import torch
from flint import arb, arb_mat
from jaxtyping import Float
from torch import Tensor

from socft.density import Density, GaussianMixture, Rotated
from socft.reward import PerSample, Quadratic
from socft.truth.balls import balls, identity, log_det, norm

BITS = 1024
"""Enough for exponents of 1e50 and conditions of 1e200."""


@dataclasses.dataclass(frozen=True)
class TiltErrors:
    """What a value and its gradient are off by at given states, from above.

    Attributes:
        value: shape (batch,).
        gradient: in Euclidean norm, shape (batch,).
    """

    value: PerSample
    gradient: PerSample


@dataclasses.dataclass(frozen=True)
class _Component:
    """``exp(log_mass) N(mean, cov)``."""

    log_mass: arb
    mean: arb_mat
    cov: arb_mat


def tilt_errors(
    density: Density,
    form: Quadratic,
    beta: float,
    level: Float[Tensor, " batch"],
    x: Float[Tensor, "batch n"],
    found: tuple[PerSample, Float[Tensor, "batch n"]],
) -> TiltErrors:
    """Errors of computed values and gradients at levels below 1 and states; infinite for densities
    that are no mixtures.
    """
    with flint.ctx.workprec(BITS):
        rows = []
        for a, state, value, gradient in zip(level.tolist(), x, *found, strict=True):
            exact = _exact(density, form, arb(beta), arb(a), balls(state))
            if exact is None:
                rows.append((math.inf, math.inf))
                continue
            missed = arb_mat([[exact[0] - arb(float(value))]])
            rows.append((norm(missed), norm(exact[1] - balls(gradient))))
    value, gradient = torch.tensor(rows, dtype=torch.float64).unbind(1)
    return TiltErrors(value, gradient)


def _exact(
    density: Density, form: Quadratic, beta: arb, level: arb, x: arb_mat
) -> tuple[arb, arb_mat] | None:
    """Value and gradient."""
    if isinstance(density, GaussianMixture):
        P, q = balls(form.P), balls(form.linear)
        value, slope = _mixture(density, P * (1 / beta), q * (1 / beta), level, x)
        return arb(float(form.c)) + beta * value, slope * beta
    if not isinstance(density, Rotated):
        return None
    Q = balls(density.rotation)
    P, q, z = (
        Q.transpose() * balls(form.P) * Q,
        Q.transpose() * balls(form.linear),
        Q.transpose() * x,
    )
    total, slopes = arb(float(form.c)), []
    for i, factor in enumerate(density.factors):
        bent, pull, at = (arb_mat([[each]]) for each in (P[i, i] / beta, q[i, 0] / beta, z[i, 0]))
        value, slope = _mixture(factor, bent, pull, level, at)
        total += beta * value
        slopes.append([slope[0, 0] * beta])
    return total, Q * arb_mat(slopes)


def _mixture(
    law: GaussianMixture, P: arb_mat, q: arb_mat, level: arb, x: arb_mat
) -> tuple[arb, arb_mat]:
    """Log ratio of the noised tilted mixture to the noised mixture, and its gradient."""
    plain = _components(law)
    tilted = [_tilted(each, P, q) for each in plain]
    (above, up), (below, down) = (_log_density(each, level, x) for each in (tilted, plain))
    return above - below, up - down


def _components(law: GaussianMixture) -> list[_Component]:
    found = []
    for k in range(law.components):
        j = 0 if law.shared else k
        basis = balls(law.bases[j])
        cov = basis * balls(torch.diag(law.spectra[j])) * basis.transpose()
        found.append(_Component(arb(float(law.weights[k])).log(), balls(law.means[k]), cov))
    return found


def _tilted(part: _Component, P: arb_mat, q: arb_mat) -> _Component:
    E = identity(P.nrows()) - part.cov * P
    own, pushed = E.solve(part.mean), E.solve(part.cov * q)
    exponent = part.mean.transpose() * P * own + q.transpose() * (2 * own + pushed)
    log_mass = part.log_mass + (exponent[0, 0] - E.det().log()) / 2
    return _Component(log_mass, own + pushed, E.solve(part.cov))


def _log_density(parts: list[_Component], level: arb, x: arb_mat) -> tuple[arb, arb_mat]:
    """Of a noised mixture, and its score, up to a constant that all mixtures share."""
    logs, scores = [], []
    for part in parts:
        cov = part.cov * level + identity(x.nrows()) * (1 - level)
        cov = (cov + cov.transpose()) * (arb(1) / 2)
        away = part.mean * level.sqrt() - x
        score, volume = cov.solve(away), log_det(cov)
        logs.append(part.log_mass - ((away.transpose() * score)[0, 0] + (volume or arb("nan"))) / 2)
        scores.append(score)
    top = max((each.mid() for each in logs), default=arb(0))
    masses = [(each - top).exp() for each in logs]
    total = sum(masses, arb(0))
    mixed = arb_mat(x.nrows(), 1, [arb(0)] * x.nrows())
    for mass, score in zip(masses, scores, strict=True):
        mixed += score * (mass / total)
    return top + total.log(), mixed
