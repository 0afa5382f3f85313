"""Own data with objects: a folder of images and ids, or of annotations in COCO's format.

    root/train/images/0017.jpg    root/train/instances/0017.png             (objects of one kind)
                                  root/train/instances/nucleus/0017.png     (or a folder per kind)
                                  root/train/annotations.json               (or COCO's format)

and `val/` and `test/` likewise. A file of ids has 0 where nothing is and the same number wherever
one object is, 8 or 16 bits a pixel. An image without objects of a kind needs no file in that kind's
folder. `classes.txt` names the kinds, one per line, which fixes their order; without it folders
come in the order of their names, and objects of one kind are of class "object".

As with masks, files are read in place and checked in full before training (see `folder`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segzoo.data import decode
from segzoo.data.folder_files import read_all
from segzoo.data.folder_tree import SPLITS, faults_error, fingerprint, subset_key
from segzoo.data.instance_files import JSON, Entry, Tree
from segzoo.data.originals import read_bytes
from segzoo.data.spec import Dataset, DatasetSpec, Example, Source, select
from segzoo.data.statistics import remembered
from segzoo.errors import SegzooError


def holds_objects(root: Path) -> bool:
    """Returns whether a folder of own data is of objects, by what its splits hold.

    Raises:
        SegzooError: when it holds masks of classes as well.
    """
    for split in SPLITS:
        for name in ("instances", JSON):
            if (root / split / name).exists():
                if (root / split / "masks").exists():
                    raise SegzooError(
                        f"{root / split} holds masks/ and {name}; expected masks for a class per "
                        f"pixel, or {name} for objects, not both."
                    )
                return True
    return False


@dataclasses.dataclass(frozen=True)
class InstanceSummary:
    """What a folder of objects that passed every check holds; `str()` of it is meant to be read.

    Attributes:
        root: the folder.
        spec: its classes, mean and std.
        sizes: the distinct image sizes `(H, W)`, smallest first.
        counts: per split, the number of objects of each example.
        objects: per split, the number of objects of each class, the background's 0 included.
        notes: what else should be known, a sentence each.
    """

    root: str
    spec: DatasetSpec
    sizes: tuple[tuple[int, int], ...]
    counts: Mapping[str, tuple[int, ...]]
    objects: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        kind = "grey" if self.spec.channels == 1 else "RGB"
        low, high = self.sizes[0], self.sizes[-1]
        size = f"{low[0]}x{low[1]}" + (f" to {high[0]}x{high[1]}" if low != high else "")
        counts = ", ".join(f"{len(found)} {split}" for split, found in self.counts.items())
        every = [count for found in self.counts.values() for count in found]
        names = self.spec.class_names
        width = max(map(len, names))
        lines = [
            f"{self.root}: {counts}; {kind}, {size} pixels (height x width).",
            f"{sum(every)} objects, {min(every)} to {max(every)} in an image"
            + (", some of which overlap." if self.spec.overlaps else "."),
        ]
        if len(self.sizes) > 1:
            lines.append("The sizes differ: set image_size to train on them.")
        lines.append(f"{'id':>3} {'class':<{width}} " + "".join(f"{s:>9}" for s in self.objects))
        for number, name in enumerate(names[1:], 1):
            shown = "".join(f"{found[number]:>9}" for found in self.objects.values())
            lines.append(f"{number:>3} {name:<{width}} {shown}")
        return "\n".join([*lines, *self.notes])


class InstanceFolderSource:
    """Some examples of a folder of objects, decoded on access.

    Args:
        entries: the examples.
        counts: the number of objects of each.
        channels: 1 or 3.
        overlaps: whether examples have `masks`.
        facts: where what is measured is kept.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        counts: Sequence[int],
        channels: int,
        overlaps: bool,
        facts: Path,
    ) -> None:
        self.entries, self.counts = tuple(entries), tuple(counts)
        self.channels, self.overlaps, self.facts = channels, overlaps, facts

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[index]
        file = str(entry.image)
        image = decode.decode_image(read_bytes(entry.image), self.channels, file, upright=True)
        return {"image": image, **entry.objects(image.shape[:2], self.overlaps)}

    def name(self, index: int) -> str:
        """Returns the name of the image's file, up to the ending."""
        return self.entries[index].name

    def image_shape(self, index: int) -> tuple[int, ...]:
        """Returns `(H, W, C)` without decoding the image."""
        path = self.entries[index].image
        return (*decode.image_shape(read_bytes(path), str(path), upright=True), self.channels)

    def objects(self, index: int) -> int:
        """Returns the number of objects."""
        return self.counts[index]


