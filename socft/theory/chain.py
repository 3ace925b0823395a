"""What the theory knows of a problem, and the units its quantities are measured in."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from socft.checks import (
    constant,
    keep,
    numbers,
    per_step,
    quoted,
    require,
    require_each,
    require_kind,
    require_positive,
    whole,
)
from socft.reward import Reward
from socft.schedule import Schedule
from socft.theory.arguments import checked
from socft.theory.numbers import StepValues, positive_beta


@dataclasses.dataclass(frozen=True)
class ChainConstants:
    """What the theory knows of a problem: coefficients and Lipschitz constants, one value per step
    where the shape is (T,).

    Attributes:
        alpha: ``a_t``, shape (T,).
        score_weight: ``g_t`` (``1 - a_t`` for DDPM), shape (T,).
        sigma: noise scale, shape (T,).
        score_L0: Lipschitz constant of the score, shape (T,) or one number.
        score_L1: Lipschitz constant of the score's Jacobian, shape (T,) or one number.
        reward_L0: Lipschitz constant of the reward, possibly infinite.
        reward_L1: Lipschitz constant of the reward's gradient, possibly infinite.
        dim: dimension d of a state; only the paper's constant (17) depends on it.
        score_sides: one-sided Lipschitz constants, bounds of the largest and of minus the smallest
            eigenvalue of the score's Jacobian, shape (T,) or one number each, where they are known;
            only `OneSidedBounds` looks at them.
        reward_sides: the same of the reward's Hessian, at least 0.

    Raises:
        InvalidProblem: a coefficient that is not positive, a Lipschitz constant that is negative or
            not a number, one-sided constants that no symmetric matrix satisfies.
    """

    alpha: StepValues
    score_weight: StepValues
    sigma: StepValues
    score_L0: StepValues
    score_L1: StepValues
    reward_L0: float
    reward_L1: float
    dim: int = 1
    score_sides: tuple[StepValues, StepValues] | None = None
    reward_sides: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        steps = len(numbers(self.alpha, "alpha", ("steps",)))
        for name in ("alpha", "score_weight", "sigma", "score_L0", "score_L1"):
            keep(self, **{name: per_step(getattr(self, name), steps, name)})
        for name in ("alpha", "score_weight", "sigma"):
            require_positive(getattr(self, name), name, "it must be positive and finite.")
        require_each(self.alpha, lambda x: x <= 1, "alpha", "a ratio of levels is at most 1.")
        for name in ("score_L0", "score_L1"):
            require_each(
                getattr(self, name),
                lambda x: (x >= 0) & x.isfinite(),
                name,
                "a Lipschitz constant is finite and >= 0.",
            )
        for name in ("reward_L0", "reward_L1"):
            keep(self, **{name: constant(getattr(self, name), name)})
        keep(self, dim=whole(self.dim, "dim"))
        self._check_sides(steps)

    def _check_sides(self, steps: int) -> None:
        if self.score_sides is not None:
            sides = _pair(self.score_sides, "score_sides")
            up, down = (per_step(side, steps, "score_sides") for side in sides)
            require_each(
                up + down,
                lambda x: x >= 0,
                "score_sides",
                "the largest eigenvalue of a matrix is not below its smallest: the two constants"
                " add up to at least 0.",
            )
            object.__setattr__(self, "score_sides", (up, down))
        if self.reward_sides is not None:
            sides = _pair(self.reward_sides, "reward_sides")
            keep(self, reward_sides=tuple(constant(side, "reward_sides") for side in sides))

    @property
    def score_up(self) -> StepValues:
        """Bound of the largest eigenvalue of the score's Jacobian, shape (T,)."""
        return self.score_L0 if self.score_sides is None else self._side(0)

    @property
    def score_down(self) -> StepValues:
        """Bound of minus the smallest, shape (T,)."""
        return self.score_L0 if self.score_sides is None else self._side(1)

    def _side(self, which: int) -> StepValues:
        assert self.score_sides is not None
        return torch.minimum(self.score_sides[which], self.score_L0)

    @property
    def reward_up(self) -> float:
        """Bound of the largest eigenvalue of the reward's Hessian, at least 0."""
        return min((self.reward_sides or (self.reward_L1,))[0], self.reward_L1)

    @property
    def reward_down(self) -> float:
        """Bound of minus the smallest, at least 0."""
        return min((self.reward_sides or (self.reward_L1,))[-1], self.reward_L1)

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        score_L0: float | Tensor,
        score_L1: float | Tensor,
        reward: Reward,
        dim: int = 1,
        score_sides: tuple[Tensor, Tensor] | None = None,
    ) -> ChainConstants:
        """The chain of a schedule, a score with known Lipschitz constants and a reward."""
        require_kind(schedule, Schedule, "the schedule", "give a Schedule, such as ddpm(levels).")
        require_kind(reward, Reward, "the reward", "give a Reward, such as Sine().")
        L0s, L1s = (
            per_step(values, schedule.steps, name)
            for values, name in ((score_L0, "score_L0"), (score_L1, "score_L1"))
        )
        return cls(
            schedule.alpha,
            schedule.score_weight,
            schedule.sigma,
            L0s,
            L1s,
            reward.L0,
            reward.L1,
            dim,
            score_sides,
            (reward.semiconcavity, reward.semiconvexity),
        )

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.alpha)


def _pair(sides: Any, name: str) -> tuple[Any, Any]:
    require(
        isinstance(sides, list | tuple) and len(sides) == 2,
        f"{name} = {quoted(sides)}; give two constants, of the upper and of the lower side.",
    )
    return sides[0], sides[1]


@checked(chain=ChainConstants)
def shift_unit(chain: ChainConstants) -> StepValues:
    """``sqrt(a_t) / g_t``: ``U = s + shift_unit delta`` with ``delta = sigma v`` the shift of the
    mean; equality, shape (T,).
    """
    return chain.alpha.sqrt() / chain.score_weight


@checked(chain=ChainConstants)
def score_unit(chain: ChainConstants) -> StepValues:
    """``sqrt(a_t) sigma_t / g_t``: ``U = s + score_unit v`` with v whitened; equality, (T,)."""
    return shift_unit(chain) * chain.sigma


@checked(chain=ChainConstants)
def kl_weight(chain: ChainConstants) -> StepValues:
    """``g^2 / (2 a sigma^2)``: Lemma 2.5, (5)-(6),
    ``KL_t = kl_weight |U_t - s_t|^2 = |v_t|^2 / 2``; equality, (T,).
    """
    return chain.score_weight.square() / (2 * chain.alpha * chain.sigma.square())


@checked(chain=ChainConstants)
def proximal_step(chain: ChainConstants, beta: float | Tensor) -> StepValues:
    """``rho_t = sigma_t^2 / beta_t``, the parameter of the Moreau envelope; equality, (T,)."""
    return chain.sigma.square() / positive_beta(beta, chain.steps)


@checked(chain=ChainConstants)
def score_step(chain: ChainConstants, beta: float | Tensor) -> StepValues:
    """``kappa_t = sqrt(a_t) sigma_t^2 / (beta_t g_t)``, with which
    ``u* = s + kappa E grad V_{t+1}`` (18), (20); equality, (T,).
    """
    return shift_unit(chain) * proximal_step(chain, beta)
