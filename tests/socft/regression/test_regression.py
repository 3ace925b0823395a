"""Regressions against normal equations, exact recovery, invariances of scale and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.regression.features import Polynomial, RadialBasis
from socft.regression.functions import (
    KernelRidge,
    LinearRegression,
    NetworkRegression,
    StandardisedNetwork,
)
from tests.support.tensors import F64, randn, t

SOLVED = 1e-9  # least squares with condition numbers up to 1e3
INVARIANT = 1e-9  # relative: training amplifies rounding over a hundred steps
FITTED = 0.2  # relative root mean square error of a small network after 300 steps


X = randn(0, 200, 2)
NOISY = torch.stack(
    [torch.sin(X[:, 0]) + X[:, 1], X[:, 0] * X[:, 1], X[:, 0] ** 3], 1
) + 0.1 * randn(1, 200, 3)
CUBES = Polynomial(3)
BUMPS = RadialBasis(randn(2, 12, 2), 0.8)
NETWORK = NetworkRegression(width=16, depth=2, steps=300, batch=64, rate=2e-2)
WAVE = torch.sin(2 * X[:, :1]) + 0.3 * X[:, 1:]


def rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("features", [CUBES, BUMPS], ids=["polynomial", "bumps"])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-2])
def test_linear_regression_solves_the_normal_equations(features, ridge: float):
    """(F'F + ridge tr(F'F) / p I) w = F'y, by numpy."""
    design, z = features(X).numpy(), randn(3, 30, 2)
    gram = design.T @ design
    penalty = ridge * np.trace(gram) / len(gram) * np.eye(len(gram))
    weight = np.linalg.solve(gram + penalty, design.T @ NOISY.numpy())
    fitted = LinearRegression(features, ridge).fit(X, NOISY)
    assert (fitted(z) - features(z) @ torch.from_numpy(weight)).abs().max() < SOLVED * (
        1 + float(fitted(z).abs().max())
    )


def test_functions_in_the_span_are_recovered_exactly():
    target = lambda x: torch.stack([1 + x[:, 0] ** 2 * x[:, 1], x[:, 1] ** 3 - 2 * x[:, 0]], 1)  # noqa: E731
    fitted, z = LinearRegression(CUBES).fit(X, target(X)), 3 * randn(4, 30, 2)
    assert (fitted(z) - target(z)).abs().max() < SOLVED * float(target(z).abs().max())


def test_a_stronger_ridge_shrinks_the_fit_and_worsens_it_on_the_samples():
    fits = [LinearRegression(CUBES, ridge).fit(X, NOISY) for ridge in (0.0, 1e-3, 1e-1, 10.0, 1e6)]
    residuals, sizes = [rms(f(X) - NOISY) for f in fits], [rms(f(X)) for f in fits]
    assert residuals == sorted(residuals)
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 1e-5 * sizes[0]


def test_the_ridge_restrains_features_that_the_samples_hardly_excite():
    """A bump five widths from every sample: without a penalty its weight follows noise of size 1e-9
    to 1e-3 and more.
    """
    far = RadialBasis(t(0.0, 9.0)[:, None], 1.0)
    x = torch.linspace(-2, 2, 50, dtype=F64)[:, None]
    y = torch.exp(-x.square() / 2) + 1e-6 * randn(5, 50, 1)
    restrained, free = (LinearRegression(far, ridge).fit(x, y) for ridge in (1e-8, 0.0))
    beyond = t(9.0)[:, None]
    assert abs(float(restrained(beyond))) < 0.1
    assert abs(float(free(beyond))) > 10


def test_more_features_than_samples_interpolate_with_the_least_weights():
    few = X[:6]
    fitted = LinearRegression(BUMPS).fit(few, NOISY[:6])
    assert (fitted(few) - NOISY[:6]).abs().max() < SOLVED * 1e3
    weight = torch.linalg.pinv(BUMPS(few)) @ NOISY[:6]
    z = randn(6, 20, 2)
    assert (fitted(z) - BUMPS(z) @ weight).abs().max() < SOLVED * 1e3 * (
        1 + float(fitted(z).abs().max())
    )


