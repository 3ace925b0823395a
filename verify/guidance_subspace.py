r"""Look-ahead guidance keeps the subspace of the data; the gradient itself leaves it (Theorem 1).

Setting: data on :math:`\mu + \mathrm{span}(A)`, A with orthonormal columns, of any law; exact
scores; a response :math:`y = g^\top x_0 + N(0, s^2)`. :math:`\hat x_0 = E[x_0|x]`,
:math:`P_\perp = I - AA^\top`.

Statement: if $x_0 ∈ μ + op("span")(A)$, then $|P_⊥ G_"loss"| = 0$ at every level, and $|P_⊥ G| =
|b' (y − g^⊤ bb(E) [x_0 | x])| |P_⊥ g|$

The reason is :math:`J = \mathrm{Jac}\,\hat x_0 = A (\cdot) A^\top`. Hence the guided chain, driven
by the same noise, has path by path the component across the subspace that the pre-trained chain
has.

Kind: equality.

Source: arXiv 2404.14743v2, Theorem 1; along the path derived here.

How it is measured: Gaussians and Gaussian mixtures with singular covariances, scores from
`socft.density`, J by automatic differentiation; projections of the terms over their norms, and of
simulated paths.

What would refute it: a component across the subspace above `ROUNDING` of the term.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.density import GaussianMixture, score_reference
from socft.guidance.denoiser import ScoreDenoiser
from socft.guidance.policy import Guidance, GuidancePolicy, LookAheadGuidance, NaiveGuidance
from socft.guidance.strength import (
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.schedule import ddpm
from verify.support import topics
from verify.support.claims import Claim
from verify.support.guidance_cases import vector
from verify.support.instances import random_rotation
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Subspace kept by look-ahead", topics.GUIDANCE)
ROUNDING = 1e-10
"""Relative: pulled-back gradients are differences of terms 1 / h times larger, h down to 0.02, over
an alpha down to 0.1.
"""
LEVELS = (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98, 1.0)


def law(
    dim: int, rank: int, components: int, seed: int, thickness: float = 0.0
) -> tuple[GaussianMixture, Tensor]:
    """A mixture on a random affine subspace, and its orthonormal A; ``thickness`` is a variance
    across it.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = random_rotation(dim, seed)
    A = basis[:, :rank]
    roots = torch.randn(components, rank, rank, generator=generator, dtype=torch.float64)
    covs = A @ (roots @ roots.mT / rank + 0.2 * torch.eye(rank, dtype=torch.float64)) @ A.mT
    covs = (covs + covs.mT) / 2 + thickness * torch.eye(dim, dtype=torch.float64)
    means = (
        0.7 * basis[:, -1]
        + torch.randn(components, rank, generator=generator, dtype=torch.float64) @ A.mT
    )
    return GaussianMixture(torch.ones(components) / components, means, covs), A


def across(A: Tensor, x: Tensor) -> Tensor:
    """``P_perp x``."""
    return x - x @ A @ A.mT


def terms(seed: int, g: Tensor, y: float, noise: float) -> dict[str, Guidance]:
    """The look-ahead terms of both strengths."""
    response = Response(g, y)
    return {
        "published": LookAheadGuidance(response, PublishedStrength(noise)),
        "exact": LookAheadGuidance(response, PosteriorStrength(noise)),
    }


@settings(max_examples=15)
@given(
    st.integers(2, 8),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(0, 50),
    numbers(-3, 3),
    numbers(0.1, 2),
)
def test_holds(dim: int, rank: int, components: int, seed: int, y: float, noise: float) -> None:
    """At random states of every level, and along a path."""
    rank = min(rank, dim - 1)
    data, A = law(dim, rank, components, seed)
    schedule = ddpm(vector(LEVELS))
    reference = score_reference(data, schedule)
    denoiser = ScoreDenoiser(reference.score, schedule.abar[:-1])
    generator = torch.Generator().manual_seed(seed + 1)
    g, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((dim,), (6, dim))
    )
    where = {
        "dim": dim,
        "rank": rank,
        "components": components,
        "seed": seed,
        "y": y,
        "noise": noise,
    }
    for name, guidance in terms(seed, g, y, noise).items():
        for k in (0, schedule.steps // 2, schedule.steps - 1):
            G = guidance(denoiser.at(k, x))
            CLAIM.equals(
                across(A, G).norm(dim=1) / (G.norm(dim=1) + g.norm()),
                0.0,
                where | {"k": k},
                ROUNDING,
                f"{name} strength",
            )
    naive = NaiveGuidance(Response(g, y), IsotropicStrength(noise))
    at = denoiser.at(schedule.steps // 2, x)
    factor = IsotropicStrength(noise)(at, g, at.x) * (y - at.clean @ g).unsqueeze(1)
    CLAIM.equals(
        across(A, naive(at)) / factor,
        across(A, g[None]).expand_as(x),
        where,
        ROUNDING,
        "naive component",
    )
    _check_paths(data, A, g, y, noise, where)


def _check_paths(
    data: GaussianMixture, A: Tensor, g: Tensor, y: float, noise: float, where: dict
) -> None:
    schedule = ddpm(vector(LEVELS))
    reference = score_reference(data, schedule)
    policy = GuidancePolicy(
        schedule,
        ScoreDenoiser(reference.score, schedule.abar[:-1]),
        LookAheadGuidance(Response(g, y), PublishedStrength(noise)),
    )
    draws = Noise.sample(reference, 4, torch.Generator().manual_seed(0))
    guided, plain = (
        rollout(reference, policy, draws).states,
        rollout(reference, Uncontrolled(reference), draws).states,
    )
    size = float(guided.abs().max())
    CLAIM.equals(across(A, guided) / size, across(A, plain) / size, where, ROUNDING, "path")


def test_needs_the_pullback() -> None:
    """The naive term leaves the subspace of a Gaussian as far as g does."""
    data, A = law(6, 2, 1, seed=3)
    denoiser, g, x = _middle(data)
    G = NaiveGuidance(Response(g, 1.0), IsotropicStrength(0.5))(denoiser.at(0, x))
    CLAIM.breaks(
        float((across(A, G).norm(dim=1) / G.norm(dim=1)).min()),
        ROUNDING,
        {"dim": 6, "rank": 2, "seed": 3},
        "naive term",
    )


def test_needs_data_on_the_subspace() -> None:
    """A variance of 1e-4 across the subspace, and the look-ahead term has a component there, of its
    order over h.
    """
    data, A = law(6, 2, 1, seed=3, thickness=1e-4)
    denoiser, g, x = _middle(data)
    G = LookAheadGuidance(Response(g, 1.0), PosteriorStrength(0.5))(denoiser.at(0, x))
    share = float((across(A, G).norm(dim=1) / G.norm(dim=1)).min())
    CLAIM.breaks(
        share,
        ROUNDING,
        {"dim": 6, "rank": 2, "seed": 3, "variance across": 1e-4},
        "data on the subspace",
    )


def _middle(data: GaussianMixture) -> tuple[ScoreDenoiser, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    denoiser = ScoreDenoiser(lambda k, x: data.noised_score(0.5, x), vector([0.5]))
    g, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((6,), (5, 6))
    )
    return denoiser, g, x
