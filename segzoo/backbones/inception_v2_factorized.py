"""Inception v2, the second of two networks of that name: factorised convolutions.

Szegedy et al. 2016, arXiv:1512.00567, Table 1: 42 layers, a 1x7 and its 7x1 convolution counted as
one. Three 3x3 convolutions stand for the 7x7 of GoogLeNet; then three modules of Figure 5, five of
Figure 6 with n = 7 and two of Figure 7, each group but the last ending in a reduction of the grid
by Figure 10. The other Inception v2 is `inception_v2`.

The paper leaves the filters inside the modules to its supplement. They are those of Inception v3 as
released, which has the same modules; the fifth of Figure 6 repeats the fourth, the first reduction
has no 1x1 convolution before its single 3x3 (the table's caption speaks of variations), the 3x3 of
Figure 5 has the channels of the released 5x5. The auxiliary classifier of Figure 8, drop-out and
batch norm's epsilon are from there too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.backbones.inception import (
    AuxiliaryClassifier,
    Branch,
    Inception,
    Maps,
    Part,
    conv_unit,
    spread_avg_pool,
)
from segzoo.checks import check_common, check_image, check_rate
from segzoo.errors import check_choice, check_positive_int
from segzoo.layers import Score, max_pool
from segzoo.registry import register

Array = jax.Array
Padding = Literal["VALID", "SAME"]
PADDINGS: tuple[Padding, ...] = get_args(Padding)

WIDTH = 32  # channels of the first convolution
SMALLEST = 75  # pixels along an axis that leave one place on the coarsest grid without padding

# The convolutions before the modules: channels, stride, padded. A pool follows the third.
STEM: tuple[tuple[int, int, bool], ...] = (
    (32, 2, False),
    (32, 1, False),
    (64, 1, True),
    (80, 1, False),
    (192, 2, False),
    (288, 1, True),
)
MODULES = (3, 5, 2)  # of Figures 5, 6 and 7
GRIDS = (35, 17, 8)  # places along an axis of a 299x299 image
POOL_PROJ = (64, 192, 192)  # channels after the pool in modules of Figures 5, 6 and 7
INNER_7X7 = (128, 160, 160, 192, 192)  # channels inside the five modules of Figure 6
AUXILIARY = "inception17e"


def figure5(channels: Callable[[int], int]) -> tuple[Branch, ...]:
    """The branches of a module of Figure 5: 3x3 convolutions, 288 channels with the pool's 64."""
    c = channels
    return (
        (Part("conv1x1", c(64)),),
        (Part("reduce3x3", c(48)), Part("conv3x3", c(64), (3, 3))),
        (
            Part("reduce_double", c(64)),
            Part("double1", c(96), (3, 3)),
            Part("double2", c(96), (3, 3)),
        ),
    )


def figure6(channels: Callable[[int], int], inner: int) -> tuple[Branch, ...]:
    """The branches of a module of Figure 6: 1x7 and 7x1 convolutions, 768 with the pool's 192."""
    out, inside = channels(192), channels(inner)
    return (
        (Part("conv1x1", out),),
        (
            Part("reduce7x7", inside),
            Part("conv1x7", inside, (1, 7)),
            Part("conv7x1", out, (7, 1)),
        ),
        (
            Part("reduce_double", inside),
            Part("double1_7x1", inside, (7, 1)),
            Part("double1_1x7", inside, (1, 7)),
            Part("double2_7x1", inside, (7, 1)),
            Part("double2_1x7", out, (1, 7)),
        ),
    )


def figure7(channels: Callable[[int], int]) -> tuple[Branch, ...]:
    """The branches of a module of Figure 7, which fork at last: 2048 with the pool's 192."""
    c = channels
    return (
        (Part("conv1x1", c(320)),),
        (
            Part("reduce3x3", c(384)),
            (Part("conv1x3", c(384), (1, 3)), Part("conv3x1", c(384), (3, 1))),
        ),
        (
            Part("reduce_double", c(448)),
            Part("double3x3", c(384), (3, 3)),
            (Part("double1x3", c(384), (1, 3)), Part("double3x1", c(384), (3, 1))),
        ),
    )


