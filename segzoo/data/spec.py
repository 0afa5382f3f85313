"""What a dataset is: its description, its splits as random-access sources, and the registry."""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import numpy as np

from segzoo.errors import SegzooError, check_name, did_you_mean

VOID = 255
"""The label that counts nothing, in mask files, losses and metrics alike."""

Example = dict[str, np.ndarray]
"""`image` uint8 [*S, C]; `label` uint8 [*S] (semantic) or int32 [] (classification); optionally
`instances` int32 [*S] (0 is no instance) and `weight` float32 [*S].

Of the task "instance", with M objects, instead of `label`: `classes` int32 [M], 1..K-1; `crowd`
bool [M], regions of objects not told apart; and their pixels, either `instances` int32 [*S], m + 1
where object m is, or, where objects overlap, `masks` uint8 [M, *S], 0 or 1."""

NO_PIXELS = frozenset({"classes", "crowd", "valid"})
"""What of an example is about objects and not about pixels."""

Color = tuple[int, int, int]


def default_palette(num_classes: int) -> tuple[Color, ...]:
    """Returns the PASCAL VOC colour map: class 0 black, then colours far apart, 0..255 RGB.

    Bit j of the class id, taken three at a time, becomes the highest free bit of red, green and
    blue; neighbouring ids therefore differ strongly.
    """
    colors = []
    for class_id in range(num_classes):
        red = green = blue = 0
        rest = class_id
        for bit in range(7, -1, -1):
            red |= (rest & 1) << bit
            green |= (rest >> 1 & 1) << bit
            blue |= (rest >> 2 & 1) << bit
            rest >>= 3
        colors.append((red, green, blue))
    return tuple(colors)


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """What stays true of a dataset before a single file of it is read.

    Attributes:
        name: the registry's key, or the folder's name for own data.
        task: "semantic" (a class id per pixel), "instance" (the pixels and the class of every
            object) or "classification" (a class per image).
        class_names: the names of classes 0..K-1; void is not among them. Of "instance" the first
            is "background", which no object has.
        palette: one RGB colour per class, 0..255; empty means `default_palette`.
        mean: per channel, over the training images, in units of 0..255.
        std: as `mean`; the standard deviation over all pixels.
        description: one paragraph: what the images show, the splits, where the labels come from.
        terms: the licence or terms of use, as the dataset's authors state them.
        overlaps: of "instance": whether the examples have `masks`, which may overlap, instead of
            `instances`.
    """

    name: str
    task: Literal["semantic", "instance", "classification"]
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    palette: tuple[Color, ...] = ()
    description: str = ""
    terms: str = ""
    overlaps: bool = False

    def __post_init__(self) -> None:
        if not self.palette:
            object.__setattr__(self, "palette", default_palette(self.num_classes))
        if len(self.palette) != self.num_classes:
            raise SegzooError(
                f"dataset {self.name!r} has {self.num_classes} classes but "
                f"{len(self.palette)} palette colours."
            )
        if not self.class_names or (self.task == "semantic" and self.num_classes > VOID):
            raise SegzooError(
                f"dataset {self.name!r} has {self.num_classes} classes; expected 1 to {VOID}."
            )
        if self.task == "instance" and (
            self.num_classes < 2 or self.class_names[0] != "background"
        ):
            raise SegzooError(
                f"dataset {self.name!r} has the classes {', '.join(self.class_names[:5])}; "
                "expected 'background' and at least one class of objects after it."
            )
        if len(self.mean) != len(self.std) or not self.mean:
            raise SegzooError(
                f"dataset {self.name!r} has {len(self.mean)} means and {len(self.std)} standard "
                "deviations; expected one of each per channel."
            )

    @property
    def num_classes(self) -> int:
        """The number of classes, void not counted."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of image channels."""
        return len(self.mean)


class Source(Protocol):
    """Random access to the examples of a split; can be pickled and read from several threads.

    A source may also have `name(i) -> str`, which names an example in messages and file names;
    `image_shape(i) -> tuple[int, ...]`, the shape `[*S, C]` of an image without decoding it; and
    `facts: Path | None`, a folder for what was measured on it (class frequencies, weight maps). One
    of the task "instance" has `objects(i) -> int`, how many there are.
    """

    def __len__(self) -> int:
        """Returns the number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Returns example `index` as arrays of the caller's own, as the Example contract says."""
        ...


class Dataset(abc.ABC):
    """A dataset at a place on disk: its `spec`, and its splits as sources.

    Nothing is read or prepared before `splits` or `source` is first used.
    """

    spec: DatasetSpec

    @property
    @abc.abstractmethod
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""

    @abc.abstractmethod
    def source(self, split: str) -> Source:
        """Returns a split as a source.

        Args:
            split: a name from `splits`, a part of one ("train[:80%]", "train[100:200]") or a sum
                of those ("train+val"), as in tfds.

        Raises:
            SegzooError: for an unknown split, a malformed one or an empty one.
        """


