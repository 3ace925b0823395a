"""The commands under ``socft sd``; everything heavy is imported when one of them runs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sized
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sd_experiments import CONFIGS

TINY = CONFIGS / "tiny.toml"

Config = Annotated[Path, tyro.conf.arg(metavar="FILE")]
Out = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
Model = Annotated[str | None, tyro.conf.arg(metavar="DIR|OWNER/NAME")]
Folder = Annotated[str | None, tyro.conf.arg(metavar="DIR")]
Assignments = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE")
]


@dataclasses.dataclass(frozen=True)
class TrainCommand:
    """Fine-tune by a configuration; whatever stops it, --resume continues bit for bit.

    For example:
      socft sd train
      socft sd train --steps 20 --out build/short
      socft sd train --set optimiser.rate=1e-3 --set reward.name=jpeg
    """

    config: Config = TINY
    """The configuration."""
    resume: bool = False
    """Continue from the newest whole checkpoint."""
    out: Out = None
    """Folder of the run, in place of the configuration's."""
    steps: int | None = None
    """Gradient steps, in place of the configuration's."""
    changes: Assignments = ()
    """A setting in place of the file's, its key dotted and its value as in TOML; again for more."""

    def run(self) -> None:
        from sd_experiments.training.trainer import train

        train(self.config, self.resume, self.out, self.steps, self.changes)


@dataclasses.dataclass(frozen=True)
class SampleCommand:
    """Draw pictures with the fine-tuned model, every row a prompt, beside those of the pre-trained
    one from the same noise.

    For example:
      socft sd sample --grid build/samples.png
      socft sd sample --number 4 --seed 7
    """

    config: Config = TINY
    """The configuration of the run."""
    out: Out = None
    """Folder of the run, in place of the configuration's."""
    number: int = 8
    """Pictures per prompt."""
    seed: int = 1
    """Of the noise."""
    step: int | None = None
    """Gradient step of the checkpoint, one of the last run.keep; the newest by default."""
    grid: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None
    """Picture to write; samples.png in the folder of the run by default."""
    ode: bool = False
    """Draw by a flow's own sampler, without noise, which a memoryless training allows."""
    changes: Assignments = ()
    """As for sd train."""

    def run(self) -> None:
        from sd_experiments.training.session import sample_grid

        file = sample_grid(
            self.config,
            self.out,
            self.number,
            self.seed,
            self.grid,
            self.step,
            self.ode,
            self.changes,
        )
        print(
            f"wrote {file}: for every prompt, in the order of the configuration, a row of the"
            " pre-trained and one of this model"
        )


@dataclasses.dataclass(frozen=True)
class EvaluateCommand:
    """Reward, KL, accuracy and diversity of the fine-tuned and of the pre-trained model on the same
    fresh noise.

    For example:
      socft sd evaluate
      socft sd evaluate --number 64
    """

    config: Config = TINY
    """The configuration of the run."""
    out: Out = None
    """Folder of the run, in place of the configuration's."""
    number: int = 32
    """Pictures per prompt."""
    seed: int = 1
    """Of the noise."""
    step: int | None = None
    """Gradient step of the checkpoint, one of the last run.keep; the newest by default."""
    ode: bool = False
    """Draw by a flow's own sampler, without noise, which a memoryless training allows."""
    changes: Assignments = ()
    """As for sd train."""

    def run(self) -> None:
        from sd_experiments.training.session import evaluate

        evaluate(self.config, self.out, self.number, self.seed, self.step, self.ode, self.changes)


@dataclasses.dataclass(frozen=True)
class CheckCommand:
    """Say what a configuration needs that is missing here, and estimate memory and time.

    For example:
      socft sd check
      socft sd check --config sd_experiments/configs/sd15_pift.toml
    """

    config: Config = TINY
    """The configuration."""
    changes: Assignments = ()
    """As for sd train."""

    def run(self) -> None:
        from sd_experiments.check import check

        check(self.config, self.changes)


