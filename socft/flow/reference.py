"""The chain of a flow model as a pre-trained reference, and remedies for a last step without
noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from socft.checks import called, require, require_callable, require_kind, require_states
from socft.flow.interpolant import NoiseLevel
from socft.flow.schedule import REMEDIES, FlowSchedule
from socft.probing import probe_steps
from socft.reference import DenoisingReference, Noises, ScalarDiffusion, States, Step, at_step
from socft.reward import PerSample, Reward, as_reward

VelocityModel = Callable[[Step, States], States]
"""``(k, x) -> E[a' x_0 + s' eps | x]`` at the time that step k starts from."""


class FlowReference(DenoisingReference):
    """The chain of a flow schedule and a velocity: ``x' = w_k x + J_k u_k(x) + sigma_k xi``.

    It starts at ``N(0, (a_0^2 + s_0^2) I)``, which is pure noise where the first time is 1.

    Args:
        schedule: the kernels; the last must have noise.
        velocity: ``(k, x) -> u_k(x)`` at time ``schedule.times[k]``.
        dims: shape of one state.

    Raises:
        InvalidProblem: the last step has no noise; the message names the three remedies.

    >>> schedule = flow_sde(uniform_times(4), noise_level=0.7)
    >>> reference = flow_reference(Gaussian(1.0, 0.5), schedule)
    >>> reference.mean(0, torch.zeros(1, 1))
    tensor([[0.2500]])
    """

    def __init__(self, schedule: FlowSchedule, velocity: VelocityModel, dims: tuple[int, ...]):
        require_flow_schedule(schedule)
        require(
            not schedule.deterministic_end,
            f"the last step has no noise, so that it cannot be steered at a finite KL; {REMEDIES}.",
        )
        super().__init__(schedule.steps, dims, ScalarDiffusion(schedule.sigma))
        self.schedule = schedule
        self.velocity = velocity
        if type(self) is FlowReference:  # the velocity of a class of its own is not a caller's
            probe_steps(velocity, self.steps, self.initial, self.dims, "the velocity")

    def initial(self, z: States) -> States:
        first = self.schedule.levels
        return z * math.hypot(float(first.signal[0]), float(first.noise[0]))

    def mean(self, k: Step, x: States) -> States:
        return self.mean_of(k, x, self.velocity(k, x))

    def mean_of(self, k: Step, x: States, velocity: States) -> States:
        """The kernel's mean for a velocity, of shape ``batch *dims`` like x."""
        s = self.schedule
        return at_step(s.state_weight, k, x) * x + at_step(s.velocity_weight, k, x) * velocity

    def velocity_of(self, k: Step, x: States, v: Noises) -> States:
        """The fine-tuned velocity of a whitened control, ``u + sigma v / J``."""
        return self.velocity(k, x) + v * self.velocity_unit(k, x)

    def score_of(self, k: Step, x: States, v: Noises) -> States:
        return self._start(k).score(x, self.velocity_of(k, x, v))

    def endpoint_of(self, k: Step, x: States, v: Noises) -> States:
        return self._start(k).endpoint(x, self.velocity_of(k, x, v))

    def control_of(self, k: Step, x: States, velocity: States) -> Noises:
        """The whitened control of a fine-tuned velocity, ``J (u_theta - u) / sigma``; half its
        square is the KL divergence of the kernels.
        """
        return (velocity - self.velocity(k, x)) / self.velocity_unit(k, x)

    @property
    def signal_and_noise(
        self,
    ) -> tuple[Float[Tensor, " steps_plus_1"], Float[Tensor, " steps_plus_1"]]:
        return self.schedule.levels.signal, self.schedule.levels.noise

    def control_to(self, k: Step, x: States, endpoint: States) -> Noises:
        return self.control_of(k, x, self._start(k).velocity_from_endpoint(x, endpoint))

    def endpoint_unit(self, k: Step, x: States) -> Tensor:
        c = self.schedule.starts
        return -at_step(c.noise / c.wronskian, k, x) * self.velocity_unit(k, x)

    def velocity_unit(self, k: Step, x: States) -> Tensor:
        return at_step(self.schedule.sigma / self.schedule.velocity_weight, k, x)

    def log_prob(self, k: Step, x: States, x_next: States, velocity: States) -> PerSample:
        """Log density of a step to ``x_next`` under a velocity, summed over coordinates, shape
        (batch,).
        """
        sigma = at_step(self.schedule.sigma, k, x)
        noise = ((x_next - self.mean_of(k, x, velocity)) / sigma).flatten(1)
        normaliser = noise.shape[1] * (sigma.log() + math.log(2 * math.pi) / 2)
        return -noise.square().sum(1) / 2 - normaliser.flatten()

    def _start(self, k: Step) -> NoiseLevel:
        """The level that a step, or each sample's step, starts from."""
        c = self.schedule.starts
        index = k.to(c.noise.device) if isinstance(k, Tensor) else k
        return c.each(lambda v: v[index])


