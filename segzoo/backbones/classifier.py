"""What the backbones share: the two kinds of classifier, and strides that become dilations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_image
from segzoo.errors import check_choice
from segzoo.initializers import he_normal
from segzoo.layers import Dropout, Score
from segzoo.ops.spatial import adaptive_avg_pool

Array = jax.Array
OUTPUT_STRIDES = (8, 16, 32)


class Classifier(nn.Module):
    """A backbone's last features, averaged over all places, dropped out and scored.

    Attributes:
        backbone: `(image, *, train) -> features`, finest first.
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        dropout: the rate before the scores.
    """

    backbone: nn.Module
    num_classes: int = 1000
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        features = self.backbone(image, train=train)[-1]
        x = jnp.mean(features, axis=(1, 2), dtype=jnp.float32)
        x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)
        return Score(self.num_classes, self.dtype, name="head")(x)


class DenseClassifier(nn.Module):
    """A backbone's last features, place by place, through two hidden layers to the scores.

    The classifier of AlexNet and VGG. Pooling the features to a fixed size lets it take images of
    any size; at the size of the papers' images nothing is pooled.

    Attributes:
        backbone: `(image, *, train) -> features`, finest first.
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        places: the features are averaged to so many places along both axes.
        hidden: units of each hidden layer.
        dropout: the rate at the hidden layers.
        drop_inputs: drop out what enters the hidden layers instead of what leaves them.
        kernel_init: of the hidden layers and the scores.
        bias_init: of the hidden layers.
    """

    backbone: nn.Module
    num_classes: int = 1000
    dtype: Any = jnp.float32
    axis_name: str | None = None
    places: int = 7
    hidden: int = 4096
    dropout: float = 0.5
    drop_inputs: bool = False
    kernel_init: Callable[..., Array] = he_normal
    bias_init: Callable[..., Array] = nn.initializers.zeros

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        check_image(image, 2)
        features = self.backbone(image, train=train)[-1]
        x = adaptive_avg_pool(features, (self.places, self.places))
        x = x.reshape(x.shape[0], -1)
        for name in ("fc6", "fc7"):
            dropout = Dropout(self.dropout, self.axis_name)
            dense = nn.Dense(
                self.hidden,
                dtype=self.dtype,
                kernel_init=self.kernel_init,
                bias_init=self.bias_init,
                name=name,
            )
            if self.drop_inputs:
                x = nn.relu(dense(dropout(x, deterministic=not train)))
            else:
                x = dropout(nn.relu(dense(x)), deterministic=not train)
        return Score(self.num_classes, self.dtype, self.kernel_init, name="head")(x)


def dilate(strides: Sequence[int], output_stride: int) -> tuple[tuple[int, int], ...]:
    """Trades stride for dilation, to keep the last features at `output_stride`.

    A stage whose stride would pass `output_stride` keeps its resolution instead; its convolutions,
    and all that follow, are dilated by the stride left out (Chen et al. 2017, arXiv:1706.05587,
    section 3.1), so that weights keep their meaning.

    Args:
        strides: of each stage, in the order of the data, the stem first.
        output_stride: 8, 16 or 32.

    Returns:
        `(stride, dilation)` for each stage.

    Raises:
        SegzooError: for another output stride.
    """
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    stages = []
    total = dilation = 1
    for stride in strides:
        if total * stride > output_stride:
            dilation *= stride
            stages.append((1, dilation))
        else:
            total *= stride
            stages.append((stride, dilation))
    return tuple(stages)
