"""U-Net's expanding path on the encoder of any classifier.

The construction most people mean by "a U-Net with a ResNet", and the same function as in the
library segmentation-models-pytorch where the encoder gives the same maps, as ResNets do: up-sample
by repeating pixels, concatenate the encoder's map behind, two 3x3 convolutions with batch norm and
ReLU; 256, 128, 64, 32 and 16 channels from the coarsest step to the finest; a 3x3 convolution to
the scores. Levels finer than the encoder's finest map are decoded without a skip, up to the size of
the image.

Choices: maps that do not halve exactly (AlexNet's, LeNet's) are met by up-sampling to their size;
of two maps of one resolution (dilated encoders) each has its step; scores are computed in float32.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_image
from segzoo.layers import Conv, Dropout, NormKind, crop_to, resize
from segzoo.models.encoders import encode, levels, with_finer_levels
from segzoo.models.unet_parts import DoubleConv, Upsample, UpsampleKind

Array = jax.Array
DECODER_WIDTH = 16  # channels of the finest step beside an encoder of published width


class EncoderUNet(nn.Module):
    """U-Net whose contracting path is an encoder.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: the encoder, `(image, *, train) -> maps`.
        width: channels of the decoder's finest step; each coarser one doubles them.
        norm: of the decoder: "batch", "group" or "none".
        upsample: "nearest", "bilinear", or "transpose", the paper's up-convolution.
        dropout: the rate at the coarsest map, the end of the contracting path.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    width: int = DECODER_WIDTH
    norm: NormKind = "batch"
    upsample: UpsampleKind = "nearest"
    dropout: float = 0.0

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: batch statistics and drop-out (which needs the "dropout" rng).

        Returns:
            float32 `[B, H, W, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, 2)
        maps, padded = encode(self.backbone, image, train=train)
        skips, reductions = with_finer_levels(self.backbone, maps, padded), levels(self.backbone)

        x = Dropout(self.dropout, self.axis_name)(maps[-1], deterministic=not train)
        for level in reversed(range(len(skips) - 1)):
            skip, features = skips[level], self.width * 2**level
            factor = reductions[level + 1] // reductions[level]
            up = Upsample(self.upsample, features, factor, self.dtype, name=f"upsample{level}")
            x = jnp.concatenate([up(x, skip.shape[1:3]), skip], axis=-1)
            double_conv = DoubleConv(
                features,
                norm=self.norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"up{level}",
            )
            x = double_conv(x, train=train)

        score = Conv(self.num_classes, (3, 3), dtype=jnp.float32, name="score")
        return crop_to(resize(score(x), padded), image.shape[1:3])
