"""GoogLeNet (Szegedy et al. 2015, arXiv:1409.4842): the network of Table 1.

`variant="torchvision"` is the one torchvision has weights for: batch norm instead of biases and of
local response normalisation, a 3x3 convolution where the 5x5 should be, a 2x2 window in the last
pool, auxiliary classifiers on 4x4 adaptive averages, drop-out 0.2.
`variant="paper"` is the published one; its local response normalisation, which the paper names but
gives no numbers for, has those of its release for Caffe. The paper's table counts the parameters of
its first convolution (2.7K) as if that were separable, here it is a plain one, as in its Figure 3.
Kernels start by He's rule in both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, dilate
from segzoo.backbones.inception import (
    AuxiliaryClassifier,
    Branch,
    Inception,
    Maps,
    Part,
    ceil_pool,
    conv_unit,
    spread_avg_pool,
)
from segzoo.checks import check_common, check_image
from segzoo.errors import check_choice, check_positive_int
from segzoo.initializers import he_normal
from segzoo.layers import Dropout, Score
from segzoo.ops.normalization import local_response_norm
from segzoo.ops.spatial import adaptive_avg_pool
from segzoo.registry import register

Array = jax.Array
Variant = Literal["torchvision", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

WIDTH = 64  # channels of the first convolution
AUXILIARY = (("aux1", "inception4a"), ("aux2", "inception4d"))


class Row(NamedTuple):
    """The columns of an Inception module in Table 1: output channels of its convolutions.

    Attributes:
        conv1x1: "#1x1".
        reduce3x3: "#3x3 reduce".
        conv3x3: "#3x3".
        reduce5x5: "#5x5 reduce".
        conv5x5: "#5x5".
        pool_proj: "pool proj".
    """

    conv1x1: int
    reduce3x3: int
    conv3x3: int
    reduce5x5: int
    conv5x5: int
    pool_proj: int


# The rows of Table 1; a pool leads to the first row of each stage.
TABLE: tuple[dict[str, Row], ...] = (
    {
        "inception3a": Row(64, 96, 128, 16, 32, 32),
        "inception3b": Row(128, 128, 192, 32, 96, 64),
    },
    {
        "inception4a": Row(192, 96, 208, 16, 48, 64),
        "inception4b": Row(160, 112, 224, 24, 64, 64),
        "inception4c": Row(128, 128, 256, 24, 64, 64),
        "inception4d": Row(112, 144, 288, 32, 64, 64),
        "inception4e": Row(256, 160, 320, 32, 128, 128),
    },
    {
        "inception5a": Row(256, 160, 320, 32, 128, 128),
        "inception5b": Row(384, 192, 384, 48, 128, 128),
    },
)


class GoogLeNet(nn.Module):
    """The convolutional part of GoogLeNet.

    With `output_stride` 8 or 16 the last pools keep the resolution, and what follows is dilated.

    Attributes:
        width: channels of the first convolution, 64 in the paper; all others are in proportion.
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        variant: "torchvision" or "paper", see the top of this file.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    width: int = WIDTH
    output_stride: int = 32
    variant: Variant = "torchvision"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions before the modules, then of the modules 3, 4 and 5."""
        return (("conv1", "conv2", "conv3"), *(tuple(rows) for rows in TABLE))

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer that has `published` in the paper."""
        return max(1, round(published * self.width / WIDTH))

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """`(part, stride, dilation, pad) -> module`, see `conv_unit`."""
        options: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}
        if self.variant == "torchvision":
            options |= {"norm": "batch", "epsilon": 1e-3}

        def build(part: Part, stride: int = 1, dilation: int = 1, pad: bool = True) -> nn.Module:
            return conv_unit(part, stride, dilation, pad, **options)

        return build

    def branches(self, row: Row) -> tuple[Branch, ...]:
        """Returns the branches of Figure 2b, all but the one of the pool."""
        side = 5 if self.variant == "paper" else 3
        c = Row(*map(self.channels, row))
        return (
            (Part("conv1x1", c.conv1x1),),
            (Part("reduce3x3", c.reduce3x3), Part("conv3x3", c.conv3x3, (3, 3))),
            (Part("reduce5x5", c.reduce5x5), Part("conv5x5", c.conv5x5, (side, side))),
        )

    @nn.compact
    def __call__(self, image: Array, *, train: bool, maps: Maps | None = None) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.
            maps: where the output of each module is put by name, if given.

        Returns:
            The first convolution, the third, and the outputs of the modules 3b, 4e and 5b.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        maps = {} if maps is None else maps
        # The strides of the first convolution and of the four pools.
        (stride, _), *pools = dilate((2,) * 5, self.output_stride)
        befores = [dilation for _, dilation in pools[:-1]]  # of each of the last three pools
        published = self.variant == "paper"

        def normalise(x: Array) -> Array:
            return local_response_norm(x, k=1.0, n=5, alpha=1e-4 / 5) if published else x

        def convolve(x: Array, name: str, features: int, side: int, stride: int = 1) -> Array:
            part = Part(name, self.channels(features), (side, side))
            maps[name] = self.conv(part, stride)(x, train=train)
            return maps[name]

        first = convolve(image, "conv1", 64, 7, stride)
        x = normalise(ceil_pool(first, 3))
        second = convolve(convolve(x, "conv2", 64, 1), "conv3", 192, 3)
        x = normalise(second)
        features = [first, second]
        for rows, before, (stride, dilation) in zip(TABLE, befores, pools[1:], strict=True):
            window = 2 if not published and rows is TABLE[-1] else 3
            x = ceil_pool(x, window, stride, before)
            for name, row in rows.items():
                module = Inception(
                    self.branches(row),
                    self.conv,
                    pool_features=self.channels(row.pool_proj),
                    dilation=dilation,
                    name=name,
                )
                x = maps[name] = module(x, train=train)
            features.append(x)
        return tuple(features)


