"""Pages of the estimators: what each estimates, when to use it, its cost, its target, its source
and its error beside those of its kind.

They are made of the catalogue and of the records of the study of variance.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from docs.generator.html import cited, dots, escaped, number, table
from docs.generator.mathematics import dollars, typst_html
from docs.generator.pages import Page, slug
from socft import (
    AffineReference,
    ControlProblem,
    Gaussian,
    LinearQuadratic,
    Quadratic,
    ScalarDiffusion,
    Uncontrolled,
    flow_reference,
    memoryless,
    uniform_times,
)
from socft.costates.base import Cost
from socft.costates.fields import GivenCostate
from socft.estimators.base import Estimator
from socft.estimators.catalogue import CATALOGUE, flow
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.rows import EstimatorRow, Group
from socft.estimators.estimand import ApproximateResidual, Biased, EquationResidual, Estimand, Kind
from socft.records import Record, read
from socft.report.gradient_variance.tables import COMPARISON_PROBLEMS
from socft.report.rows import Rows
from socft.study.vocabulary.metrics import Metric

SECTION = "Estimators"
STEPS = 50
"""Of the chain whose costs are told."""
GROUPS: Mapping[Group, str] = {
    Group.PATHWISE: "They differentiate along the path: the reward and the pre-trained mean must be"
    " differentiable.",
    Group.CORRECTED: "They take an approximate costate and remove noise with it, bootstrap from it,"
    " or reverse the path by it.",
    Group.ZEROTH_ORDER: "They need the reward alone, not its derivative.",
    Group.PATH_MEASURE: "They compare or weight whole paths by their probabilities.",
}
MEANING: Mapping[Kind, str] = {
    Kind.OBJECTIVE_GRADIENT: "On average it is the gradient of the objective, at every policy.",
    Kind.FIXED_POINT_RESIDUAL: "On average it vanishes at the optimum and at no other policy;"
    " elsewhere it is another vector field than the gradient.",
    Kind.APPROXIMATE_RESIDUAL: "On average it vanishes at a policy that is the optimum up to a"
    " relative error of the order of a time step, and at no other.",
    Kind.BIASED: "On average it is not the gradient, and its zeros need not be the optimum.",
}


@dataclasses.dataclass(frozen=True)
class Made:
    """An estimator of the catalogue, made for a small problem.

    Attributes:
        row: its row.
        estimator: what the row makes.
        target: what its loss matches the control with, as HTML.
    """

    row: EstimatorRow
    estimator: Estimator
    target: str

    @property
    def cost(self) -> Cost:
        """What its labels cost."""
        return self.estimator.cost

    @property
    def evaluations(self) -> int:
        """Network evaluations per path, the rollout included."""
        return self.row.evaluations(self.estimator, STEPS)


def pages(root: Path) -> list[Page]:
    """The table of all estimators and a page of each.

    Args:
        root: the folder with ``reports``.
    """
    errors, found = recorded(root / "reports" / "records" / "variance.jsonl"), made()
    return [
        Page("estimators/index.md", "All estimators", overview(found), ""),
        *(
            Page(
                f"estimators/{slug(each.row.name)}.md",
                each.row.name,
                page(each, errors),
                each.row.group.capitalize(),
            )
            for each in found
        ),
    ]


Errors = Mapping[str, Sequence[Record]]
"""Errors at equal budget of all estimators, by situation."""


def recorded(file: Path) -> Errors:
    """The errors at equal budget that a file of records holds."""
    rows = Rows(tuple(read(file)))
    found: dict[str, Sequence[Record]] = {}
    for problem in COMPARISON_PROBLEMS:
        here = problem.rows(rows)
        for scale, title in problem.scales.items():
            errors = here.where(Metric.ERROR_AT_BUDGET, scale=scale)
            found[f"{problem.problem}, {title}"] = [e for e in errors if math.isfinite(e.value)]
    return found


def made() -> list[Made]:
    """Every estimator of the catalogue; those for flow models on one, which has a score."""
    reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    truth = LinearQuadratic(ControlProblem(reference, Quadratic(-torch.eye(1)), beta=2.0))
    costate = GivenCostate(truth.value_gradient)
    affine = EstimatorContext(truth.problem, truth.policy, 0, costate, costate, truth.value)
    flow_model = flow_reference(Gaussian([0.0], 1.0), memoryless(uniform_times(3, last=0.1)))
    problem = ControlProblem(flow_model, Quadratic(-torch.eye(1)), beta=2.0)
    by_score = EstimatorContext(problem, Uncontrolled(flow_model))
    targets = typst_html([row.target for row in CATALOGUE.values()])
    return [
        Made(row, row.make(by_score if row in flow.ROWS else affine), target)
        for row, target in zip(CATALOGUE.values(), targets, strict=True)
    ]


def overview(found: Sequence[Made]) -> str:
    """All estimators by group."""
    body = [
        "# Estimators\n",
        "Every estimator proposes, at every step of every path, a *target* for the control, and"
        " descends the distance to it. They differ in the target, in what that is on average, and"
        " in its noise and cost. `socft.estimators.catalogue.find_estimator(name)` makes each by"
        " its name; [which one to use](../guides/which-estimator.md) is a page of its"
        " own, and [how they compare](../reports/gradient_variance.pdf) a report.\n",
    ]
    for group in Group:
        rows = [
            (
                f'<a href="{slug(each.row.name)}.html">{escaped(each.row.name)}</a>',
                each.target,
                str(each.row.kind),
                str(each.evaluations),
            )
            for each in found
            if each.row.group == group
        ]
        header = ("estimator", "target of step k", "estimates", f"evaluations, T = {STEPS}")
        body += [f"## {group.capitalize()}\n", GROUPS[group] + "\n", table(header, rows, (3,))]
    return "\n\n".join(body) + "\n"


def page(each: Made, errors: Errors) -> str:
    """The page of an estimator."""
    row = each.row
    about = inspect.getdoc(row.estimator) or ""
    oracle = "<span>test problems only</span>" if row.oracle else ""
    parts = [
        f"# {row.name}",
        f'<p class="chips"><span class="{slug(row.kind)}">{row.kind}</span>'
        f"<span>{row.group}</span>{oracle}</p>",
        dollars(about.partition("\n\n")[0].replace("`", "``").replace("````", "``")),
        f'<div class="statement">{each.target}</div>',
        f'<p class="source">{cited(row.source)}</p>',
        "## What it estimates",
        f"{MEANING[row.kind]} {explained(row.estimates)}",
        "## When to use it",
        "\n".join(f"- {sentence}" for sentence in (*when(each), *best(row, errors))),
        "## Cost",
        _cost(each),
        "## Beside the others of its kind",
        _standing(row, errors),
        "## Use it",
        _use(row),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def explained(estimand: Estimand) -> str:
    """What the kind of an estimand does not say."""
    if isinstance(estimand, ApproximateResidual):
        return f"That policy is `{estimand.zero}`."
    if isinstance(estimand, EquationResidual):
        return f"What holds where it vanishes: `{estimand.equation}`."
    if isinstance(estimand, Biased):
        there = "vanishes" if estimand.zero_at_optimum else "does not vanish"
        return f"What it misses: {estimand.why}. At the optimum its mean {there}."
    return ""


def when(each: Made) -> list[str]:
    """What an estimator asks for, and what it is good for, as its row and its cost say it."""
    row, cost = each.row, each.cost
    derivatives = cost.reference_derivatives + cost.policy_derivatives
    said = {
        "**Only where the exact solution is known**: it shows what is possible.": row.oracle,
        "A baseline to know, not to train with: its fixed point is not the optimum.": (
            row.kind == Kind.BIASED and not row.oracle
        ),
        "The reward may be a black box.": row.group == Group.ZEROTH_ORDER,
        "The reward must be differentiable.": row.group in (Group.PATHWISE, Group.CORRECTED)
        or (row.group == Group.PATH_MEASURE and derivatives > 0),
        "Paths may come from another policy.": isinstance(row.estimates, ApproximateResidual)
        and row.group == Group.PATH_MEASURE,
        "Its memory grows with the number of steps.": cost.memory == "T",
        f"At least {(few := _fewest(each.estimator))} paths are labelled together.": few > 1,
        "Something is fitted beforehand, to paths of its own.": bool(row.fitted),
    }
    return [sentence for sentence, holds in said.items() if holds]


def best(row: EstimatorRow, errors: Errors) -> list[str]:
    """Where an estimator has the smallest error at equal budget of those of its kind that can be
    used; at the optimum biased ones are not ranked, since one that returns zero would win.
    """
    places = []
    for where, found in errors.items():
        known = [each for each in found if not CATALOGUE[each.estimator].oracle]
        same = [each for each in known if each.kind == row.kind]
        ranked = row.kind != Kind.BIASED or not where.endswith("at the optimum")
        if ranked and len(same) > 1 and min(same, key=_value).estimator == row.name:
            places.append(where)
    return [f"The least error of its kind at equal budget: {'; '.join(places)}."] if places else []


def _value(record: Record) -> float:
    return record.value


def _fewest(estimator: Estimator) -> int:
    reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    return estimator.smallest_batch(ControlProblem(reference, Quadratic(-torch.eye(1)), beta=2.0))


def _cost(each: Made) -> str:
    cost = each.cost
    fitted = each.row.fit_evaluations(STEPS)
    memory = {0: "none", "T": "grows with the number of steps"}.get(cost.memory, "a few states")
    rows = [
        ("evaluations of the pre-trained mean", f"{cost.reference:g}"),
        ("derivatives of it", f"{cost.reference_derivatives:g}"),
        ("evaluations of the policy", f"{cost.policy:g}"),
        ("derivatives of it", f"{cost.policy_derivatives:g}"),
        (f"in all, per path of {STEPS} steps, the rollout included", f"{each.evaluations}"),
        ("fitted beforehand, once per policy", f"{fitted:,}" if fitted else "nothing"),
        ("memory per path beyond the path", memory),
    ]
    return table(("per step and path", "network work"), rows, (1,)) + (
        "\n\nA derivative counts as two evaluations in the sum."
    )


def _standing(row: EstimatorRow, errors: Errors) -> str:
    if not row.compared:
        return "A variant for training; it is not among those held against exact gradients."
    shown = [
        _strip(row, [each for each in found if each.kind == row.kind], where)
        for where, found in errors.items()
    ]
    return (
        "Root-mean-square error of the gradient with the same number of network evaluations for"
        " all, over the size of the gradient at the pre-trained model. Every dot is an estimator of"
        f" the kind *{row.kind}*; this one is marked.\n\n" + "\n\n".join(shown)
    )


def _strip(row: EstimatorRow, found: Sequence[Record], where: str) -> str:
    mine = next((record for record in found if record.estimator == row.name), None)
    told = _place(mine, found) if mine else "not measured, or refused"
    drawn = dots([record.value for record in found], mine.value if mine else None, where)
    return f'<figure class="wide"><figcaption><b>{where}</b>: {told}</figcaption>{drawn}</figure>'


def _place(mine: Record, found: Sequence[Record]) -> str:
    better = sum(record.value < mine.value for record in found)
    return f"{number(mine.value)}, {better + 1} of {len(found)}"


def _use(row: EstimatorRow) -> str:
    name = row.name.replace('"', '\\"')
    return (
        f"Its class is [`{row.estimator.__name__}`][{row.estimator.__module__}"
        f".{row.estimator.__qualname__}]. By name, where a problem and a policy are at hand:\n\n"
        "```python\nfrom socft.estimators.catalogue import find_estimator\n"
        "from socft.estimators.catalogue.context import EstimatorContext\n\n"
        f'estimator = find_estimator("{name}").make(EstimatorContext(problem, policy))\n```'
    )
