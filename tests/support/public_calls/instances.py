"""Small problems, and what is made of them."""

# pyright: reportArgumentType=false

from __future__ import annotations

import torch

import socft
from socft import flow
from socft.costates.regression import StepwiseRegression
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from tests.support.tensors import randn

STEPS, DIM, PATHS = 3, 2, 4
AFFINE_FIT = StepwiseRegression(LinearRegression(Polynomial(1)))
LEVELS = [0.2, 0.5, 0.8, 0.9]
MATRIX, WIDE = [[0.9, 0.1], [0.1, 0.8]], [[0.5, 0.0], [0.1, 0.4]]
POINTS = randn(0, PATHS, DIM)
LINE = POINTS[:, :1].contiguous()
AFFINE = socft.LinearRegression(socft.Polynomial(1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def reference() -> socft.AffineReference:
    return socft.AffineReference([MATRIX] * STEPS, socft.MatrixDiffusion([WIDE] * STEPS))


def line() -> socft.AffineReference:
    return socft.AffineReference([[[0.9]]] * STEPS, socft.ScalarDiffusion([0.5] * STEPS))


def flow_problem() -> socft.ControlProblem:
    schedule = flow.flow_sde([1.0, 0.6, 0.3, 0.1], 0.7)
    return socft.ControlProblem(
        flow.flow_reference(gaussian(), schedule), socft.Linear([1.0, 2.0]), 1.0
    )


def problem() -> socft.ControlProblem:
    return socft.ControlProblem(reference(), socft.Quadratic([[-1.0, 0.0], [0.0, -1.0]]), 1.0)


def line_problem() -> socft.ControlProblem:
    return socft.ControlProblem(line(), socft.Sine(), 2.0)


def schedule() -> socft.Schedule:
    return socft.ddim(LEVELS)


def gaussian() -> socft.Gaussian:
    return socft.Gaussian([0.0, 1.0], [[1.0, 0.2], [0.2, 0.5]])


def mixture() -> socft.GaussianMixture:
    return socft.GaussianMixture([0.4, 0.6], [-1.0, 1.0], 0.3)


def noise(chain: socft.Reference) -> socft.Noise:
    return socft.Noise.sample(chain, PATHS, generator())


def path() -> socft.Path:
    chain = reference()
    return socft.rollout(chain, policy(), noise(chain))


def policy() -> socft.AffinePolicy:
    return socft.AffinePolicy([[[-0.1, 0.0], [0.0, -0.1]]] * STEPS, [[0.1, 0.2]] * STEPS)
