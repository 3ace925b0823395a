r"""From settings to objects: the pre-trained model, its reward, the estimator, and one control
problem per prompt.

Algorithm 1 of arXiv 2412.18164v4 (PI-FT) goes backwards in t and iterates, at every state,
:math:`v^{(m+1)} = B^\top E\,\nabla V_{t+1}(m_t + B(v^{(m)} + \xi)) / \beta`. With a network, all
steps are taken at once: paths of the current policy supply the states and the noise, the
expectation is the least-squares regression of v on :math:`B^\top a_{k+1}/\beta`, where the full
adjoint :math:`a_{k+1}` is an unbiased sample of the gradient of the current policy's value
(equation 55), and an inner iteration is one gradient step of that regression. On fresh paths it is
exactly the policy gradient of equation 77; ``batch.passes`` above 1 fits the same labels further
before new paths are drawn. This is the estimator "full adjoint".
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sd_experiments import config
from sd_experiments.model.flow_model import FlowModel
from sd_experiments.model.flow_reference import FlowModelReference, Kernel
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.latent_reference import LatentReference
from sd_experiments.model.loading import PipelineLoader, load_latent_model
from sd_experiments.model.policy import LoRA, LoRAPolicy
from sd_experiments.model.reference import StableDiffusionReference
from sd_experiments.model.schedule import sampling_schedule
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.model.weights import load_pipeline, random_pipeline
from sd_experiments.model.zero_signal import ZeroSignalReference, starts_without_signal
from sd_experiments.reward.clip_rewards import (
    AestheticScore,
    WeightedSum,
    human_preference_score,
    pick_score,
)
from sd_experiments.reward.rewards import (
    BlackBoxImageReward,
    CLIPScore,
    DifferentiableImageReward,
    ImageRewardModel,
    JPEGCompressibility,
    require_decoder,
)
from sd_experiments.training.prompt_task import PromptTask
from sd_experiments.training.sharing import NetworkSharing
from socft.checks import InvalidProblem, require, require_callable, require_known
from socft.estimators.base import Estimator
from socft.estimators.catalogue import ANYWHERE
from socft.flow import FlowSchedule, flow_ddim, flow_sde, memoryless, precise
from socft.problem import ControlProblem
from socft.study.import_path import call_factory, import_object

Checker: TypeAlias = (
    "Callable[[Float[Tensor, 'batch 3 height width'], str], Float[Tensor, ' batch']]"
)
"""Images in [0, 1] and their prompt -> one number in [0, 1] per image."""


def _tiny_reward_model() -> ImageRewardModel:
    from sd_experiments import tiny

    return tiny.reward()


def _image_reward(path: str) -> ImageRewardModel:
    from sd_experiments.reward.image_reward import ImageReward

    return ImageReward.load(path)


REWARDS: Mapping[str, Callable[..., Any]] = {
    "tiny": _tiny_reward_model,
    "image_reward": _image_reward,
    "clip": lambda path, **options: CLIPScore.load(path, **options),
    "pick_score": pick_score,
    "hps": human_preference_score,
    "aesthetic": AestheticScore.load,
    "sum": lambda terms: _weighted_sum(terms),
    "jpeg": JPEGCompressibility,
}
KERNELS: Mapping[str, Callable[..., FlowSchedule]] = {"precise": precise, "flow_sde": flow_sde}
BLACK_BOXES = frozenset({"jpeg"})
WITH_WEIGHTS = frozenset({"image_reward", "clip", "pick_score", "hps", "aesthetic"})


def is_black_box(settings: config.RewardConfig | config.RewardTerm) -> bool:
    """Whether a reward has no gradient, and so a sum if one of its terms has none."""
    if settings.black_box or settings.name in BLACK_BOXES:
        return True
    return settings.name == "sum" and any(map(is_black_box, _terms(**settings.options)))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything a run is made of.

    Attributes:
        settings: as read.
        base: the frozen model.
        lora: the trained layers.
        tasks: one per prompt.
        estimator: supplies the gradient.
        checker: judges images independently of the reward; None where there is none.
    """

    settings: config.ExperimentConfig
    base: LatentModel
    lora: LoRA
    tasks: tuple[PromptTask, ...]
    estimator: Estimator
    checker: Checker | None

    @property
    def dtype(self) -> torch.dtype:
        """Of states and noise, whatever the network computes in."""
        return torch.float64 if self.settings.model.dtype == "float64" else torch.float32


