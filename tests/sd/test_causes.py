"""What stops a run says the right cause; what a reward draws is a function of the seed."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sd_experiments.model.policy import LoRA
from sd_experiments.reward.rewards import DifferentiableImageReward, require_decoder
from sd_experiments.training.build import instantiate, load_checker
from sd_experiments.training.monitor import plot_frontier
from sd_experiments.training.session import check_images
from socft.checks import InvalidProblem
from tests.support.sd import stable_diffusion, surroundings, trainer_with
from tests.support.tensors import F64

BATCH = {"trajectories": 4}


def drawing(x: Tensor) -> Tensor:
    """A reward that draws from every global generator."""
    return (2 * x).sin().sum(1) + torch.rand(len(x)) + random.random() + float(np.random.rand())  # noqa: NPY002


def rewards(stop: int | None = None) -> tuple[list[float], Any]:
    trainer = trainer_with(rewards=[drawing], batch=BATCH, run={"steps": 4})
    found = []
    for step in trainer.iterations():
        found.append(step.metrics.reward)
        drawing(torch.zeros(3, 1))  # somebody else draws
        if step.metrics.step == stop:
            break
    return found, trainer


def test_a_reward_that_draws_is_a_function_of_the_seed():
    torch.manual_seed(1)
    first, _ = rewards()
    torch.manual_seed(2)
    again, _ = rewards()
    assert first == again
    assert len(set(first)) == len(first)


def broken(images: Tensor, prompt: str) -> Tensor:
    return images[:, 7].mean((1, 2))


def test_an_error_of_a_scorer_or_checker_is_told_with_its_line():
    base = stable_diffusion()
    reward = DifferentiableImageReward(base, broken, "a red circle")
    here = rf"IndexError: .*\(line \d+ of .*{Path(__file__).name}\); correct it there\.$"
    with pytest.raises(InvalidProblem, match=rf"the reward model broken fails .*{here}") as refused:
        reward(torch.zeros(1, 4, 8, 8, dtype=F64))
    assert isinstance(refused.value.__cause__, IndexError)
    with pytest.raises(InvalidProblem, match=rf"the checker fails .*{here}"):
        check_images(broken, torch.zeros(1, 3, 8, 8), "a red circle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colour": 1}, r"there is no option of the .* named 'colour'; give one of: fail\."),
        ({"fail": True}, r"fails: TypeError: can only concatenate .*\(line \d+ of .*test_causes"),
    ],
)
def test_a_factory_that_fails_is_not_said_to_refuse_its_options(
    options: dict[str, Any], message: str
):
    def make(fail: bool = False) -> str:
        return "a" + 1 if fail else "made"  # type: ignore[operator]

    with pytest.raises(InvalidProblem, match=message):
        instantiate("reward", {"mine": make}, "mine", options)


def test_what_cannot_be_called_is_no_checker():
    with pytest.raises(InvalidProblem, match="the checker math:pi is a float; give a function"):
        load_checker("math:pi")


def test_a_decoder_that_overflows_in_half_precision_is_named():
    base = stable_diffusion(dtype=torch.float32)
    vae = surroundings()[0]
    kept = {name: value.clone() for name, value in vae.state_dict().items()}
    try:
        with torch.no_grad():
            for p in vae.decoder.parameters():
                p.mul_(1e3)
        vae.half()
        with pytest.raises(InvalidProblem, match=r"not finite in float16; it overflows in half"):
            require_decoder(base)
    finally:
        vae.double()
        vae.load_state_dict(kept)
    require_decoder(base)


def test_numbers_that_are_not_finite_before_training_do_not_blame_the_learning_rate():
    trainer = trainer_with(
        rewards=[lambda x: torch.where(x[:, 0].abs() > 0.6, torch.nan, x[:, 0])], batch=BATCH
    )
    with pytest.raises(InvalidProblem, match="not trained yet") as refused:
        next(iter(trainer.iterations()))
    assert "optimiser.rate" not in str(refused.value)


@pytest.mark.parametrize("targets", [["to_x"], ["o_q"], [""], []])
def test_layers_that_are_not_there_are_refused_with_those_that_are(targets: list[str]):
    base = stable_diffusion()
    offered = r"; (?:did you mean|give some of:) (.*to_q.*)[.?]$"
    with pytest.raises(InvalidProblem, match=offered) as refused:
        LoRA(base, targets=targets)
    found = re.search(offered, str(refused.value))
    assert found is not None
    named = found[1].split(", ")
    assert not set(targets) & set(named)
    assert len(list(LoRA(base, targets=named).parameters())) > 0


BACKEND = "module://matplotlib_inline.backend_that_is_not_there"
ROWS = [{"round": i, "reward": 0.1 * i, "kl": 0.2 * i, "step": i} for i in range(4)]


def test_the_frontier_needs_no_backend(tmp_path: Path):
    plot_frontier(ROWS, tmp_path / "frontier.png", window=2)
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_commands_draw_whatever_backend_the_environment_names(tmp_path: Path):
    code = (
        "import socft.cli, sd_experiments.training.monitor as m, pathlib, sys;"
        "socft.cli.parse = lambda arguments: type('Draw', (), {'run': lambda self:"
        f" m.plot_frontier({ROWS}, pathlib.Path('frontier.png'), 2)}})();"
        "sys.exit(socft.cli.main([]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"MPLBACKEND": BACKEND, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "frontier.png").is_file()
