"""Losses of regressions on re-noised samples against their published formulas, written in the
velocities and endpoints of rectified flow, and the gradients that they have in common.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, score_reference
from socft.estimators.adjoint_matching import AdjointMatching
from socft.estimators.flow.advantage_regression import AdvantageRegression
from socft.estimators.flow.awm import AWM
from socft.estimators.flow.diffusion_nft import DiffusionNFT
from socft.estimators.flow.efficient_adjoint import EfficientAdjointMatching
from socft.estimators.flow.elbo_ratio import ELBORatio
from socft.estimators.flow.grpo import COMPARED, GroupAdvantages, Spread
from socft.estimators.flow.ram import RAM
from socft.estimators.flow.renoising import RenoisingEstimator
from socft.estimators.flow.weightings import AdvantageMode, ResidualWeight
from socft.flow import FlowReference, flow_ddim, flow_reference, flow_sde, uniform_times
from socft.path import Noise, rollout
from socft.policy import AffinePolicy, FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import AffineReference, Noises, ScalarDiffusion, States, Step
from socft.reward import FunctionReward, Linear, Sine
from socft.schedule import ddpm
from socft.train import fit
from tests.support.refusals import Refusals, refusals
from tests.support.tensors import F64, generator, randn

CLOSED = 1e-11
BATCH, DIM, STEPS = 12, 2, 4
LAW = GaussianMixture(
    [0.4, 0.6], [[1.0, 0.0], [-1.0, 0.5]], [[[0.3, 0.1], [0.1, 0.2]], [[0.5, 0.0], [0.0, 0.1]]]
)
CHAIN = flow_reference(LAW, flow_sde(uniform_times(STEPS), 0.7))
PROBLEM = ControlProblem(CHAIN, FunctionReward(lambda x: torch.tanh(x.sum(1))), 0.6)
SAMPLES, NOISE = randn(0, BATCH, DIM), randn(1, STEPS, BATCH, DIM)


def before(k: Step, x: States) -> Noises:
    return 0.4 * torch.sin(x + 0.3)


def after(k: Step, x: States) -> Noises:
    return 0.5 * torch.sin(x + 0.3) - 0.1 * x


OLD, NEW = FunctionPolicy(before), FunctionPolicy(after)


class Velocities:
    """What a published loss is written in, at step k: noise level, state, and velocities of the
    pair, of the pre-trained model, and of the one before and after an update.
    """

    def __init__(self, k: int):
        self.s = float(CHAIN.schedule.times[k])
        self.x0, self.noise = SAMPLES, NOISE[k]
        self.x = (1 - self.s) * self.x0 + self.s * self.noise
        self.y = self.noise - self.x0
        self.reference = CHAIN.velocity(k, self.x)
        self.old = CHAIN.velocity_of(k, self.x, before(k, self.x))
        self.new = CHAIN.velocity_of(k, self.x, after(k, self.x))


def losses(estimator: RenoisingEstimator, policy: Policy = NEW) -> Tensor:
    """Of every step and sample, of a policy after the one that labels."""
    labels = estimator.label_samples(PROBLEM, OLD, SAMPLES, NOISE)
    return torch.stack([estimator.loss(PROBLEM, policy, k, labels.step(k)) for k in range(STEPS)])


def require_published(estimator: RenoisingEstimator, formula: Callable[[Velocities], Tensor]):
    expected = torch.stack([formula(Velocities(k)) for k in range(STEPS)])
    torch.testing.assert_close(losses(estimator), expected, rtol=CLOSED, atol=CLOSED)


def squares(x: Tensor) -> Tensor:
    return x.square().mean(1)


def advantages(limit: float = 5.0) -> Tensor:
    rewards = PROBLEM.reward(SAMPLES)
    spread = rewards.std(correction=0) + 1e-4
    return ((rewards - rewards.mean()) / spread).clamp(-limit, limit)


def surrogate(a: Tensor, log_ratio: Tensor, clip: float) -> Tensor:
    ratio = log_ratio.exp()
    return torch.maximum(-a * ratio, -a * ratio.clamp(1 - clip, 1 + clip))


@pytest.mark.parametrize("b", [None, 0.25])
@pytest.mark.parametrize("compared", [False, True])
def test_ram_is_as_published(b: float | None, compared: bool):
    signal = PROBLEM.reward(SAMPLES)
    if compared:
        signal = (signal - signal.mean()) * BATCH / (BATCH - 1)
    signal = (signal / (b or 0.6))[:, None]
    estimator = RAM(generator(0), b, COMPARED if compared else None)
    require_published(
        estimator, lambda at: squares(at.new - (at.reference + signal * (at.y - at.old)))
    )
    summed = RAM(generator(0), b, COMPARED if compared else None, averaged=False)
    torch.testing.assert_close(losses(summed), DIM * losses(estimator), rtol=CLOSED, atol=CLOSED)


WEIGHTED: dict[ResidualWeight, Callable[[Tensor, float], Tensor]] = {
    ResidualWeight.UNIFORM: lambda q, s: q,
    ResidualWeight.NOISE: lambda q, s: s * q,
    ResidualWeight.NOISE_SQUARED: lambda q, s: s**2 * q,
    ResidualWeight.HUBER: lambda q, s: ((q + 1e-10).sqrt() - 1e-5) * s,
    ResidualWeight.GENERAL_HUBER: lambda q, s: ((q + 1e-10) ** 0.25 - 1e-10**0.25) * s / 0.25,
}


@pytest.mark.parametrize("weighting", ResidualWeight)
@pytest.mark.parametrize("by_diffusion", [False, True])
def test_awm_is_as_published(weighting: ResidualWeight, by_diffusion: bool):
    def published(at: Velocities) -> Tensor:
        new, old = (WEIGHTED[weighting](squares(u - at.y), at.s) for u in (at.new, at.old))
        divergence = squares(at.new - at.reference)
        if by_diffusion:
            divergence = divergence / (2 * 0.49 * at.s / (1 - min(at.s, 0.99)))
        return surrogate(advantages() / 5, old - new, 0.1) + 0.3 * divergence

    estimator = AWM(generator(0), lam=0.3, clip=0.1, weighting=weighting, by_diffusion=by_diffusion)
    require_published(estimator, published)


@pytest.mark.parametrize("mode", AdvantageMode)
@pytest.mark.parametrize("normalised", [False, True])
def test_nft_is_as_published(mode: AdvantageMode, normalised: bool):
    """Endpoints over the mean of their absolute errors, as in the code, or velocities."""
    beta, limit = 0.3, 1.5
    kept = {
        AdvantageMode.ALL: advantages(limit),
        AdvantageMode.POSITIVE: advantages(limit).clamp(0, limit),
        AdvantageMode.NEGATIVE: advantages(limit).clamp(-limit, 0),
        AdvantageMode.ONE: (advantages(limit) > 0).to(F64),
        AdvantageMode.SIGN: advantages(limit).sign(),
    }[mode]
    share = (kept / limit / 2 + 0.5).clamp(0, 1)

    def matched(at: Velocities, u: Tensor) -> Tensor:
        if not normalised:
            return squares(u - at.y)
        away = at.x - at.s * u - at.x0
        return squares(away) / away.abs().mean(1).clamp(min=1e-5)

    def published(at: Velocities) -> Tensor:
        positive = beta * at.new + (1 - beta) * at.old
        negative = (1 + beta) * at.old - beta * at.new
        policy = share * matched(at, positive) + (1 - share) * matched(at, negative)
        return limit * policy / beta + 0.2 * squares(at.new - at.reference)

    compared = GroupAdvantages(limit=limit)
    require_published(DiffusionNFT(generator(0), compared, 0.2, beta, normalised, mode), published)


@pytest.mark.parametrize("averaged", [False, True])
def test_the_ratio_of_bounds_is_that_of_the_divergences_of_kernels(averaged: bool):
    """From the means and deviations of the kernels of the DDIM form: the one that goes by the
    sample against the model's.
    """
    chain = flow_reference(LAW, flow_ddim(uniform_times(STEPS, 0.1), 0.8))
    problem = ControlProblem(chain, PROBLEM.reward, 0.6)
    estimator = ELBORatio(generator(0), lam=0.3, clip=0.1, averaged=averaged)
    labels = estimator.label_samples(problem, OLD, SAMPLES, NOISE)
    entries = DIM if averaged else 1
    for k in range(STEPS):
        x, sigma = labels.states[k], float(chain.schedule.sigma[k])
        pair = chain.mean(k, x) + sigma * labels.targets[k]

        def divergence(control: Tensor, k: int = k, x: Tensor = x) -> Tensor:
            mean = chain.mean_of(k, x, chain.velocity_of(k, x, control))
            sigma = float(chain.schedule.sigma[k])
            return (mean - pair).square().sum(1) / (2 * sigma**2) / entries  # noqa: B023

        new = after(k, x)
        expected = surrogate(advantages(), divergence(before(k, x)) - divergence(new), 0.1)
        expected = expected + 0.3 * new.square().sum(1) / 2 / entries
        found = estimator.loss(problem, NEW, k, labels.step(k))
        torch.testing.assert_close(found, expected, rtol=CLOSED, atol=CLOSED)


def test_the_kernel_that_goes_by_a_sample_is_the_bridge():
    """Of two levels given the sample: its mean is ``a' x_0 + rho s' eps``."""
    chain = flow_reference(LAW, flow_ddim(uniform_times(STEPS, 0.0)[:-1], 0.8))
    for k in range(chain.steps):
        s, s_next = (float(each) for each in chain.schedule.times[k : k + 2])
        rho = float(chain.schedule.noise_weight[k]) / s_next
        x = chain.renoise(k, SAMPLES, NOISE[0])
        v = chain.control_to(k, x, SAMPLES)
        found = chain.mean(k, x) + float(chain.schedule.sigma[k]) * v
        bridge = (1 - s_next) * SAMPLES + rho * s_next * NOISE[0]
        assert s > s_next
        torch.testing.assert_close(found, bridge, rtol=CLOSED, atol=CLOSED)


def slope(estimator: AdvantageRegression) -> Tensor:
    """Before an update, in the controls."""
    labels, found = estimator.label_samples(PROBLEM, OLD, SAMPLES, NOISE), []
    for k in range(STEPS):
        control = before(k, labels.states[k]).requires_grad_(True)
        held = FunctionPolicy(lambda k, x, control=control: control)
        loss = estimator.loss(PROBLEM, held, k, labels.step(k)).sum()
        found.append(torch.autograd.grad(loss, control)[0])
    return torch.stack(found)


def test_before_an_update_the_methods_are_one():
    """Weighted matching, whatever the clip and the step from the old model; the bound in other
    units of each level.
    """
    first = slope(AWM(generator(0), lam=0.2, clip=1e-4, gain=1.0))
    for beta in (0.1, 1.0):
        nft = DiffusionNFT(generator(0), lam=0.2, beta=beta, normalised=False)
        torch.testing.assert_close(slope(nft), first, rtol=1e-9, atol=CLOSED)
    unit = torch.stack([CHAIN.velocity_unit(k, SAMPLES) for k in range(STEPS)])
    bound = slope(ELBORatio(generator(0), lam=0.2)) * 2 * unit.square()[:, None, None] / DIM
    torch.testing.assert_close(bound, first, rtol=1e-9, atol=CLOSED)


def test_the_gradient_of_ram_is_that_of_weighted_matching_and_the_divergence():
    """``v - A (w - v) / b`` at the model's own control."""
    advantage = GroupAdvantages(limit=None)
    weighed = slope(AWM(generator(0), advantage, lam=0.5, gain=1.0))
    labels = RAM(generator(0), 0.5, advantage).label_samples(PROBLEM, OLD, SAMPLES, NOISE)
    unit = torch.stack([CHAIN.velocity_unit(k, SAMPLES) for k in range(STEPS)])
    controls = torch.stack([before(k, x) for k, x in enumerate(labels.states)])
    residual = (controls - labels.targets) * 0.5 * 2 * unit.square()[:, None, None] / DIM
    torch.testing.assert_close(weighed, residual, rtol=1e-9, atol=CLOSED)


