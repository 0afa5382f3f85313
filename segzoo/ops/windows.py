"""What the operations with windows share: pads, taps, blocks of rows, cropping, depth-to-space.

Everything works on channels-last arrays `[B, *S, C]`. A window has k taps along an axis, `dilation`
pixels apart, and moves by `stride`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
T = TypeVar("T")
Numbers = tuple[int, ...]  # one per spatial axis
Pairs = tuple[tuple[int, int], ...]


def explicit_pads(
    padding: str | Sequence[tuple[int, int]],
    size: Sequence[int],
    window: Sequence[int],
    strides: Sequence[int],
    dilation: Sequence[int],
) -> Pairs:
    """Returns pixels before and after, per spatial axis, of "SAME", "VALID" or such pairs."""
    if isinstance(padding, str):
        reaches = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
        padding = lax.padtype_to_pads(size, reaches, strides, padding)
    return tuple((before, after) for before, after in padding)


def pad(x: Array, pads: Sequence[tuple[int, int]], value: float = 0.0) -> Array:
    """Pads the spatial axes with a value, or cuts off where a pad is negative."""
    around = [(0, 0, 0), *((before, after, 0) for before, after in pads), (0, 0, 0)]
    return lax.pad(x, jnp.asarray(value, x.dtype), around)


def crop(x: Array, starts: Sequence[int], sizes: Sequence[int]) -> Array:
    """Keeps so many pixels from a start on, along each spatial axis."""
    spans = (slice(a, a + n) for a, n in zip(starts, sizes, strict=True))
    return x[(slice(None), *spans)]


def padded_size(size: Sequence[int], pads: Sequence[tuple[int, int]]) -> list[int]:
    """The size of an image once it is padded."""
    return [n + before + after for n, (before, after) in zip(size, pads, strict=True)]


def places(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """How many windows fit along each spatial axis of an image that is padded already."""
    along = zip(size, window, strides, dilation, strict=True)
    return [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in along]


def _spans(
    size: Sequence[int], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields where in a padded image what a tap meets begins and ends, tap by tap."""
    counts = places(size, window, strides, dilation)
    lasts = [(n - 1) * s + 1 for n, s in zip(counts, strides, strict=True)]
    for tap in np.ndindex(*window):
        starts = [i * d for i, d in zip(tap, dilation, strict=True)]
        yield starts, [a + last for a, last in zip(starts, lasts, strict=True)]


def seen_by_taps(
    padded: Array, window: Sequence[int], strides: Sequence[int], dilation: Sequence[int]
) -> list[Array]:
    """Returns what each tap meets in all windows, tap by tap: `prod(window)` of `[B, *S', C]`."""
    batch, *size, channels = padded.shape
    return [
        lax.slice(padded, (0, *starts, 0), (batch, *ends, channels), (1, *strides, 1))
        for starts, ends in _spans(size, window, strides, dilation)
    ]


def given_by_taps(
    given: Array, window: Sequence[int], pads: Pairs, dilation: Sequence[int]
) -> Array:
    """Adds up, in every window of stride 1, what the pixels it lies on give to it.

    Args:
        given: `[B, *S, prod(window) * O]`: of each pixel, what it gives to the windows where it is
            the first tap, the second and so on.
        window: taps along each spatial axis.
        pads: pixels before and after, which give nothing, per spatial axis.
        dilation: pixels between the taps, per spatial axis.

    Returns:
        `[B, *S', O]`.
    """
    padded = pad(given, pads)
    batch, *size, channels = padded.shape
    each = channels // math.prod(window)
    parts = [
        lax.slice(padded, (0, *starts, n * each), (batch, *ends, (n + 1) * each))
        for n, (starts, ends) in enumerate(_spans(size, window, (1,) * len(size), dilation))
    ]
    return functools.reduce(lax.add, parts)


