r"""The paths of a round with their labels, used several times, and whether they still stand for the
current policy.

Under the current control v a path that another control u made has the importance weight
:math:`\prod_k p^v(x_{k+1}|x_k) / p^u(x_{k+1}|x_k) = \exp \sum_k \big( (v_k - u_k) \cdot \xi_k -
|v_k - u_k|^2/2 \big)`, exactly. The effective sample size :math:`(\sum w)^2 / \sum w^2` of the
paths of one prompt says how many of them count.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors.torch import save
from torch import Tensor

from sd_experiments.model.frozen_output import FrozenEvaluation
from socft.checks import require
from socft.estimators.base import Labels
from socft.path import Noise, Path
from socft.path_measure import controls_along, effective_size, log_likelihoods, normalised
from socft.policy import Policy
from socft.reward import PerSample


def seeded_generator(*what: int | str) -> torch.Generator:
    """A generator on the CPU whose seed is a digest of what it is for: independent streams without
    a state to keep.
    """
    return torch.Generator().manual_seed(_seed(what))


def seed_globally(*what: int | str) -> None:
    """Seed the generators that a reward, checker or estimator of the user's may draw from: of
    Python, numpy and torch, on every device.
    """
    seed = _seed(what)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the global one, which the user may draw from)
    torch.manual_seed(seed)


def _seed(what: tuple[int | str, ...]) -> int:
    digest = hashlib.sha256(json.dumps(what).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclasses.dataclass(frozen=True)
class RolloutBatch:
    """This process' paths of one prompt.

    Attributes:
        task: number of the prompt.
        index: numbers of the paths within the round.
        path: states, controls and noise.
        labels: made by the estimator.
        rewards: of the samples.
        frozen: the frozen network's outputs at the states, shape (T, batch, *dims), if known.
    """

    task: int
    index: tuple[int, ...]
    path: Path
    labels: Labels
    rewards: PerSample
    frozen: Float[Tensor, "steps batch *dims"] | None = None

    def known(self, device: torch.device) -> list[FrozenEvaluation]:
        """The frozen outputs, one answer per step, on a device."""
        if self.frozen is None:
            return []
        pairs = zip(self.path.states, self.frozen, strict=False)
        return [FrozenEvaluation(k, x.to(device), y.to(device)) for k, (x, y) in enumerate(pairs)]

    def known_rows(
        self, k: Int[Tensor, " rows"], sample: Int[Tensor, " rows"], device: torch.device
    ) -> list[FrozenEvaluation]:
        """The frozen outputs of some (step, sample) pairs in one answer, on a device."""
        if self.frozen is None:
            return []
        x, y = self.path.states[k, sample], self.frozen[k, sample]
        return [FrozenEvaluation(k, x.to(device), y.to(device))]

    def tensors(self) -> dict[str, Tensor]:
        """Everything, by name; labels at the path's own states do not repeat these."""
        named = {
            "states": self.path.states,
            "controls": self.path.controls,
            "rewards": self.rewards,
        }
        named |= {"initial": self.path.noise.initial, "noise": self.path.noise.steps}
        named |= {} if self.frozen is None else {"frozen": self.frozen}
        labels = self.labels.tensors()
        if torch.equal(self.labels.states, self.path.states[:-1]):
            del labels["states"]
        return named | {f"label.{name}": value for name, value in labels.items()}

    @classmethod
    def of(
        cls, about: Mapping[str, Any], tensors: Mapping[str, Tensor], label_type: type[Labels]
    ) -> RolloutBatch:
        """A batch from what `tensors` gave, with the labels of an estimator; where there are no
        paths, these are plain.
        """
        path = Path(
            tensors["states"], tensors["controls"], Noise(tensors["initial"], tensors["noise"])
        )
        fields: dict[str, Any] = {"states": path.states[:-1]}
        fields |= {
            name.removeprefix("label."): value
            for name, value in tensors.items()
            if name.startswith("label.")
        }
        kind = label_type if about["index"] else Labels
        require(
            about["labels"] == kind.__name__,
            f"the checkpoint has labels of the kind {about['labels']!r}; run with the estimator"
            " that made them.",
        )
        index, frozen = tuple(about["index"]), tensors.get("frozen")
        return cls(about["task"], index, path, kind(**fields), tensors["rewards"], frozen)

    def about(self) -> dict[str, Any]:
        """What is not a tensor."""
        return {"task": self.task, "index": list(self.index), "labels": type(self.labels).__name__}


@dataclasses.dataclass
class ReplayBuffer:
    """The paths of a round.

    Attributes:
        round: its number.
        size: paths of all processes.
        batches: those of this process, by prompt.
        uses: how many uses of paths there were.
        importance_weights: by path number, mean one per prompt; one each on the first pass.
        ess: smallest effective sample size of a prompt, as a part of its paths.
    """

    round: int
    size: int
    batches: tuple[RolloutBatch, ...]
    uses: int = 0
    importance_weights: Float[Tensor, " size"] = dataclasses.field(
        default_factory=lambda: torch.ones(0)
    )
    ess: float = 1.0

    def __post_init__(self) -> None:
        if len(self.importance_weights) == 0:
            self.importance_weights = torch.ones(self.size, dtype=torch.float64)

    def take(self, count: int, seed: int) -> Int[Tensor, " count"]:
        """Numbers of the next paths to use: every pass is a random order of all."""
        uses = range(self.uses, self.uses + count)
        orders = {p: self._order(p, seed) for p in {use // self.size for use in uses}}
        return torch.tensor([int(orders[use // self.size][use % self.size]) for use in uses])

    def starts_pass(self, count: int) -> bool:
        """Whether the next ``count`` uses enter a pass after the first."""
        before, after = self.uses - 1, self.uses + count - 1
        return after // self.size > max(before // self.size, 0)

    def _order(self, number: int, seed: int) -> Tensor:
        return torch.randperm(
            self.size, generator=seeded_generator(seed, "order", self.round, number)
        )


def log_likelihood_ratios(policy: Policy, path: Path) -> PerSample:
    """``log dP^v / dP^u`` of each path under a policy, zero for the one that made it."""
    with torch.no_grad():
        change = log_likelihoods(controls_along(policy, path), path) - log_likelihoods(
            path.controls, path
        )
    return change.double().sum(0)


def effective_share(log_weights: PerSample) -> float:
    """The effective sample size as a part of the number of paths, in (0, 1]."""
    return effective_size(normalised(log_weights)) / len(log_weights)


def encode_batches(batches: Sequence[RolloutBatch]) -> bytes:
    """Entries as one safetensors file."""
    tensors = {
        f"{i}.{name}": value.detach().cpu().contiguous().clone()
        for i, e in enumerate(batches)
        for name, value in e.tensors().items()
    }
    return save(tensors, {"batches": json.dumps([each.about() for each in batches])})


def decode_batches(
    tensors: Mapping[str, Tensor], about: Sequence[Mapping[str, Any]], label_type: type[Labels]
) -> Iterator[RolloutBatch]:
    """Entries from the tensors and the header of a file of `encode_batches`, with the labels of an
    estimator.
    """
    for i, each in enumerate(about):
        own = {
            name.removeprefix(f"{i}."): value
            for name, value in tensors.items()
            if name.startswith(f"{i}.")
        }
        yield RolloutBatch.of(each, own, label_type)
