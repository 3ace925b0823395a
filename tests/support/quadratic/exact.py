"""The linear-quadratic optimum in ball arithmetic, by a recursion of its own: one symmetric form in
``(x, v, 1)`` per step, from which v is eliminated by a Schur complement.

The numbers of a problem are taken as they are, to the last bit; the precision grows until every
result is known to 30 digits.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import flint
import torch
from flint import arb, arb_mat
from torch import Tensor

from socft.policy import AffinePolicy
from socft.problem import ControlProblem
from socft.reference import ScalarDiffusion, SpectralMaps
from socft.reward import as_quadratic
from socft.truth.quadratic import affine_of, running_of

ENOUGH = 100
"""Bits to which results are known."""
MOST = 40_000
EVALUATED = 4096


def balls(values: Tensor) -> arb_mat:
    """A matrix of exact balls; a vector becomes a column."""
    table = values.unsqueeze(1) if values.ndim == 1 else values
    return arb_mat([[arb(entry) for entry in row] for row in table.tolist()])


def block(rows: list[list[arb_mat]]) -> arb_mat:
    return arb_mat(
        [
            list(itertools.chain.from_iterable(part.tolist()[i] for part in row))
            for row in rows
            for i in range(row[0].nrows())
        ]
    )


def part(matrix: arb_mat, rows: range, columns: range) -> arb_mat:
    return arb_mat([[matrix[i, j] for j in columns] for i in rows])


def zeros(rows: int, columns: int) -> arb_mat:
    return arb_mat(rows, columns, [arb(0)] * (rows * columns))


def identity(n: int) -> arb_mat:
    return balls(torch.eye(n, dtype=torch.float64))


@dataclasses.dataclass(frozen=True)
class ExactProblem:
    """A problem's numbers as balls; `transition` may be given for its own."""

    A: list[arb_mat]
    B: list[arb_mat]
    b: list[arb_mat]
    beta: list[arb]
    F: list[arb_mat]
    h: list[arb_mat]
    P: arb_mat
    q: arb_mat
    c: arb
    mean: arb_mat
    root: arb_mat

    @classmethod
    def of(cls, problem: ControlProblem) -> ExactProblem:
        reference, form, (F, h) = (
            affine_of(problem),
            as_quadratic(problem.reward),
            running_of(problem),
        )
        (n,), steps = reference.dims, problem.steps
        if isinstance(reference.maps, SpectralMaps):
            Q = balls(reference.maps.basis)
            A = [Q * balls(torch.diag(row)) * Q.transpose() for row in reference.maps.eigenvalues]
        else:
            A = [balls(matrix) for matrix in reference.transition]
        B = (
            [identity(n) * arb(s) for s in reference.diffusion.sigma.tolist()]
            if isinstance(reference.diffusion, ScalarDiffusion)
            else [balls(matrix) for matrix in reference.diffusion.matrices]
        )
        return cls(
            A=A,
            B=B,
            b=[balls(row) for row in reference.offset],
            beta=[arb(each) for each in problem.beta.tolist()],
            F=[zeros(n, n)] * steps if F is None else [balls(matrix) for matrix in F],
            h=[balls(row) for row in h],
            P=balls(form.P),
            q=balls(form.linear),
            c=arb(float(form.c)),
            mean=balls(reference.initial_mean),
            root=balls(reference.initial_factor),
        )


@dataclasses.dataclass(frozen=True)
class ExactOptimum:
    """The value ``[x; 1]' V_k [x; 1] / 2``, k = 0..T, the control ``K_k [x; 1]``, k = 0..T-1, and
    ``log det (I - B' P_{k+1} B / beta)`` with ``tr B' P_{k+1} B / beta``.
    """

    value: list[arb_mat]
    control: list[arb_mat]
    log_det: list[arb]
    trace: list[arb]
    objective: arb
    memory: arb | None

    def gradient(self, k: int, x: Tensor) -> list[arb]:
        return _affine(part(self.value[k], range(len(x)), range(len(x) + 1)), x)

    def control_at(self, k: int, x: Tensor) -> list[arb]:
        return _affine(self.control[k], x)

    def value_at(self, k: int, x: Tensor) -> arb:
        with flint.ctx.workprec(EVALUATED):
            z = block([[balls(x)], [arb_mat([[arb(1)]])]])
            return (z.transpose() * self.value[k] * z)[0, 0] / 2

    @property
    def bits(self) -> float:
        entries = itertools.chain.from_iterable(
            m.entries() for m in (*self.value, *self.control, arb_mat([[self.objective]]))
        )
        return min((each.rel_accuracy_bits() for each in entries if each != 0), default=math.inf)


