"""What the report on gradients says about estimation: the chain, the kinds, the targets, and the
replicated studies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.context import FITTED_PATHS
from socft.estimators.catalogue.factories import CENTRES
from socft.estimators.estimand import Kind
from socft.report.gradient_variance import tables
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, landscape, number, text
from socft.study.comparison import BUDGET
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

ORACLES = frozenset(name for name, row in CATALOGUE.items() if row.oracle)


def estimated(rows: Rows) -> str:
    """The chapter on what is estimated."""
    return rf"""
= What is estimated

A chain with whitened control, and its objective, are

$ X_(k+1) = m_k (X_k) + B_k (v_k (X_k) + xi_k), quad xi_k tilde N(0, I), quad k = 0, dots, T - 1, $
<chain>

$ J(v) = bb(E) [ r(X_T) - sum_(k < T) f_k (X_k) + beta_k / 2 thin |v_k (X_k)|^2 ]. $ <objective>

With the value function $V_k$ of the policy $v$ itself, the gradient of the objective in the
parameters of the policy is

$ nabla_theta J = bb(E) sum_(k < T) (nabla_theta v_k (X_k))^top
  ( B_k^top nabla V_(k+1) (X_(k+1)) - beta_k v_k (X_k) ). $ <gradient>

An estimator proposes at every step of every path a _target_ for the control and descends $beta_k
|v_k - "target"_k|^2\/2$. Its estimate of the gradient is the mean over paths of $(nabla_theta
v_k)^top beta_k ("target"_k - v_k)$; it is exact in the mean if $"target"_k$ has the conditional
mean $B_k^top bb(E)[nabla V_(k+1) (X_(k+1)) | X_k]\/beta_k$. Pathwise targets come from costates,
which run backwards along a path from $a_T = nabla r(X_T)$:

$ "lean:" quad a_k = nabla m_k^top a_(k+1) - nabla f_k, quad quad
  "full:" quad a_k = nabla (m_k + B_k v_k)^top a_(k+1) - nabla f_k - beta_k nabla v_k^top v_k. $
  <costates>

A corrected costate subtracts from $a_(k+1)$ a martingale increment made from an approximate costate
$phi$, which leaves the conditional mean alone and takes noise away, a control variate of Newton
(1994)
and of Belomestny et al. (arXiv 1510.03141), here within the recursions of discrete costates:

$ d M_k = 1/2 ( phi_(k+1) (macron(x)_k + B_k xi_k) - phi_(k+1) (macron(x)_k - B_k xi_k) ) quad "or"
quad
  nabla phi_(k+1) (macron(x)_k) thin B_k xi_k, quad macron(x)_k = m_k + B_k v_k. $ <correction>

Sticking the landing (arXiv 1703.09194) needs no $phi$: it leaves the term $-beta_k (nabla v_k)^top
xi_k$ in the costate. At the optimum that is the increment of first order with the smoothed
curvature
of the value, but for the noise of a target's own step, which $nabla v_k B_k xi_k$ repairs (derived
here).

Zeroth-order targets need the reward alone: $A_k = r(X_T) - sum_(j > k) (f_j + beta_j |v_j|^2\/2)$
is the return after step $k$ and $b_k$ a baseline. Those of path measures weight paths by $w = d
P^*\/d P^v$ or compare $R = sum_k beta_k (v_k dot z_k -
|v_k|^2\/2) - r(X_T) + sum_k f_k$, with the controlled noise $z_k = v_k + xi_k$, over paths.
@catalogue lists all of them. They are of four kinds, and *as estimates of the gradient they have
tables and columns of their own, by kind*:

- _{Kind.OBJECTIVE_GRADIENT}_: {tables.MEANING[Kind.OBJECTIVE_GRADIENT]};
- _{Kind.FIXED_POINT_RESIDUAL}_: {_flat(tables.MEANING[Kind.FIXED_POINT_RESIDUAL])};
- _{Kind.APPROXIMATE_RESIDUAL}_: {_flat(tables.MEANING[Kind.APPROXIMATE_RESIDUAL])};
- _{Kind.BIASED}_: {tables.MEANING[Kind.BIASED]}.

{tables.catalogue(rows)}
"""


def compared(rows: Rows) -> str:
    """The master tables."""
    pages = "\n\n".join(
        tables.master(rows, problem, kind)
        for problem in tables.COMPARISON_PROBLEMS
        for kind in Kind
    )
    return rf"""
