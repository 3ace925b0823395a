r"""Score matching in the linear class learns the Gaussian score of the samples' mean and
covariance, whatever their law.

Setting: samples :math:`x_0` of any law with mean m and covariance S,
:math:`x = \alpha x_0 + \sqrt h\,\epsilon`; the class :math:`s(x) = C x + b`, fitted by least
squares to :math:`-\epsilon/\sqrt h` (denoising score matching).

Statement: the minimum over $C$ and $b$ of $bb(E) |C x + b + ε/sqrt(h)|^2$ is at $C = −(α^2 S +
h)^(−1)$, $b = −α C m$ for samples of any law with mean $m$ and covariance $S$

So one guided pass with the minimiser moves the mean as one with the exact score of N(m, S) does.
With C frozen the minimiser is the offset b alone, the exact re-centring of Algorithm 2. With n
pairs of sample and noise the offset has the standard error
:math:`\sqrt{\mathrm{tr}\,\mathrm{Var}(-\epsilon/\sqrt h - C x)/n}`.

If the slope is learnt too, from what a guided round generated, the covariance shrinks by the guided
direction every round: after k rounds along one g its variance there is :math:`1/(1/\sigma + k
g^2/s^2)`, and the steps of Algorithm 2 shrink as 1/k.

Kind: equality; the standard error is a limit.

Source: linear class of arXiv 2404.14743v2; derived here.

Minimiser, standard error and shrinking are derived here.

How it is measured: least squares on samples of a mixture, each with the 2n noises
:math:`\pm\sqrt n\,e_i`, whose first two moments are exact; random noises by
`socft.guidance.iterated.fit_linear`; passes by exact moments of the chain with the fitted score.

What would refute it: a residual above `ROUNDING`, or an error of the fitted offset beyond 4
standard errors.
"""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.density import Gaussian, GaussianMixture
from socft.guidance.denoiser import Denoiser, GaussianDenoiser, LinearDenoiser
from socft.guidance.iterated import RecentredScore, fit_linear, slopes
from socft.guidance.policy import GuidancePolicy, LookAheadGuidance, NoGuidance, affine_policy
from socft.guidance.strength import PosteriorStrength
from socft.problem import ControlProblem
from socft.reward import Linear
from socft.truth.affine_policy import evaluate_affine
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import GuidedGaussian, vector
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Learnt linear score", topics.GUIDANCE)
ROUNDING = 1e-8
"""Relative: least squares of designs with condition up to 1e4, at levels up to 0.9."""
STANDARD_ERRORS = 4.0
LEVELS = (0.02, 0.1, 0.5, 0.9, 1.0)


def samples(dim: int, seed: int, count: int = 60) -> Tensor:
    """Samples of a mixture of two Gaussians, shape (count, dim)."""
    generator = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(2, dim, generator=generator, dtype=torch.float64)
    return GaussianMixture([0.3, 0.7], means, 0.3).sample(count, generator)


def moments(x: Tensor) -> Gaussian:
    """The Gaussian with the mean and the covariance of the samples."""
    return Gaussian(x.mean(0), torch.cov(x.T, correction=0).reshape(x.shape[1], -1))


def fitted(x: Tensor, abar: Tensor) -> LinearDenoiser:
    """Least squares with noises of exact first and second moments."""
    n = x.shape[1]
    eye = n**0.5 * torch.eye(n, dtype=torch.float64)
    eps = torch.cat([eye, -eye]).repeat(len(x), 1)
    clean = x.repeat_interleave(2 * n, 0)
    gains, offsets = [], []
    for level in abar.tolist():
        noisy = level**0.5 * clean + (1 - level) ** 0.5 * eps
        design = torch.cat([noisy, torch.ones_like(noisy[:, :1])], 1)
        weight = torch.linalg.lstsq(design, -eps / (1 - level) ** 0.5, driver="gelsd").solution
        gains.append(weight[:-1].mT)
        offsets.append(weight[-1])
    return LinearDenoiser(torch.stack(gains), torch.stack(offsets), abar)


