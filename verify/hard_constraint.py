r"""A constraint on the sample is a control problem with a reward of zero and minus infinity, whose
solution regressions find without a gradient.

Setting: an affine chain without control, the event A that :math:`g \cdot x_T \ge c`, its chance
:math:`h_k(x) = P(A | x_k = x)`, and the optimal path law :math:`P^* = P(\cdot | A)`.

Statement: $h_k (x) = Φ((g · bb(E) [x_T | x_k = x] − c)\/σ_k)$ with $σ_k^2 = op("Var") (g · x_T |
x_k)$; it is the only minimiser of $bb(E) |1_A − f(x_k)|^2$; $bb(E) [1_A ξ_k | x_k] = B_k^⊤ bb(E)
[∇h_(k+1) (x_(k+1)) | x_k] = B_k^⊤ g_(k+1) φ(z_k)\/σ_k$; and the mean control $bb(E)^* [ξ_k | x_k] =
B_k^⊤ g_(k+1) φ(z_k)\/(σ_k Φ(z_k))$ is bounded in no direction away from the constraint

:math:`g_k = (A_{T-1} \cdots A_k)^\top g`, :math:`z_k` the argument of :math:`\Phi`. The second is
the martingale loss: h_k is a conditional mean. The third is by parts. The ratio of Mills,
:math:`\varphi/\Phi \sim -z`, makes the last linear in the distance from the constraint.

Kind: equality.

Source: derived here; hard constraints by martingale and covariation losses are arXiv 2602.05533,
conditioning as a transform Doob 1957.

How it is measured: random affine chains in up to 5 dimensions: the martingale property and the
covariation by the trapezoidal rule along the one direction that matters; the losses on simulated
paths.

What would refute it: a residual above `ROUNDING` or 4 standard errors.
"""

from __future__ import annotations

import dataclasses

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verify.support import topics
from verify.support.affine_chains import AffineChain
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.quadratics import PLANE_QUADRATIC
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Hard constraint", topics.PATH_LAWS)
ROUNDING = 1e-9
PATHS, STDERRS, RESOLUTION = 40000, 4.0, 0.01
F64 = torch.float64


def normal(z: Tensor) -> tuple[Tensor, Tensor]:
    """Density and distribution function."""
    return torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5, torch.special.ndtr(z)


@dataclasses.dataclass(frozen=True, eq=False)
class Constraint:
    """``g . x_T >= c`` for a chain.

    Attributes:
        chain: without control.
        g: shape (n,).
        c: the level.
    """

    chain: AffineChain
    g: Tensor
    c: float

    def carried(self, k: int) -> Tensor:
        """``g_k``."""
        found = self.g
        for A in self.chain.A[k:].flip(0):
            found = A.mT @ found
        return found

    def spread(self, k: int) -> Tensor:
        """``sigma_k``."""
        parts = [self.chain.B[j].mT @ self.carried(j + 1) for j in range(k, self.chain.steps)]
        return torch.cat(parts).norm()

    def argument(self, k: int, x: Tensor) -> Tensor:
        """``z_k``, k < T."""
        mean = x
        for A, b in zip(self.chain.A[k:], self.chain.b[k:], strict=True):
            mean = mean @ A.mT + b
        return (mean @ self.g - self.c) / self.spread(k)

    def chance(self, k: int, x: Tensor) -> Tensor:
        """``h_k``, the event itself at k = T."""
        if k == self.chain.steps:
            return (x @ self.g >= self.c).to(x)
        return normal(self.argument(k, x))[1]

    def covariation(self, k: int, x: Tensor) -> Tensor:
        """``E[1_A xi_k | x_k]``."""
        return normal(self.argument(k, x))[0][:, None] * self.push(k)

    def push(self, k: int) -> Tensor:
        """``B_k^T g_{k+1} / sigma_k``."""
        return self.chain.B[k].mT @ self.carried(k + 1) / self.spread(k)

    def control(self, k: int, x: Tensor) -> Tensor:
        """``E*[xi_k | x_k]``."""
        z = self.argument(k, x)
        mills = normal(z)[0].log() - torch.special.log_ndtr(z)
        return mills.exp()[:, None] * self.push(k)

    def moved(self, k: int, x: Tensor, noise: Tensor) -> Tensor:
        """One step without control."""
        return x @ self.chain.A[k].mT + self.chain.b[k] + noise @ self.chain.B[k].mT


def constraint(instance: QuadraticInstance, seed: int, level: float) -> Constraint:
    """On the instance's chain, in a random direction."""
    draw = torch.Generator().manual_seed(seed)
    g = torch.randn(instance.dim, generator=draw, dtype=F64)
    return Constraint(AffineChain.of(instance.problem(1.0)), g, level)


