"""What every exact solution offers."""

from __future__ import annotations

import abc
import dataclasses
import functools
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from socft import plot
from socft.checks import whole
from socft.path import Noise, Path, returns, rollout
from socft.policy import FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import Noises, States, Step
from socft.reward import PerSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROBE_PATHS = 4096
DRAWN_PATHS, DRAWN_ARROWS = 30, 300


@dataclasses.dataclass(frozen=True)
class Evaluation(Readable):
    """What a policy achieves.

    Attributes:
        objective: J, reward minus running costs minus weighted KL.
        reward: expected terminal reward.
        kl: expected KL from the pre-trained kernel per step, shape (T,).
        stderr: standard error of the objective; 0 where it is exact.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> truth = Quadrature(problem)
    >>> found = truth.evaluate(truth.policy)
    >>> f"{found.objective:.6f}", found.kl.shape
    ('0.063124', torch.Size([3]))
    """

    objective: float
    reward: float
    kl: Float[Tensor, " steps"]
    stderr: float = 0.0


@dataclasses.dataclass(frozen=True)
class ErrorBounds(Readable):
    """Largest absolute errors of a solution over all steps, in Euclidean norm, from above; infinite
    where none is known.

    Attributes:
        control: of ``v*_k``, k = 0..T-1.
        gradient: of ``grad V_k``, k = 0..T.
        value: of ``V_k``, k = 0..T.
        objective: of ``J*``.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> truth = LinearQuadratic(ControlProblem(reference, Quadratic([[-1.0]]), beta=2.0))
    >>> 0 < truth.errors.control < 1e-14
    True
    """

    control: float
    gradient: float
    value: float
    objective: float


def simulate(problem: ControlProblem, policy: Policy, noise: Noise) -> Evaluation:
    """Monte-Carlo evaluation of a policy on given noise."""
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
        total, reward = returns(problem, path), problem.reward(path.final)
    stderr = float(total.std() / len(total) ** 0.5)
    return Evaluation(float(total.mean()), float(reward.mean()), path.kl().mean(1), stderr)


class Truth(Readable, abc.ABC):
    """Exact optimum of a control problem: value, value gradient (costate), control and objective.

    Attributes:
        problem: the problem it solves.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> truth = Quadrature(problem)
    >>> isinstance(truth, Truth), truth.control(0, torch.zeros(1, 1)).shape
    (True, torch.Size([1, 1]))
    """

    problem: ControlProblem

    @functools.cached_property
    def errors(self) -> ErrorBounds:
        """What the numbers of this solution are off by, at most, where the optimal chain has its
        mass; found when asked for.
        """
        return self._find_errors()

    @abc.abstractmethod
    def _find_errors(self) -> ErrorBounds:
        """`errors`."""

    @property
    def error(self) -> float:
        """The largest error of the control where the optimal chain has its mass."""
        return self.errors.control

    @abc.abstractmethod
    def value(self, k: Step, x: States) -> PerSample:
        """``V_k(x)``, k = 0..T."""

    @abc.abstractmethod
    def value_gradient(self, k: Step, x: States) -> States:
        """``grad V_k(x)``, k = 0..T."""

    @abc.abstractmethod
    def control(self, k: Step, x: States) -> Noises:
        """The optimal whitened control ``v*_k(x)``, k = 0..T-1."""

    @property
    @abc.abstractmethod
    def objective(self) -> float:
        """The largest attainable objective, ``J* = E V_0(X_0)``."""

    @property
    def policy(self) -> Policy:
        """The optimal control as a policy."""
        return FunctionPolicy(self.control)

    @functools.cached_property
    def probe(self) -> Path:
        """Paths of the optimal chain with fixed noise, for sup errors and Monte-Carlo
        evaluations.
        """
        noise = Noise.sample(self.problem.reference, PROBE_PATHS, torch.Generator().manual_seed(0))
        with torch.no_grad():
            return rollout(self.problem.reference, self.policy, noise)

    def sample(self, batch: int, generator: torch.Generator) -> States:
        """Draw ``batch`` states ``X_T`` of the optimal chain on the generator's device."""
        reference = self.problem.reference
        noise = Noise.sample(reference, batch, generator)
        with torch.no_grad():
            return rollout(reference, self.policy, noise).final

    def plot(self, axes: Axes | None = None, step: int | None = None) -> Axes:
        """Draw the optimal control where the optimal chain goes: in one dimension over steps and
        states, beneath some paths; in two as the moves ``B_k v*_k`` at one step.

        Args:
            step: of a plot in two dimensions, by default the middle one.

        Raises:
            InvalidProblem: the states have more dimensions, or matplotlib is not installed.
        """
        reference, states = self.problem.reference, self.probe.states
        plot.drawable(reference.dims)
        k = reference.steps // 2 if step is None else whole(step, "step", 0, reference.steps - 1)
        axes = plot.axes_or_new(axes)
        if reference.dims == (1,):
            x = plot.line_of(*states.aminmax())
            with torch.no_grad():
                rows = [self.control(i, x.unsqueeze(1)) for i in range(reference.steps)]
            sizes = torch.stack(rows).norm(dim=2) * torch.stack(rows)[:, :, 0].sign()
            plot.field(axes, x, sizes, "optimal control v*")
            plot.lines(axes, states[:, :DRAWN_PATHS])
        else:
            x = states[k, :DRAWN_ARROWS]
            with torch.no_grad():
                moves = reference.diffusion.apply(k, x, self.control(k, x))
            plot.arrows(axes, x, moves)
            axes.set(title=f"moves of the optimal control at step {k}", aspect="equal")
        return axes

    def points(self, k: int) -> Float[Tensor, "points *dims"]:
        """The states of step ``k`` on which sup errors are taken: samples of the optimal chain
        unless a subclass has better.
        """
        return self.probe.states[k]

    def evaluate(self, policy: Policy) -> Evaluation:
        """What a policy achieves: by simulation on the probe's noise unless a subclass knows
        better.
        """
        return simulate(self.problem, policy, self.probe.noise)

    def control_error(self, policy: Policy) -> Float[Tensor, " steps"]:
        """``sup |v_k - v*_k|`` over `points` per step, shape (T,)."""
        with torch.no_grad():
            distances = [
                _sup(policy(k, x) - self.control(k, x))
                for k, x in enumerate(map(self.points, range(self.problem.steps)))
            ]
        return torch.stack(distances)


def _sup(difference: Tensor) -> Tensor:
    return difference.flatten(1).norm(dim=1).max()
