"""Masks of objects between the grid of a box and the pixels of an image."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array
_TOGETHER = 16  # masks of image size that are worked on at a time


def paste_masks(masks: Array, boxes: Array, size: Sequence[int], threshold: float = 0.5) -> Array:
    """Lays masks over their boxes in the image: which pixels are the objects'.

    The value at the centre of a pixel is interpolated bilinearly between the cells of the mask,
    beyond which there is 0 (He et al. 2017, arXiv:1703.06870, section 3.1, "Inference", without
    the rounding of boxes to whole pixels of the first implementations).

    Args:
        masks: probabilities `[..., m, m]`.
        boxes: `[..., 4]`.
        size: height and width of the image.
        threshold: pixels of at least this probability are the object's.

    Returns:
        bool `[..., H, W]`; a box without area has no pixel.
    """
    height, width = size
    return _paste(jnp.asarray(masks), jnp.asarray(boxes), (int(height), int(width)), threshold)


@functools.partial(jax.jit, static_argnums=2)
def _paste(masks: Array, boxes: Array, size: tuple[int, int], threshold: Array) -> Array:
    cells, leading = masks.shape[-2:], masks.shape[:-2]

    def paste(mask_and_box: tuple[Array, Array]) -> Array:
        mask, box = mask_and_box
        across = [
            _interpolation(box[axis], box[axis + 2], size[axis], cells[axis]) for axis in (0, 1)
        ]
        return _between(across[0], mask.astype(jnp.float32), across[1]) >= threshold

    flat = masks.reshape(-1, *cells), boxes.reshape(-1, 4).astype(jnp.float32)
    return lax.map(paste, flat, batch_size=_TOGETHER).reshape(*leading, *size)


def _interpolation(first: Array, last: Array, pixels: int, cells: int) -> Array:
    """`[pixels, cells]` weights of bilinear interpolation at the centres of the pixels."""
    extent = last - first
    share = (np.arange(pixels) + 0.5 - first) / jnp.where(extent > 0, extent, 1.0)
    distance = jnp.abs(share[:, None] * cells - 0.5 - np.arange(cells))
    return jnp.where(extent > 0, jnp.maximum(0.0, 1.0 - distance), 0.0)


def crop_masks(masks: Array, index: Array, boxes: Array, size: int) -> Array:
    """Samples masks of an image in boxes: what a mask head should answer there.

    RoIAlign of the mask, with so many points in a bin that none are further than a pixel apart, and
    the values of pixels at their centres: what `paste_masks` undoes.

    Args:
        masks: of the objects, either one bitmap each, `[M, H, W]`, or one integer map `[H, W]` with
            the value m + 1 where object m is.
        index: int `[N]`, whose mask to sample.
        boxes: `[N, 4]`, in the image.
        size: bins along either side of a box.

    Returns:
        float32 `[N, size, size]` in 0..1.
    """
    pixels = masks.shape[-2:]

    def crop(index_and_box: tuple[Array, Array]) -> Array:
        m, box = index_and_box
        mask = masks == m + 1 if masks.ndim == 2 else masks[m]
        across = [_means(box[axis], box[axis + 2], pixels[axis], size) for axis in (0, 1)]
        return _between(across[0], mask.astype(jnp.float32), across[1])

    return lax.map(crop, (index, lax.stop_gradient(boxes).astype(jnp.float32)), batch_size=8)


def _means(first: Array, last: Array, pixels: int, bins: int) -> Array:
    """`[bins, pixels]` weights of the means over the points of each bin."""
    most = -(-pixels // bins)
    extent = jnp.maximum(last - first, 0.0)
    points = jnp.clip(jnp.ceil(extent / bins), 1, most)
    number = np.arange(most)
    point = first + extent * (np.arange(bins)[:, None] + (number + 0.5) / points) / bins - 0.5
    counts = (number < points)[:, None]
    distance = jnp.abs(jnp.clip(point, 0.0, pixels - 1.0)[..., None] - np.arange(pixels))
    weight = jnp.where(counts, jnp.maximum(0.0, 1.0 - distance), 0.0)
    return jnp.sum(weight, axis=1) / points


def _between(rows: Array, values: Array, columns: Array) -> Array:
    """`rows @ values @ columns.T` in full precision."""
    product = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)
    return product(product(rows, values), columns.T)


def boxes_of_masks(masks: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """The smallest boxes around masks, on the host.

    Args:
        masks: bitmaps `[M, H, W]`.

    Returns:
        float32 `[M, 4]`; zeros for an empty mask.
    """
    result = np.zeros((len(masks), 4), np.float32)
    for box, mask in zip(result, masks, strict=True):
        for axis in (0, 1):
            (places,) = np.nonzero(np.any(mask, axis=1 - axis))
            if len(places):
                box[axis], box[axis + 2] = places[0], places[-1] + 1
    return result
