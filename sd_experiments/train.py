r"""The training loop at image scale: rounds of paths, several gradient steps on each, and a state that can be stopped anywhere.

A gradient step takes n paths and, of each, some steps k, drawn without replacement in strata S of the steps. Its loss

.. math:: \frac1n \sum_{i \le n} w_i \sum_S \frac{|S|}{|K_{i,S}|} \sum_{k \in K_{i,S}} \ell_k(x^i_k)

has the same mean as that over all steps, whose gradient the estimator defines; w is 1, or the importance weight of a path that an
earlier policy made. With the gradients :math:`g_j` of the backward passes j, of :math:`n_j` paths each, the variance of the sum G
is estimated by :math:`\big( n \sum_j |g_j|^2/n_j - |G|^2 \big) / (J - 1)`, which is unbiased for independent paths of one prompt
(with several, differences between prompts count as noise). Its square root is the reported gradient noise.

Everything random is drawn from generators seeded by (seed, purpose, number), so the state of a run is its weights, its optimiser
and its current paths, and a run that was stopped continues bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor, nn

from sd_experiments import config
from sd_experiments.buffer import Entry, Pool, decode, effective_share, encode, log_ratios, seeded
from sd_experiments.checkpoints import Found
from sd_experiments.workers import Workers
from socft.checks import require
from socft.estimators.base import Estimator, Labels
from socft.path_measure import normalised
from socft.policy import Policy
from socft.problem import ControlProblem
from socft.rollout import Noise, Path, rollout

MB = 1e6
EMA_RAMP = 10
"""After t gradient steps the averaging factor is at most (1 + t) / (10 + t), so that the average forgets where it began."""
REMEDY = "the layers keep their last finite weights: lower optimiser.rate, raise problem.beta or set optimiser.clip."
SHARED = "shared.safetensors"
STATE = "state.json"
CHANGEABLE = (
    "run.steps",
    "run.out",
    "run.checkpoint_every",
    "run.keep",
    "optimiser.rate",
    "optimiser.clip",
    "monitor.",
    "model.path",
)


@dataclasses.dataclass(frozen=True)
class Task:
    """One prompt.

    Attributes:
        name: the prompt.
        problem: what is maximised.
        policy: the trained layers at work on this prompt.
        labelling: entered while labels are made, to share work.
    """

    name: str
    problem: ControlProblem
    policy: Policy
    labelling: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one gradient step measured.

    Attributes:
        step: gradient steps done.
        round: number of the round of its paths.
        reward: mean reward of the round's paths, with the policy that made them.
        reward_stderr: its standard error.
        kl: their mean KL from the pre-trained model.
        loss: of the gradient step.
        gradient_norm: before clipping.
        gradient_noise: standard deviation of the gradient; None with fewer than two backward passes.
        clipped: whether the gradient was scaled down.
        masked: part of the pairs whose loss was left out.
        target_norm: largest norm of a label's target control, an early sign of instability.
        ess: effective part of the paths under the current policy, as of the start of the pass.
        paths: paths sampled so far.
        seconds: time of this step, sampling included, observers excluded.
        peak_mb: largest memory in use so far: the GPU's, or that of this process.
    """

    step: int
    round: int
    reward: float
    reward_stderr: float
    kl: float
    loss: float
    gradient_norm: float
    gradient_noise: float | None
    clipped: bool
    masked: float
    target_norm: float
    ess: float
    paths: int
    seconds: float
    peak_mb: float


@dataclasses.dataclass(frozen=True)
class Iteration:
    """A gradient step.

    Attributes:
        measured: its numbers.
        fresh: the paths this step began with, if it sampled any.
    """

    measured: Measured
    fresh: tuple[Entry, ...]


@dataclasses.dataclass(frozen=True)
class Round:
    """Numbers of the current round's paths, over all processes."""

    reward: float = 0.0
    reward_stderr: float = 0.0
    kl: float = 0.0
    target_norm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Gradient:
    """A gradient, over all processes.

    Attributes:
        parts: one tensor per parameter.
        norm: of all together.
        noise: its standard deviation, if known.
        loss: its loss.
        masked: part of the pairs that were left out.
        quantile: this process' quantile of the losses.
    """

    parts: tuple[Tensor, ...]
    norm: float
    noise: float | None
    loss: float
    masked: float
    quantile: float


