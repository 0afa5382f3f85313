"""Own data: a folder of images and masks, checked in full before training starts.

    root/train/images/0017.jpg    root/train/masks/0017.png
    root/val/images/...           root/val/masks/...         (and test/, likewise)
    root/classes.txt

An image and its mask share the stem of their names. A mask holds one class id per pixel, 0 and up,
255 for void, as 8-bit grey or palette indices. `classes.txt` names class 0, 1, ... one per line,
each optionally with its colour as three numbers 0..255 (`road 128 64 128`); masks may then be
painted in those colours, and a line named `void` gives the colour of void. Without `classes.txt`
the ids that occur are the classes.

Where `instances/` or `annotations.json` stands in the place of `masks/`, it is objects that the
folder holds: see `segzoo.data.instance_folder`.

Files are read in place: copying them into a tfds dataset would double the disk space, and a folder
is random access already. What is measured on them (mean, std, frequencies) is kept below
`data_dir`, under a fingerprint of the files' names, sizes and times.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo.data import decode
from segzoo.data.folder_files import Classes, Reading, read_all, read_classes, read_mask, read_pair
from segzoo.data.folder_tree import (
    faults_error,
    files_by_stem,
    find_splits,
    fingerprint,
    subset_key,
)
from segzoo.data.instance_folder import InstanceFolderDataset, InstanceSummary, holds_objects
from segzoo.data.originals import Pair, read_bytes
from segzoo.data.spec import (
    VOID,
    Dataset,
    DatasetSpec,
    Example,
    Source,
    default_data_dir,
    register_dataset,
    select,
)
from segzoo.data.statistics import remembered
from segzoo.errors import SegzooError


@dataclasses.dataclass(frozen=True)
class FolderSummary:
    """What a folder that passed every check holds; `str()` of it is meant to be read.

    Attributes:
        root: the folder.
        spec: its classes, palette, mean and std.
        counts: the number of examples of each split.
        sizes: the distinct image sizes `(H, W)`, smallest first.
        pixels: per split, the number of pixels of each class and, last, of void.
    """

    root: str
    spec: DatasetSpec
    counts: Mapping[str, int]
    sizes: tuple[tuple[int, int], ...]
    pixels: Mapping[str, tuple[int, ...]]

    def __str__(self) -> str:
        kind = "grey" if self.spec.channels == 1 else "RGB"
        low, high = self.sizes[0], self.sizes[-1]
        size = f"{low[0]}x{low[1]}" + (f" to {high[0]}x{high[1]}" if low != high else "")
        counts = ", ".join(f"{count} {split}" for split, count in self.counts.items())
        names = (*self.spec.class_names, "void")
        width = max(map(len, names))
        lines = [f"{self.root}: {counts}; {kind}, {size} pixels (height x width)."]
        if len(self.sizes) > 1:
            lines.append("The sizes differ: set image_size to train on them.")
        lines.append(f"{'id':>3} {'class':<{width}} " + "".join(f"{s:>9} %" for s in self.pixels))
        for place, name in enumerate(names):
            shares = (100 * pixels[place] / max(1, sum(pixels)) for pixels in self.pixels.values())
            number = place if place < self.spec.num_classes else VOID
            lines.append(f"{number:>3} {name:<{width}} " + "".join(f"{s:>11.2f}" for s in shares))
        absent = [
            name
            for name, count in zip(self.spec.class_names, self.pixels["train"], strict=False)
            if not count
        ]
        if absent:
            lines.append(f"No training pixel shows {', '.join(absent)}.")
        return "\n".join(lines)


def check_folder(
    root: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None = None
) -> FolderSummary | InstanceSummary:
    """Reads every file of a folder and returns what it holds.

    Args:
        root: laid out as this module or `instance_folder` says.
        data_dir: where the result is kept, so that unchanged files are not read again.

    Raises:
        SegzooError: with all faults found, one sentence each with the file's name.
    """
    place = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    return _open(Path(root).expanduser().absolute(), place.absolute()).summary


class FolderSource:
    """Some examples of a folder, decoded on access.

    Args:
        pairs: the files.
        classes: how masks are read.
        channels: 1 or 3.
        facts: where what is measured is kept.
    """

    def __init__(self, pairs: Sequence[Pair], classes: Classes, channels: int, facts: Path) -> None:
        self.pairs, self.classes, self.channels = tuple(pairs), classes, channels
        self.facts = facts

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Example:
        pair = self.pairs[index]
        file = str(pair.image)
        image = decode.decode_image(read_bytes(pair.image), self.channels, file, upright=True)
        return {"image": image, "label": read_mask(pair.mask, self.classes)}

    def name(self, index: int) -> str:
        """Returns the stem of the files' names."""
        return self.pairs[index].name

    def image_shape(self, index: int) -> tuple[int, ...]:
        """Returns `(H, W, C)` without decoding the image."""
        path = self.pairs[index].image
        return (*decode.image_shape(read_bytes(path), str(path), upright=True), self.channels)


