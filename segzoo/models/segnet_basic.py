"""SegNet-Basic and its decoder variants (arXiv:1511.00561, section 3.1, Figure 3, Table 1).

One encoder of four 7x7 convolutions with 64 features each, and eight decoders: SegNet's, which
unpool by max-pooling indices and convolve; FCN's, which reduce the features to the K classes and
learn to up-sample; and fixed bilinear interpolation.

Choices. The sentence "no biases are used after convolutions and no ReLU non-linearity is present in
the decoder network" is read as one about the decoder (the released encoder has biases). The
published parameter counts, rounded to a tenth of a megabyte, are met either way, but for the two
without reduction: 1.66 million here, 1.625 there, which no reading of the text gives. Encoder
maps are added after their pool, as Figure 3's caption has it, to the decoder's map of that size, so
the last decoder adds none. FCN's 8x8 up-sampling kernels are followed by batch norm like every
other convolution. Pools keep the remainder of an odd size, as in the release.

The paper normalises the contrast of its images locally (`input_norm="contrast"`); the release has a
response normalisation over the three colours in its place, made for values up to 255, which does
next to nothing to images of unit variance.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_common, check_image
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import (
    Conv,
    ConvNormAct,
    ConvTranspose,
    Norm,
    Score,
    bilinear_kernel,
    crop_to,
    max_pool,
    resize,
)
from segzoo.models.segnet import unpool
from segzoo.ops.normalization import local_contrast_norm
from segzoo.registry import register, with_fixed

Array = jax.Array
InputNorm = Literal["none", "contrast"]


class Encoder(nn.Module):
    """Four times 7x7 convolution, batch norm, ReLU and a 2x2 max-pool.

    Attributes:
        width: features of every map, 64 in the paper.
        input_norm: "none", or "contrast": see `segzoo.ops.normalization.local_contrast_norm`.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    width: int = 64
    input_norm: InputNorm = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return (1, 2, 4, 8, 16)

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions."""
        return (("conv1",), ("conv2",), ("conv3",), ("conv4",))

    def pool(self, x: Array) -> Array:
        """The 2x2 max-pool after each convolution."""
        return max_pool(x, (2, 2), padding="SAME")

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            The map of each convolution before its pool, then the last pool: five, finest first.
        """
        x = local_contrast_norm(image) if self.input_norm == "contrast" else image
        features = []
        for (name,) in self.stages:
            x = ConvNormAct(
                self.width,
                7,
                norm="batch",
                use_bias=True,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)
            features.append(x)
            x = self.pool(x)
        return (*features, x)


class SegNetBasic(nn.Module):
    """SegNet-Basic: decoders that unpool and convolve, without biases and ReLUs.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm.
        backbone: the encoder.
        encoder_addition: add the encoder's pooled maps to the decoders' outputs of the same size.
        single_channel: each decoder filter sees the one map it makes, not all of them.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: Encoder
    encoder_addition: bool = False
    single_channel: bool = False

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
        *encoded, x = self.backbone(image, train=train)
        for stage in reversed(range(len(encoded))):
            x = unpool(x, encoded[stage])
            x = ConvNormAct(
                x.shape[-1],
                7,
                groups=x.shape[-1] if self.single_channel else 1,
                norm="batch",
                activation=lambda y: y,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"decode{stage + 1}",
            )(x, train=train)
            if self.encoder_addition and stage > 0:
                x = x + self.backbone.pool(encoded[stage - 1])
        return Score(self.num_classes, self.dtype, name="classifier")(x)


class Upsampling(nn.Module):
    """FCN's decoder step: an 8x8 transposed convolution of stride 2 that starts as interpolation.

    Interpolation by a kernel of its size, whose gain of 4 batch norm takes away.

    Attributes:
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, ...], *, train: bool) -> Array:
        """`[B, h, w, C] -> [B, *size, C]`, size at most twice as large."""
        channels, kernel = x.shape[-1], 8
        x = ConvTranspose(
            channels,
            (kernel, kernel),
            (2, 2),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=bilinear_kernel,
            name="conv",
        )(x)
        margin = (kernel - 2) // 2  # pixel 2 i + 1/2 of the output is the centre of pixel i
        x = x[:, margin : margin + size[0], margin : margin + size[1]]
        return Norm("batch", self.dtype, self.axis_name, name="norm")(x, train=train)


