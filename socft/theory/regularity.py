"""Theorem 2.8 and Lemma 3.2 of arXiv 2412.18164v4: Lipschitz constants of value functions and
controls, step by step.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from socft.checks import InvalidProblem, per_step
from socft.theory.chain import ChainConstants, shift_unit
from socft.theory.numbers import (
    ROUNDING,
    StateValues,
    StepValues,
    positive_beta,
    product,
    require_each,
    vector,
)
from socft.theory.one_step import (
    SHARP,
    expected_norm,
    iterate_excess,
    mean_lipschitz,
    mean_smoothness,
    shift_lipschitz,
    shift_smoothness,
    smoothed_curvature,
    smoothed_third,
    value_lipschitz,
    value_smoothness,
)


class Bounds(abc.ABC):
    """Which constants enter the recursions: of the mean map, of the smoothed value function, and of
    PI-FT's overshoot.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``M``, shape (T,)."""

    @abc.abstractmethod
    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``K >= |Hess G V|`` for an L0-Lipschitz V with L1-Lipschitz gradient."""

    @abc.abstractmethod
    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``tau >= |D^3 G V| / K``."""

    @abc.abstractmethod
    def overshoot(self, lam: float) -> float:
        """``Lb0_t / (M Lb0_{t+1}) - 1``, by how much an unfinished iterate's value may be steeper
        than a finished one's.
        """


class PaperBounds(Bounds):
    """The paper's constants."""

    name = "paper"

    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``(1 + g L0s) / sqrt(a)``."""
        return mean_lipschitz(chain)

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """``L1V``: smoothing does not increase it."""
        return L1

    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """``C_d / sigma``, from ``|E[Hess V W]| <= L1V E|W|``; it grows like ``sqrt(d)``."""
        return expected_norm(dim) / sigma

    def overshoot(self, lam: float) -> float:
        """``q^2 / lam``, from ``|Jac delta_m| <= q D`` and ``|G_m - G_{m-1}| <= q^m Lb0`` with m >=
        1 (38).
        """
        return (1 - lam) ** 2 / lam


class SharpBounds(Bounds):
    """The constants derived here; at the same beta none is above the paper's.

    At the same lam the required beta is smaller, which may make the control rougher: L1u may then
    exceed the paper's in dimension one.

    Args:
        mean_L0: exact Lipschitz constants of the mean maps where they are known, shape (T,);
            ``(1 + g L0s) / sqrt(a)`` by default. Replacing M is allowed everywhere, because the
            score enters only through the mean map.
    """

    name = "sharp"

    def __init__(self, mean_L0: Tensor | None = None):
        self.mean_L0 = mean_L0

    def mean_lipschitz(self, chain: ChainConstants) -> StepValues:
        """``mean_L0`` where given.

        Raises:
            InvalidProblem: a given constant is negative or exceeds ``(1 + g L0s) / sqrt(a)``, and
                so is not the exact one.
        """
        largest = mean_lipschitz(chain)
        if self.mean_L0 is None:
            return largest
        exact = per_step(self.mean_L0, chain.steps, "mean_L0")
        outside = (
            (~((exact >= 0) & (exact <= largest * (1 + ROUNDING)))).nonzero().flatten().tolist()
        )
        if outside:
            t = outside[0]
            raise InvalidProblem(
                f"mean_L0[{t}] = {exact[t]:g}; it must lie between 0 and (1 + g L0s) / sqrt(a) ="
                f" {largest[t]:g}.",
            )
        return exact

    def curvature(self, L0: float, L1: float, sigma: float) -> float:
        """`smoothed_curvature`."""
        return smoothed_curvature(L0, L1, sigma)

    def third_derivative_ratio(self, L0: float, L1: float, sigma: float, dim: int) -> float:
        """`smoothed_third` over `smoothed_curvature`, between ``sqrt(2/pi) / sigma`` (where K =
        L1V) and ``1.36 / sigma``.

        ``sqrt(2/pi) / sigma`` alone would be wrong beside the smoothed curvature: the slope
        ``V' = L0 sign(x^2 - sigma^2)`` has ``D^3 G V = 2 / (sqrt(e) sigma) = 1.21 / sigma`` product
        ``sqrt(2/pi) L0 / sigma`` at x = 0.
        """
        curvature = smoothed_curvature(L0, L1, sigma)
        if curvature == 0 or math.isinf(curvature):
            return SHARP / sigma
        return smoothed_third(L0, L1, sigma) / curvature

    def overshoot(self, lam: float) -> float:
        """``max_{m >= 1} q^{m+1} (1 - q^m) / lam <= q / (4 lam)``, because
        ``|Jac delta_m| <= (q + ... + q^m) M``.

        As a function of ``x = q^m`` it is ``q x (1 - x) / lam``: an integer next to ``x = 1/2``
        attains the maximum.
        """
        if lam == 1:
            return 0.0
        log = math.log1p(-lam)
        middle = max(1, math.floor(math.log(0.5) / log))
        powers = (math.exp(m * log) for m in (middle, middle + 1))
        return max((1 - lam) * x * (1 - x) / lam for x in powers)


@dataclasses.dataclass(frozen=True)
class Regularity:
    """Lipschitz constants of value functions and controls along the chain.

    Attributes:
        L0V: of the value functions, shape (T + 1,).
        L1V: of their gradients, shape (T + 1,).
        L0u: of the controls U in the paper's score units, shape (T,).
        L1u: of the Jacobians of U, shape (T,).
        L0v: of the whitened controls, shape (T,).
        L1v: of their Jacobians, shape (T,).
        curvature: K, the bound on ``|Hess G V_{t+1}|``, shape (T,).
        third_derivative_ratio: tau, the bound on ``|D^3 G V_{t+1}| / K``, shape (T,).
        mean_L0: M, of the mean maps, shape (T,).
        lam: design constants, shape (T,); every inner step contracts by ``1 - lam``.
        beta_required: ``sigma^2 K / (1 - lam)``, the smallest beta with these lam, shape (T,); zero
            where K = 0.
    """

    L0V: StateValues
    L1V: StateValues
    L0u: StepValues
    L1u: StepValues
    L0v: StepValues
    L1v: StepValues
    curvature: StepValues
    third_derivative_ratio: StepValues
    mean_L0: StepValues
    lam: StepValues
    beta_required: StepValues


@dataclasses.dataclass(frozen=True)
class StepConstants:
    """The numbers of one step: Lipschitz constants of the mean map, bounds on the smoothed next
    value function, and lam.
    """

    mean_L0: float
    mean_L1: float
    curvature: float
    third_derivative_ratio: float
    lam: float


class RegularityStatement(abc.ABC):
    """A backward recursion of (L0V, L1V) under a set of `Bounds`."""

    source: ClassVar[str]

    def __init__(self, bounds: Bounds):
        self.bounds = bounds

    @property
    def name(self) -> str:
        """The statement's number and its constants."""
        return f"{self.source}, {self.bounds.name}"

    @abc.abstractmethod
    def step(self, local: StepConstants, L0: float, L1: float) -> tuple[float, float]:
        """``(L0V_t, L1V_t)`` from ``(L0V_{t+1}, L1V_{t+1})``."""


