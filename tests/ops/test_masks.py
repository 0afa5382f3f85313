"""Masks: there and back, at the right pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops import masks as module
from segzoo.ops.masks import boxes_of_masks, paste_masks

crop_masks = jax.jit(module.crop_masks, static_argnums=3)


def test_a_full_mask_fills_the_pixels_whose_centres_lie_in_its_box():
    box = np.array([3.4, 5.6, 20.7, 17.2], np.float32)
    pasted = np.asarray(paste_masks(jnp.ones((28, 28)), jnp.asarray(box), (30, 25)))
    y, x = np.mgrid[:30, :25] + 0.5
    inside = (y > box[0]) & (y < box[2]) & (x > box[1]) & (x < box[3])
    # Up to the corners, where the last cells, half of nothing either way, make a quarter.
    assert (pasted & ~inside).sum() == 0
    assert (inside & ~pasted).sum() <= 4


def test_cells_larger_than_pixels_are_interpolated():
    mask = jnp.asarray([[0.0, 1.0], [0.0, 1.0]])
    pasted = paste_masks(mask, jnp.asarray([0.0, 0.0, 8.0, 8.0]), (8, 8))
    assert pasted[4].tolist() == [False] * 4 + [True] * 4
    assert paste_masks(mask, jnp.asarray([0.0, 0, 8, 8]), (8, 8), 0.9)[4].sum() < 4


def test_boxes_over_the_border_and_without_area():
    boxes = jnp.asarray([[-10.0, -10.0, 10.0, 10.0], [5.0, 5.0, 5.0, 9.0], [50.0, 50, 60, 60]])
    pasted = paste_masks(jnp.ones((3, 14, 14)), boxes, (20, 20))
    assert pasted.shape == (3, 20, 20)
    assert pasted.dtype == bool
    assert pasted[0].sum() in (99, 100)
    assert not pasted[1:].any()


def test_leading_axes_are_kept():
    assert paste_masks(jnp.ones((2, 3, 28, 28)), jnp.zeros((2, 3, 4)), [5, 6]).shape == (2, 3, 5, 6)
    assert paste_masks(jnp.ones((0, 28, 28)), jnp.zeros((0, 4)), (5, 6)).shape == (0, 5, 6)


def ellipse(size, center, radii):
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 < 1


def test_what_is_cropped_and_pasted_is_the_mask_again():
    masks = np.stack(
        [ellipse((90, 120), c, r) for c, r in [((40, 50), (30, 20)), ((60, 90), (12, 25))]]
    )
    boxes = boxes_of_masks(masks)
    crops = crop_masks(jnp.asarray(masks), jnp.arange(2), jnp.asarray(boxes), 28)
    again = np.asarray(paste_masks(crops, jnp.asarray(boxes), (90, 120)))
    for before, after in zip(masks, again, strict=True):
        assert (before & after).sum() / (before | after).sum() > 0.95


def by_loops(mask, box, size):
    first, extent = box[:2] - 0.5, box[2:] - box[:2]
    points = np.maximum(np.ceil(extent / size), 1).astype(int)
    padded = np.pad(mask.astype(float), ((0, 1), (0, 1)), mode="edge")
    result = np.zeros((size, size))
    for i, j in np.ndindex(size, size):
        for a, b in np.ndindex(*points):
            y = first[0] + extent[0] * (i + (a + 0.5) / points[0]) / size
            x = first[1] + extent[1] * (j + (b + 0.5) / points[1]) / size
            y, x = np.clip([y, x], 0, np.array(mask.shape) - 1)
            v, u, y, x = y % 1, x % 1, int(y), int(x)
            rows = padded[y : y + 2, x : x + 2]
            result[i, j] += np.array([1 - v, v]) @ rows @ np.array([1 - u, u]) / points.prod()
    return result


@pytest.mark.parametrize("box", [[0, 0, 40, 50], [3.3, 4.7, 35.1, 20.2], [10, 10, 10, 10]])
def test_a_crop_is_roi_align_with_as_many_points_as_pixels(box):
    mask = np.random.default_rng(0).random((40, 50)) < 0.5
    box = np.asarray(box, np.float32)
    crop = crop_masks(jnp.asarray(mask[None]), jnp.asarray([0]), jnp.asarray(box[None]), 7)
    np.testing.assert_allclose(crop[0], by_loops(mask, box, 7), atol=1e-5)


def test_a_map_of_objects_is_as_good_as_their_bitmaps():
    objects = np.zeros((20, 20), np.int32)
    objects[2:9, 3:8] = 1
    objects[10:15, 5:19] = 2
    bitmaps = np.stack([objects == 1, objects == 2])
    boxes, index = jnp.asarray(boxes_of_masks(bitmaps)), jnp.asarray([1, 0])
    assert boxes.tolist() == [[2, 3, 9, 8], [10, 5, 15, 19]]
    both = [crop_masks(jnp.asarray(m), index, boxes, 14) for m in (objects, bitmaps)]
    np.testing.assert_array_equal(*both)
    assert boxes_of_masks(np.zeros((1, 5, 5))).tolist() == [[0, 0, 0, 0]]
