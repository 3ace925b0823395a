"""What the convergence report says of the claims whatever was measured: their order and titles,
statements, ways of measuring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

GROUPS: Mapping[str, Mapping[str, str]] = {
    "The control problem (section 2)": {
        "lemma_2_5": "Lemma 2.5",
        "remark_2_4": "Remark 2.4",
        "operator_view": "Operator view of (9)",
        "theorem_2_8_i_value_lipschitz": "Theorem 2.8 (i), (14)",
        "theorem_2_8_i_value_smoothness": "Theorem 2.8 (i), (15)",
        "theorem_2_8_ii_bellman": "Theorem 2.8 (ii)",
        "optimality_condition": "Condition (18), (20)",
        "strong_concavity": "Strong concavity (19)",
        "theorem_2_8_iii_control_lipschitz": "Theorem 2.8 (iii), (16)",
        "theorem_2_8_iii_control_smoothness": "Theorem 2.8 (iii), (17)",
        "integration_by_parts": "Integration by parts (26), (48)",
    },
    "PI-FT (section 3)": {
        "contraction": "Contraction (67)",
        "iterate_gradient": "Gradient of an iterate (55)",
        "lemma_3_2_control": "Lemma 3.2, control",
        "lemma_3_2_increments": "Lemma 3.2, increments",
        "lemma_3_2_lipschitz": "Lemma 3.2, (38)",
        "lemma_3_2_smoothness": "Lemma 3.2, (39)",
        "lemma_3_3": "Lemma 3.3",
        "lemma_3_4": "Lemma 3.4",
        "theorem_3_1": "Theorem 3.1",
        "coupled_step_growth": "One more update of all steps",
    },
    "Policy gradient (section 4.1)": {
        "policy_gradient_formula": "Gradient (77)",
        "policy_gradient_stationary_point": "Stationary point",
        "policy_gradient_concavity": "Concavity away from the optimum",
        "policy_gradient_rate": "Linear rate",
    },
    "Continuous time and the exponential tilt (section 4.2)": {
        "hjb_equation": "Equations (78), (79)",
        "discrete_to_continuous": "Discrete to continuous",
        "cole_hopf": "Cole-Hopf",
        "tilt_gap": "Kernel gap",
        "memory_bias": "Memory gap",
    },
    "Sharper constants (derived here)": {
        "beta_tightness": "Condition on the KL weight",
        "smoothed_curvature": "Smoothed curvature",
        "third_derivative_lemma": "Third derivative",
        "sharpened_dimension_free": "No dimension in (17)",
        "sharpened_lam_identity": "Identity for (15), (16)",
    },
    "Adjoints": {
        "envelope_identity": "Envelope identity (34)",
        "full_adjoint_is_simulator_derivative": "Full adjoint",
        "lean_adjoint_fixed_point": "Lean adjoint",
        "adjoint_index": "Index of the costate",
        "estimator_unbiasedness": "What estimators estimate",
    },
    "Gradient guidance (arXiv 2404.14743)": {
        "guidance_subspace": "Subspace kept by look-ahead",
        "guidance_strength": "Strength of look-ahead",
        "guidance_published_rule": "Published strength",
        "guidance_conditional_score": "Conditional score",
        "guidance_linear_score": "Learnt linear score",
        "guidance_pass_mean": "Mean of a guided pass",
        "guidance_algorithm_1": "Algorithm 1",
        "guidance_algorithm_2": "Algorithm 2",
    },
}
"""Titles of the claims, in the order of the report; a claim that is missing here is shown under its
own name.
"""

OTHERS = "Other results"


@dataclasses.dataclass(frozen=True)
class Topic:
    """A result and the claims that check it.

    Attributes:
        title: of its section.
        subject: what its table is about.
        text: statement, and how it is measured, as markup.
        claims: whose records are shown.
    """

    title: str
    subject: str
    text: str
    claims: tuple[str, ...]


TOPICS = (
    Topic(
        "Theorem 2.8 (i): the value functions are smooth",
        "Theorem 2.8 (i)",
        r"""If $beta_t >= sigma_t^2 L_1 (V_(t+1))\/(1 - lambda_t)$ for all $t$, then $V_t$ is differentiable,

