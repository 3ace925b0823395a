"""Rewards: gradients against finite differences, Lipschitz constants against brute-force
maximisation, refusals.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil

import pytest
import torch
from torch import Tensor

import socft.reward
from socft.reward import (
    FunctionReward,
    Linear,
    LogSumExp,
    PseudoHuber,
    Quadratic,
    Reward,
    RidgeFunction,
    Separable,
    Sine,
    Softplus,
    Sum,
    as_quadratic,
)
from tests.support.refusals import refusals

ATTAINED = 1e-6  # relative: the grids below miss a maximum by less
NEVER_ABOVE = 1 + 1e-9  # round-off of the brute-force derivatives
DIFFERENCE_STEP = 1e-5  # central differences err by about step^2 and eps / step
DIFFERENCE_TOLERANCE = 1e-8
ROUNDED = 1e-11  # eigenvalues of a Hessian of rank one, up to about 50 in norm
ALGEBRA = 1e-12  # a few operations in float64

N = 4
GENERATOR = torch.Generator().manual_seed(20)
Q = torch.linalg.qr(torch.randn(N, N, generator=GENERATOR, dtype=torch.float64)).Q
W = torch.randn(5, N, generator=GENERATOR, dtype=torch.float64)
SYMMETRIC = W.T @ torch.diag(torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)) @ W
POINTS = 3 * torch.randn(50, N, generator=GENERATOR, dtype=torch.float64)

SCALARS: dict[str, Reward] = {
    "sine": Sine(1.7, 0.6, 0.3),
    "negative sine": Sine(-0.4, 3.0),
    "softplus": Softplus(2.0, 3.0, -0.5),
    "falling softplus": Softplus(-1.3, 0.4),
    "pseudo-Huber": PseudoHuber(0.7, 1.5, 2.0),
    "pseudo-Huber well": PseudoHuber(2.0, -1.0, -0.6),
}
VECTORS: dict[str, Reward] = {
    "linear": Linear(W[0], 0.4),
    "quadratic": Quadratic(SYMMETRIC, W[1], -1.0),
    "ridge": RidgeFunction(W[2], SCALARS["sine"]),
    "separable": Separable(
        Q, [SCALARS["sine"], SCALARS["softplus"], SCALARS["pseudo-Huber"], SCALARS["negative sine"]]
    ),
    "log-sum-exp": LogSumExp(W, torch.arange(5) / 5, 0.7),
    "sum": Sum([Linear(W[3]), RidgeFunction(W[2], SCALARS["softplus"])], [2.0, -0.5]),
    "function": FunctionReward(lambda x: (x[:, 0] * x[:, 1]).tanh() + x[:, 2] ** 3),
}


def test_every_reward_is_tested():
    """In a table whose gradients and constants are checked."""
    found = {
        each
        for module in pkgutil.iter_modules(socft.reward.__path__, "socft.reward.")
        for _, each in inspect.getmembers(importlib.import_module(module.name), inspect.isclass)
        if issubclass(each, Reward) and not inspect.isabstract(each)
    }
    assert found == {type(each) for each in (*SCALARS.values(), *VECTORS.values())}


def differences(reward: Reward, x: Tensor) -> Tensor:
    """Central finite differences of the reward."""
    columns = []
    for i in range(x.shape[1]):
        step = torch.zeros_like(x)
        step[:, i] = DIFFERENCE_STEP
        columns.append((reward(x + step) - reward(x - step)) / (2 * DIFFERENCE_STEP))
    return torch.stack(columns, 1)


def hessians(reward: Reward, x: Tensor) -> Tensor:
    """Hessians by automatic differentiation of the value."""
    y = x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(reward(y).sum(), y, create_graph=True)
    if not slope.requires_grad:
        return x.new_zeros(len(x), x.shape[1], x.shape[1])
    rows = [
        torch.autograd.grad(slope[:, i].sum(), y, retain_graph=True)[0] for i in range(x.shape[1])
    ]
    return torch.stack(rows, 1).detach()


def curvature(reward: Reward, x: Tensor) -> Tensor:
    """Operator norms of the Hessians."""
    return torch.linalg.matrix_norm(hessians(reward, x), 2)


@pytest.mark.parametrize("name", [*SCALARS, *VECTORS])
def test_gradient_is_the_finite_difference(name: str):
    reward, x = (SCALARS[name], POINTS[:, :1]) if name in SCALARS else (VECTORS[name], POINTS)
    expected = differences(reward, x)
    scale = 1 + float(reward(x).abs().max())
    assert (reward.gradient(x) - expected).abs().max() < DIFFERENCE_TOLERANCE * scale
    assert not reward.gradient(x.clone().requires_grad_(True)).requires_grad


@pytest.mark.parametrize("name", list(SCALARS))
def test_scalar_constants_are_suprema(name: str):
    reward = SCALARS[name]
    center = {"sine": 0.0, "negative sine": 0.0}.get(name, getattr(reward, "center", 0.0))
    near = center + torch.linspace(-12, 12, 240_001, dtype=torch.float64).unsqueeze(1)
    far = center + torch.tensor(
        [[-1e4], [1e4]], dtype=torch.float64
    )  # the limits that some suprema are
    x = torch.cat([near, far]).requires_grad_(True)
    (slope,) = torch.autograd.grad(reward(x).sum(), x, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), x)
    for measured, claimed in (
        (float(slope.detach().abs().max()), reward.L0),
        (float(bend.abs().max()), reward.L1),
        (float(bend.max().clamp(min=0)), reward.semiconcavity),
        (float((-bend).max().clamp(min=0)), reward.semiconvexity),
    ):
        assert claimed * (1 - ATTAINED) <= measured <= claimed * NEVER_ABOVE


@pytest.mark.parametrize("name", [name for name in VECTORS if name != "function"])
def test_vector_constants_are_never_exceeded(name: str):
    reward = VECTORS[name]
    assert float(reward.gradient(POINTS).norm(dim=1).max()) <= reward.L0 * NEVER_ABOVE
    assert float(curvature(reward, POINTS).max()) <= reward.L1 * NEVER_ABOVE + ALGEBRA
    spectrum = torch.linalg.eigvalsh(hessians(reward, POINTS))
    assert float(spectrum.max()) <= reward.semiconcavity * NEVER_ABOVE + ROUNDED
    assert float(-spectrum.min()) <= reward.semiconvexity * NEVER_ABOVE + ROUNDED
    assert max(reward.semiconcavity, reward.semiconvexity) <= reward.L1 * NEVER_ABOVE


def test_semiconcavity_tells_concave_rewards_from_convex_ones():
    """The signs of weights and slopes decide which of the two constants vanishes."""
    well, hill, rising = PseudoHuber(weight=-2.0), PseudoHuber(weight=2.0), Softplus(3.0, 2.0)
    falling = Softplus(-3.0, 2.0)
    assert (well.semiconcavity, well.semiconvexity) == (0, 2)
    assert (hill.semiconcavity, hill.semiconvexity) == (2, 0)
    assert (rising.semiconcavity, rising.semiconvexity) == (1.5, 0)
    assert (falling.semiconcavity, falling.semiconvexity) == (0, 1.5)
    assert VECTORS["log-sum-exp"].semiconvexity == 0
    mixed = Quadratic(torch.diag(torch.tensor([-2.0, 0.5])))
    assert (mixed.semiconcavity, mixed.semiconvexity) == (0.5, 2)
    one = torch.ones(1, 1)
    assert (Quadratic(-one).semiconcavity, Quadratic(one).semiconvexity) == (0, 0)
    turned = Sum([mixed, Linear(torch.ones(2))], [-3.0, 1.0])
    assert (turned.semiconcavity, turned.semiconvexity) == (6, 1.5)
    ridge = RidgeFunction(torch.tensor([3.0, 4.0]), well)
    assert (ridge.semiconcavity, ridge.semiconvexity) == (0, 50)
    both = Separable(torch.eye(2), [well, rising])
    assert (both.semiconcavity, both.semiconvexity) == (1.5, 2)
    told = FunctionReward(lambda x: -x.square().sum(1), L1=2.0, semiconcavity=0.0)
    assert (told.semiconcavity, told.semiconvexity) == (0, 2)


def test_linear_and_quadratic_constants():
    x = POINTS[:2]
    linear = VECTORS["linear"]
    assert float(linear.gradient(x).norm(dim=1)[0]) == pytest.approx(linear.L0, rel=ALGEBRA)
    assert linear.L1 == 0
    assert float(curvature(VECTORS["quadratic"], x)[0]) == pytest.approx(
        VECTORS["quadratic"].L1, rel=ATTAINED
    )
    assert math.isinf(VECTORS["quadratic"].L0)
    slopes = VECTORS["quadratic"].gradient(1e6 * POINTS[:1]).norm()
    assert slopes > 1e5  # no finite constant: the gradient grows with the state
    flat = Quadratic(torch.zeros(N, N), W[0], 0.4)
    assert math.isclose(flat.L0, linear.L0, rel_tol=ALGEBRA)
    assert torch.allclose(flat(x), linear(x), rtol=ALGEBRA)


def test_linear_takes_states_of_any_shape():
    w = torch.randn(2, 3, generator=GENERATOR, dtype=torch.float64)
    x = torch.randn(7, 2, 3, generator=GENERATOR, dtype=torch.float64)
    reward = Linear(w, 1.0)
    assert torch.allclose(reward(x), torch.einsum("bij,ij->b", x, w) + 1, rtol=ALGEBRA)
    assert reward.gradient(x).shape == x.shape


def test_ridge_constants_are_attained():
    reward = VECTORS["ridge"]
    assert isinstance(reward, RidgeFunction)
    along = (
        torch.linspace(-6, 6, 100_001, dtype=torch.float64).unsqueeze(1)
        * reward.q
        / reward.q.square().sum()
    )
    assert float(reward.gradient(along).norm(dim=1).max()) == pytest.approx(reward.L0, rel=ATTAINED)
    assert float(curvature(reward, along[::20]).max()) == pytest.approx(reward.L1, rel=ATTAINED)


def test_separable_suprema_add_up():
    """Each coordinate is placed where its own factor is steepest (or far out, for a limit): the sum
    attains both constants.
    """
    reward = VECTORS["separable"]
    assert isinstance(reward, Separable)
    steepest = [-0.3 / 0.6, 1e4, 1e4, 0.0]
    x = torch.tensor([steepest], dtype=torch.float64) @ Q.T
    assert float(reward.gradient(x).norm()) == pytest.approx(reward.L0, rel=ATTAINED)
    assert math.isclose(reward.L0, math.sqrt(sum(r.L0**2 for r in reward.scalars)), rel_tol=ALGEBRA)
    bent = [0.0, 0.0, 0.0, math.pi / 6]  # the last factor has the largest L1
    assert float(
        curvature(reward, torch.tensor([bent], dtype=torch.float64) @ Q.T)
    ) == pytest.approx(reward.L1, rel=ATTAINED)


def test_separable_is_the_sum_of_its_ridges():
    reward = VECTORS["separable"]
    assert isinstance(reward, Separable)
    ridges = Sum([RidgeFunction(Q[:, i], r) for i, r in enumerate(reward.scalars)])
    assert torch.allclose(reward(POINTS), ridges(POINTS), rtol=ALGEBRA)
    assert torch.allclose(
        reward.gradient(POINTS), ridges.gradient(POINTS), rtol=0, atol=ALGEBRA * reward.L0
    )
    assert reward.L0 < ridges.L0  # the sum's constants only add


def test_log_sum_exp_constants():
    reward = VECTORS["log-sum-exp"]
    longest = W[W.norm(dim=1).argmax()]
    assert float(reward.gradient(1e3 * longest.unsqueeze(0)).norm()) == pytest.approx(
        reward.L0, rel=ATTAINED
    )
    two = LogSumExp(W[:2], torch.tensor([0.3, -0.2]), 0.5)
    apart = W[0] - W[1]
    balanced = (-0.5 / apart.square().sum() * apart).unsqueeze(0)  # equal weights
    assert float(curvature(two, balanced)) == pytest.approx(two.L1, rel=ATTAINED)


def test_log_sum_exp_tends_to_the_maximum_and_is_stable():
    levels = POINTS @ W.T
    assert torch.allclose(LogSumExp(W, temperature=1e-6)(POINTS), levels.amax(1), atol=1e-5)
    assert torch.isfinite(LogSumExp(W)(1e6 * POINTS)).all()


@pytest.mark.parametrize("name", list(SCALARS))
def test_scalar_rewards_are_stable_far_out(name: str):
    x = torch.tensor([[-1e8], [1e8]], dtype=torch.float64)
    assert torch.isfinite(SCALARS[name](x)).all()
    assert float(SCALARS[name].gradient(x).abs().max()) <= SCALARS[name].L0 * NEVER_ABOVE


def test_sum_bounds_and_drops_zero_weights():
    endless = FunctionReward(lambda x: x[:, 0] ** 4)
    total = Sum([endless, Linear(W[0])], [0.0, 3.0])
    assert math.isclose(total.L0, 3 * float(W[0].norm()), rel_tol=ALGEBRA)
    assert torch.allclose(total(POINTS), 3 * (POINTS @ W[0]), rtol=ALGEBRA)


def test_as_quadratic_is_the_same_reward():
    total = Sum([VECTORS["quadratic"], VECTORS["linear"]], [0.5, -2.0])
    assert torch.allclose(as_quadratic(total)(POINTS), total(POINTS), rtol=1e3 * ALGEBRA)


def test_single_precision_stays_single():
    for reward in VECTORS.values():
        assert reward(POINTS.float()).dtype == torch.float32
        assert reward.gradient(POINTS.float()).dtype == torch.float32


REFUSALS = {
    "nan": (
        lambda: Linear(torch.tensor([0.0, math.nan])),
        r"w\[1\] = nan; it must be a finite number",
    ),
    "infinite c": (lambda: Linear(torch.ones(2), math.inf), "c = inf; it must be a finite number"),
    "rectangular": (
        lambda: Quadratic(torch.ones(2, 3)),
        r"P has shape \(2, 3\); give a square matrix",
    ),
    "asymmetric": (
        lambda: Quadratic(torch.tensor([[1.0, 2.0], [0.0, 1.0]])),
        r"P differs from its transpose by 2; give the symmetric part",
    ),
    "wrong q": (
        lambda: Quadratic(torch.eye(2), torch.ones(3)),
        r"q has shape \(3,\); give \(2,\)",
    ),
    "frequency": (lambda: Sine(1.0, 0.0), "frequency = 0.0; it must be a positive finite number"),
    "sharpness": (
        lambda: Softplus(1.0, -1.0),
        "sharpness = -1.0; it must be a positive finite number",
    ),
    "delta": (lambda: PseudoHuber(math.nan), "delta = nan; it must be a finite number"),
    "weight": (lambda: PseudoHuber(1.0, 0.0, math.inf), "weight = inf; it must be a finite number"),
    "no direction": (
        lambda: RidgeFunction(torch.zeros(3), Sine()),
        r"q = \[0.0, 0.0, 0.0\]; give a non-zero vector",
    ),
    "skewed": (
        lambda: Separable(torch.ones(2, 2), [Sine(), Sine()]),
        "miss orthonormality by 2; use the Q factor",
    ),
    "too few": (
        lambda: Separable(torch.eye(3), [Sine()]),
        "there are 1 scalar rewards for 3 directions; give one each",
    ),
    "temperature": (
        lambda: LogSumExp(torch.ones(2, 2), temperature=0.0),
        "temperature = 0.0; it must be a positive",
    ),
    "offsets": (
        lambda: LogSumExp(torch.ones(2, 3), torch.ones(3)),
        r"offsets has shape \(3,\); give \(2,\)",
    ),
    "empty sum": (lambda: Sum([]), "there are 0 rewards; give at least one"),
    "zero sum": (lambda: Sum([Sine()], [0.0]), "every weight is 0; give at least one that is not"),
    "weights": (lambda: Sum([Sine()], [1.0, 2.0]), r"weights has shape \(2,\); give \(1,\)"),
    "negative constant": (
        lambda: FunctionReward(torch.ones_like, L0=-1.0),
        "L0 = -1; a Lipschitz constant is at least 0",
    ),
    "scalar on vectors": (
        lambda: Sine()(torch.ones(2, 3)),
        r"shape \(2, 3\); give floating-point states of .* or wrap it in RidgeFunction",
    ),
    "no closed form": (
        lambda: as_quadratic(Sine()),
        "Sine has no closed-form tilt; use Linear, Quadratic",
    ),
}


test_refusals_say_what_and_how = refusals(REFUSALS)
