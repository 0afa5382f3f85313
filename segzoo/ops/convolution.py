"""Convolutions in the forms XLA computes fast, and the filter of bilinear interpolation.

Everything works on channels-last arrays `[B, *S, C]` with kernels `[*k, C, O]`.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.ops.conv2d import conv2d
from segzoo.ops.conv3d import conv3d
from segzoo.ops.convolve2d import unfolded_conv2d
from segzoo.ops.depthwise import depthwise_conv
from segzoo.ops.spatial import crop_to
from segzoo.ops.windows import crop, depth_to_space, explicit_pads, pad, padded_size, places
from segzoo.ops.winograd2d import suits

Array = jax.Array

_reformulated = contextvars.ContextVar("reformulated", default=True)


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Within, `conv_general_dilated` is lax's own.

    For who reads in a program which pixels a value depends on: Winograd's sums have all those of
    six rows in them, most of which cancel.
    """
    token = _reformulated.set(False)
    try:
        yield
    finally:
        _reformulated.reset(token)


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    precision: Any = None,
) -> Array:
    """`lax.conv_general_dilated` as `nn.Conv` calls it (channels-last), fast on CPU too.

    What XLA's CPU compiler has no fast form for is put in other terms there: a group for each
    channel goes to `depthwise_conv`, two spatial axes to `conv2d`, or to `unfolded_conv2d` where
    pixels are fewer than channels, and three axes to `conv3d`.
    """
    rank, groups = lhs.ndim - 2, feature_group_count
    ours = _reformulated.get() and jax.default_backend() == "cpu"
    ours = ours and set(lhs_dilation or (1,)) == {1}
    depthwise = 1 < groups == lhs.shape[-1] == rhs.shape[-1]
    if not ours or not (depthwise or (groups == 1 and rank in (2, 3))):
        axes = "DHW"[-rank:]
        dimension_numbers = dimension_numbers or (f"N{axes}C", f"{axes}IO", f"N{axes}C")
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            groups,
            precision=precision,
        )
    strides, dilation = tuple(window_strides), tuple(rhs_dilation or (1,) * rank)
    if depthwise:
        return depthwise_conv(lhs, rhs, strides, padding, dilation)
    pads = explicit_pads(padding, lhs.shape[1:-1], rhs.shape[:-2], strides, dilation)
    if rank == 2:
        size = padded_size(lhs.shape[1:-1], pads)
        result = (len(lhs), *places(size, rhs.shape[:-2], strides, dilation))
        halved = suits(lhs, rhs.shape, result, strides, dilation)
        if math.prod(result) <= rhs.shape[-1] and not halved:
            return unfolded_conv2d(lhs, rhs, strides, pads, dilation, precision)
        return conv2d(lhs, rhs, strides, pads, dilation, precision)

    return conv3d(lhs, rhs, strides, pads, dilation, precision)


def conv_transpose(x: Array, kernel: Array, strides: Sequence[int]) -> Array:
    """Transposed convolution without padding: `lax.conv_transpose(..., padding="VALID")`, faster.

    Output pixel `h * stride + i` sees the `ceil(k / stride)` input pixels up to `h`. So one matrix
    product of these, side by side as channels, computes all `stride ** rank` output pixels of a
    block, and depth-to-space lays them out. With k = stride (U-Net's up-convolution) there is one
    tap, the input itself.

    Args:
        x: `[B, *S, C]`.
        kernel: `[*k, C, O]`, in the orientation of `nn.ConvTranspose` (`transpose_kernel=False`).
        strides: one number per spatial axis.

    Returns:
        `[B, *S', O]` with `S' = S * stride + max(k - stride, 0)`.
    """
    return transposed_convolution(x, kernel, tuple(strides))


# A call of its own in every program: `segzoo.cost` counts it as other libraries count theirs.
@functools.partial(jax.jit, static_argnums=2)
def transposed_convolution(x: Array, kernel: Array, strides: tuple[int, ...]) -> Array:
    """See `conv_transpose`."""
    rank = x.ndim - 2
    sizes, (c_in, c_out) = kernel.shape[:rank], kernel.shape[rank:]
    taps = [-(-k // s) for k, s in zip(sizes, strides, strict=True)]
    full = [n * s + max(k - s, 0) for n, s, k in zip(x.shape[1:-1], strides, sizes, strict=True)]

    # lax correlates the dilated input with the kernel, which is why scattering sees it flipped.
    kernel = jnp.flip(kernel, axis=tuple(range(rank)))
    pads = [(0, t * s - k) for t, s, k in zip(taps, strides, sizes, strict=True)]
    kernel = jnp.pad(kernel, [*pads, (0, 0), (0, 0)])
    kernel = kernel.reshape(
        *(n for pair in zip(taps, strides, strict=True) for n in pair), c_in, -1
    )
    # [t, s, t, s, ..., C, O] -> [t, t, ..., C, s, s, ..., O]
    tap_axes, stride_axes = range(0, 2 * rank, 2), range(1, 2 * rank, 2)
    kernel = kernel.transpose(*tap_axes, 2 * rank, *stride_axes, 2 * rank + 1)
    kernel = kernel.reshape(math.prod(taps) * c_in, math.prod(strides) * c_out)

    if max(taps) > 1:
        blocks = [n + t - 1 for n, t in zip(x.shape[1:-1], taps, strict=True)]
        x = pad(x, [(t - 1, t - 1) for t in taps])
        # Tap t of block h is input pixel h - t.
        shifts = [[t - 1 - i for i, t in zip(tap, taps, strict=True)] for tap in np.ndindex(*taps)]
        x = jnp.concatenate([crop(x, shift, blocks) for shift in shifts], axis=-1)
    return crop_to(depth_to_space(_product(x, kernel), strides), full)


def _product(x: Array, matrix: Array) -> Array:
    """`[B, *S, C] @ [C, O]`, its gradient fast on CPU."""
    if jax.default_backend() != "cpu" or x.ndim not in (4, 5):
        return x @ matrix
    flat = x.reshape(-1, *x.shape[-3:])  # depth joins the batch
    none = ((0, 0), (0, 0))
    y = conv2d(flat, matrix[None, None], (1, 1), none, (1, 1), None)
    return y.reshape(*x.shape[:-1], -1)


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
