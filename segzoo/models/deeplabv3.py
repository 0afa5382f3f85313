"""DeepLab v3 (Chen et al. 2017, arXiv:1706.05587) and torchvision's reading of it.

`deeplabv3` is Figure 5: an encoder whose last stages are dilated instead of strided, atrous spatial
pyramid pooling with image-level features, scores, interpolated to the image. `deeplabv3_cascade` is
Figure 3b: copies of the encoder's last stage at ever larger rates instead of the pyramid.
`deeplabv3_resnet50` and `deeplabv3_resnet101` are torchvision's, whose weights fit.

Choices of the first two: images are padded with zeros to a multiple of the output stride and one
pixel more, as the paper's crops are (513 = 32 x 16 + 1), and corners are aligned, as in the
authors' release: the score of a cell then lands on the pixel where its receptive field is centred
(for encoders that pool 2x2 windows, see `on_grid`). Drop-out of 0.1 before the scores is the
release's. Statistics of batch norm decay as everywhere here, by 0.9 (the paper's 0.9997 is for
30,000 steps), and strides stand as in `ResNet`.

torchvision's have rates of (12, 24, 36) at output stride 8, no multi-grid, another 3x3 convolution
after the pyramid, drop-out of 0.5 inside it, and FCN's auxiliary head; images stay as they are, and
interpolation is by the borders of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.resnet import Block, ResNet
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.layers import Score, crop_to, resize
from segzoo.models.aspp import ASPP, FEATURES, RATES, conv3x3, dense_encoder, on_grid, rates_at
from segzoo.models.encoders import in_proportion
from segzoo.models.fcn_resnet import DilatedSegmenter
from segzoo.ops.spatial import pad_to_grid
from segzoo.registry import register, with_fixed

Array = jax.Array


class DeepLabV3(nn.Module):
    """DeepLab v3 with atrous spatial pyramid pooling (Figure 5).

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: `(image, *, train) -> features`, finest first, with `reductions`.
        rates: of the pyramid.
        features: channels of the pyramid.
        dropout: the rate before the scores.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    rates: tuple[int, ...] = RATES
    features: int = FEATURES
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
        stride = self.backbone.reductions[-1]
        padded = pad_to_grid(image, stride)
        x = self.backbone(padded, train=train)[-1]
        aspp = ASPP(
            self.rates,
            self.features,
            dropout=self.dropout,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="aspp",
        )
        scores = Score(self.num_classes, self.dtype, name="score")(aspp(x, train=train))
        aligned = on_grid(x, padded, stride)
        logits = resize(scores, padded.shape[1:3], align_corners=aligned)
        return crop_to(logits, image.shape[1:3])


class DeepLabV3Cascade(nn.Module):
    """DeepLab v3 with blocks in cascade (Figure 3b).

    Block 4 is the last stage of ResNet; blocks 5, 6 and 7 are copies of it, each at twice the rate
    of the one before, times the multi-grid.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm.
        backbone: ResNet with a multi-grid.
        blocks: the number of the last block: 7, or 4 for none but ResNet's.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: ResNet
    blocks: int = 7

    @property
    def rates(self) -> tuple[tuple[int, ...], ...]:
        """The rates of the units of blocks 4, 5, ..."""
        net = self.backbone
        assert net.multi_grid is not None
        first = 32 // net.output_stride
        return tuple(
            tuple(first * 2**i * unit for unit in net.multi_grid) for i in range(self.blocks - 3)
        )

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
        net = self.backbone
        padded = pad_to_grid(image, net.output_stride)
        x = net(padded, train=train)[-1]
        for number, rates in enumerate(self.rates[1:], start=5):
            for i, rate in enumerate(rates):
                parts = net.parts(8 * net.width, 1, (rate, rate))
                name = f"block{number}_unit{i}"
                block = Block(parts, net.norm, self.dtype, self.axis_name, name=name)
                x = block(x, train=train)
        scores = Score(self.num_classes, self.dtype, name="score")(x)
        logits = resize(scores, padded.shape[1:3], align_corners=True)
        return crop_to(logits, image.shape[1:3])


class DeepLabHead(nn.Module):
    """torchvision's head: the pyramid, one more 3x3 convolution, scores.

    Attributes:
        num_classes: K.
        rates: of the pyramid.
        features: channels of the pyramid.
        dropout: the rate at the end of the pyramid.
        dtype: of the computation; parameters and scores are float32.
        axis_name: the mapped axis of batch norm and drop-out.
    """

    num_classes: int
    rates: tuple[int, ...]
    features: int = FEATURES
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C] -> float32 [B, h, w, K]`."""
        shared: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}
        aspp = ASPP(self.rates, self.features, dropout=self.dropout, name="aspp", **shared)
        x = aspp(x, train=train)
        x = conv3x3(self.features, "conv", **shared)(x, train=train)
        return Score(self.num_classes, self.dtype, name="score")(x)


