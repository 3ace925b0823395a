"""One guided pass, exactly: the d + 1 coordinates that guidance moves."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy.optimize import brentq

from socft.density import Gaussian, affine_reference
from socft.guidance.denoiser import GaussianDenoiser
from socft.guidance.policy import (
    ClassifierGuidance,
    Guidance,
    GuidancePolicy,
    LookAheadGuidance,
    NaiveGuidance,
    NoGuidance,
    UniversalGuidance,
    affine_policy,
)
from socft.guidance.strength import (
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference
from socft.reward import Quadratic
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import affine_moments
from socft.truth.linear_quadratic import LinearQuadratic
from toy.guidance.subspace import DIM, LATENT, NOISE, chain, parabola, subspace

KNOB_ACCURACY = 1e-5
LARGEST_KNOB = 1e5


@dataclasses.dataclass(frozen=True)
class GuidedCoordinates:
    """The coordinates along A and along ``theta_perp``, in which f1 guidance acts; the rest stays
    as pre-trained.

    Attributes:
        law: shape (d + 1,), the last coordinate zero.
        reward: f1.
        rest: number of the other coordinates across the subspace.
    """

    law: Gaussian
    reward: Quadratic
    rest: int


VARIANCES: Mapping[str, tuple[float, float]] = {
    ProblemName.ISOTROPIC: (1.0, 1.0),
    ProblemName.ANISOTROPIC: (0.05, 2.0),
}


@functools.cache
def guided_coordinates(spread: str) -> GuidedCoordinates:
    """f1 with the off-support direction; the latent variances run between the two of
    `VARIANCES`.
    """
    data = subspace()
    form = data.objectives[ProblemName.F1_OFF]
    assert isinstance(form, Quadratic)
    theta = form.linear / 6
    along = data.A.mT @ theta
    direction = torch.cat([along, (theta - data.A @ along).norm().reshape(1)])
    spectrum = torch.cat(
        [
            torch.linspace(*VARIANCES[spread], LATENT, dtype=torch.float64),
            torch.zeros(1, dtype=torch.float64),
        ]
    )
    return GuidedCoordinates(
        Gaussian(torch.zeros(LATENT + 1, dtype=torch.float64), spectrum),
        parabola(direction),
        DIM - LATENT - 1,
    )


@dataclasses.dataclass(frozen=True)
class PolicyOutcome:
    """What a policy reaches: mean reward, divergence from the pre-trained chain, distance from the
    data, both as means.
    """

    reward: float
    kl: float
    distance: float


class Frontier:
    """One-pass methods on `GuidedCoordinates`, each a family of policies with a knob that starts at
    0, the pre-trained model.
    """

    def __init__(self, spread: str, steps: int):
        self.case, self.schedule = guided_coordinates(spread), chain(steps)
        self.reference: AffineReference = affine_reference(self.case.law, self.schedule)
        self.denoiser = GaussianDenoiser(self.case.law, self.schedule.abar[:-1])
        start = self.case.law.mean
        self.gradient = self.case.reward.gradient(start[None])[0]
        self._zero = ControlProblem(self.reference, self.case.reward, 1.0)
        self._ends: dict[str, tuple[AffinePolicy, AffinePolicy]] = {}
        self.floor = float(
            affine_moments(self._zero, AffinePolicy.zeros(self.reference)).covariance[-1, -1, -1]
        )

    def policy(self, method: str, knob: float) -> AffinePolicy:
        """The policy of a method; all but the optimal control are affine in the knob, so that two
        of each are tabulated.
        """
        if method == MethodName.OPTIMAL_CONTROL:
            return LinearQuadratic(
                ControlProblem(self.reference, self.case.reward, 1 / knob)
            ).affine_policy
        if method not in self._ends:
            self._ends[method] = self.tabulated(method, 0.0), self.tabulated(method, 1.0)
        zero, one = self._ends[method]
        return AffinePolicy(zero.gain.lerp(one.gain, knob), zero.offset.lerp(one.offset, knob))

    def tabulated(self, method: str, knob: float) -> AffinePolicy:
        """The policy of a method at this very knob."""
        if method == MethodName.FINE_TUNED_SCORE:
            new = self.denoiser.recentred(
                self.case.law.mean + knob * self.case.law.covariance @ self.gradient
            )
            made = GuidancePolicy(self.schedule, new, NoGuidance(), self.denoiser)
        else:
            made = GuidancePolicy(self.schedule, self.denoiser, METHODS[method](self, knob))
        return affine_policy(made, self.schedule.steps, LATENT + 1)

    def outcome(self, method: str, knob: float) -> PolicyOutcome:
        """Exact moments of the controlled chain; the distance is the root of the mean square."""
        found = affine_moments(self._zero, self.policy(method, knob))
        across = float(found.covariance[-1, -1, -1] + found.mean[-1, -1].square())
        return PolicyOutcome(
            found.reward, float(found.kl.sum()), math.sqrt(across + self.case.rest * self.floor)
        )

    def reach(self, method: str, reward: float) -> PolicyOutcome | None:
        """The outcome at the smallest knob with this reward, None where the method does not get
        there.
        """

        def short(knob: float) -> float:
            return self.outcome(method, knob).reward - reward

        low, high, missing = 0.0, KNOBS[method][0], short(KNOBS[method][0])
        while missing < 0:
            low, high, before = high, 3 * high, missing
            missing = short(high)
            if missing < before or high > LARGEST_KNOB:
                return None
        knob = float(brentq(short, low, high, rtol=np.float64(KNOB_ACCURACY))) if low else high  # type: ignore[arg-type]
        return self.outcome(method, knob)


METHODS: dict[str, Callable[[Frontier, float], Guidance]] = {
    MethodName.NAIVE: lambda f, delta: NaiveGuidance(
        Response(f.gradient, delta), IsotropicStrength(NOISE)
    ),
    MethodName.LOOK_AHEAD_PUBLISHED: lambda f, delta: LookAheadGuidance(
        Response(f.gradient, delta), PublishedStrength(NOISE)
    ),
    MethodName.LOOK_AHEAD_EXACT: lambda f, delta: LookAheadGuidance(
        Response(f.gradient, delta), PosteriorStrength(NOISE)
    ),
    MethodName.UNIVERSAL: lambda f, weight: UniversalGuidance(f.case.reward, weight),
    MethodName.CLASSIFIER: lambda f, weight: ClassifierGuidance(
        f.case.law, f.case.law.tilted(f.case.reward, 1.0).density, weight
    ),
}
"""Guidance by method and knob: the increment of y at the pre-trained mean, or a weight."""
ALL_METHODS = (*METHODS, MethodName.FINE_TUNED_SCORE, MethodName.OPTIMAL_CONTROL)
KNOBS: dict[str, tuple[float, float]] = {
    MethodName.NAIVE: (0.02, 100.0),
    MethodName.LOOK_AHEAD_PUBLISHED: (0.02, 100.0),
    MethodName.LOOK_AHEAD_EXACT: (0.02, 100.0),
    MethodName.UNIVERSAL: (0.003, 10.0),
    MethodName.CLASSIFIER: (0.01, 100.0),
    MethodName.FINE_TUNED_SCORE: (0.1, 30.0),
    MethodName.OPTIMAL_CONTROL: (0.003, 30.0),
}
