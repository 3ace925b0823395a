"""What the replicated studies of arXiv 2603.20455v2 say, in sentences made of their records."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats

from socft.records import Record
from socft.report.gradient_variance.cells import plain
from socft.report.gradient_variance.linear import EULER
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, integer, number, paper, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

BSDE = paper("2603.20455v2")
BACK, LEAN, CORRECTED = (
    MethodName.TIME_REVERSED_EXACT_SCORE,
    MethodName.ADJOINT_MATCHING,
    MethodName.MARTINGALE_FITTED_COSTATE,
)
RECURSION = MethodName.FITTED_BELLMAN_RECURSION
LEVEL = 0.05


def repetitions(found: Rows) -> str:
    """How many repetitions the means of a table are made of, in a sentence."""
    counts: dict[int, dict[str, None]] = {}
    for record in found:
        if record.stderr is not None and record.seeds > 1:
            counts.setdefault(record.seeds, {})[record.estimator] = None
    if not counts:
        return f"Repetitions: {NOT_MEASURED}."
    (most, _), *fewer = sorted(counts.items(), key=lambda pair: -len(pair[1]))
    rest = "".join(
        f"; {integer(count)} of {_listed([text(name) for name in names])}" for count, names in fewer
    )
    return f"Means and standard errors are of {integer(most)} repetitions{rest}."


def linear(rows: Rows) -> str:
    """Who is more accurate on the linear SDE, why, and at what price."""
    found = rows.of(schemas.LINEAR)
    euler = found.where(Metric.MSE, integrator=EULER, function_class="linear")
    lean, back = (euler.where(estimator=name) for name in (LEAN, BACK))
    shares = [
        f"{_share(*(each.where(noise=noise, paths=2000).one() for each in (back, lean)))}"
        f" at $epsilon = {noise:g}$"
        for noise in lean.where(paths=2000).distinct("noise")
    ]
    chain = found.where(Metric.CHAIN_MSE, integrator=EULER, noise=1.0, paths=2000)
    gap = found.where(Metric.KERNEL_GAP, integrator=EULER).one()
    return f"""
With the same linear features, the same paths and $N = 2000$, the mean-square error of the
time-reversed costate over that of
adjoint matching is {", ".join(shares) or NOT_MEASURED}. {crossing(rows, EULER)}
{crossing(rows, "exponential")} Of the error, {_number(gap)} is the distance of the Euler–Maruyama
chain from continuous time, which no number of paths removes; against the chain's own costate the
mean-square error of the martingale with a fitted costate is
{_number(chain.where(estimator=CORRECTED).one())}, that of adjoint matching
{_number(chain.where(estimator=LEAN).one())} and that of the time-reversed costate
{_number(chain.where(estimator=BACK).one())}. {_without_gap(found)} In time, at $epsilon = 1$, the
time-reversed costate takes {_seconds(euler, BACK)} times as long as adjoint matching, and the
martingale {_seconds(euler, CORRECTED)} times. Networks of this study were trained on minibatches of
64 pairs of a state and its costate, where the published code takes 64 paths at all 41 times.

{reproduced(rows.of(schemas.LINEAR).where(Metric.MSE, paths=2000), "noise", "epsilon")}
"""


def _without_gap(rows: Rows) -> str:
    """The corrected adjoint of a chain without a distance from continuous time, beside the
    published pipeline.
    """
    rows = rows.where(paths=2000)
    found = rows.where(Metric.MSE)
    mine = found.where(estimator=CORRECTED, integrator="exponential", function_class="linear")
    theirs = found.where(estimator=MethodName.TIME_REVERSED_PUBLISHED)
    least = theirs.smallest()
    told = theirs.smallest(lambda record: record.published)
    if not mine:
        return f"With the exponential scheme: {NOT_MEASURED}."
    quickest = theirs.smallest(lambda record: record.seconds)
    pair = [
        rows.where(estimator=name, integrator=EULER, noise=1.0)
        for name in (
            MethodName.TIME_REVERSED_NETWORK,
            MethodName.MARTINGALE_FITTED_COSTATE_FIRST_ORDER_NETWORK,
        )
    ]
    whole, rest = (
        [each.where(metric).one() for each in pair] for metric in (Metric.MSE, Metric.CHAIN_MSE)
    )
    beside = (
        f"the published time-reversed pipeline is {NOT_MEASURED}"
        if least is None
        else f"""the published time-reversed pipeline with its network and Euler–Maruyama has
{number(least)} at least (published: {number(told)}) in {number(quickest, 2)} seconds at least"""
    )
    return f"""The exponential scheme has no such distance: there the corrected adjoint with linear
