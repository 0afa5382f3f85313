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

from segzoo.ops.threefry import encipher, words

Array = jax.Array


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
    # Threefry enciphers two words at a time, here an example's position and a running number: one
    # call for the whole batch, and no key for each example.
    calls = (examples, -(-count // 2))
    position = lax.broadcasted_iota(jnp.uint32, calls, 0) + jnp.asarray(first, jnp.uint32)
    drawn = encipher(words(key), position, lax.broadcasted_iota(jnp.uint32, calls, 1))
    least = np.uint32(min(round(rate * 2**32), 2**32 - 1))
    # Put side by side they are an array of their own; computed from the words at once, they would
    # be computed again by all that reads the result.
    return jnp.concatenate([word >= least for word in drawn], axis=1)[:, :count]
