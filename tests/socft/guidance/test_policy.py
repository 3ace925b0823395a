"""Guidance: terms against differences of their definitions, denoisers against Bayes' rule, policies
against score changes.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, NoisedScore, affine_reference, score_reference
from socft.guidance.denoiser import Denoiser, GaussianDenoiser, LinearDenoiser, ScoreDenoiser
from socft.guidance.policy import (
    ClassifierGuidance,
    Guidance,
    GuidancePolicy,
    LookAheadGuidance,
    NaiveGuidance,
    NoGuidance,
    UniversalGuidance,
    affine_policy,
)
from socft.guidance.strength import (
    ConstantStrength,
    IsotropicStrength,
    PosteriorStrength,
    PublishedStrength,
    Response,
)
from socft.path import Noise, rollout
from socft.policy import FunctionPolicy
from socft.problem import ControlProblem
from socft.reward import Linear, Quadratic
from socft.schedule import ddpm
from socft.truth.affine_policy import evaluate_affine

ALGEBRA = 1e-10  # relative: matrix algebra in float64 at levels of 0.02 and more
DIFFERENCED = 1e-6  # central differences with step 1e-5
STEP = 1e-5
STANDARD_ERRORS = 4.0

GENERATOR = torch.Generator().manual_seed(3)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR, dtype=torch.float64)


LEVELS = torch.tensor([0.02, 0.2, 0.5, 0.8, 0.95, 1.0], dtype=torch.float64)
SCHEDULE = ddpm(LEVELS)
ROOT = randn(3, 3)
LAW = Gaussian(randn(3), ROOT @ ROOT.T)
FLAT = Gaussian(randn(3), ROOT[:, :2] @ ROOT[:, :2].T)
MIXTURE = GaussianMixture(
    [0.3, 0.7], randn(2, 3), torch.stack([LAW.covariance, 0.5 * torch.eye(3, dtype=torch.float64)])
)
X, G = randn(7, 3), randn(3)


def denoisers(law: GaussianMixture) -> list[Denoiser]:
    generic = ScoreDenoiser(NoisedScore(law, LEVELS[:-1]), LEVELS[:-1])
    if not isinstance(law, Gaussian):
        return [generic]
    exact = GaussianDenoiser(law, LEVELS[:-1])
    probes = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    values = torch.stack([exact.score(k, probes) for k in range(5)])
    linear = LinearDenoiser((values[:, 1:] - values[:, :1]).mT, values[:, 0], LEVELS[:-1])
    return [generic, exact, linear]


def differences(function, x: Tensor) -> Tensor:
    """Central differences of a scalar function per sample."""
    columns = []
    for i in range(x.shape[1]):
        e = torch.zeros(x.shape[1], dtype=torch.float64)
        e[i] = STEP
        columns.append((function(x + e) - function(x - e)) / (2 * STEP))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("law", [LAW, FLAT])
@pytest.mark.parametrize("k", [0, 2, 4])
def test_the_prediction_is_the_posterior_mean(law: Gaussian, k: int):
    """Conditioning the joint law of (x_0, x), for every kind of denoiser."""
    level = float(LEVELS[k])
    inside = level * law.covariance + (1 - level) * torch.eye(3, dtype=torch.float64)
    gain = level**0.5 * torch.linalg.solve(inside, law.covariance).T
    expected = law.mean + (X - level**0.5 * law.mean) @ gain.T
    for denoiser in denoisers(law):
        at = denoiser.at(k, X)
        assert torch.allclose(at.clean, expected, rtol=ALGEBRA, atol=ALGEBRA / level)
        assert torch.allclose(
            at.score, law.noised_score(level, X), rtol=ALGEBRA, atol=ALGEBRA / level
        )
        assert torch.allclose(
            denoiser.score(k, X), law.noised_score(level, X), rtol=ALGEBRA, atol=ALGEBRA / level
        )
        assert torch.allclose(
            at.pullback(G), (G @ gain).expand_as(X), rtol=ALGEBRA, atol=ALGEBRA / level
        )
        assert torch.allclose(at.pullback(X), X @ gain, rtol=ALGEBRA, atol=ALGEBRA / level)


def test_the_covariance_is_the_scaled_jacobian():
    """``Cov[x_0|x] = h J / alpha`` for a mixture, the covariance by importance sampling of x_0."""
    level, x = 0.5, X[:1]
    clean = MIXTURE.sample(400_000, torch.Generator().manual_seed(0))
    log_weight = -(x - level**0.5 * clean).square().sum(1) / (2 * (1 - level))
    weight = torch.softmax(log_weight, 0)
    mean = weight @ clean
    square = weight @ ((clean - mean) @ G).square()
    at = denoisers(MIXTURE)[0].at(2, x)
    found = float(at.noise / at.signal * (at.pullback(G) * G).sum())
    effective = 1 / float(weight.square().sum())
    assert found == pytest.approx(float(square), rel=STANDARD_ERRORS * math.sqrt(3 / effective))
    assert torch.allclose(
        at.clean[0], mean, atol=STANDARD_ERRORS * float(square**0.5) * 3 / effective**0.5
    )


@pytest.mark.parametrize(
    "strength", [PublishedStrength(0.4), PosteriorStrength(0.4), ConstantStrength(1.3)]
)
def test_look_ahead_is_the_gradient_of_its_loss(strength):
    """``-b grad (y - g . x_0hat)^2`` by central differences, b held fixed."""
    for law in (LAW, MIXTURE):
        denoiser, y = denoisers(law)[0], torch.linspace(-1, 2, 7, dtype=torch.float64)
        response = Response(randn(7, 3), y)
        at = denoiser.at(1, X)
        b = strength(at, response.gradient, at.pullback(response.gradient))

        def loss(x: Tensor, denoiser=denoiser, response=response) -> Tensor:
            return response.residual(denoiser.at(1, x).clean).square()[:, 0]

        expected = -b * differences(loss, X)
        assert torch.allclose(
            LookAheadGuidance(response, strength)(at), expected, rtol=DIFFERENCED, atol=DIFFERENCED
        )


def test_published_strength_has_the_squared_gradient():
    """``1 / (2 (s^2 + h |grad g . x_0hat|^2 / alpha^2))``, the gradient by central differences."""
    at = denoisers(LAW)[1].at(3, X)
    slope = differences(lambda x: denoisers(LAW)[1].at(3, x).clean @ G, X)
    expected = 1 / (2 * (0.09 + 0.2 / 0.8 * slope.square().sum(1, keepdim=True)))
    assert torch.allclose(PublishedStrength(0.3)(at, G, at.pullback(G)), expected, rtol=DIFFERENCED)
    assert torch.allclose(
        PublishedStrength(0.3, scale=2.5)(at, G, at.pullback(G)), 2.5 * expected, rtol=DIFFERENCED
    )


def test_naive_of_isotropic_data_is_the_conditional_score():
    """For N(mu, I) both terms are grad log p(y | x): central differences of the log density of y
    given x.
    """
    law = Gaussian(randn(3), torch.ones(3))
    s, y = 0.5, 1.2
    at = GaussianDenoiser(law, LEVELS[:-1]).at(2, X)

    def log_density(x: Tensor) -> Tensor:
        clean = GaussianDenoiser(law, LEVELS[:-1]).at(2, x).clean
        return -(y - clean @ G).square() / (2 * (s**2 + 0.5 * float(G @ G)))

    expected = differences(log_density, X)
    for guidance in (
        NaiveGuidance(Response(G, y), IsotropicStrength(s)),
        LookAheadGuidance(Response(G, y), PosteriorStrength(s)),
    ):
        assert torch.allclose(guidance(at), expected, rtol=DIFFERENCED, atol=DIFFERENCED)


def test_universal_and_classifier_are_gradients():
    """Of r(x_0hat), and of log E[exp(r / beta) | x] by Monte Carlo over the posterior, both by
    central differences.
    """
    reward, beta = Quadratic(-0.3 * torch.eye(3, dtype=torch.float64), randn(3)), 0.8
    denoiser = denoisers(LAW)[1]
    at = denoiser.at(2, X)
    expected = 1.7 * differences(lambda x: reward(denoiser.at(2, x).clean), X)
    assert torch.allclose(
        UniversalGuidance(reward, 1.7)(at), expected, rtol=DIFFERENCED, atol=DIFFERENCED
    )
    clean, z = (
        denoiser.at(2, X[:1]).clean,
        torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    cov = torch.stack(
        [at.noise / at.signal * denoiser.at(2, X[:1]).pullback(e)[0] for e in torch.eye(3).double()]
    )
    z = torch.cat([z, -z]) @ torch.linalg.cholesky((cov + cov.T) / 2).T

    def log_mean(x: Tensor) -> Tensor:
        shifted = denoiser.at(2, x).clean + z
        return torch.logsumexp(reward(shifted) / beta, 0)[None]

    found = ClassifierGuidance(LAW, LAW.tilted(reward, beta).density, 0.6)(denoiser.at(2, X[:1]))
    weights = torch.softmax(reward(clean + z) / beta, 0)
    error = STANDARD_ERRORS * float(weights.square().sum()) ** 0.5 * 3
    assert torch.allclose(found, 0.6 * differences(log_mean, X[:1]), atol=error)


GUIDANCES: dict[str, Guidance] = {
    "naive": NaiveGuidance(Response(G, 0.7), IsotropicStrength(0.5)),
    "look-ahead": LookAheadGuidance(Response(G, 0.7), PublishedStrength(0.5)),
    "universal": UniversalGuidance(Linear(G), 0.4),
    "nothing": NoGuidance(),
}


@pytest.mark.parametrize("name", list(GUIDANCES))
def test_policy_is_the_change_of_the_score(name: str):
    """One step of the controlled chain is one DDPM step with the guided score."""
    guidance, denoiser = GUIDANCES[name], denoisers(LAW)[1]
    reference = score_reference(LAW, SCHEDULE)
    policy = GuidancePolicy(SCHEDULE, denoiser, guidance)
    for k in (0, 4):
        score = LAW.noised_score(float(LEVELS[k]), X) + guidance(denoiser.at(k, X))
        a = float(LEVELS[k] / LEVELS[k + 1])
        expected = (X + (1 - a) * score) / a**0.5
        found = reference.step(k, X, policy(k, X))
        assert torch.allclose(found, expected, rtol=ALGEBRA, atol=ALGEBRA)
        assert torch.allclose(
            policy(k, X), reference.control_of(k, X, score), rtol=ALGEBRA, atol=1e-9
        )


def test_policy_counts_the_change_of_a_fine_tuned_score():
    """With another score model the control is the whole difference from the pre-trained score."""
    other = Gaussian(LAW.mean + 1, LAW.covariance)
    policy = GuidancePolicy(
        SCHEDULE, GaussianDenoiser(other, LEVELS[:-1]), GUIDANCES["look-ahead"], denoisers(LAW)[1]
    )
    reference = score_reference(LAW, SCHEDULE)
    at = GaussianDenoiser(other, LEVELS[:-1]).at(2, X)
    score = other.noised_score(0.5, X) + GUIDANCES["look-ahead"](at)
    assert torch.allclose(
        policy(2, X), reference.control_of(2, X, score), rtol=ALGEBRA, atol=ALGEBRA
    )


def test_policy_takes_a_step_per_sample():
    policy = GuidancePolicy(SCHEDULE, denoisers(MIXTURE)[0], GUIDANCES["look-ahead"])
    k = torch.tensor([0, 3, 3, 1, 4, 2, 0])
    each = torch.cat([policy(int(i), X[j : j + 1]) for j, i in enumerate(k)])
    assert torch.allclose(policy(k, X), each, rtol=ALGEBRA, atol=ALGEBRA)


@pytest.mark.parametrize("index", range(3))
def test_policy_differentiates_in_the_state(index: int):
    """Its vector-Jacobian product, which adjoints need, against central differences."""
    policy = GuidancePolicy(SCHEDULE, denoisers(LAW)[index], GUIDANCES["look-ahead"])
    x = X.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(policy(1, x).sum(), x)
    assert torch.allclose(
        slope, differences(lambda z: policy(1, z).sum(1), X), rtol=DIFFERENCED, atol=1e-4
    )


def test_affine_policy_gives_exact_moments():
    """Moments of the tabulated policy against simulated paths of the guided chain."""
    reference = affine_reference(LAW, SCHEDULE)
    policy = GuidancePolicy(SCHEDULE, denoisers(LAW)[1], GUIDANCES["look-ahead"])
    found = evaluate_affine(ControlProblem(reference, Linear(G), 1.0), affine_policy(policy, 5, 3))
    path = rollout(
        reference, policy, Noise.sample(reference, 40_000, torch.Generator().manual_seed(1))
    )
    error = path.final.std(0) / 200
    assert bool(((path.final.mean(0) - found.mean[-1]).abs() <= STANDARD_ERRORS * error).all())
    kl = path.kl().sum(0)
    assert float(kl.mean()) == pytest.approx(
        float(found.kl.sum()), abs=STANDARD_ERRORS * float(kl.std()) / 200
    )


def test_a_policy_that_is_not_affine_is_refused():
    with pytest.raises(InvalidProblem, match=r"off affine by .*; evaluate it by simulation"):
        affine_policy(FunctionPolicy(lambda k, x: x.square()), 2, 3)


@pytest.mark.refusal
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PublishedStrength(0.0), r"noise = 0\.0; it must be a positive"),
        (
            lambda: PosteriorStrength(0.1, scale=math.inf),
            r"scale = inf; it must be a finite number",
        ),
        (lambda: ConstantStrength(math.nan), r"strength = nan; it must be a finite number"),
        (
            lambda: Response(torch.full((2,), math.nan), 0.0),
            r"gradient\[0\] = nan; query the objective where it is differentiable",
        ),
        (
            lambda: Response(torch.ones(4, 2), torch.ones(3)),
            r"gradient has shape \(4, 2\) and value \(3,\); give one value, or one",
        ),
        (
            lambda: GaussianDenoiser(LAW, LEVELS),
            r"a level is 1; there is nothing to predict at level 1",
        ),
        (
            lambda: GuidancePolicy(SCHEDULE, GaussianDenoiser(LAW, LEVELS[:-2]), NoGuidance()),
            r"the score model has 4 levels; this schedule has 5 steps",
        ),
        (
            lambda: LinearDenoiser(torch.ones(5, 3, 3), torch.ones(4, 3), LEVELS[:-1]),
            r"offset has shape \(4, 3\); give \(5, 3\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message: str):
    with pytest.raises(InvalidProblem, match=message):
        make()
