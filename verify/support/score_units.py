"""The constants in the paper's symbols and units, on random chains.

`socft.theory` evaluates them in shifts of the mean, with constants of its own: that both are the
same numbers is part of every claim about them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from socft import theory
from verify.support.claims import Claim

TERMS = np.arange(1, 4000)
"""Numbers of updates over which the maximum of (39) is taken."""
ROUNDING = 1e-11
"""Relative rounding of a few hundred float64 operations."""
DIMENSION = 7


def random_chain(
    seed: int, steps: int = 5, dim: int = DIMENSION
) -> tuple[theory.ChainConstants, Tensor]:
    """Coefficients, Lipschitz constants and design constants without any relation."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(steps, generator=generator, dtype=torch.float64)

    chain = theory.ChainConstants(
        uniform(0.5, 1),
        uniform(0.1, 0.5),
        uniform(0.2, 0.9),
        uniform(0, 2),
        uniform(0, 2),
        1.3,
        0.8,
        dim,
    )
    return chain, uniform(0.1, 0.95)


def in_score_units(
    chain: theory.ChainConstants, lam: Tensor, first: float, iterates: bool = False
) -> dict[str, Tensor]:
    """(14)-(17) and (38)-(39) in the paper's variables, ``first`` in place of C_d, the maximum over
    m by enumeration.
    """
    L0, L1 = [chain.reward_L0], [chain.reward_L1]
    L0u, L1u, required = [], [], []
    for a, g, sigma, L0s, L1s, lm in reversed(list(_steps(chain, lam))):
        q, root, V0, V1 = 1 - lm, math.sqrt(a), L0[0], L1[0]
        u0 = (L0s + q / g) / lm
        c = q / g * first * (1 + g * u0) ** 2 / (sigma * root)
        u1 = (L1s + c) / lm
        M = (1 + g * L0s) / root
        L0.insert(0, M * V0 * (1 + q**2 / lm if iterates else 1))
        L1.insert(0, (g * L1s * V0 + (1 + g * L0s) * V1 * (1 + g * u0) / root) / root)
        if iterates:
            h = (
                TERMS * (first / sigma) * q * V0 * (1 + g * u0) / root * q ** (TERMS - 1)
                + q**TERMS * V1 * (1 + g * u0) / root
            )
            R = g / root * ((q * u1 + c) * q**TERMS * V0 + q / g * (1 + g * u0) * h)
            L1[0] += float(np.max(R))
        required.insert(0, sigma**2 * V1 / q)
        L0u.insert(0, u0)
        L1u.insert(0, u1)
    found = {"L0V": L0, "L1V": L1, "L0u": L0u, "L1u": L1u, "beta_required": required}
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def _steps(chain: theory.ChainConstants, lam: Tensor) -> Iterator[list[float]]:
    columns = (chain.alpha, chain.score_weight, chain.sigma, chain.score_L0, chain.score_L1, lam)
    return (list(row) for row in zip(*(each.tolist() for each in columns), strict=True))


def deviation(name: str, seed: int, iterates: bool = False) -> tuple[float, dict[str, Any]]:
    """By how much, relatively, one of the constants differs from its formula in
    the paper's variables; and where.
    """
    chain, lam = random_chain(seed)
    statement = (theory.Lemma32 if iterates else theory.Theorem28)(theory.PaperBounds())
    found = getattr(theory.constants(chain, lam, statement), name)
    shown = in_score_units(chain, lam, theory.expected_norm(DIMENSION), iterates)[name]
    where = {"seed of the chain": seed, "steps": chain.steps, "d": DIMENSION}
    return float((found / shown - 1).abs().max()), where


def formula(claim: Claim, name: str, iterates: bool = False) -> Callable[[int], None]:
    """A test that a constant has its formula in the paper's variables, on random chains."""

    @pytest.mark.parametrize("seed", range(2))
    def test(seed: int) -> None:
        difference, where = deviation(name, seed, iterates)
        claim.equals(difference, 0.0, where, ROUNDING, "formula")

    return test
