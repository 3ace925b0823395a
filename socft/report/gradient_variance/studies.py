"""The tables of training, of the linear-quadratic sweeps and of the suite of arXiv 2312.02027."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.gradient_variance.cells import (
    NONE,
    UNTIMED,
    beside,
    ends,
    in_italics,
    missing,
    pivot,
    plain,
    settings,
    title,
    value,
    varying,
    without,
)
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

SUITE_TEXT = """The test problems of #link("https://arxiv.org/abs/2312.02027")[2312.02027], trained
with the losses of path measures and with adjoints: as many gradient steps for all, so not at equal
cost, and at one rate per problem, which decides what moves away from the optimum: a method that
diverges at it may converge at another. Tables are by kind. The _effective share_ of weighted paths
is the square of the weights' sum over the number of paths times the sum of their squares. In _SOCM,
M = I_ the learnt matrices that the publication weights costates with are left at the identity."""


SWEEPS_TEXT = """The costate of a controlled oscillator at time 0 is learnt from paths with linear
features, along the axes of
#link("https://arxiv.org/abs/2410.04615")[2410.04615] and others. The policy is _given_, the chain's
optimum; _iterated_, from the costate of the round before; or _published_, the same with a costate
one step too early. All numbers are mean-square errors against the costate of continuous time."""


def training_text(rows: Rows) -> str:
    """What the chapter on training shows."""
    found = rows.of(schemas.TRAINING)
    rates = (
        ", ".join(f"${float(rate):g}$" for rate in found.where(Metric.PILOT_GAP).distinct("rate"))
        or NOT_MEASURED
    )
    seeds = max((record.seeds for record in found), default=None)
    apart = all("pilot" in record.setting for record in found.where(Metric.PILOT_GAP))
    pilots = "none of the repetitions'" if apart else "that of the first repetition"
    return f"""Every estimator trains the same policies with Adam, until it has spent the same
