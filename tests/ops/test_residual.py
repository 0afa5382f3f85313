"""The end of a residual block: the usual values, computed once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops.residual import relu_of_sum

NUMBERS = [0.0, 1.5, -1.5, 3e38, -3e38, 1e-45, -1e-45, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_are_those_of_relu(usual_emitters, dtype):
    x, shortcut = (each.ravel() for each in jnp.meshgrid(*[jnp.asarray(NUMBERS, dtype)] * 2))
    weight = jnp.arange(1, x.size + 1, dtype=dtype)

    def value_and_gradients(function):
        def run(x, shortcut):
            y, pull = jax.vjp(function, x, shortcut)
            _, pushed = jax.jvp(function, (x, shortcut), (weight, weight))
            return y, *pull(weight), pushed

        return jax.jit(run, compiler_options=usual_emitters)(x, shortcut)

    got = value_and_gradients(relu_of_sum)
    expected = value_and_gradients(lambda x, shortcut: jax.nn.relu(x + shortcut))
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.dtype == dtype
        np.testing.assert_array_equal(np.asarray(ours, "f"), np.asarray(theirs, "f"))


def test_a_block_is_computed_from_the_one_before_alone():
    def inputs_of_the_largest_operation(blocks, end):
        def network(kernels, x):
            for kernel in kernels:
                x = end(jnp.einsum("bhwc,cd->bhwd", x, kernel), x)
            return jnp.sum(x**2)

        kernels = [jax.ShapeDtypeStruct((8, 8), jnp.float32)] * blocks
        x = jax.ShapeDtypeStruct((2, 6, 6, 8), jnp.float32)
        program = jax.jit(jax.grad(network)).lower(kernels, x).compile().as_text()
        return max(part.count(",") + 1 for part in re.findall(r" fusion\(([^)]*)\)", program))

    assert inputs_of_the_largest_operation(12, lambda x, y: jax.nn.relu(x + y)) > 8
    few = inputs_of_the_largest_operation(3, relu_of_sum)
    assert inputs_of_the_largest_operation(12, relu_of_sum) == few
