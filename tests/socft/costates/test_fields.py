"""Costate fields, martingale increments, fits over time and state, and marginal scores against
independent computations.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.costates.base import Cost, Costates
from socft.costates.directional import derivative, second_derivative
from socft.costates.fields import (
    CostateSource,
    GivenCostate,
    PolicyCostate,
    with_terminal,
    zero_field,
)
from socft.costates.marginal_score import (
    AffineMarginals,
    DenoisingScore,
    GivenScore,
    ImplicitScore,
    KernelScore,
    MarginalScore,
    ReferenceScore,
    TransitionScore,
)
from socft.costates.martingale import (
    AntitheticCorrection,
    ExactCorrection,
    FieldCorrection,
    FirstOrderCorrection,
    SecondOrderCorrection,
    correction_step,
)
from socft.costates.network import NetworkTraining, SpaceTimeRegression, published_huber
from socft.costates.network_score import NetworkScore
from socft.costates.regression import (
    CrossFittedPaths,
    FreshPaths,
    GradientField,
    PathSampling,
    StepwiseRegression,
    ValueRegression,
    ValueSamples,
    refine,
)
from socft.density import Gaussian, GaussianMixture, NoisedScore, affine_reference, score_reference
from socft.estimators.martingale_adjoint import MartingaleAdjoint
from socft.path import Noise, Path, rollout
from socft.policy import AffinePolicy, FunctionPolicy, Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.reference import (
    AffineReference,
    KernelReference,
    MatrixDiffusion,
    ScalarDiffusion,
    Step,
)
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.regression.networks import (
    ResidualSpaceTimeNetwork,
)
from socft.reward import FunctionReward, Quadratic
from socft.schedule import ddpm, linear_levels, subsample
from socft.truth.affine_policy import evaluate_affine
from socft.truth.linear_quadratic import LinearQuadratic
from socft.truth.quadrature import Quadrature
from tests.support.costate_cases import CORRECTIONS, STEPS, network_policy, quadratic_problem
from tests.support.tensors import F64, generator, randn, t
from toy.problems import fine_tuning
from verify.support.sampling import STDERRS, require_estimates

IDENTITY = 1e-12  # relative: the same products in another order
DIFFERENCE = 1e-7  # relative: central differences at step 1e-5 of functions of size 1
ENVELOPE = (
    1e-8  # an interpolated value gradient and a recomputed one, at nodes of a resolved problem
)
HERMITE = 1e-4  # relative: 20 and 30 nodes for functions that vary over one to two noise scales
CONVERGED = 1e-16  # a squared error of products of 20 matrices, from 1e-3 by 1e-2 a round
SCORED = 0.1  # relative mean square of a score estimated from thousands of samples


def curved_problem(m: int = 2) -> ControlProblem:
    reference = KernelReference(
        lambda k, x: 0.9 * x + 0.3 * torch.sin(x.roll(1, 1)),
        MatrixDiffusion(0.4 * randn(3, STEPS, 2, m)),
        STEPS,
        (2,),
    )
    return ControlProblem(
        reference,
        FunctionReward(lambda x: torch.sin(x).prod(1)),
        1.3,
        lambda k, x: x.square().sum(1) / 7,
    )


def wrong_field(k: Step, x: Tensor) -> Tensor:
    """Nothing to do with any problem."""
    step = k if isinstance(k, int) else k.to(x).unsqueeze(1)
    return torch.tanh(x @ randn(4, x.shape[1], x.shape[1]) + 0.3 * step) + 0.2 * x.roll(1, 1) ** 2


def paths(problem: ControlProblem, policy: Policy, batch: int, seed: int) -> Path:
    with torch.no_grad():
        return rollout(
            problem.reference, policy, Noise.sample(problem.reference, batch, generator(seed))
        )


# --- the field that a policy implies ---


def test_at_the_optimum_the_policys_field_is_the_value_gradient():
    truth = LinearQuadratic(quadratic_problem())
    phi, x = PolicyCostate().field(truth.problem, truth.affine_policy), randn(7, 50, 2)
    for k in range(STEPS + 1):
        assert (phi(k, x) - truth.value_gradient(k, x)).abs().max() < IDENTITY * 100
    cheap = PolicyCostate(exact=False).field(truth.problem, truth.affine_policy)
    assert (cheap(1, x) - truth.value_gradient(1, x)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["gaussian-sine", "mixture-huber"])
def test_at_a_nonlinear_optimum_too(name: str):
    truth = Quadrature(fine_tuning(name).problem(ddpm(subsample(linear_levels(1000), 3)), 2.0))
    phi = PolicyCostate().field(truth.problem, truth.policy)
    for k in range(4):
        x = truth.points(k)
        assert (phi(k, x) - truth.value_gradient(k, x)).abs().max() < ENVELOPE


def test_the_policys_field_is_the_derivative_of_the_mean_less_that_of_the_cost():
    """Central differences of m . (beta B^-T v(x)) - f with the control held."""
    problem = curved_problem()
    policy, h = network_policy(problem.reference), 1e-5
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    x, u = randn(8, 5, 2), randn(9, 5, 2)
    phi = PolicyCostate().field(problem, policy)
    with torch.no_grad():
        for k in range(STEPS):
            pushed = 1.3 * policy(k, x) @ torch.linalg.inv(problem.reference.diffusion.matrices[k])

            def potential(y: Tensor, k: int = k, pushed: Tensor = pushed) -> Tensor:
                return (problem.reference.mean(k, y) * pushed).sum(1) - y.square().sum(1) / 7

            slope = (potential(x + h * u) - potential(x - h * u)) / (2 * h)
            assert (slope - (phi(k, x) * u).sum(1)).abs().max() < DIFFERENCE * (
                1 + float(slope.abs().max())
            )
        assert (
            PolicyCostate(exact=False).field(problem, policy)(0, x)
            @ problem.reference.diffusion.matrices[0]
            / 1.3
            - policy(0, x)
        ).abs().max() < IDENTITY * 100


def test_where_the_noise_does_not_reach_the_field_sees_nothing():
    problem = curved_problem(m=1)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    B, x = problem.reference.diffusion.matrices[1], randn(10, 5, 2)
    found = PolicyCostate(exact=False).field(problem, network_policy(problem.reference))(1, x)
    across = torch.stack([-B[1], B[0]]).squeeze()
    assert (found @ across).abs().max() < IDENTITY
    assert (found @ B / 1.3 - network_policy(problem.reference)(1, x)).abs().max() < IDENTITY


@pytest.mark.parametrize(
    "make", [PolicyCostate(), PolicyCostate(exact=False)], ids=["exact", "cheap"]
)
def test_fields_take_one_step_per_sample_and_the_last(make: CostateSource):
    problem = curved_problem()
    phi = make.field(problem, network_policy(problem.reference))
    k, x = torch.tensor([0, 4, 2, 3, 4, 1]), randn(11, 6, 2)
    single = torch.cat([phi(int(i), row[None]) for i, row in zip(k, x, strict=True)])
    assert (phi(k, x) - single).abs().max() < IDENTITY * 10
    assert (phi(k[:1], x[:1]) - single[:1]).abs().max() < IDENTITY * 10
    assert (phi(k[1:2], x[1:2]) - problem.reward.gradient(x[1:2])).abs().max() < IDENTITY


# --- martingale increments ---


@dataclasses.dataclass(frozen=True)
class Cubic:
    """A field with known moments: each entry is (w.x)^3 + (u.x)^2 + v.x."""

    def __call__(self, k: Step, x: Tensor) -> Tensor:
        w, u, v = (randn(12 + i, 2, 2) for i in range(3))
        return (x @ w) ** 3 + (x @ u) ** 2 + x @ v


def increments(
    correction: FieldCorrection, problem: ControlProblem, policy: Policy, path: Path, k: int
) -> Tensor:
    found = correction.increment(problem, policy, path, k)
    assert not found.requires_grad
    return found


@pytest.mark.parametrize("make", CORRECTIONS)
@pytest.mark.parametrize("k", [1, STEPS - 1])
def test_increments_have_mean_zero_given_the_state(make: type[FieldCorrection], k: int):
    """By a 30 x 30 Gauss-Hermite rule over the noise of one step, from one state; the last step
    uses the reward's gradient.
    """
    problem = curved_problem()
    policy, x = network_policy(problem.reference), t(0.3, -0.8)
    node, share = (torch.from_numpy(each) for each in np.polynomial.hermite_e.hermegauss(30))
    z, weight = (
        torch.cartesian_prod(node, node),
        torch.cartesian_prod(share, share).prod(1) / (2 * math.pi),
    )
    path = at_one_state(problem, policy, k, x, z)
    found = increments(make(GivenCostate(wrong_field)), problem, policy, path, k)
    size = float((weight @ found.square()).max().sqrt())
    assert size > 0.05
    assert (weight @ found).abs().max() < HERMITE * size
    biased = found + wrong_field(k + 1, path.states[k + 1])
    assert (weight @ biased).abs().max() > 0.05 * size


def at_one_state(problem: ControlProblem, policy: Policy, k: int, x: Tensor, z: Tensor) -> Path:
    """A path that is at ``x`` at step k and sees the noises ``z`` there."""
    noise = torch.zeros(STEPS, len(z), 2, dtype=F64)
    noise[k] = z
    states = torch.zeros(STEPS + 1, len(z), 2, dtype=F64)
    states[k] = x
    with torch.no_grad():
        states[k + 1] = problem.reference.step(k, states[k], policy(k, states[k]) + z)
    return Path(states, torch.zeros_like(noise), Noise(states[0], noise))


def test_increments_are_the_parts_of_a_cubic_they_claim_to_be():
    """phi(c + e) - E phi = [odd in e] + [even in e] for a cubic: AntitheticCorrection is the odd
    part, and Exact is both exactly.

    The second-order form misses the cubic terms, the first-order one the quadratic too; E from the
    moments of a Gaussian.
    """
    problem = curved_problem()
    policy, k, z = network_policy(problem.reference), 1, randn(20, 40, 2)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    path = at_one_state(problem, policy, k, t(0.4, 0.1), z)
    e = z @ problem.reference.diffusion.matrices[k].T
    c, phi = path.states[k + 1] - e, Cubic()
    w, u, v = (randn(12 + i, 2, 2) for i in range(3))
    spread = problem.reference.diffusion.matrices[k] @ problem.reference.diffusion.matrices[k].T
    var_w, var_u = ((a.T @ spread @ a).diagonal() for a in (w, u))
    mean = (c @ w) ** 3 + 3 * (c @ w) * var_w + (c @ u) ** 2 + var_u + c @ v
    linear = 3 * (c @ w) ** 2 * (e @ w) + 2 * (c @ u) * (e @ u) + e @ v
    quadratic = 3 * (c @ w) * ((e @ w) ** 2 - var_w) + (e @ u) ** 2 - var_u
    expected = {
        FirstOrderCorrection: linear,
        AntitheticCorrection: linear + (e @ w) ** 3,
        SecondOrderCorrection: linear + quadratic,
        ExactCorrection: phi(k + 1, c + e) - mean,
    }
    for make, value in expected.items():
        found = increments(make(GivenCostate(phi)), problem, policy, path, k)
        assert (found - value).abs().max() < 1e-11 * (1 + float(value.abs().max()))


def test_the_last_step_can_be_left_alone():
    problem = curved_problem()
    policy = network_policy(problem.reference)
    path = paths(problem, policy, 5, 21)
    for make in CORRECTIONS:
        on, off = make(GivenCostate(wrong_field)), make(GivenCostate(wrong_field), last=False)
        assert bool((off.increment(problem, policy, path, STEPS - 1) == 0).all())
        assert bool((on.increment(problem, policy, path, STEPS - 1) != 0).all())
        assert torch.equal(
            on.increment(problem, policy, path, 1), off.increment(problem, policy, path, 1)
        )


def test_the_last_step_uses_the_hessian_of_the_reward():
    problem = quadratic_problem()
    policy = AffinePolicy.zeros(problem.reference)
    path = paths(problem, policy, 5, 22)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    assert isinstance(problem.reward, Quadratic)
    noise_increment = path.noise.steps[-1] @ problem.reference.diffusion.matrices[-1].T
    found = FirstOrderCorrection(GivenCostate(zero_field)).increment(
        problem, policy, path, STEPS - 1
    )
    assert (found - noise_increment @ problem.reward.P).abs().max() < IDENTITY * 10


def test_the_error_of_the_exact_form_falls_with_its_nodes_and_bounds_its_bias():
    problem = curved_problem()
    policy = network_policy(problem.reference)
    path = paths(problem, policy, 20, 23)
    errors = [
        ExactCorrection(GivenCostate(wrong_field), nodes=n).error(problem, policy, path, 1)
        for n in (4, 10, 30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3
    fine, coarse = (
        ExactCorrection(GivenCostate(wrong_field), nodes=n).increment(problem, policy, path, 1)
        for n in (60, 10)
    )
    level = float(wrong_field(2, path.states[2]).abs().max())
    assert (fine - coarse).abs().max() < 2 * errors[1] * level


def test_the_error_of_the_exact_form_is_that_of_seven_tenths_of_the_nodes():
    """From two corrections of one path, which differ by their means alone."""
    problem = curved_problem()
    policy = network_policy(problem.reference)
    path = paths(problem, policy, 20, 23)
    source = GivenCostate(wrong_field)

    def mean(nodes: int) -> Tensor:
        at = correction_step(source, problem, policy, path, 1)
        found = ExactCorrection(source, nodes=nodes).increment(problem, policy, path, 1)
        return wrong_field(2, at.centre + at.noise_increment) - found

    fine = mean(10)
    expected = float((fine - mean(7)).abs().max() / fine.abs().max())
    error = ExactCorrection(source, nodes=10).error(problem, policy, path, 1)
    assert error == pytest.approx(expected, rel=1e-9)
    centre = correction_step(source, problem, policy, path, 1).centre
    assert (mean(1) - wrong_field(2, centre)).abs().max() < IDENTITY * 10
    assert ExactCorrection(source, nodes=1).error(problem, policy, path, 1) == 0


def test_only_the_last_step_may_be_left_alone():
    problem = quadratic_problem()
    policy = AffinePolicy.zeros(problem.reference)
    path = paths(problem, policy, 5, 22)
    left = FirstOrderCorrection(GivenCostate(wrong_field), last=False)
    for k in range(STEPS):
        found = left.increment(problem, policy, path, k)
        assert bool((found == 0).all()) == (k == STEPS - 1)
        assert found.shape == path.states[k].shape


def test_images_are_corrected_too_but_have_no_tensor_rule():
    reference = KernelReference(
        lambda k, x: 0.9 * x, ScalarDiffusion(t(0.5, 0.4, 0.3)), 3, (1, 2, 2)
    )
    problem = ControlProblem(
        reference, FunctionReward(lambda x: torch.sin(x).flatten(1).sum(1)), 2.0
    )
    noise = Noise.sample(reference, 5, generator(24), torch.float32)
    policy = Uncontrolled(reference)
    with torch.no_grad():
        path = rollout(reference, policy, noise)
    field = GivenCostate(lambda k, x: x**2)
    noise_increment = 0.4 * noise.steps[1]
    found = FirstOrderCorrection(field).increment(problem, policy, path, 1)
    assert found.dtype == torch.float32
    assert (found - 2 * (path.states[2] - noise_increment) * noise_increment).abs().max() < 1e-5
    assert (
        AntitheticCorrection(field).increment(problem, policy, path, 1) - found
    ).abs().max() < 1e-5
    second = SecondOrderCorrection(field).increment(problem, policy, path, 1)
    assert (second - found - (noise_increment**2 - 0.4**2)).abs().max() < 1e-5
    with pytest.raises(
        InvalidProblem,
        match=r"noise has shape \(1, 2, 2\); the exact mean is for vectors of length 3 at most",
    ):
        ExactCorrection(field).increment(problem, policy, path, 1)
    with pytest.raises(InvalidProblem, match=r"nodes = 0; give a whole number"):
        ExactCorrection(field, nodes=0)


# --- fits over time and state ---

LINEAR = StepwiseRegression(LinearRegression(Polynomial(1)))


def test_one_regression_per_step_recovers_affine_costates_and_is_differentiable():
    states = randn(30, STEPS + 1, 40, 2)
    W, c = randn(31, STEPS + 1, 2, 2), randn(32, STEPS + 1, 1, 2)
    fitted = LINEAR.fit(Costates(states, states @ W + c))
    k, x = torch.tensor([3, 0, 4, 0]), randn(33, 4, 2)
    expected = (x.unsqueeze(1) @ W[k] + c[k]).squeeze(1)
    assert (fitted(k, x) - expected).abs().max() < 1e-11
    along = derivative(lambda y: fitted(2, y), x, x)
    assert (along - x @ W[2]).abs().max() < 1e-11
    with pytest.raises(
        InvalidProblem, match=r"states have shape \(2, 2\); regressions per step are for vectors"
    ):
        LINEAR.fit(Costates(randn(34, 3, 5, 2, 2), randn(34, 3, 5, 2, 2)))


def test_a_potential_is_the_gradient_of_the_fitted_values():
    states, P = randn(35, 3, 60, 2), t(2.0, -1.0)
    values = (states.square() * P / 2).sum(2) + states[..., 0] * states[..., 1]
    fitted = ValueRegression(StepwiseRegression(LinearRegression(Polynomial(2)))).fit(
        ValueSamples(states, values)
    )
    x = randn(36, 7, 2)
    assert isinstance(fitted, GradientField)
    assert (fitted(1, x) - (x * P + x.flip(1))).abs().max() < 1e-10
    assert (derivative(lambda y: fitted(1, y), x, x) - (x * P + x.flip(1))).abs().max() < 1e-10


TRAINING = NetworkTraining(
    width=16, steps=250, batch=64, rate=1e-2, decay_every=80, decay=0.5, dtype=F64
)
NETWORK = SpaceTimeRegression(TRAINING)


def trained(**changes: float) -> SpaceTimeRegression:
    return SpaceTimeRegression(dataclasses.replace(TRAINING, **changes))


def wavy() -> Costates:
    states = randn(37, 5, 200, 1)
    time = torch.linspace(0, 1, 5, dtype=F64)[:, None, None]
    return Costates(states, torch.sin(2 * states) * (1 - time) + time)


def misfit(field, samples: Costates) -> float:
    return float(
        torch.stack(
            [
                (field(k, x) - a).square().mean()
                for k, (x, a) in enumerate(zip(samples.states, samples.values, strict=True))
            ]
        ).mean()
    )


def test_one_network_fits_all_steps_and_starts_from_an_earlier_one():
    samples = wavy()
    first = NETWORK.fit(samples)
    assert misfit(first, samples) < 0.03 * float(samples.values.var())
    before = first(2, samples.states[2]).clone()
    few = trained(steps=20, rate=1e-3)
    assert misfit(few.fit(samples, first), samples) < 0.2 * misfit(few.fit(samples), samples)
    assert torch.equal(first(2, samples.states[2]), before)
    short, other = (trained(steps=20, seed=seed) for seed in (0, 1))
    again, differs = (each.fit(samples)(2, samples.states[2]) for each in (short, other))
    assert torch.equal(short.fit(samples)(2, samples.states[2]), again)
    assert not torch.equal(differs, again)


def test_a_fit_in_parts_goes_on_with_the_optimiser_and_the_decay_of_the_rate():
    """All paths in every step, so that minibatches play no part."""
    samples, whole = wavy(), {"batch": 200, "decay_every": 15}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch, "randint", lambda n, size, **_: torch.arange(*size))
        at_once = trained(steps=40, **whole).fit(samples)
        half = trained(steps=20, **whole)
        in_parts = half.fit(samples, half.fit(samples))
    assert in_parts.taken == at_once.taken == 40
    assert torch.equal(in_parts(2, samples.states[2]), at_once(2, samples.states[2]))


def test_the_network_takes_steps_per_sample_and_derivatives():
    network = ResidualSpaceTimeNetwork(4, 0.5, 2, 2, 8, 2, generator(37), F64).requires_grad_(False)
    k, x = torch.tensor([4, 0, 2]), randn(38, 3, 2)
    assert (
        network(k, x) - torch.cat([network(int(i), row[None]) for i, row in zip(k, x, strict=True)])
    ).abs().max() < IDENTITY
    grid = randn(39, 5, 3, 2)
    rows = torch.stack([network(i, row) for i, row in enumerate(grid)])
    assert (network.on_grid(grid) - rows).abs().max() < IDENTITY
    single = ResidualSpaceTimeNetwork(4, 0.5, 2, 2, 8, 2, generator(37), torch.float32)
    assert single(1, x).dtype == F64
    u, h = randn(39, 3, 2), 1e-5
    along = derivative(lambda y: network(1, y), x, u)
    assert (
        along - (network(1, x + h * u) - network(1, x - h * u)) / (2 * h)
    ).abs().max() < DIFFERENCE
    twice = second_derivative(lambda y: network(1, y), x, u)
    h = 1e-3
    assert (
        twice - (network(1, x + h * u) + network(1, x - h * u) - 2 * network(1, x)) / h**2
    ).abs().max() < 1e-4


def test_the_published_loss_does_not_fit_means():
    """Targets -0.25 and 3 with chances 0.8 and 0.2: mean 0.4; Huber's minimiser has 0.2 * 0.1 = 0.8
    (c + 0.25).
    """
    values = torch.where(
        torch.rand(2, 2000, 1, generator=generator(40), dtype=F64) < 0.8, t(-0.25), t(3.0)
    )
    samples = Costates(torch.zeros(2, 2000, 1, dtype=F64), values)
    fits = [
        SpaceTimeRegression(TRAINING, loss).fit(samples) for loss in (NETWORK.loss, published_huber)
    ]
    at = torch.zeros(1, 1, dtype=F64)
    assert abs(float(fits[0](0, at)) - float(values.mean())) < 0.12
    assert abs(float(fits[1](0, at)) + 0.25 - 0.025) < 0.03


def test_networks_refuse_what_makes_no_sense():
    with pytest.raises(InvalidProblem, match=r"batch = 0; give a whole number"):
        NetworkTraining(batch=0)
    with pytest.raises(InvalidProblem, match=r"rate = -1\.0; it must be a positive finite number"):
        NetworkTraining(rate=-1)
    bad = wavy()
    bad.values[1, 7, 0] = math.inf
    with pytest.raises(
        InvalidProblem, match=r"costate\[1, 7, 0\] = inf; the samples left the region"
    ):
        NETWORK.fit(bad)


# --- refinement ---


def linear_study(horizon_steps: int = 20) -> ControlProblem:
    """dX = A X dt + dW, cost |x|^2/2 at T = 2 (arXiv 2603.20455v2, linear study), by Euler
    steps.
    """
    dt = 2.0 / horizon_steps
    A = torch.eye(2, dtype=F64) + dt * torch.tensor([[0.0, 1.0], [-1.0, -0.5]], dtype=F64)
    reference = AffineReference(
        A.expand(horizon_steps, 2, 2), ScalarDiffusion(torch.full((horizon_steps,), dt**0.5))
    )
    return ControlProblem(reference, Quadratic(-torch.eye(2, dtype=F64)), 1.0)


def squared_errors(problem: ControlProblem, sampling: PathSampling, rounds: int) -> list[float]:
    """E |phi_0(X_0) - a_0(X_0)|^2 of every round, against the chain's own adjoint."""
    policy = AffinePolicy.zeros(problem.reference)
    exact, x = evaluate_affine(problem, policy).value, randn(41, 500, 2)
    fields = refine(
        problem,
        policy,
        lambda source: MartingaleAdjoint(FirstOrderCorrection(source)).costates,
        LINEAR.fit,
        sampling,
        rounds,
    )
    return [float((field(0, x) - exact.gradient(0, x)).square().sum(1).mean()) for field in fields]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: CrossFittedPaths(n, 2),
        lambda n: CrossFittedPaths(n, 3),
        lambda n: FreshPaths(400, generator(43)),
    ],
)
def test_refinement_with_martingale_corrected_costates_converges_to_the_chains_own_adjoint(make):
    """From the error of plain adjoint matching by a factor of about the number of samples per
    round, down to rounding.
    """
    problem = linear_study()
    errors = squared_errors(problem, make(Noise.sample(problem.reference, 400, generator(42))), 7)
    assert errors[0] > 1e-4
    assert errors[2] < 1e-2 * errors[0]
    assert errors[-1] < CONVERGED


