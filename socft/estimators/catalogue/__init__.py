r"""Every estimator that is compared, one row each in the module of its group: its name, how
it is made, what it estimates, and where it is from.

The name is the one in records, reports, configurations and on the command line. What an estimator
estimates and its source are those of its class. Targets are Typst mathematics in the notation of
the report: :math:`a` is a costate, :math:`z_k = v_k + \xi_k` the controlled noise, :math:`w` a path
weight.

A new estimator is a file in `socft.estimators` and a row in the module of its group. One of a user
goes by its import path, ``module:name``.
"""

from __future__ import annotations

from collections.abc import Callable

from socft.checks import InvalidProblem, require, require_known
from socft.estimators.base import Estimator
from socft.estimators.catalogue import corrected, flow, path_measure, pathwise, zeroth_order
from socft.estimators.catalogue.rows import Anywhere, EstimatorRow, NamedEstimator
from socft.estimators.estimand import Estimand
from socft.study.import_path import import_object

CATALOGUE: dict[str, EstimatorRow] = {
    row.name: row
    for row in (
        *pathwise.ROWS,
        *corrected.ROWS,
        *zeroth_order.ROWS,
        *path_measure.ROWS,
        *flow.ROWS,
    )
}
COMPARED: tuple[str, ...] = tuple(name for name, row in CATALOGUE.items() if row.compared)
"""Those that are held against exact gradients."""
ANYWHERE: dict[str, Callable[..., Estimator]] = {
    name: row.make.build for name, row in CATALOGUE.items() if isinstance(row.make, Anywhere)
}
"""Those that need nothing but options, as ``(**options) -> estimator``."""


def find_estimator(name: str) -> NamedEstimator:
    """An estimator of the catalogue by name, or a user's by its import path ``module:name``.

    What the path leads to is called without arguments and must return an `Estimator`; a class does.
    Where that call raises, so does the `make` of what is found.

    Raises:
        InvalidProblem: there is no such estimator, or the path leads to something else.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    if ":" not in name:
        require_known(name, CATALOGUE, "estimator", "MODULE:NAME")
    make: Callable[[], Estimator] = import_object(name)
    require(
        callable(make),
        f"{name} is a {type(make).__name__}; it must be a class or function that makes an"
        " estimator.",
    )
    try:
        made = make()
    except Exception:  # raised again where it is measured, as that row's error
        return NamedEstimator(name, Anywhere(make))
    if not isinstance(made, Estimator):
        raise InvalidProblem(
            f"{name} makes a {type(made).__name__}; it must be a socft.estimators.base.Estimator"
            " without arguments."
        )
    if not isinstance(made.estimates, Estimand):
        raise InvalidProblem(
            f"{name} says that it estimates {made.estimates!r}; it must be one of"
            " socft.estimators.estimand, such as ObjectiveGradient()."
        )
    return NamedEstimator(name, Anywhere(make))
