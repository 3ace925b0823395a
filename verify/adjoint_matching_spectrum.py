r"""What decides how fast adjoint matching converges near the optimum: the curvature of each step,
and nothing of what connects the steps.

Setting: the exact sweep :math:`P(v)_k = B_k^\top E[a_{k+1} | x_k]/\beta_k` with lean costates along
paths of v; :math:`\bar x^*_k` is the mean of the optimum's kernel.

Statement: at $v^*$ the derivative of $P$ is block upper triangular with the multiplications by
$B_k^⊤ bb(E) ∇^2 V_(k+1) (macron(x)_k^* + B_k ξ) B_k\/β_k$ on its diagonal, whose eigenvalues are
its spectrum; its largest is the rate of sweeps

:math:`P(v)_k` depends on :math:`v_j`, j >= k, alone, and :math:`E[a_{k+1} | x_{k+1}]` not on
:math:`v_k`. In the linear-quadratic problem these are the eigenvalues of
:math:`B_k^\top P_{k+1} B_k/\beta_k`, the factors of PI-FT's inner loops. The proof is in
`socft.theory.matching`.

Kind: equality, and the rate is attained in one dimension.

Source: derived here; the iteration is that of arXiv 2409.08861.

How it is measured: Jacobians of the sweep on affine controls by automatic differentiation in up to
3 dimensions; on a chain with bent mean map and reward, differences of the sweep by quadrature in
random directions.

What would refute it: an entry below the diagonal, a diagonal block or an eigenvalue that is
another, or a rate.
"""

from __future__ import annotations

import torch
from hypothesis import given, settings
from torch import Tensor

from verify.adjoint_matching_sweeps import Bent, equal_steps, known, offsets_apart, shifted
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Spectrum of a sweep", topics.ITERATIONS)
ROUNDING = 1e-9
"""Of Jacobians; eigenvalues of a matrix that is not normal are the roots of theirs."""
DIFFERENCE = 1e-4
RESIDUAL = 1e-5
"""Of central differences with that step, and of quadrature."""


def flat(control: AffineControl) -> Tensor:
    """Entries step by step, (T, m (n + 1))."""
    return torch.cat([control.K.flatten(1), control.o], 1)


def jacobian(chain: AffineChain, lean: bool = True) -> Tensor:
    """Of the sweep at the optimum, shape (T, p, T, p)."""
    T, m, n = chain.none.K.shape
    sweep = chain.lean_target if lean else chain.gradient_target

    def moved(theta: Tensor) -> Tensor:
        return flat(sweep(AffineControl(theta[:, : m * n].reshape(T, m, n), theta[:, m * n :])))

    found = torch.autograd.functional.jacobian(moved, flat(chain.optimum))
    assert isinstance(found, Tensor)
    return found


def blocks(chain: AffineChain) -> Tensor:
    """``B^T P_{k+1} B / beta`` on the columns of gains and on offsets, shape (T, p, p)."""
    P, n = chain.values(chain.optimum)[0], chain.A.shape[1]
    bent = chain.B.mT @ P @ chain.B / chain.beta[:, None, None]
    own = torch.stack([torch.kron(each, torch.eye(n, dtype=torch.float64)) for each in bent])
    return torch.stack([torch.block_diag(a, b) for a, b in zip(own, bent, strict=True)])


@settings(max_examples=25)
@given(quadratic_instances(steps=5, dims=3))
def test_holds(instance: QuadraticInstance) -> None:
    """Zeros, diagonal blocks and eigenvalues, for quadratic problems."""
    chain = AffineChain.of(instance.problem(instance.beta()))
    found = jacobian(chain)
    T, p = found.shape[:2]
    expected = blocks(chain)
    scale = 1 + float(found.abs().max())
    for k in range(T):
        below = found[k, :, :k]
        where = instance.describe() | {"step": k}
        CLAIM.equals(below.abs().amax() if k else 0.0, 0.0, where, 1e-14, "triangular")
        CLAIM.equals(
            (found[k, :, k] - expected[k]) / scale, 0 * expected[k], where, ROUNDING, "blocks"
        )
    whole, eye = found.reshape(T * p, T * p), torch.eye(T * p, dtype=torch.complex128)
    eigenvalues = torch.linalg.eigvalsh((expected + expected.mT) / 2).flatten()
    for z in (1j, 1 + 2j):
        left = torch.linalg.slogdet(z * eye - whole).logabsdet
        logs = (z - eigenvalues).abs().log().sum()
        CLAIM.equals(float(left - logs), 0.0, instance, ROUNDING * scale, "spectrum")


@settings(max_examples=8)
@given(numbers(-1, 1), numbers(0.3, 0.6), numbers(0.5, 1.5))
def test_holds_beyond_quadratic_problems(w: float, p: float, u: float) -> None:
    """A direction at one step comes back at that step multiplied by its curvature, at no later
    step, and at earlier ones.
    """
    bent = Bent(3, w, 0.4, p, u)
    truth, x = bent.truth, bent.truth.grid.nodes[:, 0]
    inner, direction = x.abs() < 3, torch.cos(0.7 * x + 0.2)
    value = truth.values(truth.optimum)[2].detach()
    mass, gaps = truth.kernel(1, bent.best[1][:, None])
    factor = (mass * (gaps[..., 0].square() - 1)) @ value
    moved = torch.zeros_like(bent.best)
    moved[1] = DIFFERENCE * direction
    both = [bent.sweep(bent.best + sign * moved, 1.0) for sign in (1, -1)]
    found = (both[0] - both[1])[:, inner] / (2 * DIFFERENCE)
    where = bent.describe()
    CLAIM.equals(found[2], 0 * found[2], where, 1e-12, "later steps")
    CLAIM.equals(found[1], (factor * direction)[inner], where, RESIDUAL, "own step")
    CLAIM.breaks(float(found[0].abs().max()), RESIDUAL, where, "earlier steps are free")


def test_the_rate_is_attained() -> None:
    """By an error of the step with the largest curvature, sweep by sweep; in one dimension."""
    for P in (0.6, -1.5):
        chain = equal_steps(4, P)
        weights = known(chain).weights
        slowest = int(weights.argmax())
        control = shifted(chain, torch.eye(4, dtype=torch.float64)[slowest])
        for sweep in range(1, 4):
            before, control = control, chain.lean_target(control)
            ratio = offsets_apart(chain, control) / offsets_apart(chain, before)
            where = {"T": 4, "P": P, "sweep": sweep}
            CLAIM.attained(float(ratio[slowest]), float(weights.max()), where, part="rate")


def test_needs_lean_costates() -> None:
    """With the policy's derivative in the costate, the full adjoint's, the derivative is block
    diagonal: at the optimum its value does not change to first order.
    """
    chain = equal_steps(4, 0.6)
    full, lean = jacobian(chain, lean=False), jacobian(chain)
    off = lambda found: max(float(found[k, :, k + 1 :].abs().max()) for k in range(3))  # noqa: E731
    CLAIM.equals(off(full), 0.0, {"T": 4}, ROUNDING, "full costates: block diagonal")
    CLAIM.breaks(off(lean), 0.01, {"T": 4}, "lean costates")


def test_needs_the_optimum() -> None:
    """Elsewhere the diagonal is another: it is no constant of the problem."""
    chain = equal_steps(4, 0.6)
    P = chain.lean(chain.none)[0]
    own = (chain.B.mT @ P @ chain.B)[:, 0, 0] / chain.beta
    CLAIM.breaks(float((own - known(chain).weights).abs().max()), 0.01, {"T": 4}, "optimum")
