"""Sections of the chapter on one-sided constants: bounds along paths, what is necessary, and the
limit of small steps, with proofs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, paper, text
from socft.study.vocabulary.metrics import Metric

POWERS: Mapping[str, str] = {
    "necessary": "necessary",
    "one-sided": "one-sided",
    "coupled": "by coupling",
}
FROM = 20
"""Steps from which on exponents are fitted."""
FACTOR = 2 * math.sqrt(2 / math.pi) * math.sqrt(2 * math.log(2))
"""Of a sufficient over a necessary weight in the limit of Theorem G, at a rate of one half."""


def coupling() -> str:
    """Theorems E and F, and what becomes of them in continuous time."""
    return _theorem_e() + _theorem_f() + _posterior()


def _theorem_e() -> str:
    return r"""
== Bounds along paths <along-paths>

A product of suprema of $abs(A_t)$ follows no path: it is right if a difference stays on the ridge
between two modes for ever. Noise takes it off, and the control cannot keep it there.

*Setting.* Let $phi_t$ be a _profile_ of the mean map, $abs(m_t (x) - m_t (y)) <= phi_t (abs(x -
y))$, and $omega_T$ a modulus of continuity of the reward, $abs(r(x) - r(y)) <= omega_T (abs(x -
y))$, both non-decreasing; for instance $phi_t (s) = M_t s$ and $omega_T (s) = min(L_0 (r) s,
op("osc") r)$ with $op("osc") r = sup r - inf r$. Moduli are continued to negative numbers as odd
functions, and $Z tilde N(0, 1)$.

*Theorem E (coupling).* For every $beta$, well posed or not, $ omega_t (s) = bb(E) thin omega_(t+1)
(phi_t (s) + 2 sigma_t Z) quad "bounds" quad abs(V^*_t (x) - V^*_t (y)) <= omega_t (abs(x - y)) , $
<coupled-modulus> so that $abs(nabla V^*_t) <= L_t = liminf_(s -> 0) omega_t (s)\/s$, and
$abs(nabla^2 G V^*_(t+1))$ is at most $ K_t = 1/sigma_t^2 thin bb(E) [abs(Z^2 - 1) thin omega_(t+1)
(sigma_t abs(abs(Z) - 1))] <= sqrt(2/pi) thin (sup_s omega_(t+1) (s)\/s)/sigma_t . $
<coupled-curvature> So $beta_t >= sigma_t^2 K_t\/(1 - lambda)$ suffices for updates at the optimum
to contract by $1 - lambda$: one formula per step, without a recursion in $beta$.

_Proof._ _Two Gaussians._ Let $a != b$, $e = (a - b)\/abs(a - b)$, let $n$ be the density of
$sigma W$ and $X = a + sigma W$. Put $Y = X$ with probability $min(1, n(X - b)\/n(X - a))$, and $Y
= b + sigma (I - 2 e e^top) W$ otherwise. The reflection in the middle between $a$ and $b$ takes
$X$ to the latter and exchanges $n(dot - a)$ and $n(dot - b)$; so the second case contributes
$(n(y - b) - n(y - a))_+$ to the density of $Y$, the first $min(n(y - a), n(y - b))$, and $Y tilde
N(b, sigma^2 I)$. In the second case $abs(X - Y) = s$ for $s = abs(a - b) + 2 sigma thin e dot W >
0$, where $n(X - b)\/n(X - a)$ is the ratio of the densities $n_(2 sigma) (s + abs(a - b))$ and
$n_(2 sigma) (s - abs(a - b))$ of the line. So $bb(E) omega(abs(X - Y)) = integral_0^oo omega(s)
[n_(2 sigma) (s - abs(a - b)) - n_(2 sigma) (s + abs(a - b))] d s = bb(E) omega(abs(a - b) + 2
sigma Z)$ for odd $omega$; it increases with $abs(a - b)$, as $omega$ increases. _Two chains._ Let
$delta$ be an optimal shift at $x$ (or nearly so). It is allowed at $y$ and costs the same there,
hence $V^*_t (x) - V^*_t (y) <= bb(E) [V^*_(t+1) (X) - V^*_(t+1) (Y)] <= bb(E) omega_(t+1) (abs(X
- Y))$ with $a = m_t (x) + delta$ and $b = m_t (y) + delta$. _The control cancels_: $abs(a - b) <=
phi_t (abs(x - y))$. Induction gives @coupled-modulus. _Curvature._ By parts $b^top nabla^2 G V
thin b = bb(E) [V(x + sigma W) ((b dot W)^2 - 1)]\/sigma^2$ for a unit vector $b$. Given the part
of $W$ across $b$, let $u(z)$ be the even part of $V$ along $b$ at distance $sigma z$; since
$bb(E) [Z^2 - 1] = 0$, the expectation is that of $(u(abs(Z)) - u(1)) (Z^2 - 1)$, and $abs(u(z) -
u(1)) <= omega(sigma abs(z - 1))$. For $omega(s) = L s$, $bb(E) [(abs(Z) - 1)^2 (abs(Z) + 1)] =
bb(E) abs(Z)^3 - bb(E) Z^2 - bb(E) abs(Z) + 1 = sqrt(2\/pi)$. $qed$

