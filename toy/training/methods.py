"""The estimators that train, and the loop in which they do."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import torch

from socft.estimators.base import Estimator
from socft.estimators.catalogue import CATALOGUE
from socft.estimators.catalogue.context import EstimatorContext
from socft.policy import Policy, Uncontrolled
from socft.problem import ControlProblem
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.problems import ProblemName
from socft.train import Iteration, fit
from toy.training.costates import OwnCostate, OwnLean, OwnValue

BATCH = 64


@dataclasses.dataclass(frozen=True)
class TrainingMethod:
    """An estimator of the catalogue in training.

    Attributes:
        name: in the catalogue.
        mean: makes the source of the conditional mean of its costates, where the policy is affine.
        problems: names of the problems it is measured on; all where left out.
    """

    name: str
    mean: Callable[[], OwnCostate] | None = None
    problems: tuple[str, ...] = ()

    def make(self, problem: ControlProblem) -> Estimator:
        """The estimator, for every policy of a problem."""
        context = EstimatorContext(
            problem, Uncontrolled(problem.reference), value_gradient=OwnValue(), lean_mean=OwnLean()
        )
        return CATALOGUE[self.name].make(context)

    def evaluations(self, problem: ControlProblem) -> int:
        """Network evaluations of one path."""
        return CATALOGUE[self.name].evaluations(self.make(problem), problem.steps)


LINE, QUADRATIC = (ProblemName.MIXTURE,), (ProblemName.LQ_FINE_TUNING,)
METHODS: dict[str, TrainingMethod] = {
    method.name: method
    for method in (
        TrainingMethod(MethodName.FULL_ADJOINT, OwnValue),
        TrainingMethod(MethodName.ADJOINT_MATCHING, OwnLean),
        TrainingMethod(MethodName.ADJOINT_MATCHING_PUBLISHED_INDEX, problems=QUADRATIC),
        TrainingMethod(MethodName.MARTINGALE_POLICY_COSTATE, OwnLean),
        TrainingMethod(MethodName.MARTINGALE_POLICY_COSTATE_CHEAP, OwnLean),
        TrainingMethod(MethodName.MARTINGALE_POLICY_COSTATE_CHEAP_EXACT_MEAN, OwnLean, LINE),
        TrainingMethod(MethodName.FULL_MARTINGALE_POLICY_COSTATE, OwnValue, QUADRATIC),
        TrainingMethod(MethodName.MARTINGALE_EXACT_LEAN_COSTATE, OwnLean, QUADRATIC),
        TrainingMethod(MethodName.FULL_MARTINGALE_EXACT_COSTATE, OwnValue, QUADRATIC),
        TrainingMethod(MethodName.TRUNCATED_LAST_FIFTH),
        TrainingMethod(MethodName.SCORE_FUNCTION_LEAVE_ONE_OUT),
        TrainingMethod(MethodName.LOG_VARIANCE),
        TrainingMethod(MethodName.DDPO, problems=QUADRATIC),
        TrainingMethod(MethodName.DDPO_KL_IN_THE_REWARD, problems=QUADRATIC),
        TrainingMethod(MethodName.DPOK_NO_BASELINE, problems=QUADRATIC),
    )
}


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train.

    Attributes:
        rate: first learning rate of Adam; it decays to zero along a cosine.
        iterations: gradient steps.
        checkpoints: iterations at which to stop and look, increasing; 0 is the pre-trained model.
        batch: paths per gradient.
    """

    rate: float
    iterations: int
    checkpoints: tuple[int, ...]
    batch: int = BATCH


def checkpoint_iterations(iterations: int, count: int) -> tuple[int, ...]:
    """``count`` iterations from 0 to the last."""
    return tuple(sorted({round(i * iterations / (count - 1)) for i in range(count)}))


def train_policy(
    problem: ControlProblem,
    policy: Policy,
    estimator: Estimator,
    plan: TrainingPlan,
    seed: int,
    extra: Sequence[dict] = (),
) -> Iterator[Iteration]:
    """Train in place and yield at the checkpoints; ``extra`` are further parameter groups of the
    optimiser.

    Raises:
        InvalidProblem: a gradient is not finite.
    """
    optimiser = torch.optim.Adam([{"params": list(policy.parameters())}, *extra], lr=plan.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, plan.iterations)
    generator = torch.Generator().manual_seed(seed)
    made = fit(
        problem, policy, estimator, optimiser, generator, plan.batch, plan.iterations, schedule
    )
    return (iteration for iteration in made if iteration.index in plan.checkpoints)