def case_of(law: Gaussian, target: float) -> GuidedGaussian:
    """A pre-trained chain for a law, and a response along the diagonal."""
    n = law.dims[0]
    return GuidedGaussian(
        (1.0,) * n, (0.0,) * n, (1.0,) * n, target=target, noise=0.4, levels=LEVELS
    )


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(0, 50), numbers(-2, 2))
def test_holds(dim: int, seed: int, target: float) -> None:
    """The fitted score, and where a guided pass with it ends, for samples of a mixture."""
    x = samples(dim, seed)
    law = moments(x)
    case = case_of(law, target)
    learnt, exact = fitted(x, case.denoiser.abar), GaussianDenoiser(law, case.denoiser.abar)
    probes = torch.cat([x[:3], -2 * x[:2]])
    where = {"dim": dim, "seed": seed, "target": target}
    for k in range(case.schedule.steps):
        expected = exact.score(k, probes)
        scale = 1 + float(expected.abs().max())
        CLAIM.equals(
            learnt.score(k, probes) / scale, expected / scale, where | {"k": k}, ROUNDING, "score"
        )
    found, mean = (
        pass_mean(case, model, LookAheadGuidance(case.response, PosteriorStrength(case.noise)))
        for model in (learnt, exact)
    )
    scale = 1 + float(mean.abs().max())
    CLAIM.equals(found / scale, mean / scale, where, ROUNDING, "guided pass")


def pass_mean(
    case: GuidedGaussian, model: Denoiser, guidance: LookAheadGuidance | NoGuidance
) -> Tensor:
    """Mean of a pass with another score model."""
    policy = affine_policy(
        GuidancePolicy(case.schedule, model, guidance, case.denoiser), case.schedule.steps, case.dim
    )
    reward = Linear(torch.zeros(case.dim, dtype=torch.float64))
    return evaluate_affine(ControlProblem(case.reference, reward, 1.0), policy).mean[-1]


def test_the_frozen_slope_recentres() -> None:
    """The offset that minimises with the slope frozen is that of the exact re-centring, to the
    standard error stated.
    """
    law = Gaussian([0.3, -0.2], [[1.2, 0.3], [0.3, 0.7]])
    abar = vector([0.2, 0.6, 0.9])
    old = GaussianDenoiser(law, abar)
    x = Gaussian([1.0, 0.5], [[1.2, 0.3], [0.3, 0.7]]).sample(
        2000, torch.Generator().manual_seed(0)
    )
    C, draws = slopes(old, x), 8
    new = RecentredScore().update(old, x, torch.Generator())
    learnt = fit_linear(x.repeat(draws, 1), abar, torch.Generator().manual_seed(1), C)
    zero = torch.zeros(1, 2, dtype=torch.float64)
    for k, level in enumerate(abar.tolist()):
        h = 1 - level
        spread = torch.eye(2, dtype=torch.float64) / h + C[k] * 2 + h * C[k] @ C[k].mT
        error = float((learnt.offset[k] - new.score(k, zero)[0]).norm())
        stderr = float((torch.trace(spread) / (len(x) * draws)).sqrt())
        CLAIM.holds(
            error,
            STANDARD_ERRORS * stderr,
            {"level": level, "samples": len(x), "draws": draws},
            part="frozen slope",
        )


def test_the_slope_shrinks_if_learnt() -> None:
    """Refitted to exact moments of guided rounds, the variance along g is
    ``1 / (1 / sigma + k g^2 / s^2)`` after k rounds.
    """
    case = GuidedGaussian((1.0, 0.5), (0.0, 0.0), (1.0, 0.0), noise=0.5)
    law = case.law
    for k in range(1, 6):
        law = dataclasses.replace(
            case, spectrum=tuple(law.covariance.diagonal().tolist())
        ).conditional
        expected = 1 / (1 + k / 0.25)
        CLAIM.equals(
            float(law.covariance[0, 0]), expected, {"rounds": k, "s": 0.5}, ROUNDING, "shrinking"
        )
    CLAIM.finding(
        "if the slope is refitted to guided samples, the variance along g falls as s^2 / (k g^2)"
        " and so do Algorithm 2's steps",
        case,
    )


def test_needs_the_second_moments() -> None:
    """The exact score of a mixture with these moments is no minimiser's score: guidance with it
    ends elsewhere.
    """
    x = samples(1, seed=4)
    law, mixture = moments(x), GaussianMixture([0.5, 0.5], [[-1.0], [1.0]], 0.2)
    probe = vector([[0.4]])
    learnt = fitted(mixture.sample(200, torch.Generator().manual_seed(0)), vector([0.7]))
    gap = float((learnt.score(0, probe) - mixture.noised_score(0.7, probe)).abs())
    CLAIM.breaks(
        gap,
        ROUNDING,
        {"mixture": [[-1.0, 0.2], [1.0, 0.2]], "level": 0.7, "mean": float(law.mean)},
        "linear class",
    )
