"""The report of the study ``convergence``: the constants and rates of PI-FT (arXiv 2412.18164v4)
beside exact measurements.
"""

from __future__ import annotations

from socft.report.base import Document, Report, claims_provenance, provenance
from socft.report.claim_records import Claims
from socft.report.convergence import (
    claims_chapter,
    claims_figures,
    figures,
    findings,
    one_sided,
    tables,
    tightness,
)
from socft.report.document import Contribution, FrontPage, contributions, document
from socft.report.rows import Rows
from socft.report.typeset import (
    figure,
    number,
    text,
)
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

P1 = "arXiv 2412.18164v4"
LIMITATIONS = r"""
= Limitations

Instances have one dimension, or are products and rotations of such; scores are exact; suprema
over states are taken where all but $10^(-6)$ of the mass of the optimal chain is. Necessary
weights are measured on families of instances, and their powers of $T$ are fitted; proved are
those of convex rewards with affine scores (Theorem G). A search that finds no instance proves
nothing. Lemma 3.3 and Theorem 3.1 are attained before the first update alone, where they bound
the optimal control itself: the iteration is not shown to be as slow as its bound. Runs of
Monte-Carlo methods are single ones.
"""
CONTRIBUTIONS = (
    Contribution("the control problem, PI-FT, Lemmas 2.5 to 3.4, Theorems 2.8 and 3.1", P1),
    Contribution(
        "adjoint matching, memoryless schedules, the bias of a start that is remembered",
        "arXiv 2409.08861",
    ),
    Contribution("one-sided bounds of scores along heat flows", "arXiv 2201.01382"),
    Contribution("how a Moreau envelope changes curvature", "classical"),
    Contribution(
        "reflection coupling, and that under an optimal control",
        "Lindvall and Rogers (1986), arXiv 2502.01353",
    ),
    Contribution("slope and curvature on the line", "Bobkov (1997)"),
    Contribution("the smoothed curvature @sharp, attained, and the constants made with it"),
    Contribution("one-sided constants of values, contractions and iterates, Theorems A to D"),
    Contribution("bounds along paths, necessity, and the limit of small steps, Theorems E to H"),
    Contribution("slope and curvature together, and PI-FT itself along paths, Theorem I"),
    Contribution("the kernel gap beside the exponential tilt, and the sizes of both gaps"),
    Contribution("the search for extremal instances, necessary weights, certificates"),
)
PAPER = '#link("https://arxiv.org/abs/2412.18164v4")[arXiv 2412.18164v4]'


