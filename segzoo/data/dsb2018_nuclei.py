"""2018 Data Science Bowl: nuclei in fluorescence images (Caicedo et al. 2019, BBBC038).

A subset, all 256x256 and fluorescence, with a split of its own: no published number is on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from segzoo.data.builders import Builder, Record, Records, record, register_builder
from segzoo.data.instances import register_instances
from segzoo.data.originals import (
    check_same_size,
    listed_pairs,
    need,
    read_ids,
    read_image,
    read_names,
)
from segzoo.data.spec import DatasetSpec
from segzoo.errors import SegzooError

SPEC = DatasetSpec(
    name="dsb2018_nuclei",
    task="semantic",
    class_names=("background", "nucleus"),
    palette=((0, 0, 0), (255, 255, 255)),
    mean=(12.7,),
    std=(17.7,),
    description=(
        "240 fluorescence images of nuclei, 256x256 grey pixels, out of the 2018 Data Science "
        "Bowl's first stage, with corrected annotations; instance ids are kept. 160 train, 40 "
        "val, 40 test: a split of our own."
    ),
    terms="CC0 (public domain)",
)

LAYOUT = (
    "the lists train.txt (160 names), val.txt (40), test.txt (40), with either "
    "images/<name>.png and masks/<name>.png (0 background, 1..N one nucleus each), or the "
    "competition's folder stage1_train/<id>/{images,masks}/*.png, whose ids begin with the names."
)


@register_builder
class Dsb2018Nuclei(Builder):
    """Reads `manual_dir`, laid out as `LAYOUT` says; the label is `instances > 0`."""

    SPEC = SPEC
    INSTANCES = True
    SPLITS: ClassVar[Mapping[str, int]] = {"train": 160, "val": 40, "test": 40}

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the three splits in the order of their lists."""
        if (manual_dir / "stage1_train").is_dir():
            return self._competition(manual_dir)
        pairs = listed_pairs(SPEC.name, manual_dir, self.SPLITS, LAYOUT)
        return {
            split: (
                _nuclei(p.name, read_image(p.image, 1), read_ids(p.mask), p.mask) for p in found
            )
            for split, found in pairs.items()
        }

    def _competition(self, manual_dir: Path) -> Mapping[str, Records]:
        need(SPEC.name, manual_dir, [f"{split}.txt" for split in self.SPLITS], LAYOUT)
        folders = sorted(p for p in (manual_dir / "stage1_train").iterdir() if p.is_dir())
        splits: dict[str, list[tuple[str, Path]]] = {}
        for split, count in self.SPLITS.items():
            names = read_names(manual_dir / f"{split}.txt")
            if len(names) != count:
                raise SegzooError(
                    f"{manual_dir / split}.txt lists {len(names)} images; expected {count}."
                )
            found = {
                name: [folder for folder in folders if folder.name.startswith(name)]
                for name in names
            }
            for name, matches in found.items():
                if len(matches) != 1:
                    raise SegzooError(
                        f"{manual_dir / 'stage1_train'}: {len(matches)} folders begin with "
                        f"{name!r}, named in {split}.txt; expected one."
                    )
            splits[split] = [(name, matches[0]) for name, matches in found.items()]
        return {split: _merged(found) for split, found in splits.items()}


def _merged(folders: list[tuple[str, Path]]) -> Iterator[Record]:
    """Merges one mask per nucleus into a map of ids; where two overlap, the earlier stays."""
    for name, folder in folders:
        images = sorted((folder / "images").glob("*.png"))
        masks = sorted((folder / "masks").glob("*.png"))
        if len(images) != 1 or not masks:
            raise SegzooError(
                f"{folder}: {len(images)} images and {len(masks)} masks; expected one image and "
                "a mask for each nucleus."
            )
        instances = np.zeros(read_ids(masks[0]).shape, np.uint16)
        for number, mask in enumerate(masks, 1):
            nucleus = read_ids(mask)
            check_same_size(instances, nucleus, str(mask))
            instances[(nucleus > 0) & (instances == 0)] = number
        yield _nuclei(name, read_image(images[0], 1), instances, folder)


def _nuclei(name: str, image: bytes, instances: np.ndarray, file: Path) -> Record:
    check_same_size(image, instances, str(file))
    return record(name, image, (instances > 0).astype(np.uint8), instances)


register_instances(SPEC)
