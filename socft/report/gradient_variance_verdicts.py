"""What the replicated studies of arXiv 2603.20455v2 say, in sentences made of their records."""

from __future__ import annotations

import math

from socft.records import Record
from socft.report.gradient_variance_catalogue import paper
from socft.report.gradient_variance_cells import only, plain
from socft.report.gradient_variance_linear import EULER
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, integer, number, text

BSDE = paper("2603.20455v2")
REPLICATED = ("linear", "pendulum", "mixture")
BACK, LEAN, CORRECTED = "time-reversed costate", "lean adjoint", "martingale-corrected adjoint"
RECURSION = "fitted Bellman recursion"


def repetitions(rows: Rows) -> str:
    """How many repetitions a mean of the replicated studies is made of."""
    found = only(rows, lambda r: r.study in REPLICATED and r.stderr is not None)
    counts = sorted({record.seeds for record in found if record.seeds > 1}, reverse=True)
    if not counts:
        return f"Repetitions: {NOT_MEASURED}."
    fewer = f"; those of pipelines that take longest, of {' or '.join(map(integer, counts[1:]))}" if counts[1:] else ""
    return f"Means and standard errors are of {integer(counts[0])} repetitions{fewer}."


def linear(rows: Rows) -> str:
    """Who is more accurate on the linear SDE, why, and at what price."""
    found = rows.of("linear")
    euler = found.where("mse", integrator=EULER, function_class="linear")
    lean, back = (euler.where(estimator=name) for name in (LEAN, BACK))
    shares = [
        f"{_share(back.where(noise=noise, paths=2000).one(), lean.where(noise=noise, paths=2000).one())} at $epsilon = {noise:g}$"
        for noise in lean.where(paths=2000).distinct("noise")
    ]
    chain = found.where("chain_mse", integrator=EULER, noise=1.0, paths=2000)
    gap = found.where("kernel_gap", integrator=EULER).one()
    return f"""
With the same linear features, the same paths and $N = 2000$, the mean-square error of the time-reversed costate over that of the
lean
adjoint is {", ".join(shares) or NOT_MEASURED}. {crossing(rows, EULER)} {crossing(rows, "exponential")}
Of the error, {_number(gap)} is the distance of the Euler–Maruyama chain from continuous time, which no
number of paths removes; against the chain's own costate the mean-square error of the martingale-corrected adjoint is
{_number(chain.where(estimator=CORRECTED).one())}, that of the lean adjoint {_number(chain.where(estimator=LEAN).one())} and that of
the time-reversed costate {_number(chain.where(estimator=BACK).one())}. {_without_gap(found)}
In time, at $epsilon = 1$, the time-reversed costate takes {_seconds(euler, BACK)} times as long as the lean adjoint, and the
martingale-corrected one {_seconds(euler, CORRECTED)} times.
"""


def _without_gap(found: Rows) -> str:
    """The corrected adjoint of a chain without a distance from continuous time, beside the published pipeline."""
    found = found.where("mse", paths=2000)
    mine = found.where(estimator=CORRECTED, integrator="exponential", function_class="linear")
    theirs = found.where(estimator=f"{BACK}, published")
    least = theirs.smallest()
    told = theirs.smallest(lambda record: record.published)
    if not mine or least is None:
        return f"With the exponential scheme: {NOT_MEASURED}."
    quickest = theirs.smallest(lambda record: record.seconds)
    return f"""The exponential scheme has no such distance: there the corrected adjoint has {number(mine.largest())} at most, over
all $epsilon$, in {number(mine.largest(lambda record: record.seconds), 2)} seconds at most, where the published time-reversed
pipeline with its network has {number(least)} at least (published: {number(told)}) in {number(quickest, 2)} seconds at least."""


def crossing(rows: Rows, integrator: str) -> str:
    """Between which N the lean adjoint becomes as good as the time-reversed costate, in a sentence."""
    found = rows.of("linear").where("mse", integrator=integrator, noise=1.0)
    pairs = [
        (paths, *(found.where(estimator=name, paths=paths).one() for name in (LEAN, BACK))) for paths in found.distinct("paths")
    ]
    known = [(paths, lean.value, back.value) for paths, lean, back in pairs if lean is not None and back is not None]
    if not known:
        return f"Against $N$, {text(integrator.replace('-', '–'))}: {NOT_MEASURED}."
    after = [paths for paths, lean, back in known if lean <= back]
    before = [paths for paths, lean, back in known if lean > back]
    scheme = f"With the {text(integrator.replace('-', '–'))} scheme and $epsilon = 1$"
    if not after:
        return f"{scheme} the time-reversed costate is the better one at every $N$ up to {integer(known[-1][0])}."
    if not before:
        return f"{scheme} the lean adjoint is at least as good at every $N$ from {integer(known[0][0])} on."
    if max(before) < min(after):
        crossed = f"between $N$ of {integer(max(before))} and {integer(min(after))}"
        return f"{scheme} the errors cross {crossed}; the lean adjoint is the worse one below and at least as good above."
    here, there = (", ".join(map(integer, each)) for each in (after, before))
    return f"{scheme} the errors cross more than once: the lean adjoint is at least as good at $N$ of {here}, worse at {there}."