class FCNBasic(nn.Module):
    """FCN-Basic: decoders that learn to up-sample, and add the encoder's pooled maps.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm.
        backbone: the encoder.
        addition: whether encoder maps are added; without, the last one alone is up-sampled.
        dim_reduction: whether encoder maps are first reduced to K channels, by 1x1 convolutions.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: Encoder
    addition: bool = True
    dim_reduction: bool = True

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
        *encoded, pool4 = self.backbone(image, train=train)
        x = self._reduce(pool4, len(encoded))
        for stage in reversed(range(len(encoded))):
            up = Upsampling(self.dtype, self.axis_name, name=f"upsample{stage + 1}")
            x = up(x, encoded[stage].shape[1:-1], train=train)
            if self.addition and stage > 0:
                x = x + self._reduce(self.backbone.pool(encoded[stage - 1]), stage)
        return Score(self.num_classes, self.dtype, name="classifier")(x)

    def _reduce(self, x: Array, stage: int) -> Array:
        if not self.dim_reduction:
            return x
        name = f"reduce{stage}"
        conv = Conv(self.num_classes, (1, 1), use_bias=False, dtype=self.dtype, name=name)
        return conv(x)


class BilinearBasic(nn.Module):
    """Bilinear-Interpolation: the last encoder map is scored, its scores interpolated.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm.
        backbone: the encoder.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: Encoder

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
        *_, pool4 = self.backbone(image, train=train)
        scores = Score(self.num_classes, self.dtype, name="classifier")(pool4)
        stride = self.backbone.reductions[-1]
        return crop_to(resize(scores, [stride * n for n in scores.shape[1:-1]]), image.shape[1:-1])


def _basic(
    decoder: Callable[..., nn.Module],
    num_classes: int = 11,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    input_norm: InputNorm = "none",
) -> nn.Module:
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("width", width)
    check_choice("input_norm", input_norm, ("none", "contrast"))
    encoder = Encoder(width, input_norm, dtype, axis_name)
    return decoder(num_classes, dtype, axis_name, encoder)


def _variant(
    name: str, decoder: Callable[..., nn.Module], parameters: int, summary: str, **choices: bool
) -> Callable[..., nn.Module]:
    """Registers a row of Table 1 and returns its builder."""
    decoder = functools.partial(decoder, **choices)
    builder = with_fixed(name, _basic, summary, decoder=decoder)
    return register(
        task="semantic",
        paper="arXiv:1511.00561",
        input_shape=(360, 480, 3),
        parameters=parameters,
    )(builder)


bilinear_basic = _variant(
    "bilinear_basic", BilinearBasic, 613_003, "SegNet-Basic's encoder, scores interpolated."
)
segnet_basic = _variant(
    "segnet_basic", SegNetBasic, 1_416_331, "SegNet-Basic: four encoders, four decoders."
)
segnet_basic_encoder_addition = _variant(
    "segnet_basic_encoder_addition",
    SegNetBasic,
    1_416_331,
    "SegNet-Basic that adds the encoder's maps to the decoder's.",
    encoder_addition=True,
)
segnet_basic_single_channel_decoder = _variant(
    "segnet_basic_single_channel_decoder",
    SegNetBasic,
    626_059,
    "SegNet-Basic with decoder filters of a single channel.",
    single_channel=True,
)
fcn_basic = _variant(
    "fcn_basic",
    FCNBasic,
    646_300,
    "FCN's decoder on SegNet-Basic's encoder: reduce, up-sample, add.",
)
fcn_basic_no_addition = _variant(
    "fcn_basic_no_addition",
    FCNBasic,
    644_188,
    "FCN-Basic without the encoder's maps: it up-samples the last one alone.",
    addition=False,
)
fcn_basic_no_dim_reduction = _variant(
    "fcn_basic_no_dim_reduction",
    FCNBasic,
    1_662_091,
    "FCN-Basic on all 64 features, not reduced to the classes.",
    dim_reduction=False,
)
fcn_basic_no_addition_no_dim_reduction = _variant(
    "fcn_basic_no_addition_no_dim_reduction",
    FCNBasic,
    1_662_091,
    "FCN-Basic on all 64 features, without the encoder's maps.",
    addition=False,
    dim_reduction=False,
)
