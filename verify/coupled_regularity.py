r"""Optimal value functions bounded along paths, by the difference of two coupled chains, from which
the control cancels.

Setting: the mean map has the profile :math:`|m_t(x) - m_t(y)| \le \varphi_t(|x-y|)` and the reward
the modulus of continuity :math:`\omega_T`; moduli are continued to negative numbers as odd
functions; :math:`Z \sim N(0, 1)`; beta is any.

Statement: $|V_t (x) − V_t (y)| ≤ ω_t (|x − y|)$ with $ω_t (s) = bb(E) ω_(t+1) (φ_t (s) + 2 σ_t Z)$,
hence $|∇V_t| ≤ ω_t'(0)$ and $σ_t^2 |∇^2 G V_(t+1)| ≤ bb(E) |Z^2 − 1| ω_(t+1) (σ_t lr(| |Z| − 1
|))$

Two chains with the same shift of the mean and noise reflected between them: their distance has the
law of Brownian motion that stops at 0. A product of suprema of :math:`|A_t|` would be right if a
difference stayed on the ridge between two modes for ever. The proof is in `socft.theory.moduli`.

Kind: tight: gradients are attained by linear rewards and expanding affine scores, and at one step
by clipped slopes; curvatures by a kink.

Source: derived here; reflection coupling for controlled diffusions in continuous time, and what it
says of their value functions, is in arXiv 2301.00083 and 2502.01353.

How it is measured: exact value functions of chains of up to six steps by quadrature; coupled pairs
in three dimensions by simulation; clipped slopes in closed form.

What would refute it: a gradient or a curvature beyond its bound by more than quadrature error.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from socft import theory
from verify.support import topics
from verify.support.claims import Claim
from verify.support.coupling import SAMPLED, known, oscillation
from verify.support.factors import Factor
from verify.support.instances import ProductInstance
from verify.support.one_sided import linear_pass, weights
from verify.support.scores import MixtureScore
from verify.support.strategies import PseudoHuber, Sine, curved_rewards, line_instances
from verify.support.suprema import ACCURACY

CLAIM = Claim.of_module(__name__, __doc__, "Coupled regularity", topics.ONE_SIDED)
ROUNDING = 1e-6
PAIRS = 200_000
SEPARATED = ProductInstance(
    levels=tuple(0.02 * (0.98 / 0.02) ** (t / 10) for t in range(11)),
    lam=(0.5,) * 10,
    factors=(Factor(MixtureScore((0.7, 0.3), (-1.5, 1.5), (0.16, 0.16)), Sine(1.0, 2.0)),),
)


def measure(instance: ProductInstance, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Suprema of ``|grad V_t|`` and of ``|Hess G V_{t+1}|``, shape (T,) each."""
    found = instance.suprema(beta)
    return found.value_gradient[:-1], found.smoothed_hessian


def bound(instance: ProductInstance) -> tuple[Tensor, Tensor]:
    """The same of the statement."""
    moduli = theory.coupled_moduli(*known(instance), instance.schedule.sigma)
    return _gradients(moduli), theory.coupled_curvature(
        moduli, instance.schedule.sigma, oscillation(instance)
    )


@settings(max_examples=8)
@given(line_instances(steps=6, rewards=curved_rewards()))
def test_holds(instance: ProductInstance) -> None:
    beta = weights(instance, theory.Theorem28(theory.OneSidedBounds(theory.BestRelaxation())))
    where = {"instance": instance.describe(), "beta": beta.tolist()}
    parts = zip(measure(instance, beta), bound(instance), ("gradient", "curvature"), strict=True)
    for seen, limit, part in parts:
        CLAIM.holds(seen, limit, where, slack=SAMPLED, floor=ACCURACY, part=part)


def test_holds_for_separated_modes() -> None:
    """Where the one-sided constants compound."""
    beta = torch.full((10,), 2.0, dtype=torch.float64)
    gradient, limit = measure(SEPARATED, beta)[0], bound(SEPARATED)[0]
    CLAIM.holds(gradient, limit, SEPARATED, slack=SAMPLED, part="gradient")
    stretched = theory.one_sided_mean_lipschitz(SEPARATED.chain).flip(0).cumprod(0)
    most = SEPARATED.chain.reward_L0 * float(stretched.max())
    CLAIM.finding(
        f"separated modes, $T = 10$: the largest gradient is {float(gradient.max()):.2f}, the bound"
        f" by coupling {float(limit.max()):.2f}, the product of suprema {most:.1f}",
        SEPARATED,
    )