def figure10(
    channels: Callable[[int], int], single: tuple[int, ...], double: tuple[int, int]
) -> tuple[Branch, ...]:
    """The branches of a reduction by Figure 10, which halves the grid; a pool goes with them.

    Args:
        channels: scales those published.
        single: of the branch with one 3x3 convolution: of its 1x1, if it has one, and of the 3x3.
        double: of the branch with two: of its 1x1 convolution and of both others.
    """
    *reduce, out = map(channels, single)
    reduce_double, inside = map(channels, double)
    return (
        (
            *(Part("reduce3x3", features) for features in reduce),
            Part("conv3x3", out, (3, 3), strided=True),
        ),
        (
            Part("reduce_double", reduce_double),
            Part("double1", inside, (3, 3)),
            Part("double2", inside, (3, 3), strided=True),
        ),
    )


class InceptionV2Factorized(nn.Module):
    """The convolutional part of the factorised Inception v2.

    Attributes:
        width: channels of the first convolution, 32 in the paper; all others are in proportion.
        padding: "VALID": none where the paper has none, so that 299 pixels become 149, 73, 35, 17
            and 8 places, and an image of less than 75 is first surrounded with zeros up to that;
            "SAME": everywhere, so that features lie on the image and n pixels become
            ceil(n / reduction) places.
        dtype: of the computation.
        axis_name: the mapped axis of batch norm.
    """

    width: int = WIDTH
    padding: Padding = "VALID"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @property
    def reductions(self) -> tuple[int, ...]:
        """Input pixels per feature pixel, one for each map returned."""
        return (2, 4, 8, 16, 32)

    @property
    def stages(self) -> tuple[tuple[str, ...], ...]:
        """The names of the convolutions before the modules, then of the modules on each grid."""
        grids = []
        for grid, count in zip(GRIDS, MODULES, strict=True):
            names = [f"inception{grid}{letter}" for letter in "abcde"[:count]]
            grids.append((*names, f"reduction{grid}") if grid != GRIDS[-1] else tuple(names))
        return (tuple(f"conv{i}" for i in range(1, len(STEM) + 1)), *grids)

    def channels(self, published: int) -> int:
        """Returns the channels here of a layer that has `published` in the paper."""
        return max(1, round(published * self.width / WIDTH))

    @property
    def branches(self) -> dict[str, tuple[Branch, ...]]:
        """The branches of every module, all but the one of the pool, in the order of the data."""
        c = self.channels
        _, fine, middle, coarse = self.stages
        return {
            **{name: figure5(c) for name in fine[:-1]},
            fine[-1]: figure10(c, (384,), (64, 96)),
            **{n: figure6(c, inner) for n, inner in zip(middle[:-1], INNER_7X7, strict=True)},
            middle[-1]: figure10(c, (192, 320), (192, 192)),
            **{name: figure7(c) for name in coarse},
        }

    @property
    def conv(self) -> Callable[..., nn.Module]:
        """`(part, stride, dilation, pad) -> module`, see `conv_unit`."""

        def build(part: Part, stride: int = 1, dilation: int = 1, pad: bool = True) -> nn.Module:
            return conv_unit(
                part,
                stride,
                dilation,
                pad,
                norm="batch",
                epsilon=1e-3,
                dtype=self.dtype,
                axis_name=self.axis_name,
            )

        return build

    @nn.compact
    def __call__(self, image: Array, *, train: bool, maps: Maps | None = None) -> tuple[Array, ...]:
        """Computes the features.

        Args:
            image: `[B, H, W, C]`, normalised, of any size.
            train: whether batch norm uses (and updates) batch statistics.
            maps: where the output of each module is put by name, if given.

        Returns:
            The third and the fourth convolution, and the outputs of the last modules of Figures 5,
            6 and 7.

        Raises:
            SegzooError: for an empty image or another number of axes.
        """
        check_image(image, 2)
        maps = {} if maps is None else maps
        pad_all = self.padding == "SAME"
        x = image if pad_all else _surround(image, SMALLEST)
        features = []
        for i, (published, stride, padded) in enumerate(STEM, start=1):
            part = Part(f"conv{i}", self.channels(published), (3, 3))
            x = maps[part.name] = self.conv(part, stride, 1, pad_all or padded)(x, train=train)
            if i in (3, 4):
                features.append(x)
            if i == 3:
                x = max_pool(x, (3, 3), (2, 2), self.padding)
        for names, pool_proj in zip(self.stages[1:], POOL_PROJ, strict=True):
            for name in names:
                reduces = name.startswith("reduction")
                if reduces:
                    features.append(x)
                module = Inception(
                    self.branches[name],
                    self.conv,
                    "max" if reduces else "avg",
                    0 if reduces else self.channels(pool_proj),
                    2 if reduces else 1,
                    reduces,
                    pad=pad_all,
                    name=name,
                )
                x = maps[name] = module(x, train=train)
        return (*features, x)


