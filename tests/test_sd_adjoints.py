"""What makes costates large: continuations against exact laws, and the study as a whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from sd_experiments import config
from sd_experiments.adjoints import PARTS, QUICK, STUDY, forks, run, spread_of_rewards, tasks
from sd_experiments.commands import TINY
from sd_experiments.task import Task
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.records import read
from socft.report.rows import Rows
from socft.reward import FunctionReward
from toy.problems import benchmark

DIRECTION = torch.tensor([1.0, -2.0], dtype=torch.float64)


def linear() -> Task:
    """A Gaussian chain with a linear reward: continuations from any state have a variance that does not depend on it."""
    reference = benchmark("lq-sde", d=2, steps=5).problem.reference
    problem = ControlProblem(reference, FunctionReward(lambda x: x @ DIRECTION), 1.0)
    return Task("linear", problem, Uncontrolled(reference))


def deviation(task: Task, start: int) -> float:
    """Exact, by the chain's own linear maps: sqrt(sum_k |B_k^T A_{k+1}^T ... A_{T-1}^T c|^2)."""
    reference, zero, unit = task.problem.reference, torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    costate, variance = DIRECTION, 0.0
    for k in reversed(range(start, reference.steps)):
        pushed = reference.step(k, zero, unit) - reference.step(k, zero, zero)
        variance += float((pushed @ costate).square().sum())
        costate = (reference.mean(k, unit) - reference.mean(k, zero)) @ costate
    return variance**0.5


def test_continuations_have_the_exact_deviation_of_rewards():
    task, number = linear(), 4000
    states = torch.tensor([[0.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    expected = [deviation(task, k) for k in range(task.problem.steps)]
    assert expected == sorted(expected, reverse=True)
    for k, exact in enumerate(expected):
        found = spread_of_rewards(task, states, k, number)
        assert found.shape == (2,)
        assert float((found / exact - 1).abs().max()) < 4 / (2 * number) ** 0.5


def test_nothing_is_undecided_at_the_end():
    task = linear()
    assert float(spread_of_rewards(task, torch.ones(3, 2, dtype=torch.float64), task.problem.steps, 4).abs().max()) == 0


def test_every_prompt_is_measured_alone_and_at_every_scale_of_guidance():
    settings = config.read(TINY)
    made = tasks(settings, QUICK)
    assert len({task.name for task in made}) == len(made) == len(settings.problem.prompts) * (2 + len(QUICK.guidance))
    for task in made:
        parsed = config.parse(task.arguments["settings"])
        assert len(parsed.problem.prompts) == 1
        assert parsed.problem.prompts[0] in task.name


def test_top_and_rest_are_all_paths_and_the_top_has_larger_costates():
    settings = config.read(TINY)
    one = dataclasses.replace(settings, problem=dataclasses.replace(settings.problem, prompts=("four circles",)))
    found = Rows(tuple(forks(one.plain(), 20, 2)))
    for k in range(settings.sampler.steps):
        seeds = [record.seeds for part in PARTS for record in found.where("undecided", step=k, part=part)]
        assert seeds == [2, 18]
    largest = {part: max(record.value for record in found.where("adjoint", part=part)) for part in PARTS}
    assert largest["top"] > largest["rest"]
    assert all(-1 <= record.value <= 1 for record in found.where("rank_correlation"))


def test_the_study_can_be_repeated(tmp_path: Path):
    """The same noise gives the same numbers, and the file has them."""
    settings = tmp_path / "one.toml"
    lines = [line for line in TINY.read_text().splitlines() if not line.startswith("prompts = [")]
    text = "\n".join(lines).replace("[problem]", '[problem]\nprompts = ["four circles"]')
    settings.write_text(text)
    small = [run(settings, True, tmp_path / name, workers=1) for name in ("a", "b")]
    values = [[(r.metric, dict(r.setting), r.value) for r in rows] for rows in small]
    assert values[0] == values[1] != []
    assert [r.value for r in read(tmp_path / "a" / f"{STUDY}.jsonl")] == [r.value for r in small[0]]
    assert {r.metric for r in small[0]} == {"undecided", "log_growth", "adjoint", "rank_correlation", "reward", "accuracy"}
