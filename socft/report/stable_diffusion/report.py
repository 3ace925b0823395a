"""The report on fine-tuning Stable Diffusion: section 5 of arXiv 2412.18164v4 and its rivals, run
by ``socft sd reproduce``.
"""

from __future__ import annotations

import functools

from socft.report.base import Document, Report, provenance
from socft.report.claim_records import Claims
from socft.report.document import Contribution, FrontPage, contributions, document
from socft.report.rows import Rows
from socft.report.stable_diffusion import (
    costate_size,
    figures,
    findings,
    flows,
    objective,
    stability,
    tables,
)
from socft.report.typeset import NOT_MEASURED, figure, integer, picture_rows, text
from socft.study.comparison import GAINS, gradient_norm_study, picture_of
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.schema import StudySchema

PAPER = '#link("https://arxiv.org/abs/2412.18164v4")[arXiv 2412.18164v4]'
CONTRIBUTIONS = (
    Contribution("PI-FT, the experiment of section 5", "arXiv 2412.18164v4"),
    Contribution(MethodName.DPOK, "arXiv 2305.16381"),
    Contribution(MethodName.DDPO, "arXiv 2305.13301"),
    Contribution("DRaFT", "arXiv 2309.17400"),
    Contribution(MethodName.ADJOINT_MATCHING, "arXiv 2409.08861"),
    Contribution(MethodName.FLOW_GRPO, "arXiv 2505.05470"),
    Contribution(MethodName.DIFFUSION_NFT, "arXiv 2509.16117"),
    Contribution("time-reversed costates", "arXiv 2603.20455"),
    Contribution("ImageReward", "arXiv 2304.05977"),
    Contribution("martingale-corrected adjoints of a network's policy"),
    Contribution("the tiny model, its reward and the checker that no method sees"),
    Contribution("what makes costates large, and the gradient without its noise"),
)
FLOW_CONTRIBUTIONS = (
    Contribution(MethodName.ADJOINT_MATCHING, "arXiv 2409.08861"),
    Contribution(MethodName.FLOW_GRPO, "arXiv 2505.05470"),
    Contribution(MethodName.DIFFUSION_NFT, "arXiv 2509.16117"),
    Contribution("DRaFT", "arXiv 2309.17400"),
    Contribution(MethodName.LEAN_STICKING_THE_LANDING, "arXiv 1703.09194, arXiv 2102.06559"),
    Contribution("martingale-corrected adjoints of a network's policy"),
    Contribution("the tiny flow model, and the checker that no method sees"),
)
CONFIGS = {"tiny": "tiny.toml", "sd15": "sd15_pift.toml"}
TITLES = {
    "stable_diffusion": "the tiny Stable Diffusion",
    "stable_diffusion_tiny_flow": "the tiny flow model",
    "stable_diffusion_sd15": "Stable Diffusion 1.5",
}


def report(study: StudySchema) -> Report:
    """The report on the study of one scale."""
    if study == flows.STUDY:
        return Report(study.name, _compose_flows, flows.STUDIES)
    return Report(
        study.name,
        functools.partial(compose, study=study),
        (
            study,
            schemas.SD_COSTATE_SIZE,
            _gradient_norms(study),
            schemas.SD_BENCHMARK,
            schemas.SD_GPU,
            *flows.STUDIES,
        ),
        shown=("reached.svg",),
        questions=findings.questions(study),
    )


def _gradient_norms(study: StudySchema) -> StudySchema:
    """The study of gradients along its trainings."""
    return schemas.SD_GRADIENT_NORM.named(gradient_norm_study(study.name))


def compose(rows: Rows, claims: Claims, study: StudySchema = schemas.STABLE_DIFFUSION) -> Document:
    """The document of the records and of their pictures."""
    runs, sizes, benchmark = (
        rows.of(study),
        rows.of(schemas.SD_COSTATE_SIZE),
        rows.of(schemas.SD_BENCHMARK),
    )
    beta, prompts = _shared_beta(runs), runs.fields("problem")
    first = prompts[0] if prompts else ""
    pictures = {
        "reached.svg": figures.reached(runs, beta),
        "sweep.svg": figures.sweep(runs, first),
        "training.svg": figures.training(runs, beta),
        objective.FRONTIER: objective.frontier(runs, beta),
        "noise.svg": figures.noise(runs, first, beta),
        costate_size.PICTURE: costate_size.picture(sizes),
    }
    source = document(
        "Fine-tuning Stable Diffusion by optimal control",
        f"Section 5 of {PAPER} and its rivals on {TITLES.get(study.name, text(study.name))}",
        FrontPage.of(rows, claims, findings.questions(study)),
        _abstract(runs, beta),
        _setting(runs, beta),
        objective.section(runs, beta),
        _methods(runs, beta),
        _samples(rows, beta),
        _sweep(rows, first),
        stability.section(runs, sizes, rows.of(_gradient_norms(study)), first, beta),
        f"= What makes costates large\n\n{costate_size.section(sizes)}",
        f"= Methods on a flow model\n\n{flows.section(*map(rows.of, flows.STUDIES))}",
        f"= What a gradient costs\n\n{tables.benchmark(benchmark)}\n\n{tables.savings(benchmark)}",
        f"= On an accelerator\n\n{tables.gpu(rows.of(schemas.SD_GPU))}",
        _limitations(study),
        "= What is known and what is ours\n\n" + contributions(CONTRIBUTIONS),
        _reproduction(rows, study),
    )
    return Document(source, {**pictures, **rows.pictures})


