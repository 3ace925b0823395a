r"""Estimators that regress on re-noised samples instead of along paths.

A sample z of the policy, made by any sampler, is noised anew to the level of every step,
:math:`x_k = a_k z + s_k \epsilon`, and the model is regressed there on what made it. In whitened
controls the regression on the velocity y of the pair :math:`(z, \epsilon)` is

.. math:: |u_\theta(x_k) - y|^2 = c_k^2\, |v_k(x_k) - w_k|^2,

with the control :math:`w_k` that goes by the pair and the velocity unit :math:`c_k`. Nothing of a
path but its end is read.

The last states of a chain may have noise left, :math:`x_T = a_T x_0 + s_T e`. Then
:math:`z = x_T/a_T` already has noise of the size :math:`t = s_T/a_T`, so that
:math:`x_k = a_k z + \kappa_k s_k \epsilon` with :math:`\kappa_k^2 = 1 - (a_k t/s_k)^2` is a state
of level k, and what has the mean :math:`E[x_0 | x_k]` is
:math:`z - t^2 a_k\, \epsilon/(\kappa_k s_k)` (derived here). Without noise left both are the
published ones.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require, require_finite, require_kinds, require_states
from socft.costates.base import Cost
from socft.estimators.base import Estimator, Labels, RowsT
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem, require_reference
from socft.readable import Readable
from socft.reference import DenoisingReference, States, Step
from socft.reward import PerSample

PerStep = Float[Tensor, " steps"]


@dataclasses.dataclass(frozen=True)
class RenoisingLevels(Readable):
    """How states of the last level are noised to those that the steps start from.

    Attributes:
        reference: whose levels these are.
    """

    reference: DenoisingReference

    @functools.cached_property
    def signal(self) -> PerStep:
        """``a_k``."""
        return self.reference.signal_and_noise[0][:-1]

    @functools.cached_property
    def noise(self) -> PerStep:
        """``s_k``."""
        return self.reference.signal_and_noise[1][:-1]

    @functools.cached_property
    def scale(self) -> Float[Tensor, ""]:
        """``a_T``."""
        return self.reference.signal_and_noise[0][-1]

    @functools.cached_property
    def left(self) -> Float[Tensor, ""]:
        """``t``, the noise left in ``z``."""
        return self.reference.signal_and_noise[1][-1] / self.scale

    @functools.cached_property
    def fresh(self) -> PerStep:
        """``kappa_k s_k``, the noise that is added."""
        return (self.noise.square() - (self.signal * self.left).square()).sqrt()

    @functools.cached_property
    def velocity_units(self) -> PerStep:
        """By what a unit of control moves the velocity of a step, negative."""
        return self._units(self.reference.velocity_unit)

    @functools.cached_property
    def endpoint_units(self) -> PerStep:
        """By what a unit of control moves the endpoint of a step."""
        return self._units(self.reference.endpoint_unit)

    def _units(self, unit: Callable[[Step, States], Tensor]) -> PerStep:
        x = torch.zeros(1, 1, dtype=torch.float64)
        return torch.stack([unit(k, x).reshape(()) for k in range(self.reference.steps)])

    def per_step(self, values: PerStep, like: Tensor) -> Float[Tensor, "steps *ones"]:
        """A number per step, to broadcast against something of shape (T, batch, ...)."""
        return values.to(like).reshape(-1, *[1] * (like.ndim - 1))


@dataclasses.dataclass(frozen=True)
class Renoised(Readable):
    """Samples at the levels of all steps.

    Attributes:
        levels: of the steps.
        samples: what was noised, states of the last level, shape (batch, *dims).
        states: shape (T, batch, *dims).
        endpoints: what has the mean ``E[x_0 | x_k]``, shape (T, batch, *dims).
    """

    levels: RenoisingLevels
    samples: Float[Tensor, "batch *dims"]
    states: Float[Tensor, "steps batch *dims"]
    endpoints: Float[Tensor, "steps batch *dims"]

    @functools.cached_property
    def controls(self) -> Float[Tensor, "steps batch *noise_dims"]:
        """Those that go by the pairs of sample and noise."""
        return self.controls_to(self.endpoints)

    def controls_to(
        self, endpoints: Float[Tensor, "steps batch *dims"]
    ) -> Float[Tensor, "steps batch *noise_dims"]:
        """The controls at the states that go by endpoints."""
        control_to = self.levels.reference.control_to
        return torch.stack([control_to(k, x, endpoints[k]) for k, x in enumerate(self.states)])

    def controls_of(self, policy: Policy) -> Float[Tensor, "steps batch *noise_dims"]:
        """The controls of a policy at the states."""
        return torch.stack([policy(k, x) for k, x in enumerate(self.states)])

    def per_sample(self, values: PerSample) -> Float[Tensor, "batch *ones"]:
        """A number per sample, to broadcast against states."""
        return values.reshape(-1, *[1] * (self.samples.ndim - 1))


@dataclasses.dataclass(frozen=True)
class RenoisingEstimator(Estimator[RowsT]):
    """Labels of re-noised samples; the loss of a label is a regression of the velocity or of the
    endpoint, in controls.

    Attributes:
        generator: makes the noise of the samples.

    >>> isinstance(RAM(torch.Generator()), RenoisingEstimator)
    True
    """

    generator: torch.Generator

    def __post_init__(self) -> None:
        require_kinds(self, generator=torch.Generator)

    @property
    def cost(self) -> Cost:
        """The control of a pair takes the pre-trained mean; the policy's own is the one before an
        update.
        """
        return Cost(reference=1, policy=1)

    @property
    def couples_batch(self) -> bool:
        """One generator serves all samples in turn."""
        return True

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[RowsT]:
        return self.label_samples(problem, policy, path.final)

    @torch.no_grad()
    def label_samples(
        self,
        problem: ControlProblem,
        policy: Policy,
        samples: States,
        noise: Float[Tensor, "steps batch *dims"] | None = None,
    ) -> Labels[RowsT]:
        """Labels of samples of any sampler at the levels of all steps.

        Args:
            samples: states of the last level, shape (batch, *dims).
            noise: standard normal; drawn where it is left out.

        Raises:
            InvalidProblem: the reference is no `DenoisingReference`, there is a running cost, or a
                reward is not finite.
        """
        name = type(self).__name__
        require_states(samples, problem.reference.dims, name)
        require(
            problem.running_cost is None,
            f"there is a running cost; {name} sees the reward of samples alone.",
        )
        if noise is None:
            shape, device = (problem.steps, *samples.shape), self.generator.device
            noise = torch.randn(
                shape, generator=self.generator, dtype=samples.dtype, device=device
            ).to(samples)
        rewards = problem.reward(samples)
        require_finite(
            rewards, "the reward of sample ", "it must be a finite number: check its domain."
        )
        return self.label_renoised(problem, policy, renoise(problem, samples, noise), rewards)

    @abc.abstractmethod
    def label_renoised(
        self, problem: ControlProblem, policy: Policy, renoised: Renoised, rewards: PerSample
    ) -> Labels[RowsT]:
        """Labels of re-noised samples with their rewards, computed without a graph."""


def renoise(
    problem: ControlProblem, samples: States, noise: Float[Tensor, "steps batch *dims"]
) -> Renoised:
    """Samples at the levels of all steps, with standard normal noise of their own at each.

    Raises:
        InvalidProblem: the reference is no `DenoisingReference`.
    """
    levels = RenoisingLevels(denoising(problem))
    signal, fresh = (levels.per_step(each, noise) for each in (levels.signal, levels.fresh))
    clean, left = samples / levels.scale.to(samples), levels.left.to(samples)
    states = signal * clean + fresh * noise
    endpoints = clean - left.square() * (signal / fresh) * noise
    return Renoised(levels, samples, states, endpoints)


def denoising(problem: ControlProblem) -> DenoisingReference:
    """The reference of a problem, refused unless it removes noise from data."""
    remedy = (
        "samples are noised anew to the levels of a DenoisingReference: give a ScoreReference or a"
        " FlowReference."
    )
    return require_reference(problem, DenoisingReference, remedy)


def matching_weights(
    problem: ControlProblem, renoised: Renoised, share: PerStep
) -> Float[Tensor, "steps batch"]:
    """Weights with which a matching loss is ``share_k |v_k - target|^2``, summed over entries."""
    beta = problem.beta.to(renoised.states)
    weights = 2 * share.to(beta) / beta
    return weights[:, None].expand(renoised.states.shape[:2]).contiguous()
