"""The closed-form value: against quadrature of its definition, the HJB equation, and its own
boundary values.
"""

from __future__ import annotations

import math
from typing import Any

import mpmath
import pytest
import torch
from scipy import integrate
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Density, Gaussian, GaussianMixture, Rotated
from socft.reward import Linear, Quadratic, Reward, Sine, Sum
from socft.truth.mixture import TiltedMixture

ALGEBRA = 1e-9  # relative: log densities of a few tens, differenced
ROUNDING = 1e-14  # relative to one and the value: some thirty operations of its size
QUADRATURE = 1e-8  # scipy's quad at its default tolerance
# the HJB equation's terms are of order one; second derivatives by automatic differentiation
RESIDUAL = 1e-9
STANDARD_ERRORS = 4.0

GENERATOR = torch.Generator().manual_seed(11)
WEIGHTS, MEANS, VARIANCES = [0.3, 0.7], [-1.0, 2.0], [0.5, 1.5]
LINE = GaussianMixture(WEIGHTS, MEANS, VARIANCES)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


def quadratic(*diagonal: float) -> Quadratic:
    q = torch.linalg.qr(randn(len(diagonal), len(diagonal))).Q
    return Quadratic(
        q @ torch.diag(torch.tensor(diagonal, dtype=torch.float64)) @ q.T, randn(len(diagonal)), 0.2
    )


def covariances(count: int, n: int) -> Tensor:
    roots = randn(count, n, n)
    return roots @ roots.mT / n + 0.3 * torch.eye(n, dtype=torch.float64)


Q3 = torch.linalg.qr(randn(3, 3)).Q
PROBLEMS: dict[str, tuple[Density, Reward, float]] = {
    "line, linear": (LINE, Linear(torch.tensor([0.8]), 0.3), 0.6),
    "line, concave": (LINE, Quadratic(torch.tensor([[-1.5]]), torch.tensor([2.0])), 0.4),
    "line, convex": (LINE, Quadratic(torch.tensor([[0.5]]), torch.tensor([-0.7])), 1.1),
    "plane": (
        GaussianMixture([0.2, 0.5, 0.3], 2 * randn(3, 2), covariances(3, 2)),
        quadratic(0.3, -1.0),
        1.9,
    ),
    "space": (
        Gaussian(randn(3), covariances(1, 3)[0]),
        Sum([quadratic(0.1, -0.4, -1.0), Linear(randn(3))]),
        1.3,
    ),
    "rotated": (Rotated(Q3, [LINE, LINE, Gaussian(0.5, 2.0)]), Linear(randn(3)), 0.8),
}
TRUTHS = {name: TiltedMixture(*problem) for name, problem in PROBLEMS.items()}


@pytest.mark.parametrize("name", [name for name in TRUTHS if name.startswith("line")])
@pytest.mark.parametrize("abar", [0.9, 0.4, 0.02])
def test_value_is_the_conditional_expectation(name: str, abar: float):
    """beta log E[exp(r(x0) / beta) | x] as a ratio of integrals over x0, the joint law written by
    hand.
    """
    truth = TRUTHS[name]
    for point in (-1.5, 0.4, 3.0):

        def joint(x0: float, point: float = point) -> float:
            parts = zip(WEIGHTS, MEANS, VARIANCES, strict=True)
            data = sum(w * math.exp(-((x0 - m) ** 2) / (2 * v)) / math.sqrt(v) for w, m, v in parts)
            return data * math.exp(-((point - abar**0.5 * x0) ** 2) / (2 * (1 - abar)))

        def weighted(x0: float) -> float:
            return joint(x0) * math.exp(
                float(truth.reward(torch.tensor([[x0]], dtype=torch.float64))) / truth.beta
            )

        peaks = [-1.0, 2.0, point / abar**0.5]
        above, below = (
            integrate.quad(f, -25, 25, points=peaks, limit=200)[0] for f in (weighted, joint)
        )
        value = float(truth.value(abar, torch.tensor([[point]], dtype=torch.float64)))
        assert value == pytest.approx(
            truth.beta * math.log(above / below), rel=QUADRATURE, abs=QUADRATURE
        )


def laplacian(gradient: Tensor, x: Tensor) -> Tensor:
    columns = [
        torch.autograd.grad(gradient[:, i].sum(), x, retain_graph=True)[0][:, i]
        for i in range(x.shape[1])
    ]
    return torch.stack(columns).sum(0)


