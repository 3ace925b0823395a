r"""PI-FT's own value functions and errors, bounded along paths.

Setting: Algorithm 1 with m undamped updates at every step; profiles :math:`\varphi_t` of the mean
maps and a modulus of continuity of the reward as in `coupled_regularity`; weights under which
:math:`q = \rho K < 1` with the curvatures K of these iterates, and of the optimum.

Statement: $V_t^((m))$ has the modulus $ω_t (s) = min{bb(E) ω_(t+1) (φ_t (s) + 2 σ_t Z) + g_t, (1 +
o_m) L φ_t (s)}$, $g_t = (1 + q) σ_t^2 e_m^2/(2 ρ_t)$, and so $|∇^2 G V_(t+1)^((m))| ≤ K_t$; $0 ≤
V_t^* − V_t^((m)) ≤ v_t = v_(t+1) + g_t$; and $|δ_m − δ^*| ≤ σ e_m$ with $ε = v_(t+1)/(σ_t sqrt(2
π))$, where $e_m = max_u e_m (u)$, $e_0 = ξ Γ(u)$, $e_(j+1) = ξ[Γ(u) − Γ(u − e_j)] + ρ ε/σ$

Slope and curvature go together: if :math:`|\nabla V| \le \Lambda` then :math:`|\nabla^2 G V| \le
(\Lambda/\sigma)\kappa(|\nabla G V|/\Lambda)`, :math:`\Gamma' = \kappa(\Gamma)`, so that an update
cannot start far from the optimum and be slow. The proof is in `socft.theory.along_paths`.

Kind: tight, the curve on the line: a step of V' attains it at every slope.

Source: derived here; on the line slope and curvature are bound by the Gaussian isoperimetric
inequality of S. Bobkov (Ann. Probab. 25, 1997).

How it is measured: PI-FT on lines by quadrature against the exact optimum; a step and cones in
closed form.

What would refute it: a curvature, an error of a control or of a value beyond its bound by more than
quadrature error, or a smoothed function that bends more at its slope than the curve allows.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from verify.support import topics
from verify.support.claims import Claim
from verify.support.coupling import SAMPLED, known, oscillation
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.iterates import visible
from verify.support.one_sided import RelaxedPass
from verify.support.scores import MixtureScore
from verify.support.staircase import clipped
from verify.support.strategies import Softplus, curved_rewards, line_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Iterates along paths", topics.ONE_SIDED)
LINE = theory.SlopeCurve.of_line()
NODES = 2e-3
"""Relative error of a curve between its nodes, and of differences of it."""
TWO_MODES = ProductInstance(
    levels=(0.05, 0.2, 0.5, 0.8, 0.97),
    lam=(0.5,) * 4,
    factors=(Factor(MixtureScore((0.5, 0.5), (-1.0, 1.0), (0.3, 0.3)), Softplus(1.0, 2.0)),),
)


class PathPass(RelaxedPass):
    """Undamped updates at weights that the bounds along paths admit."""

    def __init__(self, instance: ProductInstance, rounds: int):
        super().__init__(instance, theory.UNDAMPED, rounds)

    @property
    def theta(self) -> Tensor:
        return torch.ones(self.instance.steps, dtype=torch.float64)

    @functools.cached_property
    def beta(self) -> Tensor:
        """A constant one that admits ``lam = 0.4``, shape (T,)."""
        weight = 0.3
        while not _admitted(self.instance, weight, self.rounds):
            weight *= 1.25
        return weight * self.theta

    @functools.cached_property
    def paths(self) -> theory.PathConvergence:
        """The bounds of the statement."""
        return _bounds(self.instance, self.beta, self.rounds)


def measure(each: PathPass) -> tuple[Tensor, Tensor]:
    """Errors of whitened controls, and of values, shape (T,) each."""
    return each.control_error(), each.value_error()[:-1]


def bound(each: PathPass) -> tuple[Tensor, Tensor]:
    """The same of the statement."""
    return each.paths.whitened, each.paths.value[:-1]


@settings(max_examples=8)
@given(line_instances(steps=5, rewards=curved_rewards()), st.integers(0, 4))
def test_holds(instance: ProductInstance, rounds: int) -> None:
    each = PathPass(instance, rounds)
    for name, seen, limit in zip(("control", "value"), measure(each), bound(each), strict=True):
        CLAIM.holds(visible(seen, limit), limit, each, slack=SAMPLED, floor=ACCURACY, part=name)


@pytest.mark.parametrize("rounds", [2, 4])
def test_updates_contract(rounds: int) -> None:
    """Of unfinished value functions, with an unbounded reward and two modes."""
    each = PathPass(TWO_MODES, rounds)
    seen = each.found[0].contraction.nan_to_num(0.0).amax(1)
    CLAIM.holds(seen, each.paths.rate, each, slack=SAMPLED, part="contraction")


@pytest.mark.parametrize("place", [0.0, 0.6, 1.5, 2.5])
def test_is_attained(place: float) -> None:
    """A step of V' from -1 to 1 has the slope ``2 N(u) - 1`` at the distance u, and bends by
    ``2 n(u)``.
    """
    slope = math.erf(place / math.sqrt(2))
    bend = math.sqrt(2 / math.pi) * math.exp(-(place**2) / 2)
    CLAIM.attained(bend, _bend(LINE, slope), {"u": place}, within=NODES, slack=NODES)


@pytest.mark.parametrize("dim", [2, 3, 8])
def test_cones_bend_less_than_the_curve_of_all_dimensions(dim: int) -> None:
    """``V = |x|`` has slopes of length 1 that turn: more curvature at its slope than any function
    of the line.
    """
    space, worst = theory.SlopeCurve.of_space(), 0.0
    for distance in (0.3, 1.0, 4.0, 12.0):
        slope, bend = _cone(dim, distance)
        where = {"dimension": dim, "distance": distance}
        CLAIM.holds(bend, _bend(space, slope), where, slack=NODES, part="slope and curvature")
        worst = max(worst, bend / _bend(LINE, slope))
    CLAIM.breaks(worst, 1 + NODES, {"dimension": dim}, "curve of the line")


@pytest.mark.parametrize("rounds", [0, 1, 2, 5])
def test_updates_attain_what_they_leave(rounds: int) -> None:
    """A step of V', with the fixed point at the distance u from it."""
    ratio = 0.6
    u = torch.linspace(0, 4, 4001, dtype=torch.float64)
    rise = lambda x: torch.erf(x / math.sqrt(2))  # noqa: E731
    best = ratio * rise(u)
    shift = torch.zeros_like(u)
    for _ in range(rounds):
        shift = ratio * rise(u - best + shift)
    seen, limit = float((best - shift).max()), LINE.unfinished(ratio, 1.0, rounds)
    where = {"rho Lambda / sigma": ratio, "updates": rounds}
    CLAIM.attained(seen, limit, where, within=NODES, slack=NODES, part="updates")
    if rounds:
        wider = 1.1 * LINE.unfinished(ratio / 1.1, 1.0, rounds)
        CLAIM.breaks(seen, wider * (1 + NODES), where, "noise sigma")


