r"""One expectation is the same under every policy, whatever it does: an identity that tests a
sampler, a likelihood and a cost at once.

Setting: constant beta; along a path of the policy v, with the noise :math:`\xi_k` of each step,
:math:`W = r(x_T)/\beta - \sum_k (|v_k|^2/2 + v_k \cdot \xi_k)`, less the sum of running costs over
beta where there are any.

Statement: $bb(E)_v e^W = bb(E)_0 e^(r\/β) = Z$ for every policy $v$, with $W = r(x_T)\/β − sum_k
(|v_k|^2\/2 + v_k · ξ_k)$

The sum is the logarithmic density of the path's law with respect to the pre-trained one, so
:math:`e^W dP^v = e^{r/\beta} dP^0`: no limit of small steps, no optimality, no regularity. It is
the identity of Jarzynski (1997) for the chain, with -W as work.

Kind: equality.

Source: derived here for the chain; Jarzynski 1997, for diffusions arXiv 2312.02027.

How it is measured: affine chains and policies in up to 4 dimensions, where W is a quadratic form of
the noise and both sides are determinants; a chain with two modes and running costs under a bent
policy by simulation through the library's own likelihoods, against Z by quadrature.

What would refute it: two sides that differ by more than `ROUNDING` or 4 standard errors.
"""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from socft.path import Noise, rollout
from socft.path_measure import work_functional
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl, Form, reward_form, square
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.nonlinear_chains.problems import MIXTURE
from verify.support.quadratics import PLANE_QUADRATIC
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Jarzynski's identity", topics.PATH_LAWS)
ROUNDING = 1e-9
"""Of log Z, relative to 1 + |log Z|: determinants of up to fifty dimensions."""
PATHS, STDERRS, RESOLUTION = 20000, 4.0, 0.02
SEEDS = st.integers(0, 10**6)


def drawn(chain: AffineChain, seed: int, size: float) -> AffineControl:
    """A random affine control."""
    generator = torch.Generator().manual_seed(seed)
    K, o = (
        size * torch.randn(each.shape, generator=generator, dtype=torch.float64)
        for each in (chain.none.K, chain.none.o)
    )
    return AffineControl(K, o)


def likelihood(chain: AffineChain, control: AffineControl) -> list[Form]:
    """``|v_k|^2 / 2 + v_k . xi_k`` of every step, as forms of the path's noise."""
    S, s = chain.noises(control)
    free, none = chain.noises(chain.none)
    pairs = zip(zip(S, s, strict=True), zip(free, none, strict=True), strict=True)
    return [square(*own).plus(square(*noise), -1.0) for own, noise in pairs]


def work(chain: AffineChain, control: AffineControl) -> Form:
    """W."""
    total = reward_form(chain, control)
    found = total.plus(total, 1 / float(chain.beta[0]) - 1)
    for each in likelihood(chain, control):
        found = found.plus(each, -1.0)
    return found


def chain_of(instance: QuadraticInstance) -> AffineChain:
    """With the largest of its weights at every step."""
    return AffineChain.of(instance.problem(float(instance.beta().max())))


def without_noise(chain: AffineChain, control: AffineControl) -> Form:
    """W without the term ``v . xi``."""
    S, s = chain.paths(control)
    v = control.K @ S[:-1], (control.K @ s[:-1].unsqueeze(2)).squeeze(2) + control.o
    total = reward_form(chain, control)
    found = total.plus(total, 1 / float(chain.beta[0]) - 1)
    for each in zip(*v, strict=True):
        found = found.plus(square(*each), -1.0)
    return found


@settings(max_examples=40)
@given(quadratic_instances(steps=8, dims=4), SEEDS, numbers(0, 1))
def test_holds(instance: QuadraticInstance, seed: int, size: float) -> None:
    """For random affine policies."""
    chain = chain_of(instance)
    log_Z = work(chain, chain.none).log_mean_exp()
    found = work(chain, drawn(chain, seed, size)).log_mean_exp()
    where = instance.describe() | {"policy": seed, "size": size}
    if math.isinf(log_Z):
        CLAIM.holds(0.0 if math.isinf(found) else 1.0, 0.0, where, part="infinite Z")
        return
    CLAIM.equals((found - log_Z) / (1 + abs(log_Z)), 0.0, where, ROUNDING, "affine policies")


def test_holds_for_a_bent_policy() -> None:
    """Two modes, running costs; the library's own likelihoods."""
    problem, truth = MIXTURE.problem, MIXTURE.truth
    x, beta = truth.grid.nodes, float(problem.beta[0])
    tilt = (problem.reward(x) / beta).exp()
    for k in reversed(range(problem.steps)):
        tilt = truth.kernel(k, torch.zeros_like(x))[0] @ tilt * (-problem.cost(k, x) / beta).exp()
    start = torch.exp(-x[:, 0].square() / 2)
    Z = float(start / start.sum() @ tilt)
    for name, policy in (("optimum", MIXTURE.optimum), ("far from it", MIXTURE.away)):
        noise = Noise.sample(problem.reference, PATHS, torch.Generator().manual_seed(1))
        with torch.no_grad():
            path = rollout(problem.reference, policy, noise)
            weight = (-work_functional(problem, path.controls, path) / beta).exp() / Z
        stderr = float(weight.std()) / PATHS**0.5
        where = MIXTURE.describe() | {"policy": name, "paths": PATHS, "stderr": stderr}
        CLAIM.equals((float(weight.mean()) - 1) / stderr, 0.0, where, STDERRS, f"mixture, {name}")
        CLAIM.equals(stderr, 0.0, where, RESOLUTION, "standard error")


def _off(chain: AffineChain, form: Form) -> float:
    log_Z = work(chain, chain.none).log_mean_exp()
    return abs(form.log_mean_exp() - log_Z) / (1 + abs(log_Z))


def test_needs_the_noise_of_the_steps() -> None:
    """Without ``v . xi`` it is the return, whose exponential depends on the policy."""
    chain = chain_of(PLANE_QUADRATIC)
    control = drawn(chain, 3, 0.3)
    CLAIM.breaks(_off(chain, without_noise(chain, control)), 0.01, PLANE_QUADRATIC, "$v · ξ$")


def test_needs_sums_over_coordinates() -> None:
    """A likelihood that is a mean over the d coordinates is a d-th root."""
    chain = chain_of(PLANE_QUADRATIC)
    control = drawn(chain, 3, 0.3)
    form = work(chain, control)
    for each in likelihood(chain, control):
        form = form.plus(each, 1 - 1 / PLANE_QUADRATIC.dim)
    CLAIM.breaks(_off(chain, form), 0.01, PLANE_QUADRATIC, "sums over coordinates")


def test_needs_one_beta() -> None:
    """With a price per step the exponential is of no density."""
    chain = chain_of(PLANE_QUADRATIC)
    control = drawn(chain, 3, 0.3)
    prices: Tensor = torch.linspace(0.5, 1.5, chain.steps, dtype=torch.float64)
    form = work(chain, control)
    for each, price in zip(likelihood(chain, control), prices.tolist(), strict=True):
        form = form.plus(each, 1 - price)
    where = PLANE_QUADRATIC.describe() | {"prices": prices.tolist()}
    CLAIM.breaks(_off(chain, form), 0.01, where, "constant $β$")
