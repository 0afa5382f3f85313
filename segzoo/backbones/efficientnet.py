"""EfficientNet B0..B7 (Tan & Le 2019, arXiv:1905.11946): Table 1, scaled by equation 3.

The paper leaves a few things to its TensorFlow release, which are taken from there: channels are
rounded to multiples of 8, depths up; squeeze-and-excitation (Hu et al. 2018, arXiv:1709.01507) is a
quarter of the block's input channels wide; stochastic depth (Huang et al. 2016, arXiv:1603.09382)
grows linearly from 0 to 0.2 over the blocks.

`variant="torchvision"` pads symmetrically; batch norm's epsilon is 1e-5 (B5..B7: 1e-3).
`variant="paper"` is the release's geometry: "SAME" padding, uneven under stride 2; epsilon 1e-3.
Kernels start by He's rule on the fan-in, as everywhere here; the release takes the fan-out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from segzoo.backbones.classifier import OUTPUT_STRIDES, dilate
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import Conv, ConvNormAct, Dropout, Score
from segzoo.ops.order import once
from segzoo.registry import register

Array = jax.Array
Variant = Literal["torchvision", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)


class Stage(NamedTuple):
    """One row of MBConv blocks of the paper's Table 1.

    Attributes:
        expansion: hidden channels of a block per input channel.
        kernel_size: of the depthwise convolution.
        stride: of the first block.
        channels: of the output.
        blocks: how many.
    """

    expansion: int
    kernel_size: int
    stride: int
    channels: int
    blocks: int


# Stages 2 to 8 of Table 1. Stage 1 is a 3x3 convolution of stride 2 to 32 channels, stage 9 the
# classifier's 1x1 convolution to 1280.
STEM_CHANNELS = 32
STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)
HEAD_CHANNELS = 1280

# Batch norm's epsilon and momentum.
TORCH_NORM = (1e-5, 0.9)
TF_NORM = (1e-3, 0.99)


def round_channels(channels: float) -> int:
    """Returns the multiple of 8 nearest to `channels`, never below 90 % of it."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nn.Module):
    """Scales every channel by a gate that sees all places (Hu et al. 2018, equations 2 to 4).

    Attributes:
        features: channels in the middle.
        dtype: of the computation.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, H, W, C] -> [B, H, W, C]`."""
        squeezed = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
        hidden = nn.silu(Conv(self.features, (1, 1), dtype=self.dtype, name="reduce")(squeezed))
        gate = nn.sigmoid(Conv(x.shape[-1], (1, 1), dtype=self.dtype, name="expand")(hidden))
        return x * gate


