"""What the trainings reach of what they maximise: a section of the Stable Diffusion report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from socft.report.figures import finish, legend, panels, reference, svg
from socft.report.gradient_variance.cells import with_error
from socft.report.rows import Rows
from socft.report.stable_diffusion import tables
from socft.report.stable_diffusion.figures import final, look_of, methods_of
from socft.report.typeset import NOT_MEASURED, Table, figure, number, text
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

FRONTIER = "frontier.svg"
SURE = 2.0
"""Standard errors over the pictures within which a gain over the pre-trained model is called
level with it.
"""
Gain = tuple[float, float]


def tuned(rows: Rows) -> list[str]:
    """The methods that were trained."""
    return [name for name in methods_of(rows) if name != MethodName.PRE_TRAINED]


def gain(rows: Rows, prompt: str, method: str, beta: float) -> Gain | None:
    """Objective over the pre-trained model's, whose divergence is zero, and its standard error:
    mean over the trainings where there were several.

    Pictures of both are from the same noise, so that the reward's part is a mean of differences.
    """
    reward = tables.mean_of_trainings(rows, Metric.REWARD_GAIN, prompt, method, beta)
    kl = tables.mean_of_trainings(rows, Metric.KL, prompt, method, beta)
    if reward is None or kl is None:
        return None
    return reward[0] - beta * kl[0], math.hypot(reward[1], beta * kl[1])


def gains(rows: Rows, beta: float) -> Mapping[str, Mapping[str, Gain]]:
    """By method and prompt, the best method in the mean over prompts first."""
    prompts = rows.fields("problem")
    found = {
        method: {
            prompt: each
            for prompt in prompts
            if (each := gain(rows, prompt, method, beta)) is not None
        }
        for method in tuned(rows)
    }
    known = {method: each for method, each in found.items() if each}
    return dict(sorted(known.items(), key=lambda item: -_mean(item[1])))


def _mean(each: Mapping[str, Gain]) -> float:
    return math.fsum(value for value, _ in each.values()) / len(each)


def below(each: Mapping[str, Gain]) -> int:
    """On how many prompts a method ends below the pre-trained model by more than noise."""
    return sum(value < -SURE * error for value, error in each.values())


def findings(rows: Rows, beta: float) -> str:
    """Who gains most, and who ends below the pre-trained model, in words."""
    found = gains(rows, beta)
    if not found:
        return f"What of the objective was reached: {NOT_MEASURED}."
    first, *others = found
    ahead = ", ".join(f"{text(name)} ({number(_mean(found[name]), 2)})" for name in others[:2])
    worse = ", ".join(
        f"{text(name)} on {below(each)} of {len(each)}"
        for name, each in found.items()
        if below(each)
    )
    lost = f" Below the pre-trained model end {worse} prompts." if worse else ""
    return (
        f"In the mean over the prompts {text(first)} gains most of what is maximised"
        f" ({number(_mean(found[first]), 2)}), before {ahead or NOT_MEASURED}; where methods were"
        f" trained once that is no order.{lost}"
    )


def section(rows: Rows, beta: float) -> str:
    """The section; its picture is `frontier`."""
    picture = figure(
        FRONTIER,
        """Gain in reward over the pre-trained model against the divergence paid for it, of every
        method; the dashed line is where both are worth the same.""",
        "frontier-figure",
        "Four panels, one per prompt: gain in reward against divergence, one point per training.",
    )
    return rf"""
= What is maximised

All methods but DDPO maximise the mean reward less $beta$ times the divergence; @objective says what
they reach of it. {findings(rows, beta)} Methods differ in what they may see: PI-FT, adjoint
matching, the martingale-corrected adjoint and DRaFT-1 take the gradient of the reward, DPOK and
DDPO its value alone, which is a handicap at so few
trajectories. Differences within
two standard errors are not differences; most methods were trained once.

{table(rows, beta)}

{picture}
"""


def table(rows: Rows, beta: float) -> str:
    """Gain in the objective of every method on every prompt."""
    prompts = rows.fields("problem")
    found = gains(rows, beta)
    best = {
        prompt: max((each[prompt][0] for each in found.values() if prompt in each), default=None)
        for prompt in prompts
    }
    body: list[Sequence[str]] = [
        [text(method), *(_cell(each.get(p), best[p]) for p in prompts), number(_mean(each), 3)]
        for method, each in found.items()
    ]
    return Table(
        header=("", *map(text, prompts), "mean"),
        rows=body or [[NOT_MEASURED, *[""] * (len(prompts) + 1)]],
        caption=f"""What is gained over the pre-trained model of the reward less $beta$ times the
            divergence, $beta =$ {text(f"{beta:g}")}, the best on each prompt in bold. Means over
            trainings where there were several; errors over pictures, and over trainings where
            there were several.""",
        label="objective",
        align="l" + "r" * (len(prompts) + 1),
    ).markup


def _cell(found: Gain | None, best: float | None) -> str:
    if found is None:
        return NOT_MEASURED
    shown = with_error(*found)
    return f"*{shown}*" if found[0] == best else shown


def frontier(rows: Rows, beta: float) -> bytes:
    """Gain in reward against divergence, a panel per prompt."""
    prompts, methods = rows.fields("problem"), methods_of(rows)
    with panels(2, 2, 3.9) as (drawn, axes):
        for ax, prompt in zip(axes, prompts, strict=False):
            largest, reached = 0.0, [0.0]
            for method in tuned(rows):
                reward, kl = (
                    final(rows, metric, prompt, method, beta).one()
                    for metric in (Metric.REWARD_GAIN, Metric.KL)
                )
                if reward is None or kl is None:
                    continue
                look = look_of(methods, method)
                ax.errorbar(
                    [kl.value],
                    [reward.value],
                    [2 * (reward.stderr or 0.0)],
                    color=look.color,
                    marker=look.marker,
                    linestyle="",
                    label=method,
                )
                largest = max(largest, kl.value)
                reached.append(reward.value)
            reference(ax, (0.0, largest), (0.0, beta * largest))
            if finish(ax, prompt, "divergence", "gain in reward"):
                ax.set_xscale("symlog", linthresh=10.0)
                room = 0.15 * (max(reached) - min(reached))
                ax.set_ylim(min(reached) - room, max(reached) + 2 * room)
        legend(drawn, axes, 4, methods)
        return svg(drawn)