def _surround(image: Array, smallest: int) -> Array:
    """Puts zeros around an image, so that both its axes have `smallest` pixels or more."""
    missing = [max(smallest - n, 0) for n in image.shape[1:-1]]
    if not any(missing):
        return image
    return jnp.pad(image, [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)])


class AuxiliaryHead(nn.Module):
    """The batch-normalised classifier of Figure 8: averages, 1x1 and 5x5 convolution, scores.

    The averages are of 5x5 windows, on a 17x17 map with stride 3; the 5x5 convolution sees all of
    them.

    Attributes:
        num_classes: K.
        conv: makes the module of a convolution.
        features: output channels of the 1x1 convolution.
        hidden: output channels of the 5x5 convolution.
        dtype: of the computation.
    """

    num_classes: int
    conv: Callable[..., nn.Module]
    features: int = 128
    hidden: int = 768
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`."""
        x = spread_avg_pool(x, 5, 5 / 17)
        x = self.conv(Part("conv1x1", self.features))(x, train=train)
        x = self.conv(Part("conv5x5", self.hidden, (5, 5)), pad=False)(x, train=train)
        return Score(self.num_classes, self.dtype, name="score")(x.reshape(x.shape[0], -1))


class InceptionV2FactorizedClassifier(AuxiliaryClassifier):
    """The factorised Inception v2, with one auxiliary classifier for `aux_loss`.

    It is on the last module of the 17x17 grid. Fields: see `AuxiliaryClassifier`.
    """

    def heads(self) -> tuple[tuple[str, nn.Module], ...]:
        """Returns `aux`."""
        net = self.backbone
        assert isinstance(net, InceptionV2Factorized)
        head = AuxiliaryHead(
            self.num_classes,
            net.conv,
            net.channels(128),
            net.channels(768),
            self.dtype,
            name="aux",
        )
        return ((AUXILIARY, head),)


# Counted by the paper's tables, and on an independent network of Inception v3's released modules.
@register(
    task="classification",
    paper="arXiv:1512.00567",
    input_shape=(299, 299, 3),
    parameters=26_220_488,
    gmacs=6.430,
)
def inception_v2_factorized(
    num_classes: int = 1000,
    dtype: Any = jnp.float32,
    axis_name: str | None = None,
    width: int = WIDTH,
    padding: Padding = "VALID",
    dropout: float = 0.2,
    aux_loss: bool = False,
) -> InceptionV2FactorizedClassifier:
    """Inception v2 with factorised convolutions, 42 layers deep, for 299x299 images."""
    check_common(num_classes=num_classes, dtype=dtype)
    check_positive_int("width", width)
    check_choice("padding", padding, PADDINGS)
    check_rate("dropout", dropout)
    check_choice("aux_loss", aux_loss, (True, False))
    return InceptionV2FactorizedClassifier(
        InceptionV2Factorized(width, padding, dtype, axis_name),
        num_classes,
        dtype,
        axis_name,
        dropout,
        aux_loss,
    )
