"""Convolutions as a product for each tap, against `jax.lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo.ops import per_tap
from segzoo.ops.conv2d import conv2d
from segzoo.ops.convolution import conv_general_dilated
from segzoo.ops.convolve2d import convolve2d
from segzoo.ops.differentiable import Setting

NAMES = ("NHWC", "HWIO", "NHWC")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def everywhere(monkeypatch):
    """Takes it for the smallest convolution, too; what was traced before is forgotten."""
    for name, value in {"_CHANNELS": 0, "_WORK": 0, "_STRIDED": 0, "_SEEN": 1}.items():
        monkeypatch.setattr(per_tap, name, value)
    convolve2d.clear_cache()
    yield
    convolve2d.clear_cache()


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "pads", "dilation"),
    [
        ((2, 9, 11, 5), (3, 3, 5, 4), (1, 1), ((4, 4), (6, 6)), (4, 6)),
        ((2, 7, 6, 5), (3, 3, 5, 4), (1, 1), ((9, 9), (9, 9)), (9, 9)),  # the middle one alone sees
        ((2, 9, 11, 5), (3, 3, 5, 4), (1, 1), ((1, 1), (1, 1)), (1, 1)),
        ((2, 9, 11, 5), (3, 2, 5, 4), (1, 1), ((0, 0), (0, 0)), (2, 1)),
        ((2, 9, 11, 5), (2, 5, 5, 4), (1, 1), ((3, 0), (1, 6)), (1, 2)),
        ((2, 9, 11, 5), (3, 3, 5, 4), (1, 1), ((-2, 3), (1, -1)), (1, 1)),
        ((2, 9, 11, 5), (3, 3, 5, 4), (2, 2), ((1, 1), (1, 1)), (1, 1)),
        ((2, 8, 12, 5), (3, 3, 5, 4), (2, 2), ((0, 1), (0, 1)), (1, 1)),
        ((2, 13, 12, 5), (3, 4, 5, 4), (3, 2), ((4, 5), (3, 7)), (2, 3)),
        ((2, 9, 9, 5), (1, 1, 5, 4), (2, 2), ((1, 0), (0, 1)), (1, 1)),
    ],
)
def test_it_is_the_plain_convolution(
    assert_same_function, everywhere, image, kernel, strides, pads, dilation
):
    setting = Setting(strides, pads, dilation, None)
    for back in (False, True):
        assert per_tap.suits(jnp.float32, image, kernel, setting, back=back)

    def fast(x, kernel):
        return conv2d(x, kernel, *setting)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, pads, None, dilation, NAMES)

    assert_same_function(fast, plain, random(*image), random(*kernel, seed=1))


def operations(image, channels, strides=(1, 1), rate=1):
    """How many convolutions and products stand in the program of one with its gradients."""

    def loss(x, kernel):
        pads = ((rate, rate),) * 2
        return conv_general_dilated(x, kernel, strides, pads, (1, 1), (rate, rate), NAMES).sum()

    x = jax.ShapeDtypeStruct(image, jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, image[-1], channels), jnp.float32)
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    return text.count("stablehlo.convolution("), text.count("stablehlo.dot_general")


class TestWhere:
    def test_atrous_pyramid_pooling(self):
        # The value is not needed for the gradients: nine products for each of them.
        assert operations((4, 21, 21, 512), 256, rate=12) == (0, 18)
        assert operations((4, 21, 21, 512), 256, rate=18) == (0, 18)

    def test_taps_that_see_padding_alone_take_no_product(self):
        assert operations((4, 21, 21, 512), 256, rate=24) == (0, 2)

    def test_strides(self):
        assert operations((16, 14, 14, 512), 512, strides=(2, 2)) == (0, 18)
        convolutions, products = operations((16, 56, 56, 128), 128, strides=(2, 2))
        assert (convolutions, products) == (0, 9 + 2)  # two blocks of patches for the kernel

    @pytest.mark.parametrize(
        "arguments",
        [
            {"rate": 2},
            {"rate": 6, "halved": True},
            {"dtype": jnp.bfloat16},
            {"channels": 64},
            {"image": (1, 7, 7)},  # little work
        ],
        ids=str,
    )
    def test_not(self, arguments):
        assert self.suits()
        assert not self.suits(**arguments)

    @staticmethod
    def suits(image=(4, 28, 28), channels=256, rate=12, dtype=jnp.float32, halved=False):
        setting = Setting((1, 1), ((rate, rate),) * 2, (rate, rate), None)
        shapes = (*image, channels), (3, 3, channels, 256)
        return per_tap.suits(dtype, *shapes, setting, halved=halved)
