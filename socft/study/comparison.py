"""How runs are compared, by a study and by its report: their names, what they may cost, and when
one has fallen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from socft.records import Record
from socft.study.vocabulary.metrics import Metric

GAINS: Mapping[str, Metric] = {
    Metric.REWARD: Metric.REWARD_GAIN,
    Metric.ACCURACY: Metric.ACCURACY_GAIN,
}
"""What a difference from the pre-trained model is called."""
BUDGET = 1_000_000
"""Network evaluations per gradient: 10000 paths of 50 steps with two evaluations each."""
BELIEVED = 4.0
"""Standard errors beyond which a difference is called one."""

LEVEL = 0.05
"""Of a test, or of a family of them together."""


def holm(levels: Sequence[float]) -> list[bool]:
    """Which of a family of tests are rejected at `LEVEL` for all of them together.

    >>> holm([0.04, 0.01, 0.3])
    [False, True, False]
    """
    order = sorted(range(len(levels)), key=levels.__getitem__)
    rejected = [False] * len(levels)
    for place, index in enumerate(order):
        if not levels[index] < LEVEL / (len(levels) - place):
            break
        rejected[index] = True
    return rejected


def gradient_norm_study(reproduction: str) -> str:
    """Name of the study of gradients along the trainings of a reproduction."""
    return reproduction.replace("stable_diffusion", "sd_gradient_norm")


def pilot_study(reproduction: str) -> str:
    """Name of the study of the trainings by which a reproduction chooses learning rates."""
    return f"{reproduction}_pilots"


def picture_of(method: str, prompt: str, beta: float) -> str:
    """File name of the pictures of one run."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{method} {prompt} {beta:g}".lower()) + ".png"


def has_fallen(record: Record) -> bool:
    """Whether a record is that of a run which ended below its best by more than noise."""
    return (
        record.metric == Metric.DROP
        and record.stderr is not None
        and record.value > BELIEVED * record.stderr
    )
