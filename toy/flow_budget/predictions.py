r"""What the study is predicted to find, as intervals; written before its runs, except that bias,
variance and error with 10 steps on overlapping modes, at both ends, had been measured before.

* Estimators of the gradient have it as their mean wherever they are asked (`UNBIASED`), residuals
  of the optimum vanish there (`RESIDUALS_VANISH`): biases within 3 standard errors.
* The noise of sticking the landing falls like the step where the problem is linear-quadratic, and
  less elsewhere (`LANDING`, `LANDING_IN_T`): variances over those of adjoint matching.
* A policy gradient has per step the noise of the whole reward, times :math:`\xi_k`, and the squared
  norm of the gradient is :math:`O(1)` in its products with features, so its relative variance is
  proportional to T (`POLICY_GRADIENTS`). Targets of adjoints are :math:`O(\sqrt{dt})` a step
  (`ADJOINTS`), and so are those of re-noised samples, whose kernels' divergence is
  :math:`O(dt)` (`RENOISED`). Malliavin weights average the noises of the :math:`T - k` later steps,
  which leaves :math:`\sum_k 1/(T - k)` (`MALLIAVIN`).
* At the pre-trained model :math:`\mathrm{Cov}_p(r, y|x)/b` is the gradient in continuous time
  (`ENDPOINT_COVARIANCE`), and the tilt is the optimum there (`TILT`): a power of -1 in T.
* At the optimum the gradient of the mean reward is that of the divergence, the optimal control
  itself, which to first order is what is proposed at the pre-trained model (`WITHOUT_KL`).
* An objective at an equal budget is decided by noise (`GRADIENT_TRAINS`, `LANDING_TRAINS`), except
  where the limit is another one (`KL_TRAINS`, `WITHOUT_NOISE_TRAINS`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.rows import Group
from socft.estimators.estimand import Kind
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.predictions import BudgetPrediction
from toy.flow_budget.proposals import OPTIMUM, START
from toy.repeated import RepeatedGradient
from toy.sde_ode.predictions import Range

SMALLEST = 1e-3
"""A ratio that counts as none."""
NOISE = 3.0
"""Standard errors within which a mean is what it should be."""
PREDICTED: Mapping[BudgetPrediction, Range] = {
    BudgetPrediction.UNBIASED: Range(high=NOISE),
    BudgetPrediction.RESIDUALS_VANISH: Range(high=NOISE),
    BudgetPrediction.LANDING: Range(high=1.0),
    BudgetPrediction.LANDING_IN_T: Range(high=1.0),
    BudgetPrediction.POLICY_GRADIENTS: Range(0.8, 1.2),
    BudgetPrediction.ADJOINTS: Range(-0.2, 0.2),
    BudgetPrediction.RENOISED: Range(-0.5, 0.5),
    BudgetPrediction.MALLIAVIN: Range(-0.25, 0.65),
    BudgetPrediction.ENDPOINT_COVARIANCE: Range(-1.5, -0.5),
    BudgetPrediction.TILT: Range(-1.5, -0.5),
    BudgetPrediction.WITHOUT_KL: Range(0.8, 1.2),
    BudgetPrediction.GRADIENT_TRAINS: Range(high=1.0),
    BudgetPrediction.LANDING_TRAINS: Range(high=1.0),
    BudgetPrediction.KL_TRAINS: Range(high=1.0),
    BudgetPrediction.WITHOUT_NOISE_TRAINS: Range(low=1.0),
}
"""Standard errors, ratios, and powers of T."""
GROWTH: Mapping[BudgetPrediction, tuple[MethodName, ...]] = {
    BudgetPrediction.POLICY_GRADIENTS: (
        MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT,
        MethodName.DPOK_LEAVE_ONE_OUT,
        MethodName.FLOW_GRPO,
        MethodName.DDPO,
    ),
    BudgetPrediction.ADJOINTS: (MethodName.FULL_ADJOINT, MethodName.ADJOINT_MATCHING),
    BudgetPrediction.RENOISED: (MethodName.RAM, MethodName.RAM_GROUP_MEAN, MethodName.AWM),
    BudgetPrediction.MALLIAVIN: (MethodName.MALLIAVIN_WEIGHTS,),
}
"""Methods whose variance at the pre-trained model is compared between numbers of steps."""
RENOISED = (MethodName.RAM, MethodName.RAM_GROUP_MEAN, MethodName.AWM)
LANDING = (MethodName.FULL_STICKING_THE_LANDING, MethodName.LEAN_STICKING_THE_LANDING)
WITHOUT_KL = (MethodName.DDPO, MethodName.DANCE_GRPO)
WITHOUT_NOISE = (MethodName.DETERMINISTIC_ADJOINT_MATCHING, MethodName.VGG_FLOW)
PATHWISE = (MethodName.FULL_ADJOINT, MethodName.ADJOINT_MATCHING, *LANDING)
Measured = Mapping[str, Mapping[MethodName, RepeatedGradient]]
"""By place and method."""


class Outcome(NamedTuple):
    """A number that something was predicted of: of a method, at a place."""

    prediction: BudgetPrediction
    value: float
    method: str
    about: str


def of_proposals(found: Mapping[int, Measured]) -> Iterator[Outcome]:
    """What was predicted of proposals on one problem, by number of steps."""
    for steps, here in found.items():
        yield from _means(here, f"T = {steps}")
        yield from _at_the_optimum(here, f"T = {steps}")
    first, last = min(found), max(found)
    few, many = found[first], found[last]

    def power(ratio: float) -> float:
        return math.log(max(ratio, SMALLEST)) / math.log(last / first)

    about = f"T = {first} to {last}"
    for prediction, names in GROWTH.items():
        for name in names:
            value = power(_variance(many[START][name]) / _variance(few[START][name]))
            yield Outcome(prediction, value, name, about)
    for name in LANDING:
        value = _landing(many, name) / _landing(few, name)
        yield Outcome(BudgetPrediction.LANDING_IN_T, value, name, about)
    for name in RENOISED:
        value = power(_left(few[START][name], many[START][name]))
        yield Outcome(BudgetPrediction.ENDPOINT_COVARIANCE, value, name, about)
    name = MethodName.EFFICIENT_ADJOINT_MATCHING
    value = power(_left(few[OPTIMUM][name], many[OPTIMUM][name]))
    yield Outcome(BudgetPrediction.TILT, value, name, about)


def _means(here: Measured, about: str) -> Iterator[Outcome]:
    """Biases in standard errors, the largest of every method."""
    for name in here[START]:
        kind = CATALOGUE[name].kind
        if kind == Kind.OBJECTIVE_GRADIENT:
            away = max(_bias(each[name]) / each[name].bias_noise for each in here.values())
            yield Outcome(BudgetPrediction.UNBIASED, away, name, about)
        elif kind == Kind.FIXED_POINT_RESIDUAL:
            away = _bias(here[OPTIMUM][name]) / here[OPTIMUM][name].bias_noise
            yield Outcome(BudgetPrediction.RESIDUALS_VANISH, away, name, about)


def _at_the_optimum(here: Measured, about: str) -> Iterator[Outcome]:
    best = here[OPTIMUM]
    for name in LANDING:
        value = _landing(here, name)
        yield Outcome(BudgetPrediction.LANDING, value, name, about)
    for name in WITHOUT_KL:
        yield Outcome(BudgetPrediction.WITHOUT_KL, _bias(best[name]), name, about)


def _landing(here: Measured, name: MethodName) -> float:
    """Variance at the optimum over that of adjoint matching."""
    return _variance(here[OPTIMUM][name]) / _variance(here[OPTIMUM][MethodName.ADJOINT_MATCHING])


def of_training(gaps: Mapping[MethodName, float]) -> Iterator[Outcome]:
    """What was predicted of mean objective gaps on one problem, as ratios of them."""
    blind = [gap for name, gap in gaps.items() if CATALOGUE[name].group == Group.ZEROTH_ORDER]
    adjoint = gaps[MethodName.ADJOINT_MATCHING]
    for name in PATHWISE:
        value = gaps[name] / min(blind)
        yield Outcome(BudgetPrediction.GRADIENT_TRAINS, value, name, "over the best without")
    for name in LANDING:
        value = gaps[name] / adjoint
        yield Outcome(BudgetPrediction.LANDING_TRAINS, value, name, "over adjoint matching")
    value = gaps[MethodName.DDPO_KL_IN_THE_REWARD] / gaps[MethodName.DDPO]
    name = MethodName.DDPO_KL_IN_THE_REWARD
    yield Outcome(BudgetPrediction.KL_TRAINS, value, name, "over DDPO")
    for name in WITHOUT_NOISE:
        value = gaps[name] / adjoint
        yield Outcome(BudgetPrediction.WITHOUT_NOISE_TRAINS, value, name, "over adjoint matching")


def _bias(here: RepeatedGradient) -> float:
    return float(here.bias_squared(here.equal).sqrt())


def _left(few: RepeatedGradient, many: RepeatedGradient) -> float:
    """The part of a bias that more steps leave; what is no bias counts as its noise."""
    return _bias(many) / max(_bias(few), few.bias_noise)


def _variance(here: RepeatedGradient) -> float:
    return float(here.variance(here.equal))
