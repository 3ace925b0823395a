"""The flow-GRPO family against its published formulas, written in velocities and log-densities, and
at the fixed points that it predicts.
"""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from socft.checks import InvalidProblem
from socft.density import Gaussian
from socft.estimators.baseline import LeaveOneOut
from socft.estimators.dpok import DPOK
from socft.estimators.estimand import EquationResidual, FixedPointEquation
from socft.estimators.flow.dance_grpo import DanceGRPO
from socft.estimators.flow.flow_grpo import FlowGRPO
from socft.estimators.flow.grpo import COMPARED, GroupAdvantages, GroupRelative, KLTerm, Spread
from socft.estimators.flow.grpo_guard import GRPOGuard
from socft.estimators.flow.ode import flow_of
from socft.flow import (
    FlowReference,
    dance_sde,
    flow_reference,
    flow_sde,
    precise,
    shift_times,
    uniform_times,
)
from socft.policy import AffinePolicy, FunctionPolicy, Policy
from socft.problem import ControlProblem
from socft.reference import Step
from socft.reward import FunctionReward
from socft.truth.affine_policy import affine_gradient
from socft.truth.linear_quadratic import LinearQuadratic
from tests.support.estimator_cases import (
    IDENTITY,
    away,
    estimates,
    in_order,
    minus_gradient,
    paths,
    quadratic_problem,
)
from tests.support.flow_cases import GaussianFlow, flow
from tests.support.tensors import F64, randn
from verify.support.sampling import distance, require_mean

NOISE_LEVEL, LAM, CLIP, STEPS, DIM, FEW = 0.7, 0.04, 1e-4, 3, 5, 8
GROUPS = torch.tensor([0, 0, 1, 1, 1, 0, 2, 2])
TIMES = shift_times(uniform_times(STEPS, last=0.15), 2.0)
ROUNDING = 1e-9  # of exponentials of differences of log-densities
RESOLUTION = 0.03  # standard errors, in units of the largest entry of a residual away from zero


def several(schedule=None) -> ControlProblem:
    """A flow in five dimensions."""
    law = Gaussian(torch.linspace(-1, 1, DIM, dtype=F64), 0.5)
    chain = flow_reference(law, schedule or flow_sde(TIMES, NOISE_LEVEL))
    return ControlProblem(chain, FunctionReward(lambda x: torch.tanh(x).sum(1)), 0.7)


def old(k: Step, x: Tensor) -> Tensor:
    return 0.3 * torch.cos(x)


OLD, NEW = FunctionPolicy(old), FunctionPolicy(lambda k, x: 0.5 * torch.sin(x) + 0.1)
NEAR = FunctionPolicy(lambda k, x: old(k, x) + 2e-5 * torch.sin(3 * x))


@dataclasses.dataclass
class Published:
    """What the published code computes of one step of a path, from velocities."""

    problem: ControlProblem
    k: int
    x: Tensor
    after: Tensor

    @property
    def chain(self) -> FlowReference:
        return flow_of(self.problem)

    @property
    def dt(self) -> Tensor:
        return self.chain.schedule.times.diff()[self.k]

    @property
    def diffusion(self) -> Tensor:
        """``std_dev_t``, without the root of dt."""
        times, k = self.chain.schedule.times, self.k
        return NOISE_LEVEL * (times[k] / (1 - (times[1] if times[k] == 1 else times[k]))).sqrt()

    def mean(self, policy: Policy) -> Tensor:
        velocity = self.chain.velocity_of(self.k, self.x, policy(self.k, self.x))
        s, sigma = self.chain.schedule.times[self.k], self.diffusion
        drift = velocity * (1 + sigma**2 * (1 - s) / (2 * s)) * self.dt
        return self.x * (1 + sigma**2 / (2 * s) * self.dt) + drift

    def log_prob(self, policy: Policy) -> Tensor:
        std = self.diffusion * (-self.dt).sqrt()
        squared = (self.after - self.mean(policy)) ** 2
        constant = torch.log(std) + torch.log(torch.tensor(2 * torch.pi)) / 2
        return (-squared / (2 * std**2) - constant).mean(1)

    def kl(self, policy: Policy) -> Tensor:
        none = FunctionPolicy(lambda k, x: torch.zeros_like(x))
        return ((self.mean(policy) - self.mean(none)) ** 2).mean(1) / (2 * self.diffusion**2)


