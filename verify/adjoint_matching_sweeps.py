r"""Adjoint matching, swept over all steps with exact expectations, converges to the optimum from
everywhere, from the last step to the first, and faster than any geometric rate as steps get short.

Setting: sweeps :math:`v^{n+1} = (1 - \theta) v^n + \theta P(v^n)`, :math:`P(v)_k = B_k^\top
E[a_{k+1} | x_k]/\beta_k` with lean costates along paths of v; the optimum's smoothed curvature has
its spectrum in :math:`[-K^-, K^+]`, :math:`a = |B|^2 K^+/\beta`, :math:`b = |B|^2 K^-/\beta`, and
:math:`|\nabla m| \le M`.

Statement: $e^(n+1) ≤ N e^n$ for $e_k^n = sup |v_k^n − v_k^*|$, with $N_(k k) = max {|1 − θ (1 −
a_k)|, |1 − θ (1 + b_k)|}$, $N_(k j) = θ (|B_k|\/β_k) M_(k+1) dots.c M_j K_(j+1) |B_j|$ for $j > k$
and $0$ for $j < k$; undamped, $e_k^n\/D_k ≤ h_n (w_k, …, w_(T−1)) max e^0\/D$ with the complete
symmetric polynomial of $w_k = |B_k|^2 K_(k+1)\/β_k$, which tends to $(sum w)^n\/n!$ as steps get
short

:math:`D_k = |B_k|/(\beta_k M_1 \cdots M_k)`. Only the optimum's curvature enters, and policies are
bounded by nothing but their distance. With
:math:`\theta < 2/(1 + b)` sweeps converge wherever the optimum is well posed with a < 1. The proof
is in `socft.theory.matching`.

Kind: tight: by convex quadratic rewards, increasing mean maps and errors of one sign.

Source: derived here; the iteration is that of arXiv 2409.08861.

How it is measured: sweeps by quadrature on chains with bent mean maps and rewards in one dimension,
from policies far from the optimum; quadratic problems in closed form.

What would refute it: an error above its bound.
"""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.problem import ControlProblem
from socft.reference import AffineReference, KernelReference, ScalarDiffusion
from socft.reward import Quadratic
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl
from verify.support.claims import Claim
from verify.support.nonlinear_chains.quadrature import ChainQuadrature
from verify.support.strategies import numbers

CLAIM = Claim.of_module(__name__, __doc__, "Sweeps of adjoint matching", topics.ITERATIONS)
QUADRATURE = 1e-5
"""Absolute error of a control: interpolation of what the trapezoidal rule leaves."""
HALF, OUTER, INNER = 9.0, 4.5, 3.0
"""The box, where its constants and the first errors are taken, and where later errors are."""
THETAS = (1.0, 0.5)


@dataclasses.dataclass(frozen=True)
class Bent:
    """``m(x) = x + (w tanh 1.3 x - c x) / T``, ``r = p sin(u x + 0.3)``, noise of variance 1 / T.

    Attributes:
        steps: T.
        w, c: of the mean map.
        p, u: of the reward.
    """

    steps: int
    w: float
    c: float
    p: float
    u: float

    @property
    def M(self) -> float:
        """``sup |m'|``."""
        ends = (1 + (1.3 * self.w - self.c) / self.steps, 1 - self.c / self.steps)
        return max(map(abs, ends))

    @functools.cached_property
    def truth(self) -> ChainQuadrature:
        """Its quadrature."""
        T = self.steps
        chain = KernelReference(
            lambda k, x: x + (self.w * torch.tanh(1.3 * x) - self.c * x) / T,
            ScalarDiffusion([T**-0.5] * T),
            T,
            (1,),
        )
        reward = lambda x: self.p * torch.sin(self.u * x[:, 0] + 0.3)  # noqa: E731
        return ChainQuadrature(ControlProblem(chain, reward, 1.0), HALF, round(24 * HALF))

    @functools.cached_property
    def slopes(self) -> Tensor:
        """``m'`` at the nodes."""
        x = self.truth.grid.nodes[:, 0]
        return 1 + (1.3 * self.w / torch.cosh(1.3 * x).square() - self.c) / self.steps

    def sweep(self, controls: Tensor, theta: float) -> Tensor:
        """One sweep of controls at the nodes, shape (T, nodes)."""
        truth, found = self.truth, torch.empty_like(controls)
        costate = truth.problem.reward.gradient(truth.grid.nodes)[:, 0]
        for k in reversed(range(self.steps)):
            pushed = truth.kernel(k, controls[k][:, None])[0] @ costate
            found[k] = (1 - theta) * controls[k] + theta * pushed / self.steps**0.5
            costate = self.slopes * pushed
        return found

    @functools.cached_property
    def best(self) -> Tensor:
        """The optimal control at the nodes."""
        x = self.truth.grid.nodes
        return torch.stack([self.truth.optimum(k, x)[:, 0] for k in range(self.steps)])

    def constants(self, theta: float) -> theory.MatchingSweeps:
        """Of the optimum, by quadrature over all mean shifts, ``V'' = E[V (eta^2 - 1)] / B^2``."""
        truth, T, ends = self.truth, self.steps, []
        x = truth.grid.nodes
        home = (x - truth.problem.reference.mean(0, x)) * T**0.5
        for value in truth.values(truth.optimum)[1:]:
            mass, gaps = truth.kernel(0, home)
            bent = T * (mass * (gaps[..., 0].square() - 1)) @ value.detach()
            seen = bent[x[:, 0].abs() < OUTER]
            ends.append((max(float(seen.max()), 0.0), max(-float(seen.min()), 0.0)))
        up, down = torch.tensor(ends, dtype=torch.float64).T
        one = torch.ones(T, dtype=torch.float64)
        return theory.MatchingSweeps(
            mean=self.M * one,
            noise=one / T**0.5,
            beta=one,
            up=up,
            down=down,
            relaxation=theory.FixedRelaxation(theta),
        )

    def describe(self) -> dict[str, float]:
        """For records."""
        return dataclasses.asdict(self)


