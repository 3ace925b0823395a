r"""Look-ahead guidance of exact strength is the conditional score, and that is the optimal control
(Doob's transform).

Setting: data :math:`N(\mu, \Sigma)`, response :math:`y = g^\top x_0 + N(0, s^2)`; the control
problem of the same chain with the reward :math:`r(x) = -\beta (y - g^\top x)^2 / (2 s^2)` and the
constant KL weight :math:`\beta`, of value V.

Statement: $G_"loss" = ∇ log p(y | x) = ∇V/β$ for data $N(μ, S)$ and $r = −β (y − g^⊤ x)^2/(2 s^2)$;
the optimum of $T$ steps tends to it as $1/T$

V is that of continuous time, and the optimum of T steps is meant in units of the score.

Kind: equality, and a limit.

Source: derived here; conditional score of arXiv 2404.14743v2, Lemma 1; Doob's h-transform.

Conditioning as a control is Doob's transform.

How it is measured: the conditional score by automatic differentiation of the joint Gaussian density
of (x, y); V from `socft.truth.mixture`; the chain's optimum from the Riccati recursion, with T and
2 T steps.

What would refute it: a residual above `ROUNDING`, or a distance that does not halve when T doubles.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor
from torch import distributions as td

from socft.density import GaussianMixture
from socft.guidance.denoiser import ScoreDenoiser
from socft.guidance.policy import GuidancePolicy, LookAheadGuidance
from socft.guidance.strength import PosteriorStrength, Response
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import variance_preserving
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import GuidedGaussian, guided_gaussians, vector
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Conditional score", topics.GUIDANCE)
ROUNDING = 1e-9
"""Relative to the term: log densities of nearly singular laws (h >= 0.03) are differentiated twice
over.
"""
NEXT = 0.1
"""Share of the order 1/T^2 at T = 256."""


def log_conditional(case: GuidedGaussian, level: float, x: Tensor) -> Tensor:
    """``log p(y | x)`` from the joint law of (x, y), shape (batch,)."""
    S, g, m = case.law.covariance, case.response.gradient, case.law.mean
    inside = level * S + (1 - level) * torch.eye(case.dim, dtype=torch.float64)
    cross = level**0.5 * (S @ g)
    spread = (g @ S @ g + case.noise**2).reshape(1, 1)
    joint = torch.cat([torch.cat([inside, cross[:, None]], 1), torch.cat([cross[None], spread], 1)])
    mean = torch.cat([level**0.5 * m, (g @ m).reshape(1)])
    both = torch.cat([x, torch.full((len(x), 1), case.target, dtype=torch.float64)], 1)
    plain = td.MultivariateNormal(mean[:-1], inside).log_prob(x)
    return td.MultivariateNormal(mean, (joint + joint.mT) / 2).log_prob(both) - plain


def reward(case: GuidedGaussian, beta: float) -> Quadratic:
    """``-beta (y - g . x)^2 / (2 s^2)``."""
    g, scale = case.response.gradient, beta / case.noise**2
    return Quadratic(
        -scale * torch.outer(g, g), scale * case.target * g, -scale * case.target**2 / 2
    )


def term(case: GuidedGaussian, k: int, x: Tensor) -> Tensor:
    """The look-ahead term of exact strength."""
    return LookAheadGuidance(case.response, PosteriorStrength(case.noise))(case.denoiser.at(k, x))


@settings(max_examples=30)
@given(guided_gaussians(levels=True), numbers(0.1, 5))
def test_holds(case: GuidedGaussian, beta: float) -> None:
    """Conditional score and costate over beta, at every level."""
    x = torch.stack(
        [
            torch.linspace(-2, 2, case.dim, dtype=torch.float64),
            torch.ones(case.dim, dtype=torch.float64),
        ]
    )
    truth = TiltedMixture(case.law, reward(case, beta), beta)
    for k, level in enumerate(case.schedule.abar[:-1].tolist()):
        found, z = term(case, k, x), x.clone().requires_grad_(True)
        (score,) = torch.autograd.grad(log_conditional(case, level, z).sum(), z)
        scale = 1 + float(found.abs().max())
        CLAIM.equals(
            found / scale,
            score / scale,
            {"case": case.describe(), "k": k},
            ROUNDING,
            "conditional score",
        )
        drift = truth.value_gradient(level, x) / beta
        CLAIM.equals(
            found / scale,
            drift / scale,
            {"case": case.describe(), "k": k, "beta": beta},
            ROUNDING,
            "optimal control",
        )


def test_the_chain_tends_to_it() -> None:
    """Distance of the two whitened controls over sigma, at fixed states and times, for T = 256 and
    512.
    """
    errors = [_distance(steps) for steps in (256, 512)]
    where, half = {"T": [256, 512], "errors": errors}, errors[0] / 2
    CLAIM.attained(errors[1], half, where, within=NEXT, slack=NEXT, part="order 1/T")


def _distance(steps: int) -> float:
    schedule = variance_preserving(steps, 4.0)
    case = GuidedGaussian(
        (1.5, 0.4),
        (0.3, -0.2),
        (1.0, 0.7),
        target=1.5,
        noise=0.6,
        levels=tuple(schedule.abar.tolist()),
        rotation=1,
    )
    optimum = LinearQuadratic(ControlProblem(case.reference, reward(case, 1.3), 1.3))
    policy = GuidancePolicy(
        case.schedule,
        case.denoiser,
        LookAheadGuidance(case.response, PosteriorStrength(case.noise)),
    )
    x = vector([[0.5, -1.0], [1.5, 0.2]])
    times = [int(share * steps) for share in (0.25, 0.5, 0.75)]
    return max(
        float(((policy(k, x) - optimum.control(k, x)) / case.schedule.sigma[k]).abs().max())
        for k in times
    )


def test_needs_gaussian_data() -> None:
    """Two modes: the posterior of x_0 is not Gaussian, and the term is no longer the conditional
    score.
    """
    data, s, y, level = GaussianMixture([0.5, 0.5], [[-1.5], [1.5]], 0.1), 0.5, 1.0, 0.3
    x = torch.linspace(-1.5, 1.5, 7, dtype=torch.float64)[:, None]
    at = ScoreDenoiser(lambda k, z: data.noised_score(level, z), vector([level])).at(0, x)
    found = LookAheadGuidance(Response(vector([1.0]), y), PosteriorStrength(s))(at)
    tilted = TiltedMixture(data, Quadratic(vector([[-1 / s**2]]), vector([y / s**2])), 1.0)
    error = float((found - tilted.value_gradient(level, x)).abs().max())
    CLAIM.breaks(
        error,
        ROUNDING * (1 + float(found.abs().max())),
        {"means": [-1.5, 1.5], "variance": 0.1, "level": level},
        "Gaussian data",
    )
