r"""Exact evaluation and gradient of affine policies in the linear-quadratic problem.

Under :math:`v_k(x) = K_k x + o_k` the chain is Gaussian,
:math:`x' = \bar A_k x + \bar b_k + B_k \xi` with :math:`\bar A_k = A_k + B_k K_k`,
:math:`\bar b_k = b_k + B_k o_k`, and its value functions are quadratic:

.. math:: P_k = \bar A_k^\top P_{k+1} \bar A_k - \beta_k K_k^\top K_k - F_k, \qquad
   q_k = \bar A_k^\top (P_{k+1} \bar b_k + q_{k+1}) - \beta_k K_k^\top o_k - h_k .

Derived here; no optimum need exist.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.density import Gaussian
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reward import as_quadratic
from socft.truth.base import Evaluation
from socft.truth.quadratic import (
    QuadraticValue,
    accumulate,
    affine_of,
    diffusion_apply,
    diffusion_transpose,
    running_of,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyMoments(Evaluation):
    """What an affine policy achieves, exactly, with the moments of its chain.

    Attributes:
        running_cost: expected running cost per step, shape (T,).
        mean: mean of every state, shape (T + 1, n).
        covariance: covariance of every state, shape (T + 1, n, n).
    """

    running_cost: Float[Tensor, " steps"]
    mean: Float[Tensor, "steps_plus_1 n"]
    covariance: Float[Tensor, "steps_plus_1 n n"]

    @property
    def final_law(self) -> Gaussian:
        """The law of ``X_T``."""
        return Gaussian(self.mean[-1], self.covariance[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PolicyEvaluation(PolicyMoments):
    """The same, and the policy's own value functions; their gradient is its costate."""

    value: QuadraticValue


@dataclasses.dataclass(frozen=True)
class AffineGradient(Readable):
    """Gradient of the objective with respect to an affine policy: ``gain`` (T, m, n), ``offset``
    (T, m).
    """

    gain: Float[Tensor, "steps m n"]
    offset: Float[Tensor, "steps m"]


@torch.no_grad()
def evaluate_affine(problem: ControlProblem, policy: AffinePolicy) -> PolicyEvaluation:
    """Exact objective, value functions and state moments of ``v_k(x) = K_k x + o_k``; also where
    the optimum is infinite.

    Raises:
        InvalidProblem: the reference is not affine, the reward or the running cost not quadratic,
            or a shape does not fit.
    """
    found, value = (
        affine_moments(problem, policy),
        _policy_value(problem, policy, _close(problem, policy)),
    )
    fields = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    return PolicyEvaluation(value=value, **fields)


@torch.no_grad()
def affine_moments(problem: ControlProblem, policy: AffinePolicy) -> PolicyMoments:
    """`evaluate_affine` without the value functions, in half the time."""
    form = as_quadratic(problem.reward)
    mean, covariance = _moments(problem, _close(problem, policy))
    second = covariance + mean.unsqueeze(2) * mean.unsqueeze(1)
    moved = (policy.gain @ mean[:-1].unsqueeze(2)).squeeze(2)
    squared = (policy.gain @ second[:-1] * policy.gain).sum((1, 2))
    kl = squared / 2 + (policy.offset * (moved + policy.offset / 2)).sum(1)
    F, h = running_of(problem)
    running = (h * mean[:-1]).sum(1) + (0 if F is None else (F * second[:-1]).sum((1, 2)) / 2)
    reward = float((form.P * second[-1]).sum() / 2 + form.linear @ mean[-1]) + form.c
    objective = reward - float(running.sum() + problem.beta @ kl)
    return PolicyMoments(
        objective=objective,
        reward=reward,
        kl=kl,
        running_cost=running,
        mean=mean,
        covariance=covariance,
    )


