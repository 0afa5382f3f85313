"""torchvision's FCN: a dilated ResNet and one small head (`fcn_resnet50`, `fcn_resnet101`).

What became of arXiv:1411.4038 once encoders could keep their resolution: ResNet at output stride 8
by dilation, a 3x3 convolution to a quarter of its channels, scores, and bilinear interpolation,
without skips. A second head of the same kind, on the features before the last stage, has a loss of
its own in training, which torchvision's recipe weights by 0.5. All as in torchvision 0.28, whose
weights fit: images of any size as they are, interpolation by the borders of pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.resnet import ResNet
from segzoo.checks import check_common, check_rate
from segzoo.errors import check_choice
from segzoo.layers import ConvNormAct, Dropout, Score, resize
from segzoo.registry import register, with_fixed

Array = jax.Array


class FCNHead(nn.Module):
    """3x3 convolution to a quarter of the channels, norm, ReLU, drop-out, scores.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and scores are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        dropout: the rate before the scores.
    """

    num_classes: int
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.1

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, h, w, C] -> float32 [B, h, w, K]`."""
        conv = ConvNormAct(
            max(1, x.shape[-1] // 4),
            norm="batch",
            dtype=self.dtype,
            axis_name=self.axis_name,
            name="conv",
        )
        x = Dropout(self.dropout, self.axis_name)(conv(x, train=train), deterministic=not train)
        return Score(self.num_classes, self.dtype, name="score")(x)


class DilatedSegmenter(nn.Module):
    """An encoder, a head on its last features, and `FCNHead` on those before for training.

    The auxiliary logits are sown into `aux_logits`, float32 `[B, H, W, K]`, when the caller makes
    that collection mutable; otherwise they are not computed.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        backbone: `(image, *, train) -> features`, finest first.
        aux_loss: whether there is an auxiliary head.
        dropout: the rate in the head.
    """

    num_classes: int
    dtype: Any
    axis_name: str | None
    backbone: nn.Module
    aux_loss: bool = True
    dropout: float = 0.1

    def head(self) -> nn.Module:
        """Returns `(features, *, train) -> scores` by the name "head"."""
        raise NotImplementedError

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
        *_, inner, last = self.backbone(image, train=train)
        size = image.shape[1:3]
        if self.aux_loss and (self.is_initializing() or self.is_mutable_collection("aux_logits")):
            head = FCNHead(self.num_classes, self.dtype, self.axis_name, name="aux")
            auxiliary = resize(head(inner, train=train), size)
            if not self.is_initializing():  # or `init` would return them among the variables
                self.sow("aux_logits", "logits", auxiliary)
        return resize(self.head()(last, train=train), size)


class FCNResNet(DilatedSegmenter):
    """FCN on a dilated ResNet. Fields: see `DilatedSegmenter`."""

    def head(self) -> nn.Module:
        """Returns FCN's head, of the kind the auxiliary one is."""
        return FCNHead(self.num_classes, self.dtype, self.axis_name, self.dropout, name="head")


def _fcn_resnet(
    depth: int = 50,
    num_classes: int = 21,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = 64,
    aux_loss: bool = True,
    dropout: float = 0.1,
) -> FCNResNet:
    check_common(num_classes=num_classes, dtype=dtype)
    check_choice("aux_loss", aux_loss, (True, False))
    check_rate("dropout", dropout)
    backbone = ResNet(depth, width, output_stride=8, dtype=dtype, axis_name=axis_name)
    return FCNResNet(num_classes, dtype, axis_name, backbone, aux_loss, dropout)


def _of_depth(depth: int, parameters: int, gmacs: float) -> Callable[..., FCNResNet]:
    summary = f"torchvision's FCN: ResNet-{depth} at stride 8, one head and an auxiliary one."
    builder = with_fixed(f"fcn_resnet{depth}", _fcn_resnet, summary, depth=depth)
    paper, shape = "arXiv:1411.4038", (520, 520, 3)
    registered = register(
        task="semantic", paper=paper, input_shape=shape, parameters=parameters, gmacs=gmacs
    )
    return registered(builder)


# torchvision counts 152.717 and 232.738 with the auxiliary head, which inference does not run.
fcn_resnet50 = _of_depth(50, 35_322_218, 142.726)
fcn_resnet101 = _of_depth(101, 54_314_346, 222.747)
