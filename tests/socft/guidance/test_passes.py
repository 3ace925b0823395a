"""Passes in the coordinates that guidance moves: path by path those of full rollouts, their noise
of the right law.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, affine_reference, score_reference
from socft.guidance.denoiser import Denoiser, GaussianDenoiser, ScoreDenoiser
from socft.guidance.gaussian_passes import GaussianPasses, PassNoise
from socft.guidance.iterated import (
    Generated,
    IncrementTarget,
    IteratedGuidance,
    RecentredScore,
    SampleQuery,
)
from socft.guidance.policy import (
    ClassifierGuidance,
    ConditionalGuidance,
    Guidance,
    GuidancePolicy,
    LookAheadGuidance,
    NaiveGuidance,
    NoGuidance,
    UniversalGuidance,
    affine_policy,
)
from socft.guidance.sphere import Sphere, SphereDenoiser
from socft.guidance.sphere_passes import SpherePasses, ZonalNoise
from socft.guidance.strength import (
    ConstantStrength,
    GuidanceStrength,
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.path import Noise, Path, rollout
from socft.problem import ControlProblem
from socft.reward import Linear, Quadratic
from socft.schedule import cosine_levels, ddpm
from socft.truth.affine_policy import evaluate_affine

ALGEBRA = 1e-9  # relative and absolute: two dozen steps of a few products each
STANDARD_ERRORS = 4.0
SCHEDULE = ddpm(cosine_levels(24))
ABAR = SCHEDULE.abar[:-1]
GENERATOR = torch.Generator().manual_seed(11)
BATCH = 5


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


AXES = torch.linalg.qr(randn(6, 6)).Q
SPACES = (AXES[:, :2], AXES[:, 2:3], AXES[:, 3:])
VARIANCES = (0.0, 0.5, 2.0)
MEAN = randn(6)
COVARIANCE = sum(
    (v * Q @ Q.mT for v, Q in zip(VARIANCES, SPACES, strict=True)),
    torch.zeros(6, 6, dtype=torch.float64),
)
LAW = Gaussian(MEAN, (COVARIANCE + COVARIANCE.mT) / 2)
REFERENCE = affine_reference(LAW, SCHEDULE)
DENOISER = GaussianDenoiser(LAW, ABAR)
PASSES = GaussianPasses(LAW, SCHEDULE)
MOVED = DENOISER.recentred(MEAN + randn(6))
GRADIENT = randn(6)
RESPONSES = {
    "one": Response(GRADIENT, 1.5),
    "each": Response(randn(BATCH, 6), randn(BATCH)),
    "in an eigenspace": Response(randn(BATCH, 3) @ SPACES[2].mT, randn(BATCH)),
}
GUIDES = {
    "naive": lambda response: NaiveGuidance(response, IsotropicStrength(0.3)),
    "look-ahead, published": lambda response: LookAheadGuidance(response, PublishedStrength(0.3)),
    "look-ahead, exact": lambda response: LookAheadGuidance(response, PosteriorStrength(0.3, 2.0)),
    "look-ahead, constant": lambda response: LookAheadGuidance(response, ConstantStrength(0.1)),
}


def gathered(noise: Noise) -> Tensor:
    """All noises, the initial one first."""
    return torch.cat([noise.initial[None], noise.steps])


def reduced(noise: Noise, g: Tensor) -> PassNoise:
    """The noise in the coordinates of passes guided along g, by solving for what the unguided chain
    makes of it.
    """
    full, along = gathered(noise), []
    for Q in SPACES:
        part = g @ Q @ Q.mT
        length = part.norm(dim=-1, keepdim=True)
        along.append((full * torch.where(length > ALGEBRA, part / length, 0.0)).sum(-1))
    free = rollout(REFERENCE, GuidancePolicy(SCHEDULE, DENOISER, NoGuidance()), noise).final
    law = evaluate_affine(
        ControlProblem(REFERENCE, Linear(MEAN), 1.0), affine_policy(plain(), SCHEDULE.steps, 6)
    ).final_law
    root = torch.linalg.cholesky(law.covariance)
    spread = [float((Q.mT @ law.covariance @ Q)[0, 0]) ** 0.5 for Q in SPACES]
    assert torch.allclose(
        root @ root.mT,
        sum((s**2 * Q @ Q.mT for s, Q in zip(spread, SPACES, strict=True)), 0 * COVARIANCE),
    )
    across = sum(
        ((free - law.mean) @ Q @ Q.mT / s for s, Q in zip(spread, SPACES, strict=True)),
        torch.zeros(BATCH, 6),
    )
    return PassNoise(torch.stack(along, 2), across)


def plain() -> GuidancePolicy:
    return GuidancePolicy(SCHEDULE, DENOISER, NoGuidance())


def assert_same(found: Generated, path: Path) -> None:
    assert torch.allclose(found.samples, path.final, rtol=ALGEBRA, atol=ALGEBRA)
    assert torch.allclose(found.kl, path.kl().sum(0), rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("model", [DENOISER, MOVED], ids=["pre-trained", "recentred"])
@pytest.mark.parametrize("which", RESPONSES)
@pytest.mark.parametrize("guide", GUIDES)
def test_a_gaussian_pass_is_a_rollout(guide: str, which: str, model: GaussianDenoiser):
    """Samples and divergences with the same noise, written in the pass's coordinates by hand."""
    response = RESPONSES[which]
    policy = GuidancePolicy(
        SCHEDULE, model, GUIDES[guide](response), None if model is DENOISER else DENOISER
    )
    noise = Noise.sample(REFERENCE, BATCH, torch.Generator().manual_seed(0))
    path = rollout(REFERENCE, policy, noise)
    assert_same(PASSES.simulate(policy, reduced(noise, response.gradient.expand(BATCH, 6))), path)
    assert float(path.kl().sum(0).min()) > 0


