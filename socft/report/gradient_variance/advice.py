"""Which estimator to use: every recommendation beside the recorded numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.gradient_variance.cells import NONE, ends, value
from socft.report.gradient_variance.tables import ARENAS, Arena
from socft.report.gradient_variance.text import best, listed
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

ADVISED = (Kind.OBJECTIVE_GRADIENT, Kind.FIXED_POINT_RESIDUAL)
OWN, CHEAP = MethodName.MARTINGALE_POLICY_COSTATE, MethodName.MARTINGALE_POLICY_COSTATE_CHEAP
PLAIN = MethodName.SCORE_FUNCTION_NO_BASELINE
SEEN, ROUNDING = 4.0, 1e-12
LQ, MIXTURE = ARENAS


def chapter(rows: Rows) -> str:
    """A page of its own, set a little smaller; what does not fit runs on."""
    return rf"""
#pagebreak(weak: true)
#[
#set text(size: 8.4pt)
= Which estimator should I use?

@winners ranks the estimators by their error at equal budget; exact costates and scores are known on
test problems only and are left out. The recommendations that follow quote the records; ratios are
between estimators of one kind, and below 1 where the first one named is better.

{winners(rows)}

+ *The reward is differentiable and memory allows a derivative of the network per step.* Begin with
  adjoint matching: {_evaluations(rows, MethodName.ADJOINT_MATCHING)} evaluations per path against
  {_evaluations(rows, MethodName.FULL_ADJOINT)} of the full adjoint. Trained with equal budgets it
  ends at
  {_ends(rows, MethodName.ADJOINT_MATCHING)} below the optimum, the full adjoint at
  {_ends(rows, MethodName.FULL_ADJOINT)}.
+ *The policy is near the optimum already*, or the noise of the gradient is what limits. Correct the
  costate with the policy's own. Its error at equal budget over that of adjoint matching is
  {_errors(rows, OWN, MethodName.ADJOINT_MATCHING)}; in the cheap form, without the factor $nabla m$
  in
  $phi$, {_errors(rows, CHEAP, MethodName.ADJOINT_MATCHING)}. Far from the optimum the policy knows
  nothing
  yet and the correction is paid for in steps: trained with it from the start, a policy ends at
  {_ends(rows, OWN)} below the optimum, in the cheap form at {_ends(rows, CHEAP)}.
+ *The gradient of the objective itself is wanted*, for a line search or a convergence guarantee.
  Take the full adjoint. Corrected with a fitted costate, the fit charged, its error at equal budget
  over that without is
  {_errors(rows, MethodName.FULL_MARTINGALE_FITTED_COSTATE, MethodName.FULL_ADJOINT)}: it pays
  as far as the features hold the costate.
+ *The reward is a black box.* Take a baseline: with the other paths' mean the error at equal budget
  over that of the score function alone is
  {_errors(rows, MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT, PLAIN)}.
  The log-variance loss has the divergence of the path for a control variate:
  {_errors(rows, MethodName.LOG_VARIANCE, PLAIN)}. Trained from the start it ends at
  {_ends(rows, MethodName.LOG_VARIANCE)} below the optimum, the score function with a baseline at
  {_ends(rows, MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT)}. It is no rule: on the oscillator its
  variance over
  that of the leave-one-out baseline is
  {_oscillator(rows, MethodName.LOG_VARIANCE, MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT)}. The full
  adjoint, where
  there is one, has {ratio(rows, LQ, MethodName.FULL_ADJOINT, MethodName.LOG_VARIANCE, 0.9)} times
  the variance of the
  log-variance loss near the optimum.
+ *Paths of another policy.* The losses of path measures hold on any; here they are measured on the
  policy's own. Trained on the problems of their publication, SOCM ends at a mean-square error of
  the control of {_controls(rows, MethodName.SOCM_DEGREE_2)}, SOCM-adjoint at
  {_controls(rows, MethodName.SOCM_ADJOINT)}, adjoint matching at
  {_controls(rows, MethodName.ADJOINT_MATCHING)}.
