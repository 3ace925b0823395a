r"""Estimators that regress on re-noised samples instead of along paths.

A sample :math:`x_0` of the policy, made by any sampler, is noised anew to the level of every step,
:math:`x_k = a_k x_0 + s_k \epsilon`, and the model is regressed there on what made it. In whitened
controls the regression on the velocity :math:`y` of the pair :math:`(x_0, \epsilon)` is

.. math:: |u_\theta(x_k) - y|^2 = c_k^2\, |v_k(x_k) - w_k|^2,

with the control :math:`w_k` that goes by the endpoint :math:`x_0` and the velocity unit
:math:`c_k = \sigma_k/J_k`. Nothing of a path but its end is read, so that a chain that ends at a
noise level above 0 stands in for the data with its last states, as published code does.

Noise level: none enters but the units of the control; the levels are those of the reference.
"""

from __future__ import annotations

import abc
import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, require, require_kinds, require_states
from socft.costates.base import Cost
from socft.estimators.base import Estimator, Labels, RowsT
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import DenoisingReference, States
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class Renoised(Readable):
    """Samples at the levels of all steps.

    Attributes:
        reference: whose levels these are.
        samples: what was noised, shape (batch, *dims).
        states: shape (T, batch, *dims).
        controls: that go by the samples, shape (T, batch, *noise_dims).
    """

    reference: DenoisingReference
    samples: Float[Tensor, "batch *dims"]
    states: Float[Tensor, "steps batch *dims"]
    controls: Float[Tensor, "steps batch *noise_dims"]

    def controls_of(self, policy: Policy) -> Float[Tensor, "steps batch *noise_dims"]:
        """The controls of a policy at the states."""
        return torch.stack([policy(k, x) for k, x in enumerate(self.states)])


@dataclasses.dataclass(frozen=True)
class RenoisingEstimator(Estimator[RowsT]):
    """Labels of re-noised samples; the loss of a label is a regression of the velocity, or of the
    endpoint, in units of the control.

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
        return Cost(reference=1)

    @property
    def couples_batch(self) -> bool:
        """One generator serves all samples in turn, and rewards are compared."""
        return True

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels[RowsT]:
        return self.label_samples(problem, policy, path.final)

    @torch.no_grad()
    def label_samples(
        self, problem: ControlProblem, policy: Policy, samples: States
    ) -> Labels[RowsT]:
        """Labels of samples of any sampler at the levels of all steps, shape (batch, *dims)."""
        require_states(samples, problem.reference.dims, f"{type(self).__name__}")
        require(
            problem.running_cost is None,
            f"there is a running cost; {type(self).__name__} sees the reward of samples alone.",
        )
        return self.label_renoised(
            problem, policy, renoise(problem, samples, self.generator), problem.reward(samples)
        )

    @abc.abstractmethod
    def label_renoised(
        self, problem: ControlProblem, policy: Policy, renoised: Renoised, rewards: PerSample
    ) -> Labels[RowsT]:
        """Labels of re-noised samples with their rewards, computed without a graph."""


def renoise(problem: ControlProblem, samples: States, generator: torch.Generator) -> Renoised:
    """Samples at the levels of all steps, with noise of their own at each.

    Raises:
        InvalidProblem: the reference is no `DenoisingReference`.
    """
    reference = denoising(problem)
    shape = (problem.steps, *samples.shape)
    noise = torch.randn(
        shape, generator=generator, dtype=samples.dtype, device=generator.device
    ).to(samples)
    states = torch.stack([reference.renoise(k, samples, noise[k]) for k in range(problem.steps)])
    controls = torch.stack(
        [reference.control_to(k, states[k], samples) for k in range(problem.steps)]
    )
    return Renoised(reference, samples, states, controls)


def denoising(problem: ControlProblem) -> DenoisingReference:
    """The reference of a problem, refused unless it removes noise from data."""
    reference = problem.reference
    if not isinstance(reference, DenoisingReference):
        raise InvalidProblem(
            f"the reference is a {type(reference).__name__}; samples are noised anew at the levels"
            " of a DenoisingReference: give a ScoreReference or a FlowReference.",
        )
    return reference