def select(lengths: Mapping[str, int], split: str, dataset: str) -> list[tuple[str, int, int]]:
    """Returns the `(split name, start, stop)` ranges that a split expression stands for.

    Args:
        lengths: the number of examples of each split.
        split: an expression as `Dataset.source` takes it.
        dataset: the dataset's name, for messages.

    Raises:
        SegzooError: for an unknown split, a malformed expression or an empty result.
    """
    # tfds costs a quarter of a second to import, and naming a dataset should not.
    import tensorflow_datasets as tfds

    known = ", ".join(f"{name} ({length})" for name, length in lengths.items())
    if not isinstance(split, str):
        raise SegzooError(f"split {split!r} is not a string; splits of {dataset!r}: {known}.")
    for part in split.split("+"):
        name = part.split("[", 1)[0].strip()
        if name not in lengths and name != "all":
            near = did_you_mean(name, lengths) if name else ""
            raise SegzooError(
                f"dataset {dataset!r} has no split {name!r}.{near if 'mean' in near else ''} "
                f"Its splits: {known}."
            )
    infos = [
        # The template gives `file_instructions` names to report; no such file is ever opened.
        tfds.core.SplitInfo(
            name=name,
            shard_lengths=[length],
            num_bytes=0,
            filename_template=tfds.core.ShardedFileTemplate(
                data_dir=".", dataset_name=name, filetype_suffix="array_record"
            ),
        )
        for name, length in lengths.items()
    ]
    try:
        chosen = tfds.core.splits.SplitDict(infos)[split]
        instructions = chosen.file_instructions
    except (ValueError, AssertionError, KeyError) as error:
        raise SegzooError(
            f"split {split!r} of {dataset!r} cannot be read; expected e.g. 'train', "
            f"'train[:80%]', 'train[100:200]' or 'train+val', within {known}."
        ) from error
    ranges = []
    for instruction in instructions:
        name = os.path.basename(instruction.filename).split("-", 1)[0]
        ranges.append((name, instruction.skip, instruction.skip + instruction.take))
    if sum(max(0, stop - start) for _, start, stop in ranges) == 0:
        raise SegzooError(f"split {split!r} of {dataset!r} selects no example; it has {known}.")
    return ranges


Factory = Callable[[Path, Path | None], Dataset]
F = TypeVar("F", bound=Factory)

_FACTORIES: dict[str, Factory] = {}


def register_dataset(name: str) -> Callable[[F], F]:
    """Registers a function `(data_dir, manual_dir) -> Dataset` under a name.

    Args:
        name: what `get` will know it by.

    Raises:
        SegzooError: when another module registered that name.
    """

    def decorate(factory: F) -> F:
        known = _FACTORIES.get(name)
        # The same definition executed again (a reloaded module, a notebook cell) replaces itself.
        if known is not None and known.__module__ != factory.__module__:
            raise SegzooError(f"dataset {name!r} is registered already, by {known.__module__}.")
        _FACTORIES[name] = factory
        return factory

    return decorate


_MODULES: Sequence[str] = (
    "camvid",
    "coco",
    "dsb2018_nuclei",
    "folder",
    "isbi2012_em",
    "mnist",
    "oxford_iiit_pet",
    "shapes",
)


@functools.cache
def _import_datasets() -> None:
    """Imports every dataset's file once, on first need."""
    for module in _MODULES:
        importlib.import_module(f"segzoo.data.{module}")


def list_datasets() -> list[str]:
    """Returns the registered names, sorted."""
    _import_datasets()
    return sorted(_FACTORIES)


def default_data_dir() -> Path:
    """Returns the folder of prepared data: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    return Path(os.environ.get("TFDS_DATA_DIR") or Path.home() / "tensorflow_datasets")


def get(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
) -> Dataset:
    """Returns a dataset by name, or the folder of images and masks, or objects, at a path.

    Args:
        name: a name from `list_datasets()`, or the path of a folder (`segzoo.data.folder` and
            `instance_folder` say how it is laid out), told apart by its having a path separator.
        data_dir: where prepared data is kept; default `$TFDS_DATA_DIR`, else
            `~/tensorflow_datasets`.
        manual_dir: the original files, where the dataset needs them from the user; default
            `<data_dir>/downloads/manual/<name>`. For "folder": the folder itself.

    Raises:
        SegzooError: for an unknown name, with the nearest known ones.
    """
    _import_datasets()
    place = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    source = Path(manual_dir).expanduser() if manual_dir is not None else None
    if isinstance(name, str) and name not in _FACTORIES and set(name) & {"/", os.sep}:
        return _FACTORIES["folder"](place.absolute(), Path(name).expanduser().absolute())
    check_name("dataset", name, _FACTORIES)
    return _FACTORIES[name](place.absolute(), source.absolute() if source else None)
