"""Boxes: areas, overlaps, and the offsets from one box to another.

A box is `[y0, x0, y1, x1]` in pixels, its corners continuous places: the first pixel of an image is
the box `[0, 0, 1, 1]`. Boxes without area are boxes like others: they overlap with nothing, and no
function here makes a NaN of them, nor does a gradient.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Array = jax.Array
Weights = tuple[float, float, float, float]

# Boxes grow by at most this factor: exp of an untrained network's output is finite.
LARGEST_LOG = math.log(1000 / 16)
_TINY = 1e-6  # pixels: a side of less counts as this where it is divided by


def sides(boxes: Array) -> Array:
    """Heights and widths, `[..., 4] -> [..., 2]`; 0 where a box is turned inside out."""
    return jnp.maximum(boxes[..., 2:] - boxes[..., :2], 0.0)


def area(boxes: Array) -> Array:
    """Areas in square pixels, `[..., 4] -> [...]`."""
    return jnp.prod(sides(boxes), axis=-1)


def intersection(a: Array, b: Array) -> Array:
    """Areas common to each pair, `[N, 4], [M, 4] -> [N, M]`."""
    first = jnp.maximum(a[:, None, :2], b[None, :, :2])
    last = jnp.minimum(a[:, None, 2:], b[None, :, 2:])
    return area(jnp.concatenate([first, last], axis=-1))


def iou(a: Array, b: Array) -> Array:
    """Intersection over union of each pair, `[N, 4], [M, 4] -> [N, M]`; 0 where there is none."""
    common = intersection(a, b)
    return _ratio(common, area(a)[:, None] + area(b)[None] - common)


def covered(a: Array, b: Array) -> Array:
    """The share of each of `a` that lies in each of `b`, `[N, 4], [M, 4] -> [N, M]`."""
    return _ratio(intersection(a, b), area(a)[:, None])


def _ratio(part: Array, whole: Array) -> Array:
    """A quotient, 0 where nothing is divided by nothing."""
    return jnp.where(whole > 0, part / jnp.where(whole > 0, whole, 1.0), 0.0)


def clip(boxes: Array, size: Array) -> Array:
    """Moves corners outside an image onto its border.

    Args:
        boxes: `[..., 4]`.
        size: height and width, `[2]`, or `[..., 2]` with the leading axes of the boxes.
    """
    return jnp.clip(boxes, 0.0, jnp.concatenate([size, size], axis=-1).astype(boxes.dtype))


def encode(boxes: Array, anchors: Array, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Array:
    """Offsets from anchors to boxes (Girshick et al. 2014, arXiv:1311.2524, appendix C).

    Args:
        boxes: `[..., 4]`.
        anchors: `[..., 4]`.
        weights: factors of the four offsets.

    Returns:
        `[..., 4]`: t_x, t_y, t_w, t_h in the papers' order: the shift of the centre in sides of the
        anchor, and the logarithms of the ratios of width and height.
    """
    center, side = _center(anchors)
    target, target_side = _center(boxes)
    shift = (target - center) / jnp.maximum(side, _TINY)
    growth = jnp.log(jnp.maximum(target_side, _TINY) / jnp.maximum(side, _TINY))
    offsets = jnp.concatenate([shift[..., ::-1], growth[..., ::-1]], axis=-1)
    return offsets * jnp.asarray(weights, offsets.dtype)


def decode(offsets: Array, anchors: Array, weights: Weights = (1.0, 1.0, 1.0, 1.0)) -> Array:
    """Boxes at offsets from anchors: the inverse of `encode`.

    Args:
        offsets: `[..., 4]`: t_x, t_y, t_w, t_h; the last two count up to `LARGEST_LOG`.
        anchors: `[..., 4]`.
        weights: what `encode` multiplied by.

    Returns:
        `[..., 4]`.
    """
    offsets = offsets / jnp.asarray(weights, offsets.dtype)
    center, side = _center(anchors)
    center = center + offsets[..., 1::-1] * side
    half = 0.5 * side * jnp.exp(jnp.minimum(offsets[..., :1:-1], LARGEST_LOG))
    return jnp.concatenate([center - half, center + half], axis=-1)


def _center(boxes: Array) -> tuple[Array, Array]:
    """Centres and sides, `[..., 2]` each, y first."""
    side = sides(boxes)
    return boxes[..., :2] + 0.5 * side, side
