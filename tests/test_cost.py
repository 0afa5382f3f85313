"""Multiply-adds counted as published ones are."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax import lax

import segzoo
from segzoo.cost import compile_for, measure, multiply_adds
from segzoo.layers import ConvTranspose, resize
from segzoo.ops.convolution import conv_general_dilated


def count(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return multiply_adds(jax.make_jaxpr(function)(*arguments))


def convolve(image, kernel, **options):
    return lax.conv_general_dilated(
        image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), **options
    )


def test_a_convolution_counts_every_tap_of_every_output():
    assert count(convolve, (2, 9, 8, 3), (3, 5, 3, 7)) == 2 * (5 * 4 * 7) * (3 * 5 * 3)
    grouped = count(lambda x, k: convolve(x, k, feature_group_count=3), (1, 8, 8, 3), (3, 3, 1, 6))
    assert grouped == 4 * 4 * 6 * 9


@pytest.mark.parametrize("channels", [(2, 4), (64, 96)], ids=["plain", "with half the products"])
def test_the_fast_convolution_in_3d_counts_the_same(channels):
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    shapes = (1, 6, 8, 8, channels[0]), (3, 3, 3, *channels)
    plain = count(
        lambda x, k: lax.conv_general_dilated(x, k, (1,) * 3, "SAME", dimension_numbers=numbers),
        *shapes,
    )
    fast = count(lambda x, k: conv_general_dilated(x, k, (1,) * 3, "SAME"), *shapes)
    assert fast == plain == 6 * 8 * 8 * 27 * math.prod(channels)


def test_the_fast_convolution_with_half_the_products_counts_the_same():
    shapes = (2, 120, 122, 64), (3, 3, 64, 96)
    fast = count(lambda x, k: conv_general_dilated(x, k, (1, 1), "SAME"), *shapes)
    assert fast == 2 * 120 * 122 * 9 * 64 * 96


@pytest.mark.parametrize(("kernel", "stride"), [(2, 2), (4, 2), (3, 2), (5, 3)])
def test_a_transposed_convolution_counts_every_tap_of_every_input(kernel, stride):
    cost = measure(ConvTranspose(5, (kernel,) * 2, (stride,) * 2), (6, 7), 3)
    assert cost.macs == 6 * 7 * kernel**2 * 3 * 5


def test_matrix_products():
    assert count(jnp.matmul, (4, 5), (5, 6)) == 4 * 5 * 6
    assert (
        count(lambda q, k: jnp.einsum("bqc,bkc->bqk", q, k), (2, 4, 8), (2, 6, 8)) == 2 * 4 * 6 * 8
    )


def test_only_what_is_trained_and_needed_counts():
    def function(image, kernel, unused):
        image = resize(resize(image, (3, 3)), (20, 20))  # the first by a matrix of constants
        convolve(image, unused)
        return nn.relu(convolve(image, kernel)) + 1

    assert count(function, (1, 32, 32, 2), (3, 3, 2, 4), (5, 5, 2, 9)) == 10 * 10 * 4 * 9 * 2


def test_calls_count_what_is_called():
    dead = jax.jit(lambda x, k: (convolve(x, k), convolve(x, k) + 1))
    function = jax.checkpoint(jax.jit(convolve))
    shapes = (1, 8, 8, 3), (3, 3, 3, 4)
    assert count(function, *shapes) == 4 * 4 * 4 * 27
    assert count(lambda x, k: dead(x, k)[0], *shapes) == 4 * 4 * 4 * 27


def test_a_network_counted_by_hand():
    cost = measure(segzoo.get("unet", width=8, depth=1, num_classes=2), (32, 32), 3, batch_size=2)
    convolutions = 32 * 32 * 9 * (3 * 8 + 8 * 8 + 16 * 8 + 8 * 8) + 16 * 16 * 9 * (8 * 16 + 16 * 16)
    others = 32 * 32 * 16 * 8 + 32 * 32 * 8 * 2  # the up-convolution and the scores
    assert cost.macs == 2 * (convolutions + others)
    assert cost.input_shape == (2, 32, 32, 3)
    assert cost.output_shape == (2, 32, 32, 2)
    assert cost.state == 0


def test_the_papers_geometry():
    cost = measure(segzoo.get("unet", padding="VALID", width=2), (388, 388), 1)
    assert cost.input_shape == (1, 572, 572, 1)
    assert cost.output_shape == (1, 388, 388, 2)


def test_the_compiler_counts_alike():
    model = segzoo.get("unet", width=8, depth=1)
    program = compile_for(model, (32, 32), 3)
    assert program.flops == pytest.approx(2 * measure(model, (32, 32), 3).macs, rel=0.1)
    assert program.peak_bytes > 4 * math.prod((1, 32, 32, 16))
    assert program.platform == "cpu"
