r"""Every constant and bound of the discrete control problem and of PI-FT, the one place that
reports and tests take them from.

Setting (Han-Razaviyayn-Xu, arXiv 2412.18164v4; bare equation and theorem numbers below are theirs):
a chain with coefficients a_t, g_t (the weight of the score, their ``1 - a_t``) and sigma_t; a score
that is L0s_t-Lipschitz with an L1s_t-Lipschitz Jacobian; a reward that is L0r-Lipschitz with an
L1r-Lipschitz gradient; W ~ N(0, I_d). Norms are Euclidean and operator norms. With the mean map
``m_t(y) = (y + g_t s_t(y)) / sqrt(a_t)``, the smoothing ``(G f)(x) = E f(x + sigma_t W)`` and
``rho_t = sigma_t^2 / beta_t``, Bellman's equation (9) is a smoothing, a Moreau envelope and a
composition (derived here):

.. math:: V_t = \Big[ \sup_\delta\, (G V_{t+1})(\cdot + \delta) - |\delta|^2 / (2 \rho_t) \Big]
   \circ m_t, \qquad \delta = \frac{g_t (U_t - s_t)}{\sqrt{a_t}} = \sigma_t v_t .

Write M, N for the Lipschitz constants of m_t and of its Jacobian, K for a bound on
``|Hess G V_{t+1}|``, tau for a bound on ``|D^3 G V_{t+1}| / K``, and let beta_t >= sigma_t^2
K / (1 - lam_t), so that ``rho_t K <= q := 1 - lam_t``. The maximiser solves
``delta = rho grad(G V)(x + delta)``, so that ``x + delta`` has the Jacobian ``(I - rho H)^-1``, at
most 1 / lam, and with

    D = M / lam                   Lipschitz constant of the controlled mean, (1 + g L0u) / sqrt(a)
    Z = q (tau D^2 + N) / lam     Lipschitz constant of the Jacobian of the shift

the paper's constants become, when M = (1 + g L0s) / sqrt(a), K = L1V and tau = C_d / sigma
(reconstructed from the paper's definitions and proofs, and proved again in the docstrings below;
not a transcription of its displays)

    (14) L0V_t = M L0V               (16) L0u_t = L0s + sqrt(a) q D / g
    (15) L1V_t = N L0V + M D K       (17) L1u_t = L1s + sqrt(a) Z / g
    (38) Lb0_t = M (1 + q^2 / lam) Lb0
    (39) Lb1_t = N Lb0 + M D K + max_{m >= 1} q^m ( Z Lb0 + q D^2 (K + m tau Lb0) ).

`PaperBounds` evaluates them so. `SharpBounds` evaluates them with the constants derived here: M may
be the exact Lipschitz constant of the mean map, K is the smoothed curvature, tau is free of the
dimension. It stands beside the paper's, never instead. `OneSidedBounds` is the third set (derived
here, with proofs in `socft.theory.one_sided`): it bounds the spectrum of curvatures from above and
from below, and the Jacobian of the mean map by the one-sided Lipschitz constants of the score, so
that its constants need not grow with the number of steps. `convergence` unrolls Theorem 3.1;
`sharp_convergence` uses that the gradient of an unfinished value function is off only to second
order in what its control is off, and `one_sided_convergence` that errors of values add up.
`coupled_moduli` bounds optimal values along paths, by reflection coupling, in place of products of
suprema, and `path_convergence` the errors of PI-FT. A product of zero and infinity is zero: a
quadratic reward has L0r = inf, which an affine score (L1s = 0) never multiplies. An infinite
constant means "no bound".

Each function says of what kind it is. *Equality*: an identity or an exact extremum. *Tight*: a
bound attained, or approached, by an instance the docstring names. *Upper bound*: not attained in
general.
"""

