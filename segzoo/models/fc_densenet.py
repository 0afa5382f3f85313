"""FC-DenseNet, the One Hundred Layers Tiramisu (Jégou et al. 2017, arXiv:1611.09326, Tables 1, 2).

A U-Net of dense blocks. On the way down a block's input goes on beside its output, and the stack
of feature maps grows; on the way up only the maps the last block made are up-sampled, and the stack
of the same resolution comes to them over the skip. `fc_densenet_classic` is Table 3's "Classic
Upsampling": the way down of FC-DenseNet103 under a way up of standard convolutions.

Where the paper leaves a choice, the authors' released program decides: convolutions have a bias
although batch norm follows; epsilon is 1e-4; no drop-out after the first convolution and the
transposed ones. The m of Table 2 are 16 too small from the bottleneck to the last block (the
authors' erratum): 896, 1088, 816, 576, 384, 256. Pools drop the remainder of an odd size, and a
transposed convolution (n pixels become 2n + 1) is cropped at its end to the skip, so images of any
size pass unpadded; sides below 32 pixels, which the five pools would use up, are mirrored up to 32
and the logits cropped.

The classic way up is published as 3 convolutions per resolution with 512, 256, 128, 128 and 64
filters, "as in" U-Net. Taken to be: U-Net's 2x2 up-convolution of the bottleneck's new maps (to as
many channels, mirrored by a pixel where the skip is odd), and the layer of Table 1 three times,
undensely. That is 20.2 million parameters where 20 are published; the 3x3 up-convolution, or
up-sampling the bottleneck's input too, would make 21.6 to 24.8 million.

The paper normalises by the current batch while testing too: `test_statistics="image"` (see
`segzoo.layers.Norm`), with one image in the batch the same. The default are running statistics:
with the image's own, what is filled up around it counts too, and so does a tile's edge.

The layer is not the one of `segzoo.backbones.densenet`: no bottleneck, a bias, another epsilon.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_bool, check_choice, check_positive_int
from segzoo.initializers import he_uniform
from segzoo.layers import (
    TEST_STATISTICS,
    Conv,
    ConvTranspose,
    Dropout,
    Norm,
    NormKind,
    Score,
    TestStatistics,
    crop_to,
    mapped_axis,
    max_pool,
    pad_to_multiple,
)
from segzoo.measured import DenseMaps, Measured, measure, side_by_side
from segzoo.registry import register, with_fixed

Array = jax.Array

WIDTH = 48  # channels of the first convolution, to which the growth rates belong
SMALLEST = 32  # pixels that five pools halve down to one
CLASSIC = (512, 256, 128, 128, 64)  # filters of the classic way up, coarsest first


class Layer(nn.Module):
    """The layer of Table 1: batch norm, ReLU, convolution, drop-out.

    Attributes:
        features: output channels.
        kernel_size: 3; 1 in a transition down.
        dropout: the rate.
        norm: "batch" (the paper), "group" or "none".
        test_statistics: see `Norm`.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and drop-out.
    """

    features: int
    kernel_size: int = 3
    dropout: float = 0.2
    norm: NormKind = "batch"
    test_statistics: TestStatistics = "running"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, *maps: Measured, train: bool) -> Array:
        """`[B, H, W, C0], [B, H, W, C1], ... -> [B, H, W, features]`, from all maps together."""
        norm = Norm(
            self.norm,
            self.dtype,
            self.axis_name,
            epsilon=1e-4,
            test_statistics=self.test_statistics,
            name="norm",
        )
        conv = Conv(
            self.features,
            (self.kernel_size, self.kernel_size),
            kernel_init=he_uniform,
            dtype=self.dtype,
            name="conv",
        )
        x, statistics = side_by_side(*maps)
        x = conv(nn.relu(norm(x, train=train, statistics=statistics)))
        return Dropout(self.dropout, self.axis_name)(x, deterministic=not train)


class DenseBlock(nn.Module):
    """Layers that each see the block's input and the maps of all layers before them (Figure 2).

    Attributes:
        layers: how many.
        growth_rate: the maps each of them makes.
        remat: forget in training what a layer computes on its way from its maps to its convolution,
            and compute it again for the gradient. The memory of a block then grows with its layers,
            not with their square.
        options: of every `Layer`.
    """

    layers: int
    growth_rate: int
    remat: bool
    options: dict[str, Any]

    @nn.compact
    def __call__(self, *inputs: Measured, train: bool) -> tuple[Measured, Measured]:
        """`[B, H, W, C0], [B, H, W, C1], ... -> [B, H, W, N], [B, H, W, C0 + C1 + ... + N]`.

        The first result are the N = layers * growth_rate new maps alone.
        """

        def run(layer: Layer, *maps: Measured) -> Array:
            return layer(*maps, train=train)

        if self.remat and train:
            run = nn.remat(run)
        norm, axis_name = self.options["norm"], mapped_axis(self, self.options["axis_name"])
        maps = DenseMaps(*inputs, room=self.layers * self.growth_rate, train=train)
        for number in range(1, self.layers + 1):
            layer = Layer(self.growth_rate, name=f"layer{number}", **self.options)
            new = run(layer, *maps.so_far)
            maps.append(measure(new, norm=norm, axis_name=axis_name, train=train))
        return maps.new, maps.whole


class ConvBlock(nn.Module):
    """What stands in place of a dense block on the classic way up: three layers in a row.

    Attributes:
        features: output channels of each.
        options: of every `Layer`.
    """

    features: int
    options: dict[str, Any]

    @nn.compact
    def __call__(self, x: Measured, *, train: bool) -> Measured:
        """`[B, H, W, C] -> [B, H, W, features]`."""
        for number in (1, 2, 3):
            layer = Layer(self.features, name=f"layer{number}", **self.options)
            x = Measured(layer(x, train=train))
        return x


class TransitionDown(nn.Module):
    """Table 1: a layer with a 1x1 convolution that keeps the channels, then a 2x2 max-pool.

    Attributes:
        options: of the `Layer`.
    """

    options: dict[str, Any]

    @nn.compact
    def __call__(self, x: Measured, *, train: bool) -> Array:
        """`[B, H, W, C] -> [B, H // 2, W // 2, C]`."""
        layer = Layer(x.x.shape[-1], kernel_size=1, name="layer", **self.options)
        return max_pool(layer(x, train=train), (2, 2))


class TransitionUp(nn.Module):
    """Table 1: a transposed convolution of stride 2, brought to the size of the skip beside it.

    Attributes:
        features: output channels of the transposed convolution.
        kernel_size: 3, one pixel too many for an even skip; 2, one too few for an odd one.
        dtype: of the computation.
    """

    features: int
    kernel_size: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, ...]) -> Array:
        """`[B, h, w, C] -> [B, H, W, features]`, H and W the `size`, h = H // 2, w = W // 2."""
        kernel = (self.kernel_size, self.kernel_size)
        up = ConvTranspose(
            self.features, kernel, (2, 2), dtype=self.dtype, kernel_init=he_uniform, name="conv"
        )
        return pad_to_multiple(crop_to(up(x), size), size)


