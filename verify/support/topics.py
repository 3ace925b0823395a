"""The topics of the claims, in the order in which reports show them."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Topic:
    """A result of the theory that some claims are about.

    Attributes:
        place: its place among the topics.
        title: in words.
        measured: what is measured, in sentences of Typst markup.
    """

    place: int
    title: str
    measured: str


KL_DIVERGENCE = Topic(
    1,
    "Lemma 2.5 and Remark 2.4: the control's cost is a divergence",
    "Measured are divergences of drawn Gaussians from their densities, and of path laws along"
    " the chain, against the cost of the control.",
)
THEOREM_2_8_I = Topic(
    2,
    "Theorem 2.8 (i): the value functions are smooth",
    "The condition is $β_t ≥ σ_t^2 L_1 (V_(t+1))/(1 − λ_t)$ for all $t$. Measured are the suprema"
    " of $|∇V_t|$ and $|∇^2 V_t|$ of the exact solution at the smallest weights that the condition"
    " admits: by quadrature for drawn chains of up to 12 steps, also as rotated products in up to"
    " 64 dimensions, and in closed form for affine scores and quadratic rewards.",
)
THEOREM_2_8_II = Topic(
    3,
    "Theorem 2.8 (ii): Bellman's equation has one solution, and it is optimal",
    "Uniqueness is stated with a number (derived here), $v$ and $v^*$ being $U$ and $u^*$ in units"
    " of the noise. Measured are the value against the objective of $u^*$, from the law of its"
    " chain pushed forward; objectives of controls that differ from $u^*$ by waves of any size;"
    " maximisers found by search; and second differences of the bracket $Q_t$ in Bellman's"
    ' equation. The side of the waves is "measured" and the difference of objectives its'
    ' "bound".',
)
THEOREM_2_8_III = Topic(
    4,
    "Theorem 2.8 (iii): the optimal control is smooth",
    "Measured are the suprema of the first and second derivatives of the exact control. The"
    " sharper constants take the exact slope of the mean map, the smoothed curvature and"
    " $sqrt(2/π)$ in place of $C_d$.",
)
WEIGHT = Topic(
    5,
    "The condition on the KL weight, and how much of it is needed",
    "Measured are the smallest constant weight with which every inner map contracts by"
    " $1 − λ$, found by bisection with the exact solver for families of problems with 1 to 12"
    " steps, over the smallest weight that the constants admit; and smoothed curvatures of"
    " functions whose second derivatives are staircases, in closed form.",
)
DERIVATIVES = Topic(
    6,
    "Derivatives of smoothed functions, and the dimension in (17)",
    "The proof of (17) bounds the third derivative of a smoothed value function by $C_d L_1/σ$,"
    " where $C_d$ grows as $sqrt(d)$; one direction is enough (derived here). Measured are third"
    " derivatives of sums of two functions along directions at any angle whose second derivatives"
    " are staircases, in closed form; $bb(E) |b · W|$ over unit vectors $b$ in up to 16384"
    " dimensions; and both sides of the integrations by parts, by quadrature and symbolically.",
)
LEMMA_3_2 = Topic(
    7,
    "Lemma 3.2: every iterate is as smooth as the optimum, up to constants",
    "The condition is $β_t ≥ σ_t^2 macron(L)_1 (V_(t+1))/(1 − λ_t)$; the $G_j$ are the costates"
    " that successive updates see. Measured are the suprema of PI-FT's own iterates by quadrature,"
    ' at the smallest weights that the paper\'s constants admit ("paper") and at those that the'
    ' sharper ones do ("sharp"), and in closed form for one step.',
)
CONTRACTION = Topic(
    8,
    "The contraction (67)",
    "Measured are the supremum of $ρ_t |∇^2 G_t V_(t+1)^((m))|$, which is the Lipschitz constant"
    " of the inner map, and the largest ratio of successive increments.",
)
LEMMAS_3_3_AND_3_4 = Topic(
    9,
    "Lemmas 3.3 and 3.4: error of the control and of the value gradient",
    "Measured are both errors of PI-FT by quadrature against the exact optimum, with the measured"
    " $ε_(t+1)$ on the right. For Lemma 3.4 the sharper bound has $q^(2 m)$ in place of"
    " $q^(m+1)$, $q = 1 − λ$ (derived here).",
)
THEOREM_3_1 = Topic(
    10,
    "Theorem 3.1: linear convergence",
    "Measured is the error of PI-FT with $m$ updates at every step against the exact optimum; on a"
    " linear-quadratic problem also its asymptotic rates, in ball arithmetic. The theorem bounds"
    " the errors, not their ratios: one more update of every step may increase the error of a"
    " control, because the value function in front of it changes too.",
)
ONE_SIDED = Topic(
    11,
    "One-sided constants: a condition that does not compound",
    "Derived here. $h^±$ bound the largest and minus the smallest eigenvalue of $∇^2 V$, $K^±$"
    " those of $∇^2 G V$, $M$ and $N$ are the Lipschitz constants of the mean map and of its"
    " Jacobian, $a = ρ K^+$ and $b = ρ K^(−)$; updates are relaxed by $θ$. Measured are suprema of"
    " the exact solution and of PI-FT by quadrature, at the smallest weights that these constants"
    " admit, in up to 64 dimensions as rotated products; and closed forms.",
)
SECTION_4_1 = Topic(
    12,
    "Section 4.1: parametric policy gradient",
    "Policies are $U_t = K_t φ_t (y)$. The paper proves strong concavity of $Q^K_t$ at the optimum"
    " only, and conjectures a linear rate. Measured are the formula against derivatives of the"
    " objective; roots of the exact gradient from random starts; the curvature of $Q^K_t$ in the"
    " control at random policies; and contraction factors of exact gradient ascent near the"
    " optimum and from afar.",
)
SECTION_4_2 = Topic(
    13,
    "Section 4.2: continuous time, and the exponential tilt",
    "Here $a = 1 − q thin d t$ and $σ^2 = q thin d t$. The discrete optimum misses two things of"
    " the exponential tilt: its kernels move means only, the kernel gap, and it cannot choose where"
    " it starts, the memory gap. Measured are values by quadrature and in closed form with $T$ and"
    " $2 T$ steps; the equations symbolically and by automatic differentiation.",
)
ADJOINTS = Topic(
    14,
    "Adjoints: what matching methods regress on",
    "The envelope identity, the paper's (34), is the lean adjoint of adjoint matching"
    ' (#link("https://arxiv.org/abs/2409.08861")[arXiv 2409.08861]) in expectation. Its fixed'
    " point is the optimum, but away from it the residual is no gradient; the full adjoint, with"
    " the policy's derivative, is the gradient of the simulated objective on every path.",
)
GUIDANCE = Topic(
    15,
    "Gradient guidance",
    "For Gaussian data everything is exact at any number of steps"
    ' (#link("https://arxiv.org/abs/2404.14743")[arXiv 2404.14743]). Measured are guided chains,'
    " fixed points and rates of the two algorithms, and fitted linear scores against these"
    " formulas.",
)
FLOW = Topic(
    16,
    "Flow matching: samplers and what they keep",
    "Noise has level 1 and data level 0. Measured are means and covariances of one step by"
    " quadrature and in closed form, laws of whole chains by recursion, and their limits as the"
    " number of steps grows.",
)
ITERATIONS = Topic(
    17,
    "Iterations over all steps at once",
    "One sweep updates the control of every step from paths of the last one. With expectations"
    " exact, what a sweep does to the error is known: measured are errors of sweeps and spectra of"
    " their derivatives, for quadratic problems in closed form and for others by quadrature.",
)
PATH_LAWS = Topic(
    18,
    "Path laws: what holds for every policy",
    "The optimal path law has the density $e^(r/β)/Z$ with respect to the pre-trained one. Measured"
    " are expectations over whole paths, in closed form for affine chains and by quadrature for"
    " others.",
)
OTHER = Topic(19, "Other results", "")
