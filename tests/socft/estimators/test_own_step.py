"""Where the noise map depends on the state, it is asked for that of its own step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import Estimator
from socft.estimators.integration_by_parts import IntegrationByParts
from socft.estimators.socm import SOCM
from socft.path import Noise, Path, rollout
from socft.policy import FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import KernelReference, ScalarDiffusion
from socft.reward import FunctionReward
from tests.support.tensors import F64, generator, t

STEPS, BATCH = 4, 6


class Watched(ScalarDiffusion):
    """Notes every state of whole batches that it is asked at beside the step's own."""

    def __init__(self, sigma: Tensor):
        super().__init__(sigma)
        self.path: Path | None = None
        self.asked, self.wrong = 0, []

    def see(self, k: int | Tensor, x: Tensor) -> None:
        if self.path is not None and isinstance(k, int) and len(x) == BATCH:
            self.asked += 1
            if not torch.equal(x, self.path.states[k]):
                self.wrong.append(k)

    def apply(self, k, x, z):
        self.see(k, x)
        return super().apply(k, x, z)

    def transpose(self, k, x, a):
        self.see(k, x)
        return super().transpose(k, x, a)

    def solve_transpose(self, k, x, z):
        self.see(k, x)
        return super().solve_transpose(k, x, z)


@pytest.mark.parametrize(
    "estimator", [AdjointMatching(), IntegrationByParts(), SOCM(), SOCM(degree=1)], ids=str
)
def test_labels_ask_the_noise_map_at_the_states_of_each_step(estimator: Estimator):
    watched = Watched(t(0.6, 0.5, 0.4, 0.3))
    reference = KernelReference(
        lambda k, x: 0.9 * x + 0.1 * torch.sin(x), watched, STEPS, (2,), lambda noise: noise
    )
    reward = FunctionReward(lambda x: torch.sin(x).sum(1), L0=2.0, L1=1.0)
    problem = ControlProblem(reference, reward, 1.5)
    policy = FunctionPolicy(lambda k, x: 0.3 * torch.cos(x))
    noise = Noise.sample(reference, BATCH, generator(3), dtype=F64)
    with torch.no_grad():
        watched.path = path = rollout(reference, policy, noise)
    watched.asked = 0
    estimator.label(problem, policy, path)
    assert watched.asked >= STEPS
    assert watched.wrong == []
