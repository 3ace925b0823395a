"""A prompt as a control problem with a policy."""

from __future__ import annotations

import dataclasses

from sd_experiments.training.sharing import NoSharing, Sharing
from socft.policy import Policy
from socft.problem import ControlProblem


@dataclasses.dataclass(frozen=True)
class PromptTask:
    """One prompt.

    Attributes:
        name: the prompt.
        problem: what is maximised.
        policy: the trained layers at work on this prompt.
        sharing: what calls of their network share.
    """

    name: str
    problem: ControlProblem
    policy: Policy
    sharing: Sharing = dataclasses.field(default_factory=NoSharing)
