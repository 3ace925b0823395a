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

from socft.checks import InvalidProblem, numbers, per_step, require, require_each, require_kind
from socft.theory.arguments import checked
from socft.theory.bounds import Bounds, OneSidedBounds, PaperBounds, SharpBounds, StepConstants
from socft.theory.chain import ChainConstants, shift_unit
from socft.theory.numbers import (
    StateValues,
    StepValues,
    positive_beta,
    vector,
    whole_rounds,
)
from socft.theory.one_step import mean_smoothness
from socft.theory.relaxation import UNDAMPED, Relaxation
from socft.theory.smoothness import Smoothness

_LEAST = 1e-14
"""A smaller design constant is lost in 1 - lam."""


@dataclasses.dataclass(frozen=True)
class Regularity:
    """Lipschitz constants of value functions and controls along the chain.

    Attributes:
        L0V: of the value functions, shape (T + 1,).
        up: bounds of the largest eigenvalue of their Hessians, shape (T + 1,).
        down: of minus the smallest, shape (T + 1,); two-sided constants have ``up = down``.
        L0u: of the controls U in the paper's score units, shape (T,).
        L1u: of the Jacobians of U, shape (T,).
        L0v: of the whitened controls, shape (T,).
        L1v: of their Jacobians, shape (T,).
        smoothed_up: K+, bounds of the largest eigenvalue of ``Hess G V_{t+1}``, shape (T,).
        smoothed_down: K-, of minus the smallest, shape (T,).
        third_derivative_ratio: tau, the bound on ``|D^3 G V_{t+1}| / K``, shape (T,).
        mean_L0: M, of the mean maps, shape (T,).
        lam: design constants ``1 - rho K``, shape (T,), with the curvature K of the condition on
            beta: the larger of K+ and K- for the undamped iteration, K+ under the best relaxation.
        theta: relaxation factors of the inner iteration, shape (T,).
        rate: q, by which every inner step contracts, shape (T,); ``1 - lam`` if undamped.
        beta_required: ``sigma^2 K / (1 - lam)``, the smallest beta with these lam, shape (T,); zero
            where K = 0.
    """

    L0V: StateValues
    up: StateValues
    down: StateValues
    L0u: StepValues
    L1u: StepValues
    L0v: StepValues
    L1v: StepValues
    smoothed_up: StepValues
    smoothed_down: StepValues
    third_derivative_ratio: StepValues
    mean_L0: StepValues
    lam: StepValues
    theta: StepValues
    rate: StepValues
    beta_required: StepValues

    @property
    def L1V(self) -> StateValues:
        """Lipschitz constants of the gradients of the value functions, shape (T + 1,)."""
        return torch.maximum(self.up, self.down)

    @property
    def curvature(self) -> StepValues:
        """K, the bound on ``|Hess G V_{t+1}|``, shape (T,)."""
        return torch.maximum(self.smoothed_up, self.smoothed_down)


class RegularityStatement(abc.ABC):
    """A backward recursion of what is known of value functions under a set of `Bounds`."""

    source: ClassVar[str]

    def __init__(self, bounds: Bounds):
        require_kind(bounds, Bounds, "bounds", "give Bounds, such as SharpBounds().")
        self.bounds = bounds

    @property
    def name(self) -> str:
        """The statement's number and its constants."""
        return f"{self.source}, {self.bounds.name}"

    @abc.abstractmethod
    def start(self, chain: ChainConstants) -> Smoothness:
        """What is known of the reward."""

    @abc.abstractmethod
    def step(self, local: StepConstants, value: Smoothness) -> Smoothness:
        """What is known of V_t from what is known of V_{t+1}."""

    @abc.abstractmethod
    def shift(self, local: StepConstants) -> tuple[float, float]:
        """Lipschitz constants of the shift of the mean and of its Jacobian."""

    def updates(self, chain: ChainConstants) -> list[int] | list[None]:
        """The numbers of inner updates that the statement is about; None for all from 1 on."""
        return [None] * chain.steps


