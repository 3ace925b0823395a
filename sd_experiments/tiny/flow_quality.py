"""How well the tiny flow model does what it is asked, measured by looking at its pictures.

    python -m sd_experiments.tiny.flow_quality

samples the four prompts and random captions of the four skills with the chain of
``sd_experiments/configs/tiny_flow.toml``, with and without classifier-free guidance, and rewrites
the section "flow model" of ``quality.json``, as `sd_experiments.tiny.quality` does for the tiny
Stable Diffusion.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float
from torch import Tensor

from sd_experiments import CONFIGS, config
from sd_experiments.model.latent_model import LatentModel
from sd_experiments.reward.rewards import decode
from sd_experiments.tiny import FLOW, PROMPTS
from sd_experiments.tiny.captions import SKILLS, Caption, Skill, parse_caption
from sd_experiments.tiny.quality import QualitySettings, accuracy, random_captions, update
from sd_experiments.tiny.shapes import SIDE
from sd_experiments.training.build import build_reference, load_model
from socft.path import Noise, rollout
from socft.policy import Uncontrolled
from socft.study.progress import Progress

COMMAND = "python -m sd_experiments.tiny.flow_quality"
SECTION = "flow model"


def settings() -> config.ExperimentConfig:
    """The configuration that fine-tunes the model."""
    return config.read_config(CONFIGS / "tiny_flow.toml")


@torch.no_grad()
def sample(
    base: LatentModel, caption: str, count: int, guidance: float, generator: torch.Generator
) -> Float[Tensor, "count 3 side side"]:
    """Pictures in [0, 1] of a caption, by the chain of the configuration."""
    sampler = dataclasses.replace(settings().sampler, guidance=guidance)
    chain = build_reference(base, sampler, caption)
    noise = Noise.sample(chain, count, generator, torch.float32)
    return decode(base, rollout(chain, Uncontrolled(chain), noise).final)


def fingerprint(base: LatentModel) -> dict[str, Any]:
    """What one picture looks like, to notice a model that no longer draws what it drew when it was
    measured.
    """
    prompt = PROMPTS["location"]
    picture = sample(base, prompt, 1, 1.0, torch.Generator().manual_seed(0))[0]
    quarters = F.avg_pool2d(picture, SIDE // 2).permute(1, 2, 0).flatten(0, 1)
    rounded = [[round(c, 4) for c in q] for q in quarters.tolist()]
    return {"prompt": prompt, "mean colour of each quarter": rounded}


def measure(asked: QualitySettings, base: LatentModel) -> dict[str, Any]:
    """Everything there is to say about the model, as plain values."""
    cases: list[tuple[Skill, Sequence[Caption]]] = [
        (skill, [parse_caption(PROMPTS[skill])] * asked.samples) for skill in SKILLS
    ]
    cases += random_captions(asked).items()
    generator, rows = torch.Generator().manual_seed(asked.seed), []
    with Progress("sampling", len(cases) * len(asked.guidance)) as progress:
        for guidance in asked.guidance:
            for skill, captions in cases:
                pictures = _drawn(base, captions, guidance, generator)
                rows.append(dataclasses.asdict(accuracy(skill, pictures, captions, guidance)))
                said = "{caption} ({skill}), guidance {guidance:g}: {fact:.2f}"
                progress.finished(said.format(**rows[-1]), 0.0)
    network = base.denoiser.network
    return {
        "accuracy": rows,
        "fingerprint": fingerprint(base),
        "sampler": {**dataclasses.asdict(settings().sampler), "samples": asked.samples},
        "parameters": sum(p.numel() for p in network.parameters()),
    }


def _drawn(
    base: LatentModel, captions: Sequence[Caption], guidance: float, generator: torch.Generator
) -> Tensor:
    """A picture of each caption; those of one caption together."""
    texts = [str(caption) for caption in captions]
    if len(set(texts)) == 1:
        return sample(base, texts[0], len(texts), guidance, generator)
    return torch.cat([sample(base, text, 1, guidance, generator) for text in texts])


def main() -> None:
    """Measure and record."""
    torch.set_num_threads(1)
    asked = tyro.cli(QualitySettings, default=QualitySettings(model=FLOW), description=__doc__)
    model = dataclasses.replace(settings().model, path=str(asked.model))
    found = measure(asked, load_model(model))
    update(asked.file, SECTION, found, COMMAND)
    for row in found["accuracy"]:
        print(
            "{skill:12} {caption:24} guidance {guidance:3g}: {fact:.2f} +- {stderr:.2f}, everything"
            " {everything:.2f}".format(**row)
        )


if __name__ == "__main__":
    main()