def test_linear_fits_are_the_same_to_the_bit_every_time():
    """Whatever lies in the memory that the solver works in."""
    z, first = randn(9, 5, 2), LinearRegression(BUMPS, 1e-6).fit(X, NOISY)
    for size in range(1, 200, 20):
        _ = torch.full((size,), math.nan)
        assert torch.equal(LinearRegression(BUMPS, 1e-6).fit(X.clone(), NOISY.clone())(z), first(z))


def test_fits_are_differentiable_in_the_state():
    z = randn(7, 3, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(LinearRegression(CUBES, 1e-3).fit(X, NOISY), (z,))
    assert torch.autograd.gradcheck(NetworkRegression(8, 1, 5).fit(X, NOISY), (z,))


def test_a_network_fits_a_smooth_function():
    fitted = NETWORK.fit(X, WAVE)
    assert rms(fitted(X) - WAVE) < FITTED * rms(WAVE)
    assert not fitted(X).requires_grad


def test_network_fits_are_functions_of_their_seed():
    first, second = NETWORK.fit(X, WAVE), NETWORK.fit(X, WAVE)
    other = NetworkRegression(16, 2, 300, 64, 2e-2, seed=1).fit(X, WAVE)
    assert torch.equal(first(X), second(X))
    assert not torch.equal(first(X), other(X))


def test_a_warm_start_begins_where_the_earlier_fit_ended_and_does_not_touch_it():
    start = NETWORK.fit(X, WAVE)
    assert isinstance(start, StandardisedNetwork)
    before, state = start(X).clone(), {k: v.clone() for k, v in start.state_dict().items()}
    few = NetworkRegression(16, 2, steps=3, batch=64, rate=1e-3)
    warm, cold = few.fit(X, WAVE + 0.01, start), few.fit(X, WAVE + 0.01)
    assert torch.equal(start(X), before)
    assert all(torch.equal(v, start.state_dict()[k]) for k, v in state.items())
    assert not any(p.requires_grad for p in start.parameters())
    assert rms(warm(X) - WAVE - 0.01) < 0.5 * rms(cold(X) - WAVE - 0.01)


def test_a_start_of_another_kind_is_ignored():
    network, linear = NetworkRegression(8, 1, 10), LinearRegression(CUBES)
    z = randn(8, 5, 2)
    assert torch.equal(network.fit(X, WAVE, linear.fit(X, WAVE))(z), network.fit(X, WAVE)(z))
    assert torch.equal(linear.fit(X, WAVE, network.fit(X, WAVE))(z), linear.fit(X, WAVE)(z))


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1e6])
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_network_fits_scale_with_their_targets(size: float, warm: bool):
    """Also when the warm start was fitted to targets of size 1: early steps of a memoryless chain
    have tiny controls.
    """
    network = NetworkRegression(8, 1, 60, 64, 1e-2)
    start = network.fit(X, WAVE) if warm else None
    plain, scaled = network.fit(X, WAVE, start), network.fit(X, size * WAVE + 3 * size, start)
    assert (scaled(X) / size - 3 - plain(X)).abs().max() < INVARIANT * 10


def test_network_fits_do_not_depend_on_the_units_of_the_state():
    network = NetworkRegression(8, 1, 60, 64, 1e-2)
    stretched = X * t(1e4, 1e-3) + t(5e4, 7.0)
    assert (
        network.fit(stretched, WAVE)(stretched) - network.fit(X, WAVE)(X)
    ).abs().max() < INVARIANT * 10


def test_coordinates_and_targets_that_do_not_vary_are_harmless():
    network = NetworkRegression(8, 1, 20)
    flat = torch.cat([X[:, :1], torch.full((200, 1), 2.0, dtype=F64)], 1)
    fitted = network.fit(flat, WAVE)
    near, away = fitted(t(0.3, 2.0)[None]), fitted(t(0.3, 2.1)[None])
    assert abs(float(near - away)) < 1
    assert (network.fit(X, torch.full_like(WAVE, 3.0))(10 * X) - 3).abs().max() < SOLVED
    single = network.fit(X[:1], WAVE[:1])
    assert (single(X[:1]) - WAVE[:1]).abs().max() < SOLVED


