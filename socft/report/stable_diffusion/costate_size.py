"""What makes costates large on Stable Diffusion: a section of its report, from the records of
``socft sd costate-size``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.ticker import MaxNLocator

from socft.report.figures import LOOKS, draw, finish, legend, logarithmic, panels, svg
from socft.report.gradient_variance.cells import plain, value
from socft.report.rows import Rows, Series
from socft.report.typeset import NOT_MEASURED, Table, figure, integer, number, text
from socft.study.vocabulary.metrics import Metric

PICTURE = "adjoints.svg"
NOISE = 2.0
"""Standard errors below which an agreement is called noise."""
RANKS = {
    Metric.RANK_CORRELATION: "deviation of rewards",
    Metric.RANK_CORRELATION_EVEN: "its part even in the noise",
}
STAGES = (0.0, 0.75)
"""Shares of the chain at which rank correlations are told."""
TITLES = {"top": "the tenth of the paths with the largest costates", "rest": "other paths"}


def section(rows: Rows) -> str:
    """The section, without a heading."""
    if not rows:
        return f"{NOT_MEASURED} (`socft sd costate-size`)"
    prompt = rows.fields("problem")[0]
    picture = figure(
        PICTURE,
        f"""Costates and undecided pictures along the chain, pre-trained model: growth of a
            costate's norm over a step (geometric mean) and standard deviation of the rewards of
            continuations from the same state on fresh noise, both for “{text(prompt)}”; rank
            correlation over the paths between the norm of the costate and that deviation, and (the
            control) its part that is even in the noise, mean over the prompts.""",
        "adjoints-figure",
        "Three panels against sampling steps: growth, deviation of rewards, rank correlation.",
    )
    return rf"""
The lean costate of a path is a sample of the gradient of $V_k (x) = bb(E)[r(X_T) | X_k = x]$, so it
should be large where a little noise decides what the picture becomes. To test this, every state of
{_paths(rows)} paths was continued on fresh noise many times. {_verdict(rows, prompt)}

{_control(rows)} Leaving out the largest losses, as is often done, leaves paths with large costates
out altogether.

{picture}

{limits(rows)}

Guidance makes the chain another one: @guidance says what it does to pictures and costates.

{guidance(rows)}
"""


def limits(rows: Rows) -> str:
    """What a limit of the target controls does to gradients."""
    body: list[Sequence[str]] = []
    limited = rows.having("limit")
    for prompt in limited.fields("problem"):
        found = limited.where(Metric.AGREEMENT, prompt)
        body.append([text(prompt)])
        for record in found:
            limit = record.setting["limit"]
            share, fidelity = (
                rows.where(metric, prompt, limit=limit).one()
                for metric in (Metric.LIMITED, Metric.FIDELITY)
            )
            cells = [
                value(record),
                *(number(each.value if each else None) for each in (fidelity, share)),
            ]
            body.append(["none" if limit is None else plain(limit), *cells])
    if not body:
        return ""
    batches = integer(max(record.seeds for record in limited))
    table = Table(
        header=("limit", "cosine between batches", "cosine with no limit", "part limited"),
        rows=body,
        caption=f"""Gradients of {batches} batches of paths at the pre-trained model, with the norm
            of $beta$ times a target control limited, in units of the reward per unit of noise: mean
            cosine between two batches, cosine between the mean gradient of all batches and the one
            without a limit, and the part of the target controls that was scaled down.""",
        label="limits",
        align="lrrr",
        long=True,
    )
    return f"""
A single such path can decide the direction of a gradient. @limits measures it: the mean cosine
between the gradients of two batches of paths, at the pre-trained model, which is 1 if all batches
say the same. Scaling target controls down to a limit keeps their direction, and what it costs is a
bias: how far it turns the mean gradient of the same paths, their noise included, is in the table.

{table.markup}
"""


def directions(rows: Rows) -> str:
    """Whether estimators point where the policy gradient does, for the section on stability;
    nothing if that was not measured.
    """
    measured = rows.having("after").where(Metric.AGREEMENT)
    if not measured:
        return ""
    stages = measured.distinct("after")
    body: list[Sequence[str]] = []
    for prompt in measured.fields("problem"):
        body.append([text(prompt)])
        for method in measured.fields("estimator"):
            cells = [
                cell
                for after in stages
                for cell in _direction(rows.where(None, prompt, method, after=after))
            ]
            body.append([text(method), *cells])
    batches = integer(max(record.seeds for record in measured))
    return Table(
        header=(
            "",
            *(f"{what}, {_when(after)}" for after in stages for what in ("own", "with PI-FT")),
        ),
        rows=body,
        caption=f"""Cosines of gradients at the pre-trained model and after some steps of adjoint
            matching, {batches} batches of paths for each method, target controls limited as in
            training. Own: mean cosine between two batches. With PI-FT: cosine between what a method
            and PI-FT estimate, with the noise of both removed, where there is more than noise.""",
        label="directions",
        align="l" + "r" * 2 * len(stages),
        long=True,
    ).markup


def _direction(rows: Rows) -> tuple[str, str]:
    """How far a method's gradients agree, and where they point if that is more than noise."""
    own, cosine = (rows.where(metric).one() for metric in (Metric.AGREEMENT, Metric.ALIGNMENT))
    noise = (
        own is None or cosine is None or (own.stderr is not None and own.value < NOISE * own.stderr)
    )
    return value(own), "only noise" if noise else value(cosine)


