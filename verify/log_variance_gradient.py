r"""The gradient of the variance of log-ratios, with the samples held fixed, is the gradient of the
divergence.

Setting: laws :math:`q_\theta` and :math:`\pi` with one support, :math:`\log w = \log \pi - \log
q_\theta`, a sampling law q; for policies :math:`q_\theta = P_v`, :math:`\pi = P^* = e^{r/\beta}
P_0/Z`.

Statement: $∇_θ op("Var")_q (log w)\/2 = −op("Cov")_q (log w, ∇_θ log q_θ)$ is $∇_θ op("KL")(q_θ
∥ π)$ where $q = q_θ$, held fixed; for policies it is $−∇J\/β$; and where $q_θ = π$ the second
derivatives of both are Fisher's information, for the variance under whatever $q$

*Proof.* :math:`\nabla_\theta \mathrm{KL} = E_{q_\theta}[(\log q_\theta - \log \pi) \nabla \log
q_\theta]`, from which the mean of :math:`\log w` may be taken, as :math:`E_{q_\theta} \nabla \log
q_\theta = 0`. Where :math:`\log w` is constant the second derivative of half the variance is
:math:`\mathrm{Var}_q(\nabla \log q_\theta)`, and Fisher's under q. A law that moves with theta adds
:math:`E[(\log w - E \log w)^2\, \nabla \log q_\theta]/2`, of second order near pi. For policies
:math:`\mathrm{KL}(P_v \,\|\, P^*) = \log Z - J(v)/\beta`.

Kind: equality.

Source: derived here; the variance is that of arXiv 2005.05409 and, as a policy optimisation, of
arXiv 2602.12229.

How it is measured: exponential families on a grid by automatic differentiation; affine policies in
up to 3 dimensions, where log-ratios are quadratic forms of the sampling policy's noise with
variances in closed form, against the gradient of J in closed form.

What would refute it: two gradients that differ by more than `ROUNDING`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import given, settings
from torch import Tensor

from socft.density import GaussianMixture
from socft.truth.affine_policy import affine_gradient
from verify.endpoint_covariance import mixtures
from verify.jarzynski import SEEDS, chain_of, drawn
from verify.support import topics
from verify.support.affine_chains import AffineChain, AffineControl, Form, reward_form, square
from verify.support.claims import Claim
from verify.support.instances import QuadraticInstance
from verify.support.quadratics import PLANE_QUADRATIC
from verify.support.strategies import numbers, quadratic_instances

CLAIM = Claim.of_module(__name__, __doc__, "Variance of log-ratios", topics.PATH_LAWS)
GRID = torch.linspace(-8, 8, 401, dtype=torch.float64)
FEATURES = torch.stack([GRID, torch.sin(2 * GRID), torch.tanh(GRID)])
ROUNDING = 1e-10
"""Relative to one and the size of what is compared."""
LARGE = 1e-2


def family(law: GaussianMixture, theta: Tensor) -> Tensor:
    """``log(p e^(theta . f) / Z)`` on the grid."""
    return torch.log_softmax(law.log_prob(GRID[:, None]) + theta @ FEATURES, 0)


def half_variance(log_ratio: Tensor, law: Tensor) -> Tensor:
    """Half the variance under masses of the grid."""
    return law @ (log_ratio - law @ log_ratio).square() / 2


def hessian(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Second derivatives."""
    found = torch.autograd.functional.hessian(function, at)
    assert isinstance(found, Tensor)
    return found


def slope(function: Tensor, *at: Tensor) -> Tensor:
    """The gradient, flattened."""
    return torch.cat([each.flatten() for each in torch.autograd.grad(function, at)])


def size(each: Tensor) -> float:
    """The largest entry."""
    return float(each.abs().max())


def theta_of(*values: float) -> Tensor:
    """Coefficients that are differentiated."""
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


@settings(max_examples=40)
@given(mixtures(), mixtures(), numbers(-1, 1), numbers(-1, 1), numbers(-1, 1))
def test_holds(
    law: GaussianMixture, other: GaussianMixture, first: float, second: float, third: float
) -> None:
    """Between members of a family and laws outside it."""
    theta, pi = theta_of(first, second, third), family(other, theta_of(0, 0, 0)).detach()
    log_q = family(law, theta)
    variance = slope(half_variance(pi - log_q, log_q.detach().exp()), theta)
    log_q = family(law, theta)
    divergence = slope((log_q.exp() * (log_q - pi)).sum(), theta)
    where = {"theta": [first, second, third]}
    gap = (variance - divergence) / (1 + size(divergence))
    CLAIM.equals(gap, 0 * gap, where, ROUNDING, "families")


