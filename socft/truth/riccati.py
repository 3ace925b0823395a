r"""The continuous linear-quadratic problem: the backward Riccati equation in closed form."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import numbers, positive, require, zeros_or
from socft.reference import Noises, States


class ContinuousValue:
    r"""``V(t, x) = x' P(t) x / 2 + c(t)`` on [0, horizon]; made by `riccati`.

    With ``H = [[A, R], [F, -A']]``, ``R = B B' / beta``, the flow ``[X; Y]' = H [X; Y]`` carries
    ``P = Y X^{-1}``, so between nodes ``P`` is a fractional-linear map of its value at the next
    node: no time-stepping error.

    Attributes:
        horizon: the final time.
        nodes: times at which ``P`` is stored, shape (N + 1,).
    """

    def __init__(
        self, A: Tensor, B: Tensor, terminal: Tensor, running: Tensor, beta: float, horizon: float
    ):
        n = len(A)
        self.horizon, self.beta = horizon, beta
        self._B, self._H = (
            B,
            torch.cat([torch.cat([A, B @ B.mT / beta], 1), torch.cat([running, -A.mT], 1)]),
        )
        count = max(1, math.ceil(2 * float(torch.linalg.matrix_norm(self._H, 2)) * horizon))
        self.nodes = torch.linspace(0, horizon, count + 1, dtype=torch.float64)
        self._hessians = torch.empty(count + 1, n, n, dtype=torch.float64)
        self._constants = torch.zeros(count + 1, dtype=torch.float64)
        self._hessians[-1] = terminal
        for i in reversed(range(count)):
            self._hessians[i], gained = self._back(i + 1, float(self.nodes[i]))
            self._constants[i] = self._constants[i + 1] + gained

    def hessian(self, t: float) -> Float[Tensor, "n n"]:
        """``P(t)``, so that the gradient of the value is ``P(t) x``."""
        return self._back(self._next(t), t)[0]

    def constant(self, t: float) -> float:
        """``c(t)``, the integral of ``tr(B' P B) / 2`` from t to the horizon."""
        i = self._next(t)
        return float(self._constants[i]) + self._back(i, t)[1]

    def control(self, t: float, x: States) -> Noises:
        """The optimal ``u(t, x) = B' P(t) x / beta`` (not whitened: ``v = u sqrt(dt)``)."""
        return x @ (self.hessian(t) @ self._B / self.beta).to(x)

    def _next(self, t: float) -> int:
        require(0 <= t <= self.horizon, f"t = {t:g}; it must lie in [0, {self.horizon:g}].")
        return int(torch.searchsorted(self.nodes, t))

    def _back(self, i: int, t: float) -> tuple[Tensor, float]:
        """``P(t)`` and what ``c`` gains between t and node i, at most one node apart."""
        n, span = len(self._hessians[i]), float(self.nodes[i]) - t
        flow = torch.linalg.matrix_exp(-span * self._H)
        free, reach = flow[:n, :n], flow[:n, n:]
        X = free + reach @ self._hessians[i]
        room = torch.linalg.solve(
            free, X
        )  # I - G P with G >= 0 over so short a span: similar to a symmetric matrix
        least = float(torch.linalg.eigvals(room).real.min())
        require(
            least > 0,
            f"at beta = {self.beta:g} the value is infinite {self.horizon - t:.3g} or less before"
            f" the horizon of {self.horizon:g}; raise beta or shorten the horizon.",
        )
        P = torch.linalg.solve(X, flow[n:, :n] + flow[n:, n:] @ self._hessians[i], left=False)
        gained = (
            -self.beta
            / 2
            * (float(torch.linalg.slogdet(X).logabsdet) + span * float(self._H[:n, :n].trace()))
        )
        return (P + P.mT) / 2, gained


def riccati(
    A: Float[Tensor, "n n"],
    B: Float[Tensor, "n m"],
    terminal: Float[Tensor, "n n"],
    running: Float[Tensor, "n n"] | None = None,
    beta: float = 1.0,
    horizon: float = 1.0,
) -> ContinuousValue:
    r"""The value of ``dX = (A X + B u) dt + B dW``, reward ``x' terminal x / 2``, cost rate
    ``x' running x / 2 + beta |u|^2 / 2``.

    :math:`-\dot P = A^\top P + P A + P B B^\top P/\beta - F` with :math:`P` = terminal at the
    horizon, the limit of the discrete recursion with :math:`A_k = I + A\,dt`,
    :math:`B_k = B \sqrt{dt}`, :math:`F_k = F\,dt`.

    Raises:
        InvalidProblem: a shape does not fit, an entry or number is not finite and positive, or the
            value is infinite.
    """
    B = numbers(B, "B", ("n", "m"))
    n = len(B)
    A, terminal = numbers(A, "A", (n, n)), numbers(terminal, "terminal", (n, n))
    running = zeros_or(running, "running", (n, n))
    return ContinuousValue(
        A,
        B,
        (terminal + terminal.mT) / 2,
        (running + running.mT) / 2,
        positive(beta, "beta"),
        positive(horizon, "horizon"),
    )
