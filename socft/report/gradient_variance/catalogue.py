"""The estimators that the report on gradients shows: group, kind, target formula and source of
each.

Formulas are Typst mathematics in the notation of the report: :math:`a` is a costate,
:math:`z_k = v_k + \\xi_k` a kick, :math:`w` a path weight.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from socft.report.rows import Rows

OBJECTIVE, FIXED_POINT, BIASED = KINDS = ("objective gradient", "fixed-point residual", "biased")
GROUPS = ("pathwise", "corrected", "zeroth order", "path measure")
OWN = "derived here"


@dataclasses.dataclass(frozen=True)
class Line:
    """An estimator in one line.

    Attributes:
        group: where its information comes from.
        kind: what it estimates.
        target: what its loss matches the control with, as markup.
        source: paper, as markup.
    """

    group: str
    kind: str
    target: str
    source: str


def paper(number: str) -> str:
    """A paper on arXiv as a link."""
    return f'#link("https://arxiv.org/abs/{number}")[{number}]'


MATCHING, TD, BSDE = paper("2409.08861"), f"{OWN}, after TD($lambda$)", paper("2603.20455v2")
SCORE, SOCM = f"Williams 1992, {OWN}", paper("2312.02027")
DRAFT = paper("2309.17400")
LEAN, FULL = "$B_k^top a_(k+1)\\/beta_k$, lean", "$B_k^top a_(k+1)\\/beta_k$, full"
CORRECTED_LEAN, CORRECTED_FULL = (
    f"$B_k^top (a_(k+1) - d M_k)\\/beta_k$, {which}" for which in ("lean", "full")
)
REVERSED = "$B_k^top Y_(k+1)\\/beta_k$ at reversed states"
BOOTSTRAPPED = "$B_k^top phi_(k+1) (x_(k+1))\\/beta_k$"
LEAST_SQUARES = paper("2410.04615")
RETURN = "(A_k - b_k) thin xi_k\\/beta_k"

CATALOGUE: dict[str, Line] = {
    "full adjoint": Line("pathwise", OBJECTIVE, FULL, paper("2412.18164v4") + ", (77)"),
    "adjoint matching": Line("pathwise", FIXED_POINT, LEAN, MATCHING),
    "adjoint matching, published index": Line(
        "pathwise", BIASED, "$B_k^top a_k\\/beta_k$, lean", MATCHING + ", its code"
    ),
    "reciprocal adjoint matching": Line(
        "pathwise", BIASED, "lean, at bridges of the reference", paper("2504.11713")
    ),
    "truncated backpropagation, 1 step": Line(
        "pathwise", BIASED, "full for $k >= T - 1$, else $v_k$", DRAFT
    ),
    "truncated backpropagation, 10 steps": Line(
        "pathwise", BIASED, "full for $k >= T - 10$, else $v_k$", DRAFT
    ),
    "ReFL": Line(
        "pathwise",
        BIASED,
        "$v_k + nabla_v r(hat(x))\\/beta_k$, one $k >= 3 T\\/4$",
        paper("2304.05977"),
    ),
    "truncated backpropagation, random": Line(
        "pathwise", BIASED, "full for $k >= T - K$, $K$ random", paper("2310.03739")
    ),
    "martingale, policy's costate": Line(
        "corrected", FIXED_POINT, CORRECTED_LEAN + "; antithetic, $phi$ of $v$", OWN
    ),
    "martingale, policy's costate, first order": Line(
        "corrected", FIXED_POINT, CORRECTED_LEAN + "; first order", OWN
    ),
    "martingale, policy's costate, cheap": Line(
        "corrected", FIXED_POINT, CORRECTED_LEAN + "; $phi$ without $nabla m$", OWN
    ),
    "martingale, fitted costate": Line(
        "corrected", OBJECTIVE, CORRECTED_FULL + "; $phi$ regressed", OWN
    ),
    "martingale, kernel-ridge costate": Line(
        "corrected", OBJECTIVE, CORRECTED_FULL + "; $phi$ by kernel ridge", OWN
    ),
    "martingale, quadratic costate, second order": Line(
        "corrected", OBJECTIVE, CORRECTED_FULL + "; $phi$ quadratic", OWN
    ),
    "martingale, exact costate": Line(
        "corrected", OBJECTIVE, CORRECTED_FULL + "; $phi = nabla V^v$", OWN
    ),
    "TD(0.9), fitted costate": Line(
        "corrected", BIASED, "$B_k^top (0.9 thin a_(k+1) + 0.1 thin phi_(k+1))\\/beta_k$", TD
    ),
    "TD(0), fitted costate": Line(
        "corrected", BIASED, "$B_k^top phi_(k+1) (x_(k+1))\\/beta_k$", TD
    ),
    "least squares, costate form": Line(
        "corrected", BIASED, BOOTSTRAPPED + "; one regression per step", LEAST_SQUARES
    ),
    "least squares, value form": Line(
        "corrected", BIASED, BOOTSTRAPPED + "; $phi = nabla V$, $V$ regressed", LEAST_SQUARES
    ),
    "time-reversed, fitted costate": Line(
        "corrected", BIASED, REVERSED + "; $phi$ regressed", BSDE
    ),
    "time-reversed, exact score": Line(
        "corrected", BIASED, REVERSED + "; $nabla log p$ exact", BSDE
    ),
    "time-reversed, implicit score": Line(
        "corrected", BIASED, REVERSED + "; score by parts", BSDE + ", Hyvärinen 2005"
    ),
    "time-reversed, nearest-kernel score": Line(
        "corrected", BIASED, REVERSED + "; score of kernels", BSDE
    ),
    "time-reversed, value form": Line(
        "corrected", BIASED, BOOTSTRAPPED + "; $phi = nabla Y$, $Y$ reversed values", BSDE
    ),
    "time-reversed, exact costate": Line(
        "corrected", BIASED, REVERSED + "; $phi = nabla V^v$", BSDE
    ),
    "time-reversed, exact costate, published pairing": Line(
        "corrected", BIASED, REVERSED + "; two noises", BSDE + ", its code"
    ),
    "score function, no baseline": Line("zeroth order", OBJECTIVE, f"${RETURN}$, $b = 0$", SCORE),
    "score function, leave-one-out": Line(
        "zeroth order", OBJECTIVE, f"${RETURN}$, $b$ of the other paths", SCORE
    ),
    "score function, regression baseline": Line(
        "zeroth order", OBJECTIVE, f"${RETURN}$, $b$ regressed", SCORE
    ),
    "score function without KL-to-go": Line(
        "zeroth order", BIASED, f"${RETURN}$, no KL in $A_k$", SCORE
    ),
    "integration by parts": Line(
        "zeroth order", OBJECTIVE, f"${RETURN}$, as a costate", paper("2412.18164v4") + ", (48)"
    ),
    "DDPO": Line("zeroth order", BIASED, "clipped ratio, rewards normalised", paper("2305.13301")),
    "DPOK": Line("zeroth order", BIASED, f"${RETURN}$, KL at fixed states", paper("2305.16381")),
    "relative entropy": Line("path measure", OBJECTIVE, FULL, SOCM),
    "log-variance": Line(
        "path measure", OBJECTIVE, "$v_k - (R - macron(R)) thin xi_k\\/beta_k$", paper("2005.05409")
    ),
    "moment": Line(
        "path measure", OBJECTIVE, "$v_k - (R + y_0) thin xi_k\\/beta_k$, $y_0$ learnt", SOCM
    ),
    "variance": Line(
        "path measure",
        FIXED_POINT,
        "$v_k + rho thin (rho - 1) thin xi_k$, $rho prop e^(-R\\/beta)$",
        SOCM,
    ),
    "cross entropy": Line("path measure", FIXED_POINT, "$z_k$, weight $w$", SOCM),
    "SOCM": Line("path measure", FIXED_POINT, "$B_k^top S_k$, weight $w$", SOCM),
    "SOCM-adjoint": Line("path measure", FIXED_POINT, LEAN + ", weight $w$", SOCM),
}


def kinds(rows: Rows) -> Mapping[str, str]:
    """Kind by estimator, those of the catalogue first: that of its records, of one that was always
    refused the catalogue's.
    """
    known = {name: line.kind for name, line in CATALOGUE.items()}
    refused = {
        record.estimator: BIASED
        for record in rows
        if record.metric == "refused" and record.estimator not in known
    }
    return (
        known | refused | {record.estimator: record.kind for record in rows if record.kind in KINDS}
    )


def names(rows: Rows, kind: str) -> list[str]:
    """The estimators of a kind."""
    return [name for name, found in kinds(rows).items() if found == kind]