def test_features_that_are_not_finite_are_refused():
    """Squares of samples that are themselves finite."""
    x = torch.full((5, 1), 1e200, dtype=F64)
    with pytest.raises(InvalidProblem, match=r"feature\[0, 2\] = inf"):
        LinearRegression(Polynomial(2)).fit(x, torch.ones(5, 1, dtype=F64))


@pytest.mark.parametrize(
    "regression", [LinearRegression(CUBES), NetworkRegression(8, 1, 5)], ids=["linear", "network"]
)
def test_samples_and_targets_that_are_not_finite_are_refused(regression):
    x, y = X.clone(), WAVE.clone()
    x[3], y[17] = math.inf, math.nan
    with pytest.raises(
        InvalidProblem,
        match=r"target\[17, 0\] = nan; the samples left the region where the fit is accurate",
    ):
        regression.fit(X, y)
    with pytest.raises(
        InvalidProblem,
        match=r"sample\[3, 0\] = inf; the samples left the region where the fit is accurate",
    ):
        regression.fit(x, WAVE)


def test_a_negative_ridge_is_refused():
    with pytest.raises(InvalidProblem, match=r"ridge = -0.1; it must not be negative"):
        LinearRegression(CUBES, -0.1)


@pytest.mark.parametrize("width", [None, 0.7])
def test_kernel_ridge_solves_its_linear_system(width: float | None):
    """(K + ridge N I) w = y - mean, in units of the spread of each coordinate, by numpy; by default
    w is the median distance.
    """
    x, z = X * t(3.0, 0.1) + 5, randn(20, 30, 2) * t(3.0, 0.1) + 5
    unit = x.numpy().std(0)

    def distance(a, b):
        return np.linalg.norm((a.numpy() / unit)[:, None] - (b.numpy() / unit)[None], axis=2)

    pairs = distance(x, x)
    w = width or np.sort(pairs[np.triu_indices(200, 1)])[(199 * 100 - 1) // 2]
    gram, cross = (np.exp(-(d**2) / (2 * w**2)) for d in (pairs, distance(z, x)))
    y = NOISY.numpy()
    expected = y.mean(0) + cross @ np.linalg.solve(gram + 0.01 * 200 * np.eye(200), y - y.mean(0))
    assert (
        KernelRidge(0.01, width).fit(x, NOISY)(z) - torch.from_numpy(expected)
    ).abs().max() < SOLVED


def test_kernel_ridge_fits_a_smooth_function_and_is_differentiable():
    fitted = KernelRidge(1e-6).fit(X, WAVE)
    assert rms(fitted(X) - WAVE) < FITTED**2 * rms(WAVE)
    assert torch.autograd.gradcheck(fitted, (randn(21, 3, 2).requires_grad_(True),))
    assert torch.autograd.gradcheck(fitted, (X[:3].clone().requires_grad_(True),))
    assert rms(KernelRidge(1e6).fit(X, WAVE)(X) - WAVE.mean(0)) < 1e-5
    assert (
        KernelRidge().fit(X[:1].expand(4, 2), WAVE[:1].expand(4, 1))(X) - WAVE[0]
    ).abs().max() < SOLVED


REFUSED = [
    (0.0, None, r"ridge = 0.0; it must be a positive"),
    (1.0, -2.0, r"width = -2.0; it must be a positive"),
]


@pytest.mark.parametrize(("ridge", "width", "message"), REFUSED)
def test_kernel_ridge_refuses_what_has_no_solution(ridge: float, width: float | None, message: str):
    with pytest.raises(InvalidProblem, match=message):
        KernelRidge(ridge, width)
    y = WAVE.clone()
    y[3] = math.inf
    with pytest.raises(InvalidProblem, match=r"target\[3, 0\] = inf"):
        KernelRidge().fit(X, y)
