"""Grids against closed forms: Gaussian expectations of sines, exponentials and polynomials, and
transposes by inner products.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from socft.checks import InvalidProblem
from socft.truth.grid import DEGREE, STENCIL, Grid, ValueGrid, tensor_rule
from tests.support.tensors import F64, randn, t

ROUNDING = 1e-12  # sums of a few hundred terms of order 1
SLOPE = 1e-11  # differences of such sums, divided by a spacing of 0.05
RATIOS = [
    0.0,
    1e-9,
    0.01,
    0.3,
    1.0,
    1.39,
    1.41,
    5.0,
    50.0,
]  # sigma / h, on both sides of where the trapezoidal rule takes over
COARSE = 1e-9  # the ninth and tenth powers of spacings near 0.1, with Lagrange constants
MIDPOINT = (
    1e-4  # the midpoint rule at h = 0.05: h^2 / 24 times the slope 0.24 of the normal density
)
# parabolas of size 1e4 a hundred box widths outside, from slopes known to rounding over a spacing
FAR = 1e-8


def sample(
    grid: Grid, function: Callable[[Tensor], Tensor], extrapolation: float = 1.0
) -> ValueGrid:
    """A function and its gradient at the nodes."""
    x = grid.nodes.requires_grad_(True)
    value = function(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    return ValueGrid(grid, value.detach(), gradient, extrapolation)


def line(nodes: int, half_width: float) -> Grid:
    return Grid.box(t(-half_width), t(half_width), (nodes,))


PLANE = Grid.box(t(-6.0, -5.0), t(6.0, 7.0), (121, 101))


@pytest.mark.parametrize("ratio", RATIOS)
def test_smoothing_a_sine_damps_it_by_the_gaussian_characteristic_function(ratio: float):
    grid, w = line(1201, 30.0), 0.7
    sigma = ratio * float(grid.spacing[0])
    smooth = sample(grid, lambda x: torch.sin(w * x[:, 0] + 0.4)).smooth(t(sigma))
    x, damping = torch.linspace(-4, 4, 37, dtype=F64)[:, None], math.exp(-((w * sigma) ** 2) / 2)
    phase = w * x[:, 0] + 0.4
    gradient, hessian = smooth.derivatives(x)
    assert (smooth.value(x) - damping * phase.sin()).abs().max() < ROUNDING
    assert (gradient[:, 0] - damping * w * phase.cos()).abs().max() < ROUNDING
    assert (smooth.gradient(x) - gradient).abs().max() == 0
    assert (hessian[:, 0, 0] + damping * w**2 * phase.sin()).abs().max() < SLOPE


@pytest.mark.parametrize("ratio", RATIOS)
def test_smoothing_an_exponential_multiplies_it_by_its_moment_generating_function(ratio: float):
    grid, a = line(1201, 30.0), 0.3
    sigma = ratio * float(grid.spacing[0])
    smooth = sample(grid, lambda x: torch.exp(a * x[:, 0])).smooth(t(sigma))
    x = torch.linspace(-4, 4, 37, dtype=F64)[:, None]
    expected = torch.exp(a * x[:, 0] + (a * sigma) ** 2 / 2)
    gradient, hessian = smooth.derivatives(x)
    assert ((smooth.value(x) / expected - 1).abs()).max() < ROUNDING
    assert ((gradient[:, 0] / (a * expected) - 1).abs()).max() < SLOPE
    assert ((hessian[:, 0, 0] / (a**2 * expected) - 1).abs()).max() < 10 * SLOPE


@pytest.mark.parametrize("sigma", [(0.0, 0.3), (0.25, 0.0), (0.05, 0.4), (0.15, 0.17), (0.0, 0.0)])
def test_smoothing_in_the_plane_acts_on_each_axis_with_its_own_scale(sigma: tuple[float, float]):
    w = t(0.5, -0.8)
    smooth = sample(PLANE, lambda x: torch.sin(x @ w)).smooth(t(*sigma))
    x = 1.5 * (2 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0), dtype=F64) - 1)
    damping, phase = math.exp(-float(((w * t(*sigma)) ** 2).sum()) / 2), x @ w
    gradient, hessian = smooth.derivatives(x)
    assert (smooth.value(x) - damping * phase.sin()).abs().max() < ROUNDING
    assert (gradient - damping * phase.cos()[:, None] * w).abs().max() < ROUNDING
    assert (hessian + damping * phase.sin()[:, None, None] * torch.outer(w, w)).abs().max() < SLOPE


@pytest.mark.parametrize("ratio", RATIOS)
def test_smoothing_adds_the_moments_of_the_normal_law_to_a_polynomial(ratio: float):
    """Of any degree up to the interpolant's: E (x + s W)^9 by the binomial theorem with moments 1,
    3, 15, 105.
    """
    grid = line(1201, 30.0)
    sigma = ratio * float(grid.spacing[0])
    smooth = sample(grid, lambda x: (x[:, 0] / 3) ** DEGREE).smooth(t(sigma))
    x = torch.linspace(-3, 3, 13, dtype=F64)
    moments = {0: 1.0, 2: 1.0, 4: 3.0, 6: 15.0, 8: 105.0}
    expected = sum(
        math.comb(DEGREE, j) * m * (sigma / 3) ** j * (x / 3) ** (DEGREE - j)
        for j, m in moments.items()
    )
    largest = (4 + 3 * sigma / 3) ** DEGREE
    assert (smooth.value(x[:, None]) - expected).abs().max() < ROUNDING * largest


@pytest.mark.parametrize("ratio", [0.0, 0.01, 0.5, 1.39, 1.41, 5.0, 50.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_quadratic_functions_are_exact_everywhere(dim: int, ratio: float):
    grid = line(241, 6.0) if dim == 1 else Grid.box(t(-6.0, -4.0), t(6.0, 5.0), (41, 31))
    P, q = t(1.4, 0.3, 0.3, -0.9).reshape(2, 2)[:dim, :dim], t(-1.3, 0.5)[:dim]
    sigma = ratio * grid.spacing * t(1.0, 0.6)[:dim]
    value = sample(grid, lambda x: ((x @ P) * x).sum(1) / 2 + x @ q + 0.2)
    smooth = value.smooth(sigma)
    x = 300 * (2 * torch.rand(200, dim, generator=torch.Generator().manual_seed(1), dtype=F64) - 1)
    expected, slope, size = (
        ((x @ P) * x).sum(1) / 2 + x @ q + 0.2,
        x @ P + q,
        float(x.square().sum(1).max()),
    )
    lift = float((sigma.square() * P.diag()).sum()) / 2
    assert (value.at(x) - expected).abs().max() < FAR * size
    assert (value.gradient_at(x) - slope).abs().max() < FAR
    assert (smooth.value(x) - expected - lift).abs().max() < FAR * size
    assert (smooth.gradient(x) - slope).abs().max() < FAR
    assert (smooth.derivatives(x)[0] - slope).abs().max() < FAR
    assert (smooth.hessian_at_nodes - P).abs().max() < SLOPE


def test_with_constant_extrapolation_gradients_are_constant_along_every_ray_that_leaves_the_box():
    value = sample(
        PLANE, lambda x: torch.sin(x[:, 0]) * torch.cos(0.5 * x[:, 1]), extrapolation=0.0
    )
    smooth = value.smooth(t(0.3, 0.2))
    x = t(7.0, 2.0, 9.0, -8.0, 0.3, 50.0).reshape(3, 2)
    edge = PLANE.clamp(x)
    for field in (value.gradient_at, smooth.gradient, lambda y: smooth.derivatives(y)[0]):
        assert (field(x) - field(edge)).abs().max() == 0
    for function, gradient in ((value.at, value.gradient_at), (smooth.value, smooth.gradient)):
        linear = function(edge) + (gradient(edge) * (x - edge)).sum(1)
        assert (function(x) - linear).abs().max() < ROUNDING * 50


def test_linear_functions_are_exact_everywhere_with_constant_extrapolation():
    w = t(0.7, -1.1)
    value = sample(PLANE, lambda x: x @ w + 0.5, extrapolation=0.0)
    smooth, x = value.smooth(t(2.0, 0.05)), 100 * randn(2, 50, 2)
    assert (value.at(x) - x @ w - 0.5).abs().max() < ROUNDING * 300
    assert (smooth.value(x) - x @ w - 0.5).abs().max() < ROUNDING * 300
    assert (smooth.gradient(x) - w).abs().max() < ROUNDING


@pytest.mark.parametrize("extrapolation", [0.0, 1.0])
def test_smoothing_at_the_edge_integrates_the_continued_function(extrapolation: float):
    """r = x^3 / 6 on [-1, 1], continued by its first or second Taylor polynomial; scipy integrates
    the continuation.
    """
    grid, sigma = line(161, 1.0), 0.2
    h = float(grid.spacing[0])
    smooth = sample(grid, lambda x: x[:, 0] ** 3 / 6, extrapolation).smooth(t(sigma))

    def continued(x: float) -> float:
        c = min(max(x, -1.0), 1.0)
        secant = (
            (1 - h / 2) * math.copysign(1.0, c) if abs(x) > 1 else 0.0
        )  # the slope of x^2 / 2 over the last cell
        return c**3 / 6 + c**2 / 2 * (x - c) + extrapolation * secant * (x - c) ** 2 / 2

    for x in (1.0, 0.95, -0.9, 0.2):

        def density(u, x=x):
            return (
                continued(u)
                * math.exp(-(((u - x) / sigma) ** 2) / 2)
                / (sigma * math.sqrt(2 * math.pi))
            )

        expected = quad(
            density, x - 9 * sigma, x + 9 * sigma, points=[-1.0, 1.0], epsabs=1e-13, limit=200
        )[0]
        jump = (
            h**4 / sigma**3
        )  # Euler-Maclaurin for a second derivative that jumps at a node, a factor 1 / 240 to spare
        assert abs(float(smooth.value(t(x)[:, None])) - expected) < jump


def test_interpolation_reproduces_its_own_degree_and_no_more():
    grid, x = line(41, 2.0), torch.linspace(-2, 2, 97, dtype=F64)[:, None]
    error = [
        float((grid.interpolate(grid.nodes**p, x) - x**p).abs().max()) for p in range(STENCIL + 1)
    ]
    assert max(error[:STENCIL]) < ROUNDING * 2**DEGREE
    assert error[STENCIL] > 100 * ROUNDING * 2**DEGREE


def test_interpolation_converges_at_its_order():
    x = torch.linspace(-2, 2, 301, dtype=F64)[:, None]

    def error(nodes: int) -> float:
        grid = line(nodes, 2.0)
        return float(
            (grid.interpolate(torch.sin(5 * grid.nodes), x) - torch.sin(5 * x)).abs().max()
        )

    order = math.log2(error(31) / error(61))
    assert STENCIL - 1 < order < STENCIL + 1.5


def test_interpolation_error_is_lagranges_remainder_for_a_centred_stencil():
    """|f^(10)| h^10 / 10! times |(s + 4) ... (s - 5)|, largest in the middle of a cell; a stencil
    one node off errs 22% more.
    """
    grid, w = line(61, 2.0), 5.0
    x = torch.linspace(-1.2, 1.2, 4001, dtype=F64)[:, None]
    error = float((grid.interpolate(torch.sin(w * grid.nodes), x) - torch.sin(w * x)).abs().max())
    middle = math.prod(0.5 + j for j in range(STENCIL // 2)) ** 2
    remainder = (w * float(grid.spacing[0])) ** STENCIL / math.factorial(STENCIL) * middle
    assert 0.95 < error / remainder < 1.02


def test_interpolation_in_the_plane_is_the_product_of_the_axes():
    x = torch.stack(
        [torch.linspace(-5.9, 6, 40, dtype=F64), torch.linspace(7, -5, 40, dtype=F64)], 1
    )
    field = torch.sin(PLANE.nodes[:, :1]) * torch.cos(0.7 * PLANE.nodes[:, 1:])
    exact = torch.sin(x[:, :1]) * torch.cos(0.7 * x[:, 1:])
    assert (PLANE.interpolate(field, x) - exact).abs().max() < COARSE
    assert (PLANE.interpolate(field, PLANE.nodes) - field).abs().max() < ROUNDING


@pytest.mark.parametrize("extrapolation", [0.0, 1.0])
def test_continuation_is_differentiable_inside_and_outside(extrapolation: float):
    grid = line(31, 3.0)
    fields = torch.sin(grid.nodes)
    x = t(0.31, -2.2, 3.05, -3.01, 3.5, -40.0)[:, None].requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: grid.extend(fields, y, extrapolation), (x,))
    plane = Grid.box(t(-3.0, -2.0), t(3.0, 2.0), (31, 21))
    fields = torch.stack(
        [torch.sin(plane.nodes[:, 0]) * plane.nodes[:, 1], torch.cos(plane.nodes.sum(1))], 1
    )
    x = t(3.5, 0.3, 0.2, 0.3, 1.0, -2.4, -3.3, 2.9).reshape(4, 2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y: plane.extend(fields, y, extrapolation), (x,))


def test_the_derivative_at_nodes_and_at_the_ends_of_the_box_is_the_functions():
    grid = line(61, 3.0)
    x = grid.nodes[[0, 1, 20, 33, -1]].requires_grad_(True)
    (slope,) = torch.autograd.grad(grid.extend(torch.sin(grid.nodes), x).sum(), x)
    assert (slope - torch.cos(x)).abs().max() < COARSE


def test_continuation_is_continuous_and_has_the_slope_of_the_last_cell():
    grid = line(61, 3.0)
    fields = torch.sin(grid.nodes)
    secant = (math.sin(3) - math.sin(2.9)) / 0.1
    for excess in (1e-13, 0.05, 0.1, 3.0, 1e8):
        found = float(grid.extend(fields, t(3 + excess)[:, None]))
        assert abs(found - math.sin(3) - secant * excess) < SLOPE * (1 + excess)


@pytest.mark.parametrize(
    "grid", [line(41, 2.0), Grid.box(t(-2.0, -1.0), t(1.5, 1.0), (25, 15))], ids=["line", "plane"]
)
def test_scatter_is_the_transpose_of_interpolation_and_drops_what_is_outside(grid: Grid):
    x = grid.lower + (grid.upper - grid.lower) * torch.rand(
        60, grid.dim, generator=torch.Generator().manual_seed(3), dtype=F64
    )
    masses, fields = randn(4, 60), randn(5, math.prod(grid.shape), 1)
    direct = float(masses @ grid.interpolate(fields, x)[:, 0])
    assert abs(float(grid.scatter(masses, x) @ fields[:, 0]) - direct) < ROUNDING * 100
    outside = torch.cat([x, grid.upper[None] + t(0.1)])
    assert torch.equal(
        grid.scatter(torch.cat([masses, t(7.0)]), outside),
        grid.scatter(torch.cat([masses, t(0.0)]), outside),
    )


@pytest.mark.parametrize("ratio", [(0.0, 0.0), (0.3, 0.7), (1.0, 0.0), (1.41, 1.39), (2.5, 0.01)])
@pytest.mark.parametrize("dim", [1, 2])
def test_diffusion_of_mass_is_the_transpose_of_smoothing(dim: int, ratio: tuple[float, float]):
    """For any field at all, when the mass stays a kernel's reach away from the edges."""
    grid = line(161, 8.0) if dim == 1 else Grid.box(t(-6.0, -4.0), t(6.0, 4.0), (81, 71))
    sigma = t(*ratio)[:dim] * grid.spacing
    field = randn(6, math.prod(grid.shape))
    smoothed = ValueGrid(grid, field, torch.zeros(len(field), dim, dtype=F64)).smooth(sigma)
    offset = (grid.nodes - (grid.lower + grid.upper) / 2) / grid.spacing
    masses = torch.where((offset.abs() < 10).all(1), randn(7, len(field)), 0.0)
    direct = float(masses @ smoothed.fields[:, 0])
    assert abs(float(grid.diffuse(masses, sigma) @ field) - direct) < ROUNDING * 100


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.39, 1.41, 4.0])
def test_a_diffused_point_mass_has_the_moments_of_a_normal_law(ratio: float):
    grid = line(201, 5.0)
    sigma, start = ratio * float(grid.spacing[0]), 0.3141
    masses = grid.diffuse(grid.scatter(t(1.0), t(start)[:, None]), t(sigma))
    apart = grid.nodes[:, 0] - start
    for power, moment in (
        (0, 1.0),
        (1, 0.0),
        (2, sigma**2),
        (3, 0.0),
        (4, 3 * sigma**4),
        (6, 15 * sigma**6),
    ):
        assert abs(float(masses @ apart**power) - moment) < ROUNDING