def test_cross_fitting_uses_the_field_of_the_other_fold():
    """The second round by hand: each half's costates from the other half's fit."""
    problem = linear_study(5)
    policy, noise = (
        AffinePolicy.zeros(problem.reference),
        Noise.sample(problem.reference, 40, generator(44)),
    )
    sample = lambda source: MartingaleAdjoint(FirstOrderCorrection(source)).costates  # noqa: E731
    halves = [Noise(noise.initial[s], noise.steps[:, s]) for s in (slice(0, 20), slice(20, 40))]
    with torch.no_grad():
        first, second = (rollout(problem.reference, policy, half) for half in halves)
    start = [
        LINEAR.fit(sample(GivenCostate(zero_field))(problem, policy, path))
        for path in (first, second)
    ]
    by_hand = [
        LINEAR.fit(sample(GivenCostate(start[1]))(problem, policy, first)),
        LINEAR.fit(sample(GivenCostate(start[0]))(problem, policy, second)),
    ]
    found = list(refine(problem, policy, sample, LINEAR.fit, CrossFittedPaths(noise, 2), 2))[-1]
    x = randn(45, 9, 2)
    assert (found(0, x) - (by_hand[0](0, x) + by_hand[1](0, x)) / 2).abs().max() < IDENTITY * 10