class FolderDataset(Dataset):
    """A folder of images and masks; every file is checked on first use, then remembered.

    Args:
        root: laid out as this module says.
        data_dir: below which what is measured is kept.

    Raises:
        SegzooError: with all faults found.
    """

    def __init__(self, root: Path, data_dir: Path) -> None:
        faults: list[str] = []
        self._classes = read_classes(root / "classes.txt", faults)
        self._pairs = _find(root, faults)
        files = [path for pairs in self._pairs.values() for pair in pairs for path in pair[1:]]
        name = fingerprint(root, [root / "classes.txt", *files])
        self._facts = data_dir / "segzoo" / "folder" / name
        if faults:
            # The files that do pair up are read all the same: all faults are told at once.
            self._measure(root, faults)
        measured = remembered(self._facts / "check.json", lambda: self._measure(root, faults))
        self.summary = _summary(root, self._pairs, measured)
        self.spec = self.summary.spec
        self._classes = dataclasses.replace(self._classes, names=self.spec.class_names)

    def _measure(self, root: Path, faults: list[str]) -> dict[str, Any]:
        reading = read_all(root, self._pairs, lambda pair: read_pair(pair, self._classes), faults)
        names = _class_names(root, self._classes, reading, faults)
        if faults:
            raise faults_error(root, faults)
        mean, std = reading.mean_std()
        ids = [*range(len(names)), VOID]
        return {
            "names": names,
            "palette": self._classes.palette,
            "mean": mean,
            "std": std,
            "sizes": sorted(reading.sizes),
            "pixels": {
                split: [counts.get(i, 0) for i in ids] for split, counts in reading.ids.items()
            },
        }

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""
        return {split: len(pairs) for split, pairs in self._pairs.items()}

    def source(self, split: str) -> Source:
        """Returns a split, in the order of the file names. See `Dataset.source`."""
        chosen = [
            pair
            for name, start, stop in select(self.splits, split, self.spec.name)
            for pair in self._pairs[name][start:stop]
        ]
        facts = self._facts / subset_key(pair.image for pair in chosen)
        return FolderSource(chosen, self._classes, self.spec.channels, facts)


@register_dataset("folder")
def _folder(data_dir: Path, manual_dir: Path | None) -> Dataset:
    if manual_dir is None:
        raise SegzooError(
            "dataset 'folder' needs manual_dir, the folder that holds train/images and "
            "train/masks; or name that folder itself as the dataset, e.g. './cells'."
        )
    return _open(manual_dir, data_dir)


def _open(root: Path, data_dir: Path) -> FolderDataset | InstanceFolderDataset:
    """Opens a folder of masks, or of objects where it has those."""
    kind = InstanceFolderDataset if holds_objects(root) else FolderDataset
    return kind(root, data_dir)


# --- Finding files ------------------------------------------------------------------------------


def _find(root: Path, faults: list[str]) -> dict[str, list[Pair]]:
    """Pairs the files of each split, sorted by name."""
    splits = find_splits(root, "train/images and train/masks", faults)
    return {split: _pair(root, split, faults) for split in splits}


def _pair(root: Path, split: str, faults: list[str]) -> list[Pair]:
    images, masks = (
        files_by_stem(root, root / split / kind, faults) for kind in ("images", "masks")
    )
    if not images or not masks:
        return []
    faults += [f"{images[s].relative_to(root)}: has no mask." for s in images if s not in masks]
    faults += [f"{masks[s].relative_to(root)}: has no image." for s in masks if s not in images]
    return [Pair(stem, images[stem], masks[stem]) for stem in images if stem in masks]


# --- Judging what was read ----------------------------------------------------------------------


def _class_names(
    root: Path, classes: Classes, reading: Reading, faults: list[str]
) -> tuple[str, ...]:
    """Returns the class names, from `classes.txt` or else from the ids that occur."""
    total: Counter[int] = sum(reading.ids.values(), Counter())
    used = sorted(set(total) - {VOID})
    if set(total) == {0, VOID} and not classes.colors and len(classes.names or "12") > 1:
        faults.append(
            "the masks hold 0 and 255 only, and 255 is void, which counts nothing: if 255 means "
            "the foreground, save it as 1."
        )
    elif not used and not faults:
        faults.append("the masks hold nothing but void (255).")
    elif not classes.names and used and used != list(range(len(used))):
        listed = ", ".join(map(str, used[:10])) + (", ..." if len(used) > 10 else "")
        faults.append(
            f"the class ids in the masks have gaps (found {listed}): number the classes 0, 1, 2, "
            "... or name every one, also the unused, in classes.txt."
        )
    return classes.names or tuple(f"class {i}" for i in used)


def _summary(root: Path, pairs: Mapping[str, Sequence[Pair]], measured: Any) -> FolderSummary:
    return FolderSummary(
        root=str(root),
        spec=DatasetSpec(
            name=root.name,
            task="semantic",
            class_names=tuple(measured["names"]),
            palette=tuple(tuple(color) for color in measured["palette"]),
            mean=tuple(measured["mean"]),
            std=tuple(measured["std"]),
            description=f"The images and masks in {root}.",
        ),
        counts={split: len(found) for split, found in pairs.items()},
        sizes=tuple(tuple(size) for size in measured["sizes"]),
        pixels={split: tuple(counts) for split, counts in measured["pixels"].items()},
    )
