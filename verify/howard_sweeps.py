r"""Policy iteration over all steps at once ends after as many sweeps as there are steps, and is
quadratic before.

Setting: Howard's sweep: the next policy maximises, at every step, :math:`E V^v_{k+1}(m_k + B_k (v +
\xi)) - \beta_k |v|^2/2` with the values of the current one. For affine chains and quadratic
rewards, :math:`V^v_k = x^\top P^v_k x/2 + \dots`, with affine controls of gains K.

Statement: $v_k^n = v_k^*$ for $k ≥ T − n$, from any policy; $P^v ⪯ P^*$, so that every sweep is
well posed where the optimum is; and $K_k^* − K_k^(n+1) = (β_k − B_k^⊤ P^n_(k+1) B_k)^(−1) B_k^⊤
Delta_(k+1) (A_k + B_k K_k^*)$ with $Delta_k = sum_(j ≥ k) Φ_(j k)^⊤ E_j^⊤ (β_j − B_j^⊤ P_(j+1)^*
B_j) E_j Φ_(j k)$, $E = K^* − K^n$

:math:`\Phi_{jk}` carries the state from k to j under the current policy; so the error is quadratic
in that of later steps, with constants that do not see T beyond those sums. *Proof.* The values of
the last n steps are the optimum's after n sweeps, by induction. :math:`\Delta = P^* - P^n \succeq
0` since the maximum of the quadratic :math:`Q^*_k` is at :math:`v^*_k`, where its Hessian is
:math:`-(\beta - B^\top P^* B)`; the formula for K subtracts two optimality conditions.

Kind: equality.

Source: derived here; policy iteration of Howard 1960, in continuous time arXiv 2406.10959 and
2209.07059.

How it is measured: quadratic problems in up to 4 dimensions from random policies; a chain with two
modes and a bent reward by quadrature.

What would refute it: a policy that is not the optimum after T sweeps, or a residual above
`ROUNDING`.
"""

from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from torch import Tensor

from verify.adjoint_matching_sweeps import equal_steps, known
from verify.jarzynski import SEEDS, drawn
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.nonlinear_chains.problems import MIXTURE
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Howard's sweeps", topics.ITERATIONS)
ROUNDING = 1e-9
"""Relative to the gains."""
QUADRATURE = 1e-6


def excess(chain: AffineChain, control: AffineControl) -> Tensor:
    """``Delta_k``, k = 1..T, from the errors of gains."""
    best, (M, _) = chain.optimum, chain.closed(control)
    P = chain.values(best)[0]
    apart = best.K - control.K
    found = [torch.zeros_like(chain.P)]
    for k in reversed(range(1, chain.steps)):
        bent = chain.beta[k] * torch.eye(apart.shape[1], dtype=torch.float64)
        bent = bent - chain.B[k].mT @ P[k] @ chain.B[k]
        found.append(apart[k].mT @ bent @ apart[k] + M[k].mT @ found[-1] @ M[k])
    return torch.stack(found[::-1])


@settings(max_examples=30)
@given(quadratic_instances(steps=6, dims=4), SEEDS, numbers(0, 1))
def test_holds(instance: QuadraticInstance, seed: int, size: float) -> None:
    """T sweeps, well-posedness and the error's formula."""
    chain = AffineChain.of(instance.problem(instance.beta()))
    control, best = drawn(chain, seed, size), chain.optimum
    where = instance.describe() | {"policy": seed, "size": size}
    best_P, eye = chain.values(best)[0], torch.eye(chain.B.shape[2], dtype=torch.float64)
    for sweep in range(1, chain.steps + 1):
        P = chain.values(control)[0]
        lowest = torch.linalg.eigvalsh(best_P - P).amin()
        scale = 1 + float(P.abs().max())
        CLAIM.holds(max(-float(lowest), 0) / scale, 0.0, where, floor=ROUNDING, part="$P^v ⪯ P^*$")
        bent = chain.beta[:, None, None] * eye - chain.B.mT @ P @ chain.B
        carried = chain.A + chain.B @ best.K
        pushed = chain.B.mT @ excess(chain, control) @ carried
        expected = torch.linalg.solve(bent, pushed)
        control = chain.howard_target(control)
        size_of = 1 + float(expected.abs().max())
        CLAIM.equals(
            (best.K - control.K - expected) / size_of, 0 * expected, where, ROUNDING, "error"
        )
        done = control.minus(best).step_sizes[chain.steps - sweep :]
        CLAIM.equals(
            done / (1 + best.size), 0 * done, where | {"sweep": sweep}, ROUNDING, "last steps"
        )


