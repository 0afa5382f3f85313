"""Max-pooling against `nn.max_pool`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops.pooling import dilated_max_pool, max_pool


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("padding", ["VALID", "SAME"])
@pytest.mark.parametrize(
    ("size", "window"), [((8, 6), (2, 2)), ((7, 9), (2, 3)), ((5, 6, 7), (2, 2, 2))]
)
def test_max_pool_without_ties_is_the_plain_one(assert_same_function, size, window, padding):
    def reference(x):
        return nn.max_pool(x, window, window, padding)

    x = random(2, *size, 3)
    assert_same_function(lambda x: max_pool(x, window, padding=padding), reference, x)


def test_max_pool_gives_ties_to_the_first(assert_same_function):
    x = jnp.round(random(2, 8, 9, 3))  # many ties

    def reference(x):
        return nn.max_pool(x, (2, 3), (2, 3))

    assert_same_function(lambda x: max_pool(x, (2, 3)), reference, x)


def test_max_pool_cannot_make_nan_and_does_not_hide_it():
    """No quotient of counts, which rounding could make 0 / 0; and a diverged net stays visible."""
    gradient = jax.make_jaxpr(jax.grad(lambda x: max_pool(x, (2, 2)).sum()))(random(1, 4, 4, 1))
    assert "div" not in str(gradient)
    for place in np.ndindex(2, 2):
        x = random(1, 2, 2, 1).at[0, *place, 0].set(jnp.nan)
        assert np.isnan(max_pool(x, (2, 2))).all()
    assert max_pool(jnp.full((1, 2, 2, 1), -jnp.inf), (2, 2)).item() == -np.inf


def test_max_pool_has_forward_derivatives():
    x, tangent = random(1, 4, 6, 2), random(1, 4, 6, 2, seed=1)
    _, pushed = jax.jvp(lambda x: max_pool(x, (2, 2)), (x,), (tangent,))
    _, pull = jax.vjp(lambda x: max_pool(x, (2, 2)), x)
    cotangent = random(*pushed.shape, seed=2)
    np.testing.assert_allclose(
        jnp.vdot(pushed, cotangent), jnp.vdot(tangent, pull(cotangent)[0]), rtol=1e-5
    )


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(
    ("size", "window", "strides", "padding"),
    [
        ((7, 8), (3, 3), (2, 2), "VALID"),
        ((8, 8), (3, 3), (2, 2), ((1, 1), (0, 1))),
        ((7, 8), (3, 3), (1, 1), "SAME"),
        ((9, 11), (3, 2), (2, 1), ((1, 0), (1, 1))),
        ((11, 9), (2, 2), (3, 3), "VALID"),  # gaps
        ((11, 9), (2, 3), (3, 4), ((0, 1), (1, 1))),
        ((8, 6), (2, 2), (2, 2), ((1, 1), (0, 0))),
        ((7, 6, 5), (3, 3, 3), (2, 2, 2), ((1, 1),) * 3),
    ],
)
def test_max_pool_of_windows_that_do_not_tile(
    assert_same_function, size, window, strides, padding, ties
):
    def reference(x):
        return nn.max_pool(x, window, strides, padding)

    x = random(2, *size, 3)
    x = jnp.round(x) if ties else x
    assert_same_function(lambda x: max_pool(x, window, strides, padding), reference, x)


def test_the_gradient_is_no_scatter():
    def program(window, strides):
        gradient = jax.jit(jax.grad(lambda x: max_pool(x, window, strides).sum()))
        return gradient.lower(jnp.zeros((1, 9, 9, 1))).as_text()

    for window, strides in [((3, 3), (2, 2)), ((2, 2), (2, 2))]:
        text = program(window, strides)
        assert "select_and_scatter" not in text
        assert "stablehlo.scatter" not in text


def test_max_pool_of_integers():
    x = jnp.arange(9).reshape(1, 3, 3, 1)
    np.testing.assert_array_equal(max_pool(x, (2, 2), padding="SAME")[0, :, :, 0], [[4, 5], [7, 8]])


@pytest.mark.parametrize("size", [(16, 24), (15, 17), (9, 12)])
@pytest.mark.parametrize("window", [2, 3])
def test_a_stride_left_out_becomes_dilation(size, window):
    @jax.jit
    def pooled(x):
        once = max_pool(x, (window, window), (2, 2))
        dense = dilated_max_pool(x, (window, window))
        twice = max_pool(once, (window, window), (2, 2))
        return once, twice, dense, dilated_max_pool(dense, (window, window), 2)

    once, twice, dense, denser = pooled(random(2, *size, 3))
    np.testing.assert_array_equal(dense[:, ::2, ::2], once)
    assert denser.shape[1:3] == tuple(n - 3 * (window - 1) for n in size)
    np.testing.assert_array_equal(denser[:, ::4, ::4], twice)


def test_a_dilated_max_pool_may_keep_the_size():
    x = random(2, 7, 8, 3) - 5.0
    kept = dilated_max_pool(x, (2, 2), 2, keep_size=True)
    assert kept.shape == x.shape
    np.testing.assert_array_equal(kept[:, :5, :6], dilated_max_pool(x, (2, 2), 2))
    np.testing.assert_array_equal(kept[:, 5:, 6:], x[:, 5:, 6:])
