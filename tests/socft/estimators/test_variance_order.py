"""How far the zero of the variance loss is from the optimum of a chain, without samples."""

from __future__ import annotations

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.problem import ControlProblem
from socft.reference import KernelReference, ScalarDiffusion
from socft.reward import Sine
from socft.truth.quadrature import Quadrature
from tests.support.tensors import F64

START, BETA = 0.4, 1.0
NODES, HERMITE = 301, 24


def chain(steps: int) -> ControlProblem:
    """Euler steps over one unit of time with a restoring force."""
    dt = 1 / steps
    reference = KernelReference(
        lambda k, x: x - dt * torch.sin(x),
        ScalarDiffusion(torch.full((steps,), dt**0.5, dtype=F64)),
        steps,
        (1,),
        lambda noise: START + noise,
    )
    return ControlProblem(reference, Sine(0.8, 1.5), BETA)


def surprise(truth: Quadrature, k: int, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """``s_k`` and the next states, (points, noises): what ``log rho`` gains at step k beyond its
    mean under the optimum.
    """
    control = truth.control(k, x)
    after = truth.problem.reference.step(
        k, x.repeat_interleave(len(z), 0), (control + z).reshape(-1, 1)
    )
    paid = BETA * (control**2 / 2 + control * z)
    gained = truth.value(k + 1, after).reshape(len(x), -1) - truth.value(k, x)[:, None] - paid
    return gained / BETA, after


@functools.cache
def measured(steps: int) -> tuple[float, float]:
    """``E[rho (rho - 1) xi_0]`` from the start on, and ``3/2 E[sum_{j > 0} s_j^2 xi_0]``, over the
    control there.
    """
    truth = Quadrature(chain(steps), nodes=(NODES,))
    node, mass = np.polynomial.hermite_e.hermegauss(HERMITE)
    z, w = torch.from_numpy(node), torch.from_numpy(mass / mass.sum())
    fields = torch.tensor([1.0, 1.0, 0.0], dtype=F64).expand(NODES, 3)
    for k in reversed(range(1, steps)):
        x = truth.grids[k].nodes
        s, after = surprise(truth, k, x, z)
        ahead = at(truth, k + 1, fields, after, len(x))
        first, second, spread = ahead.unbind(2)
        fields = torch.stack(
            [(s.exp() * first) @ w, ((2 * s).exp() * second) @ w, (s**2 + spread) @ w], 1
        )
    x = torch.tensor([[START]], dtype=F64)
    s, after = surprise(truth, 0, x, z)
    first, second, spread = at(truth, 1, fields, after, 1).unbind(2)
    one, two = s.exp() * first, (2 * s).exp() * second
    mean = float((one @ w)[0])
    residual = float((two @ (w * z))[0]) / mean**2 - float((one @ (w * z))[0]) / mean
    size = float(truth.control(0, x)[0, 0])
    return residual / size, 1.5 * float((spread @ (w * z))[0]) / size


def at(truth: Quadrature, k: int, fields: Tensor, x: Tensor, rows: int) -> Tensor:
    grid = truth.grids[k]
    return grid.interpolate(fields, grid.clamp(x)).reshape(rows, -1, fields.shape[1])


def test_the_residual_at_the_optimum_is_of_order_dt_relative_to_the_control():
    found = [abs(measured(steps)[0]) for steps in (16, 32)]
    orders = [math.log2(a / b) for a, b in itertools.pairwise(found)]
    assert all(0.9 < order < 1.1 for order in orders)


@pytest.mark.parametrize("steps", [16, 32])
def test_the_residual_is_three_halves_of_what_later_steps_vary(steps: int):
    residual, leading = measured(steps)
    assert residual == pytest.approx(leading, rel=4 / steps)
