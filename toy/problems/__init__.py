"""Named control problems whose exact solution is known.

``benchmark(name, **settings)`` builds one and `BENCHMARKS` lists the names; `fine_tuning` has the
problems of the convergence study.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from socft.checks import require
from toy.problems.base import Benchmark, ValueFunction
from toy.problems.fine_tuning import FINE_TUNING, FineTuning, fine_tuning
from toy.problems.linear_quadratic import (
    linear_quadratic_fine_tuning,
    linear_quadratic_sde,
    oscillator,
)
from toy.problems.mixtures import mixture
from toy.problems.pendulum import pendulum
from toy.problems.reversed_bsde import linear, mixture_control
from toy.problems.socm import double_well, ou_linear, ou_quadratic_easy, ou_quadratic_hard

BENCHMARKS: dict[str, Callable[..., Benchmark]] = {
    "lq-fine-tuning": linear_quadratic_fine_tuning,
    "lq-sde": linear_quadratic_sde,
    "mixture": mixture,
    "oscillator": oscillator,
    "bsde-linear": linear,
    "bsde-pendulum": pendulum,
    "bsde-mixture": mixture_control,
    "ou-quadratic-easy": ou_quadratic_easy,
    "ou-quadratic-hard": ou_quadratic_hard,
    "ou-linear": ou_linear,
    "double-well": double_well,
}


def benchmark(name: str, **settings: Any) -> Benchmark:
    """The benchmark of a name, completed by settings; its truths are built when asked for."""
    require(
        name in BENCHMARKS,
        f"there is no benchmark {name!r}; the benchmarks are {', '.join(BENCHMARKS)}.",
    )
    return BENCHMARKS[name](**settings)


__all__ = [
    "BENCHMARKS",
    "FINE_TUNING",
    "Benchmark",
    "FineTuning",
    "ValueFunction",
    "benchmark",
    "fine_tuning",
]
