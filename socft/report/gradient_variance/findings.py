"""What the report on gradient estimators finds."""

from __future__ import annotations

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.rows import Group
from socft.estimators.estimand import Kind
from socft.report.claim_records import Claims
from socft.report.findings import Answer, NotMeasured, Number, Question, error, made, one
from socft.report.gradient_variance.errors import behind, with_bias
from socft.report.gradient_variance.tables import COMPARISON_PROBLEMS
from socft.report.rows import Rows
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

START, NEAR, OPTIMUM = 0.0, 0.9, 1.0
SEEN = 4.0
"""Standard errors beyond which a bias is called one."""
GAUSSIAN, _ = COMPARISON_PROBLEMS
OWN = MethodName.MARTINGALE_POLICY_COSTATE


def error_with_bias(rows: Rows, name: str, scale: float) -> Number:
    """The error at equal budget with its bias, on the Gaussian problem."""
    here = GAUSSIAN.rows(rows).where(scale=scale)
    found, whole = (
        each.where(Metric.ERROR_AT_BUDGET, estimator=name).one() for each in (here, with_bias(here))
    )
    if found is None or whole is None:
        raise NotMeasured
    return Number(whole.value, behind(here, found))


def _variance(rows: Rows, name: str, scale: float) -> Number:
    return one(GAUSSIAN.rows(rows).where(Metric.VARIANCE, estimator=name, scale=scale))


def fitted_costate(rows: Rows, _: Claims) -> Answer:
    """Errors of the full adjoint with a fitted costate and without."""
    fitted, full = MethodName.FULL_MARTINGALE_FITTED_COSTATE, MethodName.FULL_ADJOINT
    near = {
        "near": error_with_bias(rows, fitted, NEAR),
        "plain_near": error_with_bias(rows, full, NEAR),
    }
    start = {
        "start": error_with_bias(rows, fitted, START),
        "plain_start": error_with_bias(rows, full, START),
    }
    gained, same = (a.over(b).value for a, b in (tuple(near.values()), tuple(start.values())))
    return {**near, **start}, gained < 0.5 and 0.8 < same < 1.1


def own_costate(rows: Rows, _: Claims) -> Answer:
    """Errors of adjoint matching with the policy's costate over those without."""
    plain = MethodName.ADJOINT_MATCHING
    ratios = {
        name: error_with_bias(rows, OWN, scale).over(error_with_bias(rows, plain, scale), 2)
        for name, scale in (("start", START), ("near", NEAR))
    }
    noise = _variance(rows, OWN, OPTIMUM).over(_variance(rows, plain, OPTIMUM), 1)
    carried = ratios["near"].value < 1 < ratios["start"].value and noise.value < 1e-9
    return {**ratios, "noise": noise}, carried


def same_path(rows: Rows, _: Claims) -> Answer:
    """Variances and prices of adjoint matching and the full adjoint at the start."""
    lean, full = MethodName.ADJOINT_MATCHING, MethodName.FULL_ADJOINT
    ratio = _variance(rows, lean, START).over(_variance(rows, full, START), 4)
    costs = []
    for name in (lean, full):
        record = GAUSSIAN.rows(rows).where(Metric.VARIANCE, estimator=name, scale=START).one()
        if record is None or record.evaluations is None:
            raise NotMeasured
        costs.append(Number(record.evaluations, (record,)))
    numbers = {"ratio": ratio, "lean": costs[0], "full": costs[1]}
    return numbers, abs(ratio.value - 1) < 1e-9 and costs[0].value < costs[1].value


def _black_box(rows: Rows, _: Claims) -> Answer:
    names = [
        name
        for name, row in CATALOGUE.items()
        if row.group == Group.ZEROTH_ORDER and row.kind == Kind.OBJECTIVE_GRADIENT
        if not row.oracle
    ]
    tried = GAUSSIAN.rows(rows).where(Metric.ERROR_AT_BUDGET, scale=START).fields("estimator")
    errors = [error_with_bias(rows, name, START) for name in names if name in tried]
    if not errors:
        raise NotMeasured
    least = min(errors, key=lambda each: each.value)
    numbers = {
        "tried": made(len(errors), *errors),
        "least": made(least.value, *errors),
        "times": made(least.value, *errors).over(
            error_with_bias(rows, MethodName.FULL_ADJOINT, START), 2
        ),
    }
    return numbers, numbers["times"].value > 2


def biased_mean(rows: Rows, _: Claims) -> Answer:
    """Means where the gradient is zero."""
    found = GAUSSIAN.rows(rows).where(Metric.BIAS, scale=OPTIMUM)
    numbers = {}
    for key, name in (
        ("refl", MethodName.REFL),
        ("back", MethodName.TIME_REVERSED_EXACT_COSTATE),
    ):
        numbers[key] = one(found.where(estimator=name))
        numbers[f"{key}_error"] = error(found.where(estimator=name))
    carried = all(
        numbers[key].value > SEEN * numbers[f"{key}_error"].value for key in ("refl", "back")
    )
    return {name: Number(n.value, n.evidence, 2) for name, n in numbers.items()}, carried


QUESTIONS = (
    Question(
        "Fitted costates",
        "A costate that is regressed takes noise away where the features hold it: near the optimum"
        " of the Gaussian problem the full adjoint corrected by it has an error of {near} at equal"
        " budget, without it {plain_near}; at the pre-trained model {start} and {plain_start}, in"
        " units of the gradient there.",
        fitted_costate,
    ),
    Question(
        "The policy's own costate",
        "Correcting adjoint matching by the policy's own costate leaves its mean alone, so that"
        " both have one bias. Its error at equal budget is {near} times as large near the optimum"
        " and {start} times at the pre-trained model; at the optimum its variance is {noise} of"
        " that without.",
        own_costate,
    ),
    Question(
        "At the pre-trained model",
        "At the pre-trained model adjoint matching is the full adjoint, path by path"
        " (variances in the ratio {ratio}), for {lean} network evaluations instead of {full}.",
        same_path,
    ),
    Question(
        "Black boxes",
        "Without the gradient of the reward the smallest error of {tried} unbiased estimators at"
        " the pre-trained model is {least}, {times} times that of the full adjoint.",
        _black_box,
    ),
    Question(
        "Biased estimators",
        "Where the gradient is zero, at the optimum, some published estimators are not: the mean of"
        " ReFL is {refl} ± {refl_error}, that of time-reversed costates, with the exact score and"
        " the exact costate, {back} ± {back_error}, in units of the gradient at the start.",
        biased_mean,
    ),
)