+ *What biased estimators cost.* At the optimum, where the gradient is zero, the mean of these is
  not, by more than 4 standard errors: {_biases(rows)}, in units of the gradient at the start. Their
  stationary point is elsewhere.
]
"""


def winners(rows: Rows) -> str:
    """The best two of every kind in every situation."""
    body: list[Sequence[str]] = []
    for arena in ARENAS:
        body.append((arena.title,))
        for scale, title in arena.scales.items():
            last = NONE if scale == 1.0 else _usable(rows, Kind.BIASED, arena, scale)
            body.append((title, *(_usable(rows, kind, arena, scale) for kind in ADVISED), last))
    return Table(
        header=("policy", *(f"{kind}" for kind in (*ADVISED, Kind.BIASED))),
        rows=body,
        caption="""The two estimators of every kind with the smallest error at equal budget, and
            that error. At the optimum biased ones are not ranked: one that always returns zero
            would win.""",
        label="winners",
        align="llll",
        widths=("auto", "1fr", "1fr", "1fr"),
        long=True,
    ).markup


def _usable(rows: Rows, kind: str, arena: Arena, scale: float) -> str:
    ranked = best(rows, kind, arena, scale)
    return listed(ranked[:1]) + (rf" \ {listed(ranked[1:2])}" if len(ranked) > 1 else "")


def ratio(
    rows: Rows, arena: Arena, name: str, other: str, scale: float, metric: Metric = Metric.VARIANCE
) -> str:
    """A metric of an estimator over that of another of the same kind."""
    mine, theirs = (
        arena.rows(rows).where(metric, estimator=each, scale=scale).one() for each in (name, other)
    )
    return _over(mine, theirs)


def _over(mine: Record | None, theirs: Record | None) -> str:
    if mine is None or theirs is None or mine.kind != theirs.kind or theirs.value <= 0:
        return NOT_MEASURED
    return (
        "rounding" if mine.value < ROUNDING * theirs.value else number(mine.value / theirs.value, 2)
    )


def _errors(rows: Rows, name: str, other: str) -> str:
    """Ratios of errors at equal budget at all policies of both problems."""
    told = []
    for arena, place in ((LQ, "on the Gaussian problem"), (MIXTURE, "on the mixture")):
        shares = [
            f"{ratio(rows, arena, name, other, scale, Metric.ERROR_AT_BUDGET)} {title}"
            for scale, title in arena.scales.items()
        ]
        told.append(f"{', '.join(shares[:-1])} and {shares[-1]} {place}")
    return "; ".join(told)


def _oscillator(rows: Rows, name: str, other: str) -> str:
    """Ratios of variances along the noise of the oscillator."""
    found = rows.of(schemas.VARIANCE).where(Metric.VARIANCE, axis="noise")
    pairs = [
        (noise, *(found.where(estimator=each, noise=noise).one() for each in (name, other)))
        for noise in found.distinct("noise")
    ]
    return (
        ", ".join(f"{_over(mine, theirs)} at noise ${noise:g}$" for noise, mine, theirs in pairs)
        or NOT_MEASURED
    )


def _ends(rows: Rows, name: str) -> str:
    """What training falls short of the optimum by, on both problems."""
    found = ends(rows.of(schemas.TRAINING).where(Metric.OBJECTIVE_GAP, estimator=name), "iteration")
    mixture, gaussian = (found.where(problem=arena.problem).one() for arena in (MIXTURE, LQ))
    return f"{value(gaussian)} on the Gaussian problem and {value(mixture)} on the mixture"


def _controls(rows: Rows, name: str) -> str:
    """Errors of the control at the end of training on the suite of SOCM."""
    found = ends(rows.of(schemas.SOCM).where(Metric.CONTROL_L2, estimator=name), "iteration")
    told = [f"{value(record)} on {text(record.problem)}" for record in found]
    return ", ".join(told) or NOT_MEASURED


def _evaluations(rows: Rows, name: str) -> str:
    record = next(iter(LQ.rows(rows).where(Metric.BIAS, estimator=name)), None)
    return integer(record.evaluations if record else None)


def _biases(rows: Rows) -> str:
    found = [
        record
        for record in LQ.rows(rows).where(Metric.BIAS, scale=1.0)
        if record.kind == Kind.BIASED
    ]
    seen = [
        record
        for record in found
        if record.stderr is not None and record.value > SEEN * record.stderr
    ]
    told = ", ".join(
        f"{value(record)} for {text(record.estimator)}"
        for record in sorted(seen, key=lambda each: -each.value)
    )
    return told or ("none of them" if found else NOT_MEASURED)
