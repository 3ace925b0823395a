"""The report on gradient estimators: bias, variance and cost against exact gradients, and what
training makes of them.

It reads the studies ``variance``, ``linear``, ``pendulum``, ``mixture``, ``training``,
``lq_sweeps`` and ``socm``, those that were measured.
"""

from __future__ import annotations

from socft.report.base import Document, Report, provenance
from socft.report.claim_records import Claims
from socft.report.document import Contribution, FrontPage, contributions, document
from socft.report.figures import LOOKS
from socft.report.gradient_variance import (
    advice,
    curves,
    errors,
    figures,
    findings,
    linear,
    studies,
    tables,
    verdicts,
)
from socft.report.gradient_variance import text as chapters
from socft.report.gradient_variance.cells import small
from socft.report.rows import Rows
from socft.report.typeset import figure, integer, landscape, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

STUDIES = (
    schemas.VARIANCE,
    schemas.LINEAR,
    schemas.PENDULUM,
    schemas.MIXTURE,
    schemas.TRAINING,
    schemas.LQ_SWEEPS,
    schemas.SOCM,
)
SUITE = (
    ProblemName.OU_QUADRATIC_EASY,
    ProblemName.OU_QUADRATIC_HARD,
    ProblemName.OU_LINEAR,
    ProblemName.DOUBLE_WELL,
)
LIMITATIONS = r"""
= Limitations

Policies are linear in features of few dimensions, and on the line $s thin v^*$ a policy's own
costate is a multiple of the truth, which flatters corrections by it. Five repetitions measure a
bias to a multiple of the error at budget; estimators whose means provably agree share the bias of
the quietest, and records of earlier measurements hold no error of a variance. Evaluations count
rollout, labels and fits; the loss's own forward and backward pass, the same for all, is not
charged. Full adjoint, adjoint matching and their corrections use the gradient of the reward, and
score functions its value. Training has three repetitions and the suite one rate per problem, so
that rankings there are weak. Of the replicated studies the pendulum alone has the published
length, in one run of either published method; networks of the other two are scaled down.
"""
CONTRIBUTIONS = (
    Contribution("adjoint matching, lean and full adjoints", "arXiv 2409.08861"),
    Contribution("losses of path measures", "arXiv 2312.02027, arXiv 2005.05409"),
    Contribution(MethodName.LEAN_STICKING_THE_LANDING, "arXiv 1703.09194, arXiv 2102.06559"),
    Contribution("variance reduction by martingales", "Newton 1994; arXiv 1510.03141"),
    Contribution("martingales in gradients of control problems", "Gobet and Munos 2005"),
    Contribution("TD(lambda) costates", "Fairbank and Alonso 2012, VGL(lambda)"),
    Contribution("score functions with baselines", "Williams 1992"),
    Contribution("time-reversed costates", "arXiv 2603.20455, arXiv 2410.04615"),
    Contribution("sticking the landing, exact for discrete lean and full costates"),
    Contribution("corrections by the policy's own costate, at three prices"),
    Contribution("every estimator beside the exact gradient, at equal budget"),
)
SMALLEST = 6.8
"""Points at which the seven tables of training fit a page."""
LQ, MIXTURE = ProblemName.LQ_FINE_TUNING, ProblemName.MIXTURE


def compose(rows: Rows, claims: Claims) -> Document:
    """The document of the studies' records."""
    front = FrontPage.of(rows, claims, findings.QUESTIONS)
    measured, rows = rows, errors.with_bias(rows)
    pictures = {
        "variance.svg": figures.variances(rows),
        "costates.svg": figures.costates(rows),
        "samples.svg": curves.samples(rows),
        "training-lq.svg": curves.learning(rows.of(schemas.TRAINING), _gap_and_noise(LQ)),
        "training-mixture.svg": curves.learning(rows.of(schemas.TRAINING), _gap_and_noise(MIXTURE)),
        "socm.svg": curves.learning(
            rows.of(schemas.SOCM),
            [curves.Curves(each, Metric.CONTROL_L2, each) for each in SUITE],
            "iteration",
        ),
    }
    source = document(
        "Gradient estimators against exact gradients",
        "Bias, variance and cost, and what they are worth in training",
        front,
        _abstract(rows),
        chapters.estimated(rows),
        chapters.compared(rows),
        _axes(rows),
        _replication(rows),
        _training(rows),
        _suites(rows),
        advice.chapter(rows, measured),
        LIMITATIONS,
        "= What is refused\n\n" + tables.refusals(rows),
        "= What is known and what is ours\n\n" + contributions(CONTRIBUTIONS),
        _reproduction(rows),
    )
    return Document(source, pictures)


REPORT = Report(
    "gradient_variance",
    compose,
    STUDIES,
    shown=("variance.svg", "samples.svg"),
    questions=findings.QUESTIONS,
)


def _abstract(rows: Rows) -> str:
    tried = len(rows.of(schemas.VARIANCE).where(Metric.ERROR_AT_BUDGET).fields("estimator"))
    return f"""
Fine-tuning a diffusion model as a control problem needs the gradient of an expected reward less a
Kullback–Leibler divergence, and there are many estimators of it. {integer(tried or None)} of them
are held against the exact gradient, on problems where it is known, at policies from the pre-trained
model to the optimum, by their error at {chapters.budget()} network evaluations, bias and noise
together. Some estimate that gradient, some another vector field that vanishes at the optimum, some
neither; as estimates of the gradient these kinds are not compared with each other, and estimators
that need exact costates or scores with none. Three published studies of time-reversed costates
({verdicts.BSDE}) are run again, with their published defects and without.
"""


