"""Max-pool indices and unpooling against their plain forms: loops over windows, and a scatter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import SegzooError
from segzoo.ops.pooling import max_pool
from segzoo.ops.unpooling import max_pool_indices, max_unpool

CASES = [((8, 6), (2, 2)), ((7, 9), (2, 2)), ((1, 5), (2, 2)), ((5, 6, 7), (2, 2, 2)), ((7,), (3,))]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def windows(size, window):
    """For each window: its index in the pooled map, and the pixels of it that exist, numbered."""
    pooled = [-(-n // w) for n, w in zip(size, window, strict=True)]
    before = [(p * w - n) // 2 for p, w, n in zip(pooled, window, size, strict=True)]
    for at in np.ndindex(*pooled):
        pixels = []
        for place, tap in enumerate(np.ndindex(*window)):
            pixel = [a * w + t - b for a, w, t, b in zip(at, window, tap, before, strict=True)]
            if all(0 <= p < n for p, n in zip(pixel, size, strict=True)):
                pixels.append((place, tuple(pixel)))
        yield at, pixels


def flat_indices(x, window):
    """What Caffe and PyTorch keep: the maximum's place in the map; of equal ones the first."""
    size = x.shape[1:-1]
    found = np.empty(
        (len(x), *(-(-n // w) for n, w in zip(size, window, strict=True)), x.shape[-1])
    )
    for b in range(len(x)):
        for c in range(x.shape[-1]):
            for at, pixels in windows(size, window):
                values = [x[(b, *pixel, c)] for _, pixel in pixels]
                best = pixels[int(np.argmax(values))][1]
                found[(b, *at, c)] = np.ravel_multi_index(best, size)
    return found.astype(int)


def by_scatter(x, flat, size):
    """`[B, *S', C]` at flat indices of `size`: zeros, and one `set` for every value."""
    batch, channels = x.shape[0], x.shape[-1]
    b = np.arange(batch)[:, None, None]
    c = np.arange(channels)[None, None, :]
    where = flat.reshape(batch, -1, channels)
    spread = jnp.zeros((batch, int(np.prod(size)), channels), x.dtype)
    return (
        spread.at[b, where, c].set(x.reshape(batch, -1, channels)).reshape(batch, *size, channels)
    )


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("size", "window"), CASES)
def test_indices_are_the_places_of_the_first_maxima(size, window, ties):
    x = random(2, *size, 3)
    x = jnp.round(x) if ties else x
    indices = max_pool_indices(x, window)
    assert indices.dtype == jnp.uint8
    flat = flat_indices(np.asarray(x), window)
    for at, pixels in windows(size, window):
        numbers = {np.ravel_multi_index(pixel, size): place for place, pixel in pixels}
        expected = np.vectorize(numbers.get)(flat[(slice(None), *at)])
        np.testing.assert_array_equal(indices[(slice(None), *at)], expected)


@pytest.mark.parametrize(("size", "window"), CASES)
def test_unpooling_is_the_scatter(assert_same_function, size, window):
    encoded = jnp.round(random(2, *size, 3))  # with ties
    flat = flat_indices(np.asarray(encoded), window)
    x = random(*flat.shape, seed=1)
    indices = max_pool_indices(encoded, window)
    assert_same_function(
        lambda x: max_unpool(x, indices, size, window),
        lambda x: by_scatter(x, flat, size),
        x,
        atol=0,
    )


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 1)])
def test_what_was_pooled_goes_back_where_it_came_from(size):
    x = random(2, *size, 3) + 5.0
    pooled = max_pool(x, (2, 2), padding="SAME")
    back = max_unpool(pooled, max_pool_indices(x), size)
    kept = back != 0
    np.testing.assert_array_equal(back, jnp.where(kept, x, 0.0))
    assert kept.sum() == pooled.size
    np.testing.assert_array_equal(max_pool(back, (2, 2), padding="SAME"), pooled)


def test_no_gradient_flows_through_the_choice_of_places():
    def unpooled(encoded):
        pooled = jax.lax.stop_gradient(max_pool(encoded, (2, 2)))
        return jnp.sum(jnp.sin(max_unpool(pooled, max_pool_indices(encoded), (4, 4))))

    assert not jax.grad(unpooled)(random(1, 4, 4, 2)).any()


def test_indices_keep_one_byte_under_any_dtype_and_cross_256_places():
    assert max_pool_indices(random(1, 4, 4, 1).astype(jnp.bfloat16)).dtype == jnp.uint8
    x = jnp.zeros((1, 17, 17, 1)).at[0, 16, 16, 0].set(1.0)
    assert max_pool_indices(x, (16, 17)).dtype == jnp.uint32
    assert int(max_pool_indices(x, (17, 17))[0, 0, 0, 0]) == 288


def test_unpooling_keeps_the_dtype():
    x = random(1, 2, 2, 1).astype(jnp.bfloat16)
    assert max_unpool(x, jnp.zeros(x.shape, jnp.uint8), (4, 4)).dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("values", "indices", "size"),
    [((1, 2, 2, 3), (1, 2, 2, 1), (4, 4)), ((1, 2, 2, 3), (1, 2, 2, 3), (5, 4))],
)
def test_shapes_that_do_not_belong_together(values, indices, size):
    with pytest.raises(SegzooError, match=r"do not fit a map of .* expected"):
        max_unpool(jnp.zeros(values), jnp.zeros(indices, jnp.uint8), size)
