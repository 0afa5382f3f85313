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

from segzoo.ops.windows import Numbers, Pairs, pad, seen_by_taps, sum_over_blocks

Array = jax.Array

# From how many output pixels of an image on the products win, and how many are unfolded at a time.
_LARGE = 150
_BLOCK = 1024

# Of images narrower than this, with fewer channels and not too few products for a pixel, a batch is
# convolved as one wide image.
_WIDE = 112
_MANY_CHANNELS = 128
_PRODUCTS = 3072


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
    return _convolve(x, kernel, strides, pads, dilation, precision)


def unfolded_conv2d(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """`conv2d` as the product of all patches with the kernel.

    For few pixels and large kernels (VGG's first fully connected layer as a convolution has 7 x 7 x
    512 x 4096 weights): a convolution would lay the kernel out anew, forward and backward, which
    takes longer than the products.
    """
    seen = seen_by_taps(pad(x, pads), kernel.shape[:2], strides, dilation)
    patches = jnp.concatenate(seen, axis=-1)
    matrix = kernel.reshape(-1, kernel.shape[-1])
    return jnp.matmul(patches, matrix, precision=precision)  # type: ignore[arg-type]


def _convolve(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        # Of one pixel: a product of matrices, for which XLA takes it on other devices only.
        x = lax.slice(x, (0,) * 4, x.shape, (1, *strides, 1))
        return jnp.matmul(x, kernel[0, 0], precision=precision)  # type: ignore[arg-type]
    if _is_narrow(x, kernel, strides):
        return _side_by_side(x, kernel, pads, dilation, precision)
    return _plain(x, kernel, strides, pads, dilation, precision)


def _plain(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,  # type: ignore[arg-type]
    )


def _is_narrow(x: Array, kernel: Array, strides: Numbers) -> bool:
    """Whether XLA, which hands out tiles of columns and channels, would keep one core busy alone.

    As measured; with fewer products for a pixel, wider images do not help either.
    """
    *_, c_in, c_out = kernel.shape
    few = c_out < _MANY_CHANNELS and c_in * c_out >= _PRODUCTS
    return max(strides) == 1 and len(x) > 1 and x.shape[2] < _WIDE and few


def _side_by_side(
    x: Array, kernel: Array, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """Convolves a batch as one wide image, its images side by side with their borders between."""
    x = pad(x, pads)
    batch, height, width, channels = x.shape
    beyond = [(k - 1) * d for k, d in zip(kernel.shape, dilation, strict=False)]
    row = x.transpose(1, 0, 2, 3).reshape(1, height, batch * width, channels)
    y = _plain(row, kernel, (1, 1), ((0, 0), (0, beyond[1])), dilation, precision)
    y = y.reshape(height - beyond[0], batch, width, -1)[:, :, : width - beyond[1]]
    return y.transpose(1, 0, 2, 3)


def _forward(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> tuple[Array, tuple[Array, Array]]:
    return _convolve(x, kernel, strides, pads, dilation, precision), (x, kernel)


def _backward(
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
    arguments: tuple[Array, Array],
    cotangent: Array,
) -> tuple[Array, Array]:
    x, kernel = arguments

    def by_kernel(kernel: Array) -> Array:
        return _convolve(x, kernel, strides, pads, dilation, precision)

    for_x = _input_gradient(x, cotangent, kernel, strides, pads, dilation, precision)
    if math.prod(cotangent.shape[1:-1]) < _LARGE:
        (for_kernel,) = jax.linear_transpose(by_kernel, kernel)(cotangent)
    else:
        for_kernel = _kernel_gradient(x, cotangent, kernel.shape, strides, pads, dilation)
        for_kernel = for_kernel.astype(kernel.dtype)
    return for_x, for_kernel


conv2d.defvjp(_forward, _backward)


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
            return _convolve(x, kernel, strides, pads, dilation, precision)

        (gradient,) = jax.linear_transpose(by_input, x)(cotangent)
        return jnp.asarray(gradient)
    back = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
    around = _turned(kernel.shape, pads, dilation)
    return _convolve(cotangent, back, strides, around, dilation, precision)


def _turned(shape: Sequence[int], pads: Pairs, dilation: Numbers) -> Pairs:
    """The pads with which a kernel leads back, from outputs to inputs."""
    reaches = ((k - 1) * d for k, d in zip(shape, dilation, strict=False))
    return tuple((r - before, r - after) for r, (before, after) in zip(reaches, pads, strict=True))


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
