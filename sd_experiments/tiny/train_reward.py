r"""Train the tiny ImageReward: pictures of one caption, compared two by two.

As in ImageReward (arXiv 2304.05977), a reward r is fitted to preferences by the Bradley-Terry
model, and the networks have seen pictures and captions before: the vision transformer learns to say
what covers each of its patches, then both learn to say which facts of a caption are true of a
picture, as BLIP has learnt to match images and texts. An annotator who finds a fraction w of the
facts a caption states true of a picture prefers it to another one with probability

.. math:: P(1 \succ 2) = \operatorname{sigmoid}\bigl(k\,(w_1 - w_2)\bigr),

so the loss of a pair is the cross-entropy between this and sigmoid(r_1 - r_2), and its minimum is r
= k w: bounded, and as gradual as the pictures are. Certain annotators would make r a step, whose
gradient is next to nothing almost everywhere and a hundred times its median now and then, and with
it every adjoint. For the same reason a penalty keeps rewards linear between two pictures, and
preferences are learnt from pictures with noise: what differs between pictures that look the same
then counts for little, in the reward as in its gradient.

Every caption comes with pictures of four origins: drawn as asked, drawn part or all of the way to
something wrong, one of these after the autoencoder, and sampled from the tiny model, whose facts
the checker finds; and it is compared with pictures of other captions. A seventh of the captions is
held out, with its pictures, to measure how many pairs come out right.

    python -m sd_experiments.tiny.train_reward

takes about 35 minutes on one core, shows its progress, and continues after an interruption.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import BertTokenizer

from sd_experiments.manifest import replace_folder
from sd_experiments.reward.image_reward import (
    ImageReward,
    ImageRewardConfig,
    PromptTokens,
    TransformerSize,
)
from sd_experiments.tiny import MODEL, PROMPTS, QUALITY, REWARD, pipeline
from sd_experiments.tiny.captions import (
    COLOURS,
    FACT_OF_SKILL,
    SHAPES,
    WORDS,
    Caption,
    CaptionErrors,
    VisibleShape,
    draw_caption,
    facts,
    parse_caption,
)
from sd_experiments.tiny.checker import check_captions, find_shapes
from sd_experiments.tiny.quality import reconstruct, sample, update
from sd_experiments.tiny.shapes import SIDE, Scenes, arrange, coverage, draw, draw_between
from sd_experiments.tiny.trainer import TrainingSettings, TrainingSummary, minimise
from socft.checks import require

QUESTIONS = (*FACT_OF_SKILL.values(), "first", "second")
"""Facts of a caption, and whether the picture shows the shapes of the first and of the second thing
it names.
"""

ORIGINS = ("drawn as asked", "drawn with an error", "reconstructed", "sampled")

_ERRORS = CaptionErrors(colour=0.5, composition=0.7, counting=0.7, location=0.7)
_WRONG_SHAPE = 0.25
_SWAPPED = 0.25
_HELD_OUT = 7  # one caption in so many
_COVERED = 0.3  # a patch shows a thing that covers this much of it
_GROUND_WEIGHT = 0.2  # most patches show the ground
_PLACE = 0.5  # deviation of a place's embedding at first, about that of a patch's
_VISIBLE = 0.1  # difference in worth
_BLENDS = 2  # of the pictures of a caption, per step
_PER_PROMPT = 192  # pictures


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


@dataclasses.dataclass(frozen=True)
class PictureContent:
    """What a picture shows that lies a share of the way from one scene to another."""

    first: tuple[VisibleShape, ...]
    second: tuple[VisibleShape, ...] = ()
    share: float = 0.0

    def _mixed(
        self, asked: Callable[[tuple[VisibleShape, ...]], Mapping[str, bool]]
    ) -> dict[str, float]:
        first, second = asked(self.first), asked(self.second)
        return {name: (1 - self.share) * first[name] + self.share * second[name] for name in first}

    def facts(self, caption: Caption) -> dict[str, float]:
        """How far each of the facts a caption states is true of it."""
        return self._mixed(functools.partial(facts, caption))

    def answers(self, caption: Caption) -> dict[str, float]:
        """How far each of `QUESTIONS` that a caption asks is to be answered by yes."""
        names = {"first": caption.first} | ({"second": caption.second} if caption.second else {})

        def shows(seen: tuple[VisibleShape, ...]) -> dict[str, bool]:
            shapes = {thing.shape for thing in seen}
            return {name: named.shape in shapes for name, named in names.items()}

        return self.facts(caption) | self._mixed(shows)

    def worth(self, caption: Caption) -> float:
        """Fraction of a caption's facts that are true of it, each as far as it is."""
        found = self.facts(caption)
        return sum(found.values()) / len(found)


