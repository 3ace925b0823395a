"""The pipelines that are read: their parts, and the class that each part must be of.

A family is told by its parts, not by the class that the pipeline was saved under: the same networks
are saved for pictures from text, from pictures or with a control.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import schedulers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import (
    StableDiffusionXLPipeline,
)
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from socft.checks import InvalidProblem, require, require_known

LIBRARIES = ("diffusers", "transformers")
KNOWN = frozenset(dir(schedulers)) & frozenset(dir(diffusers))
"""The schedulers that a pipeline can name."""
DIFFUSERS, TRANSFORMERS = "diffusion_pytorch_model", "model"
"""Names of the files of weights of the two libraries, without their endings."""
CLIP = ("CLIPTokenizer", "CLIPTokenizerFast")
T5 = ("T5Tokenizer", "T5TokenizerFast")


@dataclasses.dataclass(frozen=True)
class PipelineFamily:
    """Pipelines with the same parts.

    Attributes:
        name: what it is called.
        pipeline: diffusers' class for pictures from text.
        networks: class and file name of every network, by part.
        tokenizers: classes of every tokenizer, by part.
        unused: parts that say nothing of the pictures drawn.
        optional: parts that it can do without, all or none.
        options: of the loading.
    """

    name: str
    pipeline: Any
    networks: Mapping[str, tuple[Any, str]]
    tokenizers: Mapping[str, tuple[str, ...]]
    unused: tuple[str, ...]
    optional: tuple[str, ...] = ()
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders that a saved pipeline needs."""
        return (*self.networks, *self.tokenizers, "scheduler")

    def without_optional(self) -> PipelineFamily:
        """The same without what it can do without, which is told to be missing."""
        return dataclasses.replace(
            self,
            networks={k: each for k, each in self.networks.items() if k not in self.optional},
            tokenizers={k: each for k, each in self.tokenizers.items() if k not in self.optional},
            unused=(*self.unused, *self.optional),
            optional=(),
        )


STABLE_DIFFUSION = PipelineFamily(
    "Stable Diffusion 1.x or 2.x",
    StableDiffusionPipeline,
    {
        "unet": (UNet2DConditionModel, DIFFUSERS),
        "vae": (AutoencoderKL, DIFFUSERS),
        "text_encoder": (CLIPTextModel, TRANSFORMERS),
    },
    {"tokenizer": CLIP},
    ("safety_checker", "feature_extractor", "image_encoder"),
    options={"requires_safety_checker": False},
)
XL = PipelineFamily(
    "Stable Diffusion XL",
    StableDiffusionXLPipeline,
    {
        **STABLE_DIFFUSION.networks,
        "text_encoder_2": (CLIPTextModelWithProjection, TRANSFORMERS),
    },
    {"tokenizer": CLIP, "tokenizer_2": CLIP},
    ("image_encoder", "feature_extractor"),
)

SD3 = PipelineFamily(
    "Stable Diffusion 3",
    StableDiffusion3Pipeline,
    {
        "transformer": (SD3Transformer2DModel, DIFFUSERS),
        "vae": (AutoencoderKL, DIFFUSERS),
        "text_encoder": (CLIPTextModelWithProjection, TRANSFORMERS),
        "text_encoder_2": (CLIPTextModelWithProjection, TRANSFORMERS),
        "text_encoder_3": (T5EncoderModel, TRANSFORMERS),
    },
    {"tokenizer": CLIP, "tokenizer_2": CLIP, "tokenizer_3": T5},
    ("image_encoder", "feature_extractor"),
    optional=("text_encoder_3", "tokenizer_3"),
)
FLUX = PipelineFamily(
    "FLUX",
    FluxPipeline,
    {
        "transformer": (FluxTransformer2DModel, DIFFUSERS),
        "vae": (AutoencoderKL, DIFFUSERS),
        "text_encoder": (CLIPTextModel, TRANSFORMERS),
        "text_encoder_2": (T5EncoderModel, TRANSFORMERS),
    },
    {"tokenizer": CLIP, "tokenizer_2": T5},
    ("image_encoder", "feature_extractor"),
)
TRANSFORMERS_OF = {"SD3Transformer2DModel": SD3, "FluxTransformer2DModel": FLUX}


def family_of(index: Mapping[str, Any], where: str) -> PipelineFamily:
    """The family of a saved pipeline, by what its model_index.json says of its parts.

    Raises:
        InvalidProblem: another family, a part of another class, or no part at all.
    """
    family = _by_network(index, where)
    if family.optional and not any(_has(index, part) for part in family.optional):
        family = family.without_optional()
    for part, (kind, _) in family.networks.items():
        _require_class(index, part, (kind.__name__,), where)
    for part, names in family.tokenizers.items():
        _require_class(index, part, names, where)
    name = _class_of(index, "scheduler")
    if name is not None:
        _require_library(index, "scheduler", where)
        require_known(name, [each for each in KNOWN if "Scheduler" in each], "scheduler")
    return family


def _by_network(index: Mapping[str, Any], where: str) -> PipelineFamily:
    transformer = _class_of(index, "transformer")
    if transformer in TRANSFORMERS_OF:
        return TRANSFORMERS_OF[transformer]
    require(
        _has(index, "unet"),
        f"{where} is a {index.get('_class_name')} with the network {transformer}; give a Stable"
        " Diffusion 1.x, 2.x, XL, 3 or 3.5, or a FLUX.",
    )
    return XL if _has(index, "text_encoder_2") else STABLE_DIFFUSION


def _has(index: Mapping[str, Any], part: str) -> bool:
    return part in index and _class_of(index, part) is not None


def _class_of(index: Mapping[str, Any], part: str) -> str | None:
    """The class of a part; None where there is none."""
    said: Any = index.get(part)
    named = isinstance(said, list) and len(said) == 2 and isinstance(said[1], str)
    return said[1] if named else None


def _require_library(index: Mapping[str, Any], part: str, where: str) -> None:
    library = index[part][0]
    require(
        library in LIBRARIES,
        f"{where} takes its {part} from {library}, whose code is not run; give a pipeline of parts"
        f" of {' and '.join(LIBRARIES)}.",
    )


def _require_class(index: Mapping[str, Any], part: str, names: tuple[str, ...], where: str) -> None:
    found = _class_of(index, part)
    if found is None:
        raise InvalidProblem(
            f"{where} has no {part}; give a whole pipeline from text to image, not a refiner or one"
            " from pictures."
        )
    _require_library(index, part, where)
    require(
        found in names,
        f"{where} has a {found} as its {part}; only {names[0]} is read: give a pipeline with one.",
    )
