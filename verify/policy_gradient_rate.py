r"""Exact gradient ascent converges linearly, at the rate of the curvature at the optimum.

Setting: a linear-quadratic problem, affine policies with their gains and offsets as one vector K,
the exact gradient (77), ascent :math:`K \leftarrow K + \eta \nabla J(K)`; h are the eigenvalues of
:math:`-\nabla^2 J(K^*)`, all positive under the condition on beta.

Statement: $|K^(n+1) − K^*| ≤ max_i |1 − η h_i (−∇^2 J(K^*))| |K^n − K^*|$ as $K^n → K^*$

With the best step, :math:`\eta = 2/(h_1 + h_n)`, the factor is :math:`(\kappa - 1)/(\kappa + 1)`,
:math:`\kappa = h_n/h_1`.

Kind: tight, as K tends to K*: the eigenvector of the extreme eigenvalue attains it.

Source: arXiv 2412.18164v4, section 4.1 (conjecture); factor derived here.

The gradient is smooth and vanishes at K*, so the iteration has the Jacobian :math:`I - \eta h`.

How it is measured: the Hessian by automatic differentiation of the objective from moments, the
iteration with the closed-form gradient, from starts at distance `NEAR` of K*; a far start with
backtracking, which must enter the same regime.

What would refute it: a contraction factor above the predicted one beyond `LOCAL`, or a far start
that does not reach it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given, settings
from torch import Tensor

from verify.support import topics
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.policy_gradients import (
    SEEDS,
    AffineWeights,
    moments_objective,
    optimum,
    small_problem,
)
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Linear rate", topics.SECTION_4_1)
NEAR = 1e-6
"""Distance of the starts relative to 1 + |K*|."""
LOCAL = 1e-3
"""Change of the factor over that distance: `NEAR` times third derivatives over curvature, at most
1000 on these instances.
"""
ITERATIONS = 3
FAR_ITERATIONS = 400
TAIL = 20
REACHED = 1e-5


def curvature(flat: AffineWeights, point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, ascending, and eigenvectors of minus the Hessian of J."""

    def objective(weights: Tensor) -> Tensor:
        return moments_objective(flat.problem, *flat.split(weights))

    hessian = torch.autograd.functional.hessian(objective, torch.from_numpy(point))
    assert isinstance(hessian, Tensor)
    return np.linalg.eigh(-((hessian + hessian.T) / 2).numpy())


def bound(h: np.ndarray, step: float) -> float:
    """``max_i |1 - eta h_i|``."""
    return float(np.abs(1 - step * h).max())


def contractions(
    flat: AffineWeights, best: np.ndarray, start: np.ndarray, step: float, iterations: int
) -> list[float]:
    """Ratios of successive distances to the optimum."""
    point, ratios = start, []
    for _ in range(iterations):
        moved = point + step * flat.gradient(point)
        ratios.append(float(np.linalg.norm(moved - best) / np.linalg.norm(point - best)))
        point = moved
    return ratios


@settings(max_examples=25)
@given(quadratic_instances(steps=4, dims=2), SEEDS, numbers(0.05, 1.0))
def test_holds(instance: QuadraticInstance, seed: int, share: float) -> None:
    """Contraction from a random direction, for steps up to the best one; and along the slowest
    direction, where it is attained.
    """
    flat, best = optimum(instance.solve())
    h, vectors = curvature(flat, best)
    step = share * 2 / (h[0] + h[-1])
    limit, near = bound(h, step), NEAR * (1 + np.abs(best).max())
    direction = np.random.default_rng(seed).standard_normal(len(best))
    where = {
        "instance": instance.describe(),
        "seed": seed,
        "share": share,
        "condition": h[-1] / h[0],
    }
    ratios = contractions(
        flat, best, best + near * direction / np.linalg.norm(direction), step, ITERATIONS
    )
    CLAIM.holds(max(ratios), limit, where, floor=LOCAL, part="near the optimum")
    (slowest,) = contractions(flat, best, best + near * vectors[:, 0], step, 1)
    CLAIM.equals(slowest, abs(1 - step * h[0]), where, LOCAL, "slowest direction")


