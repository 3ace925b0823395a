r"""The score of the chain's marginal laws along the noise, :math:`B_k^\top \nabla \log p_{k+1}(x)`,
which reversing time needs.

The law of :math:`X_{k+1} = \bar x_k(X_k) + B_k \xi_k` has (derived here; no inverse of B is needed)

.. math:: B_k^\top \nabla \log p_{k+1}(x) = - E[\xi_k \mid X_{k+1} = x],

so a regression of :math:`-\xi_k` on :math:`x_{k+1}` is denoising score matching with the chain's
own transitions, also where the noise is degenerate. Implicit score matching (Hyvarinen 2005)
minimises :math:`E[|w|^2/2 + \sum_j B_j \cdot \nabla w_j]` over :math:`w = \theta \phi(x)`, with the
solution :math:`\theta_j = -E[\phi \phi^\top]^{-1} E[\nabla \phi\, B_j]`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    keep,
    positive,
    probe,
    require,
    require_callable,
    require_kinds,
)
from socft.costates.base import Cost
from socft.costates.directional import columns, derivative
from socft.costates.fields import FREE
from socft.path import Path
from socft.policy import AffinePolicy, Policy, Uncontrolled
from socft.problem import ControlProblem, require_reference
from socft.readable import Readable
from socft.reference import DenoisingReference, Noises, States, Step
from socft.regression.features import Features
from socft.regression.functions import Regression
from socft.reward import Linear
from socft.truth.affine_policy import evaluate_affine
from socft.truth.quadratic import affine_of

NoiseScore: TypeAlias = Callable[[int, States], Noises]
"""``(k, x_{k+1}) -> B_k^T grad log p_{k+1}(x_{k+1})``, k = 0..T-1."""

CHUNK = 256
"""States at once in a kernel mixture."""


class MarginalScore(Readable, abc.ABC):
    """A way to know the score of the marginal laws.

    Attributes:
        couples_batch: whether it is learnt from all paths of a batch.
    """

    couples_batch: ClassVar[bool] = False

    @property
    def cost(self) -> Cost:
        """What one evaluation of the score costs; networks of its own are not counted."""
        return FREE

    def smallest_batch(self, problem: ControlProblem) -> int:
        """The fewest paths that determine it; fewer are refused."""
        return 1

    @abc.abstractmethod
    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        """The score along the noise for paths of a policy."""


@dataclasses.dataclass(frozen=True)
class GivenScore(MarginalScore):
    """A score known beforehand, ``(k, x) -> grad log p_k(x)``; for a noised data law
    ``NoisedScore(density, schedule.abar)``.
    """

    score: Callable[[Step, States], States]

    def __post_init__(self) -> None:
        require_callable(self.score, "the score", "of step and states")

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        def scored(k: Step, x: States) -> Noises:
            found = probe(self.score, (k + 1, x), tuple(x.shape), "the score")
            return problem.reference.diffusion.transpose(k, x, found)

        return scored


@dataclasses.dataclass(frozen=True)
class ReferenceScore(MarginalScore):
    r"""The score that the denoising chain itself goes by, with the control's change, :math:`U_k(x)`
    of `DenoisingReference.score_of`.

    A denoising chain of which it is the score of the noised law of its own samples has these as its
    marginals. That is so, up to O(dt) on a memoryless schedule, of the pre-trained model without
    control, and, when beta is constant, of the optimum, whose score is that of the noised tilted
    law (equation 78 of arXiv 2412.18164v4); in between it is a guess. The last state is scored at
    the level before it.
    """

    @property
    def cost(self) -> Cost:
        return Cost(reference=1, policy=1, memory=0)

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        remedy = "only a DenoisingReference goes by a score."
        reference = require_reference(problem, DenoisingReference, remedy)
        last = problem.steps - 1

        def score(k: int, x: States) -> Noises:
            level = min(k + 1, last)
            return reference.diffusion.transpose(
                k, x, reference.score_of(level, x, policy(level, x))
            )

        return score


@dataclasses.dataclass(frozen=True)
class AffineMarginals(MarginalScore):
    """Exact Gaussian marginals, of an affine reference under an `AffinePolicy` or none."""

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        reference = affine_of(problem)
        affine = AffinePolicy.zeros(reference) if isinstance(policy, Uncontrolled) else policy
        if not isinstance(affine, AffinePolicy):
            raise InvalidProblem(
                f"the policy is a {type(policy).__name__}; only an AffinePolicy has Gaussian"
                " marginals.",
            )
        law = evaluate_affine(
            ControlProblem(reference, Linear(torch.zeros(reference.dims)), 1.0), affine
        )
        inverse = torch.linalg.pinv(law.covariance, hermitian=True)
        return lambda k, x: reference.diffusion.transpose(
            k, x, (law.mean[k + 1] - x) @ inverse[k + 1]
        )


@dataclasses.dataclass(frozen=True)
class DenoisingScore(MarginalScore):
    """Regression of minus the noise of the step on the state it led to."""

    regression: Regression
    couples_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_kinds(self, regression=Regression)

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.regression.smallest_sample(problem.reference.dims[0])

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        fits = [
            self.regression.fit(x, -xi)
            for x, xi in zip(path.states[1:], path.noise.steps, strict=True)
        ]
        return lambda k, x: fits[k](x)


@dataclasses.dataclass(frozen=True)
class ImplicitScore(MarginalScore):
    """Implicit score matching, linear in features, solved exactly (with least norm where the
    features are dependent).
    """

    features: Features
    couples_batch: ClassVar[bool] = True

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.features.count(problem.reference.dims[0])

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        weights = [self._solve(problem, k, path.states[k + 1]) for k in range(problem.steps)]
        return lambda k, x: self.features(x) @ weights[k]

    def _solve(self, problem: ControlProblem, k: int, x: Tensor) -> Tensor:
        design, along = self.features(x), columns(problem.reference, k, x)
        slopes = torch.stack([derivative(self.features, x, each).mean(0) for each in along], 1)
        return -torch.linalg.lstsq(design.T @ design / len(x), slopes, driver="gelsd").solution


@dataclasses.dataclass(frozen=True)
class TransitionScore(MarginalScore):
    """The mixture of the paths' own transition kernels, for noise that reaches every direction."""

    couples_batch: ClassVar[bool] = True

    def smallest_batch(self, problem: ControlProblem) -> int:
        return 2

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        diffusion, (n,) = problem.reference.diffusion, problem.reference.dims
        units = torch.eye(n, dtype=path.states.dtype)
        reached = [
            diffusion.apply(k, units, diffusion.whiten(k, units, units))
            for k in range(problem.steps)
        ]
        missed = max(float((r - units).abs().max()) for r in reached)
        require(
            missed < torch.finfo(units.dtype).eps ** 0.5,
            f"the noise misses a direction of the state by {missed:.2g}, and its kernels have no"
            " density; use DenoisingScore.",
        )

        def score(k: int, x: States) -> Noises:
            centres = path.states[k + 1] - diffusion.apply(
                k, path.states[k], path.noise.steps[k].to(x)
            )
            return -_posterior_mean(x, centres, lambda shift: diffusion.whiten(k, shift, shift))

        return score