def _gap_and_noise(problem: str) -> list[curves.Curves]:
    return [
        curves.Curves(problem, Metric.OBJECTIVE_GAP, r"$J^* - J$"),
        curves.Curves(problem, Metric.GRADIENT_NOISE, "gradient noise"),
    ]


def _axes(rows: Rows) -> str:
    variance = figure(
        "variance.svg",
        f"""Variance of the estimate from one path, in units of the exact gradient at the
        pre-trained model, along five axes, of a selection of estimators. Columns are kinds and do
        not compare. The first two rows are {text(LQ)}, the next two a linear-quadratic SDE in two
        dimensions, the last an oscillator with noise on its velocity alone; all but the first are
        near the optimum, $s = 0.9$. Curves that leave a panel at its lower edge are smaller than
        $10^(-7)$ of its largest value.""",
        "variance-figure",
        "Fifteen panels of variance: five axes by three kinds of estimators.",
    )
    costates = figure(
        "costates.svg",
        """Mean-square distance of costate samples from the exact value gradient of the policy,
        against the step, at the optimum, where the costates of all unbiased estimators have it as
        their mean. Errors below $10^(-7)$ of the largest in a panel are not shown. With the exact
        costate the lean adjoint of a linear chain has none but rounding; on the mixture an
        antithetic correction leaves what is not odd in the noise.""",
        "costates-figure",
        "Six panels of costate error against the step: two problems by three kinds of estimators.",
    )
    return rf"""
= Where the variance comes from

@costates-figure looks at the costates behind the gradients of pathwise estimators, @variance-figure
varies one thing at a time. The variance of an estimate near the optimum, whatever its kind, is
multiplied by

{chapters.growth(rows)}

{costates}

{variance}
"""


def _replication(rows: Rows) -> str:
    samples = figure(
        "samples.svg",
        """Linear study, $epsilon = 1$: mean-square error of the costate at time 0 against the
        number of paths, with linear features. Thin and dashed: published, with networks. Grey: the
        distance of the chain itself from continuous time. Errors below $10^(-7)$ of the largest in
        a panel are not shown.""",
        "samples-figure",
        "Two panels of mean-square error against the number of paths, one per integrator.",
    )
    return rf"""
= Time-reversed costates, run again

{verdicts.BSDE} reverses a controlled SDE in time with the score of its marginals and lets costates
ride backwards on the same noise. It
reports three studies, in which regressed time-reversed costates are more accurate than regressed
costates of forward paths, there called non-adapted. Pipelines called _published_ have the Huber
loss of the published code and its pairing of noises, in which costates see the noise of the step
after that of their states. The others see the same paths and regress with the squared loss;
time-reversed they use one noise for state and costate.

== A linear SDE

{verdicts.linear(rows)}

{linear.by(rows, "noise")}

{linear.by(rows, "paths")}

{samples}

{linear.split(rows)}

== A pendulum

A pendulum is kicked in its velocity. The costate of its final cost is learnt from paths, and
initial states descend along it. The motion is unstable and the noise degenerate; the exact cost
and costate are known on a grid. Networks, their minibatches of 64 paths at all times, optimiser and
learnt score are those of the published code.

{verdicts.pendulum(rows)}
{linear.pendulum(rows)}

== Fine-tuning a mixture

The reverse diffusion of two modes is steered to one of them, at several temperatures of the cost;
the law of the start may be learnt too. Cost and regret are exact, as is the optimum.

{verdicts.mixture(rows)}
{linear.mixture(rows)}
"""


def _training(rows: Rows) -> str:
    places = ((LQ, "training-lq"), (MIXTURE, "training-mixture"))
    pictures = [
        figure(
            f"{name}.svg",
            f"""Training on {text(problem)}: exact objective gap and noise of the gradient against
            network evaluations, a column per kind.""",
            f"{name}-figure",
            "Objective gap and gradient noise against network evaluations, three kinds of"
            " estimators.",
        )
        for problem, name in places
    ]
    parts = [studies.split(rows, problem) for problem, _ in places]
    blocks = (studies.training_text(rows), *pictures, *parts)
    each_problem = "\n\n".join(studies.training(rows, problem) for problem, _ in places)
    ended = landscape(small(each_problem, SMALLEST))
    return "= Training\n\n" + "\n\n".join((*blocks, ended))


def _suites(rows: Rows) -> str:
    suite = figure(
        "socm.svg",
        f"""Mean-square error of the control over the paths of the optimum, along training, a row
        per problem and a column per kind. The first point is the pre-trained model. Errors that are
        infinite are not drawn, nor more than {len(LOOKS)} estimators of a kind: the tables have
        all.""",
        "socm-figure",
        "Control error against gradient steps, four problems by kinds of estimators.",
    )
    return rf"""
= Sweeps of a linear-quadratic regulator

{studies.SWEEPS_TEXT}

{studies.sweeps(rows)}

= The suite of stochastic optimal control matching

{studies.SUITE_TEXT}

{studies.suite_verdict(rows)}

{suite}

{studies.socm(rows)}
"""


def _reproduction(rows: Rows) -> str:
    commands = "\n".join(f"socft toy {study.name}" for study in STUDIES)
    counts = ", ".join(
        f"{text(study.name)} {integer(len(rows.of(study).records) or None)}" for study in STUDIES
    )
    return rf"""
= Reproduction

Each study is one command, at full scale or with `--quick` in minutes; the last command typesets
this report from what they recorded. An interrupted study continues where it was. Your own estimator
is measured beside all of these with `socft bench`.

```
{commands}
socft report gradient_variance
```

{provenance(rows)} By study: {counts}.
"""
