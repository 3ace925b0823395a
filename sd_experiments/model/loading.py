"""A saved pipeline as the latent model of its family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sd_experiments.model.families import FLUX, SD3
from sd_experiments.model.flow_model import FlowModel, Flux, StableDiffusion3
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.stable_diffusion import StableDiffusion
from sd_experiments.model.weights import load_pipeline, refusing
from socft.checks import require

PipelineLoader = Callable[[str | Path, torch.dtype, str | torch.device], Any]
"""Makes a pipeline from a directory, such as `load_pipeline`, or `random_pipeline`, which reads the
configuration files alone.
"""


def load_latent_model(
    directory: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    micro_batch: int | None = None,
    max_sequence_length: int | None = None,
    load: PipelineLoader = load_pipeline,
    **options: bool,
) -> LatentModel:
    """The model saved in a local directory; nothing is downloaded.

    Args:
        max_sequence_length: rows of T5's states; as its pipeline by default.

    Raises:
        InvalidProblem: a part is missing, damaged or another network's, or T5 is asked for of a
            model without it.
    """
    with refusing(f"the model in {str(directory)!r}"):
        pipeline = load(directory, dtype, device)
        return latent_model(pipeline, micro_batch, max_sequence_length, **options)


def latent_model(
    pipeline: Any,
    micro_batch: int | None = None,
    max_sequence_length: int | None = None,
    **options: bool,
) -> LatentModel:
    """The parts of a pipeline of diffusers, frozen in place.

    Raises:
        InvalidProblem: it is of no family that is known, or T5 is asked for of a model without it.
    """
    kind = kind_of(pipeline)
    given: dict[str, Any] = dict(options)
    if issubclass(kind, FlowModel):
        given["max_sequence_length"] = max_sequence_length
    else:
        require(
            max_sequence_length is None,
            f"max_sequence_length = {max_sequence_length}; it is of T5, which this model does"
            " not read: leave it out.",
        )
    return kind.from_pipeline(pipeline, micro_batch, **given)


def kind_of(pipeline: Any) -> type[LatentModel]:
    """The kind of model that a pipeline of diffusers is."""
    if isinstance(pipeline, SD3.pipeline):
        return StableDiffusion3
    return Flux if isinstance(pipeline, FLUX.pipeline) else StableDiffusion
