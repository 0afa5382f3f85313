"""Initial values: those of Flax's initialisers, however they are drawn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import initializers
from segzoo.initializers import gaussian, he_normal, he_uniform, variance_scaling

KINDS = {
    "he_normal": (he_normal, nn.initializers.variance_scaling(2.0, "fan_in", "normal")),
    "he_uniform": (he_uniform, nn.initializers.he_uniform()),
    "gaussian": (gaussian(0.01), nn.initializers.normal(0.01)),
    "scaled": (
        variance_scaling(0.5, "normal"),
        nn.initializers.variance_scaling(0.5, "fan_in", "normal"),
    ),
}
SHAPES = ((3, 2), (3, 3, 5, 91), (4, 1024), (1, 1, 4, 1025))  # 4,096 numbers are a block


class Arrays(nn.Module):
    """One array of each shape, and others that no random numbers are in."""

    initializer: nn.initializers.Initializer
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        for i, shape in enumerate(SHAPES):
            x = x + self.param(f"random{i}", self.initializer, shape, self.dtype).sum()
        self.variable("batch_stats", "mean", jnp.zeros, 7)
        return x + self.param("offset", nn.initializers.constant(2.0), (3,))


def close(ours, theirs):
    """Equal but for how a compiler rounds."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7 * np.abs(b).max(initial=0))


def asked(monkeypatch):
    """What is drawn together from here on: a list that grows."""
    draws = []
    draw = initializers._draw

    def noted(keys, wanted):
        draws.extend(wanted)
        return draw(keys, wanted)

    monkeypatch.setattr(initializers, "_draw", noted)
    return draws


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_flaxs_initialisers(kind, monkeypatch):
    ours, theirs = (Arrays(initializer) for initializer in KINDS[kind])
    key, x = jax.random.key(7), jnp.ones(())
    expected = jax.jit(theirs.init)(key, x)
    draws = asked(monkeypatch)
    close(segzoo.init(ours, key, x), expected)
    assert [draw.shape for draw in draws] == list(SHAPES)
    close(jax.jit(ours.init)(key, x), expected)


@pytest.mark.parametrize("name", ["unet", "fc_densenet56", "efficientnet_b0", "alexnet"])
def test_every_kernel_of_a_network_is_drawn_at_once(name, monkeypatch):
    model, draws = segzoo.get(name), asked(monkeypatch)
    side = 224 if name == "alexnet" else 32
    variables = segzoo.init(model, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    shapes = [leaf.shape for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert sorted(draw.shape for draw in draws) == sorted(shapes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(variables))


def test_keys_of_several_collections_and_arguments():
    class Drawn(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            if train:
                self.variable("noise", "value", lambda: jax.random.normal(self.make_rng("noise")))
            return nn.Dense(4, kernel_init=he_normal)(x)

    rngs = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    variables = segzoo.init(Drawn(), rngs, np.ones((1, 3)), train=True)
    close(variables, Drawn().init(rngs, np.ones((1, 3)), train=True))


@pytest.mark.parametrize("key", [jax.random.PRNGKey(3), jax.random.key(3)], ids=["raw", "typed"])
def test_both_forms_of_a_key(key):
    model = nn.Dense(50, kernel_init=he_normal)
    close(segzoo.init(model, key, np.ones((1, 30))), model.init(key, np.ones((1, 30))))


def test_a_key_of_another_kind_draws_from_the_same_distribution():
    model = nn.Dense(500, kernel_init=he_normal)
    kernels = [
        segzoo.init(model, jax.random.key(seed, impl="rbg"), np.ones((1, 200)))["params"]["kernel"]
        for seed in (0, 1)
    ]
    for kernel in kernels:
        assert abs(kernel.mean()) < 0.002
        assert abs(kernel.std() - 0.1) < 0.002
    assert abs(np.corrcoef(*(np.ravel(kernel) for kernel in kernels))[0, 1]) < 0.02


def test_another_dtype_is_drawn_by_flax(monkeypatch):
    ours, theirs = (Arrays(initializer, jnp.bfloat16) for initializer in KINDS["he_normal"])
    key, x = jax.random.key(0), jnp.ones(())
    draws = asked(monkeypatch)
    found, expected = segzoo.init(ours, key, x), jax.jit(theirs.init)(key, x)
    assert draws == []
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), rtol=0.01)


def test_arrays_within_a_transformation():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, kernel_init=he_normal)(nn.Dense(5, kernel_init=he_uniform)(x))

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.remat(Inner)()(nn.Dense(3, kernel_init=he_normal)(x))
            many = nn.vmap(
                Inner,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=None,
                axis_size=2,
            )
            return many()(x)

    x = np.ones((1, 2))
    close(segzoo.init(Outer(), jax.random.key(0), x), Outer().init(jax.random.key(0), x))


def test_a_module_called_twice_has_one_array():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            dense = nn.Dense(2, kernel_init=he_normal)
            return dense(dense(x))

    x = np.ones((1, 2))
    close(segzoo.init(Twice(), jax.random.key(0), x), Twice().init(jax.random.key(0), x))


def test_what_is_made_of_drawn_numbers_is_made_of_them():
    class Normalised(nn.Module):
        @nn.compact
        def __call__(self, x):
            def unit(key, shape):
                value = he_normal(key, shape)
                return value / jnp.linalg.norm(value)

            return x @ self.param("kernel", unit, (3, 4)) @ self.param("last", he_normal, (4, 2))

    x = np.ones((1, 3))
    close(segzoo.init(Normalised(), jax.random.key(0), x), Normalised().init(jax.random.key(0), x))


def test_within_a_traced_function_it_is_flaxs():
    model, x = nn.Dense(4, kernel_init=he_normal), jnp.ones((1, 3))

    def begin(key):
        return segzoo.init(model, key, x)

    key = jax.random.key(0)
    close(jax.jit(begin)(key), model.init(key, x))
    close(jax.jit(lambda: begin(key))(), model.init(key, x))
    assert jax.eval_shape(begin, key)["params"]["kernel"].shape == (3, 4)


def test_an_error_of_the_module_is_its_own_and_leaves_nothing_behind():
    class Failing(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.param("kernel", he_normal, (3, 4))
            raise ValueError("of the module")

    with pytest.raises(ValueError, match="of the module"):
        segzoo.init(Failing(), jax.random.key(0), np.ones(3))
    assert np.isfinite(he_normal(jax.random.key(0), (3, 4))).all()