@pytest.mark.parametrize("scale", [3.0, 0.1])
def test_a_spread_that_is_divided_by_leaves_no_unit_of_the_reward(scale: float):
    scaled = ControlProblem(CHAIN, FunctionReward(lambda x: scale * torch.tanh(x.sum(1))), 0.6)
    exact = GroupAdvantages(floor=0.0)
    for estimator in (AWM(generator(0), exact), DiffusionNFT(generator(0), exact)):
        found, usual = (
            estimator.label_samples(problem, OLD, SAMPLES, NOISE).tensors()["advantages"]
            for problem in (scaled, PROBLEM)
        )
        torch.testing.assert_close(found, usual, rtol=1e-9, atol=CLOSED)
    kept = RAM(generator(0), 0.5).label_samples(scaled, OLD, SAMPLES, NOISE).targets
    usual = RAM(generator(0), 0.5).label_samples(PROBLEM, OLD, SAMPLES, NOISE).targets
    torch.testing.assert_close(kept, scale * usual, rtol=1e-9, atol=CLOSED)


def test_weights_of_the_divergence_by_level():
    level = CHAIN.schedule.times[:-1]
    plain = GroupAdvantages(spread=Spread.NONE)
    cases = (
        (RAM(generator(0)), torch.full((STEPS,), 0.6, dtype=F64)),
        (RAM(generator(0), 0.2, GroupAdvantages(floor=0.0)), torch.full((STEPS,), 0.6, dtype=F64)),
        (AWM(generator(0), plain, 0.2, weighting=ResidualWeight.NOISE_SQUARED), 1 / level**2),
        (
            ELBORatio(generator(0), GroupAdvantages(floor=0.0), 0.2),
            torch.full((STEPS,), 0.6, dtype=F64),
        ),
    )
    for estimator, expected in cases:
        found = estimator.effective_beta(PROBLEM, 3.0)
        torch.testing.assert_close(found, expected, rtol=CLOSED, atol=CLOSED)


