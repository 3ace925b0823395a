"""Time and memory of gradient steps: what is varied, what is counted, what is refused; sizes of the
random models.
"""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sd_experiments import config
from sd_experiments.studies import benchmark as study
from sd_experiments.studies.benchmark import (
    ESTIMATORS,
    FULL,
    QUICK,
    BenchmarkCell,
    BenchmarkSweep,
    benchmark_config,
    build_cell,
    cell_config,
    cell_task,
    measure_cell,
    run,
    tasks,
)
from sd_experiments.studies.random_models import RANDOM, stable_diffusion_15
from sd_experiments.studies.savings import savings, savings_task
from sd_experiments.training.session import make_loop
from socft.checks import InvalidProblem
from socft.records import read
from socft.report.rows import Rows
from socft.report.stable_diffusion.tables import benchmark
from socft.report.typeset import number
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_BENCHMARK
from toy.measure import MemoryMeter

SMALL = RANDOM["small"].settings
ENTRIES = 4 * 8 * 8  # numbers in a latent of the small model
FLOAT = 4  # bytes
COPIES = 8  # states, controls, noise and targets, twice


def settings(cell: BenchmarkCell, estimator: str = "adjoint matching") -> dict:
    return cell_config(SMALL, estimator, ESTIMATORS[estimator], cell, 1).plain()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are measured in this process, which has imported what they need."""
    monkeypatch.setattr(study, "workers", ThreadPoolExecutor)


def test_one_number_is_varied_at_a_time():
    sweep = BenchmarkSweep(steps=(2, 4), trajectories=(1, 4), loss_steps=(1, None), repeats=1)
    assert sweep.cells(SMALL) == [
        BenchmarkCell(4, 4, 4),
        BenchmarkCell(2, 4, 2),
        BenchmarkCell(4, 1, 4),
        BenchmarkCell(4, 4, 1),
    ]
    few = dataclasses.replace(SMALL, batch=dataclasses.replace(SMALL.batch, loss_steps=3))
    assert sweep.cells(few) == [
        BenchmarkCell(4, 4, 3),
        BenchmarkCell(2, 4, 2),
        BenchmarkCell(4, 1, 3),
        BenchmarkCell(4, 4, 1),
        BenchmarkCell(4, 4, 4),
    ]
    base = dataclasses.replace(sweep, base=BenchmarkCell(8, 2, 8))
    assert base.cells(SMALL)[0] == BenchmarkCell(8, 2, 8)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("sweep", [FULL, QUICK], ids=["full", "quick"])
def test_every_cell_is_a_valid_run(name: str, sweep: BenchmarkSweep):
    made = tasks(RANDOM[name].settings, name, ESTIMATORS, sweep)
    assert (
        len({task.name for task in made})
        == len(made)
        == len(ESTIMATORS) * len(sweep.cells(RANDOM[name].settings))
    )
    for task in made:
        parsed = config.parse_config(task.arguments["settings"])
        assert parsed.batch.per_step == parsed.batch.trajectories
        assert parsed.run.steps == 1 + sweep.repeats


def test_the_full_size_is_the_papers():
    own = RANDOM["sd15"].settings
    assert (own.sampler.steps, own.batch.per_step) == (50, 10)
    assert BenchmarkCell(50, 10, 50) == FULL.cells(own)[0]
    with torch.device("meta"):
        pipeline = stable_diffusion_15()
    counted = [
        sum(p.numel() for p in part.parameters())
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    ]
    assert counted == [859_520_964, 83_653_863, 123_060_480]
    assert pipeline.unet.config["sample_size"] * 8 == 512


@pytest.mark.parametrize(
    ("estimator", "per_step"),
    [("score function, leave-one-out", 2), ("adjoint matching", 2), ("full adjoint", 4)],
)
@pytest.mark.slow
def test_the_calls_of_the_network_are_those_of_the_algorithm(estimator: str, per_step: int):
    """A rollout asks for both outputs at every step, and every backward pass, of two trajectories
    each, for the fine-tuned one: the pre-trained one is kept. A lean costate differentiates the
    pre-trained network, whose output the rollout leaves to it; a full one differentiates both.
    """
    for cell in (BenchmarkCell(2, 4, 2), BenchmarkCell(4, 4, 1), BenchmarkCell(4, 2, 1)):
        found = measure_cell(settings(cell, estimator), "small")
        assert found.calls == per_step * cell.steps + cell.trajectories // 2
        assert len(found.seconds) == 1


def peak(cell: BenchmarkCell) -> int:
    """Bytes of the tensors of one gradient step, weights excluded."""
    trainer = make_loop(build_cell(config.parse_config(settings(cell)), "small"))
    with MemoryMeter() as memory:
        next(trainer.iterations())
    return memory.peak


@pytest.mark.slow
def test_memory_beyond_the_path_does_not_grow_with_the_steps():
    """A path keeps states, controls, noise and targets; lists and their stacks stand side by side
    while they are made.
    """
    few, many = BenchmarkCell(2, 4, 1), BenchmarkCell(6, 4, 1)
    found = [peak(each) for each in (few, many, BenchmarkCell(6, 4, 6))]
    assert (
        found[1] - found[0]
        < COPIES * (many.steps - few.steps) * many.trajectories * ENTRIES * FLOAT
    )
    assert found[2] > 2 * found[1]


@pytest.mark.slow
def test_a_cell_has_a_process_of_its_own():
    """What this one has in memory does not count."""
    ballast = torch.ones(2**27, dtype=torch.float64)
    records = cell_task(settings(BenchmarkCell(2, 2, 2)), "small")
    found = {each.metric: each.value for each in records}
    assert found.keys() == {"seconds", "peak_mb", "start_mb"}
    assert 0 < found["start_mb"] <= found["peak_mb"] < ballast.nbytes / 2**20


@pytest.mark.usefixtures("here")
def test_cells_are_recorded_and_failures_named(tmp_path: Path):
    """A black box has no gradient for adjoint matching and suffices for DDPO."""
    file = tmp_path / "black.toml"
    tables = (
        '[sampler]\nsteps = 3\nspacing = "leading"\n[batch]\ntrajectories = 2\n[reward]\nblack_box'
        " = true\n"
    )
    file.write_text('[problem]\nprompts = ["a circle"]\n' + tables)
    sweep = BenchmarkSweep((), (), (), repeats=2)
    records = run(
        file, "small", False, tmp_path, {name: {} for name in ("adjoint matching", "DDPO")}, sweep
    )
    assert read(tmp_path / f"{SD_BENCHMARK.name}.jsonl") == records
    refused, *found = records
    assert (refused.metric, refused.estimator) == ("refused", "adjoint matching")
    assert "is a black box without a gradient" in refused.setting["reason"]
    assert [record.metric for record in found] == ["seconds", "peak_mb", "start_mb"]
    by_name = {record.metric: record for record in found}
    for record in found:
        asked = {"steps": 3, "trajectories": 2, "loss_steps": 3, "estimator": "DDPO"}
        assert asked.items() <= record.setting.items()
        assert (record.study, record.problem, record.estimator, record.device) == (
            SD_BENCHMARK.name,
            "small",
            "DDPO",
            "cpu",
        )
    assert by_name["seconds"].value > 0
    assert by_name["seconds"].seeds == 2
    assert by_name["seconds"].evaluations == 2 * 3 + 1, "what the frozen network said is kept"
    assert by_name["peak_mb"].value >= by_name["start_mb"].value > 0


@pytest.mark.slow
def test_a_saving_does_the_same_with_fewer_calls_or_cheaper_ones():
    settings = cell_config(
        RANDOM["small"].settings, "adjoint matching", {}, BenchmarkCell(3, 2, 2), 99
    )
    experiment = build_cell(settings, "small")
    denoiser, calls = experiment.base.denoiser, {}
    for saving in savings(experiment):
        counted = []
        for work in (saving.plain, saving.cheap):
            before = denoiser.calls
            work()
            counted.append(denoiser.calls - before)
        calls[saving.name] = tuple(counted)
    shared = (2 * 3 + 3 + 2, 3 + 3 + 1)  # drawing, labels, loss
    assert calls == {
        "kept outputs": shared,
        "merged layers": (shared[0],) * 2,
        "both": shared,
        "channels last": (shared[1],) * 2,
        "batched guidance": (2, 1),
        "prompt encoded once": (1, 1),
    }


@pytest.mark.slow
def test_savings_are_recorded_pair_by_pair():
    settings = cell_config(
        RANDOM["small"].settings, "adjoint matching", {}, BenchmarkCell(2, 2, 1), 99
    )
    records = savings_task(settings.plain(), "small", 2)
    assert len({record.setting["saving"] for record in records}) == len(records) == 6
    for record in records:
        assert record.metric == Metric.SPEEDUP
        assert record.seeds == 2
        assert record.value > 0
    SD_BENCHMARK.check(records)


@pytest.mark.usefixtures("here")
def test_nothing_measured_and_nothing_named_are_refused(tmp_path: Path):
    with pytest.raises(
        InvalidProblem, match="give a configuration or one of the random models: sd15, small"
    ):
        benchmark_config(None, None)
    with pytest.raises(
        InvalidProblem, match="there is no random model 'tiny'; give one of: sd15, small"
    ):
        benchmark_config(None, "tiny")
    with pytest.raises(
        InvalidProblem,
        match=r"no cell could be measured; the first one says: .*there is no estimator 'absent'",
    ):
        run(None, "small", True, tmp_path, {"absent": {}}, BenchmarkSweep((), (), (), 1))


@pytest.mark.usefixtures("here")
def test_every_measured_cell_is_a_row_of_the_report_with_its_memory(tmp_path: Path):
    """Estimators with options have these in their settings too."""
    sweep = BenchmarkSweep((), (), (1,), repeats=1, base=BenchmarkCell(2, 2, 2))
    records = run(None, "small", True, tmp_path, {"truncated backpropagation": {"last": 1}}, sweep)
    table = benchmark(Rows(tuple(records)))
    seconds, memory = (
        [r for r in records if r.metric == metric] for metric in ("seconds", "peak_mb")
    )
    assert len(seconds) == len(memory) == 2
    for record in memory:
        assert number(record.value) in table
