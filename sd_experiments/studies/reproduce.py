"""Section 5 of arXiv 2412.18164v4 in one command, with its rivals:
``socft sd reproduce --scale tiny|sd15``.

Every prompt is fine-tuned on its own by every method, from the same pre-trained model, with as many
sampled trajectories each; PI-FT also at several KL weights. Afterwards every model draws the same
number of pictures from the same noise, and reward, KL, the checker's accuracy and diversity are
measured on these. Gains over the pre-trained model are means of differences, picture by picture, so
what the pictures have in common is no noise in them.

How a training ends also depends on its own noise. PI-FT and DPOK can therefore be trained several
times, from other seeds. There are also variants: DPOK, which PI-FT is held against, at other
learning rates, so that it does not lose by one that does not suit it; and methods that regress on
target controls without the configuration's limit on these, to see what the limit is for.

If a training ends below its best by more than noise, gradients by the method and by PI-FT at the
policy that it ends with say whether the method still points where the policy gradient does, or is
noisier (`sd_experiments.studies.gradient_agreement`).

A run is one task of a study, so an interrupted reproduction continues where it was, within a run at
its last checkpoint.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_experiments import CONFIGS, config
from sd_experiments.model.memory import reset_peak
from sd_experiments.studies import gradient_agreement
from sd_experiments.training.build import Experiment, build, find_device, instantiate
from sd_experiments.training.monitor import (
    METRICS,
    Display,
    diversity,
    read_metrics,
    save_image_grid,
)
from sd_experiments.training.session import (
    ImageSamples,
    evaluation_noise,
    fine_tune,
    sample_images,
    score_images,
)
from socft.checks import require
from socft.estimators.base import CostateEstimator
from socft.estimators.catalogue import ANYWHERE
from socft.files import write_atomically
from socft.path import rollout
from socft.policy import Policy, Uncontrolled
from socft.records import Record
from socft.study.comparison import GAINS, has_fallen, picture_of
from socft.study.digest import fingerprint
from socft.study.runner import run
from socft.study.tasks import Study, Task
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema
from socft.study.vocabulary.schemas import STABLE_DIFFUSION
from socft.study.workers import processes

WORK = Path("build/reproduce")
REPEATED = (MethodName.PI_FT, MethodName.DPOK)
"""Methods that are trained several times."""
REGRESSING = (MethodName.PI_FT, MethodName.ADJOINT_MATCHING, MethodName.CORRECTED_ADJOINT)
"""Methods that also run without a limit on their target controls."""
PICTURES = "pictures.png"
SEED = 1
"""Of the pictures that are measured; training has its own."""
WINDOW = 4
"""Rounds that are averaged where the end of a run is compared with its best."""
LABELLED, QUANTILES = 48, (0.5, 0.9, 1.0)
"""Paths whose target controls are compared, and what is recorded of their norms."""
_PRETRAINED_SCORES: dict[str, Mapping[str, Tensor]] = {}
"""Of this process' pictures by pre-trained models, by all that they depend on."""
CURVES = (
    Metric.REWARD,
    Metric.KL,
    Metric.GRADIENT_NORM,
    Metric.GRADIENT_NOISE,
    Metric.TARGET_NORM,
    Metric.ACCURACY,
    Metric.DIVERSITY,
    Metric.SECONDS,
)


