"""What U-Net and its descendants are made of: pairs of convolutions, and ways to up-sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.layers import ConvNormAct, ConvTranspose, NormKind, resize
from segzoo.ops.spatial import resize_nearest

Array = jax.Array
UpsampleKind = Literal["transpose", "bilinear", "nearest"]
UPSAMPLE: tuple[UpsampleKind, ...] = get_args(UpsampleKind)


class DoubleConv(nn.Module):
    """Two 3x3 convolutions, each with its ReLU."""

    features: int
    padding: str = "SAME"
    norm: NormKind = "none"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, *S, C] -> [B, *S, features]`, under "VALID" four pixels smaller."""
        for name in ("conv1", "conv2"):
            x = ConvNormAct(
                self.features,
                padding=self.padding,
                norm=self.norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )(x, train=train)
        return x


class Upsample(nn.Module):
    """Up-samples to the size of the level above.

    Attributes:
        kind: "transpose", an up-convolution whose kernel and stride are the factor; "bilinear" or
            "nearest", interpolation alone.
        features: output channels of the up-convolution.
        factor: between the levels; with 1 there is no up-convolution.
        dtype: of the computation.
    """

    kind: UpsampleKind
    features: int
    factor: int = 2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, size: Sequence[int]) -> Array:
        """`[B, *S, C] -> [B, *size, C]`, of an up-convolution `[B, *size, features]`.

        Where `size` is not `factor` times `S`, the up-convolution is interpolated to it.
        """
        if self.kind == "nearest":
            return resize_nearest(x, size)
        if self.kind == "transpose" and self.factor > 1:
            window = (self.factor,) * (x.ndim - 2)
            up = ConvTranspose(self.features, window, dtype=self.dtype)
            nn.share_scope(self, up)  # one level in the tree of parameters, not two
            x = up(x)
        return resize(x, size)