def build(
    settings: config.ExperimentConfig,
    base: LatentModel | None = None,
    reward_model: ImageRewardModel | None = None,
    estimator: Estimator | None = None,
) -> Experiment:
    """Load and connect everything; nothing is downloaded.

    Args:
        base: the frozen model, if it is here already; by default the one the settings name is
            loaded.
        reward_model: likewise.
        estimator: likewise.

    Raises:
        InvalidProblem: a file is missing or does not fit, a name is unknown, or the mathematics
            refuses the settings.
    """
    if estimator is None:
        estimator = instantiate(
            "estimator", ANYWHERE, settings.estimator.name, settings.estimator.options
        )
    if not isinstance(estimator, Estimator):
        raise InvalidProblem(
            f"{settings.estimator.name} makes a {type(estimator).__name__}; it must be an"
            " Estimator."
        )
    base = load_model(settings.model) if base is None else base
    if settings.model.channels_last:
        base.denoiser.network.to(memory_format=torch.channels_last)
    if reward_model is None:
        reward_model = load_reward_model(settings.reward, find_device(settings.model.device))
    kind = BlackBoxImageReward if is_black_box(settings.reward) else DifferentiableImageReward
    generator = torch.Generator().manual_seed(settings.run.seed)
    lora = LoRA(base, settings.lora.rank, settings.lora.alpha, settings.lora.targets, generator)
    require_decoder(base, base.latent_of(settings.sampler.size))
    tasks = []
    for prompt in settings.problem.prompts:
        reference = build_reference(base, settings.sampler, prompt)
        problem = ControlProblem(
            reference,
            kind(base, reward_model, prompt, settings.reward.chunk),
            settings.problem.beta,
        )
        policy, model = LoRAPolicy(reference, lora), settings.model
        sharing = NetworkSharing(policy, model.keep_frozen, model.merge_layers)
        tasks.append(PromptTask(prompt, problem, policy, sharing))
    return Experiment(
        settings, base, lora, tuple(tasks), estimator, load_checker(settings.monitor.checker)
    )


def build_reference(
    base: LatentModel, sampler: config.SamplerConfig, prompt: str
) -> LatentReference[Any]:
    """The sampler of one prompt.

    Raises:
        InvalidProblem: the mathematics refuses the settings, or one is of another kind of model.
    """
    latent = base.latent_of(sampler.size)
    if isinstance(base, FlowModel):
        return FlowModelReference(
            base,
            prompt,
            sampler.negative_prompt,
            sampler.guidance,
            sampler.steps,
            _kernel(sampler),
            sampler.spacing,
            sampler.last_level,
            latent,
            sampler.distilled_guidance,
        )
    assert isinstance(base, StableDiffusion)
    for name, usual in (("kernel", "ddim"), ("distilled_guidance", None)):
        given = getattr(sampler, name)
        require(
            given == usual,
            f"sampler.{name} = {given!r} is for flows, and this model is none; leave it out.",
        )
    levels = sampling_schedule(
        base.scheduler_config, sampler.steps, sampler.spacing, sampler.last_level
    )
    chain = ZeroSignalReference if starts_without_signal(base, levels) else StableDiffusionReference
    return chain(
        base,
        prompt,
        sampler.negative_prompt,
        sampler.guidance,
        sampler.steps,
        sampler.eta,
        sampler.spacing,
        sampler.last_level,
        latent,
    )


def _kernel(sampler: config.SamplerConfig) -> Kernel:
    """The kernels of a flow's chain."""
    if sampler.kernel == "memoryless":
        require(
            sampler.eta == 1,
            f"sampler.eta = {sampler.eta} with the kernel 'memoryless', which has no other noise;"
            " leave it out, or give 'flow_sde'.",
        )
        return memoryless
    if sampler.kernel == "ddim":
        return functools.partial(flow_ddim, eta=sampler.eta)
    return functools.partial(KERNELS[sampler.kernel], noise_level=sampler.eta)


