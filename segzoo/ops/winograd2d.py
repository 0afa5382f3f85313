"""2-D convolution with half the products, and its gradients: `winograd` from row to row.

Fast on a CPU, for kernels with three rows and many channels on both sides.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops.windows import Numbers, Pairs, padded_size, places
from segzoo.ops.winograd import ROWS, convolve_axis, kernel_gradient_axis, suits_axis

Array = jax.Array

# It pays from so many multiply-adds of the plain convolution on, so many pixels, and channels on
# both sides.
_WORK, _PIXELS, _CHANNELS = 5e8, 200, 32
# With so many channels on both sides a product for each tap is faster than a convolution, and from
# fewer on in the gradient by the input, where a convolution lays the kernel out anew.
_WIDE, _WIDE_BACK = 512, 256
# With fewer channels out of four times as many, unfolding what came out is faster.
_FEW_OUT = 128
# With so many weights of a tap at most, patches in blocks of about so many numbers are faster than
# products for each tap.
_UNFOLDED, _PATCHES = 65536, 196608
# Of maps with more numbers the six sums are not made at once.
_TOGETHER = 1 << 23


def suits(
    x: Array,
    shape: Sequence[int],
    result: Sequence[int],
    strides: Numbers,
    dilation: Numbers,
    *,
    back: bool = False,
) -> bool:
    """Whether `winograd_conv2d` is faster than a plain convolution.

    Args:
        x: the image.
        shape: of the kernel, `[kh, kw, C, O]`.
        result: `[B, H', W', ...]`.
        strides: one number per spatial axis.
        dilation: pixels between the taps of the kernel, one number per spatial axis.
        back: whether it is the gradient by the input.
    """
    if not suits_axis(x.dtype, shape[0], result[1], strides, dilation):
        return False
    if back and min(shape[2:]) >= _WIDE_BACK:
        return True
    pixels = math.prod(result[:3])
    enough = pixels >= _PIXELS and pixels * math.prod(shape) >= _WORK
    return enough and min(shape[2:]) >= _CHANNELS


def suits_gradient(
    x: Array, shape: Sequence[int], result: Sequence[int], strides: Numbers, dilation: Numbers
) -> bool:
    """Whether `winograd_kernel_gradient` is the faster one; arguments as `suits` has."""
    few = shape[3] < _FEW_OUT and shape[2] >= 4 * shape[3]
    return suits(x, shape, result, strides, dilation) and not few


def winograd_conv2d(
    x: Array,
    kernel: Array,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
    *,
    back: bool = False,
    as_array: bool = False,
) -> Array:
    """`lax.conv_general_dilated` of two spatial axes, one group, stride 1 and three rows of taps.

    Args:
        x: `[B, H, W, C]`, float32.
        kernel: `[3, kw, C, O]`; if `back`, `[3, kw, O, C]`, turned round by 180 degrees as it is
            used: the gradient of the convolution with this kernel by its input.
        pads: zeros before and after, per spatial axis.
        dilation: pixels between the taps of the kernel, one number per spatial axis.
        precision: as `lax.conv_general_dilated` takes it.
        back: see `kernel`.
        as_array: see `winograd.convolve_axis`.

    Returns:
        `[B, H', W', O]`.
    """
    _, width = places(padded_size(x.shape[1:3], pads), kernel.shape[:2], (1, 1), dilation)
    if back:
        kernel = jnp.flip(kernel, (0, 1))
    wide = kernel.shape[1] == 1 or min(kernel.shape[2:]) >= (_WIDE_BACK if back else _WIDE)
    if wide:

        def products(row: Array, taps: list[Array]) -> Array:
            return _products(row, taps, dilation[1], width, precision, back)

        taps = [kernel[:, tap] for tap in range(kernel.shape[1])]
        numbers = (pads, dilation[0], products)
        together = x.size <= _TOGETHER
        return convolve_axis(x, taps, *numbers, together=together, as_array=as_array)

    def convolution(row: Array, taps: Array) -> Array:
        return _convolution(row, taps, dilation[1], precision, back)

    return convolve_axis(x, kernel, pads, dilation[0], convolution, width, as_array=as_array)


def _convolution(x: Array, kernel: Array, dilation: int, precision: object, back: bool) -> Array:
    """`[B, q, d, W, O]`: a convolution along the rows, whose last columns are of no use.

    The rows of an image lie behind each other, as one: it is divided among the cores better.
    """
    reach = (len(kernel) - 1) * dilation
    y = lax.conv_general_dilated(
        x.reshape(len(x), 1, -1, x.shape[-1]),
        kernel[None],
        (1, 1),
        ((0, 0), (0, reach)),
        rhs_dilation=(1, dilation),
        dimension_numbers=("NHWC", "HWOI" if back else "HWIO", "NHWC"),
        precision=precision,  # type: ignore[arg-type]
    )
    return y.reshape(*x.shape[:-1], -1)


def _products(
    x: Array, taps: list[Array], dilation: int, width: int, precision: object, back: bool
) -> Array:
    """`[B, q, d, width, O]`: the same, a product for each tap; no kernel is laid out anew."""
    contracted = ((1,), (1 if back else 0,))
    parts = (
        lax.dot_general(
            _columns(x, tap * dilation, width),
            weights,
            (contracted, ((), ())),
            precision=precision,  # type: ignore[arg-type]
        )
        for tap, weights in enumerate(taps)
    )
    return functools.reduce(jnp.add, parts).reshape(*x.shape[:3], width, -1)


def _columns(x: Array, start: int, width: int) -> Array:
    """`[P, C]`: all pixels of so many columns."""
    return x[:, :, :, start : start + width].reshape(-1, x.shape[-1])


def winograd_kernel_gradient(
    x: Array, cotangent: Array, shape: Sequence[int], pads: Pairs, dilation: Numbers
) -> Array:
    """The gradient of `winograd_conv2d` by its kernel.

    Args:
        x: `[B, H, W, C]`, float32.
        cotangent: `[B, H', W', O]`.
        shape: of the kernel, `[3, kw, C, O]`.
        pads: zeros before and after, per spatial axis.
        dilation: pixels between the taps of the kernel, one number per spatial axis.

    Returns:
        `[3, kw, C, O]`.
    """
    _, taps, c_in, c_out = shape

    def columns(seen: Array, met: Array) -> tuple[list[Array], Array]:
        width = met.shape[3]
        every = [_columns(seen, tap * dilation[1], width) for tap in range(taps)]
        return every, met.reshape(-1, c_out)

    def as_patches(seen: Array, met: Array) -> Array:
        every, met = columns(seen, met)
        return lax.dot_general(met, jnp.concatenate(every, -1), (((0,), (0,)), ((), ())))

    def as_taps(seen: Array, met: Array) -> list[Array]:
        every, met = columns(seen, met)
        return [jnp.matmul(column.T, met) for column in every]

    numbers = (x, cotangent, pads, dilation[0])
    if c_in * c_out > _UNFOLDED:
        pixels = _TOGETHER / max(c_in, c_out)
        return jnp.stack(kernel_gradient_axis(*numbers, as_taps, pixels), axis=1)
    pixels = ROWS * _PATCHES / (taps * min(c_in, c_out))
    gradient = kernel_gradient_axis(*numbers, as_patches, pixels)  # [3, O, kw * C]
    return gradient.transpose(0, 2, 1).reshape(shape)
