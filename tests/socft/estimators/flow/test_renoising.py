"""Re-noised samples and the controls that go by them, on chains of a score and of a flow."""

from __future__ import annotations

import pytest
import torch

from socft.density import GaussianMixture, score_reference
from socft.estimators.estimand import EquationResidual, FixedPointEquation, Kind
from socft.estimators.flow.ram import RAM
from socft.estimators.flow.renoising import renoise
from socft.flow import Trigonometric, flow_reference, flow_sde, precise, uniform_times
from socft.policy import Uncontrolled
from socft.problem import ControlProblem
from socft.reference import DenoisingReference
from socft.reward import Sine
from socft.schedule import ddim
from tests.support.tensors import F64, generator, randn

LAW = GaussianMixture([0.7, 0.3], [-1.5, 1.5], [0.16, 0.4])
CHAINS: dict[str, DenoisingReference] = {
    "score": score_reference(LAW, ddim([1e-3, 0.2, 0.5, 0.9, 0.999], 0.8)),
    "flow": flow_reference(LAW, flow_sde(uniform_times(4), 0.7)),
    "trigonometric": flow_reference(LAW, precise(uniform_times(4, 0.1), 0.7, Trigonometric())),
}
EACH = torch.tensor([0, 3, 1, 2, 3, 0])


@pytest.mark.parametrize("name", CHAINS)
def test_the_control_to_an_endpoint_is_the_inverse_of_the_endpoint(name: str):
    """At one step and at one per sample; from pure noise, too."""
    chain, x, endpoint = CHAINS[name], randn(0, 6, 1), randn(1, 6, 1)
    for k in (*range(chain.steps), EACH):
        v = chain.control_to(k, x, endpoint)
        torch.testing.assert_close(chain.endpoint_of(k, x, v), endpoint, rtol=0, atol=1e-11)
        torch.testing.assert_close(
            chain.control_to(k, x, chain.endpoint_of(k, x, endpoint)), endpoint, rtol=0, atol=1e-11
        )


@pytest.mark.parametrize("name", CHAINS)
def test_units_are_slopes_in_the_control(name: str):
    """Of the endpoint by differences, and of the velocity of a pair by what it says of the pair."""
    chain, x, v = CHAINS[name], randn(0, 6, 1), randn(1, 6, 1)
    for k in (*range(chain.steps), EACH):
        slope = chain.endpoint_of(k, x, v + 1) - chain.endpoint_of(k, x, v)
        unit = chain.endpoint_unit(k, x).expand_as(slope)
        torch.testing.assert_close(unit, slope, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_regression_on_the_control_is_regression_on_the_velocity(name: str):
    """``u - y`` is the velocity unit times the control less the one to the sample."""
    chain, x0, noise, v = CHAINS[name], randn(0, 6, 1), randn(1, 6, 1), randn(2, 6, 1)
    one, zero = torch.ones(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    for k in range(chain.steps):
        x = chain.renoise(k, x0, noise)
        a, s = chain.renoise(k, one, zero), chain.renoise(k, zero, one)
        endpoint = chain.endpoint_of(k, x, v)
        estimate = (x - a * endpoint) / s
        if name == "trigonometric":  # a' = -s pi / 2 and s' = a pi / 2
            found = (a * (estimate - noise) - s * (endpoint - x0)) * torch.pi / 2
        else:
            found = (estimate - noise) - (endpoint - x0)
        unit = chain.velocity_unit(k, x)
        torch.testing.assert_close(
            unit * (v - chain.control_to(k, x, x0)), found, rtol=1e-9, atol=1e-10
        )


def test_pure_noise_is_renoised_to_itself():
    chain, noise = CHAINS["flow"], randn(0, 6, 1)
    assert torch.equal(chain.renoise(0, 1e3 * randn(1, 6, 1), noise), noise)
    assert chain.control_to(0, noise, randn(1, 6, 1)).isfinite().all()


@pytest.mark.parametrize("name", CHAINS)
def test_last_states_are_noised_as_their_chain_would(name: str):
    """The noise left in them counts: at the levels of the chain their marginals, and of endpoints
    the mean given the state, in the covariance of both, which is that of data and noise.
    """
    chain, count = CHAINS[name], 200_000
    problem = ControlProblem(chain, Sine(), 0.7)
    signal, level = chain.signal_and_noise
    data = 1.5 * randn(0, count, 1)
    last = signal[-1] * data + level[-1] * randn(1, count, 1)
    made = renoise(problem, last, randn(2, chain.steps, count, 1))
    for k in range(chain.steps):
        x = made.states[k]
        endpoint = chain.endpoint_of(k, x, made.controls[k]) if float(signal[k]) else data
        moments = (
            (x.square(), 2.25 * signal[k] ** 2 + level[k] ** 2),
            (x * endpoint, 2.25 * signal[k]),
        )
        for found, expected in moments:
            stderr = float(found.std()) / count**0.5
            assert abs(float(found.mean() - expected)) < 4 * stderr
            assert stderr < 0.02


def test_samples_have_noise_of_their_own_at_every_level():
    chain = CHAINS["flow"]
    problem, x0 = ControlProblem(chain, Sine(), 0.7), randn(0, 500, 1)
    labels = RAM(generator(0)).label_samples(problem, Uncontrolled(chain), x0)
    signal, level = (each[:-1, None, None] for each in chain.signal_and_noise)
    noises = ((labels.states - signal * x0) / level).squeeze(2)
    moments = noises @ noises.T / 500
    assert float((moments - torch.eye(4, dtype=F64)).abs().max()) < 4 * (2 / 500) ** 0.5
    again = RAM(generator(0)).label_samples(problem, Uncontrolled(chain), x0)
    assert torch.equal(labels.states, again.states)


def test_the_tilt_alone_is_the_optimum_up_to_the_step():
    kinds = {each: EquationResidual(each).kind for each in FixedPointEquation}
    assert kinds.pop(FixedPointEquation.TILT) is Kind.APPROXIMATE_RESIDUAL
    assert set(kinds.values()) == {Kind.BIASED}
