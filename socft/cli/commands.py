"""The commands: a dataclass each, whose fields are options and whose docstring is the help."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import tyro

from socft.cli.plugins import CLAIMS, REPORTS, STUDIES


@runtime_checkable
class Command(Protocol):
    """What `socft.cli.COMMANDS` lists."""

    def run(self) -> None:
        """Do it."""


def suggest(command: str) -> None:
    """The last line that a command says: the one to give next."""
    print(f"next: {command}")


@dataclasses.dataclass(frozen=True)
class Toy:
    """Measure a study on problems with exact solutions; an interrupted run continues where it
    was.

    For example:
      socft toy convergence --quick --workers 2
      socft toy my_study.py          # a file of yours that defines STUDY
      socft toy my_package:my_study  # a module that does
      socft toy variance --help      # what that study asks, and how long it takes
    """

    study: Annotated[
        str,
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="STUDY",
            help=f"A file FILE.py, a module PACKAGE:STUDY, or one of: {', '.join(STUDIES.names)}.",
        ),
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
    executor: Annotated[str | None, tyro.conf.arg(metavar="dask|MODULE:FUNCTION")] = None
    """What to run on in place of processes on this machine: dask, a Dask cluster of --workers
    processes; dask:tcp://HOST:8786, one whose scheduler runs there; or a function without arguments
    that makes the executor.
    """

    def run(self) -> None:
        study = STUDIES.find(self.study)
        import torch

        from socft.checks import require_kind
        from socft.files import write_atomically
        from socft.records import encode
        from socft.study.runner import run
        from socft.study.tasks import Study
        from socft.study.workers import processes

        require_kind(study, Study, f"STUDY of {self.study}", "give a socft.study.tasks.Study.")
        torch.set_num_threads(1)
        with (
            processes(self.workers) if self.executor is None else self._executor(self.executor)
        ) as executor:
            records = run(study, self.quick, self.out, executor, self.fresh, self.seeds)
        file = self.out / f"{study.name}.jsonl"
        print(f"{len(records)} records in {file}")
        if self.json is not None:
            write_atomically(self.json, f"[{','.join(map(encode, records))}]\n".encode())
            print(f"the same as one JSON array in {self.json}")
        suggest(self._next(study.name, file))

    def _executor(self, path: str) -> AbstractContextManager[Executor]:
        from socft.checks import require_kind
        from socft.study.cluster import cluster, is_cluster
        from socft.study.import_path import make_object

        if is_cluster(path):
            return cluster(path, self.workers)

        found = make_object("executor", path)
        require_kind(found, Executor, f"what {path} makes", "make a concurrent.futures.Executor.")
        return found

    def _next(self, study: str, file: Path) -> str:
        """Typeset the report that reads the study; where there is none, read the records."""
        try:
            reports = {name: REPORTS.find(name).studies for name in REPORTS.names}
        except ModuleNotFoundError:
            return "pip install 'socft[report]'"
        for report, studies in reports.items():
            if study in [each.name for each in studies]:
                return f"socft report {report} --records {shlex.quote(str(self.out))}"
        return f"python -c 'import pandas; print(pandas.read_json(\"{file}\", lines=True))'"


@dataclasses.dataclass(frozen=True)
class Bench:
    """Measure your own gradient estimator where the exact gradient is known, and rank it among the
    built-in ones.

    For example:
      socft bench mine:Mine --quick   # less than a minute
      socft bench mine.py:Mine        # a few minutes
      socft bench mine:Mine --against "adjoint matching" "full adjoint"
    """

    estimator: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODULE:NAME")]
    """What makes the estimator when called without arguments, such as a class; found from the
    working directory.
    """
    quick: bool = False
    """Measure with a quarter of the paths."""
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
        from toy.suite import EstimatorFailed

        torch.set_num_threads(1)
        with processes(self.workers) as executor:
            row = bench(self.estimator, self.out, self.quick, executor, self.against or None)
        print(*_standing(row), sep="\n")
        name = study_name(self.estimator)
        print(f"wrote {self.out / name}.json, a row of the leaderboard, and {name}.jsonl beside it")
        from socft.report.bench import report

        for file in report(name).write(self.out, self.out):
            print(f"wrote {file}")
        failed = [title for title, each in row["situations"].items() if each.get("failed")]
        if failed:
            raise EstimatorFailed(f"{self.estimator} fails in: {'; '.join(failed)}")
        suggest(f"socft leaderboard --rows {shlex.quote(str(self.out))}")


def _standing(row: dict[str, Any]) -> Iterator[str]:
    """A line per situation."""
    yield f"{row['estimator']} estimates: {row['estimates'] or 'nothing, it failed everywhere'}"
    for title, found in row["situations"].items():
        if "refused" in found:
            yield f"  {title}: {found['refused']}"
            continue
        low, high = found["error_interval"]
        numbers = (
            f"bias {found['bias']:.3g} ± {found['bias_noise']:.1g}, variance"
            f" {found['variance']:.3g}, error at budget {found['error_at_budget']:.3g}"
            f" ({low:.3g} to {high:.3g})"
        )
        if found["rank"] is None:
            yield f"  {title}: {numbers}; no rank: {found['ordered_by']}"
        else:
            first, last = found["rank_interval"]
            yield (
                f"  {title}: {numbers}; rank {found['rank']} ({first} to {last}) of"
                f" {found['of']} by {found['ordered_by']}"
            )


@dataclasses.dataclass(frozen=True)
class WriteLeaderboard:
    """Write the leaderboard of gradient estimators: Markdown, HTML and JSON, from the rows that
    are shipped and one file per other estimator, as socft bench writes it.

    For example:
      socft leaderboard
      socft leaderboard --rows build/bench   # with your own rows
    """

    rows: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of rows besides those of the built-in estimators; the package's toy/rows by
    default, where a pull request adds one.
    """
    out: Path = Path("build/leaderboard")
    """Folder to write to."""

    def run(self) -> None:
        from socft.files import write_atomically
        from toy.leaderboard import leaderboard
        from toy.shipped import ROWS

        found = leaderboard(ROWS if self.rows is None else self.rows)
        texts = {"md": found.markdown(), "html": found.html(), "json": found.json()}
        for kind, text in texts.items():
            file = self.out / f"leaderboard.{kind}"
            write_atomically(file, text.encode())
            print(f"wrote {file}")
        suggest(_opened(self.out / "leaderboard.html"))


