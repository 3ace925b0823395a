"""Policies and references on a table: one step or one per sample, shapes, dtypes, inverses and
closed forms.
"""

from __future__ import annotations

import pydoc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from socft.checks import InvalidProblem
from socft.density import GaussianMixture, score_reference
from socft.policy import (
    AffinePolicy,
    FeaturePolicy,
    FunctionPolicy,
    MLPPolicy,
    Policy,
    ResidualPolicy,
    ScaledPolicy,
    StepwisePolicy,
    Uncontrolled,
)
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    Reference,
    ScalarDiffusion,
    SpectralMaps,
    at_step,
    by_step,
)
from socft.regression.features import Polynomial, RadialBasis, RandomFourier
from socft.regression.networks import OCTAVES, TimeEmbedding, octaves
from socft.schedule import ddim, ddpm, linear_levels, soften_last, subsample
from socft.sde import DriftSDE, EulerMaruyama
from socft.truth.grid import Grid, GridPolicy
from tests.support.tensors import F64, randn, t

ROUNDING = 1e-13  # the same few operations in another order
SINGLE = 1e-5  # float32 states of order 3 through maps of slope near 1
STEPS = 3


def levels() -> Tensor:
    return subsample(linear_levels(1000), STEPS)


MIXTURE = GaussianMixture([0.3, 0.7], [[-1.0, 0.5], [1.2, -0.4]], 0.4)
BASIS = torch.linalg.qr(randn(0, 2, 2)).Q
SIGMA = t(0.5, 0.3, 0.2)
IMAGES = KernelReference(
    lambda k, x: x * at_step(t(0.9, 0.8, 0.7), k, x) + at_step(t(0.0, 0.1, 0.2), k, x),
    ScalarDiffusion(SIGMA),
    STEPS,
    (3, 4, 4),
)
REFERENCES: dict[str, Reference] = {
    "score, DDPM": score_reference(MIXTURE, ddpm(levels())),
    "score, DDIM": score_reference(MIXTURE, ddim(soften_last(levels()), 0.7)),
    "affine, matrices": AffineReference(
        randn(1, STEPS, 2, 2),
        MatrixDiffusion(randn(2, STEPS, 2, 3)),
        randn(3, STEPS, 2),
        t(1.0, 2.0),
    ),
    "affine, spectral": AffineReference(
        SpectralMaps(randn(4, STEPS, 2), BASIS), ScalarDiffusion(SIGMA), randn(5, STEPS, 2)
    ),
    "affine, degenerate": AffineReference(
        randn(6, STEPS, 2, 2), MatrixDiffusion(randn(7, STEPS, 2, 1))
    ),
    "Euler": (
        EulerMaruyama().chain(
            DriftSDE(lambda time, x: torch.sin(x) + time, torch.tensor([[0.0], [0.5]]), 1.2), STEPS
        )
    ),
    "images": IMAGES,
}
each_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=list(REFERENCES))
K = torch.tensor([2, 0, 1, 1, 0, 2, 2])


def states(reference: Reference, seed: int = 8) -> Tensor:
    return randn(seed, len(K), *reference.dims)


def one_by_one(function: Callable[..., Tensor], *fields: Tensor) -> Tensor:
    return torch.cat([function(int(k), *(f[i : i + 1] for f in fields)) for i, k in enumerate(K)])


@each_reference
def test_every_map_of_a_reference_takes_one_step_or_one_per_sample(reference: Reference):
    x, z = states(reference), randn(9, len(K), *reference.noise_dims)
    diffusion = reference.diffusion
    for function, fields in (
        (reference.mean, (x,)),
        (reference.step, (x, z)),
        (diffusion.apply, (x, z)),
        (diffusion.transpose, (x, x)),
        (diffusion.whiten, (x, x)),
    ):
        together = function(K, *fields)
        assert (together - one_by_one(function, *fields)).abs().max() < ROUNDING * (
            1 + float(together.abs().max())
        )


@each_reference
def test_kernels_are_the_mean_plus_the_noise_and_keep_shapes_and_single_precision(
    reference: Reference,
):
    x, z = states(reference), randn(10, len(K), *reference.noise_dims)
    for k in (1, K):
        full = reference.step(k, x, z)
        assert full.shape == x.shape
        assert torch.equal(full, reference.mean(k, x) + reference.diffusion.apply(k, x, z))
        single = reference.step(k, x.float(), z.float())
        assert single.dtype == torch.float32
        assert (single - full).abs().max() < SINGLE * (1 + float(full.abs().max()))
        assert reference.diffusion.transpose(k, x, x.float()).dtype == torch.float32
        assert reference.diffusion.whiten(k, x, x.float()).shape == z.shape
    assert reference.initial(x.float()).dtype == torch.float32


