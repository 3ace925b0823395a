r"""Every estimator that is compared, one row each: its name, how it is made, what it estimates, and
where it is from.

The name is the one in records, reports, configurations and on the command line. What an estimator
estimates and its source are those of its class. Targets are Typst mathematics in the notation of
the report: :math:`a` is a costate, :math:`z_k = v_k + \xi_k` the controlled noise, :math:`w` a path
weight.

A new estimator is a file in this folder and a row here. One of a user goes by its import path,
``module:name``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable
from typing import get_args

from socft.checks import InvalidProblem, require
from socft.costates.base import Cost
from socft.costates.fields import PolicyCostate
from socft.costates.marginal_score import AffineMarginals, ImplicitScore, KernelScore
from socft.costates.martingale import AntitheticCorrection, FirstOrderCorrection
from socft.estimators import factories
from socft.estimators.adjoint_matching import AdjointMatching, PublishedAdjointMatching
from socft.estimators.base import Estimator, Kind
from socft.estimators.baseline import LeaveOneOut, NoBaseline, RegressionBaseline
from socft.estimators.context import FITTED_PATHS, EstimatorContext
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.ddpo import DDPO
from socft.estimators.dpok import DPOK
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.integration_by_parts import IntegrationByParts, ValueIntegrationByParts
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.log_variance import LogVariance
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.moment import Moment
from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint
from socft.estimators.refl import ReFL
from socft.estimators.relative_entropy import RelativeEntropy
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.score_function import ScoreFunction, ScoreFunctionWithoutKLToGo
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.td_adjoint import TDAdjoint
from socft.estimators.truncated_backprop import RandomTruncation, TruncatedBackprop
from socft.estimators.variance import Variance
from socft.regression.features import Polynomial
from socft.study.import_path import import_object
from socft.study.vocabulary.methods import MethodName

KINDS: tuple[Kind, ...] = get_args(Kind)
OBJECTIVE, FIXED_POINT, BIASED = KINDS


class Group(enum.StrEnum):
    """Where an estimator's information comes from."""

    PATHWISE = "pathwise"
    CORRECTED = "corrected"
    ZEROTH_ORDER = "zeroth order"
    PATH_MEASURE = "path measure"


Fits = tuple[tuple[int, Cost], ...]
"""Numbers of paths to which something is fitted, and the cost of their labels."""


@dataclasses.dataclass(frozen=True)
class Anywhere:
    """A factory that needs no context, only options.

    Attributes:
        build: ``(**options) -> estimator``; all options have defaults.
    """

    build: Callable[..., Estimator]

    def __call__(self, context: EstimatorContext) -> Estimator:
        return self.build()


@dataclasses.dataclass(frozen=True)
class NamedEstimator:
    """An estimator by name.

    Attributes:
        name: unique.
        make: the estimator in a context.
        labelled: ``steps -> `` those whose labels cost anything.
        fitted: numbers of paths to which something is fitted beforehand, and the cost of their
            labels.
    """

    name: str
    make: Callable[[EstimatorContext], Estimator]
    labelled: Callable[[int], float] = dataclasses.field(default=float, kw_only=True)
    fitted: tuple[tuple[int, Cost], ...] = dataclasses.field(default=(), kw_only=True)

    def evaluations(self, estimator: Estimator, steps: int) -> int:
        """Network evaluations of one path's labels and rollout."""
        return evaluations_per_path(estimator.cost, steps, self.labelled(steps))

    def fit_evaluations(self, steps: int) -> int:
        """Network evaluations of what is fitted beforehand."""
        return sum(paths * evaluations_per_path(cost, steps) for paths, cost in self.fitted)