def test_holds_beyond_quadratic_problems() -> None:
    """Two modes, running costs, from far away: T sweeps and no less."""
    truth, problem = MIXTURE.truth, MIXTURE.problem
    x = truth.grid.nodes
    inner = x[:, 0].abs() < 3
    best = torch.stack([MIXTURE.optimum(k, x) for k in range(problem.steps)])
    controls = torch.stack([MIXTURE.away(k, x) for k in range(problem.steps)])
    for sweep in range(1, problem.steps + 1):
        value, found = problem.reward(x), []
        for k in reversed(range(problem.steps)):
            found.append(truth.control(k, truth.best_shift(k, value)))
            mean = truth.kernel(k, truth.shift(k, controls[k]))[0] @ value
            value = mean - problem.beta[k] * controls[k].square().sum(1) / 2 - problem.cost(k, x)
        controls = torch.stack(found[::-1])
        apart = (controls - best).abs()[:, inner].amax((1, 2))
        where = MIXTURE.describe() | {"sweep": sweep}
        done = apart[problem.steps - sweep :]
        CLAIM.equals(done, 0 * done, where, QUADRATURE, "last steps, mixture")
        if sweep < problem.steps:
            CLAIM.breaks(float(apart[0]), QUADRATURE, where, "T sweeps, mixture")


def test_is_quadratic_whatever_the_number_of_steps() -> None:
    """``e^(n+1) / (e^n)^2`` in one dimension, for 8 and 64 steps alike."""
    for steps in (8, 64):
        chain = equal_steps(steps, 0.6)
        control, sizes = chain.none, []
        for _ in range(4):
            sizes.append(control.minus(chain.optimum).size * steps**0.5)
            control = chain.howard_target(control)
        where = {"T": steps, "errors": sizes}
        for coarse, fine in itertools.pairwise(sizes):
            CLAIM.holds(fine, 0.5 * coarse**2, where, part="quadratic")
    CLAIM.finding(
        "errors of gains in units of the step's noise, T = 64: "
        + ", ".join(f"{each:.1e}" for each in sizes),
        where,
    )


def test_needs_the_inner_maximum() -> None:
    """One step along the gradient, ``v <- B^T E grad V^v / beta``, is linear with the rate
    ``rho P``, and does not end after T sweeps.
    """
    chain = equal_steps(4, 0.6)
    control = chain.none
    for _ in range(4):
        control = chain.gradient_target(control)
    left = control.minus(chain.optimum).size
    CLAIM.breaks(left, 1e-6, {"T": 4}, "inner maximum, T sweeps")
    for _ in range(8):
        left, control = control.minus(chain.optimum).size, chain.gradient_target(control)
    rate, ratio = float(known(chain).rates.max()), control.minus(chain.optimum).size / left
    CLAIM.equals(ratio, rate, {"T": 4}, 1e-3, "linear without it")
    CLAIM.breaks(ratio, rate / 2, {"T": 4}, "inner maximum, order")


def test_needs_all_sweeps() -> None:
    """T - 1 sweeps leave the first step."""
    for steps in (2, 4):
        chain = equal_steps(steps, 0.9)
        control = chain.none
        for _ in range(steps - 1):
            control = chain.howard_target(control)
        left = control.minus(chain.optimum).size
        CLAIM.breaks(left, 1e-9, {"T": steps}, "T sweeps")
