"""Exact velocities of data laws: the pre-trained flow models of problems with known answers."""

from __future__ import annotations

import torch
from torch import Tensor

from socft.checks import require, require_kind
from socft.density import Density, Gaussian
from socft.flow.interpolant import NoiseLevel
from socft.flow.reference import FlowReference, require_flow_schedule
from socft.flow.schedule import FlowSchedule
from socft.readable import Readable
from socft.reference import AffineReference, ScalarDiffusion, SpectralMaps, States, Step, at_step


class NoisedVelocity(Readable):
    """``(k, x) -> E[a' x_0 + s' eps | x]`` of a density at given levels.

    Right at both ends: at pure noise it is ``a' E[x_0] + s' x``. Twice differentiable in ``x``;
    keeps its dtype and device.

    Args:
        density: the data law.
        levels: fields of shape (T,), such as ``schedule.starts``.

    >>> velocity = NoisedVelocity(Gaussian(2.0, 0.5), Rectified().level([1.0, 0.5]))
    >>> velocity(0, torch.tensor([[1.0]]))
    tensor([[-1.]])
    """

    def __init__(self, density: Density, levels: NoiseLevel):
        require_kind(density, Density, "the data law", "give a Density, such as Gaussian(0, 1).")
        remedy = "give the levels of a schedule, such as schedule.starts."
        require_kind(levels, NoiseLevel, "levels", remedy)
        require(levels.signal.ndim == 1 and len(levels.signal) > 0, f"levels are no row; {remedy}")
        self.density, self.levels = density, levels

    def __call__(self, k: Step, x: States) -> States:
        c = self.levels
        index = k.to(c.noise.device) if isinstance(k, Tensor) else k
        endpoint, estimate = self.density.posterior_means(c.signal[index], c.noise[index], x)
        return at_step(c.signal_rate, k, x) * endpoint + at_step(c.noise_rate, k, x) * estimate


def flow_reference(density: Density, schedule: FlowSchedule) -> FlowReference:
    """The pre-trained chain of a flow schedule with the exact velocities of ``density``.

    Raises:
        InvalidProblem: the last step has no noise.

    >>> flow_reference(Gaussian(0.0, 0.5), flow_sde(uniform_times(10), 0.7)).steps
    10
    """
    require_flow_schedule(schedule)
    require_kind(density, Density, "the data law", "give a Density, such as Gaussian(0, 1).")
    return FlowReference(schedule, NoisedVelocity(density, schedule.starts), density.dims)


def affine_flow_reference(gaussian: Gaussian, schedule: FlowSchedule) -> AffineReference:
    r"""The same chain for a Gaussian as an affine map, diagonal in the eigenbasis of its
    covariance.

    With :math:`c = a^2 S + s^2` for an eigenvalue S: the slope :math:`(e a S + n s)/c` and the
    offset :math:`(e s^2 - n a s)/c` times the mean. Started as `FlowReference`.

    Raises:
        InvalidProblem: the last step has no noise.

    >>> affine_flow_reference(Gaussian([0.0, 1.0], 0.5), flow_sde(uniform_times(4), 0.7)).steps
    4
    """
    require_kind(gaussian, Gaussian, "the law", "give a Gaussian.")
    chain = flow_reference(gaussian, schedule)
    a, s = (v[:, None] for v in (schedule.starts.signal, schedule.starts.noise))
    e, n = (v[:, None] for v in (schedule.endpoint_weight, schedule.noise_weight))
    spread, basis = a.square() * gaussian.spectra + s.square(), gaussian.bases[0]
    slope = (e * a * gaussian.spectra + n * s) / spread
    offset = ((e * s - n * a) * s / spread * (gaussian.means @ basis)) @ basis.T
    start = chain.initial(torch.eye(*gaussian.dims, dtype=torch.float64))
    return AffineReference(
        SpectralMaps(slope, basis), ScalarDiffusion(schedule.sigma), offset, initial_factor=start
    )
