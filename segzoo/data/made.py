"""Data made up on the spot, in the likeness of a dataset: to try code without its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from segzoo.data.spec import VOID, Dataset, DatasetSpec, Example, Source, select


@dataclasses.dataclass(frozen=True)
class MadeSource:
    """Examples of random blocks, a function of their index alone.

    Attributes:
        spec: what the examples look like.
        size: `*S` of the images.
        length: the number of examples.
        offset: the first example's index in the endless sequence.
    """

    spec: DatasetSpec
    size: tuple[int, ...]
    length: int
    offset: int = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(self.offset + index)
        classes, channels = self.spec.num_classes, self.spec.channels
        if self.spec.task == "classification":
            label = np.asarray(rng.integers(classes), np.int32)
            shade = np.broadcast_to(label, self.size)
        else:
            coarse = rng.integers(0, classes, [-(-n // 16) for n in self.size])
            label = coarse.astype(np.uint8)
            for axis, n in enumerate(self.size):
                label = np.repeat(label, 16, axis).take(np.arange(n), axis)
            shade = label
        # Classes differ in brightness, so that there is something to learn.
        image = shade[..., None] * (200.0 / classes) + rng.uniform(0, 55, (*self.size, channels))
        if label.ndim:
            label = label.copy()
            label[(slice(0, 2), *[slice(None)] * (label.ndim - 1))] = VOID
        return {"image": image.astype(np.uint8), "label": label}


class MadeDataset(Dataset):
    """A few made-up examples under the names of a dataset's splits.

    Args:
        spec: the dataset to resemble.
        size: `*S` of the images.
        splits: split names and lengths.
    """

    def __init__(self, spec: DatasetSpec, size: tuple[int, ...], splits: Mapping[str, int]):
        self.spec = spec
        self._size = size
        self._splits = dict(splits)

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""
        return self._splits

    def source(self, split: str) -> Source:
        """Returns a split by its name."""
        select(self._splits, split, self.spec.name)
        offset = 1000 * list(self._splits).index(split)
        return MadeSource(self.spec, self._size, self._splits[split], offset)
