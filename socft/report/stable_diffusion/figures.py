"""The pictures of the Stable Diffusion report, each a function from records to SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from socft.report.figures import LOOKS, Look, draw, finish, legend, logarithmic, panels, svg
from socft.report.rows import Rows, Series
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

GREY = Look("0.6", ":", "o")
SMOOTHED = 4
"""Rounds of a moving average."""


def methods_of(rows: Rows) -> list[str]:
    """The methods in the order of the study, the pre-trained model first."""
    found = rows.fields("estimator")
    return sorted(
        found,
        key=lambda name: (
            name != MethodName.PRE_TRAINED,
            name != MethodName.PI_FT,
            found.index(name),
        ),
    )


def look_of(methods: Sequence[str], method: str) -> Look:
    """How a method is drawn everywhere."""
    tuned = [name for name in methods if name != MethodName.PRE_TRAINED]
    return GREY if method == MethodName.PRE_TRAINED else LOOKS[tuned.index(method) % len(LOOKS)]


def final(rows: Rows, metric: Metric, prompt: str, method: str, beta: float | None) -> Rows:
    """What a finished model reached; the pre-trained one does not depend on the KL weight."""
    found = rows.where(metric, prompt, method).having("beta")
    return found if method == MethodName.PRE_TRAINED or beta is None else found.where(beta=beta)


def reached(rows: Rows, beta: float) -> bytes:
    """Reward and accuracy of every method on every prompt, with two standard errors."""
    prompts, methods = rows.fields("problem"), methods_of(rows)
    with panels(1, 2, 3.1) as (figure, axes):
        for ax, metric in zip(axes, (Metric.REWARD, Metric.ACCURACY), strict=True):
            for place, method in enumerate(methods):
                look, shift = (
                    look_of(methods, method),
                    0.8 * (place / max(1, len(methods) - 1) - 0.5),
                )
                found = [final(rows, metric, prompt, method, beta).one() for prompt in prompts]
                kept = [
                    (i + shift, r.value, 2 * (r.stderr or 0.0))
                    for i, r in enumerate(found)
                    if r is not None
                ]
                if kept:
                    x, y, error = zip(*kept, strict=True)
                    ax.errorbar(
                        x,
                        y,
                        error,
                        color=look.color,
                        marker=look.marker,
                        linestyle="",
                        elinewidth=0.8,
                        label=method,
                    )
            if finish(ax, metric if metric == Metric.REWARD else "accuracy of the checker", "", ""):
                ax.set_xticks(range(len(prompts)), [_broken(prompt) for prompt in prompts])
        legend(figure, axes, 4, methods)
        return svg(figure)


def sweep(rows: Rows, prompt: str) -> bytes:
    """Gradient norm, reward and KL of PI-FT against rounds, one curve per KL weight."""
    found = rows.where(problem=prompt, estimator=MethodName.PI_FT)
    with panels(1, 3, 2.3) as (figure, axes):
        for ax, metric in zip(axes, (Metric.GRADIENT_NORM, Metric.REWARD, Metric.KL), strict=True):
            for look, beta in zip(LOOKS, found.distinct("beta"), strict=False):
                draw(
                    ax,
                    smooth(found.where(metric, beta=beta).series("round")),
                    look,
                    rf"$\beta = {beta:g}$",
                )
            _finish(
                ax,
                {Metric.GRADIENT_NORM: "gradient norm", Metric.REWARD: "reward", Metric.KL: "KL"}[
                    metric
                ],
            )
        _logarithmic(axes[0])
        legend(figure, axes, 6)
        return svg(figure)


def training(rows: Rows, beta: float) -> bytes:
    """Reward of every method against rounds, one panel per prompt."""
    prompts, methods = rows.fields("problem"), methods_of(rows)
    with panels(2, 2, 3.8) as (figure, axes):
        for ax, prompt in zip(axes, prompts, strict=False):
            for method in methods:
                line = smooth(rows.where(Metric.REWARD, prompt, method, beta=beta).series("round"))
                draw(ax, line, look_of(methods, method), method)
            _finish(ax, prompt, "reward")
        legend(figure, axes, 3, methods)
        return svg(figure)


def noise(rows: Rows, prompt: str, beta: float) -> bytes:
    """Norm of the gradient, its noise, and the largest target control, of the methods that regress
    on targets.
    """
    methods = methods_of(rows)
    names = {
        Metric.GRADIENT_NORM: "gradient norm",
        Metric.GRADIENT_NOISE: "gradient noise",
        Metric.TARGET_NORM: "largest target control",
    }
    with panels(1, 3, 2.4) as (figure, axes):
        for ax, (metric, title) in zip(axes, names.items(), strict=True):
            for method in methods:
                line = smooth(rows.where(metric, prompt, method, beta=beta).series("round"))
                draw(ax, line, look_of(methods, method), method)
            _finish(ax, title)
            _logarithmic(ax)
        legend(figure, axes, 3, methods)
        return svg(figure)


def smooth(line: Series) -> Series:
    """Moving average over `SMOOTHED` rounds."""
    starts = range(max(0, len(line.x) - SMOOTHED + 1))
    return Series(
        tuple(math.fsum(line.x[i : i + SMOOTHED]) / SMOOTHED for i in starts),
        tuple(math.fsum(line.y[i : i + SMOOTHED]) / SMOOTHED for i in starts),
    )


def _finish(axes: Axes, title: str, y: str = "") -> None:
    """Labels of a panel against rounds."""
    if finish(axes, title, "rounds", y):
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _logarithmic(axes: Axes) -> None:
    if axes.lines and min(min(line.get_ydata()) for line in axes.lines) > 0:  # type: ignore[arg-type]
        logarithmic(axes)


def _broken(prompt: str) -> str:
    """A prompt in two lines."""
    words = prompt.split()
    half = (len(words) + 1) // 2
    return " ".join(words[:half]) + "\n" + " ".join(words[half:])
