"""What a tfds builder of this package is: a description, and records made of the original files.

A builder writes encoded bytes (JPEG or PNG) into array_record files, which tfds does without
TensorFlow; decoding is `segzoo.data.decode`'s alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from segzoo.data import decode
from segzoo.data.prepared import PreparedDataset
from segzoo.data.spec import Dataset, DatasetSpec, register_dataset

Record = dict[str, Any]
Records = Iterable[Record]


def record(
    name: str,
    image: bytes | np.ndarray,
    label: np.ndarray | int,
    instances: np.ndarray | None = None,
) -> Record:
    """Returns one example as a builder yields it: everything encoded.

    Args:
        name: what the example is called in its source; unique within its split.
        image: encoded bytes that are kept as they are, or uint8 `[H, W, C]` to write as PNG.
        label: uint8 `[H, W]` of class ids, or one class id.
        instances: uint16 `[H, W]`, 0 is no instance.
    """
    encoded: Record = {
        "name": name,
        "image": image if isinstance(image, bytes) else decode.encode_png(image),
        "label": decode.encode_png(label) if isinstance(label, np.ndarray) else int(label),
    }
    if instances is not None:
        encoded["instances"] = decode.encode_png(instances.astype(np.uint16))
    return encoded


def instance_record(
    name: str,
    image: bytes | np.ndarray,
    classes: Sequence[int],
    crowd: Sequence[bool],
    masks: Sequence[bytes],
) -> Record:
    """Returns one example of the task "instance" as a builder yields it.

    Args:
        name: as for `record`.
        image: as for `record`.
        classes: of the objects, from 1 on.
        crowd: which of them are regions of objects not told apart.
        masks: their pixels, as `rle.encode` returns them.
    """
    return {
        "name": name,
        "image": image if isinstance(image, bytes) else decode.encode_png(image),
        "classes": np.asarray(classes, np.int32),
        "crowd": np.asarray(crowd, bool),
        "masks": b"\n".join(masks),
    }


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """A tfds builder described by a `DatasetSpec`.

    A subclass sets `SPEC` and writes `records`, which checks that the source files are there and
    returns each split's records, made one by one as they are written.
    """

    SPEC: ClassVar[DatasetSpec]
    VERSION = tfds.core.Version("1.0.0")
    INSTANCES: ClassVar[bool] = False
    """Whether the examples have `instances`."""
    SHUFFLED: ClassVar[bool] = False
    """False keeps the source's order; True is for sources sorted by class, so that a part of a
    split is a fair sample of it."""

    LARGE: ClassVar[int] = 0
    """Of a dataset of more than 1 GB, which keeps its order: how many examples make a file."""

    manual_dir: Path | None = None
    """Where the original files are; None for a dataset that needs none."""
    measured: dict[str, tuple[list[list[int]], list[int]]]
    """Of every split the images' shapes and the numbers of objects: what was written knows them,
    and to find out later is to read all of it."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # tfds's own registry would clash with its builders of the same names.
        super().__init_subclass__(skip_registration=True, **kwargs)

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the records of each split, read from the original files.

        Raises:
            SegzooError: when files are missing, damaged or not what they should be.
        """
        raise NotImplementedError

    def _info(self) -> tfds.core.DatasetInfo:
        spec = self.SPEC
        features: dict[str, Any] = {
            "name": tfds.features.Text(),
            "image": tfds.features.Image(shape=(None, None, spec.channels)),
        }
        if spec.task == "semantic":
            features["label"] = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
        elif spec.task == "instance":
            features["classes"] = tfds.features.Tensor(shape=(None,), dtype=np.int32)
            features["crowd"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
            features["masks"] = tfds.features.Text()
        else:
            features["label"] = tfds.features.ClassLabel(names=list(spec.class_names))
        if self.INSTANCES:
            features["instances"] = tfds.features.Image(
                shape=(None, None, 1), dtype=np.uint16, encoding_format="png"
            )
        return tfds.core.DatasetInfo(
            builder=self,
            description=spec.description,
            license=spec.terms,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=not self.SHUFFLED,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        splits = self.records(self.manual_dir or Path())
        return {name: self._generate_examples(name, found) for name, found in splits.items()}

    def _generate_examples(self, split: str, records: Records) -> Iterator[tuple[str, Record]]:
        shapes, counts = self.measured.setdefault(split, ([], []))
        for example in records:
            if not self.SHUFFLED:
                shapes.append([*decode.image_shape(example["image"]), self.SPEC.channels])
                counts.append(len(example.get("classes", ())))
            yield example["name"], example

    # tfds prints these two to stdout; `prepare` logs one line instead.
    def _log_download_bytes(self) -> None:
        pass

    def _log_download_done(self) -> None:
        pass


B = TypeVar("B", bound=type[Builder])


def register_builder(builder: B) -> B:
    """Registers a builder's dataset under the name in its `SPEC`."""

    def factory(data_dir: Path, manual_dir: Path | None) -> Dataset:
        return PreparedDataset(builder, data_dir, manual_dir)

    factory.__module__ = builder.__module__
    register_dataset(builder.SPEC.name)(factory)
    return builder
