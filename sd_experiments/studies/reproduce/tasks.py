"""Every run as a task of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_experiments import config
from sd_experiments.studies.reproduce.runs import (
    PICTURES,
    measure_method,
    measure_pretrained,
    measure_variant,
)
from sd_experiments.studies.reproduce.scales import (
    FineTuningMethod,
    ReproductionScale,
    method_config,
)
from socft.checks import require
from socft.files import write_atomically
from socft.records import Record
from socft.study.comparison import picture_of
from socft.study.digest import fingerprint
from socft.study.runner import run
from socft.study.tasks import Study, Task
from socft.study.vocabulary.methods import MethodName
from socft.study.workers import processes

WORK = Path("build/reproduce")
TRAININGS = 3
"""How often each of `REPEATED` is trained, unless said otherwise."""
REPEATED = (MethodName.PI_FT, MethodName.DPOK)
"""Methods that are trained several times."""
REGRESSING = (MethodName.PI_FT, MethodName.ADJOINT_MATCHING, MethodName.CORRECTED_ADJOINT)
"""Methods that also run without a limit on their target controls."""


def reproduce(
    scale: ReproductionScale,
    quick: bool,
    out: Path,
    count: int | None = None,
    trainings: int = 1,
    variants: bool = False,
) -> list[Record]:
    """Run everything; records go to ``<out>/<study>.jsonl``, pictures into the folder
    ``<out>/<study>/``.

    Args:
        count: number of processes; the scale's own by default.
        trainings: how often each of `REPEATED` is trained for every prompt.
        variants: also DPOK at other learning rates and methods without a limit on their target
            controls.

    Raises:
        InvalidProblem: something is missing or refused.
        StudyFailed: runs failed; the same command repeats only these.
    """
    require(trainings >= 1, f"trainings = {trainings}; give at least 1.")
    scale = _quick(scale) if quick else scale
    study = Study(scale.study, lambda _: tasks(scale, trainings, variants))
    with processes(count or scale.workers) as pool:
        records = run(study, quick, out, pool)
    keep_pictures(tasks(scale), out / scale.study.name)
    return records


def _quick(scale: ReproductionScale) -> ReproductionScale:
    """Everything once, with results that mean nothing."""
    return dataclasses.replace(
        scale,
        rounds=2,
        betas=scale.betas[-1:],
        rates=scale.rates[-1:],
        pictures=4,
        shown=2,
        batches=3,
    )


def tasks(scale: ReproductionScale, trainings: int = 1, variants: bool = False) -> list[Task]:
    """Every run, those that others are compared with first."""
    settings = scale.settings
    prompts, beta = settings.problem.prompts, settings.problem.beta
    made = [_pretrained_task(scale, prompt) for prompt in prompts]
    made += [
        _method_task(scale, method, prompt, beta) for method in scale.methods for prompt in prompts
    ]
    made += [
        _method_task(scale, scale.pi_ft, prompts[0], each) for each in scale.betas if each != beta
    ]
    again = [method for method in scale.methods if method.title in REPEATED]
    made += [
        _variant_task(scale, method, prompt, {"training": number})
        for number in range(2, trainings + 1)
        for method in again
        for prompt in prompts
    ]
    return made + _variants(scale) if variants else made


def _variants(scale: ReproductionScale) -> list[Task]:
    """DPOK at other learning rates, and methods that regress on target controls without a limit on
    these.
    """
    settings = scale.settings
    changed = [
        (dataclasses.replace(method, rate=rate), {"rate": rate})
        for rate in scale.rates
        for method in scale.methods
        if method.title == MethodName.DPOK
    ]
    if settings.batch.target_clip is not None:
        changed += [
            (
                dataclasses.replace(method, batch={**method.batch, "target_clip": None}),
                {"limit": "none"},
            )
            for method in scale.methods
            if method.title in REGRESSING
        ]
    return [
        _variant_task(scale, method, prompt, variant)
        for method, variant in changed
        for prompt in settings.problem.prompts
    ]


def _pretrained_task(scale: ReproductionScale, prompt: str) -> Task:
    method, beta = (
        FineTuningMethod(MethodName.PRE_TRAINED, scale.pi_ft.estimator),
        scale.settings.problem.beta,
    )
    settings = method_config(scale, method, prompt, beta)
    return placed_task(
        run_name(MethodName.PRE_TRAINED, prompt, beta=beta),
        measure_pretrained,
        settings,
        {"study": scale.study.name, "pictures": scale.pictures, "shown": scale.shown},
    )


def _method_task(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, beta: float
) -> Task:
    arguments = {
        "study": scale.study.name,
        "method": method,
        "pictures": scale.pictures,
        "shown": scale.shown,
        "compared": scale.pi_ft,
        "batches": scale.batches,
    }
    settings = method_config(scale, method, prompt, beta)
    return placed_task(
        run_name(method.title, prompt, beta=beta), measure_method, settings, arguments
    )


def _variant_task(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, variant: Mapping[str, Any]
) -> Task:
    """A run of a method by what is different."""
    beta = scale.settings.problem.beta
    settings = method_config(scale, method, prompt, beta)
    seed = settings.run.seed + variant.get("training", 1) - 1
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
    return placed_task(
        run_name(method.title, prompt, beta=beta, **variant),
        measure_variant,
        settings,
        {
            "study": scale.study.name,
            "method": method,
            "pictures": scale.pictures,
            "variant": variant,
        },
    )


def run_name(title: str, prompt: str, **setting: Any) -> str:
    """What a run is called, by what it differs in."""
    return ", ".join([title, prompt, *(f"{key} {value}" for key, value in setting.items())])


def placed_task(
    name: str,
    function: Callable[..., list[Record]],
    settings: config.ExperimentConfig,
    arguments: Mapping[str, Any],
) -> Task:
    """A run in its own folder, which changes with everything that the run depends on."""
    digest = fingerprint(Task("", function, {**arguments, "settings": settings.plain()}))
    there = dataclasses.replace(settings.run, out=str(WORK / digest))
    placed = dataclasses.replace(settings, run=there)
    return Task(name, function, {**arguments, "settings": placed.plain()})


def keep_pictures(runs: Sequence[Task], folder: Path) -> None:
    """Copy the pictures of finished runs to a folder, with a name each (`picture_of`)."""
    for task in runs:
        settings = config.parse_config(task.arguments["settings"])
        method: FineTuningMethod | None = task.arguments.get("method")
        title = MethodName.PRE_TRAINED if method is None else method.title
        name = picture_of(title, settings.problem.prompts[0], settings.problem.beta)
        write_atomically(folder / name, (Path(settings.run.out) / PICTURES).read_bytes())