@pytest.mark.parametrize("model", [DENOISER, MOVED], ids=["pre-trained", "recentred"])
def test_an_unguided_pass_is_a_rollout(model: GaussianDenoiser):
    policy = GuidancePolicy(SCHEDULE, model, NoGuidance(), None if model is DENOISER else DENOISER)
    noise = Noise.sample(REFERENCE, BATCH, torch.Generator().manual_seed(0))
    assert_same(
        PASSES.simulate(policy, reduced(noise, torch.zeros(BATCH, 6, dtype=torch.float64))),
        rollout(REFERENCE, policy, noise),
    )


def test_eigenspaces_are_found():
    assert torch.allclose(
        PASSES.variances, torch.tensor(VARIANCES, dtype=torch.float64), rtol=ALGEBRA, atol=ALGEBRA
    )
    assert PASSES.noise(7, GENERATOR).along.shape == (SCHEDULE.steps + 1, 7, 3)


@pytest.mark.parametrize("guide", ["naive", "look-ahead, published"])
def test_gaussian_passes_have_the_exact_moments(guide: str):
    """Mean, variance and divergence of passes with noise of their own against the exact moments of
    the controlled chain.
    """
    policy, paths = GuidancePolicy(SCHEDULE, DENOISER, GUIDES[guide](RESPONSES["one"])), 20_000
    exact = evaluate_affine(
        ControlProblem(REFERENCE, Linear(MEAN), 1.0), affine_policy(policy, SCHEDULE.steps, 6)
    )
    found = PASSES.generate(policy, paths, torch.Generator().manual_seed(1))
    apart = found.samples - exact.mean[-1]
    for values, truth in (
        (apart, 0 * MEAN),
        (apart.square(), exact.covariance[-1].diagonal()),
        (found.kl[:, None], exact.kl.sum()),
    ):
        error = values.std(0) / paths**0.5
        assert bool(((values.mean(0) - truth).abs() <= STANDARD_ERRORS * error).all())
    mixed = (apart[:, :1] * apart[:, 1:]).mean(0)
    error = (apart[:, :1] * apart[:, 1:]).std(0) / paths**0.5
    assert bool(((mixed - exact.covariance[-1, 0, 1:]).abs() <= STANDARD_ERRORS * error).all())


def test_rounds_by_passes_are_rounds_by_rollouts():
    """Two rounds of Algorithm 2 on large batches: rewards and divergences agree within their
    standard errors.
    """
    reward = Quadratic(-0.3 * torch.eye(6, dtype=torch.float64), GRADIENT)
    method, batch = (
        IteratedGuidance(
            GUIDES["look-ahead, exact"], IncrementTarget(0.5), SampleQuery(), RecentredScore(0.5)
        ),
        4000,
    )
    made = [
        list(
            method.rounds(
                how, SCHEDULE, DENOISER, reward, batch, 2, torch.Generator().manual_seed(seed)
            )
        )[-1]
        for seed, how in enumerate((REFERENCE, PASSES))
    ]
    for left, right in (
        (reward(made[0].samples), reward(made[1].samples)),
        (made[0].kl, made[1].kl),
    ):
        error = float((left.var() + right.var()) / batch) ** 0.5
        # the target of the second round depends on the first batch's mean, which adds as much again
        assert abs(float(left.mean() - right.mean())) <= 2 * STANDARD_ERRORS * error


def test_a_recentred_denoiser_is_one_made_anew():
    x, fresh = randn(4, 6), GaussianDenoiser(Gaussian(MOVED.law.mean, LAW.covariance), ABAR)
    for k in (0, 12, 23):
        assert torch.allclose(MOVED.score(k, x), fresh.score(k, x), rtol=ALGEBRA, atol=ALGEBRA)
        assert not torch.allclose(MOVED.score(k, x), DENOISER.score(k, x))
    assert torch.equal(DENOISER.law.mean, MEAN)


