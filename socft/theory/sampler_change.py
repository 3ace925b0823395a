r"""Another sampler after training: the law of a flow model that was fine-tuned with one noise level
and is sampled with another, in continuous time.

Setting (derived here): data :math:`N(m, S)` along one axis, reward :math:`r(x) = P x^2/2 + q x`,
constant beta, rectified flow from pure noise with the diffusion :math:`\varsigma^2 = n^2 s/a`, the
Flow-SDE of noise level n; :math:`n = \sqrt 2` is the memoryless schedule and n = 0 the ordinary
differential equation. The optimal control at level n is stored as a velocity and used at level
:math:`n'`. With :math:`\kappa = (2 + n'^2)/(2 + n^2)`, :math:`p = P S/\beta` and

.. math:: F = \frac{2 n^2 (2 + n'^2)}{(2 + n^2)(n^2 + n'^2)}, \qquad
   H_c(y) = 1 - p\,(1 - y^c),

the law of the samples is Gaussian with

.. math:: \text{mean} = m + \frac{(P m + q) S}{\beta}\, F \int_0^1
   H_{2n^2/(n^2+n'^2)}(y)^{-1-\kappa}\, dy, \qquad
   \text{variance} = S \int_0^1 H_{n^2/n'^2}(y)^{-2\kappa}\, dy .

By Euler's integral and Pfaff's transformation, :math:`\int_0^1 H_c(y)^{-a} dy = {}_2F_1(a, 1; 1 +
1/c; p)`.

*Proof.* With :math:`t = s/a` and :math:`z = S/(S + t^2)`, what level s moves the end by at noise
level n is :math:`\Phi_n = (S/c)^{1/2} z^{n^2/4}`, :math:`c = a^2 S + s^2`, and the variance of the
end given level s is :math:`S (1 - z^{n^2/2})`. The Doob function of a quadratic reward then has
:math:`\nabla \log h = \Phi_n (P \hat m + q)/(\beta - P S (1 - z^{n^2/2}))`, :math:`\hat m` the
conditional mean of the end, which is stored as the change :math:`-\frac{2 n^2}{2 + n^2}
\frac{s}{a} \nabla \log h` of the velocity and enters the drift of level :math:`n'` with the factor
:math:`1 + n'^2/2`. The drift is affine; its transition to the end is :math:`\Phi_{n'}
H^{-\kappa}` with :math:`H = 1 - p (1 - z^{n^2/2})`, and the integrals over s become those above by
:math:`t\,dt/(S + t^2) = -dz/(2 z)` and :math:`y = z^{(n^2+n'^2)/4}` or :math:`y = z^{n'^2/2}`.

At :math:`n' = n` both integrals are those of the tilt :math:`p\,e^{r/\beta}/Z`, whose mean is
:math:`m + (P m + q) S/(\beta - P S)` and whose variance is :math:`S/(1 - p)`; at :math:`n =
\sqrt 2` they are, too, for every :math:`n'`: :math:`\frac{d}{dy}[y H_b^{-1/b}] = (1 - p)
H_b^{-1/b-1}`. For a linear reward :math:`F - 1 = 0` needs :math:`(n^2 - n'^2)(2 - n^2) = 0`: **on
no other schedule does any other sampler reach the tilt.** The ordinary differential equation
has :math:`F = 4/(2 + n^2)` and

.. math:: \text{variance} = S\, (1 - p)^{-4/(2+n^2)} :

below the memoryless schedule it goes too far, above it not far enough.

Kind: equality in continuous time; how chains of T steps approach it is measured by
`toy.studies.sde_ode`.
"""

from __future__ import annotations

import dataclasses

from scipy.special import hyp2f1

from socft.checks import at_least_zero, keep, number, positive, require


@dataclasses.dataclass(frozen=True)
class SamplerChange:
    """A model fine-tuned with one noise level of Flow-SDE and sampled with another.

    Attributes:
        trained: n, positive.
        used: n', 0 for the ordinary differential equation.

    Raises:
        InvalidProblem: a noise level is negative or not finite, or that of training is 0.

    >>> from socft.theory import SamplerChange
    >>> round(SamplerChange(trained=0.7, used=0.0).strength, 4)
    1.6064
    """

    trained: float
    used: float

    def __post_init__(self) -> None:
        keep(self, trained=positive(self.trained, "trained"), used=at_least_zero(self.used, "used"))

    @property
    def strength(self) -> float:
        """F: by how much the mean moves under a linear reward, in units of the tilt's move."""
        n, u = self.trained**2, self.used**2
        return 2 * n * (2 + u) / ((2 + n) * (n + u))

    def moments(
        self, mean: float, variance: float, curvature: float, slope: float, beta: float
    ) -> tuple[float, float]:
        """Mean and variance of the samples for data N(mean, variance) and the reward
        ``curvature x^2 / 2 + slope x``.

        Raises:
            InvalidProblem: ``curvature variance >= beta``, where no tilt exists.

        >>> from socft.theory import SamplerChange
        >>> mean, variance = SamplerChange(2**0.5, 0.0).moments(0.0, 1.0, -1.0, 1.0, 1.0)
        >>> round(mean, 12), round(variance, 12)
        (0.5, 0.5)
        """
        mean, curvature, slope = (
            number(each, name)
            for each, name in ((mean, "mean"), (curvature, "curvature"), (slope, "slope"))
        )
        variance, beta = positive(variance, "variance"), positive(beta, "beta")
        bent = curvature * variance / beta
        require(
            bent < 1,
            f"curvature * variance / beta = {bent:g}; the tilt exists below 1: raise beta above"
            f" {curvature * variance:g}.",
        )
        n, u = self.trained**2, self.used**2
        kappa = (2 + u) / (2 + n)
        moved = self.strength * float(hyp2f1(1 + kappa, 1, 1 + (n + u) / (2 * n), bent))
        spread = float(hyp2f1(2 * kappa, 1, 1 + u / n, bent))
        return mean + (curvature * mean + slope) * variance / beta * moved, variance * spread
