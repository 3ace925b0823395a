r"""Data laws whose noised scores, Lipschitz constants and exponential tilts are known exactly.

Noising to signal level :math:`\bar a` turns :math:`x_0 \sim p` into :math:`x = \sqrt{\bar a}\,x_0 + \sqrt{1-\bar a}\,\epsilon`; its
score is :math:`\nabla \log p_{\bar a}`. For a mixture with weights :math:`w_k(x)`, component scores :math:`s_k(x)` and precisions
:math:`P_k`, with :math:`E` the mean under :math:`w(x)` and :math:`c_k = s_k - E s`,

.. math:: s = E\,s_k, \qquad \mathrm{Jac}\, s = E[c c^\top] - E P, \qquad
   D^3 \log p\,[u,u,u] = E[(u^\top c)^3] - 3 E[u^\top P u\; u^\top c].

Their suprema are assumption 2.7 of arXiv 2412.18164v4, L0 and L1 of the score. How each is obtained (derived here):

* one Gaussian: L0 = 1 / (least variance), L1 = 0;
* a common covariance S, with :math:`D = S^{-1}(m_j - m_k)`: a variance is at most a quarter of the squared range and a third
  central moment at most range^3 / (6 sqrt 3), so L0 = max(1 / least variance, largest eigenvalue of :math:`-S^{-1} + D D^\top/4`)
  and L1 = :math:`|D|^3/(6\sqrt 3)`, maxima over pairs; exact for two components, attained at weights 1/2 and
  :math:`(1 \pm 1/\sqrt 3)/2`;
* one dimension: branch and bound with second-order bounds on every cell and a bound on the tails, exact to 1e-10;
* unequal covariances in more dimensions: with :math:`E = P_i - P_j \succeq 0` and a point where both scores agree, the log ratio of
  the densities is :math:`\Delta^* - t` and the squared score difference along u at most :math:`2 t\, u^\top E u`, t >= 0. This is
  exact for two components and sums to upper bounds for more. Where E is indefinite, or singular without such a point, weights
  balance along an unbounded set while the scores separate: two such components have no finite constant. A third component of
  smaller precision than both hides the set, and then the constants are finite again.

Rotated separable laws, :math:`x = \sum_i q_i z_i` with independent :math:`z_i`, take the largest constant of their factors: exact.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Generic, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from socft.checks import require, require_finite
from socft.reference import AffineReference, ScalarDiffusion, ScoreReference, SpectralMaps, States, Step, at_step
from socft.reward import PerSample, Quadratic, Reward, as_quadratic, orthonormal
from socft.schedule import Schedule

_SYMMETRY_TOLERANCE = 1e-10  # relative: covariances built from float64 products are symmetric to about n eps
_SAME = 1e-14  # relative: covariances closer than this are one covariance, written twice
_BORDERLINE = 1e-12  # relative: a beta this close to the smallest integrable one is round-off away from it
_COMPARABLE = 1e-10  # relative: eigenvalues of precision differences below this count as zero
_SKEW = 6 * math.sqrt(3)  # largest third central moment on [0, 1] is 1 / _SKEW
_SEARCH_TOLERANCE = 1e-10  # relative gap left between a certified maximum and the value found
_SEARCH_CELLS = 64  # first cells of each one-dimensional problem
_SEARCH_ROUNDS = 60  # each divides the open cells by four
_SEARCH_LIMIT = 2_000_000  # open cells at which the search settles for the bound it has
_SEARCH_CHUNK = 2048  # one-dimensional problems searched together
_LEVEL_CHUNK = 32  # levels at which components are compared together
_TAIL_LOG_RATIO = -80.0  # beyond the searched interval every other component weighs less than e^-80 of the widest
_BISECTIONS = 80  # more than the bits of a float64


@dataclasses.dataclass(frozen=True)
class ScoreConstants:
    """Lipschitz constants of a score and of its Jacobian, one per noise level (or scalars for one law).

    Attributes:
        L0: supremum of the operator norm of the score's Jacobian, or a certified upper bound.
        L1: supremum of the norm of the third derivative of the log density, or a certified upper bound.
        L0_exact: where L0 is the supremum itself (to 1e-10 where it was searched for).
        L1_exact: where L1 is the supremum itself.
    """

    L0: Float[Tensor, " *levels"]
    L1: Float[Tensor, " *levels"]
    L0_exact: Bool[Tensor, " *levels"]
    L1_exact: Bool[Tensor, " *levels"]

    def at(self, k: int) -> ScoreConstants:
        """The constants of one level."""
        return ScoreConstants(self.L0[k], self.L1[k], self.L0_exact[k], self.L1_exact[k])


Numbers: TypeAlias = "Tensor | np.ndarray | Sequence[float] | Sequence[Sequence[float]] | float | int"

DensityT = TypeVar("DensityT", bound="Density")
DensityT_co = TypeVar("DensityT_co", bound="Density", covariant=True)


class Density(abc.ABC):
    """A law on vectors of shape ``dims`` that can be noised exactly. A signal level is one number or one per sample."""

    dims: tuple[int, ...]

    @property
    @abc.abstractmethod
    def regular(self) -> bool:
        """Whether the law has a density; a singular law has one at every level below 1."""

    @abc.abstractmethod
    def sample(self, batch: int, generator: torch.Generator) -> States:
        """Draw ``batch`` float64 samples on the generator's device."""

    @abc.abstractmethod
    def noised(self: DensityT, abar: float) -> DensityT:
        """The law of ``sqrt(abar) x_0 + sqrt(1 - abar) eps``."""

    @abc.abstractmethod
    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        """Log density of the law noised to ``abar``, differentiable in ``abar`` and ``x``."""

    @abc.abstractmethod
    def noised_score(self, abar: float | Tensor, x: States) -> States:
        """Score of the law noised to ``abar``, differentiable in ``abar`` and ``x``."""

    @abc.abstractmethod
    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        """Jacobian of the score, the Hessian of the log density."""

    @abc.abstractmethod
    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        """Lipschitz constants of the score at each level."""

    @abc.abstractmethod
    def tilted(self: DensityT, reward: Reward, beta: float) -> Tilt[DensityT]:
        """The law proportional to ``p exp(r / beta)``.

        Raises:
            InvalidProblem: the reward has no closed form here, beta is not positive, or ``exp(r / beta)`` is not integrable.
        """

    def log_prob(self, x: States) -> PerSample:
        """Log density."""
        self._require_regular()
        return self.noised_log_prob(1.0, x)

    def score(self, x: States) -> States:
        """Gradient of the log density."""
        self._require_regular()
        return self.noised_score(1.0, x)

    @functools.cached_property
    def constants(self) -> ScoreConstants:
        """Lipschitz constants of `score` and `score_jacobian`."""
        self._require_regular()
        return self.noised_constants(torch.ones(1, dtype=torch.float64)).at(0)

    @property
    def L0(self) -> float:
        """Lipschitz constant of the score, or an upper bound; `constants` says which."""
        return float(self.constants.L0)

    @property
    def L1(self) -> float:
        """Lipschitz constant of the score's Jacobian, or an upper bound; `constants` says which."""
        return float(self.constants.L1)

    def _require_regular(self) -> None:
        require(self.regular, "the smallest variance is 0, so there is no density; noise it first, noised(abar) with abar < 1.")


