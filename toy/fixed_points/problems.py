r"""Problems on which it is known where a method should converge to: rectified flow from pure noise
to three laws of data, memoryless kernels, a bounded reward.

The chain ends at a noise level above zero, so that every kernel has noise, and what it ends with
are the samples, for methods that noise samples anew as for those along paths. The tilt is that of
the law that the pre-trained chain samples from, :math:`p_T \exp(r/b)/Z`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from socft.density import Density, Gaussian, GaussianMixture
from socft.flow import flow_reference, precise, uniform_times
from socft.problem import ControlProblem
from socft.reward import Sine
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.quadrature import Quadrature
from toy.fixed_points.equations import deviation
from toy.fixed_points.line import Field, Hats, LineChain

LAWS: Mapping[ProblemName, Density] = {
    ProblemName.FLOW_GAUSSIAN: Gaussian(0.3, 0.5),
    ProblemName.FLOW_OVERLAPPING: GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.5),
    ProblemName.FLOW_SEPARATED: GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.16),
}
LAST = 0.05
MEMORYLESS = math.sqrt(2)
HATS = Hats(-5.0, 5.0, 61)
REACH, POINTS, PATHS = 5.5, 281, 1121


def line(name: ProblemName, steps: int, beta: float) -> LineChain:
    """A problem by name."""
    schedule = precise(uniform_times(steps, last=LAST), MEMORYLESS)
    problem = ControlProblem(flow_reference(LAWS[name], schedule), Sine(1.0, 1.0), beta)
    return LineChain(problem, HATS, REACH, POINTS)


@dataclasses.dataclass(frozen=True, eq=False)
class Targets:
    """What a law is held against.

    Attributes:
        line: the problem.
        law: of the data.
    """

    line: LineChain
    law: Density

    @classmethod
    def of(cls, name: ProblemName, steps: int, beta: float) -> Targets:
        """Those of a problem by name."""
        return cls(line(name, steps, beta), LAWS[name])

    @functools.cached_property
    def paths(self) -> LineChain:
        """The same with more points."""
        return dataclasses.replace(self.line, count=PATHS)

    @property
    def beta(self) -> float:
        """The weight of the divergence."""
        return self.line.problem.constant_beta("the tilt")

    @functools.cached_property
    def pretrained(self) -> Float[Tensor, " points"]:
        """Masses of the pre-trained chain's samples."""
        return self.line.samples(torch.zeros_like(self.line.means))

    @functools.cached_property
    def tilt(self) -> Float[Tensor, " points"]:
        """Masses of the tilted law."""
        tilted = self.pretrained * (self.line.reward / self.beta).exp()
        return tilted / tilted.sum()

    @functools.cached_property
    def optimum(self) -> Float[Tensor, " points"]:
        """Masses of the samples of the chain's optimal control."""
        return self.line.samples(self.line.controls(Quadrature(self.line.problem).policy))

    @property
    def spread(self) -> float:
        """Standard deviation of the pre-trained model's rewards."""
        return deviation(self.line.reward, self.pretrained)

    def moments(self, law: Float[Tensor, " points"]) -> dict[Metric, float]:
        """Mean reward, and mean and variance of the samples."""
        x = self.line.points
        return {
            Metric.REWARD: float(law @ self.line.reward),
            Metric.END_MEAN: float(law @ x),
            Metric.END_VARIANCE: deviation(x, law) ** 2,
        }

    def distances(self, law: Float[Tensor, " points"]) -> dict[Metric, float]:
        """Distances of a law from the others."""
        return {
            Metric.TV_TO_TILT: total_variation(law, self.tilt),
            Metric.TV_TO_OPTIMUM: total_variation(law, self.optimum),
            Metric.KL_TO_TILT: divergence(law, self.tilt),
            Metric.KL_TO_REFERENCE: divergence(law, self.pretrained),
        }


def total_variation(p: Float[Tensor, " points"], q: Float[Tensor, " points"]) -> float:
    """Half the mass that differs."""
    return float((p - q).abs().sum() / 2)


def divergence(p: Float[Tensor, " points"], q: Float[Tensor, " points"]) -> float:
    """Kullback-Leibler divergence of masses."""
    return float(torch.where(p > 0, p * (p / q.clamp(min=TINY)).clamp(min=TINY).log(), 0.0).sum())


TINY = torch.finfo(torch.float64).tiny


def samples_law(line: LineChain, control: Field, noisy: bool) -> Float[Tensor, " points"]:
    """Masses of the samples of a control: of the chain, or of the flow without noise."""
    return line.samples(control) if noisy else line.flow_law(control)
