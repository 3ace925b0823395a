"""Does a sampler do what its formulas say? Identities that hold for every correct one.

A `Sampler` says which parts a foreign sampler has: a step, a mean, a standard deviation, a log
probability, a KL divergence, a likelihood ratio, or a subset of these. `conform` runs every
identity of which the parts are there, on models whose answers are exact, and gives an
`IdentityVerdict` for each: the identity, what was measured and what was expected, and the likely
mistake. From the command line ``socft conform MODULE:NAME``, and in the tests of another project

.. code-block:: python

    from socft.conform import assert_conforms

    def test_my_sampler():
        assert_conforms(my_sampler)

or ``pytest -p socft.conform.plugin --conform MODULE:NAME``, with a test per identity.
"""

from socft.conform.identities import IDENTITIES, Identity, IdentityVerdict, assert_conforms, conform
from socft.conform.sampler import Sampler, of_step, of_tuple

__all__ = [
    "IDENTITIES",
    "Identity",
    "IdentityVerdict",
    "Sampler",
    "assert_conforms",
    "conform",
    "of_step",
    "of_tuple",
]