class InstanceFolderDataset(Dataset):
    """A folder of images and objects; every file is checked on first use, then remembered.

    Args:
        root: laid out as this module says.
        data_dir: below which what is measured is kept.

    Raises:
        SegzooError: with all faults found.
    """

    def __init__(self, root: Path, data_dir: Path) -> None:
        faults: list[str] = []
        tree = Tree(root, faults)
        self._entries = tree.entries
        name = fingerprint(root, tree.files)
        self._facts = data_dir / "segzoo" / "folder" / name

        def measure() -> dict[str, Any]:
            return _measure(root, tree, faults)

        if faults:
            measure()  # the files that can be read are: all faults are told at once
        measured = remembered(self._facts / "check.json", measure)
        self.summary = _summary(root, tree, measured)
        self.spec = self.summary.spec

    @property
    def splits(self) -> Mapping[str, int]:
        """The number of examples of each split."""
        return {split: len(entries) for split, entries in self._entries.items()}

    def source(self, split: str) -> Source:
        """Returns a split, in the order of the file names or annotations. See `Dataset.source`."""
        chosen: list[Entry] = []
        counts: list[int] = []
        for name, start, stop in select(self.splits, split, self.spec.name):
            chosen += self._entries[name][start:stop]
            counts += self.summary.counts[name][start:stop]
        facts = self._facts / subset_key(entry.image for entry in chosen)
        return InstanceFolderSource(chosen, counts, self.spec.channels, self.spec.overlaps, facts)


def _measure(root: Path, tree: Tree, faults: list[str]) -> dict[str, Any]:
    reading = read_all(root, tree.entries, lambda entry: entry.check(), faults)
    total: Counter[int] = sum(reading.ids.values(), Counter())
    if not faults and not reading.ids.get("train"):
        faults.append("train/: none of its images has an object.")
    if faults:
        raise faults_error(root, faults)
    mean, std = reading.mean_std()
    most = max(count for counts in reading.counts.values() for count in counts)
    notes = list(tree.notes)
    if most == 1 and total.total() > 1 and not reading.overlaps:
        notes.append("No image has more than one object: each needs a number of its own.")
    absent = [name for i, name in enumerate(tree.names, 1) if not reading.ids["train"][i]]
    if absent:
        shown = ", ".join(absent[:10]) + (", ..." if len(absent) > 10 else "")
        notes.append(f"No training image shows {shown}.")
    return {
        "mean": mean,
        "std": std,
        "sizes": sorted(reading.sizes),
        "counts": reading.counts,
        "objects": {
            split: [found[i] for i in range(len(tree.names) + 1)]
            for split, found in reading.ids.items()
        },
        "overlaps": reading.overlaps,
        "notes": notes,
    }


def _summary(root: Path, tree: Tree, measured: dict[str, Any]) -> InstanceSummary:
    return InstanceSummary(
        root=str(root),
        spec=DatasetSpec(
            name=root.name,
            task="instance",
            class_names=("background", *tree.names),
            palette=((0, 0, 0), *tree.palette) if tree.palette else (),
            mean=tuple(measured["mean"]),
            std=tuple(measured["std"]),
            description=f"The images and objects in {root}.",
            overlaps=measured["overlaps"],
        ),
        sizes=tuple(tuple(size) for size in measured["sizes"]),
        counts={split: tuple(counts) for split, counts in measured["counts"].items()},
        objects={split: tuple(counts) for split, counts in measured["objects"].items()},
        notes=tuple(measured["notes"]),
    )
