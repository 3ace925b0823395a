r"""The KL-regularised control problem.

.. math:: \max_v\; E\Big[ r(X_T) - \sum_{k<T} \big( f_k(X_k) + \beta_k |v_k(X_k)|^2/2 \big) \Big],
   \qquad X_{k+1} = m_k(X_k) + B_k \big( v_k(X_k) + \xi_k \big).

``|v_k|^2 / 2`` is exactly the Kullback-Leibler divergence between the controlled and the
pre-trained kernel (Lemma 2.5 of arXiv 2412.18164v4), and with a constant beta the sum is beta times
the divergence between path laws (Remark 2.4). A cost minimisation is the same problem with
``r = -g``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from socft.checks import InvalidProblem, per_step, require, require_finite
from socft.reference import Reference, States, Step
from socft.reward import PerSample, Reward

RunningCost = Callable[[Step, States], PerSample]


@dataclasses.dataclass(frozen=True, init=False, eq=False)
class ControlProblem:
    """Reference, reward and KL weight, validated when made.

    Attributes:
        reference: the pre-trained chain.
        reward: the terminal reward; its values are probed on two initial states.
        beta: KL weight, one positive number or one per step; stored with shape (T,).
        running_cost: optional ``f_k(x)``, subtracted from the objective at every step k < T.

    Raises:
        InvalidProblem: beta not positive and finite or of the wrong length, a reward that is not
            one finite number per sample.
    """

    reference: Reference
    reward: Reward
    beta: Tensor
    running_cost: RunningCost | None = None

    def __init__(
        self,
        reference: Reference,
        reward: Reward,
        beta: float | Tensor,
        running_cost: RunningCost | None = None,
    ):
        weights = per_step(beta, reference.steps, "beta")
        require_finite(weights, "beta", "every KL weight must be a positive finite number.")
        low = (weights <= 0).nonzero().flatten().tolist()
        if low:
            raise InvalidProblem(
                f"beta[{low[0]}] = {weights[low[0]]:g}; every KL weight must be positive."
            )
        for name, value in (
            ("reference", reference),
            ("reward", reward),
            ("beta", weights),
            ("running_cost", running_cost),
        ):
            object.__setattr__(self, name, value)
        self._probe_reward()

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.reference.steps

    def cost(self, k: Step, x: States) -> PerSample:
        """The running cost ``f_k(x)``, zero where there is none."""
        return x.new_zeros(len(x)) if self.running_cost is None else self.running_cost(k, x)

    def _probe_reward(self) -> None:
        z = (
            torch.linspace(-0.5, 0.5, 2, dtype=torch.float64)
            .reshape(2, *[1] * len(self.reference.dims))
            .expand(2, *self.reference.dims)
        )
        with torch.no_grad():
            value = self.reward(self.reference.initial(z))
        found = (
            f"shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        require(
            isinstance(value, Tensor) and value.shape == (2,),
            f"the reward returned {found} for 2 samples; it must return one number per sample,"
            " shape (2,).",
        )
        require_finite(
            value,
            "reward",
            "the reward must be finite on every sample; check its domain and its weights.",
        )
