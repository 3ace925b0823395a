r"""Remark 2.4: with one KL weight for all steps the penalty is that of the whole path.

Setting: a pre-trained chain :math:`X_{t+1} = m_t(X_t) + \sigma_t W_t`, and the chain with the
control v and the same initial law; :math:`\mathbb P^v` and :math:`\mathbb P` are the laws of
:math:`(X_0, \dots, X_T)`.

Statement: if $β_t = β$ for all $t$, then $bb(E) sum_t β_t |v_t|^2/2 = β op("KL")(P_v ∥ P)$, with
the laws $P_v$ and $P$ of the controlled and of the pre-trained path

Kind: equality.

Source: arXiv 2412.18164v4, Remark 2.4.

How it is measured: for affine policies, the divergence between the two joint normal laws of all T +
1 states, whose covariances are assembled from their blocks. For nonlinear policies in one
dimension, :math:`E \log(d\mathbb P^v/d\mathbb P)` by the trapezoidal rule, from the densities of
the kernels; in several, the mean of log(dP^v/dP) over controlled paths and that of
:math:`L \log L - L + 1`, :math:`L = d\mathbb P^v/d\mathbb P`, over pre-trained paths, both from
densities of the states, within 4 standard errors.

What would refute it: a residual above rounding and quadrature error, or above 4 standard errors.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from socft.path import Noise, rollout
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import AffineReference, Reference
from socft.truth.affine_policy import evaluate_affine
from verify.support import topics
from verify.support.claims import Claim
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.scores import MixtureScore
from verify.support.strategies import Sine, numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Remark 2.4", topics.KL_DIVERGENCE)

ROUNDING = 1e-10
"""Relative error of the divergence: covariances of up to 35 rows with condition numbers up to 1e4,
times 450 eps.
"""
QUADRATURE = 1e-10
"""Relative error of the trapezoidal rule with spacing `WIDTH` / 400, a thirteenth of the least
noise scale, on 800 intervals.
"""
WIDTH, NODES = 12.0, 801
STANDARD_ERRORS = 4.0
PATHS = 100_000
SIZE = 0.1
"""Size of the nonlinear controls: the weights L of the second estimator stay below 4, so that its
mean is nearly normal.
"""


@dataclasses.dataclass(frozen=True)
class SampleMean:
    """A Monte-Carlo mean with its standard error."""

    mean: float
    stderr: float


def measure(reference: AffineReference, policy: AffinePolicy) -> float:
    """``KL(P^v || P)`` of the dense joint laws of all states."""
    laws = [_joint_law(reference, p) for p in (policy, AffinePolicy.zeros(reference))]
    return float(kl_divergence(*laws))


def bound(problem: ControlProblem, policy: AffinePolicy) -> float:
    """``E sum_t beta_t |v_t|^2 / 2`` in closed form."""
    with torch.no_grad():
        return float(problem.beta @ evaluate_affine(problem, policy).kl)


@given(quadratic_instances(steps=6), numbers(0.1, 10), st.integers(0, 10**6))
def test_holds(instance: QuadraticInstance, beta: float, seed: int) -> None:
    problem = instance.problem(beta)
    assert isinstance(problem.reference, AffineReference)
    policy = _affine_policy(problem.reference, seed)
    expected = bound(problem, policy)
    where = {"instance": instance.describe(), "beta": beta, "seed": seed}
    CLAIM.equals(
        beta * measure(problem.reference, policy), expected, where, ROUNDING * (beta + expected)
    )


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_holds_for_nonlinear_policies_by_quadrature(size: float) -> None:
    """The same chain in one dimension, with controls up to twice as large as the noise."""
    instance = _mixture(1)
    found = _by_quadrature(
        instance.problem(1.0).reference, FunctionPolicy(lambda k, x: size / SIZE * _wave(k, x))
    )
    where = {
        "instance": instance.describe(),
        "policy": f"{size} (1 + sin(2 x + k))",
        "nodes": NODES,
    }
    CLAIM.equals(found.divergence / found.penalty, 1.0, where, QUADRATURE, "quadrature")
    CLAIM.equals(found.mass, 1.0, where, QUADRATURE, "mass")


@pytest.mark.parametrize("dim", [1, 3])
def test_holds_for_nonlinear_policies(dim: int) -> None:
    """A mixture's score and a bounded nonlinear control."""
    instance = _mixture(dim)
    reference = instance.problem(1.0).reference
    policy = FunctionPolicy(_wave)
    for name, estimate in (
        ("controlled paths", _under_control(reference, policy)),
        ("pre-trained paths", _weighted(reference, policy)),
    ):
        where = {
            "instance": instance.describe(),
            "policy": "0.1 (1 + sin(2 x + k))",
            "paths": PATHS,
            "law": name,
        }
        CLAIM.equals(estimate.mean, 0.0, where, STANDARD_ERRORS * estimate.stderr, name)