@settings(max_examples=20)
@given(mixtures(), mixtures(), numbers(-1, 1), numbers(-1, 1))
def test_second_derivatives_are_fishers(
    law: GaussianMixture, sampler: GaussianMixture, first: float, second: float
) -> None:
    """At pi, of the variance under another law too."""
    at = theta_of(first, second, 0.2).detach()
    pi = family(law, at)

    def variance(theta: Tensor, log_law: Tensor = pi) -> Tensor:
        return half_variance(pi - family(law, theta), log_law.exp())

    def divergence(theta: Tensor) -> Tensor:
        log_q = family(law, theta)
        return (log_q.exp() * (log_q - pi)).sum()

    elsewhere = family(sampler, 0 * at)
    where = {"theta": at.tolist()}
    for name, function, weights in (
        ("variance", variance, pi),
        ("divergence", divergence, pi),
        ("variance, other samples", lambda theta: variance(theta, elsewhere), elsewhere),
    ):
        found = hessian(function, at)
        centred = FEATURES - (FEATURES @ weights.exp())[:, None]
        fisher = (centred * weights.exp()) @ centred.T
        CLAIM.equals(found - fisher, 0 * fisher, where, ROUNDING, f"second derivative: {name}")


def log_ratio(chain: AffineChain, control: AffineControl, sampler: AffineControl) -> Form:
    """``log(dP* / dP_v)`` up to a constant, in the noise of a sampling policy's paths."""
    S, s = chain.paths(sampler)
    noises = chain.noises(sampler)
    total = reward_form(chain, sampler)
    found = total.plus(total, 1 / float(chain.beta[0]) - 1)
    for k in range(chain.steps):
        free = noises[0][k], noises[1][k]
        v = control.K[k] @ S[k], control.K[k] @ s[k] + control.o[k]
        found = found.plus(square(*free), -1.0).plus(square(free[0] - v[0], free[1] - v[1]))
    return found


def half_variance_of(form: Form) -> Tensor:
    """``tr(H^2) / 4 + |g|^2 / 2``."""
    return form.H.square().sum() / 4 + form.g.square().sum() / 2


def both(
    chain: AffineChain, control: AffineControl, sampler: AffineControl | None = None
) -> tuple[Tensor, Tensor]:
    """The gradient of half the variance, on paths of a policy that is held fixed or, where none is
    given, of the moving one, and that of ``-J / beta``.
    """
    K, o = (each.clone().requires_grad_(True) for each in (control.K, control.o))
    moving = AffineControl(K, o)
    form = log_ratio(chain, moving, moving if sampler is None else sampler)
    exact = affine_gradient(chain.problem, chain.policy(control))
    wanted = torch.cat([exact.gain.flatten(), exact.offset.flatten()])
    return slope(half_variance_of(form), K, o), -wanted / chain.beta[0]


@settings(max_examples=25)
@given(quadratic_instances(steps=5, dims=3), SEEDS, numbers(0, 1))
def test_holds_for_policies(instance: QuadraticInstance, seed: int, scale: float) -> None:
    """On their own paths."""
    chain = chain_of(instance)
    control = drawn(chain, seed, scale)
    found, expected = both(chain, control, control)
    where = instance.describe() | {"policy": seed, "size": scale}
    gap = (found - expected) / (1 + size(expected))
    CLAIM.equals(gap, 0 * gap, where, ROUNDING, "policies")


def test_needs_samples_that_are_held_fixed() -> None:
    """The derivative of the variance under its own moving law is another one."""
    chain = chain_of(PLANE_QUADRATIC)
    found, expected = both(chain, drawn(chain, 3, 0.3))
    CLAIM.breaks(size(found - expected), LARGE * size(expected), PLANE_QUADRATIC, "$q$ held fixed")


def test_needs_samples_of_the_law_itself() -> None:
    """Another policy's paths give another gradient, and a zero that is not at the optimum: a chain
    moves means only, so that no policy has ``P_v = P*``.
    """
    chain = chain_of(PLANE_QUADRATIC)
    control, sampler = drawn(chain, 3, 0.3), drawn(chain, 4, 0.3)
    found, expected = both(chain, control, sampler)
    CLAIM.breaks(size(found - expected), LARGE * size(expected), PLANE_QUADRATIC, "$q = q_θ$")
    found, expected = both(chain, chain.optimum, sampler)
    CLAIM.equals(size(expected), 0.0, PLANE_QUADRATIC, ROUNDING, "zero at the optimum")
    CLAIM.breaks(size(found), LARGE, PLANE_QUADRATIC, "$π$ among the laws")


def test_needs_the_target_for_equal_curvature() -> None:
    """Away from pi the two second derivatives differ."""
    law, at = GaussianMixture([0.7, 0.3], [-1.0, 1.0], 0.4), theta_of(0.8, 0.3, -0.5).detach()
    pi, now = family(law, 0 * at), family(law, at).exp()

    def divergence(theta: Tensor) -> Tensor:
        log_q = family(law, theta)
        return (log_q.exp() * (log_q - pi)).sum()

    curvatures = [
        hessian(function, at)
        for function in (lambda theta: half_variance(pi - family(law, theta), now), divergence)
    ]
    apart = size(torch.stack(curvatures).diff(dim=0))
    CLAIM.breaks(apart, LARGE, {"theta": at.tolist()}, "$q_θ = π$")
