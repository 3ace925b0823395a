"""Problems with an exact optimum and a policy class whose objective is exact."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.metrics import gaussian_mmd, wasserstein1
from socft.policy import AffinePolicy, FeaturePolicy, Policy
from socft.problem import ControlProblem
from socft.reference import States
from socft.regression.features import RadialBasis
from socft.schedule import ddpm, linear_levels, subsample
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.affine_policy import affine_gradient, evaluate_affine
from socft.truth.chain_law import chain_law
from socft.truth.linear_quadratic import LinearQuadratic, wasserstein
from socft.truth.quadrature import Quadrature
from socft.truth.tilt import tilt_gap, tilted_law
from toy.measure import affine_features
from toy.problems import Benchmark, benchmark

STEPS = 25


class TrainingProblem(abc.ABC):
    """A problem with an exact optimum and a policy class whose objective is exact.

    Attributes:
        name: of the problem.
        settings: what completes the name.
        problem: the control problem.
        optimum: what `progress` says of the optimal policy.
        gaps: what no estimator can help, see `gaps`.
    """

    name: str
    settings: Mapping[str, Any]
    problem: ControlProblem
    optimum: dict[Metric, float]
    gaps: dict[Metric, float]

    @abc.abstractmethod
    def policy(self) -> Policy:
        """The pre-trained model in the policy class."""

    @abc.abstractmethod
    def features(self, x: States) -> Float[Tensor, "batch features"]:
        """The features in whose coefficients the policy is linear at every step."""

    @abc.abstractmethod
    def progress(self, policy: Policy) -> dict[Metric, float]:
        """Exact measures of a policy, ``objective_gap`` among them."""

    @abc.abstractmethod
    def gradient(self, policy: Policy) -> Tensor | None:
        """The exact gradient in the coefficients of the features, step by step; None where it is
        not known.
        """


def gaps(found: Benchmark, kernel: float, memory: float, in_class: float) -> dict[Metric, float]:
    r"""What the optimal objective, relaxed more and more, gains: parts of an error that are no
    estimator's.

    ``class_gap``: the best policy of the class (its projection, which is an upper bound) is allowed
    to be any; ``kernel_gap``: kernels may change covariances; ``discretisation_gap``: time becomes
    continuous, which can cost something; ``memory_gap``: the start may be chosen. With all of them
    the law of X_T is the tilt (see `socft.truth.tilt`).
    """
    chain = found.truth.objective + kernel
    return {
        Metric.CLASS_GAP: in_class,
        Metric.KERNEL_GAP: kernel,
        Metric.DISCRETISATION_GAP: found.continuous.objective - chain,
        Metric.MEMORY_GAP: memory,
    }


class GaussianTrainingProblem(TrainingProblem):
    """``lq-fine-tuning`` with affine policies: everything in closed form but the kernel
    discrepancy.
    """

    def __init__(self, d: int, steps: int):
        found = benchmark(
            ProblemName.LQ_FINE_TUNING, d=d, schedule=ddpm(subsample(linear_levels(1000), steps))
        )
        assert isinstance(found.truth, LinearQuadratic)
        self.name, self.settings = found.name, found.settings
        self.problem, self.truth = found.problem, found.truth
        self._tilt = self.truth.tilt()
        self._width = math.sqrt(
            2 * float(self._tilt.spectra.sum())
        )  # the root of the mean square distance of two samples
        self.optimum = self.progress(self.truth.affine_policy)
        self.gaps = gaps(found, float(self.truth.kernel_gap().sum()), self.truth.memory_gap(), 0.0)

    def policy(self) -> AffinePolicy:
        return AffinePolicy.zeros(self.problem.reference)

    def features(self, x: States) -> Tensor:
        return affine_features(x)

    def progress(self, policy: Policy) -> dict[Metric, float]:
        assert isinstance(policy, AffinePolicy)
        found, slope = evaluate_affine(self.problem, policy), affine_gradient(self.problem, policy)
        return {
            Metric.OBJECTIVE_GAP: self.truth.objective - found.objective,
            Metric.OBJECTIVE_GRADIENT: math.hypot(
                float(slope.gain.norm()), float(slope.offset.norm())
            ),
            Metric.REWARD: found.reward,
            Metric.KL: float(found.kl.sum()),
            Metric.WASSERSTEIN2: wasserstein(found.final_law, self._tilt),
            Metric.MMD: max(gaussian_mmd(found.final_law, self._tilt, self._width), 0.0) ** 0.5,
        }

    def gradient(self, policy: Policy) -> Tensor:
        assert isinstance(policy, AffinePolicy)
        exact = affine_gradient(self.problem, policy)
        return torch.cat([exact.gain, exact.offset.unsqueeze(2)], 2).flatten()


class MixtureTrainingProblem(TrainingProblem):
    """``mixture`` in one dimension with radial features: laws and objectives by quadrature."""

    CENTRES, EDGE, WIDTH = 13, 3.0, 0.5

    def __init__(self, steps: int):
        found = benchmark(ProblemName.MIXTURE, d=1, steps=steps)
        assert isinstance(found.truth, Quadrature)
        self.name, self.settings = found.name, found.settings
        self.problem, self.truth = found.problem, found.truth
        centres = torch.linspace(-self.EDGE, self.EDGE, self.CENTRES, dtype=torch.float64)[:, None]
        self._basis = RadialBasis(centres, self.WIDTH)
        self._tilt = tilted_law(self.truth)
        x = self.truth.grids[-1].nodes
        mean = float(self._tilt @ x[:, 0])
        self._width = float(self._tilt @ (x[:, 0] - mean).square()) ** 0.5
        self._kernel = torch.exp(-((x - x.T) / self._width).square() / 2)
        self.optimum = self.progress(self.truth.policy)
        apart = tilt_gap(self.truth)
        self.gaps = gaps(
            found,
            apart.kernel,
            apart.memory,
            self.progress(self._projection())[Metric.OBJECTIVE_GAP],
        )

    def _projection(self) -> FeaturePolicy:
        """The optimal control's projection on the features under the law of the optimum: nearly the
        best policy of the class.
        """
        policy, law = self.policy(), self.truth.law
        with torch.no_grad():
            for k, mass in enumerate(law.masses[:-1]):
                nodes, root = self.truth.grids[k].nodes, mass.clamp(min=0).sqrt()[:, None]
                known = root * self._basis(nodes)
                policy.weight[k] = torch.linalg.lstsq(
                    known, root * self.truth.policy(k, nodes), driver="gelsd"
                ).solution.mT
        return policy

    def policy(self) -> FeaturePolicy:
        return FeaturePolicy(
            self._basis, torch.zeros(self.problem.steps, 1, self.CENTRES + 2, dtype=torch.float64)
        )

    def features(self, x: States) -> Tensor:
        return self._basis(x)

    def progress(self, policy: Policy) -> dict[Metric, float]:
        grids = self.truth.grids
        with torch.no_grad():
            found = self.truth.evaluate(policy)
            last = chain_law(self.problem, policy, grids).masses[-1]
        apart, nodes = last - self._tilt, grids[-1].nodes[:, 0]
        return {
            Metric.OBJECTIVE_GAP: self.truth.objective - found.objective,
            Metric.REWARD: found.reward,
            Metric.KL: float(found.kl.sum()),
            Metric.WASSERSTEIN1: wasserstein1(nodes, nodes, last, self._tilt),
            Metric.MMD: max(float(apart @ self._kernel @ apart), 0.0) ** 0.5,
        }

    def gradient(self, policy: Policy) -> None:
        return None


TRAINING_PROBLEMS: dict[str, Callable[[], TrainingProblem]] = {
    ProblemName.LQ_FINE_TUNING: lambda: GaussianTrainingProblem(4, STEPS),
    ProblemName.MIXTURE: lambda: MixtureTrainingProblem(STEPS),
}
