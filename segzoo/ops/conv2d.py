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
import numpy as np
from jax import lax

Array = jax.Array
Numbers = tuple[int, ...]  # one per spatial axis
Pairs = tuple[tuple[int, int], ...]

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
    window = kernel.shape[:2]
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    reaches = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    lasts = [
        (n - reach) // s * s + 1
        for n, reach, s in zip(padded.shape[1:3], reaches, strides, strict=True)
    ]
    taps = []
    for tap in np.ndindex(*window):
        starts = [i * d for i, d in zip(tap, dilation, strict=True)]
        ends = (a + last for a, last in zip(starts, lasts, strict=True))
        limits = (x.shape[0], *ends, x.shape[-1])
        taps.append(lax.slice(padded, (0, *starts, 0), limits, (1, *strides, 1)))
    patches = jnp.concatenate(taps, axis=-1)
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
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    batch, height, width, channels = x.shape
    beyond = [(k - 1) * d for k, d in zip(kernel.shape, dilation, strict=False)]
    row = x.transpose(1, 0, 2, 3).reshape(1, height, batch * width, channels)
    y = lax.conv_general_dilated(
        row,
        kernel,
        (1, 1),
        ((0, 0), (0, beyond[1])),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,  # type: ignore[arg-type]
    )
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
    if any(n < 0 for pair in around for n in pair):
        # More zeros were around than the kernel reaches: their gradients are dropped.
        over = [(max(0, -before), max(0, -after)) for before, after in around]
        spans = (slice(a, n - b) for n, (a, b) in zip(cotangent.shape[1:-1], over, strict=True))
        cotangent = cotangent[(slice(None), *spans)]
        around = tuple((max(0, before), max(0, after)) for before, after in around)
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
    (high, wide), c_in, (batch, height, width, c_out) = window, x.shape[-1], cotangent.shape
    images, rows = _block(batch, height, width)
    bands = -(-height // rows)
    # Missing rows, images: a cotangent of zero adds nothing.
    missing = (-batch % images, bands * rows - height)
    cotangent = jnp.pad(cotangent, ((0, missing[0]), (0, missing[1]), (0, 0), (0, 0)))
    # What a band sees, from the first tap of its first row to the last of its last.
    reach = (rows - 1) * strides[0] + (high - 1) * dilation[0] + 1
    top, bottom = pads[0]
    lowest = (bands - 1) * rows * strides[0] + reach
    below = max(bottom, lowest - x.shape[1] - top)
    around = [(0, missing[0], 0), (top, below, 0), (*pads[1], 0), (0, 0, 0)]
    padded = lax.pad(x, jnp.zeros((), x.dtype), around)
    total_dtype = jnp.promote_types(x.dtype, jnp.float32)

    def patches(seen: Array) -> Array:
        """`[images, reach, W, C] -> [images * rows * width, kh * kw * C]`."""
        taps = []
        for i, j in np.ndindex(high, wide):
            start = (0, i * dilation[0], j * dilation[1], 0)
            last = ((rows - 1) * strides[0] + 1, (width - 1) * strides[1] + 1)
            end = (images, start[1] + last[0], start[2] + last[1], c_in)
            taps.append(lax.slice(seen, start, end, (1, *strides, 1)))
        return jnp.concatenate(taps, axis=-1).reshape(-1, high * wide * c_in)

    def add(total: Array, block: Array) -> tuple[Array, None]:
        image, row = block // bands * images, block % bands * rows
        seen = lax.dynamic_slice(
            padded, (image, row * strides[0], 0, 0), (images, reach, *padded.shape[2:])
        )
        met = lax.dynamic_slice(cotangent, (image, row, 0, 0), (images, rows, width, c_out))
        left = met.reshape(-1, c_out).T
        if c_out <= high * wide * c_in:  # laid out in memory it is multiplied faster
            left = lax.optimization_barrier(left)
        return total + jnp.matmul(left, patches(seen), preferred_element_type=total_dtype), None

    zeros = jnp.zeros((c_out, high * wide * c_in), total_dtype)
    total, _ = lax.scan(add, zeros, jnp.arange(len(cotangent) // images * bands))
    return total.T.reshape(high, wide, c_in, c_out)


def _block(batch: int, height: int, width: int) -> tuple[int, int]:
    """Of how many images, and how many of their rows, a block consists."""
    if height * width > _BLOCK:
        return 1, _divisor(height, max(1, _BLOCK // width))
    return _divisor(batch, min(batch, _BLOCK // (height * width))), height


def _divisor(number: int, wanted: int) -> int:
    """The largest divisor of a number up to the wanted one, unless it were less than half of it."""
    divisors = (part for part in range(wanted, wanted // 2, -1) if number % part == 0)
    return next(divisors, wanted)
