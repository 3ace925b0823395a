"""The report of the study ``guidance``: gradient guidance (arXiv 2404.14743) beside fine-tuning and
optimal control.
"""

from __future__ import annotations

import itertools
import math

from socft.report.base import Document, Report, provenance
from socft.report.claim_records import Claims
from socft.report.document import Contribution, FrontPage, contributions, document
from socft.report.guidance import figures, findings, tables
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, figure, integer, number
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName

GUIDES, SCORES = (MethodName.NAIVE, MethodName.LOOK_AHEAD), ("network", "exact")
PAPER = '#link("https://arxiv.org/abs/2404.14743v2")[arXiv 2404.14743v2]'


LIMITATIONS = """
= Limitations

The simulations are not the published ones: the score is exact or learnt here, kernels have the
forward variance, Algorithm 2 moves the mean of the exact score in place of gradient steps on a
network, and directions are drawn anew. Published numbers are in figures only and none stands beside
ours. Iterated runs have one seed, and no error is known of their rewards, ratios and distances:
what differs by little between them, as the distances from the sphere do, is not settled.
"""
CONTRIBUTIONS = (
    Contribution("look-ahead guidance, Algorithms 1 and 2, their theorems", "arXiv 2404.14743v2"),
    Contribution("universal guidance", "arXiv 2302.07121"),
    Contribution("classifier guidance", "arXiv 2105.05233"),
    Contribution("guidance as a whitened control, its divergence and its optimum on chains"),
    Contribution("the strength that is exact, the fixed points and rates of both algorithms"),
    Contribution("what a reward costs against the number of steps"),
)


def compose(rows: Rows, claims: Claims) -> Document:
    """The document of the study's records."""
    pictures = {
        "rounds.svg": figures.rounds(rows, ProblemName.F1_OFF, "exact"),
        "objectives.svg": figures.objectives(
            rows, (ProblemName.F1_ON, ProblemName.F2_ONES, ProblemName.F2_RANDOM)
        ),
        "network.svg": figures.learnt(rows, ProblemName.F1_OFF),
        "frontier.svg": figures.frontier(rows, ProblemName.ISOTROPIC),
        "sphere.svg": figures.sphere(rows),
    }
    source = document(
        "Gradient guidance, fine-tuning, optimal control",
        f"The theory and the simulations of {PAPER} with exact scores",
        FrontPage.of(rows, claims, findings.QUESTIONS),
        _abstract(),
        _setting(),
        _theory(claims),
        _simulations(rows),
        _comparison(rows),
        _sphere(rows),
        _network(rows),
        LIMITATIONS,
        "= What is known and what is ours\n\n" + contributions(CONTRIBUTIONS),
        _reproduction(rows),
    )
    return Document(source, pictures)


REPORT = Report(
    "guidance",
    compose,
    (schemas.GUIDANCE, schemas.GUIDANCE_NETWORK),
    shown=("frontier.svg", "rounds.svg"),
    questions=findings.QUESTIONS,
)


def _abstract() -> str:
    return r"""
Gradient guidance steers a pre-trained diffusion model by the gradient of an objective, without
training. We write it as a control of the denoising chain, so that its divergence from the
pre-trained model is exact, and check its theory statement by statement: look-ahead guidance keeps
the subspace of the data, is the conditional score and hence the optimal control for Gaussian data
and the right strength, and iterated it maximises a regularised objective, whose regularisation
adaptive fine-tuning removes. The published simulations are run with exact scores, and guidance is
compared with fine-tuning and with the optimal control at equal reward.
"""


