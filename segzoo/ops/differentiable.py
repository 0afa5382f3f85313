"""Convolutions whose gradients have forms of their own and come one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from segzoo.ops.order import after
from segzoo.ops.windows import Numbers, Pairs

Array = jax.Array
Shape = tuple[int, ...]
Convolution = Callable[..., Array]
Gradient = Callable[[Array, Array, Shape, Numbers, Pairs, Numbers, object], Array]


def differentiable(forward: Convolution, by_input: Gradient, by_kernel: Gradient) -> Convolution:
    """Gives a convolution its gradients.

    Args:
        forward: of `(x, kernel, strides, pads, dilation, precision)`; in training with
            `as_array=True`, see `winograd.convolve_axis`.
        by_input: of `(cotangent, kernel, shape, ...)`, the shape of `x` and the same numbers.
        by_kernel: of `(x, cotangent, shape, ...)`, the shape of the kernel and the same numbers.

    Returns:
        `forward`, for reverse-mode differentiation, or forward over it.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
    def convolution(
        x: Array, kernel: Array, strides: Numbers, pads: Pairs, dilation: Numbers, precision: object
    ) -> Array:
        return forward(x, kernel, strides, pads, dilation, precision)

    def run(
        x: CustomVJPPrimal,
        kernel: CustomVJPPrimal,
        strides: Numbers,
        pads: Pairs,
        dilation: Numbers,
        precision: object,
    ) -> tuple[Array, tuple[Array, Array, tuple[()] | None]]:
        numbers = (strides, pads, dilation, precision)
        y = forward(x.value, kernel.value, *numbers, as_array=True)
        # What is no array goes on by the structure alone.
        return y, (x.value, kernel.value, () if kernel.perturbed else None)

    def back(
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
        numbers = (strides, pads, dilation, precision)
        # Nothing is made of the image before the gradient is there.
        seen = after(x, cotangent)
        for_kernel = by_kernel(seen, cotangent, kernel.shape, *numbers).astype(kernel.dtype)
        if learned is not None:
            # The gradient goes on once nothing here needs it any more.
            kernel = after(kernel, for_kernel)
        return by_input(cotangent, kernel, x.shape, *numbers), for_kernel

    convolution.defvjp(run, back, symbolic_zeros=True)
    return convolution
