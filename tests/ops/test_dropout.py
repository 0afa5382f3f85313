"""Dropout: how many are dropped, and that no two decisions hang together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

from segzoo.ops.dropout import dropout
from segzoo.ops.threefry import encipher


def drop(shape, rate, seed=0, impl="threefry2x32", dtype=jnp.float32):
    key = jax.random.key(seed, impl=impl)
    return np.asarray(jax.jit(dropout, static_argnums=2)(jnp.ones(shape, dtype), key, rate))


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.5, 0.99])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_the_rate_is_kept(rate, impl):
    y = drop((4, 256, 257, 3), rate, impl=impl)
    allowed = 4 * np.sqrt(rate * (1 - rate) / y.size)  # four standard deviations
    assert abs((y == 0).mean() - rate) < allowed
    np.testing.assert_allclose(np.unique(y), [0, 1 / (1 - rate)], rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (3, 5, 2), (1, 7, 1, 1)])
def test_any_shape_and_dtype(shape):
    for dtype in (jnp.float32, jnp.bfloat16):
        y = drop(shape, 0.5, dtype=dtype)
        assert y.shape == shape
        assert y.dtype == dtype
        assert set(np.unique(y.astype(np.float32))) <= {0.0, 2.0}


def test_decisions_are_independent():
    """What one number and any of its neighbours become: all four cases, each a quarter."""
    y = drop((2, 40_000), 0.5)[0] == 0
    # The two words of one call lie half of the array apart.
    for distance in (1, 2, 3, 4, 10_000, 20_000, 30_000):
        first, second = y[:-distance], y[distance:]
        both = np.mean(first & second)
        assert abs(both - 0.25) < 4 * np.sqrt(0.25 * 0.75 / first.size), distance


def test_another_key_drops_others():
    a, b, again = drop((2, 1000), 0.5), drop((2, 1000), 0.5, seed=1), drop((2, 1000), 0.5)
    np.testing.assert_array_equal(a, again)
    assert np.mean(a == b) < 0.6
    assert np.mean(a[0] == a[1]) < 0.6


def test_a_part_of_a_batch_is_dropped_as_in_the_whole():
    key, x = jax.random.key(3), jnp.ones((6, 5, 7))
    whole = dropout(x, key, 0.5)
    parts = [dropout(x[i : i + 2], key, 0.5, first=jnp.int32(i)) for i in (0, 2, 4)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))
    assert len(np.unique(np.asarray(whole).reshape(6, -1), axis=0)) == 6


def test_decisions_are_threefrys_words():
    """Bit for bit: what one example's numbers become, from one call for two of them."""
    key, rate = jax.random.key(4), 0.3
    y = np.asarray(dropout(jnp.ones((3, 9)), key, rate))
    for position in range(3):
        calls = [jnp.array([position, i], jnp.uint32) for i in range(5)]
        words = np.asarray([threefry_2x32(jax.random.key_data(key), call) for call in calls])
        np.testing.assert_array_equal(y[position] != 0, words.T.ravel()[:9] >= round(rate * 2**32))


def test_the_cipher_is_jaxs():
    rng = np.random.default_rng(0)
    for _ in range(20):
        key, words = rng.integers(2**32, size=(2, 2), dtype=np.uint32)
        np.testing.assert_array_equal(
            jnp.stack(encipher(*map(jnp.asarray, (key, *words)))), threefry_2x32(key, words)
        )


@pytest.mark.parametrize("rate", [1e-12, 1 - 1e-12])
def test_rates_at_the_ends(rate):
    assert np.mean(drop((2, 500), rate) == 0) == round(rate)
