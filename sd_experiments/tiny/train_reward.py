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
import itertools
from typing import Any

import torch
import tyro
from jaxtyping import Float
from torch import Tensor, nn
from transformers import BertTokenizer

from sd_experiments.manifest import replace_folder
from sd_experiments.reward.image_reward import ImageReward, PromptTokens, tokenizer_of
from sd_experiments.reward.sizes import ImageRewardConfig, TransformerSize
from sd_experiments.tiny import PROMPTS, pipeline
from sd_experiments.tiny.captions import FACT_OF_SKILL, WORDS, parse_caption
from sd_experiments.tiny.checker import check_captions
from sd_experiments.tiny.quality import sample, update
from sd_experiments.tiny.ranked_pictures import (
    ORIGINS,
    RankedPictures,
    is_held_out,
    make_ranked_pictures,
    pairs,
)
from sd_experiments.tiny.reward_settings import RewardTraining
from sd_experiments.tiny.reward_stages import fit, rewards_of
from socft.checks import require

_PLACE = 0.5  # deviation of a place's embedding at first, about that of a patch's
_PER_PROMPT = 192  # pictures


def words_tokenizer() -> BertTokenizer:
    """BERT's tokenizer with the captions' words and the two tokens BLIP adds."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "[DEC]", "[ENC]"]
    return tokenizer_of(words)


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


def train_reward(settings: RewardTraining) -> dict[str, Any]:
    """Train, save, measure; what was measured."""
    data = make_ranked_pictures(settings)
    parts = {
        kept: [i for i, caption in enumerate(data.captions) if is_held_out(caption) == kept]
        for kept in (False, True)
    }
    model = build(settings.seed)
    trained = fit(model, data.rows(parts[False]), settings)
    _standardise(model, data.rows(parts[False]))
    replace_folder(settings.out, model.save)
    measured = measure(model, data.rows(parts[True])) | {
        "ranked right for prompts": for_prompts(model, settings),
        "training": dataclasses.asdict(trained),
        "seed": settings.seed,
    }
    update(settings.quality, "reward", measured, "python -m sd_experiments.tiny.train_reward")
    return measured


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
            rewards_of(model, model.prepare(x.flatten(0, 1)).view(x.shape), PromptTokens(ids, mask))
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


def main() -> None:
    """Train, save, measure."""
    torch.set_num_threads(1)
    measured = train_reward(tyro.cli(RewardTraining, description=__doc__))
    print(
        f"ranks {measured['ranked right']:.1%} of {measured['held-out pairs']} held-out pairs right"
    )


if __name__ == "__main__":
    main()
