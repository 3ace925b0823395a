r"""Errors at equal budget, bias and noise together, of estimators whose means are known to agree.

The bias of an estimator is :math:`|\mathrm{mean} - \nabla J|`, and a bias counts whatever its own
noise is. What several estimators share their mean in is known: all whose mean is the gradient, and
the lean costates that differ by a martingale, whose conditional mean is zero. Their common bias is
the one measured by the quietest of them, so that none gains by being noisy.

Records of the study ``variance`` without a record of their repetitions left out of an error the
bias that was below `SEEN` of its standard errors; it is put back here.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping

from socft.estimators.catalogue import CATALOGUE
from socft.estimators.estimand import Kind
from socft.records import Record
from socft.report.rows import Rows
from socft.study.vocabulary import schemas
from socft.study.vocabulary.methods import MethodName
from socft.study.vocabulary.metrics import Metric

SEEN = 4.0
LEAN = (MethodName.ADJOINT_MATCHING, MethodName.LEAN_STICKING_THE_LANDING)
"""What a martingale does not change, and names that begin with it."""
MARTINGALE = "martingale, "


def family(record: Record) -> str:
    """Whose mean an estimator shares: a name that is its own where it shares none."""
    if record.kind == Kind.OBJECTIVE_GRADIENT:
        return "gradient"
    name = record.estimator
    lean = name.startswith((MARTINGALE, *LEAN)) and record.kind == Kind.FIXED_POINT_RESIDUAL
    return "lean" if lean and name in CATALOGUE else name


def noise(error: Record, bias: Record, whole: bool) -> float:
    """The part of an error that is not bias.

    Args:
        whole: whether the error has the bias in it, whatever its noise.
    """
    counted = whole or (bias.stderr is not None and bias.value > SEEN * bias.stderr)
    return math.sqrt(max(error.value**2 - bias.value**2, 0.0)) if counted else error.value


def with_bias(rows: Rows) -> Rows:
    """The records, with the shared bias in place of an estimator's own, and in its error."""
    shared = quietest(rows)
    whole = {_whose(record) for record in rows if record.metric == Metric.REPETITIONS}
    known = {_key(record): record for record in rows if record.metric == Metric.BIAS}
    kept: list[Record] = []
    for record in rows:
        bias = known.get(_key(record))
        if record.study == schemas.VARIANCE.name and bias is not None:
            common = shared[_place(bias)]
            if record.metric == Metric.BIAS:
                record = dataclasses.replace(record, value=common.value, stderr=common.stderr)
            elif record.metric == Metric.ERROR_AT_BUDGET and math.isfinite(record.value):
                apart = noise(record, bias, _whose(record) in whole)
                record = dataclasses.replace(record, value=math.hypot(common.value, apart))
        kept.append(record)
    return dataclasses.replace(rows, records=tuple(kept))


def behind(rows: Rows, error: Record) -> tuple[Record, ...]:
    """The records that an error with its bias is made of."""
    mine = [
        record
        for record in rows
        if record.metric in (Metric.BIAS, Metric.REPETITIONS) and _whose(record) == _whose(error)
    ]
    bias = next((r for r in mine if r.metric == Metric.BIAS and _key(r) == _key(error)), None)
    if bias is None:
        return (error,)
    repeated = [record for record in mine if record.metric == Metric.REPETITIONS][:1]
    return (error, bias, quietest(rows)[_place(bias)], *repeated)


def quietest(rows: Rows) -> Mapping[tuple[str, str, str], Record]:
    """The bias that counts for a family in a situation."""
    found: dict[tuple[str, str, str], Record] = {}
    for record in rows:
        if record.study == schemas.VARIANCE.name and record.metric == Metric.BIAS:
            best = found.setdefault(_place(record), record)
            if _noise(record) < _noise(best):
                found[_place(record)] = record
    return found


def situation(record: Record) -> str:
    """What is the same for all estimators that are compared, as text."""
    return json.dumps(
        {key: each for key, each in record.setting.items() if key in ABOUT}, sort_keys=True
    )


ABOUT = ("axis", "scale", "d", "steps", "horizon", "noise", "dt", "beta")
"""Settings that make a situation."""


def _place(record: Record) -> tuple[str, str, str]:
    return record.problem, situation(record), family(record)


def _key(record: Record) -> tuple[str, str, str]:
    return record.problem, situation(record), record.estimator


def _whose(record: Record) -> tuple[str, str]:
    return record.problem, record.estimator


def _noise(record: Record) -> float:
    return math.inf if record.stderr is None else record.stderr
