"""Linear and quadratic rewards of vectors, and a smooth maximum of linear ones."""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    SYMMETRY_TOLERANCE,
    InvalidProblem,
    keep,
    number,
    numbers,
    positive,
    require,
    require_kind,
    require_states,
    zeros_or,
)
from socft.reference import States
from socft.reward.base import PerSample, Reward
from socft.reward.combined import Sum


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Reward):
    """``r(x) = w . x + c`` with ``w`` of the shape of one state. L0 = |w|, L1 = 0.

    >>> Linear([3.0, 4.0]).L0
    5.0
    """

    w: Tensor
    c: float = 0.0

    def __post_init__(self) -> None:
        w = numbers(self.w, "w")
        require(w.numel() > 0, f"w has shape {tuple(w.shape)}; give the shape of one state.")
        require(w.ndim >= 1, "w is a single number; give a tensor.")
        keep(self, w=w, c=number(self.c, "c"))

    @property
    def L0(self) -> float:
        return float(self.w.norm())

    @property
    def L1(self) -> float:
        return 0.0

    def __call__(self, x: States) -> PerSample:
        require_states(x, self.w.shape, "the linear reward")
        return (x * self.w.to(x)).flatten(1).sum(1) + self.c

    def gradient(self, x: States) -> States:
        require_states(x, self.w.shape, "the linear reward")
        return self.w.to(x).expand_as(x).clone()


@dataclasses.dataclass(frozen=True, eq=False)
class Quadratic(Reward):
    """``r(x) = x' P x / 2 + q . x + c`` on vectors, P symmetric of any sign.

    L0 is infinite unless P = 0 (then |q|); L1 = |P|, the operator norm.

    Attributes:
        P: shape (n, n).
        q: shape (n,), zero by default.
        c: a number.

    >>> reward = Quadratic([[-2.0]], q=[1.0])
    >>> reward(torch.tensor([[3.0]])), reward.L1
    (tensor([-6.]), 2.0)
    """

    P: Float[Tensor, "n n"]
    q: Float[Tensor, " n"] | None = None
    c: float = 0.0

    def __post_init__(self) -> None:
        P = numbers(self.P, "P", ("n", "n"))
        require(
            len(P) > 0 and P.shape[0] == P.shape[1],
            f"P has shape {tuple(P.shape)}; give a square matrix.",
        )
        skew = float((P - P.T).abs().max())
        require(
            skew <= SYMMETRY_TOLERANCE * max(1.0, float(P.abs().max())),
            f"P differs from its transpose by {skew:g}; give the symmetric part (P + P') / 2, which"
            " is the same reward.",
        )
        q = zeros_or(self.q, "q", (len(P),))
        keep(self, P=(P + P.T) / 2, q=q, c=number(self.c, "c"))

    @property
    def L0(self) -> float:
        return math.inf if bool((self.P != 0).any()) else float(self.linear.norm())

    @property
    def L1(self) -> float:
        return float(torch.linalg.matrix_norm(self.P, 2))

    @property
    def semiconcavity(self) -> float:
        return max(float(torch.linalg.eigvalsh(self.P)[-1]), 0.0)

    @property
    def semiconvexity(self) -> float:
        return max(-float(torch.linalg.eigvalsh(self.P)[0]), 0.0)

    @property
    def linear(self) -> Float[Tensor, " n"]:
        """The coefficient ``q``, never None."""
        assert self.q is not None
        return self.q

    def __call__(self, x: States) -> PerSample:
        require_states(x, self.linear.shape, "the quadratic reward")
        return (x * (x @ self.P.to(x) / 2 + self.linear.to(x))).sum(1) + self.c

    def gradient(self, x: States) -> States:
        require_states(x, self.linear.shape, "the quadratic reward")
        return (x @ self.P.to(x) + self.linear.to(x)).detach()


def as_quadratic(reward: Reward) -> Quadratic:
    """A linear, quadratic or sum of such rewards on vectors as one `Quadratic`; closed forms start
    here.

    Raises:
        InvalidProblem: the reward is of another kind.
    """
    require_kind(reward, Reward, "the reward", "give a Reward, such as Linear([1.0]).")
    if isinstance(reward, Quadratic):
        return reward
    if isinstance(reward, Linear) and reward.w.ndim == 1:
        return Quadratic(reward.w.new_zeros(len(reward.w), len(reward.w)), reward.w, reward.c)
    if isinstance(reward, Sum):
        terms = [(w, as_quadratic(r)) for w, r in reward.terms]
        P = torch.stack([w * r.P for w, r in terms]).sum(0)
        q = torch.stack([w * r.linear for w, r in terms]).sum(0)
        return Quadratic(P, q, sum(w * r.c for w, r in terms))
    raise InvalidProblem(
        f"{type(reward).__name__} has no closed-form tilt; use Linear, Quadratic or a Sum of them,"
        " or quadrature.",
    )


@dataclasses.dataclass(frozen=True, eq=False)
class LogSumExp(Reward):
    """``r(x) = temperature log sum_k exp((w_k . x + b_k) / temperature)``, a smooth maximum of
    affine functions.

    L0 = max_k |w_k|: exact, as the longest ``w_k`` wins along its own direction.
    L1 <= (max_jk |w_j - w_k| / 2)^2 / temperature by Popoviciu's inequality: an upper bound, exact
    for two directions.

    Attributes:
        directions: shape (K, n).
        offsets: shape (K,), zero by default.
        temperature: positive.

    >>> LogSumExp([[1.0, 0.0], [0.0, 1.0]], temperature=0.5)(torch.zeros(1, 2))
    tensor([0.3466])
    """

    directions: Float[Tensor, "K n"]
    offsets: Float[Tensor, " K"] | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        w = numbers(self.directions, "directions", ("K", "n"))
        require(w.numel() > 0, f"directions has shape {tuple(w.shape)}; give at least one.")
        b = zeros_or(self.offsets, "offsets", (len(w),))
        keep(self, directions=w, offsets=b, temperature=positive(self.temperature, "temperature"))

    @property
    def L0(self) -> float:
        return float(self.directions.norm(dim=1).max())

    @property
    def L1(self) -> float:
        spread = self.directions.unsqueeze(0) - self.directions.unsqueeze(1)
        return float(spread.norm(dim=2).max()) ** 2 / 4 / self.temperature

    @property
    def semiconvexity(self) -> float:
        return 0.0

    def __call__(self, x: States) -> PerSample:
        assert self.offsets is not None
        require_states(x, self.directions.shape[1:], "the log-sum-exp reward")
        levels = x @ self.directions.T.to(x) + self.offsets.to(x)
        return self.temperature * torch.logsumexp(levels / self.temperature, 1)
