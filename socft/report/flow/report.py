"""The report of the studies ``fixed_points``, ``flow_budget`` and ``sde_ode``: what methods for
flow models really optimise.
"""

from __future__ import annotations

from typing import Any

from scipy.stats import norm
from scipy.stats import t as student

from socft.report.base import Document, Report, claims_provenance, provenance
from socft.report.claim_records import Claims
from socft.report.document import Contribution, FrontPage, contributions, document
from socft.report.flow import budget, figures, findings, sampler_findings, samplers, tables
from socft.report.rows import Rows
from socft.report.typeset import figure, integer, number, paper
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

CONTRIBUTIONS = (
    Contribution("adjoint matching, memoryless schedules", "arXiv 2409.08861"),
    Contribution("Flow-GRPO and its kernels", "arXiv 2505.05470"),
    Contribution(str(MethodName.GRPO_GUARD), "arXiv 2510.22319"),
    Contribution(str(MethodName.DANCE_GRPO), "arXiv 2505.07818"),
    Contribution("AWM, DiffusionNFT, RAM", "arXiv 2509.25050, arXiv 2509.16117, arXiv 2605.10759"),
    Contribution(
        "deterministic and efficient adjoint matching", "arXiv 2605.06583, arXiv 2605.11480"
    ),
    Contribution("the optimum in continuous time is the tilt", "arXiv 2409.08861"),
    Contribution("the stationary control (D) without noise", "arXiv 2605.06583"),
    Contribution("look-ahead (L)", "arXiv 2412.07775, arXiv 2512.05116"),
    Contribution("the equations (E) and (N) of the limits, and the second order of (E)"),
    Contribution("that (D) is no tilt on Gaussian data, and has several solutions on modes"),
    Contribution("the equations solved without samples, and runs held against them"),
    Contribution("the largest rates and least weights"),
    Contribution(
        "the law under another sampler than that of training, in closed form on Gaussians"
    ),
)
QUESTIONS = (*findings.QUESTIONS, sampler_findings.QUESTION)


def compose(rows: Rows, claims: Claims) -> Document:
    """The document of the studies' records."""
    fixed = rows.of(schemas.FIXED_POINTS)
    pictures = {
        "distance.svg": figures.distance(fixed),
        "limits.svg": figures.limits(fixed),
        "budget.svg": budget.picture(rows.of(schemas.FLOW_BUDGET)),
        "samplers.svg": samplers.picture(rows.of(schemas.SDE_ODE)),
    }
    source = document(
        "What fine-tuning methods for flow models optimise",
        "Fixed points of published methods, predicted by equations and measured on samples",
        FrontPage.of(rows, claims, QUESTIONS),
        _abstract(fixed),
        _table(fixed),
        _setting(),
        _equations(),
        _evidence(fixed),
        _strengths(fixed),
        _limits(fixed),
        budget.chapter(rows),
        samplers.chapter(rows),
        _claims(claims),
        _limitations(),
        "= What is known and what is ours\n\n" + contributions(CONTRIBUTIONS),
        _reproduction(rows, claims),
    )
    return Document(source, pictures)


REPORT = Report(
    "flow",
    compose,
    (schemas.FIXED_POINTS, schemas.FLOW_BUDGET, schemas.SDE_ODE),
    shown=("limits.svg",),
    questions=QUESTIONS,
)


def _abstract(rows: Rows) -> str:
    return rf"""
Methods that fine-tune flow models with a reward are compared by the pictures they make. We ask
which law each converges to where the answer is known: three laws of data on the line, exact
velocities, a bounded reward, and a class of controls rich enough that nothing but the method
decides. Each of {integer(len(tables.methods(rows)) or None)} methods is predicted to solve one of
six equations, the equation is solved without samples where it has a solution, and the method's own
code is run on samples. Adjoint matching, the full adjoint and the score function reach the optimum
of the chain, which is the tilt $p exp(r\/b)\/Z$ up to $O(1\/T)$; the policy gradients of the GRPO
family leave out the KL divergence of later steps; methods that regress on re-noised samples solve
the endpoint covariance equation, whose second order is twice that of the tilt; and what has no KL
term has no limit. Methods are then compared at an equal budget, bias and variance together, and a
theorem says where a model goes that was trained with noise and is sampled without.
"""


