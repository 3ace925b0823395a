"""A valid call of everything public in `socft` that takes arguments, and what is tried with what
it makes.
"""

# pyright: reportArgumentType=false

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

import socft
from socft import metrics, theory
from socft.costates.adjoint import FullRecursion
from socft.costates.fields import GivenCostate, PolicyCostate
from socft.costates.landing import OwnStepByJvp
from socft.costates.marginal_score import DenoisingScore, GivenScore, KernelScore
from socft.costates.martingale import AntitheticCorrection, ExactCorrection
from socft.costates.network import SpaceTimeRegression
from socft.costates.regression import StepwiseRegression
from socft.costates.time_reversal import Reverser
from socft.density import NoisedScore
from socft.estimators.baseline import GivenBaseline, RegressionBaseline, ValueBaseline
from socft.estimators.context import EstimatorContext
from socft.estimators.flow.nabla_db import reverse_costates
from socft.guidance.denoiser import GaussianDenoiser, LinearDenoiser, ScoreDenoiser
from socft.guidance.iterated import (
    IncrementTarget,
    LeastSquaresScore,
    RecentredScore,
    StepSizeTarget,
)
from socft.guidance.policy import (
    ClassifierGuidance,
    GuidancePolicy,
    LookAheadGuidance,
    UniversalGuidance,
)
from socft.guidance.sphere import Sphere
from socft.guidance.strength import (
    ConstantStrength,
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.reference import DenseMaps, SpectralMaps
from socft.regression.features import Polynomial
from socft.regression.functions import LinearRegression
from socft.sde import StateDiffusion
from socft.truth.grid import Grid
from socft.truth.riccati import riccati
from tests.support.mutations import Call
from tests.support.tensors import F64, randn

STEPS, DIM, PATHS = 3, 2, 4
AFFINE_FIT = StepwiseRegression(LinearRegression(Polynomial(1)))
LEVELS = [0.2, 0.5, 0.8, 0.9]
MATRIX, WIDE = [[0.9, 0.1], [0.1, 0.8]], [[0.5, 0.0], [0.1, 0.4]]
POINTS = randn(0, PATHS, DIM)
LINE = POINTS[:, :1].contiguous()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def reference() -> socft.AffineReference:
    return socft.AffineReference([MATRIX] * STEPS, socft.MatrixDiffusion([WIDE] * STEPS))


def line() -> socft.AffineReference:
    return socft.AffineReference([[[0.9]]] * STEPS, socft.ScalarDiffusion([0.5] * STEPS))


def problem() -> socft.ControlProblem:
    return socft.ControlProblem(reference(), socft.Quadratic([[-1.0, 0.0], [0.0, -1.0]]), 1.0)


def line_problem() -> socft.ControlProblem:
    return socft.ControlProblem(line(), socft.Sine(), 2.0)


def schedule() -> socft.Schedule:
    return socft.ddim(LEVELS)


def gaussian() -> socft.Gaussian:
    return socft.Gaussian([0.0, 1.0], [[1.0, 0.2], [0.2, 0.5]])


def mixture() -> socft.GaussianMixture:
    return socft.GaussianMixture([0.4, 0.6], [-1.0, 1.0], 0.3)


def noise(chain: socft.Reference) -> socft.Noise:
    return socft.Noise.sample(chain, PATHS, generator())


def path() -> socft.Path:
    chain = reference()
    return socft.rollout(chain, policy(), noise(chain))


def policy() -> socft.AffinePolicy:
    return socft.AffinePolicy([[[-0.1, 0.0], [0.0, -0.1]]] * STEPS, [[0.1, 0.2]] * STEPS)


# what is tried with what is made


def nothing(made: Any) -> None:
    return None


def of_states(made: Tensor) -> None:
    """States that are not finite have values that are not."""
    assert made.dtype in (torch.float32, torch.float64)
    assert len(made) in (PATHS - 1, PATHS, PATHS + 1, 0)


def itself(made: Any) -> Any:
    return made


def some(names: str) -> Callable[[Any], list[Any]]:
    return lambda made: [getattr(made, name) for name in names.split()]


def of_reference(made: socft.Reference) -> list[Tensor]:
    found = socft.rollout(made, socft.Uncontrolled(made), noise(made))
    assert found.states.shape == (made.steps + 1, PATHS, *made.dims)
    k = torch.zeros(PATHS, dtype=torch.long)
    return [found.states, found.controls, made.mean(k, found.states[0])]


def of_diffusion(made: Any) -> list[Tensor]:
    dims = (1,) if isinstance(made, socft.ScalarDiffusion) else (DIM,)
    x, z = randn(1, PATHS, *dims), randn(2, PATHS, *made.noise_dims(dims))
    pushed, pulled = made.apply(0, x, z), made.transpose(0, x, x)
    assert pushed.shape == x.shape
    assert pulled.shape == z.shape
    return [pushed, pulled, made.whiten(0, x, x), made.solve_transpose(0, x, z)]


def of_sde(made: socft.SDE) -> list[Tensor]:
    return of_reference(socft.EulerMaruyama().chain(made, 2))


def of_reward(x: Tensor) -> Callable[[socft.Reward], list[Any]]:
    def use(made: socft.Reward) -> list[Any]:
        value, gradient = made(x), made.gradient(x)
        assert value.shape == (len(x),)
        assert gradient.shape == x.shape
        assert made.L0 >= 0
        assert made.L1 >= 0
        return [value, gradient]

    return use


def of_policy(made: socft.Policy) -> list[Tensor]:
    chain = reference()
    found = socft.rollout(chain, made, noise(chain))
    assert found.controls.shape == (STEPS, PATHS, DIM)
    return [found.states.detach(), found.controls.detach()]


def of_density(made: socft.Density) -> list[Any]:
    x = made.sample(PATHS, generator())
    assert x.shape == (PATHS, *made.dims)
    return [x, made.noised_log_prob(0.5, x), made.noised_score(0.5, x), made.noised(0.5).L0]


def of_estimator(made: socft.Estimator) -> list[Tensor]:
    at, control, taken = problem(), policy(), path()
    labels = made.label(at, control, taken)
    assert labels.targets.shape == taken.controls.shape
    k, sample = labels.pairs()
    loss = made.loss(at, control, k, labels.rows(k, sample)).detach()
    assert loss.shape == (STEPS * PATHS,)
    return [labels.targets, loss]


def of_renoised(made: Any) -> list[Tensor]:
    """Of states of the last level of a chain of scores."""
    chain = socft.score_reference(gaussian(), schedule())
    at = socft.ControlProblem(chain, socft.Linear([1.0, 2.0]), 1.0)
    labels = made.label_samples(at, policy(), randn(3, PATHS, DIM))
    k, sample = labels.pairs()
    loss = made.loss(at, policy(), k, labels.rows(k, sample)).detach()
    assert loss.shape == (STEPS * PATHS,)
    return [labels.targets, loss]


def of_guard(made: socft.GRPOGuard) -> list[Tensor]:
    """With one standard deviation per step."""
    chain = socft.AffineReference([MATRIX] * STEPS, socft.ScalarDiffusion([0.5] * STEPS))
    at = socft.ControlProblem(chain, lambda x: x.sum(1), 1.0)
    taken = socft.rollout(chain, policy(), noise(chain))
    rows = made.label(at, policy(), taken).step(0)
    return [made.loss(at, policy(), 0, rows).detach()]


def of_method(made: socft.Method) -> list[Any]:
    at = line_problem()
    kept = [each.index for each in itertools.islice(made.iterations(at), 3)]
    assert kept
    assert kept[0] == 0
    return kept


def of_regression(made: socft.LinearRegression) -> list[Tensor]:
    x = randn(3, 20, 1)
    found = made.fit(x, x.sin())(x)
    assert found.shape == x.shape
    return [found]


def of_features(made: Any) -> list[Tensor]:
    found = made(POINTS)
    assert found.shape[:1] == (PATHS,)
    assert found.ndim == 2
    return [found]


def of_denoiser(made: Any) -> list[Tensor]:
    found = made.at(0, POINTS)
    assert found.clean.shape == POINTS.shape
    return [found.clean, found.score]


def of_guidance(made: Any) -> list[Tensor]:
    found = made(GaussianDenoiser(gaussian(), [0.2, 0.5]).at(0, POINTS))  # type: ignore
    assert found.shape == POINTS.shape
    return [found]


def of_strength(made: Any) -> list[Tensor]:
    return of_guidance(LookAheadGuidance(Response(torch.ones(DIM, dtype=F64), 1.0), made))


def of_truth(made: socft.Truth) -> list[Any]:
    found = made.evaluate(socft.Uncontrolled(made.problem.reference))
    return [made.objective, found.objective, found.reward, found.kl]


def of_problem(made: socft.ControlProblem) -> list[Tensor]:
    chain = made.reference
    taken = socft.rollout(chain, socft.Uncontrolled(chain), noise(chain))
    found = socft.returns(made, taken)
    assert found.shape == (PATHS,)
    return [found, made.beta]


def first(made: Any) -> Any:
    return next(iter(made)).index


def corrected(made: Any) -> list[Tensor]:
    return of_estimator(socft.FullMartingaleAdjoint(made))


def with_baseline(made: Any) -> list[Tensor]:
    return of_estimator(socft.ScoreFunction(made))


def with_score(made: Any) -> list[Tensor]:
    at, control, taken = problem(), policy(), path()
    return [made.fit(at, control, taken)(1, taken.states[1])]


CALLS: dict[str, Call] = {}


def add(
    make: Callable[..., Any],
    use: Callable[[Any], Any],
    name: str = "",
    **arguments: Callable[[], Any] | float | list[Any] | Tensor | str | bool | None,
) -> None:
    """A call of the table; classes and functions without arguments make theirs, others are what is
    given.
    """
    CALLS[name or make.__name__] = Call(make, _maker(arguments), use)


def _maker(arguments: Mapping[str, Any]) -> Callable[[], Mapping[str, Any]]:
    return lambda: {
        name: each.make() if isinstance(each, Fresh) else each for name, each in arguments.items()
    }


class Fresh:
    """An argument that is made anew for each call."""

    def __init__(self, make: Callable[[], Any]):
        self.make = make


def _fill() -> None:
    _schedules()
    _densities()
    _chains()
    _rewards()
    _policies()
    _paths()
    _estimators()
    _methods()
    _truths()
    _guidance()
    _theory()


def _schedules() -> None:
    add(
        socft.Schedule,
        some("steps alpha sigma"),
        abar=LEVELS,
        score_weight=[0.6, 0.4, 0.1],
        sigma=[0.5, 0.4, 0.3],
    )
    add(schedule().memory, itself, "memory", variance=1.0)
    add(socft.ddpm, some("steps alpha sigma"), abar=LEVELS)
    add(socft.ddim, some("steps alpha sigma"), abar=LEVELS, eta=0.7)
    add(socft.variance_preserving, some("abar sigma"), steps=5, rate=1.0)
    for levels in (socft.linear_levels, socft.scaled_linear_levels):
        add(levels, itself, steps=50, first=1e-4, last=0.02, train_steps=1000)
    add(socft.cosine_levels, itself, steps=5, offset=0.008, largest=0.999)
    add(socft.subsample, itself, abar=LEVELS, steps=2)
    add(socft.soften_last, itself, abar=LEVELS)


def _densities() -> None:
    add(socft.Gaussian, of_density, mean=[0.0, 1.0], cov=[[1.0, 0.2], [0.2, 0.5]])
    add(
        socft.GaussianMixture,
        of_density,
        weights=[0.4, 0.6],
        means=[[0.0, 1.0], [1.0, 0.0]],
        covs=[[1.0, 0.2], [0.2, 0.5]],
    )
    turn = [[0.6, -0.8], [0.8, 0.6]]
    add(socft.Rotated, of_density, rotation=turn, factors=Fresh(lambda: [mixture(), mixture()]))
    add(Sphere, of_density, dim=3, natural=torch.ones(3, dtype=F64), radius=2.0, spread=0.1)
    add(
        socft.score_reference,
        of_reference,
        density=Fresh(gaussian),
        schedule=Fresh(schedule),
    )
    add(
        socft.affine_reference,
        of_reference,
        gaussian=Fresh(gaussian),
        schedule=Fresh(schedule),
    )
    add(NoisedScore, lambda made: made(0, POINTS), density=Fresh(gaussian), abar=LEVELS)
    add(
        gaussian().tilted,
        lambda made: [made.log_normaliser, made.density.mean],
        "tilted",
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        beta=2.0,
    )
    add(gaussian().noised, of_density, "noised", abar=0.5)
    add(gaussian().sample, itself, "sample", batch=3, generator=Fresh(generator))
    for name in ("log_prob", "score", "score_jacobian"):
        add(getattr(gaussian(), name), of_states, name, x=POINTS)
    for name in ("noised_log_prob", "noised_score"):
        add(getattr(gaussian(), name), of_states, name, abar=0.5, x=POINTS)


def _chains() -> None:
    add(socft.ScalarDiffusion, of_diffusion, sigma=[0.5, 0.4, 0.3])
    add(socft.MatrixDiffusion, of_diffusion, matrices=[WIDE] * STEPS)
    add(
        StateDiffusion,
        of_diffusion,
        apply=Fresh(lambda: lambda k, x, z: (1 + x**2) * z),
        dims=(DIM,),
        noise_dims=(DIM,),
    )
    add(DenseMaps, lambda made: made.apply(0, POINTS), matrices=[MATRIX] * STEPS)
    add(
        SpectralMaps,
        lambda made: made.apply(0, POINTS),
        eigenvalues=[[0.9, 0.8]] * STEPS,
        basis=[[0.6, -0.8], [0.8, 0.6]],
    )
    add(
        socft.AffineReference,
        of_reference,
        transition=[MATRIX] * STEPS,
        diffusion=Fresh(lambda: socft.ScalarDiffusion([0.5] * STEPS)),
        offset=[[0.1, 0.2]] * STEPS,
        initial_mean=[0.5, -0.5],
        initial_factor=WIDE,
    )
    add(
        socft.KernelReference,
        of_reference,
        mean=Fresh(lambda: lambda k, x: x.sin()),
        diffusion=Fresh(lambda: socft.ScalarDiffusion([0.5] * STEPS)),
        steps=STEPS,
        dims=(DIM,),
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    add(
        socft.ScoreReference,
        of_reference,
        schedule=Fresh(schedule),
        score=Fresh(lambda: lambda k, x: -x),
        dims=(DIM,),
    )
    add(
        socft.DriftSDE,
        of_sde,
        drift=Fresh(lambda: lambda t, x: -x),
        noise=WIDE,
        horizon=1.0,
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    add(
        socft.LinearSDE,
        of_sde,
        A=MATRIX,
        noise=WIDE,
        horizon=1.0,
        offset=[0.1, 0.2],
        initial_mean=[0.5, -0.5],
        initial_factor=WIDE,
    )
    add(
        socft.SemilinearSDE,
        of_sde,
        A=MATRIX,
        remainder=Fresh(lambda: lambda t, x: x.sin()),
        noise=WIDE,
        horizon=1.0,
        initial=Fresh(lambda: lambda z: 2 * z),
    )
    linear = Fresh(lambda: socft.LinearSDE(MATRIX, WIDE, 1.0))
    semi = Fresh(lambda: socft.SemilinearSDE(MATRIX, lambda t, x: x.sin(), WIDE, 1.0))
    for scheme in (socft.EulerMaruyama, socft.Exponential, socft.Strang, socft.Taylor):
        for what, sde in (("linear", linear), ("semilinear", semi)):
            name = f"{scheme.__name__} of a {what} one"
            add(scheme().chain, of_reference, name, sde=sde, steps=2)


def _rewards() -> None:
    add(socft.Linear, of_reward(POINTS), w=[1.0, 2.0], c=0.5)
    add(
        socft.Quadratic,
        of_reward(POINTS),
        P=[[-1.0, 0.2], [0.2, 0.5]],
        q=[1.0, 2.0],
        c=0.5,
    )
    add(socft.Sine, of_reward(LINE), amplitude=0.5, frequency=2.0, phase=0.1)
    add(socft.Softplus, of_reward(LINE), slope=0.5, sharpness=2.0, center=0.1)
    add(socft.PseudoHuber, of_reward(LINE), delta=0.5, center=0.1, weight=-2.0)
    sine = Fresh(socft.Sine)
    add(socft.RidgeFunction, of_reward(POINTS), q=[1.0, 2.0], scalar=sine)
    add(
        socft.Separable,
        of_reward(POINTS),
        rotation=[[0.6, -0.8], [0.8, 0.6]],
        scalars=Fresh(lambda: [socft.Sine(), socft.Softplus()]),
    )
    add(
        socft.LogSumExp,
        of_reward(POINTS),
        directions=[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]],
        offsets=[0.1, 0.2, 0.3],
        temperature=0.5,
    )
    add(
        socft.Sum,
        of_reward(LINE),
        rewards=Fresh(lambda: [socft.Sine(), socft.Softplus()]),
        weights=[1.0, 0.5],
    )
    add(
        socft.FunctionReward,
        lambda made: of_problem(socft.ControlProblem(reference(), made, 1.0)),
        function=Fresh(lambda: lambda x: x.sin().sum(1)),
        L0=1.0,
        L1=2.0,
    )
    for made, x in (
        (socft.Linear([1.0, 2.0]), POINTS),
        (socft.Quadratic([[-1.0, 0.0], [0.0, 1.0]]), POINTS),
        (socft.Sine(), LINE),
        (socft.Softplus(), LINE),
        (socft.PseudoHuber(), LINE),
        (socft.LogSumExp([[1.0, 0.0], [0.0, 1.0]]), POINTS),
        (socft.RidgeFunction([1.0, 2.0], socft.Sine()), POINTS),
    ):
        kind = type(made).__name__
        add(made.__call__, of_states, f"{kind} of states", x=x)
        add(made.gradient, of_states, f"gradient of {kind}", x=x)
    add(
        socft.ControlProblem,
        of_problem,
        reference=Fresh(reference),
        reward=Fresh(lambda: lambda x: -x.square().sum(1)),
        beta=[1.0, 2.0, 0.5],
        running_cost=Fresh(lambda: lambda k, x: x.square().sum(1)),
    )
    add(
        socft.QuadraticCost,
        lambda made: made(0, POINTS),
        F=[[1.0, 0.2], [0.2, 0.5]],
        h=[0.1, 0.2],
    )


def _policies() -> None:
    chain = Fresh(reference)
    add(socft.Uncontrolled, of_policy, reference=chain)
    add(socft.FunctionPolicy, of_policy, function=Fresh(lambda: lambda k, x: -x))
    add(
        socft.AffinePolicy,
        of_policy,
        gain=[MATRIX] * STEPS,
        offset=[[0.1, 0.2]] * STEPS,
    )
    add(socft.AffinePolicy.zeros, of_policy, "AffinePolicy.zeros", reference=chain)
    add(
        socft.FeaturePolicy,
        of_policy,
        features=Fresh(lambda: lambda x: x.sin()),
        weight=[MATRIX] * STEPS,
    )
    add(
        socft.StepwisePolicy,
        of_policy,
        functions=Fresh(lambda: [lambda x: -x, lambda x: x, lambda x: x.sin()]),
    )
    add(
        socft.MLPPolicy,
        of_policy,
        reference=chain,
        width=4,
        depth=2,
        generator=Fresh(generator),
        dtype=Fresh(lambda: torch.float64),
    )
    add(
        socft.ResidualPolicy,
        of_policy,
        reference=chain,
        fine_tuned=Fresh(lambda: lambda k, x: x.sin()),
    )
    add(socft.ScaledPolicy, of_policy, policy=Fresh(policy), scale=[0.5, 0.2, 0.1])


def _paths() -> None:
    add(socft.Noise, nothing, initial=randn(1, PATHS, DIM), steps=randn(2, STEPS, PATHS, DIM))
    add(
        socft.Noise.sample,
        lambda made: [made.initial, made.steps],
        "Noise.sample",
        reference=Fresh(reference),
        batch=PATHS,
        generator=Fresh(generator),
        dtype=Fresh(lambda: torch.float64),
    )
    add(
        socft.rollout,
        lambda made: made.states.detach(),
        reference=Fresh(reference),
        policy=Fresh(policy),
        noise=Fresh(lambda: noise(reference())),
    )
    add(socft.returns, lambda made: made.detach(), problem=Fresh(problem), path=Fresh(path))
    add(
        metrics.wasserstein1,
        itself,
        x=randn(1, 5),
        y=randn(2, 6),
        x_weights=torch.full((5,), 0.2, dtype=F64),
        y_weights=torch.full((6,), 0.5, dtype=F64),
    )
    add(
        metrics.wasserstein1_to_quantiles,
        itself,
        x=randn(1, 5),
        quantile=Fresh(lambda: lambda u: torch.special.ndtri(u)),
    )
    add(metrics.mmd, itself, x=randn(1, 5, 2), y=randn(2, 6, 2), bandwidth=1.0)
    add(metrics.gaussian_mmd, itself, a=Fresh(gaussian), b=Fresh(gaussian), bandwidth=1.0)


def _estimators() -> None:
    for made in (
        socft.AdjointMatching,
        socft.PublishedAdjointMatching,
        socft.FullAdjoint,
        socft.CrossEntropy,
        socft.RelativeEntropy,
        socft.SOCMAdjoint,
        socft.HamiltonianAdjointMatching,
    ):
        add(made, of_estimator)
    field = Fresh(lambda: PolicyCostate(exact=False))
    groups = torch.tensor([0, 0, 0, 0])
    add(
        socft.DDPO,
        of_estimator,
        clip=0.1,
        groups=groups,
        divide=True,
        kl_in_reward=False,
        averaged=False,
    )
    add(socft.DPOK, of_estimator, clip=0.1, averaged=False)
    advantages = {"floor": 0.1, "unbiased": True, "limit": 2.0, "leave_one_out": True}
    add(
        socft.GroupAdvantages,
        lambda made: [made.of(randn(3, PATHS))],
        groups=groups,
        spread=Fresh(lambda: socft.Spread.GROUP),
        **advantages,
    )
    add(
        socft.KLTerm,
        lambda made: [made.weights(problem())],
        lam=0.5,
        with_dt=False,
        durations=[0.3, 0.3, 0.4],
    )
    compared = {"advantages": Fresh(socft.GroupAdvantages), "clip": 0.1, "averaged": False}
    timed = Fresh(lambda: socft.KLTerm(0.5, durations=[0.3, 0.3, 0.4]))
    add(socft.FlowGRPO, of_estimator, kl=timed, **compared)
    add(socft.DanceGRPO, of_estimator, **compared)
    add(socft.GRPOGuard, of_guard, kl=timed, divided_by_dt=True, **compared)
    drawn = {"generator": Fresh(generator), "advantages": Fresh(socft.GroupAdvantages)}
    add(socft.RAM, of_renoised, b=0.5, averaged=True, **drawn)
    add(
        socft.AWM,
        of_renoised,
        lam=0.5,
        clip=0.1,
        weighting=Fresh(lambda: socft.ResidualWeight.HUBER),
        power=0.5,
        by_diffusion=True,
        gain=0.2,
        **drawn,
    )
    add(
        socft.DiffusionNFT,
        of_renoised,
        lam=0.5,
        beta=0.1,
        normalised=True,
        mode=Fresh(lambda: socft.AdvantageMode.SIGN),
        **drawn,
    )
    add(socft.ELBORatio, of_renoised, lam=0.5, clip=0.1, averaged=True, **drawn)
    add(
        socft.EfficientAdjointMatching,
        of_renoised,
        generator=Fresh(generator),
        data_score=Fresh(lambda: lambda x: -x),
    )
    ahead = Fresh(socft.LookAheadCostate)
    residual = Fresh(lambda: socft.LookAheadResidual(AFFINE_FIT, socft.LookAheadCostate()))
    add(socft.LookAheadCostate, nothing, held=True, limit=2.0)
    add(socft.LookAheadResidual, nothing, regression=Fresh(lambda: AFFINE_FIT), look_ahead=ahead)
    add(
        socft.FittedCorrection,
        nothing,
        residual=residual,
        costates=Fresh(lambda: reverse_costates),
        paths=5,
        generator=Fresh(generator),
    )
    add(socft.DeterministicAdjointMatching, nothing, lam=0.5, last=2)
    add(socft.VGGFlow, nothing, lam=0.5, averaged=True, look_ahead=ahead)
    add(socft.ResidualNablaDB, nothing, look_ahead=ahead, of_scores=True)
    add(socft.MalliavinAdjoint, of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.ScoreFunction, of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.ScoreFunctionWithoutKLToGo, of_estimator, baseline=Fresh(RegressionBaseline))
    add(socft.IntegrationByParts, of_estimator, baseline=Fresh(RegressionBaseline))
    value = Fresh(lambda: lambda k, x: x.sum(1))
    add(socft.ValueIntegrationByParts, of_estimator, value=value)
    add(socft.LogVariance, nothing, groups=groups)
    add(socft.Variance, nothing, groups=groups)
    add(socft.Moment, of_estimator, start=Fresh(lambda: lambda x: x.sum(1)))
    add(
        socft.ReFL,
        of_estimator,
        first=0,
        last=2,
        generator=Fresh(generator),
        prediction=Fresh(lambda: lambda k, x, v: x + v),
        kl=True,
    )
    add(socft.SOCM, of_estimator, degree=0, folds=2)
    add(socft.TDAdjoint, of_estimator, field=field, lam=0.5)
    add(socft.TruncatedBackprop, of_estimator, last=2, kl=True)
    add(socft.RandomTruncation, of_estimator, generator=Fresh(generator), kl=True)
    add(socft.ReciprocalAdjoint, nothing, generator=Fresh(generator))
    add(
        socft.ReversedBSDE,
        of_estimator,
        field=field,
        reverser=Fresh(lambda: Reverser(DenoisingScore(AFFINE), generator())),
        adjoint=Fresh(FullRecursion),
        last=True,
    )
    for made in (socft.MartingaleAdjoint, socft.FullMartingaleAdjoint):
        add(made, of_estimator, correction=Fresh(lambda: AntitheticCorrection(PolicyCostate())))
    for made in (socft.LeanStickingTheLanding, socft.FullStickingTheLanding):
        add(made, of_estimator, own_step=Fresh(OwnStepByJvp))
    add(AntitheticCorrection, corrected, source=field, last=True)
    add(ExactCorrection, corrected, source=field, last=True, nodes=4)
    add(GivenCostate, lambda made: of_estimator(socft.TDAdjoint(made, 0.5)), function=FIELD)
    add(GivenScore, with_score, score=FIELD)
    add(DenoisingScore, with_score, regression=Fresh(lambda: AFFINE))
    add(KernelScore, with_score, width=0.5)
    add(Reverser, nothing, score=Fresh(KernelScore), generator=Fresh(generator))
    add(GivenBaseline, with_baseline, function=value)
    add(ValueBaseline, with_baseline, value=value)
    add(RegressionBaseline, with_baseline, regression=Fresh(lambda: AFFINE), folds=2)
    add(
        EstimatorContext,
        nothing,
        problem=Fresh(problem),
        policy=Fresh(policy),
        repetition=1,
    )


AFFINE = socft.LinearRegression(socft.Polynomial(1))
FIELD = Fresh(lambda: lambda k, x: -x)


def _methods() -> None:
    add(socft.Polynomial, of_features, degree=2)
    add(socft.RadialBasis, of_features, centres=randn(1, 3, DIM), width=1.0)
    add(
        socft.RandomFourier,
        of_features,
        frequencies=randn(1, 3, DIM),
        phases=randn(2, 3),
    )
    add(
        socft.RandomFourier.sample,
        of_features,
        "RandomFourier.sample",
        count=3,
        dim=DIM,
        length=1.0,
        generator=Fresh(generator),
    )
    add(
        socft.LinearRegression,
        of_regression,
        features=Fresh(lambda: socft.Polynomial(1)),
        ridge=0.1,
    )
    add(socft.KernelRidge, of_regression, ridge=0.1, width=0.5)
    add(
        socft.NetworkRegression,
        of_regression,
        width=4,
        depth=1,
        steps=2,
        batch=8,
        rate=0.01,
        seed=0,
    )
    add(
        SpaceTimeRegression,
        nothing,
        width=4,
        blocks=1,
        frequencies=2,
        steps=2,
        batch=8,
        rate=0.01,
        weight_decay=0.1,
        decay_every=10,
        decay=0.9,
    )
    add(socft.ExactPIFT, of_method, inner=1)
    add(
        socft.TrustRegion,
        of_method,
        inner=Fresh(lambda: socft.ExactPIFT(1)),
        multipliers=[1.0, 0.5],
    )
    add(
        socft.MonteCarloPIFT,
        of_method,
        inner=1,
        control=Fresh(lambda: AFFINE),
        costate=Fresh(lambda: AFFINE),
        paths=16,
        draws=2,
        seed=0,
    )
    add(
        socft.PolicyGradient,
        of_method,
        policy=Fresh(lambda: lambda: socft.AffinePolicy.zeros(line())),
        estimator=Fresh(socft.FullAdjoint),
        steps=2,
        batch=4,
        rate=0.01,
        seed=0,
    )
    add(_fit, first, "fit", batch=4, steps=2, generator=Fresh(generator))
    add(_fitted, first, "fit of", estimator=Fresh(socft.FullAdjoint), problem=Fresh(problem))
    truth = Fresh(lambda: socft.LinearQuadratic(problem()))
    iterations = Fresh(
        lambda: [socft.Iteration(0, socft.Uncontrolled(reference()), 0.0, 0, {}, None)]
    )
    add(
        socft.observe,
        lambda made: [each.objective_gap for each in made],
        truth=truth,
        iterations=iterations,
        every=1,
    )


def _fit(batch: int, steps: int, generator: torch.Generator) -> Any:
    control = policy()
    adam = torch.optim.Adam(control.parameters())
    return list(socft.fit(problem(), control, socft.FullAdjoint(), adam, generator, batch, steps))


def _fitted(estimator: socft.Estimator, problem: socft.ControlProblem) -> Any:
    control = policy()
    adam = torch.optim.Adam(control.parameters())
    return list(socft.fit(problem, control, estimator, adam, generator(), 4, 1))


def _truths() -> None:
    add(socft.LinearQuadratic, of_truth, problem=Fresh(problem))
    add(socft.Quadrature, of_truth, problem=Fresh(line_problem), nodes=(200,))
    add(
        socft.compare,
        nothing,
        truth=Fresh(lambda: socft.LinearQuadratic(problem())),
        policy=Fresh(policy),
    )
    add(socft.measured_beta, lambda made: made.beta, problem=Fresh(line_problem), lam=0.5)
    add(
        socft.TiltedMixture,
        lambda made: made.tilt.log_normaliser,
        density=Fresh(gaussian),
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        beta=2.0,
    )
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=F64)
    add(
        socft.SeparableTruth,
        lambda made: made.objective,
        density=Fresh(lambda: socft.Rotated(turn, [socft.Gaussian(0.0, 1.0)] * 2)),
        reward=Fresh(lambda: socft.Separable(turn, [socft.Sine()] * 2)),
        schedule=Fresh(schedule),
        beta=2.0,
    )
    add(
        riccati,
        lambda made: made.hessian(0.0),
        A=torch.tensor(MATRIX, dtype=F64),
        B=torch.tensor(WIDE, dtype=F64),
        terminal=-torch.eye(2, dtype=F64),
        running=torch.eye(2, dtype=F64),
        beta=1.0,
        horizon=0.5,
    )
    add(
        Grid.box,
        lambda made: made.nodes,
        "Grid.box",
        lower=torch.tensor([-1.0], dtype=F64),
        upper=torch.tensor([1.0], dtype=F64),
        shape=(12,),
    )


def _guidance() -> None:
    levels = torch.tensor([0.2, 0.5], dtype=F64)
    add(GaussianDenoiser, of_denoiser, law=Fresh(gaussian), abar=levels)
    add(ScoreDenoiser, of_denoiser, score=FIELD, abar=levels)
    add(
        LinearDenoiser,
        of_denoiser,
        slope=-torch.eye(2, dtype=F64).expand(2, 2, 2).contiguous(),
        offset=randn(1, 2, 2),
        abar=levels,
    )
    add(
        Response,
        lambda made: made.residual(POINTS),
        gradient=torch.ones(DIM, dtype=F64),
        value=1.0,
    )
    add(ConstantStrength, of_strength, value=0.5)
    for made in (IsotropicStrength, PosteriorStrength, PublishedStrength):
        add(made, of_strength, noise=0.5, scale=2.0)
    add(
        LookAheadGuidance,
        of_guidance,
        response=Fresh(lambda: Response(torch.ones(DIM, dtype=F64), 1.0)),
        strength=Fresh(lambda: ConstantStrength(1.0)),
    )
    add(
        UniversalGuidance,
        of_guidance,
        reward=Fresh(lambda: socft.Linear([1.0, 2.0])),
        weight=0.5,
    )
    add(
        ClassifierGuidance,
        of_guidance,
        density=Fresh(gaussian),
        tilted=Fresh(gaussian),
        weight=0.5,
    )
    add(
        GuidancePolicy,
        lambda made: made(0, POINTS),
        schedule=Fresh(schedule),
        denoiser=Fresh(lambda: GaussianDenoiser(gaussian(), schedule().abar[:-1])),
        guidance=Fresh(lambda: UniversalGuidance(socft.Linear([1.0, 2.0]), 0.5)),
    )
    add(IncrementTarget, nothing, delta=0.5)
    add(StepSizeTarget, nothing, lam=0.5, noise=0.2)
    add(RecentredScore, nothing, rate=0.5)
    add(LeastSquaresScore, nothing, draws=3, slope=True)


def constants() -> theory.ChainConstants:
    return theory.ChainConstants(
        torch.tensor([0.9, 0.8], dtype=F64),
        torch.tensor([0.1, 0.2], dtype=F64),
        torch.tensor([0.3, 0.4], dtype=F64),
        1.0,  # type: ignore[arg-type]
        0.5,  # type: ignore[arg-type]
        1.0,
        2.0,
    )


def _theory() -> None:
    add(
        theory.ChainConstants,
        lambda made: theory.constant_beta(made, 0.5, theory.Theorem28(theory.SharpBounds())).beta,
        alpha=[0.9, 0.8],
        score_weight=[0.1, 0.2],
        sigma=[0.3, 0.4],
        score_L0=[1.0, 2.0],
        score_L1=[0.5, 0.1],
        reward_L0=1.0,
        reward_L1=2.0,
        dim=2,
    )


_fill()
