"""Every estimator of the catalogue runs on flow chains, and sees there what it sees on the same
chain in the core's units.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.fields import GivenCostate
from socft.density import Gaussian, GaussianMixture, score_reference
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.context import EstimatorContext
from socft.estimators.catalogue.flow import RENOISED
from socft.flow import (
    FlowReference,
    Rectified,
    affine_flow_reference,
    flow_ddim,
    flow_reference,
)
from socft.path import Noise, rollout
from socft.policy import FunctionPolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.reward import FunctionReward, Sine
from socft.schedule import ddim
from tests.support.tensors import F64

LAW = GaussianMixture([0.7, 0.3], [-1.5, 1.5], [0.16, 0.4])
TIMES = torch.tensor([0.97, 0.7, 0.45, 0.2, 0.05], dtype=F64)
LEVEL = Rectified().level(TIMES)
SCALE = (LEVEL.signal.square() + LEVEL.noise.square()).sqrt()
FLOW_ONLY = ("deterministic adjoint matching", "VGG-Flow", "VGG-Flow, look-ahead alone")
"""Those that follow a velocity."""
AFFINE_ONLY = ("reciprocal adjoint matching", "time-reversed, exact score")
"""Those with closed forms of affine chains."""
OF_UNITS = (
    *("published index", "ReFL", "cheap", "time-reversed", "SOCM"),
    *("own step", "Flow-GRPO", "GRPO-Guard", "nabla-DB"),
)
"""Estimators with these in their names compare states, costates or noises of different levels, or
take the prediction for the sample, or the time of a step, which only a flow knows, so that they see
the units of the states: what they estimate is right up to O(dt), or not at all.
"""
ROUNDING = 1e-8
"""Of fits to paths, whose features are scaled; what is not fitted agrees to 1e-12."""


def context(units: Tensor, costly: bool = True) -> EstimatorContext:
    """A problem, with a running cost or without, a policy and fields that know nothing of the
    optimum, in states of given units.
    """

    def in_units(k: int | Tensor, x: Tensor) -> Tensor:
        unit = units[k]
        return x / (unit if unit.ndim == 0 else unit[:, None])

    def gradient(k: int | Tensor, x: Tensor) -> Tensor:
        return in_units(k, -torch.sin(in_units(k, x) + 0.3))

    flow = bool((units != 1).any())
    reference = (
        flow_reference(LAW, flow_ddim(TIMES, 0.8))
        if flow
        else score_reference(LAW, ddim((LEVEL.signal / SCALE).square(), 0.8))
    )
    reward = FunctionReward(lambda x: torch.tanh(in_units(4, x)).sum(1))
    cost = (lambda k, x: 0.1 * in_units(k, x).square().sum(1)) if costly else None
    problem = ControlProblem(reference, reward, 0.7, cost)
    return EstimatorContext(
        problem,
        FunctionPolicy(lambda k, x: 0.3 * torch.sin(in_units(k, x) + 1.0)),
        value_gradient=GivenCostate(gradient),
        lean_mean=GivenCostate(gradient),
        value=lambda k, x: torch.cos(in_units(k, x) + 0.3).sum(1),
    )


def sees_units(name: str) -> bool:
    return name != "SOCM-adjoint" and any(part in name for part in OF_UNITS)


@pytest.mark.parametrize(
    "name", [name for name in CATALOGUE if name not in AFFINE_ONLY + FLOW_ONLY]
)
def test_exact_estimators_do_not_depend_on_the_units_of_the_states(name: str):
    """The chains of a flow and of a score are one in two units; whitened controls have none."""
    row, found = CATALOGUE[name], []
    for units in (SCALE, torch.ones_like(SCALE)):
        torch.manual_seed(0)
        made = context(units, row not in RENOISED and "nabla-DB" not in name)
        estimator = row.make(made)
        noise = Noise.sample(made.problem.reference, 64, torch.Generator().manual_seed(1))
        with torch.no_grad():
            path = rollout(made.problem.reference, made.policy, noise)
        found.append((estimator.label(made.problem, made.policy, path), made, estimator))
    losses = [
        torch.stack(
            [
                estimator.loss(made.problem, made.policy, k, labels.step(k))
                for k in range(made.problem.steps)
            ]
        )
        for labels, made, estimator in found
    ]
    assert bool(losses[0].isfinite().all())
    scale = float(losses[1].abs().max())
    same = float((losses[0] - losses[1]).abs().max()) <= ROUNDING * max(scale, 1.0)
    assert same != sees_units(name)


@pytest.mark.parametrize("name", AFFINE_ONLY)
def test_closed_forms_of_affine_chains_hold_on_flows(name: str):
    """The labels of an estimator that is made for them are finite on the affine chain of a flow,
    and the general chain is refused.
    """
    row, law = CATALOGUE[name], Gaussian(0.4, 0.6)
    schedule = flow_ddim(TIMES, 0.8)
    for reference in (affine_flow_reference(law, schedule), flow_reference(law, schedule)):
        problem = ControlProblem(reference, Sine(), 0.7)
        policy = Uncontrolled(reference)
        noise = Noise.sample(reference, 64, torch.Generator().manual_seed(1))
        path = rollout(reference, policy, noise)
        estimator = row.make(EstimatorContext(problem, policy, value_gradient=GivenCostate(one)))
        if isinstance(reference, FlowReference):
            with pytest.raises(InvalidProblem, match="only an AffineReference"):
                estimator.label(problem, policy, path)
        else:
            labels = estimator.label(problem, policy, path)
            assert bool(estimator.loss(problem, policy, 0, labels.step(0)).isfinite().all())


def one(k: int | Tensor, x: Tensor) -> Tensor:
    return torch.ones_like(x)
