r"""Affine chains with quadratic rewards as matrices: sweeps over all steps, and laws of paths.

:math:`x_{k+1} = A_k x_k + b_k + B_k (v_k + \xi_k)`, :math:`r = x^\top P x/2 + q^\top x`, affine
controls :math:`v_k = K_k x + o_k`. Everything is differentiable in the control.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.reward import as_quadratic
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadratic import diffusion_apply

F64 = torch.float64


@dataclasses.dataclass(frozen=True, eq=False)
class AffineControl:
    """Gains ``K`` of shape (T, m, n) and offsets ``o`` of shape (T, m)."""

    K: Tensor
    o: Tensor

    def minus(self, other: AffineControl) -> AffineControl:
        """The difference."""
        return AffineControl(self.K - other.K, self.o - other.o)

    def mixed(self, other: AffineControl, theta: float) -> AffineControl:
        """``(1 - theta) self + theta other``."""
        K, o = torch.lerp(self.K, other.K, theta), torch.lerp(self.o, other.o, theta)
        return AffineControl(K, o)

    @property
    def size(self) -> float:
        """The largest entry."""
        return max(float(self.K.abs().max()), float(self.o.abs().max()))

    @property
    def step_sizes(self) -> Tensor:
        """The largest entry of every step, shape (T,)."""
        return torch.maximum(self.K.abs().amax((1, 2)), self.o.abs().amax(1))


@dataclasses.dataclass(frozen=True, eq=False)
class AffineChain:
    """The problem as tensors: A (T, n, n), b (T, n), B (T, n, m), beta (T,), P (n, n), q (n,)."""

    A: Tensor
    b: Tensor
    B: Tensor
    beta: Tensor
    P: Tensor
    q: Tensor
    problem: ControlProblem

    @classmethod
    def of(cls, problem: ControlProblem) -> AffineChain:
        """From a problem with an affine reference, a quadratic reward and no running cost."""
        reference, form = problem.reference, as_quadratic(problem.reward)
        assert isinstance(reference, AffineReference)
        assert problem.running_cost is None
        eye = torch.eye(*reference.noise_dims, dtype=F64).expand(reference.steps, -1, -1)
        B = diffusion_apply(reference.diffusion, eye)
        A, b = reference.transition, reference.offset
        return cls(A, b, B, problem.beta, form.P, form.linear, problem)

    @property
    def steps(self) -> int:
        """T."""
        return len(self.A)

    @property
    def none(self) -> AffineControl:
        """No control."""
        T, n, m = self.B.shape
        return AffineControl(torch.zeros(T, m, n, dtype=F64), torch.zeros(T, m, dtype=F64))

    @functools.cached_property
    def optimum(self) -> AffineControl:
        """The optimal control, of the solver."""
        policy = LinearQuadratic(self.problem).affine_policy
        return AffineControl(policy.gain.detach(), policy.offset.detach())

    def policy(self, control: AffineControl) -> AffinePolicy:
        """The control as a policy."""
        return AffinePolicy(control.K, control.o)

    def closed(self, control: AffineControl) -> tuple[Tensor, Tensor]:
        """``A + B K`` and ``b + B o``."""
        moved = self.b + (self.B @ control.o.unsqueeze(2)).squeeze(2)
        return self.A + self.B @ control.K, moved

    def values(self, control: AffineControl) -> tuple[Tensor, Tensor]:
        """``P_k`` and ``q_k`` of ``V^v_k``, k = 1..T, shapes (T, n, n) and (T, n)."""
        M, c = self.closed(control)
        P, q, found = self.P, self.q, [(self.P, self.q)]
        for k in reversed(range(1, self.steps)):
            K, o, beta = control.K[k], control.o[k], self.beta[k]
            q = M[k].mT @ (P @ c[k] + q) - beta * K.mT @ o
            P = M[k].mT @ P @ M[k] - beta * K.mT @ K
            found.append((P, q))
        found.reverse()
        return torch.stack([p for p, _ in found]), torch.stack([q for _, q in found])

    def lean(self, control: AffineControl) -> tuple[Tensor, Tensor]:
        """``E[a_k | x_k] = P_k x_k + q_k`` of lean costates, k = 1..T."""
        M, c = self.closed(control)
        P, q, found = self.P, self.q, [(self.P, self.q)]
        for k in reversed(range(1, self.steps)):
            q = self.A[k].mT @ (P @ c[k] + q)
            P = self.A[k].mT @ P @ M[k]
            found.append((P, q))
        found.reverse()
        return torch.stack([p for p, _ in found]), torch.stack([q for _, q in found])

    def gradient_target(self, control: AffineControl) -> AffineControl:
        """``B^T E[grad V^v_{k+1}(x_{k+1}) | x_k] / beta``, the full adjoint's."""
        return self._pushed(control, *self.values(control))

    def lean_target(self, control: AffineControl) -> AffineControl:
        """``B^T E[a_{k+1} | x_k] / beta``, adjoint matching's."""
        return self._pushed(control, *self.lean(control))

    def howard_target(self, control: AffineControl) -> AffineControl:
        """``argmax_v E V^v_{k+1}(m + B (v + xi)) - beta |v|^2 / 2``."""
        P, q = self.values(control)
        bent = self.beta[:, None, None] * torch.eye(self.B.shape[2], dtype=F64)
        bent = bent - self.B.mT @ P @ self.B
        slope = (P @ self.b.unsqueeze(2)).squeeze(2) + q
        K = torch.linalg.solve(bent, self.B.mT @ P @ self.A)
        o = torch.linalg.solve(bent, self.B.mT @ slope.unsqueeze(2)).squeeze(2)
        return AffineControl(K, o)

    def _pushed(self, control: AffineControl, P: Tensor, q: Tensor) -> AffineControl:
        M, c = self.closed(control)
        slope = (P @ c.unsqueeze(2)).squeeze(2) + q
        o = (self.B.mT @ slope.unsqueeze(2)).squeeze(2) / self.beta[:, None]
        return AffineControl(self.B.mT @ P @ M / self.beta[:, None, None], o)

    def paths(self, control: AffineControl) -> tuple[Tensor, Tensor]:
        """States of all steps as ``S z + s`` of the noise z = (initial, xi_0, .., xi_{T-1});
        shapes (T + 1, n, N) and (T + 1, n).
        """
        reference = self.problem.reference
        assert isinstance(reference, AffineReference)
        (T, n, m), (M, c) = self.B.shape, self.closed(control)
        pushed = torch.zeros(T + 1, n, n + T * m, dtype=F64)
        pushed[0, :, :n] = reference.initial_factor
        for k in range(T):
            pushed[k + 1, :, n + k * m : n + (k + 1) * m] = self.B[k]
        S, s = [pushed[0]], [reference.initial_mean]
        for k in range(T):
            S.append(M[k] @ S[-1] + pushed[k + 1])
            s.append(M[k] @ s[-1] + c[k])
        return torch.stack(S), torch.stack(s)

    def noises(self, control: AffineControl) -> tuple[Tensor, Tensor]:
        """``v_k + xi_k`` as ``S z + s`` of the noise, shapes (T, m, N) and (T, m)."""
        (T, n, m), (S, s) = self.B.shape, self.paths(control)
        found = control.K @ S[:-1]
        for k in range(T):
            found[k, :, n + k * m : n + (k + 1) * m] += torch.eye(m, dtype=F64)
        return found, (control.K @ s[:-1].unsqueeze(2)).squeeze(2) + control.o


