r"""What one sampling step of a flow model does to the covariance.

Setting: rectified flow, :math:`x_s = (1 - s) x_0 + s \epsilon` at level s exactly distributed; one
kernel of the DDIM form with correlation :math:`\rho`, or one Euler-Maruyama step with diffusion
:math:`\varsigma` and :math:`\Delta = s' - s < 0`, to level :math:`s' < s`;
:math:`y = \epsilon - x_0`.

Statement: $op("Cov")(x_(s')) − op("Cov")(x') = J^2 bb(E) op("Cov")(y | x_s) ⪰ 0$ for every kernel
of the DDIM form and every data law, $J = ρ s' (1 − s) − (1 − s') s$; an Euler-Maruyama step on
$N(m, S)$ adds $(Δ^2\/c) ((s − (1 − s) S) ς^2 + ς^4\/4 − S)$, $c = (1 − s)^2 S + s^2$, of either
sign

The mean is exact in both. With :math:`x_{s'} - x' = J (E[y|x_s] - y)` plus noises of equal size,
for a noise of level s' that has correlation :math:`\rho` with that of level s, the first is the law
of total covariance.

Kind: equality.

Source: derived here; the kernels are of arXiv 2010.02502, 2505.05470 and 2605.23522.

How it is measured: the left side from the mean map of the chain, by the trapezoidal rule over the
law of x_s for random mixtures of up to three modes, in closed form for Gaussians in up to 8
dimensions; the right side from the posterior of each component. The sign also in ball arithmetic.

What would refute it: a residual above `ROUNDING`, or a negative defect.
"""

from __future__ import annotations

import flint
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.density import Gaussian, GaussianMixture
from socft.flow import (
    FlowSchedule,
    affine_flow_reference,
    cps,
    dance_sde,
    flow_ddim,
    flow_reference,
    flow_sde,
    precise,
)
from verify.support import topics
from verify.support.claims import Claim
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Covariance of one step", topics.FLOW)
ROUNDING = 1e-12
"""Absolute, for states of size one."""
NODES, WIDTH = 6001, 14.0
PRECISION = 200
DDIM_FORM = {"ddim": flow_ddim, "precise": precise, "cps": cps}
EULER = {"flow-sde": flow_sde, "dance-sde": dance_sde}


@st.composite
def mixtures(draw: st.DrawFn) -> GaussianMixture:
    """Up to three modes on the line."""
    weights = draw(st.lists(numbers(0.1, 1), min_size=1, max_size=3))
    means = [draw(numbers(-2, 2)) for _ in weights]
    spreads = [draw(numbers(0.05, 2)) for _ in weights]
    total = sum(weights)
    return GaussianMixture([w / total for w in weights], means, spreads)


@st.composite
def steps(draw: st.DrawFn) -> tuple[float, float]:
    """Levels s > s' of one step."""
    s = draw(numbers(0.1, 0.95))
    return s, round(s * draw(numbers(0.2, 0.95)), 6)


def moments(law: GaussianMixture, schedule: FlowSchedule) -> tuple[Tensor, Tensor, Tensor]:
    """Of one step from the exact law: the error of the mean, what the variance lacks, and
    ``J^2 E Var(y | x)``.
    """
    chain, level = flow_reference(law, schedule), schedule.levels
    a, s = level.signal, level.noise
    spread = float((a[0].square() * law.covariance + s[0].square()).sqrt())
    grid = torch.linspace(-WIDTH, WIDTH, NODES, dtype=torch.float64)
    x = (float(a[0]) * law.mean + spread * grid)[:, None]
    scale = float((a[0].square() + s[0].square()).sqrt())
    weight = law.noised_log_prob(float(a[0] / scale) ** 2, x / scale).exp()
    weight = weight / weight.sum()
    there = chain.mean(0, x)[:, 0]
    mean = (weight * there).sum()
    variance = (weight * (there - mean).square()).sum() + schedule.sigma[0].square()
    true_mean = a[1] * law.mean[0]
    true_variance = a[1].square() * law.covariance[0, 0] + s[1].square()
    lacking = schedule.velocity_weight[0].square() * (weight * posterior_variance(law, schedule, x))
    return mean - true_mean, true_variance - variance, lacking.sum()


def posterior_variance(law: GaussianMixture, schedule: FlowSchedule, x: Tensor) -> Tensor:
    """``Var(eps - x_0 | x)`` from the posteriors of the components, shape (batch,)."""
    a, s = schedule.starts.signal[0], schedule.starts.noise[0]
    S = law.covariances[:, 0, 0]
    c, centred = a.square() * S + s.square(), x - a * law.means[:, 0]
    mixing = torch.softmax(law.weights.log() - centred.square() / (2 * c) - c.log() / 2, 1)
    means = law.means[:, 0] + a * S / c * centred
    within, mean = S * s.square() / c, (mixing * means).sum(1, keepdim=True)
    return (mixing * (within + (means - mean).square())).sum(1) / s.square()


