"""Settings of a fine-tuning run: frozen dataclasses read from a TOML file, where every key must be
known and of the right type.

One table of the file is one dataclass; what is left out has the default given here. ``configs/``
holds a run that takes minutes on two cores and the published settings at full size.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from sd_experiments import CONFIGS
from sd_experiments.config_types import (
    Count,
    Factor,
    Flag,
    Name,
    Number,
    Part,
    Positive,
    Prompts,
    Seed,
    Text,
    Whole,
    table,
)
from socft.checks import MOST, InvalidProblem, require
from socft.files import one_line, read_text


@table
class ModelConfig:
    """The pre-trained pipeline.

    Attributes:
        path: directory of a saved diffusers pipeline, or name of one downloaded from the Hugging
            Face hub, or "tiny" or "tiny_flow" for those that come with this package.
        dtype: dtype of the frozen network; states are float32 (float64 with a float64 network).
        device: where it runs; "auto" is the GPU if there is one.
        micro_batch: samples per network call; all at once by default.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
        max_sequence_length: rows of T5's states, which Stable Diffusion 3 and FLUX read; as their
            pipelines by default (256 and 512), and 0 where there is no T5.
        keep_frozen: keep the frozen network's outputs at the states of a round, which a gradient
            step then does not evaluate again; as much memory and disk as the states.
        merge_layers: draw with the low-rank layers merged into the weights, unless these are in
            half precision; the weights of the layers' targets are then there twice.
        channels_last: keep the weights of convolutions channel by channel, as some processors
            prefer.
    """

    path: Name = "tiny"
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    device: Name = "auto"
    micro_batch: Count | None = None
    checkpointing: Flag = False
    max_sequence_length: Annotated[Whole, Field(ge=0, le=MOST)] | None = None
    keep_frozen: Flag = True
    merge_layers: Flag = True
    channels_last: Flag = False


@table
class SamplerConfig:
    """The chain that is fine-tuned, DDIM(eta) or for a flow another kernel of `socft.flow`.

    Attributes:
        steps: sampling steps T.
        kernel: "ddim", or for a flow "precise", "flow_sde" or "memoryless".
        eta: noise; of DDIM in (0, 1], where 1 is memoryless in the limit of many steps and for a
            flow exactly; of Precise and Flow-SDE their noise level, memoryless at the square root
            of 2.
        guidance: guidance scale of the pre-trained and of the fine-tuned model; 1 is none.
        negative_prompt: what guidance leads away from.
        spacing: "leading" or "trailing" timesteps, or "log_snr" for levels with even steps in the
            logarithm of their signal-to-noise ratio (`sd_experiments.model.schedule`); as the model
            is configured by default.
        last_level: signal level of the sample, below 1; as the model is configured by default. Of a
            flow it is 1 - s at noise s, and must be given.
        distilled_guidance: guidance scale that FLUX is told, if it was distilled from guided ones;
            as its pipeline by default (3.5).
        size: height and width of a picture in pixels; the model's own by default.
    """

    steps: Count = 50
    kernel: Literal["ddim", "precise", "flow_sde", "memoryless"] = "ddim"
    eta: Number = 1.0
    guidance: Number = 1.0
    negative_prompt: Text = ""
    spacing: Literal["leading", "trailing", "log_snr"] | None = None
    last_level: Number | None = None
    distilled_guidance: Number | None = None
    size: tuple[Count, Count] | None = None


@table
class RewardConfig:
    """The reward of an image.

    Attributes:
        name: "tiny", "image_reward", "clip", "pick_score", "hps", "aesthetic", "jpeg", "sum" of
            the ``terms`` in the options, each a `RewardTerm`, or ``module:factory`` that is called
            with the options and makes a reward model.
        path: directory of its weights.
        chunk: images decoded and scored at a time.
        black_box: whether to treat it as not differentiable.
        options: passed to the factory.
    """

    name: Name = "tiny"
    path: Name | None = None
    chunk: Count = 4
    black_box: Flag = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@table
class RewardTerm:
    """A reward in a sum, and what judges a trained model besides the reward.

    Attributes:
        name: as of a reward.
        path: directory of its weights.
        weight: its factor in the sum.
        black_box: whether to treat it as not differentiable.
        options: passed to the factory.
    """

    name: Name
    path: Name | None = None
    weight: Number = 1.0
    black_box: Flag = False
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@table
class ProblemConfig:
    """What is maximised: reward minus beta times the KL from the pre-trained model.

    Attributes:
        prompts: one control problem each; one set of low-rank layers is trained on all. Also the
            name of a file that holds them (`sd_experiments.prompt_files`).
        beta: KL weight in units of the reward; a "reward multiplier" m is beta = 1 / m.
    """

    prompts: Prompts
    beta: Positive = 0.01


@table
class EstimatorConfig:
    """The gradient estimator.

    Attributes:
        name: see `socft.estimators.catalogue.ANYWHERE`, or ``module:factory`` that is called
            with the options.
        options: passed to the factory.
    """

    name: Name = "adjoint matching"
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@table
class LoRAConfig:
    """The low-rank layers.

    Attributes:
        rank: the rank r.
        alpha: the layers act with weight alpha / r; r by default.
        targets: endings of the names of the adapted layers.
    """

    rank: Count = 4
    alpha: Number | None = None
    targets: tuple[Name, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@table
class OptimiserConfig:
    """AdamW.

    Attributes:
        rate: learning rate.
        betas: averaging factors of gradient and squared gradient.
        weight_decay: its decoupled weight decay.
        clip: a gradient of a larger norm is scaled down to this one; no limit by default. The
            reported norm is that before, and "clipped" says how often it happened. AdamW divides by
            the gradient's own scale, so a limit matters for outliers only.
        warmup: gradient steps over which the rate grows linearly to its value.
        decay: last part of the run, in [0, 1], over which the rate falls linearly to zero.
    """

    rate: Positive = 3e-4
    betas: tuple[Factor, Factor] = (0.9, 0.999)
    weight_decay: Number = 0.0
    clip: Positive | None = None
    warmup: Annotated[Whole, Field(ge=0, le=MOST)] = 0
    decay: Part = 0.0

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of gradient step ``step`` = 0, 1, ... of a run of ``steps``."""
        up = (step + 1) / self.warmup if self.warmup else 1.0
        down = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return self.rate * min(1.0, up, max(down, 0.0))


