"""How long studies take, as ``socft toy --help`` says it."""

from __future__ import annotations

from collections.abc import Mapping

MINUTES: Mapping[str, tuple[float, float]] = {
    "convergence": (4.4, 25),
    "fixed_points": (1.1, 33),
    "flow_budget": (0.2, 11),
    "guidance": (0.1, 1),
    "guidance_network": (0.1, 10),
    "linear": (0.3, 25),
    "lq_sweeps": (0.5, 2),
    "mixture": (0.2, 13),
    "pendulum": (0.2, 23),
    "sde_ode": (0.2, 5),
    "socm": (0.1, 21),
    "speed": (0.8, 2),
    "tightness": (0.3, 7),
    "training": (0.3, 4),
    "variance": (1.3, 37),
}
"""Minutes at the quick and at the full scale with two processes on two cores, by study. Measured
as half the processor time of a random sample of tasks of every kind, times their number, on an
Intel Xeon at 2.8 GHz.
"""
