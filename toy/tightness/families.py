"""The families of instances that are searched."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from socft.checks import require
from toy.tightness.measurements import (
    measure_bend,
    measure_line,
    measure_linear,
    measure_one_step,
    measure_pair,
    measure_quadratic,
)
from toy.tightness.search import Family, Point, Samples
from verify.smoothed_curvature import Pair
from verify.support.factors import Factor
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.rewards import ScalarReward, Slope
from verify.support.scores import TanhScore
from verify.support.staircase import OneStep, Staircase, clipped
from verify.support.strategies import PseudoHuber, Sine, Softplus

FAR, NARROW = 60.0, 0.05
"""Half-width of a jump's plateaus, and least width of a stair, in units of sigma."""


def _one_step(point: Point, value: Staircase) -> OneStep:
    """At the smallest weight that the constants admit."""
    largest = max(abs(x) for x in value.curvatures)
    require(largest > 0, f"the levels {value.levels} are all zero; give one that is not.")
    unit = Staircase(value.knots, tuple(x / largest for x in value.levels))
    return OneStep((1 - point.lam) / point.bounds().curvature(unit.slopes[1], 1.0, 1.0), unit)


def _clip(sign: int) -> Family:
    return Family(
        f"clipped slope, {'convex' if sign > 0 else 'concave'}",
        {"log corner": (-2.0, 8.0)},
        ((7.6,), (2.0,), (0.0,)),
        lambda point, x: _one_step(point, clipped(1.0, math.exp(x["log corner"]), sign=sign).value),
        measure_one_step,
    )


def _stairs(x: Mapping[str, float], first: str = "") -> Staircase:
    """Three stairs; widths are given by their logarithms."""
    widths = [max(math.exp(x[f"{first}w{i}"]), NARROW) for i in range(3)]
    knots = (0.0, widths[0], widths[0] + widths[1], sum(widths))
    return Staircase(knots, tuple(x[f"{first}l{i}"] for i in range(3)))


STAIRS = {f"w{i}": (-2.0, math.log(FAR)) for i in range(3)} | {
    f"l{i}": (-1.0, 1.0) for i in range(3)
}
JUMP = (math.log(FAR), -2.0, math.log(FAR), -1.0, 1.0, 1.0)
BASIN = (2.0, 1.5, 2.0, -1.0, 1.0, 0.0)
ONE_STEP = (
    _clip(1),
    _clip(-1),
    Family(
        "three stairs",
        STAIRS,
        (JUMP, BASIN, (1.0, 1.0, 1.0, 1.0, -1.0, 1.0)),
        lambda point, x: _one_step(point, _stairs(x)),
        measure_one_step,
    ),
)


def _levels(steps: int, first: float, last: float) -> tuple[float, ...]:
    """Signal levels in equal ratios."""
    return tuple(first * (last / first) ** (t / steps) for t in range(steps + 1))


LEVELS = {"first": (0.05, 0.7), "last": (0.75, 0.999)}


def _line(
    reward: Callable[[float, float], ScalarReward], bent: bool
) -> Callable[[Point, Mapping[str, float]], ProductInstance]:
    def build(point: Point, x: Mapping[str, float]) -> ProductInstance:
        score = TanhScore(x["c"], x["b"], x["w"]) if bent else TanhScore(x["c"])
        factor = Factor(score, reward(math.exp(x["log shape"]), x["place"]))
        return ProductInstance(
            levels=_levels(point.T, x["first"], x["last"]), lam=point.lams, factors=(factor,)
        )

    return build