@each_reference
def test_the_transpose_is_the_adjoint_and_whitening_the_pseudo_inverse(reference: Reference):
    x, z, a = states(reference), randn(11, len(K), *reference.noise_dims), states(reference, 12)
    diffusion = reference.diffusion
    forward = (diffusion.apply(K, x, z) * a).flatten(1).sum(1)
    backward = (z * diffusion.transpose(K, x, a)).flatten(1).sum(1)
    assert (forward - backward).abs().max() < ROUNDING * 100
    pushed = diffusion.apply(K, x, z)
    least = diffusion.whiten(K, x, pushed)
    assert (diffusion.apply(K, x, least) - pushed).abs().max() < ROUNDING * 100
    assert (least.flatten(1).norm(dim=1) <= z.flatten(1).norm(dim=1) * (1 + ROUNDING)).all()
    assert (
        diffusion.whiten(K, x, diffusion.apply(K, x, least)) - least
    ).abs().max() < ROUNDING * 100


@pytest.mark.parametrize("name", ["score, DDPM", "score, DDIM"])
def test_score_and_whitened_control_are_inverse_to_each_other(name: str):
    """U = s + sqrt(a) sigma v / g gives the kernel's mean (y + g U) / sqrt(a) = m + sigma v."""
    reference = REFERENCES[name]
    assert hasattr(reference, "score_of")
    x, v = states(reference), randn(13, len(K), 2)
    for k in (2, K):
        score = reference.score_of(k, x, v)  # type: ignore[attr-defined]
        assert (reference.control_of(k, x, score) - v).abs().max() < ROUNDING * 100  # type: ignore[attr-defined]
        schedule = reference.schedule  # type: ignore[attr-defined]
        mean = (x + at_step(schedule.score_weight, k, x) * score) / at_step(
            schedule.alpha, k, x
        ).sqrt()
        assert (mean - reference.step(k, x, v)).abs().max() < ROUNDING * 100


def test_steps_are_sorted_apart_and_put_back_in_order():
    x = torch.arange(7, dtype=F64)[:, None]
    assert torch.equal(by_step(K, x, lambda k, rows: 10 * rows + k), 10 * x + K[:, None])
    assert torch.equal(by_step(1, x, lambda k, rows: 10 * rows + k), 10 * x + 1)
    seen = []
    by_step(K, x, lambda k, rows: seen.append((k, len(rows))) or rows)
    assert sorted(seen) == [(0, 2), (1, 2), (2, 3)]


def test_an_empty_batch_has_an_empty_result_of_the_right_shape():
    none, x = torch.zeros(0, dtype=torch.long), torch.zeros(0, 2, dtype=F64)
    assert by_step(none, x, lambda _, rows: rows[:, :1]).shape == (0, 1)
    assert by_step(none, x, lambda _, rows: rows.sum(1)).shape == (0,)
    seen = []
    by_step(none, x, lambda k, rows: seen.append((k, len(rows))) or rows)
    assert seen == [(0, 0)]


def fine_tuned(k, x: Tensor) -> Tensor:
    return torch.tanh(x) * at_step(t(0.5, 1.0, 1.5), k, x)


def grid_policy(bend: float) -> Policy:
    grids = [Grid.box(t(-3.0 - k, -2.0), t(3.0, 2.0 + k), (14 + k, 12)) for k in range(STEPS)]
    return GridPolicy(grids, [torch.sin(g.nodes @ randn(14, 2, 3)) for g in grids], bend)


WIDE = REFERENCES["affine, matrices"]
POLICIES: dict[str, tuple[Reference, Callable[[], Policy]]] = {
    "uncontrolled": (WIDE, lambda: Uncontrolled(WIDE)),
    "uncontrolled images": (IMAGES, lambda: Uncontrolled(IMAGES)),
    "function": (IMAGES, lambda: FunctionPolicy(fine_tuned)),
    "affine": (WIDE, lambda: AffinePolicy(randn(15, STEPS, 3, 2), randn(16, STEPS, 3))),
    "polynomial": (WIDE, lambda: FeaturePolicy(Polynomial(3), randn(17, STEPS, 3, 10))),
    "bumps": (
        WIDE,
        lambda: FeaturePolicy(RadialBasis(randn(18, 4, 2), 0.7), randn(19, STEPS, 3, 7)),
    ),
    "waves": (
        WIDE,
        lambda: FeaturePolicy(RandomFourier(randn(20, 4, 2), randn(21, 4)), randn(22, STEPS, 3, 7)),
    ),
    "network": (WIDE, lambda: trained(MLPPolicy(WIDE, 8, 2, torch.Generator().manual_seed(0)))),
    "grid": (WIDE, lambda: grid_policy(1.0)),
    "grid, constant outside": (WIDE, lambda: grid_policy(0.0)),
    "stepwise": (
        WIDE,
        lambda: StepwisePolicy(
            [lambda x, k=k: torch.cat([x, x[:, :1] ** k], 1) for k in range(STEPS)]
        ),
    ),
    "residual": (WIDE, lambda: ResidualPolicy(WIDE, fine_tuned)),
    "residual images": (IMAGES, lambda: ResidualPolicy(IMAGES, fine_tuned)),
    "scaled": (
        WIDE,
        lambda: ScaledPolicy(
            AffinePolicy(randn(15, STEPS, 3, 2), randn(16, STEPS, 3)), t(0.0, 0.5, 2.0)
        ),
    ),
    "scaled images": (IMAGES, lambda: ScaledPolicy(FunctionPolicy(fine_tuned), t(0.0, 0.5, 2.0))),
}
each_policy = pytest.mark.parametrize("name", POLICIES)


