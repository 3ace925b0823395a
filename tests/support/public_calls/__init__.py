"""A valid call of everything public in `socft` that takes arguments, and what is tried with what
it makes.
"""

from tests.support.public_calls import chains, estimators, flows, methods, theories
from tests.support.public_calls.table import CALLS

__all__ = ["CALLS"]

for each in (chains, estimators, flows, methods, theories):
    each.fill()
