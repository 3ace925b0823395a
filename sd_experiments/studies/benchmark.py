"""Time and memory of a gradient step against the number of sampling steps, of trajectories and of
steps in the loss.

Starting from a configuration, one of the three numbers is changed at a time, for every estimator. A
gradient step is everything between two updates of the layers: sampling the trajectories, their
rewards and labels, and the gradient of the loss. Each cell is measured in a process of its own,
because the peak of memory is a process': after a first step that is not counted, the median time of
the next ones is ``seconds``. ``peak_mb`` is the largest memory in use and ``start_mb`` that of the
models alone, on the GPU as its allocator counts, or else as main memory of the process. Steps are
few enough for a median because their work is always the same. What makes a step cheap is measured
beside it (`sd_experiments.studies.savings`). A cell that fails, for lack of memory
or because its estimator needs a gradient that the reward has not, is recorded as "refused" with the
reason.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from pathlib import Path
from typing import Any

import torch

from sd_experiments import config
from sd_experiments.assignments import read_assignments
from sd_experiments.model.memory import peak_mb, reset_peak
from sd_experiments.studies.random_models import RANDOM
from sd_experiments.studies.savings import savings_task
from sd_experiments.training.build import Experiment, build, find_device
from sd_experiments.training.session import make_loop
from socft.checks import InvalidProblem, require, require_known
from socft.records import Record
from socft.study import runner
from socft.study.tasks import Study, Task
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_BENCHMARK
from socft.study.workers import workers

ESTIMATORS: Mapping[str, Mapping[str, Any]] = {
    MethodName.ADJOINT_MATCHING: {},
    MethodName.FULL_ADJOINT: {},
    MethodName.MARTINGALE_POLICY_COSTATE_CHEAP: {"last": False},
    MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE: {"last": False},
    MethodName.TRUNCATED: {"last": 1},
    MethodName.DDPO: {},
    MethodName.DPOK_LEAVE_ONE_OUT: {},
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT: {},
}
"""What is measured, with its options."""


@dataclasses.dataclass(frozen=True)
class BenchmarkCell:
    """One combination.

    Attributes:
        steps: sampling steps.
        trajectories: paths per gradient step.
        loss_steps: steps of each path in the loss.
    """

    steps: int
    trajectories: int
    loss_steps: int


@dataclasses.dataclass(frozen=True)
class BenchmarkSweep:
    """What is varied.

    Attributes:
        steps: sampling steps.
        trajectories: paths per gradient step.
        loss_steps: steps in the loss; None is all.
        repeats: gradient steps that are timed.
        base: what the others stay at while one is varied; the configuration's by default.
    """

    steps: tuple[int, ...]
    trajectories: tuple[int, ...]
    loss_steps: tuple[int | None, ...]
    repeats: int
    base: BenchmarkCell | None = None

    def cells(self, settings: config.ExperimentConfig) -> list[BenchmarkCell]:
        """Every combination once, the base first."""
        batch, steps = settings.batch, settings.sampler.steps
        base = self.base or BenchmarkCell(steps, batch.trajectories, batch.loss_steps or steps)
        everything = base.loss_steps == base.steps
        found = [base]
        found += [
            BenchmarkCell(
                each, base.trajectories, each if everything else min(base.loss_steps, each)
            )
            for each in self.steps
        ]
        found += [dataclasses.replace(base, trajectories=each) for each in self.trajectories]
        found += [
            dataclasses.replace(base, loss_steps=min(each or base.steps, base.steps))
            for each in self.loss_steps
        ]
        return list(dict.fromkeys(found))


FULL = BenchmarkSweep((10, 25, 50, 100), (1, 2, 5, 10, 20), (1, 4, 16, None), repeats=3)
QUICK = BenchmarkSweep((2, 4), (1, 2), (1, None), repeats=1, base=BenchmarkCell(4, 2, 4))
PAIRS = 3
"""Pairs of measurements of a saving for every repetition of a cell."""
LONGEST = 10_000
"""Gradient steps, more than are ever compared."""
QUICK_ESTIMATORS = (MethodName.ADJOINT_MATCHING, MethodName.FULL_ADJOINT)


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a cell's own process found.

    Attributes:
        seconds: of every gradient step after the first.
        start_mb: memory in use before the first.
        peak_mb: largest memory in use since.
        calls: calls of the network per gradient step, each of up to ``model.micro_batch`` samples.
        kind: what the estimator estimates.
        device: where it ran.
    """

    seconds: tuple[float, ...]
    start_mb: float
    peak_mb: float
    calls: int
    kind: str
    device: str


