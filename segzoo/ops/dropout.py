"""Dropout (Srivastava et al. 2014), its random bits drawn where they are used.

`jax.random.bernoulli` runs the rounds of Threefry as a loop on a CPU, through memory at each pass,
and makes a number of every word. In a network with dropout after every layer this is felt in the
whole train step.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, in the eight rounds that repeat
_PARITY = 0x1BD11BDA  # makes the third word of the key depend on both others


def dropout(x: Array, key: Array, rate: float, *, first: Array | int = 0) -> Array:
    """Sets numbers to zero at random and scales the others by `1 / (1 - rate)`.

    What is dropped of an example depends on its position in the batch, not on the others there.

    Args:
        x: `[B, ...]`, floating.
        key: one for the whole batch.
        rate: the probability of zero, from 0 to less than 1. Taken to the nearest multiple of
            2^-32.
        first: the position of the first example, where `x` is a part of the batch.

    Returns:
        The shape and dtype of `x`.
    """
    flat = x.reshape(len(x), -1)
    keep = _decide(key, rate, flat.shape, first)
    # A product with an array, as is its gradient, XLA keeps. It computes again in all that reads it
    # what ends with a product of one number and all pixels, and with it all that leads there: in
    # dense blocks the sum of the gradients of all later layers.
    return (flat * jnp.where(keep, 1 / (1 - rate), 0).astype(x.dtype)).reshape(x.shape)


@functools.partial(jax.jit, static_argnums=(1, 2))  # its hundred operations traced once a shape
def _decide(key: Array, rate: float, shape: tuple[int, ...], first: Array | int) -> Array:
    """`bool[examples, count]`, true with probability `1 - rate`."""
    examples, count = shape
    pair = jax.random.key_data(key)
    if pair.shape != (2,):  # a key of another kind than Threefry's
        pair = jax.random.bits(key, (2,), jnp.uint32)
    # Threefry enciphers two words at a time, here an example's position and a running number: one
    # call for the whole batch, and no key for each example.
    calls = (examples, -(-count // 2))
    position = lax.broadcasted_iota(jnp.uint32, calls, 0) + jnp.asarray(first, jnp.uint32)
    words = _threefry(pair, position, lax.broadcasted_iota(jnp.uint32, calls, 1))
    least = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    # Put side by side they are an array of their own; computed from the words at once, they would
    # be computed again by all that reads the result.
    return jnp.concatenate([word >= least for word in words], axis=1)[:, :count]


def _threefry(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Enciphers two words, by Threefry-2x32 of 20 rounds (Salmon et al. 2011, section 3.2).

    Written out instead of `jax.extend.random.threefry_2x32`, a loop on a CPU, whose every pass
    goes through memory.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(_PARITY))
    a, b = a + keys[0], b + keys[1]
    for turn in range(5):
        for bits in _ROTATIONS[turn % 2]:
            a = a + b
            b = (b << np.uint32(bits) | b >> np.uint32(32 - bits)) ^ a
        a, b = a + keys[(turn + 1) % 3], b + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return a, b