def test_distances_of_coupled_pairs() -> None:
    """A maximal reflection coupling in three dimensions: both marginal means, and ``E
    omega(|X - Y|)`` within four standard errors.
    """
    sigma, apart = 0.7, torch.tensor([0.4, -0.3, 0.5], dtype=torch.float64)
    noise, draw = _noise()
    x = apart + sigma * noise
    along = apart / apart.norm()
    mirrored = sigma * (noise - 2 * (noise @ along)[:, None] * along)
    likelier = ((x - apart).square() - x.square()).sum(1) / 2 / sigma**2
    same = draw.log() <= likelier
    y = torch.where(same[:, None], x, mirrored)
    modulus = theory.Modulus.of_reward(theory.graded_distances(), 1.0, 0.8)
    seen = modulus.at((x - y).norm(dim=1))
    expected = float(modulus.reflected(sigma, apart.norm()[None])[0])
    error = 4 * float(seen.std()) / PAIRS**0.5
    where = {"pairs": PAIRS, "apart": apart.tolist(), "sigma": sigma}
    CLAIM.equals(float(seen.mean()), expected, where, error, "mean modulus")
    CLAIM.equals(y.mean(0), 0.0, where, 4 * sigma / PAIRS**0.5, "the second marginal")


@pytest.mark.parametrize("steps", [1, 6])
def test_is_attained(steps: int) -> None:
    """The gradient, by a linear reward and an affine score."""
    each = linear_pass(steps, 1)
    gradient, limit = measure(each.instance, each.beta)[0], bound(each.instance)[0]
    for seen, most in zip(gradient.tolist(), limit.tolist(), strict=True):
        CLAIM.attained(seen, most, each.instance, within=ROUNDING, slack=ROUNDING)


def test_clipped_slopes_attain_the_noise() -> None:
    """One step without control: ``clip(L x, -1, 1)`` smoothed has the slope ``L erf(1 / (sqrt(2) L
    sigma))`` at 0; with more noise between the chains than ``2 sigma`` the bound would be below it.
    """
    slope, sigma = 1.5, 0.8
    modulus = theory.Modulus.of_reward(theory.graded_distances(), slope, 2.0)
    seen = slope * math.erf(1 / (math.sqrt(2) * slope * sigma))
    small = torch.tensor([1e-4], dtype=torch.float64)
    limit, less = (float(modulus.reflected(s, small)[0]) / 1e-4 for s in (sigma, 1.2 * sigma))
    where = {"slope": slope, "sigma": sigma}
    CLAIM.attained(seen, limit, where, within=SAMPLED, slack=SAMPLED)
    CLAIM.breaks(seen, less * (1 + SAMPLED), where, "noise of 2 σ")


def test_a_kink_attains_the_curvature() -> None:
    """``sqrt(2/pi) L0 / sigma``; a smaller modulus, that of half the distance, does not bound
    it.
    """
    instance = ProductInstance(
        levels=(0.3, 0.9),
        lam=(0.5,),
        factors=(Factor(MixtureScore((1.0,), (0.0,), (1.0,)), PseudoHuber(0.06, 0.0, 16.0)),),
    )
    beta = torch.full((1,), 3.0, dtype=torch.float64)
    seen, limit = float(measure(instance, beta)[1][0]), float(bound(instance)[1][0])
    CLAIM.attained(seen, limit, instance, within=0.02, slack=SAMPLED, part="curvature")
    CLAIM.breaks(seen, limit / 2, instance, "modulus at the whole distance")


def test_needs_the_profile_near_zero() -> None:
    """With the contraction that the mean maps have far from the ridge taken for all distances the
    bound fails.
    """
    beta = torch.full((10,), 2.0, dtype=torch.float64)
    reward, profiles = known(SEPARATED)
    far = profiles[:, -1:] / reward.distances[-1] * reward.distances
    moduli = theory.coupled_moduli(reward, far, SEPARATED.schedule.sigma)
    seen = float((measure(SEPARATED, beta)[0] / _gradients(moduli)).max())
    CLAIM.breaks(seen, 1 + SAMPLED, SEPARATED, "profile near 0")


def _gradients(moduli: tuple[theory.Modulus, ...]) -> Tensor:
    """Their Lipschitz constants at steps 0..T-1."""
    return torch.tensor([each.lipschitz for each in moduli[:-1]], dtype=torch.float64)


def _noise() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    noise = torch.randn(PAIRS, 3, generator=generator, dtype=torch.float64)
    return noise, torch.rand(PAIRS, generator=generator, dtype=torch.float64)