def run(
    file: Path | None,
    random: str | None,
    quick: bool,
    out: Path,
    estimators: Mapping[str, Mapping[str, Any]] | None = None,
    sweep: BenchmarkSweep | None = None,
    changes: Sequence[str] = (),
    savings_only: bool = False,
) -> list[Record]:
    """Measure every cell into ``<out>/sd_benchmark.jsonl``; an interrupted run continues where it
    was.

    Args:
        file: the configuration to start from; that of the random model by default.
        random: name of a model with random weights, of `RANDOM`, in place of the configuration's.
        quick: a few small cells.
        estimators: names in `socft.estimators.catalogue.ANYWHERE` and their options; by
            default `ESTIMATORS`, two of them if ``quick``.
        sweep: what is varied; by default `FULL`, or `QUICK`.
        changes: ``KEY=VALUE``, each in place of the configuration's.
        savings_only: leave out the cells.

    Raises:
        InvalidProblem: there is no such model, or no cell could be measured.
    """
    settings, small = (
        benchmark_config(file, random, changes),
        {str(name): ESTIMATORS[name] for name in QUICK_ESTIMATORS},
    )
    chosen = estimators or (small if quick else ESTIMATORS)
    varied = sweep or (QUICK if quick else FULL)
    made = [] if savings_only else tasks(settings, random, chosen, varied)
    if estimators is None:
        made.append(_savings(settings, random, varied))
    schema = SD_BENCHMARK.of_anything(SD_BENCHMARK.name)
    records = runner.run(Study(schema, lambda _: made), quick, out)
    reasons = [record.setting["reason"] for record in records if record.metric == Metric.REFUSED]
    require(
        len(reasons) < len(made), f"no cell could be measured; the first one says: {reasons[:1]}"
    )
    return records


def benchmark_config(
    file: Path | None, random: str | None, changes: Sequence[str] = ()
) -> config.ExperimentConfig:
    """The configuration with some changes, and with a random model and its reward in the place of
    its own if one is named.
    """
    given = read_assignments(changes)
    require(
        file is not None or random is not None,
        f"give a configuration or one of the random models: {', '.join(RANDOM)}.",
    )
    if random is not None:
        require_known(random, RANDOM, "random model")
    if random is None:
        assert file is not None
        return config.read_config(file, given)
    own = RANDOM[random].settings
    if file is None:
        return config.with_changes(own, given)
    settings = config.read_config(file, given)
    model = dataclasses.replace(settings.model, path=own.model.path)
    reward = dataclasses.replace(
        own.reward, chunk=settings.reward.chunk, black_box=settings.reward.black_box
    )
    return dataclasses.replace(settings, model=model, reward=reward)


def tasks(
    settings: config.ExperimentConfig,
    random: str | None,
    estimators: Mapping[str, Mapping[str, Any]],
    sweep: BenchmarkSweep,
) -> list[Task]:
    """One task per estimator and cell."""
    return [
        Task(
            f"{name}: {cell.steps} steps, {cell.trajectories} trajectories, {cell.loss_steps} steps"
            " in the loss",
            cell_task,
            {
                "settings": cell_config(settings, name, options, cell, sweep.repeats).plain(),
                "random": random,
            },
        )
        for name, options in estimators.items()
        for cell in sweep.cells(settings)
    ]


def _savings(settings: config.ExperimentConfig, random: str | None, sweep: BenchmarkSweep) -> Task:
    """Of adjoint matching in the first cell; there are two steps in every pair of each saving."""
    repeats = PAIRS * sweep.repeats
    cell = sweep.cells(settings)[0]
    asked = cell_config(settings, MethodName.ADJOINT_MATCHING, {}, cell, LONGEST)
    arguments = {"settings": asked.plain(), "random": random, "repeats": repeats}
    return Task("what sharing and arranging the network's calls saves", savings_task, arguments)


