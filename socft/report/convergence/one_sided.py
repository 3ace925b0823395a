"""The chapter of the convergence report on one-sided constants: the theorem with its proof, what it
asks for beside what is necessary, and what that means in practice.

Its records are those of the study ``tightness``: metric ``sufficient_beta`` is a constant KL
weight by one set of constants, or the necessary one, and the errors of PI-FT's iterates have
their bounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from socft.report.convergence import along_paths, iterates_along_paths
from socft.report.figures import LOOKS, draw, finish, legend, logarithmic, panels, svg
from socft.report.rows import Rows
from socft.report.typeset import NOT_MEASURED, Table, figure, number, text
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric

RULES: Mapping[str, str] = {
    "necessary": "necessary",
    "coupled": "by coupling",
    "one-sided": "one-sided",
    "sharp": "sharper constants",
    "paper": "the paper's constants",
}
SHOWN = "sine"


def pictures(rows: Rows) -> Mapping[str, bytes]:
    """The picture by file name."""
    return {"one-sided.svg": weights_figure(rows.of(schemas.TIGHTNESS))}


def chapter(rows: Rows) -> str:
    """The chapter; its picture is in `pictures`."""
    found = rows.of(schemas.TIGHTNESS)
    sections = (
        _statement(),
        _inner(),
        _values(),
        along_paths.coupling(),
        _measured(found),
        along_paths.necessity(found),
        along_paths.limit(),
        iterates_along_paths.chapter(found),
        _practice(),
    )
    return "\n\n".join(sections)


def _statement() -> str:
    return r"""
= Constants that do not compound <one-sided>

The published recursions bound the Jacobian of the mean map $m_t$ by $(1 + (1 - alpha_t) L_0
(s_t))\/sqrt(alpha_t) > 1$, so every constant grows geometrically in $T$ and with it the weight that
is asked for. Two things are lost there: the mean map usually contracts, and curvature matters on
one side only.

*Setting.* At one step let $V = V_(t+1)$ satisfy $abs(nabla V) <= L$ and $-h^- I prec.eq nabla^2 V
prec.eq h^+ I$, let $G$ smooth with $sigma W$, let $A$ be the Jacobian of the mean map, $abs(A) <=
M$ and $A$ $N$-Lipschitz in the operator norm, and let the spectrum of $H = nabla^2 G V$ lie in
$[-K^-, K^+]$. With $rho = sigma^2\/beta$ write $a = rho K^+$, $b = rho K^-$. One may take $
K^plus.minus = h^plus.minus op("erf")(L/(sqrt(2) thin sigma h^plus.minus)) <= min{h^plus.minus,
thin sqrt(2/pi) L/sigma} : $ <one-sided-smoothing> for a unit vector $v$, by parts, $v^top nabla^2
G V thin v = bb(E) [f(v dot W) thin v dot W]\/sigma$, where $f(y)$ is the slope of $V$ along $v$ at
the distance $sigma y$ from the point, given the part of $W$ across $v$. Only the odd part of $f$
counts, which for $y > 0$ is at most $min(L, h^+ sigma y)$ and at least $-min(L, h^- sigma y)$; for
these clipped lines the mean is $plus.minus K^plus.minus$, as one integration by parts shows.

*Theorem A (optimal values).* If $a < 1$, the inner problem is strongly concave with modulus $(1 -
a)\/rho$ and $ L' = M L, quad quad h'^(plus.minus) = N L + M^2 K^(plus.minus)/(1 minus.plus rho
K^(plus.minus)) . $ <one-sided-step>

_Proof._ $Phi (x, delta) = G V(x + delta) - abs(delta)^2\/(2 rho)$ has in $delta$ the Hessian $H -
I\/rho prec.eq -(1 - a)\/rho thin I$. Its maximiser solves $delta^* = rho thin nabla G V(x +
delta^*)$, so $partial delta^*\/partial x = rho H (I - rho H)^(-1)$, and the envelope $E^* =
max_delta Phi$ has by the envelope theorem $nabla E^* = nabla G V(x + delta^*)$ and $nabla^2 E^* =
H (I - rho H)^(-1)$. Since $lambda |-> lambda\/(1 - rho lambda)$ increases, its spectrum lies in
$[-K^-\/(1 + b), K^+\/(1 - a)]$. With $V^*_t = E^* compose m$, $nabla V^*_t = A^top nabla E^*$ and
$nabla^2 V^*_t = A^top nabla^2 E^* A + sum_i partial_i E^* nabla^2 m_i$, the last of which is at
most $N L$ in norm: along a unit vector $v$ it is $nabla E^* dot (D A [v] thin v)$. $qed$

