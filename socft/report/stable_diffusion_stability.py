"""Which runs end below their best and why: a section of the Stable Diffusion report."""

from __future__ import annotations

from socft.records import Record
from socft.report import stable_diffusion_tables as tables
from socft.report.gradient_variance_cells import value
from socft.report.rows import Rows
from socft.report.stable_diffusion_adjoints import directions
from socft.report.stable_diffusion_figures import PI_FT, methods_of
from socft.report.typeset import NOT_MEASURED, figure, text

SAME = 0.9
"""Cosine above which two directions are called the same."""


def section(rows: Rows, sizes: Rows, prompt: str, beta: float) -> str:
    """The section: pictures of one prompt, drops of all, and what the gradients at the same policy say of them."""
    picture = figure(
        "noise.svg",
        f"Training on “{text(prompt)}”: norm of the gradient, standard deviation of its noise, and the largest target control.",
        "noise-figure",
        "Three panels against rounds on logarithmic scales, one curve per method.",
    )
    return rf"""
= Stability

{picture}

{tables.drops(rows, beta)}

{reasons(rows, sizes, beta)}

{directions(sizes)}

A target control is $B_k^top a_(k+1)\/beta$, so its norm is that of the adjoint up to constants. In @targets, what is already spread
at the last step is the gradient of the reward itself, and what is added towards the first step is the product of the sampler's
Jacobians; the next section says when both are large.

{tables.targets(rows, prompt, beta)}
"""


def reasons(rows: Rows, sizes: Rows, beta: float) -> str:
    """Every method with a run that ends below its best by more than noise, and why it does, as far as that was measured."""
    if not rows.where("drop", beta=beta):
        return ""
    fallen = [(method, prompt) for method in methods_of(rows) for prompt in tables.fallen(rows, method, beta)]
    if not fallen:
        return "No run ends below its best by more than noise."
    reasons = "\n".join(f"- {text(method)} on “{text(prompt)}”: {_reason(method, prompt, sizes)}" for method, prompt in fallen)
    return f"Every run ends within noise of its best, but for these:\n\n{reasons}"


def _reason(method: str, prompt: str, sizes: Rows) -> str:
    """A bias or more noise than PI-FT has, if one of them was found after training."""
    last = max(sizes.having("after").distinct("after"), default=0)
    own, theirs, cosine = (
        sizes.where(metric, prompt, title, after=last).one()
        for metric, title in (("agreement", method), ("agreement", PI_FT), ("alignment", method))
    )
    if own is None or theirs is None:
        return f"why was {NOT_MEASURED}."
    if cosine is not None and _is_below(cosine, SAME):
        return f"it does not climb this objective; the cosine of its mean gradient with PI-FT's is {value(cosine)}."
    if _is_below(own, theirs.value):
        return f"it is noisier; two of its batches have a cosine of {value(own)}, two of PI-FT's {value(theirs)}."
    known = (
        f"the cosine of its mean gradient with PI-FT's is {value(cosine)}" if cosine is not None else "its gradient is only noise"
    )
    return f"why is not decided by what was measured: {known}."


def _is_below(record: Record, level: float) -> bool:
    return record.stderr is not None and record.value + tables.BELIEVED * record.stderr < level