With $phi_t (s) = M_t s$ and $omega_T (s) = L_0 (r) s$ this is $L_t = L_0 (r) product_(j >= t) M_j$
again. But for data with two modes the profile is steep only up to the width of the ridge; beyond
it $phi_t$ contracts, and distances leave the ridge as Brownian motion does that is stopped at
zero. Whenever $sup_s omega_t (s)\/s <= macron(L)$ for all $t$ and $T$, $beta = sqrt(2\/pi) thin
macron(L) max_t sigma_t\/(1 - lambda)$ suffices, of the order $T^(-1\/2)$.
"""


def _theorem_f() -> str:
    return rf"""
*Theorem F (bounded rewards).* Let $beta_t >= sqrt(2\/(pi e)) thin op("osc") r\/(1 - lambda)$ for
all $t$. Then every undamped update of PI-FT contracts by $1 - lambda$: at every step, after any
numbers of updates at the steps behind it, for every $T$, every dimension and every score.

_Proof._ In the integral by parts $V$ may be centred to $plus.minus op("osc") V\/2$, so
$abs(nabla^2 G V) <= bb(E) abs(Z^2 - 1) op("osc") V\/(2 sigma^2)$ with $bb(E) abs(Z^2 - 1) =
sqrt(8\/(pi e))$, and $rho = sigma^2\/beta$ cancels $sigma^2$. It remains that $op("osc")
V_t^((m)) <= op("osc") r$. By induction updates at step $t$ contract, so $b < 1$, and an update is
a step of gradient ascent of length $rho$ on $Phi$, whose Hessian is at least $-(1 + b)\/rho$: it
never lowers $Phi$. From $delta_0 = 0$, $inf V_(t+1) <= G V_(t+1) (m_t) <= V_t^((m)) <= sup
V_(t+1)$. $qed$

The constant is attained at one step by the indicator of $abs(x) < sigma$. For a reward within
$[0, 1]$ and $lambda = 1\/2$ it is $beta = {2 * math.sqrt(2 / (math.pi * math.e)):.2f}$.
"""


def _posterior() -> str:
    return r"""
