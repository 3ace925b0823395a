"""The tables of the Stable Diffusion report, each a function from records to markup."""

from __future__ import annotations

from collections.abc import Sequence

from socft.records import Record
from socft.report.gradient_variance_cells import plain, value
from socft.report.rows import Rows
from socft.report.stable_diffusion_figures import DPOK, PI_FT, PRETRAINED, final, methods_of
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text

BELIEVED = 4.0
"""Standard errors beyond which a difference is called one."""


def reached(rows: Rows, beta: float) -> str:
    """Every method on every prompt."""
    body: list[Sequence[str]] = []
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        for method in methods_of(rows):
            metrics = ("reward", "reward_gain", "kl", "accuracy", "accuracy_gain", "diversity")
            found = {m: final(rows, m, prompt, method, beta).one() for m in metrics}
            cost = found["reward"]
            tuned = method != PRETRAINED
            body.append(
                [
                    text(method),
                    *map(value, found.values()),
                    number(cost.seconds) if tuned and cost is not None and cost.seconds is not None else "",
                    number(cost.peak_mb) if tuned and cost is not None and cost.peak_mb is not None else "",
                ]
            )
    return Table(
        header=("", "reward", "gain", "KL", "accuracy", "gain", "diversity", "seconds", "peak MB"),
        rows=body,
        caption=f"""Every method after the same number of sampled trajectories, $beta =$ {text(f"{beta:g}")}; all models draw from
            the same noise, and gains are over the pre-trained model's picture from it. Errors are those over the pictures
            of one training. Seconds are those of the whole run, peak memory that of its process.""",
        label="reached",
        align="lrrrrrrrr",
        long=True,
    ).markup


def ahead_in_trainings(rows: Rows, metric: str, beta: float) -> tuple[int, int]:
    """In how many pairs of trainings, one of each method and numbered alike, PI-FT has more than DPOK, and of how many."""
    pairs = [
        (mine, theirs)
        for prompt in rows.fields("problem")
        for mine, theirs in zip(*(_trainings(rows, metric, prompt, name, beta) for name in (PI_FT, DPOK)), strict=True)
    ]
    return sum(mine.value > theirs.value for mine, theirs in pairs), len(pairs)


def _trainings(rows: Rows, metric: str, prompt: str, method: str, beta: float) -> list[Record]:
    """What every training of a method reached, the first one before its repetitions."""
    first = final(rows, metric, prompt, method, beta)
    return [*first, *rows.where(metric, prompt, method, beta=beta).having("beta", "training")]


def repeated(rows: Rows, beta: float) -> str:
    """PI-FT and DPOK, every training from another seed; nothing if there was but one."""
    if not rows.having("beta", "training"):
        return ""
    body: list[Sequence[str]] = []
    for prompt in rows.fields("problem"):
        body.append([text(prompt)])
        for method in (PI_FT, DPOK):
            columns = [_trainings(rows, metric, prompt, method, beta) for metric in ("reward_gain", "accuracy_gain", "kl")]
            body.append([text(method), *(", ".join(number(record.value, 2) for record in column) for column in columns)])
    return Table(
        header=("", "gain in reward", "gain in accuracy", "KL"),
        rows=body,
        caption=f"""PI-FT and DPOK trained again from other seeds: what every training reached, $beta =$ {text(f"{beta:g}")}; all
            draw from the same noise.""",
        label="repeated",
        align="lrrr",
    ).markup


def sweep(rows: Rows, prompt: str) -> str:
    """PI-FT at every KL weight."""
    found = rows.where(problem=prompt, estimator=PI_FT).having("beta")
    body = []
    for beta in found.distinct("beta"):
        mine = [found.where(metric, beta=beta).one() for metric in ("reward", "kl", "accuracy", "diversity")]
        body.append([plain(beta), *map(value, mine)])
    return Table(
        header=(r"$beta$", "reward", "KL", "accuracy", "diversity"),
        rows=body,
        caption=f"PI-FT on “{text(prompt)}” at several KL weights.",
        label="sweep",
        align="lrrrr",
    ).markup


def fallen(rows: Rows, method: str, beta: float) -> list[str]:
    """The prompts on which a method's run ends below its best by more than noise."""
    return [record.problem for record in rows.where("drop", estimator=method, beta=beta) if _is_drop(record)]


def _is_drop(record: Record) -> bool:
    return record.stderr is not None and record.value > BELIEVED * record.stderr


def drops(rows: Rows, beta: float) -> str:
    """Runs and how far they end below their best, with what their targets did."""
    body = []
    for method in methods_of(rows):
        found = rows.where("drop", estimator=method, beta=beta)
        if not found:
            continue
        worst = max(found, key=lambda record: record.value / (record.stderr or 1.0))
        growth = rows.where("target_growth", worst.problem, method, beta=beta).one()
        body.append(
            [
                text(method),
                text(worst.problem),
                value(worst),
                "yes" if _is_drop(worst) else "no",
                number(growth.value if growth else None),
            ]
        )
    return Table(
        header=("method", "worst prompt", "best minus last", "beyond noise", "growth of targets"),
        rows=body,
        caption=f"""How far the reward at the end of a run lies below the best of the same run, both averaged over a few rounds;
            beyond noise means more than {integer(BELIEVED)} standard errors. Growth is that of the largest target control, end over
            beginning.""",
        label="drops",
        align="llrlr",
    ).markup


def targets(rows: Rows, prompt: str, beta: float) -> str:
    """How heavy the tails of the target controls are."""
    columns = [(at, quantile) for at in ("last", "first") for quantile in (0.5, 0.9, 1.0)]
    body = []
    for method in methods_of(rows):
        found = rows.where("target", prompt, method, beta=beta)
        cells = [found.where(at=at, quantile=quantile).one() for at, quantile in columns]
        if any(cells):
            body.append([text(method), *(number(cell.value if cell else None) for cell in cells)])
    return Table(
        header=("policy", *(f"{at}, {'largest' if q == 1 else f'{q:.0%}'.replace('%', chr(92) + '%')}" for at, q in columns)),
        rows=body or [[NOT_MEASURED]],
        caption=f"""Norms of the target controls of the last and of the first step over paths of “{text(prompt)}”: quantiles. The
            targets are those of the method itself, under the policy it ended with; the first row has those of PI-FT under no
            control.""",
        label="targets",
        align="lrrrrrr",
    ).markup


def benchmark(rows: Rows) -> str:
    """Time and memory of a gradient step."""
    keys = ("steps", "trajectories", "loss_steps")
    body: list[Sequence[str]] = []
    for method in rows.fields("estimator"):
        body.append([text(method)])
        mine = rows.where("seconds", estimator=method)
        for record in mine:
            memory = rows.where("peak_mb", record.problem, method, **record.setting).one()
            cells = [str(record.setting.get(key, "")) for key in keys]
            body.append(
                [text(record.problem), *cells, value(record), number(memory.value if memory else None), text(record.device)]
            )
    return Table(
        header=("model", "steps", "trajectories", "loss steps", "seconds per gradient", "peak MB", "device"),
        rows=body or [[NOT_MEASURED]],
        caption="""Time and largest memory of a gradient step, sampling and labels included, by the names that configurations give
            to estimators.""",
        label="benchmark",
        align="lrrrrrl",
        long=True,
    ).markup