@settings(max_examples=60)
@given(mixtures(), steps(), st.sampled_from(sorted(DDIM_FORM)), numbers(0.05, 1))
def test_holds(
    law: GaussianMixture, times: tuple[float, float], kernel: str, noise_level: float
) -> None:
    """For mixtures and the kernels of the DDIM form."""
    schedule = DDIM_FORM[kernel](torch.tensor(times, dtype=torch.float64), noise_level)
    bias, defect, lacking = moments(law, schedule)
    where = {
        "weights": law.weights.tolist(),
        "means": law.means.flatten().tolist(),
        "variances": law.covariances.flatten().tolist(),
        "s": list(times),
        "kernel": kernel,
        "noise level": noise_level,
    }
    CLAIM.equals(float(bias), 0.0, where, ROUNDING, "mean")
    CLAIM.equals(float(defect), float(lacking), where, ROUNDING, "DDIM form")
    CLAIM.holds(max(-float(defect), 0.0), 0.0, where, part="sign")


@settings(max_examples=40)
@given(
    st.lists(numbers(0, 3), min_size=1, max_size=8),
    steps(),
    st.sampled_from(sorted(EULER)),
    numbers(0.05, 1.5),
)
def test_holds_for_euler_maruyama(
    variances: list[float], times: tuple[float, float], kernel: str, noise_level: float
) -> None:
    """On Gaussians, each direction of which is one dimension."""
    schedule = EULER[kernel](torch.tensor(times, dtype=torch.float64), noise_level)
    S = torch.tensor(variances, dtype=torch.float64)
    law = Gaussian(torch.ones(len(S), dtype=torch.float64), torch.diag(S))
    chain = affine_flow_reference(law, schedule)
    s, dt = float(schedule.times[0]), float(schedule.times.diff())
    a, rate = 1 - s, float(schedule.sigma[0].square()) / -dt
    c = a**2 * S + s**2
    slope = chain.transition[0].diagonal()
    found = slope.square() * c + schedule.sigma[0].square()
    true = (1 - times[1]) ** 2 * S + times[1] ** 2
    expected = dt**2 / c * ((s - a * S) * rate + rate**2 / 4 - S)
    mean = slope * a + chain.offset[0]
    where = {"S": variances, "s": list(times), "kernel": kernel, "noise level": noise_level}
    scale = float(1 + expected.abs().max())
    CLAIM.equals(mean - (1 - times[1]), torch.zeros_like(S), where, ROUNDING, "mean")
    CLAIM.equals((found - true - expected) / scale, 0 * S, where, ROUNDING, "Euler-Maruyama")


def test_vanishes_for_point_masses() -> None:
    """Where the endpoint is known the velocity is, given x."""
    schedule = flow_ddim(torch.tensor([0.7, 0.3], dtype=torch.float64), 0.5)
    chain = affine_flow_reference(Gaussian(0.4, 0.0), schedule)
    left = 0.09 - float(chain.transition[0]) ** 2 * 0.49 - float(schedule.sigma[0]) ** 2
    CLAIM.equals(left, 0.0, {"S": 0.0}, ROUNDING, "point masses")


def test_needs_the_form() -> None:
    """An Euler-Maruyama step near noise adds covariance instead."""
    times = torch.tensor([0.9, 0.8], dtype=torch.float64)
    _, defect, lacking = moments(GaussianMixture([1.0], [0.0], 0.05), flow_sde(times, 0.7))
    CLAIM.breaks(float(lacking - defect), ROUNDING, {"S": 0.05, "s": [0.9, 0.8]}, "DDIM form")
    CLAIM.breaks(-float(defect), 0.0, {"S": 0.05, "s": [0.9, 0.8]}, "sign")


def test_certified() -> None:
    """Both sides for N(0, S) in balls, for DDIM(eta) with rational squares of the coefficients."""
    flint.ctx.prec = PRECISION
    for S in ("0.01", "0.5", "4"):
        for s, end, eta in (("0.9", "0.8", "0.3"), ("0.5", "0.1", "1"), ("0.2", "0.19", "0.7")):
            left, right = _exact(flint.arb(S), flint.arb(s), flint.arb(end), flint.arb(eta))
            where = {"S": float(S), "s": [float(s), float(end)], "eta": float(eta)}
            CLAIM.certified(abs(left - right), flint.arb("1e-50"), where, "DDIM form")
            CLAIM.certified(-left, flint.arb(0), where, "sign")


def _exact(
    S: flint.arb, s: flint.arb, end: flint.arb, eta: flint.arb
) -> tuple[flint.arb, flint.arb]:
    """What the variance lacks and ``J^2 S / c``, from the kernel's definition."""
    a, a_end = 1 - s, 1 - end
    ratio = end * a / (s * a_end)
    rho = (1 - eta**2 * (1 - ratio**2)).sqrt()
    c = a**2 * S + s**2
    slope = (a_end * a * S + rho * end * s) / c
    variance = slope**2 * c + end**2 * (1 - rho**2)
    return a_end**2 * S + end**2 - variance, (rho * end * a - a_end * s) ** 2 * S / c
