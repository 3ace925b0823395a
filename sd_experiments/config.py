"""Settings of a fine-tuning run: frozen dataclasses read from a TOML file, where every key must be
known and of the right type.

One table of the file is one dataclass; what is left out has the default given here. ``configs/``
holds a run that takes minutes on two cores and the published settings at full size.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from sd_experiments import CONFIGS
from socft.checks import InvalidProblem, require

DTYPES = ("float32", "bfloat16", "float16", "float64")

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The pre-trained pipeline.

    Attributes:
        path: directory of a saved diffusers pipeline, or name of one downloaded from the Hugging
            Face hub, or "tiny" for the one that comes with this package.
        dtype: dtype of the frozen network; states are float32 (float64 with a float64 network).
        device: where it runs; "auto" is the GPU if there is one.
        micro_batch: samples per network call; all at once by default.
        checkpointing: keep only the inputs of the network's blocks for backward passes.
    """

    path: str = "tiny"
    dtype: str = "float32"
    device: str = "auto"
    micro_batch: int | None = None
    checkpointing: bool = False

    def __post_init__(self) -> None:
        require(
            self.dtype in DTYPES, f"model.dtype = {self.dtype!r}; give one of {', '.join(DTYPES)}."
        )


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """The chain that is fine-tuned, DDIM(eta).

    Attributes:
        steps: sampling steps T.
        eta: noise, in (0, 1]; 1 is memoryless in the limit of many steps.
        guidance: guidance scale of the pre-trained and of the fine-tuned model; 1 is none.
        negative_prompt: what guidance leads away from.
        spacing: "leading" or "trailing" timesteps, or "log_snr" for levels with even steps in the
            logarithm of their signal-to-noise ratio (`sd_experiments.model.sampling`); as the model
            is configured by default.
        last_level: signal level of the sample, below 1; as the model is configured by default.
    """

    steps: int = 50
    eta: float = 1.0
    guidance: float = 1.0
    negative_prompt: str = ""
    spacing: str | None = None
    last_level: float | None = None

    def __post_init__(self) -> None:
        require(self.steps >= 1, f"sampler.steps = {self.steps}; give at least 1.")


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """The reward of an image.

    Attributes:
        name: "tiny", "image_reward", "clip", "jpeg", or ``module:factory`` that is called with the
            options and makes a reward model.
        path: directory of its weights.
        chunk: images decoded and scored at a time.
        black_box: whether to treat it as not differentiable.
        options: passed to the factory.
    """

    name: str = "tiny"
    path: str | None = None
    chunk: int = 4
    black_box: bool = False
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        _positive("reward", self, "chunk")


@dataclasses.dataclass(frozen=True)
class ProblemConfig:
    """What is maximised: reward minus beta times the KL from the pre-trained model.

    Attributes:
        prompts: one control problem each; one set of low-rank layers is trained on all.
        beta: KL weight in units of the reward; a "reward multiplier" m is beta = 1 / m.
    """

    prompts: tuple[str, ...] = ()
    beta: float = 0.01

    def __post_init__(self) -> None:
        require(
            len(self.prompts) >= 1,
            'problem.prompts is empty; give at least one, as in prompts = ["A dog on the moon"].',
        )
        _positive("problem", self, "beta")


@dataclasses.dataclass(frozen=True)
class EstimatorConfig:
    """The gradient estimator.

    Attributes:
        name: see `sd_experiments.training.build.ESTIMATORS`, or ``module:factory`` that is called
            with the options.
        options: passed to the factory.
    """

    name: str = "adjoint_matching"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """The low-rank layers.

    Attributes:
        rank: the rank r.
        alpha: the layers act with weight alpha / r; r by default.
        targets: endings of the names of the adapted layers.
    """

    rank: int = 4
    alpha: float | None = None
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")


