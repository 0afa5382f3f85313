"""ResNet (He et al. 2016, arXiv:1512.03385): the five networks of Table 1.

A bottleneck block halves the resolution in its 3x3 convolution (`variant="torchvision"`) or, as in
the authors' release, in its first 1x1 convolution (`variant="paper"`). Shortcuts are projections
where sizes or channels change (option B), the identity elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, Classifier, dilate
from segzoo.checks import check_common, check_image
from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.layers import NORMS, ConvNormAct, NormKind, max_pool
from segzoo.ops.residual import relu_of_sum
from segzoo.registry import register

Array = jax.Array
Variant = Literal["torchvision", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Blocks in conv2_x to conv5_x of the paper's Table 1. From 50 layers on they are bottlenecks.
STAGES: dict[int, tuple[int, ...]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
EXPANSION = 4  # output channels of a bottleneck per channel inside


class Part(NamedTuple):
    """One convolution of a residual branch.

    Attributes:
        features: output channels.
        kernel_size: 1 or 3.
        stride: one number for both axes.
        dilation: one number for both axes.
    """

    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1


class Block(nn.Module):
    """Residual block: convolutions, their sum with the shortcut, ReLU (equations 1 and 2).

    Every convolution is followed by normalisation, all but the last by ReLU.

    Attributes:
        parts: the convolutions of the residual branch, in the order of the data.
        norm: "batch", "group", "frozen" or "none".
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
        epsilon: added to the variance.
        as_array: whether the result is kept, see `relu_of_sum`; it is the same.
    """

    parts: tuple[Part, ...]
    norm: NormKind = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5
    as_array: bool = False

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]`."""
        stride, features = math.prod(part.stride for part in self.parts), self.parts[-1].features
        shortcut = x
        if stride != 1 or features != x.shape[-1]:
            shortcut = self._conv(Part(features, 1, stride), "shortcut")(x, train=train)
        for number, part in enumerate(self.parts, start=1):
            x = self._conv(part, f"conv{number}")(x, train=train)
            if number < len(self.parts):
                x = nn.relu(x)
        return relu_of_sum(x, shortcut) if self.as_array else nn.relu(x + shortcut)

    def _conv(self, part: Part, name: str) -> ConvNormAct:
        pad = part.kernel_size // 2 * part.dilation
        return ConvNormAct(
            part.features,
            part.kernel_size,
            part.stride,
            part.dilation,
            padding=((pad, pad), (pad, pad)),
            norm=self.norm,
            epsilon=self.epsilon,
            activation=jax.nn.identity,
            dtype=self.dtype,
            axis_name=self.axis_name,
            name=name,
        )