def clipped(ratio: Tensor, advantages: Tensor) -> Tensor:
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - CLIP, 1 + CLIP))


def published_advantages(rewards: Tensor) -> Tensor:
    """Group means, and the deviation of all rewards."""
    means = torch.stack([rewards[group == GROUPS].mean() for group in GROUPS])
    return ((rewards - means) / (rewards.std(correction=0) + 1e-4)).clamp(-5, 5)


def steps_of(estimator: GroupRelative, policy: Policy, problem: ControlProblem):
    path = paths(problem, OLD, count=FEW)
    labels = estimator.label(problem, OLD, path)
    for k in range(problem.steps):
        loss = estimator.loss(problem, policy, k, labels.step(k))
        step = Published(problem, k, path.states[k], path.states[k + 1])
        yield loss, step, problem.reward(path.final)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= ROUNDING * expected.abs().max())


@pytest.mark.parametrize("policy", [OLD, NEAR, NEW], ids=["before", "near", "far"])
def test_flow_grpo_is_the_published_loss(policy: Policy) -> None:
    """Of velocities and log-densities, with shifted times from pure noise."""
    estimator = FlowGRPO(GroupAdvantages(GROUPS))
    for loss, step, rewards in steps_of(estimator, policy, several()):
        ratio = (step.log_prob(policy) - step.log_prob(OLD)).exp()
        expected = clipped(ratio, published_advantages(rewards)) + LAM * step.kl(policy)
        assert close(loss, expected)


@pytest.mark.parametrize("policy", [OLD, NEAR, NEW], ids=["before", "near", "far"])
@pytest.mark.parametrize("divided", [True, False])
def test_grpo_guard_is_the_published_loss(policy: Policy, divided: bool) -> None:
    estimator = GRPOGuard(GroupAdvantages(GROUPS), divided_by_dt=divided)
    for loss, step, rewards in steps_of(estimator, policy, several()):
        scale = (-step.dt).sqrt() * step.diffusion
        bias = (step.mean(policy) - step.mean(OLD)).square().mean(1) / (2 * scale**2)
        ratio = ((step.log_prob(policy) - step.log_prob(OLD) + bias) * scale).exp()
        share = 1 / -step.dt if divided else 1
        policy_loss = clipped(ratio, published_advantages(rewards)) * share
        assert close(loss, policy_loss + LAM * step.kl(policy))


def test_dance_grpo_is_the_published_loss() -> None:
    """With its sampler, and the deviation of the group with N - 1 degrees of freedom."""
    problem = several(dance_sde(TIMES, 0.3))
    estimator = DanceGRPO(dataclasses.replace(DanceGRPO().advantages, groups=GROUPS))
    for loss, step, rewards in steps_of(estimator, NEW, problem):
        groups = [rewards[group == GROUPS] for group in GROUPS]
        spread = torch.stack([group.std() for group in groups]) + 1e-8
        advantages = (rewards - torch.stack([group.mean() for group in groups])) / spread
        velocities = [step.chain.velocity_of(step.k, step.x, p(step.k, step.x)) for p in (NEW, OLD)]
        new, before = (step.chain.log_prob(step.k, step.x, step.after, u) for u in velocities)
        assert close(loss, clipped(((new - before) / DIM).exp(), advantages.clamp(-5, 5)))


def test_with_every_correction_it_is_dpok() -> None:
    """With the other paths' mean, on paths of another policy too."""
    problem = quadratic_problem(0.8)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    plain = ControlProblem(problem.reference, problem.reward, 0.8)
    mine = FlowGRPO(COMPARED, 1e-3, averaged=False, kl=KLTerm(0.8, with_dt=True))
    dpok, moved = DPOK(LeaveOneOut(), clip=None), AffinePolicy(policy.gain + 1e-6, policy.offset)
    ours, theirs = (each.label(plain, policy, path) for each in (mine, dpok))
    for k in range(plain.steps):
        found = mine.loss(plain, moved, k, ours.step(k))
        assert close(found, dpok.loss(plain, moved, k, theirs.step(k)))