*In continuous time* nothing compounds even in the formulas. Let $x = sqrt(macron(alpha)) thin x_0 +
sqrt(1 - macron(alpha)) thin W$ be data noised to the signal level $macron(alpha)$, $c =
sqrt(macron(alpha))\/(1 - macron(alpha))$ and $V(x) = beta log bb(E) [e^(r(x_0)\/beta) | x]$, and
let $op("Cov")_s$ and $C_s$ be covariance and Poincaré constant of the posterior of $x_0$ tilted by
$e^(s r\/beta)$. Then $ nabla V = c integral_0^1 op("Cov")_s (r, x_0) thin d s , quad nabla^2 V =
beta c^2 (op("Cov")_1 (x_0) - op("Cov")_0 (x_0)) , quad abs(nabla V) <= c thin L_0 (r) sup_s C_s . $
<posterior-covariance> _Proof._ The posterior depends on $x$ by the factor $e^(c thin x dot x_0)$
and a normalisation. So $nabla log bb(E) [e^(r\/beta) | x] = c (bb(E)_1 x_0 - bb(E)_0 x_0)$, whose
derivative in $x$ is $c^2 (op("Cov")_1 - op("Cov")_0)$; and $d\/(d s) thin bb(E)_s x_0 = op("Cov")_s
(r, x_0)\/beta$. For a unit vector $b$, $op("Cov")_s (r, b dot x_0)^2 <= op("Var")_s r dot
op("Var")_s (b dot x_0) <= C_s L_0 (r)^2 dot C_s$. $qed$ The chain of finitely many steps has no
such posterior; there Theorem E stands in for it.
"""


def necessity(found: Rows) -> str:
    """Theorem G, and the exponents of the recorded weights."""
    return rf"""
== How the necessary weight falls with $T$ <necessity>

Three families on the line with affine mean maps, $A_t > 0$, tell what can be expected.

_Convex quadratic rewards_ of curvature $h$. Value functions stay quadratic, $1\/P_t = (1\/P_(t+1)
- rho_t)\/A_t^2$, so that $rho_t P_(t+1) < 1$ at all steps if and only if $beta > h s_0^2$, with
$s_t^2 = sum_(j >= t) sigma_j^2 product_(i > j) A_i^2$ the variance of $x_T$ given $x_t$: the
necessary weight does not fall with $T$ at all. The slope is not bounded, and no bound by it
applies.

_Concave rewards._ $K^+ = 0$; the undamped iteration needs $K^-$, and whatever the law, $beta >=
sigma_(T-1)^2 sup abs(nabla^2 G r)\/(1 - lambda)$ by the last step alone: the variance of one
step, $T^(-1)$ at a constant rate and up to $T^(-2)$ where rates rise from zero.

_Convex rewards with bounded slope._ Between the two a kink forms wherever the slope rises, as
wide as $beta$ allows, and it decides.

*Theorem G.* Let $r$ be convex, let its slope rise from $p$ to $q$, $L = (q - p)\/2$, and let $r =
max$ of its two asymptotes $+ thin d$, with $d(x) -> 0$ as $abs(x) -> oo$ and the asymptotes
crossing at 0. Put $L_t = L product_(j >= t) A_j$ and $xi_t = sigma_t L_(t+1)\/beta$. Then at a
constant weight $ a_t = rho_t sup nabla^2 G V^*_(t+1) >= xi_t^2/(xi_t^2 + 2 C_t) , quad e^(C_t) =
bb(E) [e^(d(X)\/beta) + e^(d(-X)\/beta); X > 0] , quad X tilde N(L s_t^2\/beta, s_t^2) . $ <kink>
So $a_t <= 1 - lambda$ needs $ beta >= sigma_t L_(t+1) sqrt(lambda/(2 (1 - lambda) C_t)) , quad
"where" quad beta >= sqrt(2/pi) thin (max_t sigma_t L_(t+1))/(1 - lambda) quad "suffices" , $ and
at steps with $s_t$ bounded from below $C_t -> log 2$ as $beta -> 0$ if $d$ decays exponentially
(it stays bounded if $x thin d(x)$ does). If $sigma_t L_(t+1)$ is of its largest order at such a
step, necessary and sufficient weight are both of the order $max_t sigma_t L_(t+1)$, which is
$T^(-1\/2)$ for bounded rates and $L_t$; if it is largest there and $d$ decays exponentially, they
are at $lambda = 1\/2$ within a factor {FACTOR:.2f} of each other in the limit.