class StochasticDepth(nn.Module):
    """Drops whole examples of a residual branch (Huang et al. 2016, section 3).

    What is dropped is a function of the key and the example's position in the global batch, as in
    `Dropout`, on any number of devices.

    Attributes:
        rate: the probability of zero; the rest is scaled by `1 / (1 - rate)`.
        axis_name: the mapped axis the batch is split over, if any.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """`[B, ...] -> [B, ...]`; the identity where `deterministic`."""
        if deterministic or self.rate == 0.0:
            return x
        one = jnp.ones((x.shape[0], *(1,) * (x.ndim - 1)), x.dtype)
        kept = Dropout(self.rate, self.axis_name)(one, deterministic=False)
        if jax.default_backend() == "cpu":
            # An array. Drawn again in all that reads it, it would make code of its own of each
            # block's operations, which are otherwise those of the block before.
            kept = once(lambda _: kept, x)
        return x * kept


class MBConv(nn.Module):
    """Inverted residual block with squeeze-and-excitation: expand, filter depthwise, gate, project.

    Attributes:
        features: output channels.
        conv: `(features, kernel_size, *, stride, dilation, groups, activation, name)`: a module of
            convolution, batch norm and SiLU.
        expansion: hidden channels per input channel; 1 leaves the expansion out.
        kernel_size: of the depthwise convolution.
        stride: of the depthwise convolution.
        dilation: of the depthwise convolution.
        drop_rate: of the residual branch, by stochastic depth.
        dtype: of the computation.
        axis_name: the mapped axis of stochastic depth.
    """

    features: int
    conv: Callable[..., nn.Module]
    expansion: int = 6
    kernel_size: int = 3
    stride: int = 1
    dilation: int = 1
    drop_rate: float = 0.0
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]`."""
        channels = x.shape[-1]
        hidden = channels * self.expansion
        y = x
        if self.expansion != 1:
            y = self.conv(hidden, 1, name="expand")(y, train=train)
        y = self.conv(
            hidden,
            self.kernel_size,
            stride=self.stride,
            dilation=self.dilation,
            groups=hidden,
            name="depthwise",
        )(y, train=train)
        y = SqueezeExcite(max(1, channels // 4), self.dtype, name="squeeze_excite")(y)
        y = self.conv(self.features, 1, activation=lambda y: y, name="project")(y, train=train)
        if self.stride == 1 and channels == self.features:
            drop = StochasticDepth(self.drop_rate, self.axis_name)
            y = x + drop(y, deterministic=not train)
        return y


class EfficientNet(nn.Module):
    """The convolutional part of EfficientNet, the classifier's 1x1 convolution left out.

    Attributes:
        width_coefficient: beta^phi of equation 3: multiplies channels, before rounding.
        depth_coefficient: alpha^phi of equation 3: multiplies the blocks of a stage.
        width: channels of the first convolution; the others are kept in proportion. None: as
            published.
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        stochastic_depth: the rate at the end of the network; the first block has 0.
        variant: "torchvision" pads both sides of the image alike; "paper" pads by "SAME".
        epsilon: of batch norm, added to the variance.
        momentum: of batch norm, the share of its old value a running statistic keeps in a step.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm and stochastic depth.
    """

    width_coefficient: float = 1.0
    depth_coefficient: float = 1.0
    width: int | None = None
    output_stride: int = 32
    stochastic_depth: float = 0.2
    variant: Variant = "torchvision"
    epsilon: float = 1e-5
    momentum: float = 0.9
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the modules of stages 1 to 8 of Table 1."""
        blocks = (
            tuple(f"stage{number}_block{i}" for i in range(self.blocks(stage)))
            for number, stage in enumerate(STAGES, start=2)
        )
        return (("stem",), *blocks)

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer that has `published` channels in B0."""
        scaled = round_channels(published * self.width_coefficient)
        if self.width is None:
            return scaled
        stem = round_channels(STEM_CHANNELS * self.width_coefficient)
        return max(1, round(scaled * self.width / stem))

    def blocks(self, stage: Stage) -> int:
        """Returns how many blocks a stage has here."""
        return math.ceil(stage.blocks * self.depth_coefficient)

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """`(features, kernel_size, ...)`: convolution, batch norm and SiLU, see `ConvNormAct`."""

        def build(
            features: int, kernel_size: int, stride: int = 1, dilation: int = 1, **more: Any
        ) -> nn.Module:
            pad = kernel_size // 2 * dilation
            more = {"activation": nn.silu, **more}
            return ConvNormAct(
                features,
                kernel_size,
                stride,
                dilation,
                padding="SAME" if self.variant == "paper" else ((pad, pad), (pad, pad)),
                norm="batch",
                epsilon=self.epsilon,
                momentum=self.momentum,
                dtype=self.dtype,
                axis_name=self.axis_name,
                **more,
            )

        return build

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised.
            train: whether batch norm uses (and updates) batch statistics, and stochastic depth
                drops examples by the rng "dropout".

        Returns:
            The last map of each resolution: the outputs of stages 2, 3, 4, 6 and 8.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        (stem_stride, _), *geometry = dilate((2, *(s.stride for s in STAGES)), self.output_stride)
        stem = self.conv(self.channels(STEM_CHANNELS), 3, stem_stride, name="stem")
        x = stem(image, train=train)

        features = []
        before = 1  # the dilation of the stage before
        rates = iter(np.linspace(0, self.stochastic_depth, sum(map(self.blocks, STAGES)), False))
        for stage, names, (stride, dilation) in zip(STAGES, self.stages[1:], geometry, strict=True):
            if stage.stride > 1:
                features.append(x)
            for i, name in enumerate(names):
                block = MBConv(
                    self.channels(stage.channels),
                    self.conv,
                    stage.expansion,
                    stage.kernel_size,
                    stride if i == 0 else 1,
                    # A stride left out spreads the output of its convolution, not yet the input.
                    before if i == 0 else dilation,
                    drop_rate=float(next(rates)),
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=name,
                )
                x = block(x, train=train)
            before = dilation
        return (*features, x)


class EfficientNetClassifier(nn.Module):
    """Stage 9 of Table 1 over the features: 1x1 convolution, average, drop-out, scores.

    Attributes:
        backbone: the features.
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm, drop-out and stochastic depth.
        dropout: the rate before the scores.
    """

    backbone: EfficientNet
    num_classes: int = 1000
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.2

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        x = self.backbone(image, train=train)[-1]
        conv = self.backbone.conv(self.backbone.channels(HEAD_CHANNELS), 1, name="head_conv")
        x = jnp.mean(conv(x, train=train), axis=(1, 2), dtype=jnp.float32)
        x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)
        return Score(self.num_classes, self.dtype, name="head")(x)


class Scale(NamedTuple):
    """One network of the family, as published.

    Attributes:
        width_coefficient: see `EfficientNet`.
        depth_coefficient: see `EfficientNet`.
        resolution: height and width of the image.
        dropout: the rate before the scores.
        norm: torchvision's epsilon and momentum of batch norm.
        parameters: how many trained values.
        gmacs: 1e9 multiply-adds at `resolution`.
    """

    width_coefficient: float
    depth_coefficient: float
    resolution: int
    dropout: float
    norm: tuple[float, float]
    parameters: int
    gmacs: float

    def builder(self, name: str) -> Callable[..., EfficientNetClassifier]:
        """Registers the network as `efficientnet_<name>` and returns its builder."""

        def build(
            num_classes: int = 1000,
            dtype: Any = jnp.float32,
            axis_name: str | None = None,
            width: int = round_channels(STEM_CHANNELS * self.width_coefficient),
            output_stride: int = 32,
            dropout: float = self.dropout,
            stochastic_depth: float = 0.2,
            variant: Variant = "torchvision",
        ) -> EfficientNetClassifier:
            check_common(num_classes=num_classes, dtype=dtype)
            check_positive_int("width", width)
            check_choice("output_stride", output_stride, OUTPUT_STRIDES)
            check_rate("dropout", dropout)
            check_rate("stochastic_depth", stochastic_depth)
            check_choice("variant", variant, VARIANTS)
            backbone = EfficientNet(
                self.width_coefficient,
                self.depth_coefficient,
                width,
                output_stride,
                stochastic_depth,
                variant,
                *(TF_NORM if variant == "paper" else self.norm),
                dtype,
                axis_name,
            )
            return EfficientNetClassifier(backbone, num_classes, dtype, axis_name, dropout)

        build.__name__ = build.__qualname__ = f"efficientnet_{name}"
        build.__doc__ = (
            f"EfficientNet-{name.upper()}: {self.width_coefficient} times the channels of Table 1, "
            f"{self.depth_coefficient} times the depth."
        )
        registered = register(
            task="classification",
            paper="arXiv:1905.11946",
            input_shape=(self.resolution, self.resolution, 3),
            parameters=self.parameters,
            gmacs=self.gmacs,
        )
        return registered(build)


# torchvision counts B2 at 288 pixels; the release trains it at 260.
efficientnet_b0 = Scale(1.0, 1.0, 224, 0.2, TORCH_NORM, 5_288_548, 0.386).builder("b0")
efficientnet_b1 = Scale(1.0, 1.1, 240, 0.2, TORCH_NORM, 7_794_184, 0.687).builder("b1")
efficientnet_b2 = Scale(1.1, 1.2, 288, 0.3, TORCH_NORM, 9_109_994, 1.088).builder("b2")
efficientnet_b3 = Scale(1.2, 1.4, 300, 0.3, TORCH_NORM, 12_233_232, 1.827).builder("b3")
efficientnet_b4 = Scale(1.4, 1.8, 380, 0.4, TORCH_NORM, 19_341_616, 4.394).builder("b4")
efficientnet_b5 = Scale(1.6, 2.2, 456, 0.4, TF_NORM, 30_389_784, 10.266).builder("b5")
efficientnet_b6 = Scale(1.8, 2.6, 528, 0.5, TF_NORM, 43_040_704, 19.068).builder("b6")
efficientnet_b7 = Scale(2.0, 3.1, 600, 0.5, TF_NORM, 66_347_960, 37.746).builder("b7")
