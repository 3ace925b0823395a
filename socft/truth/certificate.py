r"""How far the floating-point solution of a linear-quadratic problem is from the exact one, by
solving the problem again in ball arithmetic.

Every bound is a theorem about the numbers of the problem, taken to the last bit, plus what the
reference and the reward would change if their last bits were others: four times the effect of a
random change of every entry by :math:`2^{-52}`. Suprema are over the ellipsoids that hold all but
`TAIL` of the mass of the chain, under the exact optimum and under the computed one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import flint
import torch
from flint import arb, arb_mat
from jaxtyping import Float
from scipy.stats import chi2
from torch import Tensor

from socft.problem import ControlProblem
from socft.reference import ScalarDiffusion, SpectralMaps
from socft.reward import as_quadratic
from socft.truth.balls import (
    above,
    balls,
    columns,
    identity,
    is_sharp,
    log_det,
    norm,
    solution,
    stack,
)
from socft.truth.base import ErrorBounds
from socft.truth.quadratic import affine_of, running_of

TAIL = 1e-9
PRECISIONS = (320, 1280, 5120, 20480)
"""Bits, one after the other until the exact solution is sharp."""
SHARP = 120
"""Bits to which the exact solution must be known, normwise."""
LAST_BIT = 2.0**-52
UNLUCKY = 4.0
"""What the worst change of last bits does over what a random one does."""


@dataclasses.dataclass(frozen=True)
class _Numbers:
    """The problem as balls; lists have one entry per step."""

    A: list[arb_mat]
    B: list[arb_mat]
    b: list[arb_mat]
    beta: list[arb]
    F: list[arb_mat] | None
    h: list[arb_mat]
    P: arb_mat
    q: arb_mat
    c: arb
    mean: arb_mat
    root: arb_mat


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """Values ``x' P_k x / 2 + q_k . x + c_k``, k = 0..T, controls ``K_k x + o_k``, k = 0..T-1, and
    the objective.
    """

    P: list[arb_mat]
    q: list[arb_mat]
    c: list[arb]
    K: list[arb_mat]
    o: list[arb_mat]
    objective: arb


@dataclasses.dataclass(frozen=True)
class _Optimum(Coefficients):
    """The exact optimum, and what the exponential tilt has more at each step."""

    kernel: list[arb]


@dataclasses.dataclass(frozen=True)
class GapBounds:
    """Largest errors of the distances to the exponential tilt, from above.

    Attributes:
        kernel: of `LinearQuadratic.kernel_gap`, per step, shape (T,).
        memory: of `LinearQuadratic.memory_gap`; infinite where that is, or beta is not constant.
    """

    kernel: Float[Tensor, " steps"]
    memory: float


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Bounds of what the evaluation at a state in floating point adds."""

    control: float
    gradient: float
    value: float


@dataclasses.dataclass(frozen=True)
class _Ellipsoid:
    """``mean + root z`` with ``|z| <= radius``."""

    mean: arb_mat
    root: arb_mat
    radius: float

    @property
    def largest(self) -> Float[Tensor, " n"]:
        """The largest modulus of each coordinate."""
        return above(self.mean).squeeze(1) + self.radius * above(self.root).norm(dim=1)