def hjb_residual(truth: TiltedMixture, tau: float, x: Tensor, speed: float, beta: float) -> Tensor:
    """V_tau + q (x/2 + s).grad V + q/2 Lap V + q/(2 beta) |grad V|^2, abar(tau) = exp(-q (1 -
    tau)), by autograd.
    """
    y = x.clone().requires_grad_(True)
    time = torch.full((len(x),), tau, dtype=torch.float64, requires_grad=True)
    abar = torch.exp(-speed * (1 - time))
    value = truth.value(abar, y)
    gradient, rate = torch.autograd.grad(value.sum(), (y, time), create_graph=True)
    log_prob = truth.density.noised_log_prob(abar, y)
    (score,) = torch.autograd.grad(log_prob.sum(), y)
    drift = speed * (y / 2 + score)
    terms = rate + (drift * gradient).sum(1) + speed / 2 * laplacian(gradient, y)
    return (terms + speed / (2 * beta) * gradient.square().sum(1)).detach()


@pytest.mark.parametrize("name", list(TRUTHS))
def test_value_solves_the_hjb_equation(name: str):
    truth, x = TRUTHS[name], 2 * randn(20, PROBLEMS[name][0].dims[0])
    for tau in (0.05, 0.5, 0.97):
        residual = hjb_residual(truth, tau, x, 3.0, truth.beta)
        assert float(residual.abs().max()) < RESIDUAL
        wrong = hjb_residual(
            truth, tau, x, 3.0, 2 * truth.beta
        )  # the equation of another beta must not hold
        assert float(wrong.abs().max()) > 100 * RESIDUAL


