"""Tasks on a Dask cluster: processes of this machine, or of whatever a running scheduler has.

The scheduler gives the tasks of a worker that died to another one, those too whose results were
not fetched yet, and hands every result over once, so that nothing is lost and nothing counts twice;
a task whose workers die again and again is an error of that task.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import Executor
from typing import Any

from socft.checks import InvalidProblem, require, whole
from socft.study.workers import MOST_WORKERS

NAME = "dask"
SCHEDULER = f"{NAME}:"
"""Before the address of a running scheduler."""
PATIENCE = 30
"""Seconds to wait for a scheduler."""


def is_cluster(executor: str) -> bool:
    """Whether an executor on the command line is a Dask cluster.

    >>> is_cluster("dask"), is_cluster("dask:tcp://host:8786"), is_cluster("mine:make")
    (True, True, False)
    """
    return executor == NAME or executor.startswith(SCHEDULER)


@contextlib.contextmanager
def cluster(executor: str, count: int) -> Iterator[Executor]:
    """Where tasks run.

    Args:
        executor: `NAME` for processes of this machine, one thread each; with the address of a
            running scheduler behind it, those are used.
        count: number of processes of this machine.

    Raises:
        InvalidProblem: Dask is not installed, or no scheduler answers.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise InvalidProblem(
            f"--executor {executor} needs {error.name}; install it: pip install 'socft[cluster]'."
        ) from error
    address = executor.removeprefix(NAME).removeprefix(":")
    require(
        bool(address) or executor == NAME,
        f"--executor {executor} names no scheduler; write {SCHEDULER}tcp://HOST:8786, or {NAME}.",
    )
    local = None if address else _local(distributed, count)
    try:
        client = distributed.Client(local or address, timeout=PATIENCE, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InvalidProblem(
            f"no scheduler answers at {address} ({error}); start one: dask scheduler."
        ) from error
    with contextlib.closing(local) if local else contextlib.nullcontext(), client:
        client.register_plugin(_one_thread(distributed))
        yield client.get_executor(pure=False)


def _local(distributed: Any, count: int) -> Any:
    return distributed.LocalCluster(
        n_workers=whole(count, "workers", most=MOST_WORKERS),
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        silence_logs=logging.CRITICAL,
    )


def _one_thread(distributed: Any) -> Any:
    """Every worker, a later one too, computes on one thread."""

    class OneThread(distributed.WorkerPlugin):
        name = "one-thread"

        def setup(self, worker: Any) -> None:
            import torch

            torch.set_num_threads(1)

    return OneThread()