def _opened(file: Path) -> str:
    return f"{'open' if sys.platform == 'darwin' else 'xdg-open'} {shlex.quote(str(file))}"


@dataclasses.dataclass(frozen=True)
class Typeset:
    """Typeset reports from records that were measured before.

    For example:
      socft report
      socft report convergence --records my_records --out build/reports
      socft report flow --published   # the records that come with the package
    """

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
    published: bool = False
    """Read the records that come with the package in place of one's own."""
    out: Path = Path("build/reports")
    """Folder of the PDFs; pictures go to its folder figures/."""

    def run(self) -> None:
        from socft.records import published

        reports = [
            REPORTS.find(name) for name in (REPORTS.names if self.report is None else [self.report])
        ]
        written, records = [], published() if self.published else self.records
        for report in [each for each in reports if each.measured(records)] or reports:
            written += report.write(records, self.out)
            print(*(f"wrote {file}" for file in written), sep="\n")
        suggest(_opened(written[-1]))


@dataclasses.dataclass(frozen=True)
class Verify:
    """Check the claims of the theory: each holds, is attained where it says so, and fails without
    its assumption.

    For example:
      socft verify                     # every claim
      socft verify lemma_2_5 theorem_3_1
      socft verify "lemma_*" --minutes 5
      socft verify my_claim.py         # a file of yours; the README shows one of twenty lines
      socft verify my_package:my_claim
    """

    claims: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="[CLAIM ...]",
            help="Files FILE.py, modules PACKAGE:CLAIM, names, beginnings of names or globs like"
            f" 'lemma_*' of: {', '.join(CLAIMS.names)}; by default all that are built in.",
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
        from verify.support.command import Run, foreign_files, select
        from verify.support.command import verify as check

        folder = Path(next(iter(verify.__path__)))
        patterns, foreign = foreign_files(self.claims, folder, CLAIMS.names)
        names = [] if foreign and not patterns else select(patterns, CLAIMS.names)
        file, state = self.out / "verify.jsonl", Path("build/verify")
        run = Run(folder, names, file, state, self.minutes, self.workers, foreign)
        lines = check(run, self.fresh)
        count = "1 claim is" if len(lines) == 1 else f"{len(lines)} claims are"
        print(f"{count} verified; records are in {file}")
        given = map(shlex.quote, self.claims)
        suggest(" ".join(["socft verify", *given, "--minutes 5"]))


@dataclasses.dataclass(frozen=True)
class Conform:
    """Hold a sampler of another project against identities that every correct one satisfies.

    For example:
      socft conform socft.conform.schedulers:ddpm
      socft conform my_sampler.py:sampler
    """

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
        suggest(f"pytest -p socft.conform.plugin --conform {shlex.quote(self.sampler)}")


class DoesNotConform(Exception):
    """A sampler fails an identity."""
