"""VGG (Simonyan & Zisserman 2015, arXiv:1409.1556, Table 1): stages of 3x3 convolutions and pools.

Columns A, B, D and E: VGG-11, -13, -16 and -19. Batch norm, which the paper has not, is the usual
later addition (`norm="batch"`); the convolutions before it keep their biases, as in the released
weights. Images of any size are classified: the last features are averaged to the 7x7 of the paper's
224x224 images, and an axis of one pixel is pooled no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.classifier import OUTPUT_STRIDES, DenseClassifier, dilate
from segzoo.checks import check_common, check_rate
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import ConvNormAct, NormKind, max_pool
from segzoo.ops.pooling import dilated_max_pool
from segzoo.registry import register

Array = jax.Array

# Convolutions in each of the five stages, by the number of layers with weights.
STAGES: dict[int, tuple[int, ...]] = {
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}
COLUMNS = {11: "A", 13: "B", 16: "D", 19: "E"}
PLACES = 7  # of pool5, along both axes of the paper's images


class VGG(nn.Module):
    """The convolutional part of VGG.

    Attributes:
        depth: 11, 13, 16 or 19, the layers with weights, the classifier's three included.
        width: channels of the first stage, 64 in the paper; the others have 2, 4, 8 and 8 times as
            many.
        norm: "none" (the paper), "batch" or "group".
        first_padding: zeros around the image at the first convolution; 1 keeps the size.
        ceil_mode: whether a pool keeps the remainder of an odd size (Caffe) or drops it.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
        output_stride: 32 (the paper); at 16 or 8 the last pools have stride 1, and what follows is
            dilated.
        pool_size: 2 (the paper), or DeepLab's 3: windows are centred on a pixel, border pixels
            included, at either stride, and their taps stay side by side where convolutions dilate.
    """

    depth: int = 16
    width: int = 64
    norm: NormKind = "none"
    first_padding: int = 1
    ceil_mode: bool = False
    dtype: Any = jnp.float32
    axis_name: str | None = None
    output_stride: int = 32
    pool_size: int = 2

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return tuple(min(r, self.output_stride) for r in (1, 2, 4, 8, 16, 32))

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions of each stage."""
        return tuple(
            tuple(f"conv{stage}_{i}" for i in range(1, convs + 1))
            for stage, convs in enumerate(STAGES[self.depth], start=1)
        )

    def pool(self, x: Array, stride: int = 2, dilation: int = 1) -> Array:
        """The max-pool between stages, a 2x2 one's taps `dilation` pixels apart at stride 1."""
        if self.pool_size == 3:
            if stride == 1:
                edges = [(0, 0), (1, 1), (1, 1), (0, 0)]
                return dilated_max_pool(jnp.pad(x, edges, constant_values=-jnp.inf), (3, 3))
            return max_pool(x, (3, 3), (stride, stride), padding=((1, 1), (1, 1)))
        if stride == 1:
            return dilated_max_pool(x, (2, 2), dilation, keep_size=True)
        window = [min(2, size) for size in x.shape[1:3]]
        return max_pool(x, window, padding="SAME" if self.ceil_mode else "VALID")

    @nn.compact
    def __call__(self, image: Array, *, train: bool) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            The last map of each stage before its pool (conv1_2, conv2_2, conv3_3, conv4_3 and
            conv5_3 for VGG-16), then pool5: six maps, finest first.
        """
        features = []
        # The stride of the pool before each map (none before the first), and the map's dilation.
        geometry = dilate((1, 2, 2, 2, 2, 2), self.output_stride)
        x = image
        for stage, names in enumerate(self.stages):
            _, dilation = geometry[stage]
            for name in names:
                pad = self.first_padding if name == "conv1_1" else dilation
                x = ConvNormAct(
                    self.width * min(2**stage, 8),
                    dilation=dilation,
                    padding=((pad, pad), (pad, pad)),
                    norm=self.norm,
                    use_bias=True,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=name,
                )(x, train=train)
            features.append(x)
            x = self.pool(x, geometry[stage + 1][0], dilation)
        return (*features, x)


def _builder(
    depth: int, norm: NormKind, parameters: int, gmacs: float
) -> Callable[..., DenseClassifier]:
    """Registers one network under its usual name and returns its builder."""

    def build(
        num_classes: int = 1000,
        dtype: Any = jnp.float32,
        axis_name: str | None = None,
        width: int = 64,
        output_stride: int = 32,
        dropout: float = 0.5,
    ) -> DenseClassifier:
        check_common(num_classes=num_classes, dtype=dtype)
        check_positive_int("width", width)
        check_choice("output_stride", output_stride, OUTPUT_STRIDES)
        check_rate("dropout", dropout)
        backbone = VGG(
            depth, width, norm, dtype=dtype, axis_name=axis_name, output_stride=output_stride
        )
        return DenseClassifier(backbone, num_classes, dtype, axis_name, PLACES, 64 * width, dropout)

    column, batch_norm = COLUMNS[depth], norm == "batch"
    build.__name__ = build.__qualname__ = f"vgg{depth}" + "_bn" * batch_norm
    build.__doc__ = f"VGG-{depth}, column {column} of Table 1{', with batch norm' * batch_norm}."
    return register(
        task="classification", paper="arXiv:1409.1556", parameters=parameters, gmacs=gmacs
    )(build)


vgg11 = _builder(11, "none", 132_863_336, 7.609)
vgg13 = _builder(13, "none", 133_047_848, 11.308)
vgg16 = _builder(16, "none", 138_357_544, 15.470)
vgg19 = _builder(19, "none", 143_667_240, 19.632)
vgg11_bn = _builder(11, "batch", 132_868_840, 7.609)
vgg13_bn = _builder(13, "batch", 133_053_736, 11.308)
vgg16_bn = _builder(16, "batch", 138_365_992, 15.470)
vgg19_bn = _builder(19, "batch", 143_678_248, 19.632)
