"""Fully convolutional networks (Long, Shelhamer & Darrell 2015, arXiv:1411.4038, Figure 3).

VGG-16 with its classifier cast into convolutions, scored at stride 32, and up-sampled by transposed
convolutions that start as bilinear interpolation. FCN-16s adds scores of pool4, FCN-8s also of
pool3; the paper trains each from the coarser one (`from_coarser`). Geometry as in the authors'
released networks: 100 zeros around the image, pools that keep the remainder, and fixed crop
offsets that put every score where its receptive field is centred, so that any image size works.

Choices: `norm` puts batch norm into VGG, which the paper has not; all up-convolutions are
learnable, as in the paper's text for all but the last; pool scores are not scaled (the release's
"at-once" nets scale them); convolutions start from He's initialisation where no pretrained weights
replace it, and score layers from zero as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from segzoo.backbones.vgg import VGG
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_positive_int
from segzoo.layers import (
    ConvNormAct,
    ConvTranspose,
    Dropout,
    NormKind,
    Score,
    bilinear_kernel,
)
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
    """

    num_classes: int

    @nn.compact
    def __call__(self, scores: dict[int, Array], size: tuple[int, ...]) -> Array:
        """Fuses scores.

        Args:
            scores: by stride, float32 `[B, h, w, K]`: 32 and the finer ones to be added.
            size: H and W of the image.

        Returns:
            float32 `[B, H, W, K]`.
        """
        strides = sorted(scores, reverse=True)
        x = scores[strides[0]]
        names = {16: "upscore2", 8: "upscore_pool4"}
        for finer in strides[1:]:
            x = self._up(x, 2, names[finer])
            x = x + _window(scores[finer], _POOL_OFFSET[finer], x.shape[1:3])
        last = strides[-1]
        return _window(self._up(x, last, f"upscore{last}"), _IMAGE_OFFSET[last], size)

    def _up(self, x: Array, factor: int, name: str) -> Array:
        return ConvTranspose(
            self.num_classes,
            (2 * factor, 2 * factor),
            (factor, factor),
            use_bias=False,
            kernel_init=bilinear_kernel,
            name=name,
        )(x)


def _window(x: Array, offset: int, size: tuple[int, ...]) -> Array:
    return x[:, offset : offset + size[0], offset : offset + size[1]]


class FCN(nn.Module):
    """FCN-32s, -16s or -8s on VGG-16.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters, scores and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: VGG-16 with the paper's padding.
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

        scores = {32: self._score(x, "score_fr")}
        # The backbone pooled these already; the compiler merges equal computations.
        if self.stride <= 16:
            scores[16] = self._score(self.backbone.pool(conv4), "score_pool4")
        if self.stride <= 8:
            scores[8] = self._score(self.backbone.pool(conv3), "score_pool3")
        return Upsampling(self.num_classes, name="upsampling")(scores, image.shape[1:3])

    def _score(self, x: Array, name: str) -> Array:
        return Score(self.num_classes, self.dtype, nn.initializers.zeros_init(), name=name)(x)


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
    width: int = 64,
    norm: NormKind = "none",
    dropout: float = 0.5,
) -> FCN:
    check_common(num_classes=num_classes, dtype=dtype, norm=norm)
    check_positive_int("width", width)
    check_rate("dropout", dropout)
    backbone = VGG(
        width=width,
        norm=norm,
        first_padding=100,
        ceil_mode=True,
        dtype=dtype,
        axis_name=axis_name,
    )
    return FCN(num_classes, dtype, axis_name, backbone, stride, 64 * width, dropout)


def _of_stride(stride: int, parameters: int, summary: str) -> Callable[..., FCN]:
    paper, shape = "arXiv:1411.4038", (500, 500, 3)
    builder = with_fixed(f"fcn{stride}s", _fcn, summary, stride=stride)
    return register(task="semantic", paper=paper, input_shape=shape, parameters=parameters)(builder)


fcn32s = _of_stride(32, 136_152_917, "FCN-32s: VGG-16 scored at stride 32 and up-sampled at once.")
fcn16s = _of_stride(16, 134_815_994, "FCN-16s: scores at stride 32, refined by those of pool4.")
fcn8s = _of_stride(
    8, 134_489_759, "FCN-8s: scores at stride 32, refined by those of pool4 and pool3."
)
