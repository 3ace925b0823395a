"""Costates of infinitely many paths."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.truth.quadratic import affine_of, running_of
from toy.sweeps.oscillator import AffineCostate, OscillatorCase, Rule, noise_and_beta
from toy.sweeps.schemes import CONVERGED


@dataclasses.dataclass(frozen=True)
class ReversedLimit:
    """The time-reversed costate of infinitely many paths.

    Attributes:
        costate: the fixed point of the rounds; None where they do not settle.
        offset_factor: by how much a round multiplies an offset, in the end.
    """

    costate: AffineCostate | None
    offset_factor: float


def reversed_limit(where: OscillatorCase, rule: Rule, rounds: int) -> ReversedLimit:
    """The fixed point of rounds with exact scores and moments (derived here), from Euler's explicit
    solution; see the module.

    From zero, the first policies are so poor that at long horizons the moments of their paths are
    singular in double precision (condition 1e152 for dt = 0.05 and T = 8), and the rounds never
    come back to the fixed point that they have in exact arithmetic.
    """
    found = AffineCostate(explicit_riccati(where).G, torch.ones_like(where.chain.g))
    change, size, factor = math.inf, 1.0, math.inf
    for _ in range(rounds):
        before, previous = found, factor
        after = _reversed_round(where.problem, rule(where.problem, before, where.channel), before)
        change, size, factor = (
            float((after.G - before.G).abs().max()),
            float(after.G.abs().max()),
            float(after.g.norm()),
        )
        found = AffineCostate(after.G, after.g / factor if factor > 0 else after.g)
        if change <= LIMIT_CONVERGED * size and abs(factor - previous) <= CONVERGED:
            break
    settled = change <= CONVERGED * size
    return ReversedLimit(
        AffineCostate(found.G, torch.zeros_like(found.g)) if settled else None, factor
    )


def _reversed_round(
    problem: ControlProblem, policy: AffinePolicy, before: AffineCostate
) -> AffineCostate:
    """Least squares of Y on (X, 1) with their exact second moments; linear in the offsets, which no
    gain depends on.
    """
    reference, (F, _), (B, _), steps = (
        affine_of(problem),
        running_of(problem),
        noise_and_beta(problem),
        problem.steps,
    )
    n = reference.dims[0]
    eye, unit = torch.eye(n, dtype=torch.float64), torch.eye(n + 1, dtype=torch.float64)
    closed, spread = unit.repeat(steps, 1, 1), torch.zeros(steps, n + 1, n + 1, dtype=torch.float64)
    closed[:, :n] = torch.cat(
        [reference.transition + B @ policy.gain.detach(), B @ policy.offset.detach().unsqueeze(2)],
        2,
    )
    spread[:, :n, :n] = B @ B.mT
    start = torch.block_diag(reference.initial_factor @ reference.initial_factor.mT, unit[n:, n:])
    forward = [start]
    for k in range(steps):
        forward.append(closed[k] @ forward[-1] @ closed[k].mT + spread[k])
    end = (problem.reward.gradient(eye) - problem.reward.gradient(0 * eye)).mT
    fits, after = [torch.nn.functional.pad(end, (0, 1))], forward[-1]
    for k in reversed(range(steps)):
        back = 2 * unit - closed[k] - spread[k] @ torch.linalg.pinv(forward[k + 1], hermitian=True)
        here = back @ after @ back.mT + spread[k]
        seen = after @ back.mT @ torch.linalg.pinv(here, hermitian=True)
        rest = reference.transition[k].mT @ fits[-1] + before.G[k + 1] @ (closed[k] - 2 * unit)[:n]
        if F is not None:
            rest[:, :n] -= F[k]
        fits.append(torch.nn.functional.pad(before.G[k + 1], (0, 1)) + rest @ seen)
        after = here
    found = torch.stack(fits[::-1])
    return AffineCostate(found[:, :, :n].contiguous(), found[:, :, n].contiguous())


def _riccati_steps(where: OscillatorCase) -> Iterator[tuple[Tensor, Tensor, Tensor | float]]:
    """Backwards over the steps: transition, what a control does over its weight, running cost."""
    reference, (F, _) = affine_of(where.problem), running_of(where.problem)
    B, beta = noise_and_beta(where.problem)
    for k in reversed(range(where.problem.steps)):
        push = B[k] @ where.channel
        yield reference.transition[k], push @ push.mT / beta[k], 0.0 if F is None else F[k]


def forward_limit(where: OscillatorCase) -> AffineCostate:
    """The costate of forward methods with the published index, for infinitely many paths."""
    eye, G = torch.eye(*where.problem.reference.dims).double(), [where.chain.G[-1]]
    for A, steer, cost in _riccati_steps(where):
        pulled = A.mT @ G[-1]
        G.append(torch.linalg.solve(eye - pulled @ steer, pulled @ A - cost))
    return AffineCostate(torch.stack(G[::-1]), where.chain.g)


def explicit_riccati(where: OscillatorCase) -> AffineCostate:
    """Euler's explicit method backwards on the continuous Riccati equation, with the coefficients
    of an Euler-Maruyama chain.
    """
    eye, P = torch.eye(*where.problem.reference.dims).double(), [where.chain.G[-1]]
    for A, steer, cost in _riccati_steps(where):
        drift = A - eye
        P.append(P[-1] + drift.mT @ P[-1] + P[-1] @ drift + P[-1] @ steer @ P[-1] - cost)
    return AffineCostate(torch.stack(P[::-1]), where.chain.g)


LIMIT_CONVERGED = 1e-12
