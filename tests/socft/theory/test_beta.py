"""KL weights that make steps contract, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from socft import theory
from socft.checks import InvalidProblem
from socft.schedule import ddim, ddpm, linear_levels
from socft.theory import ChainConstants, Lemma32, PaperBounds, SharpBounds, Theorem28
from tests.support.spline_chains import (
    EXACT,
    GAUSSIAN,
    GRID,
    INNER,
    LEVELS,
    Sine,
    clipped,
    optimum,
    smooth,
    spline,
    tensor,
)
from verify.support.score_units import in_score_units, random_chain


def test_kl_weight_is_the_divergence_between_kernels():
    schedule, L0s = ddim(LEVELS, eta=0.7), 1.0
    chain = ChainConstants.of(schedule, L0s, 0.0, Sine(), dim=3)
    generator = torch.Generator().manual_seed(0)
    y, s, u = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    for t in range(schedule.steps):
        cover = schedule.sigma[t] * torch.eye(3, dtype=torch.float64)
        kernels = [
            MultivariateNormal(
                (y + schedule.score_weight[t] * x) / schedule.alpha[t].sqrt(), scale_tril=cover
            )
            for x in (u, s)
        ]
        torch.testing.assert_close(
            theory.kl_weight(chain)[t] * (u - s).square().sum(), kl_divergence(*kernels)
        )
        v = (kernels[0].mean - kernels[1].mean) / schedule.sigma[t]
        torch.testing.assert_close(s + theory.score_unit(chain)[t] * v, u)
        torch.testing.assert_close(s + theory.shift_unit(chain)[t] * schedule.sigma[t] * v, u)


def test_concavity_modulus_is_attained_by_a_quadratic():
    schedule, P, beta = ddpm(LEVELS), tensor([0.4, 0.7, 0.2]), tensor([1.0, 2.0, 0.5])
    chain = ChainConstants.of(schedule, 1.0, 0.0, Sine())
    weight = beta * theory.kl_weight(chain)
    for t in range(3):
        a, g = schedule.alpha[t], schedule.score_weight[t]

        def bracket(u: Tensor, a: Tensor = a, g: Tensor = g, t: int = t) -> Tensor:
            return P[t] / 2 * ((0.3 + g * u) / a.sqrt()) ** 2 - weight[t] * (u - 0.1) ** 2

        second = torch.autograd.functional.hessian(bracket, torch.tensor(0.5, dtype=torch.float64))
        torch.testing.assert_close(
            -torch.as_tensor(second), theory.concavity_modulus(chain, beta, P)[t]
        )


def test_control_gain_solves_the_fixed_point_equation():
    """(18) at the optimum found by brute force."""
    beta = 2 * theory.paper_constants(GAUSSIAN.chain, 0.5).beta_required
    layers = optimum(GAUSSIAN, beta)
    G = smooth(clipped(spline(layers[1].value)), float(GAUSSIAN.schedule.sigma[0]))
    alpha, gain, _, _ = GAUSSIAN.coefficients(0, beta)
    control = layers[0].control[INNER]
    pull = G.derivative(1)((GRID[INNER] + gain * control) / math.sqrt(alpha))
    kappa = float(theory.score_step(GAUSSIAN.chain, beta)[0])
    np.testing.assert_allclose(control, GAUSSIAN.score(0, GRID[INNER]) + kappa * pull, atol=EXACT)


def least_lam(chain: ChainConstants, beta: float, dim_constant: float) -> float:
    """The smallest lam_t of the paper's recursion at a constant beta, -1 where it breaks down."""
    lam = torch.full((chain.steps,), 0.5, dtype=torch.float64)
    for t in reversed(range(chain.steps)):
        L1 = float(in_score_units(chain, lam, dim_constant)["L1V"][t + 1])
        lam[t] = 1 - float(chain.sigma[t]) ** 2 * L1 / beta
        if lam[t] <= 0:
            return -1.0
    return float(lam.min())


