"""The order in which a program computes what its data leave open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array


def after(x: Array, other: Array) -> Array:
    """Returns `x` as it is, which is then not to be had before `other`.

    XLA is free to compute what nothing waits for early or late (the gradient of a kernel waits for
    the optimizer alone), and all that it is made of, or is wanted for, stays in memory meanwhile.
    An optimization barrier does not help on a CPU, where it is gone by the time that operations are
    put in order.

    Args:
        x: floating, of any shape.
        other: floating, of any shape with at least one element.
    """
    # Less 0, numbers stay what they are, -0 too.
    return x - _unknown_zero(other).astype(x.dtype)


def once(compute: Callable[..., Any], x: Any, *others: Any) -> Any:
    """Returns `compute(x, *others)`, computed once and kept as an array, or as several.

    As an expression, XLA would compute it again in everything that reads it, the gradient of what
    follows too, and keep `x` until then. Out of a loop comes an array: one of a single round, of
    which XLA does not know that it is the only one.

    Args:
        compute: traceable.
        x: a floating array with at least one element, or several.
        *others: further arguments, which are no arrays.
    """
    shapes = jax.eval_shape(lambda x: compute(x, *others), x)
    # Room is taken when the loop begins, not when the program does.
    none = _unknown_zero(jax.tree.leaves(x)[-1])
    room = jax.tree.map(lambda y: jnp.broadcast_to(none.astype(y.dtype), y.shape), shapes)

    def run(carry: tuple[Array, Any]) -> tuple[Array, Any]:
        return carry[0] + 1, compute(x, *others)

    _, y = lax.while_loop(lambda carry: carry[0] < 1, run, (none.astype(jnp.int32), room))
    return y


def _unknown_zero(x: Array) -> Array:
    """The integer 0. XLA does not know that it is, nor that it needs no `x` to be had."""
    return jnp.minimum(jnp.isnan(x[(0,) * x.ndim]), 0)