@dataclasses.dataclass(frozen=True)
class KernelScore(MarginalScore):
    """A Gaussian kernel density estimate, with a width per step in units of the samples'
    covariance.

    Attributes:
        width: of the kernel; by default ``batch^(-1 / (n + 4))``, Scott's rule.
    """

    width: float | None = None
    couples_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        keep(self, width=None if self.width is None else positive(self.width, "width"))

    def smallest_batch(self, problem: ControlProblem) -> int:
        """One more than the dimensions, or the samples have no covariance of full rank."""
        return problem.reference.dims[0] + 1

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        _, batch, n = path.states.shape
        width = self.width or batch ** (-1 / (n + 4))

        def score(k: int, x: States) -> Noises:
            centres = path.states[k + 1]
            root = torch.linalg.cholesky(torch.cov(centres.T).reshape(n, n)) * width
            solve = torch.linalg.inv(root)
            return problem.reference.diffusion.transpose(
                k, x, -_posterior_mean(x, centres, lambda shift: shift @ solve.T) @ solve
            )

        return score


def _posterior_mean(x: Tensor, centres: Tensor, whiten: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean of ``whiten(x - centre)`` over the kernels that x may come from, each weighted by its
    standard normal density.
    """

    def of(rows: Tensor) -> Tensor:
        z = whiten((rows.unsqueeze(1) - centres).flatten(0, 1)).reshape(len(rows), len(centres), -1)
        return torch.einsum("bi,bim->bm", torch.softmax(-z.square().sum(2) / 2, 1), z)

    return torch.cat([of(rows) for rows in x.split(CHUNK)])
