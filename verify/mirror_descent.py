r"""Mirror descent in the control converges linearly, with the rate of its target's derivative.

Setting: :math:`v \leftarrow (1 - \theta) v + \theta F(v)`, mirror descent with the quadratic
distance, proximal step :math:`\tau` and :math:`\theta = \tau\beta/(1 + \tau\beta)`, towards the
target F of the full adjoint, of adjoint matching (lean costates) or of Howard's sweep; affine
chains, quadratic rewards.

Statement: the spectrum of the update's derivative at $v^*$ is $1 − θ (1 − h)$, with $h$ the
eigenvalues of $B_k^⊤ P_(k+1) B_k\/β_k$ for full and lean costates, and $h = 0$ for Howard's target;
the derivative is block diagonal but for lean costates, and $J^* − J$ falls with the square

At the optimum values do not change to first order, :math:`\partial V^v/\partial v = 0`, so that the
full target sees the own step only and Howard's nothing. The lean target is block triangular with
the same diagonal: no normal operator, whose rate is seen late.

Kind: tight: the slowest mode has exactly its rate.

Source: derived here; mirror descent for control arXiv 2401.01198 and 2405.20250.

How it is measured: ratios of errors of iterations, step by step, in quadratic problems of up to 3
dimensions; the objective in closed form.

What would refute it: another ratio, beyond `ROUNDING`.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings

from socft.truth.affine_policy import evaluate_affine
from verify.adjoint_matching_spectrum import blocks, jacobian
from verify.adjoint_matching_sweeps import equal_steps, known, shifted
from verify.jarzynski import SEEDS, drawn
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Mirror descent", topics.ITERATIONS)
THETAS = (0.25, 0.5)
SMALL = 1e-8
"""Of errors whose squares are left out."""
NEAR = 1e-4
"""Of ratios: errors of that size, and rounding."""


def near(chain: AffineChain, seed: int) -> AffineControl:
    """A control at a distance of about `SMALL` from the optimum."""
    apart = drawn(chain, seed, SMALL)
    return AffineControl(chain.optimum.K + apart.K, chain.optimum.o + apart.o)


def objective(chain: AffineChain, control: AffineControl) -> float:
    """J."""
    return float(evaluate_affine(chain.problem, chain.policy(control)).objective)


@settings(max_examples=20)
@given(quadratic_instances(steps=5, dims=3), SEEDS, numbers(0.05, 1))
def test_holds(instance: QuadraticInstance, seed: int, theta: float) -> None:
    """One update near the optimum: of all entries for the full target and Howard's, and no mode of
    the lean one is slower.
    """
    chain = AffineChain.of(instance.problem(instance.beta()))
    start, best = near(chain, seed), chain.optimum
    where = instance.describe() | {"theta": theta, "start": seed}
    apart = start.minus(best)
    howard = start.mixed(chain.howard_target(start), theta).minus(best)
    expected = AffineControl((1 - theta) * apart.K, (1 - theta) * apart.o)
    CLAIM.equals(howard.minus(expected).size / SMALL, 0.0, where, NEAR, "Howard's target")
    full = start.mixed(chain.gradient_target(start), theta).minus(best)
    P = chain.values(best)[0]
    h = chain.B.mT @ P @ chain.B / chain.beta[:, None, None]
    pushed = AffineControl(h @ apart.K, (h @ apart.o.unsqueeze(2)).squeeze(2))
    expected = apart.mixed(pushed, theta)
    CLAIM.equals(full.minus(expected).size / SMALL, 0.0, where, NEAR, "full target")
    own, lean = blocks(chain), jacobian(chain)
    for k in range(chain.steps):
        scale = 1 + float(lean.abs().max())
        CLAIM.equals((lean[k, :, k] - own[k]) / scale, 0 * own[k], where, 1e-9, "lean target")


@pytest.mark.parametrize("theta", THETAS)
def test_is_attained(theta: float) -> None:
    """Rates from afar, and the square for the objective."""
    chain = equal_steps(6, 0.6)
    weights = known(chain).weights
    worst, slowest = int(weights.argmax()), float(weights.max())
    targets = {
        "Howard's target": (chain.howard_target, 1 - theta),
        "full target": (chain.gradient_target, 1 - theta * (1 - slowest)),
    }
    top = objective(chain, chain.optimum)
    for name, (target, rate) in targets.items():
        before = shifted(chain, SMALL * torch.eye(6, dtype=torch.float64)[worst])
        ratio = before.mixed(target(before), theta).minus(chain.optimum).size / SMALL
        where = {"T": 6, "theta": theta, "target": name}
        CLAIM.attained(ratio, rate, where, within=NEAR, slack=NEAR, part=name)
        far, close = chain.none, chain.none
        for _ in range(12 if theta < 0.5 else 6):
            far, close = close, close.mixed(target(close), theta)
        gaps = [top - objective(chain, each) for each in (far, close)]
        CLAIM.equals(math.sqrt(gaps[1] / gaps[0]), rate, where, 0.02, f"objective, {name}")


def test_needs_damping_for_a_linear_rate() -> None:
    """Undamped, Howard's target is quadratic: its rate falls to zero."""
    chain = equal_steps(6, 0.6)
    control, sizes = chain.none, []
    for _ in range(4):
        control = chain.howard_target(control)
        sizes.append(control.minus(chain.optimum).size)
    CLAIM.holds(sizes[2] / sizes[1], 0.01, {"T": 6, "theta": 1.0}, part="undamped")
    CLAIM.breaks(0.5, sizes[2] / sizes[1], {"T": 6}, "θ < 1")


def test_needs_a_normal_derivative() -> None:
    """Lean costates have the same spectrum and yet, with errors of one sign at later steps, the
    first update shrinks the first step's error by less than the rate.
    """
    chain = equal_steps(6, 0.6)
    best = chain.optimum
    start = AffineControl(best.K, best.o + SMALL)
    moved = start.mixed(chain.lean_target(start), 0.5).minus(best)
    rate = 1 - 0.5 * (1 - float(known(chain).rates.max()))
    ratio = float(moved.o[0].abs() / SMALL)
    CLAIM.breaks(ratio, rate, {"T": 6, "theta": 0.5}, "normality")
    full = start.mixed(chain.gradient_target(start), 0.5).minus(best)
    CLAIM.holds(float(full.o.abs().max() / SMALL), rate * (1 + NEAR), {"T": 6}, part="full target")