@pytest.mark.parametrize("seed", range(2))
def test_constant_beta_is_the_least(seed: int):
    chain, _ = random_chain(seed, steps=3)
    choice = theory.constant_beta(chain, 0.4, Theorem28(PaperBounds()))
    beta = float(choice.beta[0])
    assert choice.beta.equal(torch.full((3,), beta, dtype=torch.float64))
    root = brentq(lambda b: least_lam(chain, b, 1.0) - 0.4, beta / 3, 3 * beta, xtol=1e-12 * beta)
    assert beta == pytest.approx(root, rel=1e-9)
    assert float(choice.margin.min()) == pytest.approx(1, rel=1e-9)
    assert float(choice.lam.min()) == pytest.approx(0.4, rel=1e-9)
    assert choice.rule == "constant (Theorem 2.8, paper)"


@pytest.mark.parametrize(
    "statement",
    [Theorem28(SharpBounds()), Lemma32(PaperBounds()), Lemma32(SharpBounds())],
    ids=lambda s: s.name,
)
def test_constant_beta_is_admissible_and_no_smaller_one_is(statement: theory.RegularityStatement):
    chain, _ = random_chain(1, steps=4)
    for lam in (0.0, 0.5):
        beta = float(theory.constant_beta(chain, lam, statement).beta[0])
        assert (theory.constants_at(chain, beta, statement).lam >= lam).all()
        try:
            refused = bool(
                (theory.constants_at(chain, beta * (1 - 1e-9), statement).lam < lam).any()
            )
        except InvalidProblem:
            refused = True
        assert refused


def test_scheduled_beta_guarantees_exactly_lam():
    chain, lam = random_chain(1)
    choice = theory.scheduled_beta(chain, lam, Theorem28(SharpBounds()))
    torch.testing.assert_close(
        theory.constants_at(chain, choice.beta, Theorem28(SharpBounds())).lam,
        lam,
        rtol=1e-9,
        atol=0,
    )
    assert choice.margin.eq(1).all()


def test_beta_from_curvature_is_where_the_measured_map_contracts():
    """On a linear-quadratic problem, whose curvature is P: the rate of every step is exactly 1 -
    lam.
    """
    sigma, lam = ddpm(LEVELS).sigma, tensor([0.6, 0.3, 0.8])
    choice = theory.beta_from_curvature(sigma, tensor([0.5, 0.8, 1.1]), lam)
    for t, P in enumerate([0.5, 0.8, 1.1]):
        rho = float(sigma[t] ** 2 / choice.beta[t])
        steps = [0.0, 1.0]
        steps = [rho * P * (2 + d) for d in steps]
        assert steps[1] - steps[0] == pytest.approx(1 - float(lam[t]), rel=EXACT)
    assert choice.rule == "measured curvature"


def test_required_beta_falls_by_orders_of_magnitude():
    """Unit Gaussian data, sine reward, 50 DDPM steps: the mean maps are sqrt(a_t) y, the paper's
    M_t is (1 + g_t) / sqrt(a_t).
    """
    schedule = ddpm(linear_levels(50))
    chain = ChainConstants.of(schedule, 1.0, 0.0, Sine())
    statements = (
        Theorem28(PaperBounds()),
        Theorem28(SharpBounds()),
        Theorem28(SharpBounds(schedule.alpha.sqrt())),
    )
    paper, sharp, exact = (float(theory.constant_beta(chain, 0.5, x).beta[0]) for x in statements)
    assert paper == pytest.approx(2.158e12, rel=1e-3)
    assert sharp == pytest.approx(1.427e6, rel=1e-3)
    assert exact == pytest.approx(0.3490, rel=1e-3)


