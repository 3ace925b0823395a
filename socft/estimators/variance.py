r"""The variance loss :math:`\mathrm{Var}_{P^u}(dP^*/dP^v)` (arXiv 2312.02027), in log space.

With :math:`\rho \propto e^{-R(v)/\beta}`, R the work functional of `socft.path_measure`, normalised
to mean one over the paths, and controlled noises :math:`z_k = u_k + \xi_k`, half the variance in
units of the squared mean has the gradient :math:`-E_{P^u}[\rho(\rho - 1) \sum_k (\nabla v_k)^\top
(z_k - v_k)]`, that of the matching loss over beta with the targets

.. math:: v_k + \rho\,(\rho - 1)\,(z_k - v_k) .

It vanishes where :math:`\rho` is constant, at the optimum of the SDE. On a chain it is off by O(dt)
relative to the control, on paths of the policy itself (derived here). There :math:`\log\rho`
is a constant plus :math:`S = \sum_k s_k`, :math:`\beta s_k = V_{k+1}(x_{k+1}) - V_k - f_k -
\beta|v_k|^2/2 - \beta v_k \cdot \xi_k`. Given :math:`x_k` the mean of :math:`s_k` vanishes, and it
is orthogonal to :math:`\xi_k`, because the optimal control is the mean of :math:`B^\top \nabla
V_{k+1}/\beta`: it consists of Hermite polynomials of degree two and more, the first being
:math:`\xi^\top B^\top \nabla^2 V B \xi/(2\beta)` less its mean, O(dt). In :math:`\rho(\rho - 1) = S
+ 3S^2/2 - E S^2/2 + \ldots` the first term, and all products of :math:`s_i s_j`, :math:`i \ne j`,
are orthogonal to :math:`\xi_k`, and so is :math:`s_k^2` up to :math:`O(dt^{5/2})`. What is left is

.. math:: E[\rho(\rho - 1)\,\xi_k \mid x_k] = \tfrac32\, E\Big[\sum_{j>k} q_j(x_j)\, \xi_k \,\Big|\,
    x_k\Big] + O(dt^{5/2}), \qquad q_j = E[s_j^2 \mid x_j] = \frac{|B^\top \nabla^2 V_{j+1} B|^2}
    {2\beta^2} + O(dt^3),

:math:`O(dt^{3/2})` where controls are :math:`O(dt^{1/2})`. It is zero in every linear-quadratic
problem, whose :math:`q_j` are constant. The series needs :math:`B^\top \nabla^2 V B/\beta` small:
on coarse chains no order is seen. The means are over paths with the same start, except on the
policy's own paths.

Noise level: the spread of :math:`\rho^2` is exponential in that of the work functional: usable near
the optimum only.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from socft.estimators.base import Labels
from socft.estimators.estimand import ApproximateResidual, Estimand, ResidualZero
from socft.estimators.log_variance import GroupedEstimator, comparable_controls, deviation_labels
from socft.finite import require_finite_paths
from socft.path import Path
from socft.path_measure import normalised, work_functional
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class Variance(GroupedEstimator):
    """Zero at the optimum up to O(dt), on paths of any policy; no derivatives.

    Raises:
        InvalidProblem: beta is not constant, a group has one path only, a work functional is not
            finite, or, on paths of another policy, a group has several starts.

    >>> print(Variance().estimates.kind)
    fixed-point residual up to O(dt)
    """

    estimates: ClassVar[Estimand] = ApproximateResidual(ResidualZero.EQUAL_WEIGHTS, any_noise=True)
    source: ClassVar[str] = "arXiv 2312.02027; arXiv 2005.05409"

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        beta = problem.constant_beta("the variance loss")
        controls = comparable_controls(problem, policy, path, self.groups, "the variance loss")
        log_ratio = -work_functional(problem, controls, path) / beta
        require_finite_paths(problem, path, log_ratio, "the log-ratios of the variance loss")
        ratio = normalised(log_ratio, self.groups)
        return deviation_labels(problem, controls, path, -beta * ratio * (ratio - 1))
