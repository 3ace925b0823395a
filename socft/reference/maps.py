"""Linear maps ``A_k``, dense or with common eigenvectors."""

from __future__ import annotations

import abc
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import Numbers, numbers, require
from socft.readable import Readable
from socft.reference.steps import Step, product

ORTHONORMAL = 1e-10
"""Largest entry of ``Q^T Q - I`` a basis may have: eigh leaves about n eps, and the transfers
inherit the defect.
"""


class LinearMaps(Readable, abc.ABC):
    """Linear maps ``A_k`` of vectors of length ``n``, k = 0..steps-1."""

    steps: int
    n: int

    @abc.abstractmethod
    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        """``A_k x``."""

    @abc.abstractmethod
    def dense(self) -> Float[Tensor, "steps n n"]:
        """Every map as a matrix."""


class DenseMaps(LinearMaps):
    """``A_k`` given as matrices of shape (T, n, n)."""

    def __init__(self, matrices: Numbers):
        self.matrices = numbers(matrices, "A")
        shape = tuple(self.matrices.shape)
        fits = len(shape) == 3 and shape[1] == shape[2] and 0 not in shape
        require(fits, f"A has shape {shape}; give (steps, n, n).")
        self.steps, self.n, _ = shape

    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        return product(self.matrices, k, x)

    def dense(self) -> Float[Tensor, "steps n n"]:
        return self.matrices


class SpectralMaps(LinearMaps):
    """Commuting symmetric ``A_k = Q diag(eigenvalues_k) Q^T``: T n + n^2 numbers in place of T n^2.

    Args:
        eigenvalues: shape (T, n).
        basis: orthonormal eigenvectors in the columns of Q, shape (n, n); the identity by default.

    Raises:
        InvalidProblem: an eigenvalue is not finite, or the basis is not orthonormal.
    """

    def __init__(self, eigenvalues: Numbers, basis: Numbers | None = None):
        self.eigenvalues = numbers(eigenvalues, "eigenvalues", ("steps", "n"))
        self.steps, self.n = self.eigenvalues.shape
        require(self.eigenvalues.numel() > 0, "there are no eigenvalues; give at least one.")
        self.basis = (
            torch.eye(self.n, dtype=torch.float64)
            if basis is None
            else numbers(basis, "basis", (self.n, self.n))
        )
        defect = float(
            (self.basis.mT @ self.basis - torch.eye(self.n, dtype=torch.float64)).abs().max()
        )
        require(
            defect <= ORTHONORMAL,
            f"the basis is off orthonormal by {defect:.2g}; give eigenvectors with Q^T Q = I, as"
            " torch.linalg.eigh does.",
        )

    def apply(self, k: Step, x: Float[Tensor, "batch n"]) -> Float[Tensor, "batch n"]:
        basis = self.basis.to(x)
        picked = self.eigenvalues[k.to(self.eigenvalues.device) if isinstance(k, Tensor) else k].to(
            x
        )
        return (x @ basis * picked) @ basis.mT

    def dense(self) -> Float[Tensor, "steps n n"]:
        return (self.basis * self.eigenvalues.unsqueeze(1)) @ self.basis.mT


@torch.no_grad()
def affine_coefficients(
    function: Callable[[int, Float[Tensor, "points n"]], Float[Tensor, "points m"]],
    steps: int,
    n: int,
) -> tuple[Float[Tensor, "steps m n"], Float[Tensor, "steps m"]]:
    """``A`` and ``b`` of a function ``A_k x + b_k``, from its values at 0 and the unit vectors."""
    points = torch.cat([torch.zeros(1, n, dtype=torch.float64), torch.eye(n, dtype=torch.float64)])
    values = torch.stack([function(k, points) for k in range(steps)])
    return (values[:, 1:] - values[:, :1]).mT.contiguous(), values[:, 0].contiguous()
