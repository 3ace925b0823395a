r"""Where a policy stands between the pre-trained model and what could be reached.

With constant beta four numbers bound what a reward can bring, in units of the objective (derived
here): :math:`E\, r` of the pre-trained model, the optimum :math:`J^*` of the chain of T steps, the
optimum in continuous time over the same paths, which also changes the shape of every kernel, and
:math:`\beta \log E\, e^{r(X_T)/\beta}` of the tilt :math:`p\, e^{r/\beta}`, which also chooses
where it starts. Each is at least the one before.
"""

from __future__ import annotations

import dataclasses
import math

from socft.checks import require_kind
from socft.policy import Policy, Uncontrolled
from socft.readable import Readable
from socft.truth.base import Truth
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from socft.truth.separable import SeparableTruth
from socft.truth.tilt import tilt_gap

ROUNDING = 1e-12
"""Relative: smaller numbers are shown as 0."""


@dataclasses.dataclass(frozen=True)
class Standing(Readable):
    """Objectives, from the pre-trained model's to that of the tilt; printed in one line.

    Attributes:
        pre_trained: of the pre-trained model, its expected reward.
        policy: of the policy.
        chain: the largest of the chain of T steps, ``J*``.
        continuous: the largest in continuous time; None where it is not known.
        tilt: of the tilt ``p exp(r / beta)``; None where it is not known.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> truth = Quadrature(problem)
    >>> found = compare(truth, ScaledPolicy(truth.policy, [0.5] * 3))
    >>> print(found)
    pre-trained 0 < policy 0.0473 < chain 0.0631 < continuous 0.068 < tilt 0.111; policy 75%
    """

    pre_trained: float
    policy: float
    chain: float
    continuous: float | None
    tilt: float | None

    @property
    def share(self) -> float:
        """How much of the way from the pre-trained model to the chain's optimum the policy went;
        NaN where there is no way.
        """
        way = self.chain - self.pre_trained
        return (self.policy - self.pre_trained) / way if way > 0 else math.nan

    def __str__(self) -> str:
        known = {name: value for name, value in vars(self).items() if value is not None}
        shown = sorted(known.items(), key=lambda pair: pair[1])
        least = ROUNDING * max(map(abs, known.values()))
        told = " < ".join(
            f"{name.replace('_', '-')} {value if abs(value) > least else 0:.3g}"
            for name, value in shown
        )
        return f"{told}; policy {self.share:.0%}"


def compare(truth: Truth, policy: Policy) -> Standing:
    """A policy beside the pre-trained model, the optimum of the chain, that of continuous time and
    the tilt.

    Raises:
        InvalidProblem: where these are known, as for `tilt_gap`.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> truth = Quadrature(problem)
    >>> print(f"{compare(truth, truth.policy).share:.3f}")
    1.000
    """
    require_kind(truth, Truth, "the truth", "give a Truth, such as Quadrature(problem).")
    require_kind(policy, Policy, "the policy", "give a Policy, such as FunctionPolicy(function).")
    start = truth.evaluate(Uncontrolled(truth.problem.reference)).objective
    gaps, chain = _gaps(truth), truth.objective
    continuous, tilt = (None, None) if gaps is None else (chain + gaps[0], chain + sum(gaps))
    return Standing(start, truth.evaluate(policy).objective, chain, continuous, tilt)


def _gaps(truth: Truth) -> tuple[float, float] | None:
    """What continuous time brings, and what a free start brings; sums over coordinates."""
    if isinstance(truth, LinearQuadratic):
        return float(truth.kernel_gap().sum()), truth.memory_gap()
    if isinstance(truth, SeparableTruth):
        parts = [tilt_gap(part) for part in truth.parts]
        return sum(part.kernel for part in parts), sum(part.memory for part in parts)
    if isinstance(truth, Quadrature) and truth.grids[0].dim == 1:
        found = tilt_gap(truth)
        return found.kernel, found.memory
    return None
