"""SegNet (Badrinarayanan, Kendall & Cipolla 2017, arXiv:1511.00561, Figure 2).

The encoder is VGG-16 without its classifier, with batch norm. Each pool remembers which pixel of
its 2x2 window was the largest; the decoder, the encoder's mirror image, puts its features back at
these places and convolves the sparse maps dense again. Each of the 13 + 13 convolutions keeps its
bias beside batch norm, as in the authors' released network.

Where the paper leaves a choice, that network decides: the decoder has ReLUs too (the paper leaves
them out of SegNet-Basic alone, see `segnet_basic`), the last 3x3 convolution of the decoder is the
classifier, and pools keep the remainder of an odd size, whose map the decoder returns to exactly.
Drop-out, which the paper's benchmarks add "to the end of deeper convolutional layers", is left out
as in the release.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.vgg import VGG
from segzoo.checks import check_common, check_image
from segzoo.errors import check_positive_int
from segzoo.layers import Conv, ConvNormAct
from segzoo.ops.unpooling import max_pool_indices, max_unpool
from segzoo.registry import register

Array = jax.Array


def unpool(x: Array, encoded: Array) -> Array:
    """Up-samples by the indices of the pool after an encoder map.

    Only the indices of that map are used (the compiler merges what the pool computed already), one
    byte a value; the map itself need not be kept.

    Args:
        x: `[B, h, w, C]`.
        encoded: the map before its pool, `[B, H, W, C]`.

    Returns:
        `[B, H, W, C]`, zero but at the places of the maxima.
    """
    return max_unpool(x, max_pool_indices(encoded), encoded.shape[1:-1])


class SegNet(nn.Module):
    """SegNet on VGG-16.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm.
        backbone: VGG-16 with batch norm.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: VGG

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            float32 `[B, H, W, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, 2)
        *encoded, x = self.backbone(image, train=train)
        widths = [features.shape[-1] for features in encoded]
        for stage in reversed(range(len(encoded))):
            x = unpool(x, encoded[stage])
            for name in reversed(self.backbone.stages[stage]):
                if name == "conv1_1":
                    break
                # The convolution nearest the next unpooling gives it as many channels as it takes.
                last = name == self.backbone.stages[stage][0]
                x = ConvNormAct(
                    widths[stage - 1] if last else widths[stage],
                    norm="batch",
                    use_bias=True,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"{name}_D",
                )(x, train=train)
        # Logits keep their precision under bfloat16, whose rounding would decide between classes.
        wide = jnp.promote_types(self.dtype, jnp.float32)
        logits = Conv(self.num_classes, (3, 3), dtype=wide, name="conv1_1_D")(x)
        return logits.astype(jnp.float32)


@register(
    task="semantic", paper="arXiv:1511.00561", input_shape=(360, 480, 3), parameters=29_449_355
)
def segnet(
    num_classes: int = 11,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
) -> SegNet:
    """SegNet: VGG-16 and its mirror image, joined by max-pooling indices."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("width", width)
    backbone = VGG(width=width, norm="batch", ceil_mode=True, dtype=dtype, axis_name=axis_name)
    return SegNet(num_classes, dtype, axis_name, backbone)