class Theorem28(RegularityStatement):
    """Theorem 2.8: regularity of the optimal value functions and controls, (14)-(17); upper
    bounds.
    """

    source = "Theorem 2.8"

    def start(self, chain: ChainConstants) -> Smoothness:
        return self.bounds.reward(chain)

    def step(self, local: StepConstants, value: Smoothness) -> Smoothness:
        """(14) and (15)."""
        return self.bounds.optimal(value, local)

    def shift(self, local: StepConstants) -> tuple[float, float]:
        return self.bounds.optimal_shift(local)


class Lemma32(RegularityStatement):
    """Lemma 3.2: regularity of the value functions and controls of every iterate of PI-FT,
    (38)-(39); upper bounds.

    The controls obey (16)-(17) with the larger curvature. The constants are infinite for a reward
    with L0r = inf.

    Args:
        bounds: which constants.
        rounds: the number of updates m_t at every step, one number or shape (T,), for constants of
            exactly these iterates; all m_t >= 1 by default. Two-sided constants are always of all.
    """

    source = "Lemma 3.2"

    def __init__(self, bounds: Bounds, rounds: int | Tensor | None = None):
        super().__init__(bounds)
        if rounds is not None:
            whole_rounds(rounds, numbers(rounds, "rounds").numel())
        require(
            rounds is None or isinstance(bounds, OneSidedBounds),
            f"the {bounds.name} constants are the same for all numbers of updates; leave out"
            " rounds, or take OneSidedBounds.",
        )
        self.rounds = rounds

    def start(self, chain: ChainConstants) -> Smoothness:
        return self.bounds.started(self.bounds.reward(chain))

    def step(self, local: StepConstants, value: Smoothness) -> Smoothness:
        """(38) and (39)."""
        return self.bounds.iterate(value, local)

    def shift(self, local: StepConstants) -> tuple[float, float]:
        return self.bounds.iterate_shift(local)

    def updates(self, chain: ChainConstants) -> list[int] | list[None]:
        return (
            super().updates(chain)
            if self.rounds is None
            else whole_rounds(self.rounds, chain.steps)
        )


@checked(chain=ChainConstants)
def paper_constants(chain: ChainConstants, lam: float | Tensor) -> Regularity:
    """Theorem 2.8 with the paper's constants, (14)-(17), for
    ``beta_t >= sigma_t^2 L1V_{t+1} / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
    """
    return constants(chain, lam, Theorem28(PaperBounds()))


@checked(chain=ChainConstants)
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


@checked(chain=ChainConstants, relaxation=Relaxation)
def one_sided_constants(
    chain: ChainConstants, lam: float | Tensor, relaxation: Relaxation = UNDAMPED
) -> Regularity:
    """Theorem 2.8 with one-sided constants (see `OneSidedBounds`), valid for exactly
    ``beta_t = sigma_t^2 K_t / (1 - lam_t)``: a larger beta lets the lower side be more curved;
    upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        relaxation: of the inner iteration, which decides on K.
    """
    return constants(chain, lam, Theorem28(OneSidedBounds(relaxation)))


@checked(chain=ChainConstants, bounds=Bounds)
def iterate_constants(chain: ChainConstants, lam: float | Tensor, bounds: Bounds) -> Regularity:
    """Lemma 3.2, (38)-(39), for every iterate of PI-FT with
    ``beta_t >= sigma_t^2 K_t / (1 - lam_t)``; upper bounds.

    Args:
        lam: design constants in (0, 1), one number or shape (T,).
        bounds: `PaperBounds` (then K = Lb1_{t+1}, the condition of Lemmas 3.3 and 3.4) or
            `SharpBounds`.
    """
    return constants(chain, lam, Lemma32(bounds))


@checked(chain=ChainConstants, statement=RegularityStatement)
def constants(
    chain: ChainConstants, lam: float | Tensor, statement: RegularityStatement
) -> Regularity:
    """The constants of a statement for chosen design constants ``lam`` in (0, 1), one number or
    shape (T,).
    """
    rates = per_step(lam, chain.steps, "lam")
    remedy = f"every design constant must lie in (0, 1), and above {_LEAST:g}."
    require_each(rates, lambda x: (x >= _LEAST) & (x < 1), "lam", remedy)
    values = rates.tolist()

    def choose(t: int, binding: float) -> tuple[float, float]:
        return values[t], (1 - values[t]) / binding if binding > 0 else 0.0

    found, states = run_backward(chain, statement, choose)
    _require_binding(statement, found)
    return collect(chain, statement, found, states)


