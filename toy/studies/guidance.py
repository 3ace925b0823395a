r"""Guidance against fine-tuning and optimal control: every number of the guidance report that needs
exact scores only.

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
from scipy.optimize import brentq, minimize
from torch import Tensor

from socft.density import Gaussian, affine_reference
from socft.guidance.gaussian_passes import GaussianPasses
from socft.guidance.iterated import (
    GuidanceRound,
    IncrementTarget,
    IteratedGuidance,
    RecentredScore,
    SampleQuery,
)
from socft.guidance.policy import (
    ClassifierGuidance,
    GaussianDenoiser,
    Guidance,
    GuidancePolicy,
    IsotropicStrength,
    LookAheadGuidance,
    NaiveGuidance,
    NoGuidance,
    PosteriorStrength,
    PublishedStrength,
    Response,
    UniversalGuidance,
    affine_policy,
)
from socft.guidance.sphere import Sphere, SphereDenoiser
from socft.guidance.sphere_passes import SpherePasses
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import AffineReference, States
from socft.reward import FunctionReward, Linear, Quadratic, Reward
from socft.schedule import Schedule, cosine_levels, ddpm
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import affine_moments
from socft.truth.linear_quadratic import LinearQuadratic

DIM, LATENT = 64, 16
NOISE = 0.1  # s of the published simulations
OFF_SUPPORT = 9.0  # |theta_perp| / |theta_par| of f1
BATCH, SPHERE_BATCH = 32, 256
SHARE = 0.02  # of the way to the batch's mean, per round of Algorithm 2
# rounds recorded of a run, and every twentieth up to the hundredth, which shorter runs have too
MARKS = 48
FRONTIER_PATHS = 1024
KNOB_ACCURACY = 1e-5
LARGEST_KNOB = 1e5
GUIDES: dict[str, Callable[[Response], Guidance]] = {
    "G": lambda response: NaiveGuidance(response, IsotropicStrength(NOISE)),
    "G_loss": lambda response: LookAheadGuidance(response, PublishedStrength(NOISE)),
}


@dataclasses.dataclass(frozen=True)
class PublishedRun:
    """One run.

    Attributes:
        delta: increment of the targets.
        rounds: their number.
        adapts: first round of Algorithm 2 that adapts the score.
    """

    delta: float
    rounds: int
    adapts: int = 0


RUNS = {
    (ProblemName.F1_OFF, "G", 1): PublishedRun(0.9, 1000),
    (ProblemName.F1_OFF, "G_loss", 1): PublishedRun(0.2, 1000),
    (ProblemName.F1_OFF, "G", 2): PublishedRun(0.9, 1200, 40),
    (ProblemName.F1_OFF, "G_loss", 2): PublishedRun(0.2, 1200, 60),
    (ProblemName.F1_ON, "G_loss", 1): PublishedRun(0.05, 1000),
    (ProblemName.F2_ONES, "G_loss", 1): PublishedRun(1.0, 50),
    (ProblemName.F2_RANDOM, "G_loss", 1): PublishedRun(1.0, 50),
}
"""The published settings by objective, guidance and algorithm."""


def charged(measure: Callable[..., list[Record]]) -> Callable[..., list[Record]]:
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


@dataclasses.dataclass(frozen=True)
class Subspace:
    """Data ``x = A u`` with independent Gaussian coordinates, and the published objectives.

    Attributes:
        A: orthonormal columns, shape (D, d).
        law: the data law.
        objectives: by name.
    """

    A: Tensor
    law: Gaussian
    objectives: dict[str, Reward]

    def off(self, x: States) -> Tensor:
        """``|x_perp| / |x_par|`` per sample."""
        along = x @ self.A
        return (x - along @ self.A.mT).norm(dim=1) / along.norm(dim=1)


@functools.cache
def subspace() -> Subspace:
    """The published construction, drawn anew."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    A = torch.linalg.qr(normal(DIM, LATENT)).Q
    direction, on = normal(DIM), A @ normal(LATENT)
    along = A @ (A.mT @ direction)
    across = direction - along
    theta = OFF_SUPPORT * across / across.norm() + along / along.norm()
    objectives: dict[str, Reward] = {
        ProblemName.F1_OFF: parabola(theta / theta.norm()),
        ProblemName.F1_ON: parabola(on / on.norm()),
        ProblemName.F2_ONES: cone(torch.full((DIM,), 4.0, dtype=torch.float64)),
        ProblemName.F2_RANDOM: cone(4 + 3 * normal(DIM)),
    }
    projection = A @ A.mT
    return Subspace(
        A,
        Gaussian(torch.zeros(DIM, dtype=torch.float64), (projection + projection.mT) / 2),
        objectives,
    )


