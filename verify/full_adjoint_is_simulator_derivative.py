r"""The matching loss with full costates has the gradient of the simulated objective.

Setting: any differentiable reference, reward, running cost and policy; targets
:math:`B_k^\top a_{k+1}/\beta_k` with the costates a of `full_adjoint`, held constant in the loss
:math:`\sum_k \beta_k |v_k(x_k) - \mathrm{target}_k|^2/2`.

Statement: $∇_θ sum_k β_k |v_k (x_k) − B_k^⊤ a_(k+1)/β_k|^2/2 = −∇_θ [r(x_T) − sum_k (f_k (x_k) +
β_k |v_k|^2/2)]$ on every path

By the chain rule: :math:`\partial_\theta` of the return is :math:`\sum_k (\partial_\theta v_k)^\top
(B_k^\top a_{k+1} - \beta_k v_k)`, since :math:`a_{k+1}` is the derivative of the return after step
k with respect to :math:`x_{k+1}`.

Kind: equality.

Source: derived here; arXiv 2409.08861, section 4.

The adjoint is the one of that section, with the policy differentiated.

How it is measured: both gradients of a batch of eight paths, the right side by automatic
differentiation through the whole rollout, for a table of problems (scalar, degenerate and
state-dependent noise maps, running costs) and policies (multilayer perceptrons, features, a
fine-tuned network minus its frozen copy).

What would refute it: a relative difference above `ROUNDING`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from socft.estimators.full_adjoint import FullAdjoint
from socft.path import Noise, Path, returns, rollout
from socft.policy import FeaturePolicy, MLPPolicy, Policy, ResidualPolicy
from socft.problem import ControlProblem
from socft.reference import (
    Diffusion,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
    Step,
)
from socft.regression.features import Polynomial
from socft.reward import FunctionReward
from verify.support import topics
from verify.support.claims import Claim

CLAIM = Claim.of_module(__name__, __doc__, "Full adjoint", topics.ADJOINTS)
ROUNDING = 1e-12
"""Relative to the largest entry of the gradient: a few thousand operations in float64."""
STEPS, DIM, BATCH = 6, 3, 8
MANY = 20000
SEEDS = st.integers(0, 10**6)

Builder = Callable[[int], tuple[ControlProblem, Policy]]


class Rippled(Diffusion):
    """``B(x) = diag(0.3 + 0.1 cos x)``."""

    def apply(self, k: Step, x: Tensor, z: Tensor) -> Tensor:
        return (0.3 + 0.1 * x.cos()) * z

    def transpose(self, k: Step, x: Tensor, a: Tensor) -> Tensor:
        return (0.3 + 0.1 * x.cos()) * a

    def whiten(self, k: Step, x: Tensor, shift: Tensor) -> Tensor:
        return shift / (0.3 + 0.1 * x.cos())

    def solve_transpose(self, k: Step, x: Tensor, z: Tensor) -> Tensor:
        return z / (0.3 + 0.1 * x.cos())

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return dims


def matching_gradient(
    problem: ControlProblem, policy: Policy, path: Path, labelled: Policy | None = None
) -> Tensor:
    """Gradient of the batch's mean loss; ``labelled`` is the policy that the costates see, by
    default the same.
    """
    estimator = FullAdjoint()
    labels = estimator.label(problem, labelled or policy, path)
    each = [estimator.loss(problem, policy, k, labels.step(k)) for k in range(problem.steps)]
    return _flat(torch.stack(each).sum(0).mean(), policy)


def simulator_gradient(problem: ControlProblem, policy: Policy, noise: Noise) -> Tensor:
    """Gradient of minus the mean return, through the rollout."""
    return _flat(-returns(problem, rollout(problem.reference, policy, noise)).mean(), policy)


def cut_gradient(problem: ControlProblem, policy: ResidualPolicy, noise: Noise) -> Tensor:
    """Of minus the mean return, through fine-tuned states, with the frozen network run without a
    graph in the KL cost.
    """
    diffusion, x = problem.reference.diffusion, problem.reference.initial(noise.initial)
    total = torch.zeros(len(x), dtype=torch.float64)
    for k in range(problem.steps):
        tuned = policy.fine_tuned(k, x)
        with torch.no_grad():
            frozen = problem.reference.mean(k, x)
        total = total - problem.beta[k] * diffusion.whiten(k, x, tuned - frozen).square().sum(1) / 2
        x = tuned + diffusion.apply(k, x, noise.steps[k])
    return _flat(-(total + problem.reward(x)).mean(), policy)


def _nonlinear(diffusion: Diffusion, seed: int) -> tuple[ControlProblem, Policy]:
    reference = KernelReference(
        lambda k, x: x + 0.3 * torch.sin(x @ _mix(seed)), diffusion, STEPS, (DIM,)
    )
    return _problem(reference), _randomised(
        MLPPolicy(reference, width=8, depth=1, generator=_generator(seed)), seed
    )


def scalar_noise(seed: int) -> tuple[ControlProblem, Policy]:
    """A nonlinear mean map, ``B_k = sigma_k I``, a perceptron."""
    return _nonlinear(_scales(), seed)


def running_cost(seed: int) -> tuple[ControlProblem, Policy]:
    """The same with a running cost and weights that differ by step."""
    problem, policy = scalar_noise(seed)
    beta = torch.linspace(0.3, 2, STEPS, dtype=torch.float64)
    return (
        ControlProblem(
            problem.reference,
            problem.reward,
            beta,
            lambda k, x: 0.1 * (1 + x.square().sum(1)).log(),
        ),
        policy,
    )


def noise_by_state(seed: int) -> tuple[ControlProblem, Policy]:
    """A noise map that depends on the state, through which full costates pass too."""
    return _nonlinear(Rippled(), seed)


def degenerate_noise(seed: int) -> tuple[ControlProblem, Policy]:
    """Noise on a line of the state space, polynomial features."""
    B = torch.randn(STEPS, DIM, 1, generator=_generator(seed), dtype=torch.float64)
    reference = KernelReference(
        lambda k, x: x.tanh() + 0.5 * x.roll(1, 1), MatrixDiffusion(B), STEPS, (DIM,)
    )
    features = Polynomial(2)
    count = features(torch.zeros(1, DIM, dtype=torch.float64)).shape[1]
    weight = 0.1 * torch.randn(STEPS, 1, count, generator=_generator(seed + 1), dtype=torch.float64)
    return _problem(reference), FeaturePolicy(features, weight)


def fine_tuned(seed: int, distance: float = 0.3) -> tuple[ControlProblem, ResidualPolicy]:
    """A network minus its frozen copy: gradients flow through both branches."""
    frozen, tuned = _network(seed), _network(seed)
    generator = _generator(seed + 1)
    with torch.no_grad():
        for p in tuned.parameters():
            p.add_(distance * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    frozen.requires_grad_(False)
    reference = KernelReference(lambda k, x: x + 0.5 * frozen(x), _scales(), STEPS, (DIM,))
    return _problem(reference), ResidualPolicy(reference, _Half(tuned))


PROBLEMS: list[Builder] = [scalar_noise, running_cost, noise_by_state, degenerate_noise, fine_tuned]


@pytest.mark.parametrize("build", PROBLEMS)
@settings(max_examples=6)
@given(seed=SEEDS)
def test_holds(build: Builder, seed: int) -> None:
    """Every problem and policy of the table."""
    problem, policy = build(seed)
    noise, where = _noise(problem, seed, BATCH), {"problem": build.__name__, "seed": seed}
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
    expected = simulator_gradient(problem, policy, noise)
    scale = float(expected.abs().max())
    CLAIM.equals(
        (matching_gradient(problem, policy, path) - expected) / scale,
        0.0,
        where,
        ROUNDING,
        build.__name__,
    )


def test_needs_both_branches() -> None:
    """The frozen network without a graph biases the mean over paths, near the frozen weights and
    far from them.
    """
    distances, seeds, shares = [0.01, 0.1, 0.3], [0, 1, 2], []
    for distance, seed in itertools.product(distances, seeds):
        problem, policy = fine_tuned(seed, distance)
        noise = _noise(problem, seed, MANY)
        expected = simulator_gradient(problem, policy, noise)
        shares.append(
            float((cut_gradient(problem, policy, noise) - expected).norm() / expected.norm())
        )
    where = {
        "problem": "fine_tuned",
        "distances": distances,
        "seeds": seeds,
        "paths": MANY,
        "shares": shares,
    }
    CLAIM.breaks(min(shares), ROUNDING, where, "graph of the frozen branch")
    least, most = (100 * share for share in (min(shares), max(shares)))
    text = (
        f"the frozen network without a graph biases the gradient by {least:.0f} to {most:.0f}% of"
        " its norm"
    )
    CLAIM.finding(text, where)


def test_needs_the_policys_derivative() -> None:
    """Lean costates, without the policy's Jacobian, give another vector."""
    problem, policy = scalar_noise(0)
    noise = _noise(problem, 0, MANY)
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
    expected = simulator_gradient(problem, policy, noise)
    blind = _Blind(policy)
    share = float(
        (matching_gradient(problem, policy, path, blind) - expected).norm() / expected.norm()
    )
    CLAIM.breaks(
        share,
        ROUNDING,
        {"problem": "scalar_noise", "seed": 0, "share": share},
        "the policy's derivative",
    )


