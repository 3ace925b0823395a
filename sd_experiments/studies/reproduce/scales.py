"""Which methods fine-tune, and the sizes at which all of them run."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import torch

from sd_experiments import CONFIGS, config
from socft.estimators.flow.diffusion_nft import DiffusionNFT
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.schema import StudySchema
from socft.study.vocabulary.schemas import STABLE_DIFFUSION


@dataclasses.dataclass(frozen=True)
class FineTuningMethod:
    """A way to fine-tune.

    Attributes:
        title: its name in records and reports.
        estimator: name in `socft.estimators.catalogue.ANYWHERE`.
        options: of the estimator.
        batch: settings of ``[batch]`` that differ from the configuration's.
        rate: learning rate in place of the configuration's.
    """

    title: str
    estimator: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    rate: float | None = None


@dataclasses.dataclass(frozen=True)
class ComparisonProtocol:
    """How methods are compared side by side, each at a learning rate of its own.

    Attributes:
        methods: titles of those that are compared, the one first that the others are held against.
        prompts: what they are trained on, one run each.
        rates: learning rates, one of which every method is given by its pilots.
        pilots: seeds of the trainings by which rates are chosen, of none of the others.
        trainings: how often every method is then trained for every prompt.
        batch: settings of ``[batch]`` in place of the configuration's.
    """

    methods: tuple[str, ...]
    prompts: tuple[str, ...]
    rates: tuple[float, ...]
    pilots: tuple[int, ...]
    trainings: int
    batch: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ReproductionScale:
    """A size at which everything is run.

    Attributes:
        name: its name.
        config: the configuration that all runs start from; it also names the prompts.
        rounds: rounds of sampling per run, each of as many trajectories as the configuration says,
            but of one prompt.
        methods: what is compared.
        betas: KL weights of PI-FT on the first prompt, besides the configuration's.
        rates: learning rates of DPOK on every prompt, besides the configuration's.
        pictures: pictures per prompt that are measured.
        shown: pictures per prompt that are kept.
        batches: whose gradients are compared where a training fell.
        workers: processes.
        model: folder or name of the model, in place of the configuration's.
        reward: folder of the reward's weights, in place of the configuration's.
        protocol: how methods are compared, if by a comparison at rates of their own.
    """

    name: str
    config: str
    rounds: int
    methods: tuple[FineTuningMethod, ...]
    betas: tuple[float, ...]
    rates: tuple[float, ...]
    pictures: int
    shown: int
    batches: int
    workers: int
    model: str | None = None
    reward: str | None = None
    protocol: ComparisonProtocol | None = None

    @property
    def study(self) -> StudySchema:
        """The study, whose name its records and its report have too."""
        study = STABLE_DIFFUSION
        return study if self.name == "tiny" else study.named(f"{study.name}_{self.name}")

    @functools.cached_property
    def settings(self) -> config.ExperimentConfig:
        """The configuration."""
        s = config.read_config(CONFIGS / self.config)
        model = dataclasses.replace(s.model, path=self.model or s.model.path)
        return dataclasses.replace(
            s, model=model, reward=dataclasses.replace(s.reward, path=self.reward or s.reward.path)
        )

    @property
    def pi_ft(self) -> FineTuningMethod:
        """The method that others are compared with."""
        return next(method for method in self.methods if method.title == MethodName.PI_FT)


PI_FT = FineTuningMethod(MethodName.PI_FT, MethodName.FULL_ADJOINT)
ADJOINT_MATCHING = FineTuningMethod(MethodName.ADJOINT_MATCHING, MethodName.ADJOINT_MATCHING)
CORRECTED_ADJOINT = FineTuningMethod(
    MethodName.CORRECTED_ADJOINT, MethodName.MARTINGALE_POLICY_COSTATE_CHEAP, {"last": False}
)
DRAFT_1 = FineTuningMethod(MethodName.DRAFT_1, MethodName.TRUNCATED, {"last": 1})


def _methods(clip: float, **reuse: int) -> tuple[FineTuningMethod, ...]:
    """PI-FT, DPOK, and the others.

    Likelihoods are averaged over the entries of the latent, as in the published code of DPOK and
    DDPO, and a round is used up however far the policy moves away from it; so all methods sample as
    many trajectories.

    Args:
        clip: of averaged likelihood ratios.
        reuse: settings of ``[batch]`` for the two methods that use their trajectories more often
            than the configuration says.
    """
    batch = {**reuse, "ess": 0.0} if reuse else {}
    return (
        PI_FT,
        FineTuningMethod(MethodName.DPOK, MethodName.DPOK_LEAVE_ONE_OUT, {"clip": clip}, batch),
        FineTuningMethod(MethodName.DDPO, MethodName.DDPO, {"clip": clip, "averaged": True}, batch),
        DRAFT_1,
        ADJOINT_MATCHING,
        CORRECTED_ADJOINT,
        FineTuningMethod(
            MethodName.TIME_REVERSED_BSDE,
            MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE,
            {"last": False},
        ),
    )


def diffusion_nft(**options: Any) -> DiffusionNFT:
    """DiffusionNFT with the noise of its samples from the generator that a run seeds anew for every
    round, so that a run which was stopped continues with the same noise.
    """
    return DiffusionNFT(torch.default_generator, **options)


def _flow_methods() -> tuple[FineTuningMethod, ...]:
    """PI-FT, and a method of each kind that is published for flow models."""
    return (
        PI_FT,
        ADJOINT_MATCHING,
        CORRECTED_ADJOINT,
        FineTuningMethod(
            MethodName.LEAN_STICKING_THE_LANDING, MethodName.LEAN_STICKING_THE_LANDING
        ),
        FineTuningMethod(MethodName.FLOW_GRPO, "socft.estimators.flow.flow_grpo:FlowGRPO"),
        FineTuningMethod(MethodName.DIFFUSION_NFT, f"{__name__}:diffusion_nft"),
        DRAFT_1,
    )


COMPARED_FLOWS = (
    MethodName.ADJOINT_MATCHING,
    MethodName.CORRECTED_ADJOINT,
    MethodName.LEAN_STICKING_THE_LANDING,
    MethodName.FLOW_GRPO,
    MethodName.DIFFUSION_NFT,
    MethodName.DRAFT_1,
)
SEED = 1
"""Of the pictures that are measured; training has its own."""
CLIP = 1e-4
"""Of likelihood ratios averaged over the latent of Stable Diffusion 1.5, as published."""
LATENTS = {"tiny": 4 * 8 * 8, "sd15": 4 * 64 * 64}
"""Entries of a latent; clipped alike, the log-likelihood of a step may change as much."""
SCALES: Mapping[str, ReproductionScale] = {
    each.name: each
    for each in (
        ReproductionScale(
            name="tiny",
            config="tiny.toml",
            rounds=16,
            methods=_methods(CLIP * LATENTS["sd15"] / LATENTS["tiny"]),
            betas=(0.005, 0.02, 0.1, 0.5),
            rates=(5e-4, 4.5e-3),
            pictures=512,
            shown=8,
            batches=10,
            workers=2,
        ),
        ReproductionScale(
            name="tiny_flow",
            config="tiny_flow.toml",
            rounds=6,
            methods=_flow_methods(),
            betas=(),
            rates=(),
            pictures=96,
            shown=8,
            batches=10,
            workers=2,
            protocol=ComparisonProtocol(
                methods=COMPARED_FLOWS,
                prompts=("a green triangle", "four circles"),
                rates=(3e-3, 1e-2, 3e-2),
                pilots=(1000,),
                trainings=5,
                batch={
                    "trajectories": 16,
                    "paths": 8,
                    "passes": 3,
                    "loss_steps": 2,
                    "micro_batch": 8,
                    "target_clip": 1.0,
                },
            ),
        ),
        ReproductionScale(
            name="sd15",
            config="sd15_pift.toml",
            rounds=1000,
            methods=_methods(CLIP, passes=10, loss_steps=5),
            betas=(0.001, 0.1, 1.0),
            rates=(),
            pictures=50,
            shown=4,
            batches=10,
            workers=1,
        ),
    )
}


def method_config(
    scale: ReproductionScale, method: FineTuningMethod, prompt: str, beta: float
) -> config.ExperimentConfig:
    """The settings of a run, without its folder."""
    s = scale.settings
    usual = {"prompts": 1, "trajectories": s.batch.prompts * s.batch.trajectories}
    batch = dataclasses.replace(s.batch, **{**usual, **method.batch})
    steps = scale.rounds * batch.trajectories * batch.passes // batch.per_step
    return dataclasses.replace(
        s,
        problem=dataclasses.replace(s.problem, prompts=(prompt,), beta=beta),
        estimator=config.EstimatorConfig(method.estimator, dict(method.options)),
        optimiser=dataclasses.replace(s.optimiser, rate=method.rate or s.optimiser.rate),
        batch=batch,
        run=dataclasses.replace(s.run, steps=steps, out="."),
    )
