"""Depthwise convolution against `jax.lax`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo.cost import multiply_adds
from segzoo.ops import depthwise
from segzoo.ops.convolution import conv_general_dilated
from segzoo.ops.depthwise import depthwise_conv
from segzoo.ops.windows import explicit_pads, padded_size, places


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(x, kernel, strides, padding, dilation):
    letters = "DHW"[-(x.ndim - 2) :]
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=x.shape[-1],
    )


GEOMETRIES = [
    ((9, 8), (3, 3), (1, 1), "SAME", (1, 1)),
    ((9, 8), (3, 3), (2, 2), "SAME", (1, 1)),
    ((9, 8), (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1)),
    ((9, 8), (5, 2), (2, 3), "VALID", (1, 1)),
    ((9, 8), (3, 3), (1, 1), ((6, 6), (6, 6)), (6, 6)),
    ((4, 5), (3, 3), (1, 1), ((12, 12), (12, 12)), (12, 12)),
    ((10, 12), (3, 3), (2, 1), ((4, 0), (3, 5)), (2, 3)),
    ((9, 8), (2, 2), (1, 1), ((-1, 3), (2, -2)), (1, 1)),
    ((1, 8), (3, 3), (1, 1), "SAME", (1, 1)),
    ((9,), (4,), (2,), "SAME", (1,)),
    ((5, 6, 4), (3, 1, 2), (2, 1, 1), "SAME", (1, 1, 2)),
]


@pytest.mark.parametrize(
    ("few", "pixels"),
    [(0, 1), (0, depthwise._PIXELS), (depthwise._FEW, 1)],
    ids=["an image at a time", "images side by side", "at once"],
)
@pytest.mark.parametrize(("size", "kernel", "strides", "padding", "dilation"), GEOMETRIES)
def test_values_and_gradients(
    monkeypatch, assert_same_function, size, kernel, strides, padding, dilation, few, pixels
):
    monkeypatch.setattr(depthwise, "_FEW", few)
    monkeypatch.setattr(depthwise, "_PIXELS", pixels)
    assert_same_function(
        lambda x, k: depthwise_conv(x, k, strides, padding, dilation),
        lambda x, k: plain(x, k, strides, padding, dilation),
        random(2, *size, 3),
        random(*kernel, 1, 3, seed=1),
    )


@pytest.mark.parametrize(
    ("size", "kernel", "padding", "dilation"),
    [
        ((50, 60), (3, 3), "SAME", (1, 1)),
        ((60, 70), (3, 2), ((2, 0), (0, 1)), (2, 1)),
        ((40, 60), (1, 4), ((0, 0), (2, 3)), (3, 1)),
        ((40, 8), (3, 2), ((2, 2), (0, 0)), (1, 1)),
        ((50, 6, 40), (3, 1, 2), "SAME", (1, 1, 2)),
    ],
)
def test_strips_at_the_border_are_computed_apart(
    assert_same_function, size, kernel, padding, dilation
):
    x, weights = random(2, *size, 3), random(*kernel, 1, 3, seed=1)
    ones = (1,) * len(size)

    def fast(x, weights):
        return depthwise_conv(x, weights, ones, padding, dilation)

    def reference(x, weights):
        return plain(x, weights, ones, padding, dilation)

    assert_same_function(fast, reference, x, weights)
    program = str(jax.make_jaxpr(fast)(x, weights))
    padded = padded_size(size, explicit_pads(padding, size, kernel, ones, dilation))
    inside = places(size, kernel, ones, dilation)
    assert f"[2,{','.join(map(str, padded))},3]" not in program
    assert f"[2,{','.join(map(str, inside))},3]" in program


def test_a_module_takes_this_way_on_cpu_alone(monkeypatch):
    x, kernel = random(1, 5, 5, 4), random(3, 3, 1, 4, seed=1)
    names = ("NHWC", "HWIO", "NHWC")

    def program(kernel, groups):
        def run(x, kernel):
            return conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups
            )

        return str(jax.make_jaxpr(run)(x, kernel))

    assert "depthwise_convolution" in program(kernel, 4)
    for other, groups in (
        (random(3, 3, 1, 8), 4),
        (random(3, 3, 2, 4), 2),
        (random(3, 3, 4, 4), 1),
    ):
        assert "depthwise_convolution" not in program(other, groups)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "depthwise_convolution" not in program(kernel, 4)


def test_sums_of_bfloat16_are_in_float32():
    x, kernel = random(1, 9, 9, 2), random(5, 5, 1, 2, seed=1)
    narrow = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    got = depthwise_conv(*narrow, (1, 1), "SAME", (1, 1))
    assert got.dtype == jnp.bfloat16
    exact = plain(*(a.astype(jnp.float32) for a in narrow), (1, 1), "SAME", (1, 1))
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_under_vmap():
    x, kernel = random(3, 2, 6, 6, 4), random(3, 3, 1, 4, seed=1)

    def objective(x, kernel):
        return jnp.sum(jnp.sin(depthwise_conv(x, kernel, (2, 2), "SAME", (1, 1))))

    each = [jax.grad(objective, 1)(image, kernel) for image in x]
    together = jax.vmap(jax.grad(objective, 1), (0, None))(x, kernel)
    np.testing.assert_allclose(together, jnp.stack(each), atol=1e-5)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_it_counts_as_a_convolution(monkeypatch, geometry):
    size, kernel, strides, padding, dilation = geometry
    x, kernel = jnp.zeros((1, *size, 3)), jnp.ones((*kernel, 1, 3))

    class Module(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Conv(
                3,
                kernel.shape[:-2],
                strides,
                padding,
                kernel_dilation=dilation,
                feature_group_count=3,
                conv_general_dilated=conv_general_dilated,
            )(x)

    def program():
        shapes = jax.eval_shape(Module().init, jax.random.key(0), x)
        return jax.make_jaxpr(Module().apply)(shapes, x)

    fast = program()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert "depthwise" not in str(program())
    assert multiply_adds(fast) == multiply_adds(program())