def _setting() -> str:
    return r"""
= Setting

Rectified flow, $x_s = (1 - s) x_0 + s epsilon$, $y = epsilon - x_0$, $u_0 (x, s) = bb(E)[y | x_s =
x]$, from $s = 1$ to $s = 1\/20$ in $T$ equal steps with the memoryless kernels of the DDIM form, so
that every kernel has noise. A fine-tuned velocity $u$ is the whitened control $v_k = J_k (u -
u_0)\/sigma_k$, $J_k$ the derivative of the kernel's mean in the velocity, and $|v_k|^2\/2$ is the
Kullback–Leibler divergence of the kernels. What the chain ends with are the samples. Data are
$N(0.3, 0.5)$, the overlapping modes $1\/2 N(-1, 0.5) + 1\/2 N(1, 0.5)$ and the separated modes $0.7
N(-1.5, 0.16) + 0.3 N(1.5, 0.16)$; the reward is $sin x$, bounded, because methods that weigh
regressions with rewards have no minimum where the reward is not.

The class is that of piecewise linear controls with 61 nodes, one function per step. In it an
equation is solved by quadrature, without samples, and a method is run by damped Newton steps on its
own loss, from the pre-trained model; the mean of the coefficients of the last half of the
iterations counts. Both are fixed points of the same class, so that they may be compared to the
Monte-Carlo error. Strengths are set so that the KL weight that a method leaves at the pre-trained
model is $b$.
"""


def _equations() -> str:
    return _with_noise() + _without_noise()


def _with_noise() -> str:
    """The optimum, and the equations of methods whose samples are made with noise."""
    return r"""
= Six equations

Let $q_tau = p exp(tau r\/b)\/Z_tau$, $q$ the law of the model's own samples, $W_k (x) = bb(E)^v
[r(x_T) | x_k = x]$.

*(O) The optimum.* In continuous time and with memoryless noise the optimal control samples the tilt
$q_1$, whose velocity is $ u^* - u_0 = 1/b integral_0^1 "Cov"_(q_tau) (r, y | x) thin d tau, $
because $bb(E)_(q_tau) [y | x] = bb(E)_p [e^(tau r\/b) y | x]\/bb(E)_p [e^(tau r\/b) | x]$ has the
derivative $"Cov"_(q_tau) (r, y | x)\/b$ in $tau$. For a chain of $T$ steps the optimum is
$v_k = B_k^top bb(E)[nabla V_(k+1) (x_(k+1)) | x_k]\/beta_k$, and its law is off by $O(1\/T)$.

*(E) Endpoint covariance.* $ u - u_0 = 1/b "Cov"_q (r, y | x) . $ A loss $(r - macron(r)) |u - y|^2
+ b |u - u_0|^2$ on re-noised samples of the model has the gradient $bb(E)_q [(r - macron(r)) (u -
y) | x] + b (u - u_0)$, half of it; where the model is the velocity of its own samples this vanishes
under (E). _(E) is not (O):_ with the cumulants $kappa_2 = "Cov"_p (r, y | x)$, $kappa_3 = kappa_p
(r, r, y | x)$,

$ "(O)": thin u - u_0 = kappa_2/b + kappa_3/(2 b^2) + O(b^(-3)), quad quad "(E)": thin u - u_0 =
kappa_2/b + kappa_3/b^2 + O(b^(-3)), $

since to first order either law is $p (1 + (r - bb(E) r)\/b)$, which adds $kappa_3\/b$ to the
covariance, and (O) averages that over $tau$. The second order is twice the right one. The loss has
no minimum where $b + bb(E)_q [r - macron(r) | x] < 0$: such methods need $b$ above the largest
deficit of the reward.

*(N) No KL to go.* $ v_k = B_k^top bb(E)[nabla W_(k+1) (x_(k+1)) | x_k] \/ beta_k, $ where the
policy gradient of the reward meets the gradient of the KL at states that do not follow the control.
In continuous time with constant $beta$ and drift $f$, $W$ solves $partial_t W + f dot nabla W +
sigma^2\/2 Delta W + (sigma^2\/beta) |nabla W|^2 = 0$, the Hamilton–Jacobi–Bellman equation of
$beta\/2$; so

$ v_N = 1/2 v^*_(beta\/2), $

half of the optimal control for twice the reward, at every noise level the score $(nabla log p_s +
nabla log q_s)\/2$ with $q prop p e^(2 r\/beta)$: what guidance of weight one half does.
"""