def instantiate(
    what: str, table: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]
) -> Any:
    """What a factory of a table, or one at an import path ``module:name``, makes with some options.

    Raises:
        InvalidProblem: there is no such factory, or it refuses the options.
    """
    if ":" not in name:
        require_known(name, table, what, "MODULE:FACTORY")
    make = table[name] if name in table else import_object(name)
    return call_factory(what, name, make, options)


def find_device(name: str) -> torch.device:
    """A device by name; "auto" is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InvalidProblem(
            f"model.device = {name!r} is no device; give auto, cpu or cuda."
        ) from error
    usable = device.type != "cuda" or torch.cuda.is_available()
    require(usable, f"model.device = {name!r}, but torch sees no GPU here; give cpu or auto.")
    return device


def load_model(settings: config.ModelConfig) -> LatentModel:
    """The frozen model.

    Raises:
        InvalidProblem: a file is missing, damaged or of another network.
    """
    dtype, device = getattr(torch, settings.dtype), find_device(settings.device)
    _silence_bars()
    if settings.path == "tiny":
        from sd_experiments import tiny

        pipeline = tiny.pipeline(dtype=dtype).to(device)
        return StableDiffusion.from_pipeline(
            pipeline, settings.micro_batch, checkpointing=settings.checkpointing
        )
    return _saved_model(settings, load_pipeline)


def random_model(settings: config.ModelConfig) -> LatentModel:
    """The frozen model with random weights, from its configuration files alone.

    Raises:
        InvalidProblem: one of them is missing or of another network.
    """
    return _saved_model(settings, random_pipeline)


def _saved_model(settings: config.ModelConfig, load: PipelineLoader) -> LatentModel:
    return load_latent_model(
        shipped(settings.path),
        getattr(torch, settings.dtype),
        find_device(settings.device),
        settings.micro_batch,
        settings.max_sequence_length,
        load,
        checkpointing=settings.checkpointing,
    )


def shipped(path: str) -> str | Path:
    """The folder of a model that comes with this package by its name, and any other as it is."""
    from sd_experiments import tiny

    return {"tiny": tiny.MODEL, "tiny_flow": tiny.FLOW}.get(path, path)


def load_reward_model(
    settings: config.RewardConfig | config.RewardTerm, device: torch.device
) -> ImageRewardModel:
    """The reward of images, on the device of the pre-trained model."""
    require(
        settings.path is not None or settings.name not in WITH_WEIGHTS,
        f"reward.path is missing; give the directory with the weights of {settings.name!r}.",
    )
    options = (
        dict(settings.options)
        if settings.path is None
        else {"path": settings.path, **settings.options}
    )
    model = instantiate("reward", REWARDS, settings.name, options)
    require_callable(model, f"what {settings.name} makes", "of images and their prompt")
    return model.to(device) if isinstance(model, torch.nn.Module) else model


def _weighted_sum(terms: Any) -> WeightedSum:
    """A sum of rewards from their tables."""
    here = torch.device("cpu")  # the sum is moved as a whole
    return WeightedSum([(each.weight, load_reward_model(each, here)) for each in _terms(terms)])


def _terms(terms: Any = ()) -> list[config.RewardTerm]:
    tables = isinstance(terms, list | tuple) and all(isinstance(each, Mapping) for each in terms)
    require(
        tables and len(terms) > 0,
        "the reward 'sum' has no terms; give reward.options.terms, a list of tables with name,"
        " path, weight and options.",
    )
    return [config.RewardTerm(**each) for each in terms]


def load_checker(name: str | None) -> Checker | None:
    """What judges images independently of the reward."""
    if name is None:
        return None
    if ":" not in name:
        require_known(name, ["tiny"], "checker", "MODULE:FUNCTION")
    checker = _tiny_checker if name == "tiny" else import_object(name)
    require_callable(checker, f"the checker {name}", "of images and their prompt")
    return checker


def _tiny_checker(images: Tensor, prompt: str) -> Tensor:
    from sd_experiments.tiny.captions import parse_caption
    from sd_experiments.tiny.checker import check_captions

    return torch.tensor(
        [
            float(all(stated.values()))
            for stated in check_captions(images, [parse_caption(prompt)] * len(images))
        ]
    )


def _silence_bars() -> None:
    """No bars for the loading of files; the run has its own."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
