"""3-D convolution as 2-D ones of slices: XLA's CPU compiler has none for volumes that is fast.

Along depth goes Winograd's algorithm, and `conv2d` computes the slices. Where that does not pay,
the taps along depth become channels.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from segzoo.ops.conv2d import conv2d, input_gradient2d, kernel_gradient2d
from segzoo.ops.convolve2d import convolve2d
from segzoo.ops.differentiable import Setting, Shape, differentiable
from segzoo.ops.kernel_gradient import turned
from segzoo.ops.order import once
from segzoo.ops.windows import Numbers, Pairs, given_by_taps, pad, padded_size, places, seen_by_taps
from segzoo.ops.winograd import convolve_axis, kernel_gradient_axis, suits_axis

Array = jax.Array

# From so many channels on both sides on Winograd's algorithm pays.
_CHANNELS = 16


def conv3d(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """`lax.conv_general_dilated` of three spatial axes and one group, fast on CPU.

    Args:
        x: `[B, D, H, W, C]`, floating.
        kernel: `[kd, kh, kw, C, O]`.
        strides: one number per spatial axis.
        pads: zeros before and after, per spatial axis.
        dilation: voxels between the taps of the kernel, one number per spatial axis.
        precision: as `lax.conv_general_dilated` takes it.

    Returns:
        `[B, D', H', W', O]`.
    """
    *_, c_in, c_out = kernel.shape
    (depth,) = places(padded_size(x.shape[1:2], pads[:1]), kernel.shape[:1], (1,), dilation[:1])
    if min(c_in, c_out) >= _CHANNELS and suits_axis(x.dtype, len(kernel), depth, strides, dilation):
        return _halved(x, kernel, Setting(strides, pads, dilation, precision))
    keeps_depth = strides[0] == 1 and sum(pads[0]) == (kernel.shape[0] - 1) * dilation[0]
    # What the taps give is laid side by side, or what they see, whichever is not the much wider.
    form = _given if keeps_depth and 2 * c_in >= c_out else _seen
    return form(x, kernel, strides, pads, dilation, precision)


# A call of its own in every program: `segzoo.cost` counts it as a plain convolution.
@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5), static_argnames="as_array")
def convolve3d(
    x: Array,
    kernel: Array,
    strides: Numbers,
    pads: Pairs,
    dilation: Numbers,
    precision: object,
    *,
    as_array: bool = False,
) -> Array:
    """Sums of slices, convolved in 2-D and added up again."""
    setting = Setting(strides, pads, dilation, precision)

    def along(slices: Array, taps: Array) -> Array:
        return _unflat(convolve2d(_flat(slices), taps, *_of_slices(setting)), slices)

    return convolve_axis(x, kernel, _of_depth(pads), dilation[0], along, as_array=as_array)


def _by_input(cotangent: Array, kernel: Array, shape: Shape, setting: Setting) -> Array:
    """`[B, D, H, W, C]`."""

    def along(slices: Array, taps: Array) -> Array:
        flat = _flat(slices)
        image = (len(flat), *shape[2:])
        return _unflat(input_gradient2d(flat, taps, image, _of_slices(setting)), slices)

    around = turned(kernel.shape[:1], setting.pads[:1], setting.dilation[:1])
    numbers = (_of_depth(around), setting.dilation[0])
    return convolve_axis(cotangent, kernel[::-1], *numbers, along, as_array=True)


def _by_kernel(x: Array, cotangent: Array, shape: Shape, setting: Setting) -> Array:
    """`[3, kh, kw, C, O]`."""

    def along(seen: Array, met: Array) -> Array:
        return kernel_gradient2d(_flat(seen), _flat(met), shape[1:], _of_slices(setting))

    numbers = (_of_depth(setting.pads), setting.dilation[0])
    return kernel_gradient_axis(x, cotangent, *numbers, along)


def _flat(slices: Array) -> Array:
    """`[B, q, d, H, W, C] -> [B * q * d, H, W, C]`."""
    return slices.reshape(-1, *slices.shape[3:])


def _unflat(flat: Array, slices: Array) -> Array:
    """As many slices as those, again."""
    return flat.reshape(*slices.shape[:3], *flat.shape[1:])


def _of_slices(setting: Setting) -> Setting:
    """That of the 2-D convolution of each slice."""
    strides, pads, dilation, precision = setting
    return Setting(strides[1:], pads[1:], dilation[1:], precision)


def _of_depth(pads: Pairs) -> Pairs:
    """Without those of the other axes, which convolutions of slices have."""
    return (pads[0], (0, 0), (0, 0))


_halved = differentiable(convolve3d, _by_input, _by_kernel)


def _given(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """Every slice gives its part to the `kd` slices around it: `kd * O` channels out of C.

    The gradient by the kernel unfolds the taps in a slice alone, a `kd`-th of what `_seen`'s does.
    """
    batch, depth, height, width, c_in = x.shape
    taps, *window, _, c_out = kernel.shape
    flat = kernel.transpose(1, 2, 3, 0, 4).reshape(*window, c_in, taps * c_out)
    slices = x.reshape(batch * depth, height, width, c_in)
    given = conv2d(slices, flat, strides[1:], pads[1:], dilation[1:], precision)
    given = given.reshape(batch, depth, *given.shape[1:])
    return _add_up(given, taps, pads[0], dilation[0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _add_up(given: Array, taps: int, pads: tuple[int, int], dilation: int) -> Array:
    """`[B, D, H, W, taps * O] -> [B, D, H, W, O]`: what the taps along depth give to a slice."""
    return given_by_taps(given, (taps, 1, 1), (pads, (0, 0), (0, 0)), (dilation, 1, 1))


def _add_up_forward(
    given: Array, taps: int, pads: tuple[int, int], dilation: int
) -> tuple[Array, None]:
    """The same, `once`: what was given is `taps` times as large as the result."""
    return once(_add_up, given, taps, pads, dilation), None


def _add_up_backward(
    taps: int, pads: tuple[int, int], dilation: int, _: None, cotangent: Array
) -> tuple[Array]:
    """`[B, D, H, W, taps * O]`, in one pass; the pads of automatic gradients would take many."""
    targets = _targets(taps, pads, dilation)
    shifted = (pad(cotangent, ((-target, target), (0, 0), (0, 0))) for target in targets)
    # As the slices that the gradient of `conv2d` takes: with depth, it would be copied.
    slices = [part.reshape(-1, *part.shape[2:]) for part in shifted]
    return (jnp.concatenate(slices, axis=-1).reshape(*cotangent.shape[:-1], -1),)


def _targets(taps: int, pads: tuple[int, int], dilation: int) -> list[int]:
    """The slice that each tap gives to, counted from the one that gives."""
    return [pads[0] - tap * dilation for tap in range(taps)]


_add_up.defvjp(_add_up_forward, _add_up_backward)


def _seen(
    x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
) -> Array:
    """Every slice sees the `kd` slices around it: O channels out of `kd * C`."""
    taps, *window, c_in, c_out = kernel.shape
    x = pad(x, (pads[0], (0, 0), (0, 0)))
    x = jnp.concatenate(
        seen_by_taps(x, (taps, 1, 1), (strides[0], 1, 1), (dilation[0], 1, 1)), axis=-1
    )
    batch, depth, *rest = x.shape
    flat = kernel.transpose(1, 2, 0, 3, 4).reshape(*window, taps * c_in, c_out)
    slices = x.reshape(batch * depth, *rest)
    y = conv2d(slices, flat, strides[1:], pads[1:], dilation[1:], precision)
    return y.reshape(batch, depth, *y.shape[1:])
