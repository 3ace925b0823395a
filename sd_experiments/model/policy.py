r"""Low-rank fine-tuning of a latent model as a policy.

The fine-tuned chain is the reference's own with another score, so its whitened control is

.. math:: v_k(x) = B_k^+ \big(m^\theta_k(x) - m_k(x)\big) = \frac{g_k}{\sqrt{a_k}\, \sigma_k}
    \big(s^\theta_k(x) - s_k(x)\big),

computed from the scores, where the difference loses fewer digits than that of the means; for a flow
the same with velocities (`socft.flow`). Both come from one network, with its low-rank layers (LoRA,
Hu et al. 2021: :math:`W + \tfrac{\alpha}{r} B A`) on and off; B starts at zero, hence v does too.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from peft import LoraConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from sd_experiments.model.denoiser import HALVES
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.latent_reference import LatentReference
from socft.checks import InvalidProblem, meant, require, tried
from socft.costates.adjoint import lean_adjoint
from socft.path import Noise, Path, rollout
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import Noises, Reference, States, Step

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
"""The projections of every attention layer, diffusers' usual choice."""
ADAPTER = "default"
SHOWN = 12
"""Endings of layers' names that are listed."""
Chain = TypeVar("Chain", bound=LatentReference[Any])


class LoRA(nn.Module):
    """Trainable low-rank layers on the network of a `LatentModel`, shared by the policies of
    every prompt.

    They are off except in the calls of a `LoRAPolicy`. Their weights are float32 where the network
    is in half precision, else in the network's dtype.

    Args:
        base: the frozen parts; its network carries one set of low-rank layers at most.
        rank: the rank r.
        alpha: the layers act with weight alpha / r; r by default.
        targets: endings of the names of the linear layers and convolutions to adapt.
        generator: draws A; B is zero.

    Raises:
        InvalidProblem: a network that carries low-rank layers already, a rank below 1, or targets
            that match no layer.
    """

    def __init__(
        self,
        base: LatentModel,
        rank: int = 4,
        alpha: float | None = None,
        targets: Sequence[str] = ATTENTION,
        generator: torch.Generator | None = None,
    ):
        require(rank >= 1, f"rank = {rank}; give at least 1.")
        strength: Any = rank if alpha is None else alpha
        config = LoraConfig(r=rank, lora_alpha=strength, target_modules=list(targets))
        self._adapt(base, config, generator)

    @classmethod
    def of_config(cls, base: LatentModel, config: LoraConfig) -> LoRA:
        """The layers of a configuration of peft, with ranks and strengths of their own where it has
        patterns for them.

        Raises:
            InvalidProblem: the network carries low-rank layers already, or nothing is adapted.
        """
        lora = cls.__new__(cls)
        lora._adapt(base, config, None)
        return lora

    def _adapt(
        self, base: LatentModel, config: LoraConfig, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.config = config
        self._base = (base,)  # not a submodule: what is frozen is not the policy's
        self.weights = nn.ParameterDict(
            {name.replace(".", "/"): p for name, p in _attach(base, config).items()}
        )
        self.reset(generator)

    @property
    def base(self) -> LatentModel:
        """The frozen parts."""
        return self._base[0]

    @torch.no_grad()
    def reset(self, generator: torch.Generator | None = None, scale: float = 0.0) -> None:
        """Draw A from N(0, 1 / rank^2) and B from N(0, scale^2), zero by default: the pre-trained
        model.
        """
        for name, p in self.weights.items():
            deviation = scale if "lora_B" in name else 1 / p.shape[0]
            device = "cpu" if generator is None else generator.device
            p.copy_(
                deviation * torch.randn(p.shape, generator=generator, dtype=p.dtype, device=device)
            )


def _attach(base: LatentModel, config: LoraConfig) -> dict[str, nn.Parameter]:
    network = base.denoiser.network
    require(
        not base.denoiser.adapters,
        "the network carries low-rank layers already; share that LoRA between the policies.",
    )
    frozen = next(network.parameters()).dtype
    targets = config.target_modules
    if not isinstance(targets, str):  # else a pattern, which peft refuses where nothing matches
        _require_layers(network, tuple(sorted(targets or ())))
    tried(network.add_adapter, (config, ADAPTER), f"adding layers to {targets}")
    base.denoiser.adopt(
        [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    )
    weights = {name: p for name, p in network.named_parameters() if ".lora_" in name}
    for p in weights.values():
        p.data = p.data.to(torch.float32 if frozen in HALVES else frozen)
    return weights


def _require_layers(network: nn.Module, targets: tuple[str, ...]) -> None:
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    lost = [
        ending
        for ending in targets
        if not any(name == ending or name.endswith(f".{ending}") for name in layers)
    ]
    known = _endings(layers)
    some = f"give some of: {', '.join(known[:SHOWN])}."
    require(bool(targets), f"targets = []; {some}")
    for ending in lost:
        raise InvalidProblem(
            f"targets = {lost} match no layer of the network; {meant(ending, known, some)}"
        )


def _endings(layers: Sequence[str]) -> list[str]:
    """Endings of layers' names, with the word before a bare number, the most frequent first."""
    words = [name.split(".") for name in layers]
    found = [".".join(each[-2:] if each[-1].isdigit() else each[-1:]) for each in words]
    return [ending for ending, _ in collections.Counter(found).most_common()]


class LoRAPolicy(Policy, Generic[Chain]):
    """The control of one prompt's fine-tuned sampler; differentiable in the state through both
    outputs.

    Args:
        reference: the prompt's chain; its base carries the low-rank layers.
        lora: the trainable layers, shared between prompts.
        guided: whether the fine-tuned score is guided as the reference is. Without guidance it
            costs half the work and learns to do without; but it then starts from the unguided
            model, at a control that is not zero.

    Raises:
        InvalidProblem: the layers belong to another network.
    """

    def __init__(self, reference: Chain, lora: LoRA, guided: bool = True):
        require(
            lora.base is reference.base,
            "the low-rank layers belong to another network than the reference's; build both on one"
            " base.",
        )
        self.lora = lora
        self.reference = reference
        self.guided = guided

    def __call__(self, k: Step, x: States) -> Noises:
        return self.reference.control_of(k, x, self.tuned_output(k, x))

    @property
    def sampler(self) -> Reference:
        """The fine-tuned chain on its own, with mean ``m^theta``: one evaluation per step where the
        policy takes two.
        """
        return self.reference.chain_of(self.tuned_output)

    def tuned_output(self, k: Step, x: States) -> States:
        """The fine-tuned network's output, guided or not."""
        return self.reference.tuned_output(k, x, self.guided)


@dataclasses.dataclass(frozen=True, eq=False)
class TunedPath:
    """A path of the fine-tuned sampler before anyone asked the frozen network about it.

    Attributes:
        path: states and noise; its controls are zero, as if the chain were the pre-trained one.
        outputs: the fine-tuned network's at the states, shape (T, batch, *dims).
    """

    path: Path
    outputs: Float[torch.Tensor, "steps batch *dims"]

    def controlled(self, reference: LatentReference[Any]) -> Path:
        """The same as a path of the reference, with the controls that the outputs stand for."""
        states = self.path.states[:-1]
        pairs = zip(states, self.outputs, strict=True)
        controls = [reference.control_of(k, x, output) for k, (x, output) in enumerate(pairs)]
        return dataclasses.replace(self.path, controls=torch.stack(controls))


def sample_tuned(policy: LoRAPolicy[Any], noise: Noise) -> TunedPath:
    """A path of the fine-tuned sampler at one evaluation per step; for estimators that look at
    states only, such as adjoint matching, which ask the frozen network about them anyway.
    """
    outputs = []

    def kept(k: Step, x: States) -> States:
        outputs.append(policy.tuned_output(k, x))
        return outputs[-1]

    path = rollout(policy.reference.chain_of(kept), Uncontrolled(policy.reference), noise)
    return TunedPath(path, torch.stack(outputs))


@torch.no_grad()
def adjoint_norms(
    problem: ControlProblem, noise: Noise, policy: Policy | None = None
) -> Float[torch.Tensor, "steps_plus_1 batch"]:
    """Norms ``|a_k|`` of the lean costates of every path, k = 0..T, under a policy or the
    pre-trained model.

    They are the size of adjoint matching's targets, ``sigma_k |a_{k+1}| / beta_k``; guidance
    multiplies them, since the guided mean map has a larger Jacobian.
    """
    path = rollout(problem.reference, policy or Uncontrolled(problem.reference), noise)
    return lean_adjoint(problem, path).flatten(2).norm(dim=2)
