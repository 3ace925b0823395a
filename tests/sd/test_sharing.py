"""What calls of a network share while paths are drawn, labelled and used: the same numbers, fewer
calls.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sd_experiments.model.policy import LoRA, LoRAPolicy
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.training.loop import TrainingLoop
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.sharing import NetworkSharing
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.catalogue import ANYWHERE
from socft.estimators.full_adjoint import FullAdjoint
from socft.problem import ControlProblem
from socft.reward import FunctionReward
from socft.study.vocabulary.methods import MethodName
from tests.support.sd import (
    NEGATIVE,
    PROMPT,
    away,
    gradients_of,
    network,
    settings_with,
    stable_diffusion,
)
from tests.support.tensors import F64, randn

EXACT = 1e-10  # relative; float64, gradients of gradients through a network
FLOAT32 = 1e-3  # relative; the same through some hundred float32 operations
STEPS, PATHS = 3, 4
CONVOLUTIONS = ("to_q", "to_v", "conv1", "conv_in", "ff.net.2")


def policy(dtype: torch.dtype = F64, guidance: float = 1.0) -> LoRAPolicy[Any]:
    """Away from its reference, with layers on linear maps and convolutions."""
    unet = network()
    nn.Module.to(unet, dtype)
    base = stable_diffusion(unet)
    chain = StableDiffusionReference(base, PROMPT, NEGATIVE, guidance, STEPS, spacing="leading")
    lora = LoRA(base, rank=2, alpha=3.0, targets=CONVOLUTIONS)
    lora.reset(torch.Generator().manual_seed(2), 0.1)
    return LoRAPolicy(chain, lora)


def trainer(
    estimator: Estimator, keep: bool, merge: bool, dtype: torch.dtype = F64, **batch: Any
) -> TrainingLoop:
    own = policy(dtype)
    reward = FunctionReward(lambda x: x.sin().flatten(1).sum(1))
    problem = ControlProblem(own.reference, reward, 0.3)
    numbers = {"trajectories": PATHS, "passes": 2, "ess": 0.0, **batch}
    settings = settings_with(sampler={"steps": STEPS}, batch=numbers, run={"steps": 2})
    task = PromptTask(PROMPT, problem, own, NetworkSharing(own, keep, merge))
    parameters = dict(own.lora.named_parameters())
    return TrainingLoop((task,), estimator, parameters, settings, dtype=dtype)


def run(made: TrainingLoop) -> tuple[list[Tensor], int]:
    """Gradients of two steps on the same paths, and the calls of the network."""
    (task,) = made.tasks
    assert isinstance(task.policy, LoRAPolicy)
    denoiser = task.policy.reference.base.denoiser
    before = denoiser.calls
    gradients, _ = gradients_of(made)
    return gradients, denoiser.calls - before


ROUND = {
    # drawing: tuned and frozen; labels; two gradient steps: both, in one backward pass each
    MethodName.ADJOINT_MATCHING: (2 * STEPS + STEPS + 2 * 2, STEPS + STEPS + 2),
    MethodName.FULL_ADJOINT: (2 * STEPS + 2 * STEPS + 2 * 2, 2 * STEPS + 2 * STEPS + 2),
    MethodName.DDPO: (2 * STEPS + 2 * 2, 2 * STEPS + 2),
}
"""Calls of the network, plain and shared."""


@pytest.mark.parametrize("name", ROUND)
def test_shared_calls_are_fewer_and_say_the_same(name: MethodName):
    gradients, calls = zip(
        *(run(trainer(ANYWHERE[name](), each, each)) for each in (False, True)), strict=True
    )
    assert calls == ROUND[name]
    for plain, shared in zip(*gradients, strict=True):
        assert float(plain.norm()) > 0
        assert away(shared, plain) < EXACT


@pytest.mark.parametrize(("keep", "merge"), [(True, False), (False, True)])
def test_each_kind_of_sharing_alone_says_the_same_in_float32(keep: bool, merge: bool):
    kinds = (False, False), (keep, merge)
    made = [trainer(AdjointMatching(), *each, torch.float32) for each in kinds]
    plain, shared = (run(each)[0] for each in made)
    for a, b in zip(plain, shared, strict=True):
        assert away(b, a) < FLOAT32


def test_importance_weights_ask_the_tuned_network_only():
    """Of every pass after the first, at every step."""
    calls = {
        weighted: run(trainer(FullAdjoint(), True, True, weighted=weighted))[1]
        for weighted in (False, True)
    }
    assert calls[True] == calls[False] + STEPS


def test_a_stored_round_remembers_what_the_frozen_network_said():
    made = trainer(FullAdjoint(), True, True)
    next(made.iterations())
    assert made.buffer is not None
    (rollouts,) = made.buffer.batches
    assert rollouts.frozen is not None
    reference: Any = made.tasks[0].problem.reference
    expected = [reference.output(k, rollouts.path.states[k]) for k in range(STEPS)]
    assert torch.equal(rollouts.frozen, torch.stack(expected))


# Merged layers


def test_merged_layers_are_the_sum_in_value_and_derivative():
    own = policy(guidance=2.0)
    denoiser = own.reference.base.denoiser
    x = randn(5, 2, *own.reference.dims).requires_grad_(True)
    plain = own(1, x)
    with denoiser.merging():
        merged, frozen = own(1, x), own.reference.output(1, x)
        derivatives = [torch.autograd.grad(y.sin().sum(), x)[0] for y in (plain, merged)]
    assert away(merged.detach(), plain.detach()) < EXACT
    assert away(derivatives[1], derivatives[0]) < EXACT
    assert torch.equal(own.reference.output(1, x), frozen)
    assert away(own.tuned_output(1, x).detach(), frozen.detach()) > 1e-3


def test_a_graph_keeps_the_weights_it_was_recorded_with():
    """A gradient is right though the layers were switched since."""
    own = policy()
    x = randn(6, 2, *own.reference.dims).requires_grad_(True)
    expected = torch.autograd.grad(own.tuned_output(1, x).sin().sum(), x)[0]
    with own.reference.base.denoiser.merging():
        y = own.tuned_output(1, x)
        own.reference.output(1, x)
    assert away(torch.autograd.grad(y.sin().sum(), x)[0], expected) < EXACT


def test_layers_are_not_merged_into_halves():
    """Where a small change would be rounded away: the layers' part is kept."""
    own = policy(torch.bfloat16)
    x = randn(7, 1, *own.reference.dims).float()
    with torch.no_grad():
        plain = own.tuned_output(1, x)
        with own.reference.base.denoiser.merging():
            assert torch.equal(own.tuned_output(1, x), plain)


