"""Convolutions whose gradients have forms of their own and come one after the other."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero

from segzoo.ops.order import after
from segzoo.ops.windows import Numbers, Pairs

Array = jax.Array
Shape = tuple[int, ...]


class Setting(NamedTuple):
    """How the kernel of a convolution lies on the image, see `conv2d`."""

    strides: Numbers
    pads: Pairs
    dilation: Numbers
    precision: object


Kept = tuple[Array, Array, tuple[()] | None, tuple[()] | None]
Gradient = Callable[[Array, Array, Shape, Setting], Array]


def differentiable(
    forward: Callable[..., Array], by_input: Gradient, by_kernel: Gradient
) -> Callable[[Array, Array, Setting], Array]:
    """Gives a convolution its gradients.

    Args:
        forward: of `(x, kernel, *setting)`; in training with `as_array=True`, see
            `winograd.convolve_axis`.
        by_input: of `(cotangent, kernel, shape, setting)`, the shape of `x`.
        by_kernel: of `(x, cotangent, shape, setting)`, the shape of the kernel.

    Returns:
        `forward` of `(x, kernel, setting)`, for reverse-mode differentiation, or forward over it.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def convolution(x: Array, kernel: Array, setting: Setting) -> Array:
        return forward(x, kernel, *setting)

    def run(x: CustomVJPPrimal, kernel: CustomVJPPrimal, setting: Setting) -> tuple[Array, Kept]:
        y = forward(x.value, kernel.value, *setting, as_array=True)
        # What is no array goes on by the structure alone.
        wanted = [() if operand.perturbed else None for operand in (x, kernel)]
        return y, (x.value, kernel.value, *wanted)

    def back(
        setting: Setting,
        kept: Kept,
        cotangent: Array | SymbolicZero,
    ) -> tuple[Array, Array]:
        x, kernel, passed_on, learned = kept
        if isinstance(cotangent, SymbolicZero):
            return jnp.zeros_like(x), jnp.zeros_like(kernel)
        # Nothing is made of the image before the gradient is there.
        seen = after(x, cotangent)
        for_kernel = by_kernel(seen, cotangent, kernel.shape, setting).astype(kernel.dtype)
        if learned is not None:
            # The gradient goes on once nothing here needs it any more.
            kernel = after(kernel, for_kernel)
        for_input = by_input(cotangent, kernel, x.shape, setting)
        if learned is not None and passed_on is not None:
            # An optimizer that updates the kernel before this has read it would need a copy.
            for_kernel = after(for_kernel, for_input)
        return for_input, for_kernel

    convolution.defvjp(run, back, symbolic_zeros=True)
    return convolution