@torch.no_grad()
def affine_gradient(problem: ControlProblem, policy: AffinePolicy) -> AffineGradient:
    r"""Exact gradient of the objective with respect to the gains and offsets of an affine policy.

    Equation 77 of arXiv 2412.18164v4 in whitened form:
    :math:`\nabla_{[K_k, o_k]} J = E[ \partial_v Q_k(X_k, v_k(X_k)) [X_k; 1]^\top ]` with
    :math:`\partial_v Q_k = B_k^\top E \nabla V^{policy}_{k+1} - \beta_k v_k`, affine in the state.
    """
    closed = _close(problem, policy)
    value = _policy_value(problem, policy, closed)
    mean, covariance = _moments(problem, closed)
    diffusion, beta, after = (
        affine_of(problem).diffusion,
        problem.beta[:, None, None],
        value.hessian[1:],
    )
    linear = diffusion_transpose(diffusion, after @ closed.A) - beta * policy.gain
    costate = after @ closed.b.unsqueeze(2) + value.slope[1:].unsqueeze(2)
    at_mean = (
        linear @ mean[:-1].unsqueeze(2)
        + diffusion_transpose(diffusion, costate)
        - beta * policy.offset.unsqueeze(2)
    ).squeeze(2)
    return AffineGradient(
        linear @ covariance[:-1] + at_mean.unsqueeze(2) * mean[:-1].unsqueeze(1), at_mean
    )


@dataclasses.dataclass(frozen=True)
class _Closed:
    """A controlled chain ``x' = A_k x + b_k + B_k xi``."""

    A: Float[Tensor, "steps n n"]
    b: Float[Tensor, "steps n"]


def _close(problem: ControlProblem, policy: AffinePolicy) -> _Closed:
    reference = affine_of(problem)
    (m,), (n,) = reference.noise_dims, reference.dims
    require(
        policy.gain.shape == (reference.steps, m, n),
        f"the policy's gain has shape {tuple(policy.gain.shape)}; this problem needs"
        f" ({reference.steps}, {m}, {n}).",
    )
    shift = diffusion_apply(reference.diffusion, policy.offset.unsqueeze(2)).squeeze(2)
    return _Closed(
        reference.transition + diffusion_apply(reference.diffusion, policy.gain),
        reference.offset + shift,
    )


def _policy_value(problem: ControlProblem, policy: AffinePolicy, closed: _Closed) -> QuadraticValue:
    """Backward in k: the quadratic value functions of a policy."""
    form, (F, h) = as_quadratic(problem.reward), running_of(problem)
    (n,), steps, beta = problem.reference.dims, problem.steps, problem.beta
    paid = beta[:, None, None] * policy.gain.mT @ policy.gain + (0 if F is None else F)
    paid_slope = (beta[:, None, None] * policy.gain.mT @ policy.offset.unsqueeze(2)).squeeze(2) + h
    P, q = (
        torch.empty(steps + 1, n, n, dtype=torch.float64),
        torch.empty(steps + 1, n, dtype=torch.float64),
    )
    P[steps], q[steps] = form.P, form.linear
    for k in reversed(range(steps)):
        square = closed.A[k].mT @ P[k + 1] @ closed.A[k] - paid[k]
        P[k] = (square + square.mT) / 2
        q[k] = (closed.b[k] @ P[k + 1] + q[k + 1]) @ closed.A[k] - paid_slope[k]
    diffusion = affine_of(problem).diffusion
    spread = (
        diffusion_transpose(diffusion, diffusion_transpose(diffusion, P[1:]).mT)
        .diagonal(dim1=1, dim2=2)
        .sum(1)
    )
    drift = (closed.b * ((P[1:] @ closed.b.unsqueeze(2)).squeeze(2) / 2 + q[1:])).sum(1)
    gained = spread / 2 + drift - beta * policy.offset.square().sum(1) / 2
    return QuadraticValue(P, q, accumulate(gained, form.c))


def _moments(problem: ControlProblem, closed: _Closed) -> tuple[Tensor, Tensor]:
    """Forward in k: mean (T + 1, n) and covariance (T + 1, n, n) of every state."""
    reference = affine_of(problem)
    means = [reference.initial_mean]
    covariances = [reference.initial_factor @ reference.initial_factor.mT]
    identity = torch.eye(*reference.noise_dims, dtype=torch.float64).expand(reference.steps, -1, -1)
    factors = diffusion_apply(reference.diffusion, identity)
    for A, b, noise in zip(
        closed.A.unbind(), closed.b.unbind(), (factors @ factors.mT).unbind(), strict=True
    ):
        means.append(torch.addmv(b, A, means[-1]))
        spread = torch.addmm(noise, A @ covariances[-1], A.mT)
        covariances.append((spread + spread.mT) / 2)
    return torch.stack(means), torch.stack(covariances)
