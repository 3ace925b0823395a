r"""Gaussian mixtures in any dimension, with exact noised scores and tilts."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    SYMMETRY_TOLERANCE,
    Numbers,
    numbers,
    require,
    require_generator,
    require_states,
    whole,
)
from socft.density.base import (
    Density,
    Tilt,
    broadcast_level,
    quadratic_form,
    require_level,
)
from socft.density.constants import ScoreConstants, join_levels, noised_variance
from socft.density.lipschitz import (
    LEVEL_CHUNK,
    common_constants,
    gaussian_constants,
    many_constants,
    two_constants,
)
from socft.density.search import line_constants
from socft.reference import States
from socft.reward import PerSample, Reward

WEIGHT_TOLERANCE = 1e-6
"""Of their sum: float32 weights are normalised to about K eps."""

_SAME = 1e-14
"""Relative to the standard deviations: covariances closer than this are one covariance, written
twice.
"""

WEAK = 0.5
"""Log masses of components below which the log of their sum is taken from 1."""

_BORDERLINE = 1e-12
"""Relative: a beta this close to the smallest integrable one is round-off away from it."""


@dataclasses.dataclass(frozen=True)
class Eigensystem:
    """Covariances by their eigenvalues, shape (k, n), and eigenvectors as columns, shape
    (k, n, n).
    """

    spectra: Float[Tensor, "k n"]
    bases: Float[Tensor, "k n n"]


class GaussianMixture(Density):
    """``sum_k weights_k N(means_k, covs_k)`` in any dimension; each covariance is diagonalised
    once.

    Args:
        weights: positive, shape (K,), with sum 1.
        means: shape (K, n), or (K,) in one dimension.
        covs: positive semi-definite: one number (isotropic, common), (K,) isotropic, (n, n) common,
            (K, n, n), or an `Eigensystem` of one or K of them.

    Attributes:
        weights: shape (K,).
        means: shape (K, n).
        spectra: eigenvalues of the covariances, shape (K, n), or (1, n) if they are all the same.
        bases: eigenvectors as columns, shape (K, n, n) or (1, n, n).

    >>> mixture = GaussianMixture(weights=[0.7, 0.3], means=[-1.5, 1.5], covs=0.16)
    >>> mixture.mean, mixture.covariance
    (tensor([-0.6000], dtype=torch.float64), tensor([[2.0500]], dtype=torch.float64))
    >>> mixture.sample(3, torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1])
    """

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K n"]
    spectra: Float[Tensor, "k n"]
    bases: Float[Tensor, "k n n"]

    def __init__(self, weights: Numbers, means: Numbers, covs: Numbers | Eigensystem):
        w, m = numbers(weights, "weights"), numbers(means, "means")
        m = m.unsqueeze(1) if m.ndim == 1 else m
        require(
            w.ndim == 1 and m.ndim == 2 and len(w) == len(m) > 0 and m.shape[1] > 0,
            f"weights has shape {tuple(w.shape)} and means {tuple(m.shape)}; give (K,) and (K, n).",
        )
        require(
            bool((w > 0).all()),
            f"the smallest weight is {float(w.min()):g}; weights must be positive, drop the"
            " component.",
        )
        total = float(w.sum())
        require(
            abs(total - 1) <= WEIGHT_TOLERANCE,
            f"the weights sum to {total:.6g}; a mixture's weights sum to 1, divide by their sum.",
        )
        if not isinstance(covs, Eigensystem):
            covs = _diagonalise(_covariances(covs, *m.shape))
        self.weights, self.means, self.dims = w / w.sum(), m, (m.shape[1],)
        self.spectra, self.bases = covs.spectra, covs.bases

    def _like(self, weights: Tensor, means: Tensor, covs: Eigensystem) -> Self:
        """A law of the same class."""
        return type(self)(weights, means, covs)

    @property
    def eigensystem(self) -> Eigensystem:
        """The covariances, diagonalised."""
        return Eigensystem(self.spectra, self.bases)

    def shown(self) -> dict[str, Any]:
        return {"weights": self.weights, "means": self.means, "covs": self.covariances}

    @property
    def regular(self) -> bool:
        return bool((self.spectra > 0).all())

    @property
    def components(self) -> int:
        """Number of components K."""
        return len(self.weights)

    @property
    def shared(self) -> bool:
        """Whether all components have the same covariance."""
        return len(self.spectra) == 1

    @property
    def covariances(self) -> Float[Tensor, "K n n"]:
        """Covariance of each component."""
        return ((self.bases * self.spectra.unsqueeze(1)) @ self.bases.mT).expand(
            self.components, -1, -1
        )

    @property
    def mean(self) -> Float[Tensor, " n"]:
        """Mean of the law."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Covariance of the law."""
        spread = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + spread.T @ (
            self.weights.unsqueeze(1) * spread
        )

    def sample(self, batch: int, generator: torch.Generator) -> States:
        batch = whole(batch, "batch")
        require_generator(generator)
        device = generator.device
        which = torch.multinomial(
            self.weights.to(device), batch, replacement=True, generator=generator
        )
        z = torch.randn(batch, *self.dims, generator=generator, dtype=torch.float64, device=device)
        roots = (
            (self.bases * self.spectra.sqrt().unsqueeze(1))
            .to(device)
            .expand(self.components, -1, -1)
        )
        x = self.means.to(device)[which]
        for k in range(self.components):
            x[which == k] += z[which == k] @ roots[k].T
        return x

    def noised(self, abar: float) -> Self:
        require_level(abar)
        covs = Eigensystem(noised_variance(abar, self.spectra), self.bases)
        return self._like(self.weights, abar**0.5 * self.means, covs)

    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        return torch.logsumexp(self._fields(abar, x).log_joint, 1)

    def noised_score(self, abar: float | Tensor, x: States) -> States:
        fields = self._fields(abar, x)
        return self._unrotated(torch.softmax(fields.log_joint, 1).unsqueeze(2) * fields.scores)

    def posterior_means(
        self, signal: float | Tensor, noise: float | Tensor, x: States
    ) -> tuple[States, States]:
        a, s = (broadcast_level(value, x, 2) for value in (signal, noise))
        fields = self._moved(a, s.square(), x)
        mixing = torch.softmax(fields.log_joint, 1).unsqueeze(2)
        centers = (self.means.unsqueeze(1) @ self.bases).squeeze(1).to(x)
        endpoints = mixing * (centers - (a * self.spectra.to(a)).to(x) * fields.scores)
        return self._unrotated(endpoints), self._unrotated(-s.to(x) * mixing * fields.scores)

    def _unrotated(self, parts: Float[Tensor, "batch K n"]) -> States:
        """Sum over components of vectors in their own eigenbases."""
        if self.shared:
            return parts.sum(1) @ self.bases[0].T.to(parts)
        return torch.einsum("bkm,knm->bn", parts, self.bases.to(parts))

    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        self._require_regular()
        fields = self._fields(1.0, x)
        weights = torch.softmax(fields.log_joint, 1)
        scores = (self.bases.to(x) @ fields.scores.unsqueeze(3)).squeeze(3)
        centred = scores - (weights.unsqueeze(2) * scores).sum(1, keepdim=True)
        precisions = (
            ((self.bases / self.spectra.unsqueeze(1)) @ self.bases.mT)
            .to(x)
            .expand(self.components, -1, -1)
        )
        return torch.einsum("bk,bki,bkj->bij", weights, centred, centred) - torch.einsum(
            "bk,kij->bij", weights, precisions
        )

    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        if self.components == 1:
            return gaussian_constants(self, abar)
        if self.dims == (1,) and not (self.shared and self.components == 2):
            return line_constants([self], abar)
        unequal = two_constants if self.components == 2 else many_constants
        bound = common_constants if self.shared else unequal
        return join_levels([bound(self, levels) for levels in abar.split(LEVEL_CHUNK)])

    def tilted(self, reward: Reward, beta: float) -> Tilt[Self]:
        """As in the base class; the reward is expanded about a point where the tilted law lies, so
        that the weights of a sharp reward are not differences of large numbers.
        """
        form = quadratic_form(reward, beta, self.dims)
        covs, log_volume = self._reshaped(form.P, beta)
        start = torch.zeros(1, *self.dims, dtype=torch.float64)
        means = self._sharpened(form.P / beta, form.linear / beta, start).means
        centre = means[self.weights.argmax()]
        slope = (form.P @ centre + form.linear) / beta
        gained = self._sharpened(form.P / beta, slope, centre).log_mass + log_volume
        log_mass = self.weights.log() + gained
        weights = torch.softmax(log_mass, 0)
        height = form(centre.unsqueeze(0)) / beta
        total = torch.logsumexp(log_mass, 0) + height
        if float((gained + height).abs().max()) < WEAK:
            total = torch.log1p(self.weights @ torch.expm1(gained + height))
        kept = weights > 0  # the others have underflowed
        if len(covs.spectra) > 1:
            covs = Eigensystem(covs.spectra[kept], covs.bases[kept])
        density = self._like(weights[kept], means[kept], covs)
        return Tilt(density, float(total))

    def conditional_value(
        self, reward: Reward, beta: float, abar: float | Tensor, x: States
    ) -> PerSample:
        r"""As in the base class, from the conditional laws of the components given x, N(m_k, C_k)
        with weights w_k.

        Each has the value :math:`v_k = m' P E^{-1} m / 2 + q' E^{-1} (m + C q / (2 \beta)) -
        \beta \log\det E / 2`, ``E = I - C P / beta``, and they are joined by :math:`\bar v +
        \beta \log \sum_k w_k e^{(v_k - \bar v)/\beta}`: nothing is a difference of terms of the
        size of beta.
        """
        form = quadratic_form(reward, beta, self.dims)
        fields, level = self._fields(abar, x), broadcast_level(abar, x, 2)
        spectra, centers = (
            each.to(level) for each in (self.spectra, (self.means.unsqueeze(1) @ self.bases)[:, 0])
        )
        means = centers.to(x) - (level.sqrt() * spectra).to(x) * fields.scores
        C = ((1 - level) * spectra / noised_variance(level, spectra)).to(x)
        P, q = (self.bases.mT @ form.P @ self.bases).to(x), (form.linear @ self.bases).to(x)
        v = _tilted_values(P, q, beta, means, C.reshape(-1, *C.shape[-2:]))
        log_w = torch.log_softmax(fields.log_joint, 1)
        middle = (log_w.exp() * v).sum(1)
        u = (v - middle.unsqueeze(1)) / beta
        near = torch.log1p((log_w.exp() * torch.expm1(u.clamp(-WEAK, WEAK))).sum(1))
        far = torch.logsumexp(log_w + u, 1)
        weak = u.abs().amax(1) < WEAK
        return form.c + middle + beta * torch.where(weak, near, far)

    def _sharpened(self, P: Tensor, q: Tensor, centre: Tensor) -> _Sharpened:
        r"""Components times ``exp(y' P y / 2 + q . y)``, ``y = x - centre``, S a covariance and m
        its mean from the centre.

        With ``E = I - S P``, the mean is :math:`E^{-1} (m + S q)` and the log mass up to the
        determinant :math:`m' P E^{-1} m / 2 + q' E^{-1} (m + S q / 2)`: nothing cancels where P is
        very negative.
        """
        bases, S = self.bases, self.spectra.unsqueeze(2)
        m = bases.mT @ (self.means - centre).unsqueeze(2)
        P, q = bases.mT @ P @ bases, bases.mT @ q.unsqueeze(1)
        E = torch.eye(*self.dims, dtype=torch.float64) - S * P
        own, pushed = torch.linalg.solve(E, m), torch.linalg.solve(E, (S * q).expand_as(m))
        log_mass = (m * (P @ own) / 2 + q * (own + pushed / 2)).sum((1, 2))
        return _Sharpened((bases @ (own + pushed)).squeeze(2), log_mass)

    def _reshaped(self, P: Tensor, beta: float) -> tuple[Eigensystem, Tensor]:
        """``(S^-1 - P/beta)^-1``, and half the log ratio of its determinant to S's."""
        if not bool((P != 0).any()):
            return self.eigensystem, torch.zeros(1, dtype=torch.float64)
        root = self.bases * self.spectra.sqrt().unsqueeze(1)
        stretch = root.mT @ P @ root
        stretches = torch.linalg.eigvalsh(stretch)
        top = float(stretches.max())
        require(
            top < beta * (1 - _BORDERLINE),
            f"exp(r / beta) is not integrable at beta = {beta:g}: the largest eigenvalue of S^(1/2)"
            f" P S^(1/2), S a covariance of the law and P the Hessian of the reward, is {top:g};"
            f" use beta > {top:g}.",
        )
        inner = torch.eye(*self.dims, dtype=torch.float64) - stretch / beta
        covs = root @ torch.linalg.solve(inner, root.mT)
        return _diagonalise((covs + covs.mT) / 2), -torch.log1p(-stretches / beta).sum(1) / 2

    def _fields(self, abar: float | Tensor, x: States) -> _Fields:
        level = broadcast_level(abar, x, 2)
        return self._moved(level.sqrt(), 1 - level, x)

    def _moved(self, signal: Tensor, noise_variance: Tensor, x: States) -> _Fields:
        """The components of the law of ``signal x_0 + noise eps``, levels in float64."""
        require_states(x, self.dims, "the law")
        bases, centers = self.bases.to(x), (self.means.unsqueeze(1) @ self.bases).squeeze(1)
        rotated = (
            (x @ bases[0]).unsqueeze(1) if self.shared else torch.einsum("bn,knm->bkm", x, bases)
        )
        variance = (signal.square() * self.spectra.to(signal) + noise_variance).to(x)
        centred = rotated - (signal * centers.to(signal)).to(x)
        scores = -centred / variance
        log_joint = (
            self.weights.log().to(x)
            + (centred * scores - (2 * math.pi * variance).log()).sum(2) / 2
        )
        return _Fields(log_joint, scores)


