r"""The gradient of the objective with respect to a policy that is linear in features (77).

Setting: :math:`U_t(y) = K_t \varphi_t(y)` with any features and any weights, one matrix per step; :math:`V^K` is the value of that
policy, not the optimal one, and
:math:`Q^K_t(y, u) = -\beta_t g^2 |u - s_t(y)|^2 / (2 a \sigma^2) + E V^K_{t+1}((y + g u)/\sqrt a + \sigma W)`.

Statement: :math:`\nabla_{K_t} J = E\big[ \partial_u Q^K_t(Y_t, K_t \varphi_t(Y_t))\, \varphi_t(Y_t)^\top \big]`, with :math:`Y_t`
distributed under the policy itself. In whitened control, :math:`\partial_v Q^K_t = \sigma E \nabla V^K_{t+1} - \beta_t v`, and a
costate :math:`\nabla V^K` that contains the policy's own derivative.

Kind: equality.

Source: arXiv 2412.18164v4, equation 77.

How it is measured: (a) symbolically for two steps in one dimension; (b) for affine features and a quadratic reward in up to 5
dimensions, `affine_gradient` against automatic differentiation of the objective, itself from the propagated moments; (c) in one
dimension for nonlinear features, scores and rewards: the right side from the costate recursion and the policy's law, the left side
by differentiating the objective, both by the trapezoidal rule. With spacing `SPACING` sigma it errs by :math:`e^{-2 \pi^2 / 0.75^2}
< 10^{-15}` for Gaussian smoothing; with spacing `FINEST` by :math:`e^{-2 \pi p / 0.07} < 10^{-11}` for functions whose poles are
p = 0.3 off the real line, as those of the drawn rewards, scores and features are. The two rules agree only where both converge,
since one differentiates kernels and the other the value functions.

What would refute it: a residual above `QUADRATURE` or `ROUNDING`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import hypothesis
import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.policy import AffinePolicy, FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, ScoreReference
from socft.reward import as_quadratic
from socft.rollout import Noise, rollout
from socft.truth.affine_policy import affine_gradient
from verify.claims import Claim
from verify.strategies import (
    Factor,
    MixtureScore,
    ProductInstance,
    QuadraticInstance,
    Sine,
    line_instances,
    numbers,
    quadratic_instances,
)

CLAIM = Claim(
    name="policy_gradient_formula",
    statement="∇_{K_t} J = E[∂_u Q^K_t(Y_t, K_t φ_t(Y_t)) φ_t(Y_t)ᵀ]",
    source="arXiv 2412.18164v4, equation 77",
    kind="equality",
)
ROUNDING = 1e-10
"""Relative to the largest entry: products of 2 T matrices of norm up to 10 lose six digits of float64."""
QUADRATURE = 1e-10
"""Relative to the largest entry: the trapezoidal rule errs by 1e-15 per step, what lies beyond `SPREAD` by less."""
SPACING, FINEST = 0.75, 0.07
SPREAD, EXTENSION = 9.0, 2.5
"""Nodes reach 9 standard deviations of pilot paths, and 2.5 times as far as the farthest of them, 8 standard deviations."""
MOST_NODES = 700
PILOT_PATHS = 1024
SEEDS = st.integers(0, 10**6)

FeatureMap = Callable[[Tensor], Tensor]


def features(x: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch 4"]:
    """``(1, y, tanh y, sin 2y)``."""
    return torch.cat([torch.ones_like(x), x, x.tanh(), (2 * x).sin()], 1)


@dataclasses.dataclass(frozen=True)
class Pushed:
    """A policy on the nodes: its whitened controls, their derivative and the transition matrices with weights."""

    control: Tensor
    control_slope: Tensor
    kernels: tuple[Tensor, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One-dimensional chains under ``U_t = K_t phi(y)`` by the trapezoidal rule on the same nodes at every step.

    Attributes:
        problem: reference with a score, reward, KL weights.
        nodes: shape (n, 1), equidistant.
        phi: the features.
    """

    problem: ControlProblem
    nodes: Float[Tensor, "nodes 1"]
    phi: FeatureMap

    @classmethod
    def covering(cls, problem: ControlProblem, weights: Float[Tensor, "steps p"], phi: FeatureMap) -> Line:
        """Nodes around the paths of a policy; a drawn example that needs more than `MOST_NODES` is rejected."""
        reference = _scored(problem)
        policy = FunctionPolicy(lambda k, x: reference.control_of(k, x, (phi(x) @ weights[k])[:, None]))
        noise = Noise.sample(reference, PILOT_PATHS, torch.Generator().manual_seed(0))
        with torch.no_grad():
            states = rollout(reference, policy, noise).states.squeeze(2)
        centre, reach = states.mean(1), SPREAD * states.std(1)
        farthest = EXTENSION * (states - centre[:, None]).abs().amax(1)
        reach = torch.maximum(reach, farthest)
        low, high = float((centre - reach).min()), float((centre + reach).max())
        count = math.ceil((high - low) / min(SPACING * float(reference.schedule.sigma.min()), FINEST)) + 1
        if count > MOST_NODES and hypothesis.currently_in_test_context():
            hypothesis.reject()
        require(count <= MOST_NODES, f"the policy needs {count} nodes, more than {MOST_NODES}; use a smaller one.")
        return cls(problem, torch.linspace(low, high, count, dtype=torch.float64)[:, None], phi)

    @property
    def spacing(self) -> float:
        """Distance of two nodes."""
        return float(self.nodes[1] - self.nodes[0])

    @functools.cached_property
    def basis(self) -> Float[Tensor, "nodes p"]:
        """The features at the nodes."""
        return self.phi(self.nodes).detach()

    @functools.cached_property
    def unit(self) -> Tensor:
        """``sqrt(a) sigma / g``: ``v = (U - s) / unit``."""
        s = _scored(self.problem).schedule
        return s.alpha.sqrt() * s.sigma / s.gain

    @functools.cached_property
    def means(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pre-trained mean and score at the nodes of every step."""
        reference = _scored(self.problem)
        with torch.no_grad():
            return tuple((reference.mean(k, self.nodes)[:, 0], reference.score(k, self.nodes)[:, 0]) for k in self.range)

    @property
    def range(self) -> range:
        """The steps."""
        return range(self.problem.steps)

    @functools.cached_property
    def start(self) -> Tensor:
        """Masses of the initial law, which is standard normal."""
        x = self.nodes[:, 0]
        return self.spacing * torch.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)

    def push(self, k: int, weight: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        """Controls and transition matrix of step ``k``, differentiable in the weights."""
        return self.push_control(k, (self.basis @ weight - self.means[k][1]) / self.unit[k])

    def push_control(self, k: int, control: Float[Tensor, " nodes"]) -> tuple[Tensor, Tensor]:
        """The same for a whitened control given at the nodes."""
        mean, sigma = self.means[k][0], _scored(self.problem).schedule.sigma[k]
        gaps = (self.nodes[:, 0] - (mean + sigma * control)[:, None]) / sigma
        return control, self.spacing * torch.exp(-(gaps**2) / 2) / (sigma * math.sqrt(2 * math.pi))

    def objective(self, weights: Float[Tensor, "steps p"]) -> Tensor:
        """J of the policy, differentiable in its weights."""
        value = self.problem.reward(self.nodes)
        for k in reversed(self.range):
            control, kernel = self.push(k, weights[k])
            value = kernel @ value - self.problem.beta[k] * control**2 / 2
        return self.start @ value

    def differentiated(self, weights: Float[Tensor, "steps p"]) -> Tensor:
        """The gradient of `objective`."""
        leaf = weights.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.objective(leaf), leaf)
        return gradient

    def formula(
        self, weights: Float[Tensor, "steps p"], law: Float[Tensor, "steps p"] | None = None, lean: bool = False
    ) -> Float[Tensor, "steps p"]:
        """The right side of (77).

        Args:
            weights: the policy's.
            law: weights of the policy under which states are distributed, by default the same.
            lean: leave the policy's own derivative out of the costate.
        """
        laws, rows = self._masses(weights if law is None else law), []
        costate = self.problem.reward.gradient(self.nodes)[:, 0]
        for k in reversed(self.range):
            beta, sigma = self.problem.beta[k], _scored(self.problem).schedule.sigma[k]
            control, kernel = self.push(k, weights[k])
            mean_slope, control_slope = self._slopes(k, weights[k])
            pushed = kernel @ costate
            rows.append(laws[k] * (sigma * pushed - beta * control) / self.unit[k] @ self.basis)
            costate = mean_slope * pushed
            if not lean:
                costate = costate + control_slope * (sigma * pushed - beta * control)
        return torch.stack(rows[::-1])

    def _slopes(self, k: int, weight: Tensor) -> tuple[Tensor, Tensor]:
        reference, x = _scored(self.problem), self.nodes.clone().requires_grad_(True)
        control = reference.control_of(k, x, (self.phi(x) @ weight)[:, None])
        return tuple(torch.autograd.grad(f.sum(), x)[0][:, 0] for f in (reference.mean(k, x), control))  # type: ignore[return-value]

    def _masses(self, weights: Tensor) -> list[Tensor]:
        masses = [self.start]
        for k in self.range:
            masses.append(masses[-1] @ self.push(k, weights[k])[1])
        return masses


def moments_objective(problem: ControlProblem, gain: Tensor, offset: Tensor) -> Tensor:
    """J of ``v = gain x + offset`` from propagated mean and second moment, differentiable."""
    reference, form = problem.reference, as_quadratic(problem.reward)
    assert isinstance(reference, AffineReference)
    assert isinstance(reference.diffusion, ScalarDiffusion)
    mean = reference.initial_mean
    second = reference.initial_factor @ reference.initial_factor.T + torch.outer(mean, mean)
    total, eye = torch.zeros((), dtype=torch.float64), torch.eye(len(mean), dtype=torch.float64)
    for k in range(problem.steps):
        K, o, sigma = gain[k], offset[k], reference.diffusion.sigma[k]
        total = total - problem.beta[k] / 2 * ((K @ second * K).sum() + 2 * o @ K @ mean + o @ o)
        A, b = reference.transfer[k] + sigma * K, reference.offset[k] + sigma * o
        cross = torch.outer(A @ mean, b)
        second = A @ second @ A.T + cross + cross.T + torch.outer(b, b) + sigma**2 * eye
        mean = A @ mean + b
    return total + (form.P * second).sum() / 2 + form.linear @ mean + form.c


@settings(max_examples=12)
@given(line_instances(steps=4), SEEDS, numbers(0.05, 0.5), numbers(0.05, 5))
def test_holds(instance: ProductInstance, seed: int, size: float, beta: float) -> None:
    """Nonlinear features: the two sides of (77) by quadrature, at random weights, for any beta."""
    weights = size * _normal(seed, instance.steps, 4)
    line = Line.covering(instance.problem(beta), weights, features)
    expected = line.differentiated(weights)
    where = {"instance": instance.describe(), "seed": seed, "size": size, "beta": beta}
    CLAIM.equals(line.formula(weights), expected, where, QUADRATURE * (1 + float(expected.abs().max())), "nonlinear features")


@settings(max_examples=40)
@given(quadratic_instances(), SEEDS, numbers(0.05, 1), numbers(0.05, 5))
def test_holds_for_affine_features(instance: QuadraticInstance, seed: int, size: float, beta: float) -> None:
    """The closed form against automatic differentiation of the objective from moments; beta may admit no optimum."""
    problem, (T, d) = instance.problem(beta), (instance.steps, instance.dim)
    gain, offset = size * _normal(seed, T, d, d), size * _normal(seed + 1, T, d)
    leaves = [x.clone().requires_grad_(True) for x in (gain, offset)]
    expected = torch.autograd.grad(moments_objective(problem, *leaves), leaves)
    found = affine_gradient(problem, AffinePolicy(gain, offset))
    where = {"instance": instance.describe(), "seed": seed, "size": size, "beta": beta}
    scale = 1 + max(float(x.abs().max()) for x in expected)
    CLAIM.equals((found.gain - expected[0]) / scale, 0.0, where, ROUNDING, "affine features, gain")
    CLAIM.equals((found.offset - expected[1]) / scale, 0.0, where, ROUNDING, "affine features, offset")


def test_holds_symbolically() -> None:
    """Two steps in one dimension, ``v_k = K_k x``, quadratic reward: both sides are polynomials in all coefficients."""
    A0, A1, P, K0, K1, b0, b1, s0, s1 = sympy.symbols("A0 A1 P K0 K1 b0 b1 s0 s1", real=True)
    first = (A0 + s0 * K0) ** 2 + s0**2
    second = (A1 + s1 * K1) ** 2 * first + s1**2
    J = P * second / 2 - b0 * K0**2 / 2 - b1 * K1**2 * first / 2
    P1 = P * (A1 + s1 * K1) ** 2 - b1 * K1**2
    formula = {K0: s0 * P1 * (A0 + s0 * K0) - b0 * K0, K1: (s1 * P * (A1 + s1 * K1) - b1 * K1) * first}
    residual = [sympy.expand(J.diff(K) - right) for K, right in formula.items()]
    where = {"symbolic": True, "left over": [str(r) for r in residual]}
    CLAIM.equals([float(r != 0) for r in residual], [0.0, 0.0], where, ROUNDING, "symbolic")


@pytest.mark.parametrize("what", ["law", "costate"])
def test_needs_the_policys_own(what: str) -> None:
    """With states of another policy, or with a costate that leaves out the policy's derivative, it is no gradient."""
    instance = _example()
    weights, still = 0.6 * _normal(3, instance.steps, 4), torch.zeros(instance.steps, 4, dtype=torch.float64)
    line = Line.covering(instance.problem(0.5), weights, features)
    wrong = line.formula(weights, law=still) if what == "law" else line.formula(weights, lean=True)
    expected = line.differentiated(weights)
    scale = float(expected.abs().max())
    CLAIM.breaks(float((wrong - expected).abs().max()), QUADRATURE * (1 + scale), instance, f"the policy's own {what}")


def _example() -> ProductInstance:
    factor = Factor(MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.5, 0.5)), Sine(1.0, 1.5, 0.3))
    return ProductInstance(levels=(0.4, 0.6, 0.9), lam=(0.5, 0.5), factors=(factor,))


def _scored(problem: ControlProblem) -> ScoreReference:
    assert isinstance(problem.reference, ScoreReference)
    return problem.reference


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
