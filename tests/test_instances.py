"""Objects on the host: the truth, detections at the size of the picture, one map of them."""

import numpy as np
import pytest

from segzoo import instances
from segzoo.instance_scores import InstanceTally
from segzoo.instances import Objects


def rectangles(*boxes, scores, size=(20, 30), classes=None):
    masks = np.zeros((len(boxes), *size), bool)
    for mask, (y0, x0, y1, x1) in zip(masks, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return Objects(
        np.asarray(classes or [1] * len(boxes), np.int32),
        masks,
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(scores, np.float32),
        np.zeros(len(boxes), bool),
    )


def example(ids, classes=(1, 2)):
    ids = np.asarray(ids, np.int32)
    return {
        "image": np.zeros((*ids.shape, 3), np.uint8),
        "instances": ids,
        "classes": np.asarray(classes, np.int32),
        "crowd": np.zeros(len(classes), bool),
    }


def answers(boxes, scores, classes, places=4, index=(0,)):
    """What a model gives for one image: full masks in these boxes."""
    number = len(boxes)
    filled = {
        "boxes": np.zeros((1, places, 4), np.float32),
        "scores": np.zeros((1, places), np.float32),
        "classes": np.zeros((1, places), np.int32),
        "masks": np.zeros((1, places, 28, 28), np.float32),
        "valid": np.arange(places)[None] < number,
        "index": np.asarray(index, np.uint32),
    }
    if number:
        filled["boxes"][0, :number] = boxes
        filled["scores"][0, :number] = scores
        filled["classes"][0, :number] = classes
        filled["masks"][0, :number] = 1.0
    return filled


def test_truth_of_a_map_and_of_bitmaps_is_the_same():
    one = example([[1, 1, 0], [0, 2, 2]])
    bitmaps = np.asarray([[[1, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 1, 1]]], np.uint8)
    other = {**{k: v for k, v in one.items() if k != "instances"}, "masks": bitmaps}
    for left, right in zip(*(vars(instances.truth(e)).values() for e in (one, other)), strict=True):
        np.testing.assert_array_equal(left, right)
    truth = instances.truth(one)
    assert truth.boxes.tolist() == [[0, 0, 1, 2], [1, 1, 2, 3]]
    assert truth.masks.dtype == bool
    assert len(instances.truth(example(np.zeros((2, 3)), ()))) == 0


def test_detections_come_back_to_the_size_of_the_picture():
    raw = answers([[4, 8, 12, 24]], [0.9], [2])
    image = {name: array[0] for name, array in raw.items() if name != "index"}
    found = instances.found(image, (0.5, 2.0), (20, 64))
    assert found.boxes.tolist() == [[2, 16, 6, 48]]
    assert found.masks.shape == (1, 20, 64)
    expected = np.zeros((20, 64), bool)
    expected[2:6, 16:48] = True
    # The border of a mask fades over half a cell.
    assert np.count_nonzero(found.masks[0] != expected) <= 8
    assert found.classes.tolist() == [2]
    assert found.scores.tolist() == pytest.approx([0.9])


def test_the_surest_lies_on_top_and_what_is_covered_or_unsure_is_left_out():
    found = rectangles(
        (0, 0, 10, 10), (0, 4, 10, 14), (0, 6, 10, 16), (15, 0, 20, 5), scores=[0.6, 0.9, 0.8, 0.4]
    )
    ids = instances.lay_out(found)
    assert (ids[:10, 4:14] == 2).all()
    assert set(np.unique(ids)) == {0, 2}  # four tenths of 1 are left, two of 3; 4 is unsure
    assert instances.lay_out(found, left=0.3)[0, 0] == 1
    assert set(np.unique(instances.lay_out(found, confident=0.3))) == {0, 2, 4}
    assert not instances.lay_out(rectangles(scores=[])).any()


def test_a_split_is_scored_image_by_image_and_what_fills_up_a_batch_is_not():
    ids = np.zeros((32, 32), int)
    ids[4:20, 4:20], ids[22:30, 10:30] = 1, 2
    source = [example(ids), example(np.zeros((32, 32)), ())]
    tally = InstanceTally(source, lambda size: (64, 64), num_classes=3)
    exact = answers([[8, 8, 40, 40], [44, 20, 60, 60]], [0.9, 0.8], [1, 2])
    tally.add(exact)
    tally.add(answers([], [], [], index=[1]))
    tally.add({**exact, "index": np.asarray([2], np.uint32)})
    scores = tally.scores(("background", "a", "b"))
    assert scores["images"] == 2
    assert scores["box_ap"] == pytest.approx(1.0)
    assert scores["mask_ap"] > 0.9
    assert scores["rq"] == 1.0
    assert scores["pq"] == pytest.approx(scores["sq"])
    assert "pycocotools" in scores["definition"]


def test_where_objects_overlap_there_is_no_panoptic_quality():
    whole = example(np.ones((16, 16)), (1,))
    whole["masks"] = (whole.pop("instances") == 1)[None].astype(np.uint8)
    tally = InstanceTally([whole], lambda size: size, num_classes=2)
    tally.add(answers([[0, 0, 16, 16]], [0.9], [1]))
    scores = tally.scores(("background", "a"))
    assert scores["pq"] is None
    assert scores["mask_ap"] == pytest.approx(1.0)


def test_three_hundred_objects_none_and_a_crowd_give_finite_scores():
    ids = np.kron(np.arange(1, 301).reshape(15, 20), np.ones((4, 4), int))
    many = example(ids, [1] * 300)
    crowd = example(np.ones((16, 16)), (1,))
    crowd["crowd"][:] = True
    tally = InstanceTally([many, crowd, example(np.zeros((9, 7)), ())], lambda size: size, 2)
    rows = [[4 * y, 4 * x, 4 * y + 4, 4 * x + 4] for y in range(15) for x in range(20)]
    tally.add(answers(rows, [0.9] * 300, [1] * 300, places=300))
    tally.add(answers([[0, 0, 8, 8]], [0.9], [1], index=[1]))
    tally.add(answers([], [], [], index=[2]))
    scores = tally.scores(("background", "a"))
    assert scores["box_ap"] == pytest.approx(1.0)
    assert scores["rq"] == pytest.approx(1.0)


def test_only_chooses():
    found = rectangles((0, 0, 5, 5), (5, 5, 9, 9), scores=[0.3, 0.9])
    sure = found.only(found.scores > 0.5)
    assert len(sure) == 1
    assert sure.boxes.tolist() == [[5, 5, 9, 9]]
