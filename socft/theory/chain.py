"""What the theory knows of a problem, and the units its quantities are measured in."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, per_step, require
from socft.reward import Reward
from socft.schedule import Schedule

PerStep = Float[Tensor, " steps"]
PerState = Float[Tensor, " steps_plus_1"]

ROUNDING = 1e-9
"""Relative slack for comparing two numbers that are equal in exact arithmetic (thousands of float64
roundings).
"""


@dataclasses.dataclass(frozen=True)
class Chain:
    """What the theory knows of a problem: coefficients and Lipschitz constants, one value per step
    where the shape is (T,).

    Attributes:
        alpha: ``a_t``, shape (T,).
        gain: ``g_t`` (``1 - a_t`` for DDPM), shape (T,).
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

    alpha: PerStep
    gain: PerStep
    sigma: PerStep
    score_L0: PerStep
    score_L1: PerStep
    reward_L0: float
    reward_L1: float
    dim: int = 1

    def __post_init__(self) -> None:
        steps = len(torch.as_tensor(self.alpha))
        for name in ("alpha", "gain", "sigma", "score_L0", "score_L1"):
            object.__setattr__(self, name, per_step(getattr(self, name), steps, name))
        for name in ("alpha", "gain", "sigma"):
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
    ) -> Chain:
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


def shift_unit(chain: Chain) -> PerStep:
    """``sqrt(a_t) / g_t``: ``U = s + shift_unit delta`` with ``delta = sigma v`` the shift of the
    mean; equality, shape (T,).
    """
    return chain.alpha.sqrt() / chain.gain


def score_unit(chain: Chain) -> PerStep:
    """``sqrt(a_t) sigma_t / g_t``: ``U = s + score_unit v`` with v whitened; equality, shape (T,)."""
    return shift_unit(chain) * chain.sigma


def kl_weight(chain: Chain) -> PerStep:
    """``g^2 / (2 a sigma^2)``: Lemma 2.5, (5)-(6),
    ``KL_t = kl_weight |U_t - s_t|^2 = |v_t|^2 / 2``; equality, (T,).
    """
    return chain.gain.square() / (2 * chain.alpha * chain.sigma.square())


def proximal_step(chain: Chain, beta: float | Tensor) -> PerStep:
    """``rho_t = sigma_t^2 / beta_t``, the parameter of the Moreau envelope; equality, (T,)."""
    return chain.sigma.square() / positive_beta(beta, chain.steps)


def control_gain(chain: Chain, beta: float | Tensor) -> PerStep:
    """``kappa_t = sqrt(a_t) sigma_t^2 / (beta_t g_t)``, with which
    ``u* = s + kappa E grad V_{t+1}`` (18), (20); equality, (T,).
    """
    return shift_unit(chain) * proximal_step(chain, beta)


def times(*factors: float) -> float:
    """The product in which zero times infinity is zero."""
    return 0.0 if 0 in factors else math.prod(factors)


def vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def positive_beta(beta: float | Tensor, steps: int) -> PerStep:
    weights = per_step(beta, steps, "beta")
    require_each(weights, lambda x: x > 0, "beta", "every KL weight must be positive.")
    return weights


def require_each(values: Tensor, holds: Callable[[Tensor], Tensor], what: str, remedy: str) -> None:
    """Raise `InvalidProblem` naming the first entry for which ``holds`` is false."""
    bad = (~holds(values)).nonzero().flatten().tolist()
    if bad:
        raise InvalidProblem(f"{what}[{bad[0]}] = {values[bad[0]]:g}; {remedy}")