def test_increments_of_their_own_are_runs_side_by_side():
    """Two increments in one batch against one each, with the same noise."""
    pole, passes = sphere_case()
    y = torch.tensor([0.1, 0.4], dtype=torch.float64).repeat_interleave(3)
    z = randn(6, 5)
    g = pole.expand(6, 5)
    both, noise = (
        IncrementTarget(y)(z, g, passes.denoiser),
        passes.noise(6, torch.Generator().manual_seed(0)),
    )
    made = passes.simulate(
        GuidancePolicy(SCHEDULE, passes.denoiser, GUIDES["naive"](Response(g, both))), noise
    )
    for i, delta in enumerate((0.1, 0.4)):
        rows = slice(3 * i, 3 * i + 3)
        part = ZonalNoise(noise.normal[:, rows], noise.rest[:, rows], noise.across[rows])
        response = Response(g[rows], IncrementTarget(delta)(z[rows], g[rows], passes.denoiser))
        alone = passes.simulate(
            GuidancePolicy(SCHEDULE, passes.denoiser, GUIDES["naive"](response)), part
        )
        assert torch.allclose(made.samples[rows], alone.samples, rtol=ALGEBRA)
        assert torch.allclose(made.kl[rows], alone.kl, rtol=ALGEBRA)


# The sphere
# -----------------------------------------------------------------------------

POLE = randn(5)
POLE = POLE / POLE.norm()
TILTED = Sphere(5, 3.0 * POLE, 1.2)


def sphere_case(law: Sphere | None = None) -> tuple[Tensor, SpherePasses]:
    return POLE, SpherePasses(POLE, SphereDenoiser(law or Sphere(5), ABAR), SCHEDULE)


def zonal_noise(path: Path) -> ZonalNoise:
    """The noise of full paths in the coordinates along the pole, along the part of the state across
    it, and elsewhere.
    """
    across = path.states - (path.states @ POLE).unsqueeze(2) * POLE
    e = across / across.norm(dim=2, keepdim=True)
    full = gathered(path.noise)
    xi, side = full @ POLE, full - (full @ POLE).unsqueeze(2) * POLE
    before = torch.cat([e[:1], e[:-1]])
    z = (side * before).sum(2)
    return ZonalNoise(torch.stack([xi, z], 2), (side - z.unsqueeze(2) * before).norm(dim=2), e[-1])


SPHERE_GUIDANCE: dict[str, Guidance] = {
    "none": NoGuidance(),
    "universal": UniversalGuidance(Linear(POLE, 0.3), 8.0),
    "naive": NaiveGuidance(
        Response(2 * POLE.expand(BATCH, 5), randn(BATCH)), IsotropicStrength(0.3)
    ),
    "look-ahead": LookAheadGuidance(Response(-POLE, 0.7), PublishedStrength(0.3)),
}


@pytest.mark.parametrize("law", [Sphere(5), TILTED], ids=["uniform", "tilted"])
@pytest.mark.parametrize("name", SPHERE_GUIDANCE)
@pytest.mark.parametrize("tuned", [False, True])
def test_a_pass_on_the_sphere_is_a_rollout(name: str, law: Sphere, tuned: bool):
    """Samples and divergences with the same noise, written in the pass's coordinates by hand."""
    _, passes = sphere_case(law)
    model = (
        SphereDenoiser(Sphere(5, law.natural + 2 * POLE, law.radius), ABAR)
        if tuned
        else passes.denoiser
    )
    policy = GuidancePolicy(
        SCHEDULE, model, SPHERE_GUIDANCE[name], passes.denoiser if tuned else None
    )
    reference = score_reference(law, SCHEDULE)
    noise = Noise.sample(reference, BATCH, torch.Generator().manual_seed(0))
    with torch.no_grad():
        path = rollout(reference, policy, noise)
    assert_same(passes.simulate(policy, zonal_noise(path)), path)
    assert bool((path.kl().sum(0) > 0).all()) == (tuned or name != "none")


def test_passes_on_the_sphere_have_the_law_of_rollouts():
    """Mean and spread of the samples and of the divergence, with noise of their own, within the
    standard errors.
    """
    _, passes = sphere_case(TILTED)
    policy, paths = GuidancePolicy(SCHEDULE, passes.denoiser, SPHERE_GUIDANCE["look-ahead"]), 5000
    reference = score_reference(TILTED, SCHEDULE)
    with torch.no_grad():
        path = rollout(
            reference, policy, Noise.sample(reference, paths, torch.Generator().manual_seed(2))
        )
    made = passes.generate(policy, paths, torch.Generator().manual_seed(3))
    for left, right in ((made.samples, path.final), (made.kl[:, None], path.kl().sum(0)[:, None])):
        for power in (1, 2):
            one, two = left**power, right**power
            error = ((one.var(0) + two.var(0)) / paths).sqrt()
            assert bool(((one.mean(0) - two.mean(0)).abs() <= STANDARD_ERRORS * error).all())


