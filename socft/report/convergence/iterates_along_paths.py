"""The section of the chapter on one-sided constants on PI-FT's own iterates along paths, with its
proof, and the errors of all sets of constants beside what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from socft.report.rows import Rows, ratio
from socft.report.typeset import NOT_MEASURED, Table, integer, number, text
from socft.study.vocabulary.metrics import Metric

ERRORS = {
    Metric.CONTROL_ERROR: "control",
    Metric.VALUE_GRADIENT_ERROR: "gradient of the value",
    Metric.OBJECTIVE_GAP: "objective",
}
COUPLED = ("reward", "T", "lam", "m", "rule", "beta")
"""Settings of errors beside bounds along paths."""


def chapter(found: Rows) -> str:
    """The lemma, the theorem, and the table."""
    return f"""{_lemma()}
{_theorem()}
{_measured(found)}

{errors_table(found)}
"""


def _lemma() -> str:
    return r"""
== The iteration itself along paths <iterates-along-paths>

Theorem E is about optimal values. Theorem 3.1, in all its forms above, also multiplies the largest
slope by powers of the largest curvature, which no smoothed function has at one point.

*Lemma (slope and curvature).* If $abs(nabla V) <= Lambda$ everywhere, then at every point $
abs(nabla^2 G V) <= Lambda/sigma thin kappa(abs(nabla G V)/Lambda) , quad kappa(g) = inf_(nu >= 0)
{bb(E) sqrt(Z^2 + nu^2) - nu g} , $ <slope-and-curvature> and on the line this holds with $kappa(g)
= 2 n(N^(-1) ((1 + g)\/2))$, where $n$ and $N$ are density and distribution function of $Z$. Both
fall from $kappa(0) = sqrt(2\/pi)$ to $kappa(1) = 0$.

_Proof._ Let $F = nabla V(x + sigma W)$ and $bb(E) F = nabla G V(x) = gamma hat(g)$ with
$abs(hat(g)) = 1$. For unit vectors $b$ and $c$, by parts, $b^top nabla^2 G V thin c = bb(E) [(b
dot F) (c dot W)]\/sigma$. For every $nu >= 0$, since $F dot y <= Lambda abs(y)$, $ bb(E) [(b dot
F) (c dot W)] = bb(E) [F dot (b thin c dot W + nu hat(g))] - nu gamma <= Lambda thin bb(E) sqrt(Z^2
+ 2 nu Z thin b dot hat(g) + nu^2) - nu gamma , $ and as $Z$ and $-Z$ have one law and the root is
concave, the middle term may be dropped. On the line $F\/Lambda$ is a function of $W$ within $[-1,
1]$ with the mean $g$; among these $bb(E) [F W]$ is largest for a step from $-Lambda$ to $Lambda$,
as all mass of $F$ moves to where $W$ is largest, at the place $-u$ with $2 N(u) - 1 = g$, and is $2
Lambda n(u)$ there (it is the Gaussian isoperimetric inequality of Bobkov). $qed$
"""


def _theorem() -> str:
    return r"""
Let $Gamma(0) = 0$ and $Gamma' = min{kappa(Gamma), sigma K\/Lambda}$, continued by the slope
$Gamma'(0)$ to negative arguments. $Gamma$ is how fast a slope can rise, from where it is zero,
with the distance over $sigma$; on the line, without $K$, $Gamma(u) = 2 N(u) - 1$.

