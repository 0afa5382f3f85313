"""Attention U-Net (Oktay et al. 2018, arXiv:1804.03999, Figures 1 and 2).

A U-Net whose skips pass additive attention gates: the coarser decoder features say where to look,
and the rest of the skip is scaled towards zero. The finest skip has no gate, its features being
too shallow to be told apart. Batch norm, interpolation instead of up-convolutions, and heads at
every scale whose logits a last 1x1 convolution combines, are as the authors have them.

With `spatial_dims=3, width=16` the network without gates is the paper's U-Net (5.88 million
parameters; `unet` with `norm="batch", upsample="bilinear"` here), and with `gates=2` its Attention
U-Net (6.40 million). The default width is 64 rather than the paper's 16, which 3-D volumes
dictated: in 2-D it makes the network comparable with `unet`.

With `backbone` an encoder takes the place of the contracting path; its finest map has no gate, and
levels finer than that no skip. Where a skip's grid is not twice that of its gating signal, W_x
reaches over its end, and the signal is interpolated to W_x's grid.

Where the paper leaves a choice, the published parameter count decides: W_x is a 2x2(x2)
convolution of stride 2 with as many output channels as the skip has, and the coarsest gating
signal is the lowest level's output itself.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_common, check_image
from segzoo.errors import check_bool, check_positive_int
from segzoo.layers import (
    Conv,
    ConvNormAct,
    NormKind,
    Score,
    crop_to,
    max_pool,
    pad_to_multiple,
    resize,
)
from segzoo.models.encoders import (
    build_encoder,
    encode,
    in_proportion,
    refuse_with_encoder,
    with_finer_levels,
)
from segzoo.models.unet_encoder import DECODER_WIDTH
from segzoo.models.unet_parts import DoubleConv
from segzoo.registry import register

Array = jax.Array


class AttentionGate(nn.Module):
    """Additive attention gate (equations 1 and 2): scales a skip by where the gating signal looks.

        q = psi^T relu(W_x^T x + W_g^T g + b_g) + b_psi,    alpha = sigmoid(q)

    on the grid of the gating signal; alpha is then interpolated to the grid of the skip.

    Attributes:
        dtype: of the computation; alpha is float32.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, skip: Array, gating: Array) -> tuple[Array, Array]:
        """Gates a skip.

        Args:
            skip: x, `[B, *2S, C]`; of another size too.
            gating: g, `[B, *S, G]`.

        Returns:
            `alpha * x`, `[B, *2S, C]`, and alpha, float32 `[B, *2S, 1]`.
        """
        rank, channels = skip.ndim - 2, skip.shape[-1]
        query = Conv(
            channels,
            (2,) * rank,
            strides=2,
            use_bias=False,
            dtype=self.dtype,
            name="w_x",
        )(skip)
        signal = Conv(channels, (1,) * rank, dtype=self.dtype, name="w_g")(gating)
        query += resize(signal, query.shape[1:-1])
        coarse = nn.sigmoid(Score(1, self.dtype, name="psi")(nn.relu(query)))
        alpha = resize(coarse, skip.shape[1:-1])
        return alpha.astype(self.dtype) * skip, alpha


class GatedSkip(nn.Module):
    """One gate, or several side by side ("multi-dimensional attention coefficients").

    Several gates can look at different structures; what each lets through is mapped by a 1x1
    convolution, and another brings all of it back to the channels of the skip.

    Attributes:
        gates: how many; with one the result is `alpha * skip` itself.
        norm: see `Norm`.
        dtype: of the computation.
        axis_name: see `Norm`.
    """

    gates: int = 1
    norm: NormKind = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, skip: Array, gating: Array, *, train: bool) -> tuple[Array, Array]:
        """`[B, *2S, C]`, `[B, *S, G]` -> gated `[B, *2S, C]`, alphas float32 `[B, *2S, gates]`."""

        def conv1x1(name: str, activation: Any) -> ConvNormAct:
            return ConvNormAct(
                skip.shape[-1],
                kernel_size=1,
                norm=self.norm,
                activation=activation,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=name,
            )

        gated, alphas = [], []
        for i in range(self.gates):
            scaled, alpha = AttentionGate(self.dtype, name=f"gate{i}")(skip, gating)
            if self.gates > 1:
                scaled = conv1x1(f"transform{i}", lambda y: y)(scaled, train=train)
            gated.append(scaled)
            alphas.append(alpha)
        if self.gates == 1:
            return gated[0], alphas[0]
        merged = conv1x1("combine", nn.relu)(jnp.concatenate(gated, axis=-1), train=train)
        return merged, jnp.concatenate(alphas, axis=-1)


