"""The gradient estimators that are compared, by the name under which reports show them.

A contender makes its estimator for a situation: some need an approximate costate, which is taken from the policy, fitted to
samples, or exact. A user's estimator is a contender made from its import path (``socft bench``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from socft.checks import require
from socft.cli import imported
from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.full_adjoint import FullAdjoint
from toy.situations import Situation


@dataclasses.dataclass(frozen=True)
class Contender:
    """An estimator by name.

    Attributes:
        name: unique.
        make: the estimator for a situation.
    """

    name: str
    make: Callable[[Situation], Estimator]


CONTENDERS: dict[str, Contender] = {
    each.name: each
    for each in (
        Contender("full adjoint", lambda _: FullAdjoint()),
        Contender("adjoint matching", lambda _: AdjointMatching()),
        Contender("adjoint matching, published index", lambda _: PublishedAdjointMatching()),
    )
}


def contender(name: str) -> Contender:
    """A built-in contender by name, or a user's estimator by its import path ``module:name``.

    What the path leads to is called without arguments and must return an `Estimator`; a class does.

    Raises:
        InvalidProblem: there is no such contender, or the path leads to something else.
    """
    if name in CONTENDERS:
        return CONTENDERS[name]
    require(":" in name, f"there is no estimator {name!r}; give MODULE:NAME, or one of: {', '.join(CONTENDERS)}.")
    make: Callable[[], Estimator] = imported(name)
    require(callable(make), f"{name} is a {type(make).__name__}; it must be a class or function that makes an estimator.")
    made = make()
    require(
        isinstance(made, Estimator),
        f"{name} makes a {type(made).__name__}; it must be a socft.estimators.base.Estimator without arguments.",
    )
    return Contender(name, lambda _: make())
