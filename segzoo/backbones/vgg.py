"""VGG (Simonyan & Zisserman 2015, arXiv:1409.1556, Table 1): stages of 3x3 convolutions and pools.

Batch norm, which the paper has not, is the usual later addition (`norm="batch"`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.layers import ConvNormAct, NormKind, max_pool

Array = jax.Array

# Columns A, B, D and E of the paper's Table 1: convolutions in each of the five stages.
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """The convolutional part of VGG.

    Attributes:
        depth: 11, 13, 16 or 19, the layers with weights, the classifier's three included.
        width: channels of the first stage, 64 in the paper; the others have 2, 4, 8 and 8 times as
            many.
        norm: "none" (the paper), "batch" or "group".
        first_padding: zeros around the image at the first convolution; 1 keeps the size.
        ceil_mode: whether a pool keeps the remainder of an odd size (Caffe) or drops it.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    depth: int = 16
    width: int = 64
    norm: NormKind = "none"
    first_padding: int = 1
    ceil_mode: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return (1, 2, 4, 8, 16, 32)

    def pool(self, x: Array) -> Array:
        """The 2x2 max-pool between stages."""
        return max_pool(x, (2, 2), padding="SAME" if self.ceil_mode else "VALID")

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            The last map of each stage before its pool (conv1_2, conv2_2, conv3_3, conv4_3 and
            conv5_3 for VGG-16), then pool5: six maps, finest first.
        """
        features = []
        x = image
        for stage, convs in enumerate(STAGES[self.depth], start=1):
            for conv in range(1, convs + 1):
                pad = self.first_padding if (stage, conv) == (1, 1) else 1
                x = ConvNormAct(
                    self.width * min(2 ** (stage - 1), 8),
                    padding=((pad, pad), (pad, pad)),
                    norm=self.norm,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"conv{stage}_{conv}",
                )(x, train=train)
            features.append(x)
            x = self.pool(x)
        return (*features, x)
