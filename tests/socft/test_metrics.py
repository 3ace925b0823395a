"""Distances against closed forms, quadrature of their definitions and invariances."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import integrate
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian
from socft.metrics import gaussian_mmd, mmd, wasserstein1, wasserstein1_to_quantiles
from tests.support.tensors import F64, randn
from verify.support.sampling import require_mean

ROUNDING = 1e-12  # sums of a few thousand numbers of order one
# of grids; where two distribution functions cross, their distance has a kink, which costs the
# square of it
SPACING = 0.01
# the end cells of 4000 quantiles: a logarithmic singularity over 1/4000, of which Gauss-Legendre
# misses little
TAIL = 2e-4


def quantiles(mean: float, deviation: float, count: int) -> Tensor:
    u = (torch.arange(count, dtype=F64) + 0.5) / count
    return mean + deviation * math.sqrt(2) * torch.erfinv(2 * u - 1)


def gaussian_w1(mean: float, deviation: float) -> float:
    """W1 from N(0, 1) to N(mean, deviation^2): E |mean + (deviation - 1) Z|, a folded normal."""
    s = abs(deviation - 1)
    if s == 0:
        return abs(mean)
    return s * math.sqrt(2 / math.pi) * math.exp(-((mean / s) ** 2) / 2) + mean * math.erf(
        mean / s / math.sqrt(2)
    )


@pytest.mark.parametrize(("mean", "deviation"), [(0.7, 1.0), (0.0, 2.5), (0.4, 0.3), (-1.0, 1.8)])
def test_wasserstein_between_gaussians(mean: float, deviation: float):
    first, second = quantiles(0.0, 1.0, 4000), quantiles(mean, deviation, 4000)
    exact = gaussian_w1(mean, deviation)
    assert wasserstein1(first, second) == pytest.approx(exact, abs=TAIL)
    towards = wasserstein1_to_quantiles(
        first, lambda u: mean + deviation * math.sqrt(2) * torch.erfinv(2 * u - 1)
    )
    own = wasserstein1_to_quantiles(first, lambda u: math.sqrt(2) * torch.erfinv(2 * u - 1))
    assert (
        abs(towards - exact) <= own + TAIL
    )  # the triangle inequality through the law the quantiles stand for
    grid = torch.linspace(mean - 9 * deviation, mean + 9 * deviation, 3001, dtype=F64)
    masses = torch.exp(-(((grid - mean) / deviation) ** 2) / 2)
    assert wasserstein1(first, grid, y_weights=masses) == pytest.approx(exact, abs=TAIL)


def test_wasserstein_between_masses_at_the_nodes_of_a_grid():
    """Exact for a law and its shift by whole cells, to the square of the spacing where distribution
    functions cross.
    """
    x = torch.linspace(-12, 12, 2401, dtype=F64)
    narrow, shifted, wide = (
        torch.exp(-(((x - m) / s) ** 2) / 2) for m, s in ((0.0, 1.0), (1.3, 1.0), (0.0, 1.5))
    )
    assert wasserstein1(x, x, narrow, shifted) == pytest.approx(1.3, abs=ROUNDING)
    assert wasserstein1(x, x, narrow, wide) == pytest.approx(gaussian_w1(0.0, 1.5), abs=SPACING**2)
    assert wasserstein1(x, x, narrow, narrow) == pytest.approx(0, abs=ROUNDING)


def test_wasserstein_is_the_area_between_distribution_functions():
    """Of weighted samples of different length, by the sum over the gaps between their atoms."""
    x, y, a, b = randn(0, 40), randn(1, 57) * 2 + 1, randn(2, 40).abs(), randn(3, 57).abs()
    places, masses = torch.cat([x, y]), torch.cat([a / a.sum(), -b / b.sum()])
    order = places.argsort()
    area = masses[order].cumsum(0)[:-1].abs() @ places[order].diff()
    assert wasserstein1(x, y, a, b) == pytest.approx(float(area), abs=ROUNDING)


def test_wasserstein_is_a_metric_that_scales_and_translates():
    x, y, z = randn(4, 30), randn(5, 20), randn(6, 25) + 1
    assert wasserstein1(x, x[torch.randperm(30)]) == pytest.approx(0, abs=ROUNDING)
    assert wasserstein1(x, y) == pytest.approx(wasserstein1(y, x), abs=ROUNDING)
    assert wasserstein1(x, z) <= wasserstein1(x, y) + wasserstein1(y, z)
    assert wasserstein1(x, x + 0.7) == pytest.approx(0.7, abs=ROUNDING)
    assert wasserstein1(-3 * x + 1, -3 * y + 1) == pytest.approx(
        3 * wasserstein1(x, y), abs=ROUNDING
    )


def test_distance_to_quantiles_is_the_integral_of_its_definition():
    """Three samples against the uniform law on (0, 2): by scipy, cell by cell with the crossings as
    break points.
    """
    x = torch.tensor([1.6, 0.1, 0.9], dtype=F64)
    cells = [(0.0, 1 / 3, 0.1), (1 / 3, 2 / 3, 0.9), (2 / 3, 1.0, 1.6)]
    exact = sum(
        integrate.quad(lambda u, s=s: abs(2 * u - s), a, b, points=[s / 2])[0] for a, b, s in cells
    )
    crossing = (
        0.01 * exact
    )  # every cell crosses the quantile function here: the documented accuracy
    assert wasserstein1_to_quantiles(x, lambda u: 2 * u) == pytest.approx(exact, abs=crossing)
    apart = wasserstein1_to_quantiles(x + 5, lambda u: 2 * u)
    assert apart == pytest.approx(float(x.mean()) + 5 - 1, abs=ROUNDING)


def kernel_mean(mean: Tensor, variance: float, h: float) -> float:
    """E exp(-|D|^2 / 2 h^2) for D ~ N(mean, variance I)."""
    d = len(mean)
    return (h**2 / (h**2 + variance)) ** (d / 2) * math.exp(
        -float(mean.square().sum()) / (2 * (h**2 + variance))
    )


def test_mmd_is_unbiased_for_gaussians():
    d, h, deviation = 3, 1.3, 0.6
    shift = torch.tensor([0.5, -0.3, 0.2], dtype=F64)
    zero = torch.zeros(d, dtype=F64)
    same = kernel_mean(zero, 2.0, h) + kernel_mean(zero, 2 * deviation**2, h)
    exact = same - 2 * kernel_mean(shift, 1 + deviation**2, h)
    draws = torch.tensor(
        [
            mmd(randn(10 + i, 12, d), shift + deviation * randn(5000 + i, 9, d), h)
            for i in range(800)
        ],
        dtype=F64,
    )
    require_mean(draws, exact, 0.0034)
    assert exact > 10 * float(draws.std()) / len(draws) ** 0.5  # so that a missing term would show
    null = torch.tensor(
        [mmd(randn(10 + i, 12, d), randn(5000 + i, 9, d), h) for i in range(800)], dtype=F64
    )
    require_mean(null, 0.0, 0.0022)
    assert float(null.min()) < 0


def test_the_mmd_of_gaussians_is_the_mean_of_its_estimates():
    mean, root = (
        torch.tensor([0.5, -0.3], dtype=F64),
        torch.tensor([[0.7, 0.0], [0.4, 0.5]], dtype=F64),
    )
    first, second = Gaussian(torch.zeros(2, dtype=F64), 1.0), Gaussian(mean, root @ root.T)
    exact = gaussian_mmd(first, second, 1.1)
    draws = torch.tensor(
        [mmd(randn(10 + i, 12, 2), mean + randn(5000 + i, 9, 2) @ root.T, 1.1) for i in range(800)],
        dtype=F64,
    )
    error = float(draws.std()) / len(draws) ** 0.5
    require_mean(draws, exact, 0.0038)
    assert exact > 10 * error
    assert gaussian_mmd(second, second, 1.1) == 0
    assert gaussian_mmd(second, first, 1.1) == pytest.approx(exact, abs=ROUNDING)


def test_mmd_does_not_depend_on_how_it_is_chunked_nor_on_rigid_motions(
    monkeypatch: pytest.MonkeyPatch,
):
    x, y = randn(7, 23, 4), randn(8, 31, 4) + 0.4
    whole = mmd(x, y, 0.9)
    monkeypatch.setattr("socft.metrics.CHUNK", 50)
    assert mmd(x, y, 0.9) == pytest.approx(whole, abs=ROUNDING)
    rotation = torch.linalg.qr(randn(9, 4, 4)).Q
    assert mmd(2 * x @ rotation + 1, 2 * y @ rotation + 1, 1.8) == pytest.approx(
        whole, abs=ROUNDING
    )


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wasserstein1(torch.zeros(0), torch.zeros(3)), "x has shape"),
        (lambda: wasserstein1(torch.zeros(3, 1), torch.zeros(3)), r"give \(n,\)"),
        (lambda: wasserstein1(torch.zeros(3), torch.tensor([0.0, math.nan])), r"y\[1\] = nan"),
        (
            lambda: wasserstein1(torch.zeros(3), torch.zeros(3), torch.ones(2)),
            r"weights of x has shape \(2,\); give \(3,\)",
        ),
        (lambda: wasserstein1(torch.zeros(3), torch.zeros(3), torch.zeros(3)), "sum to 0"),
        (lambda: wasserstein1_to_quantiles(torch.zeros(2), lambda u: u / 0), "quantile"),
        (lambda: mmd(torch.zeros(3, 2), torch.zeros(3, 2), 0.0), "bandwidth = 0"),
        (lambda: gaussian_mmd(Gaussian([0.0], 1.0), Gaussian([0.0], 1.0), -1.0), "bandwidth = -1"),
        (lambda: gaussian_mmd(Gaussian([0.0], 1.0), Gaussian([0.0, 0.0], 1.0), 1.0), "shape"),
        (lambda: mmd(torch.zeros(1, 2), torch.zeros(3, 2), 1.0), "1 and 3 samples"),
        (
            lambda: mmd(torch.zeros(3, 2), torch.zeros(3, 1), 1.0),
            r"y has shape \(3, 1\); give \(p, 2\)",
        ),
    ],
)
def test_bad_input_is_refused(call, message: str):
    with pytest.raises(InvalidProblem, match=message):
        call()


def test_a_negative_mass_is_refused_beyond_rounding():
    atoms = torch.tensor([0.0, 1.0], dtype=torch.float64)
    rounded = wasserstein1(atoms, atoms, torch.tensor([1.0, -1e-17]), torch.tensor([0.5, 0.5]))
    assert rounded == 0.5
    with pytest.raises(InvalidProblem, match=r"the negative weights of x sum to -1e-06"):
        wasserstein1(atoms, atoms, torch.tensor([1.0, -1e-6]), torch.tensor([0.5, 0.5]))
