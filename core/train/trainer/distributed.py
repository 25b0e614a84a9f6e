"""Processes that train one run together, each its share of every batch.

`accelerate launch` starts them.
"""

import os

import torch
from accelerate import PartialState


class SingleProcess:
    """A run's only process."""

    rank, world_size = 0, 1

    def all_reduce(self, vector: torch.Tensor) -> None:
        """Put the sum over all processes into `vector`."""

    def wait_for_everyone(self) -> None:
        """Wait until all processes have called this."""


class Distributed(SingleProcess):
    """One of several processes, whose gradients are summed once a step."""

    def __init__(self) -> None:
        self.state = state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.world_size = state.process_index, state.num_processes
        if torch.cuda.is_available():
            torch.cuda.set_device(state.local_process_index)

    def all_reduce(self, vector: torch.Tensor) -> None:
        torch.distributed.all_reduce(vector)

    def wait_for_everyone(self) -> None:
        self.state.wait_for_everyone()


def init_distributed() -> SingleProcess:
    """Return the processes that this one was started with."""
    return Distributed() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SingleProcess()
