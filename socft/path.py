"""Rollouts: paths as a deterministic function of noise, so that reruns, common random numbers and
antithetic pairs are exact.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from socft import plot
from socft.checks import (
    called,
    described,
    require,
    require_finite,
    require_floating,
    require_generator,
    require_kind,
    whole,
)
from socft.policy import Policy
from socft.problem import ControlProblem, require_problem
from socft.readable import Readable
from socft.reference import Reference
from socft.reward import PerSample

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True)
class Noise(Readable):
    """Standard normal noise of a batch of paths.

    Attributes:
        initial: shape (batch, *dims), turned into the initial state by the reference.
        steps: shape (T, batch, *noise_dims).

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> Noise.sample(reference, batch=100, generator=torch.Generator().manual_seed(0)).steps.shape
    torch.Size([3, 100, 1])
    """

    initial: Float[Tensor, "batch *dims"]
    steps: Float[Tensor, "steps batch *noise_dims"]

    def __post_init__(self) -> None:
        for name, least in (("initial", 2), ("steps", 3)):
            value = getattr(self, name)
            fits = isinstance(value, Tensor) and value.is_floating_point() and value.ndim >= least
            require(
                fits,
                f"{name} is {described(value)}; give floating-point noise of shape (batch, *dims)"
                " and (steps, batch, *noise_dims).",
            )

    @classmethod
    def sample(
        cls,
        reference: Reference,
        batch: int,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> Noise:
        """Draw the noise of ``batch`` paths on the generator's device."""
        batch = whole(batch, "batch")
        require_kind(reference, Reference, "the reference", "give a Reference.")
        require_generator(generator)
        require_floating(dtype)
        device = generator.device
        initial = torch.randn(
            batch, *reference.dims, generator=generator, dtype=dtype, device=device
        )
        steps = torch.randn(
            reference.steps,
            batch,
            *reference.noise_dims,
            generator=generator,
            dtype=dtype,
            device=device,
        )
        return cls(initial, steps)

    def antithetic(self) -> Noise:
        """The same initial noise with every step's noise negated."""
        return Noise(self.initial, -self.steps)


@dataclasses.dataclass(frozen=True)
class Path(Readable):
    """A batch of paths.

    Attributes:
        states: shape (T + 1, batch, *dims).
        controls: whitened controls along the path, shape (T, batch, *noise_dims).
        noise: the noise that produced it.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> noise = Noise.sample(reference, batch=4, generator=torch.Generator().manual_seed(0))
    >>> path = rollout(reference, Uncontrolled(reference), noise)
    >>> path.states.shape, path.kl().sum()
    (torch.Size([4, 4, 1]), tensor(0., dtype=torch.float64))
    """

    states: Float[Tensor, "steps_plus_1 batch *dims"]
    controls: Float[Tensor, "steps batch *noise_dims"]
    noise: Noise

    @property
    def final(self) -> Float[Tensor, "batch *dims"]:
        """The samples ``X_T``."""
        return self.states[-1]

    def kl(self) -> Float[Tensor, "steps batch"]:
        """KL of each controlled kernel from the pre-trained one, ``|v_k|^2 / 2``."""
        return self.controls.flatten(2).square().sum(2) / 2

    def plot(self, axes: Axes | None = None, paths: int = 100) -> Axes:
        """Draw the first paths: against their steps in one dimension, in the plane in two.

        Raises:
            InvalidProblem: the states have more dimensions, or matplotlib is not installed.
        """
        plot.drawable(self.states.shape[2:])
        axes = plot.axes_or_new(axes)
        plot.lines(axes, self.states[:, : whole(paths, "paths")].detach())
        return axes


def rollout(reference: Reference, policy: Policy, noise: Noise) -> Path:
    """Simulate ``x_{k+1} = m_k(x_k) + B_k (v_k(x_k) + xi_k)``; differentiable when gradients are
    enabled.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> noise = Noise.sample(reference, batch=4, generator=torch.Generator().manual_seed(0))
    >>> path = rollout(reference, FunctionPolicy(lambda k, x: -x), noise)
    >>> path.final.shape
    torch.Size([4, 1])
    """
    require_kind(reference, Reference, "the reference", "give a Reference.")
    require_kind(policy, Policy, "the policy", "give a Policy, such as FunctionPolicy(function).")
    require_kind(noise, Noise, "the noise", "give Noise.sample(reference, batch, generator).")
    expected = (reference.steps, len(noise.initial), *reference.noise_dims)
    require(
        tuple(noise.steps.shape) == expected and tuple(noise.initial.shape[1:]) == reference.dims,
        f"noise has shapes {tuple(noise.initial.shape)} and {tuple(noise.steps.shape)}; "
        f"this reference needs (batch, {', '.join(map(str, reference.dims))}) and {expected}.",
    )
    states, controls = [reference.initial(noise.initial)], []
    for k in range(reference.steps):
        v = called(policy, (k, states[-1]), expected[1:], "the policy")
        controls.append(v)
        states.append(reference.step(k, states[-1], v + noise.steps[k]))
    path = Path(torch.stack(states), torch.stack(controls), noise)
    if not policy.parameters():  # those of a policy that learns are watched where it learns
        require_finite(
            path.controls.detach(), "the control", "a policy must return finite numbers; check it."
        )
    return path


def returns(problem: ControlProblem, path: Path) -> PerSample:
    """Reward minus running costs minus weighted KL of each path; its mean estimates the objective
    J.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> noise = Noise.sample(reference, batch=4, generator=torch.Generator().manual_seed(0))
    >>> returns(problem, rollout(reference, Uncontrolled(reference), noise)).shape
    torch.Size([4])
    """
    require_problem(problem)
    require_kind(path, Path, "the path", "give what rollout returns.")
    total = problem.reward(path.final) - (problem.beta.to(path.controls)[:, None] * path.kl()).sum(
        0
    )
    for k in range(problem.steps) if problem.running_cost is not None else ():
        total = total - problem.cost(k, path.states[k])
    return total
