"""Calls of the theory: constants, bounds, weights and rates."""

# pyright: reportArgumentType=false

from __future__ import annotations

import torch
from torch import Tensor

from socft import theory
from socft.reward import Sine
from tests.support.public_calls import uses
from tests.support.public_calls.instances import schedule
from tests.support.public_calls.table import Fresh, add
from tests.support.tensors import F64

STEPS = 2


def constants() -> theory.ChainConstants:
    return theory.ChainConstants([0.9, 0.8], [0.1, 0.2], [0.3, 0.4], 1.0, 0.5, 1.0, 2.0)


def bounded() -> theory.Modulus:
    return theory.Modulus.of_reward(theory.graded_distances(4.0, 9), 1.0, 2.0)


def coupled() -> tuple[theory.Modulus, ...]:
    profiles = theory.graded_distances(4.0, 9).expand(2, 9)
    return theory.coupled_moduli(bounded(), profiles, torch.tensor([0.3, 0.4], dtype=F64))


def fill() -> None:
    """Add them all."""
    _chains()
    _one_step()
    _recursions()
    _weights()
    _errors()
    _sweeps()
    _moduli()
    _along_paths()


def _chains() -> None:
    add(
        theory.ChainConstants,
        lambda made: theory.constant_beta(made, 0.5, theory.Theorem28(theory.SharpBounds())).beta,
        alpha=[0.9, 0.8],
        score_weight=[0.1, 0.2],
        sigma=[0.3, 0.4],
        score_L0=[1.0, 2.0],
        score_L1=[0.5, 0.1],
        reward_L0=1.0,
        reward_L1=2.0,
        dim=2,
        score_sides=([0.5, 0.5], [1.0, 2.0]),
        reward_sides=(0.5, 0.6),
    )
    add(
        theory.ChainConstants.of,
        uses.some("alpha sigma score_L0"),
        "ChainConstants.of",
        schedule=Fresh(schedule),
        score_L0=1.0,
        score_L1=0.5,
        reward=Fresh(Sine),
        dim=2,
    )
    chain = Fresh(constants)
    for made in (
        theory.shift_unit,
        theory.score_unit,
        theory.kl_weight,
        theory.mean_lipschitz,
        theory.one_sided_mean_lipschitz,
        theory.mean_smoothness,
    ):
        add(made, uses.itself, chain=chain)
    for made in (theory.proximal_step, theory.score_step):
        add(made, uses.itself, chain=chain, beta=[1.0, 2.0])
    add(theory.concavity_modulus, uses.itself, chain=chain, beta=1.0, curvature=[1.0, 2.0])
    add(theory.control_size, uses.itself, chain=chain, beta=1.0, value_L0=[1.0, 2.0, 3.0])


def _one_step() -> None:
    add(theory.expected_norm, uses.itself, dim=3)
    for made in (theory.smoothed_curvature, theory.smoothed_third):
        add(made, uses.bounds, L0=1.0, L1=2.0, sigma=0.5)
    mean = {"mean_L0": 0.9, "mean_L1": 0.2}
    add(theory.value_lipschitz, uses.bounds, L0=1.0, mean_L0=0.9)
    add(theory.value_smoothness, uses.bounds, L0=1.0, curvature=2.0, **mean, lam=0.5)
    add(theory.shift_lipschitz, uses.bounds, mean_L0=0.9, lam=0.5)
    add(theory.shift_smoothness, uses.bounds, **mean, third_derivative_ratio=0.8, lam=0.5)
    add(theory.geometric_peak, uses.bounds, lam=0.5, constant=1.0, slope=2.0)
    add(
        theory.increment_smoothness,
        uses.bounds,
        L0=1.0,
        curvature=2.0,
        mean_L0=0.9,
        third_derivative_ratio=0.8,
        lam=0.5,
    )
    add(
        theory.iterate_excess,
        uses.bounds,
        L0=1.0,
        curvature=2.0,
        **mean,
        third_derivative_ratio=0.8,
        lam=0.5,
    )


def of_regularity(made: theory.Regularity) -> list[Tensor]:
    return [made.L0V, made.beta_required, made.lam]


def _recursions() -> None:
    chain = Fresh(constants)
    statement = Fresh(lambda: theory.Theorem28(theory.SharpBounds()))
    add(theory.paper_constants, of_regularity, chain=chain, lam=[0.5, 0.6])
    add(theory.sharp_constants, of_regularity, chain=chain, lam=0.5, mean_L0=[0.9, 0.8])
    add(
        theory.one_sided_constants,
        of_regularity,
        chain=chain,
        lam=0.5,
        relaxation=Fresh(theory.BestRelaxation),
    )
    add(
        theory.iterate_constants,
        of_regularity,
        chain=chain,
        lam=0.5,
        bounds=Fresh(theory.PaperBounds),
    )
    add(theory.constants, of_regularity, chain=chain, lam=0.5, statement=statement)
    add(theory.constants_at, of_regularity, chain=chain, beta=100.0, statement=statement)
    add(theory.SharpBounds, _of_bounds, mean_L0=[0.9, 0.8])
    add(theory.OneSidedBounds, _of_bounds, relaxation=Fresh(theory.BestRelaxation))
    add(theory.Theorem28, _of_statement, bounds=Fresh(theory.PaperBounds))
    add(theory.Lemma32, _of_statement, bounds=Fresh(theory.OneSidedBounds), rounds=2)
    add(theory.FixedRelaxation, lambda made: made.rate(0.1, 0.2), theta=0.5)


def _of_bounds(made: theory.Bounds) -> list[Tensor]:
    return of_regularity(theory.constants(constants(), 0.5, theory.Theorem28(made)))


