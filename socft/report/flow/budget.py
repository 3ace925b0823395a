"""The chapter on methods at an equal budget."""

from __future__ import annotations

import math

from matplotlib.axes import Axes

from socft.records import Record
from socft.report.claim_records import Claims
from socft.report.figures import finish, legend, panels, svg
from socft.report.findings import Answer, NotMeasured, Number, Question, made, one
from socft.report.flow import budget_tables as tables
from socft.report.flow.samplers import holds
from socft.report.flow.tables import PROBLEMS
from socft.report.rows import Rows
from socft.report.typeset import figure, integer
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

RENOISED = (MethodName.RAM, MethodName.RAM_GROUP_MEAN, MethodName.AWM)
COLORS = {True: "#0072B2", False: "#D55E00"}
ALIKE = 1.5
"""Ratio below which noise is said to decide little."""
SMALLEST = 1e-5
"""Of gaps that are drawn."""


def _noise(rows: Rows, _: Claims) -> Answer:
    found = rows.where(Metric.VARIANCE, at="optimum")
    ratios = [
        one(here.where(estimator=MethodName.FULL_STICKING_THE_LANDING)).over(
            one(here.where(estimator=MethodName.ADJOINT_MATCHING)), 2
        )
        for problem in found.fields("problem")
        for steps in found.where(problem=problem).distinct("T")
        for here in [found.where(problem=problem, T=steps)]
    ]
    return _least_and_most(ratios), bool(ratios) and max(each.value for each in ratios) < 1


def _least_and_most(ratios: list[Number]) -> dict[str, Number]:
    if not ratios:
        raise NotMeasured
    values = [each.value for each in ratios]
    return {
        "least": made(min(values), *ratios, digits=2),
        "most": made(max(values), *ratios, digits=2),
    }


def _gap(rows: Rows, problem: str, name: str) -> Number:
    return one(rows.where(Metric.OBJECTIVE_GAP, problem, name, at=tables.TRAINED), 2)


def _trainings(rows: Rows) -> list[str]:
    return rows.where(Metric.OBJECTIVE_GAP, at=tables.TRAINED).fields("problem")


def _updates(rows: Rows, _: Claims) -> Answer:
    """Gaps of two estimators of one gradient whose updates cost the same."""
    ratios = [
        _gap(rows, problem, MethodName.FULL_STICKING_THE_LANDING).over(
            _gap(rows, problem, MethodName.FULL_ADJOINT), 2
        )
        for problem in _trainings(rows)
    ]
    numbers = _least_and_most(ratios)
    return numbers, 1 / ALIKE < numbers["least"].value <= numbers["most"].value < ALIKE


def _renoised(rows: Rows, _: Claims) -> Answer:
    ratios = [
        _gap(rows, problem, name).over(_gap(rows, problem, MethodName.ADJOINT_MATCHING), 2)
        for problem in _trainings(rows)
        for name in RENOISED
    ]
    return _least_and_most(ratios), bool(ratios) and min(each.value for each in ratios) > 1


def _first(rows: Rows, _: Claims) -> Answer:
    """The method of the least gap everywhere, and how far adjoint matching is."""
    first, ratios = MethodName.DDPO_KL_IN_THE_REWARD, []
    for problem in _trainings(rows):
        best = _gap(rows, problem, first)
        ratios.append(_gap(rows, problem, MethodName.ADJOINT_MATCHING).over(best, 2))
    places = rows.where(Metric.RANK, estimator=first, at=tables.TRAINED)
    numbers = _least_and_most(ratios)
    for key, name in (("updates", first), ("fewer", MethodName.ADJOINT_MATCHING)):
        found = rows.where(Metric.OBJECTIVE_GAP, estimator=name, at=tables.TRAINED)
        numbers[key] = made(max(r.setting["updates"] for r in found), *ratios)
    alone = all(record.value == record.setting["high"] == 1 for record in places)
    return numbers, alone and numbers["least"].value > 1


def _penalty(rows: Rows, _: Claims) -> Answer:
    ratios = [
        _gap(rows, problem, MethodName.DDPO).over(
            _gap(rows, problem, MethodName.DDPO_KL_IN_THE_REWARD), 2
        )
        for problem in _trainings(rows)
    ]
    return _least_and_most(ratios), bool(ratios) and min(each.value for each in ratios) > 1


def _predicted(rows: Rows, _: Claims) -> Answer:
    found = rows.where(Metric.PREDICTED)
    everything = [Number(record.value, (record,)) for record in found]
    if not everything:
        raise NotMeasured
    missed = sum(not holds(record) for record in found)
    numbers = {
        "all": made(len(everything), *everything),
        "missed": made(missed, *everything),
    }
    return numbers, missed < len(everything) / 4


