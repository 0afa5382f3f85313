"""What the tfds builders of this package share: preparing once, safely, and reading back.

A builder writes encoded bytes (JPEG or PNG) into array_record files, which tfds does without
TensorFlow; decoding is `segzoo.data.decode`'s alone. A prepared dataset lies in
`<data_dir>/segzoo/<name>/<version>/`, and appears there by one rename: it is whole or absent.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import tensorflow_datasets as tfds

from segzoo.data import decode, rle
from segzoo.data.spec import (
    Dataset,
    DatasetSpec,
    Example,
    Source,
    register_dataset,
    select,
)
from segzoo.data.statistics import remembered
from segzoo.errors import SegzooError

log = logging.getLogger(__name__)

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


class PreparedSource:
    """A split of a prepared dataset, decoded on access.

    Args:
        directory: the prepared dataset's folder.
        split: which examples, in tfds's words.
        spec: what the examples are.
    """

    def __init__(self, directory: Path, split: str, spec: DatasetSpec) -> None:
        self.directory, self.split, self.spec = directory, split, spec
        self.facts = directory / "facts" / _slug(split)
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


def _slug(split: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else f"%{ord(c):02x}" for c in split)


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


B = TypeVar("B", bound=type[Builder])


def register_builder(builder: B) -> B:
    """Registers a builder's dataset under the name in its `SPEC`."""

    def factory(data_dir: Path, manual_dir: Path | None) -> Dataset:
        return PreparedDataset(builder, data_dir, manual_dir)

    factory.__module__ = builder.__module__
    register_dataset(builder.SPEC.name)(factory)
    return builder


def prepare(builder: type[Builder], directory: Path, manual_dir: Path) -> None:
    """Prepares a dataset unless it is there already.

    Several processes may call this at once: one works and the others wait for it. One that is
    killed leaves nothing that could be taken for a dataset.

    Raises:
        SegzooError: when the original files are missing or wrong, or the place is not writable.
    """
    if directory.exists():
        return
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.parent / ".lock") as alone:
            if directory.exists():
                return
            if alone:
                # What a killed process left. Without a lock it might be another's work.
                for left in directory.parent.glob("incomplete.*"):
                    shutil.rmtree(left, ignore_errors=True)
            log.warning("preparing dataset %s in %s (once)", builder.SPEC.name, directory)
            _run(builder, directory, manual_dir)
    except OSError as error:
        raise SegzooError(
            f"cannot prepare {builder.SPEC.name!r} in {directory}: {error}."
        ) from error


def _run(builder: type[Builder], directory: Path, manual_dir: Path) -> None:
    # Large ones are written beside their place: see `_write_in_order`.
    beside = directory.parent / f"incomplete.{os.getpid()}"
    place = beside if builder.LARGE else directory.parents[1]
    made = builder(data_dir=place, file_format="array_record")
    made.manual_dir, made.measured = manual_dir, {}
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    try:
        if builder.LARGE:
            _write_in_order(made)
            os.rename(made.data_dir, directory)
        else:
            assert Path(made.data_dir) == directory, (made.data_dir, directory)
            with _no_progress_bars():
                made.download_and_prepare(download_config=config)
    except Exception as error:
        if directory.exists():
            return  # another host, with a lock of its own, was first
        cause: BaseException | None = error
        while cause is not None:
            # tfds wraps what a generator raises into exceptions of its own.
            if isinstance(cause, SegzooError):
                raise cause from None
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    if not builder.SHUFFLED:
        for split, (shapes, counts) in made.measured.items():
            facts = directory / "facts" / _slug(split)
            remembered(facts / "shape_of_each.json", functools.partial(list, shapes))
            if builder.SPEC.task == "instance":
                remembered(facts / "object_counts.json", functools.partial(list, counts))


def _write_in_order(made: Builder) -> None:
    """Writes each record as it comes, in shards of some 700 MB.

    tfds's own way sorts all records in memory, and more than 1 GB on disk, by way of TensorFlow.
    """
    Path(made.data_dir).mkdir(parents=True)
    splits = made._split_generators(None)
    writer = tfds.core.SequentialWriter(made.info, made.LARGE, file_format="array_record")
    writer.initialize_splits(list(splits))
    for split, examples in splits.items():
        writer.add_examples({split: (example for _, example in examples)})
    writer.close_all()


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    bars = tfds.core.utils.tqdm_utils
    before = getattr(bars, "_active", True)
    tfds.disable_progress_bar()
    try:
        yield
    finally:
        tfds.display_progress_bar(before)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Holds an exclusive lock on a file, which the system drops when the process dies.

    Yields:
        True, or False where the system or the file system knows no locks.
    """
    with path.open("a") as file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        except (ImportError, OSError):
            yield False
        else:
            yield True
