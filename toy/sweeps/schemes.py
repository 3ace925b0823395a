"""Ways to learn the costate from paths, in rounds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch

from socft.checks import InvalidProblem
from socft.costates.fields import CostateField, CostateSource
from socft.costates.marginal_score import AffineMarginals
from socft.costates.martingale import AntitheticCorrection
from socft.costates.regression import CrossFittedPaths, StepwiseRegression, ValueRegression, refine
from socft.costates.time_reversal import Reverser
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.least_squares import LeastSquaresCostate, LeastSquaresValue
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.estimators.reversed_bsde import ReversedBSDE, ReversedValues
from socft.path import Noise, rollout
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.study.vocabulary.methods import MethodName
from toy.learners import ADJOINT, REVERSED, ROLLOUT
from toy.sweeps.oscillator import AffineCostate, OscillatorCase, Rule

ROUNDS = 60
CONVERGED = 1e-5
"""Largest change of a coefficient between rounds, relative to the largest coefficient, at which
iteration ends.
"""
SETTLED, UNSETTLED = 1e-3, 0.1
"""The same after the last round, beyond which a number is noted to be still changing, and beyond
which there is none.
"""
DIVERGED = 1e6
REVERSED_SEED = 10_000
FOLDS = 2


@dataclasses.dataclass(frozen=True)
class RoundInputs:
    """What a round of a scheme is made from: the same noise in every round, so that iteration has a
    fixed point.
    """

    problem: ControlProblem
    policy: AffinePolicy
    noise: Noise
    seed: int
    previous: AffineCostate

    def refined(self, sample, fit, folds: int = 1) -> CostateField:
        """One round of `socft.costates.regression.refine`."""
        sampling = CrossFittedPaths(self.noise, folds)
        return next(
            refine(self.problem, self.policy, sample, fit, sampling, 1, self.previous.field)
        )

    @property
    def reverser(self) -> Reverser:
        """With exact marginal scores."""
        return Reverser(AffineMarginals(), torch.Generator().manual_seed(self.seed + REVERSED_SEED))


def _linear(degree: int = 1) -> LinearRegression:
    return LinearRegression(Polynomial(degree))


def _lean(at: RoundInputs) -> CostateField:
    return at.refined(lambda _: AdjointMatching().costates, StepwiseRegression(_linear()).fit)


def _martingale(at: RoundInputs) -> CostateField:
    def sample(source: CostateSource):
        return MartingaleAdjoint(AntitheticCorrection(source)).costates

    return at.refined(sample, StepwiseRegression(_linear()).fit, FOLDS)


def _reversed_costate(at: RoundInputs) -> CostateField:
    return at.refined(
        lambda source: ReversedBSDE(source, at.reverser).costates, StepwiseRegression(_linear()).fit
    )


def _reversed_value(at: RoundInputs) -> CostateField:
    return at.refined(
        lambda source: ReversedValues(source, at.reverser).values,
        ValueRegression(StepwiseRegression(_linear(2))).fit,
    )


def _least_squares(
    estimator: LeastSquaresCostate | LeastSquaresValue,
) -> Callable[[RoundInputs], CostateField]:
    def of(at: RoundInputs) -> CostateField:
        with torch.no_grad():
            path = rollout(at.problem.reference, at.policy, at.noise)
        return estimator.fit(at.problem, at.policy, path)

    return of


@dataclasses.dataclass(frozen=True)
class Scheme:
    """A way to learn the costate.

    Attributes:
        kind: whether what is regressed has the chain's own costate as its mean.
        round: one round.
        work: evaluations of the mean map or the policy of a round, per step and path; a derivative
            counts as two.
        published: its name in the published table.
    """

    kind: str
    round: Callable[[RoundInputs], CostateField]
    work: int
    published: str | None = None


SCHEMES: dict[str, Scheme] = {
    MethodName.LEAST_SQUARES_COSTATE_FORM: Scheme(
        "unbiased",
        _least_squares(LeastSquaresCostate(_linear())),
        ROLLOUT + ADJOINT,
        "least_squares_costate",
    ),
    MethodName.LEAST_SQUARES_VALUE_FORM: Scheme(
        "unbiased", _least_squares(LeastSquaresValue(_linear(2))), ROLLOUT
    ),
    MethodName.TIME_REVERSED_VALUE_FORM: Scheme(
        "biased", _reversed_value, ROLLOUT + REVERSED - ADJOINT, "time_reversed_value"
    ),
    MethodName.TIME_REVERSED_EXACT_SCORE: Scheme(
        "biased", _reversed_costate, ROLLOUT + REVERSED, "time_reversed_costate"
    ),
    MethodName.MARTINGALE_FITTED_COSTATE: Scheme("unbiased", _martingale, ROLLOUT + ADJOINT),
    MethodName.ADJOINT_MATCHING: Scheme("unbiased", _lean, ROLLOUT + ADJOINT),
}


@dataclasses.dataclass(frozen=True)
class CostateFit:
    """A costate, the rounds it took, and why there is none."""

    costate: AffineCostate | None
    rounds: int
    note: str = ""


def learn(
    where: OscillatorCase, scheme: Scheme, rule: Rule | None, paths: int, rounds: int, seed: int
) -> CostateFit:
    """Iterate a scheme, and the policy where there is a rule for it, until nothing changes or
    ``rounds`` have passed.
    """
    problem, policy = where.problem, where.optimum
    if rule is not None:
        policy = AffinePolicy(
            torch.zeros_like(policy.gain.detach()), torch.zeros_like(policy.offset.detach())
        )
    (n,), noise = (
        problem.reference.dims,
        Noise.sample(problem.reference, paths, torch.Generator().manual_seed(seed)),
    )
    found, change, size = (
        AffineCostate(torch.zeros_like(where.chain.G), torch.zeros_like(where.chain.g)),
        math.inf,
        1.0,
    )
    for index in range(1, rounds + 1):
        try:
            field = scheme.round(RoundInputs(problem, policy, noise, seed, found))
            after = AffineCostate.of(field, problem.steps, n)
            change, size = (after - found).size, after.size
            if not size < DIVERGED:
                return CostateFit(
                    None, index, f"diverged: a coefficient of {size:.3g} after round {index}"
                )
            found, policy = after, policy if rule is None else rule(problem, after, where.channel)
        except (InvalidProblem, RuntimeError) as error:  # a singular solve is a RuntimeError
            return CostateFit(None, index, f"diverged in round {index}: {error}")
        if change <= CONVERGED * size:
            return CostateFit(found, index)
    note = (
        f"still changing by {change:.2g} of {size:.2g} in the last round"
        if change > SETTLED * size
        else ""
    )
    return CostateFit(None if change > UNSETTLED * size else found, rounds, note)
