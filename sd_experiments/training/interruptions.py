"""Ctrl-C and SIGTERM during a run: heeded at once where nothing is lost, else when it is next safe.

Between two gradient steps a run can be saved, and while it samples paths and takes gradients the
state before them can be returned to; only the update of the layers and what is written of it must
not be cut in two. Several processes must stop after the same step, so they heed the signals of any
of them between two steps only.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch

from sd_experiments.training.process_group import ProcessGroup

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruptions:
    """The signals that came while it watched.

    Args:
        group: the processes that stop together.

    Attributes:
        together: whether all of several processes stopped after the same step.
    """

    def __init__(self, group: ProcessGroup | None = None):
        self._group = group or ProcessGroup()
        self._came: list[int] = []
        self._handlers: dict[int, Any] = {}
        self.together = False
        self._heeding = False

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Signals are taken in; elsewhere than in the main thread none can be."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._handlers = {each: signal.signal(each, self._take) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in self._handlers.items():
                signal.signal(each, handler)

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Inside, one process alone stops at once.

        Raises:
            KeyboardInterrupt: a signal came, or comes.
        """
        if self._group.size > 1:
            yield
            return
        self._heeding = True
        try:
            if self._came:
                self._stop()
            yield
        finally:
            self._heeding = False

    def stop_together(self, device: torch.device) -> None:
        """Stop all processes where a signal came to one of them.

        Raises:
            KeyboardInterrupt: one did.
        """
        if self._group.size > 1 and self._group.max_number(float(bool(self._came)), device):
            self.together = True
            self._stop()

    def _take(self, number: int, frame: FrameType | None) -> None:
        self._came.append(number)
        if self._heeding:
            self._stop()

    def _stop(self) -> None:
        """As the first signal would have without this."""
        handler = self._handlers[self._came[0]] if self._came else None
        self._heeding = False
        if callable(handler):
            handler(self._came[0], None)
        raise KeyboardInterrupt
