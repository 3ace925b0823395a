r"""What repetitions of an estimate say, with any weights of the repetitions.

Repetition :math:`r` returned the mean :math:`m_r` of an estimate of :math:`g`, and the trace
:math:`c_r` of the covariance from one path. All that bias, size and noise need are the products
:math:`D_{rs} = (m_r - g)^\top (m_s - g)` and :math:`b_r = (m_r - g)^\top g`. Products of different
repetitions have independent factors, so

.. math::
    U_w(D) = \sum_{r \ne s} w_r w_s D_{rs} \Big/ \sum_{r \ne s} w_r w_s

has the squared bias as its expectation, :math:`U_w(D + b 1^\top + 1 b^\top) + |g|^2` the squared
size of the mean. With equal weights these are what is reported, with weights from a Dirichlet law
they are draws of the Bayesian bootstrap (Rubin, Ann. Statist. 9, 1981), whose parameter
:math:`(R - 2)/R` gives a weighted mean the variance :math:`s^2/R`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy
import torch
from jaxtyping import Float
from torch import Tensor

from socft.estimators.estimand import Kind
from socft.study.comparison import BUDGET

DIGITS = 9
"""Significant digits of numbers that are kept."""
SEED = 0
DRAWS = 2000
"""Draws of the bootstrap that an interval is made of."""


@dataclasses.dataclass(frozen=True)
class RepeatedGradient:
    """An estimator in a situation, in units of the gradient at the pre-trained model.

    Attributes:
        kind: what it estimates.
        products: D, shape (R, R).
        along: b, shape (R,).
        gradient: the squared norm of g.
        noise: the standard error of g, 0 where it is exact.
        variances: c, shape (R,).
        paths: of a repetition.
        evaluations: network evaluations of a path.
        fit_evaluations: those of what is fitted beforehand.
    """

    kind: str
    products: Float[Tensor, "repetitions repetitions"]
    along: Float[Tensor, " repetitions"]
    gradient: float
    noise: float
    variances: Float[Tensor, " repetitions"]
    paths: int
    evaluations: int
    fit_evaluations: int

    @classmethod
    def of(
        cls,
        means: Float[Tensor, "repetitions parameters"],
        exact: Float[Tensor, " parameters"],
        unit: float,
        **more: Any,
    ) -> RepeatedGradient:
        """From the means of the repetitions."""
        away = (means - exact) / unit
        return cls(
            products=away @ away.mT,
            along=away @ exact / unit,
            gradient=float(exact.square().sum()) / unit**2,
            **more,
        )

    @classmethod
    def read(cls, setting: Mapping[str, Any]) -> RepeatedGradient:
        """From the setting of a record."""
        fields = {each.name: setting[each.name] for each in dataclasses.fields(cls)}
        for name in ("products", "along", "variances"):
            fields[name] = torch.tensor(fields[name], dtype=torch.float64)
        return cls(**fields)

    def written(self) -> dict[str, Any]:
        """The numbers, for the setting of a record."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: _short(each) for name, each in fields.items()}

    @property
    def count(self) -> int:
        """Number of repetitions."""
        return len(self.variances)

    @functools.cached_property
    def equal(self) -> Float[Tensor, "one repetitions"]:
        """Equal weights."""
        return torch.full((1, self.count), 1 / self.count, dtype=torch.float64)

    def bias_squared(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """Squared distance of the mean from the gradient, without its noise."""
        return (_apart(self.products, weights) - self.noise**2).clamp(min=0)

    def size_squared(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """Squared norm of the mean, without its noise."""
        size = self.products + self.along.unsqueeze(0) + self.along.unsqueeze(1)
        return (_apart(size, weights) + self.gradient).clamp(min=0)

    def variance(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """Trace of the covariance from one path, given what is fitted."""
        return weights @ self.variances

    def fit_variance(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """The part of the covariance of the repetitions' means that more paths do not lessen, of a
        biased estimator; the mean of the others does not depend on the fit.
        """
        if self.kind != Kind.BIASED:
            return torch.zeros(len(weights), dtype=torch.float64)
        scattered = weights @ self.products.diagonal() - _apart(self.products, weights)
        return (scattered - self.variance(weights) / self.paths).clamp(min=0)

    def noise_squared(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """Variance of the estimate with `BUDGET` evaluations, infinite where the fit leaves none
        for a path.
        """
        paths = (BUDGET - self.fit_evaluations) // self.evaluations
        sampling = self.variance(weights) / paths if paths > 0 else math.inf
        return self.fit_variance(weights) + sampling

    def error(self, weights: Float[Tensor, "draws repetitions"]) -> Float[Tensor, " draws"]:
        """Root-mean-square error with `BUDGET` evaluations, bias and noise together."""
        return (self.bias_squared(weights) + self.noise_squared(weights)).sqrt()

    def deviation(self, drawn: Callable[[Tensor], Tensor]) -> float | None:
        """Standard deviation of a number over the draws; None where it is not finite."""
        found = drawn(draws(self.count, DRAWS))
        return float(found.std()) if bool(found.isfinite().all()) else None

    @property
    def bias_noise(self) -> float:
        """Standard error of the bias."""
        scattered = float(self.equal @ self.products.diagonal()) - float(
            _apart(self.products, self.equal)
        )
        return math.hypot(math.sqrt(max(scattered, 0.0) / self.count), self.noise)


@functools.lru_cache(maxsize=8)
def draws(count: int, number: int) -> Float[Tensor, "number count"]:
    """Weights of the Bayesian bootstrap for ``count`` repetitions."""
    concentration = torch.full((count,), max(count - 2, 0.5) / count, dtype=torch.float64)
    found = numpy.random.default_rng(SEED).dirichlet(concentration.numpy(), number)
    return torch.from_numpy(found)


def _apart(
    products: Float[Tensor, "repetitions repetitions"], weights: Float[Tensor, "draws repetitions"]
) -> Float[Tensor, " draws"]:
    """Weighted mean of products of different repetitions."""
    own = weights.square()
    both = ((weights @ products) * weights).sum(1) - own @ products.diagonal()
    return both / (1 - own.sum(1)).clamp(min=1e-12)


def _short(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _short(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_short(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def finite(value: Any) -> Any:
    """What strict JSON can say, with words for infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: finite(each) for key, each in value.items()}
    return [finite(each) for each in value] if isinstance(value, list | tuple) else value