def _require_binding(statement: RegularityStatement, steps: list[StepConstants]) -> None:
    """Refuse where the condition on beta sees none of the curvature, so that lam tells nothing of
    beta.
    """
    for t, step in enumerate(steps):
        smooth, relaxation = step.smooth, statement.bounds.relaxation
        require(
            relaxation.binding(smooth.up, smooth.down) > 0 or smooth.curvature == 0,
            f"every beta[{t}] > 0 is admitted ({statement.name}), because the next value function"
            " is concave: no lam chooses one; give beta to constants_at.",
        )


@checked(chain=ChainConstants, statement=RegularityStatement)
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
    found = collect(chain, statement, *run_at(chain, beta, statement))
    required = torch.where(found.beta_required > 0, positive_beta(beta, chain.steps), 0.0)
    return dataclasses.replace(found, beta_required=required)


def run_at(
    chain: ChainConstants, beta: float | Tensor, statement: RegularityStatement
) -> tuple[list[StepConstants], list[Smoothness]]:
    """Run a statement for a given beta."""
    weights, variance = positive_beta(beta, chain.steps).tolist(), chain.sigma.square().tolist()

    def choose(t: int, binding: float) -> tuple[float, float]:
        enough, rho = variance[t] * binding, variance[t] / weights[t]
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
        return 1 - ratio, rho

    return run_backward(chain, statement, choose)


def run_backward(
    chain: ChainConstants,
    statement: RegularityStatement,
    choose: Callable[[int, float], tuple[float, float]],
) -> tuple[list[StepConstants], list[Smoothness]]:
    """Run a statement from t = T - 1 down to 0, asking ``choose(t, K) -> (lam, rho)`` at each step
    with the curvature K of the condition on beta.
    """
    bounds = statement.bounds
    M, N = bounds.mean_lipschitz(chain).tolist(), mean_smoothness(chain).tolist()
    sigma, rounds = chain.sigma.tolist(), statement.updates(chain)
    value = statement.start(chain)
    steps, states = [], [value]
    for t in reversed(range(chain.steps)):
        smooth = bounds.smoothed(value, sigma[t], chain.dim)
        lam, rho = choose(t, bounds.relaxation.binding(smooth.up, smooth.down))
        local = StepConstants(M[t], N[t], smooth, rho, lam, sigma[t], rounds[t])
        value = statement.step(local, value)
        steps.append(local)
        states.append(value)
    return steps[::-1], states[::-1]


def collect(
    chain: ChainConstants,
    statement: RegularityStatement,
    steps: list[StepConstants],
    states: list[Smoothness],
) -> Regularity:
    """What a run has found, as tensors."""
    relaxation, lam = statement.bounds.relaxation, vector(x.lam for x in steps)
    sides = [(x.rho * x.smooth.up, x.rho * x.smooth.down) for x in steps]
    binding = vector(relaxation.binding(x.smooth.up, x.smooth.down) for x in steps)
    shift_L0, shift_L1 = (vector(side) for side in zip(*map(statement.shift, steps), strict=True))
    return Regularity(
        L0V=vector(x.L0 for x in states),
        up=vector(x.up for x in states),
        down=vector(x.down for x in states),
        L0u=chain.score_L0 + shift_unit(chain) * shift_L0,
        L1u=chain.score_L1 + shift_unit(chain) * shift_L1,
        L0v=shift_L0 / chain.sigma,
        L1v=shift_L1 / chain.sigma,
        smoothed_up=vector(x.smooth.up for x in steps),
        smoothed_down=vector(x.smooth.down for x in steps),
        third_derivative_ratio=vector(x.smooth.third_derivative_ratio for x in steps),
        mean_L0=vector(x.mean_L0 for x in steps),
        lam=lam,
        theta=vector(relaxation.factor(a, b) for a, b in sides),
        rate=vector(relaxation.rate(a, b) for a, b in sides),
        beta_required=torch.where(binding > 0, chain.sigma.square() * binding / (1 - lam), 0.0),
    )
