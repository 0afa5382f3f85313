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


def dropout(x: Array, keys: Array, rate: float) -> Array:
    """Sets numbers to zero at random and scales the others by `1 / (1 - rate)`.

    Args:
        x: `[B, ...]`, floating.
        keys: `[B]`, one key for each example.
        rate: the probability of zero, from 0 to less than 1. Taken to the nearest multiple of
            2^-16.

    Returns:
        The shape and dtype of `x`.
    """
    flat = x.reshape(len(x), -1)
    keep = jax.vmap(lambda key: _decide(key, rate, flat.shape[1]))(keys)
    return jnp.where(keep, flat / (1 - rate), jnp.zeros_like(flat)).reshape(x.shape)


def _decide(key: Array, rate: float, count: int) -> Array:
    """`bool[count]`, true with probability `1 - rate`."""
    pair = jax.random.bits(key, (2,), jnp.uint32)  # of a key of whatever kind
    words = threefry_2x32(pair, lax.iota(jnp.uint32, 2 * -(-count // 4)))
    halves = jnp.concatenate([words & (2**_BITS - 1), words >> _BITS])
    return halves[:count] >= np.uint32(round(rate * 2**_BITS))
