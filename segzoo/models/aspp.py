"""Atrous spatial pyramid pooling, and the encoder under it: what DeepLab v3 and v3+ share."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.by_name import backbone, backbone_names
from segzoo.backbones.xception import SeparableConv
from segzoo.errors import SegzooError, check_choice, check_name, check_positive_int
from segzoo.layers import ConvNormAct, Dropout

Array = jax.Array

OUTPUT_STRIDES = (8, 16)
RATES = (6, 12, 18)  # of the 3x3 convolutions at output stride 16; twice these at 8
FEATURES = 256  # channels of every branch
# Unit rates in the last stage of ResNets of bottlenecks (arXiv:1706.05587, Table 5).
MULTI_GRID = {f"resnet{depth}": (1, 2, 4) for depth in (50, 101, 152)}


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (arXiv:1706.05587, section 3.3 and Figure 5).

    A 1x1 convolution, 3x3 convolutions at several rates, and the mean of all places through a 1x1
    convolution, side by side; a 1x1 convolution makes one map of them. All have batch norm and
    ReLU. There being one mean an image, its batch norm sees as many values as the batch has images,
    on all devices of `axis_name`; of one alone it passes on nothing but its offset.

    Attributes:
        rates: pixels between the taps of each 3x3 convolution.
        features: output channels, of each branch too.
        separable: whether the 3x3 convolutions are atrous separable ones (arXiv:1802.02611).
        dropout: the rate at the end.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and drop-out.
    """

    rates: tuple[int, ...]
    features: int = FEATURES
    separable: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C] -> [B, h, w, features]`."""
        shared: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}

        def conv1x1(x: Array, name: str) -> Array:
            unit = ConvNormAct(self.features, kernel_size=1, norm="batch", name=name, **shared)
            return unit(x, train=train)

        branches = [conv1x1(x, "conv1x1")]
        for number, rate in enumerate(self.rates, start=1):
            unit = conv3x3(self.features, f"atrous{number}", rate, self.separable, **shared)
            branches.append(unit(x, train=train))
        mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        pooled = conv1x1(mean.astype(self.dtype), "image_pooling")
        branches.append(jnp.broadcast_to(pooled, branches[0].shape))
        y = conv1x1(jnp.concatenate(branches, axis=-1), "project")
        return Dropout(self.dropout, self.axis_name)(y, deterministic=not train)


def conv3x3(
    features: int, name: str, rate: int = 1, separable: bool = False, **shared: Any
) -> nn.Module:
    """Returns a 3x3 convolution with batch norm and ReLU, whole or separable.

    Args:
        features: output channels.
        name: of the module.
        rate: pixels between its taps.
        separable: whether it is a filter for each channel, norm, ReLU, then a 1x1 convolution.
        **shared: `dtype` and `axis_name`.
    """
    if separable:
        return SeparableConv(features, dilation=rate, name=name, **shared)
    return ConvNormAct(features, dilation=rate, norm="batch", name=name, **shared)


def dense_encoder(
    name: str,
    *,
    width: int | None,
    output_stride: int,
    multi_grid: tuple[int, ...] | None,
    dtype: Any,
    axis_name: str | None,
) -> nn.Module:
    """Builds the encoder under a pyramid.

    Args:
        name: a registered classifier whose output stride can be set.
        width: channels of its first convolution; None: as published.
        output_stride: 8 or 16.
        multi_grid: unit rates of its last stage; None: the paper's (1, 2, 4) in ResNets of
            bottlenecks, and the rates every encoder has by itself elsewhere.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.

    Raises:
        SegzooError: for an unknown encoder, or what this one cannot be given.
    """
    check_name("backbone", name, backbone_names())
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    if width is not None:
        check_positive_int("width", width)
    if multi_grid is None:
        multi_grid = MULTI_GRID.get(name)
    chosen = {"width": width, "multi_grid": multi_grid}
    return backbone(
        name,
        dtype=dtype,
        axis_name=axis_name,
        output_stride=output_stride,
        **{override: value for override, value in chosen.items() if value is not None},
    )


def rates_at(output_stride: int, atrous_rates: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the rates of a pyramid, the same in pixels of the image at every output stride.

    Args:
        output_stride: 8 or 16.
        atrous_rates: in cells of output stride 16.

    Raises:
        SegzooError: unless there is at least one rate, and all are positive integers.
    """
    if not isinstance(atrous_rates, tuple | list) or not atrous_rates:
        raise SegzooError(f"atrous_rates is {atrous_rates!r}; expected rates, e.g. {RATES}.")
    for rate in atrous_rates:
        check_positive_int("a rate of atrous_rates", rate)
    return tuple(rate * 16 // output_stride for rate in atrous_rates)


def on_grid(features: Array, image: Array, stride: int) -> bool:
    """Whether the features lie on every `stride`-th pixel of an image of `pad_to_grid`.

    So they do where kernels are odd and padded alike on both sides, and corners are to be aligned
    in interpolation. Maps of encoders that pool 2x2 windows tile the image instead, one cell less,
    and their borders are to be put on each other.

    Args:
        features: `[B, h, w, C]`.
        image: `[B, H, W, C]`, padded.
        stride: pixels of the image per cell of the features.
    """
    cells = (1 + (n - 1) // stride for n in image.shape[1:3])
    return tuple(cells) == features.shape[1:3]
