r"""Policies with weights: chains on a line under features, and linear-quadratic problems under
affine policies.

On a line, laws and objectives are by the trapezoidal rule. With spacing `SPACING` sigma it errs by
:math:`e^{-2 \pi^2 / 0.75^2} < 10^{-15}` for Gaussian smoothing; with spacing `FINEST` by
:math:`e^{-2 \pi p / 0.07} < 10^{-11}` for functions whose poles are p = 0.3 off the real line, as
those of the drawn rewards, scores and features are. In more dimensions, objectives of affine
policies are polynomials in propagated moments.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from socft.checks import require
from socft.path import Noise, rollout
from socft.policy import AffinePolicy, FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, ScalarDiffusion, ScoreReference
from socft.reward import as_quadratic
from socft.truth.affine_policy import affine_gradient
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support.instances import QuadraticInstance

SPACING, FINEST = 0.75, 0.07
SPREAD, EXTENSION = 9.0, 2.5
"""Nodes reach 9 standard deviations of pilot paths, and 2.5 times as far as the farthest of them, 8
standard deviations.
"""
MOST_NODES = 700
PILOT_PATHS = 1024
SEEDS = st.integers(0, 10**6)

FeatureMap = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True, eq=False)
class Line:
    """One-dimensional chains under ``U_t = K_t phi(y)`` by the trapezoidal rule on the same nodes
    at every step.

    Attributes:
        problem: reference with a score, reward, KL weights.
        nodes: shape (n, 1), equidistant.
        phi: the features.
    """

    problem: ControlProblem
    nodes: Float[Tensor, "nodes 1"]
    phi: FeatureMap

    @classmethod
    def covering(
        cls, problem: ControlProblem, weights: Float[Tensor, "steps p"], phi: FeatureMap
    ) -> Line:
        """Nodes around the paths of a policy; a drawn example that needs more than `MOST_NODES` is
        rejected.
        """
        reference = _scored(problem)
        policy = FunctionPolicy(
            lambda k, x: reference.control_of(k, x, (phi(x) @ weights[k])[:, None])
        )
        noise = Noise.sample(reference, PILOT_PATHS, torch.Generator().manual_seed(0))
        with torch.no_grad():
            states = rollout(reference, policy, noise).states.squeeze(2)
        centre, reach = states.mean(1), SPREAD * states.std(1)
        farthest = EXTENSION * (states - centre[:, None]).abs().amax(1)
        reach = torch.maximum(reach, farthest)
        low, high = float((centre - reach).min()), float((centre + reach).max())
        count = (
            math.ceil((high - low) / min(SPACING * float(reference.schedule.sigma.min()), FINEST))
            + 1
        )
        if count > MOST_NODES and hypothesis.currently_in_test_context():
            hypothesis.reject()
        require(
            count <= MOST_NODES,
            f"the policy needs {count} nodes, more than {MOST_NODES}; use a smaller one.",
        )
        return cls(problem, torch.linspace(low, high, count, dtype=torch.float64)[:, None], phi)

    @property
    def reference(self) -> ScoreReference:
        """The pre-trained chain."""
        return _scored(self.problem)

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
        s = self.reference.schedule
        return s.alpha.sqrt() * s.sigma / s.score_weight

    @functools.cached_property
    def means(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Pre-trained mean and score at the nodes of every step."""
        reference = self.reference
        with torch.no_grad():
            return tuple(
                (reference.mean(k, self.nodes)[:, 0], reference.score(k, self.nodes)[:, 0])
                for k in self.range
            )

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
        mean, sigma = self.means[k][0], self.reference.schedule.sigma[k]
        gaps = (self.nodes[:, 0] - (mean + sigma * control)[:, None]) / sigma
        return control, self.spacing * torch.exp(-(gaps**2) / 2) / (sigma * math.sqrt(2 * math.pi))

    def objective(self, weights: Float[Tensor, "steps p"]) -> Tensor:
        """J of the policy, differentiable in its weights."""
        value = self.problem.reward(self.nodes)
        for k in reversed(self.range):
            control, kernel = self.push(k, weights[k])
            value = kernel @ value - self.problem.beta[k] * control**2 / 2
        return self.start @ value

    def slopes(self, k: int, weight: Float[Tensor, " p"]) -> tuple[Tensor, Tensor]:
        """Derivatives of the mean map and of the whitened control at the nodes."""
        reference, x = self.reference, self.nodes.clone().requires_grad_(True)
        control = reference.control_of(k, x, (self.phi(x) @ weight)[:, None])
        return tuple(
            torch.autograd.grad(f.sum(), x)[0][:, 0] for f in (reference.mean(k, x), control)
        )  # type: ignore[return-value]

    def masses(self, weights: Float[Tensor, "steps p"]) -> list[Tensor]:
        """The law of the state at every step."""
        masses = [self.start]
        for k in self.range:
            masses.append(masses[-1] @ self.push(k, weights[k])[1])
        return masses


@dataclasses.dataclass(frozen=True, eq=False)
class AffineWeights:
    """Gains and offsets of an affine policy as one vector."""

    problem: ControlProblem

    def split(self, weights: Tensor) -> tuple[Float[Tensor, "T d d"], Float[Tensor, "T d"]]:
        """Gains and offsets."""
        T, (d,) = self.problem.steps, self.problem.reference.dims
        gain, offset = weights.split([T * d * d, T * d])
        return gain.reshape(T, d, d), offset.reshape(T, d)

    def policy(self, weights: np.ndarray) -> AffinePolicy:
        """The policy."""
        return AffinePolicy(*self.split(torch.from_numpy(weights)))

    def weights(self, policy: AffinePolicy) -> np.ndarray:
        """The inverse of `policy`."""
        return torch.cat([policy.gain.flatten(), policy.offset.flatten()]).detach().numpy()

    def gradient(self, weights: np.ndarray) -> np.ndarray:
        """The exact gradient of the objective."""
        found = affine_gradient(self.problem, self.policy(weights))
        return torch.cat([found.gain.flatten(), found.offset.flatten()]).numpy()


def optimum(truth: LinearQuadratic) -> tuple[AffineWeights, np.ndarray]:
    """The affine policies of a problem, and the weights of the optimal one."""
    flat = AffineWeights(truth.problem)
    return flat, flat.weights(truth.affine_policy)


def small_problem(beta: float) -> AffineWeights:
    """Two steps in one dimension; sigma^2 P = 1 at the last."""
    instance = QuadraticInstance(
        levels=(0.25, 0.5, 1.0),
        lam=(0.5, 0.5),
        score=(-1.0,),
        shift=(0.3,),
        curvature=(2.0,),
        slope=(0.5,),
    )
    return AffineWeights(instance.problem(beta))


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
        A, b = reference.transition[k] + sigma * K, reference.offset[k] + sigma * o
        cross = torch.outer(A @ mean, b)
        second = A @ second @ A.T + cross + cross.T + torch.outer(b, b) + sigma**2 * eye
        mean = A @ mean + b
    return total + (form.P * second).sum() / 2 + form.linear @ mean + form.c


def _scored(problem: ControlProblem) -> ScoreReference:
    assert isinstance(problem.reference, ScoreReference)
    return problem.reference