def _without_noise() -> str:
    """The other equations, and what normalised rewards leave of a weight."""
    return rf"""
*(D) No noise.* The optimum of $r(x_T) - lambda integral |u - u_0|^2\/2 thin d s$ along the flow is
no tilt. For $N(m, S)$ and $r = g dot x$ the map from level $s$ to data has the derivative $Phi_s =
(S\/c_s)^(1\/2)$, $c_s = (1 - s)^2 S + s^2$, the optimal change is $-Phi_s g\/lambda$, and the mean
moves by

$ integral_0^1 S/c_s d s thin g/lambda = pi/2 S^(1\/2) g/lambda, $

with $t = s\/(1 - s)$, while the covariance stays. The tilt moves it by $S g\/b$: in
anisotropic data no $lambda$ matches both axes.

The condition along the paths, $u_k - u_0 = -a_(k+1)\/lambda$ with the costates $a$, is necessary
and no more: where the flow is steep, as between separated modes, one start has several stationary
controls. The one that is meant is the best, which is reached from the solution of Bellman's
equation.

*(L) Look-ahead.* The gradient of the value replaced by that of the reward of the predicted
endpoint, $gamma nabla r(hat(x)_0)$, with noise (residual nabla-DB without its residual flow) or
without (VGG-Flow without its correction): the optimum for linear rewards on Gaussians and $gamma =
1$.

*(R) Reward alone.* Without a KL term the gradient vanishes where no direction improves the reward:
there is no limit, and the law concentrates at the largest reward as long as training goes on.

*Normalisation.* Rewards divided by their standard deviation leave $beta_k = lambda_k
"std"_q (r)$, which falls as the model concentrates: the divergence is priced less the further one
has gone. It rises while mass moves from a larger mode to a smaller. The KL of
{paper("2505.05470")} leaves $d t$ out of the variance of a step, so that
$beta_k = lambda |d t_k| "std"_q (r)$.
"""


def _table(rows: Rows) -> str:
    return rf"""
= What each method optimises

{tables.optimised(rows)}
"""


def _evidence(rows: Rows) -> str:
    picture = figure(
        "limits.svg",
        """Mean reward of every method's limit, measured with 2 standard errors (bars) and predicted
        (open diamonds), beside the tilt (dashed) and the optimum of the chain (dotted).""",
        "limits-figure",
        "Three panels, one per law of data, with a row per method: predicted and measured mean"
        " rewards.",
    )
    held = rows.where(Metric.DEVIATION, source="samples")
    seeds = held.largest(lambda record: record.seeds)
    freedom = max((seeds or 2) - 1, 1)
    chance = 1 - (1 - _both(norm.sf(tables.LIMIT))) ** (3 * len(held.records))
    return rf"""
= Predicted and measured

{picture}

{tables.predictions(rows)}

*When is a prediction refuted?* The deviation is the largest of three, in standard errors of
{integer(seeds)} repetitions, so that it has Student's law with {integer(freedom)} degrees of
freedom, which passes 4 with a probability of {number(_both(student.sf(4, freedom)), 2)} and not of
{number(_both(norm.sf(4)), 2)}; it is translated to a normal variable of the same rarity. With
{integer(len(held.records))} rows of three a true prediction is then refuted anywhere with a
probability of at most {number(chance, 2)}.

What was decided after looking. In a first reading, without that translation, four rows had passed
4 and three more had come near. The noise of a run leaves the limit itself off, by the order of rate
over batch: the equation is not linear in the control, and the control fluctuates around its limit
by the root of that order, which no number of repetitions averages out. So the seven rows were run
again with fresh random numbers and other batches. Where there is such a bias, it shows at a quarter
of the batch: it does for the score function, whose noise is largest, and falls with the batch. None
of the seven passes the limit at four times the batch. Rows that were measured after that reading
were not run again, whatever their deviation{tables.run_once(rows)}.

{tables.repeated(rows)}

The following was found after looking, too. (i) DDPO with the KL in
the reward divides by the spread of the returns, which falls towards the optimum, where they vary by
$O(d t)$ alone: to a thirteenth of that of the rewards on the Gaussian. Newton steps in units of the
pre-trained model's spread then overshoot, and the run hovered around the predicted law, 8 standard
errors off; in units of the spread as it is it converges. (ii) Without noise nothing smooths the
points on which an equation is solved: with 281 of them the predicted moments were off by as much as
runs without noise deviate; they are solved on 1121. (iii) On separated modes (D) has several
solutions. What was taken for its solution there were sweeps that did not settle; which one a run
ends at depends on its samples:

{tables.solutions(rows)}

There the prediction is not refuted by a law but by the lack of one: runs end between the solutions,
and differ more between repetitions than where the solution is unique. (iv) Efficient adjoint
matching on separated modes is within its errors of the population after as many iterations, but
neither is at the limit: what it knows of the weights of modes comes from where they overlap. (v)
VGG-Flow with its correction has hardly any noise, so that laws within a total variation of 0.002
refute the prediction on the Gaussian and on overlapping modes. Its correction is fitted with a
penalty, which the prediction leaves out; whether that is all was not measured. On separated modes
it shares the several solutions of (iii).
"""


