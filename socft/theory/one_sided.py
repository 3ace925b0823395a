r"""One step of the backward recursion with one-sided constants, with complete proofs.

**Setting.** :math:`V = V_{t+1}` is a value function, optimal or of an iterate, with :math:`|\nabla
V| \le L_0` and :math:`-h^- I \le \nabla^2 V \le h^+ I`; G is its smoothing with :math:`\sigma W`, m
the mean map, A its Jacobian, :math:`|A| \le M`, and A is N-Lipschitz. Write :math:`g = \nabla G V`,
:math:`H = \nabla^2 G V`, whose spectrum lies in :math:`[-K^-, K^+]` (`Smoothness.smoothed`), T for
a bound of :math:`|D^3 G V|`, :math:`\rho = \sigma^2/\beta`, :math:`a = \rho K^+`, :math:`b = \rho
K^-`.

**Optimal values.** If a < 1, :math:`\Phi(x, \delta) = G V(x + \delta) - |\delta|^2/(2\rho)` is
strongly concave in :math:`\delta` with modulus :math:`(1-a)/\rho`. Its maximiser solves
:math:`\delta^* = \rho\, g(x + \delta^*)`, so :math:`J^* = \partial\delta^*/\partial x = \rho H (I -
\rho H)^{-1}`, and the envelope :math:`E^* = \max_\delta \Phi` has :math:`\nabla E^* =
g(x+\delta^*)`, :math:`\nabla^2 E^* = H (I - \rho H)^{-1}`, whose spectrum lies in
:math:`[-K^-/(1+b),\, K^+/(1-a)]` as :math:`\lambda/(1-\rho\lambda)` increases. With :math:`V^*_t =
E^* \circ m`, :math:`\nabla^2 V_t^* = A^\top \nabla^2 E^* A + \sum_i \partial_i E^*\, \nabla^2 m_i`,
and so

.. math:: L_0' = M L_0, \qquad h'^{\pm} = N L_0 + M^2 \frac{K^\pm}{1 \mp \rho K^\pm} .

Positive curvature alone is amplified, and only by it can the maximum be ill posed; a concave reward
is well posed for every beta.

**Updates.** :math:`\delta_0 = 0`, :math:`\delta_{j+1} = (1-\theta)\delta_j + \theta\rho\, g_j`,
:math:`g_j = g(x + \delta_j)`, :math:`q < 1` their rate (`Relaxation`).

1. The residual :math:`\epsilon_j = \rho g_j - \delta_j` obeys :math:`\epsilon_{j+1} = \epsilon_j -
   \theta\epsilon_j + \rho(g_{j+1} - g_j) = ((1-\theta) I + \theta\rho\bar H)\epsilon_j`, because
   :math:`\delta_{j+1} - \delta_j = \theta\epsilon_j`, with a mean :math:`\bar H` of H on the
   segment. So :math:`|\epsilon_m| \le q^m \rho L_0`.
2. :math:`J_m = \partial\delta_m/\partial x` obeys :math:`J_{m+1} = B_m J_m + \theta\rho H_m` with
   :math:`B_m = (1-\theta)I + \theta\rho H_m`, that is :math:`I + J_{m+1} = B_m (I + J_m) + \theta
   I`. So :math:`|J_m| \le \theta \max(a,b) (1-q^m)/(1-q)` and :math:`|I + J_m| \le q^m + \theta
   (1-q^m)/(1-q) \le \theta/(1-q)`, as :math:`1 - q \le \theta(1-a) \le \theta`.
3. Differentiating once more, :math:`|D J_{m+1}| \le q |D J_m| + \theta\rho T |I + J_m|^2`, so
   :math:`|D J_m| \le (1-q^m)\, \theta\rho T \theta^2/(1-q)^3`.

**Values of iterates.** :math:`E_m(x) = \Phi(x, \delta_m(x))` has the gradient :math:`F_m = g_m +
J_m^\top \epsilon_m/\rho`, hence :math:`|F_m| \le (1 + o_m) L_0` with :math:`o_m = q^m |J_m|`, and
the Hessian

.. math:: (I + J_m)^\top H_m (I + J_m) - J_m^\top J_m/\rho + D J_m \cdot \epsilon_m/\rho .

The last term is at most :math:`R_m = q^m |D J_m| L_0`. In the others put :math:`w = J_m v`:
:math:`(v+w)^\top H_m (v+w) - |w|^2/\rho` is a quadratic in w with the maximum :math:`v^\top H_m (I
- \rho H_m)^{-1} v` at :math:`w = J^*_m v`, :math:`J^*_m = \rho H_m (I - \rho H_m)^{-1}`, and the
second derivative :math:`-2(I/\rho - H_m)`. So they are at most :math:`K^+/(1-a)` and at least
:math:`-K^-/(1+b) - S_m`, :math:`S_m = (1/\rho + K^-) |J_m - J^*_m|^2`. As :math:`J^*_{m-1}` is the
fixed point of :math:`J \mapsto B_{m-1} J + \theta\rho H_{m-1}` and :math:`J^*_m - J^*_{m-1} = (I -
\rho H_m)^{-1} \rho (H_m - H_{m-1}) (I - \rho H_{m-1})^{-1}`,

.. math:: |J_m - J^*_m| \le q |J_{m-1} - J^*_{m-1}| + \frac{\theta \rho^2 T q^{m-1} L_0}{(1-a)^2},
   \qquad |J_0^*| \le \max\Big(\frac{a}{1-a}, \frac{b}{1+b}\Big) .

For m = 0, :math:`E_0 = G V`, so that :math:`K^+` takes the place of :math:`K^+/(1-a)` and
:math:`S_0 = K^- - K^-/(1+b)`; and always :math:`S_m \le K^-
|I+J_m|^2 + |J_m|^2/\rho - K^-/(1+b)`. Everything that :math:`o_m`, :math:`R_m` and :math:`S_m` add
to the optimum's constants is :math:`O(m q^m)`.

**Errors of gradients.** Let :math:`\bar\delta` be the fixed point for this V, :math:`\bar g =
\bar\delta/\rho` and :math:`\bar H` the smoothed gradient and Hessian there, :math:`\bar J` its
Jacobian, :math:`e = \delta_m - \bar\delta`, :math:`\tilde H` the mean of H between, :math:`|e| \le
q^m\rho L_0`. Then :math:`g_m - \bar g = \tilde H e` and :math:`\epsilon_m = -(I - \rho\tilde H)e`,
and since :math:`\bar J = (I + \bar J)\rho\bar H`,

.. math:: F_m - \bar g = \tfrac1\rho \big[ (I + \bar J)\, \rho (\tilde H - \bar H) - (J_m - \bar
   J)^\top (I - \rho\tilde H) \big] e .

With :math:`|\tilde H - \bar H| \le T|e|/2`, :math:`|I + \bar J| \le 1/(1-a)`, :math:`|I -
\rho\tilde H| \le 1 + b` and, from :math:`J_{m+1} - \bar J = B_m (J_m - \bar J) + \theta\rho (H_m -
\bar H)(I + \bar J)`, :math:`|J_m - \bar J| \le j_m = q^m |\bar J| + m q^{m-1} \theta\rho^2 T
L_0/(1-a)`,

.. math:: |F_m - \bar g| \le q^m L_0 \Big( \frac{\rho^2 T q^m L_0}{2(1-a)} + (1+b) j_m \Big) .

Finally, changing the value function in front from V to the optimal V* changes :math:`\bar g` by at
most :math:`\tilde\varepsilon/(1-a)`, :math:`\tilde\varepsilon = \sup|\nabla G(V - V^*)|`: the two
maximisers differ by :math:`d`, :math:`(I - \rho\tilde H) d = \rho\nabla G(V - V^*)` with a
symmetric mean :math:`\tilde H \le K^+ I` of H.

**Errors of values.** Smoothing and envelope are monotone and commute with constants, so that
:math:`v_t = \sup(V^*_t - V_t^{(m)})` is at most :math:`v_{t+1}` plus :math:`\Phi(x, \bar\delta) -
\Phi(x, \delta_m)`, which is at most :math:`(1+b)|e|^2/(2\rho)` and at most :math:`|\epsilon_m|^2/
(2\rho(1-a))`, that is :math:`\min(1+b, 1/(1-a))\, q^{2m} \rho L_0^2/2`. It starts at :math:`\Phi(x,
\bar\delta) - G V(x) \le L_0|\bar\delta| - |\bar\delta|^2/(2\rho) \le \rho L_0^2/2` and an update
with :math:`\theta(1+b) < 2` never raises it. **Errors of values are added up, never multiplied**:
the value of PI-FT falls short of the optimum by at most the sum of all steps. Their smoothing in
turn bounds gradients, curvatures and third derivatives of iterates by the optimum's
(`Approximation`), so that no error of an iterate is carried along the chain through products
either.

For the strong concavity of :math:`\Phi` with V* and the performance difference along the paths of
PI-FT's own policy, :math:`E \sum_t (1 - a^*_t) |\delta_t - \delta^*_t|^2/(2\rho_t) \le J^* - J`.

Derived here. One-sided Lipschitz bounds of scores and of transport maps along heat flows are known
(arXiv 2201.01382, 2311.11475, 2506.19559), and so is how a Moreau envelope changes curvature.
"""