@pytest.mark.parametrize("name", list(TRUTHS))
def test_value_at_the_ends(name: str):
    """The reward at level 1; at level 0, where the state says nothing of the sample, beta log Z."""
    truth, x = TRUTHS[name], 2 * randn(10, PROBLEMS[name][0].dims[0])
    assert torch.allclose(truth.value(1.0, x), truth.reward(x), rtol=ALGEBRA, atol=ALGEBRA)
    start = torch.full((10,), truth.beta * truth.log_normaliser, dtype=torch.float64)
    assert torch.allclose(truth.value(0.0, x), start, rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("name", list(TRUTHS))
def test_value_is_a_martingale_of_exponentials(name: str):
    """exp(V / beta) at a noised state is the mean of exp(r / beta) over samples noised to it: E
    exp(V(abar, x) / beta) = Z.
    """
    truth, batch = TRUTHS[name], 20_000
    generator = torch.Generator().manual_seed(12)
    mild = TiltedMixture(
        truth.density, truth.reward, 4 * truth.beta
    )  # so that the exponential has a finite variance
    clean = truth.density.sample(batch, generator)
    for abar in (0.1, 0.8):
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        weights = (
            mild.value(abar, abar**0.5 * clean + (1 - abar) ** 0.5 * noise) / mild.beta
        ).exp()
        assert (
            abs(float(weights.mean()) - math.exp(mild.log_normaliser))
            < STANDARD_ERRORS * float(weights.std()) / batch**0.5
        )


@pytest.mark.parametrize("name", list(TRUTHS))
def test_gradient_and_optimal_score(name: str):
    truth, abar = TRUTHS[name], torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    x = randn(3, PROBLEMS[name][0].dims[0]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(truth.value(abar, x).sum(), x)
    assert torch.allclose(truth.value_gradient(abar, x), gradient, rtol=ALGEBRA, atol=ALGEBRA)
    (score,) = torch.autograd.grad(truth.density.noised_log_prob(abar, x).sum(), x)
    assert torch.allclose(
        truth.optimal_score(abar, x), score + gradient / truth.beta, rtol=ALGEBRA, atol=ALGEBRA
    )


def test_optimal_law_maximises_the_objective():
    """Over laws of the sample, E r - beta KL is largest at the tilted law and equals beta log Z
    there (Gibbs), by quadrature.
    """
    truth = TRUTHS["line, convex"]

    def objective(shift: float) -> float:
        law = truth.optimal_law()

        def integrand(x: float) -> float:
            point = torch.tensor([[x]], dtype=torch.float64)
            log_prob = law.log_prob(point - shift)
            gain = truth.reward(point) - truth.beta * (log_prob - truth.density.log_prob(point))
            return float(log_prob.exp() * gain)

        return integrate.quad(integrand, -15, 20, points=[-1.0, 2.0], limit=100)[0]

    best = truth.beta * truth.log_normaliser
    assert objective(0.0) == pytest.approx(best, rel=QUADRATURE)
    assert objective(0.3) < best - 1e-3
    assert objective(-0.3) < best - 1e-3


def test_the_controlled_diffusion_reaches_the_optimal_law():
    """Euler-Maruyama with the optimal score, started at noise, ends at the tilted law."""
    truth, steps, batch, speed = TRUTHS["line, concave"], 200, 20_000, 9.0
    generator = torch.Generator().manual_seed(13)
    y, dt = torch.randn(batch, 1, generator=generator, dtype=torch.float64), 1 / steps
    for i in range(steps):
        score = truth.optimal_score(math.exp(-speed * (1 - i * dt)), y)
        y = (
            y
            + speed * dt * (y / 2 + score)
            + (speed * dt) ** 0.5 * torch.randn(batch, 1, generator=generator, dtype=torch.float64)
        )
    law = truth.optimal_law()
    assert isinstance(law, GaussianMixture)
    bias = speed / steps  # Euler-Maruyama's weak error is of the order of speed * dt
    spread = float(law.covariance) ** 0.5
    assert abs(float(y.mean() - law.mean)) < (STANDARD_ERRORS / batch**0.5 + bias) * spread
    assert float(y.std()) == pytest.approx(spread, rel=2 * STANDARD_ERRORS / batch**0.5 + bias)
    assert abs(float(law.mean - LINE.mean)) > 0.1  # the tilt is not a small one


def test_refuses_what_has_no_value():
    with pytest.raises(
        InvalidProblem, match=r"not integrable at beta = 0\.5: .* is 1\.5; use beta > 1\.5"
    ):
        TiltedMixture(LINE, Quadratic(torch.tensor([[1.0]])), 0.5)
    with pytest.raises(InvalidProblem, match="Sine has no closed-form tilt"):
        TiltedMixture(LINE, Sine(), 1.0)
    with pytest.raises(InvalidProblem, match=r"beta = -1\.0; it must be a positive finite number"):
        TiltedMixture(LINE, Linear(torch.ones(1)), -1.0)


@pytest.mark.parametrize("beta", [1e-3, 1.0, 1e4, 1e12])
@pytest.mark.parametrize("abar", [1e-9, 0.4, 1 - 1e-6])
def test_errors_are_those_against_integrals_of_forty_digits(beta: float, abar: float):
    """``beta log E[exp(r / beta) | x]`` and its derivative; a weak tilt is a small difference of
    logarithms, times a large weight.
    """
    law, x = GaussianMixture([0.4, 0.6], [-1.0, 1.0], [0.2, 0.3]), 0.7
    curved = Quadratic(torch.tensor([[-0.75]]), torch.tensor([0.5]))
    tilted = TiltedMixture(law, curved, beta)
    state = torch.tensor([[x]], dtype=torch.float64)
    parts = [
        [mpmath.mpf(each) for each in values.flatten().tolist()]
        for values in (law.weights, law.means, law.spectra)
    ]
    with mpmath.workdps(60):
        b, a = mpmath.mpf(beta), mpmath.mpf(abar)

        def log_moment(y: Any, share: float) -> Any:
            """Of ``exp(share r / beta)``: each component is a completed square."""
            total = mpmath.mpf(0)
            for w, m, v in zip(*parts, strict=True):
                A = 1 / v + a / (1 - a) + share * mpmath.mpf(0.75) / b
                B = m / v + mpmath.sqrt(a) * y / (1 - a) + share * mpmath.mpf(0.5) / b
                total += w * mpmath.exp(B**2 / (2 * A) - m**2 / (2 * v)) / mpmath.sqrt(A * v)
            return mpmath.log(total)

        exact = lambda y: b * (log_moment(y, 1) - log_moment(y, 0))  # noqa: E731
        value, slope = exact(mpmath.mpf(x)), mpmath.diff(exact, mpmath.mpf(x))
        missed = abs(mpmath.mpf(float(tilted.value(abar, state))) - value)
        bent = abs(mpmath.mpf(float(tilted.value_gradient(abar, state))) - slope)
    assert float(bent) < ROUNDING * (1 + abs(float(slope)))
    errors = tilted.errors(abar, state)
    assert float(missed) == pytest.approx(float(errors.value), rel=1e-6, abs=1e-30)
    assert float(missed) < ROUNDING * (1 + abs(float(value)))
    assert float(bent) == pytest.approx(float(errors.gradient), rel=1e-6, abs=1e-25)
