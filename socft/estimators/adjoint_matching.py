r"""Adjoint matching (Domingo-Enrich et al., arXiv 2409.08861) with the exact discrete target.

The target of step k is :math:`B_k^\top a_{k+1}/\beta_k` with the lean costate of `socft.adjoint.lean_adjoint`. Its fixed point is
the optimal control; away from it the loss gradient is a different vector field from the objective's.
"""

from __future__ import annotations

from typing import ClassVar

from socft.adjoint import control_targets, lean_adjoint
from socft.estimators.base import Kind, Labels, MatchingEstimator
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.rollout import Path


class AdjointMatching(MatchingEstimator):
    """Zero in expectation at the optimum; one vjp of the reference per step."""

    estimates: ClassVar[Kind] = "fixed-point residual"

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        return Labels(path.states[:-1], control_targets(problem, path, lean_adjoint(problem, path)))
