"""The transformers of Stable Diffusion 3 and FLUX, as their pipelines call them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sd_experiments.model.denoiser import LatentDenoiser
from sd_experiments.model.prompts import EncodedPrompt

PATCH = 2
"""Side of the patches of a latent that FLUX reads as one token."""
GUIDANCE = "guidance"
"""What FLUX calls the guidance scale that was distilled into it."""


class SD3Denoiser(LatentDenoiser):
    """The transformer of Stable Diffusion 3."""

    def _evaluate(self, timesteps: Tensor, x: Tensor, told: EncodedPrompt) -> Tensor:
        return self.network(
            hidden_states=x,
            timestep=timesteps,
            encoder_hidden_states=told.text,
            return_dict=False,
            **told.added,
        )[0]


class FluxDenoiser(LatentDenoiser):
    """The transformer of FLUX, which reads a latent as a row of patches, each with its place."""

    def _evaluate(self, timesteps: Tensor, x: Tensor, told: EncodedPrompt) -> Tensor:
        guidance = told.added.get(GUIDANCE)
        output = self.network(
            hidden_states=packed(x),
            timestep=timesteps.to(x) / 1000,
            guidance=None if guidance is None else guidance.flatten(),
            pooled_projections=told.added["pooled_projections"],
            encoder_hidden_states=told.text,
            txt_ids=x.new_zeros(told.text.shape[1], 3),
            img_ids=places(x),
            return_dict=False,
        )[0]
        return unpacked(output, x)


def packed(x: Tensor) -> Tensor:
    """Latents as rows of patches, shape (batch, tokens, 4 channels)."""
    return nn.functional.pixel_unshuffle(x, PATCH).flatten(2).transpose(1, 2)


def unpacked(rows: Tensor, x: Tensor) -> Tensor:
    """Rows of patches as latents of the shape of ``x``."""
    height, width = (side // PATCH for side in x.shape[2:])
    patches = rows.transpose(1, 2).unflatten(2, (height, width))
    return nn.functional.pixel_shuffle(patches, PATCH)


def places(x: Tensor) -> Tensor:
    """Zero, row and column of every patch, shape (tokens, 3)."""
    height, width = (side // PATCH for side in x.shape[2:])
    grid = torch.cartesian_prod(
        torch.zeros(1, device=x.device),
        torch.arange(height, device=x.device).float(),
        torch.arange(width, device=x.device).float(),
    )
    return grid.to(x)
