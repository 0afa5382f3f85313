"""Normalisations without parameters or statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

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


def local_contrast_norm(x: Array, *, size: int = 9) -> Array:
    """Takes away the local mean and divides by the local standard deviation.

    Jarrett et al. 2009 ("What is the best multi-stage architecture for object recognition?"),
    section 2.1, with w a Gaussian window over places p whose weights sum to 1 over places and the C
    channels i:

        v = x - sum_ip w_p x_ip,    sigma = sqrt(sum_ip w_p v_ip^2),    y = v / max(c, sigma)

    c is the mean of sigma over the image, so that even parts are not blown up. What the paper
    leaves open: the Gaussian's standard deviation is a quarter of the window, and at the border the
    weights inside the image sum to 1. Scaling the image, or adding a constant, changes nothing; so
    it may be normalised already. Computed in float32.

    Args:
        x: `[B, *S, C]`, floating.
        size: of the window, odd.

    Returns:
        An array like `x`; 0 where nothing varies.

    Raises:
        SegzooError: for an even size.
    """
    if size < 1 or size % 2 != 1:
        raise SegzooError(f"size is {size!r}; expected an odd number of pixels.")
    wide = x.astype(jnp.float32)
    v = wide - _blur(wide.mean(axis=-1, keepdims=True), size)
    variance = _blur(jnp.square(v).mean(axis=-1, keepdims=True), size)
    # What rounding leaves of an even image is no contrast; and a root has no gradient at 0.
    image = tuple(range(1, x.ndim))
    rounding = 1e-5 * jnp.abs(wide).max(image, keepdims=True)
    sigma = jnp.sqrt(jnp.maximum(variance, jnp.square(rounding) + 1e-30))
    c = sigma.mean(image, keepdims=True)
    return (v / jnp.maximum(c, sigma)).astype(x.dtype)


def _blur(x: Array, size: int) -> Array:
    """Gaussian means over the places of `[B, *S, C]` that lie inside, one axis after the other."""
    reach = size // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (size / 4)) ** 2)
    for axis in range(1, x.ndim - 1):
        n = x.shape[axis]
        pads = [(reach, reach) if i == axis else (0, 0) for i in range(x.ndim)]
        padded = jnp.pad(x, pads)
        total = sum(
            tap * lax.slice_in_dim(padded, i, i + n, axis=axis) for i, tap in enumerate(taps)
        )
        inside = np.convolve(np.ones(n), taps)[reach : reach + n]
        shape = [n if i == axis else 1 for i in range(x.ndim)]
        x = total / jnp.asarray(inside.reshape(shape), x.dtype)
    return x
