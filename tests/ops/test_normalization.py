"""Local response and contrast normalisation, by the papers' formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import SegzooError
from segzoo.ops.normalization import local_contrast_norm, local_response_norm


def by_the_formula(a, k, n, alpha, beta):
    b = np.empty_like(a)
    last = a.shape[-1] - 1
    for i in range(last + 1):
        around = a[..., max(0, i - n // 2) : min(last, i + n // 2) + 1]
        b[..., i] = a[..., i] / (k + alpha * np.sum(around**2, axis=-1)) ** beta
    return b


@pytest.mark.parametrize("channels", [1, 3, 5, 12])
@pytest.mark.parametrize(
    "numbers", [{}, {"k": 1.0, "n": 3, "alpha": 0.5, "beta": 2.0}, {"n": 1, "alpha": 1.0}]
)
def test_the_formula(channels, numbers):
    a = 30 * np.random.default_rng(0).normal(size=(2, 4, 3, channels))
    expected = by_the_formula(a, **{"k": 2, "n": 5, "alpha": 1e-4, "beta": 0.75, **numbers})
    got = local_response_norm(jnp.asarray(a, jnp.float32), **numbers)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_alpha_is_not_divided_by_n():
    a = jnp.full((1, 1, 1, 5), 100.0)
    assert np.isclose(local_response_norm(a)[0, 0, 0, 2], 100 / (2 + 1e-4 * 5 * 100**2) ** 0.75)


def test_sums_are_in_float32():
    a = np.random.default_rng(0).normal(size=(1, 2, 2, 8)) * 200
    half = jnp.asarray(a, jnp.bfloat16)
    got = local_response_norm(half)
    assert got.dtype == jnp.bfloat16
    exact = local_response_norm(half.astype(jnp.float32))
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_an_even_number_of_channels_has_no_middle():
    with pytest.raises(SegzooError, match="n is 4; expected an odd number"):
        local_response_norm(jnp.zeros((1, 1, 1, 8)), n=4)


contrast = jax.jit(local_contrast_norm, static_argnames="size")


def contrast_by_the_formula(x, size):
    """One image `[H, W, C]`, place by place."""
    height, width, channels = x.shape
    reach = size // 2

    def weights(r, c):
        rows = np.arange(max(0, r - reach), min(height, r + reach + 1))
        columns = np.arange(max(0, c - reach), min(width, c + reach + 1))
        distance = (rows[:, None] - r) ** 2 + (columns[None, :] - c) ** 2
        w = np.exp(-distance / (2 * (size / 4) ** 2))
        return rows, columns, (w / (w.sum() * channels))[..., None]

    def local(values):
        result = np.empty((height, width))
        for r in range(height):
            for c in range(width):
                rows, columns, w = weights(r, c)
                result[r, c] = np.sum(w * values[np.ix_(rows, columns)])
        return result[..., None]

    v = x - local(x)
    sigma = np.sqrt(local(v**2))
    return v / np.maximum(sigma.mean(), sigma)


@pytest.mark.parametrize(("shape", "size"), [((13, 11, 3), 9), ((4, 20, 1), 5), ((3, 2, 2), 1)])
def test_contrast_by_the_formula(shape, size):
    x = np.random.default_rng(0).normal(size=(2, *shape))
    x[0] *= 1 + np.arange(shape[1])[:, None]  # contrasts that differ
    expected = np.stack([contrast_by_the_formula(image, size) for image in x])
    got = contrast(jnp.asarray(x, jnp.float32), size=size)
    np.testing.assert_allclose(got, expected, atol=2e-5)


def test_contrast_is_that_of_the_image_before_it_was_normalised():
    x = 255 * np.random.default_rng(0).random((1, 20, 24, 3))
    normalised = jnp.asarray((x - 110) / 78, jnp.float32)
    got = contrast(normalised)
    np.testing.assert_allclose(got, contrast(jnp.asarray(x, jnp.float32)), atol=2e-4)


def test_shade_and_light_get_the_same_contrast_and_even_parts_none():
    rng = np.random.default_rng(0)
    texture = rng.normal(size=(1, 40, 40, 3))
    shaded = np.concatenate([0.4 * texture, 2.0 * texture, np.zeros_like(texture)], axis=2)
    got = np.asarray(contrast(jnp.asarray(shaded + 3.0, jnp.float32)))
    dark, light, even = got[:, :, 6:34], got[:, :, 46:74], got[:, :, 86:]
    assert 2 < light.std() / dark.std() < 3  # 5 before; below the mean contrast, c divides
    assert np.abs(even).max() < 1e-5


def test_contrast_of_a_blank_image_is_zero_and_has_a_gradient():
    blank = jnp.full((1, 12, 12, 3), 7.0)
    assert np.abs(contrast(blank)).max() < 0.05
    assert not contrast(0 * blank).any()
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(local_contrast_norm(x))))
    assert np.isfinite(gradient(blank)).all()
    assert np.isfinite(gradient(0 * blank)).all()


def test_contrast_in_half_precision_is_computed_in_float32():
    half = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 9, 3)) + 50, jnp.bfloat16)
    got = contrast(half)
    exact = contrast(half.astype(jnp.float32))
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_an_even_window_has_no_middle():
    with pytest.raises(SegzooError, match="size is 8; expected an odd number"):
        local_contrast_norm(jnp.zeros((1, 9, 9, 3)), size=8)