@table
class BatchConfig:
    """Which paths and which of their steps a gradient is made of.

    A round samples ``trajectories`` paths for each of the next ``prompts`` prompts and labels them.
    Gradient steps then take ``paths`` paths at a time, in random order, until every path was taken
    ``passes`` times; then comes the next round.

    Attributes:
        trajectories: paths per prompt and round.
        prompts: prompts per round, in turn.
        paths: paths per gradient step; those of a whole round by default.
        passes: times every path is used.
        loss_steps: steps of a path that enter a gradient; all by default. Steps are weighted by one
            over the probability that they are drawn, so the gradient has the same mean whatever is
            chosen here.
        early_span: first part of the steps that is drawn from separately, in [0, 1].
        early_share: part of the drawn steps that is drawn from there.
        micro_batch: paths per backward pass; gradients are accumulated over the rest. All at once
            by default. At least two backward passes per gradient step are needed to know the
            gradient's noise.
        ess: a new round starts early when, before a further pass, the importance weights of a
            prompt's paths under the current policy have an effective sample size below this part of
            their number; 0 is never, and saves computing them.
        weighted: whether paths of earlier policies get these weights. Ratio-clipping estimators
            weight by themselves.
        mask_quantile: pairs (step, path) whose loss lies above this quantile of the losses,
            averaged over gradient steps, are left out, as in the published code of adjoint matching
            (0.9); 1 is off. It biases the gradient: what is heavy-tailed about the targets is lost
            with the outliers.
        mask_memory: averaging factor of that quantile.
        target_clip: target controls whose norm times beta is larger are scaled down to it; no limit
            by default. That product is the reward that a unit of noise gains to first order, so
            where it exceeds what rewards differ by, the first order says nothing about a unit of
            noise. The limit biases the gradient, but what is limited keeps its direction.
    """

    trajectories: Count = 10
    prompts: Count = 1
    paths: Count | None = None
    passes: Count = 1
    loss_steps: Count | None = None
    early_span: Part = 0.6
    early_share: Part = 0.6
    micro_batch: Count | None = None
    ess: Part = 0.5
    weighted: Flag = False
    mask_quantile: Annotated[Number, Field(gt=0, le=1)] = 1.0
    mask_memory: Part = 0.99
    target_clip: Positive | None = None

    def __post_init__(self) -> None:
        total = self.trajectories * self.prompts * self.passes
        require(
            total % self.per_step == 0,
            f"batch.paths = {self.per_step} does not divide the {total} uses of a round"
            " (trajectories x prompts x passes); choose it so that it does.",
        )

    @property
    def per_step(self) -> int:
        """Paths per gradient step."""
        return self.paths or self.trajectories * self.prompts

    @property
    def needs_importance_weights(self) -> bool:
        """Whether importance weights are needed, which take an evaluation of the network per step
        and path.
        """
        return self.weighted or self.ess > 0


@table
class RunConfig:
    """Length of the run and what is kept of it.

    Attributes:
        steps: gradient steps.
        seed: of everything random. Paths are a function of the seed, the round and their number,
            not of the number of processes; the global generators of Python, numpy and torch, which
            rewards and checkers may draw from, are seeded for every round and gradient step.
        ema: averaging factor of the layers that are used for sampling; 0 is the last ones.
        out: folder of the run.
        checkpoint_every: gradient steps between checkpoints.
        keep: checkpoints that are kept.
    """

    steps: Count = 1000
    seed: Seed = 0
    ema: Factor = 0.99
    out: Name = "build/sd"
    checkpoint_every: Count = 10
    keep: Count = 3