def test_noise_on_the_sphere_is_that_of_full_noise():
    """The squared length across two directions has D - 2 = 3 degrees of freedom, and samples are
    uniform across the pole.
    """
    noise = sphere_case()[1].noise(400, torch.Generator().manual_seed(4))
    squared = noise.rest.square().flatten()
    count = len(squared)
    assert abs(float(squared.mean()) - 3) <= STANDARD_ERRORS * (6 / count) ** 0.5
    excess = float((squared - 3).square().std()) / count**0.5
    assert abs(float((squared - 3).square().mean()) - 6) <= STANDARD_ERRORS * excess
    assert torch.allclose(noise.across.norm(dim=1), torch.ones(400, dtype=torch.float64))
    assert float((noise.across @ POLE).abs().max()) <= ALGEBRA
    assert float((noise.across.mean(0)).norm()) <= STANDARD_ERRORS / 400**0.5


def other(law: Gaussian) -> Denoiser:
    return GaussianDenoiser(law, ABAR)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PASSES.noise(0, GENERATOR), r"batch = 0; give at least one pass"),
        (
            lambda: passed(UniversalGuidance(Linear(GRADIENT), 1.0)),
            r"UniversalGuidance is no guidance for a linear response; simulate it",
        ),
        (
            lambda: passed(NoGuidance(), other(Gaussian(MEAN, 1.0))),
            r"a GaussianDenoiser here is not the exact score of this law",
        ),
        (
            lambda: passed(NoGuidance(), MOVED),
            r"a GaussianDenoiser here is not the exact score of this law, or of it recentred",
        ),
        (
            lambda: passed(NoGuidance(), ScoreDenoiser(DENOISER.score, ABAR)),
            r"a ScoreDenoiser here is not the exact score of this law",
        ),
        (
            lambda: sphere_passed(
                NaiveGuidance(Response(torch.ones(5).double(), 1.0), ConstantStrength(1.0))
            ),
            r"the gradient has a direction of length",
        ),
        (
            lambda: sphere_passed(ClassifierGuidance(TILTED, TILTED)),
            r"ClassifierGuidance has no form in two coordinates; simulate it",
        ),
        (
            lambda: SpherePasses(2 * POLE, sphere_case()[1].denoiser, SCHEDULE),
            r"the pole has length 2; give a unit vector",
        ),
        (
            lambda: SpherePasses(
                torch.eye(2).double()[0], SphereDenoiser(Sphere(2), ABAR), SCHEDULE
            ),
            r"2 coordinates; passes in two",
        ),
        (lambda: sphere_case()[1].noise(0, GENERATOR), r"batch = 0; give at least one pass"),
        (
            lambda: sphere_case()[1].simulate(plain(), sphere_case()[1].noise(1, GENERATOR)),
            r"the policy's pre-trained score is another one than these passes'; give both the same",
        ),
        (lambda: DENOISER.recentred(MEAN * torch.nan), r"it must be a finite number"),
    ],
)
def test_what_passes_cannot_do_is_refused(make, message: str):
    with pytest.raises(InvalidProblem, match=message):
        make()


def passed(guidance: Guidance, model: Denoiser = DENOISER) -> Generated:
    return PASSES.generate(GuidancePolicy(SCHEDULE, model, guidance), 2, GENERATOR)


def sphere_passed(guidance: Guidance) -> Generated:
    _, passes = sphere_case()
    return passes.generate(GuidancePolicy(SCHEDULE, passes.denoiser, guidance), 2, GENERATOR)


@dataclasses.dataclass(frozen=True)
class _Halved(GuidanceStrength):
    """A strength of the user's own: half of another."""

    inner: GuidanceStrength

    def __call__(self, at, g: Tensor, pulled: Tensor) -> Tensor:
        return self.inner(at, g, pulled) / 2


class _Twice(ConditionalGuidance):
    """A guidance of the user's own: the gradient and its pullback together."""

    def direction(self, at) -> Tensor:
        g = self.response.gradient
        pulled = at.pullback(g)
        return self.strength(at, g, pulled) * (g + pulled)


def test_guidance_of_the_users_own_is_simulated_too():
    """Whatever mixes g and its pullback with factors that depend on their lengths and product."""
    response = RESPONSES["each"]
    policy = GuidancePolicy(SCHEDULE, DENOISER, _Twice(response, _Halved(PosteriorStrength(0.3))))
    noise = Noise.sample(REFERENCE, BATCH, torch.Generator().manual_seed(0))
    assert_same(
        PASSES.simulate(policy, reduced(noise, response.gradient)),
        rollout(REFERENCE, policy, noise),
    )
