"""A correct sampler conforms; each of the mistakes that published code made is found and named."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.cli import main
from socft.conform import IDENTITIES, Sampler, assert_conforms, conform, of_tuple
from socft.conform.plugin import sampler_of
from socft.flow import FlowSchedule, cps, flow_ddim, flow_sde, precise, uniform_times

TIMES = uniform_times(8)


def sampler(schedule: FlowSchedule | None = None, **changes: Any) -> Sampler:
    """Flow-SDE as the Flow-GRPO family writes it down, in plain arithmetic, with changes."""
    chain = schedule or flow_sde(TIMES, 0.7)

    def mean(k: int, x: Tensor, u: Tensor) -> Tensor:
        return chain.state_weight[k] * x + chain.velocity_weight[k] * u

    def log_prob(k: int, x: Tensor, there: Tensor, u: Tensor) -> Tensor:
        std = chain.sigma[k]
        z = (there - mean(k, x, u)) / std
        return (-z.square() / 2 - std.log() - math.log(2 * math.pi) / 2).sum(1)

    made = Sampler(
        chain.levels.signal,
        chain.levels.noise,
        step=lambda k, x, u, generator: (
            mean(k, x, u)
            + chain.sigma[k] * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        ),
        mean=mean,
        std=lambda k, x, u: chain.sigma[k],
        log_prob=log_prob,
        kl=lambda k, x, u, v: (
            ((mean(k, x, u) - mean(k, x, v)) / chain.sigma[k]).square().sum(1) / 2
        ),
        ratio=lambda k, x, there, u, v: (log_prob(k, x, there, u) - log_prob(k, x, there, v)).exp(),
        training_noise=chain.levels.noise,
        endpoint=lambda k, x, u: x - chain.levels.noise[k] * u,
        score=lambda k, x, u: -(x + chain.levels.signal[k] * u) / chain.levels.noise[k],
        control=lambda k, x, u, v: (mean(k, x, u) - mean(k, x, v)) / chain.sigma[k],
        noise_level=0.7,
        advantages=lambda rewards: rewards - rewards.mean(),
        refined=lambda steps: sampler(flow_sde(uniform_times(steps), 0.7)),
    )
    return dataclasses.replace(made, **changes)


RIGHT = sampler()
NAMED = {each.name: each for each in IDENTITIES}
CHAIN = flow_sde(TIMES, 0.7)


def squared(k: int, x: Tensor, there: Tensor, u: Tensor) -> Tensor:
    return (there - RIGHT.mean_at(k, x, u)).square()


def other_step(k: int) -> int:
    return min(k + 1, RIGHT.steps - 1)


def no_gradient(k: int, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    with torch.no_grad():
        return RIGHT.kl_at(k, x, u, v)


def picked_by_sample(k: int, x: Tensor, there: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """A ratio whose old half is that of the next sample in the batch."""
    old = RIGHT.log_prob_at(k, x, there, v).roll(1)
    return (RIGHT.log_prob_at(k, x, there, u) - old).exp()


def by_score(k: int, x: Tensor, u: Tensor) -> Tensor:
    """An endpoint by Tweedie's formula, which divides by the signal."""
    signal, noise = CHAIN.levels.signal[k], CHAIN.levels.noise[k]
    return (x + noise.square() * RIGHT.score_at(k, x, u)) / signal


def without_root(steps: int) -> Sampler:
    chain = flow_sde(uniform_times(steps), 0.7)
    return sampler(chain, std=lambda k, x, u: chain.sigma[k] * steps**0.5)


def half_detached(k: int, x: Tensor, there: Tensor, u: Tensor) -> Tensor:
    """A density whose mean follows the output in one of two places."""
    return RIGHT.log_prob_at(k, x, there, (u + u.detach()) / 2)


MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    "KL under no_grad": ({"kl": no_gradient}, "KL divergence", "no_grad"),
    "KL without the step length": (
        {"kl": lambda k, x, u, v: RIGHT.kl_at(k, x, u, v) / 8},
        "KL divergence",
        "lacks the step length",
    ),
    "KL as a mean": (
        {"kl": lambda k, x, u, v: RIGHT.kl_at(k, x, u, v) / 3},
        "KL divergence",
        "mean over coordinates",
    ),
    "log_prob without 1/(2 std^2)": (
        {"log_prob": lambda k, x, there, u: -squared(k, x, there, u).sum(1)},
        "log density",
        "not divided by 2 std",
    ),
    "log_prob without its normaliser": (
        {
            "log_prob": lambda k, x, there, u: (
                -squared(k, x, there, u).sum(1) / (2 * CHAIN.sigma[k] ** 2)
            )
        },
        "log density",
        "lacks its normaliser",
    ),
    "log_prob as a mean": (
        {"log_prob": lambda k, x, there, u: RIGHT.log_prob_at(k, x, there, u) / x[0].numel()},
        "log density",
        "mean over coordinates",
    ),
    "log_prob of the next step": (
        {"log_prob": lambda k, x, there, u: RIGHT.log_prob_at(other_step(k), x, there, u)},
        "log density",
        "index shifted",
    ),
    "log_prob over the batch": (
        {
            "log_prob": lambda k, x, there, u: (
                RIGHT.log_prob_at(k, x, there, u).mean().expand(len(x))
            )
        },
        "batch",
        "depends on the others",
    ),
    "ratio of a mean": (
        {
            "ratio": lambda k, x, there, u, v: (
                (RIGHT.log_prob_at(k, x, there, u) - RIGHT.log_prob_at(k, x, there, v)) / 3
            ).exp()
        },
        "ratio mean",
        "root of the likelihood ratio",
    ),
    "ratio that is one for batch one": (
        {"ratio": picked_by_sample},
        "ratio one",
        "batch of 8",
    ),
    "sigmas of another schedule": (
        {"training_noise": 3 * CHAIN.levels.noise / (1 + 2 * CHAIN.levels.noise)},
        "same levels",
        "timestep shift",
    ),
    "step of the next level": (
        {"step": lambda k, x, u, g: RIGHT.step_at(other_step(k), x, u, g)},
        "step",
        "index shifted",
    ),
    "step without the root of its length": (
        {
            "step": lambda k, x, u, g: (
                RIGHT.mean_at(k, x, u)
                + CHAIN.sigma[k] * 8**-0.5 * torch.randn(x.shape, generator=g, dtype=x.dtype)
            )
        },
        "step",
        "square root",
    ),
    "mean of the next level": (
        {"mean": lambda k, x, u: RIGHT.mean_at(other_step(k), x, u)},
        "marginals",
        "index is shifted",
    ),
    "clipped mean": (
        {"mean": lambda k, x, u: RIGHT.mean_at(k, x, u.clamp(-1, 1))},
        "affine mean",
        "clips",
    ),
    "std of the state": (
        {"std": lambda k, x, u: CHAIN.sigma[k] * (1 + x.square().mean())},
        "constant std",
        "depends on the state",
    ),
    "endpoint by the score": (
        {"endpoint": by_score},
        "endpoint",
        "zero at the first level",
    ),
    "endpoint of the other sign": (
        {"endpoint": lambda k, x, u: x + CHAIN.levels.noise[k] * u},
        "endpoint",
        "sign is wrong",
    ),
    "noise in place of the endpoint": (
        {"endpoint": lambda k, x, u: x + CHAIN.levels.signal[k] * u},
        "endpoint",
        "the noise and not",
    ),
    "score that is not divided": (
        {"score": lambda k, x, u: -(x + CHAIN.levels.signal[k] * u)},
        "score of outputs",
        "not divided by s",
    ),
    "control in units of the mean": (
        {"control": lambda k, x, u, v: RIGHT.mean_at(k, x, u) - RIGHT.mean_at(k, x, v)},
        "whitened control",
        "not divided by std",
    ),
    "noise level of another convention": (
        {"noise_level": 0.7 * 2**0.5},
        "noise level",
        "another convention",
    ),
    "level of noise without the root of the length": (
        {"refined": without_root},
        "noise level",
        "lacks the root",
    ),
    "advantages without a baseline": (
        {"advantages": lambda rewards: rewards},
        "reward scale",
        "no baseline",
    ),
    "advantages of the other sign": (
        {"advantages": lambda rewards: rewards.mean() - rewards},
        "reward scale",
        "wrong sign",
    ),
    "advantages over a spread of zero": (
        {"advantages": lambda rewards: (rewards - rewards.mean()) / rewards.std()},
        "reward scale",
        "without a floor",
    ),
    "half of the mean detached": (
        {"log_prob": half_detached},
        "policy gradient",
        "detached",
    ),
    "noise that stays": (
        {"refined": lambda steps: sampler(cps(uniform_times(steps), 0.7))},
        "refinement",
        "does not vanish",
    ),
}


