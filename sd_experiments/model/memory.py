"""The largest memory a process has used, on a GPU or in main memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import re
import resource
import sys
from pathlib import Path

import torch

MB = 1e6
_STATUS, _RESET, _MEMORY = (
    Path("/proc/self/status"),
    Path("/proc/self/clear_refs"),
    Path("/proc/meminfo"),
)


def peak_mb(device: torch.device) -> float:
    """Largest memory in use so far, in MB: the GPU's, or that of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    return _resident() / MB


def reset_peak(device: torch.device) -> None:
    """Begin anew with what is in use now, without what was freed and is kept for later; where the
    system cannot do that, `peak_mb` keeps counting from the start.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with contextlib.suppress(OSError):
        _RESET.write_bytes(b"5")


def free_bytes(device: torch.device) -> float:
    """Memory that can still be taken; infinite where the system does not say."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB", _content(_MEMORY), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return math.inf


def _resident() -> int:
    """Peak resident set size in bytes. The kernel's own number counts from the start of this
    program; that of getrusage also has the peak of the program it was started from.
    """
    with contextlib.suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", _content(_STATUS), re.MULTILINE)
        if found:
            return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


def _content(file: Path) -> str:
    return file.read_text(encoding="ascii")