@dataclasses.dataclass(frozen=True)
class ReproduceCommand:
    """Section 5 of arXiv 2412.18164v4: every method on every prompt, PI-FT at several KL weights,
    measured and typeset; of flows a comparison of methods, each at the best of several rates.

    For example:
      socft sd reproduce --quick
      socft sd reproduce --variants --workers 2
      socft sd reproduce --scale tiny_flow
    """

    scale: Literal["tiny", "tiny_flow", "sd15"] = "tiny"
    """A model that comes with this package, the second of flows, or Stable Diffusion 1.5."""
    quick: bool = False
    """Two rounds of every run, to see that everything works; the numbers mean nothing, the report
    included.
    """
    out: Path = Path("build/records")
    """Folder of the records; pictures go to a folder of the study's name in it."""
    reports: Path = Path("build/reports")
    """Folder of the PDF."""
    workers: int | None = None
    """Number of processes, one thread each; as the scale suggests by default."""
    trainings: int | None = None
    """How often PI-FT and DPOK (3 by default), or of flows all methods (5), are trained for every
    prompt, each time from another seed; their means are compared.
    """
    variants: bool = False
    """Also DPOK at other learning rates, and regressions on target controls without a limit on
    these.
    """
    model: Model = None
    """Folder or name of the model, in place of the scale's."""
    reward: Folder = None
    """Folder of the reward's weights, in place of the scale's."""

    def run(self) -> None:
        from sd_experiments import check as readiness
        from sd_experiments.studies.reproduce.comparison import compare
        from sd_experiments.studies.reproduce.scales import SCALES
        from sd_experiments.studies.reproduce.tasks import TRAININGS, reproduce
        from socft.checks import require
        from socft.report.stable_diffusion.report import report

        scale = dataclasses.replace(SCALES[self.scale], model=self.model, reward=self.reward)
        readiness.print_findings(
            readiness.check_parts(scale.settings)[0],
            f"--scale {self.scale} (see also --model and --reward)",
        )
        if scale.protocol is None:
            trainings = TRAININGS if self.trainings is None else self.trainings
            records = reproduce(scale, self.quick, self.out, self.workers, trainings, self.variants)
        else:
            require(not self.variants, f"--variants is not of --scale {self.scale}; leave it out.")
            records = compare(
                scale, scale.protocol, self.quick, self.out, self.workers, self.trainings
            )
        _print_count(records, self.out, scale.study.name)
        for file in report(scale.study).write(self.out, self.reports):
            print(f"wrote {file}")


@dataclasses.dataclass(frozen=True)
class CostateSizeCommand:
    """What makes costates large (pictures that are undecided, guidance), and how far the gradients
    of paths and methods agree.

    For example:
      socft sd costate-size --quick
    """

    config: Config = TINY
    """The configuration whose prompts, chain and reward are taken."""
    quick: bool = False
    """A few paths, to see that everything works."""
    out: Path = Path("build/records")
    """Folder of the records."""
    workers: int = 2
    """Number of processes, one thread each."""
    changes: Assignments = ()
    """As for sd train."""

    def run(self) -> None:
        from sd_experiments.studies.costate_size import run
        from socft.study.vocabulary.schemas import SD_COSTATE_SIZE

        records = run(self.config, self.quick, self.out, self.workers, self.changes)
        _print_count(records, self.out, SD_COSTATE_SIZE.name)


@dataclasses.dataclass(frozen=True)
class GradientNormCommand:
    """How the gradient of PI-FT shrinks along its training, without its noise.

    For example:
      socft sd gradient-norm --quick
    """

    scale: Literal["tiny", "tiny_flow", "sd15"] = "tiny"
    """As for sd reproduce."""
    model: Model = None
    """As for sd reproduce."""
    reward: Folder = None
    """As for sd reproduce."""
    quick: bool = False
    """A few batches of paths, to see that everything works."""
    out: Path = Path("build/records")
    """Folder of the records."""
    workers: int = 2
    """Number of processes, one thread each."""

    def run(self) -> None:
        from sd_experiments.studies.gradient_norm import run
        from sd_experiments.studies.reproduce.scales import SCALES
        from socft.study.comparison import gradient_norm_study

        scale = dataclasses.replace(SCALES[self.scale], model=self.model, reward=self.reward)
        records = run(scale, self.quick, self.out, self.workers)
        _print_count(records, self.out, gradient_norm_study(scale.study.name))


