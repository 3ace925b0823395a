r"""Chains run backwards in time with constant noise (Mei and Taghvaei, arXiv 2603.20455v2).

For :math:`x' = \bar x_k(x) + B_k \xi` with the drift :math:`\bar x_k(x) - x` and
:math:`D_k = B_k B_k^\top`,

.. math:: X_k = X - (\bar x_k(X) - X) + D_k \nabla \log p_{k+1}(X) + B_k \xi'_k, \qquad X = X_{k+1},

has the marginal laws of the chain up to O(dt), with fresh noise :math:`\xi'` and the score of those
laws (`socft.costates.marginal_score`).
"""

from __future__ import annotations

import dataclasses
import hashlib
from types import NoneType

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require, require_kinds
from socft.costates.marginal_score import MarginalScore
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import MatrixDiffusion, Noises, ScalarDiffusion


@dataclasses.dataclass(frozen=True)
class Reversal:
    """States of the reversed chain and the noise increments that its costates and values see.

    Attributes:
        states: shape (T + 1, batch, *dims).
        drifts: ``D_k grad log p_{k+1}`` at the state of step k + 1, shape (T, batch, *dims).
        noise_increments: ``B_k xi'`` as costates and values see it, shape (T, batch, *dims).
        controls: ``v_k`` at the state of step k + 1, shape (T, batch, *noise_dims).
        published: whether a costate field is taken at the state that step k ends in, with the noise
            that leads on from there, in place of the state it starts from.
    """

    states: Float[Tensor, "steps_plus_1 batch *dims"]
    drifts: Float[Tensor, "steps batch *dims"]
    noise_increments: Float[Tensor, "steps batch *dims"]
    controls: Float[Tensor, "steps batch *noise_dims"]
    published: bool = False

    def place(self, k: int) -> tuple[int, Float[Tensor, "batch *dims"]]:
        """Step and states at which step k takes a costate field."""
        step = k if self.published else k + 1
        return step, self.states[step]


@dataclasses.dataclass(frozen=True)
class Reverser:
    """Runs a chain backwards from the ends of given paths.

    Attributes:
        score: how the score of the marginal laws is known.
        generator: makes the noise of the reversed chain, which must not be that of the paths; by
            default every path has one that is seeded by its own noise, so that all is a function of
            the paths.
        published_pairing: whether costates and values are paired with noise as in the published
            code, where they run one step ahead of the states: step k takes the field at ``X_k``
            with the noise of the step from there to ``X_{k-1}``. Their mean given the state is the
            same up to O(dt); a sample is off by one increment, of the order of the square root of
            the step size.
    """

    score: MarginalScore
    generator: torch.Generator | None = None
    published_pairing: bool = False

    def __post_init__(self) -> None:
        require_kinds(
            self,
            score=MarginalScore,
            generator=(torch.Generator, NoneType),
            published_pairing=bool,
        )

    @property
    def couples_batch(self) -> bool:
        """Whether the reversal of a path depends on the other paths of its batch."""
        return self.generator is not None or self.score.couples_batch

    def noise(self, path: Path) -> Noises:
        """The noise of the reversed chain, with one more before it where costates run ahead."""
        (steps, batch, *dims), like = path.noise.steps.shape, path.states
        lengths = (steps, 1) if self.published_pairing else (steps,)
        if self.generator is not None:
            device = self.generator.device
            parts = [
                torch.randn(
                    n, batch, *dims, generator=self.generator, dtype=like.dtype, device=device
                )
                for n in lengths
            ]
            return torch.cat(parts[::-1]).to(like)
        own = (
            path.noise.steps.detach()
            .cpu()
            .transpose(0, 1)
            .contiguous()
            .flatten(1)
            .view(torch.uint8)
            .numpy()
        )
        seeds = [int.from_bytes(hashlib.sha256(row.tobytes()).digest()[:7]) for row in own]
        drawn = [torch.empty(batch, n, *dims, dtype=like.dtype) for n in lengths]
        generator = torch.Generator()
        for seed, *each in zip(seeds, *drawn, strict=True):
            generator.manual_seed(seed)
            for row in each:
                row.normal_(generator=generator)
        return torch.cat(drawn[::-1], 1).transpose(0, 1).contiguous().to(like)

    @torch.no_grad()
    def run(self, problem: ControlProblem, policy: Policy, path: Path) -> Reversal:
        reference, kind = problem.reference, type(problem.reference.diffusion).__name__
        constant = isinstance(reference.diffusion, ScalarDiffusion | MatrixDiffusion)
        require(
            constant,
            f"the diffusion is a {kind}; reversing time this way needs a constant B_k, as in"
            " MatrixDiffusion.",
        )
        batch, smallest = len(path.final), self.score.smallest_batch(problem)
        require(
            batch >= smallest,
            f"batch = {batch}; {type(self.score).__name__} is fitted to the paths and needs at"
            f" least {smallest}.",
        )
        score = self.score.fit(problem, policy, path)
        drawn = self.noise(path)
        noise, seen = drawn[-problem.steps :], drawn[: problem.steps]
        states, drifts, noise_increments, controls = [path.final], [], [], []
        for k in reversed(range(problem.steps)):
            x = states[-1]
            v, drift = policy(k, x), reference.diffusion.apply(k, x, score(k, x))
            states.append(
                2 * x - reference.step(k, x, v) + drift + reference.diffusion.apply(k, x, noise[k])
            )
            drifts.append(drift)
            noise_increments.append(reference.diffusion.apply(k, x, seen[k]))
            controls.append(v)
        kept = (torch.stack(each[::-1]) for each in (states, drifts, noise_increments, controls))
        return Reversal(*kept, published=self.published_pairing)
