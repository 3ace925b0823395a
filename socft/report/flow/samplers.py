"""The chapter on samplers that are not those of training: text, figure and tables."""

from __future__ import annotations

from collections.abc import Sequence

from scipy.stats import t as student

from socft.records import Record
from socft.report.figures import LOOKS, draw, finish, legend, logarithmic, panels, svg
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, figure, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.predictions import SamplerPrediction
from socft.study.vocabulary.problems import ProblemName

PROBLEMS = {
    ProblemName.FLOW_LINEAR: "Gaussian, $r = x$",
    ProblemName.FLOW_QUADRATIC: "Gaussian, $r = -0.75 x^2 + 0.8 x$",
    ProblemName.FLOW_CENTRED: "$N(0, 1)$, $r = -x^2$",
    ProblemName.FLOW_OVERLAPPING: "overlapping modes, $r = sin x$",
    ProblemName.FLOW_SEPARATED: "separated modes, $r = sin x$",
}
KERNEL = "precise"
MEMORYLESS = 2**0.5
LEVELS = {0.7: "$0.7$", 1.0: "$1$", MEMORYLESS: "$sqrt(2)$", 1.8: "$1.8$"}
TYPESET = {
    SamplerPrediction.ANY_SAMPLER: "trained at the memoryless level, every sampler's law nears the"
    " tilt as $1\\/T$",
    SamplerPrediction.OWN_SAMPLER: "trained at any level, the law of the chain itself nears the"
    " tilt as $1\\/T$",
    SamplerPrediction.COUNTER_EXAMPLE: "it is farther on $N(0, 1)$ with the reward $-x^2$, at every"
    " number of steps",
}
"""Predictions with formulas."""
DOUBT = 0.025
DRAWN = {
    0.7: "trained at 0.7",
    MEMORYLESS: r"trained at $\sqrt{2}$",
    1.8: "trained at 1.8",
}


def picture(rows: Rows) -> bytes:
    """Distances against steps: without noise from the chain that was trained, and of both from the
    tilt.
    """
    shown = (ProblemName.FLOW_QUADRATIC, ProblemName.FLOW_OVERLAPPING, ProblemName.FLOW_CENTRED)
    titles = ("Gaussian", "overlapping modes", "trained without memory")
    with panels(1, 3, 2.4) as (drawing, axes):
        for ax, problem, title in zip(axes[:2], shown, titles, strict=False):
            found = rows.where(Metric.W1_TO_OWN, problem, kernel=KERNEL, used=0.0)
            for (level, label), look in zip(DRAWN.items(), LOOKS, strict=False):
                draw(ax, found.where(trained=level).series("T"), look, label)
            _finish(ax, title, "to the chain")
        for problem, looks in zip((ProblemName.FLOW_OVERLAPPING, shown[2]), (3, 5), strict=True):
            found = rows.where(Metric.W1_TO_TILT, problem, kernel=KERNEL, trained=MEMORYLESS)
            name = "modes" if problem == ProblemName.FLOW_OVERLAPPING else "N(0, 1)"
            for used, how, look in ((MEMORYLESS, "chain", looks), (0.0, "no noise", looks + 1)):
                draw(axes[2], found.where(used=used).series("T"), LOOKS[look], f"{name}, {how}")
        _finish(axes[2], titles[2], "to the tilt")
        legend(drawing, axes, 4)
        return svg(drawing)


def _finish(ax, title: str, what: str) -> None:
    if finish(ax, title, "steps $T$", f"Wasserstein distance {what}"):
        ax.set_xscale("log", base=2)
        logarithmic(ax)


def limits(rows: Rows) -> str:
    """Where the law without noise ends, and what its reward is above the chain's."""
    body: list[Sequence[str]] = []
    for problem, title in PROBLEMS.items():
        mine = rows.where(Metric.REWARD_GAP, problem, kernel=KERNEL, used=0.0)
        for level, shown in LEVELS.items():
            found = mine.where(trained=level).filter(lambda record: "T" in record.setting)
            last = max(found, key=lambda record: record.setting["T"], default=None)
            if last is None:
                continue
            limit = mine.where(trained=level, source="limit").one()
            away = rows.where(
                Metric.W1_TO_OWN,
                problem,
                kernel=KERNEL,
                used=0.0,
                trained=level,
                T=last.setting["T"],
            ).one()
            body.append(
                (
                    title,
                    shown,
                    integer(last.setting["T"]),
                    number(None if away is None else away.value, 2),
                    number(last.value, 2),
                    "–" if limit is None else number(_near_zero(limit.value), 2),
                )
            )
    return Table(
        header=("problem", "trained", "$T$", "$W_1$ to the chain", "reward", "reward, limit"),
        rows=body or [(NOT_MEASURED, *[""] * 5)],
        caption="""Sampled without noise: distance from the law of the chain that was trained, and
            mean reward above that chain's, at the largest number of steps, beside the closed form
            of the limit. At the memoryless level both fall with $T$, at the others they
            stay.""",
        label="sampler-limits",
        align="llrrrr",
        long=True,
    ).markup


