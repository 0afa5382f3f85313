"""What each operation's result sees of its operand, against the values themselves."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from segzoo import SegzooError
from segzoo.ops.convolution import conv_general_dilated, conv_transpose
from segzoo.ops.pooling import max_pool
from segzoo.ops.spatial import pad_to_multiple, resize
from segzoo.reach import reach


def positive(*shape):
    """The same numbers for the same shape, whenever a function is called."""
    return jnp.asarray(np.random.default_rng(0).uniform(0.5, 1.5, shape), jnp.float32)


def convolve(kernel, strides=(1, 1), padding="SAME", **options):
    weights = positive(*kernel)
    numbers = ("NHWC", "HWIO", "NHWC")

    def function(x):
        return lax.conv_general_dilated(
            x, weights, strides, padding, dimension_numbers=numbers, **options
        )

    return function


def group_then_convolve(x):
    """Two branches side by side as channels, each convolved on its own."""
    near = x[..., :1]
    far = convolve((5, 5, 1, 1))(x[..., 1:2])
    both = jnp.concatenate([near, far], axis=-1)
    return convolve((1, 1, 1, 2), feature_group_count=2)(both)


FUNCTIONS = {
    "identity": lambda x: x,
    "3x3": convolve((3, 3, 2, 1)),
    "3x5, stride 2": convolve((3, 5, 2, 1), (2, 2), ((1, 1), (2, 2))),
    "dilated": convolve((3, 3, 2, 1), padding=((3, 2), (2, 3)), rhs_dilation=(3, 2)),
    "without padding": convolve((4, 2, 2, 3), padding="VALID"),
    "cropping padding": convolve((3, 3, 2, 3), padding=((-2, 1), (1, -1))),
    "more padding than kernel": convolve((3, 3, 2, 1), padding=((6, 6), (6, 6))),
    "depthwise": convolve((3, 3, 1, 2), feature_group_count=2),
    "transposed by dilation": convolve((3, 3, 2, 1), padding=((1, 1), (2, 2)), lhs_dilation=(2, 3)),
    "groups keep branches apart": group_then_convolve,
    "transposed, 2 by 2": lambda x: conv_transpose(x, positive(2, 2, 2, 1), (2, 2)),
    "transposed, 4 by 2": lambda x: conv_transpose(x, positive(4, 4, 2, 1), (2, 2)),
    "transposed, 3 by 2": lambda x: conv_transpose(x, positive(3, 5, 2, 2), (2, 2)),
    "transposed, 1 by 2": lambda x: conv_transpose(x, positive(1, 1, 2, 1), (2, 2)),
    "max-pool, tiled": lambda x: max_pool(x, (2, 3)),
    "max-pool, tiled, remainder kept": lambda x: max_pool(x, (2, 3), padding="SAME"),
    "max-pool, overlapping": lambda x: max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
    "average-pool": lambda x: nn.avg_pool(x, (3, 2), (1, 2), "SAME"),
    "mirrored border": lambda x: convolve((3, 3, 2, 1))(pad_to_multiple(x, 8)),
    "reflected border": lambda x: jnp.pad(x, ((0, 0), (2, 3), (1, 0), (0, 0)), mode="reflect"),
    "edge border": lambda x: jnp.pad(x, ((0, 0), (2, 3), (1, 0), (0, 0)), mode="edge"),
    "resize by 2": lambda x: resize(x, (26, 22)),
    "resize, corners aligned": lambda x: resize(x, (29, 31), align_corners=True),
    "resize to less": lambda x: resize(x, (5, 4)),
    "resize, as a matrix product": lambda x: resize(x, (1, 2)).repeat(3, axis=1),
    "jax.image.resize": lambda x: jax.image.resize(x, (1, 20, 7, 2), "linear"),
    "nearest": lambda x: jax.image.resize(x, (1, 20, 33, 2), "nearest"),
    "slices": lambda x: x[:, 1::3, 2:-2],
    "one row": lambda x: x[:, 4],
    "from behind": lambda x: x[:, ::-1, :3],
    "dynamic slice": lambda x: lax.dynamic_slice(x, (0, 3, 20, 0), (1, 5, 4, 2)),
    "written into": lambda x: lax.dynamic_update_slice(
        jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, 1))), convolve((3, 3, 2, 1))(x), (0, 0, 0, 2)
    ),
    "written into, past the end": lambda x: lax.dynamic_update_slice(
        x, x[:, :5, 2:6], (0, 4, 9, 0)
    ),
    "written into constants": lambda x: lax.dynamic_update_slice(
        jnp.ones((1, 20, 11, 2)), x, (0, 4, 0, 0)
    ),
    "constants written": lambda x: lax.dynamic_update_slice(
        x, jnp.ones((1, 3, 11, 2)), (0, 4, 0, 0)
    ),
    "rolled": lambda x: jnp.roll(x, 3, axis=1) + x,
    "side by side": lambda x: jnp.concatenate([x, x[:, :3], jnp.ones((1, 2, 11, 2))], axis=1),
    "split": lambda x: jnp.split(x, [4, 9], axis=1)[1],
    "joined": lambda x: convolve((3, 3, 2, 2))(x) * jax.nn.sigmoid(x) + 1,
    "global mean, broadcast": lambda x: x + x.mean((1, 2), keepdims=True),
    "mean of a column": lambda x: x.mean(1),
    "flattened, dense": lambda x: x.reshape(1, -1) @ positive(13 * 11 * 2, 3),
    "space to depth": lambda x: (
        x[:, :12, :10].reshape(1, 6, 2, 5, 2, 2).transpose(0, 1, 3, 2, 4, 5)
    ),
    "summed along": lambda x: jnp.cumsum(x, 1),
    "summed along, reversed": lambda x: lax.cumsum(x, 2, reverse=True),
    "sorted": lambda x: jnp.sort(x, axis=2),
    "attention": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x),
    "weights first": lambda x: jnp.einsum("kh,bhwc->bkwc", jnp.tri(6, 13), x),
    "masked by zeros": lambda x: x * jnp.asarray([0.0] * 5 + [1.0] * 8)[:, None, None],
    "remat": jax.checkpoint(convolve((3, 3, 2, 1))),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ranges_are_those_of_the_values(name):
    function = FUNCTIONS[name]
    image = positive(1, 13, 11, 2)
    lines = reach(function, image)
    value = np.asarray(function(image))
    for axis, line in enumerate(lines, start=1):
        moved = []
        for pixel in range(image.shape[axis]):
            span = [slice(None)] * 4
            span[axis] = pixel
            # More by a factor that all the weights keep, so that a maximum and a sum both move.
            moved.append(np.asarray(function(image.at[tuple(span)].mul(8))) != value)
        moved = np.stack(moved)
        if name == "sorted":
            moved = moved.any(-2, keepdims=True) if axis == 2 else moved
        empty = ~moved.any(axis=0)
        first = np.where(empty, 10**9, moved.argmax(axis=0))
        last = np.where(empty, -1, len(moved) - 1 - moved[::-1].argmax(axis=0))
        # The ranges along one axis say nothing about the other being empty.
        others = tuple(a for a in range(value.ndim) if line.first.shape[a] == 1)
        np.testing.assert_array_equal(
            np.minimum(line.first, 10**9), first.min(axis=others, keepdims=True)
        )
        np.testing.assert_array_equal(
            np.maximum(line.last, -1), last.max(axis=others, keepdims=True)
        )


def test_padding_is_told_from_the_image():
    (line, _) = reach(convolve((5, 5, 2, 1), (2, 2), "SAME"), positive(1, 13, 13, 2))
    assert line.cut.ravel().tolist() == [True, False, False, False, False, False, True]


def test_global_pooling_is_told_from_local_paths():
    def squeeze(x):
        return convolve((3, 3, 2, 2))(x) * jax.nn.sigmoid(x.mean((1, 2), keepdims=True))

    (line, _) = reach(squeeze, positive(1, 13, 11, 2))
    assert line.first.ravel().tolist() == [0] * 13
    assert line.last.ravel().tolist() == [12] * 13
    assert line.local_first.ravel().tolist() == [0, *range(12)]
    assert line.local_last.ravel().tolist() == [*range(1, 13), 12]

    (line, _) = reach(lambda x: x.mean((1, 2)), positive(1, 13, 11, 2))
    assert (line.local_first > line.local_last).all()


def test_only_what_the_image_changes_is_followed():
    image = positive(1, 8, 8, 1)

    def function(x, table):
        lost = jax.lax.while_loop(lambda v: v.sum() < 1, lambda v: v + 1, table)
        return {"fixed": lost, "seen": (x[:, :2] + lost,)}

    found = reach(function, image, jnp.zeros(()))
    assert found["fixed"] is None
    assert found["seen"][0][0].last.ravel().tolist() == [0, 1]


def test_an_operation_without_a_rule_is_named_where_it_matters():
    image = positive(1, 8, 8, 1)
    with pytest.raises(SegzooError, match="through the operation 'fft'"):
        reach(lambda x: jnp.fft.fft(x, axis=1).real + 1, image)
    with pytest.raises(SegzooError, match="through the operation 'gather'"):
        reach(lambda x: x[0, 0, x[0, 0, :, 0].astype(int)], image)
    assert reach(lambda x: (jnp.fft.fft(x, axis=1), x)[1], image)[0].first.shape == (1, 8, 1, 1)


def test_three_axes_and_the_fast_convolution_on_cpu():
    image = jax.ShapeDtypeStruct((1, 8, 9, 10, 2), jnp.float32)
    kernel = positive(3, 3, 3, 2, 4)
    fast = reach(lambda x: conv_general_dilated(x, kernel, (2, 1, 1), "SAME"), image)
    numbers = ("NDHWC", "DHWIO", "NDHWC")
    plain = reach(
        lambda x: lax.conv_general_dilated(x, kernel, (2, 1, 1), "SAME", dimension_numbers=numbers),
        image,
    )
    assert len(fast) == 3
    for one, other in zip(fast, plain, strict=True):
        for part in ("first", "last", "cut"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))
