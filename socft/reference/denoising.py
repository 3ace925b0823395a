"""Chains that remove noise from data, and the one of a schedule and a score."""

from __future__ import annotations

import abc
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from socft.checks import require_kind
from socft.probing import probe_steps
from socft.reference.base import Reference
from socft.reference.diffusion import ScalarDiffusion
from socft.reference.steps import Noises, States, Step, at_step, level_at
from socft.schedule import Schedule


class DenoisingReference(Reference):
    """A chain that removes noise from data: every state is ``a x_0 + s eps`` under the pre-trained
    law, so that a controlled kernel is a controlled score and endpoint.

    >>> reference = score_reference(Gaussian(0.0, 0.5), ddpm([0.1, 0.5, 1.0]))
    >>> isinstance(reference, DenoisingReference)
    True
    """

    @abc.abstractmethod
    def score_of(self, k: Step, x: States, v: Noises) -> States:
        """The score of the noised law that the controlled kernel goes by."""

    @abc.abstractmethod
    def endpoint_of(self, k: Step, x: States, v: Noises) -> States:
        """The endpoint ``E[x_0 | x]`` that the controlled kernel goes by (Tweedie's formula)."""

    @property
    @abc.abstractmethod
    def signal_and_noise(
        self,
    ) -> tuple[Float[Tensor, " steps_plus_1"], Float[Tensor, " steps_plus_1"]]:
        """``a`` and ``s`` of all states, each to full precision."""

    def renoise(self, k: Step, endpoint: States, noise: States) -> States:
        """The state ``a_k x_0 + s_k eps`` that step k starts from."""
        signal, level = self.signal_and_noise
        return at_step(signal, k, endpoint) * endpoint + at_step(level, k, noise) * noise

    @abc.abstractmethod
    def control_to(self, k: Step, x: States, endpoint: States) -> Noises:
        """The whitened control whose kernel goes by an endpoint, the inverse of `endpoint_of`."""

    @abc.abstractmethod
    def endpoint_unit(self, k: Step, x: States) -> Tensor:
        """By what a unit of control moves the endpoint; broadcasts against ``batch *dims``."""

    @abc.abstractmethod
    def velocity_unit(self, k: Step, x: States) -> Tensor:
        """By what a unit of control moves the velocity of the flow through the same levels, that of
        ``eps - x_0`` where the reference is no flow.
        """


class ScoreReference(DenoisingReference):
    """The DDPM/DDIM chain of a schedule and a score, ``m_k(y) = (y + g_k s_k(y)) / sqrt(a_k)``.

    Args:
        schedule: the denoising coefficients.
        score: ``(k, x) -> s_k(x)``, the score of the data noised to level ``schedule.abar[k]``; it
            may cast internally but must return the dtype of ``x``.
        dims: shape of one state.

    >>> reference = ScoreReference(ddpm([0.1, 0.5, 1.0]), lambda k, x: -x, dims=(1,))
    >>> reference.mean(0, torch.tensor([[1.0]]))
    tensor([[0.4472]])
    """

    def __init__(
        self, schedule: Schedule, score: Callable[[Step, States], States], dims: tuple[int, ...]
    ):
        require_kind(schedule, Schedule, "the schedule", "give a Schedule, such as ddpm(levels).")
        super().__init__(schedule.steps, dims, ScalarDiffusion(schedule.sigma))
        self.schedule = schedule
        self.score = score
        if type(self) is ScoreReference:  # the score of a class of its own is not a caller's
            probe_steps(score, self.steps, self.initial, self.dims, "the score")

    def mean(self, k: Step, x: States) -> States:
        weight, alpha = (
            at_step(self.schedule.score_weight, k, x),
            at_step(self.schedule.alpha, k, x),
        )
        return (x + weight * self.score(k, x)) / alpha.sqrt()

    def score_of(self, k: Step, x: States, v: Noises) -> States:
        """The paper's control ``U_k(x) = s_k(x) + sqrt(a_k) sigma_k v / g_k``."""
        return self.score(k, x) + v * self._score_unit(k, x)

    def endpoint_of(self, k: Step, x: States, v: Noises) -> States:
        """``(x + (1 - abar_k) U_k(x)) / sqrt(abar_k)``."""
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return (x + noise * self.score_of(k, x, v)) / level.sqrt()

    def control_of(self, k: Step, x: States, score: States) -> Noises:
        """The whitened control of a fine-tuned score, the inverse of `score_of`."""
        return (score - self.score(k, x)) / self._score_unit(k, x)

    @property
    def signal_and_noise(
        self,
    ) -> tuple[Float[Tensor, " steps_plus_1"], Float[Tensor, " steps_plus_1"]]:
        return self.schedule.abar.sqrt(), (1 - self.schedule.abar).sqrt()

    def control_to(self, k: Step, x: States, endpoint: States) -> Noises:
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return self.control_of(k, x, (level.sqrt() * endpoint - x) / noise)

    def endpoint_unit(self, k: Step, x: States) -> Tensor:
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return self._score_unit(k, x) * noise / level.sqrt()

    def velocity_unit(self, k: Step, x: States) -> Tensor:
        """Where signal and noise of the flow sum to one."""
        level, noise = level_at(self.schedule.abar[:-1], k, x)
        return -self.endpoint_unit(k, x) * (1 + level.sqrt() / noise.sqrt())

    def _score_unit(self, k: Step, x: States) -> Tensor:
        s = self.schedule
        return at_step(s.alpha.sqrt() * s.sigma / s.score_weight, k, x)
