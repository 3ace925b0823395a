"""Calls that make chains, laws, rewards, problems, policies and paths."""

# pyright: reportArgumentType=false

from __future__ import annotations

import torch

import socft
from socft import metrics
from socft.density import NoisedScore
from socft.guidance.sphere import Sphere
from socft.reference import DenseMaps, SpectralMaps
from socft.sde import StateDiffusion
from tests.support.public_calls import uses
from tests.support.public_calls.instances import (
    DIM,
    LEVELS,
    LINE,
    MATRIX,
    PATHS,
    POINTS,
    STEPS,
    WIDE,
    gaussian,
    generator,
    mixture,
    noise,
    path,
    policy,
    problem,
    reference,
    schedule,
)
from tests.support.public_calls.table import Fresh, add
from tests.support.tensors import F64, randn


def fill() -> None:
    """Add them all."""
    _schedules()
    _densities()
    _references()
    _equations()
    _rewards()
    _rewards_of_states()
    _problems()
    _policies()
    _paths()


def _schedules() -> None:
    add(
        socft.Schedule,
        uses.some("steps alpha sigma"),
        abar=LEVELS,
        score_weight=[0.6, 0.4, 0.1],
        sigma=[0.5, 0.4, 0.3],
    )
    add(schedule().memory, uses.itself, "memory", variance=1.0)
    add(socft.ddpm, uses.some("steps alpha sigma"), abar=LEVELS)
    add(socft.ddim, uses.some("steps alpha sigma"), abar=LEVELS, eta=0.7)
    add(socft.variance_preserving, uses.some("abar sigma"), steps=5, rate=1.0)
    for levels in (socft.linear_levels, socft.scaled_linear_levels):
        add(levels, uses.itself, steps=50, first=1e-4, last=0.02, train_steps=1000)
    add(socft.cosine_levels, uses.itself, steps=5, offset=0.008, largest=0.999)
    add(socft.subsample, uses.itself, abar=LEVELS, steps=2)
    add(socft.soften_last, uses.itself, abar=LEVELS)


def _densities() -> None:
    add(socft.Gaussian, uses.of_density, mean=[0.0, 1.0], cov=[[1.0, 0.2], [0.2, 0.5]])
    add(
        socft.GaussianMixture,
        uses.of_density,
        weights=[0.4, 0.6],
        means=[[0.0, 1.0], [1.0, 0.0]],
        covs=[[1.0, 0.2], [0.2, 0.5]],
    )
    turn = [[0.6, -0.8], [0.8, 0.6]]
    add(
        socft.Rotated, uses.of_density, rotation=turn, factors=Fresh(lambda: [mixture(), mixture()])
    )
    add(Sphere, uses.of_density, dim=3, natural=torch.ones(3, dtype=F64), radius=2.0, spread=0.1)
    add(
        socft.score_reference,
        uses.of_reference,
        density=Fresh(gaussian),
        schedule=Fresh(schedule),
    )
    add(
        socft.affine_reference,
        uses.of_reference,
        gaussian=Fresh(gaussian),
        schedule=Fresh(schedule),
    )
    add(NoisedScore, lambda made: made(0, POINTS), density=Fresh(gaussian), abar=LEVELS)
    add(
        gaussian().tilted,
        lambda made: [made.log_normaliser, made.density.mean],
        "tilted",
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        beta=2.0,
    )
    add(gaussian().noised, uses.of_density, "noised", abar=0.5)
    add(gaussian().sample, uses.itself, "sample", batch=3, generator=Fresh(generator))
    for name in ("log_prob", "score", "score_jacobian"):
        add(getattr(gaussian(), name), uses.of_states, name, x=POINTS)
    for name in ("noised_log_prob", "noised_score"):
        add(getattr(gaussian(), name), uses.of_states, name, abar=0.5, x=POINTS)


