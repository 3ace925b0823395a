"""A test per identity for other projects: ``pytest -p socft.conform.plugin --conform MODULE:NAME``.

Or in a conftest.py: ``pytest_plugins = ["socft.conform.plugin"]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from socft.checks import InvalidProblem
from socft.conform.find import find_sampler
from socft.conform.identities import IDENTITIES, Identity
from socft.conform.sampler import Sampler


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--conform",
        action="append",
        default=[],
        metavar="MODULE:NAME",
        help="a sampler, or what makes one, to be held against the identities of socft.conform",
    )


def pytest_collection_modifyitems(
    session: pytest.Session, config: pytest.Config, items: list[pytest.Item]
) -> None:
    for path in config.getoption("--conform") or ():
        module = _Samplers.from_parent(session, name=path, path=Path(str(config.rootpath)))
        items.extend(module.collect())


def sampler_of(path: str) -> Sampler:
    """The sampler of an option.

    Raises:
        pytest.UsageError: it leads to none.
    """
    try:
        return find_sampler(path)
    except InvalidProblem as error:
        raise pytest.UsageError(f"--conform {path}: {error}") from error


class _Samplers(pytest.Collector):
    """The identities of one sampler."""

    def __init__(self, **arguments: object):
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.sampler = sampler_of(self.name)

    def collect(self) -> Iterator[pytest.Item]:
        for identity in IDENTITIES:
            yield _Item.from_parent(self, name=identity.name, identity=identity)


class _Item(pytest.Item):
    """One identity."""

    def __init__(self, *, identity: Identity, **arguments: object):
        super().__init__(**arguments)  # type: ignore[arg-type]
        self.identity = identity

    def runtest(self) -> None:
        assert isinstance(self.parent, _Samplers)
        verdict = self.identity.check(self.parent.sampler)
        if verdict.passed is None:
            pytest.skip(verdict.advice)
        if not verdict.passed:
            pytest.fail(str(verdict), pytrace=False)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException]) -> str:  # type: ignore[override]
        return str(excinfo.value)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        assert self.parent is not None
        return self.path, None, f"{self.parent.name}: {self.name}"
