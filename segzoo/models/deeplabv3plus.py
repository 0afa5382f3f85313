"""DeepLab v3+ (Chen et al. 2018, arXiv:1802.02611, Figure 2).

The encoder and the pyramid of DeepLab v3, and a decoder: the encoder's features at a quarter of the
resolution, reduced to 48 channels, beside those of the pyramid, interpolated to the same grid; two
3x3 convolutions; scores, interpolated to the image. By default as in the paper's best networks:
the modified Xception-65 (`segzoo.backbones.xception`), and atrous separable convolutions in the
pyramid and the decoder. The paper's other networks are `backbone="resnet101", separable=False`.

Choices as for `deeplabv3`: images padded to a multiple of the output stride and one pixel more,
interpolation between aligned corners, drop-out of 0.1 at the end of the pyramid. Batch norm and
ReLU follow both halves of a separable convolution here, as in the authors' release.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_choice
from segzoo.layers import ConvNormAct, Score, crop_to, resize
from segzoo.models.aspp import ASPP, FEATURES, RATES, conv3x3, dense_encoder, on_grid, rates_at
from segzoo.models.encoders import in_proportion
from segzoo.ops.spatial import pad_to_grid
from segzoo.registry import register

Array = jax.Array

LOW_LEVEL = 4  # input pixels per pixel of the low-level features
REDUCED = 48  # their channels in the decoder


class Decoder(nn.Module):
    """Refines the pyramid's features along the borders that low-level features know.

    Attributes:
        features: channels of its 3x3 convolutions.
        reduced: channels the low-level features are reduced to.
        separable: whether the 3x3 convolutions are separable.
        align_corners: how the pyramid's features are interpolated, see `resize`.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    features: int = FEATURES
    reduced: int = REDUCED
    separable: bool = True
    align_corners: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, low_level: Array, *, train: bool) -> Array:
        """`[B, h, w, C], [B, h', w', L] -> [B, h', w', features]`."""
        shared: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}
        reduce = ConvNormAct(self.reduced, kernel_size=1, norm="batch", name="reduce", **shared)
        x = resize(x, low_level.shape[1:3], align_corners=self.align_corners)
        x = jnp.concatenate([x, reduce(low_level, train=train)], axis=-1)
        for name in ("conv1", "conv2"):
            x = conv3x3(self.features, name, separable=self.separable, **shared)(x, train=train)
        return x


class DeepLabV3Plus(nn.Module):
    """DeepLab v3+.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: `(image, *, train) -> features`, finest first, with `reductions`, 4 among them.
        rates: of the pyramid.
        features: channels of the pyramid and the decoder.
        reduced: channels of the low-level features in the decoder.
        separable: whether the 3x3 convolutions of the pyramid and the decoder are separable.
        dropout: the rate at the end of the pyramid.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    rates: tuple[int, ...] = RATES
    features: int = FEATURES
    reduced: int = REDUCED
    separable: bool = True
    dropout: float = 0.1

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
        shared: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}
        reductions = self.backbone.reductions
        padded = pad_to_grid(image, reductions[-1])
        features = self.backbone(padded, train=train)

        aligned = on_grid(features[-1], padded, reductions[-1])

        aspp = ASPP(self.rates, self.features, self.separable, self.dropout, name="aspp", **shared)
        decoder = Decoder(
            self.features, self.reduced, self.separable, aligned, name="decoder", **shared
        )
        low_level = features[reductions.index(LOW_LEVEL)]
        x = decoder(aspp(features[-1], train=train), low_level, train=train)
        scores = Score(self.num_classes, self.dtype, name="score")(x)
        logits = resize(scores, padded.shape[1:3], align_corners=aligned)
        return crop_to(logits, image.shape[1:3])


# Parameters as counted on the release's weights too; multiply-adds of the paper's Table 5.
@register(
    task="semantic",
    paper="arXiv:1802.02611",
    input_shape=(513, 513, 3),
    parameters=41_055_413,
    gmacs=54.17,
)
def deeplabv3plus(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str = "xception65",
    width: int | None = None,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] = RATES,
    multi_grid: tuple[int, ...] | None = None,
    separable: bool = True,
    dropout: float = 0.1,
) -> DeepLabV3Plus:
    """DeepLab v3+: Xception-65, a separable pyramid, and a decoder that sees fine detail."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_choice("separable", separable, (True, False))
    check_rate("dropout", dropout)
    net = dense_encoder(
        backbone,
        width=width,
        output_stride=output_stride,
        multi_grid=multi_grid,
        dtype=dtype,
        axis_name=axis_name,
    )
    rates = rates_at(output_stride, atrous_rates)
    if LOW_LEVEL not in net.reductions:
        raise SegzooError(
            f"backbone {backbone!r} has maps of reductions {net.reductions}; expected one of 4 for "
            "the decoder."
        )
    features, reduced = (in_proportion(c, backbone, width) for c in (FEATURES, REDUCED))
    return DeepLabV3Plus(
        num_classes, dtype, axis_name, net, rates, features, reduced, separable, dropout
    )
