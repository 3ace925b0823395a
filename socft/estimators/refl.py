r"""ReFL (arXiv 2304.05977): the reward of a one-step prediction of the sample, differentiated in
one step's control.

At a random step k of each path the objective is :math:`r(\hat x(k, x_k, v_k))`, at the fixed state
:math:`x_k`. For a `DenoisingReference` with the controlled score :math:`U_k`, Tweedie's formula
predicts :math:`\hat x = (x_k + (1 - \bar a_k) U_k(x_k))/\sqrt{\bar a_k}`. The targets are
:math:`v_k + \nabla_v r(\hat x)/\beta_k`; no network is differentiated for them (derived here). The
published loss maps rewards through a ReLU and adds a pre-training loss, which are left to the
reward and the caller.

Noise level: no noise beyond that of :math:`x_k`; the prediction's bias grows towards the noise end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from socft.checks import (
    keep,
    probe,
    require,
    require_callable,
    require_kinds,
    whole,
)
from socft.costates.base import Cost
from socft.estimators.base import Labels, MatchingEstimator
from socft.estimators.estimand import Biased, Estimand
from socft.path import Path
from socft.policy import Policy
from socft.problem import ControlProblem, require_reference
from socft.reference import DenoisingReference, Noises, States, Step, at_step

Prediction: TypeAlias = "Callable[[Step, States, Noises], States]"
"""``(k, x, v) -> predicted sample``, differentiable in v."""


@dataclasses.dataclass(frozen=True)
class ReFL(MatchingEstimator):
    """Reward feedback learning: one step per path; the cost is per path instead of per step and
    path.

    Attributes:
        first, last: the range of steps to draw from, both included.
        generator: draws the step of each path, on the CPU.
        prediction: the one-step prediction, Tweedie's formula by default.
        kl: whether the drawn step pays its KL.

    >>> print(ReFL(first=3, last=8, generator=torch.Generator().manual_seed(0)).estimates.kind)
    biased
    """

    first: int
    last: int
    generator: torch.Generator
    prediction: Prediction | None = None
    kl: bool = False
    estimates: ClassVar[Estimand] = Biased("the reward of a one-step prediction")
    source: ClassVar[str] = "ReFL, arXiv 2304.05977, algorithm 1"

    def __post_init__(self) -> None:
        first = whole(self.first, "first", 0)
        keep(self, first=first, last=whole(self.last, "last", first))
        require_kinds(self, generator=torch.Generator, kl=bool)
        if self.prediction is not None:
            require_callable(self.prediction, "the prediction", "of step, states and controls")

    @property
    def cost(self) -> Cost:
        return Cost(reference=1)

    @property
    def couples_batch(self) -> bool:
        """One generator serves all paths in turn."""
        return True

    def label(self, problem: ControlProblem, policy: Policy, path: Path) -> Labels:
        steps, batch = path.controls.shape[:2]
        in_order = 0 <= self.first <= self.last < steps
        require(
            in_order,
            f"the steps run from {self.first} to {self.last}; give 0 <= first <= last <="
            f" {steps - 1}.",
        )
        k = torch.randint(self.first, self.last + 1, (batch,), generator=self.generator).to(
            path.states.device
        )
        rows = torch.arange(batch, device=k.device)
        x, v = path.states[k, rows], path.controls[k, rows]
        slope = self._slope(problem, k, x, v) / at_step(problem.beta, k, v)
        targets, weights = torch.zeros_like(path.controls), path.states.new_zeros(steps, batch)
        targets[k, rows] = slope if self.kl else slope + v
        weights[k, rows] = 1
        return Labels(path.states[:-1], targets, weights)

    def _slope(self, problem: ControlProblem, k: Tensor, x: Tensor, v: Tensor) -> Tensor:
        """Gradient of the predicted sample's reward in the control."""
        predict = _tweedie(problem) if self.prediction is None else self.prediction
        with torch.enable_grad():
            v = v.detach().requires_grad_(True)
            predicted = probe(predict, (k, x, v), tuple(x.shape), "the prediction")
            (slope,) = torch.autograd.grad(
                (predicted * problem.reward.gradient(predicted)).sum(), v
            )
        return slope


def _tweedie(problem: ControlProblem) -> Prediction:
    remedy = (
        "Tweedie's formula needs a DenoisingReference, such as a ScoreReference: give a prediction."
    )
    return require_reference(problem, DenoisingReference, remedy).endpoint_of
