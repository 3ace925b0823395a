"""Transforms of torch.func and the forward mode are noticed, whatever they are nested in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from sd_experiments.model.transforms import is_forward_mode, is_transforming

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

X = torch.ones(3)
Seen = list[tuple[bool, bool]]


def watched(seen: Seen) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        seen.append((is_transforming(), is_forward_mode()))
        return x.square().sum()

    return function


def jvp(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return torch.func.jvp(function, (x,), (x,))[1]


TRANSFORMS: dict[str, tuple[Callable[[Callable[[Tensor], Tensor]], object], bool]] = {
    "grad": (lambda f: torch.func.grad(f)(X), False),
    "vjp": (lambda f: torch.func.vjp(f, X), False),
    "vmap": (lambda f: torch.func.vmap(f)(X), False),
    "vmap of something else": (lambda f: torch.func.vmap(lambda _: f(X))(X), False),
    "jvp": (lambda f: jvp(f, X), True),
    "jvp in grad": (lambda f: torch.func.grad(lambda x: jvp(f, x))(X), True),
    "grad in jvp": (lambda f: jvp(lambda x: torch.func.grad(f)(x).sum(), X), True),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_noticed(name: str):
    apply, forward = TRANSFORMS[name]
    seen: Seen = []
    apply(watched(seen))
    assert set(seen) == {(True, forward)}


def test_autograd_is_no_transform_and_a_dual_level_is_forward_mode():
    seen: Seen = []
    function = watched(seen)
    with torch.no_grad():
        function(X)
    function(X.clone().requires_grad_(True)).backward()
    with torch.inference_mode():
        function(X)
    with forward_ad.dual_level():
        function(X)
    function(X)
    assert seen == [(False, False)] * 3 + [(False, True), (False, False)]
