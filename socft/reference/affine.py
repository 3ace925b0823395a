"""Affine chains ``m_k(x) = A_k x + b_k``."""

from __future__ import annotations

import functools
from typing import Any

from jaxtyping import Float
from torch import Tensor

from socft.checks import Numbers, identity_or, require, require_kind, zeros_or
from socft.reference.base import Reference
from socft.reference.diffusion import MatrixDiffusion, ScalarDiffusion
from socft.reference.maps import DenseMaps, LinearMaps
from socft.reference.steps import States, Step


class AffineReference(Reference):
    """``m_k(x) = A_k x + b_k`` on vectors, started at N(initial_mean, initial_factor
    initial_factor^T).

    Args:
        transition: ``A`` as matrices of shape (T, n, n), or as `LinearMaps`.
        offset: ``b`` of shape (T, n), zero by default.
        diffusion: a `ScalarDiffusion` or `MatrixDiffusion` with T steps.
        initial_mean: shape (n,), zero by default.
        initial_factor: a square root of the initial covariance, shape (n, n), the identity by
            default.

    Raises:
        InvalidProblem: a shape or a number of steps does not match, or an entry is not finite.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> reference.mean(0, torch.tensor([[2.0]]))
    tensor([[1.8000]])
    """

    def __init__(
        self,
        transition: Numbers | LinearMaps,
        diffusion: ScalarDiffusion | MatrixDiffusion,
        offset: Numbers | None = None,
        initial_mean: Numbers | None = None,
        initial_factor: Numbers | None = None,
    ):
        self.maps = transition if isinstance(transition, LinearMaps) else DenseMaps(transition)
        require_kind(
            diffusion,
            (ScalarDiffusion, MatrixDiffusion),
            "the diffusion",
            "give a ScalarDiffusion or MatrixDiffusion.",
        )
        steps, n = self.maps.steps, self.maps.n
        super().__init__(steps, (n,), diffusion)
        self.diffusion: ScalarDiffusion | MatrixDiffusion = diffusion
        noisy = len(
            diffusion.sigma if isinstance(diffusion, ScalarDiffusion) else diffusion.matrices
        )
        require(
            noisy == steps,
            f"A has {steps} steps and the diffusion {noisy}; give both the same number.",
        )
        self.offset = zeros_or(offset, "b", (steps, n))
        self.initial_mean = zeros_or(initial_mean, "initial_mean", (n,))
        self.initial_factor = identity_or(initial_factor, "initial_factor", n)

    def shown(self) -> dict[str, Any]:
        return super().shown() | {"transition": self.maps}

    @functools.cached_property
    def transition(self) -> Float[Tensor, "steps n n"]:
        """Every ``A_k`` as a matrix, shape (T, n, n)."""
        return self.maps.dense()

    def mean(self, k: Step, x: States) -> States:
        offset = self.offset[k.to(self.offset.device) if isinstance(k, Tensor) else k].to(x)
        return self.maps.apply(k, x) + offset

    def initial(self, z: States) -> States:
        return self.initial_mean.to(z) + z @ self.initial_factor.T.to(z)
