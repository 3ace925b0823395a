"""Collects what the claims of this folder recorded, from one process or many, and runs the searches
for as long as asked.

Options of ``pytest verify/``:

    --records FILE   write one line per claim whose whole file ran; other claims' lines stay
                     as they are
    --minutes M      repeat the searches with new seeds until M minutes are spent, and continue
                     there when run again
    --state DIR      where a search keeps what it has found so far (build/verify)
    --events FILE    append a line whenever a claim has news
    --parent FD      end with the process that holds the other end of this pipe

Property-based tests are deterministic: the same code tries the same instances.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
import signal
import threading
import time
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck, Phase

import socft
from socft.checks import InvalidProblem
from socft.files import encoded, read_bytes, seal, unseal, write_atomically
from verify.support import topics
from verify.support.claims import Claim
from verify.support.recording.records import record_of, summary, update_records
from verify.support.recording.tally import Tally

collect_ignore = ["support"]

EXAMPLES = 20
"""Examples of a property-based test whose instances take about 0.5 s to solve; cheaper tests ask
for more, and ``--minutes`` tries further ones for as long as asked.
"""

hypothesis.settings.register_profile(
    "verify",
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.target, Phase.shrink),
    suppress_health_check=(
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.large_base_example,
    ),
)
_TALLY = "tally of the claim"
_FOLDER = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("verify", "claims")
    group.addoption("--records", type=Path, help="file of records to update, one line per claim")
    group.addoption(
        "--minutes",
        type=float,
        default=0.0,
        help="minutes to spend on searching for worse instances",
    )
    group.addoption(
        "--state",
        type=Path,
        default=Path("build/verify"),
        help="folder in which a search keeps what it has found",
    )
    group.addoption("--events", type=Path, help="file to which news of the claims are appended")
    group.addoption(
        "--parent", type=int, help="end of a pipe; when the other end is closed, the run ends"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    hypothesis.settings.load_profile("verify")
    _try_no_constants()
    config.pluginmanager.register(_Session(config), "verify-session")
    pipe = config.getoption("--parent")
    if pipe is not None and not hasattr(config, "workerinput"):
        threading.Thread(target=_end_with_parent, args=(pipe,), daemon=True).start()


def _end_with_parent(pipe: int) -> None:
    """Wait until the other end of a pipe is closed, and end with all processes of the session."""
    os.read(pipe, 1)
    os.killpg(0, signal.SIGKILL)


def _try_no_constants() -> None:
    """Hypothesis also tries the constants in the sources of whatever is loaded, which depend on
    what else runs; here it tries none. It has no setting for that.
    """
    from hypothesis.internal.conjecture import providers
    from hypothesis.internal.constants_ast import Constants

    if not hasattr(providers, "_get_local_constants"):
        raise pytest.UsageError(
            f"hypothesis {hypothesis.__version__} collects constants in another way; install the"
            " version in constraints.txt."
        )
    providers._get_local_constants = Constants


def claim_of(item: pytest.Item) -> Claim | None:
    """The claim that a test checks."""
    found = getattr(getattr(item, "module", None), "CLAIM", None)
    return found if isinstance(found, Claim) else None


class _Session:
    """One run: merges tallies in the process that reports, and runs searches in the processes that
    test.
    """

    def __init__(self, config: pytest.Config):
        self.config = config
        self.worker = hasattr(config, "workerinput")
        self.searches = 0
        self.collected: dict[str, set[str]] = {}
        self.ledger = _Ledger()

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        claim = claim_of(item)
        if claim is not None:
            self.collected.setdefault(claim.name, set()).add(item.name)
            if claim.name != item.path.stem and not self.worker:
                said = f"its claim is named {claim.name!r}; name it {item.path.stem!r}, as its file"
                _say(self.config, self.ledger.fail(item.path.stem, said) | {"pending": []})

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        ours = [item for item in session.items if claim_of(item)]
        self.searches = sum(_is_search(item) for item in ours)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        if not self.worker:
            path, _, test = nodeid.partition("::")
            _say(self.config, {"claim": Path(path).stem, "running": test})

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, object, object]:
        claim = claim_of(item)
        if claim is None:
            return (yield)
        claim.take()
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            claim.tally.seconds = claim.tally.seconds or time.perf_counter() - start

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> Generator[None, object, object]:
        claim, minutes = claim_of(pyfuncitem), self.config.getoption("--minutes")
        if claim is None or not minutes or not _is_search(pyfuncitem):
            return (yield)
        search = _Search(self.config, claim, pyfuncitem, self._share(minutes))
        asked = inspect.signature(pyfuncitem.obj).parameters
        try:
            result = yield
            for seed in search.seeds():
                hypothesis.seed(seed)(pyfuncitem.obj)
                pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in asked})
            return result
        finally:
            claim.tally = search.total()

    def _tests(self, claim: Claim, item: pytest.Item) -> list[str]:
        """Names of the tests in the file of a test, with their parameters; those that were
        deselected too.
        """
        module: Any = getattr(item, "module", None)
        names = self.collected.get(claim.name, set())
        functions = {
            name
            for name, value in vars(module).items()
            if name.startswith("test") and callable(value)
        }
        return sorted(names | (functions - {name.split("[")[0] for name in names}))

    def _share(self, minutes: float) -> float:
        workers = self.config.workerinput["workercount"] if self.worker else 1  # type: ignore[attr-defined]
        return 60 * minutes * workers / max(self.searches, 1)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        claim = claim_of(item)
        if claim is not None and (report.when == "call" or report.failed):
            tally = claim.take()
            if report.failed and tally.failure is None:
                tally.errors.append(
                    f"{item.name}: {call.excinfo.exconly() if call.excinfo else 'failed'}"
                )
            about = {
                "claim": claim.name,
                "heading": _heading(claim, item.path),
                "test": item.name,
                "tests": self._tests(claim, item),
                "tally": tally.encode(),
            }
            report.user_properties.append((_TALLY, json.dumps(about)))
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.worker:
            return
        for name, content in report.user_properties:
            if name == _TALLY:
                line = self.ledger.add(json.loads(str(content)))
                pending = sorted(self.ledger.missing[line["claim"]])
                if not pending:
                    with contextlib.suppress(OSError):  # said at the end
                        self._record([line])
                _say(self.config, line | {"pending": pending})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        file = Path(report.nodeid)
        if (
            report.failed
            and not self.worker
            and file.suffix == ".py"
            and self._is_claim(self.config.rootpath / file)
        ):
            line = self.ledger.fail(file.stem, str(report.longrepr).strip().splitlines()[-1])
            _say(self.config, line | {"pending": []})

    def _is_claim(self, file: Path) -> bool:
        """Whether a file is one of the package, or was asked for by its own name."""
        asked = {(self.config.invocation_params.dir / each).resolve() for each in self.config.args}
        return file.parent == _FOLDER or file.resolve() in asked

    def pytest_sessionfinish(self) -> None:
        if not self.worker:
            self._record(self.ledger.complete())

    def _record(self, lines: list[dict[str, Any]]) -> None:
        file = self.config.getoption("--records")
        if file is not None and lines:
            update_records(file, lines)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.ledger.lines:
            terminalreporter.write_sep("-", "claims")
        for line in self.ledger.lines.values():
            terminalreporter.write_line(summary(line))
        file = self.config.getoption("--records")
        for name in self.ledger.partial if file is not None else ():
            terminalreporter.write_line(
                f"{name}: its line in {file} is unchanged, because only some of its tests ran"
            )


class _Ledger:
    """Tallies by claim, as the reports of tests come in."""

    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.headings: dict[str, dict[str, Any]] = {}
        self.missing: dict[str, set[str]] = {}
        self.lines: dict[str, dict[str, Any]] = {}

    def add(self, row: dict[str, Any]) -> dict[str, Any]:
        """Merge what one test recorded; returns the claim's line so far."""
        name = row["claim"]
        self.headings[name] = row["heading"]
        self.missing.setdefault(name, set(row["tests"])).discard(row["test"])
        self.tallies.setdefault(name, Tally()).merge(Tally.decode(row["tally"]))
        self.lines[name] = record_of(self.headings[name], self.tallies[name])
        return self.lines[name]

    def fail(self, name: str, error: str) -> dict[str, Any]:
        """A file that could not be loaded: its claim is not measured."""
        claim = Claim(name, name.replace("_", " "), topics.OTHER, "", "", "limit")
        self.missing[name] = set()
        self.lines[name] = claim.record(Tally(errors=[error]))
        return self.lines[name]

    @property
    def partial(self) -> list[str]:
        """Claims of which some tests did not run."""
        return [name for name, tests in self.missing.items() if tests]

    def complete(self) -> list[dict[str, Any]]:
        """The lines of the claims all of whose tests ran."""
        return [line for name, line in self.lines.items() if name not in self.partial]


