"""Region proposal network (Ren et al. 2015, arXiv:1506.01497, section 3.1) on a pyramid.

One small head slides over every level (Lin et al. 2017, arXiv:1612.03144, section 4.1), each level
with anchors of one size. Its best boxes of each level, thinned out, are the proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.initializers import gaussian
from segzoo.layers import Conv, Score
from segzoo.ops import boxes as box_ops
from segzoo.ops.anchors import base_anchors, grid_anchors
from segzoo.ops.nms import nms

Array = jax.Array
SMALLEST = 1e-3  # pixels: proposals with a shorter side are dropped

# Section 3.1.3: new layers are drawn from a Gaussian of this standard deviation.
small = gaussian(0.01)


class RPNHead(nn.Module):
    """A 3x3 convolution, then objectness and offsets of every anchor (Figure 3, left).

    Attributes:
        anchors: A, per place.
        dtype: of the computation.
    """

    anchors: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, level: Array) -> tuple[Array, Array]:
        """`[B, h, w, C] -> float32 [B, h * w * A]` logits, and `[B, h * w * A, 4]` offsets."""
        batch, *_, channels = level.shape
        conv = Conv(channels, (3, 3), dtype=self.dtype, kernel_init=small, name="conv")
        x = nn.relu(conv(level))
        logits = Score(self.anchors, self.dtype, small, name="objectness")(x)
        offsets = Score(4 * self.anchors, self.dtype, small, name="offsets")(x)
        return logits.reshape(batch, -1), offsets.reshape(batch, -1, 4)


def pyramid_anchors(
    maps: Sequence[tuple[int, ...]],
    image: tuple[int, ...],
    sizes: Sequence[float],
    aspect_ratios: Sequence[float],
) -> list[np.ndarray]:
    """The anchors of each level.

    Args:
        maps: height and width of each level.
        image: height and width of the image, whole multiples of those of all levels but the last.
        sizes: of the anchors of each level, in pixels.
        aspect_ratios: heights per width.

    Returns:
        float32 `[h * w * A, 4]` for each level.
    """
    result = []
    for size, shape in zip(sizes, maps, strict=True):
        strides = [n // m for n, m in zip(image, shape, strict=True)]
        result.append(grid_anchors(base_anchors([size], aspect_ratios), shape, strides))
    return result


def propose(
    logits: Sequence[Array],
    offsets: Sequence[Array],
    anchors: Sequence[np.ndarray],
    sizes: Array,
    *,
    before: int,
    after: int,
    threshold: float,
) -> tuple[Array, Array, Array]:
    """The best boxes of all levels, thinned out within each (arXiv:1612.03144, section 5.1).

    Args:
        logits: of each level `[B, R]`.
        offsets: of each level `[B, R, 4]`.
        anchors: of each level `[R, 4]`.
        sizes: height and width of each image, `[B, 2]`: boxes are clipped there.
        before: how many of the best of each level are looked at.
        after: how many of all are kept.
        threshold: the largest IoU of two proposals of a level.

    Returns:
        float32 `[B, after, 4]` boxes, best first, their scores `[B, after]`, and which there are,
        bool `[B, after]`. No gradient passes.
    """

    def of_image(logits: list[Array], offsets: list[Array], size: Array) -> tuple[Array, ...]:
        boxes, scores, levels = [], [], []
        for level, (logit, offset, anchor) in enumerate(zip(logits, offsets, anchors, strict=True)):
            best, places = lax.top_k(logit, min(before, len(anchor)))
            box = box_ops.decode(offset[places], jnp.asarray(anchor)[places])
            boxes.append(box_ops.clip(box, size))
            scores.append(nn.sigmoid(best))
            levels.append(jnp.full(best.shape, level, jnp.int32))
        box, score = jnp.concatenate(boxes), jnp.concatenate(scores)
        large = jnp.all(box_ops.sides(box) >= SMALLEST, axis=-1)
        index, kept = nms(
            box, score, threshold, after, classes=jnp.concatenate(levels), valid=large
        )
        return jnp.where(kept[:, None], box[index], 0.0), jnp.where(kept, score[index], 0.0), kept

    logits, offsets = lax.stop_gradient((list(logits), list(offsets)))
    boxes, scores, kept = jax.vmap(of_image)(logits, offsets, sizes)
    return boxes, scores, kept
