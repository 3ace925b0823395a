"""Samplers by their import paths."""

from __future__ import annotations

from socft.checks import InvalidProblem, described, told
from socft.conform.sampler import Sampler
from socft.study.import_path import import_object


def find_sampler(path: str) -> Sampler:
    """The `Sampler` at ``module:name``, or what that makes when called without arguments.

    Raises:
        InvalidProblem: there is no such object, or it is no sampler.
    """
    found = import_object(path)
    try:
        made = found() if callable(found) and not isinstance(found, Sampler) else found
    except Exception as error:
        raise InvalidProblem(f"{path} raises {told(error)}; mend what makes it.") from error
    if not isinstance(made, Sampler):
        raise InvalidProblem(
            f"{path} is {described(made)}; give a socft.conform.Sampler, or a function that"
            " makes one."
        )
    return made
