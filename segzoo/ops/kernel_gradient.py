"""The gradient of a 2-D convolution by its kernel, as products of matrices.

XLA's CPU compiler has it as a convolution with a filter as large as the image. Here a few rows of
the image at a time are unfolded into patches, while they are in the cache, and multiplied by the
cotangent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops.windows import Numbers, Pairs, seen_by_taps, sum_over_blocks

Array = jax.Array

# How many pixels are unfolded at a time.
_BLOCK = 1024


def turned(shape: Sequence[int], pads: Pairs, dilation: Numbers) -> Pairs:
    """The pads with which a kernel of such sides leads back, from outputs to inputs."""
    reaches = ((k - 1) * d for k, d in zip(shape, dilation, strict=True))
    return tuple((r - before, r - after) for r, (before, after) in zip(reaches, pads, strict=True))


def matrix_gradient(x: Array, cotangent: Array) -> Array:
    """`[C, O]`: the gradient of a convolution of one pixel, a product over all pixels."""
    c_in, c_out = x.shape[-1], cotangent.shape[-1]
    x, cotangent = x.reshape(-1, c_in), cotangent.reshape(-1, c_out)
    total_dtype = jnp.promote_types(x.dtype, jnp.float32)
    # The first of two factors is laid out anew: the narrower one.
    if c_in <= c_out:
        return jnp.matmul(x.T, cotangent, preferred_element_type=total_dtype)
    return jnp.matmul(cotangent.T, x, preferred_element_type=total_dtype).T


def kernel_gradient(
    x: Array,
    cotangent: Array,
    shape: tuple[int, ...],
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
) -> Array:
    """`[kh, kw, C, O]`: the sum over places of what a tap saw there, times the cotangent there."""
    *window, c_in, c_out = shape
    if _suits_cells(window, c_in, strides, dilation):
        return _by_cells(x, cotangent, shape, strides, pads)
    if max(strides) > 1 or c_in < 4 * c_out:
        return _products(x, cotangent, window, strides, pads, dilation)
    # Far fewer channels come out than went in: unfolded is what came out, as each input saw it.
    around = turned(window, pads, dilation)
    seen_back = _products(cotangent, x, window, strides, around, dilation)
    return jnp.flip(seen_back, (0, 1)).transpose(0, 1, 3, 2)


def _suits_cells(window: Sequence[int], c_in: int, strides: Numbers, dilation: Numbers) -> bool:
    """Whether to gather cells as large as the stride, as in the first convolution of a ResNet.

    A tap of few channels is copied a few numbers at a time, and each tap has code of its own. The
    cells' channels are more, their taps fewer; but those that fill up the last cell are in vain.
    """
    whole = math.prod(-(-k // s) * s for k, s in zip(window, strides, strict=True))
    little_waste = 3 * whole <= 4 * math.prod(window)
    return max(strides) > 1 and max(dilation) == 1 and c_in < 8 and little_waste


def _by_cells(
    x: Array, cotangent: Array, shape: tuple[int, ...], strides: Numbers, pads: Pairs
) -> Array:
    """`kernel_gradient` where the pixels of a cell, `strides` large, become channels of one."""
    *window, c_in, c_out = shape
    taps = [-(-k // s) for k, s in zip(window, strides, strict=True)]
    cells = [o - 1 + n for o, n in zip(cotangent.shape[1:-1], taps, strict=True)]
    sizes = zip(x.shape[1:-1], cells, strides, pads, strict=True)
    borders = [(before, n * s - size - before, 0) for size, n, s, (before, _) in sizes]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *borders, (0, 0, 0)))
    (rows, columns), (high, wide) = cells, strides
    x = x.reshape(-1, rows, high, columns, wide, c_in).transpose(0, 1, 3, 2, 4, 5)
    # Laid out in memory, or it would be gathered anew for every tap.
    x = lax.optimization_barrier(x.reshape(-1, rows, columns, high * wide * c_in))
    total = _products(x, cotangent, taps, (1, 1), ((0, 0), (0, 0)), (1, 1))
    total = total.reshape(*taps, high, wide, c_in, c_out).transpose(0, 2, 1, 3, 4, 5)
    total = total.reshape(taps[0] * high, taps[1] * wide, c_in, c_out)
    return total[: window[0], : window[1]]


def _products(
    x: Array,
    cotangent: Array,
    window: Sequence[int],
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
) -> Array:
    """`[kh, kw, C, O]`: the sum over blocks of rows of `patches(x).T @ cotangent`, float32."""
    c_in, c_out = x.shape[-1], cotangent.shape[-1]
    columns = math.prod(window) * c_in
    total_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def product(seen: Array, met: Array) -> Array:
        left = met.reshape(-1, c_out).T
        if c_out <= columns:  # laid out in memory it is multiplied faster
            left = lax.optimization_barrier(left)
        # Matrices are laid side by side faster than arrays of four axes.
        taps = [tap.reshape(-1, c_in) for tap in seen_by_taps(seen, window, strides, dilation)]
        patches = jnp.concatenate(taps, axis=-1)
        return jnp.matmul(left, patches, preferred_element_type=total_dtype)

    reach = (window[0] - 1) * dilation[0] + 1
    total = sum_over_blocks(product, x, pads, cotangent, strides[0], reach, _BLOCK)
    return total.T.reshape(*window, c_in, c_out)