def test_needs_the_error_in_front() -> None:
    """A finished update of an unfinished value function in front: with a slope that is off by eps,
    and a curvature K at the optimum, the shift is off by ``rho eps / (1 - rho K)``.
    """
    ratio, eps, rounds = 0.5, 1e-3, 60
    q, shift = ratio * math.sqrt(2 / math.pi), 0.0
    for _ in range(rounds):
        shift = q * shift + eps
    where = {"rho K": q, "rho eps / sigma": eps, "updates": rounds}
    CLAIM.breaks(shift, LINE.unfinished(ratio, 1.0, rounds), where, "error in front")
    limit = LINE.unfinished(ratio, 1.0, rounds, eps)
    CLAIM.attained(shift, limit, where, within=NODES, slack=NODES, part="error in front")


def test_needs_the_jump_of_a_modulus() -> None:
    """One unfinished update of a clipped slope is steeper than the optimum, whose modulus has no
    jump.
    """
    step, rounds = clipped(0.8, 4.0), 1
    seen = step.steepest(rounds)
    where = step.describe() | {"updates": rounds}
    CLAIM.breaks(seen, step.L0 * (1 + NODES), where, "jump g_t")


def _admitted(instance: ProductInstance, beta: float, rounds: int) -> bool:
    try:
        return bool((_bounds(instance, beta, rounds).rate <= 0.6).all())
    except InvalidProblem:
        return False


def _bounds(instance: ProductInstance, beta: float | Tensor, rounds: int) -> theory.PathConvergence:
    reward, profiles = known(instance)
    largest = oscillation(instance)
    return theory.path_convergence(
        instance.chain, reward, profiles, beta, rounds, oscillation=largest, curve=LINE
    )


def _bend(curve: theory.SlopeCurve, slope: float) -> float:
    """``kappa``, by differences of the curve."""
    bends = torch.gradient(curve.values, spacing=(curve.places,))[0]
    i = int(torch.searchsorted(curve.values, slope).clamp(1, len(bends) - 1))
    low, high = curve.values[i - 1], curve.values[i]
    share = (slope - low) / (high - low)
    return float(bends[i - 1] + share * (bends[i] - bends[i - 1]))


def _cone(dim: int, distance: float) -> tuple[float, float]:
    """``|grad G V|`` and, across, the eigenvalue of ``Hess G V`` for ``V = |x|`` with noise 1 at a
    distance from its tip: ``E[x_1 / |x|]``, and that over the distance.
    """
    along = torch.linspace(-9, 9, 721, dtype=torch.float64)
    across = (torch.arange(800, dtype=torch.float64) + 0.5) * (9 / 800)
    weight = torch.exp(-along.square() / 2)[:, None] * (
        across ** (dim - 2) * torch.exp(-across.square() / 2)
    )
    first = (distance + along)[:, None]
    slope = float((weight * first / (first.square() + across.square()).sqrt()).sum() / weight.sum())
    return slope, slope / distance