def _compose_flows(rows: Rows, claims: Claims) -> Document:
    """The document of the comparison on the flow model alone."""
    runs, pilots = map(rows.of, flows.STUDIES)
    source = document(
        "Fine-tuning a flow model by optimal control",
        f"Methods side by side on {TITLES[flows.STUDY.name]}",
        FrontPage.of(rows, claims, ()),
        "Six methods fine-tune a small flow model, each at the best of several learning rates, and"
        f" their trainings from fresh seeds are compared. {flows.findings(runs)}",
        f"= Methods on a flow model\n\n{flows.section(runs, pilots)}",
        "= What is known and what is ours\n\n" + contributions(FLOW_CONTRIBUTIONS),
        f"= Reproduction\n\n```\n{flows.COMMAND}\n```\n\n{provenance(rows)}",
    )
    return Document(source, rows.pictures)


REPORT = report(schemas.STABLE_DIFFUSION)


def _shared_beta(runs: Rows) -> float:
    """The KL weight at which every method ran."""
    rivals = [r for r in runs if r.estimator not in (MethodName.PRE_TRAINED, MethodName.PI_FT)]
    return (
        rivals[0].setting["beta"]
        if rivals
        else next((r.setting["beta"] for r in runs), float("nan"))
    )


def _abstract(rows: Rows, beta: float) -> str:
    return f"""
A latent diffusion model is fine-tuned by low-rank layers to maximise a learnt reward minus $beta$
times the Kullback–Leibler divergence of its sampling chain from the pre-trained one, by the
estimators that are elsewhere measured against exact gradients, unchanged. Every method samples as
many trajectories; what they reach of the objective, of the reward, and of the judgement of a
checker that no method sees is compared on {integer(len(rows.fields("problem")) or None)} prompts,
with the divergence and the diversity that it costs. {objective.findings(rows, beta)}
"""


def _again(rows: Rows, beta: float) -> str:
    """How trainings from other seeds compare; nothing if there were none."""
    if not rows.having("beta", "training"):
        return ""
    (reward, pairs), (accuracy, _) = (
        tables.ahead_in_trainings(rows, GAINS[m], beta) for m in (Metric.REWARD, Metric.ACCURACY)
    )
    return (
        "PI-FT and DPOK were trained from several seeds; PI-FT is ahead of DPOK in reward in"
        f" {reward}, in accuracy in {accuracy} of {pairs} pairs of them (@repeated)."
    )


def _tuned(rows: Rows, beta: float) -> str:
    """How DPOK compares at the best of several learning rates; nothing if it had but one."""
    (reward, prompts), (accuracy, _) = (
        tables.ahead_at_the_best_rate(rows, GAINS[m], beta)
        for m in (Metric.REWARD, Metric.ACCURACY)
    )
    if not prompts:
        return ""
    return (
        " Against the best of DPOK's learning rates, chosen for each prompt and measure after the"
        f" fact, it is ahead in reward on {reward} and in accuracy on {accuracy} of {prompts}"
        " prompts (@rates)."
    )


def _setting(rows: Rows, beta: float) -> str:
    rates = rows.where(estimator=MethodName.DPOK, beta=beta).having("beta", "rate")
    tuned = "DPOK is therefore given other learning rates besides. " if rates else ""
    return rf"""
= The control problem

One step of DDIM($eta$) from level $overline(a)_k$ to $overline(a)_(k+1)$ is $X_(k+1) = m_k (X_k) +
sigma_k (v_k (X_k) + W_k)$ with the pre-trained mean $m_k$, classifier-free guidance included. The
low-rank layers change the predicted noise, hence the mean, and $v_k$ is that change over $sigma_k$.
DDPO, as published, maximises the reward alone; all other methods maximise

$ bb(E)[ r(X_T) - beta sum_k |v_k (X_k)|^2 \/ 2 ] , $

the KL weight of the comparison being $beta =$ {text(f"{beta:g}")}. The sampler that is trained, the
one that is measured and the one that draws the pictures are the same code. With $eta = 1$ a change
$d$ of the noise predicted at step $k$ costs the divergence

$ (s_(k+1) \/ s_k - 1) |d|^2 \/ 2 , quad s = overline(a) \/ (1 - overline(a)) , $

which is by far the largest at the end of few steps that are even in time. Layers that all steps
share then pay nearly all of their divergence in the last step, whatever they change in the others.
The levels of the tiny model's chain are even in $log s$, and every step pays alike.

A target control $u$ is the gain that a unit of noise promises, over $beta$. At the tiny scale those
with $beta |u| > 1$, in units of the standard deviation of the reward over pictures, are scaled down
to that length for every method that regresses on them; the section on costates measures what this
does.

The tiny model draws captioned shapes of $32 times 32$ pixels through a latent of $4 times 8 times
8$; part of its training captions are wrong on purpose, so that it has something to learn from the
reward. The reward is a learnt one of the kind of ImageReward; the checker counts, names and places
shapes by rules and is seen by no method. Two of the four prompts were replaced after trainings on
others had been looked at, because the reward could not tell right pictures from wrong ones there.

The learning rate, $beta$, that limit and the averaging of the tiny scale were chosen by looking at
trainings from the first seed, most of them PI-FT's on the two composed prompts, and no method was
tuned on its own: the rivals may gain from settings of their own. {tuned}Trainings from other seeds
had no part in the choice.

PI-FT regresses the control on $B_k^top a_(k+1)\/beta$ with full adjoints $a$ along
paths of the current policy; lean adjoints leave out the derivative of the control (adjoint
matching); the martingale-corrected adjoint subtracts noise of known mean; DPOK and DDPO weigh
log-probabilities by rewards; DRaFT-1 differentiates the last step. The time-reversed BSDE runs the
chain backwards from its images on fresh noise, with costates on the same noise. It needs the score
of the marginal laws, for which it takes the one that the model itself goes by: in continuous time
that is right for the pre-trained model and for the optimum, and a guess in between. Its derivatives
of the control in all directions of the noise are differences along the noise that is there.
"""


