"""Which runs end below their best and why: a section of the Stable Diffusion report."""

from __future__ import annotations

from collections.abc import Sequence

from socft.records import Record
from socft.report import stable_diffusion_tables as tables
from socft.report.rows import Rows
from socft.report.stable_diffusion_adjoints import directions
from socft.report.stable_diffusion_figures import PI_FT, methods_of
from socft.report.typeset import NOT_MEASURED, figure, number, text

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
    fallen = {method: tables.fallen(rows, method, beta) for method in methods_of(rows)}
    found = [f"- {_reason(method, prompts, sizes)}" for method, prompts in fallen.items() if prompts]
    if not found:
        return "No run ends below its best by more than noise."
    return "Every run ends within noise of its best, but for these:\n\n" + "\n".join(found)


def _reason(method: str, prompts: Sequence[str], sizes: Rows) -> str:
    start = f"{text(method)} on {' and '.join(f'“{text(prompt)}”' for prompt in prompts)}"
    last = max(sizes.having("after").distinct("after"), default=0)

    def measured(metric: str, title: str) -> list[Record]:
        found = (sizes.where(metric, prompt, title, after=last).one() for prompt in prompts)
        return [record for record in found if record is not None]

    own, theirs = measured("agreement", method), measured("agreement", PI_FT)
    if not own:
        return f"{start}: why was {NOT_MEASURED}."
    turned = [record for record in measured("alignment", method) if _is_below(record, SAME)]
    if turned:
        cosines = " and ".join(f"{number(record.value, 2)} on “{text(record.problem)}”" for record in turned)
        return f"{start}: it does not climb this objective; the cosine of its mean gradient with PI-FT's is {cosines}."
    return (
        f"{start}: no bias shows in its gradients, but two batches of paths have a cosine of {_range(own)}, where it is"
        f" {_range(theirs)} for PI-FT."
    )


def _is_below(record: Record, level: float) -> bool:
    return record.stderr is not None and record.value + tables.BELIEVED * record.stderr < level


def _range(records: Sequence[Record]) -> str:
    values = sorted(record.value for record in records)
    ends = [number(value, 2) for value in (values[0], values[-1])]
    return ends[0] if len(values) == 1 else " to ".join(ends)
