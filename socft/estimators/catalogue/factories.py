"""How the estimators of `socft.estimators.catalogue` that need a fit or a costate are made in a
context.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from socft.costates.adjoint import FullRecursion, LeanRecursion
from socft.costates.fields import CostateField, CostateSource, GivenCostate, PolicyCostate
from socft.costates.increments import FiniteDifferenceIncrement
from socft.costates.marginal_score import DenoisingScore, MarginalScore, NoiseScore, ReferenceScore
from socft.costates.martingale import AntitheticCorrection, ExactCorrection, SecondOrderCorrection
from socft.costates.regression import StepwiseRegression, ValueRegression
from socft.costates.time_reversal import Reverser
from socft.estimators.base import Estimator
from socft.estimators.baseline import LeaveOneOut
from socft.estimators.catalogue.context import AFFINE, FEW_DIMENSIONS, EstimatorContext
from socft.estimators.dpok import DPOK
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import FullMartingaleAdjoint, MartingaleAdjoint
from socft.estimators.moment import Moment
from socft.estimators.refl import Prediction, ReFL
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.estimators.td_adjoint import TDAdjoint
from socft.path import Noise, Path
from socft.path_measure import work_functional
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.regression.features import Polynomial
from socft.regression.functions import KernelRidge, LinearRegression

QUADRATIC = LinearRegression(Polynomial(2))
CENTRES = 200
"""Paths that a kernel method sees: its fits take time in the cube of their number, its evaluations
in proportion to it.
"""
LAST_QUARTER = 0.25
"""Of the steps, the last ones, from which ReFL draws: 10 of 40 in its publication."""
LAST_FIFTH = 0.2
SCORE_SEED = 78
EXACT_NODES = 8


def last_fifth(steps: int) -> int:
    """How many steps a truncated path has where nothing else is said."""
    return max(1, round(LAST_FIFTH * steps))


def cheap_martingale(last: bool = True) -> Estimator:
    """Corrected with the policy's own costate without the derivative of the mean map.

    Args:
        last: whether the last step is corrected too; that evaluates the reward's gradient at more
            states.
    """
    return MartingaleAdjoint(AntitheticCorrection(PolicyCostate(exact=False), last))


def exact_mean_martingale() -> Estimator:
    """The same with the mean of the field by quadrature."""
    return MartingaleAdjoint(ExactCorrection(PolicyCostate(exact=False), nodes=EXACT_NODES))


def kernel_martingale(context: EstimatorContext) -> Estimator:
    """Corrected with a costate by kernel ridge regression."""
    return FullMartingaleAdjoint(AntitheticCorrection(context.fitted(_KERNEL, CENTRES)))


def second_order_martingale(context: EstimatorContext) -> Estimator:
    """Corrected to second order with a quadratic costate."""
    context.require_few_noises()
    return FullMartingaleAdjoint(SecondOrderCorrection(context.fitted(QUADRATIC)))


def least_squares_costate(context: EstimatorContext) -> Estimator:
    """The costate form of least-squares Monte Carlo."""
    return _bootstrapped(
        LeastSquaresCostate(AFFINE, FullRecursion()).fit(
            context.problem, context.policy, context.own_paths()
        )
    )


def least_squares_value(context: EstimatorContext) -> Estimator:
    """The value form of least-squares Monte Carlo."""
    context.require_few_dimensions()
    return _bootstrapped(
        LeastSquaresValue(QUADRATIC).fit(context.problem, context.policy, context.own_paths())
    )


def time_reversed(
    context: EstimatorContext, field: CostateSource, published: bool = False
) -> Estimator:
    """Reversed paths with a score by denoising.

    Args:
        published: whether state and costate are paired with two noises.
    """
    context.require_few_noises(FEW_DIMENSIONS)
    reverser = Reverser(_DENOISING, context.generator(), published)
    return ReversedBSDE(field, reverser, FullRecursion())


def time_reversed_by(context: EstimatorContext, score: MarginalScore) -> Estimator:
    """Reversed paths with a fitted costate and another score."""
    context.require_few_noises()
    return ReversedBSDE(context.fitted(), Reverser(score, context.generator()), FullRecursion())


def time_reversed_value(context: EstimatorContext) -> Estimator:
    """Values that ride backwards on an affine costate, fitted with quadratic features and
    differentiated.
    """
    context.require_few_dimensions()
    reverser = Reverser(_DENOISING, context.generator(SCORE_SEED))
    values = ReversedValues(context.fitted(), reverser).values(
        context.problem, context.policy, context.own_paths()
    )
    return _bootstrapped(ValueRegression(StepwiseRegression(QUADRATIC)).fit(values))


def time_reversed_by_reference(last: bool = True) -> Estimator:
    """Reversed paths with the score that the reference goes by and the policy's own costate.

    Args:
        last: as in `cheap_martingale`.
    """
    return ReversedBSDE(
        PolicyCostate(exact=False),
        Reverser(ReferenceScore()),
        LeanRecursion(),
        FiniteDifferenceIncrement(),
        last,
    )


def leave_one_out_dpok(clip: float | None = 1e-4) -> Estimator:
    """As published, but that the value function is the mean of the other paths' rewards."""
    return DPOK(LeaveOneOut(), clip, averaged=True)


