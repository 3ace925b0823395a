"""Train the tiny ImageReward: pictures of one caption, ranked by how many of the facts the caption states are true of them.

As in ImageReward (arXiv 2304.05977), the loss of a pair is -log sigmoid(r(better) - r(worse)). Every caption comes with pictures
of four origins: drawn as asked, drawn with something wrong, one of these after the autoencoder, and sampled from the tiny model,
whose facts the checker finds. A seventh of the captions is held out, with its pictures, to measure how many pairs come out right.

    python -m sd_experiments.tiny.train_reward

takes about 10 minutes on one core, shows its progress, and continues after an interruption.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer

from sd_experiments.image_reward import Encoder, ImageReward, ImageRewardConfig, Tokens
from sd_experiments.tiny import MODEL, QUALITY, REWARD, pipeline
from sd_experiments.tiny.captions import SHAPES, WORDS, Caption, Noise, draw_caption, facts
from sd_experiments.tiny.checker import look
from sd_experiments.tiny.files import replace_folder
from sd_experiments.tiny.quality import reconstructed, sample, update
from sd_experiments.tiny.shapes import arrange, draw
from sd_experiments.tiny.trainer import Settings, Trained, train
from socft.checks import require

ORIGINS = ("drawn as asked", "drawn with an error", "reconstructed", "sampled")

_ERRORS = Noise(colour=0.5, composition=0.7, counting=0.7, location=0.7)
_WRONG_SHAPE = 0.25
_HELD_OUT = 7  # one caption in so many


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
        training: length and speed.
        batch: captions per step.
    """

    out: Path = REWARD
    quality: Path = QUALITY
    model: Path = MODEL
    work: Path = Path("build/tiny")
    seed: int = 0
    captions: int = 3000
    sampling_steps: int = 15
    guidance: float = 1.0
    training: Settings = Settings(steps=2000, rate=1e-3, warmup=100, decay=0.7, weight_decay=0.01)  # noqa: RUF009
    batch: int = 8


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Captions with pictures of the four `ORIGINS` and how good each is.

    Attributes:
        pictures: in [0, 1].
        worth: fraction of the caption's facts that are true of the picture.
        captions: the captions.
    """

    pictures: Float[Tensor, "n 4 3 side side"]
    worth: Float[Tensor, "n 4"]
    captions: list[Caption]

    def rows(self, rows: Sequence[int]) -> Ranked:
        """Some of the captions."""
        index = torch.tensor(rows)
        return Ranked(self.pictures[index], self.worth[index], [self.captions[i] for i in rows])


def held_out(caption: Caption) -> bool:
    """Whether a caption is kept for measuring, a fixed property of its text."""
    return hashlib.sha256(str(caption).encode()).digest()[0] % _HELD_OUT == 0


def words_tokenizer() -> BertTokenizer:
    """BERT's tokenizer with the captions' words and the two tokens BLIP adds."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[DEC]", "[ENC]"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(words) + "\n")
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def build(seed: int) -> ImageReward:
    """An untrained reward of 0.6 million parameters; the caller's random state is left alone."""
    tokenizer = words_tokenizer()
    config = ImageRewardConfig(
        vision=Encoder(width=96, hidden=192, layers=3, heads=4),
        text=Encoder(width=96, hidden=192, layers=3, heads=4),
        side=32,
        patch=4,
        vocabulary=len(tokenizer),
        positions=16,
        tokens=16,
        head=(64, 32, 16, 8, 1),
        dropout=0.0,
        mean=0.0,
        deviation=1.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ImageReward(config, tokenizer)
        for module in model.modules():  # BLIP's initial deviation of 0.02 suits its widths; here signals would vanish
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        return model


def ranked(settings: RewardTraining) -> Ranked:
    """Captions and pictures, a function of the seed and the model."""
    rng, generator = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    captions = [draw_caption(rng) for _ in range(settings.captions)]
    pipe = pipeline(settings.model)
    asked = arrange(captions, generator)
    wrong = arrange([_with_error(caption, rng) for caption in captions], generator)
    right_pictures, wrong_pictures = draw(asked), draw(wrong)
    from_wrong = torch.rand(settings.captions, generator=generator) < 0.5
    original = torch.where(from_wrong[:, None, None, None], wrong_pictures, right_pictures)
    blurred = torch.cat([reconstructed(pipe, part) for part in original.split(256)])
    sampled = sample(pipe, [str(caption) for caption in captions], settings.guidance, generator, settings.sampling_steps)
    things = [
        (asked.seen(i), wrong.seen(i), (wrong if from_wrong[i] else asked).seen(i), seen) for i, seen in enumerate(look(sampled))
    ]
    worth = [[_worth(caption, seen) for seen in four] for caption, four in zip(captions, things, strict=True)]
    return Ranked(torch.stack([right_pictures, wrong_pictures, blurred, sampled], 1), torch.tensor(worth), captions)


def pairs(worth: Float[Tensor, "n 4"]) -> Int[Tensor, "pairs 3"]:
    """Rows (caption, better picture, worse picture) of every pair that differs in worth."""
    found = [
        (i, a, b)
        for i, values in enumerate(worth.tolist())
        for a, b in itertools.permutations(range(len(values)), 2)
        if values[a] > values[b]
    ]
    return torch.tensor(found).reshape(-1, 3)


def train_reward(settings: RewardTraining) -> dict[str, Any]:
    """Train, save, measure; what was measured."""
    data = ranked(settings)
    parts = {kept: [i for i, caption in enumerate(data.captions) if held_out(caption) == kept] for kept in (False, True)}
    model = build(settings.seed)
    trained = _fit(model, data.rows(parts[False]), settings)
    _standardise(model, data.rows(parts[False]))
    replace_folder(settings.out, model.save)
    measured = measure(model, data.rows(parts[True])) | {"training": dataclasses.asdict(trained), "seed": settings.seed}
    update(settings.quality, "reward", measured, "python -m sd_experiments.tiny.train_reward")
    return measured


def _fit(model: ImageReward, data: Ranked, settings: RewardTraining) -> Trained:
    model.requires_grad_(True).train()
    prepared = model.prepare(data.pictures.flatten(0, 1)).view(data.pictures.shape)
    tokens = model.tokens([str(caption) for caption in data.captions])

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(data.captions), (settings.batch,), generator=generator)
        rewards = _rewards(model, prepared[rows], Tokens(tokens.ids[rows], tokens.mask[rows]))
        i, better, worse = pairs(data.worth[rows]).unbind(1)
        margin = rewards[i, better] - rewards[i, worse]
        return F.softplus(-margin).sum() / max(1, len(margin)) + 1e-3 * rewards.square().mean()

    identity = {name: getattr(settings, name) for name in ("captions", "sampling_steps", "guidance", "batch")}
    identity["model"] = hashlib.sha256((settings.model / "sha256.json").read_bytes()).hexdigest()
    file = settings.work / "reward.safetensors"
    done = train("reward", list(model.parameters()), loss, settings.training, settings.seed + 3, file, identity)
    model.requires_grad_(False).eval()
    return done


