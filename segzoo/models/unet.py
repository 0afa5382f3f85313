"""U-Net (Ronneberger, Fischer & Brox 2015, arXiv:1505.04597, Figure 1).

A contracting path of pairs of 3x3 convolutions and 2x2 max-pools, an expanding path of 2x2
up-convolutions, and at each resolution a concatenation that hands the fine detail across.
`padding="VALID"` is the paper's own geometry, 572x572 in and 388x388 out; the default "SAME" keeps
the size, as nearly every later U-Net does. With `spatial_dims=3` the same network is built of 3-D
operators (Çiçek et al. 2016, arXiv:1606.06650, who have one level less and widen before the
pool).

Where the paper leaves a choice: drop-out "at the end of the contracting path" follows the last two
pairs of convolutions (rate 0.5), as in the authors' released network. With a normalisation, which
the paper has not, it stands between convolution and ReLU, and takes over the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import SegzooError, check_bool, check_choice, check_positive_int
from segzoo.layers import (
    Dropout,
    NormKind,
    Score,
    center_crop,
    crop_to,
    max_pool,
    pad_to_multiple,
)
from segzoo.models.encoders import build_encoder, in_proportion, refuse_with_encoder
from segzoo.models.unet_encoder import DECODER_WIDTH, EncoderUNet
from segzoo.models.unet_parts import UPSAMPLE, DoubleConv, Upsample, UpsampleKind
from segzoo.registry import register, with_fixed

Array = jax.Array


class UNet(nn.Module):
    """U-Net for 2-D and 3-D images.

    Attributes:
        num_classes: K.
        dtype: of the computation; parameters and logits stay float32.
        axis_name: the mapped axis of batch norm and drop-out.
        width: channels at full resolution; each of the `depth` down steps doubles them.
        depth: number of down steps, 4 in the paper.
        padding: "SAME", or the paper's "VALID".
        spatial_dims: 2 or 3.
        norm: "none" (the paper), "batch" or "group".
        upsample: "transpose", the 2x2 up-convolution that halves the channels; "bilinear" or
            "nearest", interpolation alone, the next convolution taking in half as many channels
            again.
        dropout: the rate at the end of the contracting path.
        remat: forget in training what a pair of convolutions computes on its way, and compute it
            again for the gradient. Meant for accelerators: on a CPU the peak did not fall.
    """

    num_classes: int = 2
    dtype: Any = jnp.float32
    axis_name: str | None = None
    width: int = 64
    depth: int = 4
    padding: Literal["SAME", "VALID"] = "SAME"
    spatial_dims: int = 2
    norm: NormKind = "none"
    upsample: UpsampleKind = "transpose"
    dropout: float = 0.5
    remat: bool = False

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """Computes the logits.

        Args:
            image: `[B, *S, C]`, normalised; any size under "SAME".
            train: batch statistics and drop-out (which needs the "dropout" rng).

        Returns:
            float32 `[B, *S, K]`; under "VALID" those of the central `output_size`.

        Raises:
            SegzooError: for an image of another rank, or a size "VALID" convolutions cannot halve.
        """
        check_image(image, self.spatial_dims)
        size = image.shape[1:-1]
        if self.padding == "VALID":
            self._check_size(size)
            x = image
        else:
            x = pad_to_multiple(image, 2**self.depth)

        def double_conv(level: int, path: str) -> DoubleConv:
            return DoubleConv(
                self.width * 2**level,
                padding=self.padding,
                norm=self.norm,
                dtype=self.dtype,
                axis_name=self.axis_name,
                name=f"{path}{level}",
            )

        def run(pair: DoubleConv, x: Array) -> Array:
            return pair(x, train=train)

        if self.remat and train:
            run = nn.remat(run)

        skips = []
        for level in range(self.depth + 1):
            if level > 0:
                x = max_pool(x, (2,) * self.spatial_dims)
            x = run(double_conv(level, "down"), x)
            if level >= self.depth - 1:
                x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)
            skips.append(x)

        x = skips.pop()
        for level in reversed(range(self.depth)):
            up = Upsample(
                self.upsample, self.width * 2**level, dtype=self.dtype, name=f"upsample{level}"
            )
            x = up(x, [2 * n for n in x.shape[1:-1]])
            x = jnp.concatenate([center_crop(skips[level], x.shape[1:-1]), x], axis=-1)
            x = run(double_conv(level, "up"), x)

        logits = Score(self.num_classes, self.dtype, name="score")(x)
        return logits if self.padding == "VALID" else crop_to(logits, size)

    # Under "VALID", m pixels after the convolutions of the lowest level come from an input of
    # 2^d m + 4 (2^(d+1) - 1) and become an output of 2^d m - 4 (2^d - 1) pixels.

    def _valid_input(self, lowest: int) -> int:
        return 2**self.depth * lowest + 4 * (2 ** (self.depth + 1) - 1)

    def _valid_output(self, lowest: int) -> int:
        return 2**self.depth * lowest - 4 * (2**self.depth - 1)

    def input_size(self, output_size: tuple[int, ...]) -> tuple[int, ...]:
        """The smallest input whose output covers `output_size`.

        Args:
            output_size: the spatial sizes wanted, each at least 1.

        Returns:
            The spatial sizes of the input: under "VALID" larger by 184 or more at depth 4 (388 ->
            572), the output being its centre; under "SAME" `output_size` itself.

        Raises:
            SegzooError: for a size that is no positive integer.
        """
        for n in output_size:
            check_positive_int("output_size", n)
        if self.padding == "SAME":
            return tuple(output_size)
        lowest = [-(-(n + 4 * (2**self.depth - 1)) // 2**self.depth) for n in output_size]
        return tuple(self._valid_input(m) for m in lowest)

    def _check_size(self, size: tuple[int, ...]) -> None:
        """Raises `SegzooError` unless every level of a VALID network can be halved."""
        step, (smallest,) = 2**self.depth, self.input_size((1,))
        if all(n >= smallest and (n - smallest) % step == 0 for n in size):
            return
        nearest = []
        for n in size:
            below = max(smallest, n - (n - smallest) % step)
            exact = n <= smallest or below == n
            nearest.append(str(below) if exact else f"{below} or {below + step}")
        raise SegzooError(
            f"an image of {' x '.join(map(str, size))} pixels does not fit a VALID U-Net of depth "
            f"{self.depth}; the nearest valid size is {' x '.join(nearest)}."
        )


@register(
    task="semantic", paper="arXiv:1505.04597", input_shape=(256, 256, 3), parameters=31_031_810
)
def unet(
    num_classes: int = 2,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    backbone: str | None = None,
    width: int | None = None,
    depth: int | None = None,
    padding: Literal["SAME", "VALID"] = "SAME",
    spatial_dims: int = 2,
    norm: NormKind | None = None,
    upsample: UpsampleKind | None = None,
    dropout: float | None = None,
    remat: bool = False,
) -> UNet | EncoderUNet:
    """U-Net: 31 million parameters at the paper's width and depth; or on any classifier's encoder.

    What is None is chosen by the network. The paper's has `width=64`, `depth=4`, `norm="none"`,
    `upsample="transpose"` and `dropout=0.5`. With `backbone`, the name of a classifier, `width` is
    that of the encoder's first convolution (by default the published one) and scales the decoder
    too, `norm` is the decoder's, "batch"; `upsample="nearest"` and `dropout=0`.
    """
    encoded = backbone is not None
    norm = norm or ("batch" if encoded else "none")
    upsample = upsample or ("nearest" if encoded else "transpose")
    dropout = (0.0 if encoded else 0.5) if dropout is None else dropout
    check_common(num_classes=num_classes, dtype=dtype, spatial_dims=spatial_dims, norm=norm)
    check_choice("padding", padding, ("SAME", "VALID"))
    check_choice("upsample", upsample, UPSAMPLE)
    check_rate("dropout", dropout)
    check_bool("remat", remat)
    if backbone is not None:
        refuse_with_encoder(
            backbone,
            depth=depth,
            padding="VALID" if padding == "VALID" else None,
            spatial_dims=3 if spatial_dims == 3 else None,
            remat=remat or None,
        )
        return EncoderUNet(
            num_classes=num_classes,
            dtype=dtype,
            axis_name=axis_name,
            backbone=build_encoder(backbone, width, dtype=dtype, axis_name=axis_name),
            width=in_proportion(DECODER_WIDTH, backbone, width),
            norm=norm,
            upsample=upsample,
            dropout=dropout,
        )
    width, depth = 64 if width is None else width, 4 if depth is None else depth
    check_positive_int("width", width)
    check_positive_int("depth", depth)
    return UNet(
        num_classes=num_classes,
        dtype=dtype,
        axis_name=axis_name,
        width=width,
        depth=depth,
        padding=padding,
        spatial_dims=spatial_dims,
        norm=norm,
        upsample=upsample,
        dropout=dropout,
        remat=remat,
    )


def _of_depth(name: str, depth: int, parameters: int, summary: str) -> Callable[..., UNet]:
    paper, shape = "arXiv:1505.04597", (256, 256, 3)
    builder = with_fixed(name, unet, summary, depth=depth)
    return register(task="semantic", paper=paper, input_shape=shape, parameters=parameters)(builder)


unet_context = _of_depth(
    "unet_context", 4, 31_031_810, "U-Net with four steps down and up: the widest view."
)
unet_standard = _of_depth("unet_standard", 3, 7_697_410, "U-Net with three steps down and up.")
unet_precision = _of_depth(
    "unet_precision", 2, 1_862_914, "U-Net with two steps down and up: near detail."
)
