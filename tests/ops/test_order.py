"""What is computed after something else is the same to the bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops.convolution import conv_general_dilated
from segzoo.ops.order import after

NUMBERS = [0.0, -0.0, 1.5, -3e38, 1e-45, np.inf, -np.inf, np.nan]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("other", [0.0, -2.0, np.inf, np.nan])
def test_numbers_stay_what_they_are(usual_emitters, dtype, other):
    x = jnp.asarray(NUMBERS, dtype)
    kept = jax.jit(after, compiler_options=usual_emitters)(x, jnp.full((2, 3), other))
    assert kept.dtype == dtype
    kept, x = np.asarray(kept, np.float32), np.asarray(x, np.float32)
    np.testing.assert_array_equal(kept, x)
    np.testing.assert_array_equal(np.signbit(kept), np.signbit(x))


def test_the_program_needs_the_other():
    compiled = jax.jit(after).lower(jnp.ones(4), jnp.ones(3)).compile()
    program = compiled.as_text().split("ENTRY")[1]
    assert [line for line in program.splitlines() if "other" in line and "parameter" not in line]


def test_kernels_are_updated_where_they_are():
    """No convolution reads a kernel that the optimizer may have updated already."""

    def step(kernels, x):
        def loss(kernels):
            y = x
            for kernel in kernels:
                y = conv_general_dilated(y, kernel, (1, 1), "SAME", (1, 1))
            return jnp.sum(y**2)

        gradients = jax.grad(loss)(kernels)
        return [kernel - 0.1 * g for kernel, g in zip(kernels, gradients, strict=True)]

    kernels = [jax.ShapeDtypeStruct((3, 3, 64, 64), jnp.float32)] * 3
    x = jax.ShapeDtypeStruct((2, 20, 20, 64), jnp.float32)
    program = jax.jit(step, donate_argnums=0).lower(kernels, x).compile().as_text()
    assert "may-alias" in program
    made = [line for line in program.splitlines() if "= f32[3,3,64,64]" in line]
    assert not [line for line in made if " copy(%kernels" in line]