def test_refinement_refuses_what_makes_no_sense():
    problem = linear_study(3)
    noise = Noise.sample(problem.reference, 4, generator(46))
    with pytest.raises(InvalidProblem, match=r"folds = 5; give a whole number"):
        CrossFittedPaths(noise, 5)
    with pytest.raises(InvalidProblem, match=r"rounds = 0; give at least 1"):
        squared_errors(problem, CrossFittedPaths(noise, 1), 0)


# --- marginal scores ---


def gaussian_chain() -> tuple[ControlProblem, AffinePolicy]:
    problem = quadratic_problem(running=False)
    return problem, AffinePolicy(0.2 * randn(50, STEPS, 2, 2), 0.3 * randn(51, STEPS, 2))


def test_affine_marginals_are_the_gaussian_scores():
    problem, policy = gaussian_chain()
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    law, x = evaluate_affine(problem, policy), randn(52, 6, 2)
    score = AffineMarginals().fit(problem, policy, paths(problem, policy, 2, 53))
    for k in range(STEPS):
        normal = torch.distributions.MultivariateNormal(law.mean[k + 1], law.covariance[k + 1])
        y = x.clone().requires_grad_(True)
        (slope,) = torch.autograd.grad(normal.log_prob(y).sum(), y)
        assert (score(k, x) - slope @ problem.reference.diffusion.matrices[k]).abs().max() < 1e-11
    with pytest.raises(
        InvalidProblem,
        match=r"the policy is a MLPPolicy; only an AffinePolicy has Gaussian marginals",
    ):
        AffineMarginals().fit(
            problem, network_policy(problem.reference), paths(problem, policy, 2, 53)
        )


