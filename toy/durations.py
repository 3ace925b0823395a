"""How long studies take, as ``socft toy --help`` says it."""

from __future__ import annotations

from collections.abc import Mapping

MINUTES: Mapping[str, tuple[float, float]] = {
    "convergence": (5, 25),
    "guidance": (0.1, 1),
    "linear": (0.4, 26),
}
"""Minutes at the quick and at the full scale with two processes on two cores, by study. Measured
as half the processor time of a random sample of tasks of every kind, times their number, on an
Intel Xeon at 2.8 GHz.
"""
