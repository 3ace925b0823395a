"""Policies: the whitened control ``v_k(x)`` as a function of step and state.

A policy returns ``batch *noise_dims``; ``v = 0`` is the pre-trained model, and ``|v|^2 / 2`` is its
KL cost whatever the reference. Parametric policies start at zero control unless told otherwise.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from socft.checks import (
    Numbers,
    numbers,
    probe,
    require,
    require_callable,
    require_floating,
    require_generator,
    require_kind,
    returned,
    whole,
)
from socft.readable import Readable
from socft.reference import Noises, Reference, States, Step, at_step, by_step
from socft.regression.networks import (
    OCTAVES,
    SpaceTimeNetwork,
    TimeEmbedding,
    multilayer_perceptron,
    octaves,
)

PolicyT = TypeVar("PolicyT", bound="Policy")


class Policy(Readable, abc.ABC):
    """``(k, x) -> v_k(x)`` with k one step or one step per sample.

    A policy is trained by the parameters it holds: those among its attributes, and those of the
    modules and policies among them.

    >>> policy = FunctionPolicy(lambda k, x: torch.zeros_like(x))
    >>> isinstance(policy, Policy), policy.parameters()
    (True, [])
    """

    @abc.abstractmethod
    def __call__(self, k: Step, x: States) -> Noises:
        """The whitened control."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What training changes, by name; each parameter once."""
        found: dict[nn.Parameter, str] = {}
        for name, each in vars(self).items():
            if isinstance(each, nn.Parameter):
                found.setdefault(each, name)
            elif isinstance(each, nn.Module | Policy):
                for inner, parameter in each.named_parameters():
                    found.setdefault(parameter, f"{name}.{inner}")
        return ((name, parameter) for parameter, name in found.items())

    def parameters(self) -> list[nn.Parameter]:
        """What an optimiser takes."""
        return [parameter for _, parameter in self.named_parameters()]

    def shown(self) -> dict[str, Any]:
        held = {k: v for k, v in vars(self).items() if isinstance(v, nn.Module | nn.Parameter)}
        return super().shown() | held

    def to(self: PolicyT, target: torch.dtype | torch.device | str) -> PolicyT:
        """The same policy with its parameters in another dtype or on another device."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(target)
        return self


class Uncontrolled(Policy):
    """The pre-trained model, ``v = 0``.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> Uncontrolled(reference)(0, torch.ones(2, 1))
    tensor([[0.],
            [0.]])
    """

    def __init__(self, reference: Reference):
        require_kind(reference, Reference, "the reference", "give a Reference.")
        self.noise_dims = reference.noise_dims

    def __call__(self, k: Step, x: States) -> Noises:
        return x.new_zeros(len(x), *self.noise_dims)


class FunctionPolicy(Policy):
    """Any function ``(k, x) -> v`` as a policy without parameters.

    >>> FunctionPolicy(lambda k, x: -x)(0, torch.ones(2, 1))
    tensor([[-1.],
            [-1.]])
    """

    def __init__(self, function: Callable[[Step, States], Noises]):
        require_callable(function, "the policy", "of step and states")
        self.function = function

    def __call__(self, k: Step, x: States) -> Noises:
        return self.function(k, x)


class AffinePolicy(Policy):
    """``v_k(x) = gain_k x + offset_k`` on vectors; gain (T, m, n), offset (T, m).

    >>> policy = AffinePolicy(gain=[[[-0.5]]] * 3, offset=[[1.0]] * 3)
    >>> policy(0, torch.tensor([[2.0]], dtype=torch.float64)).detach()
    tensor([[0.]], dtype=torch.float64)
    """

    def __init__(self, gain: Numbers, offset: Numbers):
        gain = numbers(gain, "gain", ("steps", "m", "n"))
        offset = numbers(offset, "offset", gain.shape[:2])
        self.gain = nn.Parameter(gain.clone())
        self.offset = nn.Parameter(offset.clone())

    @classmethod
    def zeros(cls, reference: Reference) -> AffinePolicy:
        """The pre-trained model as an affine policy."""
        m, n = _vector_sizes(reference)
        return cls(
            torch.zeros(reference.steps, m, n, dtype=torch.float64),
            torch.zeros(reference.steps, m, dtype=torch.float64),
        )

    def __call__(self, k: Step, x: States) -> Noises:
        return (self.gain[k] @ x.unsqueeze(-1)).squeeze(-1) + self.offset[k]


class FeaturePolicy(Policy):
    """``v_k(x) = weight_k phi(x)`` with ``phi: batch n -> batch p`` and weight of shape (T, m, p).

    >>> policy = FeaturePolicy(Polynomial(2), torch.zeros(3, 1, 3))
    >>> [name for name, _ in policy.named_parameters()]
    ['weight']
    """

    def __init__(
        self,
        features: Callable[[States], Float[Tensor, "batch p"]],
        weight: Numbers,
    ):
        require_callable(features, "the feature map", "of the states, such as Polynomial(2)")
        self.features = features
        self.weight = nn.Parameter(numbers(weight, "weight", ("steps", "m", "p")).clone())

    def __call__(self, k: Step, x: States) -> Noises:
        shape = (len(x), self.weight.shape[2])
        features = probe(self.features, (x,), shape, "the feature map")
        return (self.weight[k] @ features.unsqueeze(-1)).squeeze(-1)


class StepwisePolicy(Policy):
    """One function of the state per step.

    >>> policy = StepwisePolicy([torch.sin, torch.cos])
    >>> policy(1, torch.zeros(1, 1))
    tensor([[1.]])
    """

    def __init__(self, functions: Sequence[Callable[[States], Noises]]):
        require_kind(functions, (list, tuple), "the policy", "give a list of functions.")
        for each in functions:
            require_callable(each, "the policy of a step", "of the states")
        self.functions = tuple(functions)

    def __call__(self, k: Step, x: States) -> Noises:
        return by_step(k, x, lambda i, y: self.functions[i](y))


class MLPPolicy(Policy):
    """A multilayer perceptron of (x, time embedding) on vectors, with a zero last layer, so it
    starts at the pre-trained model.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> MLPPolicy(reference, width=8)
    MLPPolicy(network=<SpaceTimeNetwork, 225 parameters>)
    >>> MLPPolicy(reference)(0, torch.ones(1, 1, dtype=torch.float64)).detach()
    tensor([[0.]], dtype=torch.float64)
    """

    def __init__(
        self,
        reference: Reference,
        width: int = 64,
        depth: int = 2,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ):
        m, n = _vector_sizes(reference)
        width, depth = whole(width, "width"), whole(depth, "depth", 0)
        require_floating(dtype)
        if generator is not None:
            require_generator(generator)
        time = TimeEmbedding(reference.steps, octaves(OCTAVES))
        sizes = [n + time.width, *[width] * depth, m]
        self.network = SpaceTimeNetwork(
            time, multilayer_perceptron(sizes, generator, dtype, zero=True)
        )

    def __call__(self, k: Step, x: States) -> Noises:
        return self.network(k, x)


class ResidualPolicy(Policy):
    """A fine-tuned mean map minus the reference, ``v = B^+ (m^theta_k(x) - m_k(x))``; gradients
    flow through both branches.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> policy = ResidualPolicy(reference, lambda k, x: reference.mean(k, x) + 1)
    >>> policy(0, torch.zeros(1, 1))
    tensor([[2.]])
    """

    def __init__(self, reference: Reference, fine_tuned: Callable[[Step, States], States]):
        require_kind(reference, Reference, "the reference", "give a Reference.")
        require_callable(fine_tuned, "the fine-tuned mean", "of step and states")
        self.reference = reference
        self.fine_tuned = fine_tuned

    def __call__(self, k: Step, x: States) -> Noises:
        tuned = returned(self.fine_tuned(k, x), tuple(x.shape), "the fine-tuned mean")
        shift = tuned - self.reference.mean(k, x)
        return self.reference.diffusion.whiten(k, x, shift)


class ScaledPolicy(Policy):
    """``scale_k v_k(x)``: a policy at a chosen distance from the pre-trained model (0) or from
    another policy (1).

    >>> half = ScaledPolicy(FunctionPolicy(lambda k, x: -x), scale=[0.5, 0.5, 0.5])
    >>> half(0, torch.ones(1, 1))
    tensor([[-0.5000]])
    """

    def __init__(self, policy: Policy, scale: Numbers):
        require_kind(policy, Policy, "the policy", "give a Policy, such as FunctionPolicy.")
        self.policy = policy
        self.scale = numbers(scale, "scale", ("steps",))

    def __call__(self, k: Step, x: States) -> Noises:
        return at_step(self.scale, k, x) * self.policy(k, x)


def _vector_sizes(reference: Reference) -> tuple[int, int]:
    """Lengths of a noise and of a state of a chain of vectors."""
    require_kind(reference, Reference, "the reference", "give a Reference.")
    noise_dims, dims = reference.noise_dims, reference.dims
    require(
        len(noise_dims) == len(dims) == 1,
        f"states have shape {dims} and noises {noise_dims}; this policy acts on vectors, flatten"
        " them or give a FunctionPolicy.",
    )
    return noise_dims[0], dims[0]