def test_without_control_marginals_are_those_of_a_policy_of_zeros():
    problem, _ = gaussian_chain()
    none, zeros = Uncontrolled(problem.reference), AffinePolicy.zeros(problem.reference)
    path, x = paths(problem, zeros, 2, 53), randn(52, 6, 2)
    found, same = (AffineMarginals().fit(problem, each, path) for each in (none, zeros))
    assert torch.equal(found(1, x), same(1, x))


def test_the_chains_own_score_is_that_of_the_level_reached_but_for_the_last():
    schedule = ddpm([0.1, 0.3, 0.6, 0.8, 0.97])
    reference = score_reference(Gaussian([0.5, -0.3], 0.4), schedule)
    problem = ControlProblem(reference, FunctionReward(lambda x: x.sum(1)), 1.0)
    policy = FunctionPolicy(lambda k, x: 0.1 * (1 + k) * torch.cos(x))
    path, x = paths(problem, policy, 2, 53), randn(52, 6, 2)
    score = ReferenceScore().fit(problem, policy, path)
    for k, level in enumerate([*range(1, STEPS), STEPS - 1]):
        control = 0.1 * (1 + level) * torch.cos(x)
        expected = reference.score_of(level, x, control) * schedule.sigma[k]
        assert (score(k, x) - expected).abs().max() < IDENTITY * 100
    assert ReferenceScore().cost == Cost(reference=1, policy=1, memory=0)


