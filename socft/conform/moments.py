"""Identities of means, standard deviations, steps and levels."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from socft.conform.comparison import (
    MANY,
    POINT,
    STANDARD_ERRORS,
    VARIANCE,
    Comparison,
    model,
    random,
    states,
    tolerance_of,
)
from socft.conform.sampler import Sampler

FINE, LIMIT = (128, 256), 0.02
"""Numbers of steps, and the share of the variance that may be missing in the limit."""


def mean_is_affine(sampler: Sampler) -> Iterator[Comparison]:
    for k in range(sampler.steps):
        x = states(sampler, k)
        output = model(sampler, k, x)
        at = [sampler.mean_at(k, x, output + shift).double() for shift in (0.0, 1.0, 2.0)]
        bend = float((at[0] - 2 * at[1] + at[2]).abs().max())
        size = float((at[1] - at[0]).abs().max()) + 1
        tolerance = tolerance_of(sampler, sampler.mean_at(k, x, output)) * size
        yield Comparison(
            k, bend, 0.0, tolerance, "The mean clips or otherwise bends the model's output."
        )


def std_is_constant(sampler: Sampler) -> Iterator[Comparison]:
    for k in range(sampler.steps):
        x = states(sampler, k)
        one = sampler.std_at(k, x, model(sampler, k, x)).double()
        two = sampler.std_at(k, 2 * x + 1, model(sampler, k, x, 0.5)).double()
        values = torch.cat([one.flatten(), two.flatten()])
        yield Comparison(
            k,
            float(values.max()),
            float(values.min()),
            tolerance_of(sampler, sampler.std_at(k, x, x)) * (1 + float(values.max())),
            "The standard deviation depends on the state or the output; KL divergence and whitened"
            " control assume that it does not.",
        )


def step_has_the_moments(sampler: Sampler) -> Iterator[Comparison]:
    for k in range(sampler.steps):
        x = states(sampler, k, 1, 1).expand(MANY, 1).contiguous()
        output = model(sampler, k, x)
        there = sampler.step_at(k, x, output, random(k))
        mean = float(sampler.mean_at(k, x[:1], output[:1]).double())
        std = float(sampler.std_at(k, x[:1], output[:1]).max())
        slack = tolerance_of(sampler, sampler.step_at(k, x[:1], output[:1], random(k))) * (
            1 + abs(mean)
        )
        error = STANDARD_ERRORS * std / math.sqrt(MANY) + slack
        yield Comparison(
            k,
            float(there.double().mean()),
            mean,
            error,
            "The step's mean is another than the one given: look for an index shifted by one, or"
            " sigmas of another schedule.",
        )
        spread = float(there.double().std())
        yield Comparison(
            k,
            spread,
            std,
            STANDARD_ERRORS * std / math.sqrt(2 * MANY) + slack,
            "The step's noise is another than the one given: look for a missing square root of the"
            " step length, or an index shifted by one.",
        )


def point_masses_keep_marginals(sampler: Sampler) -> Iterator[Comparison]:
    """One step from the exact marginal of data at a point."""
    for k in range(sampler.steps):
        if float(sampler.noise[k]) == 0:
            continue
        a, s, a2, s2 = (
            float(v)
            for v in (
                sampler.signal[k],
                sampler.noise[k],
                sampler.signal[k + 1],
                sampler.noise[k + 1],
            )
        )
        x = torch.tensor([[a * POINT], [a * POINT + s]], dtype=torch.float64)
        output = sampler.of_point(k, x, POINT)
        there = sampler.mean_at(k, x, output).double()
        std = float(sampler.std_at(k, x, output).max())
        slope = float(there[1] - there[0]) / s
        tolerance = 100 * tolerance_of(sampler, sampler.mean_at(k, x, output))
        yield Comparison(k, float(there[0]), a2 * POINT, tolerance, _OTHER_LEVEL)
        found, first = slope**2 * s**2 + std**2, abs(s2 - s) * (1 + s)
        yield Comparison(k, found, s2**2, tolerance + first**2 * 4, _OTHER_NOISE)


_OTHER_LEVEL = (
    "A step from data known exactly does not reach the next level's signal: the levels given are"
    " not those that the step uses, or its index is shifted by one."
)
_OTHER_NOISE = (
    "A step from data known exactly is far from the next level's noise, further than an Euler step"
    " may be: look for a wrong noise level, a missing step length, or a shifted index."
)


def refinement_converges(sampler: Sampler) -> Iterator[Comparison]:
    """The final variance on a Gaussian must tend to that of the data: its limit from two numbers of
    steps, with an error of order 1/T.
    """
    coarse, fine = (_variance_error(sampler.refined_to(steps)) for steps in FINE)
    limit = 2 * fine - coarse
    yield Comparison(
        -1,
        limit,
        0.0,
        LIMIT * VARIANCE,
        f"With ever more steps the final variance tends to one that is off by {limit:.3g} from the"
        f" {VARIANCE} of the data: the noise does not vanish with the step, so refining does not"
        " lead to the data.",
    )


def _variance_error(sampler: Sampler) -> float:
    """What the final variance is more than that of the noised data, for exact velocities."""
    variance = float(sampler.signal[0].square() * VARIANCE + sampler.noise[0].square())
    for k in range(sampler.steps):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        output = model(sampler, k, x)
        there = sampler.mean_at(k, x, output).double()
        std = float(sampler.std_at(k, x, output).max())
        variance = float(there[1] - there[0]) ** 2 * variance + std**2
    return variance - float(sampler.signal[-1].square() * VARIANCE + sampler.noise[-1].square())


def trainer_has_the_levels(sampler: Sampler) -> Iterator[Comparison]:
    found = torch.as_tensor(sampler.training_noise).double()
    if found.shape != sampler.noise.shape:
        yield Comparison(
            -1,
            float(len(found)),
            float(len(sampler.noise)),
            0.5,
            "Trainer and sampler have different numbers of levels: look for one that was cut off.",
        )
        return
    worst = int((found - sampler.noise).abs().argmax())
    yield Comparison(
        worst,
        float(found[worst]),
        float(sampler.noise[worst]),
        1e-12,
        "Trainer and sampler use different sigmas: look for a timestep shift that is applied once,"
        " or by integers in place of numbers.",
    )
