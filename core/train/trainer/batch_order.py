"""Which pictures, captions and noise a step sees: a pure function of the run's seed and the step.

So no random state has to be saved, a run that was stopped continues with the very same numbers, and
several devices divide a batch without changing it.
"""

import random
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch

Size = tuple[int, int]


def derive_seed(*parts: int) -> int:
    """Return a seed that differs whenever any of `parts` does."""
    low, high = np.random.SeedSequence(parts).generate_state(2)
    return int(high) << 31 | int(low) >> 1


class BatchOrder:
    """Batches of one bucket each, epoch by epoch, each epoch in another order.

    In an epoch every picture comes as often as it is repeated; as many regularisation pictures are
    added, in each epoch the next ones of their list. A bucket's last batch may be smaller.
    """

    def __init__(
        self,
        buckets: Sequence[Size],
        repeats: Sequence[int],
        regularisation: Sequence[bool],
        batch_size: int,
        seed: int,
    ):
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.training_indices = [
            i for i, times in enumerate(repeats) if not regularisation[i] for _ in range(times)
        ]
        self.regularisation_indices = [
            i for i, times in enumerate(repeats) if regularisation[i] for _ in range(times)
        ]
        self._starts = [0]
        self._epochs: dict[int, list[list[int]]] = {}

    def get_batch(self, number: int) -> tuple[int, list[int]]:
        """Return a batch's epoch (from 1) and its pictures' indices, by its number (from 0)."""
        while self._starts[-1] <= number:
            self._starts.append(self._starts[-1] + len(self.get_epoch(len(self._starts))))
        epoch = int(np.searchsorted(self._starts, number, side="right"))
        return epoch, self.get_epoch(epoch)[number - self._starts[epoch - 1]]

    def get_epoch(self, number: int) -> list[list[int]]:
        """Return all batches of an epoch (from 1)."""
        if number not in self._epochs:
            # Epochs before the previous one are over, and nobody asks for them again.
            self._epochs = {k: v for k, v in self._epochs.items() if k >= number - 1}
            self._epochs[number] = self._shuffle_epoch(number)
        return self._epochs[number]

    def _shuffle_epoch(self, number: int) -> list[list[int]]:
        chance = random.Random(derive_seed(self.seed, 1, number))
        first = (number - 1) * len(self.training_indices)
        chosen = self.training_indices + [
            self.regularisation_indices[(first + i) % len(self.regularisation_indices)]
            for i in range(len(self.training_indices))
            if self.regularisation_indices
        ]
        by_bucket: dict[Size, list[int]] = defaultdict(list)
        for i in chosen:
            by_bucket[self.buckets[i]].append(i)
        batches = []
        for _, members in sorted(by_bucket.items()):
            chance.shuffle(members)
            batches += [members[k : k + self.batch_size] for k in range(0, len(members), self.batch_size)]
        chance.shuffle(batches)
        return batches


class SampleRandom:
    """The random choices for one picture of one batch."""

    def __init__(self, seed: int, batch: int, slot: int):
        self.caption_random = random.Random(derive_seed(seed, 2, batch, slot))
        self.generator = torch.Generator().manual_seed(derive_seed(seed, 3, batch, slot))

    def draw_normal(self, *shape: int) -> torch.Tensor:
        """Return normally distributed noise of a shape."""
        return torch.randn(shape, generator=self.generator)

    def draw_integer(self, end: int) -> int:
        """Return a whole number from 0 to `end` - 1."""
        return int(torch.randint(end, (), generator=self.generator))
