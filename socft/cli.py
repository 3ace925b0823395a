"""The command line: ``socft toy STUDY`` measures, ``socft bench`` compares, ``socft verify``
checks, ``socft report`` typesets.

A study is a module ``toy.studies.<name>`` that defines ``STUDY``, a claim a module
``verify.<name>`` that defines ``CLAIM``, a report a module ``socft.report.<name>.report`` that
defines ``REPORT``; they are found by name. A command is a dataclass with a ``run`` method, listed
in `COMMANDS`. Heavy imports belong in ``run``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import io
import operator
import os
import pkgutil
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import tyro

from sd_experiments.commands import Sd

FAILED, INVALID, INTERRUPTED, TERMINATED = 1, 2, 130, 143
STATUS = {
    0: "all is done",
    FAILED: "tasks failed, or claims are not verified",
    INVALID: "an argument, or a file that is missing, damaged or cannot be written",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}
"""What the exit status of every command means."""
EXTRAS = {
    "report": ("matplotlib", "typst"),
    "sd": ("accelerate", "diffusers", "peft", "safetensors", "tensorboard", "transformers"),
}


@dataclasses.dataclass(frozen=True)
class Plugins:
    """What the modules of a package define: every module is one, or every folder with a module of a
    given name.
    """

    package: str
    what: str
    attribute: str
    module: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the modules, or of the packages that contain the module named `module`."""
        folders = [Path(each) for each in importlib.import_module(self.package).__path__]
        found = {each.name: each.ispkg for each in pkgutil.iter_modules(map(str, folders))}
        if self.module:
            return sorted(
                n for n in found if any((f / n / f"{self.module}.py").is_file() for f in folders)
            )
        return sorted(
            name for name, is_package in found.items() if not is_package and name != "conftest"
        )

    def find(self, name: str) -> Any:
        """The object of the module ``name``.

        Raises:
            InvalidProblem: there is no such module.
        """
        from socft.checks import require_known

        module = name.replace("-", "_")
        require_known(module, self.names, self.what)
        path = ".".join(filter(None, [self.package, module, self.module]))
        return getattr(importlib.import_module(path), self.attribute)


STUDIES = Plugins("toy.studies", "study", "STUDY")
REPORTS = Plugins("socft.report", "report", "REPORT", module="report")
CLAIMS = Plugins("verify", "claim", "CLAIM")


@runtime_checkable
class Command(Protocol):
    """What `COMMANDS` lists."""

    def run(self) -> None:
        """Do it."""


@dataclasses.dataclass(frozen=True)
class Toy:
    """Measure a study on problems with exact solutions; an interrupted run continues where it
    was.
    """

    study: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="STUDY", help=f"One of: {', '.join(STUDIES.names)}."),
    ]
    quick: bool = False
    """Measure at the quick scale, in minutes."""
    out: Path = Path("build/records")
    """Folder of the records, written to STUDY.jsonl."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the records as one JSON array to this file."""
    fresh: bool = False
    """Forget what an interrupted run has measured."""
    seeds: int | None = None
    """Number of repetitions of everything that is random; the study's own by default."""
    workers: int = 1
    """Number of processes, one thread each."""
    executor: Annotated[str | None, tyro.conf.arg(metavar="MODULE:FUNCTION")] = None
    """A function without arguments that makes the executor to run on, in place of processes on this
    machine.
    """

    def run(self) -> None:
        study = STUDIES.find(self.study)
        import torch

        from socft.files import write_atomically
        from socft.records import encode
        from socft.study.runner import run
        from socft.study.workers import processes

        torch.set_num_threads(1)
        with (
            processes(self.workers) if self.executor is None else self._executor(self.executor)
        ) as executor:
            records = run(study, self.quick, self.out, executor, self.fresh, self.seeds)
        print(f"{len(records)} records in {self.out / study.name}.jsonl")
        if self.json is not None:
            write_atomically(self.json, f"[{','.join(map(encode, records))}]\n".encode())
            print(f"the same as one JSON array in {self.json}")

    def _executor(self, path: str) -> Executor:
        from socft.checks import require_kind
        from socft.study.import_path import make_object

        found = make_object("executor", path)
        require_kind(found, Executor, f"what {path} makes", "make a concurrent.futures.Executor.")
        return found


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure your own gradient estimator against all built-in ones, where the exact gradient is
    known.
    """

    estimator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    """What makes the estimator when called without arguments, such as a class; found from the
    working directory.
    """
    quick: bool = False
    """Measure with a tenth of the paths."""
    out: Path = Path("build/bench")
    """Folder of the records, the JSON row and the PDF."""
    against: tuple[str, ...] = ()
    """Names of built-in estimators; all of them by default."""
    workers: int = 1
    """Number of processes, one thread each."""

    def run(self) -> None:
        import torch

        from socft.study.workers import processes
        from toy.bench import bench, study_name

        torch.set_num_threads(1)
        with processes(self.workers) as executor:
            row = bench(self.estimator, self.out, self.quick, executor, self.against or None)
        print(*_standing(row), sep="\n")
        from socft.report.bench import report

        for file in report(study_name(self.estimator)).write(self.out, self.out):
            print(f"wrote {file}")


def _standing(row: dict[str, Any]) -> Iterator[str]:
    """A line per situation."""
    yield f"{row['estimator']} estimates: {row['estimates'] or 'nothing, it failed everywhere'}"
    for title, found in row["situations"].items():
        if "refused" in found:
            yield f"  {title}: {found['refused']}"
        else:
            numbers = ", ".join(
                f"{name.replace('_', ' ')} {found[name]:.3g}"
                for name in ("bias", "variance", "error_at_budget")
            )
            yield f"  {title}: {numbers}; rank {found['rank']} of {found['of']}"


@dataclasses.dataclass(frozen=True)
class Typeset:
    """Typeset reports from records that were measured before."""

    report: Annotated[
        str | None,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[REPORT]",
            help=f"One of: {', '.join(REPORTS.names)}; by default all that were measured.",
        ),
    ] = None
    records: Path = Path("build/records")
    """Folder of the records."""
    out: Path = Path("build/reports")
    """Folder of the PDFs; pictures go to its folder figures/."""

    def run(self) -> None:
        reports = [
            REPORTS.find(name) for name in (REPORTS.names if self.report is None else [self.report])
        ]
        for report in [each for each in reports if each.measured(self.records)] or reports:
            for file in report.write(self.records, self.out):
                print(f"wrote {file}")


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check the claims of the theory: each holds, is attained where it says so, and fails without
    its assumption.
    """

    claims: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[CLAIM ...]",
            help="Names, beginnings of names or globs like 'lemma_*' of: "
            f"{', '.join(CLAIMS.names)}; by default all.",
        ),
    ] = ()
    out: Path = Path("build/records")
    """Folder of the records; verify.jsonl there is updated, the lines of claims that did not run
    stay.
    """
    minutes: float = 0.0
    """Minutes to search for worse instances; an interrupted search continues where it was."""
    fresh: bool = False
    """Forget what earlier searches found."""
    workers: int = 1
    """Number of processes, one thread each."""

    def run(self) -> None:
        import verify
        from verify.support.command import Run, select
        from verify.support.command import verify as check

        names = select(self.claims, CLAIMS.names)
        file, state = self.out / "verify.jsonl", Path("build/verify")
        folder = Path(next(iter(verify.__path__)))
        run = Run(folder, names, file, state, self.minutes, self.workers)
        lines = check(run, self.fresh)
        print(f"{len(lines)} claims are verified; their records are in {file}")