@dataclasses.dataclass(frozen=True)
class Tilt(Generic[DensityT_co]):
    """The law ``p exp(r / beta) / Z`` and its ``log Z``, with ``Z = E_p exp(r / beta)``."""

    density: DensityT_co
    log_normaliser: float


MixtureT = TypeVar("MixtureT", bound="GaussianMixture")


class GaussianMixture(Density):
    """``sum_k weights_k N(means_k, covs_k)`` in any dimension; each covariance is diagonalised once.

    Args:
        weights: positive, shape (K,); normalised to sum to 1.
        means: shape (K, n), or (K,) in one dimension.
        covs: positive semi-definite: one number (isotropic, common), (K,) isotropic, (n, n) common, or (K, n, n).

    Attributes:
        weights: shape (K,).
        means: shape (K, n).
        spectra: eigenvalues of the covariances, shape (K, n), or (1, n) if they are all the same.
        bases: eigenvectors as columns, shape (K, n, n) or (1, n, n).
    """

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K n"]
    spectra: Float[Tensor, "k n"]
    bases: Float[Tensor, "k n n"]

    def __init__(self, weights: Numbers, means: Numbers, covs: Numbers):
        w, m = (torch.as_tensor(values, dtype=torch.float64) for values in (weights, means))
        m = m.unsqueeze(1) if m.ndim == 1 else m
        require(
            w.ndim == 1 and m.ndim == 2 and len(w) == len(m) > 0,
            f"weights has shape {tuple(w.shape)} and means {tuple(m.shape)}; give (K,) and (K, n).",
        )
        require_finite(w, "weights", "every weight must be a positive finite number.")
        require_finite(m, "means", "every mean must be finite.")
        require(bool((w > 0).all()), f"the smallest weight is {float(w.min()):g}; weights must be positive, drop the component.")
        self._set(w / w.sum(), m, *_diagonalise(_covariances(covs, *m.shape)))

    def _set(self, weights: Tensor, means: Tensor, spectra: Tensor, bases: Tensor) -> None:
        self.weights, self.means, self.spectra, self.bases = weights, means, spectra, bases
        self.dims = (means.shape[1],)

    def _like(self: MixtureT, weights: Tensor, means: Tensor, spectra: Tensor, bases: Tensor) -> MixtureT:
        """A law of the same class from its diagonalised parts."""
        other = object.__new__(type(self))
        other._set(weights, means, spectra, bases)
        return other

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
        return ((self.bases * self.spectra.unsqueeze(1)) @ self.bases.mT).expand(self.components, -1, -1)

    @property
    def mean(self) -> Float[Tensor, " n"]:
        """Mean of the law."""
        return self.weights @ self.means

    @property
    def covariance(self) -> Float[Tensor, "n n"]:
        """Covariance of the law."""
        spread = self.means - self.mean
        return torch.einsum("k,kij->ij", self.weights, self.covariances) + spread.T @ (self.weights.unsqueeze(1) * spread)

    def sample(self, batch: int, generator: torch.Generator) -> States:
        require(batch >= 1, f"batch = {batch}; give at least one sample.")
        device = generator.device
        which = torch.multinomial(self.weights.to(device), batch, replacement=True, generator=generator)
        z = torch.randn(batch, *self.dims, generator=generator, dtype=torch.float64, device=device)
        roots = (self.bases * self.spectra.sqrt().unsqueeze(1)).to(device).expand(self.components, -1, -1)
        x = self.means.to(device)[which]
        for k in range(self.components):
            x[which == k] += z[which == k] @ roots[k].T
        return x

    def noised(self: MixtureT, abar: float) -> MixtureT:
        _require_level(abar)
        return self._like(self.weights, abar**0.5 * self.means, abar * self.spectra + 1 - abar, self.bases)

    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        return torch.logsumexp(self._fields(abar, x).log_joint, 1)

    def noised_score(self, abar: float | Tensor, x: States) -> States:
        fields = self._fields(abar, x)
        mixed = torch.softmax(fields.log_joint, 1).unsqueeze(2) * fields.pulls
        if self.shared:
            return mixed.sum(1) @ self.bases[0].T.to(x)
        return torch.einsum("bkm,knm->bn", mixed, self.bases.to(x))

    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        self._require_regular()
        fields = self._fields(1.0, x)
        weights = torch.softmax(fields.log_joint, 1)
        scores = (self.bases.to(x) @ fields.pulls.unsqueeze(3)).squeeze(3)
        apart = scores - (weights.unsqueeze(2) * scores).sum(1, keepdim=True)
        precisions = ((self.bases / self.spectra.unsqueeze(1)) @ self.bases.mT).to(x).expand(self.components, -1, -1)
        return torch.einsum("bk,bki,bkj->bij", weights, apart, apart) - torch.einsum("bk,kij->bij", weights, precisions)

    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        if self.components == 1:
            return _gaussian_constants(self, abar)
        if self.dims == (1,) and not (self.shared and self.components == 2):
            return _line_constants([self], abar)
        unequal = _two_constants if self.components == 2 else _many_constants
        bound = _common_constants if self.shared else unequal
        return _joined([bound(self, levels) for levels in abar.split(_LEVEL_CHUNK)])

    def tilted(self: MixtureT, reward: Reward, beta: float) -> Tilt[MixtureT]:
        form = _form(reward, beta, self.dims)
        curvature, slope = form.P / beta, form.linear / beta
        spectra, bases, log_volume = self._reshaped(form.P, beta)
        force = self.means @ curvature + slope
        pushed = (bases.mT @ force.unsqueeze(2)).squeeze(2)
        shift = (bases @ (spectra * pushed).unsqueeze(2)).squeeze(2)
        at_means = (self.means * (self.means @ curvature / 2 + slope)).sum(1) + form.c / beta
        log_mass = self.weights.log() + at_means + (force * shift).sum(1) / 2 + log_volume
        total = torch.logsumexp(log_mass, 0)
        return Tilt(self._like((log_mass - total).exp(), self.means + shift, spectra, bases), float(total))

    def _reshaped(self, P: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        """Spectra and bases of ``(S^-1 - P/beta)^-1``, and half the log ratio of its determinant to S's."""
        if not bool((P != 0).any()):
            return self.spectra, self.bases, torch.zeros(1, dtype=torch.float64)
        root = self.bases * self.spectra.sqrt().unsqueeze(1)
        stretch = root.mT @ P @ root
        top = float(torch.linalg.eigvalsh(stretch).max())
        require(
            top < beta * (1 - _BORDERLINE),
            f"exp(r / beta) is not integrable at beta = {beta:g}: the largest eigenvalue of S^(1/2) P S^(1/2), S a covariance of "
            f"the law and P the Hessian of the reward, is {top:g}; use beta > {top:g}.",
        )
        inner = torch.eye(*self.dims, dtype=torch.float64) - stretch / beta
        covs = root @ torch.linalg.solve(inner, root.mT)
        return *_diagonalise((covs + covs.mT) / 2), -torch.linalg.slogdet(inner).logabsdet / 2

    def _fields(self, abar: float | Tensor, x: States) -> _Fields:
        require(x.ndim == 2 and x.shape[1:] == self.dims, f"x has shape {tuple(x.shape)}; give (batch, {self.dims[0]}).")
        level = _level(abar, x, 2)
        bases, centers = self.bases.to(x), (self.means.unsqueeze(1) @ self.bases).squeeze(1).to(x)
        rotated = (x @ bases[0]).unsqueeze(1) if self.shared else torch.einsum("bn,knm->bkm", x, bases)
        variance = level * self.spectra.to(x) + 1 - level
        apart = rotated - level.sqrt() * centers
        pulls = -apart / variance
        log_joint = self.weights.log().to(x) + (apart * pulls - (2 * math.pi * variance).log()).sum(2) / 2
        return _Fields(log_joint, pulls)


@dataclasses.dataclass(frozen=True)
class _Fields:
    """Log of weight times density, and score in its own eigenbasis, of each component."""

    log_joint: Float[Tensor, "batch K"]
    pulls: Float[Tensor, "batch K n"]


class Gaussian(GaussianMixture):
    """``N(mean, cov)``: a mixture of one component.

    Args:
        mean: shape (n,), or a number in one dimension.
        cov: positive semi-definite: one number (isotropic), (n,) diagonal, or (n, n).
    """

    def __init__(self, mean: Numbers, cov: Numbers):
        mean, cov = (torch.as_tensor(values, dtype=torch.float64) for values in (mean, cov))
        super().__init__([1.0], mean.reshape(1, -1), torch.diag(cov) if cov.ndim == 1 else cov)


class Rotated(Density):
    """``x = sum_i q_i z_i`` with independent one-dimensional mixtures ``z_i`` and orthonormal ``q_i``.

    Args:
        rotation: the ``q_i`` as columns, shape (n, n).
        factors: the n laws of the coordinates; the same object may appear many times.
    """

    def __init__(self, rotation: Float[Tensor, "n n"], factors: Sequence[GaussianMixture]):
        self.rotation = orthonormal(rotation, "rotation")
        self.factors = tuple(factors)
        n = len(self.rotation)
        require(self.rotation.shape == (n, n), f"rotation has shape {tuple(self.rotation.shape)}; give a square matrix.")
        require(len(self.factors) == n, f"there are {len(self.factors)} factors for {n} directions; give one each.")
        wrong = [f.dims for f in self.factors if f.dims != (1,)]
        if wrong:
            require(False, f"a factor has states of shape {wrong[0]}; every factor must be one-dimensional.")
        self.dims = (n,)
        self._lines = _stacked(self.factors)

    @property
    def regular(self) -> bool:
        return all(f.regular for f in self._distinct)

    @property
    def _distinct(self) -> tuple[GaussianMixture, ...]:
        return tuple(dict.fromkeys(self.factors))

    def sample(self, batch: int, generator: torch.Generator) -> States:
        require(batch >= 1, f"batch = {batch}; give at least one sample.")
        device, lines = generator.device, self._lines
        which = torch.multinomial(lines.log_weights.exp().to(device), batch, replacement=True, generator=generator)
        z = torch.randn(batch, *self.dims, generator=generator, dtype=torch.float64, device=device)
        means, spread = (p.to(device).gather(1, which).T for p in (lines.means, lines.variances.sqrt()))
        return (means + spread * z) @ self.rotation.T.to(device)

    def noised(self, abar: float) -> Rotated:
        changed = {f: f.noised(abar) for f in self._distinct}
        return Rotated(self.rotation, [changed[f] for f in self.factors])

    def noised_log_prob(self, abar: float | Tensor, x: States) -> PerSample:
        return torch.logsumexp(self._fields(abar, x).log_joint, 2).sum(1)

    def noised_score(self, abar: float | Tensor, x: States) -> States:
        fields = self._fields(abar, x)
        return (torch.softmax(fields.log_joint, 2) * fields.pulls).sum(2) @ self.rotation.T.to(x)

    def score_jacobian(self, x: States) -> Float[Tensor, "batch n n"]:
        self._require_regular()
        fields = self._fields(1.0, x)
        weights = torch.softmax(fields.log_joint, 2)
        apart = fields.pulls - (weights * fields.pulls).sum(2, keepdim=True)
        slopes = (weights * (apart.square() - 1 / self._lines.variances.to(x))).sum(2)
        q = self.rotation.to(x)
        return (q * slopes.unsqueeze(1)) @ q.T

    def noised_constants(self, abar: Float[Tensor, " levels"]) -> ScoreConstants:
        searched = [f for f in self._distinct if f.components > 2 or not (f.components == 1 or f.shared)]
        parts = [f.noised_constants(abar) for f in self._distinct if f not in searched]
        parts += [_line_constants(searched, abar)] if searched else []
        joined = _joined(parts)
        return _largest(ScoreConstants(*(v.reshape(len(parts), -1) for v in dataclasses.astuple(joined))))

    def tilted(self, reward: Reward, beta: float) -> Tilt[Rotated]:
        """As in the base class; a quadratic reward must be diagonal in the rotated coordinates."""
        form = _form(reward, beta, self.dims)
        P, q = self.rotation.T @ form.P @ self.rotation, form.linear @ self.rotation
        coupling = float((P - P.diag().diag()).abs().max())
        require(
            coupling <= _SYMMETRY_TOLERANCE * max(1.0, float(P.abs().max())),
            f"the reward couples rotated coordinates by {coupling:g}; use one that is diagonal in them, or a GaussianMixture.",
        )
        tilts = [f.tilted(Quadratic(P[i, i].reshape(1, 1), q[i : i + 1]), beta) for i, f in enumerate(self.factors)]
        density = Rotated(self.rotation, [t.density for t in tilts])
        return Tilt(density, math.fsum(t.log_normaliser for t in tilts) + form.c / beta)

    def _fields(self, abar: float | Tensor, x: States) -> _LineFields:
        require(x.ndim == 2 and x.shape[1:] == self.dims, f"x has shape {tuple(x.shape)}; give (batch, {self.dims[0]}).")
        level = _level(abar, x, 2)
        variance = level * self._lines.variances.to(x) + 1 - level
        apart = (x @ self.rotation.to(x)).unsqueeze(2) - level.sqrt() * self._lines.means.to(x)
        pulls = -apart / variance
        return _LineFields(self._lines.log_weights.to(x) + (apart * pulls - (2 * math.pi * variance).log()) / 2, pulls)


@dataclasses.dataclass(frozen=True)
class _LineFields:
    """Log of weight times density, and score, of each component of each rotated coordinate."""

    log_joint: Float[Tensor, "batch n K"]
    pulls: Float[Tensor, "batch n K"]


class NoisedScore:
    """``(k, x) -> score of the density noised to abar[k]``, k one level or one per sample.

    Twice differentiable in ``x``; keeps its dtype and device. Nothing is stored per level.

    Args:
        density: the data law.
        abar: signal levels in [0, 1], shape (T,); below 1 if the law is singular.
    """

    def __init__(self, density: Density, abar: Float[Tensor, " steps"]):
        self.density = density
        self.abar = torch.as_tensor(abar, dtype=torch.float64)
        require(self.abar.ndim == 1 and len(self.abar) > 0, f"abar has shape {tuple(self.abar.shape)}; give a vector of levels.")
        require_finite(self.abar, "abar", "every level must be a finite number.")
        for end in (float(self.abar.min()), float(self.abar.max())):
            _require_level(end)
        require(
            density.regular or float(self.abar.max()) < 1,
            "the law is singular and a level is 1, where there is no score; end the levels below 1.",
        )

    def __call__(self, k: Step, x: States) -> States:
        return self.density.noised_score(at_step(self.abar, k, x), x)

    @functools.cached_property
    def constants(self) -> ScoreConstants:
        """Lipschitz constants of every level, shape (T,)."""
        return self.density.noised_constants(self.abar)


def score_reference(density: Density, schedule: Schedule) -> ScoreReference:
    """The pre-trained chain of a schedule with the exact scores of ``density``; its score is a `NoisedScore`."""
    return ScoreReference(schedule, NoisedScore(density, schedule.abar[:-1]), density.dims)


def affine_reference(gaussian: Gaussian, schedule: Schedule) -> AffineReference:
    r"""The same chain for a Gaussian as an affine map, ``m_k(y) = A_k y + b_k``, with A diagonal in the eigenbasis of C.

    With ``C_k = abar_k C + (1 - abar_k) I``: ``A_k = (I - g_k C_k^-1) / sqrt(a_k)`` and
    ``b_k = g_k C_k^-1 sqrt(abar_k) mean / sqrt(a_k)``.
    """
    level, root = schedule.abar[:-1, None], schedule.alpha.sqrt()[:, None]
    basis = gaussian.bases[0]
    pull = schedule.gain[:, None] / (level * gaussian.spectra + 1 - level)
    offset = (pull / root * level.sqrt() * (gaussian.means @ basis)) @ basis.T
    return AffineReference(SpectralMaps((1 - pull) / root, basis), ScalarDiffusion(schedule.sigma), offset)


def _require_level(abar: float) -> None:
    require(0 <= abar <= 1, f"abar = {abar}; a signal level must lie in [0, 1].")


def _level(abar: float | Tensor, x: States, trailing: int) -> Tensor:
    """A level as a scalar, or one per sample with ``trailing`` axes to broadcast over."""
    level = torch.as_tensor(abar, dtype=x.dtype, device=x.device)
    return level if level.ndim == 0 else level.reshape(-1, *[1] * trailing)


def _form(reward: Reward, beta: float, dims: tuple[int, ...]) -> Quadratic:
    require(math.isfinite(beta) and beta > 0, f"beta = {beta}; it must be a positive finite number.")
    form = as_quadratic(reward)
    require(form.linear.shape == dims, f"the reward acts on vectors of length {len(form.linear)}; this law has {dims[0]}.")
    return form


def _covariances(covs: Numbers, components: int, n: int) -> Float[Tensor, "k n n"]:
    """Covariances as (K, n, n), or (1, n, n) if they are all the same."""
    cov = torch.as_tensor(covs, dtype=torch.float64)
    require_finite(cov, "covs", "every entry must be a finite number.")
    if cov.ndim == 0 or cov.shape == (components,):
        cov = cov.reshape(-1, 1, 1) * torch.eye(n, dtype=torch.float64)
    elif cov.shape == (n, n):
        cov = cov.unsqueeze(0)
    require(
        cov.shape in ((1, n, n), (components, n, n)),
        f"covs has shape {tuple(cov.shape)}; give one number, ({components},), ({n}, {n}) or ({components}, {n}, {n}).",
    )
    return cov[:1] if float((cov - cov[:1]).abs().max()) <= _SAME * float(cov.abs().max()) else cov


def _diagonalise(covs: Float[Tensor, "k n n"]) -> tuple[Float[Tensor, "k n"], Float[Tensor, "k n n"]]:
    """Eigenvalues and eigenvectors (columns) of covariances, checked."""
    scale = float(covs.abs().max())
    skew = float((covs - covs.mT).abs().max())
    require(skew <= _SYMMETRY_TOLERANCE * scale, f"a covariance differs from its transpose by {skew:g}; give a symmetric matrix.")
    spectra, bases = torch.linalg.eigh((covs + covs.mT) / 2)
    low = float(spectra.min())
    require(low >= -_SYMMETRY_TOLERANCE * scale, f"a covariance has the eigenvalue {low:g}; it must be positive semi-definite.")
    rank_tolerance = spectra.shape[1] * torch.finfo(torch.float64).eps * spectra.amax(1, keepdim=True)
    return torch.where(spectra > rank_tolerance, spectra, 0), bases


@dataclasses.dataclass(frozen=True)
class _Stacked:
    """One-dimensional mixtures side by side, shape (N, K); missing components have log weight -inf."""

    log_weights: Float[Tensor, "N K"]
    means: Float[Tensor, "N K"]
    variances: Float[Tensor, "N K"]


def _stacked(lines: Sequence[GaussianMixture]) -> _Stacked:
    width = max(f.components for f in lines)

    def pad(values: list[Tensor], fill: float) -> Tensor:
        return torch.stack([torch.nn.functional.pad(v, (0, width - len(v)), value=fill) for v in values])

    return _Stacked(
        pad([f.weights.log() for f in lines], -math.inf),
        pad([f.means[:, 0] for f in lines], 0.0),
        pad([f.spectra[:, 0].expand(f.components) for f in lines], 1.0),
    )


# Constants of the score: one Gaussian, common covariance, unequal covariances ------------------------------------------


def _joined(parts: Sequence[ScoreConstants]) -> ScoreConstants:
    """Constants of consecutive levels."""
    names = [field.name for field in dataclasses.fields(ScoreConstants)]
    return ScoreConstants(**{name: torch.cat([getattr(c, name) for c in parts]) for name in names})


def _largest(c: ScoreConstants) -> ScoreConstants:
    """The largest constants over the first axis; exact where an exact one is the largest."""
    L0, L1 = c.L0.amax(0), c.L1.amax(0)
    return ScoreConstants(L0, L1, ((c.L0 == L0) & c.L0_exact).any(0), ((c.L1 == L1) & c.L1_exact).any(0))


def _gaussian_constants(law: GaussianMixture, abar: Tensor) -> ScoreConstants:
    L0 = 1 / (abar * law.spectra.min() + 1 - abar)
    yes = torch.ones_like(L0, dtype=torch.bool)
    return ScoreConstants(L0, torch.zeros_like(L0), yes, yes)


def _common_constants(law: GaussianMixture, abar: Tensor) -> ScoreConstants:
    """Common covariance: the extreme pairs of components."""
    level, (j, k) = abar.unsqueeze(1), torch.triu_indices(law.components, law.components, 1)
    precision = 1 / (level * law.spectra + 1 - level)
    centers = law.means @ law.bases[0]
    apart = (precision * level.sqrt()).unsqueeze(1) * (centers[j] - centers[k])
    top = precision.amax(1)
    bulge = _rank_one_top(precision.unsqueeze(1), apart / 2, top)
    pair = torch.full_like(top, law.components == 2, dtype=torch.bool)
    return ScoreConstants(torch.maximum(top, bulge), apart.norm(dim=2).amax(1) ** 3 / _SKEW, pair | (bulge <= top), pair)


def _rank_one_top(p: Float[Tensor, "L 1 n"], z: Float[Tensor, "L pairs n"], floor: Float[Tensor, " L"]) -> Float[Tensor, " L"]:
    """Largest eigenvalue of ``-diag(p) + z z'`` over pairs, from above where it exceeds ``floor``, else 0.

    It is the root of ``sum_i z_i^2 / (p_i + mu) = 1``, whose left side decreases in mu.
    """
    level, pair = ((z.square() / (p + floor.reshape(-1, 1, 1))).sum(2) > 1).nonzero().unbind(1)
    p, square = p[level, 0], z[level, pair].square()
    low, high = floor[level], square.sum(1)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        above = (square / (p + middle.unsqueeze(1))).sum(1) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.zeros_like(floor).scatter_reduce(0, level, high, "amax")


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """Components i and j of a mixture noised to L levels; their densities' log ratio is ``peak - (x - x*)' excess (x - x*) / 2``.

    Attributes:
        precisions: ``P_i``, shape (L, K, n, n).
        excess: ``P_i - P_j``, shape (L, K, K, n, n).
        gap: score difference at the origin, ``P_i m_i - P_j m_j``, shape (L, K, K, n).
        peak: log ratio where the scores agree, shape (L, K, K).
        top: largest eigenvalue of the excess, shape (L, K, K).
        parallel: whether the excess is zero, so that the scores differ by ``gap`` everywhere.
        finer: whether the excess is positive semi-definite and the scores agree somewhere, or are parallel.
    """

    precisions: Float[Tensor, "L K n n"]
    excess: Float[Tensor, "L K K n n"]
    gap: Float[Tensor, "L K K n"]
    peak: Float[Tensor, "L K K"]
    top: Float[Tensor, "L K K"]
    parallel: Bool[Tensor, "L K K"]
    finer: Bool[Tensor, "L K K"]


def _compare(law: GaussianMixture, abar: Float[Tensor, " L"]) -> _Comparison:
    level = abar.reshape(-1, 1, 1)
    variance, means = level * law.spectra + 1 - level, level.sqrt() * law.means
    precisions = (law.bases / variance.unsqueeze(2)) @ law.bases.mT
    pulls = (precisions @ means.unsqueeze(3)).squeeze(3)
    log_mass = law.weights.log() - variance.log().sum(2) / 2 - (means * pulls).sum(2) / 2
    excess, gap = precisions.unsqueeze(2) - precisions.unsqueeze(1), pulls.unsqueeze(2) - pulls.unsqueeze(1)
    values, vectors = torch.linalg.eigh(excess)
    flat = values.abs() <= _COMPARABLE * precisions.abs().amax((1, 2, 3)).reshape(-1, 1, 1, 1)
    slopes = (gap.unsqueeze(3) @ vectors).squeeze(3)
    apart = (slopes.abs() * flat).amax(3) > _COMPARABLE * pulls.abs().amax((1, 2)).reshape(-1, 1, 1)
    parallel = flat.all(3)
    finer = ((values > 0) | flat).all(3) & (parallel | ~apart)
    peak = log_mass.unsqueeze(2) - log_mass.unsqueeze(1) + torch.where(flat, 0, slopes.square() / values / 2).sum(3)
    return _Comparison(precisions, excess, gap, peak, values.amax(3), parallel, finer)


def _two_constants(law: GaussianMixture, abar: Tensor) -> ScoreConstants:
    r"""Two components of different covariance, exact.

    With :math:`w = \sigma(\Delta^* - t)` the weight of the finer one, :math:`|u^\top \delta|^2 \le 2 t\, u^\top E u` with
    equality where :math:`x - x^*` is along u. So the Jacobian is at most :math:`\kappa E - P` and at least
    :math:`-\sigma(\Delta^*) E - P`, P the smaller precision, with :math:`\kappa = \sup_t\, 2 t w (1-w) - w`, and the third
    derivative is largest along the top eigenvector of E: a one-dimensional mixture of precisions 0 and 1 decides both suprema.
    """
    c = _compare(law, abar)
    if bool(c.parallel[:, 0, 1].any()):
        return _many_constants(law, abar)
    forward = c.finer[:, 0, 1].reshape(-1, 1, 1)
    peak = torch.where(c.finer[:, 0, 1], c.peak[:, 0, 1], c.peak[:, 1, 0])
    excess = torch.where(forward, c.excess[:, 0, 1], c.excess[:, 1, 0])
    base = torch.where(forward, c.precisions[:, 1], c.precisions[:, 0])
    known = c.finer[:, 0, 1] | c.finer[:, 1, 0]
    spread = _unit_search(torch.where(known, peak, 0))
    weight = torch.sigmoid(peak).reshape(-1, 1, 1)
    top = _largest_eigenvalue(spread.L0.reshape(-1, 1, 1) * excess - base)
    L0 = torch.maximum(top, _largest_eigenvalue(base + weight * excess))
    L1 = spread.L1 * _largest_eigenvalue(excess).clamp(min=0) ** 1.5
    inf = torch.full_like(L0, math.inf)
    return ScoreConstants(
        torch.where(known, L0, inf), torch.where(known, L1, inf), ~known | spread.L0_exact, ~known | spread.L1_exact
    )


def _many_constants(law: GaussianMixture, abar: Tensor) -> ScoreConstants:
    """Any components: bounds by all pairs or by all components against one of them; the smallest wins."""
    c = _compare(law, abar)
    spreads, thirds = [_by_pairs(c)], [_third_by_pairs(c)]
    for k in range(law.components):
        spreads.append(_by_anchor(c, k))
        thirds.append(_third_by_anchor(c, k))
    sharpest = torch.linalg.eigvalsh(c.precisions).amax((1, 2))
    L0, L1 = torch.maximum(sharpest, torch.stack(spreads).amin(0)), torch.stack(thirds).amin(0)
    no = torch.zeros_like(L0, dtype=torch.bool)
    return ScoreConstants(L0, L1, no, no)


def _by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """Bound of the Jacobian's top eigenvalue from ``sum_ij w_i w_j d_ij d_ij'``, over pairs, minus the least precision."""
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    bulge = _spread(_BOTH, c, c.peak)
    oriented = torch.where(c.finer[:, i, j, None, None], bulge[:, i, j], bulge[:, j, i])
    comparable = (c.finer[:, i, j] | c.finer[:, j, i]).all(1)
    top = _largest_eigenvalue(oriented.sum(1)) - torch.linalg.eigvalsh(c.precisions).amin((1, 2))
    return torch.where(comparable, top, math.inf)


def _by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """The same from ``sum_i w_i d_ik d_ik' - sum_i w_i E_ik - P_k``; the second sum shifts t by 1/2."""
    others = torch.arange(c.peak.shape[1]) != k
    bulge = _spread(_ONE, c, c.peak - 0.5)[:, others, k].sum(1)
    return torch.where(c.finer[:, others, k].all(1), _largest_eigenvalue(bulge - c.precisions[:, k]), math.inf)


def _third_by_pairs(c: _Comparison) -> Float[Tensor, " L"]:
    """``|E c^3| <= E |s - s'|^3`` with s' an independent copy, and ``Cov(P, s)`` as a sum over pairs."""
    i, j = torch.triu_indices(len(c.peak[0]), len(c.peak[0]), 1)
    terms = 2 * _moment(_BOTH, c, 3) + 3 * torch.where(c.finer, c.top, 1) * _moment(_BOTH, c, 1)
    return torch.minimum(terms[:, i, j], terms[:, j, i]).sum(1)


def _third_by_anchor(c: _Comparison, k: int) -> Float[Tensor, " L"]:
    """``E |c|^3 <= 8 E |s - s_k|^3``, and ``|Cov(P, s)| <= E |E_ik| (|d_ik| + E |d_ik|)``."""
    others = torch.arange(c.peak.shape[1]) != k
    top = torch.where(c.finer, c.top, 1)[:, others, k]
    cubes, reach = (_moment(_ONE, c, q)[:, others, k] for q in (3, 1))
    return (8 * cubes + 3 * (top + top.amax(1, keepdim=True)) * reach).sum(1)


def _largest_eigenvalue(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrices).amax(-1)


@dataclasses.dataclass(frozen=True)
class _Weight:
    """A weight as a function of the log ratio of two densities, bounded and log-concave.

    Attributes:
        log: its logarithm.
        slope: the derivative of that logarithm.
        largest: its supremum.
    """

    log: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    largest: float


_BOTH = _Weight(lambda r: -2 * torch.logaddexp(r / 2, -r / 2), lambda r: -torch.tanh(r / 2), 0.25)
_ONE = _Weight(torch.nn.functional.logsigmoid, lambda r: torch.sigmoid(-r), 1.0)


def _supremum(weight: _Weight, peak: Tensor, q: int) -> Tensor:
    """``sup_t weight(peak - t) (2 t)^(q/2)``.

    The logarithm is concave in t; the maximiser solves ``q / (2 t) = (log weight)'(peak - t)``.
    """
    low, high = torch.zeros_like(peak), peak.clamp(min=0) + q + 5
    for _ in range(_BISECTIONS):
        t = (low + high) / 2
        rising = q / (2 * t) > weight.slope(peak - t)
        low, high = torch.where(rising, t, low), torch.where(rising, high, t)
    return weight.log(peak - high).exp() * (2 * high) ** (q / 2) * (1 + _SEARCH_TOLERANCE)


def _spread(weight: _Weight, c: _Comparison, peak: Tensor) -> Float[Tensor, "L K K n n"]:
    """A matrix above ``weight d d'`` for every x, where i is finer than j."""
    curved = _supremum(weight, peak, 2)[..., None, None] * c.excess
    constant = weight.largest * c.gap.unsqueeze(4) * c.gap.unsqueeze(3)
    return torch.where(c.parallel[..., None, None], constant, curved)


def _moment(weight: _Weight, c: _Comparison, q: int) -> Float[Tensor, "L K K"]:
    """``sup_x weight |d|^q``, infinite where i is not finer than j."""
    curved = _supremum(weight, c.peak, q) * c.top.clamp(min=0) ** (q / 2)
    return torch.where(c.finer, torch.where(c.parallel, weight.largest * c.gap.norm(dim=3) ** q, curved), math.inf)


# Constants of the score in one dimension: branch and bound -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Lines:
    """N one-dimensional mixtures by natural parameters relative to the first component, coordinates centred at the mean.

    Up to a function common to all components, ``log(weight density)_k = height_k + slope_k x - excess_k x^2 / 2``.
    """

    height: Float[Tensor, "N K"]
    slope: Float[Tensor, "N K"]
    excess: Float[Tensor, "N K"]
    precision: Float[Tensor, " N"]

    def __getitem__(self, which: Tensor) -> _Lines:
        return _Lines(self.height[which], self.slope[which], self.excess[which], self.precision[which])


def _natural(lines: _Stacked) -> _Lines:
    centred = lines.means - (lines.log_weights.exp() * lines.means).sum(1, keepdim=True)
    P = 1 / lines.variances
    height = lines.log_weights + P.log() / 2 - P * centred.square() / 2
    slope = P * centred
    return _Lines(height - height[:, :1], slope - slope[:, :1], P - P[:, :1], P[:, 0])


@dataclasses.dataclass(frozen=True)
class _Cells:
    """Posterior weights, centred scores and centred precisions at cell centers, with bounds over the cells.

    Attributes:
        weight, apart, excess: at the centers, shape (cells, K).
        most_weight, most_apart: bounds of weight and of |apart| over each cell, shape (cells, K).
        precision: mean precision at the centers, shape (cells,).
    """

    weight: Tensor
    apart: Tensor
    excess: Tensor
    most_weight: Tensor
    most_apart: Tensor
    precision: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over components at the centers."""
        return (self.weight * values).sum(1)

    def most(self, values: Tensor) -> Tensor:
        """Bound of the mean over each cell, given a bound of the values."""
        return (self.most_weight * values).sum(1)

    @property
    def variance(self) -> Tensor:
        return self.mean(self.apart.square())

    @property
    def third(self) -> Tensor:
        return self.mean(self.apart * (self.apart.square() - 3 * self.excess))

    @property
    def fourth(self) -> Tensor:
        square = self.apart.square()
        return self.mean(square.square() - 6 * self.excess * square + 3 * self.excess.square()) - 3 * self.variance.square()

    @property
    def most_second(self) -> Tensor:
        return self.most(self.most_apart.square() + self.excess.abs())

    @property
    def most_third(self) -> Tensor:
        return self.most(self.most_apart * (self.most_apart.square() + 3 * self.excess.abs()))

    @property
    def most_fourth(self) -> Tensor:
        square, excess = self.most_apart.square(), self.excess.abs()
        return self.most(square.square() + 6 * excess * square + 3 * excess.square()) + 3 * self.most_second.square()

    @property
    def most_fifth(self) -> Tensor:
        square, excess = self.most_apart.square(), self.excess.abs()
        odd = self.most(self.most_apart * (square.square() + 10 * excess * square + 15 * excess.square()))
        return odd + 10 * self.most_second * self.most_third


def _cells(lines: _Lines, x: Tensor, radius: Tensor) -> _Cells:
    """Evaluate cells ``[x - radius, x + radius]``, one per line of ``lines``.

    Up to a function common to all, component k has log density ``log w_k + c_k y - e_k y^2 / 2`` at the center plus y.
    """
    x, r = x.unsqueeze(1), radius.unsqueeze(1)
    log_weight = torch.log_softmax(lines.height + lines.slope * x - lines.excess * x.square() / 2, 1)
    weight = log_weight.exp()
    score = lines.slope - lines.excess * x
    apart = score - (weight * score).sum(1, keepdim=True)
    shift = (weight * lines.excess).sum(1, keepdim=True)
    excess = lines.excess - shift
    up = log_weight + apart.abs() * r + (-excess).clamp(min=0) * r.square() / 2
    down = log_weight - apart.abs() * r - excess.clamp(min=0) * r.square() / 2
    most_weight = (up - torch.logsumexp(down, 1, keepdim=True)).clamp(max=0).exp()
    reach = apart.abs() + r * excess.abs()
    most_apart = reach + (most_weight * reach).sum(1, keepdim=True)
    return _Cells(weight, apart, excess, most_weight, most_apart, lines.precision + shift.squeeze(1))


@dataclasses.dataclass(frozen=True)
class _Objective:
    """|f| at cell centers, |f'| there, and a bound of |f''| over the cells."""

    value: Callable[[_Cells], Tensor]
    slope: Callable[[_Cells], Tensor]
    most_bend: Callable[[_Cells], Tensor]


_SECOND = _Objective(lambda c: (c.variance - c.precision).abs(), lambda c: c.third.abs(), lambda c: c.most_fourth)
_THIRD = _Objective(lambda c: c.third.abs(), lambda c: c.fourth.abs(), lambda c: c.most_fifth)


@dataclasses.dataclass(frozen=True)
class _Maximum:
    bound: Float[Tensor, " N"]
    exact: Bool[Tensor, " N"]


def _maximise(objective: _Objective, lines: _Lines, left: Tensor, right: Tensor, start: Tensor) -> _Maximum:
    """Certified maximum of |f| on ``[left, right]`` and of ``start``, a value known to be approached, for each line."""
    best, which = start.clone(), torch.arange(len(start)).repeat_interleave(_SEARCH_CELLS)
    fraction = ((torch.arange(_SEARCH_CELLS, dtype=torch.float64) + 0.5) / _SEARCH_CELLS).repeat(len(start))
    x = left[which] + (right - left)[which] * fraction
    radius = (right - left)[which] / (2 * _SEARCH_CELLS)
    quarters = torch.tensor([-0.75, -0.25, 0.25, 0.75], dtype=torch.float64)
    upper = x.new_zeros(0)
    for _ in range(_SEARCH_ROUNDS):
        cells = _cells(lines[which], x, radius)
        value = objective.value(cells)
        upper = value + radius * objective.slope(cells) + radius.square() / 2 * objective.most_bend(cells)
        best = best.scatter_reduce(0, which, value, "amax")
        unsettled = ~(upper <= best[which] * (1 + _SEARCH_TOLERANCE))
        which, x, radius, upper = which[unsettled], x[unsettled], radius[unsettled], upper[unsettled]
        if not len(which) or len(which) > _SEARCH_LIMIT:
            break
        x = (x.unsqueeze(1) + radius.unsqueeze(1) * quarters).flatten()
        which, radius, upper = which.repeat_interleave(4), radius.repeat_interleave(4) / 4, upper.repeat_interleave(4)
    bound = (best * (1 + _SEARCH_TOLERANCE)).scatter_reduce(0, which, upper, "amax")
    return _Maximum(bound, torch.ones_like(best, dtype=torch.bool).scatter(0, which, torch.zeros_like(which, dtype=torch.bool)))


@dataclasses.dataclass(frozen=True)
class _Tail:
    """Where a tail starts, and bounds of the second derivative's distance from its limit and of the third derivative beyond."""

    start: Float[Tensor, " N"]
    second: Float[Tensor, " N"]
    third: Float[Tensor, " N"]


def _right_tail(lines: _Lines) -> _Tail:
    """The tail where the widest component (of several, the rightmost) dominates.

    With ``d_j`` the score of component j minus the widest's and ``rho_j`` the ratio of their densities, ``rho_j |d_j|^q`` decreases
    in x once ``d_j < 0`` and ``d_j^2 >= q (P_j - P)``.
    """
    real = torch.isfinite(lines.height)
    widest = torch.where(real, lines.excess, math.inf).amin(1, keepdim=True)
    first = torch.where(real & (lines.excess == widest), lines.slope, -math.inf).argmax(1, keepdim=True)
    height, slope, excess = (v - v.gather(1, first) for v in (lines.height, lines.slope, lines.excess))
    other = real & ((slope != 0) | (excess != 0))
    x = lines.precision.rsqrt()
    while True:
        apart = slope - excess * x.unsqueeze(1)
        log_ratio = height + slope * x.unsqueeze(1) - excess * x.square().unsqueeze(1) / 2
        settled = ((log_ratio <= _TAIL_LOG_RATIO) & (apart < 0) & (apart.square() >= 3 * excess) | ~other).all(1)
        if settled.all():
            break
        x = torch.where(settled, x, 2 * x)
    ratio = torch.where(other, log_ratio.exp(), 0)
    reach, gap = (ratio * apart.abs()).sum(1), (ratio * excess).sum(1)
    third = (ratio * apart.abs() * (8 * apart.square() + 3 * excess)).sum(1) + 3 * gap * reach
    return _Tail(x, gap + (ratio * apart.square()).sum(1), third)


def _line_constants(mixtures: Sequence[GaussianMixture], abar: Tensor) -> ScoreConstants:
    """The largest constants of one-dimensional mixtures at each level, by certified search."""
    stacked, level = _stacked(mixtures), abar.reshape(-1, 1, 1)
    noised = _Stacked(
        stacked.log_weights.expand(len(abar), -1, -1).flatten(0, 1),
        (level.sqrt() * stacked.means).flatten(0, 1),
        (level * stacked.variances + 1 - level).flatten(0, 1),
    )
    lines = _natural(noised)
    joined = _joined([_search(lines[chunk]) for chunk in torch.arange(len(lines.precision)).split(_SEARCH_CHUNK)])
    return _largest(ScoreConstants(*(v.reshape(len(abar), len(mixtures)).T for v in dataclasses.astuple(joined))))


def _search(lines: _Lines) -> ScoreConstants:
    right, left = _right_tail(lines), _right_tail(_Lines(lines.height, -lines.slope, lines.excess, lines.precision))
    limit = lines.precision + torch.where(torch.isfinite(lines.height), lines.excess, math.inf).amin(1)
    second = _maximise(_SECOND, lines, -left.start, right.start, limit)
    third = _maximise(_THIRD, lines, -left.start, right.start, torch.zeros_like(limit))
    L0 = torch.maximum(second.bound, limit + torch.maximum(left.second, right.second))
    L1 = torch.maximum(third.bound, torch.maximum(left.third, right.third))
    return ScoreConstants(L0, L1, second.exact, third.exact)


def _unit_search(peak: Float[Tensor, " L"]) -> ScoreConstants:
    """For precisions 0 and 1, means 0 and log ratio ``peak`` at 0: the largest second (signed) and third log derivatives.

    Shifting both precisions by -1 makes the second derivative positive, so that its modulus can be searched.
    """
    zero, one = torch.zeros_like(peak), torch.ones_like(peak)
    lines = _Lines(torch.stack([zero, peak], 1), torch.stack([zero, zero], 1), torch.stack([zero, one], 1), one)
    tail = _right_tail(lines)
    shifted = _Lines(lines.height, lines.slope, lines.excess, -one)
    second = _maximise(_SECOND, shifted, -tail.start, tail.start, one)
    third = _maximise(_THIRD, lines, -tail.start, tail.start, zero)
    L0 = torch.maximum(second.bound, 1 + tail.second) - 1
    return ScoreConstants(L0, torch.maximum(third.bound, tail.third), second.exact, third.exact)
