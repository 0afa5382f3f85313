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
        classes = self.spec.num_classes
        if self.spec.task == "classification":
            label = np.asarray(rng.integers(classes), np.int32)
            shade = np.broadcast_to(label, self.size)
        else:
            label = shade = self._blocks(rng.integers(0, classes, self._grid).astype(np.uint8))
        image = self._image(shade, rng)
        if label.ndim:
            label = label.copy()
            label[(slice(0, 2), *[slice(None)] * (label.ndim - 1))] = VOID
        return {"image": image, "label": label}

    @property
    def _grid(self) -> tuple[int, ...]:
        return tuple(-(-n // 16) for n in self.size)

    def _blocks(self, coarse: np.ndarray) -> np.ndarray:
        """Spreads the values of the grid over 16 pixels along every axis."""
        for axis, n in enumerate(self.size):
            coarse = np.repeat(coarse, 16, axis).take(np.arange(n), axis)
        return coarse

    def _image(self, shade: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Paints classes in different brightness, so that there is something to learn."""
        noise = rng.uniform(0, 55, (*self.size, self.spec.channels))
        return (shade[..., None] * (200.0 / self.spec.num_classes) + noise).astype(np.uint8)


class MadeObjects(MadeSource):
    """Examples of up to ten objects, each a block of the image, the tenth a crowd."""

    def objects(self, index: int) -> int:
        """Returns the number of objects."""
        return len(self[index]["classes"])

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng(self.offset + index)
        cells = rng.permutation(int(np.prod(self._grid)))[: rng.integers(1, 11)]
        classes = rng.integers(1, self.spec.num_classes, len(cells)).astype(np.int32)
        numbers = np.zeros(self._grid, np.int32)
        numbers.flat[cells] = np.arange(1, len(cells) + 1)
        instances = self._blocks(numbers)
        example = {
            "image": self._image(np.concatenate([[0], classes])[instances], rng),
            "classes": classes,
            "crowd": np.arange(len(cells)) == 9,
        }
        if not self.spec.overlaps:
            return {**example, "instances": instances}
        places = np.arange(1, len(cells) + 1).reshape(-1, *(1,) * len(self.size))
        return {**example, "masks": (instances == places).astype(np.uint8)}


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
        kind = MadeObjects if self.spec.task == "instance" else MadeSource
        return kind(self.spec, self._size, self._splits[split], offset)