class Trainer:
    """Fine-tunes the parameters that the policies of several tasks share, in place, with any estimator.

    Args:
        tasks: the prompts.
        estimator: supplies labels and loss.
        parameters: what is trained, by name.
        settings: the run's settings; of these, ``batch``, ``optimiser`` and ``run``.
        workers: the processes of the run.
        dtype: of states and noise.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        estimator: Estimator,
        parameters: Mapping[str, nn.Parameter],
        settings: config.Settings,
        workers: Workers | None = None,
        dtype: torch.dtype = torch.float32,
    ):
        self.tasks = tuple(tasks)
        self.estimator = estimator
        self.parameters = dict(parameters)
        self.settings = settings
        self.workers = workers or Workers()
        self.dtype = dtype
        s = settings.optimiser
        self.optimiser = torch.optim.AdamW(
            self.parameters.values(), s.rate, (s.betas[0], s.betas[1]), weight_decay=s.weight_decay, foreach=False
        )
        self.ema = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.step, self.rounds, self.paths = 0, 0, 0
        self.quantile: float | None = None
        self.pool: Pool | None = None
        self.round = Round()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def iterations(self) -> Iterator[Iteration]:
        """Gradient steps up to the number in the settings. Between two of them the trainer can be saved.

        Raises:
            InvalidProblem: a reward, a label or a gradient is not finite; the parameters keep their last finite values, and the
                trainer can be saved.
        """
        while self.step < self.settings.run.steps:
            start, fresh = time.perf_counter(), self._prepare()
            assert self.pool is not None
            index = self.pool.take(self.settings.batch.per_step, self.settings.run.seed)
            gradient = self._gradient(self.pool, index)
            clipped = self._update(gradient)
            self.pool.used += len(index)
            measured = self._measured(self.pool, gradient, clipped, time.perf_counter() - start)
            yield Iteration(measured, self.pool.entries if fresh else ())

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged parameters in the place of the current ones."""
        kept = {name: p.detach().clone() for name, p in self.parameters.items()}
        self._set(self.ema)
        try:
            yield
        finally:
            self._set(kept)

    # Sampling

    def _prepare(self) -> bool:
        """Make sure that there are paths to use, and weigh them at the start of a pass; whether they are new."""
        batch, pool = self.settings.batch, self.pool
        spent = pool is None or pool.used >= batch.passes * pool.size
        if pool is not None and not spent and pool.starts_pass(batch.per_step):
            self._weigh(pool)
            spent = pool.ess < batch.ess
        if spent:
            self.pool = self._collect()
        return spent

    def _collect(self) -> Pool:
        """Sample and label the paths of the next round."""
        batch, count = self.settings.batch, len(self.tasks)
        entries = []
        for slot in range(batch.prompts):
            numbers = range(slot * batch.trajectories, (slot + 1) * batch.trajectories)
            own = tuple(i for i in numbers if self.workers.owns(i))
            if own:
                entries.append(self._sampled((self.rounds * batch.prompts + slot) % count, own))
        self.round = self._summary(entries)
        self.rounds += 1
        size = batch.prompts * batch.trajectories
        self.paths += size
        return Pool(self.rounds - 1, size, tuple(entries))

    @torch.no_grad()
    def _sampled(self, number: int, own: tuple[int, ...]) -> Entry:
        """A full rollout: as many network evaluations as sampling first and measuring the controls afterwards."""
        task = self.tasks[number]
        problem, policy = task.problem, task.policy
        path = rollout(problem.reference, policy, self._noise(task, own))
        rewards = problem.reward(path.final)
        with task.labelling():
            labels = self.estimator.label(problem, policy, path)
        noise = Noise(path.noise.initial.cpu(), path.noise.steps.cpu())
        stored = Path(path.states.cpu(), path.controls.cpu(), noise)
        return Entry(number, own, stored, _moved(labels, torch.device("cpu")), rewards.cpu())

    def _noise(self, task: Task, own: Sequence[int]) -> Noise:
        """Noise of some paths of the next round, each a function of the seed, the round and its number."""
        seed = self.settings.run.seed
        drawn = [Noise.sample(task.problem.reference, 1, seeded(seed, "path", self.rounds, i), self.dtype) for i in own]
        initial, steps = torch.cat([each.initial for each in drawn]), torch.cat([each.steps for each in drawn], 1)
        return Noise(initial.to(self.device), steps.to(self.device))

    def _summary(self, entries: Sequence[Entry]) -> Round:
        """Numbers of a new round.

        Raises:
            InvalidProblem: a reward or a target is not finite.
        """
        zero = torch.zeros(0, dtype=torch.float64)
        rewards = torch.cat([zero, *(each.rewards.double() for each in entries)])
        kl = torch.cat([zero, *(each.path.kl().double().sum(0) for each in entries)])
        norms = torch.cat([zero, *(each.labels.targets.double().flatten(2).norm(dim=2).amax(0) for each in entries)])
        bad = [float((~each.isfinite()).sum()) for each in (rewards, kl, norms)]
        own = [*bad, len(rewards), float(rewards.nansum()), float(kl.nansum())]
        total = self._total(own)
        for what, number in zip(("rewards", "controls", "labels"), total, strict=False):
            require(
                number == 0,
                f"{number:.0f} of {total[3]:.0f} paths of round {self.rounds} have {what} that are not finite; {REMEDY}",
            )
        mean = total[4] / total[3]
        spread = self._total([float((rewards - mean).square().sum())])[0]
        stderr = (spread / max(1.0, total[3] - 1) / total[3]) ** 0.5
        largest = max(self._each(float(norms.max()) if len(norms) else 0.0))
        return Round(mean, stderr, total[5] / total[3], largest)

    def _weigh(self, pool: Pool) -> None:
        """Importance weights of the paths under the current policy, and their effective sample size."""
        logs = torch.zeros(pool.size, dtype=torch.float64, device=self.device)
        for entry in pool.entries:
            task, path = self.tasks[entry.task], _on(entry.path, self.device)
            logs[torch.tensor(entry.index, device=self.device)] = log_ratios(task.policy, path).to(self.device)
        logs = self.workers.sum(logs).cpu()
        require(bool(logs.isfinite().all()), f"an importance weight of round {pool.round} is not finite; {REMEDY}")
        slots = logs.reshape(self.settings.batch.prompts, -1)
        pool.ess = min(effective_share(each) for each in slots)
        if self.settings.batch.weighted:
            pool.weights = torch.cat([normalised(each) for each in slots])

    # Gradient

    def _gradient(self, pool: Pool, index: Int[Tensor, " n"]) -> Gradient:
        """The gradient of a step's loss on the paths ``index``, over all processes."""
        steps = self.tasks[0].problem.steps
        chosen, weights = strata(self.settings.batch, steps, len(index), seeded(self.settings.run.seed, "steps", self.step))
        sums = [torch.zeros_like(p) for p in self.parameters.values()]
        squares, passes, loss, masked, losses = 0.0, 0, 0.0, 0, []
        for entry, local, rows in self._micro_batches(pool, index):
            value, each = self._losses(entry, local, chosen[rows])
            keep = self._unmasked(each)
            factor = weights[None, :] * pool.weights[index[rows]][:, None] * keep / len(index)
            scalar = (value * factor.flatten().to(value)).sum()
            parts = torch.autograd.grad(scalar, list(self.parameters.values()), allow_unused=True)
            for total, part in zip(sums, parts, strict=True):
                if part is not None:
                    total += part
            squares += sum(float(part.double().square().sum()) for part in parts if part is not None) / len(local)
            passes, loss, masked = passes + 1, loss + float(scalar.detach()), masked + int((~keep).sum())
            losses.append(each.flatten())
        own = float(torch.cat(losses).quantile(self.settings.batch.mask_quantile)) if losses else 0.0
        return self._combined(
            sums, [squares, passes, loss, masked, own if losses else 0.0, float(bool(losses))], len(index), chosen.numel()
        )

    def _micro_batches(self, pool: Pool, index: Tensor) -> Iterator[tuple[Entry, Tensor, Tensor]]:
        """This process' paths of one prompt at a time: entry, places in it, rows of ``index``."""
        for entry in pool.entries:
            place = {number: i for i, number in enumerate(entry.index)}
            rows = torch.tensor([row for row, number in enumerate(index.tolist()) if number in place], dtype=torch.long)
            for part in rows.split(self.settings.batch.micro_batch or max(1, len(rows))):
                if len(part):
                    yield entry, torch.tensor([place[int(i)] for i in index[part]]), part

    def _losses(self, entry: Entry, local: Tensor, k: Int[Tensor, "n draws"]) -> tuple[Tensor, Tensor]:
        """Losses of (k, path) pairs with their graph, shape (n * draws,), and without, shape (n, draws)."""
        task = self.tasks[entry.task]
        flat = k.flatten()
        rows = _moved(entry.labels.rows(flat, local.repeat_interleave(k.shape[1])), self.device)
        with torch.enable_grad():
            value = self.estimator.loss(task.problem, task.policy, flat, rows)
        return value, value.detach().double().cpu().reshape(k.shape)

    def _unmasked(self, losses: Tensor) -> Tensor:
        if self.settings.batch.mask_quantile == 1 or self.quantile is None:
            return torch.ones_like(losses, dtype=torch.bool)
        return losses <= self.quantile

    def _combined(self, sums: list[Tensor], numbers: list[float], n: int, pairs: int) -> Gradient:
        """The sum over the processes."""
        flat = self.workers.sum(torch.cat([part.flatten() for part in sums]))
        squares, passes, loss, masked, quantile, present = self._total(numbers)
        norm = float(flat.double().norm())
        noise = (max(0.0, n * squares - norm**2) / (passes - 1)) ** 0.5 if passes > 1 else None
        sizes = [part.numel() for part in sums]
        parts = tuple(part.reshape(like.shape) for part, like in zip(flat.split(sizes), sums, strict=True))
        return Gradient(parts, norm, noise, loss, masked / pairs, quantile / max(1.0, present))

    def _update(self, gradient: Gradient) -> bool:
        """One step of the optimiser; whether the gradient was clipped."""
        s, finite = self.settings.optimiser, gradient.norm < float("inf")
        require(finite, f"the gradient norm is {gradient.norm} at gradient step {self.step + 1}; {REMEDY}")
        factor = 1.0 if s.clip is None else min(1.0, s.clip / max(gradient.norm, 1e-300))
        for p, part in zip(self.parameters.values(), gradient.parts, strict=True):
            p.grad = part.to(p) * factor
        for group in self.optimiser.param_groups:
            group["lr"] = s.rate * min(1.0, (self.step + 1) / max(1, s.warmup))
        self.optimiser.step()
        self.step += 1
        keep = min(self.settings.run.ema, (1 + self.step) / (EMA_RAMP + self.step)) if self.settings.run.ema else 0.0
        with torch.no_grad():
            for name, p in self.parameters.items():
                p.grad = None
                self.ema[name].mul_(keep).add_(p, alpha=1 - keep)
        memory = self.settings.batch.mask_memory
        self.quantile = gradient.quantile if self.quantile is None else memory * self.quantile + (1 - memory) * gradient.quantile
        return factor < 1

    # State

    def files(self) -> tuple[dict[str, bytes], dict[str, bytes]]:
        """Everything a checkpoint needs: this process' own files, and those that all share."""
        tensors = {f"layer.{name}": p.detach() for name, p in self.parameters.items()}
        tensors |= {f"average.{name}": value for name, value in self.ema.items()}
        for name, p in self.parameters.items():
            tensors |= {f"optimiser.{key}.{name}": value for key, value in self.optimiser.state.get(p, {}).items()}
        tensors["random"] = torch.get_rng_state()
        left = self.pool is not None and self.pool.used < self.settings.batch.passes * self.pool.size
        pool = self.pool if left else None
        values = {
            "step": self.step,
            "rounds": self.rounds,
            "paths": self.paths,
            "quantile": self.quantile,
            "round": dataclasses.asdict(self.round),
            "processes": self.workers.count,
            "settings": self.settings.plain(),
            "pool": pool and {"round": pool.round, "size": pool.size, "used": pool.used, "ess": pool.ess},
        }
        if pool is not None:
            tensors["weights"] = pool.weights
        copied = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
        shared = {SHARED: save(copied), STATE: json.dumps(values, indent=2).encode()}
        return {_buffer(self.workers.rank): encode(pool.entries if pool else ())}, shared

    def restore(self, found: Found) -> None:
        """Continue from a checkpoint.

        Raises:
            InvalidProblem: it belongs to a run with other settings, layers or processes.
        """
        values = found.json(STATE)
        require(
            values["processes"] == self.workers.count,
            f"the checkpoint is of {values['processes']} processes and there are {self.workers.count}; continue with as many.",
        )
        self._require_same(values["settings"])
        tensors, _ = found.tensors(SHARED)
        self._require_layers(tensors, found)
        self._set({name: tensors[f"layer.{name}"] for name in self.parameters})
        for name, p in self.parameters.items():
            self.ema[name] = tensors[f"average.{name}"].to(p)
            prefix = "optimiser."
            state = {
                key: tensors[f"{prefix}{key}.{name}"]
                for key in ("step", "exp_avg", "exp_avg_sq")
                if f"{prefix}{key}.{name}" in tensors
            }
            if state:
                self.optimiser.state[p] = {key: value if key == "step" else value.to(p) for key, value in state.items()}
        torch.set_rng_state(tensors["random"])
        self.step, self.rounds, self.paths = values["step"], values["rounds"], values["paths"]
        self.quantile, self.round = values["quantile"], Round(**values["round"])
        self.pool = self._stored_pool(values["pool"], tensors, found)

    def read_averages(self, found: Found) -> None:
        """The averaged layers of a checkpoint, to sample with."""
        tensors, _ = found.tensors(SHARED)
        self._require_layers(tensors, found)
        self._set({name: tensors[f"average.{name}"] for name in self.parameters})

    def _stored_pool(self, about: Mapping[str, Any] | None, tensors: Mapping[str, Tensor], found: Found) -> Pool | None:
        if about is None:
            return None
        stored, header = found.tensors(_buffer(self.workers.rank))
        entries = tuple(decode(stored, json.loads(header["entries"])))
        return Pool(about["round"], about["size"], entries, about["used"], tensors["weights"], about["ess"])

    def _require_same(self, old: Mapping[str, Any]) -> None:
        changed = config.changes(old, self.settings.plain())
        for name, (before, now) in changed.items():
            require(
                name.startswith(CHANGEABLE),
                f"{name} was {before!r} when this run began and is {now!r} now; start another run with --out, or set it back.",
            )

    def _require_layers(self, tensors: Mapping[str, Tensor], found: Found) -> None:
        for name, p in self.parameters.items():
            stored = tensors.get(f"layer.{name}")
            fits = stored is not None and stored.shape == p.shape
            require(fits, f"{found.folder} has no layer {name} of shape {tuple(p.shape)}; it belongs to another network.")

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.parameters.items():
            p.copy_(values[name])

    def _measured(self, pool: Pool, gradient: Gradient, clipped: bool, seconds: float) -> Measured:
        r = self.round
        return Measured(
            step=self.step,
            round=pool.round,
            reward=r.reward,
            reward_stderr=r.reward_stderr,
            kl=r.kl,
            loss=gradient.loss,
            gradient_norm=gradient.norm,
            gradient_noise=gradient.noise,
            clipped=clipped,
            masked=gradient.masked,
            target_norm=r.target_norm,
            ess=pool.ess,
            paths=self.paths,
            seconds=seconds,
            peak_mb=peak_mb(self.device),
        )

    def _total(self, values: Sequence[float]) -> list[float]:
        return self.workers.sum(torch.tensor(values, dtype=torch.float64, device=self.device)).tolist()

    def _each(self, value: float) -> list[float]:
        return self._total([value if rank == self.workers.rank else 0.0 for rank in range(self.workers.count)])


