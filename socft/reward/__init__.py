r"""Rewards :math:`r(x)` with the constants the theory needs.

``L0`` is the Lipschitz constant of the reward and ``L1`` that of its gradient (both may be
infinite), Euclidean and operator norms (assumption 2.6 of arXiv 2412.18164v4); ``semiconcavity``
and ``semiconvexity`` bound its Hessian from above and from below. Every constant is
exact, a supremum or its limit, except where a docstring says upper bound. A reward maps states of
shape ``batch *dims`` to one number per sample; scalar rewards act on states of shape (batch, 1) and
reach vectors through `RidgeFunction`, :math:`r_1(q^\top x)`, or `Separable`,
:math:`\sum_i r_i(q_i^\top x)` with orthonormal :math:`q_i`.
"""

from socft.reward.arguments import orthonormal
from socft.reward.base import FunctionReward, PerSample, Reward, Scalars, as_reward
from socft.reward.combined import RidgeFunction, Separable, Sum
from socft.reward.scalar import PseudoHuber, Sine, Softplus
from socft.reward.vector import Linear, LogSumExp, Quadratic, as_quadratic

__all__ = [
    "FunctionReward",
    "Linear",
    "LogSumExp",
    "PerSample",
    "PseudoHuber",
    "Quadratic",
    "Reward",
    "RidgeFunction",
    "Scalars",
    "Separable",
    "Sine",
    "Softplus",
    "Sum",
    "as_quadratic",
    "as_reward",
    "orthonormal",
]