class _Half(nn.Module):
    """A mean map that moves half as far as a network says."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, k: Step, x: Tensor) -> Tensor:
        return x + 0.5 * self.network(x)


class _Blind(Policy):
    """A policy that hides its dependence on the state."""

    def __init__(self, policy: Policy):
        self.policy = policy

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        return self.policy(k, x.detach())


def _problem(reference: Reference) -> ControlProblem:
    return ControlProblem(
        reference, FunctionReward(lambda x: torch.sin(x).sum(1) - 0.1 * x.square().sum(1)), 0.7
    )


def _scales() -> ScalarDiffusion:
    return ScalarDiffusion(torch.linspace(0.5, 0.2, STEPS, dtype=torch.float64))


def _mix(seed: int) -> Tensor:
    return torch.randn(DIM, DIM, generator=_generator(seed), dtype=torch.float64)


def _network(seed: int) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(DIM, 8, dtype=torch.float64), nn.Tanh(), nn.Linear(8, DIM, dtype=torch.float64)
    )
    generator = _generator(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) / 2)
    return network


def _randomised(policy: MLPPolicy, seed: int) -> MLPPolicy:
    generator = _generator(seed + 1)
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return policy


def _noise(problem: ControlProblem, seed: int, batch: int) -> Noise:
    return Noise.sample(problem.reference, batch, _generator(seed + 2))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat(loss: Tensor, policy: Policy) -> Tensor:
    parameters = [p for p in policy.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
