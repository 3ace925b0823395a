"""Named control problems whose exact solution is known.

``benchmark(name, **settings)`` builds one and `BENCHMARKS` lists the names; `fine_tuning` has the
problems of the convergence study.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from socft.checks import require_known
from socft.study.vocabulary.problems import ProblemName
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
    ProblemName.LQ_FINE_TUNING: linear_quadratic_fine_tuning,
    ProblemName.LQ_SDE: linear_quadratic_sde,
    ProblemName.MIXTURE: mixture,
    ProblemName.OSCILLATOR: oscillator,
    ProblemName.BSDE_LINEAR: linear,
    ProblemName.BSDE_PENDULUM: pendulum,
    ProblemName.BSDE_MIXTURE: mixture_control,
    ProblemName.OU_QUADRATIC_EASY: ou_quadratic_easy,
    ProblemName.OU_QUADRATIC_HARD: ou_quadratic_hard,
    ProblemName.OU_LINEAR: ou_linear,
    ProblemName.DOUBLE_WELL: double_well,
}


def benchmark(name: str, **settings: Any) -> Benchmark:
    """The benchmark of a name, completed by settings; its truths are built when asked for."""
    require_known(name, BENCHMARKS, "benchmark")
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
