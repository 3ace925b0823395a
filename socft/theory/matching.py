r"""Convergence of adjoint matching's sweeps over all steps at once (derived here).

A sweep replaces the control of every step by the conditional mean of its target along paths of the
current policy, relaxed by theta:

.. math:: v^{n+1}_k = (1 - \theta) v^n_k + \theta P(v^n)_k, \qquad P(v)_k(x) = B_k^\top (G_k
   \alpha_{k+1})(\bar x_k(x))/\beta_k, \qquad \alpha_k(x) = \nabla m_k(x)^\top (G_k
   \alpha_{k+1})(\bar x_k(x)),

with lean costates, :math:`\alpha_T = \nabla r`, :math:`\bar x_k = m_k + B_k v_k`, :math:`(G_k f)(y)
= E f(y + B_k \xi)`. A running cost cancels in all that follows.

**Theorem.** Let the optimum's smoothed curvature have its spectrum in :math:`[-K^-_{k+1},
K^+_{k+1}]`, that is of :math:`\nabla^2 G_k V^*_{k+1}`, and :math:`|\nabla m_k| \le M_k`. Let
:math:`a_k = |B_k|^2 K^+_{k+1}/\beta_k`, :math:`b_k = |B_k|^2 K^-_{k+1}/\beta_k` and :math:`e^n_k =
\sup|v^n_k - v^*_k|`. Then, from any policy at finite distance and entry by entry,

.. math:: e^{n+1} \le N e^n, \qquad N_{kk} = q_k = \max\{|1 - \theta(1 - a_k)|, |1 - \theta(1 +
   b_k)|\}, \qquad N_{kj} = \theta \frac{|B_k|}{\beta_k} M_{k+1} \cdots M_j K_{j+1} |B_j| \quad (j
   > k),

with K the larger of the two, and zero for j < k. So sweeps converge wherever all :math:`q_k < 1`,
eventually like :math:`\max_k q_k`.

*Proof.* :math:`\alpha^{v^*} = \nabla V^*` by the envelope identity (34) of arXiv 2412.18164v4. With
:math:`\delta = v - v^*` and :math:`\varepsilon_k = \sup|\alpha_k - \nabla V^*_k|`,

.. math:: (G\alpha_{k+1})(\bar x_k) - (\nabla G V^*_{k+1})(\bar x^*_k) = G(\alpha_{k+1} - \nabla
   V^*_{k+1})(\bar x_k) + \bar H B_k \delta_k, \qquad \bar H = \int_0^1 \nabla^2 (G V^*_{k+1})(\bar
   x^*_k + t B_k\delta_k)\, dt ,

of which the first is at most :math:`\varepsilon_{k+1}` and :math:`\bar H` is symmetric with its
spectrum in the stated interval. Hence :math:`\varepsilon_k \le M_k (\varepsilon_{k+1} + K_{k+1}
|B_k| e_k)`, which unrolls to the sum in N, and the new error is :math:`((1 - \theta) I + \theta
B_k^\top \bar H B_k/\beta_k)\delta_k` plus at most :math:`\theta |B_k| \varepsilon_{k+1}/\beta_k`.

**Super-exponential.** Let theta = 1, :math:`w_k = |B_k|^2 K_{k+1}/\beta_k` and :math:`D_k =
|B_k|/(\beta_k M_1 \cdots M_k)`. Then, with the complete homogeneous symmetric polynomial
:math:`h_n` of degree n, the sum of all monomials of that degree,

.. math:: e^n_k/D_k \le h_n(w_k, \dots, w_{T-1}) \max_{j \ge k} e^0_j/D_j ,

since :math:`N_{kj} = D_k w_j/D_j` for j >= k, so that :math:`(N^n e^0)_k` is D_k times a sum over
:math:`k \le j_1 \le \dots \le j_n` of :math:`w_{j_1} \cdots w_{j_n} e^0_{j_n}/D_{j_n}`. For short
steps the weights are O(1/T), and :math:`h_n \to C^n/n!` with their sum C, :math:`\int \sigma^2
K/\beta\, dt`: sweeps converge faster than any geometric rate. At fixed T, :math:`h_{n+1}/h_n` falls
to :math:`\max w` in the end; T equal weights give :math:`h_n = (C/T)^n \binom{n + T - 1}{n}`.

**Spectrum.** At v* the derivative of P is block upper triangular, :math:`P(v)_k` depending on
:math:`v_j`, j >= k, alone, and its diagonal blocks multiply :math:`\delta_k(x)` by the symmetric
:math:`B_k^\top \nabla^2(G_k V^*_{k+1})(\bar x^*_k(x)) B_k/\beta_k`, since :math:`\alpha_{k+1}` does
not see :math:`v_k`. On bounded continuous controls the spectrum of such a multiplication is the
closure of the eigenvalues of the matrices, which is real; a triangular operator whose diagonal
blocks have spectra without holes has their union as its spectrum. So the local rate is the largest
:math:`\max\{a_k, b_k\}` of the exact curvature, whatever stands off the diagonal.
"""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, numbers, per_step, require, require_each, require_kinds, whole
from socft.theory.numbers import positive_beta
from socft.theory.relaxation import UNDAMPED, FixedRelaxation


