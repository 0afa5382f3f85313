"""DenseNet (Huang et al. 2017, arXiv:1608.06993): DenseNet-BC, Table 1 and the wider 161.

Drop-out is off, as in the paper where the data are augmented; `dropout=0.2` is its rate where they
are not, after every convolution but the first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from segzoo.backbones.classifier import OUTPUT_STRIDES, Classifier, dilate
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import (
    NORMS,
    Conv,
    ConvNormAct,
    Dropout,
    Norm,
    NormKind,
    mapped_axis,
    max_pool,
)
from segzoo.measured import DenseMaps, Measured, measure, side_by_side
from segzoo.registry import register

Array = jax.Array

# Layers in each dense block, by depth: the paper's Table 1; 161 is the authors' release's.
BLOCKS: dict[int, tuple[int, ...]] = {
    121: (6, 12, 24, 16),
    161: (6, 12, 36, 24),
    169: (6, 12, 32, 32),
    201: (6, 12, 48, 32),
}
BOTTLENECK = 4  # channels between the two convolutions of a layer, per channel of growth


def average_pool(x: Array, stride: int, dilation: int) -> Array:
    """Averages 2x2 pixels, `dilation` apart.

    With stride 2 the remainder of an odd size is dropped. With stride 1 the size is kept, and
    windows that reach over the end hold the pixels inside. An axis too short for two taps stays as
    it is.

    Args:
        x: `[B, H, W, C]`.
        stride: 2, or 1 where the stride is traded for dilation.
        dilation: pixels from one tap to the next.
    """
    for axis in (1, 2):
        size = x.shape[axis]
        if size > dilation:
            near = lax.slice_in_dim(x, 0, size - dilation, stride, axis)
            far = lax.slice_in_dim(x, dilation, size, stride, axis)
            mean = (near + far) / 2
            if stride == 1:
                end = lax.slice_in_dim(x, size - dilation, size, axis=axis)
                mean = jnp.concatenate([mean, end], axis)
            x = mean
    return x


class DenseLayer(nn.Module):
    """A layer H of equation 2, with its bottleneck: norm, ReLU and convolution, 1x1 and then 3x3.

    Attributes:
        features: output channels, the growth rate.
        dilation: of the 3x3 convolution.
        norm: "batch", "group" or "none".
        dropout: the rate after each convolution.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and drop-out.
    """

    features: int
    dilation: int = 1
    norm: NormKind = "batch"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, *maps: Measured, train: bool) -> Array:
        """`[B, H, W, C0], [B, H, W, C1], ... -> [B, H, W, features]`, from all maps before it."""
        x = self._step(side_by_side(*maps), 1, BOTTLENECK * self.features, train)
        return self._step(Measured(x), 2, self.features, train)

    def _step(self, maps: Measured, number: int, features: int, train: bool) -> Array:
        kernel_size, dilation = (1, 1) if number == 1 else (3, self.dilation)
        pad = kernel_size // 2 * dilation
        norm = Norm(self.norm, self.dtype, self.axis_name, name=f"norm{number}")
        conv = Conv(
            features,
            (kernel_size, kernel_size),
            kernel_dilation=dilation,
            padding=((pad, pad), (pad, pad)),
            use_bias=self.norm == "none",
            dtype=self.dtype,
            name=f"conv{number}",
        )
        dropout = Dropout(self.dropout, self.axis_name, name=f"dropout{number}")
        x = nn.relu(norm(maps.x, train=train, statistics=maps.statistics))
        return dropout(conv(x), deterministic=not train)


class Transition(nn.Module):
    """What lies between two dense blocks: norm, ReLU, 1x1 convolution, 2x2 average pooling.

    It halves the channels (the paper's compression is 0.5) and, by its stride, the resolution.

    Attributes:
        stride: of the pooling: 2, or 1 where the stride is traded for dilation.
        dilation: pixels between the taps of the pooling.
        norm: "batch", "group" or "none".
        dropout: the rate after the convolution.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and drop-out.
    """

    stride: int = 2
    dilation: int = 1
    norm: NormKind = "batch"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, maps: Measured, *, train: bool) -> tuple[Array, Array]:
        """`[B, H, W, C] -> [B, H, W, C], [B, H / stride, W / stride, C / 2]`.

        The first result is the block's feature map, after norm and ReLU; the second goes on.
        """
        norm = Norm(self.norm, self.dtype, self.axis_name, name="norm")
        x = nn.relu(norm(maps.x, train=train, statistics=maps.statistics))
        conv = Conv(
            x.shape[-1] // 2,
            (1, 1),
            use_bias=self.norm == "none",
            dtype=self.dtype,
            name="conv",
        )
        y = Dropout(self.dropout, self.axis_name)(conv(x), deterministic=not train)
        return x, average_pool(y, self.stride, self.dilation)


class DenseNet(nn.Module):
    """The convolutional part of DenseNet.

    With `output_stride` 8 or 16 the last transitions average without a stride, and everything after
    them is dilated: in images whose sides are multiples of 32, every value of the strided network
    stands, unchanged, among the values of the dilated one.

    Attributes:
        depth: 121, 161, 169 or 201, the layers with weights, the classifier included.
        width: channels of the first convolution. Every layer of a dense block adds half as many,
            the growth rate k: 64 and 32, in DenseNet-161 96 and 48.
        norm: "batch" (the paper), "group" or "none".
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        dropout: the rate after every convolution but the first.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and drop-out.

    Raises:
        SegzooError: for an impossible value of these.
    """

    depth: int = 121
    width: int = 64
    norm: NormKind = "batch"
    output_stride: int = 32
    dropout: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, BLOCKS)
        check_positive_int("width", self.width, 2)
        check_choice("norm", self.norm, NORMS)
        check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)
        check_rate("dropout", self.dropout)
        super().__post_init__()

    @property
    def growth_rate(self) -> int:
        """Channels that every layer of a dense block adds, k in the paper."""
        return self.width // 2

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the modules up to each map: first convolution, dense block, norm."""
        blocks = BLOCKS[self.depth]
        return (
            ("stem",),
            *(
                (
                    *(f"block{block}_layer{i}" for i in range(1, layers + 1)),
                    f"transition{block}" if block < len(blocks) else "norm",
                )
                for block, layers in enumerate(blocks, start=1)
            ),
        )

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics, and drop-out is active by
                the rng "dropout".

        Returns:
            The first convolution and the four dense blocks, each after the norm and ReLU that
            follow it: five maps, finest first.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        common: dict[str, Any] = {
            "norm": self.norm,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
        }
        stem = ConvNormAct(self.width, 7, 2, padding=((3, 3), (3, 3)), name="stem", **common)
        features = [stem(image, train=train)]
        x = max_pool(features[0], (3, 3), (2, 2), padding=((1, 1), (1, 1)))

        axis_name = mapped_axis(self, self.axis_name)
        measured = functools.partial(measure, norm=self.norm, axis_name=axis_name, train=train)
        common["dropout"] = self.dropout
        # The strides before each dense block; the first is that of the stem and its pool together.
        geometry = dilate((4, 2, 2, 2), self.output_stride)
        for block, (*layers, last) in enumerate(self.stages[1:]):
            dilation = geometry[block][1]
            maps = DenseMaps(measured(x), room=len(layers) * self.growth_rate, train=train)
            for name in layers:
                layer = DenseLayer(self.growth_rate, dilation, name=name, **common)
                maps.append(measured(layer(*maps.so_far, train=train)))
            whole = side_by_side(*maps.so_far)
            if block + 1 < len(geometry):
                stride = geometry[block + 1][0]
                feature, x = Transition(stride, dilation, name=last, **common)(whole, train=train)
            else:
                norm = Norm(self.norm, self.dtype, self.axis_name, name=last)
                feature = nn.relu(norm(whole.x, train=train, statistics=whole.statistics))
            features.append(feature)
        return tuple(features)


def _builder(depth: int, channels: int, parameters: int, gmacs: float) -> Callable[..., Classifier]:
    """Registers one network under its usual name and returns its builder."""

    def build(
        num_classes: int = 1000,
        dtype: Any = jnp.float32,
        axis_name: str | None = None,
        width: int = channels,
        norm: NormKind = "batch",
        output_stride: int = 32,
        dropout: float = 0.0,
    ) -> Classifier:
        backbone = DenseNet(depth, width, norm, output_stride, dropout, dtype, axis_name)
        check_common(num_classes=num_classes, dtype=dtype)
        return Classifier(backbone, num_classes, dtype, axis_name)

    *blocks, last = BLOCKS[depth]
    build.__name__ = build.__qualname__ = f"densenet{depth}"
    build.__doc__ = (
        f"DenseNet-{depth}: {', '.join(map(str, blocks))} and {last} layers of growth rate "
        f"{channels // 2}."
    )
    return register(
        task="classification", paper="arXiv:1608.06993", parameters=parameters, gmacs=gmacs
    )(build)


densenet121 = _builder(121, 64, 7_978_856, 2.834)
densenet161 = _builder(161, 96, 28_681_000, 7.728)
densenet169 = _builder(169, 64, 14_149_480, 3.36)
densenet201 = _builder(201, 64, 20_013_928, 4.291)
