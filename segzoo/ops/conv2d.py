"""2-D convolution with a gradient that XLA's CPU compiler computes fast.

Its forward pass and its gradient by the input reach nearly what products of matrices do, but its
gradient by the kernel, a convolution with a filter as large as the image, falls to a fifth of that
on large maps. Here it is a sum of products of matrices instead: a few rows of the image at a time
are unfolded into patches, while they are in the cache, and multiplied by the cotangent.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from segzoo.ops.convolve2d import convolve2d
from segzoo.ops.order import after
from segzoo.ops.windows import Numbers, Pairs, seen_by_taps, sum_over_blocks

Array = jax.Array

# From how many output pixels of an image on the products win, and how many are unfolded at a time.
_LARGE = 150
_BLOCK = 1024


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv2d(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """`lax.conv_general_dilated` of two spatial axes and one group, its gradient fast on CPU.

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
    return convolve2d(x, kernel, strides, pads, dilation, precision)


def _forward(
    x: CustomVJPPrimal,
    kernel: CustomVJPPrimal,
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
) -> tuple[Array, tuple[Array, Array, tuple[()] | None]]:
    y = convolve2d(x.value, kernel.value, strides, pads, dilation, precision)
    # What is no array goes on by the structure alone.
    return y, (x.value, kernel.value, () if kernel.perturbed else None)


def _backward(
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
    kept: tuple[Array, Array, tuple[()] | None],
    cotangent: Array | SymbolicZero,
) -> tuple[Array, Array]:
    x, kernel, learned = kept
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros_like(x), jnp.zeros_like(kernel)

    def by_kernel(kernel: Array) -> Array:
        return convolve2d(x, kernel, strides, pads, dilation, precision)

    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        seen = lax.slice(after(x, cotangent), (0,) * 4, x.shape, (1, *strides, 1))
        for_kernel = _matrix_gradient(seen, cotangent).astype(kernel.dtype)[None, None]
    elif math.prod(cotangent.shape[1:-1]) < _LARGE:
        (for_kernel,) = jax.linear_transpose(by_kernel, kernel)(cotangent)
    else:
        # Not padded before the gradient is there.
        seen = after(x, cotangent)
        for_kernel = _kernel_gradient(seen, cotangent, kernel.shape, strides, pads, dilation)
        for_kernel = for_kernel.astype(kernel.dtype)
    if learned is not None:
        # The gradient goes on once nothing here needs it any more.
        kernel = after(kernel, for_kernel)
    for_x = _input_gradient(x, cotangent, kernel, strides, pads, dilation, precision)
    return for_x, for_kernel


conv2d.defvjp(_forward, _backward, symbolic_zeros=True)


def _input_gradient(
    x: Array,
    cotangent: Array,
    kernel: Array,
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
) -> Array:
    """`[B, H, W, C]`: what the taps passed on comes back through them."""
    if max(strides) > 1:

        def by_input(x: Array) -> Array:
            return convolve2d(x, kernel, strides, pads, dilation, precision)

        (gradient,) = jax.linear_transpose(by_input, x)(cotangent)
        return jnp.asarray(gradient)
    back = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    around = _turned(kernel.shape, pads, dilation)
    return convolve2d(cotangent, back, strides, around, dilation, precision)


def _turned(shape: Sequence[int], pads: Pairs, dilation: Numbers) -> Pairs:
    """The pads with which a kernel leads back, from outputs to inputs."""
    reaches = ((k - 1) * d for k, d in zip(shape, dilation, strict=False))
    return tuple((r - before, r - after) for r, (before, after) in zip(reaches, pads, strict=True))


def _matrix_gradient(x: Array, cotangent: Array) -> Array:
    """`[C, O]`: the gradient of a convolution of one pixel, a product over all pixels."""
    c_in, c_out = x.shape[-1], cotangent.shape[-1]
    x, cotangent = x.reshape(-1, c_in), cotangent.reshape(-1, c_out)
    total_dtype = jnp.promote_types(x.dtype, jnp.float32)
    # The first of two factors is laid out anew: the narrower one.
    if c_in <= c_out:
        return jnp.matmul(x.T, cotangent, preferred_element_type=total_dtype)
    return jnp.matmul(cotangent.T, x, preferred_element_type=total_dtype).T


def _kernel_gradient(
    x: Array,
    cotangent: Array,
    shape: tuple[int, ...],
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
) -> Array:
    """`[kh, kw, C, O]`: the sum over places of what a tap saw there, times the cotangent there."""
    *window, c_in, c_out = shape
    if max(strides) > 1 or c_in < 4 * c_out:
        return _products(x, cotangent, window, strides, pads, dilation)
    # Far fewer channels come out than went in: unfolded is what came out, as each input saw it.
    around = _turned(window, pads, dilation)
    seen_back = _products(cotangent, x, window, strides, around, dilation)
    return jnp.flip(seen_back, (0, 1)).transpose(0, 1, 3, 2)


def _products(
    x: Array,
    cotangent: Array,
    window: Sequence[int],
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
) -> Array:
    """`[kh, kw, C, O]`: the sum over blocks of rows of `patches(x).T @ cotangent`, float32."""
    c_in, c_out = x.shape[-1], cotangent.shape[-1]
    columns = math.prod(window) * c_in
    total_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def product(seen: Array, met: Array) -> Array:
        left = met.reshape(-1, c_out).T
        if c_out <= columns:  # laid out in memory it is multiplied faster
            left = lax.optimization_barrier(left)
        # Matrices are laid side by side faster than arrays of four axes.
        taps = [tap.reshape(-1, c_in) for tap in seen_by_taps(seen, window, strides, dilation)]
        patches = jnp.concatenate(taps, axis=-1)
        return jnp.matmul(left, patches, preferred_element_type=total_dtype)

    reach = (window[0] - 1) * dilation[0] + 1
    total = sum_over_blocks(product, x, pads, cotangent, strides[0], reach, _BLOCK)
    return total.T.reshape(*window, c_in, c_out)
