r"""Flow matching as a control problem: interpolants, the field's samplers as kernels, exact
velocities.

A flow model is a chain like any other: its kernels are Gaussian with a mean that is affine in the
velocity, so that a fine-tuned velocity is a whitened control,

.. math:: v = J\, (u_\theta - u) / \sigma, \qquad KL = |v|^2 / 2,

and every truth, estimator and method of socft runs on a `FlowReference`.
"""

from socft.flow.interpolant import (
    Interpolant,
    NoiseLevel,
    Rectified,
    Trigonometric,
    shift_times,
    uniform_times,
)
from socft.flow.reference import (
    FlowReference,
    LastStepReward,
    VelocityModel,
    absorb_last_step,
    free_last_step,
)
from socft.flow.schedule import (
    FlowSchedule,
    cps,
    dance_precise,
    dance_sde,
    euler_maruyama,
    flow_ddim,
    flow_sde,
    memoryless,
    precise,
)
from socft.flow.velocity import NoisedVelocity, affine_flow_reference, flow_reference

__all__ = [
    "FlowReference",
    "FlowSchedule",
    "Interpolant",
    "LastStepReward",
    "NoiseLevel",
    "NoisedVelocity",
    "Rectified",
    "Trigonometric",
    "VelocityModel",
    "absorb_last_step",
    "affine_flow_reference",
    "cps",
    "dance_precise",
    "dance_sde",
    "euler_maruyama",
    "flow_ddim",
    "flow_reference",
    "flow_sde",
    "free_last_step",
    "memoryless",
    "precise",
    "shift_times",
    "uniform_times",
]
