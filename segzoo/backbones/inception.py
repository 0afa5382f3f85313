"""What the Inception networks share: modules of parallel branches, and auxiliary classifiers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.errors import SegzooError
from segzoo.layers import ConvNormAct, Dropout, Score
from segzoo.ops.pooling import dilated_max_pool, max_pool

Array = jax.Array
Maps = dict[str, Array]


class Part(NamedTuple):
    """One convolution of a branch.

    Attributes:
        name: of the module.
        features: output channels.
        kernel_size: `(height, width)`.
        strided: whether it takes the stride of its Inception module.
    """

    name: str
    features: int
    kernel_size: tuple[int, int] = (1, 1)
    strided: bool = False


# Convolutions in the order of the data. Those in a tuple of their own stand side by side.
Branch = tuple[Part | tuple[Part, ...], ...]


class Inception(nn.Module):
    """Parallel branches of convolutions, and one of a 3x3 pool, joined along the channels.

    With `stride` 2 the convolutions marked as strided and the pool reduce the size. Where a stride
    was left out, in favour of dilation in all that follows, the pool is one of stride 1 over the
    pixels that the strided one would see (`keep_size`).

    Attributes:
        branches: all but the one of the pool.
        conv: makes the module of a part: `(part, stride, dilation, pad) -> module`.
        pool: "max", or "avg" over all nine places, zeros outside the map included.
        pool_features: channels of the 1x1 convolution after the pool; 0 leaves it out.
        stride: 1 or 2.
        reduces: whether this is a module with a stride, be it left out.
        dilation: of convolutions and pool.
        pad: whether strided convolutions and the pool pad the map with zeros; all others do.
    """

    branches: tuple[Branch, ...]
    conv: Callable[..., nn.Module]
    pool: Literal["max", "avg"] = "max"
    pool_features: int = 0
    stride: int = 1
    reduces: bool = False
    dilation: int = 1
    pad: bool = True

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, H, W, C] -> [B, H', W', features of all branches]`."""

        def run(part: Part, y: Array) -> Array:
            stride = self.stride if part.strided else 1
            pad = self.pad or not part.strided
            return self.conv(part, stride, self.dilation, pad)(y, train=train)

        joined = []
        for branch in self.branches:
            y = x
            for part in branch:
                if isinstance(part, Part):
                    y = run(part, y)
                else:
                    y = jnp.concatenate([run(side, y) for side in part], axis=-1)
            joined.append(y)
        y = self._pool(x)
        if self.pool_features:
            y = run(Part("pool_proj", self.pool_features), y)
        return jnp.concatenate([*joined, y], axis=-1)

    def _pool(self, x: Array) -> Array:
        if self.stride > 1:
            # "SAME" starts windows where ceil mode does if the size is even, and keeps the size of
            # the convolutions beside it if it is odd.
            return max_pool(x, (3, 3), (self.stride,) * 2, "SAME" if self.pad else "VALID")
        if self.reduces:
            return dilated_max_pool(x, (3, 3), self.dilation, keep_size=True)
        return pool3x3(x, self.pool, self.dilation)


def pool3x3(x: Array, kind: Literal["max", "avg"], dilation: int = 1) -> Array:
    """Pools 3x3 windows with stride 1, in a form whose gradient is fast.

    Args:
        x: `[B, H, W, C]`, floating.
        kind: "max" or "avg"; an average counts the zeros outside the map too.
        dilation: pixels from one tap of the window to the next.

    Returns:
        `[B, H, W, C]`.
    """
    pads = [(0, 0), (dilation, dilation), (dilation, dilation), (0, 0)]
    if kind == "max":
        x = jnp.pad(x, pads, constant_values=-jnp.inf)
        return dilated_max_pool(x, (3, 3), dilation)
    x = jnp.pad(x, pads)
    for axis in (1, 2):
        size = x.shape[axis] - 2 * dilation
        taps = [lax.slice_in_dim(x, i * dilation, i * dilation + size, axis=axis) for i in range(3)]
        x = taps[0] + taps[1] + taps[2]
    return x / 9