class FCDenseNet(nn.Module):
    """FC-DenseNet (Table 2), or its way down under a classic way up.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm and drop-out.
        blocks: layers of the five dense blocks on the way down, the bottleneck, and (except under
            the classic way up) the five on the way up.
        width: channels of the first convolution.
        growth_rate: maps that each layer of a dense block makes, k in the paper.
        classic: filters of the classic way up, coarsest first; None for dense blocks.
        norm: "batch" (the paper), "group" or "none".
        dropout: the rate after every convolution but the first, the transposed ones and the last.
        test_statistics: of batch norm where it does not train: "running", or of each "image".
        remat: see `DenseBlock`.
    """

    num_classes: int = 11
    dtype: Any = jnp.float32
    axis_name: str | None = None
    blocks: tuple[int, ...] = (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4)
    width: int = WIDTH
    growth_rate: int = 16
    classic: tuple[int, ...] | None = None
    norm: NormKind = "batch"
    dropout: float = 0.2
    test_statistics: TestStatistics = "running"
    remat: bool = False

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
        size = image.shape[1:-1]
        options = {
            "dropout": self.dropout,
            "norm": self.norm,
            "test_statistics": self.test_statistics,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
        }
        axis_name = mapped_axis(self, self.axis_name)
        measured = functools.partial(measure, norm=self.norm, axis_name=axis_name, train=train)
        *down, bottleneck = self.blocks[:6]

        def dense_block(layers: int, name: str) -> DenseBlock:
            return DenseBlock(layers, self.growth_rate, self.remat, options, name=name)

        x = pad_to_multiple(image, [SMALLEST if n < SMALLEST else 1 for n in size])
        conv = Conv(self.width, (3, 3), kernel_init=he_uniform, dtype=self.dtype, name="conv")
        maps = measured(conv(x))
        skips = []
        for level, layers in enumerate(down):
            _, skip = dense_block(layers, f"down{level}")(maps, train=train)
            skips.append(skip)
            pool = TransitionDown(options, name=f"transition_down{level}")
            maps = measured(pool(skip, train=train))

        new, whole = dense_block(bottleneck, "bottleneck")(maps, train=train)
        for level, skip in reversed(list(enumerate(skips))):
            if self.classic is None:
                filters, kernel_size = new.x.shape[-1], 3
            else:
                filters, kernel_size = self.classic[-1 - level], 2
            up = TransitionUp(filters, kernel_size, self.dtype, name=f"transition_up{level}")
            inputs = measured(up(new.x, skip.x.shape[1:-1])), skip
            if self.classic is None:
                block = dense_block(self.blocks[-1 - level], f"up{level}")
                new, whole = block(*inputs, train=train)
            else:
                convs = ConvBlock(filters, options, name=f"up{level}")
                new = whole = convs(side_by_side(*inputs), train=train)

        score = Score(self.num_classes, self.dtype, kernel_init=he_uniform, name="score")
        return crop_to(score(whole.x), size)