@dataclasses.dataclass(frozen=True)
class FineTuningMethod:
    """A way to fine-tune.

    Attributes:
        title: its name in records and reports.
        estimator: name in `socft.estimators.catalogue.ANYWHERE`.
        options: of the estimator.
        batch: settings of ``[batch]`` that differ from the configuration's.
        rate: learning rate in place of the configuration's.
    """

    title: str
    estimator: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class ReproductionScale:
    """A size at which everything is run.

    Attributes:
        name: its name.
        config: the configuration that all runs start from; it also names the prompts.
        rounds: rounds of sampling per run, each of as many trajectories as the configuration says,
            but of one prompt.
        methods: what is compared.
        betas: KL weights of PI-FT on the first prompt, besides the configuration's.
        rates: learning rates of DPOK on every prompt, besides the configuration's.
        pictures: pictures per prompt that are measured.
        shown: pictures per prompt that are kept.
        batches: whose gradients are compared where a training fell.
        workers: processes.
        model: folder or name of the model, in place of the configuration's.
        reward: folder of the reward's weights, in place of the configuration's.
    """

    name: str
    config: str
    rounds: int
    methods: tuple[FineTuningMethod, ...]
    betas: tuple[float, ...]
    rates: tuple[float, ...]
    pictures: int
    shown: int
    batches: int
    workers: int
    model: str | None = None
    reward: str | None = None

    @property
    def study(self) -> StudySchema:
        """The study, whose name its records and its report have too."""
        study = STABLE_DIFFUSION
        return study if self.name == "tiny" else study.named(f"{study.name}_{self.name}")

    @functools.cached_property
    def settings(self) -> config.ExperimentConfig:
        """The configuration."""
        s = config.read_config(CONFIGS / self.config)
        model = dataclasses.replace(s.model, path=self.model or s.model.path)
        return dataclasses.replace(
            s, model=model, reward=dataclasses.replace(s.reward, path=self.reward or s.reward.path)
        )

    @property
    def pi_ft(self) -> FineTuningMethod:
        """The method that others are compared with."""
        return next(method for method in self.methods if method.title == MethodName.PI_FT)


def _methods(clip: float, **reuse: int) -> tuple[FineTuningMethod, ...]:
    """PI-FT, MethodName.DPOK, and the others.

    Likelihoods are averaged over the entries of the latent, as in the published code of DPOK and
    DDPO, and a round is used up however far the policy moves away from it; so all methods sample as
    many trajectories.

    Args:
        clip: of averaged likelihood ratios.
        reuse: settings of ``[batch]`` for the two methods that use their trajectories more often
            than the configuration says.
    """
    batch = {**reuse, "ess": 0.0} if reuse else {}
    return (
        FineTuningMethod(MethodName.PI_FT, MethodName.FULL_ADJOINT),
        FineTuningMethod(MethodName.DPOK, MethodName.DPOK_LEAVE_ONE_OUT, {"clip": clip}, batch),
        FineTuningMethod(MethodName.DDPO, MethodName.DDPO, {"clip": clip, "averaged": True}, batch),
        FineTuningMethod(MethodName.DRAFT_1, MethodName.TRUNCATED, {"last": 1}),
        FineTuningMethod(MethodName.ADJOINT_MATCHING, MethodName.ADJOINT_MATCHING),
        FineTuningMethod(
            MethodName.CORRECTED_ADJOINT,
            MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
            {"last": False},
        ),
        FineTuningMethod(
            MethodName.TIME_REVERSED_BSDE,
            MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE,
            {"last": False},
        ),
    )


CLIP = 1e-4
"""Of likelihood ratios averaged over the latent of Stable Diffusion 1.5, as published."""
LATENTS = {"tiny": 4 * 8 * 8, "sd15": 4 * 64 * 64}
"""Entries of a latent; clipped alike, the log-likelihood of a step may change as much."""
SCALES: Mapping[str, ReproductionScale] = {
    each.name: each
    for each in (
        ReproductionScale(
            name="tiny",
            config="tiny.toml",
            rounds=16,
            methods=_methods(CLIP * LATENTS["sd15"] / LATENTS["tiny"]),
            betas=(0.005, 0.02, 0.1, 0.5),
            rates=(5e-4, 4.5e-3),
            pictures=512,
            shown=8,
            batches=10,
            workers=2,
        ),
        ReproductionScale(
            name="sd15",
            config="sd15_pift.toml",
            rounds=1000,
            methods=_methods(CLIP, passes=10, loss_steps=5),
            betas=(0.001, 0.1, 1.0),
            rates=(),
            pictures=50,
            shown=4,
            batches=10,
            workers=1,
        ),
    )
}


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
    return _task(
        _name(MethodName.PRE_TRAINED, prompt, beta=beta),
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
    return _task(_name(method.title, prompt, beta=beta), measure_method, settings, arguments)


def _variant_task(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, variant: Mapping[str, Any]
) -> Task:
    """A run of a method by what is different."""
    beta = scale.settings.problem.beta
    settings = method_config(scale, method, prompt, beta)
    seed = settings.run.seed + variant.get("training", 1) - 1
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, seed=seed))
    return _task(
        _name(method.title, prompt, beta=beta, **variant),
        measure_variant,
        settings,
        {
            "study": scale.study.name,
            "method": method,
            "pictures": scale.pictures,
            "variant": variant,
        },
    )


