"""Inception v2, the first of two networks of that name: BN-Inception (Ioffe & Szegedy 2015).

arXiv:1502.03167, section 4.2.1 and Figure 5: GoogLeNet with batch norm, two 3x3 convolutions for a
5x5, a third module at 28x28, averages in most pools, and modules with stride 2 in place of the
pools between the stages. The other is `inception_v2_factorized`.

`variant="caffe"` is the one there are weights for: its convolutions have biases, the projections of
4c and 4d 128 channels, so that 4c and 4d have 608 and 4e has 1056.
`variant="paper"` is Figure 5: no biases, 96 channels there (576, 576, 1024), and a separable first
convolution of depth multiplier 8; batch norm's epsilon, 1e-3, is that of the TensorFlow release.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, Classifier, dilate
from segzoo.backbones.inception import Branch, Inception, Part, ceil_pool, conv_unit
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import Conv
from segzoo.registry import register

Array = jax.Array
Variant = Literal["caffe", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

WIDTH = 64  # channels of the first convolution
DEPTH_MULTIPLIER = 8  # of the separable first convolution


class Row(NamedTuple):
    """The columns of a module in Figure 5: output channels of its convolutions.

    Attributes:
        conv1x1: "#1x1"; 0 in modules of stride 2.
        reduce3x3: "#3x3 reduce".
        conv3x3: "#3x3".
        reduce_double: "double #3x3 reduce".
        double3x3: "double #3x3", of both.
        pool: "max" or "avg".
        pool_proj: of the 1x1 convolution after the pool; 0 in modules of stride 2.
    """

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce_double: int
    double3x3: int
    pool: Literal["max", "avg"]
    pool_proj: int


# The rows of Figure 5 by stage. 3c and 4e have stride 2.
TABLE: tuple[dict[str, Row], ...] = (
    {
        "inception3a": Row(64, 64, 64, 64, 96, "avg", 32),
        "inception3b": Row(64, 64, 96, 64, 96, "avg", 64),
        "inception3c": Row(0, 128, 160, 64, 96, "max", 0),
    },
    {
        "inception4a": Row(224, 64, 96, 96, 128, "avg", 128),
        "inception4b": Row(192, 96, 128, 96, 128, "avg", 128),
        "inception4c": Row(160, 128, 160, 128, 160, "avg", 96),
        "inception4d": Row(96, 128, 192, 160, 192, "avg", 96),
        "inception4e": Row(0, 128, 192, 192, 256, "max", 0),
    },
    {
        "inception5a": Row(352, 192, 320, 160, 224, "avg", 128),
        "inception5b": Row(352, 192, 320, 192, 224, "max", 128),
    },
)
CAFFE_POOL_PROJ = {"inception4c": 128, "inception4d": 128}


class InceptionV2(nn.Module):
    """The convolutional part of BN-Inception.

    With `output_stride` 8 or 16 the modules 3c or 4e keep the resolution, and what follows them is
    dilated.

    Attributes:
        width: channels of the first convolution, 64 in the paper; all others are in proportion.
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        variant: "caffe" or "paper", see the top of this file.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    width: int = WIDTH
    output_stride: int = 32
    variant: Variant = "caffe"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions before the modules, then of the modules 3, 4 and 5."""
        depthwise = ("conv1_depthwise",) if self.variant == "paper" else ()
        return ((*depthwise, "conv1", "conv2_reduce", "conv2"), *(tuple(rows) for rows in TABLE))

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer that has `published` in the paper; of none, none."""
        return max(1, round(published * self.width / WIDTH)) if published else 0

    def branches(self, row: Row) -> tuple[Branch, ...]:
        """Returns the branches of a module, all but the one of the pool."""
        c, strided = self.channels, row.conv1x1 == 0
        straight: tuple[Branch, ...] = () if strided else ((Part("conv1x1", c(row.conv1x1)),),)
        return (
            *straight,
            (
                Part("reduce3x3", c(row.reduce3x3)),
                Part("conv3x3", c(row.conv3x3), (3, 3), strided),
            ),
            (
                Part("reduce_double", c(row.reduce_double)),
                Part("double1", c(row.double3x3), (3, 3)),
                Part("double2", c(row.double3x3), (3, 3), strided),
            ),
        )

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """`(part, stride, dilation, pad) -> module`, see `conv_unit`."""
        caffe = self.variant == "caffe"

        def build(part: Part, stride: int = 1, dilation: int = 1, pad: bool = True) -> nn.Module:
            return conv_unit(
                part,
                stride,
                dilation,
                pad,
                norm="batch",
                epsilon=1e-5 if caffe else 1e-3,
                use_bias=caffe,
                dtype=self.dtype,
                axis_name=self.axis_name,
            )

        return build

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            The first and the last convolution before the modules, the outputs of 3b, 4d and 5b.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        # The strides of the first convolution, of the two pools, and of the modules 3c and 4e.
        (stride, _), (pool1, _), (pool2, _), third, fourth = dilate((2,) * 5, self.output_stride)
        x = self._first(image, stride, train)
        features = [x]
        x = ceil_pool(x, 3, pool1)
        x = self.conv(Part("conv2_reduce", self.channels(64)))(x, train=train)
        x = self.conv(Part("conv2", self.channels(192), (3, 3)))(x, train=train)
        features.append(x)
        x = ceil_pool(x, 3, pool2)
        projections = CAFFE_POOL_PROJ if self.variant == "caffe" else {}
        dilation = 1
        for rows, (stride, after) in zip(TABLE, (third, fourth, (1, 1)), strict=True):
            for name, row in rows.items():
                reduces = row.conv1x1 == 0
                if reduces:
                    features.append(x)
                module = Inception(
                    self.branches(row),
                    self.conv,
                    row.pool,
                    self.channels(projections.get(name, row.pool_proj)),
                    stride if reduces else 1,
                    reduces,
                    dilation,
                    name=name,
                )
                x = module(x, train=train)
                if reduces:
                    dilation = after
        return (*features, x)

    def _first(self, image: Array, stride: int, train: bool) -> Array:
        """The first convolution: 7x7, whole or separable."""
        features = self.channels(64)
        if self.variant == "caffe":
            return self.conv(Part("conv1", features, (7, 7)), stride)(image, train=train)
        depthwise = Conv(
            image.shape[-1] * DEPTH_MULTIPLIER,
            (7, 7),
            strides=stride,
            padding=((3, 3), (3, 3)),
            feature_group_count=image.shape[-1],
            use_bias=False,
            dtype=self.dtype,
            name="conv1_depthwise",
        )
        return self.conv(Part("conv1", features))(depthwise(image), train=train)


@register(task="classification", paper="arXiv:1502.03167", parameters=11_295_240, gmacs=2.033)
def inception_v2(
    num_classes: int = 1000,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = WIDTH,
    output_stride: int = 32,
    dropout: float = 0.0,
    variant: Variant = "caffe",
) -> Classifier:
    """Inception v2 as BN-Inception: GoogLeNet with batch norm and 3x3 convolutions in pairs."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("width", width)
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_rate("dropout", dropout)
    check_choice("variant", variant, VARIANTS)
    backbone = InceptionV2(width, output_stride, variant, dtype, axis_name)
    return Classifier(backbone, num_classes, dtype, axis_name, dropout)