= Against the exact gradient

The gradient is taken in the coefficients of affine features of every step, where it is known
exactly: everywhere for the linear-quadratic problem, at the pre-trained model and at the optimum
for the mixture. A policy at scale $s$ is $s thin v^*$: the pre-trained model is $s = 0$, _near the
optimum_ is $s = 0.9$. The line from $s = 0$ to $s = 1$ stands for training: on it the exact
gradient is known. The noise of policies that training itself passes through, and on the
linear-quadratic problem their bias, are in the chapter on training. The error at budget is
$sqrt("bias"^2 + "variance"\/n)$ with as many paths $n$ as {budget()} network evaluations allow,
bias and noise together, however uncertain the bias is. Estimators whose means provably agree share
the bias that the quietest of them measures: all whose mean is the gradient, and adjoint matching
with its corrections by martingales. Costates, values and scores that an
estimator regresses are fitted to paths of their own, {FITTED_PATHS} (a kernel method {CENTRES}),
whose evaluations are charged to the budget. Everything is measured in {repetitions(rows)}
repetitions, each with a fit and with paths of its own, and the mean is over these; a biased
estimator's error at budget includes the variance that a fit leaves in its mean. Seconds, on one
thread, include the rollout but not the fit; memory is what labels of 64 paths take beyond path and
labels.

{landscape(pages)}
"""


def repetitions(rows: Rows) -> str:
    """How often everything was measured."""
    errors = rows.of(schemas.VARIANCE).where(Metric.ERROR_AT_BUDGET)
    counts = sorted({record.seeds for record in errors})
    return " or ".join(map(str, counts)) or NOT_MEASURED


def budget() -> str:
    """The budget of the study."""
    return f"$10^{math.log10(BUDGET):g}$"


AXES: Mapping[str, tuple[str, str]] = {
    "dimension": ("d", "$d$"),
    "steps": ("steps", "$T$ at a fixed horizon"),
    "horizon": ("horizon", "the horizon at a fixed step size"),
    "noise": ("noise", "the noise of the oscillator"),
}
FOLLOWED = (
    MethodName.ADJOINT_MATCHING,
    MethodName.MARTINGALE_POLICY_COSTATE,
    MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
    MethodName.LOG_VARIANCE,
)


def growth(rows: Rows) -> str:
    """How variances grow along every axis, in a list."""
    lines = []
    for axis, (key, told) in AXES.items():
        found = rows.of(schemas.VARIANCE).where(Metric.VARIANCE, axis=axis)
        places = found.distinct(key)
        shares = []
        for name in FOLLOWED:
            ends = [
                found.where(estimator=name, **{key: place}).one()
                for place in places[:1] + places[-1:]
            ]
            known = [record.value for record in ends if record is not None]
            share = (
                number(known[1] / known[0], 2) if len(known) == 2 and known[0] > 0 else NOT_MEASURED
            )
            shares.append(f"{text(name)} {share}")
        if places:
            lines.append(
                f"- from {key_value(places[0])} to {key_value(places[-1])} in {told}:"
                f" {'; '.join(shares)}"
            )
    return "\n".join(lines) or NOT_MEASURED


def key_value(each: float) -> str:
    """A setting as mathematics."""
    return f"${each:g}$"


def _flat(markup: str) -> str:
    return " ".join(markup.split())


def best(
    rows: Rows, kind: str, problem: tables.ComparisonProblem, scale: float
) -> list[tuple[str, float]]:
    """Estimators of a kind by their error at equal budget, best first, but for those that need an
    exact costate or score.
    """
    errors = problem.rows(rows).where(Metric.ERROR_AT_BUDGET, scale=scale)
    found = errors.filter(lambda r: r.kind == kind and r.estimator not in ORACLES)
    return sorted(((record.estimator, record.value) for record in found), key=lambda pair: pair[1])


def first(pairs: Sequence[tuple[str, float]]) -> str:
    """The best of a ranking as markup for a sentence: its error, and who has it."""
    return f"{number(pairs[0][1])} ({text(pairs[0][0])})" if pairs else NOT_MEASURED


def listed(pairs: Sequence[tuple[str, float]], count: int = 1) -> str:
    """The first of a ranking as markup."""
    return (
        "; ".join(f"{text(name)}, {number(value)}" for name, value in pairs[:count]) or NOT_MEASURED
    )