def _name(title: str, prompt: str, **setting: Any) -> str:
    return ", ".join([title, prompt, *(f"{key} {value}" for key, value in setting.items())])


def _task(
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


def method_config(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, beta: float
) -> config.ExperimentConfig:
    """The settings of a run, without its folder."""
    s = scale.settings
    batch = dataclasses.replace(
        s.batch, prompts=1, trajectories=s.batch.prompts * s.batch.trajectories, **method.batch
    )
    steps = scale.rounds * batch.trajectories * batch.passes // batch.per_step
    return dataclasses.replace(
        s,
        problem=dataclasses.replace(s.problem, prompts=(prompt,), beta=beta),
        estimator=config.EstimatorConfig(method.estimator, dict(method.options)),
        optimiser=dataclasses.replace(s.optimiser, rate=method.rate or s.optimiser.rate),
        batch=batch,
        run=dataclasses.replace(s.run, steps=steps, out=""),
    )


def measure_pretrained(
    study: str, settings: Mapping[str, Any], pictures: int, shown: int
) -> list[Record]:
    """What the pre-trained model draws for one prompt."""
    parsed = config.parse_config(settings)
    reset_peak(find_device(parsed.model.device))
    experiment = build(parsed)
    policy = Uncontrolled(experiment.tasks[0].problem.reference)
    images = _images(experiment, policy, pictures)
    before = score_images(experiment, experiment.tasks[0], images)
    record = _recorder(study, experiment, MethodName.PRE_TRAINED, "")
    _keep(images, shown, parsed)
    return [
        *_results(record, experiment, images, []),
        *_gains(record, experiment, images, before, {"beta": parsed.problem.beta}),
        *_target_norms(record, experiment, _spread(experiment, policy)),
    ]


@dataclasses.dataclass(frozen=True, eq=False)
class _FineTuned:
    """A finished run.

    Attributes:
        experiment: with the last layers.
        images: by the averaged layers.
        spread: of their target controls.
        rows: what every gradient step measured.
    """

    experiment: Experiment
    images: ImageSamples
    spread: list[tuple[dict[str, Any], float]]
    rows: list[dict[str, Any]]


def _fine_tuned(settings: Mapping[str, Any], pictures: int) -> _FineTuned:
    """Fine-tune in the run's folder, from its last checkpoint if there is one."""
    parsed = config.parse_config(settings)
    reset_peak(find_device(parsed.model.device))
    experiment, trainer = fine_tune(parsed, True, Display(parsed.run.steps, silent=True))
    rows = read_metrics(Path(parsed.run.out) / METRICS)
    with trainer.using_averages():
        policy = experiment.tasks[0].policy
        images, spread = _images(experiment, policy, pictures), _spread(experiment, policy)
    return _FineTuned(experiment, images, spread, rows)


def measure_method(
    study: str,
    method: FineTuningMethod,
    settings: Mapping[str, Any],
    pictures: int,
    shown: int,
    compared: FineTuningMethod,
    batches: int,
) -> list[Record]:
    """Fine-tune for one prompt by one method, and measure the result.

    Args:
        compared: the method whose gradients are compared with this one's, over so many ``batches``,
            if the run fell.
    """
    run = _fine_tuned(settings, pictures)
    experiment, beta = run.experiment, run.experiment.settings.problem.beta
    before = _before(experiment, pictures)
    record = _recorder(study, experiment, method.title, experiment.estimator.estimates)
    _keep(run.images, shown, experiment.settings)
    results = list(_results(record, experiment, run.images, run.rows))
    if any(map(has_fallen, results)):
        policy = {"beta": beta, "policy": method.title}
        results += _directions(record, experiment, (compared, method), batches, policy)
    return [
        *results,
        *_gains(record, experiment, run.images, before, {"beta": beta}),
        *_target_norms(record, experiment, run.spread),
        *_curves(record, run.rows, beta),
    ]


def measure_variant(
    study: str,
    method: FineTuningMethod,
    settings: Mapping[str, Any],
    pictures: int,
    variant: Mapping[str, Any],
) -> list[Record]:
    """Fine-tune for one prompt by a variant of a method: its gains, divergence and drop."""
    run = _fine_tuned(settings, pictures)
    experiment, fresh = run.experiment, _rounds(run.rows)
    record = _recorder(study, experiment, method.title, experiment.estimator.estimates)
    setting = {"beta": experiment.settings.problem.beta, **variant}
    return [
        *_gains(record, experiment, run.images, _before(experiment, pictures), setting),
        _mean(record, Metric.KL, run.images.kl, setting),
        *([_drop(record, fresh, setting)] if fresh else []),
    ]


def _recorder(study: str, experiment: Experiment, title: str, kind: str) -> Callable[..., Record]:
    model = experiment.settings.model
    return functools.partial(
        Record,
        study,
        experiment.tasks[0].name,
        estimator=title,
        kind=kind,
        dtype=model.dtype,
        device=find_device(model.device).type,
    )


def _keep(images: ImageSamples, shown: int, settings: config.ExperimentConfig) -> None:
    """Write the first pictures into the run's folder."""
    kept = images.images[:shown]
    save_image_grid(kept, len(kept), Path(settings.run.out) / PICTURES)


def _target_norms(
    record: Callable[..., Record],
    experiment: Experiment,
    spread: Sequence[tuple[Mapping[str, Any], float]],
) -> Iterator[Record]:
    beta = experiment.settings.problem.beta
    for where, value in spread:
        yield record(Metric.TARGET, value, {"beta": beta, **where})


def _before(experiment: Experiment, pictures: int) -> Mapping[str, Tensor]:
    """What pictures of the pre-trained model are worth; every process draws them once for all its
    runs of a prompt.
    """
    s, task = experiment.settings, experiment.tasks[0]
    key = repr((s.model, s.sampler, s.reward, s.monitor.checker, task.name, pictures))
    if key not in _PRETRAINED_SCORES:
        _PRETRAINED_SCORES[key] = score_images(
            experiment, task, _images(experiment, Uncontrolled(task.problem.reference), pictures)
        )
    return _PRETRAINED_SCORES[key]


def _images(experiment: Experiment, policy: Policy, number: int) -> ImageSamples:
    return sample_images(experiment, experiment.tasks[0], policy, number, SEED)


@torch.no_grad()
def _spread(experiment: Experiment, policy: Policy) -> list[tuple[dict[str, Any], float]]:
    """Quantiles of the norms of the target controls of the first and of the last step, for
    estimators that have such.
    """
    task, estimator = experiment.tasks[0], experiment.estimator
    if not isinstance(estimator, CostateEstimator):
        return []
    path = rollout(
        task.problem.reference, policy, evaluation_noise(experiment, task, LABELLED, SEED)
    )
    with task.labelling():
        labels = estimator.label(task.problem, policy, path)
    norms = labels.targets.double().flatten(2).norm(dim=2)
    places = {"first": 0, "last": len(norms) - 1}
    return [
        ({"at": at, "quantile": q}, float(norms[k].quantile(q)))
        for at, k in places.items()
        for q in QUANTILES
    ]


def _results(
    record: Callable[..., Record],
    experiment: Experiment,
    found: ImageSamples,
    rows: Sequence[Mapping[str, Any]],
) -> Iterator[Record]:
    """What the pictures of the finished model are worth, and what the run cost."""
    beta = experiment.settings.problem.beta
    setting = {"beta": beta}
    samples = {
        Metric.KL: found.kl,
        Metric.OBJECTIVE: found.rewards - beta * found.kl,
        **score_images(experiment, experiment.tasks[0], found),
    }
    cost = {
        "seconds": sum(row["seconds"] for row in rows),
        "peak_mb": max((row["peak_mb"] for row in rows), default=None),
    }
    for metric, values in samples.items():
        yield _mean(record, metric, values, setting, **cost)
    spread = diversity(found.images)
    if spread is not None:
        yield record(Metric.DIVERSITY, spread, setting, seeds=len(found.rewards))
    fresh = _rounds(rows)
    if fresh:
        yield _drop(record, fresh, setting)
        yield _growth(record, fresh, setting)


def _rounds(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """What was measured at the sampling of every round, if there are enough rounds to compare the
    end with what was before.
    """
    fresh = [row for row in rows if "diversity" in row]
    return fresh if len(fresh) >= 2 * WINDOW else []


def _gains(
    record: Callable[..., Record],
    experiment: Experiment,
    found: ImageSamples,
    before: Mapping[str, Tensor],
    setting: Mapping[str, Any],
) -> Iterator[Record]:
    """How much more the pictures are worth than those that the pre-trained model draws from the
    same noise.
    """
    for metric, values in score_images(experiment, experiment.tasks[0], found).items():
        yield _mean(record, GAINS[metric], values - before[metric], setting)


def _mean(
    record: Callable[..., Record],
    metric: str,
    values: Tensor,
    setting: Mapping[str, Any],
    **cost: Any,
) -> Record:
    number = len(values)
    return record(
        metric,
        float(values.mean()),
        setting,
        stderr=float(values.std() / number**0.5),
        seeds=number,
        **cost,
    )


def _directions(
    record: Callable[..., Record],
    experiment: Experiment,
    methods: Sequence[FineTuningMethod],
    batches: int,
    setting: Mapping[str, Any],
) -> Iterator[Record]:
    """How far gradients of two methods agree at the policy of this run, each with itself and the
    second with the first.
    """
    estimators = {
        each.title: instantiate("estimator", ANYWHERE, each.estimator, each.options)
        for each in methods
    }
    for title, metric, value, stderr in gradient_agreement.compare_estimators(
        experiment, estimators, batches, SEED
    ):
        yield record(
            metric,
            value,
            setting,
            estimator=title,
            kind=estimators[title].estimates,
            stderr=stderr,
            seeds=batches,
        )


def _drop(
    record: Callable[..., Record], rounds: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]
) -> Record:
    """How far the reward at the end lies below its best, both averaged over `WINDOW` rounds."""
    starts = range(len(rounds) - WINDOW + 1)
    means = [sum(row["reward"] for row in rounds[i : i + WINDOW]) / WINDOW for i in starts]
    errors = [
        sum(row["reward_stderr"] ** 2 for row in rounds[i : i + WINDOW]) ** 0.5 / WINDOW
        for i in starts
    ]
    best = max(starts, key=means.__getitem__)
    return record(
        Metric.DROP,
        means[best] - means[-1],
        setting,
        stderr=(errors[best] ** 2 + errors[-1] ** 2) ** 0.5,
    )


def _growth(
    record: Callable[..., Record], rounds: Sequence[Mapping[str, Any]], setting: Mapping[str, Any]
) -> Record:
    """The largest target control of the last rounds over that of the first."""
    first, last = (
        max(row["target_norm"] for row in part) for part in (rounds[:WINDOW], rounds[-WINDOW:])
    )
    return record(Metric.TARGET_GROWTH, last / first if first > 0 else math.nan, setting)


def _curves(
    record: Callable[..., Record], rows: Sequence[Mapping[str, Any]], beta: float
) -> Iterator[Record]:
    """What every round measured."""
    for row in (row for row in rows if "diversity" in row):
        setting = {"beta": beta, "round": row["round"], "step": row["step"], "paths": row["paths"]}
        for metric in CURVES:
            if row.get(metric) is not None:
                stderr = row["reward_stderr"] if metric == Metric.REWARD else None
                yield record(metric, row[metric], setting, stderr=stderr)


def keep_pictures(runs: Sequence[Task], folder: Path) -> None:
    """Copy the pictures of finished runs to a folder, with a name each (`picture_of`)."""
    for task in runs:
        settings = config.parse_config(task.arguments["settings"])
        method: FineTuningMethod | None = task.arguments.get("method")
        title = MethodName.PRE_TRAINED if method is None else method.title
        name = picture_of(title, settings.problem.prompts[0], settings.problem.beta)
        write_atomically(folder / name, (Path(settings.run.out) / PICTURES).read_bytes())
