"""Instance segmentation from a semantic dataset that keeps instance ids: its objects, one by one.

Nothing is prepared twice: the examples are those of the dataset below, seen in another way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from segzoo.data.spec import Dataset, DatasetSpec, Example, Source, get, register_dataset


def objects_of(label: np.ndarray, instances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers the objects of an image from 1 on, without gaps, and finds their classes.

    Args:
        label: uint8 `[*S]` of class ids.
        instances: integers `[*S]`; every value but 0 is an object, in one piece or several.

    Returns:
        `instances` int32 `[*S]`, in the order of the ids; `classes` int32 `[M]`, each the class of
        most of the object's pixels.
    """
    ids, numbers = np.unique(instances, return_inverse=True)
    numbers = numbers.reshape(instances.shape).astype(np.int32)
    if not len(ids) or ids[0] != 0:
        numbers += 1  # no pixel is background
        ids = np.concatenate([[0], ids])
    count = int(label.max(initial=0)) + 1
    votes = np.bincount((numbers.astype(np.int64) * count + label).ravel(), minlength=0)
    votes = np.pad(votes, (0, len(ids) * count - len(votes))).reshape(len(ids), count)
    return numbers, votes[1:].argmax(1).astype(np.int32)


class InstanceSource:
    """The objects of a source of semantic examples with `instances`."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.facts: Path | None = getattr(source, "facts", None)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return _instance_example(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Returns several examples."""
        batched = getattr(self.source, "__getitems__", None)
        found = batched(indices) if batched else [self.source[index] for index in indices]
        return [_instance_example(example) for example in found]

    def name(self, index: int) -> str:
        """Returns what the example is called."""
        name = getattr(self.source, "name", None)
        return str(name(index) if name else index)

    def image_shape(self, index: int) -> tuple[int, ...]:
        """Returns `(*S, C)`, without decoding the image where that is possible."""
        known = getattr(self.source, "image_shape", None)
        return tuple(known(index) if known else self.source[index]["image"].shape)

    def objects(self, index: int) -> int:
        """Returns the number of objects."""
        return len(self[index]["classes"])


def _instance_example(example: Example) -> Example:
    instances, classes = objects_of(example["label"], example["instances"])
    return {
        "image": example["image"],
        "classes": classes,
        "crowd": np.zeros(len(classes), bool),
        "instances": instances,
    }


class InstanceDataset(Dataset):
    """A dataset of instance segmentation made of a semantic one with `instances`.

    Args:
        spec: what the objects are.
        semantic: the dataset below.
    """

    def __init__(self, spec: DatasetSpec, semantic: Dataset) -> None:
        self.spec, self._semantic = spec, semantic

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""
        return self._semantic.splits

    def source(self, split: str) -> Source:
        """Returns a split. See `Dataset.source`."""
        return InstanceSource(self._semantic.source(split))


def register_instances(semantic: DatasetSpec) -> DatasetSpec:
    """Registers the objects of a semantic dataset as `<name>_instances`; returns their spec."""
    spec = dataclasses.replace(
        semantic,
        name=f"{semantic.name}_instances",
        task="instance",
        class_names=("background", *semantic.class_names[1:]),
        description=f"The objects of {semantic.name!r}, one by one. {semantic.description}",
    )

    @register_dataset(spec.name)
    def factory(data_dir: Path, manual_dir: Path | None) -> Dataset:
        return InstanceDataset(spec, get(semantic.name, data_dir, manual_dir))

    factory.__module__ = f"{__name__}.{semantic.name}"
    return spec
