"""Average precision against values worked out by hand, and pycocotools' own summary."""

import contextlib
import io

import numpy as np
import pytest

from segzoo.coco_metrics import NAMES, Collection
from segzoo.instances import Objects

CLASSES = ("background", "thing")


def objects(*boxes, size=(100, 100), classes=None, scores=None, crowd=None):
    """Rectangles with masks that fill their boxes."""
    number = len(boxes)
    masks = np.zeros((number, *size), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Objects(
        classes=np.asarray(classes or [1] * number, np.int32),
        masks=masks,
        boxes=np.asarray(boxes, np.float32).reshape(-1, 4),
        scores=np.asarray(scores or [1.0] * number, np.float32),
        crowd=np.asarray(crowd or [False] * number, bool),
    )


def score(*images, class_names=CLASSES):
    collection = Collection()
    for truth, found in images:
        collection.add(truth, found)
    return collection.scores(class_names)


def test_average_precision_by_hand():
    truth = objects((0, 0, 10, 10), (20, 20, 40, 40))
    # The surest is exact, the second is nowhere, the third covers 7/10 of the second object.
    found = objects((0, 0, 10, 10), (60, 60, 70, 70), (20, 20, 40, 34), scores=[0.9, 0.8, 0.7])
    scores = score((truth, found))
    # Precision 1 at the 51 recalls up to 0.5, then 2/3 at the other 50, where IoU 0.7 is enough.
    both, one = (51 + 50 * 2 / 3) / 101, 51 / 101
    for kind in ("mask", "box"):
        assert scores[f"{kind}_ap50"] == pytest.approx(both)
        assert scores[f"{kind}_ap75"] == pytest.approx(one)
        assert scores[f"{kind}_ap"] == pytest.approx((5 * both + 5 * one) / 10)
        assert scores[f"{kind}_ap_small"] == scores[f"{kind}_ap"]
        assert scores[f"{kind}_ap_large"] is None
    assert scores["ap"] == {"thing": scores["mask_ap"]}
    assert set(scores) == {*NAMES, "ap"}


def test_classes_are_scored_apart_and_averaged():
    truth = objects((0, 0, 40, 40), (50, 50, 90, 90), classes=[1, 2])
    found = objects((0, 0, 40, 40), (50, 50, 90, 90), classes=[1, 1], scores=[0.9, 0.8])
    scores = score((truth, found), class_names=("background", "a", "b", "c"))
    assert scores["ap"] == pytest.approx({"a": 1.0, "b": 0.0, "c": None})
    assert scores["mask_ap"] == pytest.approx(0.5)
    assert scores["mask_ap_medium"] == pytest.approx(0.5)


def test_masks_and_boxes_are_told_apart():
    found = objects((0, 0, 40, 40))
    found.masks[0, :30] = False
    scores = score((objects((0, 0, 40, 40)), found))
    assert scores["box_ap"] == pytest.approx(1.0)
    assert scores["mask_ap"] == 0.0


def test_a_crowd_is_neither_missed_nor_wrong():
    truth = objects((0, 0, 10, 10), (50, 50, 90, 90), crowd=[False, True])
    sure = objects((60, 60, 70, 70), (70, 70, 80, 80), (0, 0, 10, 10), scores=[0.9, 0.8, 0.7])
    assert score((truth, sure))["mask_ap"] == pytest.approx(1.0)
    alone = objects((60, 60, 70, 70), (0, 0, 10, 10), scores=[0.9, 0.7])
    assert score((objects((0, 0, 10, 10)), alone))["mask_ap"] == pytest.approx(0.5)


def test_nothing_there_nothing_found_and_many():
    nothing = objects()
    assert set(Collection().scores(CLASSES)) == {*NAMES, "ap"}
    assert score((nothing, nothing))["mask_ap"] is None
    assert score((nothing, objects((0, 0, 5, 5))))["mask_ap"] is None
    assert score((objects((0, 0, 5, 5)), nothing))["mask_ap"] == 0.0
    many = objects(*[(4 * y, 4 * x, 4 * y + 3, 4 * x + 3) for y in range(20) for x in range(15)])
    collection = Collection(limit=300)
    collection.add(many, many)
    assert collection.scores(CLASSES)["mask_ap"] == pytest.approx(1.0)
    assert score((many, many))["mask_ap"] < 0.4  # by COCO's rule a hundred count


def test_the_figures_are_those_of_pycocotools_own_summary():
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    images = []
    for _ in range(4):
        corner = rng.integers(0, 60, (8, 2))
        truth = np.concatenate([corner, corner + rng.integers(4, 40, (8, 2))], 1)
        found = np.clip(truth + rng.integers(-3, 4, truth.shape), 0, 100)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        kinds = rng.integers(1, 3, 8).tolist()
        sure = rng.uniform(0.1, 1, 8).tolist()
        crowd = (rng.uniform(size=8) < 0.2).tolist()
        images.append(
            (
                objects(*truth.tolist(), classes=kinds, crowd=crowd),
                objects(*found.tolist(), classes=kinds, scores=sure),
            )
        )
    ours = score(*images, class_names=("background", "a", "b"))
    collection = Collection()
    for truth, found in images:
        collection.add(truth, found)
    for kind, iou_type in (("mask", "segm"), ("box", "bbox")):
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*collection.for_pycocotools(iou_type, 3), iou_type)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ("", "50", "75", "_small", "_medium", "_large")
        theirs = [None if value == -1 else value for value in evaluation.stats[:6]]
        assert [ours[f"{kind}_ap{name}"] for name in names] == pytest.approx(theirs)