def test_scotts_rule_is_the_width_of_kernels():
    problem, policy = gaussian_chain()
    path, x = paths(problem, policy, 30, 54), randn(52, 6, 2)
    found, same = (
        each.fit(problem, policy, path) for each in (KernelScore(), KernelScore(30 ** (-1 / 6)))
    )
    assert (found(1, x) - same(1, x)).abs().max() < IDENTITY * 100


def test_implicit_matching_with_affine_features_is_the_score_of_the_sample_gaussian():
    problem, policy = gaussian_chain()
    path = paths(problem, policy, 300, 54)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    score, x = ImplicitScore(Polynomial(1)).fit(problem, policy, path), randn(55, 6, 2)
    for k in range(STEPS):
        y = path.states[k + 1]
        centred = y - y.mean(0)
        slope = -torch.linalg.solve(centred.T @ centred / len(y), (x - y.mean(0)).T).T
        assert (score(k, x) - slope @ problem.reference.diffusion.matrices[k]).abs().max() < 1e-9


def test_regressing_the_noise_estimates_the_score_also_where_it_is_degenerate():
    """Within 4 standard errors of the exact score's coefficients, from residuals of the
    regression.
    """
    A = torch.tensor([[1.0, 0.3], [-0.2, 0.9]], dtype=F64).expand(3, 2, 2)
    reference = AffineReference(
        A, MatrixDiffusion(t(0.0, 0.5)[None, :, None].expand(3, 2, 1)), 0.1 * randn(56, 3, 2)
    )
    problem = ControlProblem(reference, Quadratic(-torch.eye(2, dtype=F64)), 1.0)
    policy = AffinePolicy.zeros(reference)
    path = paths(problem, policy, 20000, 57)
    exact = AffineMarginals().fit(problem, policy, path)
    found = DenoisingScore(LinearRegression(Polynomial(1))).fit(problem, policy, path)
    for k in range(3):
        x = path.states[k + 1]
        design = torch.cat([torch.ones(len(x), 1, dtype=F64), x], 1)
        gap = torch.linalg.lstsq(design, found(k, x) - exact(k, x)).solution[:, 0]
        residual = (-path.noise.steps[k] - found(k, x)).square().mean()
        stderr = (torch.linalg.inv(design.T @ design).diagonal() * residual).sqrt()
        require_estimates(gap, stderr, 0.0, 0.0066)
        assert (found(k, x) / stderr[0]).abs().max() > 5 * STDERRS


