r"""Exact solution of separable problems in any dimension, from one-dimensional ones.

With independent coordinates :math:`q_i^\top x` (a `socft.density.Rotated` law) and a reward
:math:`\sum_i r_i(q_i^\top x)` (`socft.reward.Separable`) along the same orthonormal directions,
every value function is a sum, :math:`V_k(x) = \sum_i V_{k,i}(q_i^\top x)`, and the optimal control
is :math:`\sum_i q_i v_{k,i}(q_i^\top x)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import require, require_kind
from socft.density import Rotated, score_reference
from socft.problem import ControlProblem
from socft.reference import Noises, States, Step
from socft.reward import PerSample, Separable
from socft.schedule import Schedule
from socft.truth.base import ErrorBounds, Truth
from socft.truth.quadrature import Quadrature

SAME_ROTATION = 1e-12


class SeparableTruth(Truth):
    """The exact optimum of a rotated product problem, by one-dimensional quadrature per distinct
    coordinate.

    Args:
        density: data law with independent coordinates.
        reward: a sum of one-dimensional rewards along the same directions.
        schedule: the denoising chain.
        beta: KL weight, one number or one per step.

    Attributes:
        parts: the one-dimensional solution of every direction; equal coordinates share one.

    >>> law = Rotated(torch.eye(2), [Gaussian(0.0, 0.5)] * 2)
    >>> reward = Separable(torch.eye(2), [Sine(), Sine()])
    >>> truth = SeparableTruth(law, reward, ddpm([0.1, 0.5, 1.0]), beta=2.0)
    >>> truth.control(0, torch.zeros(1, 2)).shape
    torch.Size([1, 2])
    """

    def __init__(
        self, density: Rotated, reward: Separable, schedule: Schedule, beta: float | Tensor
    ):
        require_kind(density, Rotated, "the law", "give a Rotated.")
        require_kind(reward, Separable, "the reward", "give a Separable.")
        apart = reward.rotation.shape != density.rotation.shape or float(
            (reward.rotation - density.rotation).abs().max()
        )
        require(
            apart <= SAME_ROTATION,
            "the reward and the law use different directions; give both the same rotation.",
        )
        self.problem = ControlProblem(score_reference(density, schedule), reward, beta)
        self.rotation = density.rotation
        solved: dict[tuple[int, int], Quadrature] = {}
        for factor, scalar in zip(density.factors, reward.scalars, strict=True):
            key = (id(factor), id(scalar))
            if key not in solved:
                solved[key] = Quadrature(
                    ControlProblem(score_reference(factor, schedule), scalar, beta)
                )
        self.parts = tuple(
            solved[id(f), id(r)] for f, r in zip(density.factors, reward.scalars, strict=True)
        )

    @classmethod
    def of_parts(
        cls, problem: ControlProblem, rotation: Float[Tensor, "n n"], parts: Sequence[Quadrature]
    ) -> SeparableTruth:
        """The optimum of any problem that is the sum of one-dimensional ones along orthonormal
        directions, the caller's word.

        Args:
            problem: the n-dimensional problem.
            rotation: the directions as columns.
            parts: the solution along each direction; equal coordinates may share one.
        """
        require(
            rotation.shape == (len(parts), len(parts)) and problem.reference.dims == (len(parts),),
            f"there are {len(parts)} parts and directions of shape {tuple(rotation.shape)} for"
            f" states of shape {problem.reference.dims}; give one part per coordinate.",
        )
        truth = cls.__new__(cls)
        truth.problem, truth.rotation, truth.parts = problem, rotation, tuple(parts)
        return truth

    def _find_errors(self) -> ErrorBounds:
        """Root of the summed squares of the coordinates' errors; of values the sum."""
        each = [part.errors for part in self.parts]
        return ErrorBounds(
            math.hypot(*(e.control for e in each)),
            math.hypot(*(e.gradient for e in each)),
            math.fsum(e.value for e in each),
            math.fsum(e.objective for e in each),
        )

    def value(self, k: Step, x: States) -> PerSample:
        return torch.stack([part.value(k, z) for part, z in self._coordinates(x)]).sum(0)

    def value_gradient(self, k: Step, x: States) -> States:
        return torch.cat(
            [part.value_gradient(k, z) for part, z in self._coordinates(x)], 1
        ) @ self.rotation.T.to(x)

    def control(self, k: Step, x: States) -> Noises:
        return torch.cat(
            [part.control(k, z) for part, z in self._coordinates(x)], 1
        ) @ self.rotation.T.to(x)

    @property
    def objective(self) -> float:
        objectives = {part: part.objective for part in dict.fromkeys(self.parts)}
        return math.fsum(objectives[part] for part in self.parts)

    def _coordinates(self, x: States) -> list[tuple[Quadrature, Tensor]]:
        return list(zip(self.parts, (x @ self.rotation.to(x)).split(1, dim=1), strict=True))
