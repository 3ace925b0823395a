"""Every test runs on one thread and sees the same examples each time; with ``--shapes``, shapes and
types of what it calls are checked; tests whose mark does not fit their time are named at the end.
"""

from __future__ import annotations

import gc
import signal
from collections.abc import Generator

import hypothesis
import jaxtyping
import pytest
import torch

from tests.support import shapes
from tests.support.durations import Timing, misplaced

torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a shell's background job: processes that tests interrupt would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
hypothesis.settings.register_profile("socft", derandomize=True, deadline=None)
hypothesis.settings.load_profile("socft")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--shapes`` checks shapes and types."""
    parser.addoption("--shapes", action="store_true", help="check shapes and types of the packages")


def pytest_configure(config: pytest.Config) -> None:
    """Check shapes, before what is checked is imported."""
    if config.getoption("--shapes"):
        shapes.install()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What is imported and collected stays: without looking through it for garbage again and again,
    collecting takes two thirds of the time, and so do the collections while tests run.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def checked(request: pytest.FixtureRequest) -> None:
    """Shapes and types are checked except in tests of what is refused by a sentence."""
    refused = request.node.get_closest_marker("refusal") is not None
    jaxtyping.config.update("jaxtyping_disable", refused)
    shapes.begin_test()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that are slow without the mark, or marked without being slow."""
    reports = terminalreporter.getreports("passed")
    lines = misplaced(
        Timing(each.nodeid, each.duration, "slow" in each.keywords)
        for each in reports
        if each.when == "call"
    )
    if lines:
        terminalreporter.section("marks that do not fit the times")
        terminalreporter.write_line("\n".join(lines))
