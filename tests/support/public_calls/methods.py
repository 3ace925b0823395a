"""Calls that make regressions, methods, truths and guidance."""

# pyright: reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch

import socft
from socft.costates.network import NetworkTraining, SpaceTimeRegression
from socft.costates.network_score import NetworkScore
from socft.guidance.denoiser import GaussianDenoiser, LinearDenoiser, ScoreDenoiser
from socft.guidance.iterated import (
    IncrementTarget,
    LeastSquaresScore,
    RecentredScore,
    StepSizeTarget,
)
from socft.guidance.policy import (
    ClassifierGuidance,
    GuidancePolicy,
    LookAheadGuidance,
    UniversalGuidance,
)
from socft.guidance.strength import (
    ConstantStrength,
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.truth.grid import Grid
from socft.truth.riccati import riccati
from tests.support.public_calls import uses
from tests.support.public_calls.instances import (
    AFFINE,
    DIM,
    MATRIX,
    POINTS,
    WIDE,
    gaussian,
    generator,
    line,
    line_problem,
    policy,
    problem,
    reference,
    schedule,
)
from tests.support.public_calls.table import FIELD, Fresh, add
from tests.support.tensors import F64, randn


def fill() -> None:
    """Add them all."""
    _regressions()
    _methods()
    _observers()
    _truths()
    _guidance()


FIT = {"width": 4, "steps": 2, "batch": 8, "rate": 0.01}
"""A network that is soon trained."""


def _regressions() -> None:
    add(socft.Polynomial, uses.of_features, degree=2)
    add(socft.RadialBasis, uses.of_features, centres=randn(1, 3, DIM), width=1.0)
    add(
        socft.RandomFourier,
        uses.of_features,
        frequencies=randn(1, 3, DIM),
        phases=randn(2, 3),
    )
    add(
        socft.RandomFourier.sample,
        uses.of_features,
        "RandomFourier.sample",
        count=3,
        dim=DIM,
        length=1.0,
        generator=Fresh(generator),
    )
    add(
        socft.LinearRegression,
        uses.of_regression,
        features=Fresh(lambda: socft.Polynomial(1)),
        ridge=0.1,
    )
    add(socft.KernelRidge, uses.of_regression, ridge=0.1, width=0.5)
    add(socft.NetworkRegression, uses.of_regression, **FIT, depth=1, seed=0)
    training = {
        **FIT,
        "blocks": 1,
        "horizon": 1.0,
        "weight_decay": 0.1,
        "decay_every": 10,
        "decay": 0.9,
        "seed": 0,
    }
    add(NetworkTraining, uses.nothing, **training)
    add(SpaceTimeRegression, uses.nothing, training=NetworkTraining(**training))
    add(NetworkScore, uses.nothing, training=NetworkTraining(**training), times=3)


def _methods() -> None:
    add(socft.ExactPIFT, uses.of_method, inner=1)
    add(
        socft.TrustRegion,
        uses.of_method,
        inner=Fresh(lambda: socft.ExactPIFT(1)),
        multipliers=[1.0, 0.5],
    )
    add(
        socft.MonteCarloPIFT,
        uses.of_method,
        inner=1,
        control=Fresh(lambda: AFFINE),
        costate=Fresh(lambda: AFFINE),
        paths=16,
        draws=2,
        seed=0,
    )
    add(
        socft.PolicyGradient,
        uses.of_method,
        policy=Fresh(lambda: lambda: socft.AffinePolicy.zeros(line())),
        estimator=Fresh(socft.FullAdjoint),
        steps=2,
        batch=4,
        rate=0.01,
        seed=0,
    )
    add(_fit, uses.first, "fit", batch=4, steps=2, generator=Fresh(generator))
    add(_fitted, uses.first, "fit of", estimator=Fresh(socft.FullAdjoint), problem=Fresh(problem))


def _fit(batch: int, steps: int, generator: torch.Generator) -> Any:
    control = policy()
    adam = torch.optim.Adam(control.parameters())
    return list(socft.fit(problem(), control, socft.FullAdjoint(), adam, generator, batch, steps))


def _fitted(estimator: socft.Estimator, problem: socft.ControlProblem) -> Any:
    control = policy()
    adam = torch.optim.Adam(control.parameters())
    return list(socft.fit(problem, control, estimator, adam, generator(), 4, 1))


def _observers() -> None:
    truth = Fresh(lambda: socft.LinearQuadratic(problem()))
    iterations = Fresh(
        lambda: [socft.Iteration(0, socft.Uncontrolled(reference()), 0.0, 0, {}, None)]
    )
    add(
        socft.observe,
        lambda made: [each.objective_gap for each in made],
        truth=truth,
        iterations=iterations,
        every=1,
    )


def _truths() -> None:
    add(socft.LinearQuadratic, uses.of_truth, problem=Fresh(problem))
    add(socft.Quadrature, uses.of_truth, problem=Fresh(line_problem), nodes=(200,))
    add(
        socft.compare,
        uses.nothing,
        truth=Fresh(lambda: socft.LinearQuadratic(problem())),
        policy=Fresh(policy),
    )
    add(socft.measured_beta, lambda made: made.beta, problem=Fresh(line_problem), lam=0.5)
    add(
        socft.TiltedMixture,
        lambda made: made.tilt.log_normaliser,
        density=Fresh(gaussian),
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        beta=2.0,
    )
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    add(
        socft.SeparableTruth,
        lambda made: made.objective,
        density=Fresh(lambda: socft.Rotated(turn, [socft.Gaussian(0.0, 1.0)] * 2)),
        reward=Fresh(lambda: socft.Separable(turn, [socft.Sine()] * 2)),
        schedule=Fresh(schedule),
        beta=2.0,
    )
    add(
        riccati,
        lambda made: made.hessian(0.0),
        A=torch.tensor(MATRIX, dtype=F64),
        B=torch.tensor(WIDE, dtype=F64),
        terminal=-torch.eye(2, dtype=F64),
        running=torch.eye(2, dtype=F64),
        beta=1.0,
        horizon=0.5,
    )
    add(
        Grid.box,
        lambda made: made.nodes,
        "Grid.box",
        lower=torch.tensor([-1.0], dtype=F64),
        upper=torch.tensor([1.0], dtype=F64),
        shape=(12,),
    )


def _guidance() -> None:
    levels = torch.tensor([0.2, 0.5], dtype=F64)
    add(GaussianDenoiser, uses.of_denoiser, law=Fresh(gaussian), abar=levels)
    add(ScoreDenoiser, uses.of_denoiser, score=FIELD, abar=levels)
    add(
        LinearDenoiser,
        uses.of_denoiser,
        slope=-torch.eye(2, dtype=F64).expand(2, 2, 2).contiguous(),
        offset=randn(1, 2, 2),
        abar=levels,
    )
    add(
        Response,
        lambda made: made.residual(POINTS),
        gradient=torch.ones(DIM, dtype=F64),
        value=1.0,
    )
    add(ConstantStrength, uses.of_strength, value=0.5)
    for made in (IsotropicStrength, PosteriorStrength, PublishedStrength):
        add(made, uses.of_strength, noise=0.5, scale=2.0)
    add(
        LookAheadGuidance,
        uses.of_guidance,
        response=Fresh(lambda: Response(torch.ones(DIM, dtype=F64), 1.0)),
        strength=Fresh(lambda: ConstantStrength(1.0)),
    )
    add(
        UniversalGuidance,
        uses.of_guidance,
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        weight=0.5,
    )
    add(
        ClassifierGuidance,
        uses.of_guidance,
        density=Fresh(gaussian),
        tilted=Fresh(gaussian),
        weight=0.5,
    )
    add(
        GuidancePolicy,
        lambda made: made(0, POINTS),
        schedule=Fresh(schedule),
        denoiser=Fresh(lambda: GaussianDenoiser(gaussian(), schedule().abar[:-1])),
        guidance=Fresh(lambda: UniversalGuidance(socft.Linear([1.0, 2.0]), 0.5)),
    )
    add(IncrementTarget, uses.nothing, delta=0.5)
    add(StepSizeTarget, uses.nothing, lam=0.5, noise=0.2)
    add(RecentredScore, uses.nothing, rate=0.5)
    add(LeastSquaresScore, uses.nothing, draws=3, slope=True)
