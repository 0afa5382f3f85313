"""Max-pooling.

Everything works on channels-last arrays `[B, *S, C]` with any number of spatial axes. XLA's own
gradient of a max-pool is a scatter, slow on CPU and GPU; here every pixel asks which windows chose
it, and the tests hold values and gradients of both together.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.ops.spatial import crop_to
from segzoo.ops.windows import (
    Numbers,
    Pairs,
    crop,
    depth_to_space,
    explicit_pads,
    pad,
    padded_size,
    seen_by_taps,
)

Array = jax.Array


def max_pool(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Max-pools the spatial axes, as `nn.max_pool`.

    The gradient goes to the first maximum of a window alone, as in `nn.max_pool`, but by selects
    instead of a scatter. (The gradient of `x.max(axis)` would compare x with its maximum again. A
    compiler may compute x twice, rounded differently; then nothing is equal, and dividing by the
    count of maxima gives NaN.) Where windows overlap: reverse-mode differentiation only.

    Args:
        x: `[B, *S, C]`.
        window: size of the window, one number per spatial axis.
        strides: by default the window.
        padding: "VALID" drops a remainder, "SAME" keeps it as a window of its own (in other
            frameworks' words floor and ceil mode), or `(before, after)` pairs.

    Returns:
        `[B, *S', C]`.
    """
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        pads = padding if isinstance(padding, str) else list(padding)
        return nn.max_pool(x, window_shape=window, strides=strides, padding=pads)
    if strides == window and padding in ("VALID", "SAME"):
        return _tile_maximum(into_tiles(x, window, keep_remainder=padding == "SAME"), window)
    size, ones = x.shape[1:-1], (1,) * len(window)
    around = explicit_pads(padding, size, window, strides, ones)
    return _overlapping(x, size, window, strides, around)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _tile_maximum(tiles: Array, window: Numbers) -> Array:
    """`[B, n, w, n, w, ..., C] -> [B, n, n, ..., C]`."""
    return functools.reduce(jnp.maximum, _of_tiles(tiles, window))