class ResNet(nn.Module):
    """The convolutional part of ResNet.

    With `output_stride` 8 or 16 the last stages keep their resolution and dilate instead. A
    convolution whose stride is left out keeps the dilation from before it, those after it are
    dilated by the stride left out: so every value of the strided network stands, unchanged, among
    the values of the dilated one.

    `multi_grid` (Chen et al. 2017, arXiv:1706.05587, section 3.2.1) replaces that in the last
    stage: the 3x3 convolutions of block i, the first block included, are dilated by
    `multi_grid[i]` times the dilation of the stage. At output stride 16 that is 2: DeepLab v3's
    (1, 2, 4) gives the rates 2, 4 and 8, and (1, 1, 1) is 2, 2, 2 where None is 1, 2, 2.

    Attributes:
        depth: 18, 34, 50, 101 or 152, the layers with weights, the classifier included.
        width: channels of the first convolution and of the first stage's 3x3 convolutions, 64 in
            the paper; the other stages have 2, 4 and 8 times as many, bottlenecks give 4 times
            their own.
        norm: "batch" (the paper), "group", "frozen" or "none".
        output_stride: 8, 16 or 32: input pixels per pixel of the last features.
        multi_grid: unit rates, one for each block of the last stage, or None.
        variant: where a bottleneck has its stride: "torchvision" in the 3x3 convolution, "paper"
            in the first 1x1.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
        epsilon: added to the variance in every normalisation.

    Raises:
        SegzooError: for an impossible value of these.
    """

    depth: int = 50
    width: int = 64
    norm: NormKind = "batch"
    output_stride: int = 32
    multi_grid: tuple[int, ...] | None = None
    variant: Variant = "torchvision"
    dtype: Any = jnp.float32
    axis_name: str | None = None
    epsilon: float = 1e-5

    def __post_init__(self) -> None:
        check_choice("depth", self.depth, STAGES)
        check_positive_int("width", self.width)
        check_choice("norm", self.norm, NORMS)
        check_choice("output_stride", self.output_stride, OUTPUT_STRIDES)
        check_choice("variant", self.variant, VARIANTS)
        if self.multi_grid is not None:
            blocks = STAGES[self.depth][-1]
            if not isinstance(self.multi_grid, tuple | list) or len(self.multi_grid) != blocks:
                raise SegzooError(
                    f"multi_grid is {self.multi_grid!r}; expected {blocks} rates, one for each "
                    f"block of the last stage of ResNet-{self.depth}."
                )
            for rate in self.multi_grid:
                check_positive_int("a rate of multi_grid", rate)
            self.multi_grid = tuple(self.multi_grid)  # JSON knows lists only
        super().__post_init__()

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the modules of conv1 and of conv2_x to conv5_x."""
        blocks = (
            tuple(f"stage{stage}_block{i}" for i in range(count))
            for stage, count in enumerate(STAGES[self.depth], start=1)
        )
        return (("stem",), *blocks)

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            The first convolution after its ReLU, then the outputs of the four stages: five maps.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        common: dict[str, Any] = {
            "norm": self.norm,
            "dtype": self.dtype,
            "axis_name": self.axis_name,
            "epsilon": self.epsilon,
        }
        stem = ConvNormAct(self.width, 7, 2, padding=((3, 3), (3, 3)), name="stem", **common)
        features = [stem(image, train=train)]
        x = max_pool(features[0], (3, 3), (2, 2), padding=((1, 1), (1, 1)))

        # The first stride is that of the first convolution and the pool together.
        geometry = dilate((4, 1, 2, 2, 2), self.output_stride)
        for stage, names in enumerate(self.stages[1:], start=1):
            (_, before), (stride, dilation) = geometry[stage - 1 : stage + 1]
            for i, name in enumerate(names):
                if self.multi_grid is not None and stage == 4:
                    rates = (self.multi_grid[i] * dilation,) * 2
                else:
                    rates = (before if i == 0 else dilation, dilation)
                parts = self.parts(self.width * 2 ** (stage - 1), stride if i == 0 else 1, rates)
                # Kept by each block, they take more memory and no less time.
                x = Block(parts, as_array=i % 2 == 1, name=name, **common)(x, train=train)
            features.append(x)
        return tuple(features)

    def parts(self, features: int, stride: int, rates: tuple[int, int]) -> tuple[Part, ...]:
        """Returns the residual branch of a block.

        Args:
            features: output channels of its 3x3 convolutions.
            stride: of the block.
            rates: the dilation of a convolution that has the stride, and of those after it.
        """
        first, rest = rates
        if self.depth < 50:
            return (Part(features, 3, stride, first), Part(features, 3, 1, rest))
        if self.variant == "paper":
            reduce, middle = Part(features, 1, stride), Part(features, 3, 1, rest)
        else:
            reduce, middle = Part(features, 1), Part(features, 3, stride, first)
        return (reduce, middle, Part(EXPANSION * features, 1))


def _builder(depth: int, parameters: int, gmacs: float, blocks: str) -> Callable[..., Classifier]:
    """Registers one network under its usual name and returns its builder."""

    def bottleneck(
        num_classes: int = 1000,
        dtype: Any = jnp.float32,
        axis_name: str | None = None,
        width: int = 64,
        norm: NormKind = "batch",
        output_stride: int = 32,
        multi_grid: tuple[int, ...] | None = None,
        variant: Variant = "torchvision",
    ) -> Classifier:
        backbone = ResNet(depth, width, norm, output_stride, multi_grid, variant, dtype, axis_name)
        check_common(num_classes=num_classes, dtype=dtype)
        return Classifier(backbone, num_classes, dtype, axis_name)

    def basic(
        num_classes: int = 1000,
        dtype: Any = jnp.float32,
        axis_name: str | None = None,
        width: int = 64,
        norm: NormKind = "batch",
        output_stride: int = 32,
        multi_grid: tuple[int, ...] | None = None,
    ) -> Classifier:
        return bottleneck(num_classes, dtype, axis_name, width, norm, output_stride, multi_grid)

    build = basic if depth < 50 else bottleneck  # the variants differ in bottlenecks alone
    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"ResNet-{depth}: {blocks}."
    return register(
        task="classification", paper="arXiv:1512.03385", parameters=parameters, gmacs=gmacs
    )(build)


resnet18 = _builder(18, 11_689_512, 1.814, "2, 2, 2 and 2 blocks of two 3x3 convolutions")
resnet34 = _builder(34, 21_797_672, 3.664, "3, 4, 6 and 3 blocks of two 3x3 convolutions")
resnet50 = _builder(50, 25_557_032, 4.089, "3, 4, 6 and 3 bottlenecks")
resnet101 = _builder(101, 44_549_160, 7.801, "3, 4, 23 and 3 bottlenecks")
resnet152 = _builder(152, 60_192_808, 11.514, "3, 8, 36 and 3 bottlenecks")
