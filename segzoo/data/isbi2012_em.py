"""ISBI 2012 EM segmentation challenge: membranes in electron micrographs (the data of U-Net).

The challenge's own test labels are hidden, so its numbers cannot be had here: the 30 labelled
sections are split into the first 24 (train) and the last 6 (val), and there is no test split.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from segzoo.data.builders import Builder, Record, Records, record, register_builder
from segzoo.data.originals import (
    Pair,
    check_ids,
    check_same_size,
    listed_pairs,
    read_ids,
    read_image,
    read_pages,
)
from segzoo.data.spec import VOID, DatasetSpec
from segzoo.errors import SegzooError

SPEC = DatasetSpec(
    name="isbi2012_em",
    task="semantic",
    class_names=("membrane", "cell"),
    palette=((0, 0, 0), (255, 255, 255)),
    mean=(125.2,),
    std=(43.6,),
    description=(
        "30 consecutive sections of the ventral nerve cord of a Drosophila larva, 512x512 grey "
        "pixels of 4x4x50 nm, serial-section transmission electron microscopy; 0 is membrane, 1 "
        "the inside of a cell. 24 train, 6 val, a split of our own: the labels of the "
        "challenge's 30 test sections are hidden."
    ),
    terms=(
        "free for generating or testing non-commercial image segmentation software; publications "
        "cite TrakEM2 and Cardona et al. 2010"
    ),
)

STACKS = ("train-volume.tif", "train-labels.tif")
LAYOUT = (
    "the challenge's stacks train-volume.tif and train-labels.tif (30 pages each), or "
    "images/00.png..29.png, masks/00.png..29.png (membrane 0; cell 1 or 255) and the lists "
    "train.txt (24 names), val.txt (6)."
)


@register_builder
class Isbi2012Em(Builder):
    """Reads `manual_dir`, laid out as `LAYOUT` says."""

    SPEC = SPEC
    SPLITS: ClassVar[Mapping[str, int]] = {"train": 24, "val": 6}

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the two splits in the order of the stack."""
        if any((manual_dir / stack).exists() for stack in STACKS):
            return self._stacks(manual_dir)
        pairs = listed_pairs(SPEC.name, manual_dir, self.SPLITS, LAYOUT)
        return {split: _read(found) for split, found in pairs.items()}

    def _stacks(self, manual_dir: Path) -> Mapping[str, Records]:
        volume, labels = (list(read_pages(manual_dir / stack)) for stack in STACKS)
        expected = sum(self.SPLITS.values())
        for stack, pages in zip(STACKS, (volume, labels), strict=True):
            if len(pages) != expected:
                raise SegzooError(
                    f"{manual_dir / stack} has {len(pages)} pages; expected {expected}."
                )
        made = [
            _section(f"{i:02d}", image[..., None], label, str(manual_dir / STACKS[1]))
            for i, (image, label) in enumerate(zip(volume, labels, strict=True))
        ]
        first = self.SPLITS["train"]
        return {"train": made[:first], "val": made[first:]}


def _read(pairs: list[Pair]) -> Iterator[Record]:
    for pair in pairs:
        image = read_image(pair.image, SPEC.channels)
        yield _section(pair.name, image, read_ids(pair.mask), str(pair.mask))


def _section(name: str, image: bytes | np.ndarray, mask: np.ndarray, file: str) -> Record:
    check_same_size(image, mask, f"{file} (section {name})")
    # Nothing is void here: the challenge's files write a cell as 255.
    label = np.where(mask == VOID, 1, mask)
    return record(name, image, check_ids(label, SPEC.num_classes, file))
