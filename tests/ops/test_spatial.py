"""Pad, crop, resize, average against their textbook forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops.spatial import (
    adaptive_avg_pool,
    center_crop,
    crop_to,
    pad_to_grid,
    pad_to_multiple,
    resize,
    resize_nearest,
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 17), (16, 8), (15, 33), (1, 2, 9)])
def test_padding_reaches_the_next_multiple_and_cropping_undoes_it(size):
    x = random(2, *size, 3)
    padded = pad_to_multiple(x, 8)
    assert padded.shape == (2, *(-(-n // 8) * 8 for n in size), 3)
    np.testing.assert_array_equal(crop_to(padded, size), x)
    mirrored = np.pad(x, [(0, 0), *((0, -n % 8) for n in size), (0, 0)], mode="symmetric")
    np.testing.assert_array_equal(padded, mirrored)


def test_padding_takes_one_multiple_per_axis():
    assert pad_to_multiple(random(1, 5, 5, 2), (4, 1)).shape == (1, 8, 5, 2)


@pytest.mark.parametrize(
    ("size", "padded"), [((1, 9), (1, 9)), ((2, 8), (9, 9)), ((75, 321), (81, 321)), ((10,), (17,))]
)
def test_a_grid_of_every_eighth_pixel_ends_at_the_last(size, padded):
    x = 1 + abs(random(2, *size, 3))
    y = pad_to_grid(x, 8)
    assert y.shape == (2, *padded, 3)
    np.testing.assert_array_equal(crop_to(y, size), x)
    assert np.sum(y > 0) == x.size


def test_center_crop_keeps_the_centre():
    x = jnp.arange(7.0)[None, :, None] * jnp.ones((1, 1, 2))
    np.testing.assert_array_equal(center_crop(x, (3,))[0, :, 0], [2, 3, 4])
    np.testing.assert_array_equal(center_crop(x, (4,))[0, :, 0], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("size", "new"),
    [
        ((5, 7), (10, 14)),
        ((4, 4), (32, 12)),
        ((8, 9), (3, 5)),
        ((33, 8), (2, 8)),
        ((1, 4), (6, 2)),
        ((5, 4, 3), (7, 8, 9)),
    ],
)
def test_resize_is_half_pixel_interpolation(assert_same_function, size, new):
    def reference(x):
        return jax.image.resize(x, (2, *new, 3), "linear", antialias=False)

    assert_same_function(lambda x: resize(x, new), reference, random(2, *size, 3))


@pytest.mark.parametrize(("size", "new"), [((5, 7), (9, 13)), ((6, 4), (3, 9)), ((1, 3), (4, 1))])
def test_resize_with_aligned_corners(assert_same_function, size, new):
    def reference(x):
        # torch.nn.functional.interpolate(..., align_corners=True), by its definition.
        for axis, (n_in, n_out) in enumerate(zip(size, new, strict=True), start=1):
            rows = []
            for i in range(n_out):
                source = i * (n_in - 1) / (n_out - 1) if n_out > 1 else 0.0
                low = min(int(source), n_in - 1)
                high = min(low + 1, n_in - 1)
                part = source - low
                rows.append(
                    (1 - part) * jnp.take(x, low, axis=axis) + part * jnp.take(x, high, axis=axis)
                )
            x = jnp.stack(rows, axis=axis)
        return x

    x = random(2, *size, 3)
    assert_same_function(lambda x: resize(x, new, align_corners=True), reference, x)


@pytest.mark.parametrize(
    ("size", "new"), [((4, 3), (8, 6)), ((5, 6), (3, 13)), ((2, 3, 1), (7, 3, 4))]
)
def test_nearest_pixels(assert_same_function, size, new):
    def reference(x):
        for axis, (n, m) in enumerate(zip(size, new, strict=True), start=1):
            x = x[(slice(None),) * axis + (np.arange(m) * n // m,)]
        return x

    x = random(2, *size, 3)
    assert_same_function(lambda x: resize_nearest(x, new), reference, x)
    half = x.astype(jnp.bfloat16)
    np.testing.assert_array_equal(resize_nearest(half, new), reference(half))


def test_doubling_repeats_every_pixel():
    x = random(1, 3, 5, 2)
    np.testing.assert_array_equal(resize_nearest(x, (6, 10)), x.repeat(2, 1).repeat(2, 2))


def test_resize_has_second_derivatives_and_maps():
    x = random(3, 4, 4, 1)
    energy = jax.grad(lambda v: jnp.sum(resize(v, (8, 8)) ** 2))
    hessian = jax.jit(jax.jacrev(energy))(x[:1])
    matrix = hessian.reshape(16, 16)
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
    assert np.linalg.eigvalsh(matrix).min() > 0
    mapped = jax.vmap(lambda v: resize(v[None], (8, 8))[0])(x)
    np.testing.assert_allclose(mapped, resize(x, (8, 8)), atol=1e-6)


def test_no_derivative_scatters():
    def gradient(x):
        return jax.grad(lambda x: (resize(x, (7, 9)) ** 3).sum())(x)

    program = str(jax.make_jaxpr(jax.grad(lambda x: (gradient(x) ** 2).sum()))(random(1, 4, 3, 2)))
    assert "gather" in program
    assert "scatter" not in program


def test_a_size_that_stays_leaves_the_image_alone():
    x = random(1, 4, 3, 2)
    _, tangent = jax.jvp(lambda x: resize(x, (4, 3)), (x,), (2 * x,))  # in forward mode, too
    np.testing.assert_array_equal(tangent, 2 * x)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the order of axes is set on a CPU")
def test_resize_lays_nothing_out_anew(usual_emitters):
    def both(cotangent, x):
        y, pull = jax.vjp(lambda x: resize(x, (24, 40)), x)
        return y, pull(cotangent)

    lowered = jax.jit(both).lower(random(2, 24, 40, 3), random(2, 3, 5, 3))
    program = lowered.compile(usual_emitters).as_text()
    made = re.findall(r"= f32\[2,24,40,3\]\S* (?!parameter)([a-z]+)\(", program.split("ENTRY")[1])
    assert made == ["fusion"]


def test_resize_keeps_the_dtype():
    assert resize(jnp.ones((1, 2, 2, 1), jnp.bfloat16), (64, 4)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("size", "new"), [((14, 14), (7, 7)), ((9, 16), (7, 6)), ((3, 1), (7, 2)), ((40, 3), (4, 3))]
)
def test_adaptive_average_pool_is_the_mean_of_its_bins(assert_same_function, size, new):
    def reference(x):
        for axis, (n, m) in enumerate(zip(size, new, strict=True), start=1):
            bins = [(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]
            means = [jax.lax.slice_in_dim(x, a, b, axis=axis).mean(axis) for a, b in bins]
            x = jnp.stack(means, axis)
        return x

    assert_same_function(lambda x: adaptive_avg_pool(x, new), reference, random(2, *size, 3))


def test_adaptive_average_pool_keeps_the_dtype_and_the_precision_of_sums():
    x = jnp.full((1, 30, 30, 1), 1.0078125, jnp.bfloat16)
    pooled = adaptive_avg_pool(x, (7, 7))
    assert pooled.dtype == jnp.bfloat16
    assert np.all(pooled == x[0, 0, 0, 0])