@table
class MonitorConfig:
    """What is measured besides the reward.

    Attributes:
        checker: "tiny" or ``module:function`` that maps images and their prompt to one number in
            [0, 1] per image; what the reward should stand for, measured independently of it.
        images_every: rounds between the pictures that are reported.
        window: rounds that are averaged for the warning about reward hacking.
        report_to: "tensorboard", "wandb" and "mlflow", as many as are wanted; Weights & Biases
            without network unless WANDB_MODE says otherwise.
        judges: rewards that were not trained for, by which ``sd evaluate`` measures both models.
        features: directory of a CLIP, in whose space ``sd evaluate`` measures diversity.
    """

    checker: Name | None = None
    images_every: Count = 10
    window: Count = 8
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ("tensorboard",)
    judges: tuple[RewardTerm, ...] = ()
    features: Name | None = None


@table
class ExperimentConfig:
    """A run."""

    problem: ProblemConfig
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    sampler: SamplerConfig = dataclasses.field(default_factory=SamplerConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    estimator: EstimatorConfig = dataclasses.field(default_factory=EstimatorConfig)
    lora: LoRAConfig = dataclasses.field(default_factory=LoRAConfig)
    optimiser: OptimiserConfig = dataclasses.field(default_factory=OptimiserConfig)
    batch: BatchConfig = dataclasses.field(default_factory=BatchConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    monitor: MonitorConfig = dataclasses.field(default_factory=MonitorConfig)

    def __post_init__(self) -> None:
        wanted, steps = self.batch.loss_steps, self.sampler.steps
        require(
            wanted is None or wanted <= steps,
            f"batch.loss_steps = {wanted}; the sampler has {steps} steps.",
        )

    def plain(self) -> dict[str, Any]:
        """As nested mappings of plain values, for JSON."""
        return TypeAdapter(ExperimentConfig).dump_python(self, mode="json")


@dataclasses.dataclass(frozen=True)
class Change:
    """A setting in place of a file's.

    Attributes:
        key: names of the table, the setting and, in options, of what is inside.
        value: as TOML would give it; None is the default.
    """

    key: tuple[str, ...]
    value: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.key)} = {self.value!r}"


def read_config(file: Path, changes: Sequence[Change] = ()) -> ExperimentConfig:
    """The settings of a TOML file.

    Args:
        changes: settings in place of the file's; of two of one key, the last.

    Raises:
        InvalidProblem: no such file, a syntax error, an unknown key, a value of another type or out
            of range; what says the file's name is wrong without the changes too.
    """
    remedy = f"start from a configuration in {str(CONFIGS)!r}"
    require(file.exists(), f"there is no configuration {str(file)!r}; {remedy}.")
    text = read_text(file, f"correct it there, or {remedy}")
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else one_line(str(error))
        raise InvalidProblem(f"{file} is not a TOML file ({said}); correct it there.") from error
    try:
        return parse_config(_changed(content, changes))
    except InvalidProblem as error:
        where = f"{file}: " if not changes or _refused(content) == str(error) else ""
        raise InvalidProblem(f"{where}{error}") from error


def parse_config(content: Mapping[str, Any]) -> ExperimentConfig:
    """Settings from nested mappings."""
    return ExperimentConfig(**{"problem": {}, **content})


def with_changes(settings: ExperimentConfig, changes: Sequence[Change]) -> ExperimentConfig:
    """Settings with others in the place of some.

    Raises:
        InvalidProblem: one is of another type or out of range.
    """
    return parse_config(_changed(settings.plain(), changes))


def _refused(content: Mapping[str, Any]) -> str | None:
    """In which words settings are refused; None where they are not."""
    try:
        parse_config(content)
    except InvalidProblem as error:
        return str(error)
    return None


def _changed(content: Mapping[str, Any], changes: Sequence[Change]) -> Mapping[str, Any]:
    for change in changes:
        content = _placed(content, change.key, change.value)
    return content


def _placed(content: Mapping[str, Any], key: tuple[str, ...], value: Any) -> Mapping[str, Any]:
    """Nested mappings with one value replaced; what is no table stays, for the parser to refuse."""
    first, *rest = key
    inner = content.get(first, {})
    if rest and not isinstance(inner, Mapping):
        return content
    return {**content, first: _placed(inner, tuple(rest), value) if rest else value}


def config_changes(
    old: Mapping[str, Any], new: Mapping[str, Any], where: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Dotted names of the settings that differ, with both values."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found |= config_changes(a, b, f"{where}{name}.")
        elif a != b:
            found[where + name] = (a, b)
    return found
