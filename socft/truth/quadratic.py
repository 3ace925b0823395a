r"""Quadratic running costs and values, and the small linear algebra the linear-quadratic solutions
share.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, Numbers, numbers, require, require_finite
from socft.problem import ControlProblem, require_problem, require_reference
from socft.reference import (
    AffineReference,
    MatrixDiffusion,
    ScalarDiffusion,
    States,
    Step,
    at_step,
    by_step,
)
from socft.reward import PerSample

GATHER_LIMIT = 2**24
"""Numbers gathered to give every sample its own matrix (134 MB); beyond, samples are grouped by
step.
"""


class QuadraticCost:
    """A running cost ``f_k(x) = x' F_k x / 2 + h_k . x``, to be subtracted from the objective.

    For a cost rate of an SDE multiply by the step size.

    Args:
        F: symmetric, shape (n, n), or (T, n, n) for one per step.
        h: shape (n,) or (T, n), zero by default.

    Raises:
        InvalidProblem: a shape does not fit, an entry is not finite, or F is not symmetric.

    >>> cost = QuadraticCost([[2.0]])
    >>> cost(0, torch.tensor([[3.0]]))
    tensor([9.])
    """

    def __init__(self, F: Numbers, h: Numbers | None = None):
        self.F = numbers(F, "F")
        shape = tuple(self.F.shape)
        require(
            len(shape) in (2, 3) and shape[-1] == shape[-2],
            f"F has shape {shape}; give (n, n) or (steps, n, n).",
        )
        self.h = self.F.new_zeros(shape[-1]) if h is None else numbers(h, "h")
        fits = self.h.ndim in (1, 2) and self.h.shape[-1] == shape[-1]
        require(
            fits,
            f"h has shape {tuple(self.h.shape)}; with this F give ({shape[-1]},) or (steps,"
            f" {shape[-1]}).",
        )
        require_finite(self.F, "F", "every entry must be a finite number.")
        require_finite(self.h, "h", "every entry must be a finite number.")
        skew = float((self.F - self.F.mT).abs().max())
        require(
            skew == 0,
            f"F differs from its transpose by {skew:g}; give the symmetric part (F + F') / 2, which"
            " is the same cost.",
        )

    def __call__(self, k: Step, x: States) -> PerSample:
        F = self.F if self.F.ndim == 2 else self.F[index(k, self.F)]
        h = self.h if self.h.ndim == 1 else self.h[index(k, self.h)]
        return ((F.to(x) @ x.unsqueeze(-1)).squeeze(-1) * x).sum(1) / 2 + (h.to(x) * x).sum(1)


@dataclasses.dataclass(frozen=True)
class QuadraticValue:
    """``V_k(x) = x' P_k x / 2 + q_k . x + c_k``, k = 0..T, with gradient (costate) ``P_k x + q_k``.

    Attributes:
        hessian: P, shape (T + 1, n, n).
        slope: q, shape (T + 1, n).
        constant: c, shape (T + 1,).
    """

    hessian: Float[Tensor, "steps_plus_1 n n"]
    slope: Float[Tensor, "steps_plus_1 n"]
    constant: Float[Tensor, " steps_plus_1"]

    def value(self, k: Step, x: States) -> PerSample:
        """``V_k(x)``."""
        slope = self.slope[index(k, self.slope)].to(x)
        return (x * (act(self.hessian, k, x) / 2 + slope)).sum(1) + at_step(
            self.constant, k, x[:, 0]
        )

    def gradient(self, k: Step, x: States) -> States:
        """``grad V_k(x)``."""
        return act(self.hessian, k, x) + self.slope[index(k, self.slope)].to(x)


def affine_of(problem: ControlProblem) -> AffineReference:
    """The reference, refused unless affine."""
    require_problem(problem)
    remedy = "only an AffineReference has this closed form."
    return require_reference(problem, AffineReference, remedy)


def running_of(problem: ControlProblem) -> tuple[Tensor | None, Tensor]:
    """``F`` of shape (T, n, n), None if zero, and ``h`` of shape (T, n)."""
    cost, steps, (n,) = problem.running_cost, problem.steps, problem.reference.dims
    if cost is None:
        return None, torch.zeros(steps, n, dtype=torch.float64)
    if not isinstance(cost, QuadraticCost):
        raise InvalidProblem(
            f"the running cost is a {type(cost).__name__}; give a QuadraticCost, the only kind with"
            " this closed form.",
        )
    require(
        cost.F.shape in ((n, n), (steps, n, n)) and cost.h.shape in ((n,), (steps, n)),
        f"the running cost has F of shape {tuple(cost.F.shape)} and h of shape"
        f" {tuple(cost.h.shape)}; this problem has n = {n} and {steps} steps.",
    )
    return (cost.F.expand(steps, n, n) if bool((cost.F != 0).any()) else None), cost.h.expand(
        steps, n
    )


def index(k: Step, stack: Tensor) -> Step:
    """``k`` on the device of what it indexes."""
    return k.to(stack.device) if isinstance(k, Tensor) else k


def act(stack: Tensor, k: Step, x: Tensor) -> Tensor:
    """``stack_k x`` for matrices (steps, n, n) or diagonals (steps, n)."""
    if isinstance(k, Tensor) and stack.ndim == 3 and x.numel() * stack.shape[2] > GATHER_LIMIT:
        return by_step(k, x, lambda i, rows: act(stack, i, rows))
    picked = stack[index(k, stack)].to(x)
    if stack.ndim == 2:
        return picked * x
    return x @ picked.mT if picked.ndim == 2 else (picked @ x.unsqueeze(-1)).squeeze(-1)


def times(M: Tensor, factor: Tensor) -> Tensor:
    """``M factor`` for a number, a diagonal or a matrix."""
    return M @ factor if factor.ndim == 2 else M * factor


def sandwich(P: Tensor, noise: Tensor) -> Tensor:
    """``B' P B`` for scalar noises or matrices, batched or not."""
    if noise.ndim <= 1:
        return P * noise.reshape(*noise.shape, 1, 1) ** 2
    return noise.mT @ P @ noise


def diffusion_apply(
    diffusion: ScalarDiffusion | MatrixDiffusion, v: Float[Tensor, "steps m p"]
) -> Float[Tensor, "steps n p"]:
    """``B_k v_k`` at every step."""
    return _mapped(diffusion, v, transposed=False)


def diffusion_transpose(
    diffusion: ScalarDiffusion | MatrixDiffusion, a: Float[Tensor, "steps n p"]
) -> Float[Tensor, "steps m p"]:
    """``B_k' a_k`` at every step."""
    return _mapped(diffusion, a, transposed=True)


def _mapped(diffusion: ScalarDiffusion | MatrixDiffusion, x: Tensor, transposed: bool) -> Tensor:
    if isinstance(diffusion, ScalarDiffusion):
        return diffusion.sigma[:, None, None] * x
    return (diffusion.matrices.mT if transposed else diffusion.matrices) @ x


def accumulate(gained: Float[Tensor, " steps"], last: float) -> Float[Tensor, " steps_plus_1"]:
    """Sums from each step to the end, on top of ``last``."""
    return torch.cat([gained, gained.new_full((1,), last)]).flip(0).cumsum(0).flip(0)
