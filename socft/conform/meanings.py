"""Identities of what outputs stand for: endpoints, scores, controls, noise levels and rewards."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from socft.conform.comparison import (
    BATCH,
    SIZE,
    Comparison,
    model,
    noisy,
    normal_quadrature,
    random,
    tolerance_of,
)
from socft.conform.sampler import Sampler

FINE = 128
"""Steps at which a noise level is read off, where they may be chosen."""
SHIFT, FACTOR = 3.0, 2.0
"""What is added to rewards, and what they are multiplied with."""


def endpoints_are_found(sampler: Sampler) -> Iterator[Comparison]:
    for k, endpoint, noise, x in _noised(sampler):
        if float(sampler.signal[k]) == 0 and sampler.prediction == "epsilon":
            continue  # nothing tells the endpoint there
        found = sampler.endpoint_at(k, x, sampler.output(k, endpoint, noise))
        others = {
            "It is the noise and not the endpoint.": noise,
            "The output's sign is wrong: velocities are noise minus endpoint here.": (
                x + sampler.noise[k] * (noise - endpoint)
            ),
        }
        yield _worst(sampler, k, found, endpoint, others, _DIVIDED)


def scores_are_found(sampler: Sampler) -> Iterator[Comparison]:
    for k, endpoint, noise, x in _noised(sampler):
        s = sampler.noise[k]
        found = sampler.score_at(k, x, sampler.output(k, endpoint, noise))
        others = {
            "Its sign is wrong: the score is minus the noise over s.": noise / s,
            "It is not divided by s.": -noise,
            "It is divided by s^2 in place of s.": -noise / s.square(),
        }
        yield _worst(sampler, k, found, -noise / s, others, _DIVIDED)


_DIVIDED = (
    "Look for a division by a signal that is zero at the first level, for levels that are shifted"
    " by one, or for what the model predicts."
)


def _noised(sampler: Sampler) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Levels with noise: number, endpoints, noises, states."""
    for k in range(sampler.steps):
        if float(sampler.noise[k]) > 0:
            endpoint, noise = torch.randn(
                2, BATCH, SIZE, generator=random(30 + k), dtype=torch.float64
            )
            yield k, endpoint, noise, sampler.signal[k] * endpoint + sampler.noise[k] * noise


def _worst(
    sampler: Sampler, k: int, found: Tensor, right: Tensor, others: dict[str, Tensor], advice: str
) -> Comparison:
    """The worst entry, and which of other formulas it would be right for."""
    values = found.detach().double()
    size = 1 + float(right.abs().max())
    tolerance = 100 * tolerance_of(sampler, found) * size
    off = (values - right).abs().nan_to_num(math.inf).flatten()
    place = int(off.argmax())
    for mistake, wrong in others.items():
        if float((values - wrong).abs().max()) < tolerance:
            advice = mistake
    return Comparison(
        k, float(values.flatten()[place]), float(right.flatten()[place]), tolerance, advice
    )


