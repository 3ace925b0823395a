"""Every inequality at one instance: what is measured beside its bound."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from socft import theory
from socft.checks import require
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.truth.grid import Grid
from socft.truth.quadrature import Quadrature
from toy.tightness.search import Point, Samples
from verify import lemma_3_3, lemma_3_4, theorem_3_1
from verify.contraction import map_constants
from verify.smoothed_curvature import Pair
from verify.support.instances import ProductInstance, QuadraticInstance
from verify.support.iterates import Iterate, suprema
from verify.support.staircase import OneStep
from verify.support.suprema import ACCURACY, DIFFERENCED, TWICE, grids_for
from verify.theorem_2_8_iii_control_smoothness import measure

UPDATES = (0, 1, 4)
"""Updates of PI-FT at every step that are tried; records have null for the limit of infinitely
many.
"""
SEARCHED, CONFIRMED = 1001, 4001
"""States of one step in a search, and when its result is confirmed."""
FINER = 2
"""How many times more nodes confirm what a search by quadrature found."""


@dataclasses.dataclass(frozen=True)
class EmbeddedLine:
    """A line's problem along one axis of d dimensions in which nothing else is rewarded: what the
    theory knows of it.
    """

    chain: theory.ChainConstants

    @classmethod
    def of(cls, line: ProductInstance | OneStep, d: int) -> EmbeddedLine:
        """In d dimensions."""
        return cls(dataclasses.replace(line.chain, dim=d))


def weights(
    chain: theory.ChainConstants, lams: Sequence[float], statement: theory.RegularityStatement
) -> Tensor:
    """The smallest KL weights a statement admits, 1 where it admits every one, shape (T,)."""
    required = theory.constants(
        chain, torch.tensor(lams, dtype=torch.float64), statement
    ).beta_required
    require(
        bool(required.isfinite().all()),
        f"{statement.name} asks for an infinite weight; give finite constants.",
    )
    return torch.where(required > 0, required, 1.0)


def _count_iterate(
    samples: Samples,
    case: EmbeddedLine,
    beta: Tensor,
    bounds: theory.Bounds,
    found: Iterate,
    updates: int,
) -> None:
    """Lemmas 3.2 to 3.4 and Theorem 3.1 for one pass of PI-FT."""
    chain = case.chain
    constants, unit = (
        theory.constants_at(chain, beta, theory.Lemma32(bounds)),
        float(theory.score_unit(chain)[0]),
    )
    paper = isinstance(bounds, theory.PaperBounds)
    lemma, sharper = lemma_3_4.bound(case, beta, bounds, found, updates)
    theorem = theorem_3_1.bound(case, beta, bounds, updates)[0 if paper else 1][0]
    gradient_bound = lemma[0] if paper else torch.minimum(lemma, sharper)[0]
    control_bound = lemma_3_3.bound(case, beta, bounds, found, updates)[0]
    error = unit * found.control_error[0]
    _count_controls(samples, case, beta, bounds, found, updates)
    samples.add("lemma_3_3", error, control_bound, ACCURACY * unit, updates)
    samples.add("lemma_3_4", found.gradient_error[0], gradient_bound, ACCURACY, updates)
    samples.add("theorem_3_1", error, theorem, ACCURACY * unit, updates)
    for j, increment in enumerate(found.increments[0].tolist()):
        limit = (1 - constants.lam[0]) ** j * constants.L0V[1]
        samples.add("lemma_3_2_increments", increment, limit, ACCURACY, updates)


def _count_controls(
    samples: Samples,
    case: EmbeddedLine,
    beta: Tensor,
    bounds: theory.Bounds,
    found: Iterate,
    updates: int | None,
) -> None:
    """Lemma 3.2 for values and controls of one pass, or of the optimum, which is the limit of many
    updates.
    """
    constants, unit = (
        theory.constants_at(case.chain, beta, theory.Lemma32(bounds)),
        float(theory.score_unit(case.chain)[0]),
    )
    samples.add("lemma_3_2_lipschitz", found.value_gradient[0], constants.L0V[0], ACCURACY, updates)
    samples.add(
        "lemma_3_2_smoothness", found.value_hessian[0], constants.L1V[0], DIFFERENCED, updates
    )
    samples.add(
        "lemma_3_2_control",
        found.control_slope[0],
        constants.L0u[0],
        DIFFERENCED * (1 + unit),
        updates,
    )
    samples.add(
        "lemma_3_2_control_jacobian",
        found.control_bend[0],
        constants.L1u[0],
        TWICE * (1 + unit),
        updates,
    )


def _finished(truth: Quadrature) -> BackwardInduction:
    """The optimum as the pass of infinitely many updates."""
    return BackwardInduction(
        truth.grids,
        truth.values,
        truth.shifts,
        torch.zeros(truth.problem.steps, 0, dtype=torch.float64),
    )


def measure_one_step(point: Point, step: OneStep, confirm: bool) -> Samples:
    """All inequalities about one step, in closed form."""
    step = dataclasses.replace(step, count=CONFIRMED if confirm else SEARCHED)
    case, bounds, samples = EmbeddedLine.of(step, point.d), point.bounds(), Samples()
    optimum = theory.constants_at(case.chain, step.beta, theory.Theorem28(bounds))
    samples.add("theorem_2_8_iii_control_smoothness", step.bend(), optimum.L1u[0])
    rate = step.q * float(np.abs(step.curvature(step.states)).max())
    samples.add("contraction", rate, 1 - optimum.lam[0])
    samples.add("lemma_3_2_control", step.steepness(), optimum.L0u[0])
    samples.add("lemma_3_2_control_jacobian", step.bend(), optimum.L1u[0])
    for m in UPDATES:
        _count_iterate(samples, case, step.beta, bounds, step.iterate(m), m)
    return samples


def measure_line(point: Point, instance: ProductInstance, confirm: bool) -> Samples:
    """The statements about PI-FT's iterates, by quadrature."""
    case, bounds = EmbeddedLine.of(instance, point.d), point.bounds(instance.mean_L0)
    samples = Samples()
    beta = weights(case.chain, point.lams, theory.Lemma32(bounds))
    truth = _solve(instance.problem(beta), confirm)
    lam = theory.constants_at(case.chain, beta, theory.Lemma32(bounds)).lam[0]
    _count_controls(samples, case, beta, bounds, suprema(truth, instance, _finished(truth)), None)
    for m in UPDATES:
        found = backward_induction(truth.problem, truth.grids, m)
        _count_iterate(samples, case, beta, bounds, suprema(truth, instance, found), m)
        if m < UPDATES[-1]:
            samples.add("contraction", map_constants(truth.problem, found)[0], 1 - lam, ACCURACY, m)
    return samples


