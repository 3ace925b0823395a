r"""How many paths a regression of adjoint-matching targets needs: the classical rate, and none with
corrected costates.

Setting: the optimum of a linear-quadratic problem, where lean targets are :math:`v^*_k(x_k)` plus
Gaussian noise that is independent of x_k; a least-squares fit of N targets on p features that
contain the constant and x.

Statement: $bb(E) (1\/N) sum_i |hat(v) (x_i) − v^* (x_i)|^2 = (p\/N) tr C_k$ for every $N ≥ p$, with
$C_k = B_k^⊤ L_k Σ_k L_k^⊤ B_k\/β_k^2$; and $0$ with a martingale correction by the exact costate

:math:`L_k = (A_{T-1} \cdots A_{k+1})^\top P`, and :math:`\Sigma_k` the covariance of x_T given x_k.
The fit's error is the projection of the noise on p dimensions; the constant does not vanish as the
policy converges, or with the step.

Kind: equality.

Source: derived here from the classical variance of least squares; rates of regression for such
targets are arXiv 2509.02528.

How it is measured: fits to targets of the library on independent batches of paths, in one and two
dimensions, against the closed form within 4 standard errors, which are bounded.

What would refute it: another mean, another power of N, or an error of corrected targets above
rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from socft.costates.fields import GivenCostate
from socft.costates.martingale import AntitheticCorrection
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.base import CostateEstimator
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.path import Noise, Path, rollout
from socft.problem import ControlProblem
from socft.truth.linear_quadratic import LinearQuadratic
from verify.support import topics
from verify.support.affine_chains import AffineChain
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.quadratics import LINE_QUADRATIC, PLANE_QUADRATIC

CLAIM = Claim.of_module(__name__, __doc__, "Paths of a regression", topics.ADJOINTS)
BATCHES, STDERRS, RESOLUTION = 400, 4.0, 0.06
"""Batches of N paths; the bound of the relative standard error."""
ROUNDING = 1e-20
"""Of squares relative to that of adjoint matching."""
INSTANCES = [LINE_QUADRATIC, PLANE_QUADRATIC]


def noise_of_targets(chain: AffineChain) -> list[float]:
    """``tr C_k`` of lean targets at the optimum."""
    S, n, m = chain.paths(chain.optimum)[0][-1], chain.A.shape[1], chain.B.shape[2]
    carried, found = chain.P, []
    for k in reversed(range(chain.steps)):
        target = chain.B[k].mT @ carried @ S[:, n + k * m :] / chain.beta[k]
        found.append(float(target.square().sum()))
        carried = chain.A[k].mT @ carried
    return found[::-1]


def paths(problem: ControlProblem, count: int, seed: int) -> tuple[LinearQuadratic, Path]:
    """Of the optimum."""
    truth = LinearQuadratic(problem)
    noise = Noise.sample(problem.reference, count, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return truth, rollout(problem.reference, truth.affine_policy, noise)


def errors(batches: Sequence[Tensor], degree: int) -> Tensor:
    """Mean squared error of the fit of every batch, of states, targets and the exact control of
    shapes (batches, N, ..).
    """
    states, targets, exact = batches
    powers = [states**k for k in range(1, degree + 1)]
    design = torch.cat([torch.ones_like(states[..., :1]), *powers], 2)
    fitted = design @ torch.linalg.lstsq(design, targets).solution
    return (fitted - exact).square().sum(2).mean(1)


@pytest.mark.parametrize("instance", INSTANCES, ids=["line", "plane"])
@pytest.mark.parametrize("degree", [1, 2])
def test_holds(instance: QuadraticInstance, degree: int) -> None:
    """Every step, for two numbers of paths."""
    problem = instance.problem(instance.beta())
    chain = AffineChain.of(problem)
    p, sizes = 1 + degree * instance.dim, noise_of_targets(chain)
    for N in (12, 48):
        truth, path = paths(problem, N * BATCHES, 5)
        targets = AdjointMatching().label(problem, truth.affine_policy, path).targets
        for k, size in enumerate(sizes):
            batched = [
                each[k].unflatten(0, (BATCHES, N)) for each in (path.states, targets, path.controls)
            ]
            found = errors(batched, degree) / (p / N * size)
            stderr = float(found.std()) / BATCHES**0.5
            where = instance.describe() | {"step": k, "N": N, "p": p, "stderr": stderr}
            CLAIM.equals(
                (float(found.mean()) - 1) / stderr, 0.0, where, STDERRS, "mean squared error"
            )
            CLAIM.equals(stderr, 0.0, where, RESOLUTION, "standard error")


@pytest.mark.parametrize("instance", INSTANCES, ids=["line", "plane"])
def test_holds_without_noise(instance: QuadraticInstance) -> None:
    """The exact costate leaves nothing, with as many paths as features."""
    problem, N = instance.problem(instance.beta()), 2 + instance.dim
    truth, path = paths(problem, N, 5)
    estimator: CostateEstimator = MartingaleAdjoint(
        AntitheticCorrection(GivenCostate(truth.value_gradient))
    )
    targets = estimator.label(problem, truth.affine_policy, path).targets
    scale = sum(noise_of_targets(AffineChain.of(problem)))
    off = (targets - path.controls).square().sum() / scale
    CLAIM.equals(float(off), 0.0, instance, ROUNDING, "corrected targets")


def test_needs_independent_paths() -> None:
    """N paths that are N / 2 twice have the error of N / 2."""
    instance, N = INSTANCES[0], 24
    problem = instance.problem(instance.beta())
    truth, path = paths(problem, N // 2 * BATCHES, 5)
    targets = AdjointMatching().label(problem, truth.affine_policy, path).targets
    parts = [
        each[0].unflatten(0, (BATCHES, N // 2)) for each in (path.states, targets, path.controls)
    ]
    found = errors([each.repeat(1, 2, 1) for each in parts], 1)
    limit = 2 / N * noise_of_targets(AffineChain.of(problem))[0]
    CLAIM.breaks(float(found.mean()), 1.5 * limit, instance, "independent paths")


def test_needs_a_model_that_contains_the_control() -> None:
    """A fit by constants has an error that no number of paths removes."""
    instance, N = INSTANCES[0], 3000
    problem = instance.problem(instance.beta())
    truth, path = paths(problem, N, 5)
    targets = AdjointMatching().label(problem, truth.affine_policy, path).targets
    found = errors((path.states[:1], targets[:1], path.controls[:1]), 0)
    limit = 1 / N * noise_of_targets(AffineChain.of(problem))[0]
    CLAIM.breaks(float(found.mean()), 10 * limit, instance, "realisability")