def _affine(matrix: arb_mat, x: Tensor) -> list[arb]:
    with flint.ctx.workprec(EVALUATED):
        return (matrix * block([[balls(x)], [arb_mat([[arb(1)]])]])).entries()


def pivots(matrix: arb_mat) -> list[arb]:
    """Of symmetric elimination; all positive iff positive definite."""
    rows = matrix.tolist()
    found = []
    for i in range(len(rows)):
        found.append(rows[i][i])
        for j in range(i + 1, len(rows)):
            factor = rows[j][i] / rows[i][i]
            for column in range(i, len(rows)):
                rows[j][column] -= factor * rows[i][column]
    return found


def _solve(problem: ExactProblem) -> ExactOptimum | None:
    n = problem.P.nrows()
    V = block([[problem.P, problem.q], [problem.q.transpose(), arb_mat([[2 * problem.c]])]])
    value, control, log_det, trace = [V], [], [], []
    for k in reversed(range(len(problem.beta))):
        B, beta, m = problem.B[k], problem.beta[k], problem.B[k].ncols()
        last = arb_mat([[arb(0)] * n + [arb(0)] * m + [arb(1)]])
        M = block([[problem.A[k], B, problem.b[k]]])
        M = block([[M], [last]])
        E = B.transpose() * part(V, range(n), range(n)) * B
        H = M.transpose() * V * M
        inner = identity(m) * beta - E
        found = pivots(inner)
        if not all(each > 0 for each in found):
            return None
        log_det.append(sum((each / beta).log() for each in found))
        trace.append(E.trace() / beta)
        free = [*range(n), n + m]
        Hzv = arb_mat([[H[i, j] for j in range(n, n + m)] for i in free])
        Hzz = arb_mat([[H[i, j] for j in free] for i in free])
        K = inner.solve(Hzv.transpose())
        cost = block([[problem.F[k], problem.h[k]], [problem.h[k].transpose(), zeros(1, 1)]])
        V = Hzz + Hzv * K - cost
        V[n, n] = V[n, n] + E.trace()
        V = (V + V.transpose()) / 2
        value.append(V)
        control.append(K)
    z = block([[problem.mean], [arb_mat([[arb(1)]])]])
    spread = (problem.root.transpose() * part(V, range(n), range(n)) * problem.root).trace()
    objective = ((z.transpose() * V * z)[0, 0] + spread) / 2
    memory = _memory(V, problem, objective)
    return ExactOptimum(value[::-1], control[::-1], log_det[::-1], trace[::-1], objective, memory)


def _memory(V: arb_mat, problem: ExactProblem, objective: arb) -> arb | None:
    """``beta log E exp(V_0(X_0) / beta) - E V_0(X_0)``, by the integral of the form in ``(z, 1)``
    over standard normal z; of the value itself it is that of the Gibbs value up to a constant.
    """
    n, beta = problem.P.nrows(), problem.beta[0]
    start = block([[problem.root, problem.mean], [zeros(1, n), identity(1)]])
    form = start.transpose() * V * start * (1 / beta)
    inner = identity(n) - part(form, range(n), range(n))
    found = pivots(inner)
    if not all(each > 0 for each in found):
        return None
    slope = part(form, range(n), range(n, n + 1))
    lifted = (slope.transpose() * inner.solve(slope))[0, 0]
    log_mass = (form[n, n] + lifted - sum((each.log() for each in found), arb(0))) / 2
    return beta * log_mass - objective


def exact_optimum(problem: ControlProblem, prec: int = 512) -> ExactOptimum | None:
    """The optimum to 30 digits in every entry, None where it is infinite (or too close to tell)."""
    while prec <= MOST:
        with flint.ctx.workprec(prec):
            try:
                found = _solve(ExactProblem.of(problem))
            except ZeroDivisionError:  # not proven regular at this precision
                found = None
            if found is not None and (found.bits >= ENOUGH or prec * 4 > MOST):
                return found
        prec *= 4
    return None


def deviation(found: Tensor, exact: list[arb]) -> float:
    """``|found - exact|``, from above."""
    with flint.ctx.workprec(EVALUATED):
        total = sum(((arb(f) - e) ** 2 for f, e in zip(found.tolist(), exact, strict=True)), arb(0))
        return float(arb(total.abs_upper()).sqrt()) if total.is_finite() else math.inf


__all__ = ["AffinePolicy", "ExactOptimum", "balls", "deviation", "exact_optimum"]