_Proof._ Adding $k x$ to a value function moves its envelope, $max_delta V(x + delta) + k (x +
delta) - delta^2\/(2 rho) = E(x + rho k) + k x + "const"$, and affine maps and smoothing take
affine functions to such; so curvatures are only moved, and we may take $p = -q = -L$. Let $L
abs(x) + c_T$ be the larger asymptote. Smoothing keeps convexity, slopes at infinity and
asymptotes; the envelope turns $L x + c$ into $L x + c + rho L^2\/2$; in coordinates with $m_t (0)
= 0$ the asymptotes of $V^*_t$ are $plus.minus L_t x + c_t$, $c_t = c_(t+1) + rho_t L_(t+1)^2\/2 =
c_T + L^2 s_t^2\/(2 beta)$. _(i)_ If $U$ is convex with asymptotes $plus.minus L x + c$ and $U''
<= K$, then $U(0) - c >= L^2\/(2 K)$: with $u = U' (0)$, $U(0) - c = integral_0^oo (L - U') >= (L
- u)^2\/(2 K)$, likewise $>= (L + u)^2\/(2 K)$ on the other side, and the larger is at least
$L^2\/(2 K)$. _(ii)_ The controlled chain from 0 is one path law with the cost $beta$ times its
divergence from the uncontrolled one, so by the variational formula of Gibbs $V^*_t (0) <= beta
log bb(E) [e^(r(x_T)\/beta) | x_t = 0]$. Under that law $x_T tilde N(0, s_t^2)$; tilted by
$e^(plus.minus L x_T\/beta)$, of mass $e^(L^2 s_t^2\/(2 beta^2))$, it is the law of $plus.minus
X$. Splitting at $x_T = 0$ gives $V^*_t (0) <= c_t + beta C_t$. _(iii)_ No shift is allowed: $G
V^*_(t+1) (0) <= V^*_t (0) <= c_(t+1) + rho_t L_(t+1)^2\/2 + beta C_t$. With (i) for $U = G
V^*_(t+1)$, $L_(t+1)^2 \/(2 K_t) <= rho_t L_(t+1)^2\/2 + beta C_t$; multiply by $2\/(rho_t
L_(t+1)^2) = 2\/(beta xi_t^2)$. The sufficient weight is @coupled-curvature. $qed$

{_power_kept()}

{powers(found)}
"""


def _power_kept() -> str:
    """What the theorem and the fits say of the one-sided condition."""
    return r"""So the one-sided condition has the right power in the limit for affine
scores: exactly for quadratic rewards, up to a constant for convex ones. At the $T$ measured here
exponents are not yet those of the limit: with softplus on Gaussian data the necessary weight falls
faster than the one-sided one, both slower than $T^(-1\/2)$. For oscillating rewards the
power is fitted alone. For
concave rewards it keeps it only if scores are affine ($N = 0$); a bent score enters $h^+$ by $N L$
whatever its sign, and the condition then falls as $T^(-1\/2)$ where the necessary weight falls
faster. @powers has the exponents."""


def powers(found: Rows) -> str:
    """Fitted exponents by law and reward."""
    here = found.where(Metric.SUFFICIENT_BETA)
    body: list[Sequence[str]] = []
    for law in here.fields("problem"):
        for reward in here.where(problem=law).distinct("reward"):
            mine = here.where(problem=law, reward=reward, d=1)
            cells = [_power(mine.where(rule=rule)) for rule in POWERS]
            body.append((f"{text(law)}, {text(reward)}", *cells))
    return Table(
        header=("", *POWERS.values()),
        rows=body or [(NOT_MEASURED, *[""] * len(POWERS))],
        caption=f"""Exponents of $T$ in constant weights at $lambda = 1\\/2$, $d = 1$, from
            $T = {FROM}$ on: least squares of logarithms of exact weights, with the standard error
            of the slope, which says how straight the line is.""",
        label="powers",
        align="l" + "r" * len(POWERS),
    ).markup


def _power(rows: Rows) -> str:
    pairs = [
        (math.log(T), math.log(record.value))
        for T in rows.distinct("T")
        if T >= FROM and (record := rows.where(T=T).one()) is not None
    ]
    if len(pairs) < 3:
        return NOT_MEASURED
    slope, error = fitted(pairs)
    return f"${slope:.2f} plus.minus {error:.2f}$"


def fitted(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Slope of the least squares line through three or more points, and its standard error."""
    x, y = zip(*pairs, strict=True)
    n = len(pairs)
    centre, middle = sum(x) / n, sum(y) / n
    spread = sum((a - centre) ** 2 for a in x)
    slope = sum((a - centre) * (b - middle) for a, b in pairs) / spread
    left = sum((b - middle - slope * (a - centre)) ** 2 for a, b in pairs)
    return slope, math.sqrt(left / (n - 2) / spread)