class AttentionUNet(nn.Module):
    """Attention U-Net for 2-D and 3-D images.

    Sows the attention of each gated skip into `intermediates` as `attention`, coarsest first,
    float32 `[B, *S', gates]` on the grid of the skip (of the padded image), and with
    `deep_supervision` each scale's logits into `aux_logits`, finest first, float32 `[B, *S, K]` at
    the size of the image.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm.
        width: channels of the decoder (and without an encoder of the contracting path) at full
            resolution; each coarser level doubles them.
        depth: number of down steps, 4 in the paper; at least 2, so that a skip is gated. An encoder
            has its own.
        spatial_dims: 2 or 3.
        norm: "none", "batch" (the paper) or "group"; not the encoder's.
        gates: per skip; 2 in the paper's tables.
        deep_supervision: combine the logits of every scale of the decoder, or take the finest.
        backbone: an encoder in place of the contracting path.
    """

    num_classes: int = 2
    dtype: Any = jnp.float32
    axis_name: str | None = None
    width: int = 64
    depth: int = 4
    spatial_dims: int = 2
    norm: NormKind = "batch"
    gates: int = 1
    deep_supervision: bool = True
    backbone: nn.Module | None = None

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, *S, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.

        Returns:
            float32 `[B, *S, K]`.

        Raises:
            SegzooError: for an image of another rank.
        """
        check_image(image, self.spatial_dims)
        shared = {"norm": self.norm, "dtype": self.dtype, "axis_name": self.axis_name}
        finest = 0  # level of the finest skip
        if self.backbone is None:
            x = pad_to_multiple(image, 2**self.depth)
            padded = x.shape[1:-1]
            skips = self._contract(x, train=train, **shared)
        else:
            maps, padded = encode(self.backbone, image, train=train)
            skips = with_finer_levels(self.backbone, maps, padded)
            finest = len(skips) - len(maps)

        scales = {}
        x = skips[-1]
        for level in reversed(range(len(skips) - 1)):
            skip = skips[level]
            if level > finest:
                gate = GatedSkip(self.gates, name=f"gated{level}", **shared)
                skip, attention = gate(skip, x, train=train)
                self.sow("intermediates", "attention", attention)
            x = jnp.concatenate([skip, resize(x, skip.shape[1:-1])], axis=-1)
            x = DoubleConv(self.width * 2**level, name=f"up{level}", **shared)(x, train=train)
            scales[level] = x

        if not self.deep_supervision:
            logits = resize(Score(self.num_classes, self.dtype, name="score")(x), padded)
            return crop_to(logits, image.shape[1:-1])
        # A 1x1 convolution and an interpolation commute; the coarse grid is the cheaper place.
        heads = []
        for level in sorted(scales):
            score = Score(self.num_classes, self.dtype, name=f"score{level}")(scales[level])
            heads.append(crop_to(resize(score, padded), image.shape[1:-1]))
            if not self.is_initializing():  # or `init` would return them among the variables
                self.sow("aux_logits", "logits", heads[-1])
        return Score(self.num_classes, jnp.float32, name="combine")(jnp.concatenate(heads, -1))

    def _contract(self, x: Array, *, train: bool, **shared: Any) -> tuple[Array, ...]:
        """The paper's contracting path: the features of every level, finest first."""
        features = []
        for level in range(self.depth + 1):
            if level > 0:
                x = max_pool(x, (2,) * self.spatial_dims)
            x = DoubleConv(self.width * 2**level, name=f"down{level}", **shared)(x, train=train)
            features.append(x)
        return tuple(features)


@register(task="semantic", paper="arXiv:1804.03999", input_shape=(256, 256, 3))
def attention_unet(
    num_classes: int = 2,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    spatial_dims: int = 2,
    norm: NormKind = "batch",
    gates: int = 1,
    deep_supervision: bool = True,
) -> AttentionUNet:
    """Attention U-Net: gated skips and heads at every scale; or on any classifier's encoder.

    `width` is 64 and `depth` 4 by default. With `backbone`, the name of a classifier, `width` is
    that of the encoder's first convolution (by default the published one) and scales the decoder
    too.
    """
    check_common(num_classes=num_classes, dtype=dtype, spatial_dims=spatial_dims, norm=norm)
    check_positive_int("gates", gates)
    check_bool("deep_supervision", deep_supervision)
    encoder = None
    if backbone is not None:
        refuse_with_encoder(backbone, depth=depth, spatial_dims=3 if spatial_dims == 3 else None)
        encoder = build_encoder(backbone, width, dtype=dtype, axis_name=axis_name)
        width = in_proportion(DECODER_WIDTH, backbone, width)
    width, depth = 64 if width is None else width, 4 if depth is None else depth
    check_positive_int("width", width)
    check_positive_int("depth", depth, minimum=2)
    return AttentionUNet(
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        width=width,
        depth=depth,
        spatial_dims=spatial_dims,
        norm=norm,
        gates=gates,
        deep_supervision=deep_supervision,
        backbone=encoder,
    )
