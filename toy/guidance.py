r"""Guidance against fine-tuning and optimal control: every number of the guidance report.

The simulations of Guo, Yuan, Yang, Chen and Wang (arXiv 2404.14743v2, appendix E.1) with exact scores, and with a
trained network to isolate its error:

* data on a subspace, :math:`x = A u`, D = 64, d = 16, :math:`u \sim N(0, I)`, 200 steps; objectives   :math:`f_1 = 10 -
(\theta^\top x - 3)^2` with :math:`|\theta_\perp|/|\theta_\parallel| = 9` or :math:`\theta` in the subspace, and   :math:`f_2 = 5 -
|x - b|/2` with b = 4 in every coordinate or :math:`b \sim N(4, 9 I)`; batches of 32, gradients at every sample,   :math:`y =
\delta + g^\top z`, s = 0.1; * the uniform law on the unit sphere of 64 dimensions, :math:`f = \theta^\top x`, batches of 256, 25
rounds.

Frontiers of reward against divergence and against distance from the data compare one guided pass with universal guidance (arXiv
2302.07121), classifier guidance (arXiv 2105.05233), a fine-tuned score and the optimal control. On the subspace they are exact in
closed form, in the d + 1 coordinates that guidance moves; the others keep their pre-trained law.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from scipy.optimize import brentq, minimize
from torch import Tensor

from socft.density import Gaussian, affine_reference, score_reference
from socft.guidance import (
    Classifier,
    Denoiser,
    GaussianDenoiser,
    Guidance,
    GuidancePolicy,
    Isotropic,
    LookAhead,
    Naive,
    Posterior,
    Published,
    Response,
    ScoreDenoiser,
    Unguided,
    Universal,
    affine_policy,
)
from socft.iterated_guidance import AtEach, FineTuning, Increment, IteratedGuidance, Recentre, Round
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.records import Record
from socft.reference import AffineReference, Reference, ScoreReference, States
from socft.reward import FunctionReward, Linear, Quadratic, Reward
from socft.rollout import Noise, rollout
from socft.schedule import Schedule, cosine_levels, ddpm
from socft.score_network import FineTuneNetwork, ScoreNetwork, train_score
from socft.sphere import Sphere, SphereDenoiser
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic
from toy.runner import Study, Task

STUDY_NAME = "guidance"
DIM, LATENT = 64, 16
NOISE = 0.1  # s of the published simulations
OFF_SUPPORT = 9.0  # |theta_perp| / |theta_par| of f1
BATCH, SPHERE_BATCH = 32, 256
SHARE = 0.02  # of the way to the batch's mean, per round of Algorithm 2
MARKS = 48  # rounds recorded of a run
FRONTIER_PATHS = 1024
KNOB_ACCURACY = 1e-5
LARGEST_KNOB = 1e5
GUIDES: dict[str, Callable[[Response], Guidance]] = {
    "G": lambda response: Naive(response, Isotropic(NOISE)),
    "G_loss": lambda response: LookAhead(response, Published(NOISE)),
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
    ("f1 off", "G", 1): PublishedRun(0.9, 160),
    ("f1 off", "G_loss", 1): PublishedRun(0.2, 160),
    ("f1 off", "G", 2): PublishedRun(0.9, 400, 40),
    ("f1 off", "G_loss", 2): PublishedRun(0.2, 400, 60),
    ("f1 on", "G_loss", 1): PublishedRun(0.05, 500),
    ("f2 ones", "G_loss", 1): PublishedRun(1.0, 50),
    ("f2 random", "G_loss", 1): PublishedRun(1.0, 50),
}
"""The published settings by objective, guidance and algorithm; the runs of f1, of 1000 and 1200 rounds, are cut."""


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
        "f1 off": parabola(theta / theta.norm()),
        "f1 on": parabola(on / on.norm()),
        "f2 ones": cone(torch.full((DIM,), 4.0, dtype=torch.float64)),
        "f2 random": cone(4 + 3 * normal(DIM)),
    }
    projection = A @ A.mT
    return Subspace(A, Gaussian(torch.zeros(DIM, dtype=torch.float64), (projection + projection.mT) / 2), objectives)


def parabola(theta: Tensor) -> Quadratic:
    """``10 - (theta . x - 3)^2``."""
    return Quadratic(-2 * torch.outer(theta, theta), 6 * theta, 1.0)


def cone(b: Tensor) -> FunctionReward:
    """``5 - |x - b| / 2``."""
    return FunctionReward(lambda x: 5 - (x - b.to(x)).norm(dim=1) / 2, L0=0.5)


def chain(steps: int) -> Schedule:
    """DDPM on the cosine schedule, as published but for the variance of its kernels: the forward one, so that none is zero."""
    return ddpm(cosine_levels(steps))


def tabulated(law: Gaussian, schedule: Schedule) -> AffineReference:
    """The pre-trained chain with its matrices written down, which is faster in few dimensions."""
    made = affine_reference(law, schedule)
    return AffineReference(made.transfer, made.diffusion, made.offset)


def rounds_task(objective: str, guidance: str, algorithm: int, delta: float, rounds: int, adapts: int, steps: int) -> list[Record]:
    """Reward, off-support ratio and divergence of the rounds of one published run, with the exact score."""
    data, schedule = subspace(), chain(steps)
    tuning = Recentre(SHARE) if algorithm == 2 else None
    run = IteratedGuidance(GUIDES[guidance], Increment(delta), AtEach(), tuning, adapts)
    denoiser = GaussianDenoiser(data.law, schedule.abar[:-1])
    made = run.rounds(
        tabulated(data.law, schedule),
        schedule,
        denoiser,
        data.objectives[objective],
        BATCH,
        rounds,
        torch.Generator().manual_seed(1),
    )
    setting = {"algorithm": algorithm, "score": "exact", "delta": delta}
    return _round_rows(made, data, objective, guidance, rounds, setting)


def _round_rows(made: Iterable[Round], data: Subspace, objective: str, guidance: str, rounds: int, setting: dict) -> list[Record]:
    reward, marks, start, records = data.objectives[objective], _marks(rounds), time.perf_counter(), []
    for each in made:
        if each.index not in marks:
            continue
        values = {
            "reward": float(reward(each.samples).mean()),
            "off_support": float(data.off(each.samples).mean()),
            "kl": float(each.kl.mean()),
            "value_at_mean": float(reward(each.samples.mean(0, keepdim=True))),
        }
        spread = float(reward(each.samples).std()) / len(each.samples) ** 0.5
        spent, where = time.perf_counter() - start, setting | {"round": each.index}
        records += [
            Record(STUDY_NAME, objective, m, v, where, guidance, seconds=spent, stderr=spread if m == "reward" else None)
            for m, v in values.items()
        ]
    return records


def regularised_task(objective: str, delta: float) -> list[Record]:
    """Where the published targets lead the mean: the maximum on the subspace of f less ``s^2 / (2 delta) |x|^2``, and of f."""
    data = subspace()
    reward = data.objectives[objective]

    def best(weight: float) -> float:
        def negative(u: np.ndarray) -> tuple[float, np.ndarray]:
            x = (data.A @ torch.from_numpy(u))[None]
            slope = data.A.mT @ reward.gradient(x)[0]
            return float(weight * u @ u / 2 - reward(x)), weight * u - slope.numpy()

        found = minimize(negative, np.full(LATENT, 0.1), jac=True, method="BFGS", options={"gtol": 1e-9})
        return float(reward((data.A @ torch.from_numpy(found.x))[None]))

    setting = {"delta": delta}
    names = {"regularised_value": NOISE**2 / delta, "maximum": 0.0}
    return [Record(STUDY_NAME, objective, metric, best(weight), setting, "G_loss") for metric, weight in names.items()]


# One guided pass, exactly: the d + 1 coordinates that guidance moves ----------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Moved:
    """The coordinates along A and along ``theta_perp``, in which f1 guidance acts; the rest stays as pre-trained.

    Attributes:
        law: shape (d + 1,), the last coordinate zero.
        reward: f1.
        rest: number of the other coordinates across the subspace.
    """

    law: Gaussian
    reward: Quadratic
    rest: int


VARIANCES = {"isotropic": (1.0, 1.0), "anisotropic": (0.05, 2.0)}


@functools.cache
def moved(spread: str) -> Moved:
    """f1 with the off-support direction; the latent variances run between the two of `VARIANCES`."""
    data = subspace()
    form = data.objectives["f1 off"]
    assert isinstance(form, Quadratic)
    theta = form.linear / 6
    along = data.A.mT @ theta
    direction = torch.cat([along, (theta - data.A @ along).norm().reshape(1)])
    spectrum = torch.cat([torch.linspace(*VARIANCES[spread], LATENT, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    return Moved(Gaussian(torch.zeros(LATENT + 1, dtype=torch.float64), spectrum), parabola(direction), DIM - LATENT - 1)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a policy reaches: mean reward, divergence from the pre-trained chain, distance from the data, both as means."""

    reward: float
    kl: float
    distance: float


