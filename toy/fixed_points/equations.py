r"""The equations whose solutions methods of fine-tuning converge to, solved for the population.

Every equation is pointwise, :math:`N_k(x; v) = D_k(x; v)\, v_k(x)`, with the weights of the states
that the method regresses on: those of the chain, or those of endpoints renoised. In a class it asks
for the projection, and its solution is the limit of damped projections.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem
from socft.estimators.flow.look_ahead import LevelWeight
from socft.policy import FeaturePolicy
from socft.readable import Readable
from socft.reference import States
from toy.fixed_points.line import RIDGE, Field, LineChain, WeightedFit

Coefficients = Float[Tensor, "steps 1 nodes"]
SETTLED, SWEEPS = 1e-7, 400
DIVERGED = 1e3


class Equation(Readable, abc.ABC):
    """An equation for the control."""

    @abc.abstractmethod
    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        """What its right-hand side asks for at a control."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """The KL weights that a method leaves: given ones, or what normalised rewards make of them.

    Attributes:
        steps: one per step; those of the problem where left out.
        normalised: whether they are multiplied with the standard deviation of the reward under the
            current law, as where rewards are divided by it.
        floor: added to that.
    """

    steps: tuple[float, ...] | None = None
    normalised: bool = False
    floor: float = 0.0

    def of(self, line: LineChain, law: Tensor) -> Float[Tensor, "steps 1"]:
        """At a law of endpoints."""
        given = line.problem.beta if self.steps is None else torch.tensor(self.steps)
        scale = deviation(line.reward, law) + self.floor if self.normalised else 1.0
        return (given.double() * scale)[:, None]


PROBLEMS_OWN = Weights()


@dataclasses.dataclass(frozen=True)
class WeightedEquation(Equation):
    """An equation with a KL weight per step.

    Attributes:
        weights: those of the KL.
    """

    weights: Weights = dataclasses.field(default=PROBLEMS_OWN, kw_only=True)


@dataclasses.dataclass(frozen=True)
class LeanCostates(WeightedEquation):
    r"""(O), the optimum: :math:`v_k = B_k E[a_{k+1} | x_k]/\beta_k` with lean costates."""

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        kernels = line.kernels(control)
        laws = line.laws(kernels)
        beta = self.weights.of(line, laws[-1])
        slope = line.problem.reward.gradient(line.points[:, None])[:, 0]
        wanted = []
        for k in reversed(range(line.problem.steps)):
            mean = kernels[k] @ slope
            wanted.append(line.reference.schedule.sigma[k] * mean / beta[k])
            slope = _mean_slope(line, k) * mean
        return _by_chain(line, torch.stack(wanted[::-1]), laws)


@dataclasses.dataclass(frozen=True)
class ImpliedCostates(WeightedEquation):
    r"""(O) with the costates that the control implies, :math:`a_k = m_k' \beta_k v_k/B_k` before
    the end: what is known of the reward travels one step per sweep.
    """

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        kernels = line.kernels(control)
        laws = line.laws(kernels)
        beta, sigma = self.weights.of(line, laws[-1]), line.reference.schedule.sigma
        slopes = [
            _mean_slope(line, k) * beta[k] * control[k] / sigma[k]
            for k in range(1, line.problem.steps)
        ]
        slopes.append(line.problem.reward.gradient(line.points[:, None])[:, 0])
        wanted = [
            sigma[k] * (kernel @ slope) / beta[k]
            for k, (kernel, slope) in enumerate(zip(kernels, slopes, strict=True))
        ]
        return _by_chain(line, torch.stack(wanted), laws)


@dataclasses.dataclass(frozen=True)
class ReturnsToGo(WeightedEquation):
    r"""(O), the optimum in the class: :math:`v_k = E[V_{k+1}(x_{k+1})\, \xi_k | x_k]/\beta_k` with
    the policy's own values.

    Attributes:
        kl: whether the KL of later steps is paid; without it this is (N).
    """

    kl: bool = True

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        kernels = line.kernels(control)
        laws = line.laws(kernels)
        beta = self.weights.of(line, laws[-1])
        paid = beta * control.square() / 2 if self.kl else torch.zeros_like(control)
        values = line.backward(kernels, line.reward, paid)
        wanted = [
            (kernels[k] * line.noise(k, control[k])) @ values[k + 1] / beta[k]
            for k in range(line.problem.steps)
        ]
        return _by_chain(line, torch.stack(wanted), laws)


@dataclasses.dataclass(frozen=True)
class EndpointCovariance(WeightedEquation):
    r"""(E): :math:`v_k = \mathrm{Cov}_q(r, w_k | x_k)/\beta_k` where q makes the endpoints and
    :math:`w_k` is the control of the sample's own endpoint, as the methods have it: :math:`\beta_k
    v_k = E_q[(r - c)(w_k - v_k) | x_k]`, which is (E) where v is the denoiser of q.

    Attributes:
        baseline: c; the mean reward of q where left out.
        clip: bound of the normalised rewards.
    """

    baseline: float | None = None
    clip: float | None = None

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        law = line.samples(control)
        beta = self.weights.of(line, law)
        centre = float(law @ line.reward) if self.baseline is None else self.baseline
        advantage = line.reward - centre
        if self.clip is not None:
            spread = deviation(line.reward, law)
            advantage = (advantage / spread).clamp(-self.clip, self.clip) * spread
        wanted, curvature, mass = [], [], []
        for k in range(line.problem.steps):
            ends = line.renoised(k, law)
            wanted.append((ends.given * ends.control) @ advantage / beta[k])
            curvature.append(1 + ends.given @ advantage / beta[k])
            mass.append(ends.mass)
        states = line.points.expand(len(wanted), -1)
        return WeightedFit(states, *map(torch.stack, (wanted, curvature, mass)))


@dataclasses.dataclass(frozen=True)
class TiltedScore(WeightedEquation):
    r"""The score of the tilt from samples of the model: with samples z of noise t left, fresh noise
    of variance :math:`f^2` and :math:`n^2 = a^2 + f^2`, :math:`-x/n^2 + (a/n^2) E_q[\nabla \log p +
    \nabla r/\beta + z | x]`, of which :math:`a^2/n^2` is the score of the tilt at z and the rest
    that of denoising.

    Attributes:
        score: of the law of the pre-trained samples.
    """

    score: Callable[[States], States]

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        law = line.samples(control)
        beta = self.weights.of(line, law)
        levels, x = line.reference.schedule.levels, line.points
        scale = levels.signal[-1]
        slope = self.score(x[:, None])[:, 0] * scale
        steep = line.problem.reward.gradient(x[:, None])[:, 0] * scale
        wanted, mass = [], []
        for k in range(line.problem.steps):
            ends = line.renoised(k, law)
            a, s = levels.signal[k], levels.noise[k]
            size = a**2 + s**2 - (a * levels.noise[-1] / scale) ** 2
            pulled = ends.given @ (slope + steep / beta[k] + x / scale)
            kept = (size - s**2) / a if float(a) else 0.0
            endpoint = (kept * x + s**2 * pulled) / size
            wanted.append(line.reference.control_to(k, x[:, None], endpoint[:, None])[:, 0])
            mass.append(ends.mass)
        found = torch.stack(wanted)
        return WeightedFit(
            x.expand(len(found), -1), found, torch.ones_like(found), torch.stack(mass)
        )


@dataclasses.dataclass(frozen=True)
class LookAhead(WeightedEquation):
    r"""Guidance by the reward of the predicted endpoint: :math:`v_k = B_k E[\phi_{k+1}(x_{k+1}) |
    x_k]/\beta_k` with :math:`\phi_k = \gamma_k \nabla_x r(\hat x_0(x))`, the model's own
    endpoint, and :math:`\phi_T = \nabla r`.

    Attributes:
        weight: gamma of signal and noise.
    """

    weight: LevelWeight

    def regression(self, line: LineChain, control: Field) -> WeightedFit:
        kernels = line.kernels(control)
        laws = line.laws(kernels)
        beta, x = self.weights.of(line, laws[-1]), line.points[:, None]
        (cell,), levels = line.points[1:2] - line.points[:1], line.reference.schedule.levels
        guess = line.problem.reward.gradient(x)[:, 0]
        wanted = []
        for k in reversed(range(line.problem.steps)):
            wanted.append(line.reference.schedule.sigma[k] * (kernels[k] @ guess) / beta[k])
            seen = line.problem.reward(line.reference.endpoint_of(k, x, control[k][:, None]))
            (slope,) = torch.gradient(seen, spacing=float(cell))
            guess = self.weight(levels.signal[k], levels.noise[k]) * slope
        return _by_chain(line, torch.stack(wanted[::-1]), laws)


def solve(
    line: LineChain, equation: Equation, damping: float, start: Coefficients | None = None
) -> tuple[FeaturePolicy, float]:
    """The solution in the class, from the pre-trained model where nothing else is given, and what
    the last sweep changed.

    Raises:
        InvalidProblem: the sweeps diverge.
    """
    weight, change = torch.zeros(()), torch.inf
    found = itertools.islice(sweeps(line, equation, damping, start=start), SWEEPS)
    while change > SETTLED and (after := next(found, None)) is not None:
        weight, change = after
    return _policy(line, weight), change


def population_run(
    line: LineChain, equation: Equation, damping: float, count: int, prior: float
) -> FeaturePolicy:
    """Where as many sweeps lead: the mean of the coefficients after the last half of them.

    Args:
        prior: mass of which a node is taken to know its coefficient.

    Raises:
        InvalidProblem: the sweeps diverge.
    """
    found = [
        weight for weight, _ in itertools.islice(sweeps(line, equation, damping, prior), count)
    ]
    return _policy(line, torch.stack(found[count - (count // 2) :]).mean(0))


def sweeps(
    line: LineChain,
    equation: Equation,
    damping: float,
    prior: float = RIDGE,
    start: Coefficients | None = None,
) -> Iterator[tuple[Tensor, float]]:
    """Coefficients after every damped sweep, and how much it changed of the control in the mean
    square.

    Raises:
        InvalidProblem: the sweeps diverge.
    """
    weight = line.hats.policy(line.problem.steps).weight.detach() if start is None else start
    for sweep in itertools.count():
        fit = equation.regression(line, (line.features @ weight[:, 0].T).T)
        step, moved = line.project(fit, weight, prior)
        change = float((fit.mass * moved.square()).sum().sqrt())
        weight = weight + damping * step
        if not change < DIVERGED:
            raise InvalidProblem(
                f"{equation} diverges at sweep {sweep}; take a larger beta or a smaller damping."
            )
        yield weight, change


def _policy(line: LineChain, weight: Tensor) -> FeaturePolicy:
    return FeaturePolicy(line.hats, weight)


def deviation(values: Tensor, law: Tensor) -> float:
    """Standard deviation of a function under a law."""
    mean = law @ values
    return float((law @ (values - mean).square()).sqrt())


def _by_chain(line: LineChain, wanted: Field, laws: Tensor) -> WeightedFit:
    states = line.points.expand(len(wanted), -1)
    return WeightedFit(states, wanted, torch.ones_like(wanted), laws[:-1])


def _mean_slope(line: LineChain, k: int) -> Float[Tensor, " points"]:
    """Derivative of the pre-trained mean map."""
    return slope_of(lambda y: line.reference.mean(k, y), line.points[:, None])


def slope_of(function: Callable[[Tensor], Tensor], x: States) -> Float[Tensor, " batch"]:
    """Derivative of a function of one variable."""
    at = x.detach().clone().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(function(at).sum(), at)
    return slope[:, 0]