def _methods(rows: Rows, beta: float) -> str:
    picture = figure(
        "reached.svg",
        "Reward and the checker's accuracy of every method on every prompt, with two standard"
        " errors.",
        "reached-figure",
        "Two panels of points with error bars, one group per prompt, one marker per method.",
    )
    curves = figure(
        "training.svg",
        f"Reward of the sampled trajectories along training, averaged over {figures.SMOOTHED}"
        " rounds.",
        "training-figure",
        "Four panels, one per prompt: reward against rounds for every method.",
    )
    return f"""
= Every method on every prompt

{picture}

{tables.reached(rows, beta)}

{tables.repeated(rows, beta)}

{tables.rates(rows, beta)}

{curves}

{_again(rows, beta)}{_tuned(rows, beta)} Seconds differ: trajectories are equal, time is not.
"""


def _samples(rows: Rows, beta: float) -> str:
    runs = [r for r in rows if r.metric == Metric.REWARD and set(r.setting) == {"beta"}]
    blocks = []
    for prompt in dict.fromkeys(r.problem for r in runs):
        mine = [r for r in runs if r.problem == prompt and r.setting["beta"] == beta]
        names = {r.estimator: picture_of(r.estimator, prompt, beta) for r in mine}
        shown = {text(title): name for title, name in names.items() if name in rows.pictures}
        blocks.append(
            picture_rows(
                shown,
                f"“{text(prompt)}”: the same noise in every column.",
                f"samples-{len(blocks)}",
            )
        )
    return "= Pictures\n\n" + ("\n\n".join(blocks) or NOT_MEASURED)


def _sweep(rows: Rows, prompt: str) -> str:
    betas = rows.where(Metric.REWARD, prompt, MethodName.PI_FT).having("beta").distinct("beta")
    names = {f"$beta = {beta:g}$": picture_of(MethodName.PI_FT, prompt, beta) for beta in betas}
    shown = {title: name for title, name in names.items() if name in rows.pictures}
    picture = figure(
        "sweep.svg",
        f"PI-FT on “{text(prompt)}”: norm of the gradient, reward and divergence along training.",
        "sweep-figure",
        "Three panels against rounds, one curve per KL weight.",
    )
    caption = f"“{text(prompt)}” at several KL weights, the same noise in every column."
    return f"""
= The KL weight

{picture}

{tables.sweep(rows, prompt)}

{picture_rows(shown, caption, "samples-beta")}
"""


def _limitations(study: StudySchema) -> str:
    published = study.name != schemas.STABLE_DIFFUSION.name
    where = "" if published else "Nothing here ran on a published Stable Diffusion. "
    return f"""
= Limitations

{where}Prompts are those that were trained on; there are no others. Most methods were trained once
on each prompt, and of few trainings an error of four standard errors is weak evidence. DPOK and
DDPO see the value of the reward alone, and the number of trajectories is one at which their
gradients are mostly noise. Rewards are hacked: on “four circles” every method that gains turns
shapes green, which the reward takes for right, and diversity falls with it (@reached).
"""


def _reproduction(rows: Rows, study: StudySchema) -> str:
    scale = study.name.removeprefix("stable_diffusion").strip("_") or "tiny"
    config = f"sd_experiments/configs/{CONFIGS[scale]}"
    trainings = max(rows.of(study).distinct("training"), default=1)
    variants = any(rows.of(study).distinct(key) for key in ("rate", "limit"))
    repeated = f" --trainings {trainings}" if trainings > 1 else ""
    reproduce = f"socft sd reproduce --scale {scale}{repeated}{' --variants' if variants else ''}"
    return f"""
= Reproduction

```
{reproduce}
{flows.COMMAND}
socft sd costate-size --config {config}
socft sd gradient-norm --scale {scale}
socft sd benchmark --config {config}
socft sd gpu
```

{provenance(rows)}
"""