Both sides are attained at once, by a quadratic reward with eigenvalues of both signs and an affine
score that stretches all directions alike. Only positive curvature is amplified, and only it can
make the maximum ill posed: *a concave reward is well posed for every* $beta$.
"""


def _inner() -> str:
    return r"""
== The inner iteration, undamped and damped

An update is $delta_(j+1) = (1 - theta) delta_j + theta rho thin nabla G V (x + delta_j)$ from
$delta_0 = 0$; $theta = 1$ is the paper's.

*Theorem B (rate).* Updates contract by $ q = max(1 - theta (1 - a), thin theta (1 + b) - 1), quad
quad theta^* = 2/(2 + b - a), quad q^* = (a + b)/(2 + b - a), $ <damped-rate> with the best factor
$theta^*$. Undamped, $q = max(a, b)$ needs both sides; damped, $q^* < 1$ whenever $a < 1$.

_Proof._ The Jacobian of an update is $(1 - theta) I + theta rho H$, symmetric, with its spectrum
between $1 - theta (1 + b)$ and $1 - theta (1 - a)$. The two ends are equal in size at $theta^*$.
$qed$ The residual $epsilon_j = rho nabla G V (x + delta_j) - delta_j$ obeys $epsilon_(j+1) = ((1 -
theta) I + theta rho macron(H)) epsilon_j$ with a mean $macron(H)$ of $H$ on the segment, because
$delta_(j+1) - delta_j = theta epsilon_j$; hence $abs(epsilon_m) <= q^m rho L$.

*Theorem C (iterates).* The value of the iterate after $m$ updates, $V^((m))_t = E_m compose m_t$
with $E_m (x) = Phi(x, delta_m)$, has the gradient $nabla E_m = g_m + J_m^top epsilon_m\/rho$, $g_m
= nabla G V(x + delta_m)$, $J_m = partial delta_m\/partial x$, and the Hessian $ (I + J_m)^top H_m
(I + J_m) - J_m^top J_m\/rho + D J_m dot epsilon_m\/rho . $ <iterate-hessian> So its constants are
those of Theorem A but for terms $O(m q^m)$: $abs(nabla E_m) <= (1 + q^m abs(J_m)) L$; the first
two terms of @iterate-hessian are at most $K^+\/(1 - a)$ and at least $-K^-\/(1 + b) - (1\/rho +
K^-) abs(J_m - J_m^*)^2$, $J_m^* = rho H_m (I - rho H_m)^(-1)$; and the last is at most $q^m abs(D
J_m) L$.

_Proof._ In @iterate-hessian put $w = J_m v$: $(v + w)^top H_m (v + w) - abs(w)^2\/rho$ is a
quadratic in $w$ with maximum $v^top H_m (I - rho H_m)^(-1) v$ at $w = J_m^* v$ and second
derivative $2 H_m - 2 I\/rho succ.eq -2 (1\/rho + K^-) I$. Differentiating an update, $J_(m+1) =
B_m J_m + theta rho H_m$ and $I + J_(m+1) = B_m (I + J_m) + theta I$ with $B_m = (1 - theta) I +
theta rho H_m$, $abs(B_m) <= q$. Hence $abs(J_m) <= theta max(a, b) (1 - q^m)\/(1 - q)$, $abs(I +
J_m) <= q^m + theta (1 - q^m)\/(1 - q) <= theta\/(1 - q)$, as $1 - q <= theta (1 - a) <= theta$.
Once more, $D J_(m+1) = B_m D J_m + theta rho thin D H_m [I + J_m] (I + J_m)$, so $abs(D J_m) <= (1
- q^m) rho tau (theta\/(1 - q))^3$ with a bound $tau$ of the third derivative of $G V$. As $abs(H_m
- H_(m-1)) <= tau theta abs(epsilon_(m-1)) <= tau theta q^(m-1) rho L$, $J_(m-1)^*$ is the fixed
point of $J |-> B_(m-1) J + theta rho H_(m-1)$ and $J_m^* - J_(m-1)^* = (I - rho H_m)^(-1) rho (H_m
- H_(m-1)) (I - rho H_(m-1))^(-1)$, $ abs(J_m - J_m^*) <= q abs(J_(m-1) - J_(m-1)^*) + (theta rho^2
tau q^(m-1) L)/(1 - a)^2 , quad abs(J_0^*) <= max(a/(1 - a), b/(1 + b)) , $ which is $O(m q^m)$.
For $m = 0$, $E_0 = G V$. $qed$
"""


def _values() -> str:
    return r"""
