r"""One backward step of the linear-quadratic recursion, to the accuracy that its input allows.

The smoothed and enveloped value of :math:`V(x) = x^\top P x/2 + q^\top x`,
:math:`\sup_v V(m + B v) - \beta |v|^2/2 = m^\top W m/2 + r^\top m + \mathrm{const}`, has with
:math:`G = B B^\top / \beta`

.. math:: W = P (I - G P)^{-1} = P + P B (\beta I - B^\top P B)^{-1} B^\top P, \qquad
   r = (I - P G)^{-1} q .

The sum is a difference where P is strongly negative along the noise, and so is :math:`I - P G`
where the noise is degenerate. There the negative part :math:`-N N^\top` of :math:`P = -N N^\top +
R R^\top` comes first: with the singular values s of :math:`N^\top B / \sqrt\beta = U s V^\top` it
alone has :math:`W_- = -N U (1 + s^2)^{-1} U^\top N^\top`, moves the mean by
:math:`M = (I + G N N^\top)^{-1}` and leaves the control room for
:math:`G_- = B V (1 + s^2)^{-1} V^\top B^\top / \beta`; then
:math:`W = W_- + M^\top R (I - R^\top G_- R)^{-1} R^\top M`, a sum of terms that are all to
rounding.
Derived here.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Envelope:
    """``W`` and ``r``, and the maximiser ``v = gain m + shift``: it is ``B' (W m + r) / beta``, but
    where the noise is degenerate that product would cancel.
    """

    W: Float[Tensor, "n n"]
    r: Float[Tensor, " n"]
    gain: Float[Tensor, "m n"]
    shift: Float[Tensor, " m"]


def envelope(
    P: Float[Tensor, "n n"], q: Float[Tensor, " n"], B: Float[Tensor, "n m"], beta: Tensor
) -> Envelope | None:
    """One step; None where the supremum is infinite."""
    half = B.mT @ P
    E = half @ B
    if float(torch.linalg.matrix_norm(E)) > float(beta):
        return _by_parts(P, q, B / beta.sqrt(), beta.sqrt())
    factor, failed = torch.linalg.cholesky_ex(torch.diag(beta.expand(len(E))) - E)
    if failed:
        return None
    right = torch.cat([half, (q @ B).unsqueeze(1)], 1)
    raised = torch.linalg.solve_triangular(factor, right, upper=False)
    steered = torch.linalg.solve_triangular(factor.mT, raised, upper=True)
    lifted, pulled = raised[:, :-1], raised[:, -1]
    W = torch.addmm(P, lifted.mT, lifted)
    return Envelope(W, q + pulled @ lifted, steered[:, :-1], steered[:, -1])


def _by_parts(
    P: Float[Tensor, "n n"], q: Float[Tensor, " n"], B: Float[Tensor, "n m"], unit: Tensor
) -> Envelope | None:
    """The negative part of P first, then the rest; B is in units of the root of beta, the unit."""
    spectrum, basis = torch.linalg.eigh(P)
    down, up = basis[:, spectrum < 0], basis[:, spectrum >= 0]
    fall, rise = (-spectrum[spectrum < 0]).sqrt(), spectrum[spectrum >= 0].sqrt()
    U, s, V = torch.linalg.svd((down * fall).mT @ B)
    kept, room = U.new_ones(len(U)), V.new_ones(len(V))
    kept[: len(s)], room[: len(s)] = 1 / (1 + s.square()), (1 + s.square()).rsqrt()
    lowered = (U.mT * fall) @ down.mT
    still = (U * kept) @ lowered / fall.unsqueeze(1)
    back = V[: len(s)].mT * (s / (1 + s.square())) @ lowered[: len(s)]
    moved = up.mT - up.mT @ B @ back
    reach = room.unsqueeze(1) * (V @ B.mT @ (up * rise))
    inner = torch.eye(len(rise), dtype=P.dtype) - reach.mT @ reach
    factor, failed = torch.linalg.cholesky_ex(inner)
    if failed:
        return None
    raised = torch.linalg.solve_triangular(factor, rise.unsqueeze(1) * moved, upper=False)
    W = raised.mT @ raised - (lowered.mT * kept) @ lowered
    given = room * (V @ (q @ B))
    gained = torch.cholesky_solve((given @ reach).unsqueeze(1), factor).squeeze(1)
    r = (q @ down) @ still + (q @ up + rise * gained) @ moved
    steered = torch.cat(
        [
            reach @ torch.linalg.solve_triangular(factor.mT, raised, upper=True),
            (given + reach @ gained).unsqueeze(1),
        ],
        1,
    )
    steered = (V.mT * room) @ steered / unit
    return Envelope((W + W.mT) / 2, r, steered[:, :-1] - back / unit, steered[:, -1])