def cell_config(
    settings: config.ExperimentConfig,
    name: str,
    options: Mapping[str, Any],
    cell: BenchmarkCell,
    repeats: int,
) -> config.ExperimentConfig:
    """The settings of a cell: one round of one prompt per gradient step."""
    s = settings
    batch = dataclasses.replace(
        s.batch,
        trajectories=cell.trajectories,
        prompts=1,
        paths=None,
        passes=1,
        loss_steps=cell.loss_steps,
    )
    return dataclasses.replace(
        s,
        problem=dataclasses.replace(s.problem, prompts=s.problem.prompts[:1]),
        sampler=dataclasses.replace(s.sampler, steps=cell.steps),
        estimator=config.EstimatorConfig(name, dict(options)),
        batch=batch,
        run=dataclasses.replace(s.run, steps=1 + repeats),
        monitor=config.MonitorConfig(),
    )


def cell_task(settings: Mapping[str, Any], random: str | None) -> list[Record]:
    """Measure one cell in a fresh process."""
    parsed = config.parse_config(settings)
    about = setting_of(parsed, random is not None)
    title = random or Path(parsed.model.path).name
    record = functools.partial(
        Record, SD_BENCHMARK.name, title, estimator=parsed.estimator.name, dtype=parsed.model.dtype
    )
    try:
        with workers(1) as fresh:
            found = fresh.submit(measure_cell, settings, random).result()
    except (InvalidProblem, torch.OutOfMemoryError, MemoryError, BrokenExecutor) as error:
        return [record(Metric.REFUSED, 1.0, about | {"reason": reason_of(error)})]
    return list(
        cost_records(functools.partial(record, kind=found.kind, device=found.device), found, about)
    )


def setting_of(settings: config.ExperimentConfig, random: bool) -> dict[str, Any]:
    """What tells a cell from others."""
    return {
        "steps": settings.sampler.steps,
        "trajectories": settings.batch.trajectories,
        "loss_steps": settings.batch.loss_steps,
        "estimator": settings.estimator.name,
        **settings.estimator.options,
        "guidance": settings.sampler.guidance,
        "micro_batch": settings.model.micro_batch,
        "checkpointing": settings.model.checkpointing,
        "backward_batch": settings.batch.micro_batch,
        "random": random,
    }


def cost_records(
    record: Callable[..., Record], found: StepCost, about: Mapping[str, Any]
) -> Iterator[Record]:
    """What a cell found."""
    number, seconds = len(found.seconds), statistics.median(found.seconds)
    stderr = statistics.stdev(found.seconds) / number**0.5 if number > 1 else None
    yield record(
        Metric.SECONDS, seconds, about, stderr=stderr, seeds=number, evaluations=found.calls
    )
    yield record(Metric.PEAK_MB, found.peak_mb, about, evaluations=found.calls)
    yield record(Metric.START_MB, found.start_mb, about)


def measure_cell(settings: Mapping[str, Any], random: str | None) -> StepCost:
    """Time and memory of the gradient steps of a run, the first one not counted, in this
    process.
    """
    return step_cost(build_cell(config.parse_config(settings), random))


def step_cost(experiment: Experiment) -> StepCost:
    """Time and memory of the gradient steps of an experiment, the first one not counted."""
    device = find_device(experiment.settings.model.device)
    reset_peak(device)
    start, iterations = peak_mb(device), make_loop(experiment).iterations()
    next(iterations)
    denoiser = experiment.base.denoiser
    before = denoiser.calls
    seconds = tuple(step.metrics.seconds for step in iterations)
    calls = (denoiser.calls - before) // len(seconds)
    return StepCost(
        seconds,
        start,
        peak_mb(device),
        calls,
        experiment.estimator.estimates.kind,
        device_title(device),
    )


def build_cell(settings: config.ExperimentConfig, random: str | None) -> Experiment:
    """The experiment of a configuration, with a random model if one is named."""
    if random is None:
        return build(settings)
    return build(settings, RANDOM[random].base(settings.model))


def device_title(device: torch.device) -> str:
    return f"cuda: {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type


def reason_of(error: Exception) -> str:
    if isinstance(error, BrokenExecutor):
        return "its process died, perhaps for lack of memory"
    return " ".join(str(error).split())[:500] or type(error).__name__