from __future__ import annotations

import dataclasses

from socft.theory.numbers import product
from socft.theory.one_step import geometric_peak
from socft.theory.relaxation import Relaxation
from socft.theory.smoothness import Approximation, Smoothed, Smoothness


@dataclasses.dataclass(frozen=True)
class MeanMap:
    """Lipschitz constants of one step's mean map, M, and of its Jacobian, N."""

    L0: float
    L1: float


@dataclasses.dataclass(frozen=True)
class InnerLoop:
    """The inner iteration of one step; where ``rounds`` is None, bounds hold for all numbers of
    updates from 1 on.

    Attributes:
        smooth: bounds of the smoothed value function in front.
        rho: ``sigma^2 / beta``.
        relaxation: how far an update goes.
        rounds: m, the number of updates.
    """

    smooth: Smoothed
    rho: float
    relaxation: Relaxation
    rounds: int | None = None

    @property
    def a(self) -> float:
        """``rho K+``."""
        return self.rho * self.smooth.up

    @property
    def b(self) -> float:
        """``rho K-``."""
        return self.rho * self.smooth.down

    @property
    def theta(self) -> float:
        """The relaxation factor."""
        return self.relaxation.factor(self.a, self.b)

    @property
    def rate(self) -> float:
        """q, by which an update contracts."""
        return self.relaxation.rate(self.a, self.b)

    @property
    def stretch(self) -> float:
        """Of ``|I + J_m|``, ``theta / (1 - q)``."""
        return self.relaxation.stretch(self.a, self.b)

    @property
    def finished_jacobian(self) -> float:
        """Of ``|J*|``, ``max(a / (1 - a), b / (1 + b))``; tight."""
        return max(self.a / (1 - self.a), self.b / (1 + self.b))

    @property
    def jacobian(self) -> float:
        """Of ``|J_m|``, ``theta max(a, b) / (1 - q)``, or 1 more than `stretch` if that is less."""
        return min(self.stretch * max(self.a, self.b), self.stretch + 1)

    @property
    def finished_bend(self) -> float:
        """Of ``|D J*|``, ``rho T / (1 - a)^3``."""
        return self.rho * self.smooth.third / (1 - self.a) ** 3

    @property
    def bend(self) -> float:
        """Of ``|D J_m|``, ``rho T (theta / (1 - q))^3``."""
        return self.rho * self.smooth.third * self.stretch**3

    @property
    def overshoot(self) -> float:
        """``o_m = q^m |J_m|``, by how much the value of an unfinished iterate may be steeper."""
        left = self._left
        steep = self.stretch * max(self.a, self.b) * self._unfinished
        return min(steep, (self.stretch + 1) * left)

    @property
    def residual_bend(self) -> float:
        """``R_m = q^m |D J_m| L0``, its Hessian's share of the unfinished residual."""
        return product(self.bend, self._unfinished, self.smooth.L0)

    @property
    def finished_up(self) -> float:
        """``K+ / (1 - a)``, the largest eigenvalue that an iterate's value tends to; K+ for m = 0,
        where it is G V.
        """
        return self.smooth.up if self.rounds == 0 else self.smooth.up / (1 - self.a)

    @property
    def sag(self) -> float:
        """``S_m``, by how much ``-K- / (1 + b)`` may be undercut."""
        if self.rho == 0:
            return 0.0
        finished = self.smooth.down / (1 + self.b)
        if self.rounds == 0:
            return self.smooth.down - finished
        error = self._decaying(self.rho * self._drift / (1 - self.a) ** 2)
        crude = self.smooth.down * self.stretch**2 + self.jacobian**2 / self.rho - finished
        return min(product(1 / self.rho + self.smooth.down, error, error), crude)

    @property
    def gradient_error(self) -> float:
        """``|F_m - g|``: what m updates leave of the error of an envelope's gradient."""
        steepest = self.smooth.L0
        if self.rounds == 0:
            return product(max(self.a, self.b), steepest)
        q, drift = self.rate, self.rho * self._drift / (1 - self.a)
        fixed = product(q, drift / self.theta / 2 + (1 + self.b) * self.finished_jacobian)
        growing = (1 + self.b) * drift
        if self.rounds is None:
            peak = geometric_peak(1 - q * q, fixed + growing, growing)
            return product(q, max(fixed + growing, peak), steepest)
        m = self.rounds
        return product(q ** (2 * m - 1), fixed + growing * m, steepest)

    @property
    def value_gap(self) -> float:
        """``Phi(x, delta) - Phi(x, delta_m)``, what m updates leave of the value."""
        share = min(1 + self.b, 1 / (1 - self.a)) * self._left**2
        start = product(self.rho, self.smooth.L0, self.smooth.L0) / 2
        return product(min(1.0, share), start)

    def control_error(self, value_L0: float, gradient_error: float) -> float:
        """Lemma 3.3 for shifts after the given updates, ``q^m rho L0V* + c rho error``.

        With the fixed point for V*, ``c = theta (1 - q^m) / (1 - q)``; by way of the one for this
        V, ``c = (1 + q^m) / (1 - a)``.

        Args:
            value_L0: of the optimal value function in front.
            gradient_error: ``sup |grad G (V - V*)|`` in front.
        """
        left = self._left
        factor = min(self.stretch * (1 - left), (1 + left) / (1 - self.a))
        return self.rho * (product(left, value_L0) + product(factor, gradient_error))

    @property
    def _drift(self) -> float:
        """``theta rho T L0``: how fast ``rho H`` may change along the updates, over ``q^m``."""
        return product(self.theta, self.rho, self.smooth.third, self.smooth.L0)

    @property
    def _left(self) -> float:
        """``q^m``, the share of the residual that is left; q where m is any."""
        return self.rate ** (1 if self.rounds is None else self.rounds)

    @property
    def _unfinished(self) -> float:
        """The largest ``x (1 - x)`` for x up to ``q^m``: it does not fall where beta does."""
        left = self._left
        return left * (1 - left) if left < 0.5 or self.rounds == 0 else 0.25

    def _decaying(self, drift: float) -> float:
        """``q^m |J*| + m q^(m-1) drift`` for m >= 1, or its maximum over these m."""
        q, start = self.rate, self.rate * self.finished_jacobian + drift
        if self.rounds is None:
            return max(start, geometric_peak(1 - q, start, drift))
        return q ** (self.rounds - 1) * (start + (self.rounds - 1) * drift)


