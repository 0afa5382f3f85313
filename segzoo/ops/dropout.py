"""Dropout (Srivastava et al. 2014), its random bits used up.

`jax.random.bernoulli` spends two words of Threefry, twenty rounds, on a single decision; here the
two decide on four, and on arrays without short axes, for which XLA's CPU compiler makes far less
code. In a network with dropout after every layer this is felt in the whole train step.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import threefry_2x32

Array = jax.Array

_BITS = 16  # that decide on one number


def dropout(x: Array, key: Array, rate: float, *, first: Array | int = 0) -> Array:
    """Sets numbers to zero at random and scales the others by `1 / (1 - rate)`.

    What is dropped of an example depends on its position in the batch, not on the others there.

    Args:
        x: `[B, ...]`, floating.
        key: one for the whole batch.
        rate: the probability of zero, from 0 to less than 1. Taken to the nearest multiple of
            2^-16.
        first: the position of the first example, where `x` is a part of the batch.

    Returns:
        The shape and dtype of `x`.
    """
    flat = x.reshape(len(x), -1)
    keep = _decide(key, rate, flat.shape, first)
    return jnp.where(keep, flat / (1 - rate), jnp.zeros_like(flat)).reshape(x.shape)


def _decide(key: Array, rate: float, shape: tuple[int, ...], first: Array | int) -> Array:
    """`bool[examples, count]`, true with probability `1 - rate`."""
    examples, count = shape
    pair = jax.random.key_data(key)
    if pair.shape != (2,):  # a key of another kind than Threefry's
        pair = jax.random.bits(key, (2,), jnp.uint32)
    # Threefry enciphers two words at a time, here an example's position and a running number: one
    # call for the whole batch, and no key for each example.
    calls = (examples, -(-count // 4))
    position = lax.broadcasted_iota(jnp.uint32, calls, 0) + jnp.asarray(first, jnp.uint32)
    words = threefry_2x32(pair, jnp.stack([position, lax.broadcasted_iota(jnp.uint32, calls, 1)]))
    words = jnp.moveaxis(words, 0, 1).reshape(examples, -1)
    # Put side by side they are an array of their own; computed from the words at once, they would
    # be computed again by all that reads the result.
    halves = jnp.concatenate([words & (2**_BITS - 1), words >> _BITS], axis=1)
    return halves[:, :count] >= np.uint32(round(rate * 2**_BITS))
