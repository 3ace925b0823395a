"""The processes of a run: ``torchrun --nproc_per_node 2 -m socft.cli sd train ...`` or ``accelerate launch`` starts several.

Each takes a part of the paths. Gradients are summed by hand, since the loss calls the network several times with its low-rank
layers on and off. Whatever a run computes is a function of the settings and, up to the order of sums, not of the number of
processes; but what an estimator averages over a prompt's paths, such as a baseline, it averages over those of one process.
"""

from __future__ import annotations

import dataclasses
import os

import torch
import torch.distributed as dist
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Workers:
    """This process among all; alone by default.

    Attributes:
        rank: number of this process.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls) -> Workers:
        """Meet the processes that ``accelerate launch`` or ``torchrun`` started beside this one."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def owns(self, index: int) -> bool:
        """Whether path number ``index`` is this process' own."""
        return index % self.count == self.rank

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.count > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier()
