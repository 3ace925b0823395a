"""All that is worth knowing on an accelerator, in minutes.

Correctness, on a small random network: the end of a chain is that of the CPU from the same noise;
in bfloat16 the log-ratio of a policy with itself is zero whatever the number of samples in a call;
a run that continues from a checkpoint makes the same gradient step. Cost, on random networks of the
sizes of Stable Diffusion 1.5, XL and 3.5 medium: seconds and largest memory of a gradient step of
every estimator, of a few sampling steps. Each network has its share of the time, and what it is not
enough for is not measured.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sd_experiments import config
from sd_experiments.model.loading import latent_model
from sd_experiments.studies.benchmark import (
    ESTIMATORS,
    BenchmarkCell,
    cell_config,
    cost_records,
    device_title,
    reason_of,
    setting_of,
    step_cost,
)
from sd_experiments.studies.random_models import RANDOM
from sd_experiments.training.build import Experiment, build, find_device, instantiate
from sd_experiments.training.loop import TrainingLoop
from sd_experiments.training.replay_buffer import log_likelihood_ratios
from sd_experiments.training.session import evaluation_noise, make_loop
from sd_experiments.training.storage import CheckpointStore
from socft.checks import InvalidProblem, require
from socft.estimators.catalogue import ANYWHERE
from socft.path import Noise, rollout
from socft.path import Path as SampledPath
from socft.records import Record
from socft.study import runner
from socft.study.tasks import Study, Task
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_GPU

NETWORKS, REHEARSED = ("sd15", "sdxl", "sd35_medium"), ("small", "small_flow")
FEW = (MethodName.ADJOINT_MATCHING, MethodName.DDPO)
"""Estimators of the rehearsal."""
CELL = BenchmarkCell(steps=4, trajectories=2, loss_steps=2)
CORRECTNESS = 60.0
"""Seconds that are left for it."""
PATHS, BATCHES, LAYERS = 4, (1, 2, 4), 0.05
"""Paths, samples in a call, and the size of the layers of the small network."""


def run(out: Path, rehearse: bool = False, minutes: float = 8.0) -> list[Record]:
    """Measure into ``<out>/sd_gpu.jsonl``.

    Args:
        rehearse: on the CPU, with small networks and two estimators.
        minutes: that it may take.

    Raises:
        InvalidProblem: torch sees no GPU, or the time is no positive number.
    """
    require(minutes > 0, f"minutes = {minutes}; give a positive number.")
    device = "cpu" if rehearse else "cuda"
    require(
        rehearse or torch.cuda.is_available(),
        "torch sees no GPU here; run the same on the CPU with --rehearse.",
    )
    names = REHEARSED if rehearse else NETWORKS
    seconds = max(0.0, 60 * minutes - CORRECTNESS) / len(names)
    estimators = [str(name) for name in (FEW if rehearse else ESTIMATORS)]
    made = [Task("correctness", correctness, {"device": device})]
    made += [
        Task(
            f"gradient steps of {name}",
            gradient_steps,
            {"name": name, "device": device, "estimators": estimators, "seconds": seconds},
        )
        for name in names
    ]
    return runner.run(Study(SD_GPU, lambda _: made), rehearse, out)


def correctness(device: str) -> list[Record]:
    """Whether the device computes what it should."""
    place = find_device(device)
    record = functools.partial(Record, SD_GPU.name, "small", device=device_title(place))
    here, there = (_chain(each) for each in (place, torch.device("cpu")))
    found = [record(Metric.CHAIN_DIFFERENCE, _apart(here, there), dtype="float32")]
    found += [
        record(Metric.LOG_RATIO, value, {"batch": batch}, dtype="bfloat16")
        for batch, value in _log_ratios(place)
    ]
    return [*found, record(Metric.RESUME_DIFFERENCE, _resumed(place), dtype="float32")]


def small_experiment(
    device: torch.device, dtype: Literal["float32", "bfloat16"] = "float32", steps: int = 3
) -> Experiment:
    """The small network with trained layers, the same on every device."""
    own = RANDOM["small"]
    settings = cell_config(own.settings, MethodName.ADJOINT_MATCHING, {}, CELL, steps - 1)
    settings = dataclasses.replace(
        settings, model=config.ModelConfig("random", dtype, device=str(device))
    )
    pipeline = own.pipeline(0, torch.device("cpu"), getattr(torch, dtype)).to(device)
    experiment = build(settings, latent_model(pipeline))
    experiment.lora.reset(torch.Generator().manual_seed(1), LAYERS)
    return experiment


@torch.no_grad()
def _path(experiment: Experiment) -> SampledPath:
    task = experiment.tasks[0]
    noise = evaluation_noise(experiment, task, PATHS, 1)
    return rollout(task.problem.reference, task.policy, noise)


def _chain(device: torch.device) -> Tensor:
    return _path(small_experiment(device)).final.cpu()


def _log_ratios(device: torch.device) -> Iterator[tuple[int, float]]:
    """The largest log-ratio of the policy that made some paths with itself, by samples in a
    call.
    """
    experiment = small_experiment(device, "bfloat16")
    path, policy = _path(experiment), experiment.tasks[0].policy
    for batch in BATCHES:
        parts = [
            log_likelihood_ratios(policy, _part(path, slice(i, i + batch)))
            for i in range(0, PATHS, batch)
        ]
        yield batch, float(torch.cat(parts).abs().max())


def _part(path: SampledPath, some: slice) -> SampledPath:
    noise = Noise(path.noise.initial[some], path.noise.steps[:, some])
    return SampledPath(path.states[:, some], path.controls[:, some], noise)


def _resumed(device: torch.device) -> float:
    """How far the third gradient step of a run that continues is from that of one that goes on."""
    whole, first = (make_loop(small_experiment(device)) for _ in range(2))
    for _ in whole.iterations():
        pass
    for _ in itertools.islice(first.iterations(), 2):
        pass
    second = make_loop(small_experiment(device))
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(Path(folder))
        store.save(first.step, *first.files())
        newest = store.newest()
        assert newest is not None
        second.restore(newest)
        for _ in second.iterations():
            pass
    return _apart(_layers(second), _layers(whole))


def _layers(loop: TrainingLoop) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in loop.parameters.values()])


def _apart(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest entry."""
    return float((found - expected).abs().max() / expected.abs().max())


