"""DeepLab (Chen et al. 2015, arXiv:1412.7062): VGG-16 with holes, scored at every 8th pixel.

The last two pools keep the resolution, conv5 and the classifier, cast into convolutions, have holes
instead (section 3.1), so the weights of the classification network keep their meaning. fc6 may be
cut down to fewer taps with larger holes (section 3.2); `FIELDS_OF_VIEW` has the four of the tables,
of which 3x3 taps at rate 12 are LargeFOV. The multi-scale network (section 4.3) adds the scores of
a small perceptron on the image and on each of the first four pools.

The geometry is the released networks': 3x3 pools with a pixel of padding, for all four fields of
view (the release has 2x2 pools in its first networks), and with LargeFOV an average pool before
fc6. Score i lies on pixel 8 i: images are filled up at their ends with zeros, their mean, to
8 k + 1 pixels, and the scores interpolated back and cropped, so any size works.

Choices: scores of several scales are added, as in the release, which is the paper's concatenation
before a last 1x1 convolution; they are added at the size of the image, as the release does to
predict, where it trains on every 8th pixel alone. New layers start as in the release (Gaussian,
0.01 for scores, 0.001 for the perceptrons, on top of a trained network), all others from He's
initialisation. `norm` puts batch norm into VGG, which the paper has not. The paper's fully
connected CRF comes after the model: `segzoo predict --crf`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.vgg import VGG
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_bool, check_choice, check_positive_int
from segzoo.initializers import gaussian
from segzoo.layers import Conv, ConvNormAct, Dropout, NormKind, Score
from segzoo.ops.spatial import crop_to, pad_to_grid, resize
from segzoo.registry import register, with_fixed

Array = jax.Array

OUTPUT_STRIDE = 8
score_init = gaussian(0.01)
perceptron_init = gaussian(0.001)


class FieldOfView(NamedTuple):
    """What of fc6 is kept.

    Attributes:
        kernel: taps of fc6 along an axis.
        rate: positions from one tap to the next.
        hidden: channels of fc6 and fc7 per channel of the first convolution.
        average: whether the features are averaged over 3x3 positions before fc6.
    """

    kernel: int
    rate: int
    hidden: int
    average: bool = False


FieldName = Literal["large", "small", "4x4", "7x7"]
FIELDS_OF_VIEW: dict[FieldName, FieldOfView] = {
    "large": FieldOfView(3, 12, 16, average=True),
    "small": FieldOfView(4, 4, 64),
    "4x4": FieldOfView(4, 8, 64),
    "7x7": FieldOfView(7, 4, 64),
}


class Classifier(nn.Module):
    """fc6, fc7 and fc8: VGG's classifier at every position, fc6 with holes.

    Attributes:
        num_classes: K.
        hidden: channels of fc6 and fc7.
        kernel: taps of fc6 along an axis.
        rate: positions from one tap of fc6 to the next.
        dropout: the rate after fc6 and fc7.
        dtype: of the computation; scores are float32.
        axis_name: the mapped axis of drop-out.
    """

    num_classes: int
    hidden: int
    kernel: int = 3
    rate: int = 12
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C]` -> float32 scores `[B, h, w, K]`."""
        for name, kernel, rate in (("fc6", self.kernel, self.rate), ("fc7", 1, 1)):
            conv = ConvNormAct(self.hidden, kernel, dilation=rate, dtype=self.dtype, name=name)
            x = Dropout(self.dropout, self.axis_name)(conv(x, train=train), deterministic=not train)
        return Score(self.num_classes, self.dtype, score_init, name="score")(x)