== Errors of values are added, never multiplied

*Theorem D.* With $m_t$ updates at step $t$, and $a_t$, $b_t$, $q_t$ and $L_(t+1)$ those of the
iterate's value $V_(t+1)^((m))$ in front, $a_t < 1$, $q_t < 1$, $ 0 <= J^* - J <= sum_t min(1 +
b_t, 1/(1 - a_t)) thin rho_t thin q_t^(2 m_t) thin L_(t+1)^2\/2 . $ <value-error>

_Proof._ Smoothing and envelope are monotone and commute with constants, so $v_t = sup(V^*_t -
V_t^((m)))$ is at most $v_(t+1)$ plus $Phi(x, macron(delta)) - Phi(x, delta_m)$ with the maximiser
$macron(delta)$ for $V_(t+1)^((m))$. The Hessian of $Phi$ in $delta$ is between $-(1 + b)\/rho$ and
$-(1 - a)\/rho$, so that difference is at most $(1 + b) abs(delta_m - macron(delta))^2\/(2 rho)$
and at most $abs(epsilon_m)^2\/(2 rho (1 - a))$, as $epsilon_m\/rho$ is the gradient of $Phi$; and
$abs(delta_m - macron(delta)) <= q^m abs(macron( delta)) <= q^m rho L$. $qed$

The performance difference along the paths of PI-FT's own policy is $J^* - J = bb(E) sum_t [Phi^*_t
(delta_t^*) - Phi^*_t (delta_t)]$ with $Phi^*$ made of $V^*_(t+1)$, so by strong concavity, where
$a_t^* < 1$ is that of $V^*$, $bb(E) sum_t (1 - a_t^*) abs(delta_t - delta_t^*)^2\/(2 rho_t) <= J^*
- J$ as well: the control's error in the mean is bounded by the same sum. As $0 <= V^* - V <= v$
may be centred to $plus.minus v\/2$ in $bb(E) [(V^* - V) Z]\/sigma$, $abs(nabla G (V^* - V)) <=
v\/(sigma sqrt(2 pi))$: errors of gradients need not be carried along the chain through products
either.
"""


def _measured(found: Rows) -> str:
    picture = figure(
        "one-sided.svg",
        f"""Constant KL weight at $lambda = 1\\/2$ against the number of steps, for the reward
        {text(SHOWN)} in one dimension: the necessary one, and what four sets of constants ask
        for.""",
        "one-sided-figure",
        "Three panels, one per law of the data, of KL weights against steps on logarithmic scales.",
    )
    return rf"""
== What is asked for, and what is necessary

{_findings(found)}

{picture}

{weights_table(found)}
"""


def _findings(found: Rows) -> str:
    here = found.where(Metric.SUFFICIENT_BETA, reward=SHOWN, d=1)
    steps = max(here.where(rule="one-sided").distinct("T"), default=None)
    said = [
        f"{text(law)}: {number(one, 2)} and {number(coupled, 2)}"
        for law in here.fields("problem")
        for mine in [here.where(problem=law)]
        for one, coupled in [[_ratio(mine, rule, 1, steps) for rule in ("one-sided", "coupled")]]
        if one is not None
    ]
    if not said:
        return f"One-sided over necessary weights: {NOT_MEASURED}."
    return f"""At $T = {steps}$ the one-sided condition and the one by coupling ask for so many
