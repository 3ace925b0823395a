"""A reversed step undoes the forward one, drifts by the score, and is paired with a noise."""

from __future__ import annotations

import pytest
import torch

from socft.checks import InvalidProblem
from socft.costates.marginal_score import GivenScore, KernelScore
from socft.costates.time_reversal import Reversal, Reverser
from socft.path import Noise, rollout
from socft.policy import FunctionPolicy
from socft.problem import ControlProblem
from socft.reference import AffineReference, DenseMaps, ScalarDiffusion
from tests.support.tensors import generator, randn, t

ROUNDING = 1e-13
STEPS, DIM, PATHS = 4, 2, 5
SIGMAS = t(0.5, 0.4, 0.3, 0.6)
REFERENCE = AffineReference(DenseMaps(randn(1, STEPS, DIM, DIM)), ScalarDiffusion(SIGMAS))
PROBLEM = ControlProblem(REFERENCE, lambda x: torch.sin(x).sum(1), 0.7)
POLICY = FunctionPolicy(lambda k, x: 0.2 * (1 + k) * torch.cos(x))
SCORE = GivenScore(lambda k, x: -x / (1 + k))
SIGMA = SIGMAS[:, None, None]


def reverse(published: bool) -> Reversal:
    noise = Noise.sample(REFERENCE, PATHS, generator(2))
    path = rollout(REFERENCE, POLICY, noise)
    return Reverser(SCORE, generator(3), published_pairing=published).run(PROBLEM, POLICY, path)


@pytest.mark.parametrize("published", [False, True])
def test_reversed_steps(published: bool):
    """``X_k = 2 X_{k+1} - m_k(X_{k+1}) - B_k v_k + D_k s_{k+1} + B_k xi``, with the noise that
    costates see, or one step ahead of them.
    """
    back = reverse(published)
    moved = []
    for k in range(STEPS):
        x = back.states[k + 1]
        forward = REFERENCE.step(k, x, POLICY(k, x)) - x
        drift = -(SIGMA[k] ** 2) * x / (2 + k)
        torch.testing.assert_close(back.drifts[k], drift, rtol=ROUNDING, atol=ROUNDING)
        torch.testing.assert_close(back.controls[k], POLICY(k, x), rtol=0, atol=0)
        moved.append((back.states[k] - x + forward - drift) / SIGMA[k])
    seen = back.noise_increments / SIGMA
    noise = torch.stack(moved)
    if published:
        torch.testing.assert_close(seen[1:], noise[:-1], rtol=1e-10, atol=1e-10)
        assert all(float((seen[0] - each).abs().max()) > 0.1 for each in noise)
    else:
        torch.testing.assert_close(seen, noise, rtol=1e-10, atol=1e-10)
    assert float(seen.std()) > 0.5
    assert all(back.place(k)[0] == k + (not published) for k in range(STEPS))
    assert all(
        torch.equal(back.place(k)[1], back.states[k + (not published)]) for k in range(STEPS)
    )


def test_too_few_paths_are_refused():
    path = rollout(REFERENCE, POLICY, Noise.sample(REFERENCE, 2, generator(4)))
    with pytest.raises(InvalidProblem, match=r"batch = 2; KernelScore is fitted .* at least 3"):
        Reverser(KernelScore(), generator(5)).run(PROBLEM, POLICY, path)
