r"""PI-FT, policy iteration for fine-tuning (Algorithm 1 of arXiv 2412.18164v4), in three ways
behind one interface.

Backwards in k, from :math:`v_k^{(0)} = 0` (the pre-trained model), with the value function of the
next step fixed,

.. math:: v_k^{(j+1)}(y) = \tfrac{1}{\beta_k} B_k^\top\, E\, \nabla V_{k+1}\big(m_k(y) + B_k
   (v_k^{(j)}(y) + W)\big), \quad j < m,

which is equation 35 in whitened form, then the value of the last iterate (equation 36) and its
gradient (equation 55).

- `ExactPIFT` evaluates the expectation by quadrature on a grid (d = 1, 2);
- `MonteCarloPIFT` samples it and represents control and value gradient by regression, linear or
  network, in any dimension;
- `PolicyGradient` ascends the objective in the parameters of a policy (section 4.1), with any
  estimator.

Iteration m of the first two is Algorithm 1 with :math:`m_t = m` at every step, the quantity Theorem
3.1 bounds. Both can relax an update, :math:`(1 - \theta_k) v^{(j)} + \theta_k (\ldots)`: the
paper's :math:`\theta = 1` needs beta to dominate positive and negative curvature of the smoothed
value function, a smaller theta converges wherever the maximum is well posed (see
`socft.theory.Relaxation`). A `socft.theory.BetaChoice` has the factors that it supposes, as
``theta``.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import (
    keep,
    per_step,
    positive,
    require,
    require_callable,
    require_finite,
    require_kind,
    require_kinds,
    tried,
    whole,
)
from socft.estimators.base import Estimator
from socft.path import Noise, rollout
from socft.policy import Policy, StepwisePolicy, Uncontrolled
from socft.problem import ControlProblem
from socft.readable import Readable
from socft.reference import by_step
from socft.regression.functions import Field, Regression
from socft.train import Iteration, Method, fit
from socft.truth.bellman import BellmanStep, terminal_value
from socft.truth.grid import Grid, GridPolicy, ValueGrid
from socft.truth.quadrature import choose_grids

CONVERGED = 1e-10
"""Share of a step's first increment below which increments are rounding, about 10 eps: ratios to
larger ones are good to 1e-4.
"""


@dataclasses.dataclass(frozen=True)
class BackwardInduction(Readable):
    """One backward pass of exact PI-FT.

    Attributes:
        grids: one grid per step 0..T.
        values: value of the policy, k = 0..T.
        shifts: ``B_k v_k`` at the nodes, k = 0..T-1.
        increments: sup over the nodes of ``|v^(j+1) - v^(j)|``, shape (T, m).
    """

    grids: tuple[Grid, ...]
    values: tuple[ValueGrid, ...]
    shifts: tuple[Tensor, ...]
    increments: Float[Tensor, "steps inner"]

    def policy(self, problem: ControlProblem) -> GridPolicy:
        """The policy after the induction."""
        return GridPolicy.from_shifts(
            problem.reference, self.grids[:-1], self.shifts, self.values[0].extrapolation
        )

    @property
    def contraction(self) -> Float[Tensor, "steps inner_minus_1"]:
        """Ratios of successive increments; undamped at most ``sigma^2 sup|Hess G V| / beta``
        (equation 67).

        NaN once the earlier increment is at most `CONVERGED` times the step's first: the ratio
        would be one of roundings.
        """
        before, after = self.increments[:, :-1], self.increments[:, 1:]
        return torch.where(before > CONVERGED * self.increments[:, :1], after / before, torch.nan)


def backward_induction(
    problem: ControlProblem,
    grids: tuple[Grid, ...],
    inner: int,
    relaxation: float | Tensor = 1.0,
) -> BackwardInduction:
    """Algorithm 1 with ``m_t = inner`` at every step, by quadrature; inner = 0 evaluates the
    pre-trained model.

    Args:
        relaxation: how far an update goes, in (0, 2), one number or shape (T,); 1 is the paper's.
    """
    factors = _relaxation_factors(relaxation, problem.steps)
    inner = whole(inner, "inner", 0)
    require(
        len(grids) == problem.steps + 1,
        f"{len(grids)} grids for {problem.steps} steps; give one per step 0..T.",
    )
    values, shifts, increments = [terminal_value(problem, grids[-1])], [], []
    for k in reversed(range(problem.steps)):
        step = BellmanStep.build(problem, k, grids[k], values[-1])
        shift, moves = torch.zeros_like(step.mean), []
        for _ in range(inner):
            new = (1 - factors[k]) * shift + factors[k] * step.improve(shift)
            moves.append(
                problem.reference.diffusion.whiten(k, step.mean, new - shift).norm(dim=1).max()
            )
            shift = new
        remedy = (
            f"the inner iteration diverges at beta[{k}] = {float(problem.beta[k]):g}; raise it, or"
            " relax it."
        )
        require_finite(shift, "shift at node ", remedy)
        values.append(step.value(shift))
        shifts.append(shift)
        increments.append(torch.stack(moves) if moves else torch.zeros(0, dtype=torch.float64))
    return BackwardInduction(
        grids, tuple(values[::-1]), tuple(shifts[::-1]), torch.stack(increments[::-1])
    )


@dataclasses.dataclass(frozen=True)
class ExactPIFT(Method):
    """Algorithm 1 by quadrature.

    Attributes:
        inner: largest number of inner iterations m.
        grids: one grid per step; chosen as for the quadrature truth when left out.
        relaxation: how far an update goes, in (0, 2), one number or shape (T,).

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> [iteration.index for iteration in ExactPIFT(inner=2).iterations(problem)]
    [0, 1, 2]
    """

    inner: int
    grids: tuple[Grid, ...] | None = None
    relaxation: float | Tensor = 1.0

    def __post_init__(self) -> None:
        keep(self, inner=whole(self.inner, "inner", 0))
        for each in self.grids or ():
            require_kind(each, Grid, "a grid", "give a Grid, such as Grid.box.")

    def iterations(self, problem: ControlProblem) -> Iterator[Iteration]:
        grids = self.grids or choose_grids(problem)
        spent, evaluations = 0.0, 0
        for m in range(self.inner + 1):
            start = time.perf_counter()
            result = backward_induction(problem, grids, m, self.relaxation)
            spent += time.perf_counter() - start
            evaluations += sum(len(s) for s in result.shifts)
            yield Iteration(
                m,
                result.policy(problem),
                spent,
                evaluations,
                {"increments": result.increments},
                _gradient_of(result),
            )


@dataclasses.dataclass(frozen=True)
class MonteCarloPIFT(Method):
    """Algorithm 1 with sampled expectations and regressed control and value gradient.

    States come from rollouts of the previous iterate, so that the regressions are accurate where
    the policy goes.

    Attributes:
        inner: largest number of inner iterations m.
        control: regression of the whitened control.
        costate: regression of the value gradient.
        paths: number of states per step.
        draws: samples of each inner expectation, drawn in antithetic pairs.
        seed: seed of all noise.
        relaxation: how far an update goes, in (0, 2), one number or shape (T,).

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> linear = LinearRegression(Polynomial(1))
    >>> method = MonteCarloPIFT(inner=1, control=linear, costate=linear, paths=64)
    >>> [iteration.index for iteration in method.iterations(problem)]
    [0, 1]
    """

    inner: int
    control: Regression
    costate: Regression
    paths: int = 2048
    draws: int = 16
    seed: int = 0
    relaxation: float | Tensor = 1.0

    def __post_init__(self) -> None:
        require_kinds(self, control=Regression, costate=Regression)
        keep(
            self,
            inner=whole(self.inner, "inner", 0),
            paths=whole(self.paths, "paths"),
            draws=whole(self.draws, "draws", 2),
            seed=whole(self.seed, "seed", 0),
        )
        require(
            self.draws % 2 == 0,
            f"draws = {self.draws}; give a positive even number (antithetic pairs).",
        )

    def iterations(self, problem: ControlProblem) -> Iterator[Iteration]:
        generator = torch.Generator().manual_seed(self.seed)
        policy: Policy = Uncontrolled(problem.reference)
        spent, evaluations = 0.0, 0
        yield Iteration(0, policy, spent, evaluations)
        for m in range(1, self.inner + 1):
            start = time.perf_counter()
            policy, costate = self._sweep(problem, policy, m, generator)
            spent += time.perf_counter() - start
            evaluations += 2 * problem.steps * self.paths
            yield Iteration(m, policy, spent, evaluations, value_gradient=costate)

    @torch.no_grad()
    def _sweep(
        self, problem: ControlProblem, behaviour: Policy, inner: int, generator: torch.Generator
    ):
        reference = problem.reference
        states = rollout(
            reference, behaviour, Noise.sample(reference, self.paths, generator)
        ).states
        controls: list[Field] = []
        costates: list[Field] = [problem.reward.gradient]
        factors = _relaxation_factors(self.relaxation, problem.steps)
        for k in reversed(range(problem.steps)):
            x = states[k]
            half = torch.randn(
                self.draws // 2,
                self.paths,
                *reference.noise_dims,
                generator=generator,
                dtype=x.dtype,
            )
            expect = _expected_costate(problem, k, x, costates[-1], torch.cat([half, -half]))
            field: Field = partial(Uncontrolled(reference), k)
            for _ in range(inner):
                now = field(x)
                new = reference.diffusion.transpose(k, x, expect(now)) / problem.beta[k]
                target = (1 - factors[k]) * now + factors[k] * new
                field = self.control.fit(x, target, controls[-1] if controls else None)
            label = _value_gradient_label(problem, k, x, field, expect(field(x)))
            costates.append(self.costate.fit(x, label, costates[-1] if len(costates) > 1 else None))
            controls.append(field)
        ordered = costates[::-1]
        return StepwisePolicy(controls[::-1]), lambda k, x: by_step(
            k, x, lambda i, y: ordered[i](y)
        )


@dataclasses.dataclass(frozen=True)
class PolicyGradient(Method):
    """Gradient ascent on the objective in the parameters of a policy (section 4.1), with any
    estimator.

    Attributes:
        policy: makes the initial policy.
        estimator: supplies the gradient.
        steps: gradient steps.
        batch: paths per gradient step.
        rate: learning rate of Adam, decayed to zero by a cosine.
        seed: seed of all noise.

    >>> reference = AffineReference([[[0.9]]] * 3, ScalarDiffusion([0.5] * 3))
    >>> problem = ControlProblem(reference, Sine(), beta=2.0)
    >>> method = PolicyGradient(lambda: AffinePolicy.zeros(reference), FullAdjoint(), steps=2)
    >>> [iteration.index for iteration in method.iterations(problem)]
    [0, 1, 2]
    """

    policy: Callable[[], Policy]
    estimator: Estimator
    steps: int = 1000
    batch: int = 256
    rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        require_callable(self.policy, "policy", "that makes a Policy")
        require_kinds(self, estimator=Estimator)
        keep(
            self,
            steps=whole(self.steps, "steps"),
            batch=whole(self.batch, "batch"),
            rate=positive(self.rate, "rate"),
            seed=whole(self.seed, "seed", 0),
        )

    def iterations(self, problem: ControlProblem) -> Iterator[Iteration]:
        policy = tried(self.policy, (), "what makes the policy")
        require_kind(policy, Policy, "what policy makes", "make a Policy.")
        require(bool(policy.parameters()), "the policy has no parameters; make one that learns.")
        optimiser = torch.optim.Adam(policy.parameters(), lr=self.rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.steps)
        generator = torch.Generator().manual_seed(self.seed)
        return fit(
            problem,
            policy,
            self.estimator,
            optimiser,
            generator,
            self.batch,
            self.steps,
            schedule,
        )


def _relaxation_factors(relaxation: float | Tensor, steps: int) -> list[float]:
    factors = per_step(relaxation, steps, "relaxation").tolist()
    for k, factor in enumerate(factors):
        require(
            0 < factor < 2, f"relaxation[{k}] = {factor:g}; a relaxation factor must lie in (0, 2)."
        )
    return factors


def _gradient_of(result: BackwardInduction):
    return lambda k, x: by_step(k, x, lambda i, y: result.values[i].gradient_at(y))


def _expected_costate(
    problem: ControlProblem, k: int, x: Tensor, costate: Field, noise: Tensor
) -> Callable[[Tensor], Tensor]:
    """``v -> E costate(m_k(x) + B_k (v + W))`` with the given draws of W, shape (draws, batch,
    *noise_dims).
    """
    mean = problem.reference.mean(k, x)

    def expect(v: Tensor) -> Tensor:
        pushed = torch.stack([mean + problem.reference.diffusion.apply(k, x, v + w) for w in noise])
        return costate(pushed.flatten(0, 1)).reshape(pushed.shape).mean(0)

    return expect


def _value_gradient_label(
    problem: ControlProblem, k: int, x: Tensor, control: Field, costate: Tensor
) -> Tensor:
    """The gradient of equation 36 in the state with the control differentiated, equation 55."""
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        v = control(y)
        pushed = problem.reference.step(k, y, v)
        scalar = (pushed * costate).sum() - problem.beta[k] * v.square().sum() / 2
        if problem.running_cost is not None:
            scalar = scalar - problem.cost(k, y).sum()
        (gradient,) = torch.autograd.grad(scalar, y)
    return gradient
