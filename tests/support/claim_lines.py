"""Lines of claims as checks leave them, made without running any."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable

from socft.report.claim_records import ClaimLine, Claims
from verify.support import readme, topics
from verify.support.claims import Claim, Kind

STATED = {claim.name: claim for claim in readme.claims()}
NAMES = list(STATED)


def record(name: str, check: Callable[[Claim], object], kind: Kind = "tight") -> dict:
    """What is recorded of a claim that was checked this way."""
    stated = STATED.get(name)
    title, topic = (stated.title, stated.topic) if stated else ("Brand new", topics.OTHER)
    made = Claim(name, title, topic, stated.statement if stated else "$1 = 1$", "here", kind)
    try:
        check(made)
    except AssertionError:
        assert made.tally.failure is not None
    return made.record(made.take())


def line(name: str, check: Callable[[Claim], object], kind: Kind = "tight") -> ClaimLine:
    return ClaimLine.of(json.loads(json.dumps(record(name, check, kind))))


def everything(made: Claim) -> None:
    """Checks of every kind."""
    made.holds(0.05, 1.0, {"n": 1}, sharp=0.25)
    made.holds(0.04, 1.0, {"n": 2}, sharp=0.125, part="(15)")
    made.attained(0.995, 1.0, {"n": 3})
    made.breaks(3.0, 2.0, {"n": 4}, part="condition on $beta$")
    made.finding("$K = sqrt(2/π)$ is not enough", {"n": 5})


@functools.cache
def synthetic_claims() -> Claims:
    """All claims, verified."""
    return Claims({name: line(name, everything) for name in NAMES})