def control_is_whitened(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, reference, std in noisy(sampler):
        output = reference + 0.3
        moved = (
            sampler.mean_at(k, x, output).double() - sampler.mean_at(k, x, reference).double()
        ).detach()
        found = sampler.control_at(k, x, output, reference)
        others = {
            "It is the shift of the mean, not divided by std.": moved,
            "The shift of the mean is divided by std^2 in place of std.": moved / std**2,
            "It is the change of the output, not of the step's mean over its std.": (
                output - reference
            ),
        }
        advice = "Look for another step's std, or for a derivative of another kernel's mean."
        yield _worst(sampler, k, found, moved / std, others, advice)


def noise_level_is_meant(sampler: Sampler) -> Iterator[Comparison]:
    r"""``std^2 = level^2 s^2 |d log(a/s)|``, whatever the interpolant, of which sqrt(2) is the
    memoryless one.
    """
    level = float(sampler.noise_level or 0.0)
    fine = sampler if sampler.refined is None else sampler.refined_to(FINE)
    levels = (fine.signal, fine.noise)
    ratio = (levels[0] / levels[1]).log()
    for k, _, _, std in noisy(fine):
        step = float(ratio[k + 1] - ratio[k])
        if not math.isfinite(step) or step > 0.5:
            continue
        unit = float(levels[1][k] * levels[1][k + 1]) * step
        length = abs(float(levels[1][k + 1] - levels[1][k]))
        yield Comparison(
            k,
            math.sqrt(std**2 / unit),
            level,
            level * 2 * step,
            _other_level(std**2 / unit / level**2, level, length),
            f"its variance is {level**2 / 2:.3g} of the memoryless one's",
        )


def _other_level(ratio: float, level: float, length: float) -> str:
    for factor, what in (
        (1 / length, "The standard deviation lacks the root of the step's length."),
        (length, "The standard deviation has the step's length where its root belongs."),
        (1 / level**2, "The noise level is left out."),
        (0.5, "Its square is half of what it should be: another convention of the noise level."),
        (2.0, "Its square is twice what it should be: another convention of the noise level."),
    ):
        if abs(ratio / factor - 1) < 0.1:
            return what
    return (
        "The noise is another than the level says; where it does not shrink with the step, as"
        " cos(level pi/2) of published code, no level describes it."
    )


def rewards_are_compared(sampler: Sampler) -> Iterator[Comparison]:
    """Advantages of shifted, multiplied and equal rewards."""
    rewards = torch.randn(BATCH, generator=random(60), dtype=torch.float64)
    here = sampler.advantages_of(rewards).double()
    tolerance = (
        100 * tolerance_of(sampler, sampler.advantages_of(rewards)) * (1 + float(here.abs().max()))
    )
    moved = sampler.advantages_of(rewards + SHIFT).double()
    yield Comparison(
        -1,
        float((moved - here).abs().max()),
        0.0,
        tolerance,
        "Advantages change when a constant is added to all rewards: no baseline is subtracted.",
    )
    slope = float(((here - here.mean()) * (rewards - rewards.mean())).sum())
    yield Comparison(
        -1, float(slope > 0), 1.0, 0.5, "Better rewards have smaller advantages: a wrong sign."
    )
    equal = sampler.advantages_of(torch.ones_like(rewards)).double()
    yield Comparison(
        -1,
        float(equal.abs().max()),
        0.0,
        1e-2,
        "Equal rewards have advantages that are not zero: look for a division by a spread of zero"
        " without a floor.",
    )
    factor = float(sampler.advantages_of(FACTOR * rewards).double().norm() / here.norm())
    divided = abs(factor - 1) < abs(factor - FACTOR)
    yield Comparison(
        -1,
        factor,
        1.0 if divided else FACTOR,
        1e-2,
        f"Rewards times {FACTOR:g} have advantages times {factor:.3g}: they are clipped, or the"
        " floor of their spread is not small.",
        "rewards are divided by their spread: a KL weight lambda leaves b = lambda std(r), which"
        " falls as the model concentrates"
        if divided
        else "",
    )


def policy_gradient_holds(sampler: Sampler) -> Iterator[Comparison]:
    """``E R grad log_prob = grad E R`` for the reward |x'|^2, by quadrature over one step."""
    nodes, weights = normal_quadrature()
    for k, _, _, std in noisy(sampler):
        x = torch.full((len(nodes), 1), 0.3, dtype=torch.float64)
        output = model(sampler, k, x).requires_grad_(True)
        with torch.no_grad():
            means = sampler.mean_at(k, x, output).double()
            there = means + std * nodes[:, None]
            slope = sampler.mean_at(k, x, output + 1).double() - means
        with torch.enable_grad():
            logs = sampler.log_prob_at(k, x, there, output)
            if not logs.requires_grad:
                yield Comparison(k, 0.0, math.nan, 1.0, _NO_GRADIENT)
                continue
            (score,) = torch.autograd.grad(logs.sum(), output)
        found = float((weights * there[:, 0].square() * score.double()[:, 0]).sum())
        right = float(2 * means[0] * slope[0])
        size = abs(right) + float(slope.abs().max()) * (1 + std)
        yield Comparison(
            k, found, right, 1000 * tolerance_of(sampler, logs) * size, _partial(found, right)
        )


_NO_GRADIENT = "The log probability has no gradient in the output: it is computed under no_grad."


def _partial(found: float, right: float) -> str:
    ratio = found / right if right else math.inf
    return (
        f"The policy gradient is {ratio:.3g} of the derivative of the mean reward: a part of the"
        " mean is detached in log_prob, or log_prob is scaled."
    )
