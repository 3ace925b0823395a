"""Private names of other packages are used where there is no public one, and only there."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.imports import Source, read
from tests.support.private_names import foreign

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sd_experiments", "socft", "tests", "toy", "verify")

ALLOWED = {
    ("sd_experiments.model.denoiser", "_disable_adapters"): (
        "peft's public switch also flips requires_grad"
    ),
    ("toy.measure", "torch.utils._python_dispatch.TorchDispatchMode"): (
        "the only mode that sees what a backward pass makes, documented under this name"
    ),
    ("verify.conftest", "hypothesis.internal.conjecture.providers"): "see the next",
    ("verify.conftest", "hypothesis.internal.constants_ast.Constants"): "see the next",
    ("verify.conftest", "_get_local_constants"): (
        "no setting keeps Hypothesis from trying the constants in sources"
    ),
    ("tests.sd.test_train", "huggingface_hub._tree_cache.TreeCacheEntry"): "see the next",
    ("tests.sd.test_train", "huggingface_hub._tree_cache.write_tree_cache"): (
        "what a download leaves behind, made without a network"
    ),
    ("tests.support.mutation.run", "_pytest.runner.runtestprotocol"): (
        "pytest has no public way to run a test once more"
    ),
}
"""Every use, and why there is no public name for it."""


def source(lines: str) -> Source:
    """A module of ours."""
    return Source("toy.source", Path("source.py"), ast.parse(lines))


@pytest.mark.slow
def test_private_names_of_other_packages_are_those_that_cannot_be_avoided():
    assert foreign(read(ROOT, *PACKAGES), PACKAGES) == set(ALLOWED)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("changed = x._version", "_version"),
        ("torch._C.is_busy()", "_C"),
        ("self._parameters_of_torch", "_parameters_of_torch"),
        ("import torch._dynamo", "torch._dynamo"),
        ("from torch._C import functorch", "torch._C.functorch"),
        ("from torch.optim import _functional", "torch.optim._functional"),
        ("from hypothesis.internal import floats", "hypothesis.internal.floats"),
        ("setattr(layer, '_disabled', True)", "_disabled"),
        ("object.__setattr__(layer, '_disabled', True)", "_disabled"),
        ("mock.patch('torch.nn._module')", "torch.nn._module"),
    ],
)
def test_another_private_name_is_found(line: str, name: str):
    assert foreign([source(line)], PACKAGES) == {("toy.source", name)}


@pytest.mark.parametrize(
    "lines",
    [
        "class Mine:\n    def _mine(self): ...\nMine()._mine()",
        "self._mine = 1\nother._mine",
        "from socft.density.lipschitz import _BOTH",
        "pair._replace(x=1)",
        "x.__dict__",
        "name = f'{metric}' + '_stderr'",
    ],
)
def test_own_and_public_names_are_not_found(lines: str):
    assert foreign([source(lines)], PACKAGES) == set()


def test_a_name_is_own_only_where_its_module_is_imported():
    own = Source("toy.own", Path("own.py"), ast.parse("_version = 1"))
    for lines, found in (
        ("x._version", {("toy.source", "_version")}),
        ("from toy import own\nown._version", set()),
    ):
        assert foreign([own, source(lines)], PACKAGES) == found
