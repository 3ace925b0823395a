r"""Rewards of images as rewards of latents, :math:`r(x) = \rho(\text{decode}(x), \text{prompt})`.

Decoded images lie in [0, 1], shape (batch, 3, height, width); :math:`\rho` gives one number per
image. Differentiable reward models go into `DifferentiableImageReward`, all others into
`BlackBoxImageReward`, which has no gradient and says so. Both decode and evaluate ``chunk`` images
at a time and keep nothing between calls, so that memory does not grow with the batch, gradients
included.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPModel

from sd_experiments.model.denoiser import recompute_in_backward
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.model.prompts import Size
from sd_experiments.model.weights import load_tokenizer, load_whole, refusing, require_json
from socft.checks import InvalidProblem, described, require, tried
from socft.probing import probe_states
from socft.reference import States
from socft.reward import PerSample, Reward

Images = Float[Tensor, "batch 3 height width"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@runtime_checkable
class ImageRewardModel(Protocol):
    """Rewards images in [0, 1] for a prompt: one number per image."""

    def __call__(self, images: Images, prompt: str) -> PerSample: ...


def decode(base: LatentModel, latents: States) -> Images:
    """Images in [0, 1] on the device of the decoder and in the dtype of the latents, whatever that
    of the decoder.
    """
    vae: Any = base.vae
    weight = next(vae.parameters())
    decoded = vae.decode(base.unscaled(latents.to(weight)), return_dict=False)[0]
    return (decoded.to(latents.dtype) / 2 + 0.5).clamp(0, 1)


@torch.no_grad()
def require_decoder(base: LatentModel, latent: Size | None = None) -> None:
    """Refuse a decoder whose pictures are not finite, as one that overflows in half precision.

    Args:
        latent: height and width of the latents it is tried on; the network's own by default.

    Raises:
        InvalidProblem: a pixel is not finite.
    """
    weight = next(base.vae.parameters())
    dims = base.latent_dims if latent is None else (base.latent_dims[0], *latent)
    latents = probe_states(dims).to(weight.device, torch.float32)
    bad = int((~decode(base, latents).isfinite()).sum())
    kind = str(weight.dtype).removeprefix("torch.")
    remedy = (
        "it overflows in half precision: give model.dtype = 'float32' or 'bfloat16'"
        if weight.dtype == torch.float16
        else "copy its weights again"
    )
    require(bad == 0, f"the decoder makes {bad} pixels that are not finite in {kind}; {remedy}.")


class _LatentReward(Reward):
    """What both kinds share: decoding and evaluating in chunks. No Lipschitz constants are
    known.
    """

    def __init__(self, base: LatentModel, model: ImageRewardModel, prompt: str, chunk: int = 4):
        require(chunk >= 1, f"chunk = {chunk}; decode at least 1 image at a time.")
        self.base = base
        self.model = model
        self.prompt = prompt
        self.chunk = chunk

    def _evaluate(self, x: States) -> PerSample:
        images = decode(self.base, x)
        found = tried(self.model, (images, self.prompt), f"the reward model {_name(self.model)}")
        require(
            isinstance(found, Tensor) and found.shape == (len(x),) and not found.is_complex(),
            f"the reward model returned {described(found)} for {len(x)} images; it must return one"
            " real number per image.",
        )
        return found.to(x)


class DifferentiableImageReward(_LatentReward):
    """A differentiable reward model on decoded images.

    Args:
        base: supplies the decoder.
        model: maps images in [0, 1] and the prompt to one number per image, differentiable in the
            images.
        prompt: what the image should show.
        chunk: images decoded at a time.
    """

    def __call__(self, x: States) -> PerSample:
        recorded = torch.is_grad_enabled() and x.requires_grad
        evaluate = (
            recompute_in_backward(self._evaluate)
            if recorded and len(x) > self.chunk
            else self._evaluate
        )
        result = torch.cat([evaluate(part) for part in x.split(self.chunk)])
        cut = recorded and not result.requires_grad
        require(
            not cut,
            f"{_name(self.model)} cuts the graph between image and reward; wrap it in"
            " BlackBoxImageReward, or set reward.black_box = true.",
        )
        return result

    def gradient(self, x: States) -> States:
        return torch.cat(
            [super(DifferentiableImageReward, self).gradient(part) for part in x.split(self.chunk)]
        )


class BlackBoxImageReward(_LatentReward):
    """A reward model on decoded images that cannot be differentiated; for estimators that use
    reward values only.

    Args:
        base: supplies the decoder.
        model: maps images in [0, 1] and the prompt to one number per image.
        prompt: what the image should show.
        chunk: images decoded at a time.
    """

    def __call__(self, x: States) -> PerSample:
        if torch.is_grad_enabled() and x.requires_grad:
            raise InvalidProblem(self._refusal)
        with torch.no_grad():
            return torch.cat([self._evaluate(part) for part in x.split(self.chunk)])

    def gradient(self, x: States) -> States:
        """There is none.

        Raises:
            InvalidProblem: always.
        """
        raise InvalidProblem(self._refusal)

    @property
    def _refusal(self) -> str:
        return (
            f"{_name(self.model)} is a black box without a gradient, and this estimator asks for"
            " one; use an estimator of reward values (score function, DDPO, DPOK, integration by"
            " parts) or a differentiable one in DifferentiableImageReward."
        )


class JPEGCompressibility:
    """Minus the size of the image as a JPEG file, in kB (the compressibility reward of DDPO, arXiv
    2305.13301). A black box.

    Args:
        quality: JPEG quality from 1 to 95.
    """

    def __init__(self, quality: int = 95):
        require(1 <= quality <= 95, f"quality = {quality}; JPEG takes 1 to 95.")
        self.quality = quality

    def __call__(self, images: Images, prompt: str = "") -> PerSample:
        pixels = (images.detach().permute(0, 2, 3, 1) * 255).round().to("cpu", torch.uint8)
        return torch.tensor([-self._kilobytes(each) for each in pixels], dtype=torch.float64)

    def _kilobytes(self, pixels: Tensor) -> float:
        file = io.BytesIO()
        Image.fromarray(pixels.numpy()).save(file, format="JPEG", quality=self.quality)
        return file.tell() / 1000


class CLIPScore(nn.Module):
    """Cosine of the angle between image and prompt in CLIP's space, times ``scale``; differentiable
    in the images.

    Args:
        model: a CLIP model, frozen in place.
        tokenizer: its tokenizer.
        scale: 1 for the cosine itself, 100 for the usual score.
        padded: whether a picture that is no square is padded with black, not cropped.
    """

    def __init__(self, model: CLIPModel, tokenizer: Any, scale: float = 1.0, padded: bool = False):
        super().__init__()
        config: Any = model.config
        vocabulary = config.text_config.vocab_size
        require(
            len(tokenizer) == vocabulary,
            f"the tokenizer knows {len(tokenizer)} tokens and CLIP {vocabulary}; load both from one"
            " directory.",
        )
        self.model = model.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.size: int = config.vision_config.image_size
        self.scale = scale
        self.padded = padded
        self.register_buffer("mean", torch.tensor(CLIP_MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(CLIP_STD).reshape(3, 1, 1), persistent=False)

    @classmethod
    def load(cls, directory: str | Path, scale: float = 1.0) -> CLIPScore:
        """CLIP from a local directory; nothing is downloaded.

        Raises:
            InvalidProblem: a file is missing, damaged or another network's.
        """
        folder = Path(directory)
        require_json(folder)
        model, tokenizer = load_whole(CLIPModel, folder, "model"), load_tokenizer(folder)
        with refusing(f"the CLIP in {folder}"):
            return cls(model, tokenizer, scale)

    def forward(self, images: Images, prompt: str) -> PerSample:
        tokens = self.tokenizer([prompt], padding=True, truncation=True, return_tensors="pt").to(
            images.device
        )
        text = self.model.get_text_features(**tokens)
        words = nn.functional.normalize(_features(text))
        return self.scale * (self.embedding(images) * words).sum(1).to(images)

    def embedding(self, images: Images) -> Float[Tensor, "batch features"]:
        """Unit vectors that the images are mapped to."""
        pixels = self._squared(images).to(self.model.dtype)
        prepared = (pixels - self.get_buffer("mean").to(pixels)) / self.get_buffer("deviation").to(
            pixels
        )
        found = self.model.get_image_features(pixel_values=prepared)
        return nn.functional.normalize(_features(found))

    def _squared(self, images: Images) -> Float[Tensor, "batch 3 edge edge"]:
        """Resized along the short side and cropped in the middle, or along the long side and
        padded.
        """
        size, shape = self.size, images.shape[2:]
        side = (max if self.padded else min)(shape)
        height, width = (
            round(size * each / side) if self.padded else int(size * each / side) for each in shape
        )
        resized = nn.functional.interpolate(
            images, (height, width), mode="bicubic", antialias=True, align_corners=False
        )
        if self.padded:
            top, left = (size - height) // 2, (size - width) // 2
            edges = (left, size - width - left, top, size - height - top)
            return nn.functional.pad(resized, edges)
        top, left = (height - size) // 2, (width - size) // 2
        return resized[..., top : top + size, left : left + size]


def _features(found: Any) -> Tensor:
    return found if isinstance(found, Tensor) else found.pooler_output


def _name(model: Callable[..., Any]) -> str:
    return getattr(model, "__name__", type(model).__name__)
