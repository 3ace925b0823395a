"""What each set of constants asks of the KL weight against the number of steps, beside what is
necessary, and how far its bounds of PI-FT's errors are from the errors; three data laws, three
rewards.

A rotated product of d equal coordinates has the necessary weight of one of them, because spectra of
Hessians are those of the coordinates, and the theory sees d through the reward's Lipschitz
constant, ``sqrt(d)`` times that of one.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping

import torch
from scipy.optimize import root_scalar
from torch import Tensor

from socft import theory
from socft.checks import InvalidProblem
from socft.density import Gaussian, GaussianMixture, score_reference
from socft.pi_ft import BackwardInduction, backward_induction
from socft.problem import ControlProblem
from socft.records import Record
from socft.reward import PseudoHuber, Reward, Sine, Softplus
from socft.schedule import Schedule
from socft.study.tasks import Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.metrics import Metric
from socft.truth.backward import solve_backward
from socft.truth.quadrature import Quadrature
from toy.convergence.chains import memoryless
from verify.support.factors import vector
from verify.support.suprema import grids_for

LAWS: Mapping[str, GaussianMixture] = {
    "Gaussian": Gaussian(0.0, 0.5),
    "overlapping modes": GaussianMixture([0.5, 0.5], [-1.0, 1.0], 0.5),
    "separated modes": GaussianMixture([0.7, 0.3], [-1.5, 1.5], 0.16),
}
REWARDS: Mapping[str, Reward] = {
    "sine": Sine(1.0, 2.0),
    "softplus": Softplus(1.0, 2.0),
    "pseudo-Huber": PseudoHuber(1.0, 1.0, -1.0),
}
OSCILLATIONS = {"sine": 2.0}
"""``sup r - inf r`` of the bounded ones."""
MIDDLES = torch.linspace(-9, 9, 1001, dtype=torch.float64)
"""Points of the line, beyond all modes, around which a mean map is tried for expansion."""
LENGTHS, QUICK_LENGTHS = (2, 5, 10, 20, 50, 100, 200), (5,)
DIMENSIONS = (1, 2, 16)
UPDATES = (1, 2, 3, 4, 5)
LAM = 0.5
SEARCHED = 1e-4
"""Relative error of a necessary weight."""
NARROWED = 1e-3
"""Relative excess of the weight for bounds along paths."""
STRIDE = 0.5
"""Least ratio of successive weights in the search for it."""
ILL_POSED = -math.log(1 - LAM)
"""What a weight lacks at least, in logarithms, where ``sigma^2 K / beta`` reaches 1."""
BEST = theory.BestRelaxation()
STATEMENTS: Mapping[str, Callable[[Tensor], theory.RegularityStatement]] = {
    "paper": lambda _: theory.Theorem28(theory.PaperBounds()),
    "sharp": lambda _: theory.Theorem28(theory.SharpBounds()),
    "sharp, exact mean maps": lambda mean: theory.Theorem28(theory.SharpBounds(mean)),
    "one-sided": lambda _: theory.Theorem28(theory.OneSidedBounds()),
    "one-sided, relaxed": lambda _: theory.Theorem28(theory.OneSidedBounds(BEST)),
    "one-sided, m = 2": lambda _: theory.Lemma32(theory.OneSidedBounds(), 2),
    "one-sided iterates": lambda _: theory.Lemma32(theory.OneSidedBounds()),
}


def chain_of(law: str, reward: str, schedule: Schedule, dim: int) -> theory.ChainConstants:
    """What the theory knows of a product of ``dim`` equal coordinates."""
    found, scalar = LAWS[law].noised_constants(schedule.abar[:-1]), REWARDS[reward]
    chain = theory.ChainConstants.of(
        schedule, found.L0, found.L1, scalar, dim, (found.up, found.down)
    )
    return dataclasses.replace(chain, reward_L0=dim**0.5 * scalar.L0)


def weights_task(law: str, reward: str, T: int) -> list[Record]:
    """The constant weight that each set of constants asks for in d dimensions, where there is a
    finite positive one, and the one that is necessary.
    """
    started, schedule = time.perf_counter(), memoryless(T)
    asked: list[tuple[str, int, float]] = []
    for dim in DIMENSIONS:
        chain = chain_of(law, reward, schedule, dim)
        mean = theory.one_sided_mean_lipschitz(chain)
        for rule, statement in STATEMENTS.items():
            try:
                found = theory.constant_beta(chain, LAM, statement(mean))
            except InvalidProblem:
                continue
            asked.append((rule, dim, float(found.beta[0])))
    undamped = min(beta for rule, dim, beta in asked if dim == 1 and "relaxed" not in rule)
    necessary = necessary_weight(law, reward, schedule, undamped)
    asked.append(("necessary", 1, necessary))
    setting, seconds = {"reward": reward, "T": T, "lam": LAM}, time.perf_counter() - started
    return [
        Record(
            schemas.TIGHTNESS.name,
            law,
            Metric.SUFFICIENT_BETA,
            value,
            setting | {"rule": rule, "d": dim},
            optimum=necessary,
            seconds=seconds,
        )
        for rule, dim, value in asked
    ]


def necessary_weight(law: str, reward: str, schedule: Schedule, sufficient: float) -> float:
    """The constant weight at which the exact undamped inner map contracts by `LAM` and no more,
    from below a sufficient one.

    From above, the next weight tried is what the last one needs, ``max sigma^2 K / (1 - lam)`` with
    its own curvatures K, but at least `STRIDE` of it: K need not fall as beta rises, and no smaller
    weight at which the map does not contract is to be jumped over.
    """
    reference = score_reference(LAWS[law], schedule)
    grids = grids_for(ControlProblem(reference, REWARDS[reward], sufficient))
    variance = schedule.sigma.square()

    @functools.cache
    def excess(log_beta: float) -> float:
        problem = ControlProblem(reference, REWARDS[reward], math.exp(log_beta))
        try:
            curvature = vector(solve_backward(problem, grids).curvature)
        except InvalidProblem:
            return ILL_POSED
        return math.log(float((variance * curvature).max()) / (1 - LAM)) - log_beta

    low = math.log(sufficient) + SEARCHED
    high = low + SEARCHED
    while (missing := excess(low)) < 0:
        high, low = low, low + max(missing - SEARCHED, math.log(STRIDE))
    found = root_scalar(excess, bracket=(low, high), method="brentq", xtol=SEARCHED)
    return math.exp(found.root)


def coupled_task(law: str, reward: str, T: int) -> list[Record]:
    """The constant weight that reflection coupling asks for, on a line."""
    started, schedule = time.perf_counter(), memoryless(T)
    apart, oscillation = theory.graded_distances(), OSCILLATIONS.get(reward, math.inf)
    modulus = theory.Modulus.of_reward(apart, REWARDS[reward].L0, oscillation)
    moduli = theory.coupled_moduli(modulus, _profiles(law, T), schedule.sigma)
    curvature = theory.coupled_curvature(moduli, schedule.sigma, oscillation)
    beta = theory.beta_from_curvature(schedule.sigma, curvature, LAM).beta.max()
    setting = {"reward": reward, "T": T, "lam": LAM, "rule": "coupled", "d": 1}
    seconds = time.perf_counter() - started
    study = schemas.TIGHTNESS.name
    return [Record(study, law, Metric.SUFFICIENT_BETA, float(beta), setting, seconds=seconds)]


@functools.cache
def _profiles(law: str, T: int) -> Tensor:
    reference, apart = score_reference(LAWS[law], memoryless(T)), theory.graded_distances()
    return torch.stack(
        [theory.line_profile(lambda x, k=k: reference.mean(k, x), apart, MIDDLES) for k in range(T)]
    )


def errors_task(law: str, relaxed: bool, T: int) -> list[Record]:
    """The largest errors of PI-FT with m updates at every step, at the least constant weight that
    the one-sided constants of these iterates admit, and their bounds.
    """
    schedule, relaxation = memoryless(T), BEST if relaxed else theory.UNDAMPED
    chain, bounds = chain_of(law, "sine", schedule, 1), theory.OneSidedBounds(relaxation)
    records = []
    for m in UPDATES:
        statement = theory.Lemma32(bounds, m)
        beta = theory.constant_beta(chain, LAM, statement).beta
        problem = ControlProblem(score_reference(LAWS[law], schedule), REWARDS["sine"], beta)
        truth = Quadrature(problem)
        theta = theory.constants_at(chain, beta, statement).theta
        found = backward_induction(problem, truth.grids, m, theta)
        limits = theory.one_sided_convergence(chain, beta, m, bounds)
        setting = {"reward": "sine", "T": T, "lam": LAM, "m": m, "relaxed": relaxed}
        records += [
            Record(schemas.TIGHTNESS.name, law, metric, value, setting, bound=bound)
            for metric, value, bound in _errors(truth, found, limits)
        ]
    return records


def path_errors_task(law: str, T: int) -> list[Record]:
    """The largest errors of undamped PI-FT with m updates at every step, at the least constant
    weight that bounds along paths admit, and these bounds.
    """
    schedule, reward, records = memoryless(T), REWARDS["sine"], []
    chain, apart = chain_of(law, "sine", schedule, 1), theory.graded_distances()
    rising = 2 * torch.sin(apart.clamp(max=math.pi / 2))
    bounds = functools.partial(
        theory.path_convergence,
        chain,
        theory.Modulus(apart, rising, 0.0),
        _profiles(law, T),
        oscillation=OSCILLATIONS["sine"],
        curve=theory.SlopeCurve.of_line(),
    )
    for m in UPDATES:
        beta, limits = _least_weight(bounds, m)
        problem = ControlProblem(score_reference(LAWS[law], schedule), reward, beta)
        truth = Quadrature(problem)
        policy = backward_induction(problem, truth.grids, m).policy(problem)
        gap = truth.evaluate(truth.policy).objective - truth.evaluate(policy).objective
        setting = {"reward": "sine", "T": T, "lam": LAM, "m": m, "rule": "coupled", "beta": beta}
        pairs = (
            (Metric.CONTROL_ERROR, float(truth.control_error(policy).max()), limits.whitened),
            (Metric.OBJECTIVE_GAP, gap, limits.value[:1]),
        )
        records += [
            Record(schemas.TIGHTNESS.name, law, metric, value, setting, bound=float(bound.max()))
            for metric, value, bound in pairs
        ]
    return records


def _least_weight(
    bounds: Callable[[float, int], theory.PathConvergence], m: int
) -> tuple[float, theory.PathConvergence]:
    """The least constant weight whose rates are at most ``1 - LAM``, by bisection to a relative
    `NARROWED`, from above.
    """
    low, high = 0.25, 1.0
    found = bounds(high, m)
    while high > low * (1 + NARROWED):
        middle = math.sqrt(low * high)
        try:
            tried = bounds(middle, m)
        except InvalidProblem:
            low = middle
            continue
        if float(tried.rate.max()) <= 1 - LAM:
            high, found = middle, tried
        else:
            low = middle
    return high, found


def _errors(
    truth: Quadrature, found: BackwardInduction, limits: theory.Convergence
) -> list[tuple[Metric, float, float]]:
    """What is measured where the exact chain goes, and its bound: the control in whitened units,
    the gradient of the value, and the objective.
    """
    policy = found.policy(truth.problem)
    gap = truth.evaluate(truth.policy).objective - truth.evaluate(policy).objective
    gradients = [
        float((a.gradient - b.gradient)[truth.region.contains(k, b.grid.nodes)].abs().max())
        for k, (a, b) in enumerate(zip(found.values, truth.values, strict=True))
    ]
    return [
        (
            Metric.CONTROL_ERROR,
            float(truth.control_error(policy).max()),
            float(limits.whitened.max()),
        ),
        (Metric.VALUE_GRADIENT_ERROR, max(gradients), float(limits.value_gradient.max())),
        (Metric.OBJECTIVE_GAP, gap, limits.objective_gap),
    ]


def tasks(quick: bool) -> list[Task]:
    """Every measurement, at the quick or the full scale."""
    lengths, steps = (QUICK_LENGTHS, 5) if quick else (LENGTHS, 50)
    weights = [
        Task(f"{name} {law} {reward} {T}", task, {"law": law, "reward": reward, "T": T})
        for name, task in (("weights", weights_task), ("coupled", coupled_task))
        for law in LAWS
        for reward in REWARDS
        for T in lengths
    ]
    errors = [
        Task(
            f"errors {law} {'relaxed' if relaxed else 'undamped'}",
            errors_task,
            {"law": law, "relaxed": relaxed, "T": steps},
        )
        for law in ("Gaussian", "overlapping modes")
        for relaxed in (False, True)
    ]
    errors += [
        Task(f"errors along paths {law}", path_errors_task, {"law": law, "T": steps})
        for law in ("Gaussian", "overlapping modes")
    ]
    return weights + errors
