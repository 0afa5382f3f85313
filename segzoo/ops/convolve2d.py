"""2-D convolution in the form that XLA's CPU compiler computes fast.

Which form depends on the sizes: a product of matrices, or one of the two implementations of
convolution that XLA has. By its own choice it takes the first, YNNPACK's, wherever that is
possible. That one gives the cores tiles of a row, and where a row has fewer tiles than there are
cores some stand idle, while the second, Eigen's, divides all rows among them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.cores import usable_cores
from segzoo.ops.windows import Numbers, Pairs, pad, padded_size, places, seen_by_taps

Array = jax.Array

# The tiles of a row that the first implementation hands out: so many columns and channels, more
# columns where that is too little work, reckoned with so many products at most.
_COLUMNS, _CHANNELS = 64, 64
_WORK, _PRODUCTS = 65536, 1024
# With a smaller share of the cores busy the second is faster; of as few channels XLA takes it
# anyway.
_BUSY = 0.85
_FEW_CHANNELS = 16


# A call of its own in every program: `segzoo.cost` counts the rows of the result alone.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5))
def convolve2d(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """`lax.conv_general_dilated` of two spatial axes and one group; arguments as `conv2d` has."""
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        # Of one pixel: a product of matrices, for which XLA takes it on other devices only.
        x = lax.slice(x, (0,) * 4, x.shape, (1, *strides, 1))
        return jnp.matmul(x, kernel[0, 0], precision=precision)  # type: ignore[arg-type]
    more = _rows_to_add(x, kernel, strides, pads, dilation)
    (top, bottom), sides = pads
    y = lax.conv_general_dilated(
        x,
        kernel,
        strides,
        ((top, bottom + more), sides),
        rhs_dilation=dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision,  # type: ignore[arg-type]
    )
    return y[:, : y.shape[1] - more]


def _rows_to_add(x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers) -> int:
    """How many rows more to compute, so that XLA takes the implementation that is faster.

    The first is none for results larger than the image, the one way to say to XLA which to take.
    """
    if x.dtype != jnp.float32 or max(strides) > 1 or max(kernel.shape[2:]) <= _FEW_CHANNELS:
        return 0
    size = padded_size(x.shape[1:3], pads)
    height, width = places(size, kernel.shape[:2], strides, dilation)
    if min(height, width) < 1 or height > x.shape[1] or width > x.shape[2]:
        return 0
    more = x.shape[1] - height + 1
    busy = _share_of_busy_cores(width, kernel.shape[-1], math.prod(kernel.shape[:-1]))
    return more if busy * (height + more) < _BUSY * height else 0


def _share_of_busy_cores(width: int, c_out: int, products: int) -> float:
    """Which share of the cores the first implementation keeps busy with rows of that width."""
    columns, channels = min(_COLUMNS, width), min(_CHANNELS, c_out)
    while columns < width and (columns + channels) * min(products, _PRODUCTS) < _WORK:
        columns = min(2 * columns, width)
    cores = usable_cores()
    rounds = -(-(-(-width // columns) * -(-c_out // channels)) // cores)
    return width * c_out / (rounds * cores * columns * channels)


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