class Frontier:
    """One-pass methods on `Moved`, each a family of policies with a knob that starts at 0, the pre-trained model."""

    def __init__(self, spread: str, steps: int):
        self.case, self.schedule = moved(spread), chain(steps)
        self.reference: AffineReference = affine_reference(self.case.law, self.schedule)
        self.denoiser = GaussianDenoiser(self.case.law, self.schedule.abar[:-1])
        start = self.case.law.mean
        self.gradient = self.case.reward.gradient(start[None])[0]
        zero = ControlProblem(self.reference, self.case.reward, 1.0)
        self._zero = zero
        self.floor = float(evaluate_affine(zero, AffinePolicy.zeros(self.reference)).covariance[-1, -1, -1])

    def policy(self, method: str, knob: float) -> AffinePolicy:
        """The policy of a method."""
        if method == "optimal control":
            return LinearQuadratic(ControlProblem(self.reference, self.case.reward, 1 / knob)).affine_policy
        if method == "fine-tuned score":
            new = Gaussian(self.case.law.mean + knob * self.case.law.covariance @ self.gradient, self.case.law.covariance)
            tuned = GuidancePolicy(self.schedule, GaussianDenoiser(new, self.denoiser.abar), Unguided(), self.denoiser)
            return affine_policy(tuned, self.schedule.steps, LATENT + 1)
        made = GuidancePolicy(self.schedule, self.denoiser, METHODS[method](self, knob))
        return affine_policy(made, self.schedule.steps, LATENT + 1)

    def outcome(self, method: str, knob: float) -> Outcome:
        """Exact moments of the controlled chain; the distance is the root of the mean square."""
        found = evaluate_affine(self._zero, self.policy(method, knob))
        across = float(found.covariance[-1, -1, -1] + found.mean[-1, -1].square())
        return Outcome(found.reward, float(found.kl.sum()), math.sqrt(across + self.case.rest * self.floor))

    def reach(self, method: str, reward: float) -> Outcome | None:
        """The outcome at the smallest knob with this reward, None where the method does not get there."""

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
    "G": lambda f, delta: Naive(Response(f.gradient, delta), Isotropic(NOISE)),
    "G_loss, published": lambda f, delta: LookAhead(Response(f.gradient, delta), Published(NOISE)),
    "G_loss, exact": lambda f, delta: LookAhead(Response(f.gradient, delta), Posterior(NOISE)),
    "universal": lambda f, weight: Universal(f.case.reward, weight),
    "classifier": lambda f, weight: Classifier(f.case.law, f.case.law.tilted(f.case.reward, 1.0).density, weight),
}
"""Guidance by method and knob: the increment of y at the pre-trained mean, or a weight."""
ALL_METHODS = (*METHODS, "fine-tuned score", "optimal control")
KNOBS = dict.fromkeys(("G", "G_loss, published", "G_loss, exact"), (0.02, 100.0)) | {
    "universal": (0.003, 10.0),
    "classifier": (0.01, 100.0),
    "fine-tuned score": (0.1, 30.0),
    "optimal control": (0.003, 30.0),
}