from socft.theory.along_paths import (
    PathConvergence,
    SlopeCurve,
    path_convergence,
    path_curvature,
)
from socft.theory.beta import (
    ONE_SIDED,
    BetaChoice,
    beta_from_curvature,
    constant_beta,
    scheduled_beta,
)
from socft.theory.bounds import (
    Bounds,
    OneSidedBounds,
    PaperBounds,
    SharpBounds,
    StepConstants,
    TwoSidedBounds,
)
from socft.theory.chain import (
    ChainConstants,
    kl_weight,
    proximal_step,
    score_step,
    score_unit,
    shift_unit,
)
from socft.theory.convergence import (
    Convergence,
    control_error_bound,
    convergence,
    envelope_error_bound,
    guaranteed_rates,
    one_sided_convergence,
    quadratic_rate,
    sharp_convergence,
    sharp_rates,
    value_gap_bound,
    value_gradient_error_bound,
)
from socft.theory.matching import MatchingSweeps
from socft.theory.moduli import (
    Modulus,
    coupled_curvature,
    coupled_moduli,
    graded_distances,
    line_profile,
    oscillation_curvature,
    step_curvature,
)
from socft.theory.one_sided import InnerLoop, MeanMap, iterate_step, optimal_step
from socft.theory.one_step import (
    SHARP,
    SHARP_SECOND,
    SHARP_THIRD,
    concavity_modulus,
    control_size,
    expected_norm,
    geometric_peak,
    increment_smoothness,
    iterate_excess,
    mean_lipschitz,
    mean_smoothness,
    one_sided_mean_lipschitz,
    shift_lipschitz,
    shift_smoothness,
    smoothed_curvature,
    smoothed_third,
    value_lipschitz,
    value_smoothness,
)
from socft.theory.regularity import (
    Lemma32,
    Regularity,
    RegularityStatement,
    Theorem28,
    constants,
    constants_at,
    iterate_constants,
    one_sided_constants,
    paper_constants,
    sharp_constants,
)
from socft.theory.relaxation import UNDAMPED, BestRelaxation, FixedRelaxation, Relaxation
from socft.theory.sampler_change import SamplerChange
from socft.theory.smoothness import Approximation, Smoothed, Smoothness

__all__ = [
    "ONE_SIDED",
    "SHARP",
    "SHARP_SECOND",
    "SHARP_THIRD",
    "UNDAMPED",
    "Approximation",
    "BestRelaxation",
    "BetaChoice",
    "Bounds",
    "ChainConstants",
    "Convergence",
    "FixedRelaxation",
    "InnerLoop",
    "Lemma32",
    "MatchingSweeps",
    "MeanMap",
    "Modulus",
    "OneSidedBounds",
    "PaperBounds",
    "PathConvergence",
    "Regularity",
    "RegularityStatement",
    "Relaxation",
    "SamplerChange",
    "SharpBounds",
    "SlopeCurve",
    "Smoothed",
    "Smoothness",
    "StepConstants",
    "Theorem28",
    "TwoSidedBounds",
    "beta_from_curvature",
    "concavity_modulus",
    "constant_beta",
    "constants",
    "constants_at",
    "control_error_bound",
    "control_size",
    "convergence",
    "coupled_curvature",
    "coupled_moduli",
    "envelope_error_bound",
    "expected_norm",
    "geometric_peak",
    "graded_distances",
    "guaranteed_rates",
    "increment_smoothness",
    "iterate_constants",
    "iterate_excess",
    "iterate_step",
    "kl_weight",
    "line_profile",
    "mean_lipschitz",
    "mean_smoothness",
    "one_sided_constants",
    "one_sided_convergence",
    "one_sided_mean_lipschitz",
    "optimal_step",
    "oscillation_curvature",
    "paper_constants",
    "path_convergence",
    "path_curvature",
    "proximal_step",
    "quadratic_rate",
    "scheduled_beta",
    "score_step",
    "score_unit",
    "sharp_constants",
    "sharp_convergence",
    "sharp_rates",
    "shift_lipschitz",
    "shift_smoothness",
    "shift_unit",
    "smoothed_curvature",
    "smoothed_third",
    "step_curvature",
    "value_gap_bound",
    "value_gradient_error_bound",
    "value_lipschitz",
    "value_smoothness",
]
