"""Calls that make chains of flow models."""

# pyright: reportArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

import socft
from socft import flow
from tests.support.public_calls import uses
from tests.support.public_calls.instances import DIM, PATHS, POINTS, gaussian
from tests.support.public_calls.table import FIELD, Fresh, add

TIMES = [1.0, 0.6, 0.3, 0.1]
TO_DATA = [1.0, 0.6, 0.3, 0.0]


def schedule() -> flow.FlowSchedule:
    return flow.flow_sde(TIMES, 0.7)


def ending() -> flow.FlowSchedule:
    return flow.flow_ddim(TO_DATA)


def fill() -> None:
    """Add them all."""
    _levels()
    _schedules()
    _references()
    _last_steps()


def _levels() -> None:
    add(flow.uniform_times, uses.itself, steps=3, last=0.2)
    add(flow.shift_times, uses.itself, times=TIMES, shift=3.0)
    for path in (flow.Rectified(), flow.Trigonometric()):
        add(
            path.level,
            uses.some("signal noise signal_rate noise_rate wronskian"),
            f"level of {type(path).__name__}",
            time=TIMES,
        )
    add(
        flow.NoiseLevel,
        lambda made: [made.endpoint(POINTS, POINTS), made.noise_estimate(POINTS, POINTS)],
        signal=torch.full((PATHS,), 0.6, dtype=torch.float64),
        noise=torch.full((PATHS,), 0.4, dtype=torch.float64),
        signal_rate=torch.full((PATHS,), -1.0, dtype=torch.float64),
        noise_rate=torch.full((PATHS,), 1.0, dtype=torch.float64),
    )
    level = flow.Rectified().level(0.25)
    for name in ("endpoint", "noise_estimate", "score"):
        add(getattr(level, name), uses.of_states, name, x=POINTS, velocity=POINTS)


def _schedules() -> None:
    straight = Fresh(flow.Rectified)
    add(
        flow.FlowSchedule,
        of_schedule,
        times=[1.0, 0.5, 0.1],
        endpoint_weight=[0.5, 0.9],
        noise_weight=[0.3, 0.05],
        sigma=[0.5, 0.1],
        interpolant=straight,
    )
    add(schedule().memory, uses.itself, "memory along a flow", variance=1.0)
    add(flow.flow_ddim, of_schedule, times=TIMES, eta=0.7, interpolant=straight)
    for made in (flow.precise, flow.dance_precise, flow.cps, flow.flow_sde, flow.dance_sde):
        add(made, of_schedule, times=TIMES, noise_level=0.7, interpolant=straight)
    add(flow.memoryless, of_schedule, times=TIMES, interpolant=straight)
    add(
        flow.euler_maruyama,
        of_schedule,
        times=TIMES,
        diffusion=Fresh(lambda: lambda start: 0.5 * start.noise),
        interpolant=straight,
    )


def of_schedule(made: flow.FlowSchedule) -> list[Tensor]:
    weights = [made.endpoint_weight, made.noise_weight, made.sigma, made.velocity_weight]
    assert all(each.shape == (made.steps,) for each in weights)
    return [*weights, made.state_weight, torch.tensor(made.memory())]


def _references() -> None:
    add(
        flow.FlowReference,
        uses.of_reference,
        schedule=Fresh(schedule),
        velocity=FIELD,
        dims=(DIM,),
    )
    add(
        flow.NoisedVelocity,
        lambda made: made(0, POINTS),
        density=Fresh(gaussian),
        levels=Fresh(lambda: schedule().starts),
    )
    add(flow.flow_reference, uses.of_reference, density=Fresh(gaussian), schedule=Fresh(schedule))
    add(
        flow.affine_flow_reference,
        uses.of_reference,
        gaussian=Fresh(gaussian),
        schedule=Fresh(schedule),
    )


def _chain() -> flow.FlowReference:
    return flow.FlowReference(schedule(), lambda k, x: -x, (DIM,))


def _last_steps() -> None:
    reward = Fresh(lambda: socft.Linear([1.0, 2.0]))
    add(
        flow.LastStepReward,
        lambda made: uses.of_problem(socft.ControlProblem(_chain(), made, 1.0)),
        reward=reward,
        schedule=Fresh(ending),
        velocity=FIELD,
    )
    shared = {"schedule": Fresh(ending), "velocity": FIELD, "reward": reward, "dims": (DIM,)}
    add(flow.absorb_last_step, of_chain_and_reward, **shared)
    add(flow.free_last_step, of_chain_and_reward, fine_tuned=FIELD, **shared)


def of_chain_and_reward(made: tuple[flow.FlowReference, flow.LastStepReward]) -> list[Tensor]:
    return uses.of_problem(socft.ControlProblem(*made, 1.0))
