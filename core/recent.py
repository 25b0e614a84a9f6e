"""A table of what was put into it last: what visitors make it hold has an end."""

from collections.abc import Hashable
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)
Kept = TypeVar("Kept")


class Recent(dict[Key, Kept]):
    """A table that forgets the oldest once it has more than so many entries.

    Any thread may put something in. There is no lock that a process forked meanwhile, as ZeroGPU's are, would find taken.
    """

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def __setitem__(self, key: Key, value: Kept) -> None:
        self.pop(key, None)
        super().__setitem__(key, value)
        for old in list(self)[: -self.most]:
            self.pop(old, None)
