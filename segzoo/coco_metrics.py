"""COCO's average precision of boxes and masks, by pycocotools, the reference implementation.

Matching, crowds, ranges of area and interpolation are all its own; what stands here is only how
objects become its annotations, and which of its figures have which name.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from segzoo.instances import Objects

DEFINITION = (
    "COCO average precision by pycocotools, at the images' original size: mean over IoU 0.50 to "
    "0.95 in steps of 0.05, over 101 recalls and over the classes that occur in the truth; crowds "
    "ignored; small, medium and large by 32^2 and 96^2 pixels of the mask; the 100 surest "
    "detections of an image, more where the model is made to give more"
)
KINDS = {"mask": "segm", "box": "bbox"}
AREAS = ("", "_small", "_medium", "_large")
NAMES = tuple(f"{kind}_ap{which}" for kind in KINDS for which in ("", "50", "75", *AREAS[1:]))
"""The scores by name: mask_ap, mask_ap50, ..., box_ap_large."""


class Collection:
    """Truth and detections of a split, image by image, for pycocotools.

    Masks are kept as run lengths, a few hundred bytes each.

    Args:
        limit: detections of an image that count.
    """

    def __init__(self, limit: int = 100) -> None:
        self.limit = limit
        self._sizes: list[tuple[int, int]] = []
        self._truth: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    @property
    def images(self) -> int:
        """How many were added."""
        return len(self._sizes)

    def add(self, truth: Objects, found: Objects) -> None:
        """Adds one image: its objects, and what was detected in it."""
        self._sizes.append((truth.masks.shape[1], truth.masks.shape[2]))
        for objects, listed in ((truth, self._truth), (found, self._found)):
            listed += _annotations(objects, len(self._sizes), len(listed) + 1)

    def scores(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Returns every score of `NAMES`, and mask AP by class.

        Args:
            class_names: the background first.

        Returns:
            Fractions; None where there is nothing to be found. `ap` holds mask AP by class name.
        """
        found: dict[str, Any] = {}
        for kind, iou_type in KINDS.items():
            precision = self._precision(iou_type, len(class_names))
            found[f"{kind}_ap"] = _mean(precision[..., 0])
            found[f"{kind}_ap50"] = _mean(precision[0, ..., 0])
            found[f"{kind}_ap75"] = _mean(precision[5, ..., 0])
            for number, area in enumerate(AREAS[1:], start=1):
                found[f"{kind}_ap{area}"] = _mean(precision[..., number])
            if kind == "mask":
                by_class = {
                    name: _mean(precision[:, :, number, 0])
                    for number, name in enumerate(class_names[1:])
                }
        return {**found, "ap": by_class}

    def _precision(self, iou_type: str, num_classes: int) -> np.ndarray:
        """pycocotools' precision by IoU, recall, class and area; -1 where there is no truth."""
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
            evaluation = COCOeval(*self.for_pycocotools(iou_type, num_classes), iou_type)
            evaluation.params.maxDets = [self.limit]
            evaluation.evaluate()
            evaluation.accumulate()
        precision: np.ndarray = evaluation.eval["precision"][..., 0]
        return precision

    def for_pycocotools(self, iou_type: str, num_classes: int) -> tuple[Any, Any]:
        """Returns truth and detections as two `pycocotools.coco.COCO`, to compare by `iou_type`."""
        from pycocotools.coco import COCO

        truth, found = COCO(), COCO()
        images = [
            {"id": number, "height": height, "width": width}
            for number, (height, width) in enumerate(self._sizes, start=1)
        ]
        for coco, listed in ((truth, self._truth), (found, self._found)):
            annotations = [dict(annotation) for annotation in listed]  # it writes into them
            # A true object's area is that of its mask, a detection's that of what is compared.
            if coco is found and iou_type == "bbox":
                for annotation in annotations:
                    annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            coco.dataset = {
                "images": images,
                "categories": [{"id": number} for number in range(1, num_classes)],
                "annotations": annotations,
            }
            with contextlib.redirect_stdout(io.StringIO()):
                coco.createIndex()
        return truth, found


def _mean(precision: np.ndarray) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) if defined.size else None


def _annotations(objects: Objects, image: int, first: int) -> list[dict[str, Any]]:
    from pycocotools import mask as run_lengths

    if not len(objects):
        return []
    encoded = run_lengths.encode(
        np.asfortranarray(objects.masks.transpose(1, 2, 0).astype(np.uint8))
    )
    return [
        {
            "id": first + n,
            "image_id": image,
            "category_id": int(objects.classes[n]),
            "iscrowd": int(objects.crowd[n]),
            "score": float(objects.scores[n]),
            "segmentation": encoded[n],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": int(run_lengths.area(encoded[n])),
        }
        for n, (y0, x0, y1, x1) in enumerate(objects.boxes.astype(float).tolist())
    ]
