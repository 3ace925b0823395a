"""The noise of a kernel: ``B_k(x)`` applied to noise, transposed onto costates, and inverted (least
squares) onto states.
"""

from __future__ import annotations

import abc

import torch

from socft.checks import InvalidProblem, Numbers, numbers, require, require_positive
from socft.readable import Readable
from socft.reference.steps import Noises, States, Step, at_step, product


class Diffusion(Readable, abc.ABC):
    """The noise map ``B_k(x)`` of a kernel."""

    @abc.abstractmethod
    def apply(self, k: Step, x: States, z: Noises) -> States:
        """``B_k(x) z``."""

    @abc.abstractmethod
    def transpose(self, k: Step, x: States, a: States) -> Noises:
        """``B_k(x)^T a``."""

    @abc.abstractmethod
    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        """The control of least norm whose push ``B_k(x) v`` is closest to ``shift`` (the
        pseudo-inverse).
        """

    @abc.abstractmethod
    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        """The least costate ``a`` whose ``B_k(x)^T a`` is closest to ``z`` (the pseudo-inverse of
        the transpose).
        """

    @abc.abstractmethod
    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of one noise, given the shape of one state."""


class ScalarDiffusion(Diffusion):
    """``B_k = sigma_k I`` with ``sigma`` of shape (T,), strictly positive.

    >>> ScalarDiffusion([0.5, 0.25]).whiten(1, torch.zeros(1, 1), torch.ones(1, 1))
    tensor([[4.]])
    """

    def __init__(self, sigma: Numbers):
        self.sigma = numbers(sigma, "sigma", ("steps",))
        require(len(self.sigma) > 0, "sigma has shape (0,); give one scale per step.")
        require_positive(
            self.sigma, "sigma", "a step without noise cannot be steered at a finite KL."
        )

    def apply(self, k: Step, x: States, z: Noises) -> States:
        return at_step(self.sigma, k, z) * z

    def transpose(self, k: Step, x: States, a: States) -> Noises:
        return at_step(self.sigma, k, a) * a

    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        return shift / at_step(self.sigma, k, shift)

    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        return z / at_step(self.sigma, k, z)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return dims


class MatrixDiffusion(Diffusion):
    """Constant ``B_k`` of shape (T, n, m), possibly degenerate; states are vectors of length n.

    >>> noise = MatrixDiffusion([[[0.0], [0.5]]])  # a force on the second coordinate, one step
    >>> noise.apply(0, torch.zeros(1, 2), torch.ones(1, 1))
    tensor([[0.0000, 0.5000]])
    """

    def __init__(self, matrices: Numbers):
        self.matrices = numbers(matrices, "B", ("steps", "n", "m"))
        require(
            self.matrices.numel() > 0,
            f"B has shape {tuple(self.matrices.shape)}; give at least one of each.",
        )
        dead = (self.matrices.abs().amax((1, 2)) == 0).nonzero().flatten().tolist()
        if dead:
            raise InvalidProblem(
                f"B[{dead[0]}] = 0; a step without noise cannot be steered at a finite KL."
            )
        self.inverses = torch.linalg.pinv(self.matrices)

    def apply(self, k: Step, x: States, z: Noises) -> States:
        return product(self.matrices, k, z)

    def transpose(self, k: Step, x: States, a: States) -> Noises:
        return product(self.matrices.mT, k, a)

    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        return product(self.inverses, k, shift)

    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        return product(self.inverses.mT, k, z)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        require(
            dims == self.matrices.shape[1:2],
            f"B maps into vectors of length {self.matrices.shape[1]} but states have shape {dims}.",
        )
        return (self.matrices.shape[2],)