@dataclasses.dataclass(frozen=True, eq=False)
class Form:
    """A quadratic function ``z' H z / 2 + g' z + c`` of standard normal noise z."""

    H: Tensor
    g: Tensor
    c: Tensor

    def plus(self, other: Form, times: float = 1.0) -> Form:
        """A combination."""
        return Form(self.H + times * other.H, self.g + times * other.g, self.c + times * other.c)

    @property
    def mean(self) -> float:
        """``E``."""
        return float(self.H.trace() / 2 + self.c)

    def log_mean_exp(self) -> float:
        """``log E exp``; infinite where it is."""
        bent = torch.eye(len(self.H), dtype=F64) - self.H
        spread, basis = torch.linalg.eigh(bent)
        if float(spread.min()) <= 0:
            return float("inf")
        along = (basis.mT @ self.g).square() / spread
        return float(self.c + along.sum() / 2 - spread.log().sum() / 2)


def square(S: Tensor, s: Tensor) -> Form:
    """``|S z + s|^2 / 2``."""
    return Form(S.mT @ S, S.mT @ s, s @ s / 2)


def reward_form(chain: AffineChain, control: AffineControl) -> Form:
    """``r(x_T)``."""
    S, s = (each[-1] for each in chain.paths(control))
    P, q = chain.P, chain.q
    return Form(S.mT @ P @ S, S.mT @ (P @ s + q), s @ P @ s / 2 + q @ s)