def advantages_of(rewards: Tensor, **options: object) -> Tensor:
    return GroupAdvantages(**options).of(rewards)  # type: ignore[arg-type]


@pytest.mark.parametrize("spread", [Spread.BATCH, Spread.GROUP])
def test_divided_advantages_are_blind_to_scale_and_level(spread: Spread) -> None:
    rewards = randn(3, FEW)
    options = {"groups": GROUPS, "spread": spread, "floor": 0.0}
    found = advantages_of(rewards, **options)
    assert close(advantages_of(7 * rewards + 3, **options), found)
    options = {"groups": GROUPS, "spread": Spread.NONE, "limit": None}
    assert close(advantages_of(7 * rewards + 3, **options), 7 * advantages_of(rewards, **options))


def test_the_mean_of_the_others_leaves_the_path_itself_out() -> None:
    rewards = randn(4, FEW)
    options = {"spread": Spread.NONE, "limit": None}
    found = advantages_of(rewards, leave_one_out=True, **options)
    others = (rewards.sum() - rewards) / (FEW - 1)
    assert close(found, rewards - others)
    assert close(advantages_of(rewards, **options), found * (FEW - 1) / FEW)
    assert float(advantages_of(randn(5, 100), limit=0.5).abs().max()) == 0.5
    assert bool((advantages_of(torch.full((FEW,), 0.1, dtype=F64)) == 0).all())


@dataclasses.dataclass
class Predicted:
    """A strength, and the control at which a method with it should stop."""

    case: GaussianFlow
    method: FlowGRPO
    stop: AffinePolicy

    @property
    def optimum(self) -> AffinePolicy:
        """Of the chain, with the same KL weights."""
        beta = self.method.effective_beta(self.case.problem(), self.case.spread(self.stop))
        return LinearQuadratic(self.case.affine(beta)).affine_policy

    def residuals(self, policy: AffinePolicy) -> Tensor:
        problem = self.case.problem()
        found = estimates(self.method, problem, policy, paths(problem, policy))
        return found / self.unit

    @property
    def unit(self) -> float:
        problem = self.case.problem()
        start = AffinePolicy.zeros(self.case.affine().reference)
        return float(estimates(self.method, problem, start, paths(problem, start)).mean(0).norm())


METHODS: dict[str, FlowGRPO] = {
    "published": FlowGRPO(),
    "variance with dt": FlowGRPO(kl=KLTerm(with_dt=True)),
    "not divided": FlowGRPO(GroupAdvantages(spread=Spread.NONE, limit=None)),
    "summed": FlowGRPO(averaged=False),
    "guard": GRPOGuard(),
    "guard, not divided by dt": GRPOGuard(divided_by_dt=False),
}


def predicted(method: FlowGRPO, beta: float = 0.4) -> Predicted:
    """With lambda such that the mean of beta_k is as given."""
    case = flow()
    shape = method.effective_beta(case.problem(), 1.0)
    stop = case.without_kl_to_go(beta * shape / shape.mean())
    found = method.effective_beta(case.problem(), case.spread(stop))
    lam = method.kl.lam * beta / float(found.mean())
    kl = dataclasses.replace(method.kl, lam=lam)
    return Predicted(case, dataclasses.replace(method, kl=kl), stop)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_it_stops_where_the_kl_to_go_is_left_out(method: FlowGRPO) -> None:
    """At the KL weights of its table, and not at the optimum with these."""
    made = predicted(method)
    assert made.method.estimates == EquationResidual(FixedPointEquation.NO_KL_TO_GO)
    require_mean(made.residuals(made.stop), 0.0, RESOLUTION)
    assert distance(made.residuals(made.optimum), 0.0) > 4


def test_the_weights_of_another_table_are_told_apart() -> None:
    """At the control where Flow-GRPO would stop if its KL had dt."""
    published, other = (predicted(METHODS[name]) for name in ("published", "variance with dt"))
    assert distance(published.residuals(other.stop), 0.0) > 4


