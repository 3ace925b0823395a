"""The identities, each with what it needs, what it compares and which mistakes it finds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from socft.checks import InvalidProblem, told
from socft.conform import likelihoods, meanings, moments
from socft.conform.comparison import Comparison
from socft.conform.sampler import Sampler


@dataclasses.dataclass(frozen=True)
class IdentityVerdict:
    """What came of one identity.

    Attributes:
        identity: its name.
        statement: what must hold.
        passed: None where the sampler lacks a part.
        measured: at the worst step.
        expected: there.
        tolerance: how far from it that may be.
        step: the worst step; -1 where it is no matter of one.
        advice: the likely mistake, or which parts are missing.
        note: what is worth knowing where it holds.
    """

    identity: str
    statement: str
    passed: bool | None
    measured: float = math.nan
    expected: float = math.nan
    tolerance: float = math.nan
    step: int = -1
    advice: str = ""
    note: str = ""

    def __str__(self) -> str:
        head = {True: "holds", False: "FAILS", None: "not run"}[self.passed]
        line = f"{head:8}{self.identity}: {self.statement}"
        if self.passed is None:
            return f"{line} ({self.advice})"
        if math.isnan(self.tolerance):
            return f"{line}. {self.advice}"
        where = f"step {self.step}: " if self.step >= 0 else ""
        numbers = f"{where}{self.measured:.6g}, expected {self.expected:.6g}"
        if self.passed:
            note = f"; {self.note}" if self.note else ""
            return f"{line}; {numbers} within {self.tolerance:.2g}{note}"
        return f"{line}; {numbers}. {self.advice}"


@dataclasses.dataclass(frozen=True)
class Identity:
    """One identity.

    Attributes:
        name: unique.
        statement: what must hold.
        needs: parts of the sampler.
        compare: the comparisons on a sampler that has them.
    """

    name: str
    statement: str
    needs: tuple[str, ...]
    compare: Callable[[Sampler], Iterator[Comparison]]

    def check(self, sampler: Sampler) -> IdentityVerdict:
        """The verdict: of the worst comparison."""
        missing = [part for part in self.needs if getattr(sampler, part) is None]
        if missing:
            return IdentityVerdict(
                self.name, self.statement, None, advice=f"needs {', '.join(missing)}"
            )
        try:
            found = list(self.compare(sampler))
        except Exception as error:  # of the sampler's own code
            return IdentityVerdict(
                self.name, self.statement, False, advice=f"The sampler raises {told(error)}."
            )
        if not found:
            return IdentityVerdict(self.name, self.statement, None, advice="no step has noise")
        worst = max(found, key=lambda each: each.excess)
        return IdentityVerdict(
            self.name,
            self.statement,
            worst.excess <= 1,
            worst.measured,
            worst.expected,
            worst.tolerance,
            worst.step,
            worst.advice,
            next((each.note for each in found if each.note), ""),
        )


def conform(sampler: Sampler) -> list[IdentityVerdict]:
    """The verdict of every identity.

    Raises:
        InvalidProblem: the sampler has parts for no identity.
    """
    verdicts = [identity.check(sampler) for identity in IDENTITIES]
    if all(each.passed is None for each in verdicts):
        needs = "; ".join(f"{each.identity} {each.advice}" for each in verdicts)
        raise InvalidProblem(f"no identity could be run; give the sampler more parts: {needs}.")
    return verdicts


def assert_conforms(sampler: Sampler) -> None:
    """Raise an AssertionError that lists the identities that fail.

    Raises:
        InvalidProblem: the sampler has parts for no identity.
    """
    __tracebackhide__ = True
    verdicts = conform(sampler)
    failed = [str(each) for each in verdicts if each.passed is False]
    assert not failed, "\n".join(["the sampler does not conform:", *failed])


LAW = ("mean", "std")
DENSITY = ("log_prob", *LAW)
IDENTITIES = (
    Identity("affine mean", "the mean is affine in the output", ("mean",), moments.mean_is_affine),
    Identity("constant std", "std depends on the step alone", ("std",), moments.std_is_constant),
    Identity("step", "step = mean + std noise", ("step", *LAW), moments.step_has_the_moments),
    Identity(
        "log density",
        "log_prob = sum over coordinates of log N(x'; mean, std^2)",
        DENSITY,
        likelihoods.log_prob_is_normal,
    ),
    Identity(
        "normalisation", "exp(log_prob) integrates to one", DENSITY, likelihoods.log_prob_integrates
    ),
    Identity(
        "batch",
        "log_prob of a sample does not depend on its batch",
        DENSITY,
        likelihoods.log_prob_is_per_sample,
    ),
    Identity(
        "score",
        "E grad log_prob = 0 and E grad log_prob^2 = -E curvature",
        DENSITY,
        likelihoods.score_identities,
    ),
    Identity(
        "policy gradient",
        "E R grad log_prob is the derivative of the mean reward",
        ("log_prob", "mean", "std"),
        meanings.policy_gradient_holds,
    ),
    Identity(
        "KL divergence",
        "kl = |mean - mean_ref|^2 / (2 std^2), summed, with a gradient",
        ("kl", *LAW),
        likelihoods.kl_is_the_control,
    ),
    Identity("ratio one", "ratio = 1 at the old model", ("ratio", *LAW), likelihoods.ratio_is_one),
    Identity(
        "ratio mean",
        "the ratio averages to one under the old model",
        ("ratio", *LAW),
        likelihoods.ratio_averages_to_one,
    ),
    Identity(
        "whitened control",
        "control = (mean - mean_ref) / std",
        ("control", "mean", "std"),
        meanings.control_is_whitened,
    ),
    Identity(
        "endpoint",
        "the endpoint of x = a x_0 + s eps and its output is x_0, at every level",
        ("endpoint",),
        meanings.endpoints_are_found,
    ),
    Identity(
        "score of outputs",
        "the score of x = a x_0 + s eps and its output is -eps / s",
        ("score",),
        meanings.scores_are_found,
    ),
    Identity(
        "noise level",
        "std^2 = level^2 s^2 |d log(a/s)|, to first order in the step",
        ("noise_level", "std"),
        meanings.noise_level_is_meant,
    ),
    Identity(
        "reward scale",
        "advantages keep order, not shifts, and follow the rewards' unit or none",
        ("advantages",),
        meanings.rewards_are_compared,
    ),
    Identity(
        "marginals",
        "one step keeps the marginals of data at a point, to second order in the step",
        LAW,
        moments.point_masses_keep_marginals,
    ),
    Identity(
        "refinement",
        "the final variance tends to that of the data as steps are halved",
        ("refined",),
        moments.refinement_converges,
    ),
    Identity(
        "same levels",
        "sampler and trainer use the same levels",
        ("training_noise",),
        moments.trainer_has_the_levels,
    ),
    Identity(
        "Jarzynski",
        "E exp W = Z for another model",
        ("step", "log_prob"),
        likelihoods.jarzynski_holds,
    ),
)