def limit() -> str:
    """Theorem H."""
    return r"""
== Small steps <small-steps>

Let $alpha_t = 1 - q thin d t$ with a rate $q$ that depends on $w$, $sigma_t^2 = q thin d t$, $d t =
1\/T$, and let $w$ run from data, $w = 0$, to noise, $w = 1$. Let $omega(w)$ be the one-sided
Lipschitz constant of $y\/2 + s$, the largest eigenvalue of $I\/2 + op("Jac") s$, and $ell(w)$ the
Lipschitz constant of $op("Jac") s$, both continuous; let $h^plus.minus (0) < oo$.

*Theorem H.* _(i)_ As long as $h^+$ stays finite on $[0, 1]$, the recursion @one-sided-step tends
at first order in $1\/T$ to $ L' = q omega L , quad quad (h^plus.minus)' = q (ell L + 2 omega
h^plus.minus plus.minus (h^plus.minus)^2\/beta) . $ <riccati> _(ii)_ Where $h^+ > 0$ for $w > 0$,
the least constant weight $beta_T$ of the condition satisfies $ sqrt(T) thin beta_T -> max_w
sqrt(q) thin L(w) dot (lambda)/(sqrt(2) (1 - lambda) op("erf")^(-1) lambda) quad quad (->
sqrt(2/pi) max_w sqrt(q) thin L "for" lambda -> 0) . $ <root-limit> So for every $beta > 0$ the
condition holds from some $T$ on, also where @riccati blows up.

_Proof._ _(i)_ For data, $A_t$ is positive and $M = (1 + q s_"up" d t)\/sqrt(1 - q thin d t) = 1 +
q omega d t + O(d t^2)$, $N = q ell d t + O(d t^2)$. As $K^plus.minus = h^plus.minus
op("erf")(L\/(sqrt(2) sigma h^plus.minus))$ with $sigma = O(sqrt(d t))$, $K^plus.minus =
h^plus.minus + O(e^(-kappa\/d t))$ while $h^plus.minus$ is bounded and $L$ is not zero. So a step
of the recursion is $h^plus.minus |-> h^plus.minus + d t$ times the right side of @riccati $+ O(d
t^2)$, uniformly in a neighbourhood of the solution, where the right side is Lipschitz: it is
Euler's method up to errors of that order, and Gronwall's inequality gives $O(d t)$. _(ii)_ Let
$x_t = sigma_t h^+_t\/L_t$, $xi_t = sigma_t L_(t+1)\/beta$ and $e(x) = op("erf")(1\/(sqrt(2) x))$.
A step of the recursion is $x |-> F(x) = x e\/(1 - xi x e)$ with $rho K^+ = xi x e$, up to a factor
$1 + O(d t)$ and a summand $sigma N\/M = O(d t^(3\/2))$. $F$ increases, with the fixed point $1 -
xi x e = e$, that is $xi = z (1 - e)\/e$ with $z = 1\/x$, $e = op("erf")(z\/sqrt(2))$. It is unique
and attracts: $z (1 - e)\/e$ decreases from $sqrt(pi\/2)$ to 0, because $f = z e' - e + e^2 > 0$;
indeed $f(0) = f(oo) = 0$ and $f' = e' (2 e - z^2)$, which changes sign once, from plus to minus,
as $e$ is concave and $z^2$ convex. At the fixed point $rho K^+ = 1 - e$, so it admits $lambda$ if
and only if $e >= lambda$, that is $xi <= xi_lambda = sqrt(2) op("erf")^(-1)(lambda) (1 -
lambda)\/lambda$. _From above:_ if $xi_t <= macron(xi) < xi_lambda$ for all $t$, take $macron(x)$ a
little above the fixed point for $macron(xi)$, where $F(macron(x)) < macron(x)$ and still $rho K^+
< 1 - lambda$. As $x_T = O(sqrt(d t))$ starts below it, for large $T$ no step leads across. _From
below:_ if $xi_t >= macron(xi) > xi_lambda$ on an interval of $w$, then there $F(x) - x >= kappa
x^2$ below the fixed point for $macron(xi)$ (and below 1, if there is none), while the perturbation
is $O(d t) x$; as $x >= kappa' sqrt(d t)$ with $h^+ > 0$, $1\/x$ falls by a constant at every step
up to a share that vanishes, so that after $O(sqrt(T))$ of the order of $T$ steps of the interval
$x$ has passed the point where $rho K^+ = 1 - lambda$. Since $xi_t = sqrt(q d t) thin L\/beta$,
this is @root-limit; and $xi_lambda -> sqrt(pi\/2)$ as $lambda -> 0$. $qed$
"""


