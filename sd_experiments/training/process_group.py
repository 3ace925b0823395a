"""The processes of a run: ``torchrun --standalone --nproc_per_node 2 -m socft.cli sd train ...``
starts two.

``accelerate launch --multi_gpu --num_processes 2 -m socft.cli sd train
...`` does the same on GPUs; with ``--cpu`` it starts one process, whatever the number. Each takes a
part of the paths. Gradients are summed by hand, since the loss calls the network several times with
its low-rank layers on and off. Whatever a run computes is a function of the settings and, up to the
order of sums, not of the number of processes, but for the noise of the gradient, which is estimated
from other backward passes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from socft.checks import require


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among all; alone by default.

    Attributes:
        rank: number of this process.
        size: number of processes.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, device: torch.device) -> ProcessGroup:
        """Meet the processes that ``accelerate launch`` or ``torchrun`` started beside this one.

        Args:
            device: where the run is; each process takes a GPU of its own where it is a GPU.

        Raises:
            InvalidProblem: several processes are to share one numbered GPU.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        shared = (
            f"model.device = {str(device)!r} is one GPU for {count} processes; give cuda, which"
            " gives each process its own."
        )
        require(device.index is None, shared)
        from accelerate import PartialState

        state = PartialState(cpu=device.type != "cuda", backend=backend_of(device))
        return cls(state.process_index, state.num_processes)

    @property
    def is_main_process(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def is_local(self, index: int) -> bool:
        """Whether path number ``index`` is this process' own."""
        return index % self.size == self.rank

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def gather(self, rows: Tensor, places: Sequence[int], count: int) -> Tensor:
        """Rows of all processes, each at its place among ``count``."""
        whole = rows.new_zeros(count, *rows.shape[1:])
        whole[torch.tensor(places, dtype=torch.long, device=rows.device)] = rows
        return self.sum(whole)

    def sum_numbers(self, values: Sequence[float], device: torch.device) -> list[float]:
        """The sum of each number over the processes, in float64."""
        return self.sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()

    def max_number(self, value: float, device: torch.device) -> float:
        """The largest of the processes' numbers."""
        return max(
            self.sum_numbers(
                [value if rank == self.rank else 0.0 for rank in range(self.size)], device
            )
        )

    def barrier(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier()


def backend_of(device: torch.device) -> str:
    """What sums tensors of a device over processes: NCCL has no sums of tensors of the CPU, Gloo
    none that stay on the GPU.
    """
    return "nccl" if device.type == "cuda" else "gloo"
