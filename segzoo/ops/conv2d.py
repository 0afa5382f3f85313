"""2-D convolution with gradients that XLA's CPU compiler computes fast.

Each of the three, forward and the gradients by input and kernel, is put into the form that is
fastest for its sizes.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops import per_tap
from segzoo.ops.convolve2d import LARGE, convolve2d
from segzoo.ops.differentiable import Setting, Shape, differentiable
from segzoo.ops.kernel_gradient import kernel_gradient, matrix_gradient, turned
from segzoo.ops.windows import Numbers, Pairs
from segzoo.ops.winograd2d import (
    suits,
    suits_gradient,
    winograd_conv2d,
    winograd_kernel_gradient,
)

Array = jax.Array


def conv2d(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """`lax.conv_general_dilated` of two spatial axes and one group, its gradients fast on CPU.

    Sums of the gradient by the kernel are in float32 at least. Reverse-mode differentiation only,
    or forward over it.

    Args:
        x: `[B, H, W, C]`, floating.
        kernel: `[kh, kw, C, O]`.
        strides: one number per spatial axis.
        pads: zeros before and after, per spatial axis.
        dilation: pixels between the taps of the kernel, one number per spatial axis.
        precision: as `lax.conv_general_dilated` takes it.

    Returns:
        `[B, H', W', O]`.
    """
    return _conv2d(x, kernel, Setting(strides, pads, dilation, precision))


def input_gradient2d(cotangent: Array, kernel: Array, shape: Shape, setting: Setting) -> Array:
    """`[B, H, W, C]`, of that shape: what the taps passed on comes back through them."""
    strides, pads, dilation, precision = setting
    halved = suits(cotangent, kernel.shape, shape, strides, dilation, back=True)
    if per_tap.suits(cotangent.dtype, shape, kernel.shape, setting, halved=halved, back=True):
        return per_tap.per_tap_input_gradient(cotangent, kernel, shape, setting)
    if max(strides) > 1:

        def by_input(x: Array) -> Array:
            return convolve2d(x, kernel, *setting)

        image = jax.ShapeDtypeStruct(shape, cotangent.dtype)
        (gradient,) = jax.linear_transpose(by_input, image)(cotangent)
        return jnp.asarray(gradient)
    around = turned(kernel.shape[:2], pads, dilation)
    if halved:
        numbers = (around, dilation, precision)
        return winograd_conv2d(cotangent, kernel, *numbers, back=True, as_array=True)
    back = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    return convolve2d(cotangent, back, strides, around, dilation, precision)


def kernel_gradient2d(x: Array, cotangent: Array, shape: Shape, setting: Setting) -> Array:
    """`[kh, kw, C, O]`, of that shape: the sum of what a tap saw times the cotangent there."""
    strides, pads, dilation, _ = setting
    if shape[:2] == (1, 1) and not any(map(any, pads)):
        seen = lax.slice(x, (0,) * 4, x.shape, (1, *strides, 1))
        return matrix_gradient(seen, cotangent)[None, None]
    halved = suits_gradient(x, shape, cotangent.shape, strides, dilation)
    if per_tap.suits(x.dtype, x.shape, shape, setting, halved=halved):
        return per_tap.per_tap_kernel_gradient(x, cotangent, shape, setting)
    if halved:
        return winograd_kernel_gradient(x, cotangent, shape, pads, dilation)
    if math.prod(cotangent.shape[1:-1]) >= LARGE:
        return kernel_gradient(x, cotangent, shape, strides, pads, dilation)

    def by_kernel(kernel: Array) -> Array:
        return convolve2d(x, kernel, *setting)

    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    (gradient,) = jax.linear_transpose(by_kernel, kernel)(cotangent)
    return jnp.asarray(gradient)


_conv2d = differentiable(convolve2d, input_gradient2d, kernel_gradient2d)