def _fc_densenet(
    blocks: tuple[int, ...],
    growth_rate: int,
    classic: bool,
    num_classes: int = 11,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = WIDTH,
    norm: NormKind = "batch",
    dropout: float = 0.2,
    test_statistics: TestStatistics = "running",
    remat: bool = False,
) -> FCDenseNet:
    check_common(num_classes=num_classes, dtype=dtype, norm=norm)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    check_choice("test_statistics", test_statistics, TEST_STATISTICS)
    check_bool("remat", remat)

    def in_proportion(channels: int) -> int:
        return max(1, round(channels * width / WIDTH))

    return FCDenseNet(
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        blocks=blocks,
        width=width,
        growth_rate=in_proportion(growth_rate),
        classic=tuple(map(in_proportion, CLASSIC)) if classic else None,
        norm=norm,
        dropout=dropout,
        test_statistics=test_statistics,
        remat=remat,
    )


def _network(
    name: str, blocks: tuple[int, ...], growth_rate: int, parameters: int, summary: str
) -> Callable[..., FCDenseNet]:
    paper, shape = "arXiv:1611.09326", (360, 480, 3)
    fixed = {"blocks": blocks, "growth_rate": growth_rate, "classic": len(blocks) == 6}
    builder = with_fixed(name, _fc_densenet, summary, **fixed)
    return register(task="semantic", paper=paper, input_shape=shape, parameters=parameters)(builder)


fc_densenet56 = _network(
    "fc_densenet56",
    (4,) * 11,
    12,
    1_376_795,
    "FC-DenseNet56: eleven dense blocks of 4 layers of growth rate 12.",
)
fc_densenet67 = _network(
    "fc_densenet67",
    (5,) * 11,
    16,
    3_463_243,
    "FC-DenseNet67: eleven dense blocks of 5 layers of growth rate 16.",
)
fc_densenet103 = _network(
    "fc_densenet103",
    (4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4),
    16,
    9_322_091,
    "FC-DenseNet103: eleven dense blocks of 4 to 15 layers of growth rate 16.",
)
fc_densenet_classic = _network(
    "fc_densenet_classic",
    (4, 5, 7, 10, 12, 15),
    16,
    20_215_995,
    "The way down of FC-DenseNet103 under a way up of standard convolutions.",
)