class Perceptron(nn.Module):
    """The direct path of one scale to the scores: 3x3 and 1x1 convolutions, then scores.

    Attributes:
        num_classes: K.
        features: channels of both layers, 128 in the paper.
        dropout: the rate after each.
        dtype: of the computation; scores are float32.
        axis_name: the mapped axis of drop-out.
    """

    num_classes: int
    features: int = 128
    dropout: float = 0.5
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C]` -> float32 scores `[B, h, w, K]`."""
        for name, kernel in (("conv", 3), ("fc", 1)):
            conv = Conv(
                self.features,
                (kernel, kernel),
                kernel_init=perceptron_init,
                dtype=self.dtype,
                name=name,
            )
            x = Dropout(self.dropout, self.axis_name)(nn.relu(conv(x)), deterministic=not train)
        return Score(self.num_classes, self.dtype, score_init, name="score")(x)


class DeepLabV1(nn.Module):
    """DeepLab on VGG-16, with one field of view or, `multi_scale`, with finer features besides.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters, scores and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: VGG-16 of output stride 8 with 3x3 pools.
        field_of_view: of fc6.
        multi_scale: whether perceptrons on the image and the first four pools add their scores.
        dropout: the rate after every hidden layer of classifier and perceptrons.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: VGG
    field_of_view: FieldOfView = FIELDS_OF_VIEW["large"]
    multi_scale: bool = False
    dropout: float = 0.5

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether drop-out (which needs the "dropout" rng) is active, and batch norm, if
                any, uses batch statistics.

        Returns:
            float32 `[B, H, W, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, 2)
        shared = {"dropout": self.dropout, "dtype": self.dtype, "axis_name": self.axis_name}
        x = pad_to_grid(image, OUTPUT_STRIDE)
        *features, _, pool5 = self.backbone(x, train=train)

        field, width = self.field_of_view, self.backbone.width
        if field.average:
            pool5 = nn.avg_pool(pool5, (3, 3), padding=((1, 1), (1, 1)))
        classifier = Classifier(
            self.num_classes,
            field.hidden * width,
            field.kernel,
            field.rate,
            **shared,
            name="classifier",
        )
        logits = resize(classifier(pool5, train=train), x.shape[1:3], align_corners=True)

        if self.multi_scale:
            scales = {"image": x}
            for number, (conv, stride) in enumerate(zip(features, (2, 2, 2, 1), strict=True), 1):
                # The backbone pooled these already; the compiler merges equal computations.
                scales[f"pool{number}"] = self.backbone.pool(conv, stride)
            for name, scale in scales.items():
                perceptron = Perceptron(self.num_classes, 2 * width, **shared, name=f"{name}_ms")
                scores = perceptron(scale, train=train)
                logits += resize(scores, x.shape[1:3], align_corners=True)
        return crop_to(logits, image.shape[1:3])


_PAPER = "arXiv:1412.7062"
_SHAPE = (321, 321, 3)


@register(task="semantic", paper=_PAPER, input_shape=_SHAPE, parameters=20_505_429)
def deeplabv1(
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    norm: NormKind = "none",
    dropout: float = 0.5,
    field_of_view: FieldName = "large",
    multi_scale: bool = False,
) -> DeepLabV1:
    """DeepLab-LargeFOV: VGG-16 with holes, 3x3 taps of rate 12 in fc6."""
    check_common(num_classes=num_classes, dtype=dtype, norm=norm)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    check_choice("field_of_view", field_of_view, get_args(FieldName))
    check_bool("multi_scale", multi_scale)
    field = FIELDS_OF_VIEW[field_of_view]
    backbone = dense_vgg16(width, norm, dtype, axis_name)
    return DeepLabV1(num_classes, dtype, axis_name, backbone, field, multi_scale, dropout)


def dense_vgg16(width: int, norm: NormKind, dtype: Any, axis_name: str | None) -> VGG:
    """VGG-16 as DeepLab has it: output stride 8, and pools centred on a pixel."""
    return VGG(
        width=width,
        norm=norm,
        dtype=dtype,
        axis_name=axis_name,
        output_stride=OUTPUT_STRIDE,
        pool_size=3,
    )


def _variant(name: str, parameters: int, summary: str, **fixed: Any) -> Callable[..., DeepLabV1]:
    builder = with_fixed(name, deeplabv1, summary, **fixed)
    return register(task="semantic", paper=_PAPER, input_shape=_SHAPE, parameters=parameters)(
        builder
    )


deeplabv1_small = _variant(
    "deeplabv1_small",
    65_140_565,
    "DeepLab: 4x4 taps of rate 4 in fc6, a field of view of 128 pixels.",
    field_of_view="small",
)
deeplabv1_4x4 = _variant(
    "deeplabv1_4x4",
    65_140_565,
    "DeepLab-4x4: 4x4 taps of rate 8 in fc6, a field of view of 224 pixels.",
    field_of_view="4x4",
)
deeplabv1_7x7 = _variant(
    "deeplabv1_7x7",
    134_346_581,
    "DeepLab-7x7: all 7x7 taps of fc6, at rate 4, a field of view of 224 pixels.",
    field_of_view="7x7",
)
deeplabv1_msc = _variant(
    "deeplabv1_msc",
    21_711_550,
    "DeepLab-MSc-LargeFOV: with scores of the image and of the first four pools.",
    multi_scale=True,
)