def frontier_task(spread: str, method: str, points: int, steps: int) -> list[Record]:
    """Reward, divergence and distance along the knob of one method."""
    frontier, records = Frontier(spread, steps), []
    for knob in np.geomspace(*KNOBS[method], points).tolist():
        found = frontier.outcome(method, knob)
        records += [
            Record(STUDY_NAME, spread, f"frontier_{metric}", value, {"knob": knob}, method)
            for metric, value in dataclasses.asdict(found).items()
        ]
    return records


def equal_reward_task(spread: str, method: str, rewards: Sequence[float], steps: int) -> list[Record]:
    """Divergence and distance of one method at given rewards; nan where it does not get there."""
    frontier, records = Frontier(spread, steps), []
    for reward in rewards:
        found = frontier.reach(method, reward)
        values = {"kl": found.kl if found else math.nan, "distance": found.distance if found else math.nan}
        records += [
            Record(STUDY_NAME, spread, f"equal_{metric}", value, {"reward": reward}, method) for metric, value in values.items()
        ]
    return records


# The unit sphere -----------------------------------------------------------------------------------------------------


@functools.cache
def pole() -> Tensor:
    """A random unit vector, theta."""
    theta = torch.randn(DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return theta / theta.norm()


def sphere_task(guidance: str, delta: float, rounds: int, steps: int) -> list[Record]:
    """Rounds of Algorithm 1 on the sphere with the exact score."""
    law, schedule = Sphere(DIM), chain(steps)
    reference = score_reference(law, schedule)
    denoiser = SphereDenoiser(law, schedule.abar[:-1])
    run, reward = IteratedGuidance(GUIDES[guidance], Increment(delta), AtEach()), Linear(pole())
    records = []
    for each in run.rounds(
        _seen(reference, denoiser), schedule, denoiser, reward, SPHERE_BATCH, rounds, torch.Generator().manual_seed(1)
    ):
        where = {"delta": delta, "round": each.index}
        records += [
            Record(STUDY_NAME, "sphere", metric, value, where, guidance)
            for metric, value in _sphere_values(each.samples, each.kl).items()
        ]
    return records


def sphere_frontier_task(method: str, knobs: Sequence[float], paths: int, steps: int) -> list[Record]:
    """One pass with universal guidance, or with the control that is optimal in continuous time, for several weights."""
    law, schedule, reward = Sphere(DIM), chain(steps), Linear(pole())
    denoiser = SphereDenoiser(law, schedule.abar[:-1])
    reference = _seen(score_reference(law, schedule), denoiser)
    noise = Noise.sample(reference, paths, torch.Generator().manual_seed(3))
    records = []
    for knob in knobs:
        if method == "universal":
            policy = GuidancePolicy(schedule, denoiser, Universal(reward, knob))
        else:
            tilted = law.tilted(reward, 1 / knob).density
            policy = GuidancePolicy(schedule, SphereDenoiser(tilted, schedule.abar[:-1]), Unguided(), denoiser)
        with torch.no_grad():
            path = rollout(reference, policy, noise)
        records += [
            Record(STUDY_NAME, "sphere", f"frontier_{metric}", value, {"knob": knob}, method)
            for metric, value in _sphere_values(path.final, path.kl().sum(0)).items()
        ]
    return records


def _sphere_values(x: States, kl: Tensor) -> dict[str, float]:
    return {
        "reward": float((x @ pole()).mean()),
        "off_sphere": float((x.norm(dim=1) - 1).abs().mean()),
        "kl": float(kl.mean()),
    }


def _seen(reference: ScoreReference, denoiser: Denoiser) -> ScoreReference:
    """The same chain, its score in closed form."""
    return ScoreReference(reference.schedule, denoiser.score, reference.dims)


# A learnt score ------------------------------------------------------------------------------------------------------


def network_task(train: int, width: int, rounds: int, steps: int) -> list[Record]:
    """A network trained on the subspace, its error, and the published runs on f1 with it."""
    data, schedule, generator = subspace(), chain(steps), torch.Generator().manual_seed(4)
    network = ScoreNetwork(schedule.abar[:-1], DIM, width, generator=generator)
    start = time.perf_counter()
    train_score(network, lambda batch: data.law.sample(batch, generator), generator, steps=train)
    network.requires_grad_(False)
    seconds = time.perf_counter() - start
    records = [_score_error(network, data, schedule, train, seconds)]
    for guidance in GUIDES:
        for algorithm in (1, 2):
            delta = RUNS["f1 off", guidance, algorithm].delta
            records += _network_run(network, guidance, algorithm, delta, rounds, schedule)
    return records


def _network_run(
    network: ScoreNetwork, guidance: str, algorithm: int, delta: float, rounds: int, schedule: Schedule
) -> list[Record]:
    data = subspace()
    tuning: FineTuning | None = None
    if algorithm == 2:
        adapted = ScoreNetwork(network.abar, DIM, network.network[0].out_features)  # type: ignore[arg-type]
        adapted.load_state_dict(network.state_dict())
        tuning = FineTuneNetwork(adapted, NETWORK_RATE)
    run = IteratedGuidance(GUIDES[guidance], Increment(delta), AtEach(), tuning)
    reference: Reference = ScoreReference(schedule, network, (DIM,))
    denoiser = ScoreDenoiser(network, network.abar)
    made = run.rounds(reference, schedule, denoiser, data.objectives["f1 off"], BATCH, rounds, torch.Generator().manual_seed(1))
    setting = {"algorithm": algorithm, "score": "network", "delta": delta}
    return _round_rows(made, data, "f1 off", guidance, rounds, setting)


NETWORK_RATE = 1e-4  # of Algorithm 2's Adam, one step per round


def _score_error(network: ScoreNetwork, data: Subspace, schedule: Schedule, train: int, seconds: float) -> Record:
    """Mean over steps of ``h E |s - s*|^2 / D``, the error of the predicted noise per coordinate, at fresh samples."""
    generator, errors = torch.Generator().manual_seed(5), []
    for k, level in enumerate(schedule.abar[:-1].tolist()):
        clean = data.law.sample(256, generator)
        x = level**0.5 * clean + (1 - level) ** 0.5 * torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            difference = network(k, x) - data.law.noised_score(level, x)
        errors.append((1 - level) * float(difference.square().mean()))
    return Record(STUDY_NAME, "subspace", "score_error", float(np.mean(errors)), {"train": train}, "network", seconds=seconds)


def _marks(rounds: int) -> frozenset[int]:
    """Rounds to record: all of few, else evenly spaced on a square-root scale."""
    return frozenset(np.unique(np.round(np.linspace(0, 1, MARKS) ** 2 * rounds).astype(int)).tolist())


def tasks(quick: bool) -> list[Task]:
    """Every measurement, at the quick or the full scale."""
    steps, most = (25, 12) if quick else (200, 2000)
    out = []
    for (objective, guidance, algorithm), run in RUNS.items():
        name = f"rounds {objective} {guidance} algorithm {algorithm}"
        arguments = {"objective": objective, "guidance": guidance, "algorithm": algorithm, "delta": run.delta}
        length = {"rounds": min(run.rounds, most), "adapts": min(run.adapts, most // 4), "steps": steps}
        out.append(Task(name, rounds_task, arguments | length))
    settled = {(objective, run.delta) for (objective, guidance, _), run in RUNS.items() if guidance == "G_loss"}
    for objective, delta in sorted(settled):
        out.append(Task(f"regularised {objective}", regularised_task, {"objective": objective, "delta": delta}))
    points, rewards = (4, [3.0]) if quick else (16, [2.0, 3.0, 5.0, 8.0])
    for spread in VARIANCES:
        for method in ALL_METHODS:
            where = {"spread": spread, "method": method, "steps": steps}
            out.append(Task(f"frontier {spread} {method}", frontier_task, where | {"points": points}))
            out.append(Task(f"equal reward {spread} {method}", equal_reward_task, where | {"rewards": rewards}))
    deltas = [0.2] if quick else [0.05, 0.2, 0.52]
    for guidance in GUIDES:
        for delta in deltas:
            length = {"rounds": 4 if quick else 25, "steps": steps}
            out.append(Task(f"sphere {guidance} {delta}", sphere_task, {"guidance": guidance, "delta": delta} | length))
    for method, knobs in SPHERE_KNOBS.items():
        chosen = knobs[::4] if quick else knobs
        paths = 128 if quick else FRONTIER_PATHS
        out.append(
            Task(f"sphere {method}", sphere_frontier_task, {"method": method, "knobs": chosen, "paths": paths, "steps": steps})
        )
    sizes = {"train": 60, "width": 64, "rounds": 4} if quick else {"train": 3000, "width": 256, "rounds": 60}
    out.append(Task("network", network_task, sizes | {"steps": steps}))
    return out


SPHERE_KNOBS = {
    "universal": [2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0],
    "optimal control": [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0],
}

STUDY = Study(STUDY_NAME, tasks)
