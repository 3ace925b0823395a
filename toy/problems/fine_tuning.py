"""Fine-tuning in one dimension: a data law and a reward, completed by a schedule and a KL
weight.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from socft.checks import require_known
from socft.density import Density, Gaussian, GaussianMixture, score_reference
from socft.problem import ControlProblem
from socft.reward import PseudoHuber, Quadratic, Reward, Sine
from socft.schedule import Schedule
from socft.study.vocabulary.problems import ProblemName
from socft.theory import ChainConstants


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """Data law and reward of a fine-tuning problem; a schedule and a KL weight complete it.

    Attributes:
        name: how records and commands refer to it.
        description: one line for readers.
        density: the data law.
        reward: the reward.
    """

    name: str
    description: str
    density: Density
    reward: Reward

    def problem(self, schedule: Schedule, beta: float | Tensor) -> ControlProblem:
        """The control problem on a schedule."""
        return ControlProblem(score_reference(self.density, schedule), self.reward, beta)

    def chain(self, schedule: Schedule) -> ChainConstants:
        """What the theory needs to know of it: coefficients and Lipschitz constants."""
        constants = self.density.noised_constants(schedule.abar[:-1])
        return ChainConstants.of(
            schedule,
            constants.L0,
            constants.L1,
            self.reward,
            self.density.dims[0],
            (constants.up, constants.down),
        )


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian_quadratic() -> FineTuning:
    """Gaussian data, concave quadratic reward: linear-quadratic, everything in closed form."""
    density, reward = (
        Gaussian(_vector(0.5), _vector(0.5)[:, None]),
        Quadratic(_vector(-1.0)[:, None], _vector(1.5)),
    )
    return FineTuning(
        ProblemName.GAUSSIAN_QUADRATIC, "N(0.5, 0.5), r = -x^2/2 + 1.5 x", density, reward
    )


def mixture_huber() -> FineTuning:
    """Two modes, a reward that pulls towards the lighter one."""
    density = GaussianMixture(
        _vector(0.7, 0.3), _vector(-1.5, 1.5)[:, None], _vector(0.16, 0.16)[:, None, None]
    )
    reward = PseudoHuber(delta=1.0, center=1.5, weight=-1.0)
    return FineTuning(
        ProblemName.MIXTURE_HUBER,
        "0.7 N(-1.5, 0.16) + 0.3 N(1.5, 0.16), pseudo-Huber reward at 1.5",
        density,
        reward,
    )


def gaussian_sine() -> FineTuning:
    """Standard normal data, a reward with many maxima: no concavity anywhere."""
    return FineTuning(
        ProblemName.GAUSSIAN_SINE,
        "N(0, 1), r = sin 2x",
        Gaussian(_vector(0.0), _vector(1.0)[:, None]),
        Sine(1.0, 2.0),
    )


FINE_TUNING = {make().name: make for make in (gaussian_quadratic, mixture_huber, gaussian_sine)}


def fine_tuning(name: str) -> FineTuning:
    """The problem of a name."""
    require_known(name, FINE_TUNING, "problem")
    return FINE_TUNING[name]()
