r"""The network as it is called: with low-rank layers or without, guided, a few rows at a time, with
little memory.

With classifier-free guidance of scale w the noise is

.. math:: \varepsilon_k(x) = \varepsilon_k(x, \text{negative})
   + w\, \big(\varepsilon_k(x, \text{prompt}) - \varepsilon_k(x, \text{negative})\big).
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import peft
import torch
from jaxtyping import Real
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from sd_experiments.model.prompts import EncodedPrompt
from sd_experiments.model.transforms import is_forward_mode, is_transforming
from socft.checks import require
from socft.reference import States

HALVES = (torch.float16, torch.bfloat16)


@dataclasses.dataclass(frozen=True)
class Condition:
    """What the network is told about the image.

    Attributes:
        prompt: the encoded prompt.
        negative: the encoded negative prompt, used when ``guidance`` is not 1.
        guidance: the guidance scale w; 1 is the conditional network itself.
    """

    prompt: EncodedPrompt
    negative: EncodedPrompt
    guidance: float = 1.0


def recompute_in_backward(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function, keeping its inputs in place of its graph; the function itself inside transforms
    of torch.func.

    The backward pass runs the function to its end: an early stop is an exception inside it, which
    a function that tells the errors of what it calls would take for one of them.
    """
    if is_transforming():
        return function

    def recomputed(*arguments: Any) -> Any:
        with set_checkpoint_early_stop(False):
            return checkpoint(
                function, *arguments, use_reentrant=False, preserve_rng_state=False, **options
            )

    return recomputed


class LatentDenoiser(abc.ABC):
    """A network with frozen weights, called in its own dtype on its own device, ``micro_batch``
    samples at a time.

    Low-rank layers that a `sd_experiments.model.policy.LoRA` adds act only in calls that ask for
    them, so one network is both the pre-trained and the fine-tuned one. When a graph is recorded
    over several micro-batches, only their inputs are kept and each is computed again in the
    backward pass, so memory is that of one micro-batch whatever the batch (except inside transforms
    of torch.func, which rule that out, here and for ``checkpointing``).

    Args:
        network: the network.
        micro_batch: samples per call; all of them by default. With guidance a sample takes two
            rows.
        checkpointing: keep only the inputs of the network's blocks for the backward pass.
        plain_attention: compute attention from matrix products, which can be differentiated twice;
            the fused kernels cannot, and have no forward mode either. Calls in forward mode do this
            by themselves.
    """

    def __init__(
        self,
        network: Any,
        micro_batch: int | None = None,
        checkpointing: bool = False,
        plain_attention: bool = False,
    ):
        require(
            micro_batch is None or micro_batch >= 1,
            f"micro_batch = {micro_batch}; give at least 1, or None for no limit.",
        )
        self.network = network.requires_grad_(False).eval()
        self.micro_batch = micro_batch
        self.plain_attention = plain_attention
        self.adapters: Sequence[Any] = ()
        self.calls = 0
        self._adapted = False
        self._merged: Sequence[_MergedLayer] = ()
        if checkpointing:
            network.enable_gradient_checkpointing(self._checkpoint_block)

    def __call__(
        self,
        timesteps: Real[Tensor, " batch"],
        x: States,
        condition: Condition,
        adapted: bool = False,
    ) -> States:
        """The network's guided output in the dtype and on the device of ``x``, with the low-rank
        layers or without.
        """
        rows = self.micro_batch or max(len(x), 1)
        if len(x) <= rows:
            return self._predict(timesteps, x, condition, adapted)
        predict = recompute_in_backward(self._predict) if torch.is_grad_enabled() else self._predict
        parts = zip(timesteps.split(rows), x.split(rows), strict=True)
        return torch.cat([predict(t, y, condition, adapted) for t, y in parts])

    def adopt(self, adapters: Sequence[Any]) -> None:
        """Take charge of the network's low-rank layers, which are off from here on.

        Raises:
            InvalidProblem: this version of peft switches its layers in another way.
        """
        self.adapters = tuple(adapters)
        for on in (True, False):
            _switch(self.adapters, on)
            require(
                all(layer.disable_adapters is not on for layer in self.adapters),
                f"peft {peft.__version__} does not switch its layers by a flag; install the"
                " version in constraints.txt.",
            )

    @contextlib.contextmanager
    def merging(self) -> Iterator[None]:
        """Until the layers change, calls that ask for them use the sum of their product and the
        frozen weight, at the cost of the frozen network and the memory of these weights once more.

        They have no derivative in the layers' own weights, but the right one in the state. In half
        precision nothing is merged: small changes would be lost in rounding, and what samples would
        be another policy than what learns.
        """
        weights = next(self.network.parameters())
        if self._merged or weights.dtype in HALVES:
            yield
            return
        self._merged = tuple(map(_MergedLayer.of, self.adapters))
        try:
            yield
        finally:
            self._merged = ()

    def _predict(self, timesteps: Tensor, x: Tensor, condition: Condition, adapted: bool) -> Tensor:
        weight, negative = condition.guidance, condition.negative
        with self._switched(adapted), self._attention():
            if weight == 1:
                return self._called(timesteps, x, condition.prompt.rows(len(x)))
            told = negative.rows(len(x)).joined(condition.prompt.rows(len(x)))
            without, given = self._called(timesteps.repeat(2), torch.cat([x, x]), told).chunk(2)
            return without + weight * (given - without)

    def _called(self, timesteps: Tensor, x: Tensor, told: EncodedPrompt) -> Tensor:
        self.calls += 1
        weight = next(self.network.parameters())
        return self._evaluate(timesteps.to(weight.device), x.to(weight), told.to(weight)).to(x)

    @abc.abstractmethod
    def _evaluate(self, timesteps: Tensor, x: Tensor, told: EncodedPrompt) -> Tensor:
        """The network at states in its own dtype, as its pipeline calls it."""

    @contextlib.contextmanager
    def _switched(self, adapted: bool) -> Iterator[None]:
        """Low-rank layers on or off."""
        before, self._adapted = self._adapted, adapted
        layers = self._merged or self.adapters
        if adapted != before:
            _switch(layers, adapted)
        try:
            yield
        finally:
            self._adapted = before
            if adapted != before:
                _switch(layers, before)

    def _attention(self) -> contextlib.AbstractContextManager[Any]:
        return (
            sdpa_kernel(SDPBackend.MATH)
            if self.plain_attention or is_forward_mode()
            else contextlib.nullcontext()
        )

    def _checkpoint_block(self, block: Callable[..., Any], *args: Any) -> Any:
        """A block whose second evaluation, in the backward pass, has the low-rank layers as they
        are now.
        """
        adapted = self._adapted

        def contexts() -> tuple[
            contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]
        ]:
            return contextlib.nullcontext(), self._switched(adapted)

        return recompute_in_backward(block, context_fn=contexts)(*args)


