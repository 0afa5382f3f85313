"""Batch normalisation in training, with a gradient of two passes over the maps.

Left to automatic differentiation, mean and variance each pass back a sum of their own over all
pixels, beside those of scale and offset. In closed form two sums serve all four.

In dense blocks every layer normalises the maps of all layers before it, by the same statistics:
there they are measured once, and their gradient is passed back once.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops.order import after

Array = jax.Array


def batch_norm(
    x: Array,
    scale: Array,
    bias: Array,
    *,
    epsilon: float,
    axis_name: str | None = None,
    dtype: Any = jnp.float32,
    statistics: tuple[Array, Array] | None = None,
) -> tuple[Array, Array, Array]:
    """Normalises every channel by the mean and variance of a batch.

    Ioffe and Szegedy, "Batch Normalization" (2015), algorithm 1; all sums are in float32 at least.
    Reverse-mode differentiation, or forward over it.

    Args:
        x: `[B, *S, C]`.
        scale: `[C]`, gamma.
        bias: `[C]`, beta.
        epsilon: added to the variance.
        axis_name: the mapped axis over whose devices the statistics are averaged.
        dtype: of the result.
        statistics: mean and variance, where `batch_statistics` has measured them already.

    Returns:
        `[B, *S, C]`, and the mean and the (biased) variance, `[C]` each. To gradients these two are
        constants.
    """
    if statistics is None:
        y, mean, var = _batch_norm(x, scale, bias, epsilon, axis_name, jnp.dtype(dtype))
    else:
        mean, var = statistics
        y = _normalize(x, mean, var, scale, bias, epsilon, jnp.dtype(dtype))
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def batch_statistics(x: Array, axis_name: str | None = None) -> tuple[Array, Array]:
    """Measures every channel of a batch, for several normalisations.

    Args:
        x: `[B, *S, C]`.
        axis_name: as for `batch_norm`.

    Returns:
        The mean and the (biased) variance, `[C]` each.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    axes = tuple(range(x.ndim - 1))
    mean, square = _averaged(wide.mean(axes), jnp.square(wide).mean(axes), axis_name)
    # By rounding the difference could be negative.
    return mean, jnp.maximum(0, square - jnp.square(mean))


@functools.partial(jax.jit, static_argnums=(5, 6), inline=True)
def normalize(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> Array:
    """Normalises every channel by a given mean and variance, `[C]`, scales and shifts it."""
    return ((x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _batch_norm(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None, dtype: Any
) -> tuple[Array, Array, Array]:
    mean, var = batch_statistics(x, axis_name)
    return normalize(x, mean, var, scale, bias, epsilon, dtype), mean, var


@functools.partial(jax.jit, static_argnums=(3, 4, 5), inline=True)
def _forward(
    x: Array, scale: Array, bias: Array, epsilon: float, axis_name: str | None, dtype: Any
) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    y, mean, var = _batch_norm(x, scale, bias, epsilon, axis_name, dtype)
    return (y, mean, var), (x, scale, bias, mean, var)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), inline=True)
def _backward(
    epsilon: float,
    axis_name: str | None,
    dtype: Any,
    residuals: tuple[Array, ...],
    cotangents: tuple[Array, Array, Array],
) -> tuple[Array, Array, Array]:
    x, scale, bias, mean, var = residuals
    # The forward pass subtracts the mean, too: XLA would keep that difference beside `x` for here.
    x = after(x, cotangents[0])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    cotangent, factor = cotangents[0].astype(wide), lax.rsqrt(var + epsilon)
    # Nothing shared by the sums and what follows them but a difference: more would be computed
    # once, and kept in an array of its own.
    centred = x.astype(wide) - mean
    axes = tuple(range(x.ndim - 1))
    for_bias, for_scale = cotangent.sum(axes), (cotangent * centred).sum(axes) * factor
    pixels = x.size // x.shape[-1]
    offset, slope = _averaged(for_bias / pixels, for_scale / pixels, axis_name)
    weight = factor * scale
    # Ending with a difference of two arrays it is kept as one. XLA computes again, in all that
    # reads it, what ends with a product of an array and a number for each channel.
    for_x = cotangent * weight - (centred * (factor * slope * weight) + offset * weight)
    return for_x.astype(x.dtype), for_scale.astype(scale.dtype), for_bias.astype(bias.dtype)


_batch_norm.defvjp(_forward, _backward)


@functools.partial(jax.jit, static_argnums=1, inline=True)
def _measure(x: Array, axis_name: str | None) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    mean, var = batch_statistics(x, axis_name)
    return (mean, var), (x, mean)


def _unmeasure(
    axis_name: str | None, residuals: tuple[Array, Array], cotangents: tuple[Array, Array]
) -> tuple[Array]:
    x, mean = residuals
    for_mean, for_var = _averaged(*cotangents, axis_name)
    pixels = x.size // x.shape[-1]
    centred = x.astype(mean.dtype) - mean
    return ((centred * (2 / pixels * for_var) + for_mean / pixels).astype(x.dtype),)


batch_statistics.defvjp(_measure, _unmeasure)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _normalize(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> Array:
    return normalize(x, mean, var, scale, bias, epsilon, dtype)


def _normalize_forward(
    x: Array, mean: Array, var: Array, scale: Array, bias: Array, epsilon: float, dtype: Any
) -> tuple[Array, tuple[Array, ...]]:
    y = normalize(x, mean, var, scale, bias, epsilon, dtype)
    return y, (x, mean, var, scale, bias)


def _normalize_backward(
    epsilon: float, dtype: Any, residuals: tuple[Array, ...], cotangent: Array
) -> tuple[Array, ...]:
    x, mean, var, scale, bias = residuals
    wide = jnp.promote_types(x.dtype, jnp.float32)
    cotangent, factor = cotangent.astype(wide), lax.rsqrt(var + epsilon)
    axes = tuple(range(x.ndim - 1))
    for_bias = cotangent.sum(axes)
    # Of the maps as they are: their difference from the mean would be an array of its own.
    for_scale = ((cotangent * x.astype(wide)).sum(axes) - mean * for_bias) * factor
    for_x = (cotangent * (factor * scale)).astype(x.dtype)
    # What the two sums weigh by is the same for all pixels.
    for_mean = -factor * scale * for_bias
    for_var = -0.5 * jnp.square(factor) * scale * for_scale
    return for_x, for_mean, for_var, for_scale.astype(scale.dtype), for_bias.astype(bias.dtype)


_normalize.defvjp(_normalize_forward, _normalize_backward)


def _averaged(a: Array, b: Array, axis_name: str | None) -> tuple[Array, Array]:
    """Averages both over the devices of a mapped axis, together: one collective."""
    if axis_name is None:
        return a, b
    a, b = lax.pmean(jnp.stack((a, b)), axis_name)
    return a, b
