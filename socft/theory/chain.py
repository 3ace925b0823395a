"""What the theory knows of a problem, and the units its quantities are measured in."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from socft.checks import per_step, require
from socft.reward import Reward
from socft.schedule import Schedule
from socft.theory.numbers import StepValues, positive_beta, require_each


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

    Raises:
        InvalidProblem: a coefficient that is not positive, a Lipschitz constant that is negative or
            not a number.
    """

    alpha: StepValues
    score_weight: StepValues
    sigma: StepValues
    score_L0: StepValues
    score_L1: StepValues
    reward_L0: float
    reward_L1: float
    dim: int = 1

    def __post_init__(self) -> None:
        steps = len(torch.as_tensor(self.alpha))
        for name in ("alpha", "score_weight", "sigma", "score_L0", "score_L1"):
            object.__setattr__(self, name, per_step(getattr(self, name), steps, name))
        for name in ("alpha", "score_weight", "sigma"):
            require_each(
                getattr(self, name),
                lambda x: (x > 0) & x.isfinite(),
                name,
                "it must be positive and finite.",
            )
        for name in ("score_L0", "score_L1"):
            require_each(
                getattr(self, name),
                lambda x: (x >= 0) & x.isfinite(),
                name,
                "a Lipschitz constant is finite and >= 0.",
            )
        for name in ("reward_L0", "reward_L1"):
            value = getattr(self, name)
            require(
                value >= 0,
                f"{name} = {value}; a Lipschitz constant is >= 0, or inf where there is none.",
            )
        require(self.dim >= 1, f"dim = {self.dim}; give at least 1.")

    @classmethod
    def of(
        cls,
        schedule: Schedule,
        score_L0: float | Tensor,
        score_L1: float | Tensor,
        reward: Reward,
        dim: int = 1,
    ) -> ChainConstants:
        """The chain of a schedule, a score with known Lipschitz constants and a reward."""
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
        )

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return len(self.alpha)


def shift_unit(chain: ChainConstants) -> StepValues:
    """``sqrt(a_t) / g_t``: ``U = s + shift_unit delta`` with ``delta = sigma v`` the shift of the
    mean; equality, shape (T,).
    """
    return chain.alpha.sqrt() / chain.score_weight


def score_unit(chain: ChainConstants) -> StepValues:
    """``sqrt(a_t) sigma_t / g_t``: ``U = s + score_unit v`` with v whitened; equality, (T,)."""
    return shift_unit(chain) * chain.sigma


def kl_weight(chain: ChainConstants) -> StepValues:
    """``g^2 / (2 a sigma^2)``: Lemma 2.5, (5)-(6),
    ``KL_t = kl_weight |U_t - s_t|^2 = |v_t|^2 / 2``; equality, (T,).
    """
    return chain.score_weight.square() / (2 * chain.alpha * chain.sigma.square())


def proximal_step(chain: ChainConstants, beta: float | Tensor) -> StepValues:
    """``rho_t = sigma_t^2 / beta_t``, the parameter of the Moreau envelope; equality, (T,)."""
    return chain.sigma.square() / positive_beta(beta, chain.steps)


def score_step(chain: ChainConstants, beta: float | Tensor) -> StepValues:
    """``kappa_t = sqrt(a_t) sigma_t^2 / (beta_t g_t)``, with which
    ``u* = s + kappa E grad V_{t+1}`` (18), (20); equality, (T,).
    """
    return shift_unit(chain) * proximal_step(chain, beta)
