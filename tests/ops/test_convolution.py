"""Convolutions against `jax.lax`, and the bilinear filter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo.ops.convolution import bilinear_kernel, conv_general_dilated, conv_transpose


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Of few channels the taps lie side by side in what is seen, of more in what is given.
@pytest.mark.parametrize("channels", [(1, 4), (3, 4)])
@pytest.mark.parametrize(
    ("strides", "padding", "dilation", "kernel"),
    [
        ((1, 1, 1), "SAME", (1, 1, 1), (3, 3, 3)),
        ((1, 1, 1), "SAME", (2, 1, 1), (2, 3, 3)),
        ((1, 1, 1), "VALID", (1, 1, 1), (3, 2, 1)),
        ((2, 2, 2), "VALID", (1, 1, 1), (2, 2, 2)),
        ((2, 1, 2), "SAME", (1, 1, 1), (3, 3, 3)),
        ((1, 1, 1), ((2, 1), (0, 3), (1, 1)), (2, 1, 2), (3, 3, 2)),
        ((1, 1, 1), ((5, -1), (0, 3), (1, 1)), (2, 1, 2), (3, 3, 2)),
    ],
)
def test_3d_convolution(assert_same_function, strides, padding, dilation, kernel, channels):
    names = ("NDHWC", "DHWIO", "NDHWC")

    def plain(x, k):
        return lax.conv_general_dilated(x, k, strides, padding, None, dilation, names)

    def fast(x, k):
        return conv_general_dilated(x, k, strides, padding, None, dilation, names)

    assert_same_function(
        fast, plain, random(2, 7, 6, 5, channels[0]), random(*kernel, *channels, seed=1)
    )


@pytest.mark.parametrize("channels", [8, 32], ids=["all products", "half of them"])
def test_3d_convolutions_keep_their_maps_for_the_gradient_and_no_more(bytes_for_gradient, channels):
    layers, shape, kernel = 10, (2, 16, 16, 16, channels), (3, 3, 3, channels, channels)

    def loss(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(conv_general_dilated(x, kernel, (1, 1, 1), "SAME"))
        return jnp.square(x).sum()

    kernels = [jax.ShapeDtypeStruct(kernel, jnp.float32)] * layers
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    maps = bytes_for_gradient(loss, kernels, image) / (4 * np.prod(shape))
    assert maps < 2.5 * layers


def test_grouped_3d_convolution_takes_the_plain_way(assert_same_function):
    names = ("NDHWC", "DHWIO", "NDHWC")

    def plain(x, k):
        return lax.conv_general_dilated(
            x, k, (1, 1, 1), "SAME", dimension_numbers=names, feature_group_count=2
        )

    def fast(x, k):
        return conv_general_dilated(
            x, k, (1, 1, 1), "SAME", dimension_numbers=names, feature_group_count=2
        )

    assert_same_function(fast, plain, random(1, 4, 4, 4, 4), random(3, 3, 3, 2, 6, seed=1))


@pytest.mark.parametrize(
    ("kernel", "strides"),
    [
        ((2, 2), (2, 2)),
        ((4, 4), (2, 2)),
        ((16, 16), (8, 8)),
        ((3, 5), (2, 3)),
        ((1, 2), (2, 2)),
        ((3, 3), (1, 1)),
        ((2, 2, 2), (2, 2, 2)),
        ((4, 3, 4), (2, 2, 2)),
    ],
)
def test_transposed_convolution(assert_same_function, kernel, strides):
    letters = "DHW"[-len(kernel) :]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def plain(x, k):
        return lax.conv_transpose(x, k, strides, "VALID", dimension_numbers=names)

    x = random(2, *(4, 3, 5)[: len(kernel)], 3)
    k = random(*kernel, 3, 2, seed=1)
    assert_same_function(lambda x, k: conv_transpose(x, k, strides), plain, x, k)


@pytest.mark.parametrize("factor", [2, 3, 8])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_bilinear_kernel_interpolates_ramps_exactly(factor, rank):
    size = 2 * factor - factor % 2
    sizes = (6, 5, 4)[:rank]
    kernel = bilinear_kernel(jax.random.key(0), (size,) * rank + (2, 2))
    # A linear function of position, another in the second channel: channels stay apart.
    places = np.meshgrid(*(np.arange(n) for n in sizes), indexing="ij")
    ramp = sum((i + 1) * place for i, place in enumerate(places)) + 3.0
    x = jnp.asarray(np.stack([ramp, -2 * ramp], axis=-1)[None], jnp.float32)
    y = np.asarray(conv_transpose(x, kernel, (factor,) * rank))[0]
    # Output pixel n lies at (n - (size - 1) / 2) / factor in input pixels.
    fine = [(np.arange(n) - (size - 1) / 2) / factor for n in y.shape[:-1]]
    inside = [(at >= 0) & (at <= n - 1) for at, n in zip(fine, sizes, strict=True)]
    expected = sum((i + 1) * place for i, place in enumerate(np.meshgrid(*fine, indexing="ij")))
    select = np.ix_(*inside)
    np.testing.assert_allclose(y[..., 0][select], expected[select] + 3, rtol=1e-5)
    np.testing.assert_allclose(y[..., 1][select], -2 * (expected[select] + 3), rtol=1e-5)
