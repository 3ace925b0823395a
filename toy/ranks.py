r"""Who is better in a situation of the benchmark, and how sure that is.

Estimators of one kind of estimand are compared with each other, and oracles, which use the exact
solution, with nobody. What they are ordered by is

* where the gradient is sought, for estimators of it and biased ones: the root-mean-square error at
  equal budget, bias and noise together;
* for residuals, which have neither the direction nor the scale of the gradient: the noise at equal
  budget relative to the size of what is estimated, :math:`\sqrt{\mathrm{noise}}/|\mathrm{mean}|`;
* at the optimum, where the gradient is zero: the error at equal budget relative to the size of the
  estimator's own mean at the pre-trained model.

The last two are the same for any multiple of an estimator. One whose mean is zero where the
gradient is not, as that of one which proposes the current control whatever it sees, has no
information to compare, and no rank.

A rank is one more than the number of those that are better in all but `DOUBT` of the draws of the
bootstrap (`toy.repeated`), so what cannot be told apart is tied; its interval has the ranks of all
but `DOUBT` of the draws at either end.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Kind
from toy.repeated import DRAWS, RepeatedGradient, draws
from toy.suite import BenchmarkCase

DOUBT = 0.025
SAME, NOTHING = 1e-9, 1e-9
"""Relative differences, and sizes in units of the gradient at the pre-trained model, that count as
none.
"""
RESIDUALS = (Kind.FIXED_POINT_RESIDUAL, Kind.APPROXIMATE_RESIDUAL)
Interval = tuple[float, float]
Drawn = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class BenchmarkStanding:
    """An estimator in a situation.

    Attributes:
        bias: distance of its mean from the gradient.
        bias_noise: standard error of that.
        variance: from one path.
        error_at_budget: root-mean-square error at equal budget.
        error_interval: of 95% of the draws.
        figure: what it is ordered by; None where it is not.
        figure_interval: of 95% of the draws.
        ordered_by: what that is, in words, or why there is no order.
        rank: among its kind; None where it has none.
        rank_interval: of 95% of the draws.
        of: number of those that are ranked.
    """

    bias: float
    bias_noise: float
    variance: float
    error_at_budget: float
    error_interval: Interval
    figure: float | None
    figure_interval: Interval | None
    ordered_by: str
    rank: int | None = None
    rank_interval: tuple[int, int] | None = None
    of: int = 0


@dataclasses.dataclass(frozen=True)
class Figure:
    """What an estimator is ordered by, as it was measured and in every draw."""

    value: float
    drawn: Float[Tensor, " draws"]
    ordered_by: str


def is_oracle(estimator: str) -> bool:
    """Whether it uses the exact solution."""
    return estimator in CATALOGUE and CATALOGUE[estimator].oracle


def standings(
    case: BenchmarkCase,
    here: Mapping[str, RepeatedGradient],
    start: Mapping[str, RepeatedGradient],
) -> dict[str, BenchmarkStanding]:
    """Every estimator in a situation.

    Args:
        here: what was measured there.
        start: the same at the pre-trained model, where the situation is the optimum.
    """
    figures = {
        name: figure(each, start.get(name) if case.start else None, bool(case.start))
        for name, each in here.items()
    }
    found = {name: _standing(each, figures[name]) for name, each in here.items()}
    for kind in {each.kind for each in here.values()}:
        peers = {
            name: known
            for name, known in figures.items()
            if here[name].kind == kind and not is_oracle(name) and isinstance(known, Figure)
        }
        for name, (rank, interval) in ranks(peers).items():
            found[name] = dataclasses.replace(
                found[name], rank=rank, rank_interval=interval, of=len(peers)
            )
    return found


def figure(here: RepeatedGradient, start: RepeatedGradient | None, optimum: bool) -> Figure | str:
    """What an estimator is ordered by, or why it is not."""
    if optimum and start is None:
        return "not measured at the pre-trained model, by whose size it would be ordered"
    sized = here if start is None else start
    size = functools.partial(_root, sized.size_squared)
    if float(size(sized.equal)) <= NOTHING:
        return "its mean is zero where the gradient is not: no information"
    if optimum:
        return _relative(here.error, size, here, "error relative to its own size at the start")
    if here.kind in RESIDUALS:
        noise = functools.partial(_root, here.noise_squared)
        return _relative(noise, size, here, "noise relative to its own size")
    return Figure(
        float(here.error(here.equal)), here.error(draws(here.count, DRAWS)), "error at budget"
    )


def _relative(above: Drawn, below: Drawn, here: RepeatedGradient, words: str) -> Figure:
    def ratio(weights: Tensor) -> Tensor:
        return above(weights) / below(weights).clamp(min=NOTHING)

    return Figure(float(ratio(here.equal)), ratio(draws(here.count, DRAWS)), words)


def _root(squared: Drawn, weights: Tensor) -> Tensor:
    return squared(weights).sqrt()


def _standing(here: RepeatedGradient, known: Figure | str) -> BenchmarkStanding:
    equal, weights = here.equal, draws(here.count, DRAWS)
    error = float(here.error(equal))
    numbers = {
        "bias": float(_root(here.bias_squared, equal)),
        "bias_noise": here.bias_noise,
        "variance": float(here.variance(equal)),
        "error_at_budget": error,
        "error_interval": _interval(here.error(weights), error),
    }
    if isinstance(known, str):
        return BenchmarkStanding(**numbers, figure=None, figure_interval=None, ordered_by=known)
    return BenchmarkStanding(
        **numbers,
        figure=known.value,
        figure_interval=_interval(known.drawn, known.value),
        ordered_by=known.ordered_by,
    )


def _interval(drawn: Float[Tensor, " draws"], value: float) -> Interval:
    if not math.isfinite(value):
        return (value, value)
    low, high = drawn.quantile(torch.tensor([DOUBT, 1 - DOUBT], dtype=drawn.dtype)).tolist()
    return (min(low, value), max(high, value))


def ranks(peers: Mapping[str, Figure]) -> dict[str, tuple[int, tuple[int, int]]]:
    """Ranks and their intervals, from draws that all share."""
    if not peers:
        return {}
    drawn = torch.stack([each.drawn for each in peers.values()])
    found = {}
    for name, mine in peers.items():
        better = drawn < mine.drawn * (1 - SAME)
        surely = int((better.double().mean(1) >= 1 - DOUBT).sum())
        ranks = 1 + better.sum(0).double()
        ends = ranks.quantile(torch.tensor([DOUBT, 1 - DOUBT], dtype=ranks.dtype))
        low, high = math.floor(float(ends[0])), math.ceil(float(ends[1]))
        found[name] = (1 + surely, (min(low, 1 + surely), max(high, 1 + surely)))
    return found
