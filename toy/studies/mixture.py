r"""Which method fine-tunes a mixture of two modes best? The third study of arXiv 2603.20455v2, as
published and mended.

The reverse diffusion of modes at +-3 is steered to 3 (`toy.problems`, ``bsde-mixture``), at
temperatures from mild to strong. The control and the Gaussian law :math:`N(\mu, Q^2)` of
:math:`X_0` are both learned; the cost is :math:`E[(X_1 - 3)^2/(2\,\text{temp}) + \int |u|^2/2\,dt]
+ KL(N(\mu, Q^2) \| N(0, 1))`. Everything is judged exactly, by quadrature on the grids of the
optimum of the same chain with the best Gaussian start:

* ``cost``, and ``regret``, by how much it exceeds the optimum, relative to it;
* ``w1``: the Wasserstein-1 distance of the law of :math:`X_1` from that of the optimum;
* ``control_l2``: :math:`\int E|u - u^*|^2\,dt` along the optimal law.

All methods start at the pre-trained model, unless they are published chains that go from each
temperature to the next. They are

* policy iteration: N fresh paths of the policy in every round, a regression of costates,
  :math:`v_k = B_k^\top \psi_k/\beta_k` with :math:`\psi_k(x) = E[a_{k+1} | x_k = x]`. With the full
  adjoint this is Newton's method for the policy. With the lean adjoint it is a fixed-point
  iteration, which need not contract: a regression solved exactly then swings between two policies
  where small gradient steps would average;
* the fitted Bellman recursion: regressions of the pulled-back mean of the next fit, which do not
  wait for rounds; and PI-FT with sampled means (`socft.pi_ft`).

The law of :math:`X_0` follows Newton's method with :math:`E V_0'` and, by Stein's lemma,
:math:`E V_0'' = E[V_0'(\mu + Q z) z]/Q`. "Published" methods take the costate of step k in place
of k + 1, regress with the Huber loss, give the deviation's gradient noise that is not the path's,
and pair reversed costates with noise one step ahead of their states. All are scaled down: the
published code takes 450 000 gradient steps at every temperature, and a network for the score of the
pre-trained model.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import torch

from socft.checks import InvalidProblem
from socft.path import Noise, rollout
from socft.policy import FunctionPolicy
from socft.records import Record
from socft.reference import States
from socft.study.repetitions import record_repetitions
from socft.study.tasks import Study, Task
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric
from socft.study.vocabulary.problems import ProblemName
from toy.mixture.evaluation import DIVERGED, Evaluator, InitialDistribution, problem_at
from toy.mixture.learning import BUMPS, PATHS, START_SEED, pretrained_model
from toy.mixture.methods import BEST, METHODS, QUICK_SEEDS, MixtureMethod
from toy.problems import benchmark
from toy.problems.reversed_bsde import MIXTURE_PUBLISHED, best_start

TEMPS = MIXTURE_PUBLISHED["temp"]
QUICK_TEMPS = (8.0, 1.0)


def method_task(method: str, temps: Sequence[float], seeds: int) -> list[Record]:
    """One method at some temperatures, over independent repetitions; infinite where its samples
    left the region of the fit.
    """
    chosen = METHODS[method]
    rows: dict[float, list[dict[Metric, float]]] = {temp: [] for temp in temps}
    seconds, evaluations = dict.fromkeys(temps, 0.0), dict.fromkeys(temps, 0)
    for seed in range(seeds):
        learnt = None
        for temp in temps:
            begin = (
                pretrained_model(temp)
                if learnt is None or not chosen.chain
                else dataclasses.replace(learnt, evaluations=0)
            )
            clock = time.perf_counter()
            try:
                learnt = chosen.learn(temp, seed, begin)
            except InvalidProblem:
                learnt = None
            seconds[temp] += (time.perf_counter() - clock) / seeds
            evaluations[temp] = learnt.evaluations if learnt else 0
            rows[temp].append(
                _evaluator(temp).measure(learnt.policy, learnt.law) if learnt else DIVERGED
            )
    return [
        record
        for temp in temps
        for record in record_repetitions(
            schemas.MIXTURE,
            ProblemName.BSDE_MIXTURE,
            rows[temp],
            setting=_setting(chosen, temp),
            estimator=chosen.name,
            kind=chosen.kind,
            seconds=seconds[temp],
            evaluations=evaluations[temp],
            published=_published_at(chosen, temp),
            optimum=dict.fromkeys(DIVERGED, 0.0)
            | {Metric.COST: _evaluator(temp).start.gaussian_cost},
        )
    ]


def _setting(chosen: MixtureMethod, temp: float) -> dict[str, Any]:
    return {
        "temp": temp,
        "function_class": chosen.function_class,
        "warm_start": chosen.chain,
        "gradient_steps": chosen.gradient_steps,
    }


def _published_at(chosen: MixtureMethod, temp: float) -> dict[Metric, float]:
    if chosen.published is None:
        return {}
    columns = {Metric.COST: chosen.published, Metric.W1: f"wasserstein1_{chosen.published}"}
    return {
        metric: MIXTURE_PUBLISHED[column][TEMPS.index(temp)] for metric, column in columns.items()
    }


def truth_task(temp: float) -> list[Record]:
    """The optimum, what it loses to a law that is not Gaussian, and what the chain gains on
    continuous time.
    """
    evaluator = _evaluator(temp)
    found = benchmark(ProblemName.BSDE_MIXTURE, temp=temp)
    limit = best_start(lambda x: found.continuous.value(0, x.reshape(-1, 1))).gaussian_cost
    index = TEMPS.index(temp)
    return [
        _exact(temp, Metric.OPTIMUM, evaluator.start.gaussian_cost),
        _exact(temp, Metric.UNRESTRICTED_OPTIMUM, evaluator.start.unrestricted_cost),
        _exact(
            temp,
            Metric.CONTINUOUS_OPTIMUM,
            limit,
            published=MIXTURE_PUBLISHED["gaussian_initial_law"][index],
        ),
        _exact(temp, Metric.START_MEAN, evaluator.start.mean),
        _exact(temp, Metric.START_DEVIATION, evaluator.start.deviation),
    ]


def split_task(temp: float) -> list[Record]:
    """Errors without noise: of the costate of step k in place of k + 1, of a start that is not
    learned, and of the features.

    Features are fitted to the exact control at the states of the optimal chain.
    """
    evaluator = _evaluator(temp)
    truth, best = (
        evaluator.truth,
        InitialDistribution(evaluator.start.mean, evaluator.start.deviation),
    )
    reference = truth.problem.reference

    def own_step(k, x: States) -> States:
        return reference.diffusion.transpose(k, x, truth.value_gradient(k, x))

    with torch.no_grad():
        noise = Noise.sample(reference, PATHS, torch.Generator().manual_seed(START_SEED))
        path = rollout(problem_at(temp, best).reference, truth.policy, noise)
    fits = [BUMPS.fit(path.states[k], path.controls[k]) for k in range(reference.steps)]
    variants = {
        MethodName.COSTATE_OF_THE_OWN_STEP: (FunctionPolicy(own_step), best),
        MethodName.START_NOT_LEARNED: (truth.policy, InitialDistribution()),
        MethodName.EXACT_CONTROL_ON_BUMPS: (FunctionPolicy(lambda k, x: fits[k](x)), best),
    }
    return [
        _exact(temp, metric, value, name)
        for name, (policy, law) in variants.items()
        for metric, value in evaluator.measure(policy, law).items()
    ]


@functools.lru_cache(maxsize=len(TEMPS))
def _evaluator(temp: float) -> Evaluator:
    return Evaluator.at(temp)


def _exact(temp: float, metric: Metric, value: float, name: str = "", **more) -> Record:
    return Record(
        schemas.MIXTURE.name,
        ProblemName.BSDE_MIXTURE,
        metric,
        value,
        {"temp": temp},
        name,
        "exact",
        **more,
    )


def tasks(quick: bool) -> list[Task]:
    """The optimum and the split at every temperature, and every method; at the quick scale two
    methods at two temperatures.
    """
    temps = QUICK_TEMPS if quick else TEMPS
    found = [Task(f"optimum at {temp:g}", truth_task, {"temp": temp}) for temp in temps]
    found += [
        Task(f"errors without noise at {temp:g}", split_task, {"temp": temp}) for temp in temps
    ]
    for name, each in METHODS.items():
        if quick and name not in (BEST, MethodName.ADJOINT_MATCHING):
            continue
        groups = [list(temps)] if each.chain else [[temp] for temp in temps]
        for group in groups:
            about = name if each.chain else f"{name} at {group[0]:g}"
            seeds = QUICK_SEEDS if quick else each.seeds
            found.append(Task(about, method_task, {"method": name, "temps": group, "seeds": seeds}))
    return found


STUDY = Study(schemas.MIXTURE, tasks)