@dataclasses.dataclass(frozen=True)
class EstimatorRow(NamedEstimator):
    """An estimator of the catalogue.

    Attributes:
        estimator: its class.
        group: where its information comes from.
        target: what its loss matches the control with, as Typst markup.
        fit: the class that fits its costate, where that has a source of its own.
        oracle: whether it uses the exact solution.
        compared: whether it is among those that are held against exact gradients; the others are
            variants for training.
    """

    estimator: type[Estimator]
    group: Group
    target: str
    fit: type[LeastSquaresCostate | LeastSquaresValue | ReversedValues] | None = dataclasses.field(
        default=None, kw_only=True
    )
    oracle: bool = dataclasses.field(default=False, kw_only=True)
    compared: bool = dataclasses.field(default=True, kw_only=True)

    @property
    def kind(self) -> Kind:
        """What it estimates."""
        return self.estimator.estimates

    @property
    def source(self) -> str:
        """Where it is from."""
        return self.estimator.source if self.fit is None else self.fit.source


def evaluations_per_path(cost: Cost, steps: int, labelled: float | None = None) -> int:
    """Network evaluations of one path's labels and rollout; a derivative counts as two evaluations.

    Args:
        labelled: the number of steps whose labels cost anything; all by default.
    """
    labels = (
        cost.reference + cost.policy + 2 * (cost.reference_derivatives + cost.policy_derivatives)
    )
    return round(2 * steps + (steps if labelled is None else labelled) * labels)


LEAN, FULL = "$B_k^top a_(k+1)\\/beta_k$, lean", "$B_k^top a_(k+1)\\/beta_k$, full"
CORRECTED_LEAN, CORRECTED_FULL = (
    f"$B_k^top (a_(k+1) - d M_k)\\/beta_k$, {which}" for which in ("lean", "full")
)
REVERSED = "$B_k^top Y_(k+1)\\/beta_k$ at reversed states"
BOOTSTRAPPED = "$B_k^top phi_(k+1) (x_(k+1))\\/beta_k$"
RETURN = "(A_k - b_k) thin xi_k\\/beta_k"
COSTATES, VALUES = ((FITTED_PATHS, FullAdjoint().cost),), ((FITTED_PATHS, Cost()),)
"""What costates are fitted to, and what values: returns of paths cost nothing more."""