def test_needs_a_constant_beta() -> None:
    """Two controls with the same path divergence pay differently if beta varies: no single weight
    is right for both.
    """
    instance = _mixture(1)
    problem = instance.problem(torch.linspace(1, 2, instance.steps, dtype=torch.float64))
    one = torch.eye(instance.steps, dtype=torch.float64)
    costs = [float(problem.beta @ (push.square() / 2)) for push in (one[0], one[-1])]
    CLAIM.breaks(
        abs(costs[1] - costs[0]),
        ROUNDING * max(costs),
        {"beta": problem.beta, "v": "1 at one step, 0 at others"},
        "beta",
    )


def test_needs_a_common_start() -> None:
    """If the fine-tuned chain also chooses its initial law, the path divergence has that law's
    divergence in addition.
    """
    instance = QuadraticInstance(
        levels=(0.3, 0.9), lam=(0.5,), score=(-1.0,), shift=(0.0,), curvature=(1.0,), slope=(0.0,)
    )
    problem = instance.problem(1.0)
    assert isinstance(problem.reference, AffineReference)
    policy, base = _affine_policy(problem.reference, 0), problem.reference
    moved = AffineReference(
        base.maps, base.diffusion, base.offset, torch.full((1,), 0.5, dtype=torch.float64)
    )
    laws = _joint_law(moved, policy), _joint_law(base, AffinePolicy.zeros(base))
    paid = float(evaluate_affine(ControlProblem(moved, problem.reward, 1.0), policy).kl.sum())
    CLAIM.breaks(
        abs(float(kl_divergence(*laws)) - paid),
        ROUNDING * (1 + paid),
        {"mean of X_0": [0.5, 0.0]},
        "common start",
    )


def _joint_law(reference: AffineReference, policy: AffinePolicy) -> MultivariateNormal:
    """The law of (X_0, ..., X_T): every state as an affine function of all noises."""
    n, steps = reference.dims[0], reference.steps
    eye = torch.eye(n, dtype=torch.float64)
    sigma = reference.diffusion.apply
    with torch.no_grad():
        means, factors = (
            [reference.initial_mean],
            [torch.cat([reference.initial_factor, eye.new_zeros(n, n * steps)], 1)],
        )
        for t in range(steps):
            push = sigma(t, eye, policy.gain[t].T).T
            transition = reference.transition[t] + push
            means.append(
                transition @ means[-1]
                + reference.offset[t]
                + sigma(t, eye[:1], policy.offset[t : t + 1])[0]
            )
            factor = transition @ factors[-1]
            factor[:, n * (t + 1) : n * (t + 2)] = sigma(t, eye, eye).T
            factors.append(factor)
    root = torch.cat(factors)
    return MultivariateNormal(torch.cat(means), root @ root.T)


@dataclasses.dataclass(frozen=True)
class _PathLaw:
    """``KL(P^v || P)``, the expected penalty, and the mass of the last state, which is 1."""

    divergence: float
    penalty: float
    mass: float


