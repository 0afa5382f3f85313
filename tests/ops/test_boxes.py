"""Boxes: overlaps by hand and by counting pixels, offsets there and back, no NaN anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops import boxes as box_ops
from segzoo.ops.boxes import LARGEST_LOG, area, clip, covered, decode, encode, intersection, iou

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(rng, number, side=40, whole=False, smallest=0):
    corners = np.sort(rng.uniform(0, side, size=(number, 2, 2)), axis=1)
    corners = np.round(corners) if whole else corners
    corners[:, 1] += smallest
    return corners.reshape(number, 4).astype(np.float32)


def painted(box, side=40):
    image = np.zeros((side, side), bool)
    y0, x0, y1, x1 = box.astype(int)
    image[y0:y1, x0:x1] = True
    return image


def test_overlaps_are_those_of_the_pixels():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 12, whole=True), random_boxes(rng, 9, whole=True)
    pixels_a, pixels_b = ([painted(box) for box in boxes] for boxes in (a, b))
    np.testing.assert_array_equal(area(jnp.asarray(a)), [p.sum() for p in pixels_a])
    common = np.array([[(p & q).sum() for q in pixels_b] for p in pixels_a])
    union = np.array([[(p | q).sum() for q in pixels_b] for p in pixels_a])
    alone = np.array([p.sum() for p in pixels_a])[:, None]
    np.testing.assert_array_equal(intersection(a, b), common)
    np.testing.assert_allclose(iou(a, b), common / np.maximum(union, 1), rtol=1e-6)
    np.testing.assert_allclose(covered(a, b), common / np.maximum(alone, 1), rtol=1e-6)


def test_boxes_without_area_overlap_with_nothing_and_have_finite_gradients():
    point, inside_out = [5.0, 5.0, 5.0, 5.0], [9.0, 9.0, 3.0, 4.0]
    boxes = jnp.asarray([point, inside_out, [0.0, 0.0, 10.0, 10.0]])
    np.testing.assert_array_equal(iou(boxes, boxes), np.diag([0, 0, 1]))
    np.testing.assert_array_equal(covered(boxes, boxes), np.diag([0, 0, 1]))

    def everything(boxes):
        there = encode(boxes[:, None], boxes[None], WEIGHTS)
        back = decode(there, boxes[None], WEIGHTS)
        return sum(jnp.sum(jnp.sin(x)) for x in (iou(boxes, boxes), there, back))

    value, gradient = jax.jit(jax.value_and_grad(everything))(boxes)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_decoding_undoes_encoding():
    rng = np.random.default_rng(1)
    boxes, anchors = random_boxes(rng, 50, smallest=1), random_boxes(rng, 50, smallest=1)
    for weights in ((1.0,) * 4, WEIGHTS):
        offsets = encode(jnp.asarray(boxes), jnp.asarray(anchors), weights)
        np.testing.assert_allclose(decode(offsets, jnp.asarray(anchors), weights), boxes, atol=1e-3)


def test_offsets_are_in_the_papers_order():
    anchor = jnp.asarray([10.0, 20.0, 30.0, 30.0])  # 20 high, 10 wide, its centre at (20, 25)
    assert encode(jnp.asarray([10.0, 25.0, 30.0, 35.0]), anchor).tolist() == [0.5, 0, 0, 0]
    assert encode(jnp.asarray([20.0, 20.0, 40.0, 30.0]), anchor).tolist() == [0, 0.5, 0, 0]
    wide = encode(jnp.asarray([10.0, 15.0, 30.0, 35.0]), anchor, WEIGHTS)
    np.testing.assert_allclose(wide, [0, 0, 5 * np.log(2), 0], rtol=1e-6)
    np.testing.assert_allclose(
        decode(jnp.asarray([0.0, 0.0, 0.0, np.log(2)]), anchor), [0, 20, 40, 30], rtol=1e-6
    )


def test_growth_is_bounded():
    anchor = jnp.asarray([0.0, 0.0, 16.0, 16.0])
    huge = decode(jnp.asarray([0.0, 0.0, 1000.0, 1e30]), anchor)
    np.testing.assert_allclose(box_ops.sides(huge), [1000, 1000], rtol=1e-5)
    assert np.exp(LARGEST_LOG) == pytest.approx(62.5)


def test_clipping():
    boxes = jnp.asarray([[-5.0, 3.0, 50.0, 70.0], [45.0, 61.0, 80.0, 90.0]])
    clipped = clip(boxes, jnp.asarray([40, 60]))
    assert clipped.tolist() == [[0, 3, 40, 60], [40, 60, 40, 60]]
    each = clip(boxes, jnp.asarray([[40, 60], [50, 65]]))
    assert each.tolist() == [[0, 3, 40, 60], [45, 61, 50, 65]]
