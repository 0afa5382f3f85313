"""Anchors: the boxes around every place of a feature map that proposals are told relative to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def base_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> np.ndarray:
    """Anchors around the origin (Ren et al. 2015, arXiv:1506.01497, section 3.1.1).

    Corners are rounded to whole pixels (halves to the even one), as the networks whose weights are
    in circulation were trained.

    Args:
        sizes: square roots of areas, in pixels.
        aspect_ratios: heights per width.

    Returns:
        float32 `[A, 4]`, ratio by ratio, the sizes of each in turn.
    """
    height = np.sqrt(np.asarray(aspect_ratios, np.float32))[:, None]
    scale = np.asarray(sizes, np.float32)
    high, wide = (height * scale).ravel(), ((1 / height) * scale).ravel()
    return np.round(np.stack([-high, -wide, high, wide], axis=1) / 2)


def grid_anchors(base: np.ndarray, size: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    """Anchors around every place of a map; place (i, j) lies at pixel (i, j) times the strides.

    Args:
        base: `[A, 4]`, around the origin.
        size: height and width of the map.
        strides: pixels from one place to the next, down and across.

    Returns:
        float32 `[height * width * A, 4]`: row by row, the anchors of a place in turn.
    """
    rows, columns = (
        np.arange(n, dtype=np.float32) * stride for n, stride in zip(size, strides, strict=True)
    )
    y, x = np.meshgrid(rows, columns, indexing="ij")
    shifts = np.stack([y, x, y, x], axis=-1).reshape(-1, 1, 4)
    return (shifts + base).reshape(-1, 4).astype(np.float32)