def _setting() -> str:
    return rf"""
= Guidance as a control

At signal level $alpha^2$ and noise level $h = 1 - alpha^2$ a score $s$ predicts the sample, and its
Jacobian $J$ the posterior covariance,

$ hat(x)_0 = bb(E)[x_0 | x] = (x + h thin s(x)) / alpha, quad J = nabla hat(x)_0, quad "Cov"[x_0 |
x] = h / alpha J . $ <tweedie>

{PAPER} linearises an objective $f$ as a response $y = g^top x_0 + N(0, s^2)$, $g = nabla f$, and
adds to the score

$ G = b' (y - g^top hat(x)_0) thin g, quad quad
  G_"loss" = - b nabla_x (y - g^top hat(x)_0)^2 = 2 b (y - g^top hat(x)_0) thin J^top g . $ <terms>

A change $G_k$ of the score at step $k$ is the whitened control $v_k = g_k G_k\/(sqrt(a_k) sigma_k)$
of the chain $X_(k+1) = m_k (X_k) + sigma_k (v_k + W_k)$, and $|v_k|^2\/2$ is its Kullback–Leibler
divergence from the pre-trained kernel: guidance is a policy, and whatever is known of policies
applies to it. The _published_ strength is $1\/(2b) = s^2 + h |J^top g|^2\/alpha^2$, the _exact_ one
$1\/(2b) = s^2 + g^top "Cov"[x_0|x] thin g$.

Algorithm 1 repeats guided generation with gradients queried at what it generated last, Algorithm 2
also adapts the score to it. Two further forms appear for comparison: universal guidance, $w nabla_x
r(hat(x)_0)$ (#link("https://arxiv.org/abs/2302.07121")[arXiv 2302.07121]), and classifier guidance,
$w nabla_x log bb(E)[exp(r(x_0)\/beta) | x]$ with the exact classifier of noisy states
(#link("https://arxiv.org/abs/2105.05233")[arXiv 2105.05233]).
"""


def _theory(claims: Claims) -> str:
    return rf"""
= The theory, checked

For Gaussian data $N(mu, Sigma)$ everything is exact at any number of steps, which is what the
checks of @claims use: the means of guided chains come from their moments, never from the formula
under test. Four results are worth stating in full (derived here unless cited).

_Look-ahead guidance is the optimal control._ With the exact strength $G_"loss" = nabla_x log
p(y|x) = nabla V\/beta$, the optimal control for $r(x) = -beta (y - g^top x)^2\/(2 s^2)$ in
continuous time; the optimum of a chain of $T$ steps differs by $O(1\/T)$.

_The published strength is exact only for eigenvalues 0 and 1._ It differs from the exact one by
$-h^2 sum_i g_i^2 sigma_i (1 - sigma_i)\/(alpha^2 sigma_i + h)^2$ in $1\/(2b)$: narrow data are
pulled too hard, wide data not enough.

_Algorithm 1 is a fixed-point iteration._ With targets $y_k = g_k^top macron(mu) + (s^2 + g_k^top
Sigma g_k)\/lambda$ the mean obeys $mu_(k+1) = macron(mu) + Sigma nabla f(mu_k)\/lambda$, contracts
by $L|Sigma|\/lambda$, which is attained, and settles at the maximum of $f(x) - lambda\/2 thin |x -
macron(mu)|^2_(Sigma^(-1))$. The targets of the published simulations, $y_k = delta + g_k^top z_k$,
have the same fixed points with $lambda = s^2\/delta$, and settle for larger $delta$ than a fixed
step would.

_Algorithm 2 is preconditioned ascent._ Re-centring turns the iteration into $mu_(k+1) = mu_k +
Sigma nabla f(mu_k)\/lambda$; for concave $f$ the gap is at most $|mu_0 - x^*|^2_(Sigma^(-1)) thin
lambda\/(4K + 2)$, which a Huber function attains, and it falls linearly if $f$ is strongly concave.
If the covariance is refitted to guided samples as well, it shrinks along $g$ as $1\/k$, and the
steps with it.

{tables.claims(claims)}
"""


