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
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    Numbers,
    described,
    per_step,
    probe,
    require,
    require_callable,
    require_kind,
    require_positive,
    returned,
)
from socft.probing import probe_states
from socft.readable import Readable
from socft.reference import Reference, States, Step
from socft.reward import PerSample, Reward, as_reward

ReferenceT = TypeVar("ReferenceT", bound=Reference)
RunningCost = Callable[[Step, States], PerSample]


@dataclasses.dataclass(frozen=True, eq=False)
class ControlProblem(Readable):
    """Reference, reward and KL weight, validated when made.

    Attributes:
        reference: the pre-trained chain.
        reward: the terminal reward, or a function of the states ``batch *dims -> batch`` that
            automatic differentiation can follow; its values are probed on two initial states.
        beta: KL weight, one positive number or one per step; stored with shape (T,).
        running_cost: optional ``f_k(x)``, subtracted from the objective at every step k < T.

    Raises:
        InvalidProblem: beta not positive and finite or of the wrong length, a reward or a running
            cost that is not one finite number per sample.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> ControlProblem(reference, lambda x: -x.square().sum(1), beta=0.5)
    ControlProblem(
        reference=AffineReference(
            steps=3,
            dims=(1,),
            diffusion=ScalarDiffusion(sigma=[0.5, 0.5, 0.5]),
            offset=[[0], [0], [0]],
            initial_mean=[0],
            initial_factor=[[1]],
            transition=DenseMaps(matrices=[[[0.9]], [[0.9]], [[0.9]]]),
        ),
        reward=FunctionReward(function=<lambda>, L0=inf, L1=inf),
        beta=[0.5, 0.5, 0.5],
    )
    """

    reference: Reference
    reward: Reward
    beta: Tensor
    running_cost: RunningCost | None = None

    if TYPE_CHECKING:  # what is given, beside what is kept

        def __init__(
            self,
            reference: Reference,
            reward: Reward | Callable[[States], PerSample],
            beta: Numbers,
            running_cost: RunningCost | None = None,
        ) -> None: ...

    def __post_init__(self) -> None:
        require_kind(
            self.reference,
            Reference,
            "the reference",
            "give a Reference, such as score_reference(density, schedule).",
        )
        object.__setattr__(self, "reward", as_reward(self.reward))
        object.__setattr__(self, "beta", _kl_weights(self.beta, self.reference.steps))
        with torch.no_grad():
            x = self.reference.initial(probe_states(self.reference.dims))
            probe(self.reward, (x,), (2,), "the reward")
            if self.running_cost is not None:
                require_callable(self.running_cost, "the running cost", "of step and states")
                for k in (0, self.steps - 1):
                    probe(self.running_cost, (k, x), (2,), "the running cost")

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.reference.steps

    def constant_beta(self, what: str) -> float:
        """The KL weight, which ``what`` needs to be the same at every step.

        Raises:
            InvalidProblem: it is not.
        """
        low, high = float(self.beta.min()), float(self.beta.max())
        require(low == high, f"beta runs from {low:g} to {high:g}; {what} needs a constant beta.")
        return low

    def cost(self, k: Step, x: States) -> PerSample:
        """The running cost ``f_k(x)``, zero where there is none."""
        if self.running_cost is None:
            return x.new_zeros(len(x))
        return returned(self.running_cost(k, x), (len(x),), "the running cost")


def _kl_weights(beta: Numbers, steps: int) -> Float[Tensor, " steps"]:
    weights = per_step(beta, steps, "beta")
    require_positive(weights, "beta", "every KL weight must be positive.")
    return weights


def require_problem(problem: object) -> None:
    """Raise `InvalidProblem` unless this is a control problem."""
    remedy = "give a ControlProblem(reference, reward, beta)."
    require_kind(problem, ControlProblem, "the problem", remedy)


def require_reference(problem: ControlProblem, kind: type[ReferenceT], remedy: str) -> ReferenceT:
    """The reference of a problem, refused unless it is of a kind.

    Args:
        remedy: what needs that kind, and what to give.
    """
    reference = problem.reference
    if not isinstance(reference, kind):
        raise InvalidProblem(f"the reference is {described(reference)}; {remedy}")
    return reference