@pytest.mark.parametrize(
    "schedule",
    [
        flow_sde(TIMES, 0.7),
        flow_ddim(uniform_times(8, 0.05), 0.8),
        flow_ddim(TIMES, 1.0),
        precise(TIMES, 0.7),
    ],
)
def test_a_correct_sampler_conforms(schedule: FlowSchedule):
    right = dataclasses.replace(sampler(schedule), noise_level=None)
    verdicts = [v for v in conform(right) if v.identity != "noise level"]
    assert [str(v) for v in verdicts if not v.passed] == []
    assert len(verdicts) == len(IDENTITIES) - 1


def test_a_correct_sampler_passes_the_assertion():
    assert_conforms(RIGHT)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_found_and_named(name: str):
    changes, identity, advice = MISTAKES[name]
    found = NAMED[identity].check(sampler(**changes))
    assert found.passed is False, str(found)
    assert advice in found.advice


def test_products_of_ratios_find_steps_that_are_left_out():
    """A whole chain finds what single steps cannot see, here the density of another model."""
    wrong = sampler(log_prob=lambda k, x, there, u: RIGHT.log_prob_at(k, x, there, u) * (k < 3))
    assert NAMED["Jarzynski"].check(wrong).passed is False
    with pytest.raises(AssertionError, match="Jarzynski"):
        assert_conforms(wrong)


def test_what_is_missing_is_not_run():
    verdicts = conform(Sampler(RIGHT.signal, RIGHT.noise, mean=RIGHT.mean, std=RIGHT.std))
    ran = {v.identity for v in verdicts if v.passed is not None}
    assert ran == {"affine mean", "constant std", "marginals"}
    assert all("needs" in v.advice for v in verdicts if v.passed is None)
    with pytest.raises(InvalidProblem, match=r"no identity could be run; .*log density needs mean"):
        assert_conforms(Sampler(RIGHT.signal, RIGHT.noise, log_prob=RIGHT.log_prob))


def test_an_average_over_coordinates_is_found_along_whole_chains():
    wrong = sampler(**MISTAKES["log_prob as a mean"][0])
    assert NAMED["Jarzynski"].check(wrong).passed is False


@pytest.mark.parametrize(("eta", "level"), [(1.0, math.sqrt(2)), (0.5, math.sqrt(0.5))])
def test_the_noise_level_of_ddim_is_root_two_times_its_eta(eta: float, level: float):
    def made(steps: int) -> Sampler:
        return sampler(flow_ddim(uniform_times(steps, 0.05), eta), noise_level=level, refined=made)

    found = NAMED["noise level"].check(made(8))
    assert found.passed, str(found)
    assert f"{eta**2:.3g} of the memoryless" in str(found)


def test_rewards_over_their_spread_are_said_to_leave_no_unit():
    spread = sampler(advantages=lambda r: (r - r.mean()) / (r.std() + 1e-4))
    found = NAMED["reward scale"].check(spread)
    assert found.passed
    assert "lambda std(r)" in str(found)
    clipped = sampler(advantages=lambda r: (r - r.mean()).clamp(-0.5, 0.5))
    assert NAMED["reward scale"].check(clipped).passed is False


def test_a_sampler_that_raises_fails_and_says_where():
    def broken(k: int, x: Tensor, u: Tensor) -> Tensor:
        raise IndexError("no such level")

    found = NAMED["affine mean"].check(sampler(mean=broken))
    assert found.passed is False
    assert "IndexError: no such level (line" in str(found)
    assert "nan" not in str(found)