def test_efficient_adjoints_of_a_normal_law_are_lean():
    """Where the data are standard normal the base is the pre-trained chain itself, and the labels
    for a linear reward have no noise: those of adjoint matching, up to the step.
    """
    gaps = []
    for steps in (20, 40):
        chain = score_reference(Gaussian([0.0, 0.0], 1.0), ddpm(torch.linspace(1e-4, 1, steps + 1)))
        problem = ControlProblem(chain, Linear(torch.tensor([0.6, -0.3], dtype=F64)), 0.8)
        score: Callable[[Tensor], Tensor] = torch.neg
        made = EfficientAdjointMatching(generator(0), score).label_samples(
            problem, OLD, SAMPLES, randn(3, steps, BATCH, DIM)
        )
        affine = AffineReference(
            torch.eye(2, dtype=F64) * chain.schedule.alpha.sqrt()[:, None, None],
            ScalarDiffusion(chain.schedule.sigma),
        )
        usual = ControlProblem(affine, problem.reward, 0.8)
        noise = Noise.sample(affine, BATCH, generator(1))
        lean = AdjointMatching().label(usual, OLD, rollout(affine, OLD, noise))
        spread = (made.targets - made.targets[:, :1]).abs().max()
        assert float(spread) < CLOSED
        gaps.append(float((made.targets[1:] - lean.targets[1:]).abs().max()))
    assert gaps[0] < 0.1
    assert 1.5 < gaps[0] / gaps[1] < 2.5