def _when(after: int) -> str:
    return "pre-trained" if after == 0 else f"after {after} steps"


def _paths(rows: Rows) -> str:
    return integer(max(record.seeds for record in rows.where(Metric.RANK_CORRELATION)))


def _verdict(rows: Rows, prompt: str) -> str:
    """Where along the chain the two go together, and which steps add to a costate."""
    early, late = (_ranks(rows, Metric.RANK_CORRELATION, share) for share in STAGES)
    told = (
        "Over the paths of a prompt the rank correlation of the deviation of their rewards with"
        f" the norm of the costate is {early} at the first step, where every picture is about as"
        f" undecided, and {late} three quarters on."
    )
    top, rest = (_growth(rows, prompt, part) for part in TITLES)
    growing = [int(k) + 1 for k, factor in zip(rest.x, rest.y, strict=True) if factor > 1]
    if not growing:
        return told
    return (
        f"{told} For “{text(prompt)}” costates grow, backwards, over steps {growing[0]} to"
        f" {growing[-1]} of {integer(len(rest.x))}, where it is settled what will be drawn, by a"
        f" factor of up to {number(max(top.y))} a step, and shrink over the others."
    )


def _control(rows: Rows) -> str:
    """Whether the correlation outlives the first order in the noise, in which it is none of the
    picture's doing.
    """
    told = (
        "That by itself shows little: to first order in the noise the deviation _is_ the norm of a"
        " costate, whatever the picture, and late in the chain little noise is left. The control is"
        " the deviation of the part of the reward that is even in the noise, from pairs of opposite"
        " noises, which has no first order."
    )
    if not rows.where(Metric.RANK_CORRELATION_EVEN):
        return f"{told} It is {NOT_MEASURED}."
    late, early = (_ranks(rows, Metric.RANK_CORRELATION_EVEN, share) for share in STAGES[::-1])
    return (
        f"{told} Its rank correlation with the costate is {late} three quarters on, {early} at the"
        " first step."
    )


def _ranks(rows: Rows, metric: Metric, share: float) -> str:
    """Rank correlations after a share of the chain, from the least to the largest of a prompt."""
    found = []
    for prompt in rows.where(metric).fields("problem"):
        steps = sorted(rows.where(metric, prompt).distinct("step"))
        found += rows.where(metric, prompt, step=steps[int(share * len(steps))])
    found.sort(key=lambda record: record.value)
    least, most = found[0], found[-1]
    return value(least) if least is most else f"{value(least)} to {value(most)}"


def _mean_rank(rows: Rows, metric: Metric) -> Series:
    """The mean over the prompts."""
    lines = [rows.where(metric, each).series("step") for each in rows.fields("problem")]
    values = [sum(y) / len(y) for y in zip(*(line.y for line in lines), strict=True)]
    return Series(lines[0].x, tuple(values))


def _growth(rows: Rows, prompt: str, part: str) -> Series:
    line = rows.where(Metric.LOG_GROWTH, prompt, part=part).series("step")
    return Series(line.x, tuple(math.exp(y) for y in line.y))


def picture(rows: Rows) -> bytes:
    """Growth and undecidedness of the first prompt, mean rank correlations of all."""
    prompts = rows.fields("problem")
    with panels(1, 3, 2.5) as (drawing, axes):
        for look, (part, title) in zip(LOOKS, TITLES.items(), strict=False):
            for prompt in prompts[:1]:
                draw(axes[0], _growth(rows, prompt, part), look, title)
                draw(
                    axes[1],
                    rows.where(Metric.UNDECIDED, prompt, part=part).series("step"),
                    look,
                    title,
                )
        for look, (metric, title) in zip(LOOKS[len(TITLES) :], RANKS.items(), strict=False):
            if rows.where(metric):
                draw(axes[2], _mean_rank(rows, metric), look, title)
        for ax, title in zip(
            axes, ("growth of the costate", "deviation of rewards", "rank correlation"), strict=True
        ):
            if finish(ax, title, "step", ""):
                ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if axes[1].lines:
            logarithmic(axes[1])
        legend(drawing, axes, 3)
        return svg(drawing)


def guidance(rows: Rows) -> str:
    """Pictures and costates at every scale of guidance."""
    columns = [
        ("last", 0.5),
        ("last", 1.0),
        ("first", 0.5),
        ("first", 1.0),
        ("growth", 0.5),
        ("growth", 1.0),
    ]
    body: list[Sequence[str]] = []
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        for scale in rows.where(problem=prompt).distinct("guidance"):
            here = rows.where(problem=prompt, guidance=scale)
            cells = [
                here.where(Metric.ADJOINT, at=at, quantile=quantile).one()
                for at, quantile in columns
            ]
            worth = [value(here.where(metric).one()) for metric in (Metric.REWARD, Metric.ACCURACY)]
            body.append(
                [plain(scale), *worth, *(number(cell.value if cell else None) for cell in cells)]
            )
    return Table(
        header=(
            "guidance",
            "reward",
            "accuracy",
            "last, median",
            "last, largest",
            "first, median",
            "first, largest",
            "growth, median",
            "growth, largest",
        ),
        rows=body,
        caption="""The pre-trained model under classifier-free guidance: its pictures, and the norm
            of the lean costate after the last step (the gradient of the reward), at the first step,
            and the quotient of the two.""",
        label="guidance",
        align="lrrrrrrrr",
        long=True,
    ).markup