def apart(bent: Bent, controls: Tensor, within: float = INNER) -> Tensor:
    """Errors of every step, away from the ends of the box."""
    seen = bent.truth.grid.nodes[:, 0].abs() < within
    return (controls - bent.best).abs()[:, seen].amax(1)


@settings(max_examples=12)
@given(
    st.builds(
        Bent, st.integers(1, 5), numbers(-1, 1), numbers(0, 1), numbers(0.2, 0.6), numbers(0.5, 1.5)
    ),
    numbers(0, 2),
    st.sampled_from(THETAS),
)
def test_holds(bent: Bent, size: float, theta: float) -> None:
    """From policies far from the optimum, sweep by sweep."""
    x, steps = bent.truth.grid.nodes[:, 0], torch.arange(bent.steps, dtype=torch.float64)
    controls = size * torch.sin(1.1 * x + steps[:, None])
    constants, start = bent.constants(theta), apart(bent, controls, OUTER)
    where = bent.describe() | {"theta": theta, "start": size}
    for sweeps in range(1, 6):
        controls = bent.sweep(controls, theta)
        limit = constants.errors(start, sweeps)
        found = (apart(bent, controls) - QUADRATURE).clamp(min=0)
        CLAIM.holds(found, limit, where | {"sweeps": sweeps}, part="N")


def line(noise: Tensor, mean: Tensor, beta: Tensor, P: float) -> AffineChain:
    """One dimension, ``x' = mean x + noise (v + xi)``, ``r = P x^2 / 2 + x``."""
    chain = AffineReference(mean[:, None, None], ScalarDiffusion(noise))
    one = torch.ones(1, dtype=torch.float64)
    return AffineChain.of(ControlProblem(chain, Quadratic(P * torch.eye(1).double(), one), beta))


def known(chain: AffineChain, theta: float = 1.0) -> theory.MatchingSweeps:
    """Its constants."""
    P = chain.values(chain.optimum)[0][:, 0, 0]
    return theory.MatchingSweeps(
        mean=chain.A[:, 0, 0].abs(),
        noise=chain.B[:, 0, 0].abs(),
        beta=chain.beta,
        up=P.clamp(min=0),
        down=(-P).clamp(min=0),
        relaxation=theory.FixedRelaxation(theta),
    )


def shifted(chain: AffineChain, start: Tensor) -> AffineControl:
    """The optimum with its offsets shifted; errors of sweeps stay such shifts."""
    best = chain.optimum
    return AffineControl(best.K, best.o + start[:, None])


def offsets_apart(chain: AffineChain, control: AffineControl) -> Tensor:
    """Shifts of every step, shape (T,)."""
    return (control.o - chain.optimum.o).abs()[:, 0]


def shifted_errors(chain: AffineChain, start: Tensor, sweeps: int, theta: float = 1.0) -> Tensor:
    """Shifts of every step after some sweeps."""
    control = shifted(chain, start)
    for _ in range(sweeps):
        control = control.mixed(chain.lean_target(control), theta)
    return offsets_apart(chain, control)


