"""Pictures of what the objects are: densities, paths, controls, errors, records.

Each object has a method ``plot`` that draws with these on axes of matplotlib, given or new, and
returns them. Matplotlib is imported when something is drawn: ``pip install 'socft[plot]'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import InvalidProblem, require

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.55"
"""Colours that differ for the colour-blind (Okabe and Ito)."""
BINS = 60
DASHED = (0, (4, 2))


def axes_or_new(axes: Axes | None) -> Axes:
    """The axes, or new ones of a figure of their own.

    Raises:
        InvalidProblem: matplotlib is not installed.
    """
    if axes is not None:
        return axes
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise InvalidProblem(
            "plots are drawn by matplotlib, which is not installed; run: pip install 'socft[plot]'"
        ) from error
    return pyplot.subplots(layout="constrained")[1]


def curve(
    axes: Axes,
    x: Float[Tensor, " n"],
    y: Float[Tensor, " n"],
    label: str | None = None,
    color: str = BLUE,
) -> None:
    """A function of one variable."""
    axes.plot(x.tolist(), y.tolist(), label=label, color=color, linewidth=1.6)


def samples(axes: Axes, x: Float[Tensor, "batch d"], label: str | None = None) -> None:
    """Samples: a histogram of one coordinate, points of two.

    Raises:
        InvalidProblem: there are more.
    """
    drawable(x.shape[1:])
    if x.shape[1] == 1:
        axes.hist(x[:, 0].tolist(), BINS, density=True, color=ORANGE, alpha=0.4, label=label)
    else:
        axes.plot(*x.T.tolist(), ".", color=ORANGE, markersize=2, alpha=0.5, label=label)


def density(
    axes: Axes, along: Sequence[Tensor], values: Float[Tensor, " nodes"], label: str | None
) -> None:
    """A density at the nodes of a grid, the last axis fastest: a curve, or contours in the plane.

    Args:
        along: the coordinates along each axis.
    """
    if len(along) == 1:
        curve(axes, along[0], values, label)
        axes.set(xlabel="x", ylabel="density")
        return
    x, y = along
    field = values.reshape(len(x), len(y)).T
    axes.contour(x.tolist(), y.tolist(), field.tolist(), 8, colors=BLUE, linewidths=0.8)
    axes.set(xlabel="first coordinate", ylabel="second coordinate")


def lines(axes: Axes, states: Float[Tensor, "steps_plus_1 batch d"]) -> None:
    """Paths: against their steps in one dimension, in the plane with their ends marked in two.

    Raises:
        InvalidProblem: there are more.
    """
    drawable(states.shape[2:])
    thin = {"color": GREY, "linewidth": 0.5, "alpha": 0.6}
    if states.shape[2] == 1:
        axes.plot(range(len(states)), states[:, :, 0].tolist(), **thin)
        axes.set(xlabel="step k", ylabel="x")
    else:
        axes.plot(states[:, :, 0].tolist(), states[:, :, 1].tolist(), **thin)
        axes.plot(*states[-1].T.tolist(), ".", color=ORANGE, markersize=3, label="after the last")
        axes.set(xlabel="first coordinate", ylabel="second coordinate")


def drawable(dims: Sequence[int]) -> None:
    """Refuse states that are not vectors of one or two numbers.

    Raises:
        InvalidProblem: they are not.
    """
    require(
        tuple(dims) in ((1,), (2,)),
        f"the states have the shape {tuple(dims)}; one or two numbers can be drawn: plot some of"
        " their coordinates.",
    )


def field(axes: Axes, x: Float[Tensor, " n"], values: Float[Tensor, "steps n"], label: str) -> None:
    """A number for every step and state, as colours that are white at zero."""
    steps, size = len(values), float(values.abs().max()) or 1.0
    drawn = axes.pcolormesh(
        range(steps),
        x.tolist(),
        values.T.tolist(),
        cmap="RdBu_r",
        vmin=-size,
        vmax=size,
        shading="nearest",
        rasterized=True,
    )
    axes.figure.colorbar(drawn, ax=axes, label=label)  # pyright: ignore[reportAttributeAccessIssue]
    axes.set(xlabel="step k", ylabel="x")


def arrows(axes: Axes, x: Float[Tensor, "batch 2"], moves: Float[Tensor, "batch 2"]) -> None:
    """Moves of some points in the plane."""
    axes.quiver(*x.T.tolist(), *moves.T.tolist(), color=BLUE, angles="xy", width=0.004)


def measured(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    label: str,
    errors: Sequence[float] | None = None,
    bound: Sequence[float] | None = None,
) -> None:
    """Measured numbers with their standard errors, and dashed what bounds them."""
    (drawn, *_) = axes.errorbar(x, y, errors, label=label, marker="o", markersize=3, capsize=2)
    if bound is not None:
        axes.plot(x, bound, color=drawn.get_color(), linestyle=DASHED, label=f"{label}, bound")


def logarithmic(axes: Axes, values: Mapping[str, Sequence[float]]) -> None:
    """A logarithmic scale where all numbers are positive and far apart."""
    known = [each for numbers in values.values() for each in numbers]
    if known and min(known) > 0 and max(known) > FAR * min(known):
        axes.set_yscale("log")


FAR = 30.0
"""Ratio of the largest to the smallest number from which a scale is logarithmic."""


def line_of(lower: Tensor, upper: Tensor, points: int = 241) -> Float[Tensor, " points"]:
    """Points from one end to the other, a tenth of the way beyond both."""
    margin = 0.1 * float(upper - lower)
    return torch.linspace(float(lower) - margin, float(upper) + margin, points, dtype=torch.float64)
