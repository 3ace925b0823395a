r"""Linear-quadratic problems in any dimension, with closed forms for the chain and for continuous
time.

* ``lq-fine-tuning``: a Gaussian with a random covariance, the exact DDPM chain, a random concave
  quadratic reward.
* ``lq-sde``: :math:`dX = (A X + B u)\,dt + B\,dW` with a random stable A, cost
  :math:`\int (|X|^2 + \beta |u|^2)/2\,dt + |X_T|^2/2`.
* ``oscillator``: the damped oscillator of Mei and Taghvaei (arXiv 2410.04615),
  :math:`A = [[0, 1], [-1, -0.1]]`, :math:`B = [0, 1]^\top`, :math:`Q = R = Q_f = I`, T = 4, dt =
  0.02; in higher dimension, several of them with frequencies from 1 to 1.5, rotated at random. The
  noise is that of the control's channel, sB dW. The published setting has noise I: noise that the
  control cannot reach changes neither the costate :math:`P_k x` nor the optimal control, only the
  constant of the value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from socft.checks import require
from socft.density import Gaussian, affine_reference
from socft.problem import ControlProblem
from socft.reward import Quadratic
from socft.schedule import Schedule, ddpm, linear_levels, subsample
from socft.sde import EulerMaruyama, Integrator, LinearSDE
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.mixture import TiltedMixture
from socft.truth.quadratic import QuadraticCost
from socft.truth.riccati import riccati
from toy.problems.base import Benchmark, Solvers, ValueFunction, affine_uncontrolled, riccati_value

OSCILLATOR_PUBLISHED = {
    "source": (
        "arXiv 2410.04615: mean-square error against Riccati; N = 2000, 200 Picard rounds, 15"
        " repetitions"
    ),
    "dt": (0.004, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4),
    "least_squares_costate": (0.0024, 0.0046, 0.037, 0.157, 1.35, 13.0, None),
    "time_reversed_value": (5.9e-5, 8.0e-4, 3.7e-3, 0.0118, 0.035, 0.063, 0.089),
    "time_reversed_costate": (1.1e-7, 2.2e-6, 1.5e-5, 6.9e-5, 3.0e-4, 9.0e-4, 1.5e-3),
}

SPECTRUM = (0.1, 2.0)  # variances of the random Gaussian's principal axes
MARGIN = 0.5  # by which the random drift is stable


def linear_quadratic_fine_tuning(
    d: int = 10, beta: float = 1.0, seed: int = 0, schedule: Schedule | None = None
) -> Benchmark:
    """Gaussian data and a random concave quadratic reward in d dimensions; 50 DDPM steps unless a
    schedule is given.
    """
    require(d >= 1, f"d = {d}; give at least 1.")
    generator = torch.Generator().manual_seed(seed)
    schedule = schedule or ddpm(subsample(linear_levels(1000), 50))
    basis = random_rotation(d, generator)
    spectrum = torch.linspace(*SPECTRUM, d, dtype=torch.float64)
    density = Gaussian(0.5 * normal(d, generator=generator), basis * spectrum @ basis.mT)
    root = normal(d, d, generator=generator) / d**0.5
    reward = Quadratic(-(root @ root.mT), normal(d, generator=generator))
    problem = ControlProblem(affine_reference(density, schedule), reward, beta)

    def continuous() -> ValueFunction:
        return tilted_value(TiltedMixture(density, reward, beta), schedule, _second_moment_rule(d))

    return Benchmark(
        name=ProblemName.LQ_FINE_TUNING,
        description=f"Gaussian data and a concave quadratic reward in {d} dimensions",
        settings={"d": d, "steps": schedule.steps, "beta": beta, "seed": seed},
        problem=problem,
        solvers=Solvers(
            lambda: LinearQuadratic(problem), lambda: affine_uncontrolled(problem), continuous
        ),
    )


def linear_quadratic_sde(
    d: int = 10,
    steps: int = 50,
    horizon: float = 1.0,
    beta: float = 1.0,
    seed: int = 0,
    integrator: Integrator | None = None,
) -> Benchmark:
    """A random stable linear SDE in d dimensions with quadratic costs, by Euler-Maruyama unless
    told otherwise.
    """
    require(d >= 1, f"d = {d}; give at least 1.")
    generator = torch.Generator().manual_seed(seed)
    A = normal(d, d, generator=generator) / d**0.5
    eye = torch.eye(d, dtype=torch.float64)
    A = A - (float(torch.linalg.eigvals(A).real.max()) + MARGIN) * eye
    sde = LinearSDE(
        A, eye + 0.3 * normal(d, d, generator=generator) / d**0.5, horizon, initial_factor=0.5 * eye
    )
    return quadratic_cost_benchmark(
        name=ProblemName.LQ_SDE,
        description=f"a random stable linear SDE with quadratic costs in {d} dimensions",
        settings={"d": d, "steps": steps, "horizon": horizon, "beta": beta, "seed": seed},
        sde=sde,
        steps=steps,
        integrator=integrator or EulerMaruyama(),
        running=eye,
        terminal=-eye,
        beta=beta,
    )


def oscillator(
    dt: float = 0.02,
    horizon: float = 4.0,
    noise: float = 1.0,
    damping: float = 0.1,
    d: int = 2,
    seed: int = 0,
    integrator: Integrator | None = None,
) -> Benchmark:
    """The damped oscillator of arXiv 2410.04615; ``noise`` scales the Brownian motion, a negative
    ``damping`` makes it unstable.

    A control is ``v = u sqrt(dt) / noise`` by Euler-Maruyama, so beta is ``noise^2`` for the
    published cost ``|u|^2 / 2``.
    """
    require(
        d >= 2 and d % 2 == 0,
        f"d = {d}; an oscillator has two coordinates, so give an even number.",
    )
    require(0 < noise < math.inf, f"noise = {noise}; it must be a positive finite number.")
    steps = whole_steps(horizon, dt)
    stiffness = torch.linspace(1.0, 1.5, d // 2, dtype=torch.float64).square()
    blocks = [
        torch.tensor([[0.0, 1.0], [-float(s), -damping]], dtype=torch.float64) for s in stiffness
    ]
    B = torch.block_diag(*[torch.tensor([[0.0], [1.0]], dtype=torch.float64)] * len(blocks))
    eye = torch.eye(d, dtype=torch.float64)
    Q = eye if d == 2 else random_rotation(d, torch.Generator().manual_seed(seed))
    return quadratic_cost_benchmark(
        name=ProblemName.OSCILLATOR,
        description="damped oscillators driven and disturbed in their velocity, quadratic costs",
        settings={
            "d": d,
            "dt": dt,
            "horizon": horizon,
            "noise": noise,
            "damping": damping,
            "seed": seed,
        },
        sde=LinearSDE(Q @ torch.block_diag(*blocks) @ Q.mT, noise * Q @ B, horizon),
        steps=steps,
        integrator=integrator or EulerMaruyama(),
        running=eye,
        terminal=-eye,
        beta=noise**2,
        published={Metric.MSE: OSCILLATOR_PUBLISHED} if d == 2 and damping == 0.1 else {},
    )


def quadratic_cost_benchmark(
    *,
    name: str,
    description: str,
    settings: dict,
    sde: LinearSDE,
    steps: int,
    integrator: Integrator,
    running: Tensor | None,
    terminal: Tensor,
    beta: float,
    published: dict | None = None,
) -> Benchmark:
    """A linear SDE with cost rate ``x' running x / 2 + beta |u|^2 / 2`` and reward
    ``x' terminal x / 2``.

    The running cost of a kernel is its rate times the time that the kernel covers.
    """
    times = integrator.times(sde.horizon, steps)
    cost = None if running is None else QuadraticCost(running * times.diff()[:, None, None])
    problem = ControlProblem(integrator.chain(sde, steps), Quadratic(terminal), beta, cost)

    def continuous() -> ValueFunction:
        found = riccati(sde.A, sde.noise, terminal, running, beta, sde.horizon)
        return riccati_value(found, times, sde.initial_mean, sde.initial_factor)

    return Benchmark(
        name=name,
        description=description,
        settings=settings,
        problem=problem,
        sde=sde,
        times=times,
        published=published or {},
        solvers=Solvers(
            lambda: LinearQuadratic(problem), lambda: affine_uncontrolled(problem), continuous
        ),
    )


def tilted_value(
    closed: TiltedMixture, schedule: Schedule, rule: tuple[Tensor, Tensor]
) -> ValueFunction:
    """The continuous-time value of a fine-tuning problem at the levels of a schedule; ``rule``
    integrates over N(0, I).
    """
    points, weights = rule
    levels = schedule.abar.tolist()
    return ValueFunction(
        lambda k, x: closed.value(levels[k], x),
        lambda k, x: closed.value_gradient(levels[k], x),
        float(weights @ closed.value(levels[0], points)),
    )


def whole_steps(horizon: float, dt: float) -> int:
    """The number of steps of length dt, refused unless whole."""
    require(0 < dt < math.inf, f"dt = {dt}; it must be a positive finite number.")
    steps = round(horizon / dt)
    require(
        steps >= 1 and math.isclose(steps * dt, horizon),
        f"dt = {dt:g} does not divide the horizon {horizon:g}; try {horizon / max(1, steps):g}.",
    )
    return steps


def normal(*shape: int, generator: torch.Generator) -> Tensor:
    """Standard normal numbers in float64."""
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def random_rotation(d: int, generator: torch.Generator) -> Tensor:
    """A random orthonormal basis."""
    return torch.linalg.qr(normal(d, d, generator=generator)).Q


def _second_moment_rule(d: int) -> tuple[Tensor, Tensor]:
    """``+- sqrt(d) e_i``: exact for quadratic functions of N(0, I)."""
    eye = torch.eye(d, dtype=torch.float64) * d**0.5
    return torch.cat([eye, -eye]), torch.full((2 * d,), 1 / (2 * d), dtype=torch.float64)