ESTIMATORS: dict[str, Callable[[], RenoisingEstimator]] = {
    "RAM": lambda: RAM(generator(0)),
    "AWM": lambda: AWM(generator(0)),
    "DiffusionNFT": lambda: DiffusionNFT(generator(0)),
    "ELBO ratio": lambda: ELBORatio(generator(0), lam=0.1),
    "EAM": lambda: EfficientAdjointMatching(generator(0)),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_nothing_of_a_path_but_its_end_is_read(name: str):
    noise = Noise.sample(CHAIN, BATCH, generator(3))
    path = rollout(CHAIN, OLD, noise)
    of_path = ESTIMATORS[name]().label(PROBLEM, OLD, path)
    of_samples = ESTIMATORS[name]().label_samples(PROBLEM, OLD, path.final)
    for key, each in of_path.tensors().items():
        assert torch.equal(each, of_samples.tensors()[key])


@pytest.mark.parametrize("name", ESTIMATORS)
def test_labels_cost_what_the_estimator_says(name: str):
    """One velocity and one control per step and sample; EAM the data's score once besides."""
    rows = {"velocity": 0, "policy": 0}

    def velocity(k: Step, x: States) -> States:
        rows["velocity"] += len(x)
        return CHAIN.velocity(k, x)

    def control(k: Step, x: States) -> Noises:
        rows["policy"] += len(x)
        return before(k, x)

    problem = ControlProblem(FlowReference(CHAIN.schedule, velocity, (DIM,)), PROBLEM.reward, 0.6)
    rows["velocity"], estimator = 0, ESTIMATORS[name]()
    estimator.label_samples(problem, FunctionPolicy(control), SAMPLES)
    once = BATCH if name == "EAM" else 0
    assert rows["velocity"] == STEPS * BATCH * estimator.cost.reference + once
    assert rows["policy"] == STEPS * BATCH * estimator.cost.policy


@pytest.mark.parametrize("name", ESTIMATORS)
def test_they_train_as_any_estimator(name: str):
    problem = ControlProblem(flow_reference(LAW, CHAIN.schedule), PROBLEM.reward, 0.6)
    policy = AffinePolicy.zeros(problem.reference)
    adam = torch.optim.Adam(policy.parameters(), lr=0.01)
    *_, last = fit(problem, policy, ESTIMATORS[name](), adam, generator(0), batch=16, steps=3)
    assert last.index == 3
    assert max(float(p.detach().abs().max()) for p in policy.parameters()) > 0


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_it_cannot_be_made_for_is_refused(name: str):
    estimator = ESTIMATORS[name]()
    chain = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    with pytest.raises(InvalidProblem, match="the reference is an AffineReference; samples are"):
        estimator.label_samples(ControlProblem(chain, Sine(), 1.0), OLD, randn(0, 4, 1))
    costly = ControlProblem(CHAIN, PROBLEM.reward, 0.6, lambda k, x: x.sum(1))
    with pytest.raises(InvalidProblem, match="there is a running cost"):
        estimator.label_samples(costly, OLD, SAMPLES)
    with pytest.raises(InvalidProblem, match=r"shape \(batch, 2\)"):
        estimator.label_samples(PROBLEM, OLD, SAMPLES[:, :1])
    reward = FunctionReward(lambda x: (x[:, 0] + 50).log())
    with pytest.raises(InvalidProblem, match="the reward of sample"):
        estimator.label_samples(ControlProblem(CHAIN, reward, 0.6), OLD, SAMPLES - 100)


REFUSED: Refusals = {
    "generator": (lambda: RAM(0), "generator is"),  # type: ignore[arg-type]
    "b": (lambda: RAM(generator(0), 0.0), "b = 0"),
    "lam": (lambda: AWM(generator(0), lam=-1.0), "lam = -1"),
    "gain": (lambda: AWM(generator(0), gain=0.0), "gain = 0"),
    "clip": (lambda: ELBORatio(generator(0), clip=0.0), "clip = 0"),
    "beta": (lambda: DiffusionNFT(generator(0), beta=0.0), "beta = 0"),
    "limit": (
        lambda: DiffusionNFT(generator(0), GroupAdvantages(limit=None)),
        "the advantages have no limit",
    ),
    "score": (lambda: EfficientAdjointMatching(generator(0), 1.0), "the score of the data"),  # type: ignore[arg-type]
    "no one b": (lambda: DiffusionNFT(generator(0)).effective_beta(PROBLEM, 1.0), "no one b"),
    "nor for Huber": (
        lambda: AWM(generator(0), weighting=ResidualWeight.HUBER).effective_beta(PROBLEM, 1.0),
        "no one b",
    ),
    "varying beta": (
        lambda: RAM(generator(0)).label_samples(
            ControlProblem(CHAIN, PROBLEM.reward, [0.1, 0.2, 0.3, 0.4]), OLD, SAMPLES
        ),
        "needs a constant beta",
    ),
    "one sample": (
        lambda: AWM(generator(0)).label_samples(PROBLEM, OLD, SAMPLES[:1]),
        "a group has 1 path",
    ),
}


test_wrong_options_are_refused = refusals(REFUSED)