number of network evaluations: one with a dearer gradient takes fewer steps. Its rate is the best of
{rates} in a pilot run, whose seed is {pilots}. {edges(found)} Means and
standard errors are of {integer(seeds)} repetitions. The objective
is exact at every point of a curve. Gradient noise is the variance of the estimate from one path in
units of the squared gradient at the start, target noise the mean-square distance of the targets
from their conditional mean, relative to that mean. Gradient bias, on the linear-quadratic problem,
is the distance of the mean estimate from the exact gradient of the objective at the trained policy,
in units of the gradient at the start; the noise that is taken off it is its standard error, and a
bias of less than that counts as none. Of $J^* - J$, _bias_ is what the policies of all repetitions
have in common, from bias and from stopping early, and _noise_ what comes from their scatter."""


def edges(found: Rows) -> str:
    """Whose best rate was the least or the largest tried, so that another may be better."""
    said = []
    for problem in found.where(Metric.PILOT_GAP).fields("problem"):
        pilots = found.where(Metric.PILOT_GAP, problem)
        for name in pilots.fields("estimator"):
            mine = [r for r in pilots.where(estimator=name) if math.isfinite(r.value)]
            rates = sorted(record.setting["rate"] for record in mine)
            best = min(mine, key=lambda record: record.value).setting["rate"] if mine else None
            if len(rates) > 1 and best in (rates[0], rates[-1]):
                said.append(f"{text(name)} on {text(problem)} (${best:g}$)")
    return f"On the edge of what was tried is the rate of {'; '.join(said)}." if said else ""


ENDS = (
    Metric.OBJECTIVE_GAP,
    Metric.BIAS_GAP,
    Metric.NOISE_GAP,
    Metric.REWARD,
    Metric.KL,
    Metric.WASSERSTEIN1,
    Metric.WASSERSTEIN2,
    Metric.MMD,
    Metric.GRADIENT_BIAS,
    Metric.GRADIENT_NOISE,
    Metric.TARGET_NOISE,
)
"""What is told of the end of a training."""


def training(rows: Rows, problem: str) -> str:
    """Where training ends, one table per kind."""
    found = ends(rows.of(schemas.TRAINING).where(problem=problem), "iteration")
    metrics = [metric for metric in ENDS if found.where(metric)]
    tables = []
    for kind in Kind:
        mine = found.filter(lambda record, kind=kind: record.kind == kind)
        body = [row for name in mine.fields("estimator") if (row := _trained(mine, name, metrics))]
        if found and not body:
            continue
        tables.append(
            Table(
                header=(
                    "estimator",
                    *(TRAINING.get(metric, title(metric)) for metric in metrics),
                    "steps",
                    "rate",
                ),
                rows=body or [missing(3)],
                caption=f"Training on {text(problem)}, kind _{kind}_: the end of the budget, with"
                " standard errors over seeds.",
                label=f"training-{problem}-{list(Kind).index(kind)}",
                align="l" + "r" * (len(metrics) + 2),
            ).markup
        )
    return "\n\n".join(tables)


def _trained(found: Rows, name: str, metrics: Sequence[Metric]) -> Sequence[str] | None:
    cells = [found.where(metric, estimator=name).one() for metric in metrics]
    first = next((cell for cell in cells if cell is not None), None)
    if first is None:
        return None
    return (
        text(name),
        *(NONE if cell is None else value(cell) for cell in cells),
        *_schedule(first),
    )


PARTS: Mapping[Metric, str] = {
    Metric.CLASS_GAP: "for its features",
    Metric.KERNEL_GAP: "for kernels that move means only",
    Metric.DISCRETISATION_GAP: "for discrete time, which can be a gain",
    Metric.MEMORY_GAP: "for what the start says of the end",
}
"""What each part of an error is for."""


def split(rows: Rows, problem: str) -> str:
    """Whose error is it: the parts that no estimator can help, in a sentence."""
    found = rows.of(schemas.TRAINING).where(problem=problem)
    gains = [(told, found.where(metric).one()) for metric, told in PARTS.items()]
    given = ", ".join(
        f"{told} {NOT_MEASURED if record is None else number(record.value)}"
        for told, record in gains
    )
    return f"""On {text(problem)} the objective of the best policy that can be trained is this much
