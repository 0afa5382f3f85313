"""2-D convolution in the form that XLA's CPU compiler computes fast.

Which form depends on the sizes: a product of matrices, Winograd's algorithm, or one of the two
implementations of convolution that XLA has. By its own choice it takes the first of these,
YNNPACK's, wherever that is possible. That one gives the cores tiles of a row, and where a row has
fewer tiles than there are cores some stand idle, while the second, Eigen's, divides all rows among
them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.cores import has_wide_registers, usable_cores
from segzoo.ops import per_tap
from segzoo.ops.differentiable import Setting
from segzoo.ops.order import once
from segzoo.ops.windows import Numbers, Pairs, given_by_taps, pad, padded_size, places, seen_by_taps
from segzoo.ops.winograd2d import suits, winograd_conv2d

Array = jax.Array

# From how many pixels of an image on its gradients have forms of their own, see `conv2d`. Below it
# what is here must be linear to JAX, too.
LARGE = 150
# The first implementation hands out tiles of a row of so many columns and channels at least, larger
# ones where that is too little work (reckoned with so many products at most), up to an area.
_COLUMNS, _CHANNELS = 64, 64
_WORK, _PRODUCTS, _AREA = 65536, 1024, 65536
# It starts from so many columns, and from the channels whose weights it lays out together.
_FIRST, _WEIGHTS = 16, 32768
# With a smaller share of the cores busy another form is faster.
_BUSY = 0.85
# Of as few channels in and out XLA takes the second anyway; with as few of them out that is slow.
_FEW_CHANNELS = 16


# A call of its own in every program: `segzoo.cost` counts it as a plain convolution.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), static_argnames="as_array")
def convolve2d(
    x: Array,
    kernel: Array,
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
    *,
    as_array: bool = False,
) -> Array:
    """`lax.conv_general_dilated` of two spatial axes and one group.

    The arguments are `conv2d`'s, and `as_array` is `winograd.convolve_axis`'s.
    """
    if kernel.shape[:2] == (1, 1) and not any(map(any, pads)):
        # Of one pixel: a product of matrices, for which XLA takes it on other devices only.
        x = lax.slice(x, (0,) * 4, x.shape, (1, *strides, 1))
        return jnp.matmul(x, kernel[0, 0], precision=precision)  # type: ignore[arg-type]
    size = padded_size(x.shape[1:3], pads)
    height, width = places(size, kernel.shape[:2], strides, dilation)
    halved = suits(x, kernel.shape, (len(x), height, width), strides, dilation)
    setting = Setting(strides, pads, dilation, precision)
    if per_tap.suits(x.dtype, x.shape, kernel.shape, setting, halved=halved):
        return per_tap.per_tap_conv2d(x, kernel, setting, as_array=as_array)
    if halved:
        return winograd_conv2d(x, kernel, pads, dilation, precision, as_array=as_array)
    usual = x.dtype == jnp.float32 and max(strides) == 1 and min(height, width) > 0
    idle = usual and _leaves_cores_idle(x, kernel, height, width)
    # In training it makes a step slower where it need not be.
    gains = idle or (usual and not (as_array or has_wide_registers()))
    if gains and _are_few_of_many(kernel):
        given = _given(x, kernel, precision)
        if as_array or height * width < LARGE or not x.size:
            return given_by_taps(given, kernel.shape[:2], pads, dilation)
        # In a dense block all later layers read it: none is to add it up again.
        return once(given_by_taps, given, kernel.shape[:2], pads, dilation)
    more = 0
    if idle:
        # XLA takes the second for results larger than the image, the one way to say which.
        more = x.shape[1] + 1 - height
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


def _are_few_of_many(kernel: Array) -> bool:
    """Whether few channels come out of many."""
    *window, c_in, c_out = kernel.shape
    # What is given is an array: no larger than a few of the image.
    return 4 * c_out <= c_in and c_out <= _FEW_CHANNELS and math.prod(window) * c_out <= 4 * c_in


def _leaves_cores_idle(x: Array, kernel: Array, height: int, width: int) -> bool:
    """Whether XLA would take the first implementation though another form is faster."""
    if max(kernel.shape[2:]) <= _FEW_CHANNELS or height > x.shape[1] or width > x.shape[2]:
        return False
    busy = _share_of_busy_cores(width, kernel.shape[-1], math.prod(kernel.shape[:-1]))
    # The others cost rows that are not wanted.
    return busy * (x.shape[1] + 1) < _BUSY * height


def _share_of_busy_cores(width: int, c_out: int, products: int) -> float:
    """Which share of the cores the first implementation keeps busy with rows of that width."""
    columns, channels = _tile(width, c_out, products)
    cores = usable_cores()
    rounds = -(-(-(-width // columns) * -(-c_out // channels)) // cores)
    return width * c_out / (rounds * cores * min(columns, width) * min(channels, c_out))


def _tile(width: int, c_out: int, products: int) -> tuple[int, int]:
    """How many columns and channels its tiles have, as its schedule doubles them."""
    together = max(1, _WEIGHTS // (_CHANNELS * products)) * _CHANNELS
    columns, channels = min(width, _FIRST), min(c_out, together)
    least = min(width, _COLUMNS) * min(c_out, _CHANNELS)

    def enough() -> bool:
        work, area = (columns + channels) * min(products, _PRODUCTS), columns * channels
        return area >= least and (work >= _WORK or area >= _AREA)

    while not enough():
        if channels < c_out and (4 * channels <= columns or columns >= width):
            channels *= 2
        elif columns < width:
            columns *= 2
        else:
            break
    return columns, channels


def _given(x: Array, kernel: Array, precision: object) -> Array:
    """What every pixel gives to the windows it lies in, one product, to be added up where they are.

    For few channels out of many, where convolutions fill neither the cores nor their registers.
    """
    matrix = kernel.transpose(2, 0, 1, 3).reshape(kernel.shape[2], -1)
    return jnp.matmul(x, matrix, precision=precision)  # type: ignore[arg-type]


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