def test_kernel_scores_are_derivatives_of_their_log_densities():
    problem, policy = gaussian_chain()
    path, x = paths(problem, policy, 30, 58), randn(59, 5, 2)
    assert isinstance(problem.reference.diffusion, MatrixDiffusion)
    transition, kernel = (
        each.fit(problem, policy, path) for each in (TransitionScore(), KernelScore(0.7))
    )
    for k in range(STEPS):
        B = problem.reference.diffusion.matrices[k]
        with torch.no_grad():
            moved = problem.reference.step(k, path.states[k], policy(k, path.states[k]))
        for score, centres, spread in (
            (transition, moved, B @ B.T),
            (kernel, path.states[k + 1], 0.49 * torch.cov(path.states[k + 1].T)),
        ):
            y = x.clone().requires_grad_(True)
            normal = torch.distributions.MultivariateNormal(torch.zeros(2, dtype=F64), spread)
            density = torch.logsumexp(normal.log_prob(y.unsqueeze(1) - centres), 1)
            (slope,) = torch.autograd.grad(density.sum(), y)
            assert (score(k, x) - slope @ B).abs().max() < 1e-9


def test_the_score_of_a_noised_mixture_is_that_of_its_own_chain_up_to_the_step_size():
    """The transition mixture of many paths against the exact noised score, on a fine schedule,
    where the paths are.
    """
    law = GaussianMixture(t(0.6, 0.4), t(-1.5, 1.5)[:, None], t(0.3, 0.3)[:, None, None])
    schedule = ddpm(subsample(linear_levels(1000), 50))
    problem = ControlProblem(score_reference(law, schedule), FunctionReward(lambda x: x[:, 0]), 1.0)
    policy = Uncontrolled(problem.reference)
    path = paths(problem, policy, 2000, 60)
    exact, found = (
        each.fit(problem, policy, path)
        for each in (GivenScore(NoisedScore(law, schedule.abar)), TransitionScore())
    )
    for k in (20, 30, 40):
        x = path.states[k + 1][:500]
        assert (found(k, x) - exact(k, x)).square().mean() < SCORED * exact(k, x).square().mean()