class Theorem28(RegularityStatement):
    """Theorem 2.8: regularity of the optimal value functions and controls, (14)-(17); upper
    bounds.
    """

    source = "Theorem 2.8"

    def step(self, local: StepConstants, L0: float, L1: float) -> tuple[float, float]:
        """(14) and (15)."""
        smooth = value_smoothness(L0, local.curvature, local.mean_L0, local.mean_L1, local.lam)
        return value_lipschitz(L0, local.mean_L0), smooth


class Lemma32(RegularityStatement):
    """Lemma 3.2: regularity of the value functions and controls of every iterate of PI-FT,
    (38)-(39); upper bounds.

    The controls obey (16)-(17) with the larger curvature. The constants are infinite for a reward
    with L0r = inf.
    """

    source = "Lemma 3.2"

    def step(self, local: StepConstants, L0: float, L1: float) -> tuple[float, float]:
        """(38) and (39)."""
        smooth = value_smoothness(L0, local.curvature, local.mean_L0, local.mean_L1, local.lam)
        excess = iterate_excess(
            L0,
            local.curvature,
            local.mean_L0,
            local.mean_L1,
            local.third_derivative_ratio,
            local.lam,
        )
        return product(local.mean_L0, 1 + self.bounds.overshoot(local.lam), L0), smooth + excess


def paper_constants(chain: ChainConstants, lam: float | Tensor) -> Regularity:
    """Theorem 2.8 with the paper's constants, (14)-(17), for
    ``beta_t >= sigma_t^2 L1V_{t+1} / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
    """
    return constants(chain, lam, Theorem28(PaperBounds()))


def sharp_constants(
    chain: ChainConstants, lam: float | Tensor, mean_L0: Tensor | None = None
) -> Regularity:
    """Theorem 2.8 with the constants derived here (see `SharpBounds`), valid for
    ``beta_t >= sigma_t^2 K_t / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        mean_L0: exact Lipschitz constants of the mean maps where known, shape (T,).
    """
    return constants(chain, lam, Theorem28(SharpBounds(mean_L0)))