below that of the tilt of the pre-trained law, whatever the estimator, and in this order:
{given}."""


TRAINING: Mapping[str, str] = {
    Metric.BIAS_GAP: r"of it \ bias",
    Metric.NOISE_GAP: r"of it \ noise",
    Metric.GRADIENT_BIAS: r"gradient \ bias",
    Metric.GRADIENT_NOISE: r"gradient \ noise",
    Metric.TARGET_NOISE: r"target \ noise",
}


def _schedule(record: Record) -> Sequence[str]:
    return tuple(
        plain(record.setting[key]) if key in record.setting else NONE
        for key in ("iteration", "rate")
    )


SWEEPS: Mapping[str, str] = {
    "dt": "dt",
    "exponential": "dt",
    "iteration": "dt",
    "limit": "dt",
    "limit-horizon": "horizon",
    "paths": "paths",
    "horizon": "horizon",
    "noise": "noise",
    "damping": "damping",
    "dimension": "d",
}
"""What varies along an axis of the sweeps."""
BASE = "base"
THROUGH_BASE = ("paths", "horizon", "noise", "damping", "dimension")
"""The axes that go through the base point, which is measured once."""


AXES: Mapping[str, str] = {
    "dt": "step size, noise in all directions",
    "exponential": "step size, exponential integrator",
    "iteration": "step size",
    "paths": "number of paths",
}
KEYS: Mapping[str, str] = {
    "dt": "Delta t",
    "paths": "N",
    "d": "d",
    "horizon": '"horizon"',
    "noise": '"noise"',
    "damping": '"damping"',
}
"""How settings of the sweeps are called."""


def sweeps(rows: Rows) -> str:
    """The tables of the linear-quadratic sweeps: for infinitely many paths, and for finitely
    many.
    """
    study = rows.of(schemas.LQ_SWEEPS)
    found = without(
        study.filter(lambda record: record.metric in (Metric.MSE, Metric.LIMIT_MSE)), UNTIMED
    )
    parts = (
        _integrators(study),
        *_limits(found.where(Metric.LIMIT_MSE)),
        offsets(study.where(Metric.LIMIT_OFFSET_FACTOR)),
        _sampled(found.where(Metric.MSE)),
    )
    return "\n\n".join(filter(None, parts)) or NOT_MEASURED


INTEGRATED = (
    ("costate at time 0, running and final cost", Metric.INTEGRATOR_MSE, True),
    ("costate at time 0, final cost only", Metric.INTEGRATOR_MSE, False),
    ("mean reward without control, relative", Metric.WEAK_ERROR, False),
)


def _integrators(study: Rows) -> str:
    """Errors of every integrator against the step size, nothing sampled."""
    found, body = study.where(axis="integrator"), []
    steps = found.distinct("dt")
    if not steps:
        return ""
    for told, metric, running in INTEGRATED:
        here = found.where(metric, running_cost=running)
        body.append((told,))
        body += [
            (text(name), *(value(here.where(integrator=name, dt=dt).one(), 2) for dt in steps))
            for name in dict.fromkeys(record.setting["integrator"] for record in here)
        ]
    return Table(
        header=("integrator", *(_named("dt", dt) for dt in steps)),
        rows=body,
        caption="""What the integrator alone is responsible for: the mean-square distance of the
            optimal costate of the chain from that of continuous time, and the error of the mean
            reward. Below $10^(-20)$ it is rounding. A running cost is charged at the start of a
            kernel, which keeps even a second-order integrator at first order.""",
        label="sweep-integrators",
        align="l" + "r" * len(steps),
        long=True,
    ).markup


def offsets(found: Rows) -> str:
    """Why the time-reversed costate diverges at a long step, in a sentence."""
    if not found:
        return ""
    here = found.where(horizon=_commonest(found, "horizon"))
    factors = [(dt, here.where(dt=dt).one()) for dt in here.distinct("dt")]
    told = ", ".join(
        f"{number(record.value)} at ${KEYS['dt']} = {dt:g}$"
        for dt, record in factors
        if record is not None
    )
    return f"""With finitely many paths the offset of a costate is sampling error, and with the