def test_is_attained() -> None:
    """With the best step both extreme eigenvectors contract by ``(kappa - 1) / (kappa + 1)``."""
    instance = _pair()
    flat, best = optimum(instance.solve())
    h, vectors = curvature(flat, best)
    step = 2 / (h[0] + h[-1])
    kappa = h[-1] / h[0]
    for i in (0, -1):
        (ratio,) = contractions(flat, best, best + NEAR * vectors[:, i], step, 1)
        CLAIM.attained(
            ratio, (kappa - 1) / (kappa + 1), instance, within=LOCAL, slack=LOCAL, part="best step"
        )


def test_holds_from_far() -> None:
    """Ascent with backtracking from a random distant policy, then the predicted factor; gradient
    domination on the way.
    """
    instance = _pair()
    truth = instance.solve()
    flat, best = optimum(truth)
    h, _ = curvature(flat, best)
    point = best + 5 * np.random.default_rng(1).standard_normal(len(best))
    distances, domination, step = [float(np.linalg.norm(point - best))], [], 2 / (h[0] + h[-1])
    for _ in range(FAR_ITERATIONS):
        value, gradient = truth.evaluate(flat.policy(point)).objective, flat.gradient(point)
        if (missing := truth.objective - value) > REACHED**2:
            domination.append(float(gradient @ gradient) / (2 * missing * h[0]))
        eta = step
        while truth.evaluate(
            flat.policy(point + eta * gradient)
        ).objective < value + eta / 4 * float(gradient @ gradient):
            eta /= 2
            if eta < step / 2**20:
                break
        point = point + eta * gradient
        distances.append(float(np.linalg.norm(point - best)))
        if distances[-1] <= REACHED:
            break
    where = {
        "instance": instance.describe(),
        "start": distances[0],
        "iterations": len(distances) - 1,
        "condition": h[-1] / h[0],
    }
    rate = (distances[-1] / distances[-1 - TAIL]) ** (1 / TAIL)
    CLAIM.holds(distances[-1], REACHED, where, part="reached from far")
    CLAIM.holds(rate, bound(h, step), where, floor=10 * LOCAL, part="tail from far")
    worst = min(domination)
    text = (
        f"on the way from far |∇J|² stays above {2 * worst:.2g} $h_1 (J^* − J)$:"
        " gradient domination"
    )
    CLAIM.finding(text, where)


def test_needs_the_condition_on_beta() -> None:
    """Below sigma^2 P the stationary point repels."""
    flat = small_problem(beta=0.6)
    point = _newton(flat, np.zeros(4))
    h, vectors = curvature(flat, point)
    (ratio,) = contractions(
        flat, point, point + NEAR * vectors[:, 0], 0.1 / float(np.abs(h).max()), 1
    )
    CLAIM.breaks(
        ratio,
        1.0,
        {"beta": 0.6, "sigma^2 P": 1.0, "least curvature": float(h[0])},
        "beta > sigma^2 P",
    )


def _newton(flat: AffineWeights, point: np.ndarray) -> np.ndarray:
    for _ in range(30):
        h, vectors = curvature(flat, point)
        point = point + vectors @ ((vectors.T @ flat.gradient(point)) / h)
    assert math.isclose(float(np.abs(flat.gradient(point)).max()), 0.0, abs_tol=1e-9)
    return point


def _pair() -> QuadraticInstance:
    return QuadraticInstance(
        levels=(0.4, 0.65, 0.95),
        lam=(0.4, 0.4),
        score=(-0.8, -1.2),
        shift=(0.2, 0.0),
        curvature=(1.0, -2.0),
        slope=(1.0, 0.5),
        rotation=1,
    )