times the necessary weight: {"; ".join(said)}. For separated modes $M > 1$ on the ridge between
them, and a product of suprema is not the supremum of products; a bound along paths is nearer to
the latter."""


def weights_figure(found: Rows) -> bytes:
    """Weights against the number of steps, a panel per law."""
    laws = found.where(Metric.SUFFICIENT_BETA).fields("problem") or [""]
    with panels(1, len(laws), 2.6) as (drawn, axes):
        for ax, law in zip(axes, laws, strict=True):
            mine = found.where(Metric.SUFFICIENT_BETA, reward=SHOWN, d=1)
            mine = mine.filter(lambda record, law=law: record.problem == law)
            for (rule, name), look in zip(RULES.items(), LOOKS, strict=False):
                draw(ax, mine.where(rule=rule).series("T"), look, name)
            if finish(ax, law, "steps $T$", ""):
                ax.set_xscale("log")
                logarithmic(ax)
        legend(drawn, axes, 3)
        return svg(drawn)


def weights_table(found: Rows) -> str:
    """Necessary weights, and the one-sided ones over them, against steps and dimensions."""
    here = found.where(Metric.SUFFICIENT_BETA)
    lengths = here.distinct("T")
    body: list[Sequence[str]] = []
    for law in here.fields("problem"):
        for reward in here.where(problem=law).distinct("reward"):
            mine = here.where(problem=law, reward=reward)
            body.append((f"{text(law)}, {text(reward)}",))
            needed = [mine.where(rule="necessary", T=T).one() for T in lengths]
            body.append(
                ("necessary", *(number(each.value if each else None, 3) for each in needed))
            )
            body += [
                (title, *(number(_ratio(mine, rule, d, T), 3) for T in lengths))
                for rule, d, title in _asked(mine)
            ]
    return Table(
        header=("", *(f"$T = {length}$" for length in lengths)) if lengths else ("", "weight"),
        rows=body or [(NOT_MEASURED, "")],
        caption="""Necessary constant KL weight, and others over it, for products of $d$
            equal coordinates; the necessary weight of a product is that of a coordinate.""",
        label="one-sided-weights",
        align="l" + "r" * max(1, len(lengths)),
        long=True,
    ).markup


def _asked(rows: Rows) -> Sequence[tuple[str, int, str]]:
    """Rules and dimensions of a law and a reward, and how rows call them."""
    return [
        (rule, d, f"{RULES[rule]}, $d = {d}$")
        for rule in ("coupled", "one-sided")
        for d in rows.where(rule=rule).distinct("d")
    ]


def _ratio(rows: Rows, rule: str, d: int, steps: int | None) -> float | None:
    """The weight of a rule in d dimensions over the necessary one."""
    asked = rows.where(rule=rule, d=d, T=steps).one()
    needed = rows.where(rule="necessary", T=steps).one()
    return asked.value / needed.value if asked is not None and needed is not None else None


def _practice() -> str:
    return rf"""
== Choosing beta, and what is new

For a bounded reward Theorem F gives one safe weight for every undamped update, which nothing but
$lambda$ and the reward's range enter: start there. Smaller ones, which fall with $T$ where no ridge
makes constants compound, come from the one-sided condition and from Theorem E: of those measured
the first is smaller where scores are affine and rewards are concave, the second on long chains
where there are modes (@one-sided-weights). Both are proved for updates at the optimum, so that the
smaller may be taken; for PI-FT's own, whose value functions are unfinished, the constants are those
of Theorem C or of both at once, Theorem I. Of the rules for which constants are certified in every
dimension the one-sided condition is the default of PI-FT's choice of $beta$: it needs $sup
abs(A_t)$, the Lipschitz constant of $A_t$, and one-sided constants of the reward, which are exact
or certified for Gaussians, mixtures and rotated products; for a concave reward, affine scores and
damping it asks for nothing. Theorem E needs profiles of the mean maps. The measured curvature
remains the sharpest guide where it can be measured.

{along_paths.prior_art()}
"""
