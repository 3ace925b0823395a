r"""Two studies of Mei and Taghvaei, *Time-Reversed BSDEs* (arXiv 2603.20455v2);
`toy.problems.pendulum` has the third.

* ``bsde-linear``: :math:`dX = A X\,dt + \epsilon\,dW`, :math:`A = [[0, 1], [-1, -0.5]]`, T = 2, dt
  = 0.05, :math:`X_0 \sim N(0, I)`, terminal cost :math:`|x|^2/2`, no control. Sought is the costate
  of the cost, :math:`\phi(0, x) = G_0 x` with :math:`G_0 = e^{A^\top T} e^{A T}` in continuous time
  and :math:`\prod A_k^\top \prod A_k` on a chain, whatever the noise.
* ``bsde-mixture``: data :math:`\tfrac12 N(3, 1) + \tfrac12 N(-3, 1)`, noised by
  :math:`dX = -2 X\,dt + 2\,dW`, of stationary law N(0, 1) and signal level
  :math:`\bar a(t) = e^{-4t}`. The exact reverse process on [0, 1], controlled, is
  :math:`dX = (2 X + 4 s(X, 1 - t) + 2 u)\,dt + 2\,dW` with :math:`s(\cdot, t)` the score at level
  :math:`e^{-4t}`; the objective is :math:`E[(X_1 - 3)^2 / (2\,\text{temp}) + \int |u|^2/2\,dt]`,
  plus :math:`KL(N(\mu, Q^2) \| N(0, 1))` where the Gaussian law of :math:`X_0` is learned too
  (`best_start`).

In the mixture the forward speed is q = 4 and the control changes the score by :math:`u/2`, so
:math:`|u|^2/2` is :math:`\beta q |U - s|^2/2` with beta = 1, and `socft.truth.mixture` gives the
continuous-time value.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from scipy.optimize import minimize
from torch import Tensor

from socft.checks import require
from socft.density import GaussianMixture
from socft.problem import ControlProblem
from socft.reference import States
from socft.reward import Quadratic
from socft.sde import DriftSDE, EulerMaruyama, Integrator, LinearSDE, gramian, propagator
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from socft.truth.grid import tensor_rule
from socft.truth.mixture import TiltedMixture
from socft.truth.quadrature import Quadrature
from toy.problems.base import Benchmark, Solvers, ValueFunction, grid_uncontrolled
from toy.problems.linear_quadratic import quadratic_cost_benchmark, whole_steps

LINEAR_PUBLISHED = {
    "source": (
        "arXiv 2603.20455v2: E |phi(0, X_0) - G_0 X_0|^2, mean over 10 seeds, N = 2000, networks,"
        " 10 Picard rounds"
    ),
    "G0": ((0.3473, 0.1710), (0.1710, 0.4739)),
    "eps": (0.0, 0.5, 1.0, 2.0, 5.0),
    "non_adapted": (0.00101, 0.00436, 0.00848, 0.0206, 0.0896),
    "tr_bsde": (0.00083, 0.00231, 0.00483, 0.0122, 0.0228),
    "exponential_integrator_floor": 0.00096,
    "discrete_adjoint_floor": 0.00334,
    "samples": (50, 100, 500, 2000, 5000, 10000),
    "non_adapted_by_samples": (0.62, 0.297, 0.0322, 0.0086, 0.0058, 0.0033),
    "tr_bsde_by_samples": (94000.0, 0.0181, 0.0055, 0.0049, 0.0050, 0.0051),
}

MIXTURE_PUBLISHED = {
    "source": (
        "arXiv 2603.20455v2: E[g / temp + int |u|^2 / 2 dt] + KL of the start, published networks"
        " on fresh samples"
    ),
    "temp": (50.0, 20.0, 8.0, 6.0, 1.0),
    "adjoint_matching": (0.176, 0.395, 0.802, 0.971, 2.164),
    "tr_bsde": (0.1705, 0.366, 0.643, 0.752, 2.140),
    "optimum_free_initial_law": (0.1689, 0.3594, 0.6179, 0.6892, 1.0303),
    "unrestricted": (0.17053, 0.36319, 0.62449, 0.69605, 1.03903),
    "gaussian_initial_law": (0.17054, 0.36324, 0.62453, 0.69608, 1.03905),
    "wasserstein1_adjoint_matching": (0.315, 0.627, 0.929, 0.959, 0.428),
    "wasserstein1_tr_bsde": (0.134, 0.270, 0.087, 0.127, 0.065),
}

MODES = GaussianMixture([0.5, 0.5], [[3.0], [-3.0]], [1.0, 1.0])
TARGET = 3.0
SPEED = 4.0


def linear(
    noise: float = 1.0, dt: float = 0.05, horizon: float = 2.0, integrator: Integrator | None = None
) -> Benchmark:
    """The linear study; its truth is `uncontrolled`, and ``phi = -grad V``.

    Args:
        noise: eps, positive: a chain without noise has no control; the truth does not depend on it.
        dt: the time step.
        horizon: the final time.
        integrator: Euler-Maruyama unless told otherwise.
    """
    require(
        0 < noise < math.inf,
        f"noise = {noise}; a chain without noise cannot be steered: give a positive number, as"
        " small as you like.",
    )
    A, eye = (
        torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=torch.float64),
        torch.eye(2, dtype=torch.float64),
    )
    sde = LinearSDE(A, noise * eye, horizon)
    found = quadratic_cost_benchmark(
        name=ProblemName.BSDE_LINEAR,
        description=(
            "a damped oscillator with full noise, quadratic terminal cost, costate without control"
        ),
        settings={"noise": noise, "dt": dt, "horizon": horizon},
        sde=sde,
        steps=whole_steps(horizon, dt),
        integrator=integrator or EulerMaruyama(),
        running=None,
        terminal=-eye,
        beta=1.0,
        published={Metric.MSE: LINEAR_PUBLISHED},
    )
    solvers = dataclasses.replace(
        found.solvers, continuous_uncontrolled=lambda: _linear_continuous(sde, found.times)
    )
    return dataclasses.replace(found, solvers=solvers)


def _linear_continuous(sde: LinearSDE, times: Tensor | None) -> ValueFunction:
    """``V(t, x) = -|e^{A (T - t)} x|^2 / 2 - tr int D' D / 2`` with ``D = e^{A (T - s)} B``."""
    assert times is not None
    left = (sde.horizon - times).tolist()

    def flow(k: int) -> Tensor:
        return propagator(sde.A, left[k])

    def lost(k: int) -> float:
        return float(gramian(sde.A, sde.noise, left[k]).trace()) / 2

    return ValueFunction(
        lambda k, x: -(x @ flow(k).mT.to(x)).square().sum(1) / 2 - lost(k),
        lambda k, x: -x @ (flow(k).mT @ flow(k)).to(x),
        -float(
            (flow(0) @ sde.initial_factor).square().sum()
            + (flow(0) @ sde.initial_mean).square().sum()
        )
        / 2
        - lost(0),
    )