_PATHWISE = (
    EstimatorRow(MethodName.FULL_ADJOINT, Anywhere(FullAdjoint), FullAdjoint, Group.PATHWISE, FULL),
    EstimatorRow(
        MethodName.ADJOINT_MATCHING,
        Anywhere(AdjointMatching),
        AdjointMatching,
        Group.PATHWISE,
        LEAN,
    ),
    EstimatorRow(
        MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX,
        Anywhere(PublishedAdjointMatching),
        PublishedAdjointMatching,
        Group.PATHWISE,
        "$B_k^top a_k\\/beta_k$, lean",
    ),
    EstimatorRow(
        MethodName.RECIPROCAL_ADJOINT_MATCHING,
        lambda context: ReciprocalAdjoint(context.generator()),
        ReciprocalAdjoint,
        Group.PATHWISE,
        "lean, at bridges of the reference",
    ),
    EstimatorRow(
        MethodName.TRUNCATED,
        Anywhere(TruncatedBackprop),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - K$, else $v_k$",
        labelled=lambda _: 1,
        compared=False,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_1_STEP,
        Anywhere(lambda: TruncatedBackprop(1)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - 1$, else $v_k$",
        labelled=lambda _: 1,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_10_STEPS,
        lambda context: TruncatedBackprop(min(10, context.problem.steps)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= T - 10$, else $v_k$",
        labelled=lambda steps: min(10, steps),
    ),
    EstimatorRow(
        MethodName.TRUNCATED_LAST_FIFTH,
        lambda context: TruncatedBackprop(factories.last_fifth(context.problem.steps)),
        TruncatedBackprop,
        Group.PATHWISE,
        "full for $k >= 4 T\\/5$, else $v_k$",
        labelled=factories.last_fifth,
        compared=False,
    ),
    EstimatorRow(
        MethodName.TRUNCATED_RANDOM,
        lambda context: RandomTruncation(context.generator()),
        RandomTruncation,
        Group.PATHWISE,
        "full for $k >= T - K$, $K$ random",
        labelled=lambda steps: (steps + 1) / 2,
    ),
    EstimatorRow(
        MethodName.REFL,
        factories.refl,
        ReFL,
        Group.PATHWISE,
        "$v_k + nabla_v r(hat(x))\\/beta_k$, one $k >= 3 T\\/4$",
        labelled=lambda _: 1,
    ),
)
_CORRECTED = (
    EstimatorRow(
        MethodName.MARTINGALE_POLICY_COSTATE,
        Anywhere(lambda: MartingaleAdjoint(AntitheticCorrection(PolicyCostate()))),
        MartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_LEAN + "; antithetic, $phi$ of $v$",
    ),
    EstimatorRow(
        MethodName.MARTINGALE_POLICY_COSTATE_FIRST_ORDER,
        Anywhere(lambda: MartingaleAdjoint(FirstOrderCorrection(PolicyCostate()))),
        MartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_LEAN + "; first order",
    ),
    EstimatorRow(
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP,
        Anywhere(factories.cheap_martingale),
        MartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_LEAN + "; $phi$ without $nabla m$",
    ),
    EstimatorRow(
        MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN,
        Anywhere(factories.exact_mean_martingale),
        MartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_LEAN + "; mean of $phi$ by quadrature",
        compared=False,
    ),
    EstimatorRow(
        MethodName.MARTINGALE_EXACT_LEAN_COSTATE,
        lambda context: MartingaleAdjoint(AntitheticCorrection(context.known(context.lean_mean))),
        MartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_LEAN + "; $phi$ the mean of lean adjoints",
        oracle=True,
        compared=False,
    ),
    EstimatorRow(
        MethodName.FULL_MARTINGALE_POLICY_COSTATE,
        Anywhere(lambda: FullMartingaleAdjoint(AntitheticCorrection(PolicyCostate()))),
        FullMartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_FULL + "; antithetic, $phi$ of $v$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.FULL_MARTINGALE_FITTED_COSTATE,
        lambda context: FullMartingaleAdjoint(AntitheticCorrection(context.fitted())),
        FullMartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_FULL + "; $phi$ regressed",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.FULL_MARTINGALE_KERNEL_RIDGE_COSTATE,
        factories.kernel_martingale,
        FullMartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_FULL + "; $phi$ by kernel ridge",
        fitted=((factories.CENTRES, FullAdjoint().cost),),
    ),
    EstimatorRow(
        MethodName.FULL_MARTINGALE_QUADRATIC_COSTATE_SECOND_ORDER,
        factories.second_order_martingale,
        FullMartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_FULL + "; $phi$ quadratic",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.FULL_MARTINGALE_EXACT_COSTATE,
        lambda context: FullMartingaleAdjoint(
            AntitheticCorrection(context.known(context.value_gradient))
        ),
        FullMartingaleAdjoint,
        Group.CORRECTED,
        CORRECTED_FULL + "; $phi = nabla V^v$",
        oracle=True,
    ),
    EstimatorRow(
        MethodName.TD_09_FITTED_COSTATE,
        lambda context: TDAdjoint(context.fitted(), 0.9),
        TDAdjoint,
        Group.CORRECTED,
        "$B_k^top (0.9 thin a_(k+1) + 0.1 thin phi_(k+1))\\/beta_k$",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.TD_0_FITTED_COSTATE,
        lambda context: TDAdjoint(context.fitted(), 0.0),
        TDAdjoint,
        Group.CORRECTED,
        BOOTSTRAPPED,
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.LEAST_SQUARES_COSTATE_FORM,
        factories.least_squares_costate,
        TDAdjoint,
        Group.CORRECTED,
        BOOTSTRAPPED + "; one regression per step",
        fit=LeastSquaresCostate,
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.LEAST_SQUARES_VALUE_FORM,
        factories.least_squares_value,
        TDAdjoint,
        Group.CORRECTED,
        BOOTSTRAPPED + "; $phi = nabla V$, $V$ regressed",
        fit=LeastSquaresValue,
        fitted=VALUES,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_FITTED_COSTATE,
        lambda context: factories.time_reversed(context, context.fitted()),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; $phi$ regressed",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_POLICY_COSTATE_REFERENCE_SCORE,
        Anywhere(factories.time_reversed_by_reference),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; $phi$ of $v$, $nabla log p$ of the reference",
        compared=False,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_EXACT_SCORE,
        lambda context: factories.time_reversed_by(context, AffineMarginals()),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; $nabla log p$ exact",
        fitted=COSTATES,
        oracle=True,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_IMPLICIT_SCORE,
        lambda context: factories.time_reversed_by(context, ImplicitScore(Polynomial(1))),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; score by parts, Hyvärinen 2005",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_NEAREST_KERNEL_SCORE,
        lambda context: factories.time_reversed_by(
            context, factories.FewerPaths(KernelScore(), factories.CENTRES)
        ),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; score of kernels",
        fitted=COSTATES,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_VALUE_FORM,
        factories.time_reversed_value,
        TDAdjoint,
        Group.CORRECTED,
        BOOTSTRAPPED + "; $phi = nabla Y$, $Y$ reversed values",
        fit=ReversedValues,
        fitted=(*COSTATES, (FITTED_PATHS, Cost(reference=1, policy=1))),
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_EXACT_COSTATE,
        lambda context: factories.time_reversed(context, context.known(context.value_gradient)),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; $phi = nabla V^v$",
        oracle=True,
    ),
    EstimatorRow(
        MethodName.TIME_REVERSED_EXACT_COSTATE_PUBLISHED_PAIRING,
        lambda context: factories.time_reversed(
            context, context.known(context.value_gradient), published=True
        ),
        ReversedBSDE,
        Group.CORRECTED,
        REVERSED + "; two noises, as its code",
        oracle=True,
    ),
)
_ZEROTH_ORDER = (
    EstimatorRow(
        MethodName.SCORE_FUNCTION_NO_BASELINE,
        Anywhere(lambda: ScoreFunction(NoBaseline())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b = 0$",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        Anywhere(lambda: ScoreFunction(LeaveOneOut())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ of the other paths",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_REGRESSION_BASELINE,
        Anywhere(lambda: ScoreFunction(RegressionBaseline())),
        ScoreFunction,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ regressed",
    ),
    EstimatorRow(
        MethodName.SCORE_FUNCTION_WITHOUT_KL_TO_GO,
        Anywhere(lambda: ScoreFunctionWithoutKLToGo(LeaveOneOut())),
        ScoreFunctionWithoutKLToGo,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, no KL in $A_k$",
    ),
    EstimatorRow(
        MethodName.INTEGRATION_BY_PARTS,
        Anywhere(lambda: IntegrationByParts(RegressionBaseline())),
        IntegrationByParts,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, as a costate",
    ),
    EstimatorRow(
        MethodName.INTEGRATION_BY_PARTS_EXACT_VALUE,
        lambda context: ValueIntegrationByParts(context.known(context.value)),
        ValueIntegrationByParts,
        Group.ZEROTH_ORDER,
        "$(V_(k+1) (x_(k+1)) - V_(k+1) (m_k + B_k v_k)) thin xi_k\\/beta_k$",
        oracle=True,
        compared=False,
    ),
    EstimatorRow(
        MethodName.DDPO,
        Anywhere(DDPO),
        DDPO,
        Group.ZEROTH_ORDER,
        "clipped ratio, rewards normalised",
    ),
    EstimatorRow(
        MethodName.DDPO_KL_IN_THE_REWARD,
        Anywhere(functools.partial(DDPO, kl_in_reward=True)),
        DDPO,
        Group.ZEROTH_ORDER,
        "clipped ratio, rewards and KL normalised",
        compared=False,
    ),
    EstimatorRow(
        MethodName.DPOK,
        Anywhere(lambda: DPOK(RegressionBaseline())),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, KL at fixed states",
    ),
    EstimatorRow(
        MethodName.DPOK_NO_BASELINE,
        Anywhere(DPOK),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b = 0$, KL at fixed states",
        compared=False,
    ),
    EstimatorRow(
        MethodName.DPOK_LEAVE_ONE_OUT,
        Anywhere(factories.leave_one_out_dpok),
        DPOK,
        Group.ZEROTH_ORDER,
        f"${RETURN}$, $b$ of the other paths, KL at fixed states",
        compared=False,
    ),
)
_PATH_MEASURE = (
    EstimatorRow(
        MethodName.RELATIVE_ENTROPY,
        Anywhere(RelativeEntropy),
        RelativeEntropy,
        Group.PATH_MEASURE,
        FULL,
    ),
    EstimatorRow(
        MethodName.LOG_VARIANCE,
        Anywhere(LogVariance),
        LogVariance,
        Group.PATH_MEASURE,
        "$v_k - (R - macron(R)) thin xi_k\\/beta_k$",
    ),
    EstimatorRow(
        MethodName.MOMENT,
        factories.moment,
        Moment,
        Group.PATH_MEASURE,
        "$v_k - (R + y_0) thin xi_k\\/beta_k$, $y_0$ learnt",
        fitted=VALUES,
    ),
    EstimatorRow(
        MethodName.VARIANCE,
        Anywhere(Variance),
        Variance,
        Group.PATH_MEASURE,
        "$v_k + rho thin (rho - 1) thin xi_k$, $rho prop e^(-R\\/beta)$",
    ),
    EstimatorRow(
        MethodName.CROSS_ENTROPY,
        Anywhere(CrossEntropy),
        CrossEntropy,
        Group.PATH_MEASURE,
        "$z_k$, weight $w$",
    ),
    EstimatorRow(
        MethodName.SOCM,
        Anywhere(functools.partial(SOCM, degree=1)),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$, weight $w$",
    ),
    EstimatorRow(
        MethodName.SOCM_IDENTITY,
        Anywhere(SOCM),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$ with $M = I$, weight $w$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.SOCM_DEGREE_2,
        Anywhere(functools.partial(SOCM, degree=2)),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$, $M$ of degree 2, weight $w$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.SOCM_ADJOINT,
        Anywhere(SOCMAdjoint),
        SOCMAdjoint,
        Group.PATH_MEASURE,
        LEAN + ", weight $w$",
    ),
)
CATALOGUE: dict[str, EstimatorRow] = {
    row.name: row for row in (*_PATHWISE, *_CORRECTED, *_ZEROTH_ORDER, *_PATH_MEASURE)
}
COMPARED: tuple[str, ...] = tuple(name for name, row in CATALOGUE.items() if row.compared)
"""Those that are held against exact gradients."""
ANYWHERE: dict[str, Callable[..., Estimator]] = {
    name: row.make.build for name, row in CATALOGUE.items() if isinstance(row.make, Anywhere)
}
"""Those that need nothing but options, as ``(**options) -> estimator``."""


def find_estimator(name: str) -> NamedEstimator:
    """An estimator of the catalogue by name, or a user's by its import path ``module:name``.

    What the path leads to is called without arguments and must return an `Estimator`; a class does.
    Where that call raises, so does the `make` of what is found.

    Raises:
        InvalidProblem: there is no such estimator, or the path leads to something else.
    """
    if name in CATALOGUE:
        return CATALOGUE[name]
    require(
        ":" in name,
        f"there is no estimator {name!r}; give MODULE:NAME, or one of: {', '.join(CATALOGUE)}.",
    )
    make: Callable[[], Estimator] = import_object(name)
    require(
        callable(make),
        f"{name} is a {type(make).__name__}; it must be a class or function that makes an"
        " estimator.",
    )
    try:
        made = make()
    except Exception:  # raised again where it is measured, as that row's error
        return NamedEstimator(name, Anywhere(make))
    if not isinstance(made, Estimator):
        raise InvalidProblem(
            f"{name} makes a {type(made).__name__}; it must be a socft.estimators.base.Estimator"
            " without arguments."
        )
    return NamedEstimator(name, Anywhere(make))