def _simulations(rows: Rows) -> str:
    picture = figure(
        "rounds.svg",
        r"""The published run on $f_1$ with $|theta_perp|\/|theta_parallel| = 9$, exact score. Thin
        dashed lines: where the published targets lead the mean, and the maximum on the
        subspace.""",
        "rounds-figure",
        "Two panels against rounds: mean reward, and off-support ratio on a logarithmic scale, for"
        " two guidances and algorithms.",
    )
    others = figure(
        "objectives.svg",
        """Algorithm 1 with look-ahead guidance on the other objectives. The reward of a batch is
        below the value at its mean by what the spread of the data costs.""",
        "objectives-figure",
        "Three panels against rounds: mean reward and value at the mean, with the regularised"
        " maximum and the maximum dashed.",
    )
    off = {
        (guide, alg): number(_last(rows, Metric.OFF_SUPPORT, guide, alg))
        for guide in (MethodName.NAIVE, MethodName.LOOK_AHEAD)
        for alg in (1, 2)
    }
    return rf"""
= The published simulations

Data $x = A u$ in 64 dimensions with $u tilde N(0, I_16)$, $f_1 = 10 - (theta^top x - 3)^2$ and
$f_2 = 5 - |x - b|\/2$, a cosine schedule of 200 steps, batches of 32, $s = 0.1$, gradients at every
sample and targets $y = delta + g^top z$, all as published; the kernels have the forward variance,
so that none is deterministic, and the score is exact. Algorithm 2 moves the mean of the exact score
2% of the way to the batch's mean in every round, in place of small gradient steps on a network.
Directions $A$, $theta$ and $b$ are drawn anew.

{picture}

@rounds-figure repeats what the paper's figures show: look-ahead guidance keeps the samples on the
subspace, the naive gradient takes them off it; Algorithm 1 stops at a regularised value, and
Algorithm 2 goes on towards the maximum. The mean off-support ratio ends at
{off[MethodName.NAIVE, 1]} for the
naive gradient and {off[MethodName.LOOK_AHEAD, 1]} for look-ahead guidance under Algorithm 1, at
{off[MethodName.NAIVE, 2]}
and {off[MethodName.LOOK_AHEAD, 2]} under Algorithm 2. For look-ahead guidance it can only fall:
samples move
along the subspace, while their distance from it is, path by path, that of the pre-trained chain.

{tables.runs(rows)}

{others}

{tables.limits(rows)}

@limits holds the fixed point of the published targets against the runs. It predicts the mean of a
noiseless iteration; the runs query gradients at samples, whose spread remains.
"""


def _comparison(rows: Rows) -> str:
    picture = figure(
        "frontier.svg",
        """One pass on $f_1$, latent variances 1: mean reward against the divergence spent, and
        against the root mean square distance from the subspace, along the strength of every method.
        Classifier and universal guidance, the fine-tuned score and the optimal control nearly
        coincide on the left; on the right all but the naive gradient stand on, or next to, the
        vertical line of the pre-trained chain.""",
        "frontier-figure",
        "Two panels of mean reward, against divergence and against distance from the subspace, both"
        " on logarithmic scales.",
    )
    ratio = _ratio(rows, ProblemName.ISOTROPIC, 3.0)
    return rf"""
= Guidance, fine-tuning and control at equal reward

The optimal control maximises $bb(E) f - beta thin "KL"$ over all policies of the chain, so that
along $beta$ it is the upper envelope of reward against divergence; it comes from the Riccati
recursion. A fine-tuned score is Algorithm 2's, re-centred and sampled without guidance.
@frontier-figure and @equal compare all methods in one pass, with exact moments.

{picture}

{tables.equal_reward(rows)}

{tables.steps(rows)}

What the naive gradient costs over the optimum is a law in the number of steps (@steps), not a
number: the variance of the last kernels across the subspace vanishes with the step, and any push
there is dear. At a mean reward of 3 and the number of steps of the other tables look-ahead guidance
spends {ratio[MethodName.LOOK_AHEAD_PUBLISHED]} times the divergence of the optimum, universal
guidance
{ratio[MethodName.UNIVERSAL]}
times, and a fine-tuned score {ratio[MethodName.FINE_TUNED_SCORE]} times. Look-ahead guidance with
$s = 0.1$
conditions on a narrow band of responses, and so pays for shrinking the variance along $g$, which
the objective rewards little; at high rewards this fades. The optimum leaves the subspace slightly:
where the last kernels have noise across it, moving there is cheap, and the objective rewards it. A
control that acts through the score of data on the subspace cannot.
"""


def _sphere(rows: Rows) -> str:
    picture = figure(
        "sphere.svg",
        """The unit sphere in 64 dimensions, exact score. Left: reward against divergence. Right:
        distance from the sphere. The guidances after the last round for each increment, the others
        for each weight, in one pass.""",
        "sphere-figure",
        "Two panels: mean reward against divergence, and mean distance from the sphere against mean"
        " reward, for four methods.",
    )
    far = {
        guide: number(_furthest(rows, guide)) for guide in (MethodName.NAIVE, MethodName.LOOK_AHEAD)
    }
    return rf"""
= A curved manifold

The noised score of the uniform law on a sphere is exact too: given $x$, the sample has a von
Mises–Fisher law of concentration $kappa = alpha |x|\/h$, and $hat(x)_0 = A(kappa) thin x\/|x|$ with
the ratio $A = I_(D\/2)\/I_(D\/2 - 1)$ of Bessel functions. Tilting by $f = theta^top x$ stays in
the family, which gives the optimal control in continuous time. The runs have the published
settings: batches of 256, 25 rounds, targets $delta + g^top z$.

{picture}

{tables.sphere(rows)}

In the paper's figure, with a learnt score, the naive gradient leaves the sphere further than
look-ahead guidance at equal reward. With the exact score the two differ little: at the largest
increment the distance from the sphere is {far[MethodName.NAIVE]} and {far[MethodName.LOOK_AHEAD]}.
The score itself returns
samples to the sphere, and what is left is mostly the noise of the last kernels. These are means of
one batch each, without errors: the difference is not settled.
"""


