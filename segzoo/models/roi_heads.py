"""The heads of Mask R-CNN on regions of the pyramid (He et al. 2017, arXiv:1703.06870, Figure 4).

The right half of the figure: two hidden layers to class scores and boxes, and four convolutions, an
up-convolution and a 1x1 convolution to a mask for each class.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segzoo.initializers import gaussian, he_normal
from segzoo.layers import Conv, ConvTranspose, Score
from segzoo.ops import boxes as box_ops
from segzoo.ops.nms import nms

Array = jax.Array
WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of the offsets the box head gives: about unit variance
SMALLEST = 1e-2  # pixels: boxes with a shorter side are dropped


class BoxHead(nn.Module):
    """Class scores, and for each class the offsets from region to box.

    Attributes:
        num_classes: K, the background included.
        hidden: units of the two hidden layers, 1024 in the paper.
        dtype: of the computation.
    """

    num_classes: int
    hidden: int = 1024
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, regions: Array) -> tuple[Array, Array]:
        """`[R, m, m, C] -> float32 [R, K]` logits and `[R, K, 4]` offsets."""
        x = regions.reshape(len(regions), -1)
        for name in ("fc6", "fc7"):
            dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal, name=name)
            x = nn.relu(dense(x))
        # Girshick 2015, arXiv:1504.08083, section 2.3: how new layers are drawn.
        small, smaller = gaussian(0.01), gaussian(0.001)
        logits = Score(self.num_classes, self.dtype, small, name="score")(x)
        offsets = Score(4 * self.num_classes, self.dtype, smaller, name="offsets")(x)
        return logits, offsets.reshape(-1, self.num_classes, 4)


class MaskHead(nn.Module):
    """A mask twice as large as the pooled region, for each class or for all.

    Attributes:
        masks: one for each class, or 1.
        features: channels, 256 in the paper.
        dtype: of the computation.
    """

    masks: int
    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, regions: Array) -> Array:
        """`[R, m, m, C] -> float32 [R, 2 m, 2 m, masks]` logits."""
        x = regions
        for number in range(1, 5):
            x = nn.relu(Conv(self.features, (3, 3), dtype=self.dtype, name=f"conv{number}")(x))
        up = ConvTranspose(self.features, (2, 2), dtype=self.dtype, name="upsample")
        return Score(self.masks, self.dtype, name="score")(nn.relu(up(x)))


def detect(
    logits: Array,
    offsets: Array,
    proposals: Array,
    there: Array,
    size: Array,
    *,
    score_threshold: float,
    threshold: float,
    limit: int,
) -> tuple[Array, Array, Array, Array]:
    """The detections of one image: each class's boxes, thinned out; the best of all.

    Args:
        logits: `[N, K]`.
        offsets: `[N, K, 4]`.
        proposals: `[N, 4]`.
        there: bool `[N]`, which proposals there are.
        size: height and width of the image, `[2]`.
        score_threshold: detections score more.
        threshold: the largest IoU of two detections of a class.
        limit: how many are kept.

    Returns:
        Boxes float32 `[limit, 4]`, best first, scores float32, classes int32 and which there are,
        bool `[limit]`. Entries that are not there are 0. No gradient passes.
    """
    logits, offsets = lax.stop_gradient(logits), lax.stop_gradient(offsets)
    classes = logits.shape[-1]
    scores = nn.softmax(logits)[:, 1:].reshape(-1)  # class 0 is the background
    boxes = box_ops.clip(box_ops.decode(offsets[:, 1:], proposals[:, None], WEIGHTS), size)
    boxes = boxes.reshape(-1, 4)
    kinds = jnp.tile(jnp.arange(1, classes, dtype=jnp.int32), len(logits))
    valid = jnp.repeat(there, classes - 1) & (scores > score_threshold)
    valid = valid & jnp.all(box_ops.sides(boxes) >= SMALLEST, axis=-1)
    index, kept = nms(boxes, scores, threshold, limit, classes=kinds, valid=valid)
    found = boxes[index], scores[index], kinds[index]
    box, score, kind = jax.tree.map(
        lambda x: jnp.where(kept.reshape(-1, *(1,) * (x.ndim - 1)), x, 0), found
    )
    return box, score, kind, kept


def of_class(values: Array, classes: Array) -> Array:
    """The entry of each region's class: `[R, ..., K], [R] -> [R, ...]`; the only one if K is 1."""
    if values.shape[-1] == 1:
        return values[..., 0]
    index = classes.reshape(-1, *(1,) * (values.ndim - 1))
    return jnp.take_along_axis(values, index, axis=-1)[..., 0]
