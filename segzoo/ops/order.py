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
    first = other[(0,) * other.ndim]
    # 0 for every number, but XLA does not know; less 0, numbers stay what they are, -0 too.
    nothing = jnp.minimum(jnp.isnan(first), 0)
    return x - nothing.astype(x.dtype)
