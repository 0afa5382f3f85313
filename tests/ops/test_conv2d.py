"""The 2-D convolution with a gradient of its own, against `jax.lax`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo.ops import conv2d as module
from segzoo.ops import convolve2d as forms
from segzoo.ops import differentiable, kernel_gradient
from segzoo.ops.conv2d import conv2d
from segzoo.ops.convolution import conv_general_dilated


@pytest.fixture
def on_cores(monkeypatch):
    """Says how many cores there are; what was traced for others is forgotten."""

    def say(number):
        monkeypatch.setattr(forms, "usable_cores", lambda: number)
        forms.convolve2d.clear_cache()

    yield say
    forms.convolve2d.clear_cache()


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def both(strides, pads, dilation):
    def plain(x, kernel):
        names = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, kernel, strides, pads, None, dilation, names)

    def fast(x, kernel):
        return conv2d(x, kernel, strides, pads, dilation, None)

    return fast, plain


def convolutions(function, *arguments):
    """The shapes of the results of all convolutions in a program."""
    lines = jax.jit(function).lower(*arguments).as_text().splitlines()
    found = [line.rsplit("-> tensor<", 1)[1] for line in lines if "stablehlo.convolution" in line]
    return [tuple(int(n) for n in shape.split("xf32")[0].split("x")) for shape in found]


SAME = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))


@pytest.mark.parametrize("block", [16, 40, 1024], ids=lambda n: f"block {n}")
@pytest.mark.parametrize(
    ("image", "kernel", "strides", "pads", "dilation"),
    [
        ((3, 13, 9, 5), (3, 3, 5, 4), (1, 1), SAME, (1, 1)),
        ((3, 13, 9, 5), (3, 3, 5, 4), (2, 2), SAME, (1, 1)),
        ((2, 14, 9, 5), (3, 3, 5, 4), (2, 1), ((0, 1), (2, 0)), (1, 2)),
        ((2, 17, 11, 5), (3, 2, 5, 4), (1, 1), NONE, (2, 3)),
        ((2, 12, 15, 3), (7, 7, 3, 64), (2, 2), ((2, 3), (2, 3)), (1, 1)),
        # Cells as large as the stride, with more of the image than is seen, and less.
        ((2, 30, 28, 1), (11, 11, 1, 6), (4, 4), NONE, (1, 1)),
        ((2, 13, 16, 2), (7, 8, 2, 6), (2, 3), ((3, 0), (1, 5)), (1, 1)),
        ((2, 12, 15, 7), (3, 4, 7, 6), (1, 2), SAME, (1, 1)),
        ((2, 15, 15, 3), (4, 4, 3, 6), (4, 2), ((-1, 2), (0, -2)), (1, 1)),
        ((3, 12, 10, 6), (1, 1, 6, 9), (1, 1), NONE, (1, 1)),
        ((3, 13, 10, 9), (1, 1, 9, 6), (2, 3), NONE, (1, 1)),
        ((2, 9, 10, 3), (1, 1, 3, 6), (1, 1), SAME, (1, 1)),
        # Few channels come out: the other side is unfolded.
        ((3, 13, 9, 16), (3, 3, 16, 2), (1, 1), SAME, (1, 1)),
        ((2, 13, 9, 16), (3, 2, 16, 4), (1, 1), ((0, 3), (2, 1)), (2, 1)),
        ((2, 13, 9, 16), (3, 3, 16, 2), (2, 2), SAME, (1, 1)),
    ],
)
def test_it_is_the_plain_convolution(
    assert_same_function, monkeypatch, image, kernel, strides, pads, dilation, block
):
    monkeypatch.setattr(module, "LARGE", 1)
    monkeypatch.setattr(kernel_gradient, "_BLOCK", block)
    fast, plain = both(strides, pads, dilation)
    assert_same_function(fast, plain, random(*image), random(*kernel, seed=1))


@pytest.mark.parametrize(
    ("kernel", "strides", "dilation", "copies"),
    [
        ((7, 7, 3, 64), (2, 2), (1, 1), 16),
        ((11, 11, 3, 96), (4, 4), (1, 1), 9),
        # Too much would be in vain, channels are many, or taps lie apart.
        ((3, 3, 3, 32), (2, 2), (1, 1), 9),
        ((7, 7, 8, 64), (2, 2), (1, 1), 49),
        ((4, 4, 3, 64), (2, 2), (2, 2), 16),
        ((4, 4, 3, 64), (1, 1), (1, 1), 16),
    ],
)
def test_few_channels_are_copied_in_cells(kernel, strides, dilation, copies):
    seen = [1 + (k - 1) * d for k, d in zip(kernel, dilation, strict=False)]
    x, cotangent = jnp.ones((1, *seen, kernel[2])), jnp.ones((1, 1, 1, kernel[3]))

    def gradient(x, cotangent):
        numbers = (kernel, strides, NONE, dilation)
        return kernel_gradient.kernel_gradient(x, cotangent, *numbers)

    (patches,) = [
        equation
        for equation in jax.make_jaxpr(gradient)(x, cotangent).eqns
        if equation.primitive is lax.concatenate_p
    ]
    assert len(patches.invars) == copies


@pytest.mark.parametrize(
    ("image", "kernel", "strides", "padding", "dilation"),
    [
        ((1, 9, 8, 5), (7, 7, 5, 12), (1, 1), "VALID", (1, 1)),
        ((2, 7, 6, 5), (3, 3, 5, 90), (1, 1), "SAME", (1, 1)),
        ((2, 7, 9, 5), (3, 2, 5, 60), (2, 3), ((1, 0), (2, 1)), (1, 2)),
    ],
)
def test_few_pixels_and_many_channels(
    assert_same_function, image, kernel, strides, padding, dilation
):
    names = ("NHWC", "HWIO", "NHWC")

    def fast(x, kernel):
        return conv_general_dilated(x, kernel, strides, padding, None, dilation, names)

    def plain(x, kernel):
        return lax.conv_general_dilated(x, kernel, strides, padding, None, dilation, names)

    x, k = random(*image), random(*kernel, seed=1)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(fast)(x, k))
    assert_same_function(fast, plain, x, k, atol=1e-4)  # 245 products, up to 50


@pytest.mark.parametrize(
    ("image", "kernel", "pads", "dilation"),
    [
        ((3, 30, 9, 64), (3, 3, 64, 48), SAME, (1, 1)),
        ((2, 31, 9, 48), (3, 2, 48, 64), ((0, 1), (2, 0)), (1, 2)),
        ((2, 47, 11, 64), (2, 3, 64, 64), NONE, (2, 3)),
        # Larger than the image anyway, in height or in width.
        ((2, 29, 9, 64), (1, 2, 64, 64), ((1, 2), (1, 0)), (1, 1)),
        ((2, 29, 9, 64), (3, 2, 64, 64), ((0, 1), (3, 0)), (1, 1)),
    ],
)
def test_rows_that_leave_cores_idle(assert_same_function, on_cores, image, kernel, pads, dilation):
    on_cores(4)
    x, k = random(*image), random(*kernel, seed=1)
    fast, plain = both((1, 1), pads, dilation)
    (computed,), wanted = convolutions(fast, x, k), plain(x, k).shape
    if wanted[1] > image[1] or wanted[2] > image[2]:
        assert computed == wanted
    else:
        assert computed[1] == image[1] + 1
    assert_same_function(fast, plain, x, k, atol=1e-4)  # up to 576 products


@pytest.mark.parametrize(
    ("cores", "image", "kernel", "more"),
    [
        (1, (1, 40, 40, 32), (3, 3, 32, 32), 0),  # one tile of a row, one core
        (2, (1, 40, 40, 32), (3, 3, 32, 32), 1),
        (2, (1, 40, 128, 64), (3, 3, 64, 64), 0),  # two tiles of 64 columns
        (16, (1, 40, 128, 64), (3, 3, 64, 64), 1),
        (2, (1, 40, 128, 32), (3, 3, 32, 32), 1),  # too little work for two tiles
        (2, (1, 1, 40, 32), (3, 3, 32, 32), 0),  # a second row would cost what it brings
        (2, (1, 40, 40, 16), (3, 3, 16, 16), 0),
        # With few products the tiles have more channels, too.
        (2, (1, 40, 112, 12), (3, 3, 12, 300), 1),
        (2, (1, 40, 56, 48), (3, 3, 48, 128), 1),
        (2, (1, 40, 56, 64), (3, 3, 64, 128), 0),
    ],
)
def test_rows_are_added_where_that_pays(on_cores, cores, image, kernel, more):
    on_cores(cores)
    fast, plain = both((1, 1), SAME, (1, 1))
    x, k = random(*image), random(*kernel, seed=1)
    assert convolutions(fast, x, k) == [(1, image[1] + more, *image[2:3], kernel[-1])]
    np.testing.assert_allclose(fast(x, k), plain(x, k), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("image", "kernel", "pads", "dilation"),
    [
        ((2, 30, 28, 48), (3, 3, 48, 12), SAME, (1, 1)),
        ((2, 12, 11, 48), (3, 3, 48, 12), SAME, (1, 1)),  # its gradient by the kernel transposes it
        ((2, 31, 28, 70), (3, 2, 70, 5), ((0, 1), (1, 0)), (1, 2)),
        ((2, 40, 29, 64), (2, 3, 64, 16), NONE, (2, 3)),
        ((2, 40, 29, 64), (3, 3, 64, 16), ((-1, 1), (1, -1)), (1, 1)),
    ],
)
def test_few_channels_out_of_many_are_a_product(
    assert_same_function, monkeypatch, on_cores, image, kernel, pads, dilation, wide
):
    monkeypatch.setattr(forms, "has_wide_registers", lambda: wide)
    on_cores(2)
    x, k = random(*image), random(*kernel, seed=1)
    fast, plain = both((1, 1), pads, dilation)
    assert convolutions(fast, x, k) == []

    def exact(x, k):
        return plain(x.astype(jnp.float64), k.astype(jnp.float64)).astype(jnp.float32)

    # Up to 630 products, sums up to 100: two float32 results may be further apart than that.
    with jax.enable_x64(True):
        assert_same_function(fast, exact, x, k, atol=1e-4)


@pytest.mark.parametrize(
    ("kernel", "wide", "product"),
    [
        ((3, 3, 64, 12), True, False),  # every core has its tiles
        ((3, 3, 64, 12), False, True),
        ((3, 3, 64, 17), False, False),
        ((3, 3, 47, 12), False, False),
        ((5, 5, 64, 12), False, False),  # would give more than four times what there is
    ],
)
def test_wide_rows_of_few_channels(
    assert_same_function, monkeypatch, on_cores, kernel, wide, product
):
    monkeypatch.setattr(forms, "has_wide_registers", lambda: wide)
    on_cores(2)
    x, k = random(1, 5, 256, kernel[2]), random(*kernel, seed=1)
    fast, plain = both((1, 1), SAME, (1, 1))
    assert (convolutions(fast, x, k) == []) is product
    assert len(convolutions(lambda *both: jax.vjp(fast, *both)[0], x, k)) == 1  # in training
    assert_same_function(fast, plain, x, k, atol=3e-4)  # up to 1,600 products


def test_no_pixels_stay_none():
    fast, plain = both((1, 1), NONE, (1, 1))
    x, k = random(1, 8, 2, 20), random(3, 3, 20, 20, seed=1)
    assert fast(x, k).shape == plain(x, k).shape == (1, 6, 0, 20)


def test_small_images_take_the_plain_way(assert_same_function):
    fast, plain = both((1, 1), SAME, (1, 1))
    assert_same_function(fast, plain, random(2, 5, 4, 3), random(3, 3, 3, 4, seed=1))


def test_the_gradient_of_large_images_needs_no_filter_of_their_size():
    """What makes it fast: no convolution with the cotangent as its kernel."""

    def sizes(x, kernel):
        gradient = jax.grad(lambda k: both((1, 1), SAME, (1, 1))[0](x, k).sum())
        return convolutions(gradient, kernel)

    assert sizes(random(1, 40, 40, 4), random(3, 3, 4, 4)) == []
    assert len(sizes(random(1, 8, 8, 4), random(3, 3, 4, 4))) == 1


def test_sums_of_bfloat16_are_float32():
    """4096 ones and a kernel's gradient of 4096, where bfloat16 would stop counting at 256."""
    x, kernel = jnp.ones((1, 64, 64, 1), jnp.bfloat16), jnp.ones((1, 1, 1, 1), jnp.bfloat16)
    gradient = jax.grad(lambda k: conv2d(x, k, (1, 1), NONE, (1, 1), None).sum())(kernel)
    assert gradient.dtype == jnp.bfloat16
    assert float(gradient.squeeze()) == 4096


