"""Max-pool indices, and unpooling by them (Badrinarayanan et al. 2017, arXiv:1511.00561, Fig. 3).

A window's maximum is remembered by its place within the window, one byte (the paper counts the two
bits it takes) instead of an index into the whole map. Unpooling then needs no scatter: every pixel
of a window asks whether it is the one. Value and gradient are a select, and a reshape lays the
windows out.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.errors import SegzooError
from segzoo.ops.pooling import first_maximum, into_tiles, tile_places
from segzoo.ops.windows import crop

Array = jax.Array


def max_pool_indices(x: Array, window: Sequence[int] = (2, 2)) -> Array:
    """Returns where in each window the maximum lies that `max_pool(x, window)` passes on.

    Windows tile the axes and keep a remainder as a window of its own, as `padding="SAME"` does
    (Caffe's pools): for windows of 2 the missing pixel is at the end. Of equal values the first in
    row-major order counts, as in Caffe and PyTorch.

    Args:
        x: `[B, *S, C]`, floating.
        window: size of the window, one number per spatial axis.

    Returns:
        uint8 `[B, *S', C]` with `S' = ceil(S / window)` (uint32 for windows above 256 pixels): the
        place in the window, its pixels numbered in row-major order.
    """
    window = tuple(window)
    return first_maximum(into_tiles(lax.stop_gradient(x), window, keep_remainder=True), window)


def max_unpool(
    x: Array, indices: Array, size: Sequence[int], window: Sequence[int] = (2, 2)
) -> Array:
    """Puts each value back where the maximum of its window came from, and zeros elsewhere.

    Args:
        x: `[B, *S', C]`.
        indices: from `max_pool_indices` of a map `[B, *size, C]`.
        size: the spatial sizes of that map.
        window: of the pool.

    Returns:
        `[B, *size, C]`, in the dtype of `x`.

    Raises:
        SegzooError: when shapes do not belong together.
    """
    window, size = tuple(window), tuple(size)
    pooled = tuple(-(-n // w) for n, w in zip(size, window, strict=True))
    if x.shape != indices.shape or x.shape[1:-1] != pooled:
        raise SegzooError(
            f"values of shape {tuple(x.shape)} and indices of shape {tuple(indices.shape)} do not "
            f"fit a map of {' x '.join(map(str, size))} pixels; expected "
            f"{' x '.join(map(str, pooled))} of each."
        )
    axes = tuple(range(2, 2 * len(window) + 1, 2))
    values, places = jnp.expand_dims(x, axes), jnp.expand_dims(indices, axes)
    tiles = jnp.where(places == tile_places(window), values, jnp.zeros_like(values))
    whole = [n * w for n, w in zip(pooled, window, strict=True)]
    tiles = tiles.reshape(x.shape[0], *whole, x.shape[-1])
    before = [(n - m) // 2 for n, m in zip(whole, size, strict=True)]
    return crop(tiles, before, size)