def pendulum(rows: Rows) -> str:
    """Whether the advantage of time-reversed costates is there on the pendulum."""
    found = rows.of("pendulum").where("cost")
    names = [f"{name}, {how}" for how in ("published", "network") for name in (BACK, LEAN)]
    cells = {name: found.where(estimator=name).one() for name in (RECURSION, *names)}
    back, lean, fair_back, fair_lean = (cells[name] for name in names)
    fitted = cells[RECURSION]
    return f"""
As published, time-reversed costates lead to a cost of {_told(back)} and the forward adjoint to {_told(lean)}; the same pipelines
lead to {_number(back, 4)} and {_number(lean, 4)} here, and with the squared loss and one noise to {_number(fair_back, 4)} and
{_number(fair_lean, 4)}: {_apart(back, lean)} in the first pair, {_apart(fair_back, fair_lean)} in the second. A fitted Bellman
recursion leads to {_number(fitted, 4)}, within {_excess(fitted)} of the least possible.
"""


def mixture(rows: Rows) -> str:
    """Whether the advantage of time-reversed costates is there on the mixture, and what becomes of it beside a fair baseline."""
    found = rows.of("mixture").where("regret")
    recursion = found.where(estimator=RECURSION)
    told = only(rows.of("mixture").where("cost"), lambda record: bool(record.published and record.optimum))
    excess = told.largest(lambda record: record.published / record.optimum - 1 if record.published and record.optimum else None)
    return f"""
_Below_ means: by more than two standard errors. As published, the regret of time-reversed costates is
below that of adjoint matching {_where(found, "time-reversed BSDE, published", "adjoint matching, published")}. With the same
network, the squared loss and one noise it is below {_where(found, "time-reversed BSDE, network", "adjoint matching, network")}; and
that of the martingale-corrected full adjoint with this network is below that of the time-reversed costates
{_where(found, "martingale-corrected full adjoint, network", "time-reversed BSDE, network")}. The published costs are up to
{_percent(excess)} above the optimum of the simulated chain; a fitted Bellman recursion that starts cold is
{_percent(recursion.largest())} above it at most.
"""


def _where(found: Rows, name: str, other: str) -> str:
    """At which temperatures one is better than another, in words; better means by two standard errors of the difference."""
    temps = sorted(found.where(estimator=name).distinct("temp"), reverse=True)
    pairs = [(temp, *(found.where(estimator=each, temp=temp).one() for each in (name, other))) for temp in temps]
    known = [(temp, mine, theirs) for temp, mine, theirs in pairs if mine is not None and theirs is not None]
    if not known:
        return f"({NOT_MEASURED})"
    better = [temp for temp, mine, theirs in known if _below(mine, theirs)]
    which = f" ({', '.join(map(plain, better))})" if better and len(better) < len(known) else ""
    return f"at {integer(len(better))} of {integer(len(known))} temperatures{which}"


def _below(mine: Record, theirs: Record) -> bool:
    """Whether a record is smaller by two standard errors; what is infinite is smaller than nothing."""
    if not math.isfinite(mine.value):
        return False
    noise = [each.stderr or 0.0 for each in (mine, theirs) if math.isfinite(each.value)]
    return mine.value + 2 * math.hypot(*noise) < theirs.value


def _apart(mine: Record | None, theirs: Record | None) -> str:
    if mine is None or theirs is None:
        return NOT_MEASURED
    if _below(mine, theirs):
        return "time-reversed costates are better"
    return "time-reversed costates are worse" if _below(theirs, mine) else "there is no difference beyond two standard errors"


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
    return NOT_MEASURED if mine is None or other is None or not other.value else number(mine.value / other.value, 2)


def _seconds(euler: Rows, name: str) -> str:
    mine, lean = (euler.where(estimator=each, noise=1.0, paths=2000).one() for each in (name, LEAN))
    times = [None if record is None else record.seconds for record in (mine, lean)]
    return NOT_MEASURED if not times[0] or not times[1] else number(times[0] / times[1], 2)