@dataclasses.dataclass(frozen=True)
class Conform:
    """Hold a sampler of another project against identities that every correct one satisfies."""

    sampler: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    """A `socft.conform.Sampler`, or what makes one when called without arguments; found from the
    working directory.
    """

    def run(self) -> None:
        from socft.conform import conform
        from socft.conform.find import find_sampler

        verdicts = conform(find_sampler(self.sampler))
        print(*verdicts, sep="\n")
        failed = [each.identity for each in verdicts if each.passed is False]
        if failed:
            raise DoesNotConform(
                f"{len(failed)} of {sum(v.passed is not None for v in verdicts)} identities fail:"
                f" {', '.join(failed)}"
            )


class DoesNotConform(Exception):
    """A sampler fails an identity."""


COMMANDS: dict[str, type[Command]] = {
    "toy": Toy,
    "bench": Bench,
    "conform": Conform,
    "verify": Verify,
    "report": Typeset,
    "sd": Sd,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is one of `STATUS`."""
    os.environ["MPLBACKEND"] = "agg"  # pictures are written; that of a notebook may not be there
    with _speaking(), _stopping() as stopped:
        try:
            try:
                _parse(arguments).run()
            finally:
                sys.stdout.flush()
        except KeyboardInterrupt as error:
            said = str(error) or "interrupted; run the same command again to continue"
            return _say(said, *stopped or [INTERRUPTED])
        except Exception as error:
            explained = _explain(error)
            if explained is None:
                raise
            return _say(*explained)
    return 0


@contextlib.contextmanager
def _speaking() -> Iterator[None]:
    """What is said is written whatever the locale, where it has no letter as an escape; output that
    nobody takes is not tried again when the process ends.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """SIGTERM stops a command as Ctrl-C does; yields its exit status once it came."""
    stopped: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def stop(*_: object) -> None:
        stopped.append(TERMINATED)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _parse(arguments: Sequence[str] | None) -> Command:
    """Only the command that is asked for is looked into; of the others the help shows a line."""
    first = next(iter(sys.argv[1:] if arguments is None else arguments), "")
    named: list[Any] = [
        Annotated[each if name == first else _summary(each), tyro.conf.subcommand(name)]
        for name, each in COMMANDS.items()
    ]
    return tyro.cli(
        functools.reduce(operator.or_, named),
        prog="socft",
        description=(
            "Fine-tuning diffusion models by stochastic optimal control: measure, and typeset what"
            f" was measured. Exit status: {'; '.join(f'{k} {v}' for k, v in STATUS.items())}."
        ),
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _summary(command: type[Command]) -> type:
    """A command of the same name and description without arguments."""
    return dataclasses.make_dataclass(
        command.__name__, [], namespace={"__doc__": command.__doc__}, frozen=True
    )


def _explain(error: Exception) -> tuple[str, int] | None:
    """One sentence and the exit code for an error of the user's, None for one that needs its
    traceback.
    """
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = next((extra for extra, packages in EXTRAS.items() if package in packages), None)
        return (
            None
            if extra is None
            else (f"this command needs {package}; run: pip install -e '.[{extra}]'", INVALID)
        )
    if isinstance(error, OSError):
        said = error.strerror or str(error)
        return (f"{said}: {error.filename}" if error.filename else said), INVALID
    from socft.checks import InvalidProblem
    from socft.study.runner import StudyFailed
    from verify.support.command import ClaimsFailed

    failures = StudyFailed, ClaimsFailed, DoesNotConform
    if isinstance(error, InvalidProblem):
        return str(error), INVALID
    return (str(error), FAILED) if isinstance(error, failures) else None


def _say(message: str, code: int) -> int:
    with contextlib.suppress(OSError):  # nobody listens, and the status says it
        print(f"socft: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
