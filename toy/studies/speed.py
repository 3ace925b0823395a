r"""What does it cost? Processor time of what people wait for, and its growth with the steps, the
dimension, the nodes of a grid and the paths.

``seconds`` is processor time of one thread with the problem at hand: the least of a few runs, after
a small one that loads what torch loads at its first use. Its ``bound`` is the target, ``published``
what the same took before it was made quicker, on the same kind of machine, and ``speedup`` their
quotient. ``order`` is the exponent :math:`p` of the least-squares line of :math:`\log` seconds
against :math:`\log n`, along one axis at a time; a cost that is mostly overhead has an exponent
near zero.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from socft.density import Gaussian, GaussianMixture, affine_reference, score_reference
from socft.estimators.adjoint_matching import AdjointMatching
from socft.path import Noise, rollout
from socft.pi_ft import ExactPIFT, MonteCarloPIFT
from socft.policy import MLPPolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.records import Record
from socft.regression.functions import NetworkRegression
from socft.reward import Quadratic, Sine
from socft.schedule import ddpm, linear_levels, subsample
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.train import fit
from socft.truth.least_beta import measured_beta
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import choose_grids

F64 = torch.float64
RUNS = 3
NETWORK_STEPS = 20
"""Of gradient descent, of which one is the time."""
Work = Callable[[int], object]


@functools.cache
def _plane(steps: int) -> ControlProblem:
    """Three modes in the plane, and a reward with a kink."""
    data = GaussianMixture([0.4, 0.3, 0.3], [[-1.0, 0.0], [1.0, 1.0], [1.0, -1.0]], 0.1)
    reference = score_reference(data, ddpm(subsample(linear_levels(1000), steps)))
    return ControlProblem(reference, lambda x: -(x[:, 0] - 1).abs(), 2.0)


@functools.cache
def _line() -> ControlProblem:
    """The problem of the README."""
    data = GaussianMixture([0.7, 0.3], [[-1.5], [1.5]], 0.16)
    return ControlProblem(score_reference(data, ddpm(linear_levels(50))), Sine(2.0), 2.0)


@functools.cache
def _quadratic(dim: int, steps: int) -> ControlProblem:
    draw = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, dim, dim, generator=draw, dtype=F64) / dim**0.5
    data = Gaussian(torch.zeros(dim, dtype=F64), one @ one.T + 0.1 * torch.eye(dim, dtype=F64))
    reward = Quadratic(-(two @ two.T), torch.ones(dim, dtype=F64))
    return ControlProblem(affine_reference(data, ddpm(linear_levels(steps))), reward, 1.0)


def _networks(steps: int) -> object:
    """Three inner iterations of PI-FT with networks in the plane."""
    method = MonteCarloPIFT(3, NetworkRegression(), NetworkRegression())
    return [iteration.index for iteration in method.iterations(_plane(steps))]


def _train(steps: int, dim: int = 20) -> object:
    """Steps of adjoint matching of a network."""
    problem = _quadratic(dim, 50)
    policy = MLPPolicy(problem.reference)
    adam = torch.optim.Adam(policy.parameters(), lr=1e-3)
    run = fit(problem, policy, AdjointMatching(), adam, torch.Generator(), steps=steps)
    return [iteration.index for iteration in run]


def _label(paths: int, steps: int = 50, dim: int = 8) -> object:
    """Paths and their labels."""
    problem = _quadratic(dim, steps)
    policy, draw = Uncontrolled(problem.reference), torch.Generator().manual_seed(0)
    path = rollout(problem.reference, policy, Noise.sample(problem.reference, paths, draw))
    return AdjointMatching().label(problem, policy, path)


def _sweep(nodes: int) -> object:
    """Exact PI-FT on a grid of the line."""
    problem = _line()
    method = ExactPIFT(3, choose_grids(problem, (nodes,)))
    return [each.index for each in method.iterations(problem)]


AWAITED: dict[str, tuple[Work, MethodName, ProblemName, float, float | None]] = {
    "PI-FT with networks, plane": (
        lambda scale: _networks(20 if scale else 2),
        MethodName.MONTE_CARLO_PI_FT_NETWORK,
        ProblemName.MIXTURE,
        15.0,
        127.0,
    ),
    "network step, d = 20": (
        lambda scale: _train(NETWORK_STEPS if scale else 1),
        MethodName.ADJOINT_MATCHING,
        ProblemName.LINEAR_QUADRATIC,
        0.08,
        None,
    ),
    "least weight": (
        lambda scale: measured_beta(_line(), lam=0.5) if scale else _sweep(101),
        MethodName.QUADRATURE,
        ProblemName.MIXTURE,
        1.0,
        12.0,
    ),
    "Riccati, d = 256, T = 1000": (
        lambda scale: LinearQuadratic(_quadratic(*((256, 1000) if scale else (4, 50)))).objective,
        MethodName.RICCATI,
        ProblemName.LINEAR_QUADRATIC,
        1.0,
        None,
    ),
}
"""Work at scale 1, and small at scale 0; method, problem, target and seconds before."""
GROWING: dict[str, tuple[Work, Sequence[int], MethodName, ProblemName]] = {
    "steps, Riccati, d = 64": (
        lambda n: LinearQuadratic(_quadratic(64, n)).objective,
        (100, 200, 400, 800),
        MethodName.RICCATI,
        ProblemName.LINEAR_QUADRATIC,
    ),
    "dimension, Riccati, T = 100": (
        lambda n: LinearQuadratic(_quadratic(n, 100)).objective,
        (32, 64, 128, 256),
        MethodName.RICCATI,
        ProblemName.LINEAR_QUADRATIC,
    ),
    "nodes, exact PI-FT": (
        _sweep,
        (401, 801, 1601, 3201),
        MethodName.EXACT_PI_FT,
        ProblemName.MIXTURE,
    ),
    "paths, adjoint matching": (
        _label,
        (1024, 4096, 16384, 65536),
        MethodName.ADJOINT_MATCHING,
        ProblemName.LINEAR_QUADRATIC,
    ),
    "steps, adjoint matching": (
        lambda n: _label(4096, n),
        (25, 50, 100, 200),
        MethodName.ADJOINT_MATCHING,
        ProblemName.LINEAR_QUADRATIC,
    ),
}
"""Work of a size, sizes, method and problem, by axis."""


def _seconds(work: Work, size: int, runs: int) -> float:
    """Processor time of the quickest run."""
    found = []
    for _ in range(runs):
        start = time.process_time()
        work(size)
        found.append(time.process_time() - start)
    return min(found)


def awaited_task(name: str, runs: int) -> list[Record]:
    """Seconds of something that people wait for, and how much quicker it became."""
    work, method, problem, target, before = AWAITED[name]
    work(0)
    parts = NETWORK_STEPS if work is AWAITED["network step, d = 20"][0] else 1
    seconds = _seconds(work, 1, runs) / parts
    common = {"setting": {"work": name}, "estimator": method, "seconds": seconds}
    found = [
        _record(problem, Metric.SECONDS, seconds, common, bound=target, published=before),
    ]
    if before is not None:
        found.append(_record(problem, Metric.SPEEDUP, before / seconds, common))
    return found


def growth_task(axis: str, runs: int, sizes: int) -> list[Record]:
    """Seconds along an axis, and the exponent."""
    work, counts, method, problem = GROWING[axis]
    counts = counts[:sizes]
    work(counts[0])
    seconds = [_seconds(work, count, runs) for count in counts]
    found = [
        _record(
            problem,
            Metric.SECONDS,
            each,
            {"setting": {"axis": axis, "size": count}, "estimator": method, "seconds": each},
        )
        for count, each in zip(counts, seconds, strict=True)
    ]
    common = {"setting": {"axis": axis}, "estimator": method}
    return [*found, _record(problem, Metric.ORDER, exponent(counts, seconds), common)]


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of the least-squares line of log seconds against log sizes.

    >>> round(exponent([1, 2, 4], [3.0, 12.0, 48.0]), 9)
    2.0
    """
    x, y = ([math.log(each) for each in values] for values in (sizes, seconds))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return slope / sum((a - mean_x) ** 2 for a in x)


def _record(
    problem: str, metric: Metric, value: float, common: Mapping[str, object], **more: float | None
) -> Record:
    return Record(schemas.SPEED.name, problem, metric, value, **common, **more)  # type: ignore[arg-type]


def tasks(quick: bool) -> list[Task]:
    """Everything once, in the quick form, without the largest sizes."""
    runs, sizes = (2, 3) if quick else (RUNS, 4)
    return [
        *(Task(name, awaited_task, {"name": name, "runs": runs}) for name in AWAITED),
        *(
            Task(axis, growth_task, {"axis": axis, "runs": runs, "sizes": sizes})
            for axis in GROWING
        ),
    ]


STUDY = Study(schemas.SPEED, tasks)
