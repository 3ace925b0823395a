"""What a row of the catalogue says."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

from socft.costates.base import Cost
from socft.estimators.base import Estimator
from socft.estimators.catalogue.context import FITTED_PATHS, EstimatorContext
from socft.estimators.estimand import Estimand, Kind
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.reversed_bsde import ReversedValues


class Group(enum.StrEnum):
    """Where an estimator's information comes from."""

    PATHWISE = "pathwise"
    CORRECTED = "corrected"
    ZEROTH_ORDER = "zeroth order"
    PATH_MEASURE = "path measure"


Fits = tuple[tuple[int, Cost], ...]
"""Numbers of paths to which something is fitted, and the cost of their labels."""


@dataclasses.dataclass(frozen=True)
class Anywhere:
    """A factory that needs no context, only options.

    Attributes:
        build: ``(**options) -> estimator``; all options have defaults.
    """

    build: Callable[..., Estimator]

    def __call__(self, context: EstimatorContext) -> Estimator:
        return self.build()


@dataclasses.dataclass(frozen=True)
class NamedEstimator:
    """An estimator by name.

    Attributes:
        name: unique.
        make: the estimator in a context.
        labelled: ``steps -> `` those whose labels cost anything.
        fitted: numbers of paths to which something is fitted beforehand, and the cost of their
            labels.
    """

    name: str
    make: Callable[[EstimatorContext], Estimator]
    labelled: Callable[[int], float] = dataclasses.field(default=float, kw_only=True)
    fitted: Fits = dataclasses.field(default=(), kw_only=True)

    def evaluations(self, estimator: Estimator, steps: int) -> int:
        """Network evaluations of one path's labels and rollout."""
        return evaluations_per_path(estimator.cost, steps, self.labelled(steps))

    def fit_evaluations(self, steps: int) -> int:
        """Network evaluations of what is fitted beforehand."""
        return sum(paths * evaluations_per_path(cost, steps) for paths, cost in self.fitted)


@dataclasses.dataclass(frozen=True)
class EstimatorRow(NamedEstimator):
    """An estimator of the catalogue.

    Attributes:
        estimator: its class.
        group: where its information comes from.
        target: what its loss matches the control with, as Typst markup.
        estimand: what it estimates, where its options make that another than its class says.
        fit: the class that fits its costate, where that has a source of its own.
        oracle: whether it uses the exact solution.
        compared: whether it is among those that are held against exact gradients; the others are
            variants for training.
    """

    estimator: type[Estimator]
    group: Group
    target: str
    estimand: Estimand | None = dataclasses.field(default=None, kw_only=True)
    fit: type[LeastSquaresCostate | LeastSquaresValue | ReversedValues] | None = dataclasses.field(
        default=None, kw_only=True
    )
    oracle: bool = dataclasses.field(default=False, kw_only=True)
    compared: bool = dataclasses.field(default=True, kw_only=True)

    @property
    def estimates(self) -> Estimand:
        """What it estimates."""
        return self.estimator.estimates if self.estimand is None else self.estimand

    @property
    def kind(self) -> Kind:
        """The kind of that."""
        return self.estimates.kind

    @property
    def source(self) -> str:
        """Where it is from."""
        return self.estimator.source if self.fit is None else self.fit.source


def evaluations_per_path(cost: Cost, steps: int, labelled: float | None = None) -> int:
    """Network evaluations of one path's labels and rollout; a derivative counts as two evaluations.

    Args:
        labelled: the number of steps whose labels cost anything; all by default.
    """
    labels = (
        cost.reference + cost.policy + 2 * (cost.reference_derivatives + cost.policy_derivatives)
    )
    return round(2 * steps + (steps if labelled is None else labelled) * labels)


LEAN, FULL = "$B_k^top a_(k+1)\\/beta_k$, lean", "$B_k^top a_(k+1)\\/beta_k$, full"
COSTATES, VALUES = ((FITTED_PATHS, FullAdjoint().cost),), ((FITTED_PATHS, Cost()),)
"""What costates are fitted to, and what values: returns of paths cost nothing more."""