def parabola(theta: Tensor) -> Quadratic:
    """``10 - (theta . x - 3)^2``."""
    return Quadratic(-2 * torch.outer(theta, theta), 6 * theta, 1.0)


def cone(b: Tensor) -> FunctionReward:
    """``5 - |x - b| / 2``."""
    return FunctionReward(lambda x: 5 - (x - b.to(x)).norm(dim=1) / 2, L0=0.5)


def chain(steps: int) -> Schedule:
    """DDPM on the cosine schedule, as published but for the variance of its kernels: the forward
    one, so that none is zero.
    """
    return ddpm(cosine_levels(steps))


@charged
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


@charged
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
        Record(schemas.GUIDANCE.name, objective, metric, best(weight), setting, "G_loss")
        for metric, weight in names.items()
    ]


# One guided pass, exactly: the d + 1 coordinates that guidance moves
# ----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moved:
    """The coordinates along A and along ``theta_perp``, in which f1 guidance acts; the rest stays
    as pre-trained.

    Attributes:
        law: shape (d + 1,), the last coordinate zero.
        reward: f1.
        rest: number of the other coordinates across the subspace.
    """

    law: Gaussian
    reward: Quadratic
    rest: int


VARIANCES: Mapping[str, tuple[float, float]] = {
    ProblemName.ISOTROPIC: (1.0, 1.0),
    ProblemName.ANISOTROPIC: (0.05, 2.0),
}