def _by_quadrature(reference: Reference, policy: Policy) -> _PathLaw:
    """One dimension: the law of each state from the one before, with the logarithms of both
    transition densities.
    """
    x = torch.linspace(-WIDTH, WIDTH, NODES, dtype=torch.float64)[:, None]
    spacing = float(x[1] - x[0])
    mass = spacing * Normal(0.0, 1.0).log_prob(x[:, 0]).exp()
    divergence = penalty = torch.zeros((), dtype=torch.float64)
    with torch.no_grad():
        for t in range(reference.steps):
            control = policy(t, x)
            scale = reference.diffusion.apply(t, x, torch.ones_like(x))
            plain, controlled = (
                Normal(centre, scale).log_prob(x[:, 0])
                for centre in (reference.mean(t, x), reference.step(t, x, control))
            )
            joint = mass[:, None] * controlled.exp() * spacing
            divergence = divergence + (joint * (controlled - plain)).sum()
            penalty = penalty + mass @ (control[:, 0].square() / 2)
            mass = joint.sum(0)
    return _PathLaw(float(divergence), float(penalty), float(mass.sum()))


def _under_control(reference: Reference, policy: Policy) -> SampleMean:
    """Mean of ``log(dP^v / dP) - sum_t |v_t|^2 / 2`` over controlled paths."""
    states = _states(reference, policy, 20_241_218)
    return _mean(_log_ratio(reference, policy, states) - _penalty(policy, states))


def _weighted(reference: Reference, policy: Policy) -> SampleMean:
    """Mean of ``L log L - L + 1 - L sum_t |v_t|^2 / 2`` over pre-trained paths."""
    states = _states(reference, Uncontrolled(reference), 20_241_219)
    log = _log_ratio(reference, policy, states)
    weight = log.exp()
    return _mean(weight * log - weight + 1 - weight * _penalty(policy, states))


def _states(reference: Reference, policy: Policy, seed: int) -> Tensor:
    with torch.no_grad():
        return rollout(
            reference, policy, Noise.sample(reference, PATHS, torch.Generator().manual_seed(seed))
        ).states


def _log_ratio(reference: Reference, policy: Policy, states: Tensor) -> Tensor:
    """``log dP^v/dP`` of paths, from the densities of their states."""
    total = states.new_zeros(states.shape[1])
    with torch.no_grad():
        for t in range(reference.steps):
            x, following = states[t], states[t + 1]
            plain, controlled = reference.mean(t, x), reference.step(t, x, policy(t, x))
            scale = reference.diffusion.apply(t, x, torch.ones_like(x))
            ratio = Normal(controlled, scale).log_prob(following) - Normal(plain, scale).log_prob(
                following
            )
            total = total + ratio.sum(1)
    return total


def _penalty(policy: Policy, states: Tensor) -> Tensor:
    return torch.stack([policy(t, x).square().sum(1) / 2 for t, x in enumerate(states[:-1])]).sum(0)


def _mean(samples: Tensor) -> SampleMean:
    return SampleMean(float(samples.mean()), float(samples.std() / len(samples) ** 0.5))


def _wave(k: int | Tensor, x: Tensor) -> Tensor:
    return SIZE * (1 + torch.sin(2 * x + k)) / x.shape[1] ** 0.5


def _mixture(dim: int) -> ProductInstance:
    score = MixtureScore((0.4, 0.6), (-1.5, 1.0), (0.5, 0.7))
    levels = (0.2, 0.4, 0.6, 0.8, 0.95)
    return ProductInstance(
        levels=levels,
        lam=(0.5,) * 4,
        factors=(Factor(score, Sine()),),
        size=dim,
        rotation=0 if dim > 1 else None,
    )


def _affine_policy(reference: AffineReference, seed: int) -> AffinePolicy:
    generator = torch.Generator().manual_seed(seed)
    n, steps = reference.dims[0], reference.steps
    gain = torch.randn(steps, n, n, generator=generator, dtype=torch.float64) / 2
    return AffinePolicy(gain, torch.randn(steps, n, generator=generator, dtype=torch.float64))