class LastStepReward(Reward):
    """The reward of the state that a deterministic last step leads to, ``r(w x + J u(x))``.

    Args:
        reward: the reward of the data.
        schedule: the chain with its last step.
        velocity: of the model that takes the last step.

    >>> schedule = flow_ddim([1.0, 0.5, 0.0])
    >>> velocity = NoisedVelocity(Gaussian(2.0, 0.5), schedule.starts)
    >>> LastStepReward(Sine(), schedule, velocity)(torch.ones(1, 1))
    tensor([0.9093])
    """

    def __init__(self, reward: Reward, schedule: FlowSchedule, velocity: VelocityModel):
        require_flow_schedule(schedule)
        require_callable(velocity, "the velocity", "of step and states")
        self.reward, self.schedule, self.velocity = as_reward(reward), schedule, velocity

    def __call__(self, x: States) -> PerSample:
        require_states(x, tuple(getattr(x, "shape", ()))[1:], "the reward")
        s, last = self.schedule, self.schedule.steps - 1
        velocity = called(self.velocity, (last, x), tuple(x.shape), "the velocity")
        return self.reward(
            s.state_weight[last].to(x) * x + s.velocity_weight[last].to(x) * velocity
        )


def require_flow_schedule(schedule: object) -> None:
    """Refuse what is no `FlowSchedule`."""
    remedy = "give a FlowSchedule, such as flow_sde(uniform_times(10, last=0.1), 0.7)."
    require_kind(schedule, FlowSchedule, "the schedule", remedy)


def absorb_last_step(
    schedule: FlowSchedule, velocity: VelocityModel, reward: Reward, dims: tuple[int, ...]
) -> tuple[FlowReference, LastStepReward]:
    """The chain without its deterministic last step, and the reward of where that would lead.

    The same problem, exactly, if fine-tuning leaves the last velocity as it is.

    Raises:
        InvalidProblem: the last step has noise, so there is nothing to absorb.

    >>> schedule = flow_ddim([1.0, 0.5, 0.0])
    >>> velocity = NoisedVelocity(Gaussian(2.0, 0.5), schedule.starts)
    >>> reference, reward = absorb_last_step(schedule, velocity, Sine(), dims=(1,))
    >>> ControlProblem(reference, reward, beta=1.0).steps
    1
    """
    require_flow_schedule(schedule)
    require(
        schedule.deterministic_end,
        f"sigma[{schedule.steps - 1}] = {float(schedule.sigma[-1]):g}: the last step has noise and"
        " can be steered; leave it in the chain.",
    )
    reference = FlowReference(schedule.without_last(), velocity, dims)
    return reference, LastStepReward(reward, schedule, velocity)


def free_last_step(
    schedule: FlowSchedule,
    velocity: VelocityModel,
    fine_tuned: VelocityModel,
    reward: Reward,
    dims: tuple[int, ...],
) -> tuple[FlowReference, LastStepReward]:
    """The chain without its deterministic last step, which the fine-tuned model takes without a
    price, as in training on all steps but the last with shared weights.

    The path's KL divergence leaves that step out, and so underestimates what was paid: the laws of
    the data may be singular to each other.

    Args:
        velocity: of the pre-trained model.
        fine_tuned: of the current one; read whenever the reward is evaluated.

    Raises:
        InvalidProblem: the last step has noise.

    >>> schedule = flow_ddim([1.0, 0.5, 0.0])
    >>> old = NoisedVelocity(Gaussian(2.0, 0.5), schedule.starts)
    >>> new = NoisedVelocity(Gaussian(3.0, 0.5), schedule.starts)
    >>> reference, reward = free_last_step(schedule, old, new, Sine(), dims=(1,))
    >>> reward(torch.ones(1, 1))
    tensor([0.4573])
    """
    reference, _ = absorb_last_step(schedule, velocity, reward, dims)
    return reference, LastStepReward(reward, schedule, fine_tuned)
