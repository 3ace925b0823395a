r"""What does guidance buy beside fine-tuning and optimal control? Every number of the guidance
report that needs exact scores only.

The simulations of Guo, Yuan, Yang, Chen and Wang (arXiv 2404.14743v2, appendix E.1) with exact
scores:

* data on a subspace, :math:`x = A u`, D = 64, d = 16, :math:`u \sim N(0, I)`, 200 steps; objectives
  :math:`f_1 = 10 - (\theta^\top x - 3)^2` with :math:`|\theta_\perp|/|\theta_\parallel| = 9` or
  :math:`\theta` in the subspace, and :math:`f_2 = 5 - |x - b|/2` with b = 4 in every coordinate or
  :math:`b \sim N(4, 9 I)`; batches of 32, gradients at every sample, :math:`y = \delta + g^\top z`,
  s = 0.1;
* the uniform law on the unit sphere of 64 dimensions, :math:`f = \theta^\top x`, batches of 256, 25
  rounds.

Frontiers of reward against divergence and against distance from the data compare one guided pass
with universal guidance (arXiv 2302.07121), classifier guidance (arXiv 2105.05233), a fine-tuned
score and the optimal control. On the subspace they are exact in closed form, in the d + 1
coordinates that guidance moves; the others keep their pre-trained law.

Passes are simulated in the few coordinates that guidance moves (`socft.guidance.gaussian_passes`,
`socft.guidance.sphere_passes`), with the law of full ones, in about a minute on one core
altogether; `toy.studies.guidance_network` repeats the runs on :math:`f_1` with a trained network.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from socft.guidance.denoiser import GaussianDenoiser
from socft.guidance.gaussian_passes import GaussianPasses
from socft.guidance.iterated import (
    GuidanceRound,
    IncrementTarget,
    IteratedGuidance,
    RecentredScore,
    SampleQuery,
)
from socft.guidance.policy import GuidancePolicy, NoGuidance, UniversalGuidance
from socft.guidance.sphere import Sphere, SphereDenoiser
from socft.guidance.sphere_passes import SpherePasses
from socft.records import Record
from socft.reference import States
from socft.reward import Linear
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.guidance.frontier import ALL_METHODS, KNOBS, VARIANCES, Frontier
from toy.guidance.subspace import BATCH, DIM, GUIDES, LATENT, NOISE, RUNS, SHARE, chain, subspace

SPHERE_BATCH = 256
LENGTHS = (25, 50, 100, 200, 400)
# rounds recorded of a run, and every twentieth up to the hundredth, which shorter runs have too
MARKS = 48
FRONTIER_PATHS = 1024


def with_task_seconds(measure: Callable[..., list[Record]]) -> Callable[..., list[Record]]:
    """A task that also records the processor time it took, in seconds."""

    @functools.wraps(measure)
    def task(**arguments: Any) -> list[Record]:
        start = time.process_time()
        records = measure(**arguments)
        spent = time.process_time() - start
        first = records[0]
        cost = Record(
            schemas.GUIDANCE.name,
            first.problem,
            Metric.TASK_SECONDS,
            spent,
            arguments,
            first.estimator,
        )
        return [*records, cost]

    return task


@with_task_seconds
def rounds_task(
    objective: str,
    guidance: str,
    algorithm: int,
    delta: float,
    rounds: int,
    adapts: int,
    steps: int,
) -> list[Record]:
    """Reward, off-support ratio and divergence of the rounds of one published run, with the exact
    score.
    """
    data, schedule = subspace(), chain(steps)
    tuning = RecentredScore(SHARE) if algorithm == 2 else None
    run = IteratedGuidance(GUIDES[guidance], IncrementTarget(delta), SampleQuery(), tuning, adapts)
    denoiser = GaussianDenoiser(data.law, schedule.abar[:-1])
    made = run.rounds(
        GaussianPasses(data.law, schedule),
        schedule,
        denoiser,
        data.objectives[objective],
        BATCH,
        rounds,
        torch.Generator().manual_seed(1),
    )
    setting = {"algorithm": algorithm, "score": "exact", "delta": delta}
    return round_rows(made, schemas.GUIDANCE.name, objective, guidance, rounds, setting)


def round_rows(
    made: Iterable[GuidanceRound],
    study: str,
    objective: str,
    guidance: str,
    rounds: int,
    setting: dict[str, Any],
) -> list[Record]:
    """The rounds of a run on the subspace, all of few or some of many."""
    data = subspace()
    reward, marks, start, records = (
        data.objectives[objective],
        _marks(rounds),
        time.perf_counter(),
        [],
    )
    for each in made:
        if each.index not in marks:
            continue
        values = {
            Metric.REWARD: float(reward(each.samples).mean()),
            Metric.OFF_SUPPORT: float(data.off(each.samples).mean()),
            Metric.KL: float(each.kl.mean()),
            Metric.VALUE_AT_MEAN: float(reward(each.samples.mean(0, keepdim=True))),
        }
        spread = float(reward(each.samples).std()) / len(each.samples) ** 0.5
        spent, where = time.perf_counter() - start, setting | {"round": each.index}
        records += [
            Record(
                study,
                objective,
                m,
                v,
                where,
                guidance,
                seconds=spent,
                stderr=spread if m == Metric.REWARD else None,
            )
            for m, v in values.items()
        ]
    return records


@with_task_seconds
def regularised_task(objective: str, delta: float) -> list[Record]:
    """Where the published targets lead the mean: the maximum on the subspace of f less
    ``s^2 / (2 delta) |x|^2``, and of f.
    """
    data = subspace()
    reward = data.objectives[objective]

    def best(weight: float) -> float:
        def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
            x = (data.A @ torch.from_numpy(u))[None]
            slope = data.A.mT @ reward.gradient(x)[0]
            return float(weight * u @ u / 2 - reward(x)), weight * u - slope.numpy()

        found = minimize(
            negative, np.full(LATENT, 0.1), jac=True, method="BFGS", options={"gtol": 1e-9}
        )
        return float(reward((data.A @ torch.from_numpy(found.x))[None]))

    setting = {"delta": delta}
    names = {Metric.REGULARISED_VALUE: NOISE**2 / delta, Metric.MAXIMUM: 0.0}
    return [
        Record(
            schemas.GUIDANCE.name, objective, metric, best(weight), setting, MethodName.LOOK_AHEAD
        )
        for metric, weight in names.items()
    ]


FRONTIER: Mapping[str, Metric] = {
    "reward": Metric.FRONTIER_REWARD,
    "kl": Metric.FRONTIER_KL,
    "distance": Metric.FRONTIER_DISTANCE,
    "off_sphere": Metric.FRONTIER_OFF_SPHERE,
}
"""What is recorded along a knob."""


@with_task_seconds
def frontier_task(spread: str, method: str, points: int, steps: int) -> list[Record]:
    """Reward, divergence and distance along the knob of one method."""
    frontier, records = Frontier(spread, steps), []
    for knob in np.geomspace(*KNOBS[method], points).tolist():
        found = frontier.outcome(method, knob)
        records += [
            Record(schemas.GUIDANCE.name, spread, FRONTIER[metric], value, {"knob": knob}, method)
            for metric, value in dataclasses.asdict(found).items()
        ]
    return records


@with_task_seconds
def equal_reward_task(
    spread: str, method: str, rewards: Sequence[float], steps: int
) -> list[Record]:
    """Divergence and distance of one method at given rewards; nan where it does not get there."""
    frontier, records = Frontier(spread, steps), []
    for reward in rewards:
        found = frontier.reach(method, reward)
        values = {
            Metric.EQUAL_KL: found.kl if found else math.nan,
            Metric.EQUAL_DISTANCE: found.distance if found else math.nan,
        }
        records += [
            Record(schemas.GUIDANCE.name, spread, metric, value, {"reward": reward}, method)
            for metric, value in values.items()
        ]
    return records


@with_task_seconds
def number_of_steps_task(method: str, reward: float, lengths: Sequence[int]) -> list[Record]:
    """Divergence of one method at a given reward, on chains of several numbers of steps."""
    records = []
    for steps in lengths:
        found = Frontier(ProblemName.ISOTROPIC, steps).reach(method, reward)
        records.append(
            Record(
                schemas.GUIDANCE.name,
                ProblemName.ISOTROPIC,
                Metric.EQUAL_KL,
                found.kl if found else math.nan,
                {"reward": reward, "T": steps},
                method,
            )
        )
    return records


@functools.cache
def pole() -> Tensor:
    """A random unit vector, theta."""
    theta = torch.randn(DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return theta / theta.norm()


@functools.cache
def sphere_passes(steps: int) -> SpherePasses:
    """Passes over the uniform law on the sphere with its exact score."""
    schedule = chain(steps)
    return SpherePasses(pole(), SphereDenoiser(Sphere(DIM), schedule.abar[:-1]), schedule)


@with_task_seconds
def sphere_task(guidance: str, deltas: Sequence[float], rounds: int, steps: int) -> list[Record]:
    """Rounds of Algorithm 1 on the sphere with the exact score, for several increments side by
    side: samples do not interact.
    """
    passes, batch = sphere_passes(steps), SPHERE_BATCH
    delta = torch.tensor(deltas, dtype=torch.float64).repeat_interleave(batch)
    run, reward = (
        IteratedGuidance(GUIDES[guidance], IncrementTarget(delta), SampleQuery()),
        Linear(pole()),
    )
    generator = torch.Generator().manual_seed(1)
    records = []
    for each in run.rounds(
        passes, passes.schedule, passes.denoiser, reward, len(delta), rounds, generator
    ):
        for i, value in enumerate(deltas):
            mine, where = slice(i * batch, (i + 1) * batch), {"delta": value, "round": each.index}
            records += [
                Record(schemas.GUIDANCE.name, ProblemName.SPHERE, metric, found, where, guidance)
                for metric, found in _sphere_values(each.samples[mine], each.kl[mine]).items()
            ]
    return records


@with_task_seconds
def sphere_frontier_task(
    method: str, knobs: Sequence[float], paths: int, steps: int
) -> list[Record]:
    """One pass with universal guidance, or with the control that is optimal in continuous time, for
    several weights.
    """
    passes, reward = sphere_passes(steps), Linear(pole())
    schedule, denoiser = passes.schedule, passes.denoiser
    noise = passes.noise(paths, torch.Generator().manual_seed(3))
    records = []
    for knob in knobs:
        if method == MethodName.UNIVERSAL:
            policy = GuidancePolicy(schedule, denoiser, UniversalGuidance(reward, knob))
        else:
            tilted = denoiser.law.tilted(reward, 1 / knob).density
            policy = GuidancePolicy(
                schedule, SphereDenoiser(tilted, denoiser.abar), NoGuidance(), denoiser
            )
        made = passes.simulate(policy, noise)
        records += [
            Record(
                schemas.GUIDANCE.name,
                ProblemName.SPHERE,
                FRONTIER[metric],
                value,
                {"knob": knob},
                method,
            )
            for metric, value in _sphere_values(made.samples, made.kl).items()
        ]
    return records


def _sphere_values(x: States, kl: Tensor) -> dict[str, float]:
    return {
        Metric.REWARD: float((x @ pole()).mean()),
        Metric.OFF_SPHERE: float((x.norm(dim=1) - 1).abs().mean()),
        Metric.KL: float(kl.mean()),
    }


def _marks(rounds: int) -> frozenset[int]:
    """Rounds to record: all of few, else some, on a square-root scale."""
    scale = np.unique(np.round(np.linspace(0, 1, MARKS) ** 2 * rounds).astype(int))
    return frozenset(scale.tolist()) | frozenset(range(0, min(rounds, 100) + 1, 20))


def tasks(quick: bool) -> list[Task]:
    """Every measurement, at the quick or the full scale."""
    steps = 25 if quick else 200
    return [
        *_rounds_tasks(steps, 12 if quick else 2000),
        *_regularised_tasks(),
        *_frontier_tasks(steps, quick),
        *_number_of_steps_tasks(quick),
        *_sphere_tasks(steps, quick),
    ]


def _rounds_tasks(steps: int, most: int) -> list[Task]:
    """The published runs of both algorithms, of at most ``most`` rounds."""
    out = []
    for (objective, guidance, algorithm), run in RUNS.items():
        arguments = {
            "objective": objective,
            "guidance": guidance,
            "algorithm": algorithm,
            "delta": run.delta,
            "rounds": min(run.rounds, most),
            "adapts": min(run.adapts, most // 4),
            "steps": steps,
        }
        name = f"rounds {objective} {guidance} algorithm {algorithm}"
        out.append(Task(name, rounds_task, arguments))
    return out


def _regularised_tasks() -> list[Task]:
    """Where the rounds of look-ahead guidance settle."""
    settled = {
        (objective, run.delta)
        for (objective, guidance, _), run in RUNS.items()
        if guidance == MethodName.LOOK_AHEAD
    }
    return [
        Task(f"regularised {objective}", regularised_task, {"objective": objective, "delta": delta})
        for objective, delta in sorted(settled)
    ]


def _frontier_tasks(steps: int, quick: bool) -> list[Task]:
    """Reward against KL of every method, and all of them at equal reward."""
    points, rewards = (4, [3.0]) if quick else (16, [2.0, 3.0, 5.0, 8.0])
    out = []
    for spread in VARIANCES:
        for method in ALL_METHODS:
            where = {"spread": spread, "method": method, "steps": steps}
            name = f"{spread} {method}"
            out += [
                Task(f"frontier {name}", frontier_task, where | {"points": points}),
                Task(f"equal reward {name}", equal_reward_task, where | {"rewards": rewards}),
            ]
    return out


def _number_of_steps_tasks(quick: bool) -> list[Task]:
    """What a reward costs on shorter and longer chains."""
    return [
        Task(
            f"number of steps {method}",
            number_of_steps_task,
            {"method": method, "reward": 3.0, "lengths": (10, 20) if quick else LENGTHS},
        )
        for method in ALL_METHODS
    ]


def _sphere_tasks(steps: int, quick: bool) -> list[Task]:
    """The same on a sphere."""
    deltas = [0.2] if quick else [0.05, 0.2, 0.52]
    length = {"deltas": deltas, "rounds": 4 if quick else 25, "steps": steps}
    out = [Task(f"sphere {name}", sphere_task, {"guidance": name} | length) for name in GUIDES]
    for method, knobs in SPHERE_KNOBS.items():
        chosen = knobs[::4] if quick else knobs
        paths = 128 if quick else FRONTIER_PATHS
        where = {"knobs": chosen, "paths": paths, "method": method, "steps": steps}
        out.append(Task(f"sphere frontier {method}", sphere_frontier_task, where))
    return out


SPHERE_KNOBS = {
    MethodName.UNIVERSAL: [2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0],
    MethodName.OPTIMAL_CONTROL: [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0],
}
STUDY = Study(schemas.GUIDANCE, tasks)