features, which hold the exact costate, has {number(mine.largest())} at most, over all $epsilon$, in
{number(mine.largest(lambda record: record.seconds), 2)} seconds at most; {beside}. With one network
and Euler–Maruyama for both, at $epsilon = 1$, the time-reversed costate has {_number(whole[0])} and
the corrected adjoint {_number(whole[1])}; against the chain's own costate {_number(rest[0])} and
{_number(rest[1])}."""


def crossing(rows: Rows, integrator: str) -> str:
    """Between which N adjoint matching becomes as good as the time-reversed costate, in a
    sentence.
    """
    found = rows.of(schemas.LINEAR).where(Metric.MSE, integrator=integrator, noise=1.0)
    pairs = [
        (paths, *(found.where(estimator=name, paths=paths).one() for name in (LEAN, BACK)))
        for paths in found.distinct("paths")
    ]
    known = [
        (paths, lean.value, back.value)
        for paths, lean, back in pairs
        if lean is not None and back is not None
    ]
    if not known:
        return f"Against $N$, {text(integrator.replace('-', '–'))}: {NOT_MEASURED}."
    after = [paths for paths, lean, back in known if lean <= back]
    before = [paths for paths, lean, back in known if lean > back]
    scheme = f"With the {text(integrator.replace('-', '–'))} scheme and $epsilon = 1$"
    if not after:
        return (
            f"{scheme} the time-reversed costate is the better one at every $N$ up to"
            f" {integer(known[-1][0])}."
        )
    if not before:
        return (
            f"{scheme} adjoint matching is at least as good at every $N$ from"
            f" {integer(known[0][0])} on."
        )
    if max(before) < min(after):
        crossed = f"between $N$ of {integer(max(before))} and {integer(min(after))}"
        return (
            f"{scheme} the errors cross {crossed}; adjoint matching is the worse one below and at"
            " least as good above."
        )
    here, there = (", ".join(map(integer, each)) for each in (after, before))
    return (
        f"{scheme} the errors cross more than once: adjoint matching is at least as good at $N$ of"
        f" {here}, worse at {there}."
    )


def reproduced(found: Rows, key: str, symbol: str) -> str:
    """How the runs of published pipelines compare with the published numbers, in a sentence."""
    known = [
        record for record in found if record.published and record.estimator.endswith(", published")
    ]
    if not known:
        return f"Published pipelines: {NOT_MEASURED}."
    lines = []
    for name in dict.fromkeys(record.estimator for record in known):
        mine = [record for record in known if record.estimator == name]
        shares = [
            f"{number(record.value / record.published, 2)}"
            + (f" at ${symbol} = {record.setting[key]:g}$" if key else "")
            for record in sorted(mine, key=lambda record: record.setting.get(key, 0.0))
            if record.published
        ]
        lines.append(f"{text(name.removesuffix(', published'))}: {', '.join(shares)}")
    return f"""Our runs of the published pipelines over the published numbers: {"; ".join(lines)}.
Where that is not 1 these are studies of the method, not of the authors' runs."""


def pendulum(rows: Rows) -> str:
    """Whether the advantage of time-reversed costates is there on the pendulum."""
    found = rows.of(schemas.PENDULUM).where(Metric.COST)
    names = (
        MethodName.TIME_REVERSED_PUBLISHED,
        MethodName.ADJOINT_MATCHING_PUBLISHED,
        MethodName.TIME_REVERSED_NETWORK,
        MethodName.ADJOINT_MATCHING_NETWORK,
    )
    cells = {name: found.where(estimator=name).one() for name in (RECURSION, *names)}
    back, lean, fair_back, fair_lean = (cells[name] for name in names)
    fitted = cells[RECURSION]
    best = f"""A fitted Bellman recursion leads to {_number(fitted, 4)}, within {_excess(fitted)} of
the least possible. {repetitions(found)}"""
    mended = (
        NOT_MEASURED
        if fair_back is None or fair_lean is None
        else f"""{_number(fair_back, 4)} and {_number(fair_lean, 4)}, where
{_apart(fair_back, fair_lean)} (Welch's test at 5%)"""
    )
    return f"""
{_beside_published("time-reversed costates", back)} {_beside_published("the forward adjoint", lean)}
With the squared loss, one noise and fewer rounds the costs are: {mended}. Published runs are
single, in the publication and here. {best}
"""


def _beside_published(what: str, record: Record | None) -> str:
    """What a published pipeline reaches on the pendulum in the publication and here."""
    if record is None:
        return f"The published pipeline of {what} is {NOT_MEASURED} at its published length."
    return f"""The published pipeline of {what} leads to a cost of {_told(record)} in the
publication and to {_number(record, 4)} in our run of the same length."""


