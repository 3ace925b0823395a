"""Identities of log probabilities, divergences and likelihood ratios."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from socft.conform.comparison import (
    BATCH,
    MANY,
    NODES,
    SIZE,
    STANDARD_ERRORS,
    Comparison,
    has_noise,
    model,
    noisy,
    normal_quadrature,
    random,
    states,
    tolerance_of,
)
from socft.conform.sampler import Sampler

SHIFT = 0.5
"""Of the other model's output, times the cosine of the state."""


def log_prob_is_normal(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, output, std in noisy(sampler):
        mean = sampler.mean_at(k, x, output).double()
        z = torch.randn(x.shape, generator=random(50 + k), dtype=torch.float64)
        found = sampler.log_prob_at(k, x, mean + std * z, output)
        expected = -(z.square() / 2 + math.log(std) + math.log(2 * math.pi) / 2).sum(1)
        if tuple(found.shape) != tuple(expected.shape):
            yield Comparison(
                k,
                float(found.ndim),
                1.0,
                0.5,
                f"log_prob returned shape {tuple(found.shape)} for {BATCH} samples; it must be"
                f" ({BATCH},), summed over coordinates.",
            )
            continue
        found = found.detach().double()
        worst = int((found - expected).abs().argmax())
        tolerance = tolerance_of(sampler, sampler.log_prob_at(k, x, mean, output)) * (
            1 + float(expected.abs().max()) + float((mean / std).square().max())
        )
        yield Comparison(
            k,
            float(found[worst]),
            float(expected[worst]),
            tolerance,
            _wrong_density(found, z, std),
        )


def _wrong_density(found: Tensor, z: Tensor, std: float) -> str:
    """Which mistake explains a log density, by its slope in the squared noise."""
    square = z.square().sum(1)
    design = torch.stack([square, torch.ones_like(square)], 1)
    slope, offset = torch.linalg.lstsq(design, found[:, None]).solution.flatten().tolist()
    size, constant = z.shape[1], math.log(std) + math.log(2 * math.pi) / 2
    left = float((found - design @ torch.tensor([slope, offset]).double()).abs().max())
    if left > 1e-3 * (1 + float(found.abs().max())):
        return (
            "It is no Gaussian density about the given mean: look for an index shifted by one, or"
            " sigmas that differ between sampling and training."
        )
    if abs(slope + 0.5 / size) < 1e-2 / size:
        return "It is a mean over coordinates and must be a sum: every ratio becomes its root."
    if abs(slope + std**2) < 1e-2 * std**2 and abs(std**2 - 0.5) > 1e-2:
        return "The squared deviation is not divided by 2 std^2."
    if abs(slope + 2 * std**2 * 0.5 / size) < 1e-2 * std**2 / size:
        return "The squared deviation is not divided by 2 std^2, and is averaged over coordinates."
    if abs(slope + 0.5) < 1e-2:
        lacks = "its normaliser" if abs(offset) < 1e-3 else "part of its normaliser"
        return (
            f"It lacks {lacks}, -log std - log(2 pi)/2 per coordinate"
            f" (here {-size * constant:.4g} in all, found {offset:.4g})."
        )
    return (
        f"Its slope in the squared noise is {slope:.4g} in place of -1/2: look for a standard"
        " deviation without the step length, or of another step."
    )


def log_prob_integrates(sampler: Sampler) -> Iterator[Comparison]:
    nodes, w = normal_quadrature()
    z = nodes[:, None]
    for k, _, _, std in noisy(sampler):
        x = states(sampler, k, 1, 1).expand(NODES, 1).contiguous()
        output = model(sampler, k, x)
        there = sampler.mean_at(k, x, output).double() + std * z
        logs = sampler.log_prob_at(k, x, there, output).detach().double().flatten()
        total = (
            float((w * (logs + z[:, 0].square() / 2).exp()).sum()) * std * math.sqrt(2 * math.pi)
        )
        yield Comparison(
            k,
            total,
            1.0,
            100 * tolerance_of(sampler, sampler.log_prob_at(k, x, there, output)),
            "The density does not integrate to one: look for a missing normaliser, a missing"
            " 1/(2 std^2), or a standard deviation of another step.",
        )


def log_prob_is_per_sample(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, output, std in noisy(sampler):
        there = sampler.mean_at(k, x, output).double() + std * torch.randn(
            x.shape, generator=random(70 + k), dtype=torch.float64
        )
        whole = sampler.log_prob_at(k, x, there, output).detach().double().flatten()
        alone = torch.stack(
            [
                sampler.log_prob_at(k, *(v[i : i + 1] for v in (x, there, output)))
                .detach()
                .double()
                .flatten()
                .sum()
                for i in range(BATCH)
            ]
        )
        if whole.shape != alone.shape:
            yield Comparison(k, float(len(whole)), float(BATCH), 0.5, _NOT_PER_SAMPLE)
            continue
        worst = int((whole - alone).abs().argmax())
        tolerance = tolerance_of(sampler, sampler.log_prob_at(k, x, there, output)) * (
            1 + float(alone.abs().max())
        )
        yield Comparison(k, float(whole[worst]), float(alone[worst]), tolerance, _NOT_PER_SAMPLE)


_NOT_PER_SAMPLE = (
    "What it says of one sample depends on the others in the batch: look for a mean or a sum over"
    " the batch, or for levels that are picked by sample in place of by step."
)


def score_identities(sampler: Sampler) -> Iterator[Comparison]:
    """E of the score in the output is 0, and its square is minus the curvature."""
    nodes, w = normal_quadrature()
    z = nodes[:, None]
    for k, _, _, std in noisy(sampler):
        x = states(sampler, k, 1, 1).expand(NODES, 1).contiguous()
        output = model(sampler, k, x).requires_grad_(True)
        with torch.no_grad():
            there = sampler.mean_at(k, x, output).double() + std * z
        with torch.enable_grad():
            logs = sampler.log_prob_at(k, x, there, output)
            if not logs.requires_grad:
                yield Comparison(k, 0.0, math.nan, 1.0, _NO_GRADIENT)
                continue
            (slope,) = torch.autograd.grad(logs.sum(), output, create_graph=True)
            curved = slope.requires_grad
            curvature = (
                torch.autograd.grad(slope.sum(), output)[0] if curved else torch.zeros_like(slope)
            )
        score, bend = (v.detach().double()[:, 0] for v in (slope, curvature))
        square = float((w * score.square()).sum())
        tolerance = 1000 * tolerance_of(sampler, logs) * max(square, 1e-12)
        yield Comparison(k, float((w * score).sum()), 0.0, tolerance**0.5, _OTHER_MEAN)
        yield Comparison(k, square, -float((w * bend).sum()), tolerance + 1e-12, _OTHER_SCALE)


_NO_GRADIENT = "The log probability has no gradient in the output: it is computed under no_grad."
_OTHER_MEAN = "The gradient of log_prob has a mean: it is about another mean than the given one."
_OTHER_SCALE = (
    "The square of log_prob's gradient is not its curvature: it is scaled, as by a mean over"
    " coordinates or a missing 1/(2 std^2)."
)


def kl_is_the_control(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, reference, std in noisy(sampler):
        output = (reference + 0.3).requires_grad_(True)
        with torch.enable_grad():
            found = sampler.kl_at(k, x, output, reference)
        moved = (
            sampler.mean_at(k, x, output.detach()).double()
            - sampler.mean_at(k, x, reference).double()
        )
        expected = (moved.square() / (2 * std**2)).sum(1)
        if found.requires_grad:
            slope = float(torch.autograd.grad(found.sum(), output)[0].abs().max())
            advice = ""
        else:
            slope, advice = 0.0, "The divergence has no gradient: it is computed under no_grad."
        ratio = float(found.detach().double().flatten().mean() / expected.mean())
        yield Comparison(
            k,
            ratio,
            1.0,
            100 * tolerance_of(sampler, found),
            advice or _wrong_divergence(ratio, sampler, k, std),
        )
        yield Comparison(
            k,
            float(slope > 0),
            1.0,
            0.5,
            "The divergence does not depend on the output where it must: it is computed under"
            " no_grad.",
        )


def _wrong_divergence(ratio: float, sampler: Sampler, k: int, std: float) -> str:
    length = abs(float(sampler.noise[k + 1] - sampler.noise[k]))
    for factor, what in (
        (1 / SIZE, "It is a mean over coordinates and must be a sum"),
        (length, "Its variance lacks the step length"),
        (length / SIZE, "It is a mean over coordinates, and its variance lacks the step length"),
        (2 * std**2, "The squared shift is not divided by 2 std^2"),
        (2 * std**2 / SIZE, "The squared shift is not divided by 2 std^2, and is a mean"),
        (2.0, "It lacks the factor 1/2"),
    ):
        if abs(ratio - factor) < 1e-3 * factor:
            return f"{what}: it is {ratio:.4g} times the divergence |v|^2/2 of the step."
    return f"It is {ratio:.4g} times |mean - mean_ref|^2 / (2 std^2)."


def ratio_is_one(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, output, std in noisy(sampler):
        there = sampler.mean_at(k, x, output).double() + std * torch.randn(
            x.shape, generator=random(90 + k), dtype=torch.float64
        )
        for batch in (1, BATCH):
            rows = (v[:batch] for v in (x, there, output, output))
            found = sampler.ratio_at(k, *rows).detach().double()
            worst = float(found.flatten()[(found.flatten() - 1).abs().argmax()])
            yield Comparison(
                k,
                worst,
                1.0,
                tolerance_of(sampler, sampler.ratio_at(k, x, there, output, output)),
                f"With the old model itself and a batch of {batch} the ratio is not one: look for"
                " levels or noises that are picked by sample, and for two code paths.",
            )


def ratio_averages_to_one(sampler: Sampler) -> Iterator[Comparison]:
    for k, x, _, std in noisy(sampler):
        x = states(sampler, k, 1).expand(MANY, SIZE).contiguous()
        old = model(sampler, k, x)
        step = float(
            (sampler.mean_at(k, x[:1], old[:1] + 1) - sampler.mean_at(k, x[:1], old[:1]))
            .abs()
            .max()
        )
        if step == 0:
            continue
        output = old + 0.4 * std / step / math.sqrt(SIZE)  # a KL divergence of 0.08
        z = torch.randn(x.shape, generator=random(110 + k), dtype=torch.float64)
        there = sampler.mean_at(k, x, old).double() + std * z
        found = sampler.ratio_at(k, x, there, output, old).detach().double().flatten()
        error = STANDARD_ERRORS * float(found.std()) / math.sqrt(len(found)) + 1e-6
        root = math.exp(-0.08 * (1 / SIZE - 1 / SIZE**2))
        advice = (
            "It is a root of the likelihood ratio: log probabilities are means over coordinates."
            if abs(float(found.mean()) - root) < error
            else "Under the old model the ratio must average to one: it is no likelihood ratio."
        )
        yield Comparison(k, float(found.mean()), 1.0, error, advice)


def jarzynski_holds(sampler: Sampler) -> Iterator[Comparison]:
    """E exp W = Z, W = r - sum of log ratios along the steps of another model, in two coordinates,
    in which means are no sums.
    """
    start = torch.randn(MANY, 2, generator=random(3), dtype=torch.float64)
    scale = (sampler.signal[0].square() + sampler.noise[0].square()).sqrt()
    loud = [has_noise(sampler, k) for k in range(sampler.steps)]
    totals = []
    for shift in (0.0, SHIFT):
        x, log_ratio = scale * start, torch.zeros(MANY, dtype=torch.float64)
        for k in range(sampler.steps):
            reference = model(sampler, k, x)
            output = reference + shift * torch.cos(x) if loud[k] else reference
            there = sampler.step_at(k, x, output, random(200 + k)).double()
            if shift and loud[k]:
                logs = (sampler.log_prob_at(k, x, there, u) for u in (output, reference))
                new, old = (v.detach().double().flatten() for v in logs)
                log_ratio = log_ratio + new - old
            x = there
        weight = (torch.tanh(x[:, 0]) - log_ratio).exp()
        totals.append((float(weight.mean()), float(weight.std()) / math.sqrt(MANY)))
    (expected, first), (found, second) = totals
    yield Comparison(
        -1,
        found,
        expected,
        STANDARD_ERRORS * math.hypot(first, second),
        "Reweighting by the product of ratios does not give back the pre-trained law: look for log"
        " probabilities of another step, means over coordinates, or a step that is left out.",
    )
