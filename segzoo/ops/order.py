"""The order in which a program computes what its data leave open."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def after(x: Array, other: Array) -> Array:
    """Returns `x` as it is, which is then not to be had before `other`.

    XLA is free to compute what nothing waits for early or late (the gradient of a kernel waits for
    the optimizer alone), and all that it is made of, or is wanted for, stays in memory meanwhile.
    An optimization barrier does not help on a CPU, where it is gone by the time that operations are
    put in order.

    Args:
        x: floating, of any shape.
        other: floating, of any shape with at least one element.
    """
    # Less 0, numbers stay what they are, -0 too.
    return x - unknown_zero(other).astype(x.dtype)


def unknown_zero(x: Array) -> Array:
    """Returns the integer 0. XLA does not know that it is, nor that it needs no `x` to be had.

    Args:
        x: floating, of any shape with at least one element.
    """
    return jnp.minimum(jnp.isnan(x[(0,) * x.ndim]), 0)