def as_tuple(
    k: int, x: Tensor, u: Tensor, there: Tensor | None, generator: torch.Generator | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The signature that the Flow-GRPO family shares."""
    if there is None:
        assert generator is not None
        there = RIGHT.step_at(k, x, u, generator)
    return there, RIGHT.log_prob_at(k, x, there, u), RIGHT.mean_at(k, x, u), RIGHT.std_at(k, x, u)


def test_tuples_of_step_log_prob_mean_and_std():
    verdicts = conform(of_tuple(as_tuple, TIMES))
    assert {v.identity for v in verdicts if v.passed} >= {"step", "log density", "Jarzynski"}
    assert not [str(v) for v in verdicts if v.passed is False]


@pytest.mark.parametrize(
    ("name", "fails"),
    [
        ("ddim", set()),
        ("ddpm", set()),
        ("dpm_sde", set()),
        ("flow_match_euler", set()),
        ("flow_match_stochastic", {"refinement"}),
    ],
)
def test_schedulers_of_diffusers(name: str, fails: set[str]):
    pytest.importorskip("diffusers")
    from socft.conform import schedulers

    verdicts = conform(getattr(schedulers, name)())
    assert {v.identity for v in verdicts if v.passed is False} == fails, [str(v) for v in verdicts]
    assert sum(v.passed is True for v in verdicts) >= 3


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "levels": (lambda: Sampler([1.0], [1.0, 0.0], mean=RIGHT.mean), "give both"),  # type: ignore[arg-type]
    "prediction": (
        lambda: dataclasses.replace(RIGHT, prediction="flow"),
        "one of velocity, epsilon",
    ),
    "no part": (lambda: Sampler(RIGHT.signal, RIGHT.noise), "at least one"),
    "level": (lambda: dataclasses.replace(RIGHT, noise_level=0.0), "positive number"),
    "precision": (lambda: dataclasses.replace(RIGHT, precision=torch.int64), "floating dtype"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_refused(name: str):
    make, said = REFUSED[name]
    with pytest.raises(InvalidProblem, match=said):
        make()


WRONG = sampler(**MISTAKES["log_prob as a mean"][0])


def test_the_command_line_says_what_fails(capsys: pytest.CaptureFixture[str]):
    assert main(["conform", f"{__name__}:RIGHT"]) == 0
    assert capsys.readouterr().out.count("holds") == len(IDENTITIES)
    assert main(["conform", f"{__name__}:WRONG"]) == 1
    said = capsys.readouterr()
    assert "must be a sum" in said.out
    assert "identities fail: log density" in said.err
    assert main(["conform", f"{__name__}:MISTAKES"]) == 2
    assert "is a dict" in capsys.readouterr().err
    assert main(["conform", f"{__name__}:by_score"]) == 2
    assert "raises TypeError" in capsys.readouterr().err


@pytest.mark.slow
def test_other_projects_run_them_as_tests(tmp_path: Path):
    """In a project of its own, with a test per identity beside its others."""
    (tmp_path / "foreign.py").write_text(FOREIGN, encoding="utf-8")
    (tmp_path / "test_own.py").write_text("def test_own(): pass\n", encoding="utf-8")
    options = ("-p", "socft.conform.plugin", "--conform", "foreign:made", "-q", "--color=no")
    found = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{Path.cwd()}{os.pathsep}{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1, found.stdout + found.stderr
    assert "1 failed, 3 passed" in found.stdout
    assert "depends on the state" in found.stdout
    assert "IdentityVerdict" not in found.stdout


def test_a_sampler_that_is_not_there_is_a_usage_error():
    with pytest.raises(pytest.UsageError, match="--conform math:tau: math:tau is a float; give"):
        sampler_of("math:tau")


FOREIGN = """
import torch
from socft.conform import Sampler

s = torch.tensor([1.0, 0.5, 0.1])

def made():
    return Sampler(
        1 - s, s, mean=lambda k, x, u: x + (s[k + 1] - s[k]) * u, std=lambda k, x, u: 1e-9 * x.abs()
    )
"""
