"""Fully convolutional networks (Long, Shelhamer & Darrell 2015, arXiv:1411.4038, Figure 3).

VGG-16 with its classifier cast into convolutions, scored at stride 32, and up-sampled by transposed
convolutions that start as bilinear interpolation. FCN-16s adds scores of pool4, FCN-8s also of
pool3; the paper trains each from the coarser one (`from_coarser`). Geometry as in the authors'
released networks: 100 zeros around the image, pools that keep the remainder, and fixed crop
offsets that put every score where its receptive field is centred, so that any image size works.

With `backbone` the construction of section 4 is applied to another net: its maps at strides 32, 16
and 8 are scored, and the scores up-sampled to the grid of the next finer ones and added to them. A
VGG goes through all of the above; other encoders have no fc6 and fc7, and their images no border of
zeros but mirrored ends up to a multiple of the coarsest stride. An encoder whose coarsest map is
finer than the strides asked for is scored there.

Choices: `norm` puts batch norm into VGG, which the paper has not (it is the encoder's, where that
has a choice); all up-convolutions are learnable, as in the paper's text for all but the last; pool
scores are not scaled (the release's "at-once" nets scale them); convolutions start from He's
initialisation where no pretrained weights replace it, and score layers from zero as in the paper.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from segzoo.backbones.vgg import VGG
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError
from segzoo.layers import (
    ConvNormAct,
    ConvTranspose,
    Dropout,
    NormKind,
    Score,
    bilinear_kernel,
    center_crop,
    crop_to,
    resize,
)
from segzoo.models.encoders import build_encoder, encode
from segzoo.ops.windows import crop
from segzoo.registry import register, with_fixed

Array = jax.Array

# Where the image lies in the last up-convolution's output, and where the scores so far lie in
# the pool's: both put receptive fields onto each other, given the 100 pixels of padding.
_IMAGE_OFFSET = {32: 19, 16: 27, 8: 31}
_POOL_OFFSET = {16: 5, 8: 9}


class Upsampling(nn.Module):
    """The decoder: up-sample, add the finer scores, and so on to the size of the image.

    Float32 throughout, there being only K channels.

    Attributes:
        num_classes: K.
        border: whether the scores are VGG's of an image with 100 zeros around it; otherwise every
            map covers the image.
    """

    num_classes: int
    border: bool = True

    @nn.compact
    def __call__(self, scores: dict[int, Array], size: tuple[int, ...]) -> Array:
        """Fuses scores.

        Args:
            scores: by stride, float32 `[B, h, w, K]`: the coarsest and the finer ones to be added.
            size: H and W of the image.

        Returns:
            float32 `[B, H, W, K]`.
        """
        strides = sorted(scores, reverse=True)
        x = scores[strides[0]]
        names = {16: "upscore2", 8: "upscore_pool4"}
        for coarser, finer in itertools.pairwise(strides):
            x = self._up(x, coarser // finer, names[finer])
            if self.border:
                x = x + crop(scores[finer], (_POOL_OFFSET[finer],) * 2, x.shape[1:3])
            else:
                x = resize(x, scores[finer].shape[1:3]) + scores[finer]
        last = strides[-1]
        x = self._up(x, last, f"upscore{last}")
        return crop(x, (_IMAGE_OFFSET[last],) * 2, size) if self.border else resize(x, size)

    def _up(self, x: Array, factor: int, name: str) -> Array:
        up = ConvTranspose(
            self.num_classes,
            (2 * factor, 2 * factor),
            (factor, factor),
            use_bias=False,
            kernel_init=bilinear_kernel,
            name=name,
        )
        # Half a factor on every side lies outside what x covers.
        return up(x) if self.border else center_crop(up(x), [factor * n for n in x.shape[1:3]])


class FCN(nn.Module):
    """FCN-32s, -16s or -8s on a VGG.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters, scores and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: VGG (the paper's is VGG-16) with the paper's padding.
        stride: of the finest scores: 32, 16 or 8.
        hidden: channels of fc6 and fc7.
        dropout: the rate after fc6 and fc7.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: VGG
    stride: int = 8
    hidden: int = 4096
    dropout: float = 0.5

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether drop-out (which needs the "dropout" rng) is active.

        Returns:
            float32 `[B, H, W, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, 2)
        *_, conv3, conv4, _, pool5 = self.backbone(image, train=train)

        x = pool5
        for name, kernel in (("fc6", 7), ("fc7", 1)):
            conv = ConvNormAct(self.hidden, kernel, padding="VALID", dtype=self.dtype, name=name)
            x = conv(x, train=train)
            x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)

        scores = {32: _zero_score(self, x, "score_fr")}
        # The backbone pooled these already; the compiler merges equal computations.
        if self.stride <= 16:
            scores[16] = _zero_score(self, self.backbone.pool(conv4), "score_pool4")
        if self.stride <= 8:
            scores[8] = _zero_score(self, self.backbone.pool(conv3), "score_pool3")
        return Upsampling(self.num_classes, name="upsampling")(scores, image.shape[1:3])


class EncoderFCN(nn.Module):
    """FCN-32s, -16s or -8s on any encoder.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters, scores and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: the encoder, `(image, *, train) -> maps`.
        stride: of the finest scores: 32, 16 or 8.
        dropout: the rate before the coarsest scores.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    stride: int = 8
    dropout: float = 0.0

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
        maps, padded = encode(self.backbone, image, train=train)
        last_of = dict(zip(self.backbone.reductions, maps, strict=True))
        coarsest = max(last_of)
        x = Dropout(self.dropout, self.axis_name)(last_of[coarsest], deterministic=not train)
        scores = {coarsest: _zero_score(self, x, "score_fr")}
        for reduction in (16, 8):
            if self.stride <= reduction < coarsest and reduction in last_of:
                # The paper's names: pool3 lies at stride 8.
                name = {16: "score_pool4", 8: "score_pool3"}[reduction]
                scores[reduction] = _zero_score(self, last_of[reduction], name)
        logits = Upsampling(self.num_classes, border=False, name="upsampling")(scores, padded)
        return crop_to(logits, image.shape[1:3])


def _zero_score(model: FCN | EncoderFCN, x: Array, name: str) -> Array:
    zeros = nn.initializers.zeros_init()
    return Score(model.num_classes, model.dtype, zeros, name=name)(x)


def from_coarser(params: Mapping[str, Any], coarser: Mapping[str, Any]) -> dict[str, Any]:
    """Initialises a finer net from a trained coarser one, as the paper does (section 4.2).

    What both have is copied. New score layers are zero, so that the finer net starts with the
    coarser one's predictions; new up-convolutions are bilinear. The coarser net's last
    up-convolution falls away.

    Args:
        params: parameters of FCN-16s or FCN-8s; only names, shapes and dtypes are used, so
            `jax.eval_shape` of `init` will do.
        coarser: parameters of FCN-32s or FCN-16s.

    Returns:
        Parameters for the finer net.

    Raises:
        SegzooError: when tensors of the coarser net are misshapen for the finer one or unknown to
            it; all are listed.
    """
    target = flax.traverse_util.flatten_dict(params, sep="/")
    source = flax.traverse_util.flatten_dict(coarser, sep="/")
    problems = []
    for name, value in source.items():
        if name in target and target[name].shape != value.shape:
            problems.append(f"{name} {tuple(value.shape)} (expected {tuple(target[name].shape)})")
        elif name not in target and not name.startswith("upsampling/upscore"):
            problems.append(f"{name} {tuple(value.shape)} (unknown)")
    missing = [name for name in target if name not in source and not name.startswith(_NEW)]
    problems += [f"{name} (missing)" for name in missing]
    if problems:
        raise SegzooError(
            f"the coarser net's parameters do not fit the finer net: {', '.join(problems)}."
        )
    result = {}
    for name, like in target.items():
        if name in source:
            result[name] = source[name]
        elif name.startswith("upsampling/"):
            result[name] = bilinear_kernel(jax.random.key(0), like.shape, like.dtype)
        else:
            result[name] = jnp.zeros(like.shape, like.dtype)
    return flax.traverse_util.unflatten_dict(result, sep="/")


# What a finer net may have that the coarser one has not.
_NEW = ("score_pool", "upsampling/upscore")


def _fcn(
    stride: int = 8,
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str | None = None,
    width: int | None = None,
    norm: NormKind | None = None,
    dropout: float | None = None,
) -> FCN | EncoderFCN:
    check_common(num_classes=num_classes, dtype=dtype, norm=norm or "none")
    encoder = build_encoder(backbone or "vgg16", width, dtype=dtype, axis_name=axis_name)
    if norm is not None:
        if not hasattr(encoder, "norm"):
            raise SegzooError(f"norm is {norm!r}; it cannot be chosen for backbone {backbone!r}.")
        encoder = encoder.clone(norm=norm)
    if dropout is None:
        dropout = 0.5 if isinstance(encoder, VGG) else 0.0
    check_rate("dropout", dropout)
    if not isinstance(encoder, VGG):
        return EncoderFCN(num_classes, dtype, axis_name, encoder, stride, dropout)
    vgg = encoder.clone(first_padding=100, ceil_mode=True)
    return FCN(num_classes, dtype, axis_name, vgg, stride, 64 * vgg.width, dropout)


def _of_stride(stride: int, parameters: int, summary: str) -> Callable[..., FCN]:
    paper, shape = "arXiv:1411.4038", (500, 500, 3)
    builder = with_fixed(f"fcn{stride}s", _fcn, summary, stride=stride)
    return register(task="semantic", paper=paper, input_shape=shape, parameters=parameters)(builder)


fcn32s = _of_stride(32, 136_152_917, "FCN-32s: VGG-16 scored at stride 32 and up-sampled at once.")
fcn16s = _of_stride(16, 134_815_994, "FCN-16s: scores at stride 32, refined by those of pool4.")
fcn8s = _of_stride(
    8, 134_489_759, "FCN-8s: scores at stride 32, refined by those of pool4 and pool3."
)
