"""Costates along paths: samples of the value function's gradient, and what they cost."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from socft.readable import Readable


@dataclasses.dataclass(frozen=True)
class Cost:
    """Network work per step and path of making labels; the rollout and the loss come on top.

    A derivative is one vector-Jacobian or Jacobian-vector product, and includes the evaluation it
    is taken of.

    Attributes:
        reference: evaluations of the pre-trained mean.
        reference_derivatives: derivatives of it.
        policy: evaluations of the policy.
        policy_derivatives: derivatives of it.
        memory: states per path needed beyond the path and the labels, in order of magnitude: 0, 1,
            or "T" where they grow with the steps. Numbers per step, such as returns, do not count.
    """

    reference: float = 0
    reference_derivatives: float = 0
    policy: float = 0
    policy_derivatives: float = 0
    memory: int | Literal["T"] = 1


@dataclasses.dataclass(frozen=True)
class CostateStep:
    """Samples of the costate of one step.

    Attributes:
        k: the step, 0..T.
        state: where, shape (batch, *dims).
        value: ``a_k``, shape (batch, *dims).
        next_costate: samples of ``E[a_{k+1} | x_k]``: ``a_{k+1}`` or something less noisy; None for
            k = T.
    """

    k: int
    state: Float[Tensor, "batch *dims"]
    value: Float[Tensor, "batch *dims"]
    next_costate: Float[Tensor, "batch *dims"] | None


@dataclasses.dataclass(frozen=True)
class Costates(Readable):
    """Samples of the costate at their states, k = 0..T.

    Attributes:
        states: shape (T + 1, batch, *dims).
        values: ``a_k``, shape (T + 1, batch, *dims); what else is regressed on states has a shape
            of its own.
        next_costate: samples of ``E[a_{k+1} | x_k]``, shape (T, batch, *dims), where there are any.
    """

    states: Float[Tensor, "steps_plus_1 batch *dims"]
    values: Float[Tensor, "steps_plus_1 batch *value_dims"]
    next_costate: Float[Tensor, "steps batch *dims"] | None = None