def gradient_steps(name: str, device: str, estimators: list[str], seconds: float) -> list[Record]:
    """Seconds and memory of a gradient step on one network, by estimator, until the time is over;
    the network is made once, and its layers are those of the pre-trained model each time.
    """
    end, place, found = time.monotonic() + seconds, find_device(device), []
    experiment = _network(name, device)
    for estimator in estimators:
        if time.monotonic() > end:
            break
        found += _measured(name, place, experiment, estimator)
    del experiment
    gc.collect()
    return found


def _network(name: str, device: str) -> Experiment:
    settings = cell_config(RANDOM[name].settings, MethodName.ADJOINT_MATCHING, {}, CELL, 1)
    settings = dataclasses.replace(
        settings, model=dataclasses.replace(settings.model, device=device)
    )
    model = settings.model
    pipeline = RANDOM[name].pipeline(0, find_device(device), getattr(torch, model.dtype))
    base = latent_model(pipeline, model.micro_batch, checkpointing=model.checkpointing)
    return build(settings, base)


def _measured(
    name: str, place: torch.device, experiment: Experiment, estimator: str
) -> list[Record]:
    options: dict[str, Any] = dict(ESTIMATORS[MethodName(estimator)])
    settings = dataclasses.replace(
        experiment.settings, estimator=config.EstimatorConfig(estimator, options)
    )
    about, title = setting_of(settings, True), device_title(place)
    record: Callable[..., Record] = functools.partial(
        Record, SD_GPU.name, name, estimator=estimator, dtype=settings.model.dtype, device=title
    )
    experiment.lora.reset(torch.Generator().manual_seed(0))
    made = instantiate("estimator", ANYWHERE, estimator, options)
    try:
        cost = step_cost(dataclasses.replace(experiment, settings=settings, estimator=made))
    except (InvalidProblem, torch.OutOfMemoryError) as error:
        return [record(Metric.REFUSED, 1.0, about | {"reason": reason_of(error)})]
    return list(cost_records(functools.partial(record, kind=cost.kind), cost, about))
