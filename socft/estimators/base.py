r"""The interface of every gradient estimator.

An estimator turns a rollout into labels once, without a graph, and then offers a pointwise loss on any minibatch of (k, x) pairs.
A matching estimator supplies only its target control; its loss is :math:`\beta_k |v_k(x) - \text{target}|^2 / 2`.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, States, Step
from socft.reward import PerSample
from socft.rollout import Path

Kind = Literal["objective gradient", "fixed-point residual", "biased"]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Labels of a batch of paths, with the states they belong to.

    Attributes:
        states: shape (T, batch, *dims).
        targets: shape (T, batch, *noise_dims).
    """

    states: Float[Tensor, "steps batch *dims"]
    targets: Float[Tensor, "steps batch *noise_dims"]


class Estimator(abc.ABC):
    """Labels along paths and a pointwise loss whose gradient is the estimate."""

    estimates: ClassVar[Kind]

    @abc.abstractmethod
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        """Labels of every (k, sample) of a path, computed without a graph."""

    @abc.abstractmethod
    def loss(self, problem: ControlProblem, policy: Policy, k: Step, x: States, target: Noises) -> PerSample:
        """The loss of a minibatch, differentiable in the policy's parameters."""


class MatchingEstimator(Estimator):
    """An estimator whose labels are target controls."""

    def loss(self, problem: ControlProblem, policy: Policy, k: Step, x: States, target: Noises) -> PerSample:
        residual = (policy(k, x) - target).flatten(1).square().sum(1)
        beta = problem.beta.to(residual)
        return (beta[k.to(beta.device)] if isinstance(k, Tensor) else beta[k]) * residual / 2
