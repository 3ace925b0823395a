"""The pictures of the guidance report, each a function from records to SVG."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from socft.report.figures import LOOKS, draw, finish, legend, panels, reference, svg
from socft.report.rows import Rows, Series
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

ALGORITHMS = (1, 2)
GUIDES = (MethodName.NAIVE, MethodName.LOOK_AHEAD)
FRONTIER = (
    MethodName.NAIVE,
    MethodName.LOOK_AHEAD_PUBLISHED,
    MethodName.UNIVERSAL,
    MethodName.CLASSIFIER,
    MethodName.FINE_TUNED_SCORE,
    MethodName.OPTIMAL_CONTROL,
)
SHOWN = {
    MethodName.LOOK_AHEAD: r"$G_{loss}$",
    MethodName.NAIVE: r"$G$",
    MethodName.LOOK_AHEAD_PUBLISHED: r"$G_{loss}$",
    MethodName.LOOK_AHEAD_EXACT: r"$G_{loss}$, exact strength",
}
DISTANCES = (0.1, 0.2, 0.5, 1.0, 2.0)
SPHERE = (MethodName.NAIVE, MethodName.LOOK_AHEAD, MethodName.UNIVERSAL, MethodName.OPTIMAL_CONTROL)


def rounds(rows: Rows, objective: str, score: str) -> bytes:
    """Reward and off-support ratio of every run on one objective, against rounds."""
    found = rows.where(problem=objective, score=score)
    with panels(1, 2, 2.3) as (figure, axes):
        looks = iter(LOOKS)
        for guide in GUIDES:
            for algorithm in ALGORITHMS:
                mine, look = found.where(estimator=guide, algorithm=algorithm), next(looks)
                label = f"{SHOWN[guide]}, algorithm {algorithm}"
                for ax, metric in zip(axes, (Metric.REWARD, Metric.OFF_SUPPORT), strict=True):
                    draw(ax, mine.where(metric).series("round"), look, label)
        _level(axes[0], rows, objective)
        _finish(axes[0], "mean reward", "rounds", "")
        _finish(axes[1], "mean off-support ratio", "rounds", "", log_y=True)
        legend(figure, axes, 2)
        return svg(figure)


def objectives(rows: Rows, names: Sequence[str]) -> bytes:
    """Value of the objective at the batch's mean under Algorithm 1 with the look-ahead term, beside
    the regularised maximum.
    """
    with panels(1, len(names), 2.1) as (figure, axes):
        for ax, name in zip(axes, names, strict=True):
            found = rows.where(
                problem=name, estimator=MethodName.LOOK_AHEAD, algorithm=1, score="exact"
            )
            draw(
                ax, found.where(Metric.REWARD).series("round"), LOOKS[1], "mean reward of the batch"
            )
            draw(
                ax,
                found.where(Metric.VALUE_AT_MEAN).series("round"),
                LOOKS[0],
                "value at the batch's mean",
            )
            _level(ax, rows, name)
            _finish(ax, _objective(name), "rounds", "")
        legend(figure, axes, 4)
        return svg(figure)


def learnt(rows: Rows, objective: str) -> bytes:
    """Reward and off-support ratio with the exact score and with the network, over the rounds that
    both have.
    """
    last = max(rows.where(Metric.REWARD, objective, score="network").distinct("round"), default=0)
    with panels(1, 2, 2.3) as (figure, axes):
        for index, guide in enumerate(GUIDES):
            for shift, score in enumerate(("exact", "network")):
                found = rows.where(problem=objective, estimator=guide, algorithm=1, score=score)
                for ax, metric in zip(axes, (Metric.REWARD, Metric.OFF_SUPPORT), strict=True):
                    line = found.where(metric).series("round")
                    kept = [(x, y) for x, y in zip(line.x, line.y, strict=True) if x <= last]
                    cut = Series(tuple(x for x, _ in kept), tuple(y for _, y in kept))
                    draw(ax, cut, LOOKS[2 * index + shift], f"{SHOWN[guide]}, {score} score")
        _finish(axes[0], "mean reward", "rounds", "")
        _finish(axes[1], "mean off-support ratio", "rounds", "", log_y=True)
        legend(figure, axes, 2)
        return svg(figure)


def frontier(rows: Rows, spread: str) -> bytes:
    """Reward against divergence, and against distance from the data, of one guided pass by every
    method.
    """
    with panels(1, 2, 2.5) as (figure, axes):
        for method, look in zip(FRONTIER, LOOKS, strict=False):
            for ax, metric in zip(
                axes, (Metric.FRONTIER_KL, Metric.FRONTIER_DISTANCE), strict=True
            ):
                line = _paired(
                    rows.where(problem=spread, estimator=method), metric, Metric.FRONTIER_REWARD
                )
                draw(ax, line, look, SHOWN.get(method, method), 5)
        _finish(axes[0], "mean reward", "KL divergence", "", log_x=True)
        _finish(axes[1], "mean reward", "distance from the subspace", "", log_x=True)
        for ax in axes:
            ax.set_ylim(0.5, 10.2)
        axes[0].set_xlim(1e-2, 1e4)
        axes[1].set_xticks(DISTANCES, [f"{x:g}" for x in DISTANCES])
        axes[1].minorticks_off()
        axes[1].set_xlim(DISTANCES[0], DISTANCES[-1])
        legend(figure, axes, 3)
        return svg(figure)


def sphere(rows: Rows) -> bytes:
    """On the sphere: reward against divergence, and distance from the sphere against reward, by
    every method.
    """
    found, last = (
        rows.where(problem=ProblemName.SPHERE),
        max(rows.where(Metric.OFF_SPHERE, ProblemName.SPHERE).distinct("round"), default=0),
    )
    with panels(1, 2, 2.4) as (figure, axes):
        for method, look in zip(SPHERE, LOOKS, strict=False):
            mine = found.where(estimator=method)
            if method in GUIDES:
                reward, off, kl = (
                    mine.where(m, round=last).series("delta")
                    for m in (Metric.REWARD, Metric.OFF_SPHERE, Metric.KL)
                )
            else:
                reward, off, kl = (
                    mine.where(m).series("knob")
                    for m in (
                        Metric.FRONTIER_REWARD,
                        Metric.FRONTIER_OFF_SPHERE,
                        Metric.FRONTIER_KL,
                    )
                )
            draw(axes[0], Series(kl.y, reward.y), look, SHOWN.get(method, method), 8)
            draw(axes[1], Series(reward.y, off.y), look, SHOWN.get(method, method), 8)
        start = found.where(Metric.OFF_SPHERE, round=0).largest()
        if start is not None:
            reference(axes[1], (0.0, 0.95), (start, start), label="pre-trained")
        _finish(axes[0], "mean reward", "KL divergence", "", log_x=True)
        _finish(axes[1], r"mean $|\,|x| - 1\,|$", "mean reward", "")
        axes[1].set_ylim(bottom=0)
        legend(figure, axes, 5)
        return svg(figure)


def _paired(mine: Rows, x: Metric, y: Metric) -> Series:
    """One metric against another along the knob."""
    left, right = mine.where(x).series("knob"), mine.where(y).series("knob")
    return Series(left.y, right.y) if left.x == right.x else Series((), ())


def _level(ax: Axes, rows: Rows, objective: str) -> None:
    """Where the published targets lead the mean, and the maximum on the subspace."""
    if not ax.lines:
        return
    right = max(float(x) for line in ax.lines for x in line.get_xdata())  # type: ignore[union-attr]
    for metric, label, color in (
        (Metric.REGULARISED_VALUE, "regularised maximum", "0.35"),
        (Metric.MAXIMUM, "maximum", "#D55E00"),
    ):
        value = rows.where(metric, objective).largest()
        if value is not None:
            reference(ax, (0.0, right), (value, value), color, label)


def _objective(name: str) -> str:
    kind, which = name.split()
    symbol = {"f1": "$f_1$", "f2": "$f_2$"}[kind]
    return (
        f"{symbol}, "
        + {
            "off": "off the subspace",
            "on": "in the subspace",
            "ones": "$b = 4$",
            "random": "random $b$",
        }[which]
    )


def _finish(ax: Axes, title: str, x: str, y: str, log_x: bool = False, log_y: bool = False) -> None:
    if not finish(ax, title, x, y):
        return
    if log_x:
        ax.set_xscale("log")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
    if log_y:
        ax.set_yscale("log")