def test_merging_sees_the_layers_as_they_are():
    own = policy()
    denoiser, x = own.reference.base.denoiser, randn(8, 1, *own.reference.dims)
    with torch.no_grad():
        with denoiser.merging():
            before = own.tuned_output(1, x)
        own.lora.reset(torch.Generator().manual_seed(3), 0.2)
        with denoiser.merging():
            after = own.tuned_output(1, x)
        assert away(after, own.tuned_output(1, x)) < EXACT
    assert away(after, before) > 1e-3


# Kept outputs


def test_a_known_output_answers_at_its_own_states_and_steps_only():
    own = policy()
    output, calls = own.reference.output, own.reference.base.denoiser
    k, x = torch.tensor([0, 2]), randn(9, 2, *own.reference.dims)
    with torch.no_grad(), output.recording() as recorded:
        output(1, x)
    rows = [*recorded.values()]
    with torch.no_grad(), output.recalling(rows):
        before = calls.calls
        assert torch.equal(output(1, x.clone()), rows[0].output)
        assert calls.calls == before
        others = [(0, x), (1, x + 1), (k, x), (torch.tensor([1, 1]), x)]
        for step, states in others:
            output(step, states)
        assert calls.calls == before + len(others)
    before = calls.calls
    with output.recalling(rows):
        y = x.clone().requires_grad_(True)
        assert output(1, y).requires_grad
    assert calls.calls == before + 1