@dataclasses.dataclass(frozen=True)
class RankedPictures:
    """Captions with pictures of the four `ORIGINS` and how good each is.

    Attributes:
        pictures: in [0, 1].
        shown: what is in each picture.
        captions: the captions.
    """

    pictures: Float[Tensor, "n 4 3 side side"]
    shown: list[tuple[PictureContent, ...]]
    captions: list[Caption]

    @functools.cached_property
    def worth(self) -> Float[Tensor, "n 4"]:
        """Fraction of the caption's facts that are true of each picture."""
        return torch.tensor(
            [
                [each.worth(caption) for each in four]
                for caption, four in zip(self.captions, self.shown, strict=True)
            ]
        )

    def rows(self, rows: Sequence[int]) -> RankedPictures:
        """Some of the captions."""
        return RankedPictures(
            self.pictures[torch.tensor(rows)],
            [self.shown[i] for i in rows],
            [self.captions[i] for i in rows],
        )

    def joined(self, other: RankedPictures) -> RankedPictures:
        """These captions, then others."""
        return RankedPictures(
            torch.cat([self.pictures, other.pictures]),
            self.shown + other.shown,
            self.captions + other.captions,
        )


def is_held_out(caption: Caption) -> bool:
    """Whether a caption is kept for measuring, a fixed property of its text."""
    return hashlib.sha256(str(caption).encode()).digest()[0] % _HELD_OUT == 0


