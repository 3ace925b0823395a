"""Any chain of kernels: its mean map and its diffusion."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from socft.checks import require_kind, sizes, whole
from socft.probing import probe_initial, probe_steps
from socft.readable import Readable
from socft.reference.diffusion import Diffusion
from socft.reference.steps import Noises, States, Step


class Reference(Readable, abc.ABC):
    """A pre-trained chain of ``steps`` kernels on states of shape ``dims``.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> isinstance(reference, Reference)
    True
    >>> x = torch.zeros(2, 1)
    >>> reference.step(0, x, controlled_noise=torch.ones(2, 1))
    tensor([[0.5000],
            [0.5000]])
    """

    def __init__(self, steps: int, dims: tuple[int, ...], diffusion: Diffusion):
        require_kind(
            diffusion, Diffusion, "the diffusion", "give a Diffusion, such as ScalarDiffusion."
        )
        self.steps = whole(steps, "steps")
        self.dims = sizes(dims, "dims")
        self.diffusion = diffusion
        self.noise_dims = diffusion.noise_dims(self.dims)

    def shown(self) -> dict[str, Any]:
        return {"steps": self.steps, "dims": self.dims} | super().shown()

    @abc.abstractmethod
    def mean(self, k: Step, x: States) -> States:
        """The pre-trained mean ``m_k(x)``, differentiable in ``x``."""

    def initial(self, z: States) -> States:
        """The initial state as a function of standard normal noise of shape ``batch *dims``; the
        identity by default.
        """
        return z

    def step(self, k: Step, x: States, controlled_noise: Noises) -> States:
        """One kernel, ``m_k(x) + B_k(x) controlled_noise`` with ``controlled_noise = v + xi``."""
        return self.mean(k, x) + self.diffusion.apply(k, x, controlled_noise)


class KernelReference(Reference):
    """Any kernel given by its mean map ``(k, x) -> m_k(x)``, a diffusion, and optionally an initial
    map of standard noise.

    >>> reference = KernelReference(lambda k, x: torch.sin(x), ScalarDiffusion([0.5] * 2), 2, (1,))
    >>> reference.mean(0, torch.zeros(1, 1))
    tensor([[0.]])
    """

    def __init__(
        self,
        mean: Callable[[Step, States], States],
        diffusion: Diffusion,
        steps: int,
        dims: tuple[int, ...],
        initial: Callable[[States], States] | None = None,
    ):
        super().__init__(steps, dims, diffusion)
        self._mean = mean
        self._initial = initial
        probe_initial(initial, self.dims)
        probe_steps(mean, self.steps, self.initial, self.dims, "the mean")

    def mean(self, k: Step, x: States) -> States:
        return self._mean(k, x)

    def initial(self, z: States) -> States:
        return z if self._initial is None else self._initial(z)
