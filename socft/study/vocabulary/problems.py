"""Names of the control problems of the studies."""

from __future__ import annotations

import enum


class ProblemName(enum.StrEnum):
    """Which problem a record was measured on."""

    # linear-quadratic
    LQ_FINE_TUNING = "lq-fine-tuning"
    LQ_SDE = "lq-sde"
    OSCILLATOR = "oscillator"
    LINEAR_QUADRATIC = "linear-quadratic"

    # a one-dimensional density and a reward, solved by quadrature
    GAUSSIAN_QUADRATIC = "gaussian-quadratic"
    GAUSSIAN_SINE = "gaussian-sine"
    MIXTURE_HUBER = "mixture-huber"
    MIXTURE = "mixture"

    # of arXiv 2603.20455v2
    BSDE_LINEAR = "bsde-linear"
    BSDE_MIXTURE = "bsde-mixture"
    BSDE_PENDULUM = "bsde-pendulum"

    # of arXiv 2312.02027
    OU_QUADRATIC_EASY = "ou-quadratic-easy"
    OU_QUADRATIC_HARD = "ou-quadratic-hard"
    OU_LINEAR = "ou-linear"
    DOUBLE_WELL = "double-well"

    # guidance of data in a subspace, of Gaussian latents and on a sphere
    F1_OFF = "f1 off"
    F1_ON = "f1 on"
    F2_ONES = "f2 ones"
    F2_RANDOM = "f2 random"
    SUBSPACE = "subspace"
    ISOTROPIC = "isotropic"
    ANISOTROPIC = "anisotropic"
    SPHERE = "sphere"

    # the chain of a flow model, and a bounded reward
    FLOW_GAUSSIAN = "flow-gaussian"
    FLOW_OVERLAPPING = "flow-overlapping"
    FLOW_SEPARATED = "flow-separated"

    # the chain of a flow model, Gaussian data and a quadratic reward
    FLOW_LINEAR = "flow-linear"
    FLOW_QUADRATIC = "flow-quadratic"
    FLOW_CENTRED = "flow-centred"
    FLOW_RANDOM = "flow-random"