def _near_zero(value: float) -> float:
    """Rounding of a closed form is no number."""
    return 0.0 if abs(value) < 1e-9 else value


def orders(rows: Rows) -> str:
    """Slopes of the distance to the tilt after memoryless training."""
    found = rows.where(Metric.ORDER, trained=MEMORYLESS, kernel=KERNEL, of=str(Metric.W1_TO_TILT))
    used = [level for level in found.distinct("used") if level not in (0.35, 1.0)]
    body = [
        (title, *(_with_interval(found.where(problem=problem, used=level).one()) for level in used))
        for problem, title in PROBLEMS.items()
        if found.where(problem=problem)
    ]
    heads = ["no noise" if level == 0 else f"level ${level:.3g}$" for level in used]
    return Table(
        header=("problem", *heads) if used else ("problem", ""),
        rows=body or [(NOT_MEASURED, *[""] * max(1, len(used)))],
        caption="""Order in $1\\/T$ of the Wasserstein distance to the tilt, trained at the
            memoryless level and sampled at three: slopes over the last four numbers of steps, with
            95% intervals of the fit. Laws are exact, so an interval says how straight the curve
            is.""",
        label="sampler-orders",
        align="l" + "r" * max(1, len(used)),
        long=True,
    ).markup


def _with_interval(record: Record | None) -> str:
    if record is None:
        return NOT_MEASURED
    if record.stderr is None:
        return number(record.value)
    wide = float(student.ppf(1 - DOUBT, record.seeds - 2)) * record.stderr
    return f"{number(record.value)} $plus.minus$ {number(wide, 2)}"


def predictions(rows: Rows) -> str:
    """What was predicted, how often it held, and the worst misses."""
    found = rows.where(Metric.PREDICTED)
    body = []
    for which in SamplerPrediction:
        mine = found.where(prediction=str(which))
        misses = mine.filter(lambda record: not holds(record))
        body.append(
            (
                TYPESET.get(which, text(which)),
                f"{integer(len(mine.records) - len(misses.records))} of"
                f" {integer(len(mine.records))}"
                if mine
                else NOT_MEASURED,
                "; ".join(_miss(record) for record in misses) or "–",
            )
        )
    return Table(
        header=("predicted", "held", "misses"),
        rows=body,
        caption="""Predictions written before the runs, each with a range: orders in $1\\/T$ within
            0.1 of the predicted one, of the distance to the closed form
            $min(1, n^2\\/2)$; a gap that stays has an order within 0.2 of zero. Misses with what
            was measured.""",
        label="sampler-predictions",
        align="lll",
        widths=("1fr", "auto", "6.6cm"),
        long=True,
    ).markup


def holds(record: Record) -> bool:
    """Whether a number lies where it was predicted."""
    low, high = record.setting["low"], record.setting["high"]
    return (low is None or record.value >= low) and (high is None or record.value <= high)


def _miss(record: Record) -> str:
    where = PROBLEMS.get(ProblemName(record.problem), "random instances")
    level = record.setting.get("trained")
    trained = "" if level is None else f", {LEVELS.get(level, number(level))}"
    return f"{where}{trained}: {number(record.value)}"


def chapter(rows: Rows) -> str:
    """The whole chapter."""
    found = rows.of(schemas.SDE_ODE)
    drawn = figure(
        "samplers.svg",
        """Left and middle: distance of the samples without noise from the law of the chain that was
        trained; it falls with the number of steps for the memoryless level alone. Right: trained at
        that level, distance to the tilt of the chain and of the samples without noise; on
        overlapping modes these are the nearer, on $N(0, 1)$ with $r = -x^2$ the farther.""",
        "samplers-figure",
        "Three panels of Wasserstein distances against steps on logarithmic scales.",
    )
    return rf"""
= Trained with noise, sampled without
{_theorem()}
{drawn}

{limits(found)}

{orders(found)}
{_nearer(found)}
{predictions(found)}

A gap with a negative order grows with the number of steps: there the prediction that it stays is
refuted, and the conclusion stands. Orders of the distance to the closed form that are larger than
predicted may be those of faster terms, which rule as long as the slow one is small; laws of longer
chains would have to tell. Distances that pass near zero at some number of steps, as that of the
chain on $N(0, 1)$, have no order there.
"""


