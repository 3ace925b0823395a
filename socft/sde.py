r"""Chains that simulate a stochastic differential equation with additive noise,

.. math:: dX = \big( b(t, X) + B u \big)\,dt + B\,dW, \qquad 0 \le t \le \text{horizon},

with a constant, possibly degenerate B of shape (n, m). An `Integrator` turns it into kernels
:math:`x' = m_k(x) + B_k (v + \xi)`. Weak orders are those of :math:`E f(X)` of the uncontrolled
chain; how the control u enters depends on the integrator.

* `EulerMaruyama`, order 1: :math:`m_k = x + b\,dt`, :math:`B_k = B\sqrt{dt}`; a control constant
  over a step is :math:`v = u\sqrt{dt}`, and :math:`|v|^2/2 = |u|^2 dt/2`.
* `Exponential`, exact for :math:`b = A x + c` and order 1 for :math:`b = A x + F(t, x)` (then
  called exponential Euler): :math:`m_k = e^{A\,dt} x + \int_0^{dt} e^{A s} ds\, F`, and
  :math:`B_k B_k^\top = G = \int_0^{dt} e^{As} B B^\top e^{A^\top s} ds` (Van Loan 1978). G is also
  the controllability Gramian, so :math:`|v|^2` is the least :math:`\int |u|^2` over a step that
  shifts its end by :math:`B_k v`, reached by :math:`u(s) = B^\top e^{A^\top (dt - s)} G^{-1} B_k v`
  for a non-singular G: the chain is the control problem with open-loop controls within each step,
  with costs that agree exactly (derived here). Noise and v have n components; where m <= n the
  first m of v are :math:`u\sqrt{dt}` up to O(dt), for :math:`B_k` is the root of G nearest to
  :math:`[B\sqrt{dt}, 0]`.
* `Strang`, order 2 with noise that acts linearly: half of the noise, the flow of :math:`\dot x = b`
  by the midpoint rule, the other half of the noise. Halves of neighbouring steps merge, so N steps
  are the N + 1 kernels "noise", "flow and noise", ..., "flow and noise", whose noises last
  dt/2, dt, ..., dt, dt/2; :math:`v = u\sqrt{\text{duration}}`. The value of the *controlled* chain
  is of order 1, since a kernel decides v before it sees its noise, though the optimal costate of a
  linear-quadratic problem with a terminal cost, which does not feel the noise, keeps order 2 (and
  is exact by `Exponential`).
* `Taylor`, order 2 in one kernel per step, at the price of a state-dependent noise factor
  :math:`(I + \tfrac{dt}{2} \nabla b(t, x))\,B\sqrt{dt}`. A kernel with constant :math:`B_k` has
  conditional covariance :math:`BB^\top dt + \tfrac{dt^2}{2} (\nabla b\,BB^\top + BB^\top \nabla
  b^\top) + O(dt^3)` only if the symmetric matrix in brackets does not depend on x, as for linear
  drifts and for a pendulum with noise in its velocity. With state-dependent noise the
  costate needs the derivative of :math:`B_k(x)(v + \xi)`: an adjoint of the mean map alone, such as
  the lean one, is biased (Domingo-Enrich and Han, arXiv 2604.08580).
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import TypeAlias, overload

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    InvalidProblem,
    Numbers,
    identity_or,
    numbers,
    positive,
    probe,
    require,
    require_kind,
    sizes,
    whole,
    zeros_or,
)
from socft.probing import probe_initial, probe_states
from socft.readable import Readable
from socft.reference import (
    AffineReference,
    Diffusion,
    KernelReference,
    MatrixDiffusion,
    Noises,
    Reference,
    States,
    Step,
    affine_coefficients,
    at_step,
)

Drift: TypeAlias = "Callable[[Tensor, States], States]"
"""``(t, x) -> b(t, x)``; t broadcasts against x."""


class SDE(Readable, abc.ABC):
    """``dX = b(t, X) dt + B dW`` on vectors.

    Attributes:
        noise: ``B``, shape (n, m).
        horizon: the final time.

    >>> isinstance(LinearSDE([[-1.0]], [[0.5]], horizon=1.0), SDE)
    True
    """

    def __init__(self, noise: Numbers, horizon: float):
        self.noise = numbers(noise, "B", ("n", "m"))
        require(bool((self.noise != 0).any()), "B = 0; without noise there is nothing to steer.")
        self.horizon = positive(horizon, "horizon")

    @abc.abstractmethod
    def drift(self, t: Tensor, x: States) -> States:
        """``b(t, x)``, differentiable in ``x``."""

    @abc.abstractmethod
    def initial(self, z: States) -> States:
        """The initial state as a function of standard normal noise."""


class DriftSDE(SDE):
    """Any drift.

    Args:
        drift: ``(t, x) -> b(t, x)``.
        noise: ``B``, shape (n, m).
        horizon: the final time.
        initial: the initial state as a function of standard noise, the identity by default.

    >>> well = DriftSDE(lambda t, x: x - x**3, [[0.5]], horizon=1.0)
    >>> EulerMaruyama().chain(well, steps=10).steps
    10
    """

    def __init__(
        self,
        drift: Drift,
        noise: Numbers,
        horizon: float,
        initial: Callable[[States], States] | None = None,
    ):
        super().__init__(noise, horizon)
        self._drift, self._initial = drift, initial
        _probe_drift(drift, self, initial, "the drift")

    def drift(self, t: Tensor, x: States) -> States:
        return self._drift(t, x)

    def initial(self, z: States) -> States:
        return z if self._initial is None else self._initial(z)


class LinearSDE(SDE):
    """``dX = (A X + c) dt + B dW``, started at N(initial_mean, initial_factor initial_factor^T);
    N(0, I) by default.

    Every integrator makes an `AffineReference` of it.

    Raises:
        InvalidProblem: a shape does not fit or an entry is not finite.

    >>> oscillator = LinearSDE([[0.0, 1.0], [-1.0, -0.1]], [[0.0], [0.5]], horizon=2.0)
    >>> Exponential().chain(oscillator, steps=10).noise_dims
    (2,)
    """

    def __init__(
        self,
        A: Numbers,
        noise: Numbers,
        horizon: float,
        offset: Numbers | None = None,
        initial_mean: Numbers | None = None,
        initial_factor: Numbers | None = None,
    ):
        super().__init__(noise, horizon)
        n = len(self.noise)
        self.A = numbers(A, "A", (n, n))
        self.offset = zeros_or(offset, "c", (n,))
        self.initial_mean = zeros_or(initial_mean, "initial_mean", (n,))
        self.initial_factor = identity_or(initial_factor, "initial_factor", n)

    def drift(self, t: Tensor, x: States) -> States:
        return x @ self.A.mT.to(x) + self.offset.to(x)

    def initial(self, z: States) -> States:
        return self.initial_mean.to(z) + z @ self.initial_factor.mT.to(z)


class SemilinearSDE(SDE):
    """``dX = (A X + F(t, X)) dt + B dW``: a stiff linear part that `Exponential` integrates
    exactly.

    >>> stiff = SemilinearSDE([[-50.0]], lambda t, x: torch.sin(x), [[0.5]], horizon=1.0)
    >>> Exponential().chain(stiff, steps=10).steps
    10
    """

    def __init__(
        self,
        A: Numbers,
        remainder: Drift,
        noise: Numbers,
        horizon: float,
        initial: Callable[[States], States] | None = None,
    ):
        super().__init__(noise, horizon)
        self.A = numbers(A, "A", (len(self.noise), len(self.noise)))
        self.remainder, self._initial = remainder, initial
        _probe_drift(remainder, self, initial, "the remainder")

    def drift(self, t: Tensor, x: States) -> States:
        return x @ self.A.mT.to(x) + self.remainder(t, x)

    def initial(self, z: States) -> States:
        return z if self._initial is None else self._initial(z)


class Integrator(Readable, abc.ABC):
    """A way to make a chain of an SDE."""

    @overload
    def chain(self, sde: LinearSDE, steps: int) -> AffineReference: ...

    @overload
    def chain(self, sde: SDE, steps: int) -> Reference: ...

    def chain(self, sde: SDE, steps: int) -> Reference:
        """The chain of ``steps`` time steps; affine if the SDE is linear.

        Raises:
            InvalidProblem: there is no step, or the integrator does not apply to this kind of SDE.
        """
        require_kind(sde, SDE, "the equation", "give an SDE, such as DriftSDE.")
        kernels = self._kernels(sde, whole(steps, "steps"))
        return _tabulated(kernels, sde) if isinstance(sde, LinearSDE) else kernels

    def times(self, horizon: float, steps: int) -> Float[Tensor, " kernels_plus_1"]:
        """The time at which each state of the chain approximates the solution."""
        return torch.linspace(0, horizon, steps + 1, dtype=torch.float64)

    @abc.abstractmethod
    def _kernels(self, sde: SDE, steps: int) -> KernelReference: ...


class EulerMaruyama(Integrator):
    """``x' = x + b dt + B sqrt(dt) xi``, weak order 1; a control is ``v = u sqrt(dt)``.

    >>> decay = LinearSDE([[-1.0]], [[0.5]], horizon=1.0)
    >>> EulerMaruyama().chain(decay, steps=2).transition.flatten()
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """

    def _kernels(self, sde: SDE, steps: int) -> KernelReference:
        dt = sde.horizon / steps
        times = self.times(sde.horizon, steps)

        def mean(k: Step, x: States) -> States:
            return x + dt * sde.drift(at_step(times, k, x), x)

        return KernelReference(
            mean, _constant(sde.noise * dt**0.5, steps), steps, sde.noise.shape[:1], sde.initial
        )


class Exponential(Integrator):
    """Exact in the linear part of a `LinearSDE` or `SemilinearSDE`, weak order 1 in the remainder;
    the noise has n components.

    >>> decay = LinearSDE([[-1.0]], [[0.5]], horizon=1.0)
    >>> Exponential().chain(decay, steps=2).transition.flatten()  # exp(-1/2)
    tensor([0.6065, 0.6065], dtype=torch.float64)
    """

    def _kernels(self, sde: SDE, steps: int) -> KernelReference:
        if not isinstance(sde, LinearSDE | SemilinearSDE):
            raise InvalidProblem(
                f"the SDE is a {type(sde).__name__}; Exponential needs the linear part of a"
                " LinearSDE or SemilinearSDE.",
            )
        dt, n = sde.horizon / steps, len(sde.A)
        times = self.times(sde.horizon, steps)
        block = torch.cat(
            [
                torch.cat([sde.A, torch.eye(n, dtype=torch.float64)], 1),
                torch.zeros(n, 2 * n, dtype=torch.float64),
            ]
        )
        flow = propagator(block, dt)
        decay, integral = flow[:n, :n], flow[:n, n:]

        def mean(k: Step, x: States) -> States:
            rest = (
                sde.offset.to(x).expand_as(x)
                if isinstance(sde, LinearSDE)
                else sde.remainder(at_step(times, k, x), x)
            )
            return x @ decay.mT.to(x) + rest @ integral.mT.to(x)

        return KernelReference(
            mean, _constant(noise_root(sde.A, sde.noise, dt), steps), steps, (n,), sde.initial
        )


class Strang(Integrator):
    """Noise, flow and noise, ..., flow and noise: weak order 2 with constant ``B_k``, in one kernel
    more than there are steps.

    The first and the last noise last dt/2, the others dt; a control is ``v = u sqrt(duration)``.

    >>> decay = LinearSDE([[-1.0]], [[0.5]], horizon=1.0)
    >>> Strang().chain(decay, steps=2).steps
    3
    """

    def times(self, horizon: float, steps: int) -> Float[Tensor, " kernels_plus_1"]:
        return torch.cat([torch.zeros(1, dtype=torch.float64), super().times(horizon, steps)])

    def _kernels(self, sde: SDE, steps: int) -> KernelReference:
        dt, starts = sde.horizon / steps, self.times(sde.horizon, steps)[:-1]
        flows = torch.full((steps + 1,), dt, dtype=torch.float64)
        durations = flows.clone()
        flows[0], durations[0], durations[-1] = 0, dt / 2, dt / 2

        def mean(k: Step, x: States) -> States:
            t, h = at_step(starts, k, x), at_step(flows, k, x)
            return x + h * sde.drift(t + h / 2, x + h / 2 * sde.drift(t, x))

        return KernelReference(
            mean,
            MatrixDiffusion(durations.sqrt()[:, None, None] * sde.noise),
            steps + 1,
            sde.noise.shape[:1],
            sde.initial,
        )


class Taylor(Integrator):
    """Simplified weak Taylor scheme of order 2: one kernel per step, noise factor
    ``(I + dt/2 Jac b) B sqrt(dt)``.

    The mean ``x + dt/2 (b(t, x) + average of b(t + dt, x + dt b +- sqrt(m dt) B_j))`` takes no
    derivatives, 2 m + 1 drifts.

    >>> decay = LinearSDE([[-1.0]], [[0.5]], horizon=1.0)
    >>> Taylor().chain(decay, steps=2).transition.flatten()
    tensor([0.6250, 0.6250], dtype=torch.float64)
    """

    def _kernels(self, sde: SDE, steps: int) -> KernelReference:
        dt, (n, m) = sde.horizon / steps, sde.noise.shape
        times = self.times(sde.horizon, steps)
        spread = sde.noise.mT * (m * dt) ** 0.5
        spread = torch.cat([spread, -spread])

        def mean(k: Step, x: States) -> States:
            t = at_step(times, k, x)
            now = sde.drift(t, x)
            points = (x + dt * now).unsqueeze(0) + spread.to(x).unsqueeze(1)
            later = torch.stack([sde.drift(t + dt, y) for y in points]).mean(0)
            return x + dt / 2 * (now + later)

        def apply(k: Step, x: States, z: Noises) -> States:
            t, noise_increment = at_step(times, k, x), dt**0.5 * z @ sde.noise.mT.to(z)
            change = jvp(lambda y: sde.drift(t, y), x, noise_increment)
            return noise_increment + dt / 2 * change

        return KernelReference(mean, StateDiffusion(apply, (n,), (m,)), steps, (n,), sde.initial)


class StateDiffusion(Diffusion):
    """A noise map ``B_k(x)`` given by its action; the transpose is its vjp.

    Costates of a chain with it need the derivative of ``B_k(x) (v + xi)`` in x: those of the mean
    map alone are biased.

    Args:
        apply: ``(k, x, z) -> B_k(x) z``, linear in z and differentiable.
        dims: shape (n,) of one state.
        noise_dims: shape (m,) of one noise.
    """

    def __init__(
        self,
        apply: Callable[[Step, States, Noises], States],
        dims: tuple[int],
        noise_dims: tuple[int],
    ):
        self._apply, self._dims, self._noise_dims = (
            apply,
            sizes(dims, "dims"),
            sizes(noise_dims, "noise_dims"),
        )
        require(
            len(self._dims) == len(self._noise_dims) == 1,
            f"dims = {self._dims} and noise_dims = {self._noise_dims}; give (n,) and (m,).",
        )
        x, z = probe_states(self._dims), probe_states(self._noise_dims)
        probe(apply, (0, x, z), (2, *self._dims), "the noise map")

    def apply(self, k: Step, x: States, z: Noises) -> States:
        return self._apply(k, x, z)

    def transpose(self, k: Step, x: States, a: States) -> Noises:
        z = x.new_zeros(len(x), *self._noise_dims)
        return torch.func.vjp(lambda z: self._apply(k, x, z), z)[1](a)[0]

    def whiten(self, k: Step, x: States, shift: States) -> Noises:
        return (torch.linalg.pinv(self._matrices(k, x)) @ shift.unsqueeze(2)).squeeze(2)

    def solve_transpose(self, k: Step, x: States, z: Noises) -> States:
        return (torch.linalg.pinv(self._matrices(k, x)).mT @ z.unsqueeze(2)).squeeze(2)

    def noise_dims(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        require(
            dims == self._dims,
            f"B maps into vectors of shape {self._dims} but states have shape {dims}.",
        )
        return self._noise_dims

    def _matrices(self, k: Step, x: States) -> Float[Tensor, "batch n m"]:
        basis = torch.eye(self._noise_dims[0], dtype=x.dtype, device=x.device)
        return torch.stack([self._apply(k, x, e.expand(len(x), -1)) for e in basis], 2)


def jvp(function: Callable[[States], States], x: States, w: States) -> States:
    """``Jac f(x) w``, differentiable: the transpose of the linear map ``a -> Jac f(x)' a``, which
    needs reverse mode only.
    """
    vjp = torch.func.vjp(function, x)[1]
    return torch.func.vjp(lambda a: vjp(a)[0], torch.zeros_like(x))[1](w)[0]


def propagator(A: Float[Tensor, "n n"], t: float) -> Float[Tensor, "n n"]:
    """``e^{A t}`` by scipy: torch 2.13's is off by 1e-11 where ``|A t|`` is about 0.04, as it is
    for the step sizes used here.
    """
    return torch.from_numpy(scipy.linalg.expm((A * t).numpy()))


def gramian(
    A: Float[Tensor, "n n"], noise: Float[Tensor, "n m"], dt: float
) -> Float[Tensor, "n n"]:
    """``int_0^dt e^{As} B B' e^{A's} ds``, from one matrix exponential (Van Loan 1978, theorem
    1).
    """
    n = len(A)
    block = torch.cat(
        [torch.cat([-A, noise @ noise.mT], 1), torch.cat([torch.zeros_like(A), A.mT], 1)]
    )
    flow = propagator(block, dt)
    G = flow[n:, n:].mT @ flow[:n, n:]
    return (G + G.mT) / 2


def noise_root(
    A: Float[Tensor, "n n"], noise: Float[Tensor, "n m"], dt: float
) -> Float[Tensor, "n n"]:
    """The square root of the Gramian nearest to ``[B sqrt(dt), 0]``, by a polar factor; the
    symmetric one where m > n.
    """
    n, m = noise.shape
    values, vectors = torch.linalg.eigh(gramian(A, noise, dt))
    root = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    if m > n:
        return root
    left, _, right = torch.linalg.svd(root @ torch.nn.functional.pad(noise, (0, n - m)))
    return root @ left @ right


def _constant(noise: Tensor, steps: int) -> MatrixDiffusion:
    return MatrixDiffusion(noise.expand(steps, *noise.shape))


def _probe_drift(
    drift: Drift, sde: SDE, initial: Callable[[States], States] | None, what: str
) -> None:
    """Refuse a drift that is not finite at the first and the last time."""
    dims = (len(sde.noise),)
    probe_initial(initial, dims)
    with torch.no_grad():
        x = sde.initial(probe_states(dims))
        for t in (0.0, sde.horizon):
            probe(drift, (torch.tensor(t, dtype=torch.float64), x), (2, *dims), what)


def _tabulated(kernels: KernelReference, sde: LinearSDE) -> AffineReference:
    """The same kernels with their matrices written down; exact, as every integrator maps linear
    drifts to affine kernels.
    """
    steps, n = kernels.steps, len(sde.A)
    transition, offset = affine_coefficients(kernels.mean, steps, n)
    factors, _ = affine_coefficients(
        lambda k, z: kernels.diffusion.apply(k, z.new_zeros(len(z), n), z),
        steps,
        *kernels.noise_dims,
    )
    return AffineReference(
        transition, MatrixDiffusion(factors), offset, sde.initial_mean, sde.initial_factor
    )
