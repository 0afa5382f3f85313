"""Local response normalisation, by the paper's formula."""

import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import SegzooError
from segzoo.ops.normalization import local_response_norm


def by_the_formula(a, k, n, alpha, beta):
    b = np.empty_like(a)
    last = a.shape[-1] - 1
    for i in range(last + 1):
        around = a[..., max(0, i - n // 2) : min(last, i + n // 2) + 1]
        b[..., i] = a[..., i] / (k + alpha * np.sum(around**2, axis=-1)) ** beta
    return b


@pytest.mark.parametrize("channels", [1, 3, 5, 12])
@pytest.mark.parametrize(
    "numbers", [{}, {"k": 1.0, "n": 3, "alpha": 0.5, "beta": 2.0}, {"n": 1, "alpha": 1.0}]
)
def test_the_formula(channels, numbers):
    a = 30 * np.random.default_rng(0).normal(size=(2, 4, 3, channels))
    expected = by_the_formula(a, **{"k": 2, "n": 5, "alpha": 1e-4, "beta": 0.75, **numbers})
    got = local_response_norm(jnp.asarray(a, jnp.float32), **numbers)
    np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_alpha_is_not_divided_by_n():
    a = jnp.full((1, 1, 1, 5), 100.0)
    assert np.isclose(local_response_norm(a)[0, 0, 0, 2], 100 / (2 + 1e-4 * 5 * 100**2) ** 0.75)


def test_sums_are_in_float32():
    a = np.random.default_rng(0).normal(size=(1, 2, 2, 8)) * 200
    half = jnp.asarray(a, jnp.bfloat16)
    got = local_response_norm(half)
    assert got.dtype == jnp.bfloat16
    exact = local_response_norm(half.astype(jnp.float32))
    np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))


def test_an_even_number_of_channels_has_no_middle():
    with pytest.raises(SegzooError, match="n is 4; expected an odd number"):
        local_response_norm(jnp.zeros((1, 1, 1, 8)), n=4)