def trained(policy: MLPPolicy) -> MLPPolicy:
    with torch.no_grad():
        for i, p in enumerate(policy.parameters()):
            p.add_(0.3 * randn(30 + i, *p.shape))
    return policy


@each_policy
def test_every_policy_takes_one_step_or_one_per_sample(name: str):
    reference, make = POLICIES[name]
    policy, x = make(), 2 * states(reference)
    together = policy(K, x)
    assert together.shape == (len(K), *reference.noise_dims)
    assert (together - one_by_one(policy, x)).abs().max() < ROUNDING * 100 * (
        1 + float(together.detach().abs().max())
    )
    if "uncontrolled" not in name:
        assert (policy(torch.roll(K, 1), x) - together).abs().max() > 1e-3


@each_policy
def test_single_precision_states_get_single_precision_controls(name: str):
    reference, make = POLICIES[name]
    policy, x = make(), states(reference)
    expected = policy(K, x)
    single = policy.to(torch.float32)(K, x.float())
    assert single.dtype == torch.float32
    assert (single - expected).abs().max() < 10 * SINGLE * (
        1 + float(expected.detach().abs().max())
    )


@each_policy
def test_every_sample_is_treated_alone(name: str):
    """Permuting the batch permutes the controls."""
    reference, make = POLICIES[name]
    policy, x, order = make(), states(reference), torch.tensor([3, 1, 6, 0, 2, 5, 4])
    assert (policy(K[order], x[order]) - policy(K, x)[order]).abs().max() < ROUNDING * 100


@pytest.mark.parametrize("reference", [WIDE, REFERENCES["affine, degenerate"]])
def test_parametric_policies_start_at_the_pre_trained_model(reference: Reference):
    x = states(reference)
    for policy in (AffinePolicy.zeros(reference), MLPPolicy(reference)):
        assert policy(K, x).abs().max() == 0
        assert policy(1, x).shape == (len(K), *reference.noise_dims)


def test_affine_and_feature_policies_are_what_their_names_say():
    gain, offset = randn(23, STEPS, 3, 2), randn(24, STEPS, 3)
    x = randn(25, 5, 2)
    for k in range(STEPS):
        by_hand = torch.stack([gain[k] @ y + offset[k] for y in x])
        assert (AffinePolicy(gain, offset)(k, x) - by_hand).abs().max() < ROUNDING * 10
    monomials = torch.stack(
        [torch.ones(5, dtype=F64), x[:, 0], x[:, 1], x[:, 0] ** 2, x[:, 0] * x[:, 1], x[:, 1] ** 2],
        1,
    )
    assert (Polynomial(2)(x) - monomials).abs().max() < ROUNDING * 10
    bumps = RadialBasis(t(0.5, -1.0)[None], 2.0)(x)
    by_hand = torch.exp(-((x - t(0.5, -1.0)) ** 2).sum(1) / 8)
    assert (
        bumps - torch.cat([by_hand[:, None], torch.ones(5, 1, dtype=F64), x], 1)
    ).abs().max() < ROUNDING


def test_random_waves_approximate_the_gaussian_kernel():
    """2 E cos(w'x + b) cos(w'y + b) = exp(-|x - y|^2 / (2 length^2)), within 4 standard errors of
    4000 waves.
    """
    features = RandomFourier.sample(4000, 2, 1.5, torch.Generator().manual_seed(26))
    x = randn(27, 6, 2)
    waves = features(x)[:, :4000]
    samples = 2 * waves[:, None] * waves[None]
    expected = torch.exp(-(torch.cdist(x, x) ** 2) / (2 * 1.5**2))
    assert ((samples.mean(2) - expected).abs() < 4 * samples.std(2) / 4000**0.5).all()


