r"""Fine-tuning of Gaussian mixtures in 1, 2 and many dimensions, with linear or quadratic rewards.

In one and two dimensions the chain's optimum is found by quadrature; in more, the law is a product
of one-dimensional mixtures along random directions and the reward a sum along them, so that
one-dimensional quadrature is exact in any dimension (`socft.truth.separable`). In continuous time
the value is closed form (`socft.truth.mixture`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from socft.checks import require
from socft.density import Density, GaussianMixture, Rotated, score_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic, Separable
from socft.schedule import Schedule, ddpm, linear_levels, subsample
from socft.study.vocabulary.problems import ProblemName
from socft.truth.base import Truth
from socft.truth.grid import tensor_rule
from socft.truth.mixture import TiltedMixture
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from toy.problems.base import Benchmark, Solvers, ValueFunction, grid_uncontrolled
from toy.problems.linear_quadratic import random_rotation, tilted_value

LINE = GaussianMixture([0.4, 0.6], [[-1.0], [1.2]], [0.2, 0.35])
PLANE = GaussianMixture(
    [0.3, 0.3, 0.4],
    [[-1.2, 0.0], [1.0, 0.9], [0.6, -1.1]],
    torch.tensor(
        [[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.05], [-0.05, 0.3]], [[0.25, 0.0], [0.0, 0.25]]],
        dtype=torch.float64,
    ),
)
FACTORS = (
    LINE,
    GaussianMixture([0.5, 0.5], [[-0.9], [0.9]], [0.25, 0.25]),
    GaussianMixture([0.2, 0.5, 0.3], [[-1.5], [0.0], [1.3]], [0.15, 0.2, 0.3]),
    GaussianMixture([1.0], [[0.3]], [0.7]),
)
"""Coordinates of the high-dimensional laws, in turn: two modes, two equal ones, three, one."""


def mixture(
    d: int = 1,
    curvature: float = -0.5,
    slope: float = 1.0,
    beta: float = 1.0,
    steps: int = 50,
    seed: int = 0,
    schedule: Schedule | None = None,
) -> Benchmark:
    """A Gaussian mixture in d dimensions with reward ``curvature |x|^2 / 2 + slope sum_i q_i . x``
    along the law's directions.

    Args:
        d: the dimension.
        curvature: 0 for a linear reward.
        slope: slope along every direction.
        beta: the KL weight.
        steps: DDPM steps, sub-sampled from 1000, unless a schedule is given.
        seed: of the random directions in more than two dimensions.
        schedule: the denoising chain.
    """
    require(d >= 1, f"d = {d}; give at least 1.")
    schedule = schedule or ddpm(subsample(linear_levels(1000), steps))
    eye = torch.eye(d, dtype=torch.float64)
    rotation = eye if d <= 2 else random_rotation(d, torch.Generator().manual_seed(seed))
    form = Quadratic(curvature * eye, slope * rotation.sum(1))
    found = _product(rotation, form, schedule, beta) if d > 2 else _small(d, form, schedule, beta)
    problem = found.problem

    def uncontrolled() -> ValueFunction:
        return grid_uncontrolled(problem, Quadrature(problem).grids)

    def continuous() -> ValueFunction:
        return _continuous(TiltedMixture(found.density, form, beta), schedule, rotation)

    return Benchmark(
        name=ProblemName.MIXTURE,
        description=(
            f"a Gaussian mixture in {d} dimensions with a {'quadratic' if curvature else 'linear'}"
            " reward"
        ),
        settings={
            "d": d,
            "curvature": curvature,
            "slope": slope,
            "steps": schedule.steps,
            "beta": beta,
            "seed": seed,
        },
        problem=problem,
        solvers=Solvers(found.truth, uncontrolled if d <= 2 else None, continuous),
    )


@dataclasses.dataclass(frozen=True)
class _Solvable:
    """A data law, its control problem, and how to solve it."""

    density: Density
    problem: ControlProblem
    truth: Callable[[], Truth]


def _small(d: int, form: Quadratic, schedule: Schedule, beta: float) -> _Solvable:
    density = LINE if d == 1 else PLANE
    problem = ControlProblem(score_reference(density, schedule), form, beta)
    return _Solvable(density, problem, lambda: Quadrature(problem))


def _product(rotation: Tensor, form: Quadratic, schedule: Schedule, beta: float) -> _Solvable:
    scalar = Quadratic(form.P[:1, :1], (form.linear @ rotation)[:1])
    density = Rotated(rotation, list(itertools.islice(itertools.cycle(FACTORS), len(rotation))))
    reward = Separable(rotation, [scalar] * len(rotation))
    problem = ControlProblem(score_reference(density, schedule), reward, beta)
    return _Solvable(density, problem, lambda: SeparableTruth(density, reward, schedule, beta))


def _continuous(closed: TiltedMixture, schedule: Schedule, rotation: Tensor) -> ValueFunction:
    d = len(rotation)
    if d <= 2:
        return tilted_value(closed, schedule, tensor_rule(d))
    lines, tilted = closed.density, closed.tilt.density
    assert isinstance(lines, Rotated)
    assert isinstance(tilted, Rotated)
    points, weights = tensor_rule(1)
    level = float(schedule.abar[0])
    pairs = zip(lines.factors, tilted.factors, strict=True)
    gains = [
        after.noised_log_prob(level, points) - before.noised_log_prob(level, points)
        for before, after in pairs
    ]
    objective = closed.beta * (closed.log_normaliser + float(weights @ torch.stack(gains).sum(0)))
    levels = schedule.abar.tolist()
    return ValueFunction(
        lambda k, x: closed.value(levels[k], x),
        lambda k, x: closed.value_gradient(levels[k], x),
        objective,
    )
