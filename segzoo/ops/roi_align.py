"""RoIAlign (He et al. 2017, arXiv:1703.06870, section 3) on one feature map or on a pyramid.

Every bin of a region is the mean over points in it, each interpolated bilinearly between features.
Means and interpolation act on rows and columns separately: a bin is a sum over a few rows times a
few columns, each pair one gather from the features of all images and levels laid out in a line.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.ops import boxes as box_ops

Array = jax.Array


def assign_levels(
    boxes: Array, lowest: int = 2, highest: int = 5, *, canonical: float = 224.0, k0: int = 4
) -> Array:
    """The level of the pyramid each box is pooled from (Lin et al. 2017, arXiv:1612.03144, eq. 1).

    `floor(k0 + log2(sqrt(height * width) / canonical))`, between the lowest and the highest.

    Args:
        boxes: `[..., 4]`.
        lowest: of the levels there are.
        highest: likewise.
        canonical: side of a square box at level `k0`, in pixels.
        k0: its level.

    Returns:
        int32 `[...]`.
    """
    side = jnp.sqrt(box_ops.area(lax.stop_gradient(boxes)))
    # Sides at a power of two belong to the upper level, however the logarithm is rounded.
    level = jnp.floor(k0 + jnp.log2(side / canonical) + 1e-6)
    return jnp.clip(level, lowest, highest).astype(jnp.int32)


def roi_align(
    features: Sequence[Array],
    boxes: Array,
    strides: Sequence[int],
    size: int,
    *,
    level: Array | None = None,
    samples: int = 2,
    aligned: bool = False,
) -> Array:
    """Pools the features in boxes to a fixed size.

    Args:
        features: of each level `[B, h, w, C]`, floating.
        boxes: `[B, N, 4]` in pixels of the image; no gradient reaches them.
        strides: pixels per place, of each level.
        size: bins along either side of a box.
        level: int `[B, N]`, which of `features` to pool each box from; by default the first.
        samples: points along either side of a bin.
        aligned: whether feature (0, 0) lies at half a stride, the centre of its pixels, instead of
            at pixel 0; boxes then may be narrower than a place.

    Returns:
        `[B, N, size, size, C]` in the dtype of the features. Points more than one place outside
        the features count as 0.
    """
    batch, number = boxes.shape[:2]
    channels = features[0].shape[-1]
    table = jnp.concatenate([f.reshape(batch, -1, channels) for f in features], axis=1)
    lengths = [f.shape[1] * f.shape[2] for f in features]
    starts = np.cumsum([0, *lengths[:-1]])

    level = jnp.zeros((batch, number), jnp.int32) if level is None else level

    def of_level(values: Sequence[int] | np.ndarray, dtype: jnp.dtype = jnp.int32) -> Array:
        return jnp.asarray(values, dtype)[level].reshape(-1)

    height, width = (
        of_level([f.shape[1] for f in features]),
        of_level([f.shape[2] for f in features]),
    )
    start = of_level(starts) + jnp.repeat(jnp.arange(batch) * sum(lengths), number)
    scaled = lax.stop_gradient(boxes).reshape(-1, 4).astype(jnp.float32)
    scaled = scaled / of_level(strides, jnp.float32)[:, None] - (0.5 if aligned else 0.0)
    smallest = 0.0 if aligned else 1.0
    rows, row_weights = _taps(scaled[:, 0], scaled[:, 2], height, size, samples, smallest)
    columns, column_weights = _taps(scaled[:, 1], scaled[:, 3], width, size, samples, smallest)
    rows = start[:, None, None] + rows * width[:, None, None]
    table = table.reshape(-1, channels)
    pooled = _pool(table, rows, row_weights, columns, column_weights)
    return pooled.reshape(batch, number, size, size, channels)


def _taps(
    first: Array, last: Array, length: Array, size: int, samples: int, smallest: float
) -> tuple[Array, Array]:
    """Which places along an axis make up each bin, and their weights.

    Args:
        first: `[R]`, where the boxes begin, in places.
        last: `[R]`, where they end.
        length: `[R]`, places there are.
        size: bins.
        samples: points per bin.
        smallest: a shorter box counts as this long.

    Returns:
        int32 and float32 `[R, size, 2 * samples]`.
    """
    extent = jnp.maximum(last - first, smallest)
    offset = (np.arange(size)[:, None] + (np.arange(samples) + 0.5) / samples) / size
    point = first[:, None, None] + extent[:, None, None] * jnp.asarray(offset, jnp.float32)
    length = length[:, None, None]
    inside = (point >= -1) & (point <= length)
    point = jnp.clip(point, 0.0, (length - 1).astype(jnp.float32))
    lower = jnp.floor(point)
    share = point - lower
    lower = lower.astype(jnp.int32)
    place = jnp.concatenate([lower, jnp.minimum(lower + 1, length - 1)], axis=-1)
    weight = jnp.concatenate([1 - share, share], axis=-1) / samples
    return place, jnp.where(jnp.concatenate([inside, inside], axis=-1), weight, 0.0)


def _sum_taps(
    table: Array, rows: Array, row_weights: Array, columns: Array, weights: Array
) -> Array:
    """Sums `table[row + column] * row weight * column weight` over the taps of each bin.

    Args:
        table: `[P, C]`.
        rows: int32 `[R, bins, taps]`, the place in the table where the row begins.
        row_weights: float32, likewise.
        columns: int32 `[R, bins, taps]`.
        weights: float32, of the columns.

    Returns:
        `[R, bins, bins, C]` in the dtype of the table, summed in float32 at least.
    """
    dtype = jnp.promote_types(table.dtype, jnp.float32)
    total = jnp.zeros((), dtype)
    # Tap by tap each term is fused into the sum; one gather of all taps would be written out.
    for i in range(rows.shape[-1]):
        for j in range(columns.shape[-1]):
            place = rows[:, :, None, i] + columns[:, None, :, j]
            weight = row_weights[:, :, None, i] * weights[:, None, :, j]
            total = total + table[place].astype(dtype) * weight[..., None]
    return total.astype(table.dtype)


def _sum_one_by_one(
    table: Array, rows: Array, row_weights: Array, columns: Array, weights: Array
) -> Array:
    """The same, region by region: transposed, a loop that adds to the table where it lies.

    On CPU that is several times faster than the scattering of all regions at once.
    """
    bins, taps = rows.shape[1:]
    dtype = jnp.promote_types(table.dtype, jnp.float32)

    def one(region: tuple[Array, ...]) -> Array:
        rows, row_weights, columns, weights = region
        found = table[rows.reshape(-1, 1) + columns.reshape(1, -1)].astype(dtype)
        found = found.reshape(bins * taps, bins, taps, -1)
        found = jnp.sum(found * weights[..., None], axis=2).reshape(bins, taps, bins, -1)
        return jnp.sum(found * row_weights[..., None, None], axis=1).astype(table.dtype)

    return lax.map(one, (rows, row_weights, columns, weights))


_pool = jax.custom_vjp(_sum_taps)


def _forward(table: Array, *taps: Array) -> tuple[Array, tuple[Array, ...]]:
    return _pool(table, *taps), (table, *taps)


def _backward(residuals: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    table, *taps = residuals
    pool = _sum_one_by_one if jax.default_backend() == "cpu" else _sum_taps
    (transposed,) = jax.linear_transpose(lambda x: pool(x, *taps), table)(cotangent)
    return (transposed, None, None, None, None)


_pool.defvjp(_forward, _backward)