def mixture(rows: Rows) -> str:
    """Whether the advantage of time-reversed costates is there on the mixture, and what becomes of
    it beside a fair baseline.
    """
    found = rows.of(schemas.MIXTURE).where(Metric.REGRET)
    costs = rows.of(schemas.MIXTURE).where(Metric.COST)
    recursion = found.where(estimator=RECURSION)
    corrected = MethodName.FULL_MARTINGALE_FITTED_COSTATE_NETWORK
    told = costs.filter(lambda record: bool(record.published and record.optimum))
    excess = told.largest(
        lambda record: (
            record.published / record.optimum - 1 if record.published and record.optimum else None
        )
    )
    back, lean = MethodName.TIME_REVERSED_PUBLISHED, MethodName.ADJOINT_MATCHING_PUBLISHED
    published = (
        f"""In the publication, time-reversed costates cost less than adjoint matching at
{_cheaper(costs)} temperatures. In our runs of the published pipelines they are
{_where(found, back, lean)}."""
        if costs.where(estimator=back)
        else f"The published pipeline of time-reversed costates is {NOT_MEASURED}."
    )
    return f"""
_Regret_ is the cost in excess of the optimum, over the optimum; _better_ and _worse_ are by Welch's
test at 5%. Networks are smaller than the published ones and trained in under a hundredth of the
published 450 000 gradient steps at every temperature; the score of the pre-trained model is exact.
{published} With the same network, the squared loss and one noise for both, time-reversed costates
beside adjoint matching are
{_where(found, MethodName.TIME_REVERSED_NETWORK, MethodName.ADJOINT_MATCHING_NETWORK)}. The
full martingale with a costate fitted by this network, beside the time-reversed costates, is
{_where(found, corrected, MethodName.TIME_REVERSED_NETWORK)}. The
published costs are up to {_percent(excess)} above the optimum of the simulated chain; a fitted
Bellman recursion that starts cold is {_percent(recursion.largest())} above it at most.
{repetitions(found)}

{reproduced(costs, "temp", '"temp"')}
"""


def _cheaper(costs: Rows) -> str:
    """At how many temperatures the published numbers have time-reversed costates below adjoint
    matching.
    """
    pairs = []
    for temp in costs.distinct("temp"):
        names = (MethodName.TIME_REVERSED_PUBLISHED, MethodName.ADJOINT_MATCHING_PUBLISHED)
        both = [costs.where(estimator=name, temp=temp).one() for name in names]
        numbers = [
            record.published
            for record in both
            if record is not None and record.published is not None
        ]
        pairs += [numbers] if len(numbers) == len(names) else []
    return (
        f"{integer(sum(a < b for a, b in pairs))} of {integer(len(pairs))}"
        if pairs
        else NOT_MEASURED
    )


def _where(found: Rows, name: str, other: str) -> str:
    """At which temperatures one is better than another, worse, and not told apart."""
    temps = sorted(found.where(estimator=name).distinct("temp"), reverse=True)
    pairs = [
        (temp, *(found.where(estimator=each, temp=temp).one() for each in (name, other)))
        for temp in temps
    ]
    told: dict[str, list[str]] = {"better": [], "worse": [], "not told apart": []}
    for temp, mine, theirs in pairs:
        if mine is not None and theirs is not None:
            better = (
                "better"
                if below(mine, theirs)
                else "worse"
                if below(theirs, mine)
                else "not told apart"
            )
            diverged = [
                record.estimator for record in (mine, theirs) if not math.isfinite(record.value)
            ]
            told[better].append(
                plain(temp) + (f" (where {text(diverged[0])} diverged)" if diverged else "")
            )
    said = [f"{how} at {_listed(at)}" for how, at in told.items() if at]
    return _listed(said) if said else NOT_MEASURED


def below(mine: Record, theirs: Record) -> bool:
    """Whether a mean is smaller beyond its noise (Welch's test at 5%); what is infinite is smaller
    than nothing.
    """
    if not math.isfinite(mine.value):
        return False
    if not math.isfinite(theirs.value):
        return True
    parts = [
        (record.value, (record.stderr or 0.0) * record.seeds**0.5, record.seeds)
        for record in (mine, theirs)
    ]
    if min(record.seeds for record in (mine, theirs)) < 2 or not any(
        deviation for _, deviation, _ in parts
    ):
        return False
    return mine.value < theirs.value and bool(
        stats.ttest_ind_from_stats(*parts[0], *parts[1], equal_var=False).pvalue < LEVEL
    )


def _apart(mine: Record, theirs: Record) -> str:
    if below(mine, theirs):
        return "time-reversed costates are better"
    return "time-reversed costates are worse" if below(theirs, mine) else "they are not told apart"


def _listed(each: Sequence[str]) -> str:
    return ", ".join(each[:-1]) + " and " + each[-1] if len(each) > 1 else each[0]


def _percent(share: float | None) -> str:
    return NOT_MEASURED if share is None else rf"{number(100 * share, 2)}%"


def _excess(record: Record | None) -> str:
    optimum = None if record is None else record.optimum
    return _percent(record.value / optimum - 1 if record is not None and optimum else None)


def _told(record: Record | None) -> str:
    return number(None if record is None else record.published, 4)


def _number(record: Record | None, digits: int = 3) -> str:
    return number(None if record is None else record.value, digits)


def _share(mine: Record | None, other: Record | None) -> str:
    return (
        NOT_MEASURED
        if mine is None or other is None or not other.value
        else number(mine.value / other.value, 2)
    )


def _seconds(euler: Rows, name: str) -> str:
    mine, lean = (euler.where(estimator=each, noise=1.0, paths=2000).one() for each in (name, LEAN))
    times = [None if record is None else record.seconds for record in (mine, lean)]
    return NOT_MEASURED if not times[0] or not times[1] else number(times[0] / times[1], 2)
