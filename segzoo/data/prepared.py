"""A prepared dataset, read back: its splits, decoded on access."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow_datasets as tfds

from segzoo.data import decode, rle
from segzoo.data.preparing import facts_folder, prepare
from segzoo.data.spec import Dataset, DatasetSpec, Example, Source, select
from segzoo.errors import SegzooError

if TYPE_CHECKING:
    from segzoo.data.builders import Builder, Record


class PreparedSource:
    """A split of a prepared dataset, decoded on access.

    Args:
        directory: the prepared dataset's folder.
        split: which examples, in tfds's words.
        spec: what the examples are.
    """

    def __init__(self, directory: Path, split: str, spec: DatasetSpec) -> None:
        self.directory, self.split, self.spec = directory, split, spec
        self.facts = facts_folder(directory, split)
        try:
            builder = tfds.builder_from_directory(directory)
            encoded = {
                key: tfds.decode.SkipDecoding()
                for key, feature in builder.info.features.items()
                if isinstance(feature, tfds.features.Image)
            }
            self._records = builder.as_data_source(split, decoders=encoded)
            self._length = len(self._records)
        except Exception as error:
            raise SegzooError(
                f"{directory} holds no complete dataset ({error}); delete that folder to prepare "
                "it again."
            ) from error

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Example:
        return self._decode(self._record(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        """Returns several examples; the records are read from disk together."""
        return [
            self._decode(found)
            for found in self._records.__getitems__([self._check(i) for i in indices])
        ]

    def name(self, index: int) -> str:
        """Returns what the example was called in the original files."""
        return str(self._record(index)["name"], "utf-8")

    def image_shape(self, index: int) -> tuple[int, ...]:
        """Returns `(H, W, C)` without decoding the image."""
        return (*decode.image_shape(self._record(index)["image"]), self.spec.channels)

    def _check(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(f"example {index} of {self._length} in {self.split!r}")
        return int(index)

    def _record(self, index: int) -> Record:
        return self._records[self._check(index)]

    def _decode(self, found: Record) -> Example:
        name = f"{self.directory.parent.name} {str(found['name'], 'utf-8')!r}"
        example = {"image": decode.decode_image(found["image"], self.spec.channels, name)}
        if self.spec.task == "semantic":
            example["label"] = decode.decode_ids(found["label"], name)
        else:
            example["label"] = np.asarray(found["label"], np.int32)
        if "instances" in found:
            example["instances"] = decode.decode_ids(found["instances"], name).astype(np.int32)
        return example

    def __reduce__(self) -> tuple[Any, ...]:
        # Open files stay behind: the other process opens its own.
        return type(self), (self.directory, self.split, self.spec)


class PreparedObjects(PreparedSource):
    """A split of a prepared dataset of the task "instance"."""

    def objects(self, index: int) -> int:
        """Returns the number of objects without decoding them."""
        return len(self._record(index)["classes"])

    def _decode(self, found: Record) -> Example:
        name = f"{self.directory.parent.name} {str(found['name'], 'utf-8')!r}"
        image = decode.decode_image(found["image"], self.spec.channels, name)
        runs = found["masks"].split(b"\n") if len(found["classes"]) else []
        return {
            "image": image,
            "classes": np.asarray(found["classes"], np.int32),
            "crowd": np.asarray(found["crowd"], bool),
            "masks": rle.decode(runs, image.shape[:2]),
        }


class PreparedDataset(Dataset):
    """A dataset that a `Builder` prepares on first use.

    Args:
        builder: the builder's class.
        data_dir: where prepared datasets are kept.
        manual_dir: the original files; None stands for `<data_dir>/downloads/manual/<name>`.
    """

    def __init__(self, builder: type[Builder], data_dir: Path, manual_dir: Path | None) -> None:
        self.spec = builder.SPEC
        self._builder = builder
        self._data_dir = data_dir
        self._manual_dir = manual_dir or data_dir / "downloads" / "manual" / self.spec.name
        self._splits: dict[str, int] | None = None

    @property
    def directory(self) -> Path:
        """Where the prepared dataset is, or will be."""
        version = str(self._builder.VERSION)
        return self._data_dir / "segzoo" / self.spec.name / version

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split; prepares the dataset if need be."""
        if self._splits is None:
            prepare(self._builder, self.directory, self._manual_dir)
            try:
                info = tfds.builder_from_directory(self.directory).info
            except Exception as error:
                raise SegzooError(
                    f"{self.directory} holds no complete dataset ({error}); delete that folder to "
                    "prepare it again."
                ) from error
            self._splits = {name: split.num_examples for name, split in info.splits.items()}
        return self._splits

    def source(self, split: str) -> Source:
        """Returns a split; prepares the dataset if need be. See `Dataset.source`."""
        select(self.splits, split, self.spec.name)
        kind = PreparedObjects if self.spec.task == "instance" else PreparedSource
        return kind(self.directory, split, self.spec)