def _rewards(model: ImageReward, prepared: Tensor, tokens: Tokens) -> Float[Tensor, "n 4"]:
    """Rewards of every picture of each caption."""
    n, each = prepared.shape[:2]
    repeated = Tokens(tokens.ids.repeat_interleave(each, 0), tokens.mask.repeat_interleave(each, 0))
    return model.score(prepared.flatten(0, 1), repeated).view(n, each)


@torch.no_grad()
def _standardise(model: ImageReward, data: Ranked) -> None:
    """Make the rewards of the tiny model's own pictures have mean 0 and standard deviation 1, as ImageReward does."""
    rewards = _all_rewards(model, data)[:, ORIGINS.index("sampled")]
    mean, deviation = float(rewards.mean()), float(rewards.std())
    model.config = dataclasses.replace(model.config, mean=mean, deviation=deviation)


def _all_rewards(model: ImageReward, data: Ranked) -> Float[Tensor, "n 4"]:
    """Rewards of all pictures, a few captions at a time."""
    tokens = model.tokens([str(caption) for caption in data.captions])
    parts = zip(data.pictures.split(64), tokens.ids.split(64), tokens.mask.split(64), strict=True)
    return torch.cat([_rewards(model, model.prepare(x.flatten(0, 1)).view(x.shape), Tokens(ids, mask)) for x, ids, mask in parts])


@torch.no_grad()
def measure(model: ImageReward, data: Ranked) -> dict[str, Any]:
    """How many pairs of captions it never saw come out right, overall and by the origins of the two pictures."""
    require(len(data.captions) > 0, "no caption is held out; draw more captions.")
    rewards = _all_rewards(model, data)
    i, better, worse = pairs(data.worth).unbind(1)
    right = (rewards[i, better] > rewards[i, worse]).double()
    among = {
        f"{ORIGINS[a]} / {ORIGINS[b]}": ((better == a) & (worse == b)) | ((better == b) & (worse == a))
        for a, b in itertools.combinations(range(len(ORIGINS)), 2)
    }
    good, bad = rewards[data.worth == 1], rewards[data.worth < 1]
    return {
        "held-out captions": len({str(caption) for caption in data.captions}),
        "held-out pairs": len(right),
        "ranked right": float(right.mean()),
        "ranked right by origin": {name: float(right[these].mean()) for name, these in among.items() if these.any()},
        "mean reward of right pictures": float(good.mean()),
        "mean reward of wrong pictures": float(bad.mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _with_error(caption: Caption, rng: random.Random) -> Caption:
    """Something near a caption: colours, shapes, number or place may differ."""
    near = _ERRORS.drawn(caption, rng)
    if rng.random() < _WRONG_SHAPE:
        others = [shape for shape in SHAPES if shape != near.first.shape]
        near = dataclasses.replace(near, first=dataclasses.replace(near.first, shape=rng.choice(others)))
    return near


def _worth(caption: Caption, seen) -> float:
    stated = facts(caption, seen)
    return sum(stated.values()) / len(stated)


def main() -> None:
    """Train, save, measure."""
    torch.set_num_threads(1)
    measured = train_reward(tyro.cli(RewardTraining, description=__doc__))
    print(f"ranks {measured['ranked right']:.1%} of {measured['held-out pairs']} held-out pairs right")


if __name__ == "__main__":
    main()
