"""Everything that the trained reward depends on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from sd_experiments.tiny import MODEL, QUALITY, REWARD
from sd_experiments.tiny.trainer import TrainingSettings

VISION = TrainingSettings(steps=1500, rate=2e-3, momentum=(0.9, 0.999), weight_decay=0.01)
MATCHING = TrainingSettings(
    steps=5000, rate=1e-3, warmup=100, decay=0.7, momentum=(0.9, 0.999), weight_decay=0.01
)
TRAINING = TrainingSettings(
    steps=1200, rate=5e-4, warmup=100, decay=0.8, momentum=(0.9, 0.999), weight_decay=0.01
)


@dataclasses.dataclass(frozen=True)
class RewardTraining:
    """Everything the trained reward depends on.

    Attributes:
        out: folder the reward is saved to.
        quality: JSON file that records its accuracy.
        model: folder of the pipeline that samples and reconstructs pictures.
        work: folder of the checkpoint.
        seed: of the weights, the pictures and the training.
        captions: captions with four pictures each.
        sampling_steps: denoising steps of the sampled pictures.
        guidance: their guidance scale.
        vision: length and speed of the vision transformer's own training.
        vision_batch: pictures per step of it.
        matching: length and speed of learning which facts are true.
        training: length and speed of the training by pairs.
        batch: captions per step.
        fresh: how many of them come with pictures that were drawn for the step.
        others: pictures of other captions that each is compared with.
        certainty: k, how sure annotators are.
        blending: weight of the penalty on rewards that are not linear between two pictures.
        noise: largest standard deviation of the noise in the pictures of pairs; uniform below it, a
            number for each picture.
    """

    out: Path = REWARD
    quality: Path = QUALITY
    model: Path = MODEL
    work: Path = Path("build/tiny")
    seed: int = 0
    captions: int = 5000
    sampling_steps: int = 10
    guidance: float = 1.0
    vision: TrainingSettings = VISION
    vision_batch: int = 32
    matching: TrainingSettings = MATCHING
    training: TrainingSettings = TRAINING
    batch: int = 8
    fresh: int = 4
    others: int = 4
    certainty: float = 5.0
    blending: float = 0.3
    noise: float = 0.3

    def identity(self, *names: str) -> dict[str, object]:
        """The named settings, plain: what a stage's result depends on."""
        fields = dataclasses.asdict(self)
        return {name: fields[name] for name in names}