def strata(
    batch: config.Batch, steps: int, count: int, generator: torch.Generator
) -> tuple[Int[Tensor, "count draws"], Float[Tensor, " draws"]]:
    """Steps of ``count`` paths, drawn without replacement early and late, and one over the probability that each is drawn.

    No step is left out: both parts get at least one draw, or they are one where there is only one draw.
    """
    draws, early = batch.loss_steps or steps, round(batch.early_span * steps)
    split = draws > 1 and 0 < early < steps
    wanted = round(batch.early_share * draws)
    first = min(early, draws - 1, max(wanted, draws - (steps - early), 1)) if split else 0
    early = early if split else 0
    keys = torch.rand(count, steps, generator=generator)
    chosen = [keys[:, :early].argsort(1)[:, :first], early + keys[:, early:].argsort(1)[:, : draws - first]]
    weights = [early / max(1, first)] * first + [(steps - early) / (draws - first)] * (draws - first)
    return torch.cat(chosen, 1), torch.tensor(weights, dtype=torch.float64)


def peak_mb(device: torch.device) -> float:
    """Largest memory in use so far, in MB: the GPU's, or that of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB


def _buffer(rank: int) -> str:
    return f"buffer-{rank}.safetensors"


def _moved(labels: Labels, device: torch.device) -> Labels:
    """Labels on a device."""
    fields = {field.name: getattr(labels, field.name) for field in dataclasses.fields(labels)}
    moved = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
    return dataclasses.replace(labels, **moved)


def _on(path: Path, device: torch.device) -> Path:
    noise = Noise(path.noise.initial.to(device), path.noise.steps.to(device))
    return Path(path.states.to(device), path.controls.to(device), noise)
