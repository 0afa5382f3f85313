"""The primitives the networks are built of: fast under XLA, and equal to the plain forms.

Everything works on channels-last arrays `[B, *S, C]` with any number of spatial axes. Where the
gradient of the textbook form is slow (`nn.max_pool` and `nn.ConvTranspose` on CPU, by factors of
10 to 30), an algebraically equal form takes its place; the tests hold values and gradients of both
together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.errors import check_choice

Array = jax.Array
NormKind = Literal["none", "batch", "group"]
NORMS: tuple[NormKind, ...] = ("none", "batch", "group")

# Gaussian with standard deviation sqrt(2 / N), N the incoming nodes of a neuron (He et al. 2015,
# arXiv:1502.01852, eq. 10). Not truncated: the published variance is the variance.
he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


# --- Geometry ------------------------------------------------------------------------------------


def pad_to_multiple(x: Array, multiple: int | Sequence[int]) -> Array:
    """Pads the spatial axes at their ends up to the next multiple, by mirroring.

    Mirroring is how U-Net extrapolates missing context (Ronneberger et al. 2015, Figure 2). Padding
    at the end alone leaves pixel 0 on the same place of every pooling grid. Any size of at least 1
    works, also one smaller than the padding.

    Args:
        x: `[B, *S, C]`.
        multiple: one number, or one per spatial axis.

    Returns:
        `[B, *S', C]`, `S'` the smallest multiples that cover `S`; `x` itself if nothing is missing.
    """
    rank = x.ndim - 2
    multiples = (multiple,) * rank if isinstance(multiple, int) else tuple(multiple)
    pads = [-size % m for size, m in zip(x.shape[1:-1], multiples, strict=True)]
    if not any(pads):
        return x
    return jnp.pad(x, [(0, 0), *((0, pad) for pad in pads), (0, 0)], mode="symmetric")


def crop_to(x: Array, size: Sequence[int]) -> Array:
    """Keeps the first `size` of each spatial axis: the inverse of `pad_to_multiple`."""
    return x[(slice(None), *(slice(n) for n in size))]


def center_crop(x: Array, size: Sequence[int]) -> Array:
    """Keeps the central `size` of each spatial axis, the extra pixel of odd margins at the end."""
    starts = [(n - m) // 2 for n, m in zip(x.shape[1:-1], size, strict=True)]
    return x[(slice(None), *(slice(a, a + m) for a, m in zip(starts, size, strict=True)))]


def _interpolation_matrix(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """`[n_out, n_in]` weights of linear interpolation along one axis; each row sums to 1."""
    place = np.arange(n_out, dtype=np.float64)
    if align_corners:
        source = place * ((n_in - 1) / (n_out - 1)) if n_out > 1 else place * 0.0
    else:
        source = (place + 0.5) * (n_in / n_out) - 0.5
    source = np.clip(source, 0.0, n_in - 1)
    # Hat functions around the source pixels: zero beyond a distance of one.
    distance = np.abs(source[:, None] - np.arange(n_in))
    return np.maximum(0.0, 1.0 - distance)


def resize(x: Array, size: Sequence[int], *, align_corners: bool = False) -> Array:
    """Resizes the spatial axes by (bi-, tri-) linear interpolation, one axis after the other.

    Pixel centres lie at half-integers, and borders are continued with the edge value, as in
    `jax.image.resize(..., "linear", antialias=False)`. There is no antialiasing when shrinking.
    Each axis is one product with a constant matrix, whose gradient is the transposed product;
    gathers would have scatters for gradients.

    Args:
        x: `[B, *S, C]`, floating.
        size: the new sizes of the spatial axes.
        align_corners: put the centres of the first and last pixels of input and output onto each
            other, instead of the outer borders of the images.

    Returns:
        `[B, *size, C]` in the dtype of `x`.
    """
    for axis, (n_in, n_out) in enumerate(zip(x.shape[1:-1], size, strict=True), start=1):
        if n_in == n_out:
            continue
        weights = jnp.asarray(_interpolation_matrix(n_in, n_out, align_corners), x.dtype)
        y = jnp.tensordot(weights, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(y, 0, axis)
    return x


# --- Pooling -------------------------------------------------------------------------------------


def max_pool(
    x: Array,
    window: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: str | Sequence[tuple[int, int]] = "VALID",
) -> Array:
    """Max-pools the spatial axes, as `nn.max_pool`.

    Windows that tile the axes (stride = window) are a reshape and a maximum; the gradient of that
    form shares a window's gradient equally among tied maxima, where `nn.max_pool` gives it to the
    first. Without ties both are the same. Everything else goes to `nn.max_pool`.

    Args:
        x: `[B, *S, C]`.
        window: size of the window, one number per spatial axis.
        strides: by default the window.
        padding: "VALID" drops a remainder, "SAME" keeps it as a window of its own (in other
            frameworks' words floor and ceil mode), or `(before, after)` pairs.

    Returns:
        `[B, *S', C]`.
    """
    window = tuple(window)
    strides = window if strides is None else tuple(strides)
    tiled = strides == window and (
        padding == "VALID" or (padding == "SAME" and jnp.issubdtype(x.dtype, jnp.floating))
    )
    if not tiled:
        pads = padding if isinstance(padding, str) else list(padding)
        return nn.max_pool(x, window_shape=window, strides=strides, padding=pads)
    if padding == "SAME":
        missing = [-n % w for n, w in zip(x.shape[1:-1], window, strict=True)]
        if any(missing):
            pads = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
            x = jnp.pad(x, pads, constant_values=-jnp.inf)
    counts = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    x = crop_to(x, [n * w for n, w in zip(counts, window, strict=True)])
    tiles = [n for pair in zip(counts, window, strict=True) for n in pair]
    x = x.reshape(x.shape[0], *tiles, x.shape[-1])
    return x.max(axis=tuple(range(2, x.ndim - 1, 2)))


# --- Transposed convolution ----------------------------------------------------------------------


def conv_transpose(x: Array, kernel: Array, strides: Sequence[int]) -> Array:
    """Transposed convolution without padding: `lax.conv_transpose(..., padding="VALID")`, faster.

    An output pixel `h * stride + i` sees the `ceil(k / stride)` input pixels up to `h`, so a plain
    convolution with that many taps computes all `stride ** rank` output pixels of a block as
    channels, and depth-to-space lays them out. With k = stride (U-Net's up-convolution) there is
    one tap, and the convolution is a matrix product.

    Args:
        x: `[B, *S, C]`.
        kernel: `[*k, C, O]`, in the orientation of `nn.ConvTranspose` (`transpose_kernel=False`).
        strides: one number per spatial axis.

    Returns:
        `[B, *S', O]` with `S' = S * stride + max(k - stride, 0)`.
    """
    rank = x.ndim - 2
    sizes, (c_in, c_out) = kernel.shape[:rank], kernel.shape[rank:]
    strides = tuple(strides)
    taps = [-(-k // s) for k, s in zip(sizes, strides, strict=True)]
    # lax correlates the dilated input with the kernel, which is why scattering sees it flipped.
    kernel = jnp.flip(kernel, axis=tuple(range(rank)))
    pads = [(0, t * s - k) for t, s, k in zip(taps, strides, sizes, strict=True)]
    kernel = jnp.pad(kernel, [*pads, (0, 0), (0, 0)])
    kernel = kernel.reshape(
        *(n for pair in zip(taps, strides, strict=True) for n in pair), c_in, -1
    )
    # [t, s, t, s, ..., C, O] -> [t, t, ..., C, s, s, ..., O]
    evens, odds = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    kernel = kernel.transpose(*evens, 2 * rank, *odds, 2 * rank + 1)
    kernel = kernel.reshape(*taps, c_in, math.prod(strides) * c_out)
    if max(taps) == 1:
        y = x @ kernel.reshape(c_in, -1)
    else:
        # Correlation again: the tap that meets the earliest input pixel is the last one.
        kernel = jnp.flip(kernel, axis=tuple(range(rank)))
        letters = "DHW"[-rank:]
        y = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,) * rank,
            padding=[(t - 1, t - 1) for t in taps],
            dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        )
    y = _depth_to_space(y, strides)
    full = [n * s + max(k - s, 0) for n, s, k in zip(x.shape[1:-1], strides, sizes, strict=True)]
    return crop_to(y, full)


def _depth_to_space(x: Array, block: Sequence[int]) -> Array:
    """`[B, *S, prod(block) * O] -> [B, *(S * block), O]`."""
    batch, *sizes, _ = x.shape
    rank = len(sizes)
    x = x.reshape(batch, *sizes, *block, -1)
    order = [axis for i in range(rank) for axis in (1 + i, 1 + rank + i)]
    x = x.transpose(0, *order, 2 * rank + 1)
    return x.reshape(batch, *(n * b for n, b in zip(sizes, block, strict=True)), -1)


def bilinear_kernel(
    key: Array, shape: Sequence[int], dtype: Any = jnp.float32, *unused: Any
) -> Array:
    """Initialiser: a transposed convolution that interpolates each channel on its own.

    Long, Shelhamer & Darrell 2015, section 3.3. Any number of spatial axes; the usual kernel for
    upsampling by `s` has size `2 s` (even `s`) or `2 s - 1`.

    Args:
        key: unused, there to fit linen's initialisers.
        shape: `[*k, C, O]`; where C and O differ, the first `min(C, O)` channels are mapped.
        dtype: of the result.
        *unused: linen passes an output sharding to some initialisers.

    Returns:
        The kernel; every output pixel inside sums to weight 1.
    """
    del key, unused
    *sizes, c_in, c_out = shape
    kernel = np.eye(c_in, c_out)
    for size in reversed(sizes):
        factor = (size + 1) // 2
        hat = 1 - np.abs(np.arange(size) - (size - 1) / 2) / factor
        kernel = np.multiply.outer(hat, kernel)
    return jnp.asarray(kernel, dtype)


class ConvTranspose(nn.Module):
    """Transposed convolution without padding, its parameters those of `nn.ConvTranspose`.

    Attributes:
        features: output channels.
        kernel_size: one number per spatial axis.
        strides: by default the kernel size (U-Net's up-convolution).
        use_bias: whether a bias is added.
        dtype: of the computation.
        kernel_init: by default Gaussian with variance 2 / N, N the inputs an output pixel sees.
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    use_bias: bool = True
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *S, C] -> [B, *S', features]`, see `conv_transpose`."""
        strides = self.kernel_size if self.strides is None else self.strides
        # An output pixel sees k / stride inputs per axis, not k: linen's fan-in is too large.
        seen = math.prod(-(-k // s) for k, s in zip(self.kernel_size, strides, strict=True))
        scale = 2.0 * math.prod(self.kernel_size) / seen
        init = self.kernel_init or nn.initializers.variance_scaling(scale, "fan_in", "normal")
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", init, shape, jnp.float32)
        y = conv_transpose(x.astype(self.dtype), kernel.astype(self.dtype), strides)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,), jnp.float32)
            y = y + bias.astype(self.dtype)
        return y


# --- Blocks --------------------------------------------------------------------------------------


class Norm(nn.Module):
    """Normalisation by name, with float32 statistics whatever the dtype of computation.

    Attributes:
        kind: "none"; "batch": momentum 0.9, epsilon 1e-5, statistics over all devices of
            `axis_name`; "group": 8 groups, or the largest divisor of 8 the channels allow.
        dtype: of the result.
        axis_name: the mapped axis batch statistics are averaged over while training.
    """

    kind: NormKind = "batch"
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, *S, C] -> [B, *S, C]`; `train` chooses batch statistics and updates the running."""
        norm: nn.Module
        if self.kind == "none":
            return x
        if self.kind == "batch":
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                dtype=self.dtype,
                axis_name=self.axis_name,
            )
        else:
            check_choice("norm", self.kind, NORMS)
            norm = nn.GroupNorm(math.gcd(8, x.shape[-1]), epsilon=1e-5, dtype=self.dtype)
        nn.share_scope(self, norm)  # one level in the tree of parameters, not two
        return norm(x)


class ConvNormAct(nn.Module):
    """Convolution, normalisation, activation.

    Attributes:
        features: output channels.
        kernel_size: one number for all spatial axes.
        strides: one number for all spatial axes.
        dilation: one number for all spatial axes.
        padding: as for `nn.Conv`: "SAME", "VALID" or `(before, after)` pairs.
        norm: "none", "batch" or "group".
        use_bias: of the convolution; by default only without normalisation, whose own offset would
            make it redundant.
        activation: the last step.
        dtype: of the computation.
        axis_name: see `Norm`.
    """

    features: int
    kernel_size: int = 3
    strides: int = 1
    dilation: int = 1
    padding: str | Sequence[tuple[int, int]] = "SAME"
    norm: NormKind = "none"
    use_bias: bool | None = None
    activation: Callable[[Array], Array] = nn.relu
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """`[B, *S, C] -> [B, *S', features]`."""
        rank = x.ndim - 2
        x = nn.Conv(
            self.features,
            (self.kernel_size,) * rank,
            strides=self.strides,
            kernel_dilation=self.dilation,
            padding=self.padding,
            use_bias=self.norm == "none" if self.use_bias is None else self.use_bias,
            kernel_init=he_normal,
            dtype=self.dtype,
            name="conv",
        )(x)
        x = Norm(self.norm, dtype=self.dtype, axis_name=self.axis_name, name="norm")(x, train=train)
        return self.activation(x)


class Score(nn.Module):
    """1x1 convolution to float32 logits, its parameters those of a 1x1 `nn.Conv`.

    The products are taken in `dtype` and summed in float32, so logits keep their precision under
    bfloat16 without a float32 copy of the features.

    Attributes:
        num_classes: K.
        dtype: of the computation.
        kernel_init: by default He's.
    """

    num_classes: int
    dtype: Any = jnp.float32
    kernel_init: Callable[..., Array] = he_normal

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """`[B, *S, C] -> float32 [B, *S, K]`."""
        shape = (*(1,) * (x.ndim - 2), x.shape[-1], self.num_classes)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.num_classes,), jnp.float32)
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype).reshape(shape[-2:])
        return jnp.matmul(x, kernel, preferred_element_type=jnp.float32) + bias


class Dropout(nn.Module):
    """Dropout whose masks do not depend on how the batch is split over devices.

    Each example draws its mask from the "dropout" key folded with the example's position in the
    *global* batch, so one device and eight (given the same key, each a contiguous share of the
    batch in the order of the devices) drop the same activations.

    Attributes:
        rate: the probability of zero; the rest is scaled by `1 / (1 - rate)`.
        axis_name: the mapped axis the batch is split over, if any.
    """

    rate: float
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, *, deterministic: bool) -> Array:
        """`[B, ...] -> [B, ...]`; the identity where `deterministic`."""
        if deterministic or self.rate == 0.0:
            return x
        if self.rate == 1.0:
            return jnp.zeros_like(x)
        key = self.make_rng("dropout")
        position = jnp.arange(x.shape[0])
        if self.axis_name is not None and not self.is_initializing():
            position = position + lax.axis_index(self.axis_name) * x.shape[0]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, position)
        keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.rate, x.shape[1:]))(keys)
        return jnp.where(keep, x / (1 - self.rate), jnp.zeros_like(x))