@dataclasses.dataclass(frozen=True)
class BenchmarkCommand:
    """Time and memory of a gradient step against steps, trajectories and loss steps, for every
    estimator.

    For example:
      socft sd benchmark --quick
      socft sd benchmark --random small
      socft sd benchmark --config sd_experiments/configs/tiny.toml --savings
    """

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The configuration to start from."""
    random: Literal["sd15", "sdxl", "sd35_medium", "small", "small_flow"] | None = None
    """A model with random weights in place of the configuration's."""
    quick: bool = False
    """A few small cells."""
    savings: bool = False
    """Only how much faster kept outputs, merged layers and the like make a gradient step."""
    out: Path = Path("build/records")
    """Folder of the records."""
    changes: Assignments = ()
    """As for sd train."""

    def run(self) -> None:
        from sd_experiments.studies.benchmark import run
        from socft.study.vocabulary.metrics import Metric
        from socft.study.vocabulary.schemas import SD_BENCHMARK

        records = run(
            self.config,
            self.random,
            self.quick,
            self.out,
            changes=self.changes,
            savings_only=self.savings,
        )
        for record in records:
            if record.metric == Metric.SPEEDUP:
                error = "" if record.stderr is None else f" ± {record.stderr:.2f}"
                print(f"{record.setting['saving']}: {record.value:.2f}{error} times as fast")
        _print_count(records, self.out, SD_BENCHMARK.name)


@dataclasses.dataclass(frozen=True)
class GpuCommand:
    """All that is worth knowing on a GPU, in minutes: correctness, and what a gradient step of
    every estimator costs at the sizes of Stable Diffusion 1.5, XL and 3.5 medium.

    For example:
      socft sd gpu
      socft sd gpu --rehearse   # on the CPU, small networks
    """

    rehearse: bool = False
    """On the CPU with small networks and two estimators."""
    minutes: float = 8.0
    """Time that it may take; what it is not enough for is not measured."""
    out: Path = Path("build/records")
    """Folder of the records."""

    def run(self) -> None:
        from sd_experiments.studies.gpu import run
        from socft.study.vocabulary.schemas import SD_GPU

        _print_count(run(self.out, self.rehearse, self.minutes), self.out, SD_GPU.name)


@dataclasses.dataclass(frozen=True)
class Sd:
    """Fine-tune Stable Diffusion with low-rank layers under KL regularisation.

    For example:
      socft sd check
      socft sd train --help
    """

    command: Annotated[
        Annotated[TrainCommand, tyro.conf.subcommand("train")]
        | Annotated[SampleCommand, tyro.conf.subcommand("sample")]
        | Annotated[EvaluateCommand, tyro.conf.subcommand("evaluate")]
        | Annotated[CheckCommand, tyro.conf.subcommand("check")]
        | Annotated[ReproduceCommand, tyro.conf.subcommand("reproduce")]
        | Annotated[CostateSizeCommand, tyro.conf.subcommand("costate-size")]
        | Annotated[GradientNormCommand, tyro.conf.subcommand("gradient-norm")]
        | Annotated[BenchmarkCommand, tyro.conf.subcommand("benchmark")]
        | Annotated[GpuCommand, tyro.conf.subcommand("gpu")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Run the chosen command, and say which one to give next."""
        self.command.run()
        config = getattr(self.command, "config", None)
        given = "" if config in (None, TINY) else f" --config {shlex.quote(str(config))}"
        for each in getattr(self.command, "changes", ()):
            given += f" --set {shlex.quote(each)}"
        then = NEXT[type(self.command)]
        print(f"next: {then}{given if then in FOLLOWING else ''}")


FOLLOWING = TRAIN, EVALUATE, SAMPLE = "socft sd train", "socft sd evaluate", "socft sd sample"
NEXT: Mapping[type, str] = {
    CheckCommand: TRAIN,
    TrainCommand: EVALUATE,
    EvaluateCommand: SAMPLE,
    SampleCommand: "socft sd reproduce --help",
    ReproduceCommand: "socft sd gradient-norm",
    GradientNormCommand: "socft report stable_diffusion",
    CostateSizeCommand: "socft report stable_diffusion",
    BenchmarkCommand: "socft report stable_diffusion",
    GpuCommand: "socft report stable_diffusion",
}
"""What to do after a command; those in `FOLLOWING` with its configuration."""


def _print_count(records: Sized, folder: Path, study: str) -> None:
    print(f"{len(records)} records in {folder / study}.jsonl")
