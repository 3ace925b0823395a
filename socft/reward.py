r"""Rewards :math:`r(x)` with the constants the theory needs.

``L0`` is the Lipschitz constant of the reward and ``L1`` that of its gradient (both may be
infinite), Euclidean and operator norms (assumption 2.6 of arXiv 2412.18164v4). Every constant is
exact, a supremum or its limit, except where a docstring says upper bound. A reward maps states of
shape ``batch *dims`` to one number per sample; scalar rewards act on states of shape (batch, 1) and
reach vectors through `RidgeFunction`, :math:`r_1(q^\top x)`, or `Separable`,
:math:`\sum_i r_i(q_i^\top x)` with orthonormal :math:`q_i`.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    SYMMETRY_TOLERANCE,
    InvalidProblem,
    Numbers,
    numbers,
    require,
    require_finite,
)
from socft.readable import Readable
from socft.reference import States

PerSample = Float[Tensor, " batch"]
Scalars = Float[Tensor, "batch 1"]

# absolute: a QR factor in float64 is orthonormal to about d eps, one rounded to float32 is not
_ORTHONORMAL_TOLERANCE = 1e-8


class Reward(Readable, abc.ABC):
    """A reward to maximise at the end of the chain.

    >>> isinstance(Sine(), Reward)
    True
    >>> Sine(frequency=2.0).gradient(torch.zeros(1, 1))
    tensor([[2.]])
    """

    @property
    @abc.abstractmethod
    def L0(self) -> float:
        """Lipschitz constant of the reward; ``inf`` where there is none."""

    @property
    @abc.abstractmethod
    def L1(self) -> float:
        """Lipschitz constant of the gradient; ``inf`` where there is none."""

    @abc.abstractmethod
    def __call__(self, x: States) -> PerSample:
        """The reward of each sample."""

    def gradient(self, x: States) -> States:
        """``grad r``, detached; by automatic differentiation unless a subclass knows better."""
        with torch.enable_grad():
            y = x.detach().requires_grad_(True)
            value = self(y).sum()
            gradient = (
                torch.autograd.grad(value, y, allow_unused=True)[0] if value.requires_grad else None
            )
        if gradient is None:
            raise InvalidProblem(
                "the reward has no gradient: its value does not depend on the states through"
                " differentiable operations; compute it by torch, or give a Reward with a gradient"
                " of its own."
            )
        return gradient


@dataclasses.dataclass(frozen=True, eq=False)
class Linear(Reward):
    """``r(x) = w . x + c`` with ``w`` of the shape of one state. L0 = |w|, L1 = 0.

    >>> Linear([3.0, 4.0]).L0
    5.0
    """

    w: Tensor
    c: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "w", _tensor(self.w, "w"))
        _require_number(self.c, "c")

    @property
    def L0(self) -> float:
        return float(self.w.norm())

    @property
    def L1(self) -> float:
        return 0.0

    def __call__(self, x: States) -> PerSample:
        return (x * self.w.to(x)).flatten(1).sum(1) + self.c

    def gradient(self, x: States) -> States:
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
        P = _tensor(self.P, "P")
        require(
            P.ndim == 2 and P.shape[0] == P.shape[1],
            f"P has shape {tuple(P.shape)}; give a square matrix.",
        )
        skew = float((P - P.T).abs().max())
        require(
            skew <= SYMMETRY_TOLERANCE * max(1.0, float(P.abs().max())),
            f"P differs from its transpose by {skew:g}; give the symmetric part (P + P') / 2, which"
            " is the same reward.",
        )
        q = torch.zeros(len(P), dtype=torch.float64) if self.q is None else _tensor(self.q, "q")
        require(
            q.shape == P.shape[:1],
            f"q has shape {tuple(q.shape)}; with this P it must be ({len(P)},).",
        )
        _require_number(self.c, "c")
        object.__setattr__(self, "P", (P + P.T) / 2)
        object.__setattr__(self, "q", q)

    @property
    def L0(self) -> float:
        return math.inf if bool((self.P != 0).any()) else float(self.linear.norm())

    @property
    def L1(self) -> float:
        return float(torch.linalg.matrix_norm(self.P, 2))

    @property
    def linear(self) -> Float[Tensor, " n"]:
        """The coefficient ``q``, never None."""
        assert self.q is not None
        return self.q

    def __call__(self, x: States) -> PerSample:
        return (x * (x @ self.P.to(x) / 2 + self.linear.to(x))).sum(1) + self.c

    def gradient(self, x: States) -> States:
        return (x @ self.P.to(x) + self.linear.to(x)).detach()


@dataclasses.dataclass(frozen=True)
class Sine(Reward):
    """Scalar ``r(x) = amplitude sin(frequency x + phase)``. L0 = |amplitude| frequency, L1 =
    |amplitude| frequency^2.

    >>> Sine(amplitude=0.5, frequency=2.0).L1
    2.0
    """

    amplitude: float = 1.0
    frequency: float = 1.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        _require_number(self.amplitude, "amplitude")
        _require_positive(self.frequency, "frequency")
        _require_number(self.phase, "phase")

    @property
    def L0(self) -> float:
        return abs(self.amplitude) * self.frequency

    @property
    def L1(self) -> float:
        return abs(self.amplitude) * self.frequency**2

    def __call__(self, x: Scalars) -> PerSample:
        return self.amplitude * torch.sin(self.frequency * _scalar(x) + self.phase)

    def gradient(self, x: Scalars) -> Scalars:
        return self.amplitude * self.frequency * torch.cos(self.frequency * x.detach() + self.phase)


@dataclasses.dataclass(frozen=True)
class Softplus(Reward):
    """Scalar ``r(x) = slope log(1 + exp(sharpness (x - center))) / sharpness``: from flat to
    ``slope``.

    L0 = |slope| (in the limit x -> inf), L1 = |slope| sharpness / 4 (at the center).

    >>> Softplus()(torch.zeros(1, 1))
    tensor([0.6931])
    """

    slope: float = 1.0
    sharpness: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        _require_number(self.slope, "slope")
        _require_positive(self.sharpness, "sharpness")
        _require_number(self.center, "center")

    @property
    def L0(self) -> float:
        return abs(self.slope)

    @property
    def L1(self) -> float:
        return abs(self.slope) * self.sharpness / 4

    def __call__(self, x: Scalars) -> PerSample:
        rise = self.sharpness * (_scalar(x) - self.center)
        return -self.slope / self.sharpness * torch.nn.functional.logsigmoid(-rise)

    def gradient(self, x: Scalars) -> Scalars:
        return self.slope * torch.sigmoid(self.sharpness * (x.detach() - self.center))


@dataclasses.dataclass(frozen=True)
class PseudoHuber(Reward):
    """Scalar ``r(x) = weight delta^2 (sqrt(1 + ((x - center) / delta)^2) - 1)``: quadratic near the
    center, linear far away.

    A negative weight rewards closeness to the center. L0 = |weight| delta (in the limit), L1 =
    |weight| (at the center).

    >>> PseudoHuber(center=1.0)(torch.tensor([[1.0], [4.0]]))
    tensor([-0.0000, -2.1623])
    """

    delta: float = 1.0
    center: float = 0.0
    weight: float = -1.0

    def __post_init__(self) -> None:
        _require_positive(self.delta, "delta")
        _require_number(self.center, "center")
        _require_number(self.weight, "weight")

    @property
    def L0(self) -> float:
        return abs(self.weight) * self.delta

    @property
    def L1(self) -> float:
        return abs(self.weight)

    def __call__(self, x: Scalars) -> PerSample:
        square = ((_scalar(x) - self.center) / self.delta).square()
        return self.weight * self.delta**2 * square / (1 + (1 + square).sqrt())

    def gradient(self, x: Scalars) -> Scalars:
        u = (x.detach() - self.center) / self.delta
        return self.weight * self.delta * u / torch.hypot(u, torch.ones_like(u))


@dataclasses.dataclass(frozen=True, eq=False)
class RidgeFunction(Reward):
    """``r(x) = scalar(q . x)`` on vectors. L0 = |q| L0(scalar), L1 = |q|^2 L1(scalar).

    Attributes:
        q: direction of any length, shape (n,).
        scalar: a reward of states of shape (batch, 1).

    >>> RidgeFunction([3.0, 4.0], Sine()).L0
    5.0
    """

    q: Float[Tensor, " n"]
    scalar: Reward

    def __post_init__(self) -> None:
        q = _tensor(self.q, "q")
        require(
            q.ndim == 1 and bool((q != 0).any()),
            f"q has shape {tuple(q.shape)}; give a non-zero vector.",
        )
        object.__setattr__(self, "q", q)

    @property
    def L0(self) -> float:
        return float(self.q.norm()) * self.scalar.L0

    @property
    def L1(self) -> float:
        return float(self.q.square().sum()) * self.scalar.L1

    def __call__(self, x: States) -> PerSample:
        return self.scalar((x @ self.q.to(x)).unsqueeze(1))

    def gradient(self, x: States) -> States:
        return self.scalar.gradient((x @ self.q.to(x)).unsqueeze(1)) * self.q.to(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Separable(Reward):
    """``r(x) = sum_i scalars_i(q_i . x)`` with orthonormal ``q_i``.

    The coordinates ``q_i . x`` vary independently, so the suprema add up: L0 = sqrt(sum_i L0_i^2)
    and L1 = max_i L1_i, both exact whenever the scalar constants are.

    Attributes:
        rotation: the directions as columns, shape (n, m) with m <= n.
        scalars: m rewards of states of shape (batch, 1).

    >>> Separable(torch.eye(2), [Sine(), Softplus()])(torch.zeros(1, 2))
    tensor([0.6931])
    """

    rotation: Float[Tensor, "n m"]
    scalars: Sequence[Reward]

    def __post_init__(self) -> None:
        object.__setattr__(self, "rotation", orthonormal(self.rotation, "rotation"))
        object.__setattr__(self, "scalars", tuple(self.scalars))
        columns = self.rotation.shape[1]
        require(
            len(self.scalars) == columns,
            f"there are {len(self.scalars)} scalar rewards for {columns} directions; give one"
            " each.",
        )

    @property
    def L0(self) -> float:
        return math.hypot(*(r.L0 for r in self.scalars))

    @property
    def L1(self) -> float:
        return max(r.L1 for r in self.scalars)

    def __call__(self, x: States) -> PerSample:
        z = x @ self.rotation.to(x)
        return torch.stack([r(z[:, i : i + 1]) for i, r in enumerate(self.scalars)]).sum(0)

    def gradient(self, x: States) -> States:
        z = x @ self.rotation.to(x)
        return torch.cat(
            [r.gradient(z[:, i : i + 1]) for i, r in enumerate(self.scalars)], 1
        ) @ self.rotation.T.to(x)


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
        w = _tensor(self.directions, "directions")
        require(w.ndim == 2, f"directions has shape {tuple(w.shape)}; give (K, n).")
        b = (
            torch.zeros(len(w), dtype=torch.float64)
            if self.offsets is None
            else _tensor(self.offsets, "offsets")
        )
        require(
            b.shape == w.shape[:1],
            f"offsets has shape {tuple(b.shape)}; with these directions it must be ({len(w)},).",
        )
        _require_positive(self.temperature, "temperature")
        object.__setattr__(self, "directions", w)
        object.__setattr__(self, "offsets", b)

    @property
    def L0(self) -> float:
        return float(self.directions.norm(dim=1).max())

    @property
    def L1(self) -> float:
        spread = self.directions.unsqueeze(0) - self.directions.unsqueeze(1)
        return float(spread.norm(dim=2).max()) ** 2 / 4 / self.temperature

    def __call__(self, x: States) -> PerSample:
        assert self.offsets is not None
        levels = x @ self.directions.T.to(x) + self.offsets.to(x)
        return self.temperature * torch.logsumexp(levels / self.temperature, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Sum(Reward):
    """``r(x) = sum_i weights_i rewards_i(x)``; the constants add, so they are upper bounds.

    Attributes:
        rewards: at least one reward.
        weights: one number each, 1 by default; rewards of weight zero are dropped.

    >>> Sum([Sine(), Quadratic([[-1.0]])], weights=[1.0, 0.1])(torch.zeros(1, 1))
    tensor([0.])
    """

    rewards: Sequence[Reward]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        weights = (
            [1.0] * len(self.rewards) if self.weights is None else [float(w) for w in self.weights]
        )
        require(len(self.rewards) > 0, "there are 0 rewards; give at least one.")
        require(
            len(weights) == len(self.rewards),
            f"there are {len(weights)} weights for {len(self.rewards)} rewards.",
        )
        require_finite(
            torch.tensor(weights, dtype=torch.float64),
            "weights",
            "every weight must be a finite number.",
        )
        kept = [(r, w) for r, w in zip(self.rewards, weights, strict=True) if w != 0]
        require(bool(kept), "every weight is 0; give at least one that is not.")
        object.__setattr__(self, "rewards", tuple(r for r, _ in kept))
        object.__setattr__(self, "weights", tuple(w for _, w in kept))

    @property
    def terms(self) -> tuple[tuple[float, Reward], ...]:
        """The weighted rewards."""
        assert self.weights is not None
        return tuple(zip(self.weights, self.rewards, strict=True))

    @property
    def L0(self) -> float:
        return sum(abs(w) * r.L0 for w, r in self.terms)

    @property
    def L1(self) -> float:
        return sum(abs(w) * r.L1 for w, r in self.terms)

    def __call__(self, x: States) -> PerSample:
        return torch.stack([w * r(x) for w, r in self.terms]).sum(0)

    def gradient(self, x: States) -> States:
        return torch.stack([w * r.gradient(x) for w, r in self.terms]).sum(0)


class FunctionReward(Reward):
    """Any function of states as a reward; the constants are the caller's word, infinite by default.

    Args:
        function: ``batch *dims -> batch``, differentiable if `gradient` is to be used.
        L0: Lipschitz constant of the function.
        L1: Lipschitz constant of its gradient.

    >>> reward = FunctionReward(lambda x: x.square().sum(1), L1=2.0)
    >>> reward.gradient(torch.tensor([[3.0]]))
    tensor([[6.]])
    """

    def __init__(
        self, function: Callable[[States], PerSample], L0: float = math.inf, L1: float = math.inf
    ):
        for name, value in (("L0", L0), ("L1", L1)):
            require(
                value >= 0,
                f"{name} = {value}; give a number that is at least 0, or leave it out if there is"
                " none.",
            )
        self.function = function
        self._L0, self._L1 = float(L0), float(L1)

    @property
    def L0(self) -> float:
        return self._L0

    @property
    def L1(self) -> float:
        return self._L1

    def __call__(self, x: States) -> PerSample:
        return self.function(x)


def as_reward(reward: Reward | Callable[[States], PerSample]) -> Reward:
    """A reward as it is, or a function of the states as a `FunctionReward`.

    Raises:
        InvalidProblem: neither.
    """
    require(
        callable(reward),
        f"the reward is a {type(reward).__name__}; give a Reward or a function of the states.",
    )
    return reward if isinstance(reward, Reward) else FunctionReward(reward)


def as_quadratic(reward: Reward) -> Quadratic:
    """A linear, quadratic or sum of such rewards on vectors as one `Quadratic`; closed forms start
    here.

    Raises:
        InvalidProblem: the reward is of another kind.
    """
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


def orthonormal(matrix: Numbers, what: str) -> Float[Tensor, "n m"]:
    """A float64 matrix with orthonormal columns, checked.

    Raises:
        InvalidProblem: not a matrix, more columns than rows, or columns that are not orthonormal.
    """
    q = _tensor(matrix, what)
    require(
        q.ndim == 2 and q.shape[1] <= q.shape[0],
        f"{what} has shape {tuple(q.shape)}; give (n, m) with m <= n.",
    )
    error = float((q.T @ q - torch.eye(q.shape[1], dtype=q.dtype, device=q.device)).abs().max())
    require(
        error <= _ORTHONORMAL_TOLERANCE,
        f"{what} has columns that miss orthonormality by {error:g}; use the Q factor of its QR"
        " decomposition.",
    )
    return q


def _tensor(values: Numbers, what: str) -> Tensor:
    tensor = numbers(values, what)
    require(tensor.ndim >= 1, f"{what} is a single number; give a tensor.")
    require_finite(tensor, what, "every entry must be a finite number.")
    return tensor


def _scalar(x: Scalars) -> PerSample:
    require(
        x.ndim == 2 and x.shape[1] == 1,
        f"a scalar reward got states of shape {tuple(x.shape)}; wrap it in RidgeFunction.",
    )
    return x[:, 0]


def _require_number(value: float, what: str) -> None:
    number = numbers(value, what)
    require(
        number.ndim == 0 and bool(number.isfinite()),
        f"{what} = {value}; it must be a finite number.",
    )


def _require_positive(value: float, what: str) -> None:
    number = numbers(value, what)
    require(
        number.ndim == 0 and bool(number.isfinite()) and bool(number > 0),
        f"{what} = {value}; it must be a positive finite number.",
    )