def _of_statement(made: theory.RegularityStatement) -> list[Tensor]:
    return of_regularity(theory.constants_at(constants(), 100.0, made))


def _weights() -> None:
    chain = Fresh(constants)
    statement = Fresh(lambda: theory.Theorem28(theory.SharpBounds()))
    chosen = uses.some("beta lam rate")
    add(theory.scheduled_beta, chosen, chain=chain, lam=0.5, statement=statement)
    add(theory.constant_beta, chosen, chain=chain, lam=0.5, statement=statement)
    add(theory.beta_from_curvature, chosen, sigma=[0.3, 0.4], curvature=[1.0, 2.0], lam=0.5)


def _errors() -> None:
    here = {"gradient_error": 0.1, "lam": 0.5, "rounds": 3}
    means = {"iterates_L0": 1.2, "mean_L0": 0.9, **here}
    add(theory.control_error_bound, uses.bounds, value_L0=1.0, step=0.5, **here)
    add(theory.value_gradient_error_bound, uses.bounds, value_L0=1.0, **means)
    add(theory.envelope_error_bound, uses.bounds, rho=0.3, third_derivative_ratio=0.8, **means)
    add(theory.value_gap_bound, uses.bounds, steepest=1.0, rho=0.3, b=0.5, q=0.5, rounds=3)
    found = uses.some("score shift whitened value_gradient value objective_gap")
    chain = Fresh(constants)
    iterates = Fresh(lambda: theory.iterate_constants(constants(), 0.5, theory.PaperBounds()))
    for made in (theory.convergence, theory.sharp_convergence):
        add(made, found, chain=chain, iterates=iterates, beta=1e4, rounds=[2, 3])
    add(
        theory.one_sided_convergence,
        found,
        chain=chain,
        beta=100.0,
        rounds=[2, 3],
        bounds=Fresh(theory.OneSidedBounds),
    )
    rates = torch.tensor([0.5, 0.6], dtype=F64)
    add(theory.guaranteed_rates, uses.itself, lam=rates)
    add(theory.sharp_rates, uses.itself, lam=rates)
    add(theory.quadratic_rate, uses.itself, sigma=[0.3, 0.4], beta=1.0, curvature=[1.0, 2.0])


def _sweeps() -> None:
    add(
        theory.MatchingSweeps,
        lambda made: [made.rates, made.matrix, made.weights, made.decay(2)],
        mean=[0.9, 0.8],
        noise=[0.3, 0.4],
        beta=[1.0, 2.0],
        up=[0.5, 0.6],
        down=[0.2, 0.1],
        relaxation=Fresh(lambda: theory.FixedRelaxation(0.5)),
    )
    half = torch.full((2,), 0.5, dtype=F64)
    sweeps = theory.MatchingSweeps(mean=half, noise=half, beta=half, up=half, down=half)
    add(sweeps.errors, uses.itself, "errors of sweeps", start=[1.0, 2.0], sweeps=3)
    add(sweeps.decay, uses.itself, "decay of sweeps", sweeps=3)
    add(theory.SamplerChange, uses.some("strength"), trained=0.7, used=0.5)
    add(
        theory.SamplerChange(0.7, 0.5).moments,
        uses.itself,
        "moments along a sampler",
        mean=0.5,
        variance=1.2,
        curvature=-0.5,
        slope=0.3,
        beta=1.0,
    )


def _moduli() -> None:
    places, modulus = theory.graded_distances(4.0, 9), Fresh(bounded)
    add(
        theory.Modulus,
        lambda made: [made.lipschitz, made.at(places), made.reflected(0.5, places)],
        distances=[0.0, 1.0, 2.0],
        values=[0.0, 0.5, 0.7],
        slope=0.1,
    )
    add(
        theory.Modulus.of_reward,
        uses.some("values lipschitz"),
        "Modulus.of_reward",
        distances=[0.0, 1.0, 2.0],
        L0=1.0,
        oscillation=1.5,
    )
    add(theory.graded_distances, uses.itself, farthest=4.0, count=9)
    add(
        theory.line_profile,
        uses.itself,
        mean=Fresh(lambda: lambda x: x.sin()),
        distances=[0.0, 1.0, 2.0],
        middles=[-1.0, 0.0, 1.0],
    )
    add(
        theory.coupled_moduli,
        lambda made: [each.values for each in made],
        reward=modulus,
        profiles=places.expand(2, 9).contiguous(),
        sigma=[0.3, 0.4],
    )
    moduli = Fresh(coupled)
    add(theory.coupled_curvature, uses.itself, moduli=moduli, sigma=[0.3, 0.4], oscillation=2.0)
    add(theory.oscillation_curvature, uses.each_a_bound, oscillation=2.0, sigma=[0.3, 0.4])


def _along_paths() -> None:
    modulus = Fresh(bounded)
    add(theory.step_curvature, uses.itself, modulus=modulus, sigma=0.3, oscillation=2.0, side=1.5)
    add(
        theory.SlopeCurve,
        lambda made: made.at(torch.tensor([0.5, 2.0], dtype=F64)),
        places=[0.0, 1.0, 6.0],
        values=[0.0, 0.7, 1.0],
    )
    add(
        theory.path_curvature,
        uses.itself,
        chain=Fresh(constants),
        moduli=Fresh(coupled),
        beta=50.0,
        oscillation=2.0,
    )
    add(
        theory.path_convergence,
        lambda made: [made.rate, made.shift, made.value],
        chain=Fresh(constants),
        reward=modulus,
        profiles=theory.graded_distances(4.0, 9).expand(2, 9).contiguous(),
        beta=50.0,
        rounds=2,
        oscillation=2.0,
    )