*Theorem I (PI-FT along paths).* Let $omega$ be a modulus of the value function $V$ in front, with
$Lambda = sup_s omega(s)\/s$, let $abs(nabla G V) <= L <= Lambda$, $abs(nabla^2 G V) <= K$, and let
updates be undamped with $q = rho K < 1$. Let $xi = rho Lambda\/sigma$ and, for $u >= 0$ with
$Lambda thin Gamma(u) <= L$, $ e_0 (u) = xi thin Gamma(u) , quad e_(j+1) (u) = xi thin [Gamma(u) -
Gamma(u - e_j (u))] + rho epsilon\/sigma , quad e_m = max_u e_m (u) . $ <joint-updates> _(i)_ With
$epsilon = 0$, $abs(delta_m - macron(delta)) <= sigma e_m$ for the maximiser $macron(delta)$, which
is attained on the line for every $m$ by a step of $V'$. _(ii)_ With $g_t = (1 + q) sigma_t^2
e_m^2\/(2 rho_t)$ and $o_m = q^(m+1) (1 - q^m)\/(1 - q)$ the iterate's value has the modulus $
omega_t (s) = min{bb(E) omega_(t+1) (phi_t (s) + 2 sigma_t Z) + g_t , thin (1 + o_m) L thin phi_t
(s)} , $ <iterate-modulus> and $L$ may be the slope at $s = 0$ of $bb(E) omega_(t+1) (s + 2 sigma_t
Z)$. _(iii)_ $0 <= V^*_t - V_t^((m)) <= v_t$ with $v_T = 0$, $v_t = v_(t+1) + g_t$; and for
$Lambda$, $L$ and $K$ of the optimal values and $epsilon = v_(t+1)\/(sigma_t sqrt(2 pi))$,
$abs(delta_m - delta^*) <= sigma e_m$.

So with $K_t$ from @coupled-curvature and @iterate-modulus, $beta_t >= sigma_t^2 K_t\/(1 - lambda)$
makes PI-FT's own updates contract by $1 - lambda$, for rewards without bounds too. The steep
beginning of @iterate-modulus is no wider than the jump $g_t = O(q^(2 m))$ makes it, and the noise
of the next step smooths it: it enters the slope there by about $g_t\/(sigma sqrt(2 pi))$, and no
product over steps is left.

_Proof._ _(i)_ Let $z = m_t (x)$, $p = z + macron(delta)$ and $abs(nabla G V(p)) = Lambda thin
Gamma(u)$; as $macron(delta) = rho nabla G V(p)$, $abs(macron(delta)) = sigma e_0 (u)$. On the
segment from $p$ to $z + delta_j$ let $sigma r$ be the distance from $p$ and $y(r) = Gamma^(-1)
(abs(nabla G V)\/Lambda)$. By the lemma $abs(nabla G V)\/Lambda$ changes by at most $Gamma' (y) d
r$, so $abs(y') <= 1$ and $y(r) >= u - r$ while the slope is not zero; thus $sigma abs(nabla^2 G
V)\/Lambda <= Gamma' (u - r)$ at all $r$, and $abs(delta_(j+1) - macron(delta)) = rho abs(nabla G
V(z + delta_j) - nabla G V(p)) <= rho Lambda integral_0^(e_j) Gamma' (u - r) d r$. For a step of
$V'$ all of this is equality. _(ii)_ The Hessian of $Phi$ in $delta$ is at least $-(1 + q)\/rho$,
so $delta_m$ costs at most $g_t$ against the maximum. With the shift $delta_m$ of $x$ at both
points, as in Theorem E, $V_t^((m)) (x) - V_t^((m)) (y) <= bb(E) [V_(t+1) (X) - V_(t+1) (Y)] +
g_t$. The other bound is $abs(nabla E_m) <= (1 + q^m abs(J_m)) L$ of Theorem C. As $G V (x) - G
V(y) <= bb(E) omega(abs(x - y) + 2 sigma Z)$, also $L$ is as stated. _(iii)_ $V^*_t <= max_delta
Phi + v_(t+1)$, and $V_t^((m))$ is within $g_t$ of that maximum. As $0 <= V^*_(t+1) - V_(t+1) <=
v_(t+1)$, by parts $abs(nabla G (V^*_(t+1) - V_(t+1))) <= epsilon$. So $delta_(j+1) - delta^* = rho
[nabla G V^* (z + delta_j) - nabla G V^* (z + delta^*)] + rho nabla G (V - V^*) (z + delta_j)$, and
the first part is as in (i). $qed$