def optimal_step(mean: MeanMap, smooth: Smoothed, rho: float) -> Smoothness:
    """``L0' = M L0`` and ``h'+- = N L0 + M^2 K+- / (1 -+ rho K+-)``; tight: both sides are attained
    at once by a quadratic reward with eigenvalues of both signs and affine scores that stretch all
    directions alike.
    """
    bend, square = product(mean.L1, smooth.L0), mean.L0**2
    return Smoothness(
        product(mean.L0, smooth.L0),
        bend + product(square, smooth.up) / (1 - rho * smooth.up),
        bend + product(square, smooth.down) / (1 + rho * smooth.down),
    )


def iterate_step(
    mean: MeanMap, loop: InnerLoop, front: Approximation, sigma: float
) -> Approximation:
    """The same for the value of an iterate after m updates, with its distance from the optimum;
    upper bound.
    """
    best = front.optimum.smoothed(sigma)
    change = product(front.smoothed_error(sigma), 1 / (1 - loop.a)) + loop.gradient_error
    steepest = min((1 + loop.overshoot) * loop.smooth.L0, best.L0 + change)
    bend, square = product(mean.L1, steepest), mean.L0**2
    up = loop.finished_up + loop.residual_bend
    down = loop.smooth.down / (1 + loop.b) + loop.sag + loop.residual_bend
    return Approximation(
        product(mean.L0, steepest),
        bend + product(square, up),
        bend + product(square, down),
        optimum=optimal_step(mean, best, loop.rho),
        gap=front.gap + loop.value_gap,
        gradient_error=product(mean.L0, change),
    )