def iterate_constants(chain: ChainConstants, lam: float | Tensor, bounds: Bounds) -> Regularity:
    """Lemma 3.2, (38)-(39), for every iterate of PI-FT with
    ``beta_t >= sigma_t^2 K_t / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        bounds: `PaperBounds` (then K = Lb1_{t+1}, the condition of Lemmas 3.3 and 3.4) or
            `SharpBounds`.
    """
    return constants(chain, lam, Lemma32(bounds))


def constants(
    chain: ChainConstants, lam: float | Tensor, statement: RegularityStatement
) -> Regularity:
    """The constants of a statement for chosen design constants ``lam`` in (0, 1), one number or
    shape (T,).
    """
    rates = per_step(lam, chain.steps, "lam")
    require_each(
        rates, lambda x: (x > 0) & (x < 1), "lam", "every design constant must lie in (0, 1)."
    )
    values = rates.tolist()
    return _backward(chain, statement, lambda t, _: values[t])


def constants_at(
    chain: ChainConstants, beta: float | Tensor, statement: RegularityStatement
) -> Regularity:
    """The constants of a statement for a given beta, with the largest design constants
    ``lam_t = 1 - sigma_t^2 K_t / beta_t``.

    Args:
        beta: KL weights, one positive number or shape (T,).

    Raises:
        InvalidProblem: some beta is too small for the statement; the message names the step and the
            beta that would do.
    """
    weights, variance = positive_beta(beta, chain.steps).tolist(), chain.sigma.square().tolist()

    def rate(t: int, curvature: float) -> float:
        enough = variance[t] * curvature
        ratio = enough / weights[t]
        if not ratio < 1:
            remedy = (
                f"raise beta[{t}] above {enough:g}"
                if math.isfinite(enough)
                else "give a reward with finite constants"
            )
            raise InvalidProblem(
                f"beta[{t}] = {weights[t]:g} gives sigma^2 L1 / beta = {ratio:g}, not below 1"
                f" ({statement.name}); {remedy}."
            )
        return 1 - ratio

    found = _backward(chain, statement, rate)
    return dataclasses.replace(
        found, beta_required=torch.where(found.curvature > 0, positive_beta(beta, chain.steps), 0.0)
    )


def _backward(
    chain: ChainConstants, statement: RegularityStatement, rate: Callable[[int, float], float]
) -> Regularity:
    """Run a statement from t = T - 1 down to 0, asking ``rate(t, K)`` for the design constant of
    each step.
    """
    bounds, mean_L0 = statement.bounds, statement.bounds.mean_lipschitz(chain)
    M, N, sigma = mean_L0.tolist(), mean_smoothness(chain).tolist(), chain.sigma.tolist()
    L0, L1 = chain.reward_L0, chain.reward_L1
    steps, values = [], [(L0, L1)]
    for t in reversed(range(chain.steps)):
        curvature = bounds.curvature(L0, L1, sigma[t])
        ratio = bounds.third_derivative_ratio(L0, L1, sigma[t], chain.dim)
        local = StepConstants(M[t], N[t], curvature, ratio, rate(t, curvature))
        L0, L1 = statement.step(local, L0, L1)
        steps.append(local)
        values.append((L0, L1))
    return _collect(chain, mean_L0, steps[::-1], values[::-1])


def _collect(
    chain: ChainConstants,
    mean_L0: Tensor,
    steps: list[StepConstants],
    values: list[tuple[float, float]],
) -> Regularity:
    lam, curvature = vector(x.lam for x in steps), vector(x.curvature for x in steps)
    shift_L0 = vector(shift_lipschitz(x.mean_L0, x.lam) for x in steps)
    shift_L1 = vector(
        shift_smoothness(x.mean_L0, x.mean_L1, x.third_derivative_ratio, x.lam) for x in steps
    )
    required = torch.where(curvature > 0, chain.sigma.square() * curvature / (1 - lam), 0.0)
    return Regularity(
        L0V=vector(x for x, _ in values),
        L1V=vector(x for _, x in values),
        L0u=chain.score_L0 + shift_unit(chain) * shift_L0,
        L1u=chain.score_L1 + shift_unit(chain) * shift_L1,
        L0v=shift_L0 / chain.sigma,
        L1v=shift_L1 / chain.sigma,
        curvature=curvature,
        third_derivative_ratio=vector(x.third_derivative_ratio for x in steps),
        mean_L0=mean_L0,
        lam=lam,
        beta_required=required,
    )