def prior_art() -> str:
    """What is known, what is ours, and what is open."""
    flows = ", ".join(
        paper(each)
        for each in ("2201.01382", "2305.03786", "2404.15205", "2311.11475", "2506.19559")
    )
    couplings = ", ".join(paper(each) for each in ("2301.00083", "2502.01353", "2508.07931"))
    others = ", ".join(paper(each) for each in ("2604.06065", "2601.06514"))
    return rf"""
*Prior art.* One-sided Lipschitz bounds of scores and of transport maps along heat flows are known
({flows}, and of flows and scores in {others}), and so is how a Moreau envelope
changes curvature. Reflection coupling of diffusions is that of Lindvall and Rogers (1986), with
distances that contract on average in Eberle ({paper("1305.1233")}); along optimally controlled
ones, where the control cancels as in Theorem E, it gives gradient and Hessian bounds for
Hamilton-Jacobi-Bellman equations in continuous time ({couplings}). On the line slope and curvature
of a smoothed function are bound by the Gaussian isoperimetric inequality of Bobkov (1997). That
the derivative of a posterior mean is the posterior's
covariance is Tweedie's formula.

*Derived here.* These constants inside the Bellman recursion of KL-regularised fine-tuning, with
the one-sided condition and its damped form; the constants of unfinished iterates (Theorem C);
that values do not compound (Theorem D); the coupling for chains of finitely many steps, as one
smoothing of a modulus per step, and the condition on $beta$ from it (Theorem E); one weight for
all chains with a bounded reward (Theorem F); the lower bound and its power (Theorem G); the limits
of recursion and condition (Theorem H); slope and curvature together in any dimension, and PI-FT's
own iterates and errors along paths (Theorem I).

*Open.* Theorem I is for undamped updates and needs their numbers: a weight for all $m$ at once is
not derived. Profiles are computed on the line and for products of it; in $d$ dimensions only their
largest slopes are certified. For rewards
that are neither convex nor concave the power $-1\/2$ of the necessary weight is measured, not
proved. A discrete form of @posterior-covariance would need the Poincaré constant of the chain's
own conditional laws.
"""
