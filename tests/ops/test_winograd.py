"""Winograd's algorithm along the rows, against `jax.lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo.ops import winograd
from segzoo.ops import winograd2d as module
from segzoo.ops.conv2d import conv2d
from segzoo.ops.convolution import as_written, conv_general_dilated
from segzoo.ops.convolve2d import convolve2d
from segzoo.ops.winograd2d import winograd_conv2d, winograd_kernel_gradient

NAMES = ("NHWC", "HWIO", "NHWC")
SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


@pytest.fixture
def everywhere(monkeypatch):
    """Takes it for the smallest convolution, too; what was traced before is forgotten."""
    for name in ("_WORK", "_PIXELS", "_CHANNELS", "_FEW_OUT"):
        monkeypatch.setattr(module, name, 0)
    monkeypatch.setattr(winograd, "_WANTED", 0)
    convolve2d.clear_cache()
    yield
    convolve2d.clear_cache()


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(pads, dilation):
    def convolution(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1, 1), pads, None, dilation, NAMES)

    return convolution


def test_the_transforms_are_exact():
    generator = np.random.default_rng(0)
    rows, taps = generator.normal(size=6), generator.normal(size=3)
    got = winograd._A.T @ ((winograd._G @ taps) * (winograd._B @ rows))
    np.testing.assert_allclose(got, np.correlate(rows, taps), rtol=1e-13)


PRODUCTS = {"_WIDE": 1, "_WIDE_BACK": 1, "_UNFOLDED": 0}
CONVOLUTIONS = {"_WIDE": 1000, "_WIDE_BACK": 1000, "_UNFOLDED": 999}


@pytest.mark.parametrize(
    "form",
    [PRODUCTS, PRODUCTS | {"_TOGETHER": 99}, CONVOLUTIONS, CONVOLUTIONS | {"_PATCHES": 1}],
    ids=["products", "products in turn", "convolutions and patches", "patches in blocks"],
)
@pytest.mark.parametrize(
    ("image", "kernel", "pads", "dilation"),
    [
        ((3, 12, 9, 5), (3, 3, 5, 4), SAME, (1, 1)),
        ((3, 13, 9, 5), (3, 3, 5, 4), SAME, (1, 1)),
        ((2, 14, 9, 3), (3, 1, 3, 7), ((1, 1), (0, 0)), (1, 1)),
        ((2, 15, 11, 5), (3, 2, 5, 4), NONE, (1, 1)),
        ((2, 3, 11, 5), (3, 5, 5, 4), ((0, 0), (3, 2)), (1, 1)),
        ((2, 17, 12, 5), (3, 3, 5, 4), ((2, 2), (3, 3)), (2, 3)),
        ((2, 11, 12, 4), (3, 3, 4, 6), ((5, 5), (5, 5)), (5, 5)),
        # More rows than the kernel reaches, and fewer than there are.
        ((2, 12, 9, 5), (3, 3, 5, 4), ((4, 3), (0, 5)), (1, 1)),
        ((2, 15, 12, 5), (3, 3, 5, 4), ((-2, 1), (1, -3)), (1, 1)),
    ],
)
def test_it_is_the_plain_convolution(
    assert_same_function, everywhere, monkeypatch, image, kernel, pads, dilation, form
):
    for name, value in form.items():
        monkeypatch.setattr(module, name, value)

    def fast(x, kernel):
        return conv2d(x, kernel, (1, 1), pads, dilation, None)

    x, k = random(*image), random(*kernel, seed=1)
    assert_same_function(fast, plain(pads, dilation), x, k, atol=2e-5)


def largest_errors(fast, plain, *arguments):
    """Of both in float32, from the plain function in float64."""
    with jax.enable_x64(True):
        exact = plain(*(jnp.asarray(array, jnp.float64) for array in arguments))
        exact = np.asarray(exact)
    assert exact.dtype == np.float64
    return [np.abs(np.asarray(run(*arguments)) - exact).max() for run in (fast, plain)]


def test_it_rounds_little_more_than_the_plain_convolution():
    x, k, cotangent = random(4, 32, 32, 96), random(3, 3, 96, 64, seed=1), random(4, 32, 32, 64)

    def by_kernel(x, cotangent):
        zero = jnp.zeros(k.shape, x.dtype)
        (gradient,) = jax.linear_transpose(lambda k: plain(SAME, (1, 1))(x, k), zero)(cotangent)
        return gradient

    def fast(x, k):
        return winograd_conv2d(x, k, SAME, (1, 1), None)

    def fast_by_kernel(x, cotangent):
        return winograd_kernel_gradient(x, cotangent, k.shape, SAME, (1, 1))

    error, usual = largest_errors(fast, plain(SAME, (1, 1)), x, k)
    assert 0 < error < 4 * usual
    error, usual = largest_errors(fast_by_kernel, by_kernel, x, cotangent)
    assert 0 < error < 4 * usual


def convolved(dtype=jnp.float32, image=(4, 64, 64, 64), kernel=(3, 3, 64, 64), **arguments):
    """Whether six convolutions along rows stand in the program of one."""
    arguments = {"strides": (1, 1), "dilation": (1, 1)} | arguments

    def run(x, kernel):
        strides, dilation = arguments["strides"], arguments["dilation"]
        return conv_general_dilated(x, kernel, strides, "SAME", (1, 1), dilation, NAMES)

    x, k = jax.ShapeDtypeStruct(image, dtype), jax.ShapeDtypeStruct(kernel, dtype)
    return jax.jit(run).lower(x, k).as_text().count("stablehlo.convolution(") == 6


class TestWhere:
    def test_large_maps_of_many_channels(self):
        assert convolved()
        assert convolved(dilation=(2, 2))
        assert convolved(kernel=(3, 2, 64, 128))

    @pytest.mark.parametrize(
        "arguments",
        [
            {"dtype": jnp.bfloat16},
            {"strides": (2, 2)},
            {"kernel": (5, 3, 64, 64)},
            {"kernel": (3, 3, 64, 12)},
            {"image": (1, 14, 14, 64)},  # little work
            {"image": (1, 1, 4096, 64)},  # one row of four wanted
            {"dilation": (12, 12)},
        ],
        ids=str,
    )
    def test_not(self, arguments):
        assert not convolved(**arguments)

    def test_not_as_written(self):
        with as_written():
            assert not convolved()
        assert convolved()
