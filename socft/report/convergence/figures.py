"""The pictures of the convergence report, each a function from records to SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from socft.records import Record
from socft.report.convergence.tables import LICENSED, UNBOUNDED, unbounded
from socft.report.figures import LOOKS, NOT_MEASURED, draw, finish, legend, panels, reference, svg
from socft.report.rows import Rows, Series
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

RULES = {
    "paper iterates": "paper, every iterate",
    "paper": "paper, optimum",
    "sharp iterates": "sharp, every iterate",
    "sharp": "sharp, optimum",
    "one-sided iterates": "one-sided, every iterate",
    "one-sided": "one-sided, optimum",
    "measured": "measured",
}
METHODS = (
    MethodName.EXACT_PI_FT,
    MethodName.MONTE_CARLO_PI_FT_LINEAR,
    MethodName.MONTE_CARLO_PI_FT_NETWORK,
    MethodName.POLICY_GRADIENT_FULL_ADJOINT,
    MethodName.POLICY_GRADIENT_ADJOINT_MATCHING,
)
ROUNDING = 1e-14  # errors below are exact to rounding and have no place on a logarithmic axis
DECADES = 2.5  # a shorter axis needs labels between powers of ten


def beta_required(rows: Rows, problems: Sequence[str], lam: float | None) -> bytes:
    """The KL weight that each rule asks for against the step, one panel per problem."""
    with panels(1, len(problems), 2.2) as (figure, axes):
        for ax, problem in zip(axes, problems, strict=True):
            for (rule, name), look in zip(
                RULES.items(), reversed(LOOKS[: len(RULES)]), strict=True
            ):
                line = rows.where(Metric.BETA_REQUIRED, problem, rule=rule, lam=lam).series("k")
                draw(ax, line, look, name, markers=5)
            _finish(ax, problem, "step $t$", r"required $\beta_t$" if ax is axes[0] else "")
        legend(figure, axes, 3, tuple(RULES.values()))
        return svg(figure)


def error_against_rate(rows: Rows, problems: Sequence[str]) -> bytes:
    """Control error against the number of inner iterations with measured weights, beside the
    guaranteed rate.
    """
    lams = rows.where(Metric.CONTROL_ERROR, rule="measured").distinct("lam")
    with panels(1, len(problems), 2.2) as (figure, axes):
        for ax, problem in zip(axes, problems, strict=True):
            for lam, look in zip(lams, LOOKS, strict=False):
                line = _errors(rows, problem, "measured", lam)
                draw(ax, line, look, rf"$\lambda = {lam:g}$")
                if line:
                    rate = [line.y[0] * (1 - lam) ** (m - line.x[0]) for m in line.x]
                    reference(ax, line.x, rate, look.color)
            _finish(
                ax,
                problem,
                "inner iterations $m$",
                r"$\sup\,|v^{(m)} - v^*|$" if ax is axes[0] else "",
            )
            _clip(ax, [_errors(rows, problem, "measured", lam) for lam in lams])
        legend(figure, axes, 4)
        return svg(figure)


def error_against_bound(rows: Rows, problems: Sequence[str]) -> bytes:
    """Control error with weights that license Theorem 3.1, beside its bound."""
    with panels(1, len(problems), 2.2) as (figure, axes):
        for ax, problem in zip(axes, problems, strict=True):
            found = rows.where(Metric.CONTROL_ERROR, problem)
            looks = iter(LOOKS)
            for rule in LICENSED:
                lams = found.where(rule=rule).distinct("lam")
                for lam in lams:
                    look, name = (
                        next(looks),
                        rule.split()[0] + (rf", $\lambda = {lam:g}$" if len(lams) > 1 else ""),
                    )
                    bound = found.where(rule=rule, lam=lam).series("m", lambda record: record.bound)
                    draw(ax, _errors(rows, problem, rule, lam), look, f"{name}: measured")
                    if bound:
                        reference(ax, bound.x, bound.y, look.color, f"{name}: bound")
            empty = (
                UNBOUNDED
                if any(unbounded(rows, problem, rule) for rule in LICENSED)
                else NOT_MEASURED
            )
            _finish(
                ax,
                problem,
                "inner iterations $m$",
                r"$\sup\,|v^{(m)} - v^*|$" if ax is axes[0] else "",
                empty=empty,
            )
        legend(figure, axes, 4)
        return svg(figure)


def trade_off(rows: Rows, problems: Sequence[str]) -> bytes:
    """Rate, KL and reward of the optimum against a constant beta."""
    with panels(1, 3, 2.1) as (figure, axes):
        for problem, look in zip(problems, LOOKS, strict=False):
            for ax, metric in zip(
                axes, (Metric.CONTRACTION, Metric.KL, Metric.REWARD), strict=True
            ):
                draw(
                    ax,
                    rows.where(metric, problem).having("beta").series("beta"),
                    look,
                    problem,
                    markers=5,
                )
        for ax, title in zip(
            axes, ("rate of PI-FT", "KL from the pre-trained model", "reward"), strict=True
        ):
            _finish(ax, title, r"$\beta$", "", log_y=title != "reward")
            _log_x(ax)
        legend(figure, axes, 3)
        return svg(figure)


def tilt_gaps(rows: Rows, problems: Sequence[str]) -> bytes:
    """Kernel gap of the memoryless schedule and memory gap of both against the number of steps."""
    with panels(1, 2, 2.2) as (figure, axes):
        for problem, look in zip(problems, LOOKS, strict=False):
            kernel = rows.where(Metric.KERNEL_GAP, problem, schedule="memoryless").series("steps")
            draw(axes[0], kernel, look, problem)
            draw(
                axes[1],
                rows.where(Metric.MEMORY_GAP, problem, schedule="constant rate 1").series("steps"),
                look,
                problem,
            )
            none = rows.where(Metric.MEMORY_GAP, problem, schedule="memoryless").series("steps")
            if none:
                axes[1].plot(
                    none.x,
                    none.y,
                    color=look.color,
                    linestyle="none",
                    marker=look.marker,
                    fillstyle="none",
                )
            if kernel:
                slope = [kernel.y[-1] * kernel.x[-1] / steps for steps in kernel.x]
                reference(axes[0], kernel.x, slope, look.color)
        _finish(axes[0], "kernel gap, memoryless schedule", "steps $T$", r"gap in $J$")
        _finish(axes[1], "memory gap", "steps $T$", "")
        for ax in axes:
            _log_steps(ax)
        legend(figure, axes, 3)
        return svg(figure)


def methods(rows: Rows, problem: str) -> bytes:
    """Objective gap of every form of PI-FT against iterations and against time."""
    found = rows.where(Metric.OBJECTIVE_GAP, problem).having("index")
    views: tuple[tuple[str, str, Callable[[Record], float | None]], ...] = (
        ("index", "iterations", lambda record: record.value),
        ("seconds", "seconds", lambda record: record.value if record.seconds else None),
    )
    with panels(1, 2, 2.3) as (figure, axes):
        for ax, (key, label, y) in zip(axes, views, strict=True):
            for method, look in zip(METHODS, LOOKS, strict=False):
                draw(ax, found.where(estimator=method).series(key, y), look, method)
            _finish(ax, "", label, r"$J^* - J$" if ax is axes[0] else "")
            ax.set_ylim(bottom=max(ax.get_ylim()[0], ROUNDING))
        axes[0].set_xscale("symlog", linthresh=1)
        axes[0].set_xlim(left=0)
        _log_x(axes[1])
        legend(figure, axes, 2, METHODS)
        return svg(figure)


def _errors(rows: Rows, problem: str, rule: str, lam: float) -> Series:
    return rows.where(Metric.CONTROL_ERROR, problem, rule=rule, lam=lam).series("m")


def _finish(
    ax: Axes, title: str, x: str, y: str, log_y: bool = True, empty: str = NOT_MEASURED
) -> None:
    if not finish(ax, title, x, y, empty):
        return
    if log_y:
        ax.set_yscale("log", nonpositive="mask")
        ax.yaxis.set_major_locator(LogLocator(numticks=6))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _clip(ax: Axes, lines: Sequence[Series]) -> None:
    """Leave out what the theoretical curves do below the measured ones."""
    measured = [y for line in lines for y in line.y if y > ROUNDING]
    if measured:
        ax.set_ylim(min(measured) / 3, max(measured) * 3)


def _log_x(ax: Axes) -> None:
    """A logarithmic abscissa; one that spans few decades is labelled within them."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    if high < 10**DECADES * low:
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _log_steps(ax: Axes) -> None:
    if ax.lines:
        ax.set_xscale("log", base=2)
        ticks = sorted({float(x) for line in ax.lines for x in line.get_xdata()})  # type: ignore[union-attr]
        ax.set_xticks(ticks, [f"{x:g}" for x in ticks])
        ax.minorticks_off()
