"""Which examples a training batch has: an endless order, a pure function of seed and place."""

from __future__ import annotations

from typing import Any

import numpy as np


class Order:
    """The endless order of a training run: every epoch its own permutation of the examples.

    Place i of the stream is example `permutation(epoch)[i % n]` with `epoch = i // n`. The
    permutation sorts raw words of PCG64, which numpy keeps the same in every version.

    Args:
        length: the number of examples, n.
        seed: of the whole run, at least 0.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        # The current epoch and, in a batch across the border of two, the next. Threads may
        # replace this at the same time: each puts in a whole, correct tuple.
        self._recent: tuple[tuple[int, np.ndarray], ...] = ()

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the order of one epoch, int64 `[n]`."""
        recent = self._recent
        for known, found in recent:
            if known == epoch:
                return found
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        # A single word would come back as a Python integer.
        found = np.argsort(np.atleast_1d(bits.random_raw(self.length)), kind="stable")
        self._recent = (*recent[-1:], (epoch, found))
        return found

    def __getitem__(self, place: int) -> int:
        epoch, within = divmod(place, self.length)
        return int(self.permutation(epoch)[within])

    def batch(self, number: int, size: int) -> list[int]:
        """Returns the examples of batch `number`."""
        return [self[place] for place in range(number * size, (number + 1) * size)]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.length, self.seed)


class GroupedOrder(Order):
    """An order where each batch is of one group, so that images of like shape share a canvas.

    Every group has a stream of its own: its examples, epoch after epoch, in the order in which
    `Order` would come to them. Its batches are cut out of that stream, and each is due when the
    last of its examples would be. So every epoch of a group shows each of its examples once, and
    groups come as often as they are large.

    Args:
        groups: of every example, integers `[n]`.
        seed: of the whole run, at least 0.
        size: of the batches.
    """

    def __init__(self, groups: np.ndarray, seed: int, size: int) -> None:
        super().__init__(len(groups), seed)
        self.groups, self.size = groups, size
        self._counts = np.bincount(groups).astype(np.int64)

    def batch(self, number: int, size: int) -> list[int]:
        """Returns the examples of batch `number`."""
        assert size == self.size
        # At most n / size batches are due in an epoch, and few of those due are ever behind.
        epoch = number * size // self.length
        while self._due(epoch + 1) <= number:
            epoch += 1
        order = self.permutation(epoch)
        groups = self.groups[order]
        # Where in its group's stream each example of this epoch is.
        place = np.empty(self.length, np.int64)
        for group, count in enumerate(self._counts):
            place[groups == group] = epoch * count + np.arange(count)
        last = np.flatnonzero((place + 1) % size == 0)[number - self._due(epoch)]
        end = int(place[last]) + 1
        return self._stream(int(groups[last]), end - size, end)

    def _due(self, epoch: int) -> int:
        """Returns how many batches are due before an epoch begins."""
        return int((epoch * self._counts // self.size).sum())

    def _stream(self, group: int, start: int, stop: int) -> list[int]:
        """Returns a part of a group's stream."""
        count = int(self._counts[group])
        found: list[int] = []
        for epoch in range(start // count, (stop - 1) // count + 1):
            order = self.permutation(epoch)
            members = order[self.groups[order] == group]
            first = epoch * count
            found += members[max(start - first, 0) : stop - first].tolist()
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.groups, self.seed, self.size)