SCORES: list[MarginalScore] = [
    AffineMarginals(),
    ImplicitScore(Polynomial(1)),
    DenoisingScore(LinearRegression(Polynomial(1))),
    KernelScore(),
    TransitionScore(),
    NetworkScore(NetworkTraining(16, 1, steps=400, rate=1e-2, decay_every=40, decay=0.6)),
]


@pytest.mark.parametrize("score", SCORES, ids=lambda s: type(s).__name__)
def test_every_score_agrees_on_a_gaussian_chain(score: MarginalScore):
    reference = affine_reference(
        Gaussian(t(0.5), t(0.6)[:, None]), ddpm(subsample(linear_levels(1000), 6))
    )
    problem = ControlProblem(reference, FunctionReward(lambda x: x[:, 0]), 1.0)
    policy = AffinePolicy.zeros(reference)
    path = paths(problem, policy, 2000, 61)
    exact, found = (each.fit(problem, policy, path) for each in (AffineMarginals(), score))
    for k in range(6):
        x = path.states[k + 1]
        assert (found(k, x) - exact(k, x)).square().mean() < SCORED * exact(k, x).square().mean()


def test_scores_refuse_what_they_cannot_do():
    problem = curved_problem(m=1)
    policy = network_policy(problem.reference)
    path = paths(problem, policy, 4, 62)
    with pytest.raises(
        InvalidProblem, match=r"the noise misses a direction of the state by .*use DenoisingScore"
    ):
        TransitionScore().fit(problem, policy, path)
    with pytest.raises(
        InvalidProblem, match=r"the reference is a KernelReference; only an AffineReference"
    ):
        AffineMarginals().fit(problem, policy, path)
    with pytest.raises(InvalidProblem, match=r"width = 0.0; it must be a positive"):
        KernelScore(0)


def test_the_terminal_field_does_not_touch_the_others():
    problem, x = curved_problem(), randn(63, 4, 2)
    field = with_terminal(problem, wrong_field)
    assert torch.equal(field(2, x), wrong_field(2, x))
    assert (field(STEPS, x) - problem.reward.gradient(x)).abs().max() < IDENTITY


def test_at_the_end_the_gradient_of_the_reward_stands_in_for_the_field():
    """For one step, and for one step per sample in any order."""
    problem = quadratic_problem()
    slopes = randn(41, problem.steps, 2)

    def field(k: Step, x: Tensor) -> Tensor:
        return slopes[k] * x

    phi, x = with_terminal(problem, field), randn(42, 7, 2)
    k = torch.tensor([2, 4, 0, 4, 3, 1, 4])
    found = phi(k, x)
    for step, state, value in zip(k.tolist(), x, found, strict=True):
        exact = (
            problem.reward.gradient(state[None])[0]
            if step == problem.steps
            else slopes[step] * state
        )
        assert torch.allclose(value, exact, rtol=IDENTITY, atol=IDENTITY)
        alone = phi(step, state[None])[0]
        assert torch.allclose(alone, exact, rtol=IDENTITY, atol=IDENTITY)