def mixture_control(
    temp: float = 1.0,
    steps: int = 50,
    start_mean: float = 0.0,
    start_deviation: float = 1.0,
    integrator: Integrator | None = None,
) -> Benchmark:
    """The mixture study at a temperature, started at N(start_mean, start_deviation^2), with reward
    ``-(x - 3)^2 / (2 temp)``.
    """
    require(0 < temp < math.inf, f"temp = {temp}; it must be a positive finite number.")
    require(
        0 <= start_deviation < math.inf,
        f"start_deviation = {start_deviation}; it must be a finite number, at least 0.",
    )
    reward = Quadratic(
        torch.tensor([[-1 / temp]], dtype=torch.float64),
        torch.tensor([TARGET / temp], dtype=torch.float64),
        -(TARGET**2) / (2 * temp),
    )
    sde = DriftSDE(
        reverse_drift,
        torch.tensor([[SPEED**0.5]], dtype=torch.float64),
        1.0,
        lambda z: start_mean + start_deviation * z,
    )
    integrator = integrator or EulerMaruyama()
    times = integrator.times(sde.horizon, steps)
    problem = ControlProblem(integrator.chain(sde, steps), reward, 1.0)

    def continuous() -> ValueFunction:
        closed = TiltedMixture(MODES, reward, 1.0)
        levels = torch.exp(-SPEED * (sde.horizon - times)).tolist()
        points, weights = tensor_rule(1)
        return ValueFunction(
            lambda k, x: closed.value(levels[k], x),
            lambda k, x: closed.value_gradient(levels[k], x),
            float(weights @ closed.value(levels[0], sde.initial(points))),
        )

    return Benchmark(
        name=ProblemName.BSDE_MIXTURE,
        description="the reverse diffusion of two modes at +-3, pulled to one of them",
        settings={
            "temp": temp,
            "steps": steps,
            "start_mean": start_mean,
            "start_deviation": start_deviation,
        },
        problem=problem,
        sde=sde,
        times=times,
        published={Metric.COST: MIXTURE_PUBLISHED},
        solvers=Solvers(
            lambda: Quadrature(problem),
            lambda: grid_uncontrolled(problem, Quadrature(problem).grids),
            continuous,
        ),
    )


def reverse_drift(t: Tensor, x: States) -> States:
    """``2 x + 4 s(x, 1 - t)``, half the speed times x plus the speed times the score at level
    ``exp(-4 (1 - t))``.
    """
    level = torch.exp(-SPEED * (1 - t))
    return SPEED / 2 * x + SPEED * MODES.noised_score(level.flatten() if level.ndim else level, x)


@dataclasses.dataclass(frozen=True)
class Start:
    """The best law of ``X_0`` relative to N(0, 1).

    Attributes:
        mean: mean of the best Gaussian law.
        deviation: its standard deviation.
        gaussian_cost: the cost it attains, ``-E V_0(X_0) + KL(N(mean, deviation^2) || N(0, 1))``.
        unrestricted_cost: the least cost over all laws, ``-log E_{N(0, 1)} exp V_0``.
    """

    mean: float
    deviation: float
    gaussian_cost: float
    unrestricted_cost: float


def best_start(value_at_start) -> Start:
    """The best Gaussian and the best law of ``X_0``, given ``x -> V_0(x)`` of a one-dimensional
    problem with beta = 1.
    """
    points, weights = tensor_rule(1)

    def cost(mean: float, deviation: float) -> float:
        reward = float(weights @ value_at_start(mean + deviation * points))
        return -reward + (deviation**2 + mean**2 - 1) / 2 - math.log(deviation)

    found = minimize(
        lambda p: cost(p[0], math.exp(p[1])), [0.0, 0.0], method="BFGS", options={"gtol": 1e-7}
    )
    mean, deviation = float(found.x[0]), math.exp(float(found.x[1]))
    free = -float(torch.logsumexp(weights.log() + value_at_start(points), 0))
    return Start(mean, deviation, cost(mean, deviation), free)