def test_too_small_beta_is_refused_with_the_remedy():
    chain, _ = random_chain(1, steps=4)
    enough = float(chain.sigma[3]) ** 2 * 0.8
    beta = torch.tensor([9.0, 9.0, 9.0, enough / 1.25], dtype=torch.float64)
    value = (
        f"beta[3] = {enough / 1.25:g} gives sigma^2 L1 / beta = 1.25, not below 1 (Theorem 2.8,"
        " paper)"
    )
    with pytest.raises(InvalidProblem, match=re.escape(f"{value}; raise beta[3] above {enough:g}")):
        theory.constants_at(chain, beta, Theorem28(PaperBounds()))


def linear(chain: ChainConstants) -> ChainConstants:
    """The same chain with a linear reward and an affine score, so that value functions are
    affine.
    """
    return dataclasses.replace(chain, reward_L1=0.0, score_L1=torch.zeros(chain.steps))


CHAIN, LAMS = random_chain(1, steps=4)
ITERATES = theory.iterate_constants(CHAIN, LAMS, PaperBounds())
REFUSED: list[tuple[str, Callable[[], object]]] = [
    (
        r"lam\[2\] = 1; every design constant",
        lambda: theory.paper_constants(CHAIN, torch.tensor([0.5, 0.5, 1.0, 0.5])),
    ),
    (r"lam has shape \(2,\)", lambda: theory.paper_constants(CHAIN, torch.tensor([0.5, 0.5]))),
    (
        r"mean_L0\[0\] = 50; it must lie between",
        lambda: theory.sharp_constants(CHAIN, LAMS, torch.full((4,), 50.0)),
    ),
    (
        r"beta\[0\] = .* these constants need beta\[0\] >=",
        lambda: theory.convergence(CHAIN, ITERATES, ITERATES.beta_required / 2, 3),
    ),
    (
        r"rounds\[0\] = 1.5; give a whole number",
        lambda: theory.convergence(CHAIN, ITERATES, ITERATES.beta_required, torch.full((4,), 1.5)),
    ),
    (r"beta\[0\] = -1; every KL weight", lambda: theory.score_step(CHAIN, -1.0)),
    (r"beta\[0\] = 0; every KL weight", lambda: theory.score_step(CHAIN, 0.0)),
    (
        r"lam\[0\] = 0; every design constant",
        lambda: theory.beta_from_curvature(CHAIN.sigma, CHAIN.sigma, 0.0),
    ),
    (
        r"lam\[0\] = 1; every design constant",
        lambda: theory.beta_from_curvature(CHAIN.sigma, CHAIN.sigma, 1.0),
    ),
    (
        r"score_weight\[1\] = 0; it must be positive",
        lambda: dataclasses.replace(CHAIN, score_weight=torch.tensor([0.1, 0.0, 0.1, 0.1])),
    ),
    (
        r"score_L0\[0\] = -1; a Lipschitz",
        lambda: dataclasses.replace(CHAIN, score_L0=-torch.ones(4)),
    ),
    (
        r"reward_L1 = nan; it must be a finite",
        lambda: dataclasses.replace(CHAIN, reward_L1=math.nan),
    ),
    (r"dim = 0; give a whole number", lambda: dataclasses.replace(CHAIN, dim=0)),
    (
        r"lam = 1; the least design constant",
        lambda: theory.constant_beta(CHAIN, 1, Theorem28(PaperBounds())),
    ),
    (
        r"no beta below 1e\+50",
        lambda: theory.constant_beta(
            dataclasses.replace(CHAIN, reward_L1=math.inf), 0.5, Theorem28(PaperBounds())
        ),
    ),
    (
        r"every beta > 0 satisfies",
        lambda: theory.constant_beta(linear(CHAIN), 0.5, Theorem28(PaperBounds())),
    ),
    (
        r"required beta\[0\] = 0; use a constant beta",
        lambda: theory.scheduled_beta(linear(CHAIN), 0.5, Theorem28(PaperBounds())),
    ),
]


@pytest.mark.parametrize(("message", "call"), REFUSED, ids=[said for said, _ in REFUSED])
def test_refusals_quote_the_value_and_the_remedy(message: str, call: Callable[[], object]):
    with pytest.raises(InvalidProblem, match=message):
        call()