@dataclasses.dataclass(frozen=True)
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

    rate: float = 3e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = None
    warmup: int = 0
    decay: float = 0.0

    def __post_init__(self) -> None:
        _positive("optimiser", self, "rate")
        good = len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas)
        require(good, f"optimiser.betas = {list(self.betas)}; give two numbers in [0, 1).")
        require(
            self.clip is None or self.clip > 0,
            f"optimiser.clip = {self.clip}; give a positive norm or leave it out.",
        )
        require(
            self.warmup >= 0, f"optimiser.warmup = {self.warmup}; give 0 or more gradient steps."
        )
        require(
            0 <= self.decay <= 1,
            f"optimiser.decay = {self.decay}; give a part of the run, in [0, 1].",
        )

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of gradient step ``step`` = 0, 1, ... of a run of ``steps``."""
        up = (step + 1) / self.warmup if self.warmup else 1.0
        down = (steps - step) / (self.decay * steps) if self.decay else 1.0
        return self.rate * min(1.0, up, max(down, 0.0))


@dataclasses.dataclass(frozen=True)
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

    trajectories: int = 10
    prompts: int = 1
    paths: int | None = None
    passes: int = 1
    loss_steps: int | None = None
    early_span: float = 0.6
    early_share: float = 0.6
    micro_batch: int | None = None
    ess: float = 0.5
    weighted: bool = False
    mask_quantile: float = 1.0
    mask_memory: float = 0.99
    target_clip: float | None = None

    def __post_init__(self) -> None:
        _positive(
            "batch",
            self,
            "trajectories",
            "prompts",
            "paths",
            "passes",
            "loss_steps",
            "micro_batch",
            "mask_quantile",
            "target_clip",
        )
        for name in ("early_span", "early_share", "ess", "mask_quantile", "mask_memory"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"batch.{name} = {value}; give a number in [0, 1].")
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


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Length of the run and what is kept of it.

    Attributes:
        steps: gradient steps.
        seed: of everything random. Paths are a function of the seed, the round and their number,
            not of the number of processes.
        ema: averaging factor of the layers that are used for sampling; 0 is the last ones.
        out: folder of the run.
        checkpoint_every: gradient steps between checkpoints.
        keep: checkpoints that are kept.
    """

    steps: int = 1000
    seed: int = 0
    ema: float = 0.99
    out: str = "build/sd"
    checkpoint_every: int = 10
    keep: int = 3

    def __post_init__(self) -> None:
        _positive("run", self, "steps", "checkpoint_every", "keep")
        require(0 <= self.ema < 1, f"run.ema = {self.ema}; give a number in [0, 1).")


@dataclasses.dataclass(frozen=True)
class MonitorConfig:
    """What is measured besides the reward.

    Attributes:
        checker: "tiny" or ``module:function`` that maps images and their prompt to one number in
            [0, 1] per image; what the reward should stand for, measured independently of it.
        images_every: rounds between pictures in TensorBoard.
        window: rounds that are averaged for the warning about reward hacking.
    """

    checker: str | None = None
    images_every: int = 10
    window: int = 8

    def __post_init__(self) -> None:
        _positive("monitor", self, "images_every", "window")


@dataclasses.dataclass(frozen=True)
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
        return _plain(dataclasses.asdict(self))


def read_config(file: Path) -> ExperimentConfig:
    """The settings of a TOML file.

    Raises:
        InvalidProblem: no such file, a syntax error, an unknown key, a value of another type or out
            of range.
    """
    require(
        file.is_file(),
        f"there is no configuration {str(file)!r}; start from one in {str(CONFIGS)!r}.",
    )
    try:
        content = tomllib.loads(file.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidProblem(f"{file} is not a TOML file ({error}); correct it there.") from error
    try:
        return parse_config(content)
    except InvalidProblem as error:
        raise InvalidProblem(f"{file}: {error}") from error


def parse_config(content: Mapping[str, Any]) -> ExperimentConfig:
    """Settings from nested mappings."""
    return _dataclass(ExperimentConfig, {"problem": {}, **content}, "")


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


def _dataclass(kind: type[_T], values: Mapping[str, Any], where: str) -> _T:
    types_of = get_type_hints(kind)
    for name in values:
        if name not in types_of:
            nearest = difflib.get_close_matches(name, types_of, 1, 0.0)[0]
            raise InvalidProblem(
                f"unknown key {where + name!r}; the nearest known one is {where + nearest!r}.",
            )
    return kind(
        **{name: _value(types_of[name], value, where + name) for name, value in values.items()}
    )


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        require(
            isinstance(value, Mapping),
            f"{where} = {value!r}; it is a table: write [{where}] and its keys below.",
        )
        return _dataclass(kind, value, f"{where}.")  # type: ignore[arg-type]
    accepted = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for each in accepted:
        if each is float and _is_number(value):
            return _finite(float(value), where)
        if get_origin(each) is tuple and isinstance(value, list | tuple):
            return tuple(
                _value(get_args(each)[0], item, f"{where}[{i}]") for i, item in enumerate(value)
            )
        if get_origin(each) is Mapping and isinstance(value, Mapping):
            return dict(value)
        if (
            isinstance(each, type)
            and isinstance(value, each)
            and not (each is int and isinstance(value, bool))
        ):
            return value
    raise InvalidProblem(
        f"{where} = {value!r} is a {type(value).__name__}; give a"
        f" {' or a '.join(map(_name, accepted))}."
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _finite(value: float, where: str) -> float:
    require(math.isfinite(value), f"{where} = {value}; give a finite number.")
    return value


def _name(kind: Any) -> str:
    names = {
        float: "number",
        int: "whole number",
        str: "string",
        bool: "boolean",
        type(None): "value or leave it out",
    }
    if get_origin(kind) is tuple:
        return f"list of {_name(get_args(kind)[0])}s"
    return names.get(kind, "table")


def _positive(table: str, owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        require(value is None or value > 0, f"{table}.{name} = {value}; it must be positive.")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