@pytest.mark.parametrize(
    "method", [DanceGRPO(), FlowGRPO(kl=KLTerm(0.0)), GRPOGuard(kl=KLTerm(0.0))], ids=repr
)
def test_without_a_kl_it_climbs_the_reward_alone(method: GroupRelative) -> None:
    """The mean of the gradient is that of the mean reward over its spread, times what each step is
    weighed with.
    """
    assert method.estimates == EquationResidual(FixedPointEquation.REWARD_ALONE)
    case = flow()
    policy = case.without_kl_to_go(torch.full((4,), 1.0, dtype=F64))
    climb = affine_gradient(case.affine(1e-12), policy)
    scale = torch.full((4, 1, 1), 1 / case.spread(policy), dtype=F64)
    if isinstance(method, GRPOGuard):
        scale = scale * (case.schedule.sigma / -case.schedule.times.diff())[:, None, None]
    expected = -in_order(scale * climb.gain, scale[:, :, 0] * climb.offset)
    problem = case.problem()
    require_mean(estimates(method, problem, policy, paths(problem, policy)), expected, 0.06)


def test_effective_betas_are_those_of_the_tables() -> None:
    problem, spread = several(), 0.5
    dt, sigma = -TIMES.diff(), flow_sde(TIMES, NOISE_LEVEL).sigma
    for method, expected in (
        (FlowGRPO(), LAM * dt * (spread + 1e-4)),
        (FlowGRPO(kl=KLTerm(0.2, with_dt=True)), 0.2 * (spread + 1e-4) + 0 * dt),
        (FlowGRPO(COMPARED), LAM * dt),
        (GRPOGuard(), LAM * dt**2 * (spread + 1e-4) / sigma),
        (GRPOGuard(divided_by_dt=False), LAM * dt * (spread + 1e-4) / sigma),
    ):
        assert close(method.effective_beta(problem, spread), expected)


def test_the_corrected_gradient_of_the_reward_is_unbiased() -> None:
    """With the mean of the others and sums, on the way to the objective's gradient all that is
    missing is the KL to go: none at zero control.
    """
    problem = ControlProblem(quadratic_problem().reference, quadratic_problem().reward, 0.8)
    policy = AffinePolicy.zeros(problem.reference)
    method = FlowGRPO(COMPARED, averaged=False, kl=KLTerm(0.8, with_dt=True))
    found = estimates(method, problem, policy, paths(problem, policy))
    require_mean(found, minus_gradient(problem, policy), 0.022)


def test_what_the_family_cannot_do_is_refused() -> None:
    problem = quadratic_problem(0.8)
    policy = away(problem)
    path = paths(problem, policy, count=FEW)
    for method in (FlowGRPO(), GRPOGuard()):
        labels = method.label(problem, policy, path)
        with pytest.raises(InvalidProblem, match=r"AffineReference; its steps have no durations"):
            FlowGRPO().loss(problem, policy, 0, labels.step(0))
    timed = KLTerm(durations=[0.25] * 4)
    assert close(timed.weights(problem), torch.full((4,), 0.01, dtype=F64))
    with pytest.raises(InvalidProblem, match="MatrixDiffusion; GRPO-Guard needs one standard"):
        GRPOGuard(kl=timed).loss(problem, policy, 0, labels.step(0))
    with pytest.raises(InvalidProblem, match="a group has 1 path"):
        advantages_of(torch.ones(3, dtype=F64), groups=torch.tensor([0, 0, 1]))
    with pytest.raises(InvalidProblem, match="every step takes a positive time"):
        KLTerm(durations=[0.5, 0.5, -0.1, 0.1]).weights(problem)
    with pytest.raises(InvalidProblem, match="lam"):
        KLTerm(-1.0)


def test_precise_kernels_have_the_same_ratio() -> None:
    """The ratio is that of any kernel's log-density, averaged."""
    problem = several(precise(TIMES, NOISE_LEVEL))
    path = paths(problem, OLD, count=FEW)
    rows = FlowGRPO().label(problem, OLD, path).step(1)
    chain = problem.reference
    assert isinstance(chain, FlowReference)
    new, before = (
        chain.log_prob(1, path.states[1], path.states[2], chain.velocity_of(1, path.states[1], v))
        for v in (NEW(1, path.states[1]), OLD(1, path.states[1]))
    )
    assert (rows.log_ratio(NEW(1, path.states[1])) - (new - before)).abs().max() < IDENTITY * 100
