"""Normalisations without parameters or statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from segzoo.errors import SegzooError

Array = jax.Array


def local_response_norm(
    x: Array, *, k: float = 2.0, n: int = 5, alpha: float = 1e-4, beta: float = 0.75
) -> Array:
    """Divides every value by the strength of its neighbours across channels, at the same place.

    Krizhevsky, Sutskever & Hinton 2012, section 3.3: `b_i = a_i / (k + alpha sum_j a_j^2)^beta`
    over the channels j from `i - n/2` to `i + n/2` that exist. Other libraries divide `alpha` by
    `n`: what they call `alpha` is `n` times as large. Computed in float32.

    Args:
        x: `[..., C]`, floating.
        k: added to the sum; above 0.
        n: channels in the sum, odd.
        alpha: the weight of the sum.
        beta: the exponent.

    Returns:
        An array like `x`.

    Raises:
        SegzooError: for an even `n`.
    """
    if n % 2 != 1:
        raise SegzooError(f"n is {n!r}; expected an odd number of channels.")
    wide = x.astype(jnp.float32)
    pads = [(0, 0)] * (x.ndim - 1) + [(n // 2, n // 2)]
    squares = jnp.pad(jnp.square(wide), pads)
    channels = x.shape[-1]
    total = sum(squares[..., j : j + channels] for j in range(n))
    return (wide * (k + alpha * total) ** -beta).astype(x.dtype)
