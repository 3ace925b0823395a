"""How the reward learns: to see, to match captions, and to rank by pairs."""

from __future__ import annotations

import hashlib
import random

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from sd_experiments.reward.image_reward import ImageReward, PromptTokens
from sd_experiments.tiny.captions import COLOURS, SHAPES, draw_caption
from sd_experiments.tiny.ranked_pictures import (
    QUESTIONS,
    RankedPictures,
    answers,
    comparison_index,
    draw_ranked_pictures,
    worth_of_pictures,
)
from sd_experiments.tiny.reward_settings import RewardTraining
from sd_experiments.tiny.shapes import SIDE, Scenes, arrange, coverage, draw
from sd_experiments.tiny.trainer import TrainingSummary, minimise

_COVERED = 0.3  # a patch shows a thing that covers this much of it
_GROUND_WEIGHT = 0.2  # most patches show the ground
_BLENDS = 2  # of the pictures of a caption, per step


def fit(model: ImageReward, data: RankedPictures, settings: RewardTraining) -> TrainingSummary:
    """Teach a reward to see, to match captions and to rank, in this order."""
    model.requires_grad_(True).train()
    _see(model, settings)
    _match(model, data, settings)

    def loss(generator: torch.Generator) -> Tensor:
        batch = _batch(data, settings, generator)
        pictures = add_noise(batch.pictures, settings.noise, generator)
        prepared = model.prepare(pictures.flatten(0, 1)).view(pictures.shape)
        index = comparison_index(settings.batch, settings.others, generator)
        asked = model.tokens([str(caption) for caption in batch.captions])
        rewards = model.read(
            model.see(prepared.flatten(0, 1))[index.flatten()], asked.repeated(index.shape[1])
        ).view(index.shape)
        ranking = disagreement(rewards, settings.certainty * worth_of_pictures(batch, index))
        bent = bend(model, prepared, asked, rewards[:, : prepared.shape[1]], generator)
        return ranking + settings.blending * bent + 1e-3 * rewards.square().mean()

    identity = _origin(settings) | settings.identity("matching", "certainty", "blending", "noise")
    file = settings.work / "reward.safetensors"
    done = minimise(
        "reward",
        list(model.parameters()),
        loss,
        settings.training,
        settings.seed + 3,
        file,
        identity,
    )
    model.requires_grad_(False).eval()
    return done


