"""Batch norm with a gradient in closed form, against linen's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops.batch_norm import batch_norm, batch_statistics

EPSILON = 1e-3


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linen(x, scale, bias, axis_name=None, dtype=jnp.float32):
    norm = nn.BatchNorm(False, momentum=0.0, epsilon=EPSILON, axis_name=axis_name, dtype=dtype)
    still = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": still}
    y, updates = norm.apply(variables, x, mutable=["batch_stats"])
    return y, updates["batch_stats"]["mean"], updates["batch_stats"]["var"]


ours = functools.partial(batch_norm, epsilon=EPSILON)


def in_two_steps(x, scale, bias, axis_name=None, **options):
    statistics = batch_statistics(x, axis_name)
    return ours(x, scale, bias, axis_name=axis_name, statistics=statistics, **options)


both_ways = pytest.mark.parametrize("norm", [ours, in_two_steps], ids=["once", "two_steps"])


def arguments(*shape):
    return 2 + 3 * random(*shape), 1 + 0.3 * random(shape[-1], seed=1), random(shape[-1], seed=2)


@both_ways
@pytest.mark.parametrize("shape", [(4, 6, 5, 3), (2, 3, 4, 5, 2), (7, 4), (1, 1, 1, 3)])
def test_it_is_linens(shape, norm):
    x, scale, bias = arguments(*shape)
    for got, expected in zip(norm(x, scale, bias), linen(x, scale, bias), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)

    def loss(norm, *arguments):
        return (jnp.sin(norm(*arguments)[0]) * random(*shape, seed=3)).sum()

    got, expected = (
        jax.jit(jax.grad(functools.partial(loss, n), argnums=(0, 1, 2)))(x, scale, bias)
        for n in (norm, linen)
    )
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@both_ways
def test_over_devices_it_is_that_of_the_whole_batch(norm):
    x, scale, bias = arguments(8, 3, 3, 4)
    weights = random(*x.shape, seed=3)

    def loss(x, scale, bias, weights, axis_name):
        y, _, _ = norm(x, scale, bias, axis_name=axis_name)
        return (jnp.sin(y) * weights).sum()

    whole = jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias, weights, None)
    parts = jax.vmap(
        lambda x, weights: jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias, weights, "d"),
        axis_name="d",
    )(x.reshape(4, 2, 3, 3, 4), weights.reshape(4, 2, 3, 3, 4))
    np.testing.assert_allclose(parts[0].reshape(x.shape), whole[0], rtol=1e-4, atol=1e-5)
    for part, total in zip(parts[1:], whole[1:], strict=True):
        np.testing.assert_allclose(part.sum(0), total, rtol=1e-4, atol=1e-5)


@both_ways
def test_sums_of_bfloat16_are_float32(norm):
    x, scale, bias = arguments(64, 64, 4)
    half = x.astype(jnp.bfloat16)
    y, mean, _ = norm(half, scale, bias, dtype=jnp.bfloat16)
    assert (y.dtype, mean.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(mean, np.asarray(half, np.float64).mean((0, 1)), rtol=1e-5)
    gradient = jax.grad(lambda x: norm(x, scale, bias)[0].sum())(half)
    assert gradient.dtype == jnp.bfloat16
    by_bias = jax.grad(lambda b: norm(half, scale, b, dtype=jnp.bfloat16)[0].sum())(bias)
    np.testing.assert_array_equal(by_bias, 4096)  # where bfloat16 would stop at 256


def test_two_norms_of_one_map_share_its_statistics():
    x, scale, bias = arguments(4, 6, 5, 3)

    def loss(x, scale, bias, shared):
        statistics = batch_statistics(x) if shared else None
        first, _, _ = ours(x, scale, bias, statistics=statistics)
        second, _, _ = ours(x, bias, scale, statistics=statistics)
        return jnp.sin(first * jnp.cos(second)).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), static_argnums=3)
    for got, expected in zip(
        gradient(x, scale, bias, True), gradient(x, scale, bias, False), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@both_ways
def test_constant_maps_stay_finite(norm):
    x, scale, bias = jnp.full((2, 4, 4, 3), 1e3), jnp.ones(3), jnp.zeros(3)
    gradient = jax.grad(lambda x: jnp.square(norm(x, scale, bias)[0]).sum())(x)
    assert np.isfinite(np.asarray(gradient)).all()


def test_the_gradient_takes_two_sums_over_the_pixels():
    x, scale, bias = arguments(2, 8, 8, 4)

    def backward(norm):
        _, pull = jax.vjp(lambda *a: norm(*a)[0], x, scale, bias)
        text = jax.jit(pull).lower(x).as_text()
        return text.count("stablehlo.reduce(")

    assert backward(ours) == 2 < backward(linen)


def test_a_map_is_kept_once_for_the_gradient(bytes_for_gradient):
    layers, shape = 10, (4, 32, 32, 16)

    def loss(kernels, x):
        for kernel in kernels:
            x = nn.relu(ours(x @ kernel, jnp.ones(16), jnp.zeros(16))[0])
        return jnp.square(x).sum()

    kernels = [jax.ShapeDtypeStruct((16, 16), jnp.float32)] * layers
    image = jax.ShapeDtypeStruct(shape, jnp.float32)
    maps = bytes_for_gradient(loss, kernels, image) / (4 * np.prod(shape))
    assert maps < 2.5 * layers  # that, and what the next product multiplies