@settings(max_examples=25)
@given(quadratic_instances(steps=5), st.integers(0, 10**6), numbers(-1, 1))
def test_holds(instance: QuadraticInstance, seed: int, level: float) -> None:
    """Noise enters by its part along ``B^T g_{k+1}``, on which both means are integrals over a
    line; before the last step the integrand is smooth, at it a jump.
    """
    case = constraint(instance, seed, level)
    x = torch.randn(5, instance.dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    z = torch.linspace(-12, 12, 4001, dtype=F64)
    density = normal(z)[0] * (z[1] - z[0])
    for k in range(case.chain.steps - 1):
        push = case.chain.B[k].mT @ case.carried(k + 1)
        along = push / push.norm()
        there = case.moved(k, x[:, None], z[:, None] * along)
        chance = torch.stack([case.chance(k + 1, each) for each in there])
        where = instance.describe() | {"direction": seed, "c": level, "step": k}
        off = chance @ density - case.chance(k, x)
        CLAIM.equals(off, 0 * off, where, ROUNDING, "martingale")
        mean = (chance @ (density * z))[:, None] * along
        CLAIM.equals(mean - case.covariation(k, x), 0 * mean, where, ROUNDING, "covariation")
        arguments = torch.stack([case.argument(k + 1, each) for each in there])
        slope = (normal(arguments)[0] @ density) / case.spread(k + 1)
        right = slope[:, None] * push
        CLAIM.equals(mean - right, 0 * mean, where, ROUNDING, "by parts")
    last = case.chain.steps - 1
    push = case.chain.B[last].mT @ case.g
    edge = -case.argument(last, x)
    density, distribution = normal(edge)
    where = instance.describe() | {"direction": seed, "c": level, "step": last}
    off = 1 - distribution - case.chance(last, x)
    CLAIM.equals(off, 0 * off, where, ROUNDING, "last step, martingale")
    off = density[:, None] * push / push.norm() - case.covariation(last, x)
    CLAIM.equals(off, 0 * off, where, ROUNDING, "last step, covariation")


def simulated(case: Constraint) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """States, noises and whether the end is in A."""
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(PATHS, 2, generator=draw, dtype=F64)
    states, noises = [x], []
    for k in range(case.chain.steps):
        noises.append(torch.randn(PATHS, case.chain.B.shape[2], generator=draw, dtype=F64))
        states.append(case.moved(k, states[-1], noises[-1]))
    return states, noises, case.chance(case.chain.steps, states[-1])


def test_holds_for_losses() -> None:
    """Gradients of both losses vanish at the solution, in any direction; on simulated paths."""
    case = constraint(PLANE_QUADRATIC, 4, 0.5)
    states, noises, inside = simulated(case)
    for k in range(case.chain.steps):
        x = states[k]
        tests = torch.cat([torch.ones_like(x[:, :1]), x, torch.sin(2 * x)], 1)
        residual = (inside - case.chance(k, x))[:, None] * tests
        pushed = inside[:, None] * noises[k] - case.covariation(k, x)
        for name, samples in (
            ("martingale loss", residual),
            ("covariation loss", (pushed.unsqueeze(2) * tests.unsqueeze(1)).flatten(1)),
        ):
            stderr = samples.std(0) / PATHS**0.5
            where = PLANE_QUADRATIC.describe() | {"step": k, "stderr": float(stderr.max())}
            CLAIM.equals(samples.mean(0) / stderr, 0 * stderr, where, STDERRS, name)
            CLAIM.equals(float(stderr.max()), 0.0, where, RESOLUTION, "standard error")


def test_needs_the_conditional_mean() -> None:
    """With another level both losses have a slope."""
    case, wrong = constraint(PLANE_QUADRATIC, 4, 0.5), constraint(PLANE_QUADRATIC, 4, 1.5)
    states, noises, inside = simulated(case)
    pushed = wrong.covariation(1, states[1])
    for name, samples in (
        ("martingale loss", inside - wrong.chance(1, states[1])),
        ("covariation loss", (inside[:, None] * noises[1] - pushed).sum(1)),
    ):
        stderr = float(samples.std()) / PATHS**0.5
        CLAIM.breaks(abs(float(samples.mean())), STDERRS * stderr, PLANE_QUADRATIC, name)


def test_needs_a_soft_constraint_to_be_bounded() -> None:
    """The control grows as the distance from the constraint, and with a finite price it does not:
    for ``r = L min(g . x - c, 0)`` it is at most ``L |B^T g| / beta``.
    """
    case = constraint(PLANE_QUADRATIC, 4, 0.5)
    last = case.chain.steps - 1
    push = (case.chain.B[last].mT @ case.g).norm()
    for distance in (2.0, 6.0):
        far = -distance * case.carried(last) / case.carried(last).norm()
        far = far[None]
        z = case.argument(last, far)
        control = case.control(last, far).norm()
        where = PLANE_QUADRATIC.describe() | {"distance": distance}
        CLAIM.breaks(float(control), float(push), where, "soft constraint, L = beta")
        CLAIM.equals(float(control / -z), 1.0, where, 2 / float(z) ** 2, "ratio of Mills")
