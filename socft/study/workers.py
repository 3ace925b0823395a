"""Processes in which tasks run: spawned, on one thread each, and ended with the process that
started them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import (
    Executor,
    ProcessPoolExecutor,
)

import torch

from socft.checks import whole

MOST_WORKERS = 1000


@contextlib.contextmanager
def processes(count: int) -> Iterator[Executor | None]:
    """Where tasks run: that many `workers`, or this process (None) for one."""
    if whole(count, "workers", most=MOST_WORKERS) == 1:
        yield None
    else:
        with workers(count) as pool:
            yield pool


@contextlib.contextmanager
def workers(count: int) -> Iterator[Executor]:
    """A pool of freshly spawned processes with one thread each, which end with this process,
    however it ends.
    """
    count = whole(count, "workers", most=MOST_WORKERS)
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        count, multiprocessing.get_context("spawn"), initializer=_prepare_worker
    )
    try:
        with _interrupts_ignored():
            for _ in range(count):
                pool.submit(os.getpid)
        yield pool
    except BaseException:
        for child in set(multiprocessing.active_children()) - before:
            child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """Processes started here ignore Ctrl-C, which a terminal sends to them too: the one that
    started them ends them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