def _both(tail: Any) -> float:
    """Of two tails."""
    return 2 * float(tail)


def _limits(rows: Rows) -> str:
    return rf"""
= How far a method may be pushed

A damped sweep moves the control by $theta (P(v)_k - v_k)$. Along chains $P(v)_k$ depends on the own
and on later controls alone, so that its derivative at the solution is block triangular, with the
multiplications by $h_k (x) = partial P(v)_k (x) \/ partial v_k (x)$ on the diagonal; for the
optimum $h_k = B_k^2 bb(E)[V''_(k+1) (x_(k+1)) | x_k]\/beta_k$. Sweeps, and Newton steps on samples
up to their noise, converge near it for $max h < 1$ and

$ theta < 2/(max (1 - h)) : $

concave values set the rate, convex ones the weight, and full and lean costates have the same limit.
Where the KL weight follows the spread of the rewards, every step sees the law of the end, the
derivative is no longer triangular, and the prediction leaves this feedback out.
{tables.rates_apart(rows)}

{tables.rates(rows)}

A regression on re-noised samples has the curvature $1 + bb(E)_q [r - c | x]\/beta$ of its own. It
needs a weight above the largest deficit of the reward: with $c = 0$ and $r = sin x$ about one, with
the group's mean as much more as that mean, and where rewards are divided by their spread more
again, because the weight falls as the law concentrates.

{tables.least_weights(rows)}
"""


def _strengths(rows: Rows) -> str:
    picture = figure(
        "distance.svg",
        """Total variation between the law that a method's equation leads to and the tilt, on
        overlapping modes: against the number of steps, and against the weight $b$. What falls with
        $T$ is the kernel's error; what stays is the method's own.""",
        "distance-figure",
        "Two panels of total variation to the tilt on logarithmic scales, against steps and"
        " strength.",
    )
    return rf"""
= Steps and strengths

{picture}

{tables.drift(rows)}

{tables.along_training(rows)}
"""


def _claims(claims: Claims) -> str:
    return rf"""
= Statements that are checked

{tables.claims(claims)}
"""


def _limitations() -> str:
    return r"""
= Limitations

One dimension, exact velocities, no network: what is measured is where a method goes, not how fast,
nor at what cost, nor what a network adds. The chain ends at the noise level $1\/20$, and the tilt
is that of its own samples. Methods are those of the published losses as this project states them;
published code has options that are not tried here. Ratios are not clipped, because they are one at
every step taken. Corrections of the look-ahead are fitted to samples in the class of the controls,
where published ones are networks.
"""


def _reproduction(rows: Rows, claims: Claims) -> str:
    return f"""
= Reproduction

```
socft toy fixed_points --out reports/records
socft toy flow_budget --out reports/records
socft toy sde_ode --out reports/records
socft verify --out reports/records
socft report flow --records reports/records --out reports
```

{provenance(rows)} {claims_provenance(claims)}
"""
