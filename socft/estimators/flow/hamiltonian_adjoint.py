r"""Hamiltonian adjoint matching (arXiv 2604.08580): the lean adjoint where the noise depends on the
state.

The costate is that of the kernel with the control held where it is,

.. math:: a_k = \big(\nabla m_k + \nabla_x [B_k(x)\,(v + \xi_k)]\big)^\top a_{k+1} - \nabla f_k,
    \qquad v = v_k(x_k) \text{ held},

the gradient in the state of the Hamiltonian of the step, and the target is
:math:`B_k^\top a_{k+1}/\beta_k`. By the envelope identity it is a sample of the optimal value's
gradient at the optimum for every :math:`B_k(x)`: of the full adjoint only
:math:`\nabla v_k^\top (B_k^\top a_{k+1} - \beta_k v_k)` is left out, whose mean is zero there. With
a :math:`B_k` that does not depend on the state it is adjoint matching. Both terms of
:math:`v + \xi_k` are needed: the noise alone, or neither, is biased (derived here for the chain).

Noise level: as for adjoint matching, and the spread of :math:`\nabla B_k \xi_k` on top.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from socft.costates.adjoint import FullRecursion, backward_pass
from socft.costates.base import Cost, CostateStep
from socft.estimators.base import CostateEstimator
from socft.estimators.estimand import Estimand, FixedPointResidual
from socft.path import Path
from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem


class HamiltonianAdjointMatching(CostateEstimator):
    """Zero in expectation at the optimum whatever the noise; one vjp of the kernel per step.

    >>> HamiltonianAdjointMatching().estimates
    FixedPointResidual(any_noise=True)
    """

    estimates: ClassVar[Estimand] = FixedPointResidual(any_noise=True)
    source: ClassVar[str] = "arXiv 2604.08580; the chain's form derived here"

    @property
    def cost(self) -> Cost:
        return Cost(reference_derivatives=1)

    def backward_pass(
        self, problem: ControlProblem, policy: Policy, path: Path
    ) -> Iterator[CostateStep]:
        held = FunctionPolicy(lambda k, x: path.controls[k])
        return backward_pass(FullRecursion(), problem, held, path)
