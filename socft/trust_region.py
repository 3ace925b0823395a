r"""Trust-region iterations (Blessing et al., arXiv 2508.12511): every iterate stays near the last.

From the policy u the next one maximises the objective less a multiple of the divergence from u,

.. math:: \max_v\; E\Big[ r - \sum_k \Big( f_k + \beta_k \frac{|v_k|^2}{2}
   + \lambda \beta_k \frac{|v_k - u_k|^2}{2} \Big) \Big] ,

which is a control problem again, with the kernels' means moved by a share
:math:`a = \lambda/(1 + \lambda)` of u, weights :math:`(1 + \lambda)\beta_k`, and the running cost
:math:`a\, \beta_k |u_k|^2/2` besides: :math:`v = \tilde v + a u` for its control (derived here).
Any method solves it. On path measures, for a constant beta, the iterate from the pre-trained model
is the tilt of weight :math:`\beta/\tau_i`,

.. math:: \tau_{i+1} = \tau_i + \frac{1 - \tau_i}{1 + \lambda_i}, \qquad \tau_0 = 0 ;

a chain that moves means alone follows it up to O(dt), but for the first iterate, which is the
optimum of :math:`(1 + \lambda_0)\beta`, and the limit, which is its own optimum whatever the
multipliers. With the curvature P of the next value, :math:`\sigma_k^2 P/\beta_k = O(dt)`, the
distance of a step's control from it falls by
:math:`\lambda/(\lambda + 1 - \sigma_k^2 P/\beta_k)` (derived here). The published algorithm
chooses multipliers for a bound of the divergence; here they are given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import Numbers, at_least_zero, keep, numbers, require, require_each, require_kinds
from socft.policy import FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem, require_problem
from socft.reference import KernelReference, Noises, States, Step, at_step
from socft.reward import PerSample
from socft.train import Iteration, Method


@dataclasses.dataclass(frozen=True)
class TrustRegion(Method):
    """A sequence of control problems near each other, each solved by a method.

    Attributes:
        inner: solves each of them, from its own start; an iterate costs one evaluation of every
            earlier one.
        multipliers: lambda of each iteration, at least 0; 0 solves the problem itself.

    Raises:
        InvalidProblem: there are no multipliers, or one is negative.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> method = TrustRegion(ExactPIFT(inner=5), multipliers=[1.0, 1.0])
    >>> [float(each.details["tau"]) for each in method.iterations(problem)]
    [0.0, 0.5, 0.75]
    """

    inner: Method
    multipliers: Numbers

    def __post_init__(self) -> None:
        require_kinds(self, inner=Method)
        given = numbers(self.multipliers, "multipliers", ("iterations",))
        require(len(given) > 0, "there are no multipliers; give one per iteration.")
        require_each(given, lambda x: x >= 0, "multipliers", "a multiplier is at least 0.")
        keep(self, multipliers=given)

    @property
    def weights(self) -> Float[Tensor, " iterations_plus_1"]:
        """``tau`` of every iterate, from 0 towards 1."""
        left = torch.cumprod(1 - 1 / (1 + torch.as_tensor(self.multipliers)), 0)
        return torch.cat([torch.zeros(1, dtype=left.dtype), 1 - left])

    def iterations(self, problem: ControlProblem) -> Iterator[Iteration]:
        require_problem(problem)
        policy: Policy = Uncontrolled(problem.reference)
        seconds, evaluations, weights = 0.0, 0, self.weights
        yield Iteration(0, policy, seconds, evaluations, {"tau": weights[0]})
        for index, multiplier in enumerate(torch.as_tensor(self.multipliers).tolist(), 1):
            *_, solved = self.inner.iterations(proximal_problem(problem, policy, multiplier))
            policy = _moved(solved.policy, policy, multiplier / (1 + multiplier))
            seconds, evaluations = seconds + solved.seconds, evaluations + solved.evaluations
            yield Iteration(index, policy, seconds, evaluations, {"tau": weights[index]})


def proximal_problem(problem: ControlProblem, policy: Policy, multiplier: float) -> ControlProblem:
    """The problem whose control, plus ``lambda / (1 + lambda)`` times the policy's, is the next
    iterate.
    """
    multiplier = at_least_zero(multiplier, "multiplier")
    reference, share = problem.reference, multiplier / (1 + multiplier)
    beta = (1 + multiplier) * problem.beta
    if isinstance(policy, Uncontrolled):
        return dataclasses.replace(problem, beta=beta)

    def mean(k: Step, x: States) -> States:
        moved = reference.diffusion.apply(k, x, share * policy(k, x))
        return reference.mean(k, x) + moved

    def cost(k: Step, x: States) -> PerSample:
        squared = policy(k, x).flatten(1).square().sum(1)
        return problem.cost(k, x) + share * at_step(problem.beta, k, squared) * squared / 2

    chain = KernelReference(
        mean, reference.diffusion, reference.steps, reference.dims, reference.initial
    )
    return ControlProblem(chain, problem.reward, beta, cost)


def _moved(found: Policy, last: Policy, share: float) -> Policy:
    def control(k: Step, x: States) -> Noises:
        return found(k, x) + share * last(k, x)

    return FunctionPolicy(control)