In what follows $K$ of the optimal values is the smaller of Theorem A's, with the slopes of Theorem
E, and of @coupled-curvature, step by step, also inside the expectation: $omega(sigma abs(abs(Z) -
1))$ there and the integral of $sigma min(Lambda, h^plus.minus sigma y)$ from 1 to $abs(Z)$ bound
the same difference. That of the iterates is at most $sqrt(8\/(pi e)) thin v_(t+1)\/(2 sigma_t^2)$
above it.
"""


def _measured(found: Rows) -> str:
    """How far bounds along paths are from the errors, and what keeps them there."""
    rows = found.having(*COUPLED).where(Metric.CONTROL_ERROR)
    said = [
        f"{text(law)} {number(min(slack), 2)} to {number(max(slack), 2)}"
        for law in rows.fields("problem")
        for slack in [[1 / near for near in map(ratio, rows.where(problem=law)) if near]]
        if slack
    ]
    if not said:
        return """No record holds the bound of Theorem I against errors over many steps; the next
chapter does so on short chains."""
    updates, steps = rows.distinct("m"), rows.distinct("T")
    falls = [_falls(rows.where(problem=law), updates[-2:]) for law in rows.fields("problem")]
    return f"""At $T = {steps[-1]}$, with {updates[0]} to {updates[-1]} updates, the bound of
Theorem I on the control, with the sine's own modulus $2 sin min(s, pi\\/2)$, is above the
measured error by these factors: {"; ".join(said)} (@one-sided-errors). What is left grows with
$m$: from {updates[-2]} to {updates[-1]} updates {"; ".join(falls)}. The weights asked for exceed
the necessary ones, so that the true factor of an update is smaller than $1 - lambda$; no bound
whose rate is not that of the slowest state stays within a factor for all $m$."""


def _falls(rows: Rows, updates: Sequence[int]) -> str:
    """By how much bound and error shrink from one number of updates to the next."""
    before, after = (rows.where(m=m).one() for m in updates)
    law = text(rows.fields("problem")[0])
    if before is None or after is None or not before.bound or not after.bound:
        return f"{law}: {NOT_MEASURED}"
    return f"""the bound falls to {number(after.bound / before.bound, 2)} of itself, the error to
{number(after.value / before.value, 2)} ({law})"""


def errors_table(found: Rows) -> str:
    """Bounds of the errors of PI-FT's iterates over the errors."""
    one_sided = found.having("reward", "T", "lam", "m", "relaxed")
    coupled = found.having(*COUPLED)
    updates = one_sided.distinct("m")
    body: list[Sequence[str]] = []
    for law in one_sided.fields("problem"):
        kinds = [
            (("one-sided, best damping" if each else "one-sided, undamped"), mine)
            for each in one_sided.where(problem=law).distinct("relaxed")
            for mine in [one_sided.where(problem=law, relaxed=each)]
        ]
        along = coupled.where(problem=law)
        for kind, mine in [*kinds, *([("along paths, undamped", along)] if along else [])]:
            body.append((f"{text(law)}, {kind}",))
            body += [
                (name, *(number(_slack(mine.where(metric, m=m)), 3) for m in updates))
                for metric, name in ERRORS.items()
                if mine.where(metric)
            ]
    steps = max(one_sided.distinct("T"), default=None)
    return Table(
        header=("error of", *(f"$m = {m}$" for m in updates)) if updates else ("error of", "m"),
        rows=body or [(NOT_MEASURED, "")],
        caption=f"""Bound over measured error after $m$ updates at every step, at the least weights
            that the constants of these iterates admit, for the reward sine on a line; $T
            =$ {integer(steps)}.""",
        label="one-sided-errors",
        align="l" + "r" * max(1, len(updates)),
    ).markup


def _slack(rows: Rows) -> float | None:
    record = rows.one()
    held = None if record is None else ratio(record)
    return 1 / held if held else None