$ |V_t (y) - V_t (y')| <= L_0 (V_t) |y - y'|, quad |nabla V_t (y) - nabla V_t (y')| <= L_1 (V_t) |y - y'|, $

with the constants of @recursion, the paper's (14) and (15). Measured are the suprema of $|nabla V_t|$ and $|nabla^2 V_t|$ of the
exact solution at the smallest weights that the condition admits: by quadrature for drawn chains of up to 12 steps, also as rotated
products in up to 64 dimensions, and in closed form for affine scores and quadratic rewards.""",
        ("theorem_2_8_i_value_lipschitz", "theorem_2_8_i_value_smoothness"),
    ),
    Topic(
        "Theorem 2.8 (ii): Bellman's equation has one solution, and it is optimal",
        "Theorem 2.8 (ii)",
        r"""Under the same condition the bracket in Bellman's equation is strongly concave in the control, the paper's (19), its
only stationary point is $u^*$, (18), and $V$ is the value of $u^*$. Summed along the chain of any control $U$ this gives uniqueness
with a number (derived here), $v$ and $v^*$ being $U$ and $u^*$ in units of the noise:

$ J(u^*) - J(U) >= 1/2 sum_t lambda_t beta_t thin bb(E)_U |v_t (Y_t) - v_t^* (Y_t)|^2 . $

Measured are the value against the objective of $u^*$, from the law of its chain pushed forward; objectives of controls that
differ from $u^*$ by waves of any size; maximisers found by search; and second differences of the bracket. The right-hand side
is "measured" and the left-hand side its "bound".""",
        ("theorem_2_8_ii_bellman", "optimality_condition", "strong_concavity", "operator_view"),
    ),
    Topic(
        "Theorem 2.8 (iii): the optimal control is smooth",
        "Theorem 2.8 (iii)",
        r"""Under the same condition $u^*_t$ is $L_0 (u_t)$-Lipschitz with an $L_1 (u_t)$-Lipschitz Jacobian, (16) and (17),

$ L_0 (u_t) = 1/lambda_t ( L_0 (s_t) + (1 - lambda_t) / g_t ), quad
  L_1 (u_t) = 1/lambda_t ( L_1 (s_t) + (1 - lambda_t) / g_t dot (C_d (1 + g_t L_0 (u_t))^2) / (sigma_t sqrt(a_t)) ), $

with $C_d = bb(E) |W|$. Measured are the suprema of the first and second derivatives of the exact control. The sharper constants
take the exact slope of the mean map, the smoothed curvature and $sqrt(2\/pi)$ in place of $C_d$.""",
        (
            "theorem_2_8_iii_control_lipschitz",
            "theorem_2_8_iii_control_smoothness",
            "sharpened_lam_identity",
        ),
    ),
    Topic(
        "The condition on the KL weight, and how much of it is needed",
        "condition on $beta$",
        r"""The theory asks for $beta_t >= sigma_t^2 K_(t+1)\/(1 - lambda_t)$ with a bound $K_(t+1)$ on the curvature of
$V_(t+1)$; an instance needs it with $K_(t+1) = sup |nabla^2 G_t V_(t+1)|$. For a function with Lipschitz constants $L_0$ and
$L_1$ (derived here)

$ |nabla^2 G V| <= L_1 thin op("erf") ( L_0 / (sqrt(2) thin sigma L_1) ) <= min { L_1, sqrt(2\/pi) thin L_0\/sigma } . $

Measured are the smallest constant weight with which every inner map contracts by $1 - lambda$, found by bisection with the exact
solver for families of problems with 1 to 12 steps, over the smallest weight that the constants admit; and smoothed curvatures of
functions whose second derivatives are staircases, in closed form.""",
        ("beta_tightness", "smoothed_curvature"),
    ),
    Topic(
        "Third derivatives, and the dimension in (17)",
        "third derivatives",
        r"""The proof of (17) bounds the third derivative of a smoothed value function by $C_d L_1\/sigma$ with
$C_d = bb(E) |W| tilde sqrt(d)$. One direction is enough (derived here): in every dimension

$ |D^3 G V| <= sqrt(2\/pi) thin L_1 / sigma, quad "and" quad |D^3 G V| <= sqrt(8 / (pi e)) thin L_0 / sigma^2 . $

Measured are third derivatives of sums of two functions along directions at any angle whose second derivatives are staircases, in
closed form, and $bb(E) |b dot W|$ over unit vectors $b$ in up to 16384 dimensions.""",
        ("third_derivative_lemma", "sharpened_dimension_free"),
    ),
    Topic(
        "Lemma 3.2: every iterate is as smooth as the optimum, up to constants",
        "Lemma 3.2",
        r"""If $beta_t >= sigma_t^2 macron(L)_1 (V_(t+1))\/(1 - lambda_t)$, then for every number $m$ of inner iterations the
control $U_t^((m))$ has the constants (16) and (17), $V_t^((m))$ is $macron(L)_0 (V_t)$-Lipschitz with an $macron(L)_1
(V_t)$-Lipschitz gradient, the paper's (38) and (39), and the costates $G_j = bb(E) nabla V_(t+1) (m_t + delta^((j)) + sigma_t
W)$ that successive updates see satisfy

$ |G_j - G_(j-1)| <= (1 - lambda_t)^j thin macron(L)_0 (V_(t+1)), quad
  macron(L)_0 (V_t) = M_t ( 1 + (1 - lambda_t)^2 / lambda_t ) macron(L)_0 (V_(t+1)) . $

Measured are the suprema of PI-FT's own iterates by quadrature, at the smallest weights that the paper's constants admit
("paper") and at those that the sharper ones do ("sharp"), and in closed form for one step.""",
        (
            "lemma_3_2_control",
            "lemma_3_2_increments",
            "lemma_3_2_lipschitz",
            "lemma_3_2_smoothness",
            "iterate_gradient",
        ),
    ),
    Topic(
        "The contraction (67)",
        "contraction",
        r"""The inner map @inner of step $t$ is Lipschitz, with the value function that PI-FT has in front of it,

$ |delta^((j+1)) - delta^((j))| <= (sigma_t^2 thin macron(L)_1 (V_(t+1))) / beta_t thin |delta^((j)) - delta^((j-1))|
  <= (1 - lambda_t) thin |delta^((j)) - delta^((j-1))| . $

Measured are the supremum of $rho_t |nabla^2 G_t V_(t+1)^((m))|$, which is the Lipschitz constant of the map, and the largest
ratio of successive increments.""",
        ("contraction",),
    ),
    Topic(
        "Lemmas 3.3 and 3.4: error of the control and of the value gradient",
        "Lemmas 3.3 and 3.4",
        r"""With $epsilon_t = sup |nabla V_t^((m)) - nabla V_t^*|$ the errors of one step are bounded by @control-bound and
@value-bound, which is for the control in the paper's units

$ sup |U_t^((m)) - u_t^*| <= (1 - lambda_t)^m kappa_t L_0 (V_(t+1)) + kappa_t epsilon_(t+1) / lambda_t . $

Measured are both errors of PI-FT by quadrature against the exact optimum, with the measured $epsilon_(t+1)$ on the right. For
Lemma 3.4 the sharper bound has $q^(2 m)$ in place of $q^(m+1)$, $q = 1 - lambda$ (derived here).""",
        ("lemma_3_3", "lemma_3_4"),
    ),
    Topic(
        "Theorem 3.1: linear convergence",
        "Theorem 3.1",
        r"""Lemmas 3.3 and 3.4 unrolled from $T$ to $t$ bound $sup |U_t^((m)) - u_t^*|$ for every $m$ and $t$, and the bound is
$O(max_(s >= t) (1 - lambda_s)^m)$. Measured is the error of PI-FT with $m$ updates at every step against the exact optimum; on a
linear-quadratic problem also its asymptotic rates, in ball arithmetic.

The theorem bounds the errors, not their ratios: one more update of every step may increase the error of a control, because the
value function in front of it changes too.""",
        ("theorem_3_1", "coupled_step_growth"),
    ),
    Topic(
        "Section 4.1: parametric policy gradient",
        "section 4.1",
        r"""For $U_t = K_t phi_t (y)$ the gradient of the objective is the paper's (77),

$ nabla_(K_t) J = bb(E) [ partial_u Q^K_t (Y_t, K_t phi_t (Y_t)) thin phi_t (Y_t)^top ] . $

The paper proves strong concavity of $Q^K_t$ at the optimum only, and conjectures a linear rate. Measured are the formula against
derivatives of the objective; roots of the exact gradient from random starts; the curvature of $Q^K_t$ in the control at random
policies; and contraction factors of exact gradient ascent near the optimum and from afar.""",
        (
            "policy_gradient_formula",
            "policy_gradient_stationary_point",
            "policy_gradient_concavity",
            "policy_gradient_rate",
        ),
    ),
    Topic(
        "Section 4.2: continuous time, and the exponential tilt",
        "section 4.2",
        r"""With $a = 1 - q thin d t$ and $sigma^2 = q thin d t$ the problem tends to the Hamilton–Jacobi–Bellman equation (79),
with the control (78),

$ partial_tau V + q ( y/2 + s ) dot nabla V + q/2 Delta V + q / (2 beta) |nabla V|^2 = 0, quad u^* = s + (nabla V) / beta, $

which a constant $beta$ makes linear: $V = beta log bb(E) [exp(r(Y_1)\/beta) | Y_tau]$. The discrete optimum misses two things
of the exponential tilt. Its kernels move means only, the kernel gap,

$ beta log bb(E) [e^(r(Y_T)\/beta) | Y_0] - V_0 (Y_0) = sum_t ( -beta/2 log det D_t - sigma_t^2 / 2 op("tr") P_(t+1) ),
  quad D_t = I - sigma_t^2 P_(t+1)\/beta, $

for quadratic rewards (derived here), and it cannot choose where it starts, the memory gap. Measured are values by quadrature and in
closed form with $T$ and $2 T$ steps; the equations symbolically and by automatic differentiation.""",
        ("hjb_equation", "discrete_to_continuous", "cole_hopf", "tilt_gap", "memory_bias"),
    ),
    Topic(
        "Adjoints: what matching methods regress on",
        "adjoints",
        r"""The gradient of the value function obeys the envelope identity, the paper's (34),

$ nabla V_t (y) = (nabla m_t (y))^top thin bb(E) nabla V_(t+1) (m_t (y) + sigma_t (v_t^* (y) + W)), $

which is the lean adjoint of adjoint matching (#link("https://arxiv.org/abs/2409.08861")[arXiv 2409.08861]) in expectation. Its
fixed point is the optimum, but away from it the residual is no gradient; the full adjoint, with the policy's derivative, is the
gradient of the simulated objective on every path.""",
        (
            "envelope_identity",
            "full_adjoint_is_simulator_derivative",
            "lean_adjoint_fixed_point",
            "adjoint_index",
            "estimator_unbiasedness",
        ),
    ),
)