QUESTIONS = (
    Question(
        "The least gap",
        "DDPO with the divergence in the reward, {updates} cheap updates without the gradient of"
        " the reward, ends nearest the optimum on every law that was measured; adjoint matching"
        " with {fewer} updates ends {least} to {most} times as far.",
        _first,
    ),
    Question(
        "Noise",
        "At the optimum the noise of sticking the landing is {least} to {most} times that of"
        " adjoint matching, in variance, over laws of data and numbers of steps.",
        _noise,
    ),
    Question(
        "Updates",
        "With so few updates noise decides little: sticking the landing, with as many as the full"
        " adjoint, ends {least} to {most} times as far.",
        _updates,
    ),
    Question(
        "Re-noised samples",
        "At an equal budget regressions on re-noised samples end {least} to {most} times as far"
        " from the optimum of the chain as adjoint matching.",
        _renoised,
    ),
    Question(
        "The divergence in the reward",
        "DDPO without the divergence ends {least} to {most} times as far as with it, at rates of"
        " their own.",
        _penalty,
    ),
    Question(
        "Predictions",
        "Of {all} numbers whose range was predicted before the runs, {missed} lie outside.",
        _predicted,
    ),
)
"""What the chapter finds; none of it is said where the records do not carry it."""


def picture(rows: Rows) -> bytes:
    """Gaps after training with their intervals, a row per method, the best on top."""
    found = rows.where(at=tables.TRAINED)
    names = tables.by_rank(found)
    with panels(1, len(PROBLEMS), 0.9 + 0.17 * max(len(names), 4)) as (drawing, axes):
        for ax, (problem, title) in zip(axes, PROBLEMS.items(), strict=True):
            gaps = found.where(Metric.OBJECTIVE_GAP, problem)
            for height, name in enumerate(reversed(names)):
                for record in gaps.where(estimator=name):
                    _point(ax, record, height)
            if finish(ax, title, "objective below the optimum", ""):
                ax.set_xscale("log")
            ax.set_yticks(range(len(names)), list(reversed(names)) if ax is axes[0] else [])
            ax.set_ylim(-0.7, max(len(names), 1) - 0.3)
        legend(drawing, axes, 2)
        return svg(drawing)


def _point(ax: Axes, record: Record, height: int) -> None:
    if not math.isfinite(record.value):
        return
    gradient = tables.uses_the_gradient(record.estimator)
    label = "with the reward's gradient" if gradient else "without"
    low = max(record.setting["low"], SMALLEST)
    value = max(record.value, low)
    ax.errorbar(
        [value],
        [height],
        xerr=[[value - low], [max(record.setting["high"] - value, 0.0)]],
        fmt="o" if gradient else "s",
        markersize=3,
        color=COLORS[gradient],
        capsize=2,
        label=label,
    )


def chapter(rows: Rows) -> str:
    """The whole chapter."""
    found = rows.of(schemas.FLOW_BUDGET)
    seeds = found.where(Metric.BIAS).largest(lambda record: record.seeds)
    trained = found.where(Metric.OBJECTIVE_GAP).largest(lambda record: record.seeds)
    said = "\n".join(f"+ {each.ask(found, Claims()).markup}" for each in QUESTIONS)
    drawn = figure(
        "budget.svg",
        """What the exact objective falls short of the optimum by after training at an equal budget
        of network evaluations, with 95% intervals, the best method by its ranks on top. Squares do
        without the gradient of the reward.""",
        "budget-figure",
        "Three panels, one per law of data, with a row per method: gaps on a logarithmic scale.",
    )
    return rf"""
= At an equal budget

{said}

*Training.* Every method trains the same piecewise linear controls by Adam, from the pre-trained
model, until the same number of network evaluations is spent: rollouts, labels, the loss's own
passes and fits of corrections, so that a dear label means fewer updates. Each has the rate that
pilot seeds choose, and {integer(trained)} other seeds are reported. What is measured is exact: the
objective of the chain with the trained control, by quadrature. Hamiltonian adjoint matching is
adjoint matching where $B$ is constant, and DiffusionNFT and the ratio of evidence bounds have
the gradient of AWM up to a factor per step, which Adam does not see; they are not trained again.

Where the divergence stands in the reward as the logarithm of a likelihood ratio, all paths have one
return at the optimum up to $O(d t)$, so that this policy gradient loses its noise there as sticking
the landing does. The noise of policy gradients grows with the dimension, which is one here, and an
evaluation is counted as one whether it is of a network or of a formula: the order of methods is not
that of pictures. Letters are those of published defaults; the ratio of evidence bounds is asked
with a divergence, so that its equation is (E).

{drawn}

{tables.training(found)}

*Proposals.* A method is also asked what it would change of the control: its slope in the control
over the curvature of its divergence, in products with the features $(x, 1)$ of every step, so that
all are in one unit. Right is $bb(E)[(B_k bb(E) nabla V^v_(k+1) \/ beta - v_k) phi(x_k)^top]$, the
gradient of the objective over $beta$, which is exact by quadrature and vanishes at the optimum of
the chain. Bias and variance count together, and nothing is dropped for being small;
{integer(seeds)} repetitions have paths of their own. Strengths are those of the fixed points. What
solves an equation of continuous time is off the chain's optimum by $O(1\/T)$: of its bias, what
falls with $T$ is the chain's and what stays is the method's. Residual nabla-DB with its residual
flow fitted anew to the current control proposes next to nothing but for the last step, and is not
ranked.

{tables.proposals(found)}

{tables.predictions(found)}

{tables.rates(found)}
"""
