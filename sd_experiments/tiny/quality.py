"""How well the tiny model does what it is asked, measured by looking at its pictures.

    python -m sd_experiments.tiny.quality

samples the four prompts and random captions of the four skills with DDIM (eta = 1, 50 steps), with
and without classifier-free guidance, and rewrites the section "model" of ``quality.json``. For
every skill it counts how often its own fact is true (the colours, the shapes, the count, the
relation) and how often everything the caption states is.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from jaxtyping import Float
from torch import Tensor

from sd_experiments.tiny import MODEL, PROMPTS, QUALITY, pipeline
from sd_experiments.tiny.captions import (
    FACT_OF_SKILL,
    SKILLS,
    Caption,
    Skill,
    draw_caption,
    every_caption,
    parse_caption,
)
from sd_experiments.tiny.checker import check_captions
from sd_experiments.tiny.shapes import SIDE, arrange, draw
from socft.checks import require
from socft.files import read_json, write_atomically
from socft.records import environment
from socft.study.progress import Progress


@dataclasses.dataclass(frozen=True)
class QualitySettings:
    """What to measure.

    Attributes:
        model: folder of the pipeline.
        file: JSON file to update.
        samples: pictures per prompt and per skill.
        steps: denoising steps.
        guidance: guidance scales; 1 is none.
        seed: of the noise and of the random captions.
        drawings: clean pictures the checker and the autoencoder are tested on.
    """

    model: Path = MODEL
    file: Path = QUALITY
    samples: int = 96
    steps: int = 50
    guidance: tuple[float, ...] = (1.0, 3.0)
    seed: int = 0
    drawings: int = 2000

    def __post_init__(self) -> None:
        require(
            self.samples >= 2,
            f"samples = {self.samples}; a fraction with an error bar needs at least 2.",
        )


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """How often captions came true.

    Attributes:
        skill: skill of the captions.
        caption: the prompt, or "random captions".
        guidance: guidance scale.
        fact: how often the skill's own fact is true.
        everything: how often all facts are.
        stderr: standard error of ``fact``.
    """

    skill: Skill
    caption: str
    guidance: float
    fact: float
    everything: float
    stderr: float


def sample(
    pipe: StableDiffusionPipeline,
    captions: Sequence[str],
    guidance: float,
    generator: torch.Generator,
    steps: int = 50,
) -> Float[Tensor, "n 3 side side"]:
    """Pictures in [0, 1] for captions, by DDIM with eta = 1."""
    made = []
    for i in range(0, len(captions), 64):
        options: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": guidance,
            "eta": 1.0,
            "output_type": "pt",
        }
        made.append(pipe(list(captions[i : i + 64]), generator=generator, **options)[0])
    return torch.cat(made)


def fingerprint(pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """What one cheap sample looks like, to notice a pipeline that no longer draws what it drew when
    it was measured.
    """
    prompt = PROMPTS["location"]
    picture = sample(pipe, [prompt], 1.0, torch.Generator().manual_seed(0), steps=10)[0]
    quarters = F.avg_pool2d(picture, SIDE // 2).permute(1, 2, 0).flatten(0, 1)
    return {
        "prompt": prompt,
        "steps": 10,
        "mean colour of each quarter": [[round(c, 4) for c in q] for q in quarters.tolist()],
    }


def accuracy(
    skill: Skill, pictures: Tensor, captions: Sequence[Caption], guidance: float
) -> Accuracy:
    """Accuracy of pictures of captions of one skill."""
    found = check_captions(pictures, list(captions))
    fact = sum(stated[FACT_OF_SKILL[skill]] for stated in found) / len(found)
    texts = {str(caption) for caption in captions}
    return Accuracy(
        skill,
        texts.pop() if len(texts) == 1 else "random captions",
        guidance,
        fact,
        sum(all(stated.values()) for stated in found) / len(found),
        math.sqrt(fact * (1 - fact) / (len(found) - 1)),
    )


def measure(settings: QualitySettings, pipe: StableDiffusionPipeline) -> dict[str, Any]:
    """Everything there is to say about a pipeline, as plain values."""
    asked: list[tuple[Skill, list[Caption]]] = [
        (skill, [parse_caption(PROMPTS[skill])] * settings.samples) for skill in SKILLS
    ]
    asked += random_captions(settings).items()
    generator = torch.Generator().manual_seed(settings.seed)
    rows = []
    with Progress("sampling", len(asked) * len(settings.guidance)) as progress:
        for guidance in settings.guidance:
            for skill, captions in asked:
                pictures = sample(
                    pipe,
                    [str(caption) for caption in captions],
                    guidance,
                    generator,
                    settings.steps,
                )
                rows.append(dataclasses.asdict(accuracy(skill, pictures, captions, guidance)))
                progress.finished(
                    f"{rows[-1]['caption']} ({skill}), guidance {guidance:g}:"
                    f" {rows[-1]['fact']:.2f}",
                    0.0,
                )
    return {
        "checker": _checker(settings, pipe),
        "schedule": schedule(pipe, settings.steps),
        "accuracy": rows,
        "fingerprint": fingerprint(pipe),
        "sampler": {
            "name": "DDIM",
            "eta": 1.0,
            "steps": settings.steps,
            "samples": settings.samples,
            "seed": settings.seed,
        },
        "parameters": {
            name: sum(p.numel() for p in getattr(pipe, name).parameters())
            for name in ("unet", "vae", "text_encoder")
        },
    }


def schedule(pipe: StableDiffusionPipeline, steps: int) -> dict[str, float]:
    """The last step of DDIM (eta = 1): its levels and sigma, and those of the softened level (1 +
    abar) / 2.
    """
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    assert isinstance(scheduler, DDIMScheduler)
    scheduler.set_timesteps(steps)
    before, after = (
        float(scheduler.alphas_cumprod[scheduler.timesteps[-1]]),
        float(scheduler.final_alpha_cumprod),
    )
    softened = (1 + before) / 2

    def sigma(level: float) -> float:
        return math.sqrt((1 - level) / (1 - before) * (1 - before / level))

    return {
        "first abar": float(scheduler.alphas_cumprod[scheduler.timesteps[0]]),
        "last abar before": before,
        "last abar": after,
        "last sigma": sigma(after),
        "softened last abar": softened,
        "softened last sigma": sigma(softened),
    }


def update(file: Path, section: str, content: Mapping[str, Any], command: str) -> None:
    """Replace one section of the quality file."""
    remedy = "remove it, and measure again"
    known = read_json(file, remedy) if file.exists() else {}
    require(isinstance(known, dict), f"{file} is damaged: it is no JSON object; {remedy}.")
    known[section] = {"command": command, "versions": dict(environment().versions), **content}
    write_atomically(file, (json.dumps(known, indent=2, sort_keys=True) + "\n").encode())


def random_captions(settings: QualitySettings) -> dict[Skill, list[Caption]]:
    """Captions of every skill that state its own fact."""
    rng = random.Random(settings.seed)
    return {
        skill: rng.choices(
            [c for c in every_caption(skill) if _states_skill(c)], k=settings.samples
        )
        for skill in SKILLS
    }


def _states_skill(caption: Caption) -> bool:
    """Whether the caption's own fact is stated: a lone thing without a colour states none."""
    return caption.skill != "colour" or caption.first.colour is not None


