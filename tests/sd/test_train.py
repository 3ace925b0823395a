"""Training with rounds of paths: gradient, weights and noise against independent computations, and
runs of the command line.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from sd_experiments import CONFIGS, config
from sd_experiments.studies import benchmark
from sd_experiments.training.build import Experiment, build, instantiate, load_model
from sd_experiments.training.gradient import draw_steps
from sd_experiments.training.loop import TrainingLoop
from sd_experiments.training.monitor import (
    ImageStatistics,
    RewardHackingDetector,
    diversity,
    image_grid,
    read_metrics,
)
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.replay_buffer import (
    effective_share,
    log_likelihood_ratios,
)
from sd_experiments.training.session import make_loop
from socft import cli
from socft.checks import InvalidProblem
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import LabelRows, Labels, MatchingEstimator
from socft.estimators.catalogue import ANYWHERE
from socft.estimators.estimand import Biased, Estimand
from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, returns, rollout
from socft.path import Path as States
from socft.policy import AffinePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import ScalarDiffusion
from tests.support.sd import (
    STEPS,
    away,
    chain_problem,
    gradients_of,
    noise_of,
    trainer_with,
    written,
)
from tests.support.tensors import F64, randn

ROOT = Path(__file__).resolve().parents[2]
EXACT = 1e-11  # relative: sums of float64 gradients in another order, through a network
# relative: AdamW divides gradients that differ in the 15th digit by their own scale, five times
SAME_RUN = 1e-8
SPREAD = 4.0  # standard errors of a Monte-Carlo mean
PATIENCE_SECONDS = 120  # two processes that import torch and diffusers on a busy machine


def minus_returns(trainer: TrainingLoop, task: PromptTask, noise: Noise) -> Tensor:
    """The gradient of minus the mean return, through the simulator."""
    mean = -returns(task.problem, rollout(task.problem.reference, task.policy, noise)).mean()
    return torch.cat(
        [g.flatten() for g in torch.autograd.grad(mean, list(trainer.parameters.values()))]
    )


# Gradient


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_the_gradient_of_a_round_is_that_of_the_simulator(micro_batch: int | None):
    batch = {"trajectories": 6, "prompts": 2, "micro_batch": micro_batch or 6}
    trainer = trainer_with(FullAdjoint(), 2, batch=batch, run={"steps": 2})
    gradients, measured = gradients_of(trainer)
    for number, found in enumerate(gradients):
        noise = noise_of(trainer, number, 12)
        halves = [Noise(noise.initial[s], noise.steps[:, s]) for s in (slice(0, 6), slice(6, 12))]
        expected = (
            sum(
                minus_returns(trainer, task, half)
                for task, half in zip(trainer.tasks, halves, strict=True)
            )
            / 2
        )
        assert isinstance(expected, Tensor)
        assert away(found, expected) < EXACT
        assert abs(measured[number].gradient_norm - float(expected.norm())) < EXACT * float(
            expected.norm()
        )


def test_prompts_take_turns():
    trainer = trainer_with(FullAdjoint(), 3, batch={"trajectories": 2}, run={"steps": 4})
    gradients, _ = gradients_of(trainer)
    for number, found in enumerate(gradients):
        assert (
            away(
                found,
                minus_returns(trainer, trainer.tasks[number % 3], noise_of(trainer, number, 2)),
            )
            < EXACT
        )


def test_rewards_and_kl_are_those_of_the_rounds_paths():
    trainer = trainer_with(batch={"trajectories": 5}, run={"steps": 1})
    _, (measured,) = gradients_of(trainer)
    task = trainer.tasks[0]
    with torch.no_grad():
        path = rollout(task.problem.reference, task.policy, noise_of(trainer, 0, 5))
    rewards = task.problem.reward(path.final)
    expected = (
        float(rewards.mean()),
        float(rewards.std() / 5**0.5),
        float(path.kl().sum(0).mean()),
    )
    for found, value in zip(
        (measured.reward, measured.reward_stderr, measured.kl), expected, strict=True
    ):
        assert abs(found - value) < EXACT * abs(value)


@pytest.mark.parametrize(
    ("draws", "span", "share", "early"),
    [(4, 0.6, 0.5, 2), (1, 0.6, 0.5, None), (5, 0.2, 0.9, 2), (10, 0.5, 0.1, 5), (3, 0.5, 0.0, 1)],
)
def test_every_step_counts_once_on_average(
    draws: int, span: float, share: float, early: int | None
):
    """Without replacement, as many early ones as asked for, and weights one over the frequency of
    every step.
    """
    count, steps = 4000, 10
    batch = config.BatchConfig(loss_steps=draws, early_span=span, early_share=share)
    k, weights = draw_steps(batch, steps, count, torch.Generator().manual_seed(0))
    assert k.shape == (count, draws)
    assert all(len(set(row)) == draws for row in k.tolist())
    if early is not None:
        assert set((k < round(span * steps)).sum(1).tolist()) == {early}
    total = torch.zeros(steps, dtype=F64).index_add(
        0, k.flatten(), weights.expand(count, -1).flatten()
    )
    error = (weights.max() / count) ** 0.5
    assert ((total / count - 1).abs() <= SPREAD * error).all()
    assert abs(float(weights.sum()) - steps) < EXACT * steps


def test_fewer_steps_leave_the_mean_of_the_gradient():
    """The gradient of a few steps of many paths, against that of all their steps, within its own
    measured noise.
    """
    full = trainer_with(FullAdjoint(), batch={"trajectories": 400}, run={"steps": 1})
    few = trainer_with(
        FullAdjoint(),
        batch={"trajectories": 400, "passes": 40, "loss_steps": 2, "ess": 0.0},
        run={"steps": 40},
    )
    (expected,), _ = gradients_of(full)
    gradients, _ = gradients_of(few)
    found = torch.stack(gradients)
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - expected).abs() < SPREAD * error + EXACT).all()
    assert float(error.max()) < 0.2 * float(expected.abs().max())


def test_the_noise_of_the_gradient_is_its_standard_deviation():
    """The mean of its square over rounds against the variance of the gradient between rounds;
    unequal backward passes.
    """
    batch = {"trajectories": 7, "micro_batch": 3, "loss_steps": 2}
    gradients, measured = gradients_of(trainer_with(FullAdjoint(), batch=batch, run={"steps": 100}))
    variance = torch.stack(gradients).var(0).sum()
    squares = torch.tensor(
        [m.gradient_noise**2 for m in measured if m.gradient_noise is not None], dtype=F64
    )
    deviations = (torch.stack(gradients) - torch.stack(gradients).mean(0)).square().sum(1)
    error = float((squares.var() / 100 + deviations.var() / 100).sqrt())
    assert abs(float(squares.mean() - variance)) < SPREAD * error
    assert error < 0.25 * float(variance)
    assert (
        gradients_of(trainer_with(batch={"trajectories": 3}, run={"steps": 1}))[1][0].gradient_noise
        is None
    )


def test_training_raises_the_objective():
    """Of every prompt, on noise it was not trained on, by ten standard errors of the
    differences.
    """
    trainer = trainer_with(
        AdjointMatching(),
        2,
        batch={"trajectories": 32, "prompts": 2},
        run={"steps": 40},
        optimiser={"rate": 0.03},
    )
    fresh = [
        Noise.sample(task.problem.reference, 2000, torch.Generator().manual_seed(9), F64)
        for task in trainer.tasks
    ]

    def reached() -> list[Tensor]:
        with torch.no_grad():
            return [
                returns(task.problem, rollout(task.problem.reference, task.policy, noise))
                for task, noise in zip(trainer.tasks, fresh, strict=True)
            ]

    before = reached()
    for _ in trainer.iterations():
        pass
    for a, b in zip(before, reached(), strict=True):
        assert float((b - a).mean()) > 10 * float((b - a).std()) / 2000**0.5


def test_clipping_scales_the_gradient_and_says_so():
    free, _ = gradients_of(trainer_with(batch={"trajectories": 4}, run={"steps": 1}))
    limit = 0.5 * float(free[0].norm())
    clipped, (measured,) = gradients_of(
        trainer_with(batch={"trajectories": 4}, run={"steps": 1}, optimiser={"clip": limit})
    )
    assert away(clipped[0], 0.5 * free[0]) < EXACT
    assert measured.clipped
    assert abs(measured.gradient_norm - 2 * limit) < EXACT * limit


def test_pairs_with_the_largest_losses_can_be_left_out():
    batch = {"trajectories": 50, "passes": 3, "ess": 0.0, "mask_quantile": 0.9, "mask_memory": 0.5}
    masked, measured = gradients_of(trainer_with(batch=batch, run={"steps": 3}))
    free, _ = gradients_of(trainer_with(batch=batch | {"mask_quantile": 1.0}, run={"steps": 3}))
    assert away(masked[0], free[0]) < EXACT
    assert measured[0].masked == 0
    assert all(abs(m.masked - 0.1) <= 1 / (50 * STEPS) for m in measured[1:])
    assert away(masked[1], free[1]) > 1e-3


def test_large_target_controls_keep_their_direction():
    """The gradient is that of the regression on targets no longer than c / beta."""
    limit, number = 1.2, 40
    trainer = trainer_with(batch={"trajectories": number, "target_clip": limit}, run={"steps": 1})
    (found,), (measured,) = gradients_of(trainer)
    (task,) = trainer.tasks
    with torch.no_grad():
        path = rollout(task.problem.reference, task.policy, noise_of(trainer, 0, number))
    targets = AdjointMatching().label(task.problem, task.policy, path).targets
    loss, scaled, beta = torch.zeros((), dtype=F64), 0, float(task.problem.beta[0])
    for k in range(STEPS):
        for i in range(number):
            u = targets[k, i]
            too_long = float(u.norm()) * beta > limit
            scaled += too_long
            aim = u / u.norm() * limit / beta if too_long else u
            v = task.policy(k, path.states[k, i][None])[0]
            loss = loss + beta * (v - aim).square().sum() / 2 / number
    expected = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, list(trainer.parameters.values()))]
    )
    assert away(found, expected) < EXACT
    assert measured.limited == scaled / (STEPS * number)
    assert 0.1 < measured.limited < 0.9
    (free,), (unlimited,) = gradients_of(
        trainer_with(batch={"trajectories": number}, run={"steps": 1})
    )
    assert unlimited.limited == 0
    assert away(found, free) > 1e-2
    with pytest.raises(InvalidProblem, match=r"batch\.target_clip = 0"):
        trainer_with(batch={"target_clip": 0.0})


def test_the_average_of_the_layers_forgets_where_it_began():
    trainer = trainer_with(
        batch={"trajectories": 2}, run={"steps": 3, "ema": 0.2}, optimiser={"rate": 0.1}
    )
    name, p = next(iter(trainer.parameters.items()))
    expected = p.detach().clone()
    for t, _ in enumerate(trainer.iterations(), 1):
        keep = min(0.2, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * p.detach()
    assert away(trainer.ema[name], expected) < EXACT
    last = p.detach().clone()
    with trainer.using_averages():
        assert torch.equal(p.detach(), trainer.ema[name])
    assert torch.equal(p.detach(), last)


# Paths that are used again


def test_importance_weights_are_ratios_of_densities():
    problem = chain_problem(0)
    old, new = (
        AffinePolicy(0.2 * randn(s, STEPS, 2, 2), 0.2 * randn(s + 1, STEPS, 2)) for s in (30, 40)
    )
    with torch.no_grad():
        path = rollout(
            problem.reference,
            old,
            Noise.sample(problem.reference, 4000, torch.Generator().manual_seed(3)),
        )
        found = log_likelihood_ratios(new, path)
        expected = log_density(problem, new, path) - log_density(problem, old, path)
    assert away(found, expected) < EXACT
    weights = found.exp()
    assert abs(float(weights.mean()) - 1) < SPREAD * float(weights.std()) / len(weights) ** 0.5
    assert 0.01 < effective_share(found) < 0.95
    assert effective_share(torch.zeros(5, dtype=F64)) == 1
    assert abs(effective_share(torch.tensor([0.0, -800.0, -900.0, -1e4])) - 0.25) < EXACT


def log_density(problem: ControlProblem, policy: Policy, path: States) -> Tensor:
    total = torch.zeros(path.states.shape[1], dtype=F64)
    for k, (x, after) in enumerate(zip(path.states[:-1], path.states[1:], strict=True)):
        reference = problem.reference
        assert isinstance(reference.diffusion, ScalarDiffusion)
        sigma = reference.diffusion.sigma[k]
        mean = reference.mean(k, x) + sigma * policy(k, x)
        total = total + torch.distributions.Normal(mean, sigma).log_prob(after).sum(1)
    return total


def test_used_paths_are_weighted_by_the_current_policy():
    batch = {"trajectories": 6, "passes": 2, "weighted": True, "ess": 0.0}
    trainer = trainer_with(batch=batch, optimiser={"rate": 0.02}, run={"steps": 2})
    start = copy.deepcopy(trainer.tasks[0].policy)
    steps = trainer.iterations()
    next(steps)
    assert trainer.buffer is not None
    assert torch.equal(trainer.buffer.importance_weights, torch.ones(6, dtype=F64))
    now, path, problem = (
        copy.deepcopy(trainer.tasks[0].policy),
        trainer.buffer.batches[0].path,
        trainer.tasks[0].problem,
    )
    measured = next(steps).metrics
    with torch.no_grad():
        expected = 6 * (
            log_density(problem, now, path) - log_density(problem, start, path)
        ).softmax(0)
    assert away(trainer.buffer.importance_weights, expected) < EXACT
    assert measured.ess is not None
    assert abs(measured.ess - 6 / float(expected.square().sum())) < EXACT
    assert measured.ess < 1


@pytest.mark.parametrize(("ess", "rounds"), [(0.0, [0, 0, 0, 1]), (1.0, [0, 1, 2, 3])])
def test_paths_that_no_longer_stand_for_the_policy_are_replaced(ess: float, rounds: list[int]):
    """Without a limit they serve all passes; at 1 any change of the policy replaces them."""
    trainer = trainer_with(
        batch={"trajectories": 6, "passes": 3, "ess": ess}, optimiser={"rate": 0.02}
    )
    assert [step.metrics.round for step in trainer.iterations()] == rounds


def test_every_pass_uses_every_path_once():
    trainer = trainer_with(
        batch={"trajectories": 6, "paths": 4, "passes": 2, "ess": 0.0}, run={"steps": 3}
    )
    for step in trainer.iterations():
        assert trainer.buffer is not None
        assert step.metrics.round == 0
    assert trainer.buffer is not None
    trainer.buffer.uses = 0
    used = trainer.buffer.take(12, trainer.settings.run.seed).tolist()
    assert sorted(used[:6]) == sorted(used[6:]) == list(range(6))
    assert used[:6] != used[6:]


# What goes wrong


def test_a_reward_that_is_not_a_number_stops_before_anything_changes():
    calls = []

    def reward(x: Tensor) -> Tensor:
        calls.append(len(x))
        value = (2 * x).sin().sum(1)
        return torch.where(torch.arange(len(x)) == 1, torch.nan, value) if len(calls) > 3 else value

    trainer = trainer_with(rewards=[reward], batch={"trajectories": 4}, run={"steps": 9})
    steps = trainer.iterations()
    next(steps)
    kept = [p.detach().clone() for p in trainer.parameters.values()]
    with pytest.raises(
        InvalidProblem,
        match=r"1 of 4 paths of round 1 have rewards that are not finite; the layers keep",
    ):
        next(steps)
    assert all(torch.equal(p, q) for p, q in zip(trainer.parameters.values(), kept, strict=True))


class Broken(MatchingEstimator):
    """Labels or losses that overflow."""

    estimates: ClassVar[Estimand] = Biased("overflows")
    source: ClassVar[str] = "none"

    def __init__(self, labels: bool):
        self.labels = labels

    @property
    def cost(self) -> Any:
        return AdjointMatching().cost

    def label(self, problem: ControlProblem, policy: Policy, path: States) -> Labels:
        made = AdjointMatching().label(problem, policy, path)
        return dataclasses.replace(made, targets=made.targets * math.inf) if self.labels else made

    def loss(self, problem: ControlProblem, policy: Policy, k: Any, rows: LabelRows) -> Tensor:
        return super().loss(problem, policy, k, rows) * 1e308 * 1e308


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (True, "4 of 4 paths of round 0 have labels that are not finite"),
        (False, r"\d+ of \d+ losses are not finite; the layers are not trained yet"),
    ],
)
def test_labels_and_gradients_that_are_not_finite_stop_before_anything_changes(
    labels: bool, message: str
):
    trainer = trainer_with(Broken(labels), batch={"trajectories": 4})
    before = [p.detach().clone() for p in trainer.parameters.values()]
    with pytest.raises(InvalidProblem, match=message):
        list(trainer.iterations())
    assert all(torch.equal(p, q) for p, q in zip(trainer.parameters.values(), before, strict=True))
    assert not trainer.optimiser.state


def test_a_watch_warns_of_a_reward_that_is_exploited():
    watch = RewardHackingDetector(4)
    said = [
        watch.add(i + 0.1 * (-1) ** i, ImageStatistics(0.9 - 0.04 * i, 0.3 + 0.01 * (-1) ** i))
        for i in range(16)
    ]
    warnings = [line for lines in said for line in lines]
    assert len(warnings) == 1
    assert "the reward rose from" in warnings[0]
    assert "the checker's accuracy fell from" in warnings[0]
    assert said[:7] == [[]] * 7
    honest, falling = RewardHackingDetector(4), RewardHackingDetector(4)
    for i in range(16):
        assert honest.add(float(i), ImageStatistics(0.5 + 0.02 * i, 0.3)) == []
        assert falling.add(1.0 - 0.1 * i, ImageStatistics(0.9 - 0.04 * i, None)) == []


def test_diversity_is_the_mean_distance_of_pictures():
    images = torch.stack([torch.full((3, 8, 8), value) for value in (0.0, 0.5, 1.0)])
    assert diversity(images) == pytest.approx((0.5 + 1.0 + 0.5) / 3)
    assert diversity(images[:1]) is None
    canvas = image_grid(images, 2)
    assert canvas.shape == (3, 17, 17)
    assert float(canvas[0, 0, 0]) == 0.0
    assert float(canvas[0, 0, 16]) == 0.5


# A random Stable Diffusion


def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )


def layers(folder: Path) -> dict[str, Tensor]:
    """The last checkpoint's tensors."""
    newest = max((folder / "checkpoints").glob("step-*"))
    with safe_open(newest / "shared.safetensors", "pt") as stored:
        return {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118


def test_names_that_lead_nowhere_are_refused():
    for build_one, message in (
        (
            lambda: instantiate("estimator", ANYWHERE, "adjoint", {}),
            "there is no estimator 'adjoint'; did you mean adjoint matching",
        ),
        (
            lambda: instantiate("estimator", ANYWHERE, "DDPO", {"clap": 1}),
            "there is no option of the estimator 'DDPO' named 'clap'; did you mean clip?",
        ),
        (
            lambda: instantiate("reward", {}, "tests.support.sd:STEPS", {}),
            "tests.support.sd:STEPS is an int; it must be a function",
        ),
        (
            lambda: load_model(config.ModelConfig(device="tpu9x")),
            "model.device = 'tpu9x' is no device; give auto, cpu or cuda.",
        ),
    ):
        with pytest.raises(InvalidProblem) as refused:
            build_one()
        assert str(refused.value).startswith(message)


def test_check_names_what_is_missing(capsys):
    file = CONFIGS / "sd15_pift.toml"
    assert cli.main(["sd", "check", "--config", str(file)]) == cli.INVALID
    said = capsys.readouterr()
    assert "missing  model: 'stable-diffusion-v1-5/stable-diffusion-v1-5' is no folder" in said.out
    assert "run: hf download" in said.out
    missing = ", ".join(
        f"models/image-reward/{name}"
        for name in ("ImageReward.pt", "med_config.json", "bert-base-uncased")
    )
    assert f"missing  reward: {missing} not found" in said.out
    assert "ok       estimator: full adjoint" in said.out
    assert said.err == f"socft: {file} cannot run here yet: model, reward.\n"


def test_reproduction_begins_with_what_is_missing(tmp_path: Path, capsys):
    """Not with runs that fail one by one."""
    call = [
        "sd",
        "reproduce",
        "--scale",
        "sd15",
        "--model",
        str(tmp_path),
        "--out",
        str(tmp_path / "records"),
    ]
    assert cli.main(call) == cli.INVALID
    said = capsys.readouterr()
    assert f"missing  model: '{tmp_path}' holds no model_index.json" in said.out
    assert (
        said.err
        == "socft: --scale sd15 (see also --model and --reward) cannot run here yet: model,"
        " reward.\n"
    )
    assert list(tmp_path.iterdir()) == []


CHANGED = {
    "reward": (
        'name = "tests.support.sd:reddish"',
        'name = "jpeg"',
        "estimator: jpeg has no gradient, and adjoint matching asks",
    ),
    "paths": (
        "trajectories = 4",
        "trajectories = 1",
        "estimator: batch = 1; leaving one path out needs at least 2.",
    ),
    "steps": (
        'name = "truncated backpropagation"',
        'name = "truncated backpropagation"\noptions = { last = 9 }',
        "estimator: last = 9; give 1 to 3, the number of steps.",
    ),
    "checker": (
        "tests.support.sd:dark",
        "tests.support.sd:light",
        "checker: module 'tests.support.sd' has no 'light'",
    ),
    "judgement": (
        "tests.support.sd:dark",
        "tests.support.sd:reddish",
        "trial: the checker fails on tensors of shape (1, 3, 16, 16): TypeError: reddish() takes 0",
    ),
    "layers": (
        "rank = 2",
        'rank = 2\ntargets = ["to_k", "to_x"]',
        "prompts and layers: targets = ['to_x'] match no layer",
    ),
    "prompt": (
        '"a blue square"',
        f'"{"very " * 99}"',
        "prompts and sampler: the prompt 'very very",
    ),
    "memory": ("trajectories = 4", "trajectories = 400000000", "memory: "),
}


@pytest.mark.usefixtures("brief_trials")
@pytest.mark.parametrize("what", CHANGED)
def test_check_finds_what_would_stop_the_run(what: str, model: Path, tmp_path: Path, capsys):
    old, new, message = CHANGED[what]
    estimator = {"paths": "DPOK, leave-one-out", "steps": "truncated backpropagation"}.get(
        what, "adjoint matching"
    )
    file = written(model, tmp_path / "run", estimator)
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
    assert cli.main(["sd", "check", "--config", str(file)]) == cli.INVALID
    assert f"missing  {message}" in capsys.readouterr().out


@pytest.mark.usefixtures("brief_trials")
def test_check_refuses_nothing_that_runs(model: Path, tmp_path: Path, capsys):
    """A score without a gradient serves an estimator that does not ask; what a call may take is no
    more than there is.
    """
    file = written(model, tmp_path / "run", "DPOK, leave-one-out")
    content = file.read_text().replace(
        "tests.support.sd:reddish", "sd_experiments.reward.rewards:JPEGCompressibility"
    )
    file.write_text(content.replace('dtype = "float64"', 'dtype = "float64"\nmicro_batch = 4000'))
    assert cli.main(["sd", "check", "--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert "for 4 samples at a time" in said
    assert cli.main(["sd", "train", "--config", str(file), "--steps", "1"]) == 0


def test_a_model_of_the_hub_is_the_one_that_was_downloaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        InvalidProblem,
        match=(
            r"'someone/shapes' is no folder, and was not downloaded .* hf download .*"
            r" someone/shapes"
        ),
    ):
        load_model(config.ModelConfig("someone/shapes"))
    kept, commit = tmp_path / "models--someone--shapes", "0" * 40
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    shutil.copytree(model, kept / "snapshots" / commit)
    listed = [str(file.relative_to(model)) for file in model.rglob("*") if file.is_file()]
    more = ("README.md", "v1-5-pruned.ckpt")  # what is there to download is kept as well
    write_tree_cache(
        str(kept),
        commit,
        {name: TreeCacheEntry(1, "0" * 40, None, None, None) for name in (*listed, *more)},
    )
    found, expected = (
        load_model(config.ModelConfig(name)).denoiser.network.state_dict()
        for name in ("someone/shapes", str(model))
    )
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_run_that_was_killed_continues_bit_for_bit(model: Path, tmp_path: Path, capsys):
    whole, killed = written(model, tmp_path / "whole"), written(model, tmp_path / "killed")
    assert cli.main(["sd", "train", "--config", str(whole)]) == 0
    # Two calls probe the two problems and each round makes two, so the seventh is in the third
    # round, which the fifth step begins.
    stopped = command("-m", "socft.cli", "sd", "train", "--config", killed, SOCFT_TEST_KILL_AT="7")
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert read_metrics(tmp_path / "killed" / "metrics.jsonl")[-1]["step"] == 4
    capsys.readouterr()
    assert cli.main(["sd", "train", "--config", str(killed)]) == cli.INVALID
    assert (
        f"{tmp_path / 'killed'} holds a run; continue it with --resume" in capsys.readouterr().err
    )
    assert cli.main(["sd", "train", "--config", str(killed), "--resume"]) == 0
    assert "continuing after gradient step 3" in capsys.readouterr().err
    first, second = layers(tmp_path / "whole"), layers(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first if name != "random")
    rows = [
        [
            {k: v for k, v in row.items() if k not in ("seconds", "peak_mb")}
            for row in read_metrics(tmp_path / name / "metrics.jsonl")
        ]
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert [row["step"] for row in rows[0]] == [1, 2, 3, 4, 5]
    assert board(tmp_path / "killed") == board(tmp_path / "whole")
    reward, accuracy = (board(tmp_path / "whole")[name] for name in ("reward", "accuracy"))
    assert reward == pytest.approx({row["step"]: row["reward"] for row in rows[0]})
    assert accuracy == pytest.approx(
        {row["step"]: row["accuracy"] for row in rows[0] if "accuracy" in row}
    )
    _use(whole, tmp_path / "whole", capsys)


def board(folder: Path) -> dict[str, Any]:
    """What TensorBoard shows of a run: numbers by step, and at which steps there are pictures of
    which size.
    """
    shown = EventAccumulator(str(folder / "tensorboard")).Reload()
    timed = ("seconds", "peak_mb")
    numbers = {
        tag: {e.step: e.value for e in shown.Scalars(tag)}
        for tag in shown.Tags()["scalars"]
        if tag not in timed
    }
    pictures = {
        tag: {e.step: (e.width, e.height) for e in shown.Images(tag)}
        for tag in shown.Tags()["images"]
    }
    assert set(pictures) == {
        "a red circle"
    }  # prompts take turns, and pictures are shown every tenth round
    return numbers | pictures


def _use(file: Path, folder: Path, capsys) -> None:
    """What comes after training: pictures, numbers, files."""
    assert cli.main(["sd", "sample", "--config", str(file), "--number", "2"]) == 0
    assert (folder / "samples.png").stat().st_size > 0
    assert cli.main(["sd", "evaluate", "--config", str(file), "--number", "3"]) == 0
    rows = json.loads((folder / "evaluation-5.json").read_text())
    assert [(row["prompt"], row["model"]) for row in rows] == [
        (p, m) for p in ("a red circle", "a blue square") for m in ("pre-trained", "fine-tuned")
    ]
    assert [row["kl"] > 0 for row in rows] == [False, True] * 2
    for before, after in zip(rows[::2], rows[1::2], strict=True):
        assert math.isclose(after["reward_gain"], after["reward"] - before["reward"], abs_tol=1e-9)
        assert 0 < after["reward_gain_stderr"] <= before["reward_stderr"] + after["reward_stderr"]
    assert cli.main(["sd", "evaluate", "--config", str(file), "--number", "3", "--step", "3"]) == 0
    earlier = json.loads((folder / "evaluation-3.json").read_text())
    assert {(row["step"], row["seed"], row["pictures"]) for row in earlier} == {(3, 1, 3)}
    assert [a["reward"] == b["reward"] for a, b in zip(rows, earlier, strict=True)] == [
        True,
        False,
    ] * 2
    assert cli.main(["sd", "sample", "--config", str(file), "--step", "4"]) == cli.INVALID
    assert capsys.readouterr().err.endswith(
        "checkpoints has no checkpoint of step 4; those that are kept: 3, 5.\n"
    )
    assert {file.name for file in folder.iterdir()} >= {
        "frontier.png",
        "lora",
        "tensorboard",
        "settings.json",
    }
    assert cli.main(["sd", "check", "--config", str(file)]) == 0
    assert "ok       time: about" in capsys.readouterr().out
    with safe_open(folder / "lora" / "pytorch_lora_weights.safetensors", "pt") as stored:
        mean = {
            name.replace("/", "."): value
            for name, value in layers(folder).items()
            if name.startswith("average.")
        }
        for name in stored.keys():  # noqa: SIM118
            match = [
                value
                for key, value in mean.items()
                if key.replace(".default.", ".").endswith(name.removeprefix("unet."))
            ]
            assert len(match) == 1
            assert torch.equal(match[0], stored.get_tensor(name))


@pytest.fixture(scope="module")
def experiment(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    """The random model with all steps in the loss."""
    settings = config.read_config(written(model, tmp_path_factory.mktemp("run") / "run"))
    batch = dataclasses.replace(settings.batch, loss_steps=None, passes=1, prompts=2)
    return build(
        dataclasses.replace(settings, batch=batch, run=dataclasses.replace(settings.run, steps=1))
    )


@pytest.mark.parametrize("name", [*benchmark.ESTIMATORS, "adjoint matching, published index"])
def test_every_benchmarked_estimator_trains_the_layers(experiment: Experiment, name: str):
    """On two prompts; those that differentiate the whole path find the gradient of the
    simulator.
    """
    options = {
        **benchmark.ESTIMATORS.get(name, {}),
        **({"last": 3} if name == "truncated backpropagation" else {}),
    }
    estimator = instantiate("estimator", ANYWHERE, name, options)
    trainer = make_loop(dataclasses.replace(experiment, estimator=estimator))
    (gradient,), (measured,) = gradients_of(trainer)
    assert measured.kl == 0
    assert 0 < measured.gradient_norm < math.inf
    if name in ("full adjoint", "truncated backpropagation"):
        noise = noise_of(trainer, 0, 8)
        halves = [Noise(noise.initial[s], noise.steps[:, s]) for s in (slice(0, 4), slice(4, 8))]
        expected = [
            minus_returns(trainer, task, half)
            for task, half in zip(trainer.tasks, halves, strict=True)
        ]
        assert away(gradient, (expected[0] + expected[1]) / 2) < EXACT


LAUNCHED = """
import json, sys, torch
torch.set_num_threads(1)
from pathlib import Path
from sd_experiments import config
from sd_experiments.training.session import make_loop
from sd_experiments.training.build import build
from sd_experiments.training.process_group import ProcessGroup
from tests.support.sd import gradients_of
usable, torch.cuda.is_available = torch.cuda.is_available, lambda: True
group = ProcessGroup.join(torch.device("cpu"))
torch.cuda.is_available = usable
for i, each in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    trainer = make_loop(build(config.parse_config(each)), group)
    gradients, measured = gradients_of(trainer)
    first = [each.path.states[0].flatten(1)[:, 0] for each in trainer.buffer.batches]
    starts = [each.tolist() for each in first]
    numbers = [list(each.index) for each in trainer.buffer.batches]
    content = {"gradients": [g.tolist() for g in gradients], "starts": starts, "numbers": numbers}
    content["count"] = group.size
    content |= {"masked": measured[-1].masked}
    Path(f"{sys.argv[2]}.{i}.{group.rank}.json").write_text(json.dumps(content))
"""

WEIGHED = {"name": "socft.estimators.socm_adjoint:SOCMAdjoint"}
SHARED_OUT: dict[str, dict[str, Any]] = {
    "costates": {},
    "rewards without that of the path itself": {"estimator": {"name": "DPOK, leave-one-out"}},
    "rewards over their spread": {"estimator": {"name": "DDPO"}},
    "importance weights over their mean": {"estimator": WEIGHED},
    "the noise of reversed paths": {
        "estimator": {"name": "time-reversed, policy's costate, reference's score"}
    },
    "one process without paths of a prompt": {
        "estimator": WEIGHED,
        "batch": {"prompts": 2, "trajectories": 2},
    },
    "the largest losses left out": {"batch": {"mask_quantile": 0.7}},
}


@pytest.mark.slow
def test_two_processes_compute_the_gradient_of_one(model: Path, tmp_path: Path):
    """On the CPU, also beside a GPU that is not the configuration's."""
    plain = config.read_config(written(model, tmp_path / "run")).plain() | {"run": {"steps": 2}}
    cases = [
        plain | {table: plain[table] | values for table, values in case.items()}
        for case in SHARED_OUT.values()
    ]
    script, wanted = tmp_path / "launched.py", tmp_path / "cases.json"
    script.write_text(LAUNCHED)
    wanted.write_text(json.dumps(cases))
    launch_two(script, wanted, tmp_path / "found")
    for i, (name, case) in enumerate(zip(SHARED_OUT, cases, strict=True)):
        parts = [json.loads((tmp_path / f"found.{i}.{rank}.json").read_text()) for rank in (0, 1)]
        alone = make_loop(build(config.parse_config(case)))
        expected, measured = gradients_of(alone)
        assert alone.buffer is not None
        for part in parts:
            assert part["count"] == 2
            assert part["masked"] == measured[-1].masked
            assert (part["masked"] > 0) == ("losses left out" in name)
            for found, gradient in zip(part["gradients"], expected, strict=True):
                assert away(torch.tensor(found, dtype=F64), gradient) < EXACT, name
        starts = [set(itertools.chain(*part["starts"])) for part in parts]
        assert not starts[0] & starts[1]
        assert starts[0] | starts[1] == {
            x
            for each in alone.buffer.batches
            for x in each.path.states[0].flatten(1)[:, 0].tolist()
        }
        assert sorted(itertools.chain(*parts[0]["numbers"], *parts[1]["numbers"])) == list(
            range(alone.buffer.size)
        )


def launch_two(script: Path, *arguments: Path) -> None:
    """Two processes of a script that meet each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": str(ROOT),
    }
    own = [
        os.environ | shared | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in (0, 1)
    ]
    call = [sys.executable, str(script), *map(str, arguments)]
    started = [
        subprocess.Popen(call, cwd=ROOT, env=each, stderr=subprocess.PIPE, text=True)
        for each in own
    ]
    try:
        said = [each.communicate(timeout=PATIENCE_SECONDS)[1] for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0, 0], said


# Everything but what is measured on one process' own backward passes, on its clock and in its
# memory.
OF_A_PROCESS = ("gradient_noise", "seconds", "peak_mb")


@pytest.mark.slow
def test_the_command_on_two_processes_is_that_on_one(model: Path, tmp_path: Path, capsys):
    one, two = written(model, tmp_path / "one"), written(model, tmp_path / "two")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    launched = command(
        *launcher, "-m", "socft.cli", "sd", "train", "--config", two, OMP_NUM_THREADS="1"
    )
    assert launched.returncode == 0, launched.stderr
    assert launched.stderr.count("[1/5]") == launched.stderr.count("done: the averaged layers") == 1
    assert cli.main(["sd", "train", "--config", str(one)]) == 0
    rows = {name: read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two")}
    assert [row["step"] for row in rows["two"]] == [1, 2, 3, 4, 5]
    for expected, found in zip(rows["one"], rows["two"], strict=True):
        assert expected.keys() == found.keys()
        kept = expected.keys() - {*OF_A_PROCESS, "ess"}
        assert (expected["ess"], found["ess"]) == (None, None)  # nothing depends on it here
        assert {key: found[key] for key in kept} == pytest.approx(
            {key: expected[key] for key in kept}, rel=SAME_RUN
        )
    expected, found = layers(tmp_path / "one"), layers(tmp_path / "two")
    assert all(
        away(found[name], expected[name]) < SAME_RUN
        for name in expected
        if name.startswith(("layer", "average"))
    )
    assert names(tmp_path / "two") == names(tmp_path / "one") | {
        f"checkpoints/step-{step:08d}/buffer-1.safetensors" for step in (3, 5)
    }
    own = [starts(tmp_path / "two", rank) for rank in (0, 1)]
    assert not own[0] & own[1]
    assert own[0] | own[1] == starts(tmp_path / "one", 0)
    assert len(own[0]) == len(own[1]) == 2


def names(folder: Path) -> set[str]:
    """Files of a run; TensorBoard's are named after process and time."""
    found = [str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()]
    kept = [name for name in found if not name.startswith("tensorboard/")]
    return {*kept, *(f"tensorboard/{i}" for i in range(len(found) - len(kept)))}


def starts(folder: Path, rank: int) -> set[float]:
    """A number of the initial noise of every path a process has in its last checkpoint."""
    newest = max((folder / "checkpoints").glob("step-*"))
    stored = load_file(newest / f"buffer-{rank}.safetensors")
    return {
        float(x)
        for name, each in stored.items()
        if name.endswith("initial")
        for x in each.flatten(1)[:, 0]
    }
