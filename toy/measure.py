r"""What a gradient estimator returns, against the exact gradient, and what it costs.

Every estimator is judged through the control. On a path it proposes, at every step, a slope
:math:`g_k = -\partial \ell_k / \partial v_k` of its loss in the control at :math:`x_k`; in a policy
class that is linear in features, :math:`v_k(x) = K_k \phi(x)`, its estimate of the gradient of the
objective in :math:`K_k` is :math:`g_k \phi(x_k)^\top`, averaged over paths. With the affine
features (x, 1) the exact gradient of a linear-quadratic problem is known at every affine policy
(`socft.truth.affine_policy.affine_gradient`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from socft.checks import require, require_finite
from socft.estimators.base import Estimator, Labels
from socft.path import Noise, Path, rollout
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.reference import Noises, States, Step

MB = 1e6


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Mean and spread of independent samples of an estimated gradient, one per path.

    Attributes:
        paths: number of samples.
        mean: the estimate from all paths; the parameters are those of step 0, then step 1, and so
            on.
        squares: mean of the squares of the samples, per parameter.
        seconds: time to make the labels and their slopes, the rollout included.
    """

    paths: int
    mean: Float[Tensor, " parameters"]
    squares: Float[Tensor, " parameters"]
    seconds: float

    @property
    def variances(self) -> Float[Tensor, " parameters"]:
        """Variance of one sample, per parameter."""
        return (self.squares - self.mean.square()).clamp(min=0) * (self.paths / (self.paths - 1))

    @property
    def stderr(self) -> Float[Tensor, " parameters"]:
        """Standard error of the mean."""
        return (self.variances / self.paths).sqrt()

    @property
    def variance(self) -> float:
        """Trace of the covariance of one sample."""
        return float(self.variances.sum())

    def bias(self, exact: Float[Tensor, " parameters"]) -> tuple[float, float]:
        """``|mean - exact|`` without the part that is noise, and its standard error.

        The square of the distance exceeds the squared bias by the variance of the mean, which is
        subtracted; the standard error is that of a distance which is noise alone, or of a distance
        that is not, whichever is larger.
        """
        noise = self.variance / self.paths
        squared = float((self.mean - exact).square().sum())
        return max(squared - noise, 0.0) ** 0.5, noise**0.5


def affine_features(x: States) -> Float[Tensor, "batch features"]:
    """``(x, 1)``."""
    return torch.cat([x, torch.ones_like(x[:, :1])], 1)


def estimate(
    estimator: Estimator,
    problem: ControlProblem,
    policy: Policy,
    noise: Noise,
    features: Callable[[States], Tensor] = affine_features,
) -> Estimate:
    """Gradient of the objective in the coefficients of features of every step, by an estimator, on
    paths of the given noise.
    """
    start = time.perf_counter()
    with torch.no_grad():
        path = rollout(problem.reference, policy, noise)
        labels = estimator.label(problem, policy, path)
    _require_labels(problem, labels)
    means, squares, paths = [], [], labels.states.shape[1]
    for k in range(problem.steps):
        slope, known = (
            control_slope(estimator, problem, policy, labels, k),
            features(labels.states[k]),
        )
        means.append((slope.T @ known / paths).flatten())
        squares.append((slope.square().T @ known.square() / paths).flatten())
    return Estimate(paths, torch.cat(means), torch.cat(squares), time.perf_counter() - start)


def control_slope(
    estimator: Estimator, problem: ControlProblem, policy: Policy, labels: Labels, k: int
) -> Noises:
    """Minus the derivative of each sample's loss of step k in its control, shape (batch,
    *noise_dims).
    """
    rows = labels.step(k)
    with torch.no_grad():
        control = policy(k, rows.states)
    control.requires_grad_(True)
    with torch.enable_grad():
        loss = estimator.loss(problem, _Held(control), k, rows)
        require(
            loss.shape == control.shape[:1],
            f"the loss of {len(control)} rows has shape {tuple(loss.shape)}; it must be one number"
            f" per row, ({len(control)},).",
        )
        (slope,) = torch.autograd.grad(loss.sum(), control)
    require_finite(
        slope, "derivative of the loss", "every derivative in the control must be a finite number."
    )
    return -slope


def peak_memory(estimator: Estimator, problem: ControlProblem, policy: Policy, path: Path) -> float:
    """Largest memory in use while labels are made, beyond the path and the labels, in MB."""
    with torch.no_grad(), MemoryMeter() as memory:
        labels = estimator.label(problem, policy, path)
        kept = sum(_bytes(each) for each in (labels.targets, labels.weights) if each is not None)
        if labels.states.untyped_storage().data_ptr() != path.states.untyped_storage().data_ptr():
            kept += _bytes(labels.states)
    return (memory.peak - kept) / MB


class MemoryMeter(TorchDispatchMode):
    """Bytes of all tensors that are made inside and still alive, autograd's included.

    Torch's public modes see what Python calls, and not what a backward pass makes: hence the
    dispatch mode, whose module has a private name.

    Attributes:
        alive: now.
        peak: at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {pointer for pointer, _ in _storages((args, kwargs or {}))}
        for pointer, storage in _storages(result):
            if pointer not in self._known | given:
                self._known.add(pointer)
                self.alive += storage.nbytes()
                self.peak = max(self.peak, self.alive)
                weakref.finalize(storage, self._gone, pointer, storage.nbytes())
        return result

    def _gone(self, pointer: int, size: int) -> None:
        self._known.discard(pointer)
        self.alive -= size


def _require_labels(problem: ControlProblem, labels: Labels) -> None:
    batch = labels.states.shape[1] if labels.states.ndim > 1 else 0
    expected = {
        "states": (problem.steps, batch, *problem.reference.dims),
        "targets": (problem.steps, batch, *problem.reference.noise_dims),
        "weights": (problem.steps, batch),
    }
    for name, shape in expected.items():
        found = getattr(labels, name)
        if found is not None:
            require(
                tuple(found.shape) == shape,
                f"the labels' {name} have shape {tuple(found.shape)}; they must have {shape}.",
            )
            require_finite(found, name, f"the labels' {name} must be finite numbers.")


def _storages(values: Any) -> list[tuple[int, torch.UntypedStorage]]:
    """Memory of the tensors in any nesting; those that only wrap another for a transform have none
    of their own.
    """
    found = []
    for each in _tensors(values):
        with contextlib.suppress(RuntimeError):
            storage = each.untyped_storage()
            found.append((storage.data_ptr(), storage))
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        yield from _tensors(tuple(values.values()))
    elif isinstance(values, Sequence) and not isinstance(values, str):
        for each in values:
            yield from _tensors(each)


class _Held(Policy):
    """Controls given per sample."""

    def __init__(self, control: Tensor):
        self.control = control

    def __call__(self, k: Step, x: States) -> Noises:
        return self.control


def _bytes(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()
