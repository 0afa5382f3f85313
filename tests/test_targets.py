"""Boxes read off pixels on the device, as they are after augmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.data import augment
from segzoo.data.augment import Augment
from segzoo.errors import SegzooError
from segzoo.ops.masks import boxes_of_masks
from segzoo.targets import targets

RNG = np.random.default_rng(0)


def batch(count=3, objects=4, size=(17, 23)):
    """Scattered pixels of each object, the last of which has none."""
    ids = RNG.integers(-6, objects, (count, *size)).clip(0).astype(np.int32)
    valid = np.tile(np.arange(objects + 1) < objects, (count, 1))
    classes = np.ones((count, objects + 1), np.int32)
    return {"instances": ids, "classes": classes, "valid": valid}


def test_boxes_are_those_around_the_pixels_in_both_forms():
    example = batch()
    ids = example["instances"]
    masks = np.stack([ids == m + 1 for m in range(5)], axis=1)
    other = {**example, "masks": masks.astype(np.uint8)}
    del other["instances"]
    one, two = jax.jit(targets)(example), jax.jit(targets)(other)
    for found in (one, two):
        np.testing.assert_array_equal(found["boxes"], [boxes_of_masks(m) for m in masks])
        np.testing.assert_array_equal(found["valid"], [[True] * 3 + [False] * 2] * 3)
    assert one["masks"].shape == (3, 17, 23)
    assert set(one) == {"boxes", "classes", "masks", "valid"}


def test_an_object_of_which_nothing_is_left_is_none():
    ids = np.zeros((1, 8, 8), np.int32)
    ids[0, 1:3, 1:3], ids[0, 6:, 6:] = 1, 2
    example = {"instances": ids[:, :4, :4], "classes": np.ones((1, 2), int)}
    found = targets({**example, "valid": np.ones((1, 2), bool), "crowd": np.zeros((1, 2), bool)})
    assert found["valid"].tolist() == [[True, False]]
    assert found["boxes"][0].tolist() == [[1, 1, 3, 3], [0, 0, 0, 0]]
    assert "crowd" in found


ALL = Augment(
    flip_horizontal=True, flip_vertical=True, scale=(0.7, 1.4), crop_size=(32, 32), fill="void"
)


@pytest.mark.parametrize(
    "config",
    [
        Augment(flip_horizontal=True, flip_vertical=True),
        Augment(flip_horizontal=True, crop_size=(16, 12)),
        ALL,
    ],
    ids=["flips", "crop", "zoom"],
)
def test_image_objects_and_size_move_together_and_padding_changes_nothing(config):
    ids = RNG.integers(0, 4, (20, 24)).astype(np.int32)
    image = np.stack([10.0 * (ids == m + 1) for m in range(3)], axis=-1).astype(np.float32)
    plain = {"image": image, "instances": ids, "classes": np.ones(3, np.int32)}
    ends = [(0, 12), (0, 8)]
    masks = [np.pad(ids == m + 1, ends).astype(np.uint8) for m in range(3)]
    padded = {
        "image": np.pad(image, [*ends, (0, 0)]),
        "masks": np.stack(masks),
        "classes": np.ones(3, np.int32),
        "size": np.asarray([20, 24], np.int32),
    }
    apply = jax.jit(lambda key, example: augment.apply(config, key, example, fill=0.0))
    for seed in range(4):
        one, two = (apply(jax.random.key(seed), example) for example in (plain, padded))
        height, width = one["image"].shape[:2]
        assert two["size"].tolist() == [height, width]
        inside = (slice(height), slice(width))
        np.testing.assert_allclose(two["image"][inside], one["image"], atol=1e-3)
        moved = [one["instances"] == m + 1 for m in range(3)]
        np.testing.assert_array_equal(two["masks"][(slice(None), *inside)], moved)
        assert not two["masks"][:, height:].any()
        if not config.interpolates:
            np.testing.assert_array_equal(one["image"] > 0, np.stack(moved, axis=-1))


@pytest.mark.parametrize("config", [Augment(rotate=5.0), Augment(crop_size=(40, 40))])
def test_objects_are_not_mirrored_at_the_border(config):
    example = {"image": jnp.zeros((20, 24, 3)), "instances": jnp.zeros((20, 24), int)}
    augment.apply(config, jax.random.key(0), example)
    with pytest.raises(SegzooError, match="shows objects twice; expected 'void'"):
        augment.apply(config, jax.random.key(0), {**example, "classes": jnp.zeros(1, int)})
