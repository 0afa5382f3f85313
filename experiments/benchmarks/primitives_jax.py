"""The primitives in jax: by `segzoo.ops`, and as they are usually written with linen and lax."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.benchmarks.plain_linen import places, scatter
from experiments.benchmarks.primitives import PRIMITIVES
from segzoo.layers import Norm
from segzoo.ops.convolution import conv_general_dilated, conv_transpose
from segzoo.ops.pooling import max_pool
from segzoo.ops.spatial import resize
from segzoo.ops.unpooling import max_pool_indices, max_unpool

Array = jax.Array
Operation = Callable[..., Array]
"""Of the input `[B, *S, C]` and the weights."""


def build(operation: Operation, name: str, shape: Sequence[int], dtype: str, backward: bool) -> Any:
    """Returns a function without arguments that makes one call.

    Args:
        operation: of the input and its weights.
        name: of the primitive, which says the weights' shapes.
        shape: `[B, *S, C]` of the input.
        dtype: of input and kernels; vectors are float32.
        backward: also take the gradients by the input and the weights.
    """
    rng = np.random.default_rng(0)

    def draw(shape: Sequence[int]) -> Array:
        return jnp.asarray(rng.normal(size=shape), dtype if len(shape) > 1 else "float32")

    x = draw(shape)
    weights = [draw(size) for size in PRIMITIVES[name].weights(shape[-1])]
    if not backward:
        forward = jax.jit(operation)
        return lambda: forward(x, *weights)
    cotangent = draw(jax.eval_shape(operation, x, *weights).shape)

    @jax.jit
    def both(cotangent: Array, *arguments: Array) -> Any:
        value, pull = jax.vjp(operation, *arguments)
        return value, pull(cotangent)

    return lambda: both(cotangent, x, *weights)


def _scaled(factor: int, shape: Sequence[int]) -> list[int]:
    return [factor * n for n in shape]


def _convolution(convolve: Any, groups: bool = False, dilation: int = 1) -> Operation:
    def apply(x: Array, kernel: Array) -> Array:
        rank = x.ndim - 2
        axes = "DHW"[3 - rank :]
        return convolve(
            x,
            kernel,
            (1,) * rank,
            "SAME",
            rhs_dilation=(dilation,) * rank,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=x.shape[-1] if groups else 1,
        )

    return apply


def _batch_norm(x: Array, scale: Array, bias: Array) -> Array:
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)},
    }
    y, _ = Norm("batch", x.dtype).apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.asarray(y)


def _plain_unpool(x: Array) -> Array:
    return scatter(nn.max_pool(x, (2, 2), (2, 2)), places(x), x.shape)


OURS: dict[str, Operation] = {
    "convolution 3x3": _convolution(conv_general_dilated),
    "convolution 3x3, rate 2": _convolution(conv_general_dilated, dilation=2),
    "convolution 3x3x3": _convolution(conv_general_dilated),
    "depthwise 3x3": _convolution(conv_general_dilated, groups=True),
    "up-convolution 2x2": lambda x, kernel: conv_transpose(x, kernel, (2, 2)),
    "bilinear x2": lambda x: resize(x, _scaled(2, x.shape[1:-1])),
    "bilinear x8": lambda x: resize(x, _scaled(8, x.shape[1:-1])),
    "max-pool 2x2": lambda x: max_pool(x, (2, 2)),
    "max-pool 2x2 and unpool": lambda x: max_unpool(
        max_pool(x, (2, 2), padding="SAME"), max_pool_indices(x), x.shape[1:-1]
    ),
    "batch norm": _batch_norm,
}


def _jax_resize(factor: int) -> Operation:
    def apply(x: Array) -> Array:
        size = (x.shape[0], *_scaled(factor, x.shape[1:-1]), x.shape[-1])
        return jax.image.resize(x, size, "bilinear")

    return apply


# Those that are something else than ours.
PLAIN: dict[str, Operation] = {
    "convolution 3x3x3": _convolution(lax.conv_general_dilated),
    "depthwise 3x3": _convolution(lax.conv_general_dilated, groups=True),
    "up-convolution 2x2": lambda x, kernel: lax.conv_transpose(
        x, kernel, (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ),
    "bilinear x2": _jax_resize(2),
    "bilinear x8": _jax_resize(8),
    "max-pool 2x2": lambda x: nn.max_pool(x, (2, 2), (2, 2)),
    "max-pool 2x2 and unpool": _plain_unpool,
}