@dataclasses.dataclass(frozen=True, kw_only=True)
class MatchingSweeps:
    """What the theorem knows of a problem; every tensor has the shape (T,).

    Attributes:
        mean: Lipschitz constants M of the mean maps.
        noise: norms of ``B_k``.
        beta: KL weights.
        up: largest eigenvalues of the smoothed curvature of the optimum's next value, at least 0.
        down: minus the smallest ones, at least 0.
        relaxation: of the sweeps.
    """

    mean: Float[Tensor, " steps"]
    noise: Float[Tensor, " steps"]
    beta: Float[Tensor, " steps"]
    up: Float[Tensor, " steps"]
    down: Float[Tensor, " steps"]
    relaxation: FixedRelaxation = UNDAMPED

    def __post_init__(self) -> None:
        require_kinds(self, relaxation=FixedRelaxation)
        steps = len(numbers(self.mean, "mean", ("steps",)))
        require(steps > 0, "mean has shape (0,); give one constant per step.")
        keep(self, beta=positive_beta(self.beta, steps))
        for name in ("mean", "noise", "up", "down"):
            values = per_step(getattr(self, name), steps, name)
            remedy = "norms and both sides of a spectrum are at least 0."
            require_each(values, lambda x: x >= 0, name, remedy)
            keep(self, **{name: values})

    @property
    def rates(self) -> Float[Tensor, " steps"]:
        """``q_k``; tight, by quadratic rewards."""
        theta, rho = self.relaxation.theta, self.noise.square() / self.beta
        slow, fast = 1 - theta * (1 - rho * self.up), 1 - theta * (1 + rho * self.down)
        return torch.maximum(slow.abs(), fast.abs())

    @property
    def matrix(self) -> Float[Tensor, "steps steps"]:
        """N; tight, by convex quadratic rewards and increasing mean maps in one dimension."""
        T, theta = len(self.beta), self.relaxation.theta
        curvature = torch.maximum(self.up, self.down) * self.noise
        found = torch.diag(self.rates)
        for k in range(T):
            carried = theta * self.noise[k] / self.beta[k]
            for j in range(k + 1, T):
                carried = carried * self.mean[j]
                found[k, j] = carried * curvature[j]
        return found

    def errors(self, start: Float[Tensor, " steps"], sweeps: int) -> Float[Tensor, " steps"]:
        """Bound of the errors after some sweeps, from those before; tight, as `matrix`."""
        before = numbers(start, "start", (len(self.beta),))
        return torch.linalg.matrix_power(self.matrix, whole(sweeps, "sweeps", 0)) @ before

    @property
    def weights(self) -> Float[Tensor, " steps"]:
        """``w_k = |B_k|^2 K_{k+1} / beta_k``."""
        return self.noise.square() * torch.maximum(self.up, self.down) / self.beta

    @property
    def scale(self) -> Float[Tensor, " steps"]:
        """``D_k``, the units in which errors of undamped sweeps add up."""
        carried = torch.cat([torch.ones_like(self.mean[:1]), self.mean[1:]]).cumprod(0)
        return self.noise / (self.beta * carried)

    def decay(self, sweeps: int) -> Float[Tensor, " steps"]:
        """``h_n(w_k, .., w_{T-1})`` for every k; tight, as `matrix`."""
        found = torch.ones_like(self.weights)
        for _ in range(whole(sweeps, "sweeps", 0)):
            found = (self.weights * found).flip(0).cumsum(0).flip(0)
        return found
