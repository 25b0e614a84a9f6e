"""Which pictures, captions and noise a step sees: a pure function of the run's seed and the step's number.

So nothing of chance has to be saved, a run that was stopped goes on with the very same numbers, and several devices
divide a batch without changing it.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

Size = tuple[int, int]


def drawn(*what: int) -> int:
    """A seed that is told from its neighbours by every one of `what`."""
    low, high = np.random.SeedSequence(what).generate_state(2)
    return int(high) << 31 | int(low) >> 1


class Order:
    """Batches of one bucket each, epoch by epoch, each epoch in another order.

    In an epoch every picture comes as often as it is repeated; regularisation pictures fill up to as many again, other ones
    in each epoch. A bucket's last batch may be smaller.
    """

    def __init__(self, buckets: Sequence[Size], repeats: Sequence[int], regularisation: Sequence[bool], batch: int, seed: int):
        self.buckets, self.batch_size, self.seed = buckets, batch, seed
        self.training = [i for i, times in enumerate(repeats) if not regularisation[i] for _ in range(times)]
        self.others = [i for i, times in enumerate(repeats) if regularisation[i] for _ in range(times)]
        self._starts = [0]
        self._epochs: dict[int, list[list[int]]] = {}

    def batch(self, number: int) -> tuple[int, list[int]]:
        """The epoch (from 1) of the batch with this number (from 0), and its pictures."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self.epoch(len(self._starts))))
        epoch = int(np.searchsorted(self._starts, number, side="right"))
        return epoch, self.epoch(epoch)[number - self._starts[epoch - 1]]

    def epoch(self, number: int) -> list[list[int]]:
        """All batches of an epoch (from 1)."""
        if number not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1}  # of those that are over none is asked for again
            self._epochs[number] = self._made(number)
        return self._epochs[number]

    def _made(self, number: int) -> list[list[int]]:
        chance = random.Random(drawn(self.seed, 1, number))
        first = (number - 1) * len(self.training)
        chosen = self.training + [self.others[(first + i) % len(self.others)] for i in range(len(self.training)) if self.others]
        by_bucket: dict[Size, list[int]] = defaultdict(list)
        for i in chosen:
            by_bucket[self.buckets[i]].append(i)
        batches = []
        for _, members in sorted(by_bucket.items()):
            chance.shuffle(members)
            batches += [members[k : k + self.batch_size] for k in range(0, len(members), self.batch_size)]
        chance.shuffle(batches)
        return batches


class Chance:
    """What is left to chance for one picture of one batch."""

    def __init__(self, seed: int, batch: int, slot: int):
        self.words = random.Random(drawn(seed, 2, batch, slot))
        self.numbers = torch.Generator().manual_seed(drawn(seed, 3, batch, slot))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.numbers)

    def below(self, end: int) -> int:
        return int(torch.randint(end, (), generator=self.numbers))
