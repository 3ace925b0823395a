"""What is tried with what is made."""

# pyright: reportArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import socft
from socft.costates.fields import CostateSource
from socft.guidance.denoiser import GaussianDenoiser
from socft.guidance.policy import (
    LookAheadGuidance,
)
from socft.guidance.strength import (
    Response,
)
from tests.support.public_calls.instances import (
    DIM,
    MATRIX,
    PATHS,
    POINTS,
    STEPS,
    flow_problem,
    gaussian,
    generator,
    line_problem,
    noise,
    path,
    policy,
    problem,
    reference,
    schedule,
)
from tests.support.tensors import F64, randn


def nothing(made: Any) -> None:
    return None


def of_states(made: Tensor) -> None:
    """States that are not finite have values that are not."""
    assert made.dtype in (torch.float32, torch.float64)
    assert len(made) in (PATHS - 1, PATHS, PATHS + 1, 0)


def bounds(made: Any) -> None:
    """Bounds are not negative, and infinite where there is none."""
    for each in made if isinstance(made, tuple) else (made,):
        assert each >= 0


def each_a_bound(made: Tensor) -> None:
    bounds(tuple(made.tolist()))


def itself(made: Any) -> Any:
    return made


def some(names: str) -> Callable[[Any], list[Any]]:
    return lambda made: [getattr(made, name) for name in names.split()]


def of_reference(made: socft.Reference) -> list[Tensor]:
    found = socft.rollout(made, socft.Uncontrolled(made), noise(made))
    assert found.states.shape == (made.steps + 1, PATHS, *made.dims)
    k = torch.zeros(PATHS, dtype=torch.long)
    return [found.states, found.controls, made.mean(k, found.states[0])]


def of_diffusion(made: Any) -> list[Tensor]:
    dims = (1,) if isinstance(made, socft.ScalarDiffusion) else (DIM,)
    x, z = randn(1, PATHS, *dims), randn(2, PATHS, *made.noise_dims(dims))
    pushed, pulled = made.apply(0, x, z), made.transpose(0, x, x)
    assert pushed.shape == x.shape
    assert pulled.shape == z.shape
    return [pushed, pulled, made.whiten(0, x, x), made.solve_transpose(0, x, z)]


def of_sde(made: socft.SDE) -> list[Tensor]:
    return of_reference(socft.EulerMaruyama().chain(made, 2))


def of_reward(x: Tensor) -> Callable[[socft.Reward], list[Any]]:
    def use(made: socft.Reward) -> list[Any]:
        value, gradient = made(x), made.gradient(x)
        assert value.shape == (len(x),)
        assert gradient.shape == x.shape
        assert made.L0 >= 0
        assert made.L1 >= 0
        return [value, gradient]

    return use


def of_policy(made: socft.Policy) -> list[Tensor]:
    chain = reference()
    found = socft.rollout(chain, made, noise(chain))
    assert found.controls.shape == (STEPS, PATHS, DIM)
    return [found.states.detach(), found.controls.detach()]


def of_density(made: socft.Density) -> list[Any]:
    x = made.sample(PATHS, generator())
    assert x.shape == (PATHS, *made.dims)
    return [x, made.noised_log_prob(0.5, x), made.noised_score(0.5, x), made.noised(0.5).L0]


def of_estimator(made: socft.Estimator) -> list[Tensor]:
    at, control, taken = problem(), policy(), path()
    labels = made.label(at, control, taken)
    assert labels.targets.shape == taken.controls.shape
    k, sample = labels.pairs()
    loss = made.loss(at, control, k, labels.rows(k, sample)).detach()
    assert loss.shape == (STEPS * PATHS,)
    return [labels.targets, loss]


def of_renoised(made: Any) -> list[Tensor]:
    """Of states of the last level of a chain of scores."""
    chain = socft.score_reference(gaussian(), schedule())
    at = socft.ControlProblem(chain, socft.Linear([1.0, 2.0]), 1.0)
    labels = made.label_samples(at, policy(), randn(3, PATHS, DIM))
    k, sample = labels.pairs()
    loss = made.loss(at, policy(), k, labels.rows(k, sample)).detach()
    assert loss.shape == (STEPS * PATHS,)
    return [labels.targets, loss]


def of_flow_estimator(made: socft.Estimator) -> list[Tensor]:
    at = flow_problem()
    taken = socft.rollout(at.reference, policy(), noise(at.reference))
    labels = made.label(at, policy(), taken)
    assert labels.targets.shape == taken.controls.shape
    k, sample = labels.pairs()
    loss = made.loss(at, policy(), k, labels.rows(k, sample)).detach()
    assert loss.shape == (STEPS * PATHS,)
    return [labels.targets, loss]


def of_source(made: CostateSource) -> list[Tensor]:
    field = made.field(flow_problem(), policy())
    found = [field(k, POINTS) for k in (0, STEPS)]
    assert all(each.shape == POINTS.shape for each in found)
    return [each.detach() for each in found]


def of_guard(made: socft.GRPOGuard) -> list[Tensor]:
    """With one standard deviation per step."""
    chain = socft.AffineReference([MATRIX] * STEPS, socft.ScalarDiffusion([0.5] * STEPS))
    at = socft.ControlProblem(chain, lambda x: x.sum(1), 1.0)
    taken = socft.rollout(chain, policy(), noise(chain))
    rows = made.label(at, policy(), taken).step(0)
    return [made.loss(at, policy(), 0, rows).detach()]


def of_method(made: socft.Method) -> list[Any]:
    at = line_problem()
    kept = [each.index for each in itertools.islice(made.iterations(at), 3)]
    assert kept
    assert kept[0] == 0
    return kept


def of_regression(made: socft.LinearRegression) -> list[Tensor]:
    x = randn(3, 20, 1)
    found = made.fit(x, x.sin())(x)
    assert found.shape == x.shape
    return [found]


def of_features(made: Any) -> list[Tensor]:
    found = made(POINTS)
    assert found.shape[:1] == (PATHS,)
    assert found.ndim == 2
    return [found]


def of_denoiser(made: Any) -> list[Tensor]:
    found = made.at(0, POINTS)
    assert found.clean.shape == POINTS.shape
    return [found.clean, found.score]


def of_guidance(made: Any) -> list[Tensor]:
    found = made(GaussianDenoiser(gaussian(), [0.2, 0.5]).at(0, POINTS))  # type: ignore
    assert found.shape == POINTS.shape
    return [found]


def of_strength(made: Any) -> list[Tensor]:
    return of_guidance(LookAheadGuidance(Response(torch.ones(DIM, dtype=F64), 1.0), made))


def of_truth(made: socft.Truth) -> list[Any]:
    found = made.evaluate(socft.Uncontrolled(made.problem.reference))
    return [made.objective, found.objective, found.reward, found.kl]


def of_problem(made: socft.ControlProblem) -> list[Tensor]:
    chain = made.reference
    taken = socft.rollout(chain, socft.Uncontrolled(chain), noise(chain))
    found = socft.returns(made, taken)
    assert found.shape == (PATHS,)
    return [found, made.beta]


def first(made: Any) -> Any:
    return next(iter(made)).index


def corrected(made: Any) -> list[Tensor]:
    return of_estimator(socft.FullMartingaleAdjoint(made))


def with_baseline(made: Any) -> list[Tensor]:
    return of_estimator(socft.ScoreFunction(made))


def with_score(made: Any) -> list[Tensor]:
    at, control, taken = problem(), policy(), path()
    return [made.fit(at, control, taken)(1, taken.states[1])]
