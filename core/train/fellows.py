"""Processes that train one run together, each its share of every batch; started by `accelerate launch`."""

import os

import torch
from accelerate import PartialState


class Alone:
    """One process."""

    rank, size = 0, 1

    def add(self, vector: torch.Tensor) -> None:
        """Put the sum over all processes into `vector`."""

    def wait(self) -> None:
        """Until all have come here."""


class Fellows(Alone):
    """One of several processes, whose gradients are added up once a step."""

    def __init__(self) -> None:
        self.state = state = PartialState(cpu=not torch.cuda.is_available())
        self.rank, self.size = state.process_index, state.num_processes
        if torch.cuda.is_available():
            torch.cuda.set_device(state.local_process_index)

    def add(self, vector: torch.Tensor) -> None:
        torch.distributed.all_reduce(vector)

    def wait(self) -> None:
        self.state.wait_for_everyone()


def fellows() -> Alone:
    """The processes that this one was started with."""
    return Fellows() if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Alone()
