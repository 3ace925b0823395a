"""A tiny but real Stable Diffusion of captioned shapes, a flow model of the same captions, and a
reward of ImageReward's architecture: load, sample, fine-tune.

The four prompts stand for those of Han, Razaviyayn and Xu (arXiv 2412.18164v4, section 5). All
models come with the scripts and seeds that trained them; ``quality.json`` says how well they do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_experiments.manifest import verify
from sd_experiments.tiny.captions import PROMPTS

if TYPE_CHECKING:
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import (
        StableDiffusionPipeline,
    )

    from sd_experiments.reward.image_reward import ImageReward

__all__ = ["FLOW", "MODEL", "PROMPTS", "QUALITY", "REWARD", "pipeline", "reward"]

_HERE = Path(__file__).parent
MODEL = _HERE / "model"
FLOW = _HERE / "flow"
REWARD = _HERE / "reward"
QUALITY = _HERE / "quality.json"


def pipeline(folder: Path = MODEL, dtype: torch.dtype | None = None) -> StableDiffusionPipeline:
    """The trained pipeline, offline, in float32 if not told otherwise, ready for inference and
    without progress bars.

    Raises:
        InvalidProblem: a file is missing or damaged.
    """
    verify(
        folder,
        "restore it from version control, or train it again: python -m"
        " sd_experiments.tiny.train_model",
    )
    import torch  # takes seconds to import, with what follows

    from sd_experiments.model.weights import load_pipeline

    with _quiet():
        loaded: Any = load_pipeline(folder, dtype or torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def reward(folder: Path = REWARD) -> ImageReward:
    """The trained reward, offline, in float32, frozen and in evaluation mode.

    Raises:
        InvalidProblem: a file is missing or damaged.
    """
    verify(
        folder,
        "restore it from version control, or train it again: python -m"
        " sd_experiments.tiny.train_reward",
    )
    from sd_experiments.reward.image_reward import ImageReward

    return ImageReward.restore(folder)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars of loading seven small files."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging)
    shown = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, was_shown in zip(libraries, shown, strict=True):
            if was_shown:
                library.enable_progress_bar()
