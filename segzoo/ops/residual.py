"""What a residual block ends with."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def relu_of_sum(x: Array, shortcut: Array) -> Array:
    """Returns `relu(x + shortcut)`, an array of its own in the program that is compiled.

    XLA computes again whatever it can out of a single array in everything that reads it, a usual
    ReLU among that. A block's result would then be computed out of the sums of all blocks before
    it, in the next block and in its gradient: in ResNet-101 out of up to 23.

    Args:
        x: `[...]`, floating.
        shortcut: of the same shape and dtype.

    Returns:
        The same. NaN stays NaN, and where the sum is 0 or NaN its gradient is 0.
    """
    return _relu(x + shortcut)


@jax.custom_jvp
def _relu(x: Array) -> Array:
    # Chosen by one array out of another: made of two, it is not computed again.
    return jnp.where(x <= 0, jnp.zeros_like(x), x)


@_relu.defjvp
def _relu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The result tells where it was cut off; the sum it was made of need not be kept.
    y, (tangent,) = _relu(*primals), tangents
    return y, jnp.where(y > 0, tangent, jnp.zeros_like(tangent))
