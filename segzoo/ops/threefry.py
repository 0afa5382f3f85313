"""Threefry, the cipher that JAX's random numbers are made by."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))  # bits, in the eight rounds that repeat
_PARITY = 0x1BD11BDA  # makes the third word of the key depend on both others


def words(key: Array) -> Array:
    """Returns the two words of a key, `uint32[2]`; of one of another kind two that it draws."""
    pair = jax.random.key_data(key)
    return pair if pair.shape == (2,) else jax.random.bits(key, (2,), jnp.uint32)


def encipher(key: Array, a: Array, b: Array) -> tuple[Array, Array]:
    """Enciphers two words, by Threefry-2x32 of 20 rounds (Salmon et al. 2011, section 3.2).

    Written out instead of `jax.extend.random.threefry_2x32`, a loop on a CPU, whose every pass
    goes through memory.

    Args:
        key: `uint32[2]`.
        a: uint32, of any shape.
        b: likewise.

    Returns:
        Two arrays of the shape of `a` and `b`.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ np.uint32(_PARITY))
    a, b = a + keys[0], b + keys[1]
    for turn in range(5):
        for bits in _ROTATIONS[turn % 2]:
            a = a + b
            b = (b << np.uint32(bits) | b >> np.uint32(32 - bits)) ^ a
        a, b = a + keys[(turn + 1) % 3], b + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return a, b
