"""AlexNet: five convolutions, the first with stride 4, and two wide hidden layers.

`variant="torchvision"` is the single tower of Krizhevsky 2014 (arXiv:1404.5997, footnote 1), the
network of torchvision's weights. `variant="paper"` is that of Krizhevsky, Sutskever & Hinton (NIPS
2012): two groups of channels for the two GPUs, response normalisation after the first two
convolutions, its own initialisation, drop-out of the hidden layers' outputs instead of their
inputs. Its 224x224 images only give the 55x55 places it counts with a padding, which is two pixels
here; bigger or smaller images are classified too, their features averaged to 6x6.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, DenseClassifier, dilate
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.initializers import gaussian, he_normal
from segzoo.layers import Conv, max_pool
from segzoo.ops.normalization import local_response_norm
from segzoo.ops.pooling import dilated_max_pool
from segzoo.registry import register

Array = jax.Array
Variant = Literal["torchvision", "paper"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)

# Channels of the five convolutions, as published.
CHANNELS: dict[Variant, tuple[int, ...]] = {
    "torchvision": (64, 192, 384, 256, 256),
    "paper": (96, 256, 384, 384, 256),
}
KERNELS = (11, 5, 3, 3, 3)
GROUPS = (1, 2, 1, 2, 2)  # of the paper: the second, fourth and fifth stay on their GPU
HIDDEN = 4096
PLACES = 6  # of pool5, along both axes of the papers' images

# The paper's initialisation (section 5): the biases give the ReLUs positive inputs at first.
small = gaussian(0.01)
ones = nn.initializers.ones


class AlexNet(nn.Module):
    """The convolutional part of AlexNet.

    Attributes:
        variant: "torchvision" or "paper".
        width: channels of the first convolution; the others are in proportion. None: as published.
        output_stride: 32; at 16 or 8 the last pools have stride 1, and what follows is dilated.
        dtype: of the computation.
        axis_name: for the contract; nothing here depends on the batch.
    """

    variant: Variant = "torchvision"
    width: int | None = None
    output_stride: int = 32
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions between pools."""
        return (("conv1",), ("conv2",), ("conv3", "conv4", "conv5"))

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        """Stride and dilation of the first convolution, then of each pool and what follows it."""
        return dilate((4, 2, 2, 2), self.output_stride)

    @property
    def smallest(self) -> int:
        """The smallest height and width of an image that leaves one pixel after the last pool."""
        size = 1
        spacings = [dilation for _, dilation in self.geometry]
        for (stride, _), spacing in zip(self.geometry[:0:-1], spacings[-2::-1], strict=True):
            size = (size - 1) * stride + 2 * spacing + 1
        return (size - 1) * 4 + 11 - 2 * 2

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer with `published` channels."""
        first = CHANNELS[self.variant][0]
        return published * (self.width or first) // first

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised.
            train: changes nothing.

        Returns:
            conv1, conv2 (in the paper's variant normalised), conv5 and pool5, finest first.

        Raises:
            SegzooError: for an image of another rank, or one of which the pools leave nothing.
        """
        check_image(image, 2)
        height, width = image.shape[1:3]
        if min(height, width) < self.smallest:
            raise SegzooError(
                f"the image has {height}x{width} pixels; AlexNet needs at least "
                f"{self.smallest}x{self.smallest}."
            )
        (_, d1), (s1, d2), (s2, d3), (s3, _) = self.geometry
        conv1 = self._normalised(self._conv(image, 1))
        conv2 = self._normalised(self._conv(_pool(conv1, s1, d1), 2, d2))
        x = _pool(conv2, s2, d2)
        for number in (3, 4, 5):
            x = self._conv(x, number, d3)
        return conv1, conv2, x, _pool(x, s3, d3)

    def _conv(self, x: Array, number: int, dilation: int = 1) -> Array:
        """Convolution and ReLU."""
        paper = self.variant == "paper"
        pad = 2 if number == 1 else KERNELS[number - 1] // 2 * dilation
        conv = Conv(
            self.channels(CHANNELS[self.variant][number - 1]),
            (KERNELS[number - 1],) * 2,
            strides=4 if number == 1 else 1,
            kernel_dilation=dilation,
            padding=((pad, pad), (pad, pad)),
            feature_group_count=GROUPS[number - 1] if paper else 1,
            dtype=self.dtype,
            kernel_init=small if paper else he_normal,
            bias_init=ones if paper and number in (2, 4, 5) else nn.initializers.zeros,
            name=f"conv{number}",
        )
        return nn.relu(conv(x))

    def _normalised(self, x: Array) -> Array:
        return local_response_norm(x) if self.variant == "paper" else x


def _pool(x: Array, stride: int, dilation: int) -> Array:
    """Windows of three, which overlap; where the stride is left out, their taps spread instead."""
    if stride == 1:
        return dilated_max_pool(x, (3, 3), dilation)
    return max_pool(x, (3, 3), (2, 2))


@register(task="classification", paper="arXiv:1404.5997", parameters=61_100_840, gmacs=0.714)
def alexnet(
    num_classes: int = 1000,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int | None = None,
    output_stride: int = 32,
    dropout: float = 0.5,
    variant: Variant = "torchvision",
) -> DenseClassifier:
    """AlexNet, in one tower; the two-GPU original by its variant."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_choice("variant", variant, VARIANTS)
    check_choice("output_stride", output_stride, OUTPUT_STRIDES)
    check_rate("dropout", dropout)
    if width is not None:
        check_positive_int("width", width)
        if variant == "paper" and width % 6:
            raise SegzooError(
                f"width is {width!r}; expected a multiple of 6, which splits into the paper's "
                "groups in proportion."
            )
    backbone = AlexNet(variant, width, output_stride, dtype, axis_name)
    paper = variant == "paper"
    return DenseClassifier(
        backbone,
        num_classes,
        dtype,
        axis_name,
        PLACES,
        backbone.channels(HIDDEN),
        dropout,
        drop_inputs=not paper,
        kernel_init=small if paper else he_normal,
        bias_init=ones if paper else nn.initializers.zeros,
    )