@pytest.mark.parametrize("theta", THETAS)
@pytest.mark.parametrize("sweeps", [1, 3, 8])
def test_is_attained(sweeps: int, theta: float) -> None:
    """Every entry of the bound, for a convex reward."""
    T = 6
    noise = torch.linspace(0.3, 0.5, T, dtype=torch.float64)
    beta = torch.linspace(2, 1, T, dtype=torch.float64)
    chain = line(noise, torch.linspace(1.1, 0.8, T, dtype=torch.float64), beta, 0.5)
    start = torch.linspace(0.5, 1, T, dtype=torch.float64)
    found, limit = (
        shifted_errors(chain, start, sweeps, theta),
        known(chain, theta).errors(start, sweeps),
    )
    for t in range(T):
        where = {"T": T, "step": t, "sweeps": sweeps, "theta": theta}
        CLAIM.attained(float(found[t]), float(limit[t]), where, within=1e-6, slack=1e-6)


def equal_steps(steps: int, P: float) -> AffineChain:
    """``dX = -X / 2 dt + dB`` over one unit of time, beta = 1."""
    one = torch.ones(steps, dtype=torch.float64)
    return line(one / steps**0.5, (1 - 0.5 / steps) * one, one, P)


def test_symmetric_polynomials_are_attained() -> None:
    """By errors in proportion to D; ``(n + 1) h_(n+1) / h_n`` tends to ``int sigma^2 P / beta``."""
    ratios = []
    for steps in (50, 400):
        chain = equal_steps(steps, 0.6)
        constants = known(chain)
        control = shifted(chain, constants.scale)
        for n in range(1, 10):
            control = chain.lean_target(control)
            found = offsets_apart(chain, control) / constants.scale
            where = {"T": steps, "sweeps": n}
            for t in (0, steps // 2):
                limit = float(constants.decay(n)[t])
                CLAIM.attained(
                    float(found[t]), limit, where | {"step": t}, slack=1e-6, part="$h_n$"
                )
        ratio = 9 * float(constants.decay(9)[0] / constants.decay(8)[0])
        ratios.append(ratio / float(constants.weights.sum()) - 1)
    CLAIM.equals(
        ratios[1] / ratios[0], 50 / 400, {"T": [50, 400], "n": 9}, 0.02, "order of the limit"
    )


def test_needs_a_smaller_step_than_it_may_have() -> None:
    """A concave reward with ``b = rho K^- > 1`` is well posed, and undamped sweeps diverge;
    damped, or with shorter steps, they converge.
    """
    start, chain = torch.ones(4, dtype=torch.float64), equal_steps(4, -5.0)
    where = {"T": 4, "P": -5.0, "largest $b$": float(known(chain).rates.max())}
    grown = float(shifted_errors(chain, start, 80).max())
    CLAIM.breaks(grown, 1e3, where, "$max b < 1$, undamped")
    damped = []
    for theta in (0.3, 0.6):
        rate = float(known(chain, theta).rates.max())
        CLAIM.holds(rate, 1.0, where | {"theta": theta}, part="damped rate")
        damped.append(shifted_errors(chain, start, 60, theta))
        limit = known(chain, theta).errors(start, 60)
        CLAIM.holds(damped[-1], limit, where | {"theta": theta}, slack=1e-6, part="damped")
    short = shifted_errors(equal_steps(20, -5.0), torch.ones(20, dtype=torch.float64), 80)
    CLAIM.holds(short, 1e-9, where | {"T": 20}, part="shorter steps")
    CLAIM.finding(
        f"$r = −2.5 x^2 + x$: with $T = 4$ undamped sweeps grow to {grown:.0f} times the error in"
        f" 80, with θ = 0.3 they leave {float(damped[0].max()):.1g} of it after 60, and undamped"
        f" with $T = 20$ {float(short.max()):.0e} after 80",
        where,
    )


def test_needs_what_later_steps_add() -> None:
    """With the diagonal of N alone the bound fails: errors come in from later steps."""
    T = 6
    one = torch.ones(T, dtype=torch.float64)
    chain = line(0.4 * one, one, one, 0.5)
    found, rates = shifted_errors(chain, one, 3), known(chain).rates
    CLAIM.breaks(float((found / rates**3).max()), 1.0, {"T": T, "sweeps": 3}, "later steps")
