"""Xception as DeepLab v3+ modified it (Chen et al. 2018, arXiv:1802.02611, Figure 4).

Residual blocks of three atrous separable convolutions (Chollet 2017, arXiv:1610.02357): deeper than
the original, and with strides in the third separable convolution of a block instead of max-pools.

Batch norm follows both halves of every separable convolution. As to ReLU the authors' release, and
timm with its weights, differ from the paper, and are followed here: blocks with a shortcut have it
before each separable convolution alone, the last block, without one, after both halves. Padding is
symmetric and batch norm's epsilon 1e-3, as there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, Classifier, dilate
from segzoo.checks import check_common, check_image
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import ConvNormAct
from segzoo.registry import register

Array = jax.Array

EPSILON = 1e-3  # of batch norm
STEM = (32, 64)  # channels of the two 3x3 convolutions before the blocks


class Row(NamedTuple):
    """One residual block.

    Attributes:
        features: output channels of its three separable convolutions.
        stride: of the third.
        shortcut: whether the block's input is added to its output.
    """

    features: tuple[int, int, int]
    stride: int = 1
    shortcut: bool = True


def _blocks(entry: tuple[tuple[int, int], ...], middle: int) -> tuple[Row, ...]:
    """Entry flow, middle flow and exit flow, given channels and strides of the first."""
    return (
        *(Row((features,) * 3, stride) for features, stride in entry),
        *(Row((728,) * 3) for _ in range(middle)),
        Row((728, 1024, 1024), 2),
        Row((1536, 1536, 2048), shortcut=False),
    )


# By the number of layers with weights, a separable convolution being one.
BLOCKS: dict[int, tuple[Row, ...]] = {
    41: _blocks(((128, 2), (256, 2), (728, 2)), 8),
    65: _blocks(((128, 2), (256, 2), (728, 2)), 16),
    71: _blocks(((128, 2), (256, 1), (256, 2), (728, 1), (728, 2)), 16),
}


class SeparableConv(nn.Module):
    """Atrous separable convolution (section 3.1): a 3x3 filter per channel, then a 1x1 convolution.

    Both are followed by batch norm and the activation.

    Attributes:
        features: output channels.
        stride: of the 3x3 filters.
        dilation: of the 3x3 filters.
        epsilon: of batch norm.
        activation: after each norm.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    features: int
    stride: int = 1
    dilation: int = 1
    epsilon: float = 1e-5
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]`."""
        shared: dict[str, Any] = {
            "norm": "batch",
            "epsilon": self.epsilon,
            "activation": self.activation,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
        }
        depthwise = ConvNormAct(
            x.shape[-1],
            3,
            self.stride,
            self.dilation,
            padding=((self.dilation,) * 2,) * 2,
            groups=x.shape[-1],
            name="depthwise",
            **shared,
        )
        pointwise = ConvNormAct(self.features, 1, name="pointwise", **shared)
        return pointwise(depthwise(x, train=train), train=train)


class Block(nn.Module):
    """Three separable convolutions, and their sum with the shortcut.

    The shortcut is a 1x1 convolution where sizes or channels change.

    Attributes:
        features: output channels of the three.
        stride: of the third.
        dilation: of all three.
        shortcut: whether there is one. ReLU stands before each separable convolution with one, and
            after each convolution without.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    features: tuple[int, int, int]
    stride: int = 1
    dilation: int = 1
    shortcut: bool = True
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Computes the block.

        Args:
            x: `[B, H, W, C]`.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            `[B, ceil(H / stride), ceil(W / stride), features[2]]`, and what enters the third
            separable convolution, `[B, H, W, features[1]]`: the last map before the stride.
        """
        shared: dict[str, Any] = {
            "epsilon": EPSILON,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
        }
        before, after = (nn.relu, jax.nn.identity)[:: 1 if self.shortcut else -1]
        y = inside = x
        for number, features in enumerate(self.features, start=1):
            inside = before(y)
            stride = self.stride if number == 3 else 1
            conv = SeparableConv(
                features, stride, self.dilation, activation=after, name=f"conv{number}", **shared
            )
            y = conv(inside, train=train)
        if not self.shortcut:
            return y, inside
        if self.stride != 1 or self.features[-1] != x.shape[-1]:
            project = ConvNormAct(
                self.features[-1],
                1,
                self.stride,
                norm="batch",
                activation=jax.nn.identity,
                name="shortcut",
                **shared,
            )
            x = project(x, train=train)
        return x + y, inside


class Xception(nn.Module):
    """The convolutional part of the modified aligned Xception.

    With `output_stride` 8 or 16 the last blocks keep their resolution, and all that follows is
    dilated: every value of the strided network stands, unchanged, among those of the dilated one.

    Attributes:
        depth: 41, 65 or 71, the layers with weights.
        width: channels of the first convolution, 32 as published; the others are in proportion.
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.

    Raises:
        SegzooError: for an impossible value of these.
    """

    depth: int = 65
    width: int = STEM[0]
    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, BLOCKS)
        check_positive_int("width", self.width)
        check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)
        super().__post_init__()

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the modules: the stem, then as many blocks as up to the next stride."""
        stages: list[tuple[str, ...]] = [("stem1", "stem2")]
        for i, row in enumerate(BLOCKS[self.depth]):
            name = f"block{i}"
            if row.stride > 1:
                stages.append((name,))
            else:
                stages[-1] += (name,)
        return tuple(stages)

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer that has `published` at the published width."""
        return max(1, round(published * self.width / STEM[0]))

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            What enters the last separable convolution of each of the four blocks with a stride,
            after its ReLU, then the output of the last block: five maps.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        shared: dict[str, Any] = {"dtype": self.dtype, "axis_name": self.axis_name}
        rows = BLOCKS[self.depth]
        geometry = dilate((2, *(row.stride for row in rows)), self.output_stride)

        x = image
        for number, features in enumerate(STEM, start=1):
            conv = ConvNormAct(
                self.channels(features),
                strides=2 if number == 1 else 1,
                padding=((1, 1), (1, 1)),
                norm="batch",
                epsilon=EPSILON,
                name=f"stem{number}",
                **shared,
            )
            x = conv(x, train=train)
        maps = []
        for i, row in enumerate(rows):
            # The stride comes last in a block: left out, it dilates what follows.
            (_, dilation), (stride, _) = geometry[i : i + 2]
            a, b, c = map(self.channels, row.features)
            block = Block((a, b, c), stride, dilation, row.shortcut, name=f"block{i}", **shared)
            x, inside = block(x, train=train)
            if row.stride > 1:
                maps.append(inside)
        return (*maps, x)


def _builder(depth: int, parameters: int, gmacs: float) -> Callable[..., Classifier]:
    """Registers one network under its usual name and returns its builder."""

    def build(
        num_classes: int = 1000,
        dtype: Any = jnp.float32,
        axis_name: str | None = None,
        width: int = STEM[0],
        output_stride: int = 32,
    ) -> Classifier:
        backbone = Xception(depth, width, output_stride, dtype, axis_name)
        check_common(num_classes=num_classes, dtype=dtype)
        return Classifier(backbone, num_classes, dtype, axis_name)

    middle = sum(row == Row((728,) * 3) for row in BLOCKS[depth])
    build.__name__ = build.__qualname__ = f"xception{depth}"
    build.__doc__ = f"Xception-{depth}, modified and aligned: {middle} blocks in its middle flow."
    return register(
        task="classification",
        paper="arXiv:1802.02611",
        input_shape=(299, 299, 3),
        parameters=parameters,
        gmacs=gmacs,
    )(build)


xception41 = _builder(41, 26_969_560, 9.28)
xception65 = _builder(65, 39_916_312, 13.96)
xception71 = _builder(71, 42_338_736, 18.09)
