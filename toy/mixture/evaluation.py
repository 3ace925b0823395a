"""The chain that is fine-tuned, and what a policy and a law of X_0 achieve beside the exact
optimum.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from socft.metrics import wasserstein1
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.chain_law import ChainLaw, chain_law
from socft.truth.quadrature import Quadrature
from toy.problems import benchmark
from toy.problems.reversed_bsde import Start, best_start

LARGEST_BEND = 0.5


@dataclasses.dataclass(frozen=True)
class InitialDistribution:
    """``N(mean, deviation^2)``, of X_0."""

    mean: float = 0.0
    deviation: float = 1.0

    @property
    def kl(self) -> float:
        """From N(0, 1)."""
        return (self.mean**2 + self.deviation**2 - 1) / 2 - math.log(self.deviation)

    def improved(
        self, slope: Callable[[Tensor], Tensor], z: Tensor, paired: Tensor, rate: float = 1.0
    ) -> InitialDistribution:
        """One Newton step of ``E V_0 - KL`` with the costate at ``mean + deviation z`` and the bend
        estimated from ``paired``.
        """
        with torch.no_grad():
            costate = slope(self.mean + self.deviation * z)
        bend = min(float((costate * paired).mean()) / self.deviation, LARGEST_BEND)
        mean = self.mean + rate * (float(costate.mean()) - self.mean) / (1 - bend)
        return InitialDistribution(
            mean, self.deviation + rate * ((1 - bend) ** -0.5 - self.deviation)
        )


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """The exact optimum at a temperature, and what a policy and a law of X_0 achieve beside it."""

    temp: float
    truth: Quadrature
    start: Start
    optimal: ChainLaw

    @classmethod
    def at(cls, temp: float) -> Evaluator:
        """The optimum over controls and Gaussian starts."""
        truth = Quadrature(problem_at(temp, InitialDistribution()))
        start = best_start(lambda x: truth.value(0, x.reshape(-1, 1)))
        return cls(
            temp,
            truth,
            start,
            chain_law(
                problem_at(temp, InitialDistribution(start.mean, start.deviation)),
                truth.policy,
                truth.grids,
            ),
        )

    def measure(self, policy: Policy, law: InitialDistribution) -> dict[Metric, float]:
        """Every metric, in the order of records.

        Costs are infinite where a tenth of the mass leaves the grids.
        """
        problem, grids = problem_at(self.temp, law), self.truth.grids
        reached, last = chain_law(problem, policy, grids), grids[-1].nodes
        with torch.no_grad():
            controls = [policy(k, grid.nodes) for k, grid in enumerate(grids[:-1])]
            price = sum(reached.expect(k, v.square().sum(1)) / 2 for k, v in enumerate(controls))
            wrong = [
                (v - self.truth.control(k, grids[k].nodes)).square().sum(1)
                for k, v in enumerate(controls)
            ]
        cost = price - reached.expect(problem.steps, problem.reward(last)) + law.kl
        cost, nodes = cost if reached.lost < 0.1 else math.inf, last[:, 0]
        return {
            Metric.COST: cost,
            Metric.REGRET: cost / self.start.gaussian_cost - 1,
            Metric.W1: (
                wasserstein1(nodes, nodes, reached.masses[-1], self.optimal.masses[-1])
                if cost < math.inf
                else math.inf
            ),
            Metric.CONTROL_L2: sum(self.optimal.expect(k, each) for k, each in enumerate(wrong)),
        }


DIVERGED: dict[Metric, float] = dict.fromkeys(
    [Metric.COST, Metric.REGRET, Metric.W1, Metric.CONTROL_L2], math.inf
)


def problem_at(temp: float, law: InitialDistribution) -> ControlProblem:
    """The chain started at a law."""
    return benchmark(
        ProblemName.BSDE_MIXTURE, temp=temp, start_mean=law.mean, start_deviation=law.deviation
    ).problem