@_tile_maximum.defjvp
def _tile_maximum_jvp(
    window: Numbers, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (tiles,), (along,) = primals, tangents
    axes = tuple(range(2, tiles.ndim - 1, 2))
    first = jnp.expand_dims(first_maximum(tiles, window), axes)
    chosen = jnp.where(first == tile_places(window), along, jnp.zeros_like(along))
    return _tile_maximum(tiles, window), chosen.sum(axes, dtype=along.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _overlapping(x: Array, size: Numbers, window: Numbers, strides: Numbers, pads: Pairs) -> Array:
    """Max-pools windows that overlap, leave gaps, or reach over the border."""
    return functools.reduce(jnp.maximum, _of_windows(x, window, strides, pads))


def _overlapping_forward(
    x: Array, size: Numbers, window: Numbers, strides: Numbers, pads: Pairs
) -> tuple[Array, Array]:
    candidates = _of_windows(x, window, strides, pads)
    return functools.reduce(jnp.maximum, candidates), _first(candidates, window)


def _overlapping_backward(
    size: Numbers, window: Numbers, strides: Numbers, pads: Pairs, place: Array, cotangent: Array
) -> tuple[Array]:
    # Pixel s a + p, of phase p, is tap p + s m of window a - m: every phase is a sum of shifted
    # selects, and the phases side by side are the pixels.
    counts = [-(-n // s) for n, s in zip(padded_size(size, pads), strides, strict=True)]
    back = [(k - 1) // s for k, s in zip(window, strides, strict=True)]
    ahead = [max(0, n - have) for n, have in zip(counts, cotangent.shape[1:-1], strict=True)]
    around = list(zip(back, ahead, strict=True))
    cotangent, place = pad(cotangent, around), pad(place, around)
    numbers = np.arange(math.prod(window)).reshape(window)

    def phase(offsets: Numbers) -> Array:
        total = jnp.zeros((len(place), *counts, place.shape[-1]), cotangent.dtype)
        reaches = (range(p, k, s) for p, k, s in zip(offsets, window, strides, strict=True))
        for moves in np.ndindex(*(len(reach) for reach in reaches)):
            tap = tuple(p + s * m for p, s, m in zip(offsets, strides, moves, strict=True))
            starts = [b - m for b, m in zip(back, moves, strict=True)]
            chosen = crop(place, starts, counts) == np.asarray(numbers[tap], place.dtype)
            passed = crop(cotangent, starts, counts)
            total = total + jnp.where(chosen, passed, jnp.zeros_like(passed))
        return total

    phases = jnp.stack([phase(offsets) for offsets in np.ndindex(*strides)], axis=-2)
    whole = depth_to_space(phases.reshape(*phases.shape[:-2], -1), strides)
    return (crop(whole, [before for before, _ in pads], size),)


_overlapping.defvjp(_overlapping_forward, _overlapping_backward)


def _of_windows(x: Array, window: Numbers, strides: Numbers, pads: Pairs) -> list[Array]:
    """The pixels of all windows, tap by tap: `prod(window)` arrays `[B, *S', C]`."""
    return seen_by_taps(pad(x, pads, -math.inf), window, strides, (1,) * len(window))


def _of_tiles(tiles: Array, window: Numbers) -> list[Array]:
    """The pixels of all tiles, tap by tap: `prod(window)` arrays `[B, n, n, ..., C]`."""
    every = slice(None)
    return [
        tiles[(every, *(part for i in tap for part in (every, i)))] for tap in np.ndindex(*window)
    ]


def first_maximum(tiles: Array, window: Numbers) -> Array:
    """`[B, n, w, n, w, ..., C] -> [B, n, n, ..., C]`: the place of each window's maximum or NaN.

    Places are numbered as in `tile_places`, in the smallest unsigned type; of equal values the
    first counts.
    """
    return _first(_of_tiles(tiles, window), window)


def _first(candidates: Sequence[Array], window: Numbers) -> Array:
    """The number of the first maximum, or NaN, of the candidates."""
    best = candidates[0]
    place = jnp.zeros(best.shape, _place_dtype(window))
    for k, candidate in enumerate(candidates[1:], start=1):
        better = (candidate > best) | jnp.isnan(candidate)
        best = jnp.where(better, candidate, best)
        place = jnp.where(better, jnp.asarray(k, place.dtype), place)
    return place


def into_tiles(x: Array, window: tuple[int, ...], *, keep_remainder: bool) -> Array:
    """`[B, *S, C] -> [B, n, w, n, w, ..., C]`: windows that tile the axes, in axes of their own.

    A remainder is cut off, or filled up with -inf to a window, as evenly as may be at both ends.
    """
    if keep_remainder:
        missing = [-n % w for n, w in zip(x.shape[1:-1], window, strict=True)]
        if any(missing):
            pads = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
            x = jnp.pad(x, pads, constant_values=-jnp.inf)
    counts = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    x = crop_to(x, [n * w for n, w in zip(counts, window, strict=True)])
    tiles = [n for pair in zip(counts, window, strict=True) for n in pair]
    return x.reshape(x.shape[0], *tiles, x.shape[-1])


def tile_places(window: tuple[int, ...]) -> np.ndarray:
    """`[1, 1, w, 1, w, ..., 1]`: the pixels of a window numbered in row-major order."""
    place = np.arange(math.prod(window), dtype=_place_dtype(window))
    return place.reshape(1, *(n for w in window for n in (1, w)), 1)


def _place_dtype(window: tuple[int, ...]) -> type[np.unsignedinteger]:
    return np.uint8 if math.prod(window) <= 256 else np.uint32


def dilated_max_pool(
    x: Array, window: Sequence[int], dilation: int = 1, *, keep_size: bool = False
) -> Array:
    """Max-pools with stride 1 and the window's taps `dilation` pixels apart.

    What a strided pool becomes when its stride is traded for dilation in all that follows: at every
    stride-th pixel the values are those of the strided pool.

    Args:
        x: `[B, *S, C]`, floating.
        window: taps per spatial axis.
        dilation: pixels from one tap to the next.
        keep_size: whether windows may reach over the end of an axis, where only the pixels inside
            count; otherwise axis n becomes `n - (window - 1) * dilation`.

    Returns:
        `[B, *S', C]`.
    """
    reaches = [(taps - 1) * dilation for taps in window]
    if keep_size:
        pads = [(0, 0), *((0, reach) for reach in reaches), (0, 0)]
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
    for axis, (taps, reach) in enumerate(zip(window, reaches, strict=True), start=1):
        starts = [tap * dilation for tap in range(taps)]
        length = x.shape[axis] - reach
        x = functools.reduce(
            jnp.maximum, (lax.slice_in_dim(x, a, a + length, axis=axis) for a in starts)
        )
    return x
