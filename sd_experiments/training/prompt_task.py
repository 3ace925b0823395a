"""A prompt as a control problem with a policy."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class PromptTask:
    """One prompt.

    Attributes:
        name: the prompt.
        problem: what is maximised.
        policy: the trained layers at work on this prompt.
        labelling: entered while labels are made, to share work.
    """

    name: str
    problem: ControlProblem
    policy: Policy
    labelling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext
