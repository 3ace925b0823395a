r"""Continuous-time truth for a constant KL weight: value and control of fine-tuning the exact
reverse diffusion.

The reverse diffusion :math:`dY = q\,(Y/2 + s)\,d\tau + \sqrt q\,dB` of a law p, controlled by a
change u of the score, maximises

.. math:: E\Big[ r(Y_1) - \int \frac{\beta q}{2} |u - s|^2 d\tau \Big]

(section 4.2 of arXiv 2412.18164v4). Its Hamilton-Jacobi-Bellman equation :math:`V_\tau + q (y/2 +
s)\cdot\nabla V + \tfrac q2 \Delta V + \tfrac{q}{2\beta} |\nabla V|^2 =
0` (equation 79) is linear in :math:`e^{V/\beta}`, so :math:`V = \beta \log E[ e^{r(Y_1)/\beta} \mid
Y_\tau ]`. Reversing time is conditioning: given the state at signal level :math:`\bar a`, the
sample has law :math:`p(x_0 \mid x)`, and Bayes' rule gives (derived here)

.. math:: V(\bar a, x) = \beta \big( \log Z + \log \tilde p_{\bar a}(x) - \log p_{\bar a}(x) \big),
   \qquad \tilde p = p\, e^{r/\beta} / Z,

the log ratio of the tilted and the pre-trained law, both noised to the same level. The optimal
control (equation 78) is therefore the score of the noised tilted law. The value depends on time
through the level alone, whatever the speed q.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from socft.checks import keep, positive, require_kinds
from socft.density import Density, Tilt
from socft.readable import Readable
from socft.reference import States
from socft.reward import PerSample, Reward, as_quadratic
from socft.truth.tilt_certificate import TiltErrors, tilt_errors


@dataclasses.dataclass(frozen=True)
class TiltedMixture(Readable):
    """Closed-form value of a density with exact tilts: Gaussian mixtures and rotated separable
    laws, linear or quadratic rewards.

    Attributes:
        density: the pre-trained data law.
        reward: the terminal reward.
        beta: the KL weight, one positive number.

    Raises:
        InvalidProblem: the reward has no closed-form tilt of this density, or ``exp(r / beta)`` is
            not integrable.

    >>> tilted = TiltedMixture(Gaussian(0.0, 1.0), Linear([2.0]), beta=4.0)
    >>> tilted.tilt.density
    Gaussian(mean=[0.5], cov=[[1]])
    """

    density: Density
    reward: Reward
    beta: float
    tilt: Tilt[Density] = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        require_kinds(self, density=Density, reward=Reward)
        keep(self, beta=positive(self.beta, "beta"))
        object.__setattr__(self, "tilt", self.density.tilted(self.reward, self.beta))

    def value(self, abar: float | Tensor, x: States) -> PerSample:
        """``V`` at a signal level (one, or one per sample), differentiable in both; the reward
        itself at level 1.
        """
        return self.density.conditional_value(self.reward, self.beta, abar, x)

    def value_gradient(self, abar: float | Tensor, x: States) -> States:
        """``grad V``; as beta times the difference of the two noised scores it would lose about eps
        beta.
        """
        found: tuple[Any, ...] = torch.func.vjp(lambda y: self.value(abar, y), x)
        return found[1](torch.ones_like(found[0]))[0]

    def errors(self, abar: float | Tensor, x: States) -> TiltErrors:
        """What `value` and `value_gradient` are off by in float64, found in ball arithmetic: a few
        ms per state and component; infinite for laws that are no mixtures.
        """
        level = torch.as_tensor(abar, dtype=torch.float64).expand(len(x))
        found = self.value(level, x), self.value_gradient(level, x)
        form = as_quadratic(self.reward)
        return tilt_errors(self.density, form, self.beta, level, x.double(), found)

    def optimal_score(self, abar: float | Tensor, x: States) -> Float[Tensor, "batch n"]:
        """The optimal control ``u* = s + grad V / beta``, the score of the noised tilted law."""
        return self.tilt.density.noised_score(abar, x)

    def optimal_law(self) -> Density:
        """The law ``p exp(r / beta) / Z`` of the optimally controlled sample, reached from Y_0 at
        signal level 0.
        """
        return self.tilt.density

    @property
    def log_normaliser(self) -> float:
        """``log Z = log E_p exp(r / beta)``; beta times it is the largest attainable objective from
        signal level 0.
        """
        return self.tilt.log_normaliser