def depth_to_space(x: Array, block: Sequence[int]) -> Array:
    """`[B, *S, prod(block) * O] -> [B, *(S * block), O]`."""
    batch, *sizes, _ = x.shape
    rank = len(sizes)
    x = x.reshape(batch, *sizes, *block, -1)
    order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    x = x.transpose(0, *order, 2 * rank + 1)
    return x.reshape(batch, *(n * b for n, b in zip(sizes, block, strict=True)), x.shape[-1])


def sum_over_blocks(
    product: Callable[[Array, Array], T],
    x: Array,
    pads: Pairs,
    cotangent: Array,
    stride: int,
    reach: int,
    pixels: float,
) -> T:
    """Sums a product of what windows see and their cotangents, a few rows or images at a time.

    What a block needs stays in the cache, and the program does not grow with the image.

    Args:
        product: of the rows of the padded `x` that the windows of a block see, and the block of the
            cotangent; linear in the latter. An array, or a tree of them.
        x: `[B, *S, C]`.
        pads: zeros before and after, per spatial axis.
        cotangent: `[B, *S', O]`.
        stride: rows (along the first spatial axis) from one window to the next.
        reach: rows of a window.
        pixels: about how many of the cotangent's a block has.

    Returns:
        The sum, as the product.
    """
    batch, height, *across = cotangent.shape[:-1]
    images, rows = _block(batch, height, math.prod(across), pixels)
    bands = -(-height // rows)
    # Missing images, rows: a cotangent of zero adds nothing.
    images_more, rows_more = -batch % images, bands * rows - height
    seen_rows = (rows - 1) * stride + reach
    (top, bottom), *sides = pads
    lowest = (bands - 1) * rows * stride + seen_rows
    below = max(bottom, lowest - x.shape[1] - top)
    x = pad(x, ((top, below), *sides))
    if images_more or rows_more:
        rest = [(0, 0, 0)] * len(across)
        zero, more = jnp.zeros((), cotangent.dtype), [(0, images_more, 0), (0, rows_more, 0)]
        cotangent = lax.pad(cotangent, zero, [*more, *rest, (0, 0, 0)])
        x = lax.pad(x, jnp.zeros((), x.dtype), [more[0], (0, 0, 0), *rest, (0, 0, 0)])

    def block(number: Array | int) -> T:
        image, row = number // bands * images, number % bands * rows
        rest = (0,) * (len(across) + 1)
        seen = lax.dynamic_slice(x, (image, row * stride, *rest), (images, seen_rows, *x.shape[2:]))
        met = lax.dynamic_slice(
            cotangent, (image, row, *rest), (images, rows, *cotangent.shape[2:])
        )
        return product(seen, met)

    return sum_of_many(block, len(cotangent) // images * bands)


def sum_of_many(term: Callable[[Array | int], T], count: int) -> T:
    """Returns `term(0) + ... + term(count - 1)`, of arrays or of trees of them."""

    def add(*terms: T) -> T:
        return jax.tree.map(lambda first, *rest: functools.reduce(jnp.add, rest, first), *terms)

    if count == 1:
        return term(0)
    if count % 2:
        total = term(0)
    else:
        shapes = jax.eval_shape(term, 0)
        total = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    # Two at a time: cores that would wait while one is laid out lay out the other.
    total, _ = lax.scan(
        lambda total, number: (add(total, add(term(number), term(number + 1))), None),
        total,
        jnp.arange(count % 2, count, 2),
    )
    return total


def _block(batch: int, height: int, width: int, pixels: float) -> tuple[int, int]:
    """Of how many images, and how many of their rows, a block consists."""
    if height * width > pixels:
        return 1, _divisor(height, max(1, int(pixels / width)))
    return _divisor(batch, int(min(batch, pixels / (height * width)))), height


def _divisor(number: int, wanted: int) -> int:
    """The largest divisor of a number up to the wanted one, unless it were less than half of it."""
    divisors = (part for part in range(wanted, wanted // 2, -1) if number % part == 0)
    return next(divisors, wanted)
