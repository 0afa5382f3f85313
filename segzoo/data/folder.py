"""Own data: a folder of images and masks, checked in full before training starts.

    root/train/images/0017.jpg    root/train/masks/0017.png
    root/val/images/...           root/val/masks/...         (and test/, likewise)
    root/classes.txt

An image and its mask share the stem of their names. A mask holds one class id per pixel, 0 and up,
255 for void, as 8-bit grey or palette indices. `classes.txt` names class 0, 1, ... one per line,
each optionally with its colour as three numbers 0..255 (`road 128 64 128`); masks may then be
painted in those colours, and a line named `void` gives the colour of void. Without `classes.txt`
the ids that occur are the classes.

Files are read in place: copying them into a tfds dataset would double the disk space, and a folder
is random access already. What is measured on them (mean, std, frequencies) is kept below
`data_dir`, under a fingerprint of the files' names, sizes and times.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo.data import decode
from segzoo.data.folder_files import Classes, Reading, read_all, read_classes, read_mask
from segzoo.data.originals import SUFFIXES, Pair, read_bytes
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
from segzoo.errors import SegzooError, did_you_mean

SPLITS = ("train", "val", "test")
FAULTS_SHOWN = 20


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
) -> FolderSummary:
    """Reads every file of a folder and returns what it holds.

    Args:
        root: laid out as this module says.
        data_dir: where the result is kept, so that unchanged files are not read again.

    Raises:
        SegzooError: with all faults found, one sentence each with the file's name.
    """
    place = Path(data_dir).expanduser() if data_dir is not None else default_data_dir()
    return FolderDataset(Path(root).expanduser().absolute(), place.absolute()).summary


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
        self._facts = data_dir / "segzoo" / "folder" / _fingerprint(root, self._pairs)
        if faults:
            # The files that do pair up are read all the same: all faults are told at once.
            self._measure(root, faults)
        measured = remembered(self._facts / "check.json", lambda: self._measure(root, faults))
        self.summary = _summary(root, self._pairs, measured)
        self.spec = self.summary.spec
        self._classes = dataclasses.replace(self._classes, names=self.spec.class_names)

    def _measure(self, root: Path, faults: list[str]) -> dict[str, Any]:
        reading = read_all(root, self._pairs, self._classes, faults)
        names = _class_names(root, self._classes, reading, faults)
        if faults:
            raise _error(root, faults)
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
        # A part of a split is known by its examples: its facts are its own.
        key = hashlib.sha256("\n".join(str(pair.image) for pair in chosen).encode()).hexdigest()
        return FolderSource(chosen, self._classes, self.spec.channels, self._facts / key[:16])


@register_dataset("folder")
def _folder(data_dir: Path, manual_dir: Path | None) -> Dataset:
    if manual_dir is None:
        raise SegzooError(
            "dataset 'folder' needs manual_dir, the folder that holds train/images and "
            "train/masks; or name that folder itself as the dataset, e.g. './cells'."
        )
    return FolderDataset(manual_dir, data_dir)


# --- Finding files ------------------------------------------------------------------------------


def _find(root: Path, faults: list[str]) -> dict[str, list[Pair]]:
    """Pairs the files of each split, sorted by name."""
    if not root.is_dir():
        raise SegzooError(f"{root}: no such folder; expected one with train/images, train/masks.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    pairs: dict[str, list[Pair]] = {}
    for split in SPLITS:
        if split in found:
            pairs[split] = _pair(root, split, faults)
    for name in found:
        # Another spelling of a split would be left out in silence.
        hint = did_you_mean(name, SPLITS)
        if name not in SPLITS and "mean" in hint:
            faults.append(f"{name}/: not a split.{hint}")
    if "train" not in pairs:
        listed = ", ".join(f"{name}/" for name in found) or "no folders"
        faults.append(f"train/: missing; expected train/images and train/masks, found {listed}.")
    return pairs


def _pair(root: Path, split: str, faults: list[str]) -> list[Pair]:
    files: dict[str, dict[str, Path]] = {}
    for kind in ("images", "masks"):
        folder = root / split / kind
        if not folder.is_dir():
            faults.append(f"{split}/{kind}/: missing.")
            continue
        files[kind] = _by_stem(root, folder, faults)
        if not files[kind]:
            faults.append(f"{split}/{kind}/: holds no image files.")
    if len(files) < 2 or not all(files.values()):
        return []
    images, masks = files["images"], files["masks"]
    faults += [f"{images[s].relative_to(root)}: has no mask." for s in images if s not in masks]
    faults += [f"{masks[s].relative_to(root)}: has no image." for s in masks if s not in images]
    return [Pair(stem, images[stem], masks[stem]) for stem in images if stem in masks]


def _by_stem(root: Path, folder: Path, faults: list[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini"):
            continue
        shown = path.relative_to(root)
        if path.is_dir():
            faults.append(f"{shown}/: a folder among the files; expected image files only.")
        elif path.suffix.lower() not in SUFFIXES:
            faults.append(f"{shown}: not an image file; expected {', '.join(SUFFIXES)}.")
        elif path.stem in found:
            faults.append(f"{shown}: has the same stem as {found[path.stem].name}.")
        else:
            found[path.stem] = path
    return found


def _fingerprint(root: Path, pairs: Mapping[str, Sequence[Pair]]) -> str:
    """Returns a name that changes when any file's name, size or time does."""
    files = [root / "classes.txt"]
    files += [path for split in pairs.values() for pair in split for path in pair[1:]]
    digest = hashlib.sha256(str(root).encode())
    for path in files:
        try:
            state = path.stat()
        except OSError:
            continue  # reported when it is read
        digest.update(json.dumps([str(path), state.st_size, state.st_mtime_ns]).encode())
    return f"{root.name}-{digest.hexdigest()[:16]}"


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


def _error(root: Path, faults: Sequence[str]) -> SegzooError:
    if len(faults) == 1:
        return SegzooError(f"{root}: {faults[0]}")
    lines = [f"{root}: {len(faults)} faults.", *(f"  {fault}" for fault in faults[:FAULTS_SHOWN])]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more.")
    return SegzooError("\n".join(lines))
