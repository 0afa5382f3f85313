"""COCO 2017: everyday objects in their surroundings (Lin et al. 2014, arXiv:1405.0312)."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

from segzoo.cores import usable_cores
from segzoo.data import decode
from segzoo.data.builders import Builder, Record, Records, instance_record, register_builder
from segzoo.data.coco_json import Picture, read_annotations
from segzoo.data.originals import need, read_image
from segzoo.data.spec import DatasetSpec
from segzoo.errors import SegzooError

log = logging.getLogger(__name__)

CLASSES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant "
    "stop_sign parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe "
    "backpack umbrella handbag tie suitcase frisbee skis snowboard sports_ball kite baseball_bat "
    "baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl "
    "banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed dining_table toilet tv laptop mouse remote keyboard cell_phone microwave "
    "oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier toothbrush"
)

SPEC = DatasetSpec(
    name="coco",
    task="instance",
    class_names=("background", *(name.replace("_", " ") for name in CLASSES.split())),
    # ImageNet's, which models of COCO are given by convention.
    mean=(123.675, 116.28, 103.53),
    std=(58.395, 57.12, 57.375),
    description=(
        "Photographs of 80 kinds of everyday objects, outlined one by one, or as a crowd where "
        "they were not told apart; masks may overlap. 118,287 train and 5,000 val of 2017."
    ),
    terms="annotations CC BY 4.0; the images under the terms of Flickr and their authors",
    overlaps=True,
)

LAYOUT = (
    "annotations/instances_train2017.json and instances_val2017.json, beside the folders of "
    "images train2017/ and val2017/ (one split may be missing)."
)


@register_builder
class Coco(Builder):
    """Reads `manual_dir`, laid out as `LAYOUT` says; the images' bytes are kept as they are."""

    SPEC = SPEC
    YEAR: ClassVar[str] = "2017"
    LARGE: ClassVar[int] = 4000

    def records(self, manual_dir: Path) -> Mapping[str, Records]:
        """Returns the splits whose annotations are there, in the order of their lists."""
        files = {
            split: f"annotations/instances_{split}{self.YEAR}.json" for split in ("train", "val")
        }
        found = [split for split, file in files.items() if (manual_dir / file).exists()]
        if not found:
            need(SPEC.name, manual_dir, files.values(), LAYOUT)
        need(SPEC.name, manual_dir, [f"{split}{self.YEAR}" for split in found], LAYOUT)
        if len(found) < len(files):
            log.warning(
                "%s: only the split %r is there; to add the other, delete what is prepared now",
                manual_dir,
                found[0],
            )
        return {
            split: self._split(manual_dir / files[split], manual_dir / f"{split}{self.YEAR}")
            for split in found
        }

    def _split(self, file: Path, images: Path) -> Iterator[Record]:
        faults: list[str] = []
        annotations = read_annotations(file, faults)
        names = annotations.class_names
        if not faults and names != SPEC.class_names:
            faults.append(
                f"{file.name}: lists {len(names) - 1} categories, {', '.join(names[1:4])}, ...; "
                f"expected COCO's {SPEC.num_classes - 1}. Other annotations of this format are "
                "read as a folder of own data."
            )
        if faults:
            more = f" And {len(faults) - 1} more faults." if len(faults) > 1 else ""
            raise SegzooError(f"{file.parent}{os.sep}{faults[0]}{more}")
        if annotations.left_out:
            log.warning("%s; they are left out", annotations.left_out)
        absent = [p.name for p in annotations.pictures if not (images / p.name).exists()]
        if absent:
            raise SegzooError(
                f"{images}: {len(absent)} of {len(annotations.pictures)} images listed in "
                f"{file.name} are missing, e.g. {absent[0]}."
            )
        yield from _read_ahead(images, annotations.pictures)


def _read_ahead(images: Path, pictures: Iterable[Picture]) -> Iterator[Record]:
    """Reads and checks a few images at a time, in threads, since there are many."""

    def read(picture: Picture) -> Record:
        path = images / picture.name
        image = read_image(path, SPEC.channels)
        size = decode.image_shape(image)
        if size != picture.size:
            raise SegzooError(
                f"{path}: the image is {size[1]}x{size[0]} and its annotations are of "
                f"{picture.size[1]}x{picture.size[0]} pixels (width x height)."
            )
        return instance_record(picture.name, image, picture.classes, picture.crowd, picture.masks)

    rest = iter(pictures)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        while chunk := list(itertools.islice(rest, 64)):
            yield from pool.map(read, chunk)
