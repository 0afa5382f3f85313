"""DeepLab v2 (Chen et al. 2018, arXiv:1606.00915): atrous spatial pyramid pooling.

Scores of several fields of view, side by side on features of output stride 8, are added (section
3.2, Figures 4 and 7). On VGG-16 a branch is DeepLab's classifier with its own fc6 and fc7; on
ResNet-101 it is a dilated 3x3 convolution straight to the scores. `atrous_rates` are (6, 12, 18,
24) for ASPP-L, (2, 4, 8, 12) for ASPP-S and (12,) for LargeFOV (with an average pool more, VGG's
LargeFOV is `deeplabv1`).

`scales` are the multi-scale inputs (section 4.1.2): the one network sees the image at each of them,
and at every pixel the largest score counts. The published ResNet-101 has 0.5, 0.75 and 1
(`deeplabv2_resnet101_msc`). A single scale is the default: it has the same parameters, the paper's
VGG and its plain ResNet are of one scale, and it costs little more than half as much. With several,
the features of a fixed encoder cannot be kept in files (`encode` takes those of one call).

Geometry as in the release: score i lies on pixel 8 i (see `deeplabv1`), and ResNet strides in its
first 1x1 convolutions (`variant="paper"`). Other encoders' scores are interpolated so too where
their maps lie on that grid, else between the borders of the image.

Choices: the maximum is taken at the size of the image, as the paper says (the release takes it of
the coarse scores); each scale's logits are auxiliary logits, for the release adds their losses
(`auxiliary=1`); new layers start from a Gaussian of 0.01. Batch norm is trained, where the release
keeps it as pretrained. The paper's fully connected CRF comes after the model:
`segzoo predict --crf`.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.by_name import backbone as encoder_by_name
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_positive_int
from segzoo.layers import NormKind
from segzoo.models.aspp import on_grid
from segzoo.models.deeplabv1 import OUTPUT_STRIDE, Classifier, dense_vgg16, score_init
from segzoo.ops.spatial import crop_to, pad_to_grid, resize
from segzoo.registry import register, with_fixed

Array = jax.Array

ASPP_L = (6, 12, 18, 24)
MSC = (0.5, 0.75, 1.0)


class AtrousScore(nn.Module):
    """Dilated 3x3 convolution to float32 scores, its parameters those of a 3x3 `nn.Conv`.

    One matrix product computes what each tap adds, for all positions; shifted by the taps' places,
    the nine maps add up. With few classes that is several times faster than a convolution on CPU,
    and sums in float32 whatever the dtype.

    Attributes:
        num_classes: K.
        rate: positions from one tap to the next.
        dtype: of the products.
    """

    num_classes: int
    rate: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, h, w, C] -> float32 [B, h, w, K]`."""
        classes, rate = self.num_classes, self.rate
        channels, (height, width) = x.shape[-1], x.shape[1:3]
        kernel = self.param("kernel", score_init, (3, 3, channels, classes), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (classes,), jnp.float32)
        taps = kernel.astype(self.dtype).transpose(2, 0, 1, 3).reshape(channels, 9 * classes)
        added = jnp.matmul(x.astype(self.dtype), taps, preferred_element_type=jnp.float32)
        added = jnp.pad(added, [(0, 0), (rate, rate), (rate, rate), (0, 0)])
        scores = bias
        for place in range(9):
            y, x0 = place // 3 * rate, place % 3 * rate
            channel = place * classes
            tap = added[:, y : y + height, x0 : x0 + width, channel : channel + classes]
            scores = scores + tap
        return scores


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the sum of the scores of several fields of view.

    Attributes:
        num_classes: K.
        rates: of the branches.
        hidden: channels of fc6 and fc7 of each branch (VGG), or None for scores alone (ResNet).
        dropout: the rate after fc6 and fc7.
        dtype: of the computation; scores are float32.
        axis_name: the mapped axis of drop-out.
    """

    num_classes: int
    rates: tuple[int, ...] = ASPP_L
    hidden: int | None = None
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C]` -> float32 scores `[B, h, w, K]`."""
        scores = []
        for number, rate in enumerate(self.rates, start=1):
            name = f"branch{number}"
            if self.hidden is None:
                scores.append(AtrousScore(self.num_classes, rate, self.dtype, name=name)(x))
            else:
                classifier = Classifier(
                    self.num_classes,
                    self.hidden,
                    rate=rate,
                    dropout=self.dropout,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=name,
                )
                scores.append(classifier(x, train=train))
        return functools.reduce(jnp.add, scores)