def _see(model: ImageReward, settings: RewardTraining) -> None:
    """Teach the vision transformer what covers each patch: nothing, or some shape of some
    colour.
    """
    sizes = [1 + len(SHAPES), 1 + len(COLOURS)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        say = nn.Linear(model.config.vision.width, sum(sizes))
    weights = [torch.tensor([_GROUND_WEIGHT] + [1.0] * (size - 1)) for size in sizes]

    def loss(generator: torch.Generator) -> Tensor:
        rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
        scenes = arrange([draw_caption(rng) for _ in range(settings.vision_batch)], generator)
        said = say(model.see(model.prepare(draw(scenes)))[:, 1:]).flatten(0, 1).split(sizes, 1)
        true = patch_classes(scenes, model.config.patch).flatten(0, 1).unbind(1)
        parts = [
            F.cross_entropy(each, truth, weight=w)
            for each, truth, w in zip(said, true, weights, strict=True)
        ]
        return parts[0] + parts[1]

    file = settings.work / "vision.safetensors"
    parameters = [*model.vision.parameters(), *say.parameters()]
    minimise(
        "vision",
        parameters,
        loss,
        settings.vision,
        settings.seed + 4,
        file,
        settings.identity("vision_batch"),
    )


def _match(model: ImageReward, data: RankedPictures, settings: RewardTraining) -> None:
    """Teach both transformers to say which facts of a caption are true of a picture, and which of
    the shapes it names are there.

    Pictures of all origins, since those of the tiny model are softer than drawings.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        say = nn.Linear(model.config.text.width, len(QUESTIONS))

    def loss(generator: torch.Generator) -> Tensor:
        batch = _batch(data, settings, generator)
        index = comparison_index(settings.batch, settings.others, generator)
        seen = model.see(model.prepare(batch.pictures.flatten(0, 1)))[index.flatten()]
        asked = model.tokens([str(caption) for caption in batch.captions]).repeated(index.shape[1])
        truth = answers(batch, index).flatten(0, 1)
        stated = truth.isfinite()
        return F.binary_cross_entropy_with_logits(
            say(model.compare(seen, asked))[stated], truth[stated]
        )

    file = settings.work / "matching.safetensors"
    parameters = [*model.vision.parameters(), *model.text.parameters(), *say.parameters()]
    minimise(
        "matching", parameters, loss, settings.matching, settings.seed + 5, file, _origin(settings)
    )


def _batch(
    data: RankedPictures, settings: RewardTraining, generator: torch.Generator
) -> RankedPictures:
    """Captions of the data, then others with pictures that were drawn for the occasion."""
    rows = torch.randint(
        len(data.captions), (settings.batch - settings.fresh,), generator=generator
    )
    return data.rows(rows.tolist()).joined(draw_ranked_pictures(settings.fresh, generator))


def _origin(settings: RewardTraining) -> dict[str, object]:
    """What pictures, and networks that have learnt to see them, depend on."""
    names = (
        "captions",
        "sampling_steps",
        "guidance",
        "vision",
        "vision_batch",
        "batch",
        "fresh",
        "others",
    )
    return settings.identity(*names) | {
        "model": hashlib.sha256((settings.model / "sha256.json").read_bytes()).hexdigest()
    }


def add_noise(
    pictures: Float[Tensor, "n 4 3 side side"], largest: float, generator: torch.Generator
) -> Float[Tensor, "n 4 3 side side"]:
    """Pictures with Gaussian noise, whose standard deviation is uniform between 0 and the largest
    for each picture.
    """
    deviation = largest * torch.rand(*pictures.shape[:2], 1, 1, 1, generator=generator)
    return pictures + deviation * torch.randn(pictures.shape, generator=generator)


def disagreement(
    rewards: Float[Tensor, "n pictures"], known: Float[Tensor, "n pictures"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of preferences between a caption's pictures under two rewards; least if
    they differ by a constant.
    """
    a, b = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    preferred = torch.sigmoid(known[:, a] - known[:, b])
    return F.binary_cross_entropy_with_logits(rewards[:, a] - rewards[:, b], preferred)


def bend(
    model: ImageReward,
    prepared: Tensor,
    asked: PromptTokens,
    rewards: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """Mean square distance of the rewards of blends of a caption's pictures from the blends of
    their rewards.
    """
    n = len(prepared)
    first, second = (
        torch.randint(prepared.shape[1], (n, _BLENDS), generator=generator) for _ in range(2)
    )
    part, row = torch.rand(n, _BLENDS, generator=generator), torch.arange(n)[:, None]
    share = part[..., None, None, None]
    blends = share * prepared[row, first] + (1 - share) * prepared[row, second]
    expected = part * rewards[row, first] + (1 - part) * rewards[row, second]
    return (rewards_of(model, blends, asked) - expected).square().mean()


def rewards_of(
    model: ImageReward, prepared: Tensor, tokens: PromptTokens
) -> Float[Tensor, "n pictures"]:
    """Rewards of every picture of each caption."""
    n, each = prepared.shape[:2]
    return model.score(prepared.flatten(0, 1), tokens.repeated(each)).view(n, each)


def patch_classes(scenes: Scenes, patch: int) -> Int[Tensor, "n patches 2"]:
    """What covers each patch: the number of its shape and of its colour from 1, or twice 0 for
    nothing.
    """
    side = SIDE // patch
    kind = torch.zeros(len(scenes), side, side, 2, dtype=torch.long)
    for i in range(scenes.present.shape[1]):
        rows = scenes.present[:, i].nonzero().flatten()
        alpha = coverage(
            scenes.shape[rows, i], scenes.x[rows, i], scenes.y[rows, i], scenes.size[rows, i]
        )
        mine = F.avg_pool2d(alpha[:, None], patch)[:, 0] > _COVERED
        number = 1 + torch.stack([scenes.shape[rows, i], scenes.colour[rows, i]], 1)[:, None, None]
        kind[rows] = torch.where(mine[..., None], number, kind[rows])
    return kind.flatten(1, 2)