def _checker(settings: QualitySettings, pipe: StableDiffusionPipeline) -> dict[str, float]:
    """How often the checker finds every fact true where it is: on drawings, and after the
    autoencoder.
    """
    rng = random.Random(settings.seed)
    captions = [draw_caption(rng) for _ in range(settings.drawings)]
    pictures = draw(arrange(captions, torch.Generator().manual_seed(settings.seed)))
    again = torch.cat([reconstruct(pipe, part) for part in pictures.split(256)])
    return {
        "right on drawings": _right(pictures, captions),
        "right on reconstructions": _right(again, captions),
        "mean absolute error of reconstructions": float((again - pictures).abs().mean()),
    }


@torch.no_grad()
def reconstruct(
    pipe: StableDiffusionPipeline, pictures: Float[Tensor, "n 3 side side"]
) -> Float[Tensor, "n 3 side side"]:
    """Pictures in [0, 1] after the autoencoder."""
    latents = pipe.vae.encode(2 * pictures - 1).latent_dist.mean
    return (pipe.vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)


def _right(pictures: Tensor, captions: list[Caption]) -> float:
    return sum(all(stated.values()) for stated in check_captions(pictures, captions)) / len(
        captions
    )


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    settings = tyro.cli(QualitySettings, description=__doc__)
    found = measure(settings, pipeline(settings.model))
    update(settings.file, "model", found, "python -m sd_experiments.tiny.quality")
    for row in found["accuracy"]:
        print(
            "{skill:12} {caption:24} guidance {guidance:3g}: {fact:.2f} +- {stderr:.2f}, everything"
            " {everything:.2f}".format(**row)
        )
    print(json.dumps(found["checker"], indent=2))


if __name__ == "__main__":
    main()
