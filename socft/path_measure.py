r"""Likelihoods and importance weights of path measures of the chain, in log space.

A step of a path is :math:`x_{k+1} = m_k(x_k) + B_k z_k` with the controlled noise :math:`z_k = u_k
+ \xi_k` of the policy u that made it. Under another control v the same step has the noise
:math:`z_k - v_k`, so that exactly, with no limit of small steps,

.. math:: \log \frac{dP^v}{dP} = \sum_k \big( v_k \cdot z_k - |v_k|^2/2 \big).

The *work functional* of a control is, in units of the reward,

.. math:: R(v) = \sum_k \beta_k \big( v_k \cdot z_k - |v_k|^2/2 \big) - r(x_T) + \sum_k f_k(x_k) .

For a constant beta it is :math:`\beta \log dP^v/dP^*` up to a function of :math:`x_0`, with the
optimal path measure :math:`dP^* \propto \exp((r - \sum_k f_k)/\beta)\, dP` (arXiv 2312.02027). For
the SDE :math:`R(v^*) = -V_0(x_0)` on every path, also with a varying beta, by Ito's formula and the
HJB equation. A controlled chain moves the means of its kernels only, while :math:`P^*` also changes
their covariances, so the chain's :math:`R(v^*)` keeps a variance of O(dt) (derived here).

Sums over steps are taken step by step: beyond a path and the controls along it, nothing is kept
that grows with the steps.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from socft.checks import InvalidProblem, described, require
from socft.finite import require_finite_paths
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises
from socft.reward import PerSample

_WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8}


def controlled_noise(path: Path, k: int) -> Noises:
    """``u_k + xi_k``: the noise of the pre-trained chain that makes step k of the same path."""
    return path.controls[k] + path.noise.steps[k].to(path.controls)


def controlled_noises(path: Path) -> Float[Tensor, "steps batch *noise_dims"]:
    """The controlled noises of all steps."""
    return _filled(path, lambda k: controlled_noise(path, k))


def controls_along(policy: Policy, path: Path) -> Float[Tensor, "steps batch *noise_dims"]:
    """The controls of a policy at the states of a path."""
    return _filled(path, lambda k: policy(k, path.states[k]))


def log_likelihood(control: Noises, path: Path, k: int) -> PerSample:
    """``v_k . z_k - |v_k|^2 / 2``: the log-density of step k under a control, relative to the
    pre-trained kernel.
    """
    return (control * (controlled_noise(path, k) - control / 2)).flatten(1).sum(1)


def log_likelihoods(
    controls: Float[Tensor, "steps batch *noise_dims"], path: Path
) -> Float[Tensor, "steps batch"]:
    """The same of all steps."""
    return torch.stack([log_likelihood(control, path, k) for k, control in enumerate(controls)])


def work_functional(
    problem: ControlProblem, controls: Float[Tensor, "steps batch *noise_dims"], path: Path
) -> PerSample:
    """``R(v)`` of each path in units of the reward, for controls along it."""
    total, beta = -problem.reward(path.final), problem.beta.to(controls)
    for k, control in enumerate(controls):
        total = total + beta[k] * log_likelihood(control, path, k) + problem.cost(k, path.states[k])
    return total


def optimal_log_weights(problem: ControlProblem, path: Path, what: str) -> PerSample:
    """``log dP*/dP^u`` of each path under the policy that made it, up to a constant.

    Raises:
        InvalidProblem: beta is not constant, or a weight is not finite.
    """
    log_weights = -work_functional(problem, path.controls, path) / problem.constant_beta(what)
    require_finite_paths(problem, path, log_weights, f"the log-weights of {what}")
    return log_weights


def optimal_weights(problem: ControlProblem, path: Path, what: str) -> Float[Tensor, " batch"]:
    """``dP*/dP^u`` of each path, of mean one over the batch.

    Raises:
        InvalidProblem: as `optimal_log_weights`, or there is one path, whose weight is one whatever
            its reward.
    """
    batch = len(path.final)
    require(
        batch >= 2,
        f"batch = {batch}; {what} weighs paths against each other and needs at least 2.",
    )
    return normalised(optimal_log_weights(problem, path, what))


def normalised(log_weights: PerSample, groups: Int[Tensor, " batch"] | None = None) -> PerSample:
    """Weights of mean one in every group of paths, without overflow; one group where none are
    given.
    """
    index = _index(log_weights, groups)
    largest = log_weights.new_zeros(int(index.max()) + 1).scatter_reduce(
        0, index, log_weights, "amax", include_self=False
    )
    weights = (log_weights - largest[index]).exp()
    return weights / group_mean(weights, groups)[0]


def effective_size(weights: PerSample) -> float:
    """``(sum w)^2 / sum w^2``, the number of equally weighted paths that would do as well; from 1
    to the batch.
    """
    return float(weights.sum().square() / weights.square().sum())


def per_sample(values: Tensor, like: Tensor) -> Tensor:
    """Values of shape (batch,) or (T, batch) shaped to broadcast against ``like`` with trailing
    state dimensions.
    """
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))


def group_mean(
    values: PerSample, groups: Int[Tensor, " batch"] | None
) -> tuple[PerSample, PerSample]:
    """Mean over each sample's group, and the group's size; one group where none are given."""
    index = _index(values, groups)
    zero = values.new_zeros(int(index.max()) + 1)
    counts = zero.index_add(0, index, torch.ones_like(values))
    return (zero.index_add(0, index, values) / counts)[index], counts[index]


def _filled(path: Path, of: Callable[[int], Noises]) -> Float[Tensor, "steps batch *noise_dims"]:
    """One tensor with a function of each step, filled step by step."""
    found = torch.empty_like(path.controls)
    for k in range(len(found)):
        found[k] = of(k)
    return found


def _index(values: PerSample, groups: Int[Tensor, " batch"] | None) -> Int[Tensor, " batch"]:
    if groups is None:
        return torch.zeros(len(values), dtype=torch.long, device=values.device)
    if not isinstance(groups, Tensor) or groups.dtype not in _WHOLE:
        raise InvalidProblem(
            f"groups is {described(groups)}; give a tensor of whole numbers, one for each path."
        )
    require(
        groups.shape == values.shape,
        f"groups has shape {tuple(groups.shape)}; give one index for each of the {len(values)}"
        " paths.",
    )
    return groups.to(values.device).unique(return_inverse=True)[1]