@functools.cache
def moved(spread: str) -> Moved:
    """f1 with the off-support direction; the latent variances run between the two of `VARIANCES`."""
    data = subspace()
    form = data.objectives[ProblemName.F1_OFF]
    assert isinstance(form, Quadratic)
    theta = form.linear / 6
    along = data.A.mT @ theta
    direction = torch.cat([along, (theta - data.A @ along).norm().reshape(1)])
    spectrum = torch.cat(
        [
            torch.linspace(*VARIANCES[spread], LATENT, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        ]
    )
    return Moved(
        Gaussian(torch.zeros(LATENT + 1, dtype=torch.float64), spectrum),
        parabola(direction),
        DIM - LATENT - 1,
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy reaches: mean reward, divergence from the pre-trained chain, distance from the
    data, both as means.
    """

    reward: float
    kl: float
    distance: float


class Frontier:
    """One-pass methods on `Moved`, each a family of policies with a knob that starts at 0, the
    pre-trained model.
    """

    def __init__(self, spread: str, steps: int):
        self.case, self.schedule = moved(spread), chain(steps)
        self.reference: AffineReference = affine_reference(self.case.law, self.schedule)
        self.denoiser = GaussianDenoiser(self.case.law, self.schedule.abar[:-1])
        start = self.case.law.mean
        self.gradient = self.case.reward.gradient(start[None])[0]
        self._zero = ControlProblem(self.reference, self.case.reward, 1.0)
        self._ends: dict[str, tuple[AffinePolicy, AffinePolicy]] = {}
        self.floor = float(
            affine_moments(self._zero, AffinePolicy.zeros(self.reference)).covariance[-1, -1, -1]
        )

    def policy(self, method: str, knob: float) -> AffinePolicy:
        """The policy of a method; all but the optimal control are affine in the knob, so that two
        of each are tabulated.
        """
        if method == "optimal control":
            return LinearQuadratic(
                ControlProblem(self.reference, self.case.reward, 1 / knob)
            ).affine_policy
        if method not in self._ends:
            self._ends[method] = self.tabulated(method, 0.0), self.tabulated(method, 1.0)
        zero, one = self._ends[method]
        return AffinePolicy(zero.gain.lerp(one.gain, knob), zero.offset.lerp(one.offset, knob))

    def tabulated(self, method: str, knob: float) -> AffinePolicy:
        """The policy of a method at this very knob."""
        if method == "fine-tuned score":
            new = self.denoiser.recentred(
                self.case.law.mean + knob * self.case.law.covariance @ self.gradient
            )
            made = GuidancePolicy(self.schedule, new, NoGuidance(), self.denoiser)
        else:
            made = GuidancePolicy(self.schedule, self.denoiser, METHODS[method](self, knob))
        return affine_policy(made, self.schedule.steps, LATENT + 1)

    def outcome(self, method: str, knob: float) -> Outcome:
        """Exact moments of the controlled chain; the distance is the root of the mean square."""
        found = affine_moments(self._zero, self.policy(method, knob))
        across = float(found.covariance[-1, -1, -1] + found.mean[-1, -1].square())
        return Outcome(
            found.reward, float(found.kl.sum()), math.sqrt(across + self.case.rest * self.floor)
        )

    def reach(self, method: str, reward: float) -> Outcome | None:
        """The outcome at the smallest knob with this reward, None where the method does not get
        there.
        """

        def short(knob: float) -> float:
            return self.outcome(method, knob).reward - reward

        low, high, missing = 0.0, KNOBS[method][0], short(KNOBS[method][0])
        while missing < 0:
            low, high, before = high, 3 * high, missing
            missing = short(high)
            if missing < before or high > LARGEST_KNOB:
                return None
        knob = float(brentq(short, low, high, rtol=np.float64(KNOB_ACCURACY))) if low else high  # type: ignore[arg-type]
        return self.outcome(method, knob)


METHODS: dict[str, Callable[[Frontier, float], Guidance]] = {
    "G": lambda f, delta: NaiveGuidance(Response(f.gradient, delta), IsotropicStrength(NOISE)),
    "G_loss, published": lambda f, delta: LookAheadGuidance(
        Response(f.gradient, delta), PublishedStrength(NOISE)
    ),
    "G_loss, exact": lambda f, delta: LookAheadGuidance(
        Response(f.gradient, delta), PosteriorStrength(NOISE)
    ),
    "universal": lambda f, weight: UniversalGuidance(f.case.reward, weight),
    "classifier": lambda f, weight: ClassifierGuidance(
        f.case.law, f.case.law.tilted(f.case.reward, 1.0).density, weight
    ),
}
"""Guidance by method and knob: the increment of y at the pre-trained mean, or a weight."""
ALL_METHODS = (*METHODS, "fine-tuned score", "optimal control")
KNOBS = dict.fromkeys(("G", "G_loss, published", "G_loss, exact"), (0.02, 100.0)) | {
    "universal": (0.003, 10.0),
    "classifier": (0.01, 100.0),
    "fine-tuned score": (0.1, 30.0),
    "optimal control": (0.003, 30.0),
}

FRONTIER: Mapping[str, Metric] = {
    "reward": Metric.FRONTIER_REWARD,
    "kl": Metric.FRONTIER_KL,
    "distance": Metric.FRONTIER_DISTANCE,
    "off_sphere": Metric.FRONTIER_OFF_SPHERE,
}
"""What is recorded along a knob."""


@charged
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


@charged
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


# The unit sphere
# -----------------------------------------------------------------------------------------------------


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


@charged
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


@charged
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
        if method == "universal":
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
    steps, most = (25, 12) if quick else (200, 2000)
    out = []
    for (objective, guidance, algorithm), run in RUNS.items():
        name = f"rounds {objective} {guidance} algorithm {algorithm}"
        arguments = {
            "objective": objective,
            "guidance": guidance,
            "algorithm": algorithm,
            "delta": run.delta,
        }
        length = {
            "rounds": min(run.rounds, most),
            "adapts": min(run.adapts, most // 4),
            "steps": steps,
        }
        out.append(Task(name, rounds_task, arguments | length))
    settled = {
        (objective, run.delta)
        for (objective, guidance, _), run in RUNS.items()
        if guidance == "G_loss"
    }
    for objective, delta in sorted(settled):
        out.append(
            Task(
                f"regularised {objective}",
                regularised_task,
                {"objective": objective, "delta": delta},
            )
        )
    points, rewards = (4, [3.0]) if quick else (16, [2.0, 3.0, 5.0, 8.0])
    for spread in VARIANCES:
        for method in ALL_METHODS:
            where = {"spread": spread, "method": method, "steps": steps}
            out.append(
                Task(f"frontier {spread} {method}", frontier_task, where | {"points": points})
            )
            out.append(
                Task(
                    f"equal reward {spread} {method}",
                    equal_reward_task,
                    where | {"rewards": rewards},
                )
            )
    deltas = [0.2] if quick else [0.05, 0.2, 0.52]
    for guidance in GUIDES:
        length = {"rounds": 4 if quick else 25, "steps": steps}
        out.append(
            Task(
                f"sphere {guidance}", sphere_task, {"guidance": guidance, "deltas": deltas} | length
            )
        )
    for method, knobs in SPHERE_KNOBS.items():
        where = {"knobs": knobs[::4] if quick else knobs, "paths": 128 if quick else FRONTIER_PATHS}
        out.append(
            Task(
                f"sphere frontier {method}",
                sphere_frontier_task,
                where | {"method": method, "steps": steps},
            )
        )
    return out


SPHERE_KNOBS = {
    "universal": [2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0],
    "optimal control": [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0],
}

STUDY = Study(schemas.GUIDANCE, tasks)
