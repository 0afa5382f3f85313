"""What Mask R-CNN learns from: which anchors and regions, and what is said of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.models.rcnn_targets import anchors_to_learn, regions_to_learn
from segzoo.models.roi_heads import WEIGHTS
from segzoo.ops import boxes as box_ops

KEY = jax.random.key(0)
SIZE = jnp.array([64, 64])


def objects(*boxes, classes=None, crowd=None):
    """Targets of an image of 64 x 64; an object is its whole box."""
    masks = np.zeros((64, 64), np.int32)
    for number, (top, left, bottom, right) in enumerate(boxes, start=1):
        masks[top:bottom, left:right] = number
    there = len(boxes)
    return {
        "boxes": jnp.asarray(boxes, jnp.float32).reshape(there, 4),
        "classes": jnp.asarray(classes or range(1, there + 1), jnp.int32),
        "masks": jnp.asarray(masks),
        "valid": jnp.ones(there, bool),
        "crowd": jnp.asarray(crowd or [False] * there),
    }


def learned(anchors, targets, size=SIZE, count=8):
    place, found = anchors_to_learn(KEY, jnp.asarray(anchors, jnp.float32), targets, size, count)
    kinds = zip(place, found["positive"], found["valid"], strict=True)
    return {int(i): bool(positive) for i, positive, valid in kinds if valid}


def test_anchors_by_their_overlap():
    """IoU 1 and 0.7 are positive, 0.5 is neither, 0.2 and 0 are negative."""
    anchors = [[0, 0, 20, 20], [0, 0, 14, 20], [0, 0, 10, 20], [0, 0, 4, 20], [40, 40, 60, 60]]
    kinds = learned(anchors, objects((0, 0, 20, 20)))
    assert kinds == {0: True, 1: True, 3: False, 4: False}


def test_the_best_anchor_of_an_object_is_positive_however_small_its_overlap():
    anchors = [[0, 0, 8, 20], [0, 0, 4, 20], [40, 40, 60, 60]]
    assert learned(anchors, objects((0, 0, 20, 20))) == {0: True, 1: False, 2: False}


def test_from_anchors_on_padding_and_in_crowds_nothing_is_learned():
    anchors = [[0, 0, 10, 10], [50, 50, 70, 70], [20, 20, 40, 40]]
    crowd = objects((20, 20, 40, 40), crowd=[True])
    assert learned(anchors, crowd, size=jnp.array([55, 55])) == {0: False}


def test_the_target_of_an_anchor_is_the_offset_of_its_object():
    anchors = jnp.array([[2.0, 2, 20, 20], [30, 30, 50, 48]])
    targets = objects((0, 0, 20, 20), (30, 30, 50, 50))
    place, found = anchors_to_learn(KEY, anchors, targets, SIZE, 4)
    drawn = np.flatnonzero(found["positive"] & found["valid"])
    assert sorted(map(int, place[drawn])) == [0, 1]
    back = box_ops.decode(found["target"][drawn], anchors[place[drawn]])
    np.testing.assert_allclose(back, targets["boxes"][place[drawn]], atol=1e-4)


def regions(proposals, targets, count=8):
    proposals = jnp.asarray(proposals, jnp.float32).reshape(-1, 4)
    there = jnp.ones(len(proposals), bool)
    return regions_to_learn(KEY, proposals, there, targets, count=count, cells=4)


def test_true_boxes_are_regions_too_and_come_first():
    targets = objects((0, 0, 20, 20), (30, 30, 50, 50), classes=[7, 3])
    found = regions([[0, 40, 10, 60]], targets)
    labels = {
        tuple(map(float, r)): int(n) for r, n in zip(found["region"], found["label"], strict=True)
    }
    assert labels[0, 0, 20, 20] == 7
    assert labels[30, 30, 50, 50] == 3
    assert labels[0, 40, 10, 60] == 0
    assert set(map(int, found["label"][:2])) == {7, 3}
    assert int(found["valid"].sum()) == 3
    assert np.all(found["cells"] == 1)  # of an object that fills its box


def test_a_region_is_positive_from_half_an_overlap_on():
    found = regions([[0, 0, 10, 20], [0, 0, 9, 20]], objects((0, 0, 20, 20), classes=[5]), count=12)
    labels = {
        tuple(map(float, r)): int(n) for r, n in zip(found["region"], found["label"], strict=True)
    }
    assert labels[0, 0, 10, 20] == 5
    assert labels[0, 0, 9, 20] == 0
    half = next(i for i, r in enumerate(found["region"]) if float(r[2]) == 10)
    expected = box_ops.encode(jnp.array([[0.0, 0, 20, 20]]), found["region"][half][None], WEIGHTS)
    np.testing.assert_allclose(found["target"][half], expected[0], atol=1e-6)


@pytest.mark.parametrize("count", [4, 64])
def test_of_the_sample_at_most_a_quarter_is_positive(count):
    found = regions([[0, 0, 20, 20 - i / 10] for i in range(40)], objects((0, 0, 20, 20)), count)
    assert int((found["label"] > 0).sum()) == count // 4
    assert found["cells"].shape == (count // 4, 4, 4)


def test_an_image_without_objects_gives_background_alone():
    targets = objects((0, 0, 1, 1))
    targets["valid"] = jnp.zeros(1, bool)
    found = regions([[0, 0, 20, 20]], targets)
    assert not np.any(found["label"])
    assert int(found["valid"].sum()) == 1
    assert np.isfinite(found["target"]).all()