def measure_bend(point: Point, instance: ProductInstance, confirm: bool) -> Samples:
    """(17), by quadrature, at the weights of Theorem 2.8."""
    case, bounds = EmbeddedLine.of(instance, point.d), point.bounds(instance.mean_L0)
    samples = Samples()
    beta = weights(case.chain, point.lams, theory.Theorem28(bounds))
    limit = theory.constants_at(case.chain, beta, theory.Theorem28(bounds)).L1u[0]
    error = TWICE * (1 + float(theory.score_unit(case.chain)[0]))
    samples.add(
        "theorem_2_8_iii_control_smoothness",
        measure(_solve(instance.problem(beta), confirm))[0],
        limit,
        error,
    )
    return samples


def _solve(problem: ControlProblem, confirm: bool) -> Quadrature:
    grids = grids_for(problem)
    if confirm:
        grids = tuple(Grid.box(g.lower, g.upper, (FINER * g.shape[0],)) for g in grids)
    return Quadrature(problem, grids)


def measure_linear(point: Point, instance: QuadraticInstance, _: bool) -> Samples:
    """(14) in closed form, where the reward is linear: the gradients are constant."""
    samples, statement = Samples(), theory.Theorem28(point.bounds(instance.mean_L0))
    gradient = instance.solve(weights(instance.chain, point.lams, statement)).slope[0].norm()
    samples.add("theorem_2_8_i_value_lipschitz", gradient, instance.regularity(statement).L0V[0])
    return samples


def measure_quadratic(point: Point, instance: QuadraticInstance, _: bool) -> Samples:
    """(15), (16) and (19) in closed form."""
    bounds, samples, chain = point.bounds(instance.mean_L0), Samples(), instance.chain
    statement = theory.Theorem28(bounds)
    beta = weights(chain, point.lams, statement)
    truth, limit = instance.solve(beta), theory.constants_at(chain, beta, statement)
    with torch.no_grad():
        gain = theory.score_unit(chain)[0] * truth.affine_policy.gain[0]
    jacobian = torch.diag(torch.tensor(instance.score, dtype=torch.float64)) + gain
    samples.add(
        "theorem_2_8_i_value_smoothness",
        torch.linalg.matrix_norm(truth.hessian(0), 2),
        limit.L1V[0],
    )
    samples.add(
        "theorem_2_8_iii_control_lipschitz", torch.linalg.matrix_norm(jacobian, 2), limit.L0u[0]
    )
    modulus = theory.concavity_modulus(
        chain, beta, torch.linalg.eigvalsh(truth.hessian(1))[-1].expand(point.T)
    )[0]
    samples.add(
        "strong_concavity", theory.concavity_modulus(chain, beta, limit.curvature)[0], modulus
    )
    return samples


def measure_pair(point: Point, pair: Pair, _: bool) -> Samples:
    """Smoothing a sum of two functions along directions at an angle, with noise of scale 1."""
    bounds, samples = point.bounds(), Samples()
    curvature = bounds.curvature(pair.L0, pair.L1, 1.0)
    third = (
        theory.smoothed_third(pair.L0, pair.L1, 1.0)
        if point.sharp
        else bounds.third_derivative_ratio(pair.L0, pair.L1, 1.0, point.d) * pair.L1
    )
    samples.add("smoothed_curvature", pair.smoothed(1.0, 2), curvature)
    samples.add("third_derivative_lemma", pair.smoothed(1.0, 3), third)
    return samples