def _lines(
    measured: Callable[[Point, Any, bool], Samples], bending: Sequence[str]
) -> tuple[Family, ...]:
    """Affine scores with every reward, nonlinear scores with some; the starts are the best of
    longer searches at the base point.
    """
    shape, place = {"log shape": (-1.2, 1.6)}, {"place": (-3.0, 3.0)}
    affine = {"c": (-2.0, 1.5)} | LEVELS | shape | place
    bent = {"c": (-2.0, 1.5), "b": (-0.5, 0.5), "w": (0.5, 3.0)} | LEVELS | shape | place
    rewards: dict[str, Callable[[float, float], ScalarReward]] = {
        "sine": lambda shape, place: Sine(1.0, shape, place),
        "softplus": lambda shape, place: Softplus(1.0, shape, place),
        "softplus, concave": lambda shape, place: Softplus(-1.0, shape, place),
        "pseudo-Huber": lambda shape, place: PseudoHuber(shape, place, 1.0),
        "pseudo-Huber, concave": lambda shape, place: PseudoHuber(shape, place, -1.0),
        "linear": lambda *_: Slope(1.0),
    }
    starts = (
        (-0.3, 0.7, 0.8, -0.86, 0.44),
        (0.0, 0.7, 0.9, 0.2, 2.8),
        (-1.13, 0.05, 0.86, -1.2, 1.3),
    )
    out = [
        Family(f"affine score, {name}", affine, starts, _line(reward, False), measured)
        for name, reward in rewards.items()
        if name != "linear"
    ]
    curved = ((-2.0, 0.35, 2.8, 0.06, 0.94, -0.58, -0.3), (0.6, 0.48, 3.0, 0.22, 0.94, 0.24, 0.6))
    out += [
        Family(f"tanh score, {name}", bent, curved, _line(rewards[name], True), measured)
        for name in bending
    ]
    return tuple(out)


def _spread(low: float, high: float, d: int) -> tuple[float, ...]:
    return tuple(torch.linspace(low, high, d, dtype=torch.float64).tolist())


def _quadratic(point: Point, x: Mapping[str, float]) -> QuadraticInstance:
    return QuadraticInstance(
        levels=_levels(point.T, x["first"], x["last"]),
        lam=point.lams,
        score=_spread(x["score"] - x["spread"], x["score"], point.d),
        shift=(0.0,) * point.d,
        curvature=_spread(x["curvature"] * (1 - x["spread"]), x["curvature"], point.d),
        slope=(0.0,) * (point.d - 1) + (1.0,),
    )


QUADRATIC = (
    Family(
        "quadratic reward",
        LEVELS | {"score": (-1.5, 1.0), "spread": (0.0, 1.0), "curvature": (-3.0, 3.0)},
        ((0.4, 0.95, 0.2, 0.1, 1.5),),
        _quadratic,
        measure_quadratic,
    ),
    Family(
        "linear reward",
        LEVELS | {"score": (-1.5, 1.0), "spread": (0.0, 1.0)},
        ((0.3, 0.95, 0.4, 0.0),),
        lambda point, x: _quadratic(point, {**x, "curvature": 0.0}),
        measure_linear,
    ),
)
KINKS = 1e-4


def _two_kinks(_: Point, x: Mapping[str, float]) -> Pair:
    """The slope ``sign(x^2 - r^2)`` with steep steps, along one axis."""
    level, r = 1 / KINKS, x["radius"]
    kinks = Staircase((-r - KINKS, -r + KINKS, r - KINKS, r + KINKS), (-level, 0.0, level))
    return Pair(kinks, Staircase((0.0, 1.0), (0.0,)), math.pi / 2)


PAIRS = (
    Family(
        "two functions at an angle",
        {f"{n}{k}": v for n in "ab" for k, v in STAIRS.items()} | {"angle": (0.1, math.pi / 2)},
        (
            (*JUMP, *JUMP[:3], 0.0, 0.0, 0.0, math.pi / 2),
            (0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0),
        ),
        lambda _, x: Pair(_stairs(x, "a"), _stairs(x, "b"), x["angle"]),
        measure_pair,
    ),
    Family("two kinks", {"radius": (0.2, 3.0)}, ((1.0,),), _two_kinks, measure_pair),
)
GROUPS: dict[str, tuple[Family, ...]] = {
    "one step": ONE_STEP,
    "iterates": _lines(measure_line, ("sine", "softplus")),
    "control": _lines(measure_bend, ("sine", "linear")),
    "optimum": QUADRATIC,
    "smoothing": PAIRS,
}
