"""Instances of guided generation: Gaussian data, a linear response, a denoising chain; plain
numbers, rebuilt from a record.

The chains are coarse on purpose: with the exact conditional score their means are exact at any
number of steps. `FORGETTING` begins at a signal level of 1e-11 and ends at 1, so that no more than
1e-11 of the start remains.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.guidance.denoiser import GaussianDenoiser
from socft.guidance.iterated import GuidanceTarget, StepSizeTarget
from socft.guidance.policy import Guidance, GuidancePolicy, LookAheadGuidance, affine_policy
from socft.guidance.strength import PosteriorStrength, Response
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.reward import Linear, Quadratic, Reward
from socft.schedule import Schedule, ddim, ddpm
from socft.truth.affine_policy import PolicyEvaluation, evaluate_affine
from verify.support.instances import random_rotation
from verify.support.strategies import numbers

FORGETTING = (1e-11, 0.1, 0.5, 0.9, 1.0)
ANY_VARIANCE = st.sampled_from([0.0, 1.0]) | numbers(0.05, 3)


@dataclasses.dataclass(frozen=True)
class GuidedGaussian:
    """Data N(mean, Q diag(spectrum) Q'), the response ``y = gradient . x + N(0, noise^2)``, a
    chain.

    Attributes:
        spectrum: eigenvalues of the covariance, zero allowed.
        mean: shape (n,), in the eigenbasis.
        gradient: shape (n,), in the eigenbasis.
        target: y.
        noise: standard deviation of the response.
        levels: signal levels of the chain.
        posterior: DDIM's kernels of eta = 1 in place of DDPM's.
        rotation: seed of the eigenbasis; None for the identity.
    """

    spectrum: tuple[float, ...]
    mean: tuple[float, ...]
    gradient: tuple[float, ...]
    target: float = 1.0
    noise: float = 0.5
    levels: tuple[float, ...] = FORGETTING
    posterior: bool = False
    rotation: int | None = None

    def describe(self) -> dict[str, Any]:
        """As plain JSON."""
        return {"type": type(self).__name__} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(self).items()
        }

    @property
    def dim(self) -> int:
        """n."""
        return len(self.spectrum)

    @functools.cached_property
    def basis(self) -> Tensor:
        """Eigenvectors as columns."""
        return (
            torch.eye(self.dim, dtype=torch.float64)
            if self.rotation is None
            else random_rotation(self.dim, self.rotation)
        )

    @functools.cached_property
    def law(self) -> Gaussian:
        """The data law."""
        covariance = self.basis * vector(self.spectrum) @ self.basis.mT
        return Gaussian(self.basis @ vector(self.mean), (covariance + covariance.mT) / 2)

    @functools.cached_property
    def schedule(self) -> Schedule:
        """The chain's coefficients."""
        return (ddim if self.posterior else ddpm)(vector(self.levels))

    @functools.cached_property
    def reference(self) -> AffineReference:
        """The pre-trained chain."""
        return affine_reference(self.law, self.schedule)

    @functools.cached_property
    def denoiser(self) -> GaussianDenoiser:
        """Its score."""
        return GaussianDenoiser(self.law, self.schedule.abar[:-1])

    @functools.cached_property
    def response(self) -> Response:
        """What guidance conditions on."""
        return Response(self.basis @ vector(self.gradient), self.target)

    @functools.cached_property
    def conditional(self) -> Gaussian:
        """The law of x given y, from the joint covariance of (x, y)."""
        g, S, m = self.response.gradient, self.law.covariance, self.law.mean
        cross, spread = S @ g, float(g @ S @ g) + self.noise**2
        return Gaussian(
            m + cross * (self.target - float(g @ m)) / spread,
            S - torch.outer(cross, cross) / spread,
        )

    def run(self, guidance: Guidance, denoiser: GaussianDenoiser | None = None) -> PolicyEvaluation:
        """Exact moments of the guided chain."""
        model = denoiser or self.denoiser
        policy = GuidancePolicy(
            self.schedule, model, guidance, None if denoiser is None else self.denoiser
        )
        reward = Linear(torch.zeros(self.dim, dtype=torch.float64))
        return evaluate_affine(
            ControlProblem(self.reference, reward, 1.0),
            affine_policy(policy, self.schedule.steps, self.dim),
        )

    def round(
        self,
        reward: Reward,
        target: GuidanceTarget,
        point: Tensor,
        denoiser: GaussianDenoiser | None = None,
    ) -> Tensor:
        """Mean of what a round with gradients queried at ``point`` generates, shape (n,)."""
        model = denoiser or self.denoiser
        gradient = reward.gradient(point[None])[0]
        response = Response(gradient, target(point, gradient, model))
        return self.run(LookAheadGuidance(response, PosteriorStrength(self.noise)), denoiser).mean[
            -1
        ]

    def ascent(self, reward: Reward, lam: float, start: Tensor, rounds: int, adapt: bool) -> Tensor:
        """Means of the rounds of Algorithm 1, or of Algorithm 2 (``adapt``), from ``start``: shape
        (rounds + 1, n).
        """
        means, target = [start], StepSizeTarget(lam, self.noise)
        for _ in range(rounds):
            model = (
                GaussianDenoiser(Gaussian(means[-1], self.law.covariance), self.denoiser.abar)
                if adapt
                else None
            )
            means.append(self.round(reward, target, means[-1], model))
        return torch.stack(means)


def vector(values: Any) -> Tensor:
    """A float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def guided_gaussians(
    draw: st.DrawFn,
    dims: int = 5,
    spectrum: st.SearchStrategy[float] | None = None,
    levels: bool = False,
) -> GuidedGaussian:
    """Up to ``dims`` dimensions; chains that forget their start unless ``levels`` asks for
    others.
    """
    n = draw(st.integers(1, dims))

    def entries(each: st.SearchStrategy[float]) -> tuple[float, ...]:
        return tuple(draw(st.lists(each, min_size=n, max_size=n)))

    inner = sorted(draw(st.lists(numbers(0.05, 0.95), min_size=1, max_size=6, unique=True)))
    chosen = (draw(numbers(0.01, 0.04)), *inner, 0.97) if levels else (FORGETTING[0], *inner, 1.0)
    return GuidedGaussian(
        spectrum=entries(ANY_VARIANCE if spectrum is None else spectrum),
        mean=entries(numbers(-2, 2)),
        gradient=entries(numbers(-2, 2)),
        target=draw(numbers(-3, 3)),
        noise=draw(numbers(0.1, 2)),
        levels=chosen,
        posterior=draw(st.booleans()) and levels,
        rotation=draw(st.none() | st.integers(0, 9)),
    )


@st.composite
def concave_quadratics(draw: st.DrawFn, dim: int) -> Quadratic:
    """``-(x - b)' H (x - b) / 2`` with eigenvalues of H between 0.05 and 2."""
    values = draw(st.lists(numbers(0.05, 2), min_size=dim, max_size=dim))
    centre = vector(draw(st.lists(numbers(-2, 2), min_size=dim, max_size=dim)))
    basis = random_rotation(dim, draw(st.integers(0, 9)))
    H = basis * vector(values) @ basis.mT
    H = (H + H.mT) / 2
    return Quadratic(-H, H @ centre, -float(centre @ H @ centre) / 2)