def _jitter(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    """Change every entry by its last bit, at random."""

    def changed(values: Tensor) -> Tensor:
        sign = torch.randint(2, values.shape, generator=generator) * 2 - 1
        return values * (1 + LAST_BIT * sign.to(values))

    return changed


def _numbers(problem: ControlProblem, change: Callable[[Tensor], Tensor] | None) -> _Numbers:
    reference, form, (F, h) = affine_of(problem), as_quadratic(problem.reward), running_of(problem)
    touched = change or (lambda values: values)
    if change is None and isinstance(reference.maps, SpectralMaps):
        Q = balls(reference.maps.basis)
        A = [Q * balls(torch.diag(row)) * Q.transpose() for row in reference.maps.eigenvalues]
    else:
        A = [balls(matrix) for matrix in touched(reference.transition)]
    eye = identity(*reference.dims)
    B = (
        [eye * arb(s) for s in touched(reference.diffusion.sigma).tolist()]
        if isinstance(reference.diffusion, ScalarDiffusion)
        else [balls(matrix) for matrix in touched(reference.diffusion.matrices)]
    )
    P = touched(form.P).tril()
    return _Numbers(
        A=A,
        B=B,
        b=[balls(row) for row in touched(reference.offset)],
        beta=[arb(each) for each in problem.beta.tolist()],
        F=None if F is None else [balls(matrix) for matrix in F],
        h=[balls(row) for row in h],
        P=balls(P + P.tril(-1).mT),
        q=balls(touched(form.linear)),
        c=arb(float(form.c)),
        mean=balls(reference.initial_mean),
        root=balls(reference.initial_factor),
    )


def _optimum(numbers: _Numbers) -> _Optimum | None:
    """The recursion of `socft.truth.linear_quadratic`; None unless it is proven that the optimum
    is finite.
    """
    n, half = numbers.P.nrows(), arb(1) / 2
    P, q, c, K, o, kernel = [numbers.P], [numbers.q], [numbers.c], [], [], []
    for k in reversed(range(len(numbers.A))):
        A, B, b, beta = numbers.A[k], numbers.B[k], numbers.b[k], numbers.beta[k]
        E = B.transpose() * P[-1] * B
        volume = log_det(identity(B.ncols()) * beta - E)
        if volume is None:
            return None
        kernel.append((B.ncols() * beta.log() - volume) * beta * half - E.trace() * half)
        G = B * B.transpose() * (1 / beta)
        solved = solution(identity(n) - P[-1] * G, stack(P[-1], q[-1]))
        if solved is None:
            return None
        W, r = columns(solved, range(n)), columns(solved, range(n, n + 1))
        pushed = W * b + r
        pull = B.transpose() * (1 / beta)
        K.append(pull * W * A)
        o.append(pull * pushed)
        drift = (q[-1].transpose() * G * r + b.transpose() * (pushed + r))[0, 0]
        c.append(c[-1] + (E.trace() + drift) * half)
        square = A.transpose() * W * A
        square = (square + square.transpose()) * half
        P.append(square if numbers.F is None else square - numbers.F[k])
        q.append(A.transpose() * pushed - numbers.h[k])
    mean, root = numbers.mean, numbers.root
    spread = (root.transpose() * P[-1] * root).trace()
    objective = (mean.transpose() * (P[-1] * mean * half + q[-1]))[0, 0] + c[-1] + spread * half
    return _Optimum(P[::-1], q[::-1], c[::-1], K[::-1], o[::-1], objective, kernel[::-1])


def _exact(numbers: Callable[[], _Numbers]) -> _Optimum | None:
    """The optimum at the first precision that makes it sharp; sets the precision."""
    for bits in PRECISIONS:
        flint.ctx.prec = bits
        found = _optimum(numbers())
        if found is not None and all(is_sharp(M, SHARP) for M in (*found.K, *found.P, *found.q)):
            return found
    return None


def _regions(numbers: _Numbers, policy: Coefficients) -> list[_Ellipsoid]:
    """Where the chain has its mass under affine controls, k = 0..T."""
    n = numbers.P.nrows()
    radius = math.sqrt(float(chi2.isf(TAIL, n)))
    mean, covariance = numbers.mean, numbers.root * numbers.root.transpose()
    found = [_Ellipsoid(mean, numbers.root, radius)]
    for A, B, b, K, o in zip(numbers.A, numbers.B, numbers.b, policy.K, policy.o, strict=True):
        closed = A + B * K
        mean = closed * mean + b + B * o
        covariance = closed * covariance * closed.transpose() + B * B.transpose()
        found.append(_Ellipsoid(mean, _root(covariance), radius))
    return found


def _root(covariance: arb_mat) -> arb_mat:
    """A matrix R with ``R R' >= covariance``, to the accuracy of floating point."""
    size = above(covariance)
    scale = size.diagonal().sqrt()
    unit = torch.where(scale > 0, scale, 1.0)
    signs = torch.tensor([math.copysign(1.0, float(e.mid())) for e in covariance.entries()])
    correlation = signs.reshape(size.shape) * size / unit / unit.unsqueeze(1)
    if not bool(torch.isfinite(correlation).all()):
        return balls(torch.full_like(size, math.inf))
    spectrum, basis = torch.linalg.eigh((correlation + correlation.mT) / 2)
    return balls(unit.unsqueeze(1) * basis * (spectrum.clamp(min=0) + 1e-12).sqrt())


def _suprema(
    first: Coefficients, second: Coefficients, regions: list[_Ellipsoid]
) -> tuple[float, float, float]:
    """``sup`` over the regions of the distance of controls, gradients and values."""
    control, gradient, value = [], [], []
    for k, region in enumerate(regions):
        mean, root, radius = region.mean, region.root, region.radius
        if k < len(first.K):
            K, o = first.K[k] - second.K[k], first.o[k] - second.o[k]
            control.append(norm(K * mean + o) + radius * norm(K * root))
        P, q = first.P[k] - second.P[k], first.q[k] - second.q[k]
        slope = P * mean + q
        gradient.append(norm(slope) + radius * norm(P * root))
        centre = (mean.transpose() * (P * mean * (arb(1) / 2) + q))[0, 0]
        level = norm(arb_mat([[centre + first.c[k] - second.c[k]]]))
        bent = norm(root.transpose() * P * root)
        value.append(level + radius * norm(root.transpose() * slope) + radius**2 * bent / 2)
    return max(control), max(gradient), max(value)


def linear_quadratic_bounds(
    problem: ControlProblem,
    computed: Callable[[], Coefficients],
    rounding: Callable[[int, Float[Tensor, " n"]], Evaluated],
) -> ErrorBounds:
    """Bounds of the errors of a computed solution, infinite where none can be proven.

    Args:
        problem: a problem with a closed form.
        computed: makes the computed solution, exactly what is stored, at the current precision.
        rounding: what its evaluation adds at a step and states of given moduli.
    """
    change = _jitter(torch.Generator().manual_seed(0))
    touched = _numbers(problem, change)
    before = flint.ctx.prec
    try:
        exact = _exact(lambda: _numbers(problem, None))
        jittered = None if exact is None else _optimum(touched)
        if exact is None or jittered is None:
            return ErrorBounds(math.inf, math.inf, math.inf, math.inf)
        numbers, found = _numbers(problem, None), computed()
        regions = [*zip(_regions(numbers, exact), _regions(numbers, found), strict=True)]
        sides = [[pair[i] for pair in regions] for i in range(2)]
        off = [_largest(_suprema(found, exact, s) for s in sides)]
        off.append([UNLUCKY * e for e in _largest(_suprema(jittered, exact, s) for s in sides)])
        sizes = [(k, each.largest) for side in sides for k, each in enumerate(side)]
        off.append(_largest(dataclasses.astuple(rounding(k, x)) for k, x in sizes))
        missed = norm(arb_mat([[found.objective - exact.objective]]))
        moved = norm(arb_mat([[jittered.objective - exact.objective]]))
        sums = [sum(each) for each in zip(*off, strict=True)]
        bounds = [*sums, missed + UNLUCKY * moved]
        return ErrorBounds(*(math.inf if math.isnan(each) else each for each in bounds))
    finally:
        flint.ctx.prec = before


def _largest(found: Iterable[tuple[float, float, float]]) -> list[float]:
    return [max(each) for each in zip(*found, strict=True)]


def gap_bounds(
    problem: ControlProblem, kernel: Float[Tensor, " steps"], memory: float | None
) -> GapBounds:
    """Bounds of the errors of computed gaps; ``memory`` is None where there is none."""
    touched = _jitter(torch.Generator().manual_seed(0))
    infinite = GapBounds(torch.full_like(kernel, math.inf), math.inf)
    before = flint.ctx.prec
    try:
        exact = _exact(lambda: _numbers(problem, None))
        jittered = None if exact is None else _optimum(_numbers(problem, touched))
        if exact is None or jittered is None:
            return infinite
        rows = zip(kernel.tolist(), exact.kernel, jittered.kernel, strict=True)
        bounds = [_distance(arb(found), e, moved) for found, e, moved in rows]
        numbers, off = _numbers(problem, None), math.inf
        gap, moved = _memory(numbers, exact), _memory(numbers, jittered)
        if memory is not None and math.isfinite(memory) and gap is not None and moved is not None:
            off = _distance(arb(memory), gap, moved)
        return GapBounds(torch.tensor(bounds, dtype=torch.float64), off)
    finally:
        flint.ctx.prec = before


def _distance(found: arb, exact: arb, jittered: arb) -> float:
    return norm(arb_mat([[found - exact]])) + UNLUCKY * norm(arb_mat([[jittered - exact]]))


def _memory(numbers: _Numbers, optimum: Coefficients) -> arb | None:
    """The memory gap, None where it is infinite."""
    root, beta, half = numbers.root, numbers.beta[0], arb(1) / 2
    E = root.transpose() * optimum.P[0] * root * (1 / beta)
    slope = root.transpose() * (optimum.P[0] * numbers.mean + optimum.q[0])
    inner = identity(root.ncols()) - E
    volume = log_det(inner)
    solved = None if volume is None else solution(inner, slope)
    if volume is None or solved is None:
        return None
    lifted = (slope.transpose() * solved)[0, 0] / beta
    return (lifted - beta * (volume + E.trace())) * half