class AuxiliaryHead(nn.Module):
    """A classifier on features from inside (section 5): averages, 1x1 convolution, two layers.

    Attributes:
        num_classes: K.
        conv: makes the module of the convolution.
        features: output channels of the convolution.
        hidden: units of the hidden layer.
        variant: "paper" averages 5x5 windows with stride 3 on a 14x14 map, "torchvision" 4x4 bins.
        dropout: the rate after the hidden layer.
        dtype: of the computation.
        axis_name: the mapped axis of drop-out.
    """

    num_classes: int
    conv: Callable[..., nn.Module]
    features: int = 128
    hidden: int = 1024
    variant: Variant = "torchvision"
    dropout: float = 0.7
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        if self.variant == "paper":
            x = spread_avg_pool(x, 4, 5 / 14)
        else:
            x = adaptive_avg_pool(x, (4, 4))
        x = self.conv(Part("conv", self.features))(x, train=train)
        dense = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=he_normal, name="fc1")
        x = nn.relu(dense(x.reshape(x.shape[0], -1)))
        x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)
        return Score(self.num_classes, self.dtype, name="fc2")(x)


class GoogLeNetClassifier(AuxiliaryClassifier):
    """GoogLeNet, with auxiliary classifiers on the modules 4a and 4d for `aux_loss`.

    The paper weights the loss of each of them by 0.3. Fields: see `AuxiliaryClassifier`.
    """

    def heads(self) -> tuple[tuple[str, nn.Module], ...]:
        """Returns `aux1` and `aux2`."""
        net = self.backbone
        assert isinstance(net, GoogLeNet)
        shared: dict[str, Any] = {
            "num_classes": self.num_classes,
            "conv": net.conv,
            "features": net.channels(128),
            "hidden": net.channels(1024),
            "variant": net.variant,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
        }
        return tuple((place, AuxiliaryHead(**shared, name=name)) for name, place in AUXILIARY)


@register(task="classification", paper="arXiv:1409.4842", parameters=6_624_904, gmacs=1.498)
def googlenet(
    num_classes: int = 1000,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = WIDTH,
    output_stride: int = 32,
    aux_loss: bool = False,
    variant: Variant = "torchvision",
) -> GoogLeNetClassifier:
    """GoogLeNet: nine Inception modules, 22 layers deep."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("width", width)
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_choice("aux_loss", aux_loss, (True, False))
    check_choice("variant", variant, VARIANTS)
    return GoogLeNetClassifier(
        GoogLeNet(width, output_stride, variant, dtype, axis_name),
        num_classes,
        dtype,
        axis_name,
        dropout=0.4 if variant == "paper" else 0.2,
        aux_loss=aux_loss,
    )
