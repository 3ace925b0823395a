"""Estimators whose costates are corrected, bootstrapped or reversed by an approximate costate."""

from __future__ import annotations

from socft.costates.base import Cost
from socft.costates.fields import PolicyCostate
from socft.costates.landing import OwnStepByJvp
from socft.costates.marginal_score import AffineMarginals, ImplicitScore, KernelScore
from socft.costates.martingale import AntitheticCorrection, FirstOrderCorrection
from socft.estimators.catalogue import factories
from socft.estimators.catalogue.context import FITTED_PATHS
from socft.estimators.catalogue.rows import COSTATES, VALUES, Anywhere, EstimatorRow, Group
from socft.estimators.full_adjoint import FullAdjoint
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.sticking_the_landing import FullStickingTheLanding, LeanStickingTheLanding
from socft.estimators.td_adjoint import TDAdjoint
from socft.regression.features import Polynomial
from socft.study.vocabulary.methods import MethodName

CORRECTED_LEAN, CORRECTED_FULL = (
    f"$B_k^top (a_(k+1) - d M_k)\\/beta_k$, {which}" for which in ("lean", "full")
)
LANDING_LEAN, LANDING_FULL = (
    f"$B_k^top a_(k+1)\\/beta_k$, {which} with $-beta_k (nabla v_k)^top xi_k$"
    for which in ("lean", "full")
)
OWN_STEP = ", less $nabla v_k B_k xi_k$"
REVERSED = "$B_k^top Y_(k+1)\\/beta_k$ at reversed states"
BOOTSTRAPPED = "$B_k^top phi_(k+1) (x_(k+1))\\/beta_k$"
ROWS: tuple[EstimatorRow, ...] = (
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
        MethodName.LEAN_STICKING_THE_LANDING,
        Anywhere(LeanStickingTheLanding),
        LeanStickingTheLanding,
        Group.CORRECTED,
        LANDING_LEAN,
    ),
    EstimatorRow(
        MethodName.LEAN_STICKING_THE_LANDING_OWN_STEP,
        Anywhere(lambda: LeanStickingTheLanding(OwnStepByJvp())),
        LeanStickingTheLanding,
        Group.CORRECTED,
        LANDING_LEAN + OWN_STEP,
    ),
    EstimatorRow(
        MethodName.FULL_STICKING_THE_LANDING,
        Anywhere(FullStickingTheLanding),
        FullStickingTheLanding,
        Group.CORRECTED,
        LANDING_FULL,
    ),
    EstimatorRow(
        MethodName.FULL_STICKING_THE_LANDING_OWN_STEP,
        Anywhere(lambda: FullStickingTheLanding(OwnStepByJvp())),
        FullStickingTheLanding,
        Group.CORRECTED,
        LANDING_FULL + OWN_STEP,
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
        REVERSED + "; noise a step ahead, as its code",
        oracle=True,
    ),
)