class _Search:
    """The seeds of one property-based test, and what they found, in a file that a later run
    continues.
    """

    def __init__(self, config: pytest.Config, claim: Claim, item: pytest.Function, seconds: float):
        self.config, self.claim, self.seconds = config, claim, seconds
        self.name = f"{claim.name}::{item.name}"
        state: Path = config.getoption("--state")  # type: ignore[assignment]
        slug = re.sub(r"[^\w-]+", "-", self.name)
        self.file = state / f"{slug}.json"
        self.code = _code_version(item.path)
        self.found = self._load()

    def seeds(self) -> Iterator[int]:
        """New seeds until the time is spent; keeps what each found."""
        if self.found.checked:
            self.claim.take()  # the fixed seed was counted when the search began
        else:
            self._keep(0)
        while self.found.seconds < self.seconds:
            start = time.perf_counter()
            yield zlib.crc32(f"{self.name} {self.found.seeds}".encode())
            self.claim.tally.seconds = time.perf_counter() - start
            self._keep(1)

    def total(self) -> Tally:
        """What all seeds found, with what is not kept: a failure, or a run that was cut short."""
        total = Tally()
        total.merge(self.found)
        total.merge(self.claim.take())
        return total

    def _keep(self, seeds: int) -> None:
        tally = self.claim.take()
        tally.seeds = seeds
        self.found.merge(tally)
        tally_of_all = json.dumps(self.found.encode())  # infinities included
        row = seal({"code": self.code, "tally": tally_of_all})
        write_atomically(self.file, encoded(row))
        _say(
            self.config,
            {
                "claim": self.claim.name,
                "searched": self.found.seeds,
                "ratio": self.found.worst.ratio if self.found.worst else None,
            },
        )

    def _load(self) -> Tally:
        if not self.file.exists():
            return Tally()
        remedy = "the search begins anew"
        try:
            row = unseal(read_bytes(self.file, remedy), str(self.file), remedy)
        except InvalidProblem as error:
            _say(self.config, {"claim": self.claim.name, "damage": str(error)})
            return Tally()
        return Tally.decode(json.loads(row["tally"])) if row["code"] == self.code else Tally()


def _heading(claim: Claim, file: Path) -> dict[str, Any]:
    """What a line says of a claim; of a user's, where its file lies."""
    return claim.heading | ({} if file.parent == _FOLDER else {"file": str(file.resolve())})


def _is_search(item: pytest.Item) -> bool:
    return hasattr(getattr(item, "obj", None), "hypothesis")


def _say(config: pytest.Config, line: dict[str, Any]) -> None:
    """Append one line to the events; short lines of several processes do not mix."""
    file: Path | None = config.getoption("--events")
    if file is not None:
        with contextlib.suppress(OSError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                os.write(handle, (json.dumps(line) + "\n").encode())
            finally:
                os.close(handle)


def _code_version(file: Path) -> str:
    """Digest of the code whose results a search may keep: the file, what it is built on, and the
    package.
    """
    digest = hashlib.sha256()
    package = Path(socft.__file__).parent
    shared = sorted((_FOLDER / "support").rglob("*.py"))
    for path in (file, *shared, *sorted(package.rglob("*.py"))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