def compose(measured: Rows, claims: Claims) -> Document:
    """The document of the studies' records, and of the claims."""
    rows = measured.of(schemas.CONVERGENCE)
    lams = rows.where(Metric.BETA_REQUIRED).distinct("lam")
    lam = lams[len(lams) // 2] if lams else None
    problems = tuple(tables.CASES)
    methods_problem = next(iter(rows.having("index").fields("problem")), problems[-1])
    pictures = {
        "beta-required.svg": figures.beta_required(rows, problems, lam),
        "rate.svg": figures.error_against_rate(rows, problems),
        "bound.svg": figures.error_against_bound(rows, problems),
        "trade-off.svg": figures.trade_off(rows, problems),
        "tilt.svg": figures.tilt_gaps(rows, problems),
        "methods.svg": figures.methods(rows, methods_problem),
        **tightness.pictures(measured),
        **one_sided.pictures(measured),
        "claims.svg": claims_figures.ratios(claims),
    }
    source = document(
        "The convergence of PI-FT, measured",
        f"The constants and rates of {PAPER} beside exact solutions",
        FrontPage.of(measured, claims, findings.QUESTIONS),
        _abstract(rows, claims, tightness.headline(measured)),
        _problem(rows),
        _constants(rows, lam),
        _convergence(rows),
        _trade_off(),
        _tilt(rows),
        _methods(rows, methods_problem),
        _accuracy(rows),
        tightness.chapter(measured),
        one_sided.chapter(measured),
        claims_chapter.chapter(claims),
        LIMITATIONS,
        "= What is known and what is ours\n\n" + contributions(CONTRIBUTIONS),
        _reproduction(measured, claims),
    )
    return Document(source, pictures)


REPORT = Report(
    "convergence",
    compose,
    (schemas.CONVERGENCE, schemas.TIGHTNESS),
    shown=("rate.svg", "one-sided.svg"),
    questions=findings.QUESTIONS,
)


def _abstract(rows: Rows, claims: Claims, tight: str) -> str:
    return f"""
PI-FT fine-tunes a diffusion model by policy iteration on a control problem regularised by the
Kullback–Leibler divergence. Theorem 3.1 of {PAPER}, cited here as P1, proves linear convergence at
rate $1 - lambda$ under the premise that the KL weight $beta$ exceeds a threshold made of Lipschitz
constants. We hold threshold, rate and bound against exact solutions, known to an error of
{number(rows.where(Metric.TRUTH_ERROR).largest())} in the control; search for instances that attain
every inequality; and derive constants of one side, which do not compound over the steps. The
statements behind the findings are checked one by one: {claims_chapter.headline(claims)}. {tight}
Every number is a record, and findings are sentences that the records carry.
"""


def _problem(rows: Rows) -> str:
    return rf"""
= The problem

Equations, lemmas and theorems of the paper have its numbers, equations with the mark P1; bare
numbers in parentheses are equations of this report.

A pre-trained sampler is a Markov chain with kernels $N(m_t (x), sigma_t^2 I)$,
for DDPM $m_t (x) =
(x + (1 - alpha_t) s_t (x))\/sqrt(alpha_t)$ with the score $s_t$. Fine-tuning steers the mean of
every kernel by a control $v_t$, measured in units of the noise,

$ X_(t+1) = m_t (X_t) + sigma_t (v_t (X_t) + W_t), quad W_t tilde N(0, I), quad t = 0, dots, T - 1,
$ <chain>

so that the Kullback–Leibler divergence of the steered from the pre-trained kernel is exactly
$|v_t|^2\/2$ (Lemma 2.5). The objective, to be maximised, and its Bellman equation, P1 (8)–(9), are

$ J(v) = bb(E) [ r(X_T) - sum_(t < T) beta_t / 2 thin |v_t (X_t)|^2 ], $ <objective>

$ V_T = r, quad V_t (x) = max_v {{ bb(E) V_(t+1) (m_t (x) + sigma_t (v + W)) - beta_t / 2 thin |v|^2
}}. $ <bellman>

Write $(G_t f)(x) = bb(E) f(x + sigma_t W)$, $rho_t = sigma_t^2\/beta_t$, and $delta = sigma_t v$
for the shift of the mean. Then one Bellman step is a Gaussian smoothing, a Moreau envelope and a
composition with the pre-trained mean (derived here),

$ V_t = [ sup_delta thin (G_t V_(t+1))(dot + delta) - (|delta|^2) / (2 rho_t) ] compose m_t, $
<operator>

and PI-FT (Algorithm 1) is the proximal fixed-point iteration for the supremum: backwards in $t$,
with the value function of the next step fixed, $m$ times

$ delta^((j+1)) (x) = rho_t nabla (G_t V_(t+1)) (m_t (x) + delta^((j)) (x)), quad delta^((0)) = 0, $
<inner>

followed by the value of the policy found. The map in @inner has the Jacobian $rho_t nabla^2 (G_t
V_(t+1))$; it contracts by $1 - lambda_t$ as soon as

$ beta_t >= (sigma_t^2 K_(t+1)) / (1 - lambda_t), quad K_(t+1) >= sup_x thin |nabla^2 (G_t V_(t+1))
(x)|. $ <condition>

Everything that follows turns on which $K$ is known. @problems lists the problems; $L_0$ and $L_1$
are the Lipschitz constants of a function and of its gradient.

{tables.problems(rows)}
"""


def _constants(rows: Rows, lam: float | None) -> str:
    picture = figure(
        "beta-required.svg",
        f"""KL weight that @condition requires at step $t$ under each rule when $beta$ is the
        smallest constant that the rule admits, $lambda = {tables.design(lam)}$. A rule without a
        finite constant has no curve.""",
        "beta-figure",
        "Required KL weight against the step for each rule, one panel per problem, logarithmic"
        " scale.",
    )
    return rf"""
= Constants

The paper bounds $K_(t+1)$ by the Lipschitz constant $L_1 (V_(t+1))$ of the gradient and carries the
constants backwards through P1 (14)–(15),

$ L_0 (V_t) = M_t thin L_0 (V_(t+1)), quad L_1 (V_t) = N_t thin L_0 (V_(t+1)) + M_t^2 / lambda_t
thin K_(t+1), $ <recursion>

with $M_t = (1 + (1 - alpha_t) L_0 (s_t))\/sqrt(alpha_t)$ and $N_t = (1 - alpha_t) L_1
(s_t)\/sqrt(alpha_t)$. Only the smoothed curvature enters @condition, and for a function with these
Lipschitz constants it is at most

$ K_(t+1) = L_1 (V_(t+1)) thin op("erf") ( (L_0 (V_(t+1))) / (sqrt(2) thin sigma_t L_1 (V_(t+1))) )
  <= min {{ L_1 (V_(t+1)), sqrt(2\/pi) thin L_0 (V_(t+1))\/sigma_t }}, $ <sharp>

which is attained (derived here). With it the recursion gives the _sharp_ constants. Both bound the
optimal value functions; the iterates of PI-FT need the larger constants of Lemma 3.2, P1 (38)–(39),
in their published or their sharpened form. The sharp constants take the exact Lipschitz
constant of $m_t$ for $M_t$. _Measured_ is the supremum of $|nabla^2 (G_t V_(t+1))|$ on the instance
itself: it is necessary as well as sufficient for a contraction by $1 - lambda$. @constants gives
the smallest constant $beta$ that every rule admits, and @beta-figure what @condition then requires
at each step.

{tables.constants(rows, lam)}

{picture}
"""


def _convergence(rows: Rows) -> str:
    rate = figure(
        "rate.svg",
        """Largest error of the control over all steps and states against the number of inner
        iterations, with the KL weights of the measured curvature. Thin dashed lines: $(1 -
        lambda)^m$ times the error at the start.""",
        "rate-figure",
        "Control error against inner iterations on a logarithmic scale, with the theoretical rate"
        " dashed, one panel per problem.",
    )
    bound = figure(
        "bound.svg",
        """Measured error of the control and the bound of Theorem 3.1 (thin, dashed), with KL
        weights from Lemma 3.2, published and sharpened. A reward that is not Lipschitz admits no
        finite weight.""",
        "bound-figure",
        "Control error and the bound of Theorem 3.1 against inner iterations on a logarithmic"
        " scale, one panel per problem.",
    )
    return rf"""
= Linear convergence

With $m$ inner iterations at every step the error has two parts: the unfinished iteration at step
$t$, and the error of the value function it was given. In units of the noise, Lemmas 3.3 and 3.4
read

$ sup |v_t^((m)) - v_t^*| <= sigma_t / beta_t [ (1 - lambda)^m L_0 (V_(t+1)^*) + epsilon_(t+1) /
lambda ], $ <control-bound>

$ epsilon_t <= M_t [ epsilon_(t+1) / lambda + (1 - lambda)^(m+1) ( L_0 (V_(t+1)^*) + (macron(L)_0
(V_(t+1))) / lambda ) ],
  quad epsilon_T = 0, $ <value-bound>

where $epsilon_t$ bounds the error of $nabla V_t^((m))$ and $macron(L)_0$ is the constant of
Lemma 3.2. Unrolled, this is Theorem 3.1: every error is $O((1 - lambda)^m)$. @rate-figure shows the
error with the weights that the instance needs, @rates its factor per iteration. These weights are
below what the premise of Theorem 3.1 asks for, which therefore says nothing of them: that the
factor is the one they were set to is observed. The
exact local factor of the slowest step is $max_t sigma_t^2 sup |nabla^2 (G_t V_(t+1)^*)|\/beta_t$.

{rate}

{tables.rates(rows)}

@bound-figure and @bounds have the smallest weights, one per step, that Theorem 3.1 asks for, and
its bound. The bound @control-bound is inversely proportional to the weight, while @value-bound does
not see the weight at all: sharper constants allow smaller weights, and the bound that they license
on the control is then larger.

{bound}

{tables.bounds(rows)}
"""


def _trade_off() -> str:
    picture = figure(
        "trade-off.svg",
        "Rate of PI-FT, divergence from the pre-trained model and reward of the optimum against a"
        " constant KL weight.",
        "trade-figure",
        "Three panels against the KL weight: rate, Kullback–Leibler divergence, reward.",
    )
    return rf"""
= What the KL weight trades

A larger $beta$ makes PI-FT faster, and the fine-tuned model more like the pre-trained one.
@trade-figure shows both at the optimum for a constant $beta$: the rate of the slowest step, $max_t
sigma_t^2 sup |nabla^2 (G_t V_(t+1)^*)|\/beta$, the divergence of the path laws, $sum_t bb(E)
|v_t|^2\/2$, and the expected reward. A rate above 1 means that the inner iteration need not
converge. Condition @condition can always be met by raising $beta$ enough, at the price of the
reward.

{picture}
"""


def _tilt(rows: Rows) -> str:
    picture = figure(
        "tilt.svg",
        """Left: kernel gap against the number of steps; thin dashed lines have slope $-1$. Right:
        memory gap with a constant rate 1 (lines) and with the memoryless schedule (open
        markers).""",
        "tilt-figure",
        "Two panels against the number of steps: kernel gap and memory gap.",
    )
    return rf"""
= Against the exponential tilt

With a constant $beta$, freeing the control of its form gives the tilted path law, whose density is
proportional to $exp(r(X_T)\/beta)$. Its value, $V_t^"G" = beta log bb(E) exp(V_(t+1)^"G" (m_t +
sigma_t W)\/beta)$, exceeds $V_t$ because controlled kernels move means only: the _kernel gap_, of
order $1\/T$. Tilting the law of $X_T$ alone is worth still more, unless $X_0$ and $X_T$ are
independent: the _memory gap_, which no number of steps removes. @tilt-figure and @tilt show both,
as differences in the objective at $beta = 1$.

{picture}

{tables.tilt(rows)}
"""


def _methods(rows: Rows, problem: str) -> str:
    picture = figure(
        "methods.svg",
        f"Objective gap on {text(problem)} against iterations and against seconds of computation on"
        " one thread; what is simulated is a single run.",
        "methods-figure",
        "Objective gap of five methods against iterations and against seconds, logarithmic scales.",
    )
    return rf"""
= Three ways to run it

The same problem is solved with the expectation in @inner by quadrature; by Monte Carlo, with
control and value gradient regressed on features or by a network; and by ascending the objective in
the parameters of a policy (section 4.1 of the paper), with the full adjoint, which is unbiased for
the gradient, and with adjoint matching, whose fixed point is the optimum but whose direction is
another.

{picture}

{tables.methods(rows, problem, figures.METHODS)}
"""


def _accuracy(rows: Rows) -> str:
    return rf"""
= Accuracy and cost

Errors are the supremum of $|v_t - v_t^*|$ over all steps and over the states that carry all but
$10^(-6)$ of the mass of the optimal chain. @accuracy holds the exact solutions against each other,
@sweeps the time of PI-FT.

{tables.accuracy(rows)}

{tables.sweeps(rows)}
"""


def _reproduction(rows: Rows, claims: Claims) -> str:
    return rf"""
= Reproduction

The first command measures all but the tightness in a fresh clone, checks the claims and typesets
this report, the second at a scale of minutes; the third measures the tightness. A claim is a file
of `verify/`, and its record has the instances in full.

```
make report-full
make report
{tightness.COMMAND}
```

{provenance(rows)} {claims_provenance(claims)}
"""