def refl(context: EstimatorContext) -> Estimator:
    """On a quarter of the steps, with the exact mean end of an affine chain where it is one."""
    reference, steps = context.problem.reference, context.problem.steps
    prediction = _mean_end(reference) if isinstance(reference, AffineReference) else None
    first = steps - max(1, round(LAST_QUARTER * steps))
    return ReFL(first, steps - 1, context.generator(), prediction)


def moment(context: EstimatorContext) -> Estimator:
    """The loss with an initial value that has learnt: fitted to the work functional of paths of its
    own, affine in the start.
    """
    path = context.own_paths()
    with torch.no_grad():
        start = AFFINE.fit(
            path.states[0], -work_functional(context.problem, path.controls, path).unsqueeze(1)
        )
    return Moment(lambda x: start(x)[:, 0])


@dataclasses.dataclass(frozen=True)
class FewerPaths(MarginalScore):
    """A score fitted to the first paths alone."""

    score: MarginalScore
    count: int
    couples_batch: ClassVar[bool] = True

    def smallest_batch(self, problem: ControlProblem) -> int:
        return self.score.smallest_batch(problem)

    def fit(self, problem: ControlProblem, policy: Policy, path: Path) -> NoiseScore:
        noise = Noise(path.noise.initial[: self.count], path.noise.steps[:, : self.count])
        return self.score.fit(
            problem,
            policy,
            Path(path.states[:, : self.count], path.controls[:, : self.count], noise),
        )


_KERNEL, _DENOISING = KernelRidge(), DenoisingScore(AFFINE)


def _bootstrapped(field: CostateField) -> Estimator:
    """The field's own value at the next state in place of a costate's sample."""
    return TDAdjoint(GivenCostate(field), 0.0)


def _mean_end(reference: AffineReference) -> Prediction:
    """``E[X_T | x_k, v_k]`` with no control after step k, which is what Tweedie's formula predicts
    of a denoising chain.
    """
    (n,), steps = reference.dims, reference.steps
    transitions, offsets = (
        [torch.eye(n, dtype=torch.float64)],
        [torch.zeros(n, dtype=torch.float64)],
    )
    for k in reversed(range(1, steps)):
        offsets.append(transitions[-1] @ reference.offset[k] + offsets[-1])
        transitions.append(transitions[-1] @ reference.transition[k])
    transition, offset = torch.stack(transitions[::-1]), torch.stack(offsets[::-1])
    return lambda k, x, v: (
        (transition[k] @ reference.step(k, x, v).unsqueeze(2)).squeeze(2) + offset[k]
    )