def _references() -> None:
    add(socft.ScalarDiffusion, uses.of_diffusion, sigma=[0.5, 0.4, 0.3])
    add(socft.MatrixDiffusion, uses.of_diffusion, matrices=[WIDE] * STEPS)
    add(
        StateDiffusion,
        uses.of_diffusion,
        apply=Fresh(lambda: lambda k, x, z: (1 + x**2) * z),
        dims=(DIM,),
        noise_dims=(DIM,),
    )
    add(DenseMaps, lambda made: made.apply(0, POINTS), matrices=[MATRIX] * STEPS)
    add(
        SpectralMaps,
        lambda made: made.apply(0, POINTS),
        eigenvalues=[[0.9, 0.8]] * STEPS,
        basis=[[0.6, -0.8], [0.8, 0.6]],
    )
    add(
        socft.AffineReference,
        uses.of_reference,
        transition=[MATRIX] * STEPS,
        diffusion=Fresh(lambda: socft.ScalarDiffusion([0.5] * STEPS)),
        offset=[[0.1, 0.2]] * STEPS,
        initial_mean=[0.5, -0.5],
        initial_factor=WIDE,
    )
    add(
        socft.KernelReference,
        uses.of_reference,
        mean=Fresh(lambda: lambda k, x: x.sin()),
        diffusion=Fresh(lambda: socft.ScalarDiffusion([0.5] * STEPS)),
        steps=STEPS,
        dims=(DIM,),
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    add(
        socft.ScoreReference,
        uses.of_reference,
        schedule=Fresh(schedule),
        score=Fresh(lambda: lambda k, x: -x),
        dims=(DIM,),
    )


def _equations() -> None:
    add(
        socft.DriftSDE,
        uses.of_sde,
        drift=Fresh(lambda: lambda t, x: -x),
        noise=WIDE,
        horizon=1.0,
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    add(
        socft.LinearSDE,
        uses.of_sde,
        A=MATRIX,
        noise=WIDE,
        horizon=1.0,
        offset=[0.1, 0.2],
        initial_mean=[0.5, -0.5],
        initial_factor=WIDE,
    )
    add(
        socft.SemilinearSDE,
        uses.of_sde,
        A=MATRIX,
        remainder=Fresh(lambda: lambda t, x: x.sin()),
        noise=WIDE,
        horizon=1.0,
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    linear = Fresh(lambda: socft.LinearSDE(MATRIX, WIDE, 1.0))
    semi = Fresh(lambda: socft.SemilinearSDE(MATRIX, lambda t, x: x.sin(), WIDE, 1.0))
    for scheme in (socft.EulerMaruyama, socft.Exponential, socft.Strang, socft.Taylor):
        for what, sde in (("linear", linear), ("semilinear", semi)):
            name = f"{scheme.__name__} of a {what} one"
            add(scheme().chain, uses.of_reference, name, sde=sde, steps=2)


def _rewards() -> None:
    add(socft.Linear, uses.of_reward(POINTS), w=[1.0, 2.0], c=0.5)
    add(
        socft.Quadratic,
        uses.of_reward(POINTS),
        P=[[-1.0, 0.2], [0.2, 0.5]],
        q=[1.0, 2.0],
        c=0.5,
    )
    add(socft.Sine, uses.of_reward(LINE), amplitude=0.5, frequency=2.0, phase=0.1)
    add(socft.Softplus, uses.of_reward(LINE), slope=0.5, sharpness=2.0, center=0.1)
    add(socft.PseudoHuber, uses.of_reward(LINE), delta=0.5, center=0.1, weight=-2.0)
    sine = Fresh(socft.Sine)
    add(socft.RidgeFunction, uses.of_reward(POINTS), q=[1.0, 2.0], scalar=sine)
    add(
        socft.Separable,
        uses.of_reward(POINTS),
        rotation=[[0.6, -0.8], [0.8, 0.6]],
        scalars=Fresh(lambda: [socft.Sine(), socft.Softplus()]),
    )
    add(
        socft.LogSumExp,
        uses.of_reward(POINTS),
        directions=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
        offsets=[0.1, 0.2, 0.3],
        temperature=0.5,
    )
    add(
        socft.Sum,
        uses.of_reward(LINE),
        rewards=Fresh(lambda: [socft.Sine(), socft.Softplus()]),
        weights=[1.0, 0.5],
    )
    add(
        socft.FunctionReward,
        lambda made: uses.of_problem(socft.ControlProblem(reference(), made, 1.0)),
        function=Fresh(lambda: lambda x: x.sin().sum(1)),
        L0=1.0,
        L1=2.0,
    )


def _rewards_of_states() -> None:
    for made, x in (
        (socft.Linear([1.0, 2.0]), POINTS),
        (socft.Quadratic([[-1.0, 0.0], [0.0, 1.0]]), POINTS),
        (socft.Sine(), LINE),
        (socft.Softplus(), LINE),
        (socft.PseudoHuber(), LINE),
        (socft.LogSumExp([[1.0, 0.0], [0.0, 1.0]]), POINTS),
        (socft.RidgeFunction([1.0, 2.0], socft.Sine()), POINTS),
    ):
        kind = type(made).__name__
        add(made.__call__, uses.of_states, f"{kind} of states", x=x)
        add(made.gradient, uses.of_states, f"gradient of {kind}", x=x)


def _problems() -> None:
    add(
        socft.reward.as_quadratic,
        lambda made: [made.P, made.linear],
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
    )
    add(
        socft.reward.as_reward,
        lambda made: uses.of_problem(socft.ControlProblem(reference(), made, 1.0)),
        reward=Fresh(lambda: lambda x: x.sum(1)),
    )
    add(
        socft.ControlProblem,
        uses.of_problem,
        reference=Fresh(reference),
        reward=Fresh(lambda: lambda x: -x.square().sum(1)),
        beta=[1.0, 2.0, 0.5],
        running_cost=Fresh(lambda: lambda k, x: x.square().sum(1)),
    )
    add(
        socft.QuadraticCost,
        lambda made: made(0, POINTS),
        F=[[1.0, 0.2], [0.2, 0.5]],
        h=[0.1, 0.2],
    )


def _policies() -> None:
    chain = Fresh(reference)
    add(socft.Uncontrolled, uses.of_policy, reference=chain)
    add(socft.FunctionPolicy, uses.of_policy, function=Fresh(lambda: lambda k, x: -x))
    add(
        socft.AffinePolicy,
        uses.of_policy,
        gain=[MATRIX] * STEPS,
        offset=[[0.1, 0.2]] * STEPS,
    )
    add(socft.AffinePolicy.zeros, uses.of_policy, "AffinePolicy.zeros", reference=chain)
    add(
        socft.FeaturePolicy,
        uses.of_policy,
        features=Fresh(lambda: lambda x: x.sin()),
        weight=[MATRIX] * STEPS,
    )
    add(
        socft.StepwisePolicy,
        uses.of_policy,
        functions=Fresh(lambda: [lambda x: -x, lambda x: x, lambda x: x.sin()]),
    )
    add(
        socft.MLPPolicy,
        uses.of_policy,
        reference=chain,
        width=4,
        depth=2,
        generator=Fresh(generator),
        dtype=Fresh(lambda: torch.float64),
    )
    add(
        socft.ResidualPolicy,
        uses.of_policy,
        reference=chain,
        fine_tuned=Fresh(lambda: lambda k, x: x.sin()),
    )
    add(socft.ScaledPolicy, uses.of_policy, policy=Fresh(policy), scale=[0.5, 0.2, 0.1])


def _paths() -> None:
    add(socft.Noise, uses.nothing, initial=randn(1, PATHS, DIM), steps=randn(2, STEPS, PATHS, DIM))
    add(
        socft.Noise.sample,
        lambda made: [made.initial, made.steps],
        "Noise.sample",
        reference=Fresh(reference),
        batch=PATHS,
        generator=Fresh(generator),
        dtype=Fresh(lambda: torch.float64),
    )
    add(
        socft.rollout,
        lambda made: made.states.detach(),
        reference=Fresh(reference),
        policy=Fresh(policy),
        noise=Fresh(lambda: noise(reference())),
    )
    add(socft.returns, lambda made: made.detach(), problem=Fresh(problem), path=Fresh(path))
    add(
        metrics.wasserstein1,
        uses.itself,
        x=randn(1, 5),
        y=randn(2, 6),
        x_weights=torch.full((5,), 0.2, dtype=F64),
        y_weights=torch.full((6,), 0.5, dtype=F64),
    )
    add(
        metrics.wasserstein1_to_quantiles,
        uses.itself,
        x=randn(1, 5),
        quantile=Fresh(lambda: lambda u: torch.special.ndtri(u)),
    )
    add(metrics.mmd, uses.itself, x=randn(1, 5, 2), y=randn(2, 6, 2), bandwidth=1.0)
    add(metrics.gaussian_mmd, uses.itself, a=Fresh(gaussian), b=Fresh(gaussian), bandwidth=1.0)
