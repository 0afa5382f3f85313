"""Sampling between pixels, and the weights of smooth bending."""

import jax.numpy as jnp
import numpy as np

from segzoo.data import warp

ARRAYS = {"image": jnp.asarray([[[10.0], [20.0], [40.0]]]), "label": jnp.asarray([[1, 2, 3]])}


def at(x, outside=None, extent=(1, 3)):
    places = [jnp.zeros((1, len(x))), jnp.asarray([x], jnp.float32)]
    found = warp.sample(ARRAYS, places, extent, outside, linear=("image",))
    return found["image"][0, :, 0].tolist(), found["label"][0].tolist()


def test_between_pixels_images_are_mixed_and_labels_are_not():
    assert at([0.0, 0.25, 0.75, 1.5, 2.0]) == ([10, 12.5, 17.5, 30, 40], [1, 1, 2, 3, 3])


def test_beyond_the_middles_of_the_last_pixels_it_is_mirrored():
    assert at([-0.5, -1.0, 2.5, 3.0, 4.0]) == ([15, 20, 30, 20, 10], [2, 2, 3, 2, 1])


def test_beyond_the_borders_is_what_stands_outside():
    outside = {"image": 7.0, "label": 255}
    assert at([-0.75, -0.5, 2.25, 2.5], outside) == ([7, 10, 40, 7], [255, 1, 3, 255])


def test_padding_is_outside_too():
    outside = {"image": 7.0, "label": 255}
    assert at([1.0, 1.25, 1.5, 2.0], outside, (1, 2)) == ([20, 20, 7, 7], [2, 2, 255, 255])


def test_cubic_weights_interpolate_and_reproduce_lines():
    weights = warp.cubic_weights(41, 5)
    np.testing.assert_allclose(weights.sum(1), 1.0, atol=1e-6)
    np.testing.assert_allclose(weights[::10], np.eye(5), atol=1e-6)
    inner = slice(10, 31)
    np.testing.assert_allclose(
        (weights @ np.arange(5.0))[inner], np.linspace(0, 4, 41)[inner], atol=1e-6
    )
    np.testing.assert_allclose(warp.cubic_weights(1, 3), [[0, 1, 0]])
