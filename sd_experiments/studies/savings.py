"""How much faster each way to share or to arrange the network's calls makes the same work.

Two ways to do the same piece of work take turns in one process, and the ratio of their times is
taken pair by pair, so that it matters little what else the machine does. A time is that of the
processor, or on a GPU that of the clock.

- **kept outputs**: the frozen network is asked once about every state of a round
  (`sd_experiments.training.sharing`); a gradient step, sampling and labels included, by adjoint
  matching.
- **merged layers**: paths are drawn with the low-rank layers merged into the weights; the same
  step.
- **both**: the same step.
- **channels last**: the memory layout of the network's weights; the same step, with both.
- **batched guidance**: the prompt and the negative prompt in one call of the network; that call.
- **prompt encoded once**: against an encoder that is asked with every call of the network; a call.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from sd_experiments import config
from sd_experiments.studies.random_models import RANDOM
from sd_experiments.training.build import Experiment, build, find_device
from sd_experiments.training.session import make_loop
from sd_experiments.training.sharing import NetworkSharing
from socft.records import Record
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schemas import SD_BENCHMARK

Work = Callable[[], Any]
GUIDED = 2.0
"""A guidance scale at which the network is asked about two prompts."""


@dataclasses.dataclass(frozen=True)
class Saving:
    """Two ways to do the same work.

    Attributes:
        name: what the second does.
        plain: the first.
        cheap: the second.
    """

    name: str
    plain: Work
    cheap: Work


def measure_savings(experiment: Experiment, repeats: int) -> dict[str, list[float]]:
    """The ratios of the times of every saving, one per pair after a first that is not counted."""
    device = find_device(experiment.settings.model.device)
    return {
        saving.name: [_ratio(saving, device, n % 2 == 0) for n in range(1 + repeats)][1:]
        for saving in savings(experiment)
    }


def savings(experiment: Experiment) -> Iterator[Saving]:
    """Everything that is compared, on one experiment whose rounds are of one gradient step."""
    step, network = _steps(experiment), experiment.base.denoiser.network
    yield Saving("kept outputs", lambda: step(False, False), lambda: step(True, False))
    yield Saving("merged layers", lambda: step(False, False), lambda: step(False, True))
    yield Saving("both", lambda: step(False, False), lambda: step(True, True))

    def laid_out(layout: torch.memory_format) -> None:
        network.to(memory_format=layout)
        step(True, True)

    last, usual = torch.channels_last, torch.contiguous_format
    yield Saving("channels last", lambda: laid_out(usual), lambda: laid_out(last))
    network.to(memory_format=usual)
    yield from _calls(experiment)


def _steps(experiment: Experiment) -> Callable[[bool, bool], None]:
    """Gradient steps that share what they are told to."""
    iterations = make_loop(experiment).iterations()
    (task,) = experiment.tasks
    assert isinstance(task.sharing, NetworkSharing)
    sharing = task.sharing

    def step(keep: bool, merge: bool) -> None:
        sharing.keep_frozen, sharing.merge_layers = keep, merge
        next(iterations)

    return step


def _calls(experiment: Experiment) -> Iterator[Saving]:
    reference = experiment.tasks[0].problem.reference
    base, rows = experiment.base, experiment.settings.batch.trajectories
    x = torch.zeros(rows, *reference.dims, dtype=experiment.dtype)
    x = x.to(next(experiment.lora.parameters()).device)
    told: Any = reference
    height, width = reference.dims[-2:]
    plain = dataclasses.replace(told.condition, guidance=1.0)
    negative = dataclasses.replace(plain, prompt=plain.negative)
    both = dataclasses.replace(plain, guidance=GUIDED)

    @torch.no_grad()
    def called(*conditions: Any) -> None:
        for each in conditions:
            told.predict(0, x, False, each)

    @torch.no_grad()
    def encoded() -> None:
        base.encode(told.prompt, (height, width))
        called(plain)

    yield Saving("batched guidance", lambda: called(plain, negative), lambda: called(both))
    yield Saving("prompt encoded once", encoded, lambda: called(plain))


def _ratio(saving: Saving, device: torch.device, forward: bool) -> float:
    """The time of the plain way over that of the cheap one, which go first in turn."""
    order = (saving.plain, saving.cheap) if forward else (saving.cheap, saving.plain)
    first, second = (_seconds(work, device) for work in order)
    return first / second if forward else second / first


def _seconds(work: Work, device: torch.device) -> float:
    if device.type != "cuda":
        begun = time.process_time()
        work()
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def savings_task(settings: Mapping[str, Any], random: str | None, repeats: int) -> list[Record]:
    """One record for every saving: the mean ratio and its standard error."""
    parsed = config.parse_config(settings)
    experiment = build(parsed, None if random is None else RANDOM[random].base(parsed.model))
    about = {"steps": parsed.sampler.steps, "trajectories": parsed.batch.trajectories}
    about |= {"loss_steps": parsed.batch.loss_steps, "random": random is not None}
    return [
        Record(
            SD_BENCHMARK.name,
            random or parsed.model.path,
            Metric.SPEEDUP,
            statistics.mean(ratios),
            {**about, "saving": name},
            stderr=statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else None,
            seeds=len(ratios),
            dtype=parsed.model.dtype,
            device=find_device(parsed.model.device).type,
        )
        for name, ratios in measure_savings(experiment, repeats).items()
    ]