def _network(rows: Rows) -> str:
    error, mine = (
        rows.where(Metric.SCORE_ERROR).one(),
        rows.where(Metric.OFF_SUPPORT, ProblemName.F1_OFF, algorithm=1),
    )
    last = max(mine.where(score="network").distinct("round"), default=None)
    off = {
        key: number(_one(mine.where(estimator=key[0], score=key[1], round=last)))
        for key in itertools.product(GUIDES, SCORES)
    }
    start = number(_one(mine.where(estimator=MethodName.NAIVE, score="network", round=0)))
    picture = figure(
        "network.svg",
        "Algorithm 1 on $f_1$ with the exact score and with a trained network: the difference is"
        " the score's error alone.",
        "network-figure",
        "Two panels against rounds: mean reward and mean off-support ratio, exact score and"
        " network, two guidances.",
    )
    return rf"""
= What a learnt score changes

A network of two hidden layers, trained on samples for {number(error.seconds if error else None, 2)}
seconds, predicts the noise with a mean squared error of {number(error.value if error else None, 2)}
per coordinate beyond that of the exact score. @network-figure repeats the published run with it;
Algorithm 2 takes one gradient step per round on the network (@runs). After {integer(last)} rounds
of Algorithm 1 the off-support ratio is {off[MethodName.NAIVE, "network"]} for the naive gradient
and
{off[MethodName.LOOK_AHEAD, "network"]} for look-ahead guidance, from {start} at the start; with the
exact score
it is {off[MethodName.NAIVE, "exact"]} and {off[MethodName.LOOK_AHEAD, "exact"]} after as many
rounds. The exact score pulls
back what leaves the subspace with a force of order $1\/h$, and so holds the naive gradient, and its
reward, down. The network's score was never trained there and pulls less: the naive gradient goes
further off, and gains more.

{picture}
"""


def _reproduction(rows: Rows) -> str:
    spent = [record.value for record in rows.where(Metric.TASK_SECONDS)]
    return rf"""
= Reproduction

Exact-score tasks: {number(math.fsum(spent) if spent else None)} seconds in total on one core, the
processor time of all {integer(len(spent) or None)} tasks of the first study. The network is the
second; then come the claims, and this report:

```
socft toy guidance
socft toy guidance_network
socft verify guidance_subspace
socft report guidance
```

{provenance(rows)}
"""


def _one(rows: Rows) -> float | None:
    record = rows.one()
    return None if record is None else record.value


def _last(rows: Rows, metric: Metric, guide: str, algorithm: int) -> float | None:
    mine = rows.where(metric, ProblemName.F1_OFF, guide, algorithm=algorithm, score="exact")
    last = max(mine.distinct("round"), default=None)
    return _one(mine.where(round=last))


def _furthest(rows: Rows, guide: str) -> float | None:
    """Distance from the sphere after the last round, at the largest increment."""
    mine = rows.where(Metric.OFF_SPHERE, ProblemName.SPHERE, guide)
    mine = mine.where(delta=max(mine.distinct("delta"), default=None))
    return _one(mine.where(round=max(mine.distinct("round"), default=None)))


def _ratio(rows: Rows, spread: str, reward: float) -> dict[str, str]:
    """Divergence of every method over that of the optimum."""
    best = tables.at_equal_reward(rows, Metric.EQUAL_KL, spread, MethodName.OPTIMAL_CONTROL, reward)
    out = {}
    for method in tables.METHODS:
        mine = tables.at_equal_reward(rows, Metric.EQUAL_KL, spread, method, reward)
        out[method] = NOT_MEASURED if mine is None or not best else number(mine / best)
    return out
