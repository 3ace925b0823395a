r"""Returns of the steps that follow, and baselines to subtract from them.

For :math:`b_k` independent of the noise :math:`\xi_k` given :math:`x_k`,
:math:`E[b_k\, \xi_k] = 0`: a baseline leaves the mean of a score-function gradient as it is, and
close to the mean of the return given :math:`x_k` it removes most of its spread. Those here are
unbiased for a batch of independent paths, except the mean that includes the path itself.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, probe, require, require_callable, require_kinds, whole
from socft.costates.base import Cost
from socft.estimators.base import Estimator, RowsT
from socft.estimators.estimand import Biased, ObjectiveGradient
from socft.path import Path
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import States, Step
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression, Regression
from socft.reward import PerSample

Returns: TypeAlias = "Float[Tensor, 'steps batch']"


def returns_to_go(problem: ControlProblem, path: Path, kl: bool = True) -> Returns:
    """``A_k``: reward minus the running costs, and where asked the weighted KL, of the steps after
    k.
    """
    paid = torch.stack([problem.cost(k, x) for k, x in enumerate(path.states[:-1])])
    paid = paid + problem.beta.to(paid)[:, None] * path.kl() if kl else paid
    return problem.reward(path.final) - (paid.sum(0) - paid.cumsum(0))


SHRUNK = Biased("the gradient of the returns times 1 - 1/N, that of the KL as it is")


class Baseline(Readable, abc.ABC):
    """What to subtract from the returns.

    Attributes:
        couples_batch: whether the level of a path depends on the other paths of its batch.
        unbiased: whether the level of step k is independent of its noise, given the state.
    """

    couples_batch: ClassVar[bool] = False
    unbiased: ClassVar[bool] = True

    @property
    def smallest_batch(self) -> int:
        """The fewest paths that it compares; fewer are refused."""
        return 2 if self.couples_batch else 1

    @abc.abstractmethod
    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        """``b_k`` of every step and path."""


class NoBaseline(Baseline):
    """Zero."""

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        return torch.zeros_like(returns)


class BatchMean(Baseline):
    """The mean over all N paths; as it includes the path itself, the gradient's return part is (1 -
    1/N) of the right one.
    """

    couples_batch: ClassVar[bool] = True
    unbiased: ClassVar[bool] = False

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        batch = returns.shape[1]
        require(batch >= 2, f"batch = {batch}; the mean of one path is its own return: take 2.")
        return returns.mean(1, keepdim=True).expand_as(returns)


class LeaveOneOut(Baseline):
    """The mean over the other paths: unbiased."""

    couples_batch: ClassVar[bool] = True

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        batch = returns.shape[1]
        require(batch >= 2, f"batch = {batch}; leaving one path out needs at least 2.")
        return (returns.sum(1, keepdim=True) - returns) / (batch - 1)


@dataclasses.dataclass(frozen=True)
class RegressionBaseline(Baseline):
    """A regression of ``A_k`` on ``x_k`` per step, for each fold of the paths fitted to the other
    folds: unbiased.

    Attributes:
        regression: how to fit; states are flattened to vectors.
        folds: number of folds.
    """

    regression: Regression = dataclasses.field(
        default_factory=lambda: LinearRegression(Polynomial(1))
    )
    folds: int = 2
    couples_batch: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_kinds(self, regression=Regression)
        keep(self, folds=whole(self.folds, "folds", 2))

    @property
    def smallest_batch(self) -> int:
        return self.folds

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        batch = returns.shape[1]
        require(
            2 <= self.folds <= batch,
            f"folds = {self.folds} for {batch} paths; give at least 2 and at most one per path.",
        )
        fold, levels = (
            torch.arange(batch, device=returns.device) % self.folds,
            torch.empty_like(returns),
        )
        for k, x in enumerate(path.states[:-1].flatten(2)):
            for i in range(self.folds):
                fitted = self.regression.fit(x[fold != i], returns[k, fold != i, None])
                levels[k, fold == i] = fitted(x[fold == i])[:, 0]
        return levels


@dataclasses.dataclass(frozen=True)
class GivenBaseline(Baseline):
    """A function ``(k, x) -> b_k(x)`` fixed beforehand: unbiased."""

    function: Callable[[Step, States], PerSample]

    def __post_init__(self) -> None:
        require_callable(self.function, "the baseline", "of step and states")

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        return _levels(self.function, path, "the baseline")


@dataclasses.dataclass(frozen=True)
class ValueBaseline(Baseline):
    """``E[A_k | x_k] = V_k + f_k + beta_k |v_k|^2 / 2`` for a value function ``(k, x) -> V_k(x)``
    of the policy: unbiased.
    """

    value: Callable[[Step, States], PerSample]

    def __post_init__(self) -> None:
        require_callable(self.value, "the value", "of step and states")

    def levels(self, problem: ControlProblem, path: Path, returns: Returns) -> Returns:
        costs = torch.stack([problem.cost(k, x) for k, x in enumerate(path.states[:-1])])
        values = _levels(self.value, path, "the value") + costs
        return values + problem.beta.to(returns)[:, None] * path.kl()


def _levels(function: Callable[[Step, States], PerSample], path: Path, what: str) -> Returns:
    """A function of step and state along a path."""
    found = [probe(function, (k, x), (len(x),), what) for k, x in enumerate(path.states[:-1])]
    return torch.stack(found)


@dataclasses.dataclass(frozen=True)
class BaselineEstimator(Estimator[RowsT]):
    """An estimator from returns alone, without derivatives: a batch is as large as its baseline
    needs, and a biased baseline makes what it `estimates` biased too.

    Attributes:
        baseline: what to subtract from the returns.
    """

    baseline: Baseline = dataclasses.field(default_factory=LeaveOneOut)

    def __post_init__(self) -> None:
        require_kinds(self, baseline=Baseline)
        if isinstance(self.estimates, ObjectiveGradient) and not self.baseline.unbiased:
            object.__setattr__(self, "estimates", SHRUNK)

    @property
    def cost(self) -> Cost:
        return Cost()

    @property
    def couples_batch(self) -> bool:
        return self.baseline.couples_batch

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.baseline.smallest_batch
