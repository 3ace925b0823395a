"""Estimators from a distance between path measures."""

from __future__ import annotations

import functools

from socft.estimators.catalogue import factories
from socft.estimators.catalogue.rows import FULL, LEAN, VALUES, Anywhere, EstimatorRow, Group
from socft.estimators.cross_entropy import CrossEntropy
from socft.estimators.log_variance import LogVariance
from socft.estimators.moment import Moment
from socft.estimators.relative_entropy import RelativeEntropy
from socft.estimators.socm import SOCM
from socft.estimators.socm_adjoint import SOCMAdjoint
from socft.estimators.variance import Variance
from socft.study.vocabulary.methods import MethodName

ROWS: tuple[EstimatorRow, ...] = (
    EstimatorRow(
        MethodName.RELATIVE_ENTROPY,
        Anywhere(RelativeEntropy),
        RelativeEntropy,
        Group.PATH_MEASURE,
        FULL,
    ),
    EstimatorRow(
        MethodName.LOG_VARIANCE,
        Anywhere(LogVariance),
        LogVariance,
        Group.PATH_MEASURE,
        "$v_k - (R - macron(R)) thin xi_k\\/beta_k$",
    ),
    EstimatorRow(
        MethodName.MOMENT,
        factories.moment,
        Moment,
        Group.PATH_MEASURE,
        "$v_k - (R + y_0) thin xi_k\\/beta_k$, $y_0$ learnt",
        fitted=VALUES,
    ),
    EstimatorRow(
        MethodName.VARIANCE,
        Anywhere(Variance),
        Variance,
        Group.PATH_MEASURE,
        "$v_k + rho thin (rho - 1) thin xi_k$, $rho prop e^(-R\\/beta)$",
    ),
    EstimatorRow(
        MethodName.CROSS_ENTROPY,
        Anywhere(CrossEntropy),
        CrossEntropy,
        Group.PATH_MEASURE,
        "$z_k$, weight $w$",
    ),
    EstimatorRow(
        MethodName.SOCM,
        Anywhere(functools.partial(SOCM, degree=1)),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$, weight $w$",
    ),
    EstimatorRow(
        MethodName.SOCM_IDENTITY,
        Anywhere(SOCM),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$ with $M = I$, weight $w$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.SOCM_DEGREE_2,
        Anywhere(functools.partial(SOCM, degree=2)),
        SOCM,
        Group.PATH_MEASURE,
        "$B_k^top S_k$, $M$ of degree 2, weight $w$",
        compared=False,
    ),
    EstimatorRow(
        MethodName.SOCM_ADJOINT,
        Anywhere(SOCMAdjoint),
        SOCMAdjoint,
        Group.PATH_MEASURE,
        LEAN + ", weight $w$",
    ),
)
