r"""Stable Diffusion from pure noise: chains whose first level has no signal at all.

Where :math:`\bar a_0 = 0` (trained levels that were rescaled to zero terminal signal, arXiv
2305.08891, with timesteps that begin at the last one) the noise, and the score with it, says
nothing about the picture. A network of the velocity
:math:`v = \sqrt{\bar a}\, \varepsilon - \sqrt{1 - \bar a}\, x_0` does: there it is :math:`-x_0`.
With :math:`\sqrt{\bar a} = \cos\theta` this v is the derivative of
:math:`x = \cos\theta\, x_0 + \sin\theta\, \varepsilon` in :math:`\theta`, so that the chain is that
of a flow on the trigonometric interpolant, whose kernels `socft.flow.flow_ddim` are DDIM(eta) at
the same levels and finite from pure noise on.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.latent_reference import FineTunedFlow, LatentReference
from sd_experiments.model.reference import DDIMChain, timesteps_at
from sd_experiments.model.schedule import SamplingSchedule
from sd_experiments.model.stable_diffusion import StableDiffusion
from socft.checks import require
from socft.flow import FlowReference, Trigonometric, VelocityModel, flow_ddim
from socft.reference import States, Step

VELOCITY = "v_prediction"
"""What diffusers calls the prediction of v."""
QUARTER = math.pi / 2
"""Of a turn, from data to noise."""


class ZeroSignalReference(DDIMChain, FlowReference, LatentReference[StableDiffusion]):
    """A chain that goes by the velocity of a network, whose first level may be 0; arguments as
    `DDIMChain`'s.

    Raises:
        InvalidProblem: as there, or the network predicts noise.
    """

    def begin(self, dims: tuple[int, int, int]) -> None:
        prediction = self.base.scheduler_config["prediction_type"]
        require(
            prediction == VELOCITY,
            f"prediction_type = {prediction!r}, which says nothing where there is no signal; give a"
            f" network that predicts {VELOCITY!r}.",
        )
        abar = self.sampling.abar
        times = torch.atan2((1 - abar).sqrt(), abar.sqrt()) / QUARTER
        schedule = flow_ddim(times, self.eta, Trigonometric())
        FlowReference.__init__(self, schedule, self.output, dims)

    def predict(self, k: Step, x: Tensor, adapted: bool, condition: Condition) -> States:
        timesteps = timesteps_at(self.sampling, k, x)
        return QUARTER * self.base.denoiser(timesteps, x, condition, adapted)

    def chain_of(self, output: VelocityModel, /) -> FlowReference:
        return FineTunedFlow(self.schedule, output, self.dims)


def starts_without_signal(base: StableDiffusion, sampling: SamplingSchedule) -> bool:
    """Whether a network of velocities is asked at a level without signal."""
    return base.scheduler_config["prediction_type"] == VELOCITY and float(sampling.abar[0]) == 0