def test_batches_of_kernels_and_second_derivatives():
    fast, plain = both((1, 1), SAME, (1, 1))
    x, kernels = random(2, 13, 12, 3), random(2, 3, 3, 3, 4, seed=1)

    def mapped(function):
        return jax.vmap(jax.grad(lambda k: jnp.square(function(x, k)).sum()))(kernels)

    np.testing.assert_allclose(mapped(fast), mapped(plain), rtol=1e-4, atol=1e-3)

    def curvature(function):
        loss = lambda k: jnp.tanh(function(x, k)).sum()  # noqa: E731
        along = random(3, 3, 3, 4, seed=2)
        return jax.jvp(jax.grad(loss), (kernels[0],), (along,))[1]

    np.testing.assert_allclose(curvature(fast), curvature(plain), rtol=1e-3, atol=1e-3)


def chain(x, kernels):
    for kernel in kernels:
        x = jax.nn.relu(conv2d(x, kernel, (1, 1), SAME, (1, 1), None))
    return jnp.square(x).sum()


def test_gradients_of_kernels_do_not_wait_for_the_last(monkeypatch, bytes_for_gradient):
    """Else the maps that they are made of stay in memory together."""

    def memory():
        x, kernels = random(4, 32, 32, 16), [random(3, 3, 16, 16, seed=i) for i in range(8)]
        return bytes_for_gradient(chain, x, kernels, argnums=1)

    at_once = memory()
    monkeypatch.setattr(differentiable, "after", lambda x, other: x)
    assert at_once < 0.8 * memory()


def test_the_gradient_of_a_fixed_kernel_is_not_computed():
    x, kernels = random(1, 64, 64, 4), [random(3, 3, 4, 4, seed=i) for i in range(2)]

    def loops(argument):
        gradient = jax.jit(jax.grad(chain, argnums=argument))
        return gradient.lower(x, kernels).compile().as_text().count(" while(")

    assert loops(0) == 0
    assert loops(1) == 2


def test_no_gradient_comes_back_where_none_is_wanted():
    def loss(kernel):
        y = conv2d(random(2, 16, 16, 4), kernel, (1, 1), SAME, (1, 1), None)
        return jnp.sum(kernel) + jax.lax.stop_gradient(y).sum()

    np.testing.assert_array_equal(jax.grad(loss)(random(3, 3, 4, 4)), 1)