def test_the_policy_owns_its_parameters():
    gain, offset = torch.zeros(STEPS, 1, 2, dtype=F64), torch.zeros(STEPS, 1, dtype=F64)
    policy = AffinePolicy(gain, offset)
    gain += 1
    assert policy.gain.detach().abs().max() == 0
    assert {name for name, _ in policy.named_parameters()} == {"gain", "offset"}


def test_a_policy_is_trained_by_what_it_holds():
    network = nn.Linear(3, 3)
    inner = ResidualPolicy(WIDE, network)
    scaled = ScaledPolicy(inner, torch.ones(STEPS, dtype=F64))
    names = {"policy.fine_tuned.weight", "policy.fine_tuned.bias"}
    assert {name for name, _ in scaled.named_parameters()} == names
    assert [id(p) for p in scaled.parameters()] == [id(p) for p in network.parameters()]
    assert FunctionPolicy(lambda k, x: x).parameters() == []
    twice = ResidualPolicy(WIDE, network)
    twice.again = network  # type: ignore[attr-defined]
    assert len(twice.parameters()) == 2


def test_help_on_a_policy_is_about_policies():
    """The methods a reader sees are those of policies, not the hundred of torch modules."""
    for policy in (MLPPolicy, AffinePolicy, Uncontrolled):
        page = pydoc.plain(pydoc.render_doc(policy))
        assert len(page.splitlines()) < 80
        assert "named_parameters" in page
        assert "register_" not in page


def test_a_residual_policy_is_zero_at_the_reference_and_inverts_shifts():
    x, v = states(WIDE), randn(28, len(K), 3)
    assert ResidualPolicy(WIDE, WIDE.mean)(K, x).abs().max() == 0
    shifted = ResidualPolicy(WIDE, lambda k, y: WIDE.step(k, y, v))
    assert (
        WIDE.diffusion.apply(K, x, shifted(K, x)) - WIDE.diffusion.apply(K, x, v)
    ).abs().max() < ROUNDING * 100


def test_gradients_flow_through_both_branches_of_a_residual_policy():
    """Cutting the graph of the frozen branch changes the derivative in the state."""
    x = states(WIDE)[:1].requires_grad_(True)
    policy = ResidualPolicy(WIDE, fine_tuned)
    (slope,) = torch.autograd.grad(policy(1, x).sum(), x)
    h = 1e-6
    for i in range(2):
        step = h * torch.eye(2, dtype=F64)[i]
        difference = float((policy(1, x + step) - policy(1, x - step)).sum().detach()) / (2 * h)
        assert abs(float(slope[0, i]) - difference) < 1e-7  # h^2 and rounding over h


def test_grid_policies_from_shifts_push_by_those_shifts():
    reference = REFERENCES["affine, spectral"]
    grids = [Grid.box(t(-3.0, -3.0), t(3.0, 3.0), (12, 11))] * STEPS
    shifts = [randn(40 + k, 132, 2) for k in range(STEPS)]
    policy = GridPolicy.from_shifts(reference, grids, shifts)
    for k in range(STEPS):
        nodes = grids[k].nodes
        assert (
            reference.diffusion.apply(k, nodes, policy(k, nodes)) - shifts[k]
        ).abs().max() < ROUNDING * 100


def test_time_embeddings_tell_all_steps_apart():
    embedding = TimeEmbedding(1000, octaves(OCTAVES))
    rows = embedding(torch.arange(1000), torch.zeros(1000, 1, dtype=F64))
    apart = torch.cdist(rows, rows) + 10 * torch.eye(1000, dtype=F64)
    assert float(apart.min()) > 1e-2
    assert torch.equal(embedding(7, torch.zeros(2, 1, dtype=F64))[0], rows[7])


@pytest.mark.refusal
def test_policies_that_do_not_fit_together_are_refused():
    with pytest.raises(InvalidProblem, match=r"offset has shape \(3, 2\); give \(3, 1\)"):
        AffinePolicy(torch.zeros(3, 1, 2, dtype=F64), torch.zeros(3, 2, dtype=F64))
    grid = Grid.box(t(-1.0), t(1.0), (10,))
    with pytest.raises(InvalidProblem, match="2 grids for 1 controls; give one grid per step"):
        GridPolicy([grid, grid], [torch.zeros(10, 1, dtype=F64)])


def test_impossible_features_are_refused():
    with pytest.raises(InvalidProblem, match="degree = -1; give a whole number"):
        Polynomial(-1)
    with pytest.raises(InvalidProblem, match=r"width = 0.0; it must be a positive"):
        RadialBasis(torch.zeros(1, 1, dtype=F64), 0.0)
    with pytest.raises(InvalidProblem, match=r"length = -1.0; it must be a positive"):
        RandomFourier.sample(3, 1, -1.0, torch.Generator())