def _theorem() -> str:
    """The law under another sampler, with its proof."""
    return r"""
Flow models are fine-tuned with a stochastic sampler and then sampled by the flow. Let the optimal
control at noise level $n$ (Flow-SDE's $sigma^2 = n^2 s\/a$ with $a = 1 - s$; memoryless is $n =
sqrt(2)$) be stored as a velocity and used at noise level $n'$, 0 for the ordinary differential
equation. On Gaussian data the law of the samples has a closed form.

*Theorem.* Data $N(m, S)$ on an axis, $r(x) = P x^2\/2 + q x$, $p = P S\/b < 1$, continuous time
from pure noise. With $kappa = (2 + n'^2)\/(2 + n^2)$, $F = 2 n^2 (2 + n'^2)\/((2 + n^2)(n^2 +
n'^2))$ and $H_k (y) = 1 - p (1 - y^k)$ the samples are Gaussian with

$ "mean" = m + ((P m + q) S)/b F integral_0^1 H_(2 n^2\/(n^2 + n'^2)) (y)^(-1-kappa) d y, quad
"variance" = S integral_0^1 H_(n^2\/n'^2) (y)^(-2 kappa) d y . $

The integrals are hypergeometric, $integral_0^1 H_k (y)^(-j) d y = attach(F, bl: 2, br: 1) (j, 1; 1
+ 1\/k; p)$. *This is the tilt for every $n'$ if $n = sqrt(2)$, and for every $n$ if $n' = n$. For
a linear reward it is the tilt in no other case: $F = 1$ only where $(n^2 - n'^2)(2 - n^2) = 0$.*
Without noise a linear reward moves the mean by $F = 4\/(2 + n^2)$ times what it should, and the
variance is $S (1 - p)^(-4\/(2+n^2))$. At Flow-GRPO's default $n = 0.7$ the factor is 1.61: for a
linear reward the flow samples the tilt of $b\/1.61$.

_Proof._ With $t = s\/a$, $z = S\/(S + t^2)$ and $c = a^2 S + s^2$, level $s$ moves the end at noise
level $n$ by $Phi_n = (S\/c)^(1\/2) z^(n^2\/4)$, and the variance of the end given level $s$ is $S
(1 - z^(n^2\/2))$. So $nabla log h = Phi_n (P hat(m) + q)\/(b - P S (1 - z^(n^2\/2)))$ with the
conditional mean $hat(m)$ of the end. It is stored as the change $-2 n^2 s nabla log h\/(a (2 +
n^2))$ of the velocity and enters the drift at level $n'$ with the factor $1 + n'^2\/2$. That drift
is affine with the transition $Phi_(n') H^(-kappa)$, $H = 1 - p (1 - z^(n^2\/2))$, to the end; $t d
t\/(S + t^2) = - d z\/(2 z)$ and $y = z^((n^2 + n'^2)\/4)$, $y = z^(n'^2\/2)$ give the integrals.
At $n^2 = 2$, $d/(d y) [y H_k^(-1\/k)] = (1 - p) H_k^(-1\/k - 1)$ evaluates both, with $k =
1\/kappa$ and $k = 2\/n'^2$. $square$

That the memoryless schedule leaves the sampler free, and has to be that of training, is
#link("https://arxiv.org/abs/2409.08861")[2409.08861], Theorem 1; by how much others fail, and the
laws, are ours. Chains are those of the DDIM form (Precise) on uniform times, $b = 1$, and end at
the noise level $1\/20$, where $m$ and $S$ are taken. Gaussian data are $N(0.3, 0.5)$, with the
quadratic reward $N(0.7, 0.5)$. Laws are in closed form or by quadrature, without Monte-Carlo error.
"""


def _nearer(found: Rows) -> str:
    """Whether the flow is nearer the tilt than the chain."""
    share = found.where(Metric.NEARER).one()
    quantiles = {q: found.where(Metric.KL_RATIO, quantile=q).one() for q in (0.05, 0.5, 0.95)}
    spread = ", ".join(number(r.value) if r else NOT_MEASURED for r in quantiles.values())
    nearer = (
        NOT_MEASURED
        if share is None
        else f"a share of {number(share.value)} $plus.minus$ {number(share.stderr, 1)} of"
        f" {integer(share.seeds)}"
    )
    return rf"""
*Is the flow nearer the tilt than its own chain?* Often: it is in
{nearer} random Gaussian instances, with quantiles 5, 50 and 95% of the root of the chain's
divergence over that of the flow of {spread}. But _not always_, at any number of steps: for centred
data and quadratic rewards only the variance can be off. That of the chain is continuous in the
reward's curvature, too small where rewards are convex or flat and too large where they are very
concave (checked for $T = 5$ and $20$ on $N(0, 1)$), so that between there is a reward at which the
chain samples exactly the tilt, and the flow does not. $N(0, 1)$ with $r = -x^2$ is near it.
"""
