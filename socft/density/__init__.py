r"""Data laws whose noised scores, Lipschitz constants and exponential tilts are known exactly.

Noising to signal level :math:`\bar a` turns :math:`x_0 \sim p` into
:math:`x = \sqrt{\bar a}\,x_0 + \sqrt{1-\bar a}\,\epsilon`; its score is
:math:`\nabla \log p_{\bar a}`. For a mixture with weights :math:`w_k(x)`, component scores
:math:`s_k(x)` and precisions :math:`P_k`, with :math:`E` the mean under :math:`w(x)` and
:math:`c_k = s_k - E s`,

.. math:: s = E\,s_k, \qquad \mathrm{Jac}\, s = E[c c^\top] - E P, \qquad
   D^3 \log p\,[u,u,u] = E[(u^\top c)^3] - 3 E[u^\top P u\; u^\top c].

Their suprema are assumption 2.7 of arXiv 2412.18164v4, L0 and L1 of the score. L0 is the larger of
two one-sided constants, *up* and *down*: the suprema of the largest and of minus the smallest
eigenvalue of the Jacobian. How each is obtained (derived here):

* one Gaussian: up = -1 / (largest variance), down = 1 / (least variance), L1 = 0;
* a common covariance S, with :math:`D = S^{-1}(m_j - m_k)`: a variance is at most a quarter of the
  squared range and a third central moment at most range^3 / (6 sqrt 3), so down = 1 / least
  variance, up = largest eigenvalue of :math:`-S^{-1} + D D^\top/4` and L1 = :math:`|D|^3/(6\sqrt
  3)`, maxima over pairs; down is exact, the others are for two components, attained at weights 1/2
  and :math:`(1 \pm 1/\sqrt 3)/2`;
* one dimension: branch and bound with second-order bounds on every cell and a bound on the tails,
  exact to 1e-10;
* unequal covariances in more dimensions: with :math:`E = P_i - P_j \succeq 0` and a point where
  both scores agree, the log ratio of the densities is :math:`\Delta^* - t` and the squared score
  difference along u at most :math:`2 t\, u^\top E u`, t >= 0. This is exact for two components and
  sums to upper bounds for more. Where E is indefinite, or singular without such a point, weights
  balance along an unbounded set while the scores separate: two such components have no finite
  constant. A third component of smaller precision than both hides the set, and then the constants
  are finite again.

Rotated separable laws, :math:`x = \sum_i q_i z_i` with independent :math:`z_i`, take the largest
constant of their factors: exact.
"""

from socft.density.base import Density, Tilt
from socft.density.constants import ScoreConstants
from socft.density.mixture import Gaussian, GaussianMixture
from socft.density.rotated import Rotated
from socft.density.score import NoisedScore, affine_reference, score_reference

__all__ = [
    "Density",
    "Gaussian",
    "GaussianMixture",
    "NoisedScore",
    "Rotated",
    "ScoreConstants",
    "Tilt",
    "affine_reference",
    "score_reference",
]
