"""The scores of a noised law as a pre-trained model: what a schedule makes a chain of."""

from __future__ import annotations

import functools

from socft.checks import Numbers, numbers, require, require_kind
from socft.density.base import Density, require_level
from socft.density.constants import ScoreConstants, noised_variance
from socft.density.mixture import Gaussian
from socft.readable import Readable
from socft.reference import (
    AffineReference,
    ScalarDiffusion,
    ScoreReference,
    SpectralMaps,
    States,
    Step,
    at_step,
)
from socft.schedule import Schedule


class NoisedScore(Readable):
    """``(k, x) -> score of the density noised to abar[k]``, k one level or one per sample.

    Twice differentiable in ``x``; keeps its dtype and device. Nothing is stored per level.

    Args:
        density: the data law.
        abar: signal levels in [0, 1], shape (T,); below 1 if the law is singular.
    """

    def __init__(self, density: Density, abar: Numbers):
        require_kind(density, Density, "the data law", "give a Density, such as Gaussian(0, 1).")
        self.density = density
        self.abar = numbers(abar, "abar", ("steps",))
        require(len(self.abar) > 0, "abar has shape (0,); give at least one level.")
        for end in (float(self.abar.min()), float(self.abar.max())):
            require_level(end)
        require(
            density.regular or float(self.abar.max()) < 1,
            "the law is singular and a level is 1, where there is no score; end the levels"
            " below 1.",
        )

    def __call__(self, k: Step, x: States) -> States:
        return self.density.noised_score(at_step(self.abar, k, self.abar), x)

    @functools.cached_property
    def constants(self) -> ScoreConstants:
        """Lipschitz constants of every level, shape (T,)."""
        return self.density.noised_constants(self.abar)


def score_reference(density: Density, schedule: Schedule) -> ScoreReference:
    """The pre-trained chain of a schedule with the exact scores of ``density``; its score is a
    `NoisedScore`.

    >>> score_reference(Gaussian(0.0, 0.5), ddpm([0.1, 0.5, 1.0]))
    ScoreReference(
        steps=2,
        dims=(1,),
        schedule=Schedule(abar=[0.1, 0.5, 1], score_weight=[0.8, 0.5], sigma=[0.894427, 0.707107]),
        score=NoisedScore(density=Gaussian(mean=[0], cov=[[0.5]]), abar=[0.1, 0.5]),
    )
    """
    require_kind(schedule, Schedule, "the schedule", "give a Schedule, such as ddpm(levels).")
    return ScoreReference(schedule, NoisedScore(density, schedule.abar[:-1]), density.dims)


def affine_reference(gaussian: Gaussian, schedule: Schedule) -> AffineReference:
    r"""The same chain for a Gaussian as an affine map, ``m_k(y) = A_k y + b_k``, with A diagonal in
    the eigenbasis of C.

    With ``C_k = abar_k C + (1 - abar_k) I``: ``A_k = (I - g_k C_k^-1) / sqrt(a_k)`` and
    ``b_k = g_k C_k^-1 sqrt(abar_k) mean / sqrt(a_k)``.

    >>> reference = affine_reference(Gaussian([0.0, 1.0], 0.5), ddpm(linear_levels(50)))
    >>> reference.steps, reference.dims
    (50, (2,))
    """
    require_kind(gaussian, Gaussian, "the law", "give a Gaussian.")
    require_kind(schedule, Schedule, "the schedule", "give a Schedule, such as ddpm(levels).")
    level, root = schedule.abar[:-1, None], schedule.alpha.sqrt()[:, None]
    basis = gaussian.bases[0]
    variance = noised_variance(level, gaussian.spectra)
    pull = schedule.score_weight[:, None] / variance
    offset = (pull / root * level.sqrt() * (gaussian.means @ basis)) @ basis.T
    return AffineReference(
        SpectralMaps(schedule.shrinkage(gaussian.spectra) / root, basis),
        ScalarDiffusion(schedule.sigma),
        offset,
    )