def ceil_pool(x: Array, window: int, stride: int = 2, dilation: int = 1) -> Array:
    """Max-pools in Caffe's ceil mode: a last window that reaches over the end counts what is there.

    Args:
        x: `[B, H, W, C]`, floating.
        window: its height and width.
        stride: 2; or 1 where it was left out, so that every second pixel (if the size is even) is
            that of the strided pool.
        dilation: pixels from one tap of the window to the next; with stride 1 only.

    Returns:
        `[B, H', W', C]`, `H' = max(ceil((H - window) / stride), 0) + 1` with stride 2, H with 1.
    """
    if stride == 1:
        return dilated_max_pool(x, (window, window), dilation, keep_size=True)
    if window == stride:
        return max_pool(x, (window, window), padding="SAME")
    pads = [(0, max(window - n, (window - n) % stride)) for n in x.shape[1:-1]]
    return max_pool(x, (window, window), (stride, stride), pads)


def spread_avg_pool(x: Array, count: int, share: float) -> Array:
    """Averages `count` x `count` windows at equal distances, the outer ones at the borders.

    A pool of fixed windows and stride gives a fixed number of results only at one size of the map;
    this is that pool there, and its like at all others: 5x5 windows with stride 3 on a 14x14 map
    are 4 windows along an axis of 5 / 14 of its length.

    Args:
        x: `[B, H, W, C]`.
        count: windows along each axis.
        share: length of a window as a part of the axis.

    Returns:
        `[B, count, count, C]` in the dtype of `x`.
    """
    rows, columns = (_window_means(n, count, share) for n in x.shape[1:-1])
    y = jnp.einsum("ih,bhwc,jw->bijc", rows, x.astype(jnp.float32), columns, precision="highest")
    return y.astype(x.dtype)


def _window_means(size: int, count: int, share: float) -> Array:
    """float32 `[count, size]`: each row averages one window."""
    length = max(1, round(size * share))
    starts = np.round(np.linspace(0, size - length, count)).astype(int)[:, None]
    place = np.arange(size)
    inside = (starts <= place) & (place < starts + length)
    return jnp.asarray(inside / length, jnp.float32)


def conv_unit(part: Part, stride: int, dilation: int, pad: bool, **options: Any) -> ConvNormAct:
    """Returns the module of a part: convolution, normalisation, ReLU; see `ConvNormAct`.

    Args:
        part: names it.
        stride: of the convolution.
        dilation: of the convolution.
        pad: with zeros, so that stride 1 keeps the size.
        **options: further fields.
    """
    margins = [k // 2 * dilation if pad else 0 for k in part.kernel_size]
    return ConvNormAct(
        part.features,
        part.kernel_size,
        stride,
        dilation,
        padding=tuple((margin, margin) for margin in margins),
        name=part.name,
        **options,
    )


class AuxiliaryClassifier(nn.Module):
    """A backbone's averaged last features scored, and further scores from inside while training.

    The auxiliary logits are sown into `aux_logits`, float32 `[B, K]` each, when the caller makes
    that collection mutable; otherwise they are not computed.

    Attributes:
        backbone: `(image, *, train, maps) -> features`, finest first; `maps`, a dict, takes the
            outputs of its modules by name.
        num_classes: K.
        dtype: of the computation; parameters and logits are float32.
        axis_name: the mapped axis of batch norm and drop-out.
        dropout: the rate before the scores.
        aux_loss: whether there are auxiliary classifiers.
    """

    backbone: nn.Module
    num_classes: int = 1000
    dtype: Any = jnp.float32
    axis_name: str | None = None
    dropout: float = 0.0
    aux_loss: bool = False

    def heads(self) -> tuple[tuple[str, nn.Module], ...]:
        """Returns the auxiliary classifiers, each after the name of the module it is put on."""
        raise NotImplementedError

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> Array:
        """`[B, H, W, C] -> float32 [B, K]`.

        Raises:
            SegzooError: for auxiliary logits when the backbone does not compute its features.
        """
        maps: Maps = {}
        x = self.backbone(image, train=train, maps=maps)[-1]
        if self.aux_loss and (self.is_initializing() or self.is_mutable_collection("aux_logits")):
            for place, head in self.heads():
                if place not in maps:  # the call of the backbone was answered by stored features
                    raise SegzooError(
                        f"aux_loss=True needs the output of {place} inside the backbone, which is "
                        "none of its features; expected aux_loss=False where features are given."
                    )
                logits = head(maps[place], train=train)
                if not self.is_initializing():  # or `init` would return them among the variables
                    self.sow("aux_logits", "logits", logits)
        x = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        x = Dropout(self.dropout, self.axis_name)(x, deterministic=not train)
        return Score(self.num_classes, self.dtype, name="head")(x)