def test_what_diffuses_out_of_the_box_is_lost():
    grid = line(201, 5.0)
    kept = grid.diffuse(grid.scatter(t(1.0), t(4.0)[:, None]), t(1.0))
    below = 0.5 * (
        1 + math.erf((1.0 + float(grid.spacing[0]) / 2) / math.sqrt(2))
    )  # the last node stands for half a cell more
    assert abs(float(kept.sum()) - below) < MIDPOINT


def test_jacobian_of_fields_is_exact_to_the_order_of_the_stencil_and_for_lines_at_the_edges():
    grid = line(61, 3.0)
    x = grid.nodes[:, 0]
    fields = torch.stack([x**STENCIL, torch.sin(x), 2 * x - 1], 1)
    slopes = torch.stack([STENCIL * x**DEGREE, x.cos(), torch.full_like(x, 2.0)], 1)
    apart = (grid.jacobian(fields)[..., 0] - slopes).abs()
    inner = slice(STENCIL // 2, -(STENCIL // 2))
    assert apart[inner, 0].max() < SLOPE * 3**STENCIL
    assert apart[inner, 1].max() < COARSE
    assert apart[:, 2].max() < SLOPE


def test_jacobian_in_the_plane_has_fields_by_axes():
    W = t(1.0, -2.0, 0.5, 3.0, 0.0, 1.0).reshape(3, 2)
    assert (PLANE.jacobian(PLANE.nodes @ W.T) - W).abs().max() < SLOPE


@pytest.mark.parametrize("dim", [1, 2])
def test_the_tensor_rule_has_the_moments_of_the_standard_normal_law(dim: int):
    points, weights = tensor_rule(dim)
    a = t(0.8, -1.1)[:dim]
    assert abs(float(weights.sum()) - 1) < ROUNDING
    assert (weights @ points).abs().max() < ROUNDING
    assert ((points.T * weights) @ points - torch.eye(dim, dtype=F64)).abs().max() < ROUNDING
    assert abs(float(weights @ (points @ a).exp()) / math.exp(float(a @ a) / 2) - 1) < ROUNDING
    assert abs(float(weights @ (3 * points[:, 0]).cos()) - math.exp(-4.5)) < ROUNDING


def test_nodes_run_over_the_last_axis_fastest_between_both_corners():
    grid = Grid.box(t(-1.0, 2.0), t(1.0, 4.0), (11, 21))
    expected = [(a, b) for a in np.linspace(-1, 1, 11) for b in np.linspace(2, 4, 21)]
    assert (grid.nodes - torch.tensor(expected, dtype=F64)).abs().max() < ROUNDING
    assert (grid.upper - t(1.0, 4.0)).abs().max() < ROUNDING


@pytest.mark.parametrize(
    ("lower", "upper", "shape", "message"),
    [
        ((0.0,), (1.0,), (9,), r"a grid of shape \(9,\) is too small; use at least 10"),
        ((0.0, 0.0), (1.0, 1.0), (20, 5), r"a grid of shape \(20, 5\) is too small"),
        ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (20, 20, 20), "3 dimensions; grids have 1 or 2"),
        ((0.0, 0.0), (1.0, 1.0), (20,), r"a grid of shape \(20,\) for 2 dimensions"),
        ((0.0,), (0.0,), (20,), "upper must exceed lower"),
        ((0.0,), (math.nan,), (20,), r"upper\[0\] = nan; it must be a finite number"),
    ],
)
def test_grids_that_cannot_interpolate_are_refused(
    lower: tuple, upper: tuple, shape: tuple, message: str
):
    with pytest.raises(InvalidProblem, match=message):
        Grid.box(t(*lower), t(*upper), shape)