class UNetDenoiser(LatentDenoiser):
    """The network of Stable Diffusion 1.x, 2.x and XL."""

    def _evaluate(self, timesteps: Tensor, x: Tensor, told: EncodedPrompt) -> Tensor:
        added: Any = {"added_cond_kwargs": dict(told.added)} if told.added else {}
        return self.network(
            x, timesteps, encoder_hidden_states=told.text, return_dict=False, **added
        )[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _MergedLayer:
    """A layer of the network with either of two weights.

    They are two parameters, which change places: a graph keeps the one it was recorded with.
    """

    layer: nn.Module
    frozen: nn.Parameter
    adapted: nn.Parameter

    @classmethod
    @torch.no_grad()
    def of(cls, adapter: Any) -> _MergedLayer:
        layer = adapter.get_base_layer()
        total = layer.weight + sum(map(adapter.get_delta_weight, adapter.active_adapters))
        return cls(layer, layer.weight, nn.Parameter(total, requires_grad=False))

    def switch(self, adapted: bool) -> None:
        self.layer.weight = self.adapted if adapted else self.frozen


def _switch(layers: Sequence[Any], adapted: bool) -> None:
    """Low-rank layers, or those that they are merged with, on or off.

    Of peft's layers, set what its property ``disable_adapters`` reads: its public switch also flips
    ``requires_grad``, and attributes of modules are slow beside a small network.
    """
    for layer in layers:
        if isinstance(layer, _MergedLayer):
            layer.switch(adapted)
        else:
            object.__setattr__(layer, "_disable_adapters", not adapted)
