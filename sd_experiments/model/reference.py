r"""Stable Diffusion 1.x, 2.x and XL as pre-trained chains.

A latent diffusion network predicts the noise :math:`\varepsilon` in a latent
:math:`x = \sqrt{\bar a_k}\, x_0 + \sqrt{1-\bar a_k}\, \varepsilon`, or the velocity
:math:`\sqrt{\bar a_k}\, \varepsilon - \sqrt{1-\bar a_k}\, x_0`. Either gives the score
:math:`s_k = -\varepsilon_k / \sqrt{1-\bar a_k}`, and `socft.schedule.ddim` makes a chain of it
(Song et al. 2021, equation 16; at eta = 1 equation 1 of arXiv 2412.18164v4 with the posterior
variance).

Prompt and guidance scale are closed over, so estimators see (k, x) and nothing else; the references
of many prompts share one `StableDiffusion`, hence one network. The network runs in its own dtype on
its own device, a few rows at a time; everything else is in the dtype of the state.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

from jaxtyping import Int
from torch import Tensor

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.latent_reference import LatentReference
from sd_experiments.model.schedule import (
    EVEN,
    SamplingSchedule,
    require_signal,
    sampling_schedule,
)
from sd_experiments.model.stable_diffusion import NOISE, StableDiffusion
from socft.checks import require
from socft.reference import DenoisingReference, ScoreReference, States, Step, level_at
from socft.schedule import ddim


def timesteps_at(sampling: SamplingSchedule, k: Step, x: States) -> Int[Tensor, " batch"]:
    """The timestep of a step, or of every row's, that the network is told with each state."""
    known = sampling.timesteps
    return known[k.to(known.device) if isinstance(k, Tensor) else k].expand(len(x))


class DDIMChain(DenoisingReference):
    """One prompt's sampler as a chain of ``steps`` kernels on latents, differentiable in the state;
    what its network predicts is left to those who inherit it.

    Args:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        guidance: guidance scale, part of the pre-trained model; 1 for none.
        steps: sampling steps.
        eta: noise of DDIM(eta), in (0, 1]; 1 is memoryless in the limit of many steps.
        spacing: "leading" or "trailing" timesteps, or "log_snr" for levels with even steps in the
            logarithm of their signal-to-noise ratio (`sd_experiments.model.schedule`); as the
            scheduler is configured by default.
        last_level: signal level of the sample, below 1; as the scheduler is configured by default.
        latent: height and width of a latent; the network's own by default.

    Raises:
        InvalidProblem: the last sigma is zero, the levels do not chain, or a number is out of
            range.
    """

    def __init__(
        self,
        base: StableDiffusion,
        prompt: str,
        negative_prompt: str = "",
        guidance: float = 1.0,
        steps: int = 50,
        eta: float = 1.0,
        spacing: str | None = None,
        last_level: float | None = None,
        latent: tuple[int, int] | None = None,
    ):
        _require_sampler(guidance, eta, spacing)
        self.base = base
        self.prompt, self.negative_prompt, self.eta = prompt, negative_prompt, eta
        size = height, width = base.latent_dims[1:] if latent is None else latent
        self.condition = Condition(
            base.encode(prompt, size), base.encode(negative_prompt, size, negative=True), guidance
        )
        self.sampling = sampling_schedule(base.scheduler_config, steps, spacing, last_level)
        self.begin((base.unet.config["in_channels"], height, width))

    @abc.abstractmethod
    def begin(self, dims: tuple[int, int, int]) -> None:
        """Make the kernels of ``sampling`` and ``eta``, on latents of a shape."""


def _require_sampler(guidance: float, eta: float, spacing: str | None) -> None:
    require(
        guidance >= 1,
        f"guidance = {guidance}; give at least 1 (none), pipelines ignore smaller values.",
    )
    require(
        eta > 0,
        f"eta = {eta}: no step has noise and no control a finite KL; give eta in (0, 1].",
    )
    require(
        spacing != EVEN or eta == 1,
        f"eta = {eta} with {EVEN!r} spacing: no sampler of diffusers draws from that chain;"
        " give eta = 1 or another spacing.",
    )


class StableDiffusionReference(DDIMChain, ScoreReference, LatentReference[StableDiffusion]):
    """A chain that goes by the score of a network of the noise, or of the velocity; arguments as
    `DDIMChain`'s.
    """

    def begin(self, dims: tuple[int, int, int]) -> None:
        abar = self.sampling.abar
        require_signal(abar, self.sampling.scheduler.config["timestep_spacing"])
        self._noise = NOISE[self.base.scheduler_config["prediction_type"]]
        ScoreReference.__init__(self, ddim(abar, self.eta), self.output, dims)

    def predict(self, k: Step, x: Tensor, adapted: bool, condition: Condition) -> Tensor:
        timesteps = timesteps_at(self.sampling, k, x)
        level, noise = level_at(self.sampling.abar, k, x)
        output = self.base.denoiser(timesteps, x, condition, adapted)
        return -self._noise(x, output, level, noise) / noise.sqrt()

    def chain_of(self, output: Callable[[Step, States], States], /) -> ScoreReference:
        return _FineTunedChain(self.schedule, output, self.dims)


class _FineTunedChain(ScoreReference):
    """It is a class of its own since its score is the network that the reference is built on, and
    is not tried, at two evaluations, every time.
    """