def words_tokenizer() -> BertTokenizer:
    """BERT's tokenizer with the captions' words and the two tokens BLIP adds."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[DEC]", "[ENC]"]
    with tempfile.TemporaryDirectory() as folder:
        content = "\n".join(words) + "\n"
        (Path(folder) / "vocab.txt").write_text(content, encoding="utf-8")
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def build(seed: int) -> ImageReward:
    """An untrained reward of 0.6 million parameters; the caller's random state is left alone."""
    tokenizer = words_tokenizer()
    config = ImageRewardConfig(
        vision=TransformerSize(width=96, hidden=192, layers=3, heads=4),
        text=TransformerSize(width=96, hidden=192, layers=3, heads=4),
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
        # BLIP's initial deviations, 1e-10 for what it sees, suit its widths; here signals would
        # vanish
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(model.vision.embeddings.position_embedding, std=_PLACE)
        return model


def make_ranked_pictures(settings: RewardTraining) -> RankedPictures:
    """Captions and pictures, a function of the seed and the model."""
    rng, generator = random.Random(settings.seed), torch.Generator().manual_seed(settings.seed)
    captions = [draw_caption(rng) for _ in range(settings.captions)]
    pipe = pipeline(settings.model)
    right, wrong = _draw_right(captions, generator), _draw_wrong(captions, rng, generator)
    from_wrong = torch.rand(settings.captions, generator=generator) < 0.5
    original = torch.where(from_wrong[:, None, None, None], wrong.pictures, right.pictures)
    blurred = torch.cat([reconstruct(pipe, part) for part in original.split(256)])
    sampled = sample(
        pipe,
        [str(caption) for caption in captions],
        settings.guidance,
        generator,
        settings.sampling_steps,
    )
    shown = [
        (
            right.shown[i],
            wrong.shown[i],
            (wrong if from_wrong[i] else right).shown[i],
            PictureContent(seen),
        )
        for i, seen in enumerate(find_shapes(sampled))
    ]
    return RankedPictures(
        torch.stack([right.pictures, wrong.pictures, blurred, sampled], 1), shown, captions
    )


def draw_ranked_pictures(count: int, generator: torch.Generator) -> RankedPictures:
    """Captions that are not held out, with pictures drawn for the occasion: two as asked and two
    with something wrong.
    """
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    drawn = (draw_caption(rng) for _ in itertools.count())
    captions = list(
        itertools.islice((caption for caption in drawn if not is_held_out(caption)), count)
    )
    wrong = [_draw_wrong(captions, rng, generator) for _ in range(2)]
    made = [_draw_right(captions, generator), *wrong, _draw_right(captions, generator)]
    shown = list(zip(*(each.shown for each in made), strict=True))
    return RankedPictures(torch.stack([each.pictures for each in made], 1), shown, captions)


@dataclasses.dataclass(frozen=True)
class _Drawings:
    pictures: Float[Tensor, "n 3 side side"]
    shown: list[PictureContent]


def _draw_right(captions: list[Caption], generator: torch.Generator) -> _Drawings:
    scenes = arrange(captions, generator)
    return _Drawings(draw(scenes), [PictureContent(scenes.seen(i)) for i in range(len(captions))])


def _draw_wrong(
    captions: list[Caption], rng: random.Random, generator: torch.Generator
) -> _Drawings:
    """Pictures on the way from what the captions say to something wrong, half of them all of the
    way.
    """
    state = generator.get_state()
    first = arrange(captions, generator)
    generator.set_state(state)  # what the captions leave open is the same at both ends
    second = arrange([_with_error(caption, rng) for caption in captions], generator)
    share = (2 * torch.rand(len(captions), generator=generator)).clamp(max=1)
    shown = [
        PictureContent(first.seen(i), second.seen(i), float(share[i])) for i in range(len(captions))
    ]
    return _Drawings(draw_between(first, second, share), shown)


def pairs(worth: Float[Tensor, "n 4"]) -> Int[Tensor, "pairs 3"]:
    """Rows (caption, better picture, worse picture) of every pair that differs enough in worth for
    anyone to see.
    """
    found = [
        (i, a, b)
        for i, values in enumerate(worth.tolist())
        for a, b in itertools.permutations(range(len(values)), 2)
        if values[a] - values[b] > _VISIBLE
    ]
    return torch.tensor(found).reshape(-1, 3)


def train_reward(settings: RewardTraining) -> dict[str, Any]:
    """Train, save, measure; what was measured."""
    data = make_ranked_pictures(settings)
    parts = {
        kept: [i for i, caption in enumerate(data.captions) if is_held_out(caption) == kept]
        for kept in (False, True)
    }
    model = build(settings.seed)
    trained = _fit(model, data.rows(parts[False]), settings)
    _standardise(model, data.rows(parts[False]))
    replace_folder(settings.out, model.save)
    measured = measure(model, data.rows(parts[True])) | {
        "ranked right for prompts": for_prompts(model, settings),
        "training": dataclasses.asdict(trained),
        "seed": settings.seed,
    }
    update(settings.quality, "reward", measured, "python -m sd_experiments.tiny.train_reward")
    return measured


def _fit(model: ImageReward, data: RankedPictures, settings: RewardTraining) -> TrainingSummary:
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
        ranking = disagreement(rewards, settings.certainty * _worth_of_pictures(batch, index))
        bent = _bend(model, prepared, asked, rewards[:, : prepared.shape[1]], generator)
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


def _batch(
    data: RankedPictures, settings: RewardTraining, generator: torch.Generator
) -> RankedPictures:
    """Captions of the data, then others with pictures that were drawn for the occasion."""
    rows = torch.randint(
        len(data.captions), (settings.batch - settings.fresh,), generator=generator
    )
    return data.rows(rows.tolist()).joined(draw_ranked_pictures(settings.fresh, generator))


def add_noise(
    pictures: Float[Tensor, "n 4 3 side side"], largest: float, generator: torch.Generator
) -> Float[Tensor, "n 4 3 side side"]:
    """Pictures with Gaussian noise, whose standard deviation is uniform between 0 and the largest
    for each picture.
    """
    deviation = largest * torch.rand(*pictures.shape[:2], 1, 1, 1, generator=generator)
    return pictures + deviation * torch.randn(pictures.shape, generator=generator)


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


def disagreement(
    rewards: Float[Tensor, "n pictures"], known: Float[Tensor, "n pictures"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of preferences between a caption's pictures under two rewards; least if
    they differ by a constant.
    """
    a, b = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1)
    preferred = torch.sigmoid(known[:, a] - known[:, b])
    return F.binary_cross_entropy_with_logits(rewards[:, a] - rewards[:, b], preferred)


def _bend(
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
    return (_rewards(model, blends, asked) - expected).square().mean()


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


def answers(
    batch: RankedPictures, index: Int[Tensor, "captions pictures"]
) -> Float[Tensor, "captions pictures questions"]:
    """How far each of `QUESTIONS` is to be answered by yes for each caption and picture; NaN where
    the caption does not ask it.
    """
    flat = list(itertools.chain(*batch.shown))
    found = [
        [flat[j].answers(caption) for j in row]
        for caption, row in zip(batch.captions, index.tolist(), strict=True)
    ]
    return torch.tensor(
        [[[each.get(name, math.nan) for name in QUESTIONS] for each in row] for row in found]
    )


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


def comparison_index(
    captions: int, others: int, generator: torch.Generator
) -> Int[Tensor, "captions pictures"]:
    """Numbers of the pictures each caption of a batch is compared with: its own four, and some of
    all.
    """
    own = torch.arange(4 * captions).view(captions, 4)
    return torch.cat([own, torch.randint(4 * captions, (captions, others), generator=generator)], 1)


def _worth_of_pictures(
    batch: RankedPictures, index: Int[Tensor, "captions pictures"]
) -> Float[Tensor, "captions pictures"]:
    flat = list(itertools.chain(*batch.shown))
    return torch.tensor(
        [
            [flat[j].worth(caption) for j in row]
            for caption, row in zip(batch.captions, index.tolist(), strict=True)
        ]
    )


def _rewards(
    model: ImageReward, prepared: Tensor, tokens: PromptTokens
) -> Float[Tensor, "n pictures"]:
    """Rewards of every picture of each caption."""
    n, each = prepared.shape[:2]
    return model.score(prepared.flatten(0, 1), tokens.repeated(each)).view(n, each)


@torch.no_grad()
def _standardise(model: ImageReward, data: RankedPictures) -> None:
    """Make the rewards of the tiny model's own pictures have mean 0 and standard deviation 1, as
    ImageReward does.
    """
    rewards = _all_rewards(model, data)[:, ORIGINS.index("sampled")]
    mean, deviation = float(rewards.mean()), float(rewards.std())
    model.config = dataclasses.replace(model.config, mean=mean, deviation=deviation)


def _all_rewards(model: ImageReward, data: RankedPictures) -> Float[Tensor, "n 4"]:
    """Rewards of all pictures, a few captions at a time."""
    tokens = model.tokens([str(caption) for caption in data.captions])
    parts = zip(data.pictures.split(64), tokens.ids.split(64), tokens.mask.split(64), strict=True)
    return torch.cat(
        [
            _rewards(model, model.prepare(x.flatten(0, 1)).view(x.shape), PromptTokens(ids, mask))
            for x, ids, mask in parts
        ]
    )


@torch.no_grad()
def measure(model: ImageReward, data: RankedPictures) -> dict[str, Any]:
    """How many pairs of captions it never saw come out right, overall and by the origins of the two
    pictures.
    """
    require(len(data.captions) > 0, "no caption is held out; draw more captions.")
    rewards = _all_rewards(model, data)
    i, better, worse = pairs(data.worth).unbind(1)
    right = (rewards[i, better] > rewards[i, worse]).double()
    among = {
        f"{ORIGINS[a]} / {ORIGINS[b]}": (
            ((better == a) & (worse == b)) | ((better == b) & (worse == a))
        )
        for a, b in itertools.combinations(range(len(ORIGINS)), 2)
    }
    good, bad = rewards[data.worth == 1], rewards[data.worth < 1]
    return {
        "held-out captions": len({str(caption) for caption in data.captions}),
        "held-out pairs": len(right),
        "ranked right": float(right.mean()),
        "ranked right by origin": {
            name: float(right[these].mean()) for name, these in among.items() if these.any()
        },
        "mean reward of right pictures": float(good.mean()),
        "mean reward of wrong pictures": float(bad.mean()),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def for_prompts(model: ImageReward, settings: RewardTraining) -> dict[str, float]:
    """How many pairs of a right and a wrong picture that the tiny model drew for one of `PROMPTS`
    come out right.
    """
    pipe, generator = pipeline(settings.model), torch.Generator().manual_seed(settings.seed)
    found = {}
    for skill, prompt in PROMPTS.items():
        pictures = sample(
            pipe, [prompt] * _PER_PROMPT, settings.guidance, generator, settings.sampling_steps
        )
        stated = check_captions(pictures, [parse_caption(prompt)] * _PER_PROMPT)
        right = torch.tensor([each[FACT_OF_SKILL[skill]] for each in stated])
        with torch.no_grad():
            rewards = model(pictures, prompt)
        found[prompt] = float((rewards[right][:, None] > rewards[~right]).double().mean())
    return found


def _with_error(caption: Caption, rng: random.Random) -> Caption:
    """Something near a caption: colours, shapes, number or place may differ."""
    near = _ERRORS.drawn(caption, rng)
    if rng.random() < _WRONG_SHAPE:
        others = [shape for shape in SHAPES if shape != near.first.shape]
        near = dataclasses.replace(
            near, first=dataclasses.replace(near.first, shape=rng.choice(others))
        )
    if near.second is not None and rng.random() < _SWAPPED:
        near = dataclasses.replace(near, first=near.second, second=near.first)
    return near


def main() -> None:
    """Train, save, measure."""
    torch.set_num_threads(1)
    measured = train_reward(tyro.cli(RewardTraining, description=__doc__))
    print(
        f"ranks {measured['ranked right']:.1%} of {measured['held-out pairs']} held-out pairs right"
    )


if __name__ == "__main__":
    main()
