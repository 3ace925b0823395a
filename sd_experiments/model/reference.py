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

import contextlib
import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from sd_experiments.model.denoiser import Condition
from sd_experiments.model.sampling import EVEN, sampling_schedule
from sd_experiments.model.stable_diffusion import NOISE, StableDiffusion
from sd_experiments.model.transforms import is_forward_mode, is_transforming
from socft.checks import require
from socft.reference import ScoreReference, States, Step, level_at
from socft.schedule import ddim


class StableDiffusionReference(ScoreReference):
    """One prompt's sampler as a chain of ``steps`` kernels on latents, differentiable in the state.

    Args:
        base: the frozen parts, shared between references.
        prompt: what the image should show.
        negative_prompt: what guidance leads away from.
        guidance: guidance scale, part of the pre-trained model; 1 for none.
        steps: sampling steps.
        eta: noise of DDIM(eta), in (0, 1]; 1 is memoryless in the limit of many steps.
        spacing: "leading" or "trailing" timesteps, or "log_snr" for levels with even steps in the
            logarithm of their signal-to-noise ratio (`sd_experiments.model.sampling`); as the
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
        height, width = base.latent_dims[1:] if latent is None else latent
        self.base = base
        self.prompt = prompt
        self.negative_prompt = negative_prompt
        self.eta = eta
        self.condition = Condition(
            base.encode(prompt, (height, width)),
            base.encode(negative_prompt, (height, width), negative=True),
            guidance,
        )
        self.sampling = sampling_schedule(base.scheduler_config, steps, spacing, last_level)
        self._noise = NOISE[base.scheduler_config["prediction_type"]]
        self._kept: _Kept | None = None
        self._sharing = False
        super().__init__(
            ddim(self.sampling.abar, eta),
            self._frozen_score,
            (base.unet.config["in_channels"], height, width),
        )

    @property
    def guidance(self) -> float:
        """The guidance scale."""
        return self.condition.guidance

    def tuned_score(self, k: Step, x: States, guided: bool = True) -> States:
        """The score with the low-rank layers, with this reference's guidance or with none."""
        return self._predicted_score(
            k,
            x,
            True,
            self.condition if guided else dataclasses.replace(self.condition, guidance=1.0),
        )

    @contextlib.contextmanager
    def sharing_graphs(self) -> Iterator[None]:
        """Let evaluations at the very same state tensor share one graph, as they share values
        without a graph anyway.

        For code that goes backward once after all its evaluations, such as the adjoint recursions:
        a full adjoint then evaluates the frozen network once per step in place of twice.
        """
        before, self._sharing = self._sharing, True
        try:
            yield
        finally:
            self._sharing, self._kept = before, None

    def _frozen_score(self, k: Step, x: States) -> States:
        if not self._may_keep(k, x):
            return self._predicted_score(k, x, False, self.condition)
        if self._kept is None or not self._kept.matches(k, x):
            self._kept = None
            self._kept = _Kept.of(k, x, self._predicted_score(k, x, False, self.condition))
        return self._kept.score

    def _may_keep(self, k: Step, x: Tensor) -> bool:
        recorded = torch.is_grad_enabled() and x.requires_grad
        return (
            isinstance(k, int)
            and (self._sharing or not recorded)
            and not (is_transforming() or is_forward_mode())
            and not torch.is_inference_mode_enabled()
        )

    def _predicted_score(self, k: Step, x: Tensor, adapted: bool, condition: Condition) -> Tensor:
        timesteps = self.sampling.timesteps[
            k.to(self.sampling.timesteps.device) if isinstance(k, Tensor) else k
        ].expand(len(x))
        level, noise = level_at(self.sampling.abar, k, x)
        output = self.base.denoiser(timesteps, x, condition, adapted)
        return -self._noise(x, output, level, noise) / noise.sqrt()


@dataclasses.dataclass(frozen=True, eq=False)
class _Kept:
    """The last evaluation of the frozen network: a step of a rollout asks for it twice, in the
    policy and in the kernel.
    """

    k: int
    x: Tensor
    value: Tensor
    score: Tensor

    @classmethod
    def of(cls, k: Step, x: Tensor, score: Tensor) -> _Kept:
        assert isinstance(k, int)
        return cls(k, x, x.detach().clone(), score)

    def matches(self, k: Step, x: Tensor) -> bool:
        """Whether this is the value at ``(k, x)``: the same tensor, not changed since, with a graph
        if one is being recorded.
        """
        recorded = torch.is_grad_enabled() and x.requires_grad
        return (
            self.k == k
            and self.x is x
            and self.score.requires_grad == recorded
            and torch.equal(self.value, x)
        )