def _tilted_values(
    P: Float[Tensor, "k n n"],
    q: Float[Tensor, "k n"],
    beta: float,
    m: Float[Tensor, "batch K n"],
    C: Float[Tensor, "levels k n"],
) -> Float[Tensor, "batch K"]:
    """``beta log E exp((y' P y / 2 + q . y) / beta)`` for y of the laws N(m, diag C), at one level
    or one per sample.
    """
    E = torch.eye(m.shape[-1]).to(m) - C.unsqueeze(-1) * P / beta
    if len(C) == 1:
        own = torch.linalg.solve(E[0], m.permute(1, 2, 0)).permute(2, 0, 1)
    else:
        own = torch.linalg.solve(E, m.unsqueeze(-1)).squeeze(-1)
    pushed = torch.linalg.solve(E, (C * q / beta).unsqueeze(-1)).squeeze(-1)
    bent = (P @ own.unsqueeze(-1)).squeeze(-1)
    root = C.sqrt()
    stretches = torch.linalg.eigvalsh(root.unsqueeze(-1) * P * root.unsqueeze(-2) / beta)
    volume = torch.log1p(-stretches).sum(-1)
    return (m * bent / 2 + q * (own + pushed / 2)).sum(-1) - beta / 2 * volume


@dataclasses.dataclass(frozen=True)
class _Sharpened:
    """Means, from a centre, and log masses of tilted components."""

    means: Float[Tensor, "K n"]
    log_mass: Float[Tensor, " K"]


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Log of weight times density, and score in its own eigenbasis, of each component."""

    log_joint: Float[Tensor, "batch K"]
    scores: Float[Tensor, "batch K n"]


class Gaussian(GaussianMixture):
    """``N(mean, cov)``: a mixture of one component.

    Args:
        mean: shape (n,), or a number in one dimension.
        cov: positive semi-definite: one number (isotropic), (n,) diagonal, (n, n), or an
            `Eigensystem` of one covariance.

    >>> Gaussian(mean=[0.0, 1.0], cov=[[2.0, 0.5], [0.5, 1.0]])
    Gaussian(mean=[0, 1], cov=[[2, 0.5], [0.5, 1]])
    >>> Gaussian(0.0, cov=4.0).L0
    0.25
    """

    def __init__(self, mean: Numbers, cov: Numbers | Eigensystem):
        if not isinstance(cov, Eigensystem):
            cov = numbers(cov, "cov")
            cov = torch.diag(cov) if cov.ndim == 1 else cov
        super().__init__([1.0], numbers(mean, "mean").reshape(1, -1), cov)

    def _like(self, weights: Tensor, means: Tensor, covs: Eigensystem) -> Self:
        return type(self)(means[0], covs)

    def shown(self) -> dict[str, Any]:
        return {"mean": self.mean, "cov": self.covariance}


def _covariances(covs: Numbers, components: int, n: int) -> Float[Tensor, "k n n"]:
    """Covariances as (K, n, n), or (1, n, n) if they are all the same."""
    cov = numbers(covs, "covs")
    if cov.ndim == 0 or cov.shape == (components,):
        cov = cov.reshape(-1, 1, 1) * torch.eye(n, dtype=torch.float64)
    elif cov.shape == (n, n):
        cov = cov.unsqueeze(0)
    require(
        cov.shape in ((1, n, n), (components, n, n)),
        f"covs has shape {tuple(cov.shape)}; give one number, ({components},), ({n}, {n}) or"
        f" ({components}, {n}, {n}).",
    )
    scale = cov[:1].diagonal(dim1=1, dim2=2).abs().sqrt()
    same = (cov - cov[:1]).abs() <= _SAME * scale.unsqueeze(1) * scale.unsqueeze(2)
    return cov[:1] if bool(same.all()) else cov


def _diagonalise(covs: Float[Tensor, "k n n"]) -> Eigensystem:
    """Eigenvalues and eigenvectors (columns) of covariances, checked."""
    scale = float(covs.abs().max())
    skew = float((covs - covs.mT).abs().max())
    require(
        skew <= SYMMETRY_TOLERANCE * scale,
        f"a covariance differs from its transpose by {skew:g}; give a symmetric matrix.",
    )
    spectra, bases = torch.linalg.eigh((covs + covs.mT) / 2)
    low = float(spectra.min())
    require(
        low >= -SYMMETRY_TOLERANCE * scale,
        f"a covariance has the eigenvalue {low:g}; it must be positive semi-definite.",
    )
    rank_tolerance = (
        spectra.shape[1] * torch.finfo(torch.float64).eps * spectra.amax(1, keepdim=True)
    )
    diagonal = (covs == torch.diag_embed(covs.diagonal(dim1=1, dim2=2))).all(2).all(1, keepdim=True)
    positive = spectra > torch.where(diagonal, 0, rank_tolerance)
    return Eigensystem(torch.where(positive, spectra, 0), bases)
