"""2-D convolution as a product of matrices for each tap, over the pixels that it sees.

None of the padding is multiplied. Where dilation is as large as the map (atrous spatial pyramid
pooling) most taps see little else, while an ordinary convolution lays out an image that is mostly
zeros. Fast on a CPU, for small maps of many channels; no kernel is laid out anew.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops.differentiable import Setting, Shape
from segzoo.ops.order import once
from segzoo.ops.windows import Numbers, padded_size, places

Array = jax.Array

# It pays from so many channels on both sides on, and so many multiply-adds.
_CHANNELS, _WORK = 128, 1e8
# And where in this share of their places at most the taps see pixels; less if there is a form with
# half the products.
_SEEN, _SEEN_OF_HALVED = 0.85, 0.7
# Of strided convolutions the gradient by the input is faster so from fewer channels on.
_STRIDED = 512


class _Span(NamedTuple):
    """Where a tap sees pixels along an axis: from place `start` to `end`, `first` to `last`."""

    start: int
    end: int
    first: int
    last: int


def suits(
    dtype: object,
    image: Shape,
    kernel: Shape,
    setting: Setting,
    *,
    halved: bool = False,
    back: bool = False,
) -> bool:
    """Whether a product for each tap is the fastest form.

    Args:
        dtype: of the image.
        image: its shape, `[B, H, W, C]`.
        kernel: its shape, `[kh, kw, C, O]`.
        setting: of the convolution.
        halved: whether there is a form with half the products.
        back: whether it is the gradient by the input.
    """
    channels = min(kernel[2:])
    if dtype != jnp.float32 or channels < _CHANNELS:
        return False
    axes = _axes(image[1:3], kernel[:2], setting)
    counts = _counts(image[1:3], kernel[:2], setting)
    if image[0] * math.prod(counts) * math.prod(kernel) < _WORK:
        return False
    seen = math.prod(sum(span.end - span.start for span in axis) for axis in axes)
    if max(setting.strides) > 1:
        return seen > 0 and (back or channels >= _STRIDED)
    most = _SEEN_OF_HALVED if halved else _SEEN
    return 0 < seen <= most * math.prod(counts) * math.prod(kernel[:2])


def per_tap_conv2d(x: Array, kernel: Array, setting: Setting, *, as_array: bool = False) -> Array:
    """`lax.conv_general_dilated` of two spatial axes and one group.

    Args:
        x: `[B, H, W, C]`.
        kernel: `[kh, kw, C, O]`.
        setting: of the convolution.
        as_array: see `winograd.convolve_axis`.

    Returns:
        `[B, H', W', O]`.
    """
    counts = _counts(x.shape[1:3], kernel.shape[:2], setting)
    parts, around = [], []
    for tap, spans in _taps(x.shape[1:3], kernel.shape[:2], setting):
        seen = _seen(x, spans, setting.strides)
        parts.append(_product(seen, kernel[tap], 0, setting))
        rest = zip(spans, counts, strict=True)
        around.append([(span.start, count - span.end, 0) for span, count in rest])
    return _added_up(parts, around, as_array=as_array)


def per_tap_input_gradient(
    cotangent: Array, kernel: Array, shape: Shape, setting: Setting
) -> Array:
    """The gradient of `per_tap_conv2d` by its input.

    Args:
        cotangent: `[B, H', W', O]`.
        kernel: `[kh, kw, C, O]`.
        shape: of the input, `[B, H, W, C]`.
        setting: of the convolution.

    Returns:
        `[B, H, W, C]`.
    """
    parts, around = [], []
    for tap, spans in _taps(shape[1:3], kernel.shape[:2], setting):
        parts.append(_product(_met(cotangent, spans), kernel[tap], 1, setting))
        rest = zip(spans, shape[1:3], setting.strides, strict=True)
        around.append([(span.first, n - 1 - span.last, s - 1) for span, n, s in rest])
    return _added_up(parts, around, as_array=True)


def per_tap_kernel_gradient(x: Array, cotangent: Array, shape: Shape, setting: Setting) -> Array:
    """The gradient of `per_tap_conv2d` by its kernel.

    Args:
        x: `[B, H, W, C]`.
        cotangent: `[B, H', W', O]`.
        shape: of the kernel, `[kh, kw, C, O]`.
        setting: of the convolution.

    Returns:
        `[kh, kw, C, O]`.
    """
    found = dict.fromkeys(itertools.product(*map(range, shape[:2])), jnp.zeros(shape[2:], x.dtype))
    for tap, spans in _taps(x.shape[1:3], shape[:2], setting):
        seen, met = _seen(x, spans, setting.strides), _met(cotangent, spans)
        found[tap] = jnp.matmul(seen.reshape(-1, shape[2]).T, met.reshape(-1, shape[3]))
    return jnp.stack(list(found.values())).reshape(shape)


def _taps(
    size: Sequence[int], window: Sequence[int], setting: Setting
) -> list[tuple[tuple[int, ...], tuple[_Span, ...]]]:
    """The taps that see pixels, and where."""
    axes = _axes(size, window, setting)
    taps = itertools.product(*map(range, window))
    found = zip(taps, itertools.product(*axes), strict=True)
    return [(tap, spans) for tap, spans in found if all(s.end > s.start for s in spans)]


def _axes(size: Sequence[int], window: Sequence[int], setting: Setting) -> list[list[_Span]]:
    """Where each tap along each axis sees pixels."""
    strides, pads, dilation, _ = setting
    counts = _counts(size, window, setting)
    every = []
    for n, taps, count, stride, (before, _), apart in zip(
        size, window, counts, strides, pads, dilation, strict=True
    ):
        axis = []
        for tap in range(taps):
            shift = tap * apart - before  # a place sees the pixel `place * stride + shift`
            start = max(0, -(shift // stride))
            end = max(start, min(count, (n - 1 - shift) // stride + 1))
            axis.append(_Span(start, end, start * stride + shift, (end - 1) * stride + shift))
        every.append(axis)
    return every


def _counts(size: Sequence[int], window: Sequence[int], setting: Setting) -> list[int]:
    return places(padded_size(size, setting.pads), window, setting.strides, setting.dilation)


def _seen(x: Array, spans: Sequence[_Span], strides: Numbers) -> Array:
    """The pixels that a tap sees."""
    starts = (0, *(span.first for span in spans), 0)
    limits = (len(x), *(span.last + 1 for span in spans), x.shape[-1])
    return lax.slice(x, starts, limits, (1, *strides, 1))


def _met(cotangent: Array, spans: Sequence[_Span]) -> Array:
    """The cotangent where it does."""
    rows, columns = (slice(span.start, span.end) for span in spans)
    return cotangent[:, rows, columns]


def _product(x: Array, weights: Array, axis: int, setting: Setting) -> Array:
    """Over the channels, which are that axis of the weights."""
    numbers = (((x.ndim - 1,), (axis,)), ((), ()))
    return lax.dot_general(x, weights, numbers, precision=setting.precision)  # type: ignore[arg-type]


def _added_up(
    parts: list[Array], around: list[list[tuple[int, int, int]]], *, as_array: bool
) -> Array:
    """The sum of maps, each with so many zeros before, after and between its pixels."""

    def compute(parts: list[Array]) -> Array:
        none = (0, 0, 0)
        zero = jnp.zeros((), parts[0].dtype)
        pairs = zip(parts, around, strict=True)
        return functools.reduce(
            jnp.add, (lax.pad(part, zero, [none, *pads, none]) for part, pads in pairs)
        )

    return once(compute, parts) if as_array else compute(parts)