class DeepLabV3ResNet(DilatedSegmenter):
    """torchvision's DeepLab v3.

    Attributes:
        rates: of the pyramid.
        features: channels of the pyramid.

    The others: see `DilatedSegmenter`.
    """

    rates: tuple[int, ...] = (12, 24, 36)
    features: int = FEATURES

    def head(self) -> nn.Module:
        """Returns the pyramid and what follows it."""
        return DeepLabHead(
            self.num_classes,
            self.rates,
            self.features,
            self.dropout,
            self.dtype,
            self.axis_name,
            name="head",
        )


@register(
    task="semantic", paper="arXiv:1706.05587", input_shape=(513, 513, 3), parameters=58_040_661
)
def deeplabv3(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str = "resnet101",
    width: int | None = None,
    output_stride: int = 16,
    atrous_rates: tuple[int, ...] = RATES,
    multi_grid: tuple[int, ...] | None = None,
    dropout: float = 0.1,
) -> DeepLabV3:
    """DeepLab v3: ResNet-101 with a multi-grid, and a pyramid of atrous convolutions."""
    check_common(num_classes=num_classes, dtype=dtype)
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
    features = in_proportion(FEATURES, backbone, width)
    return DeepLabV3(num_classes, dtype, axis_name, net, rates, features, dropout)


@register(
    task="semantic", paper="arXiv:1706.05587", input_shape=(513, 513, 3), parameters=82_706_517
)
def deeplabv3_cascade(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str = "resnet101",
    width: int | None = None,
    output_stride: int = 16,
    blocks: int = 7,
    multi_grid: tuple[int, ...] = (1, 2, 1),
) -> DeepLabV3Cascade:
    """DeepLab v3 in cascade: ResNet-101, and three copies of its last stage at growing rates."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("blocks", blocks, minimum=4)
    net = dense_encoder(
        backbone,
        width=width,
        output_stride=output_stride,
        multi_grid=multi_grid,
        dtype=dtype,
        axis_name=axis_name,
    )
    if not isinstance(net, ResNet) or net.multi_grid is None:
        raise SegzooError(
            f"backbone is {backbone!r} and multi_grid {multi_grid!r}; expected a ResNet and a rate "
            "for each block of its last stage."
        )
    return DeepLabV3Cascade(num_classes, dtype, axis_name, net, blocks)


def _deeplabv3_resnet(
    depth: int = 50,
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    aux_loss: bool = True,
    dropout: float = 0.5,
) -> DeepLabV3ResNet:
    check_common(num_classes=num_classes, dtype=dtype)
    check_choice("aux_loss", aux_loss, (True, False))
    check_rate("dropout", dropout)
    backbone = ResNet(depth, width, output_stride=8, dtype=dtype, axis_name=axis_name)
    features = in_proportion(FEATURES, f"resnet{depth}", width)
    return DeepLabV3ResNet(
        num_classes, dtype, axis_name, backbone, aux_loss, dropout, features=features
    )


def _of_depth(depth: int, parameters: int, gmacs: float) -> Callable[..., DeepLabV3ResNet]:
    name = f"deeplabv3_resnet{depth}"
    summary = f"torchvision's DeepLab v3: ResNet-{depth} at stride 8, and an auxiliary head."
    builder = with_fixed(name, _deeplabv3_resnet, summary, depth=depth)
    paper, shape = "arXiv:1706.05587", (520, 520, 3)
    registered = register(
        task="semantic", paper=paper, input_shape=shape, parameters=parameters, gmacs=gmacs
    )
    return registered(builder)


# torchvision counts 178.722 and 258.743 with the auxiliary head, which inference does not run.
deeplabv3_resnet50 = _of_depth(50, 42_004_074, 168.731)
deeplabv3_resnet101 = _of_depth(101, 60_996_202, 248.752)
