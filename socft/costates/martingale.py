r"""Martingale increments from a costate field, the control variates of the adjoint recursion.

With :math:`x_{k+1} = \bar x_k + B_k \xi_k`, :math:`\bar x_k = m_k + B_k v_k`, and a field
:math:`\phi` that does not depend on the noise of the path, each of these has mean zero given
:math:`x_k`:

* `FirstOrderCorrection`: :math:`dM_k = \nabla \phi_{k+1}(\bar x_k)\, B_k \xi_k`;
* `AntitheticCorrection`: :math:`dM_k = \tfrac12 \big(\phi_{k+1}(\bar x_k + B_k \xi_k) -
  \phi_{k+1}(\bar x_k - B_k \xi_k)\big)`;
* `SecondOrderCorrection`: the first plus :math:`\tfrac12 (\nabla^2 \phi_{k+1}[B_k \xi_k, B_k \xi_k]
  - \sum_i \nabla^2 \phi_{k+1}[B_k e_i, B_k e_i])` at :math:`\bar x_k`;
* `ExactCorrection`: :math:`dM_k = \phi_{k+1}(x_{k+1}) - E[\phi_{k+1}(x_{k+1}) \mid x_k]`.

If :math:`\phi` is the mean of the costate itself, the last leaves no variance at all at any step
size, and all do where :math:`\phi` is affine. With that field the antithetic form never adds
variance, since it removes the part that is odd in the noise, which is uncorrelated with the even
one. The expansions can: where the noise of one step is wider than the scale on which :math:`\phi`
varies, as at few steps of a law with two modes, they leave several times the variance of no
correction.

Control variates that are martingale increments of an approximate solution are of Newton (1994) for
diffusions and of Belomestny et al. (arXiv 1510.03141) for their discretisations; martingales in
gradients of controlled diffusions are of Gobet and Munos (2005). Their use within the recursions of
discrete costates, where they act on every step, is derived here.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, require, require_kinds, whole
from socft.costates.base import Cost
from socft.costates.directional import VectorField, columns, derivative, second_derivative, trace
from socft.costates.fields import (
    Correction,
    CostateSource,
    differentiated,
    times,
    total,
    with_terminal,
)
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, Reference, States

CHUNK = 2**16
"""Evaluations of the field at once in `ExactCorrection`."""
COARSER = 0.7
"""Share of the nodes that `ExactCorrection.error` compares with."""
LARGEST_NOISE = 3


@dataclasses.dataclass(frozen=True)
class CorrectionStep:
    """What an increment of step k is made of.

    Attributes:
        reference: the pre-trained chain.
        k: the step.
        state: ``x_k``, shape (batch, *dims).
        centre: ``m_k + B_k v_k``, shape (batch, *dims).
        noise: ``xi_k``, shape (batch, *noise_dims).
        phi: the field of step k + 1.
    """

    reference: Reference
    k: int
    state: States
    centre: States
    noise: Noises
    phi: VectorField

    @property
    def noise_increment(self) -> States:
        """``B_k xi_k``."""
        return self.diffuse(self.noise)

    def diffuse(self, noise: Noises) -> States:
        """``B_k(x_k) z`` for some multiple of the batch of noises, whose states repeat."""
        state = self.state.repeat(len(noise) // len(self.state), *[1] * (self.state.ndim - 1))
        return self.reference.diffusion.apply(self.k, state, noise)


@dataclasses.dataclass(frozen=True)
class FieldCorrection(Correction):
    """An increment made of one field.

    Attributes:
        source: where the field comes from; at k + 1 = T it is the gradient of the reward.
        last: whether to correct the last step, which takes derivatives of that gradient.
    """

    source: CostateSource
    last: bool = True

    def __post_init__(self) -> None:
        require_kinds(self, source=CostateSource, last=bool)

    @torch.no_grad()
    def increment(
        self, problem: ControlProblem, policy: Policy, path: Path, k: int
    ) -> Float[Tensor, "batch *dims"]:
        if k + 1 == problem.steps and not self.last:
            return torch.zeros_like(path.states[k])
        return self.of(correction_step(self.source, problem, policy, path, k)).detach()

    @abc.abstractmethod
    def of(self, at: CorrectionStep) -> States:
        """The increment."""


def correction_step(
    source: CostateSource, problem: ControlProblem, policy: Policy, path: Path, k: int
) -> CorrectionStep:
    """What the increment of step k of a path is made of; no evaluation of the reference or of the
    policy.
    """
    field, x = with_terminal(problem, source.field(problem, policy)), path.states[k]
    noise = path.noise.steps[k].to(x)
    centre = path.states[k + 1] - problem.reference.diffusion.apply(k, x, noise)
    return CorrectionStep(problem.reference, k, x, centre, noise, lambda y: field(k + 1, y))


class FirstOrderCorrection(FieldCorrection):
    """One Jacobian-vector product of the field per step."""

    @property
    def cost(self) -> Cost:
        return differentiated(self.source.cost)

    def of(self, at: CorrectionStep) -> States:
        return derivative(at.phi, at.centre, at.noise_increment)


class AntitheticCorrection(FieldCorrection):
    """Two evaluations of the field per step and no derivative; the odd part of the field along the
    noise.
    """

    @property
    def cost(self) -> Cost:
        return times(2, self.source.cost)

    def of(self, at: CorrectionStep) -> States:
        return (at.phi(at.centre + at.noise_increment) - at.phi(at.centre - at.noise_increment)) / 2


class SecondOrderCorrection(FieldCorrection):
    """One more second derivative than the noise has entries; for noise of few."""

    @property
    def cost(self) -> Cost:
        return total(
            differentiated(self.source.cost), times(2, differentiated(self.source.cost, 2))
        )

    def of(self, at: CorrectionStep) -> States:
        along = second_derivative(at.phi, at.centre, at.noise_increment)
        around = trace(at.phi, at.centre, columns(at.reference, at.k, at.state))
        return derivative(at.phi, at.centre, at.noise_increment) + (along - around) / 2


@dataclasses.dataclass(frozen=True)
class ExactCorrection(FieldCorrection):
    """The mean of the field by a tensor Gauss-Hermite rule, for noise of at most three dimensions.

    Its conditional mean is zero up to the error of that rule, see `error`.

    Attributes:
        nodes: nodes of the rule per dimension of the noise.
    """

    nodes: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, nodes=whole(self.nodes, "nodes", most=200))

    @property
    def cost(self) -> Cost:
        return times(self.nodes + 1, self.source.cost)

    def of(self, at: CorrectionStep) -> States:
        return at.phi(at.centre + at.noise_increment) - mean(at, self.nodes)

    @torch.no_grad()
    def error(self, problem: ControlProblem, policy: Policy, path: Path, k: int) -> float:
        """Largest change of the conditional mean of step k with 0.7 times the nodes, relative to
        the largest field value.
        """
        at = correction_step(self.source, problem, policy, path, k)
        fine, coarse = mean(at, self.nodes), mean(at, max(1, int(COARSER * self.nodes)))
        return float(
            (fine - coarse).abs().max() / fine.abs().max().clamp(min=torch.finfo(fine.dtype).tiny)
        )


def mean(at: CorrectionStep, nodes: int) -> States:
    """``E phi(centre + B z)``, z ~ N(0, I), by a tensor Gauss-Hermite rule."""
    require(
        at.noise.ndim == 2 and at.noise.shape[1] <= LARGEST_NOISE,
        f"noise has shape {tuple(at.noise.shape[1:])}; the exact mean is for vectors of length"
        f" {LARGEST_NOISE} at most: use FirstOrderCorrection or AntitheticCorrection.",
    )
    (batch, m), total_mean = at.noise.shape, torch.zeros_like(at.centre)
    z, w = (
        torch.from_numpy(each).to(at.noise) for each in np.polynomial.hermite_e.hermegauss(nodes)
    )
    points = torch.tensor(list(itertools.product(z.tolist(), repeat=m)), dtype=torch.float64).to(
        at.noise
    )
    weights = (
        torch.tensor(list(itertools.product((w / w.sum()).tolist(), repeat=m)), dtype=torch.float64)
        .prod(1)
        .to(at.noise)
    )
    for part, weight in zip(
        points.split(max(1, CHUNK // batch)), weights.split(max(1, CHUNK // batch)), strict=True
    ):
        moved = at.centre.repeat(len(part), 1) + at.diffuse(part.repeat_interleave(batch, 0))
        total_mean += torch.einsum("q,qbn->bn", weight, at.phi(moved).reshape(len(part), batch, -1))
    return total_mean
