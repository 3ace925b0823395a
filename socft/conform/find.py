"""Samplers by their import paths."""

from __future__ import annotations

from socft.checks import InvalidProblem
from socft.conform.sampler import Sampler
from socft.study.import_path import import_object


def find_sampler(path: str) -> Sampler:
    """The `Sampler` at ``module:name``, or what that makes when called without arguments.

    Raises:
        InvalidProblem: there is no such object, or it is no sampler.
    """
    found = import_object(path)
    made = found() if callable(found) and not isinstance(found, Sampler) else found
    if not isinstance(made, Sampler):
        raise InvalidProblem(
            f"{path} is a {type(made).__name__}; give a socft.conform.Sampler, or a function that"
            " makes one."
        )
    return made
