"""Which estimator to use: every recommendation beside the recorded numbers that it rests on."""

from __future__ import annotations

from collections.abc import Sequence

from socft.report.gradient_variance_catalogue import BIASED, FIXED_POINT, OBJECTIVE
from socft.report.gradient_variance_cells import value
from socft.report.gradient_variance_tables import ARENAS, Arena
from socft.report.gradient_variance_text import best, listed
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text

ADVISED = (OBJECTIVE, FIXED_POINT)
LQ, MIXTURE = ARENAS


def chapter(rows: Rows) -> str:
    """The page, on one page."""
    return rf"""
#block(breakable: false, above: 1.7em)[
= Which estimator should I use?

@winners ranks the estimators by their error at equal budget; exact costates and scores are known on test problems only and are
left out. The
recommendations that follow quote the records; ratios of variances are between estimators of one kind, on the Gaussian problem.

{winners(rows)}

+ *The reward is differentiable and memory allows a derivative of the network per step.* Take the lean adjoint of adjoint matching:
  {_evaluations(rows, "adjoint matching")} evaluations per path against {_evaluations(rows, "full adjoint")} of the full adjoint.
  Its variance is {_value(rows, LQ, "adjoint matching", 0.0)} at the pre-trained model and
  {_value(rows, LQ, "adjoint matching", 1.0)} at the optimum, where its noise stays.
+ *Training goes on near the optimum.* Correct the costate with the policy's own: near the optimum its variance is
  {ratio(rows, LQ, "martingale, policy's costate", "adjoint matching", 0.9)} times that of adjoint matching, at the optimum
  {ratio(rows, LQ, "martingale, policy's costate", "adjoint matching", 1.0)} times; without the factor $nabla m$ in $phi$, the
  cheap
  form, {ratio(rows, LQ, "martingale, policy's costate, cheap", "adjoint matching", 0.9)} and
  {ratio(rows, LQ, "martingale, policy's costate, cheap", "adjoint matching", 1.0)} times. At the pre-trained model it is
  {ratio(rows, LQ, "martingale, policy's costate", "adjoint matching", 0.0)} times, where the policy knows nothing yet. On the
  mixture the ratio at the optimum is {ratio(rows, MIXTURE, "martingale, policy's costate", "adjoint matching", 1.0)}.
+ *The gradient of the objective itself is wanted*, for a line search or a convergence guarantee. Take the full adjoint, and
  correct it with a fitted costate: its variance near the optimum is
  {ratio(rows, LQ, "martingale, fitted costate", "full adjoint", 0.9)} times that of the full adjoint alone.
+ *The reward is a black box.* Compare with the score function without a baseline. With a leave-one-out baseline the variance
  is {_shares(rows, "score function, leave-one-out")}; with a regressed one {_shares(rows, "score function, regression baseline")};
  the log-variance loss, whose control variate is the path's own divergence, has {_shares(rows, "log-variance")}. Take it once
  the policy is near the optimum. Near it, its variance is {ratio(rows, LQ, "log-variance", "full adjoint", 0.9)} times that of the
  full adjoint.
+ *Off the policy's own paths.* The losses of path measures are the ones that allow any sampling policy: SOCM-adjoint has a variance
  of {_value(rows, LQ, "SOCM-adjoint", 0.9)} near the optimum, SOCM of {_value(rows, LQ, "SOCM", 0.9)} and the cross entropy of
  {_value(rows, LQ, "cross entropy", 0.9)}.
+ *What biased estimators cost.* At the optimum, where the gradient is zero, the bias is
  {_biases(rows)}, in units of the gradient at the start. Where that is not zero to its error, the stationary point is elsewhere.
]
"""


def winners(rows: Rows) -> str:
    """The best two of every unbiased kind in every situation, and the best biased one."""
    body: list[Sequence[str]] = []
    for arena in ARENAS:
        body.append((arena.title,))
        for scale, title in arena.scales.items():
            body.append((title, *(_usable(rows, kind, arena, scale) for kind in (*ADVISED, BIASED))))
    return Table(
        header=("policy", *(f"{kind}" for kind in (*ADVISED, BIASED))),
        rows=body,
        caption="The two estimators of every kind with the smallest error at equal budget, and that error.",
        label="winners",
        align="llll",
        widths=("auto", "1fr", "1fr", "1fr"),
        long=True,
    ).markup


def _usable(rows: Rows, kind: str, arena: Arena, scale: float) -> str:
    ranked = best(rows, kind, arena, scale)
    return listed(ranked[:1]) + (rf" \ {listed(ranked[1:2])}" if len(ranked) > 1 else "")


def _value(rows: Rows, arena: Arena, name: str, scale: float, metric: str = "variance") -> str:
    record = arena.rows(rows).where(metric, estimator=name, scale=scale).one()
    return number(record.value if record else None)


def ratio(rows: Rows, arena: Arena, name: str, other: str, scale: float) -> str:
    """The variance of an estimator over that of another of the same kind."""
    mine, theirs = (arena.rows(rows).where("variance", estimator=each, scale=scale).one() for each in (name, other))
    if mine is None or theirs is None or mine.kind != theirs.kind or theirs.value <= 0:
        return NOT_MEASURED
    return number(mine.value / theirs.value, 2)


def _shares(rows: Rows, name: str) -> str:
    """Ratios to the score function without a baseline at all policies."""
    shares = [f"{ratio(rows, LQ, name, 'score function, no baseline', scale)} {title}" for scale, title in LQ.scales.items()]
    return f"{', '.join(shares[:-1])} and {shares[-1]}"


def _evaluations(rows: Rows, name: str) -> str:
    record = next(iter(LQ.rows(rows).where("bias", estimator=name)), None)
    return integer(record.evaluations if record else None)


def _biases(rows: Rows) -> str:
    found = LQ.rows(rows).where("bias", scale=1.0)
    names = ("truncated backpropagation, 10 steps", "DDPO", "DPOK", "adjoint matching, published index", "TD(0), fitted costate")
    return ", ".join(f"{value(found.where(estimator=name).one())} for {text(name)}" for name in names)