published index every round of the time-reversed costate multiplies it, in the end, by {told}; above
1 offsets grow for ever while gains settle. The published errors stand in both tables."""


def _sampled(found: Rows) -> str:
    """A row for every setting and a column for every scheme, grouped by what varies and by the
    policy.
    """
    schemes = found.fields("estimator")
    if not schemes:
        return ""
    body: list[Sequence[str]] = []
    for axis, policy in dict.fromkeys(
        (record.setting["axis"], record.setting["policy"]) for record in found
    ):
        if axis == BASE:
            continue
        here, key = found.where(axis=axis, policy=policy), SWEEPS[axis]
        if axis in THROUGH_BASE:
            here = Rows((*here, *found.where(axis=BASE)))
        body.append((f"{text(AXES.get(axis, axis))}; the policy is {text(policy)}",))
        for each in here.distinct(key):
            records = [here.where(estimator=name, **{key: each}).one() for name in schemes]
            body.append((_named(key, each), *(value(record, 2) for record in records)))
            body += beside(records, "published", 2)
    usual = ", ".join(_named(key, _commonest(found, key)) for key in KEYS if found.distinct(key))
    return Table(
        header=("", *(text(name).replace(" ", '"; \\ #"', 1) for name in schemes)),
        rows=body,
        caption=f"Finitely many paths: {usual}, but for what varies{in_italics(found)}.",
        label="sweeps",
        align="l" + "r" * len(schemes),
        long=True,
    ).markup


def _named(key: str, each: Any) -> str:
    return f"${KEYS[key]} = {each:g}$"


def _commonest(found: Rows, key: str) -> Any:
    values = [record.setting[key] for record in found if key in record.setting]
    return max(dict.fromkeys(values), key=values.count)


def _limits(found: Rows) -> list[str]:
    """For infinitely many paths: against the step size on the commonest horizon, and against the
    horizon.
    """
    if not found.distinct("horizon"):
        return []
    usual = _commonest(found, "horizon")
    others = found.filter(lambda record: record.setting.get("horizon") != usual)
    steps = others.distinct("dt")
    title = "Infinitely many paths, published policy"
    tables = [_sweep(found.where(horizon=usual), "limit", f"{title}, horizon {plain(usual)}")]
    return tables + [
        _sweep(found.where(dt=dt), "limit-horizon", rf"{title}, $Delta t = {dt:g}$")
        for dt in steps[:1]
    ]


def _sweep(found: Rows, axis: str, caption: str) -> str:
    key = SWEEPS[axis]
    columns = found.distinct(key)
    return Table(
        header=("scheme", *(_named(key, each) for each in columns)),
        rows=pivot(found, key, columns, digits=2),
        caption=f"{caption}{in_italics(found)}.",
        label=f"sweep-{axis}",
        align="l" + "r" * len(columns),
        long=True,
    ).markup


def socm(rows: Rows) -> str:
    """Where the estimators end on every problem of the suite, one table per kind."""
    found = rows.of(schemas.SOCM)
    for key in ("iteration", "index"):
        found = ends(found, key)
    tables = []
    for kind in dict.fromkeys((*Kind, *found.fields("kind"))):
        mine = found.filter(lambda record, kind=kind: record.kind == kind)
        if mine:
            tables.append(_ended(mine, kind))
    return "\n\n".join(tables) or NOT_MEASURED


def suite_verdict(rows: Rows) -> str:
    """Who ends nearest to the optimal control on every problem, and who further from it than the
    pre-trained model.
    """
    found = rows.of(schemas.SOCM).where(Metric.CONTROL_L2)
    lines = []
    for problem in found.fields("problem"):
        here = found.where(problem=problem)
        start, last = here.where(iteration=0).smallest(), ends(here, "iteration")
        known = sorted(
            (record.value, record.estimator) for record in last if math.isfinite(record.value)
        )
        if start is not None and known:
            worse = [name for error, name in known if error > start]
            beyond = (
                f"; further away than the pre-trained model: {', '.join(map(text, worse))}"
                if worse
                else ""
            )
            lines.append(
                f"- {text(problem)}: nearest to the optimal control ends"
                f" {text(known[0][1])}{beyond}"
            )
    return "\n".join(lines) or NOT_MEASURED


def _ended(mine: Rows, kind: str) -> str:
    shown, body = mine.metrics, []
    for problem in mine.fields("problem"):
        body.append((text(problem),))
        body += _endings(mine.where(problem=problem), shown)
    return Table(
        header=("estimator", *map(title, shown)),
        rows=body,
        caption=f"Suite of SOCM, kind _{text(kind)}_: the end of training.",
        label=f"socm-{re.sub('[^a-z]+', '-', kind.lower())}",
        align="l" + "r" * len(shown),
        long=True,
    ).markup


def _endings(mine: Rows, shown: Sequence[str]) -> list[Sequence[str]]:
    """A row per estimator and combination of settings."""
    keys = varying(mine, (*UNTIMED, "iteration", "index"))
    groups: dict[tuple[str, str], dict[str, str]] = {}
    for record in mine:
        about = settings(record, [key for key in keys if key in record.setting])
        groups.setdefault((record.estimator, about), {})[record.metric] = value(record)
    return [
        (
            text(name) + (f" ({about})" if about else ""),
            *(cells.get(metric, NONE) for metric in shown),
        )
        for (name, about), cells in groups.items()
    ]
