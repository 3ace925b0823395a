r"""The log-variance loss :math:`\mathrm{Var}_{P^u}(\log dP^v/dP^*)` (Nusken and Richter, arXiv
2005.05409).

With the work functional :math:`R(v)` of `socft.path_measure` and controlled noises :math:`z_k = u_k
+ \xi_k`, half the variance of R has the gradient
:math:`E_{P^u}[(R - E R) \sum_k \beta_k (\nabla v_k)^\top (z_k - v_k)]`. Divided by :math:`\beta_k`
step by step it is that of the matching loss with the targets

.. math:: v_k - (R - \bar R)(z_k - v_k)/\beta_k .

On paths of the policy itself :math:`z_k - v_k = \xi_k`, the past in R has mean zero against
:math:`\xi_k`, and :math:`E[\xi_k\, (\beta_k v_k \cdot \xi_k)] = \beta_k v_k` is the gradient of the
step's KL: the expectation is exactly minus the objective's gradient, for the chain at any step
size, for any start and any beta per step, with a control variate that removes all noise at the
optimum of the SDE if groups have one start each (derived here). On paths of another policy the zero
is at the optimum up to O(dt), and the mean :math:`\bar R` must be over paths with the same start,
as :math:`R(v^*) = -V_0(x_0)`; there `Moment` learns :math:`V_0` instead.

Noise level: the score function's, times the spread of R, which is O(sqrt(dt)) at the optimum.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import require
from socft.costates.base import Cost
from socft.estimators.base import BatchEstimator, Labels, MatchingEstimator
from socft.estimators.estimand import Estimand, ObjectiveGradient
from socft.finite import require_finite_paths
from socft.path import Path
from socft.path_measure import (
    controlled_noise,
    controls_along,
    group_mean,
    per_sample,
    work_functional,
)
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reward import PerSample


@dataclasses.dataclass(frozen=True)
class GroupedEstimator(BatchEstimator, MatchingEstimator):
    """Compares work functionals of paths with those of their group.

    Attributes:
        groups: index of each path's group, shape (batch,), over which means are taken; one group by
            default.
    """

    groups: Int[Tensor, " batch"] | None = None

    @property
    def cost(self) -> Cost:
        return Cost(policy=1)


@dataclasses.dataclass(frozen=True)
class LogVariance(GroupedEstimator):
    """Unbiased for the objective's gradient on paths of the policy; zero at the optimum, up to
    O(dt), on others.

    Raises:
        InvalidProblem: a group has one path only, or, on paths of another policy, paths with
            different starts, or a work functional is not finite.

    >>> print(LogVariance().estimates.kind)
    objective gradient
    """

    estimates: ClassVar[Estimand] = ObjectiveGradient()
    source: ClassVar[str] = "arXiv 2005.05409; arXiv 2312.02027; varying beta derived here"

    @torch.no_grad()
    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        controls = comparable_controls(problem, policy, path, self.groups, "log-variance")
        found = work_functional(problem, controls, path)
        require_finite_paths(problem, path, found, "the work functionals of log-variance")
        mean, count = group_mean(found, self.groups)
        return deviation_labels(problem, controls, path, (found - mean) * count / (count - 1))


def comparable_controls(
    problem: ControlProblem,
    policy: Policy,
    path: Path,
    groups: Int[Tensor, " batch"] | None,
    what: str,
) -> Float[Tensor, "steps batch *noise_dims"]:
    """The controls of a policy along paths whose work functionals have a variance in each group.

    Raises:
        InvalidProblem: a group has one path only, a control is not finite, or, on paths of another
            policy, a group has several starts.
    """
    counts = group_mean(path.states.new_zeros(len(path.final)), groups)[1]
    require(bool((counts >= 2).all()), "a group has 1 path; a variance needs at least 2 in each.")
    controls = controls_along(policy, path)
    require_finite_paths(problem, path, controls.flatten(2).sum(2), "the policy's controls")
    if not on_policy(controls, path):
        require_same_starts(path, groups, what)
    return controls


def deviation_labels(
    problem: ControlProblem,
    controls: Float[Tensor, "steps batch *noise_dims"],
    path: Path,
    deviation: PerSample,
) -> Labels:
    """Targets ``v_k - deviation (z_k - v_k) / beta_k``, which take the place of the controls."""
    beta = problem.beta.to(deviation)
    for k in range(problem.steps):
        noise = controlled_noise(path, k) - controls[k]
        controls[k] -= per_sample(deviation / beta[k], noise) * noise
    return Labels(path.states[:-1], controls)


def on_policy(controls: Float[Tensor, "steps batch *noise_dims"], path: Path) -> bool:
    """Whether the controls are those that made the path, up to half the digits."""
    tolerance = torch.finfo(controls.dtype).eps ** 0.5
    pairs = zip(controls, path.controls, strict=True)
    return all(bool(((v - u).abs() <= tolerance * (1 + u.abs())).all()) for v, u in pairs)


def require_same_starts(path: Path, groups: Int[Tensor, " batch"] | None, what: str) -> None:
    """Refuse groups of paths that do not start from one state each."""
    starts = path.states[0].flatten(1)
    means = torch.stack([group_mean(column, groups)[0] for column in starts.unbind(1)], 1)
    apart = float((starts - means).abs().max())
    bound = torch.finfo(starts.dtype).eps ** 0.5 * (1 + float(starts.abs().max()))
    require(
        apart <= bound,
        f"initial states of a group differ by {apart:.2g} from their mean; on paths of another"
        f" policy {what} compares paths with one start: give groups of equal starts, start the"
        " chain at a point, or use Moment.",
    )