class DeepLabV2(nn.Module):
    """An encoder of output stride 8, ASPP, and the maximum over the scales of the image.

    With several scales, sows the logits of each into `aux_logits`, in the order of `scales`,
    float32 `[B, H, W, K]` at the size of the image.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters, scores and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: an encoder of output stride 8, called once for each scale.
        atrous_rates: of the branches of ASPP.
        hidden: see `ASPP`.
        dropout: see `ASPP`.
        scales: of the image; all share all parameters.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    atrous_rates: tuple[int, ...] = ASPP_L
    hidden: int | None = None
    dropout: float = 0.5
    scales: tuple[float, ...] = (1.0,)

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether drop-out (which needs the "dropout" rng) is active and batch norm uses
                (and updates) batch statistics, once for each scale.

        Returns:
            float32 `[B, H, W, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, 2)
        aspp = ASPP(
            self.num_classes,
            self.atrous_rates,
            self.hidden,
            self.dropout,
            self.dtype,
            self.axis_name,
            name="aspp",
        )

        def at_one_scale(image: Array) -> Array:
            x = pad_to_grid(image, OUTPUT_STRIDE)
            features = self.backbone(x, train=train)[-1]
            aligned = on_grid(features, x, OUTPUT_STRIDE)
            scores = resize(aspp(features, train=train), x.shape[1:3], align_corners=aligned)
            return crop_to(scores, image.shape[1:3])

        size = image.shape[1:3]
        logits = []
        for scale in self.scales:
            # Pixel p of the scaled image is pixel p / scale of the image.
            scaled_size = [max(1, round((n - 1) * scale) + 1) for n in size]
            scaled = resize(image, scaled_size, align_corners=True)
            logits.append(resize(at_one_scale(scaled), size, align_corners=True))
        if len(logits) > 1 and not self.is_initializing():
            for scale_logits in logits:
                self.sow("aux_logits", "logits", scale_logits)
        return functools.reduce(jnp.maximum, logits)


def _check(atrous_rates: object, scales: object) -> None:
    if not isinstance(atrous_rates, tuple | list) or not atrous_rates:
        raise SegzooError(
            f"atrous_rates is {atrous_rates!r}; expected one rate or more, e.g. {ASPP_L}."
        )
    for rate in atrous_rates:
        check_positive_int("a rate of atrous_rates", rate)
    if not isinstance(scales, tuple | list) or not scales:
        raise SegzooError(f"scales is {scales!r}; expected one scale or more, e.g. {MSC}.")
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 4:
            raise SegzooError(
                f"a scale of scales is {scale!r}; expected a number above 0, up to 4."
            )


_PAPER = "arXiv:1606.00915"
_SHAPE = (321, 321, 3)


@register(task="semantic", paper=_PAPER, input_shape=_SHAPE, parameters=37_877_652)
def deeplabv2_vgg16(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    norm: NormKind = "none",
    dropout: float = 0.5,
    atrous_rates: tuple[int, ...] = ASPP_L,
    scales: tuple[float, ...] = (1.0,),
) -> DeepLabV2:
    """DeepLab v2 on VGG-16: four classifiers with fields of view of their own."""
    check_common(num_classes=num_classes, dtype=dtype, norm=norm)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    _check(atrous_rates, scales)
    return DeepLabV2(
        num_classes,
        dtype,
        axis_name,
        dense_vgg16(width, norm, dtype, axis_name),
        tuple(atrous_rates),
        16 * width,
        dropout,
        tuple(scales),
    )


_register_resnet = register(
    task="semantic", paper=_PAPER, input_shape=_SHAPE, parameters=44_048_532
)


@_register_resnet
def deeplabv2_resnet101(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int | None = None,
    backbone: str = "resnet101",
    variant: str | None = None,
    atrous_rates: tuple[int, ...] = ASPP_L,
    scales: tuple[float, ...] = (1.0,),
) -> DeepLabV2:
    """DeepLab v2 on ResNet-101: scores of four fields of view, added.

    Args:
        num_classes: K.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
        width: channels of the encoder's first convolution; None leaves its own.
        backbone: the name of a classifier that can be dilated.
        variant: of the encoder; None is the paper's for a ResNet of bottlenecks, and its own for
            any other. torchvision's weights mean `"torchvision"`.
        atrous_rates: of the branches of ASPP.
        scales: of the image.
    """
    check_common(num_classes=num_classes, dtype=dtype)
    _check(atrous_rates, scales)
    if variant is None and backbone in ("resnet50", "resnet101", "resnet152"):
        variant = "paper"
    chosen = {"width": width, "variant": variant}
    encoder = encoder_by_name(
        backbone,
        dtype=dtype,
        axis_name=axis_name,
        output_stride=OUTPUT_STRIDE,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    return DeepLabV2(
        num_classes, dtype, axis_name, encoder, tuple(atrous_rates), scales=tuple(scales)
    )


deeplabv2_resnet101_msc = _register_resnet(
    with_fixed(
        "deeplabv2_resnet101_msc",
        deeplabv2_resnet101,
        "DeepLab v2 as published: ResNet-101 at three scales, of which the largest score counts.",
        scales=MSC,
    )
)
