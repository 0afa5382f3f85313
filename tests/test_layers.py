"""The modules against linen's own, and what must not depend on the devices."""

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import layers
from segzoo.errors import SegzooError


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(("kernel", "strides"), [((2, 2), (2, 2)), ((4, 4), (2, 2))])
def test_conv_transpose_shares_its_parameters_with_linen(filled, kernel, strides):
    ours = layers.ConvTranspose(5, kernel, strides)
    linens = nn.ConvTranspose(5, kernel, strides, padding="VALID")
    x = random(2, 3, 4, 6)
    variables = filled(ours, x.shape)
    shapes = jax.eval_shape(linens.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, shapes)
    np.testing.assert_allclose(ours.apply(variables, x), linens.apply(variables, x), atol=1e-5)


def test_an_initialiser_is_traced_where_a_shape_is_wrong_alone():
    traced = []

    def ones(key, shape, dtype):
        traced.append(shape)
        return jnp.ones(shape, dtype)

    score, x = layers.Score(3, kernel_init=ones), random(1, 2, 2, 4)
    variables = score.init(jax.random.key(0), x)
    assert traced == [(1, 1, 4, 3)]
    assert jax.eval_shape(score.apply, variables, x).shape == (1, 2, 2, 3)
    assert len(traced) == 1
    with pytest.raises(flax.errors.ScopeParamShapeError, match=r"\(1, 1, 5, 3\).*\(1, 1, 4, 3\)"):
        score.apply(variables, random(1, 2, 2, 5))
    with pytest.raises(flax.errors.ScopeParamNotFoundError, match="kernel"):
        score.apply({"params": {"bias": jnp.ones(3)}}, x)


@pytest.mark.parametrize(("kernel", "strides", "seen"), [((2, 2), (2, 2), 1), ((4, 4), (2, 2), 4)])
def test_initial_variance_is_two_over_the_inputs_a_pixel_sees(kernel, strides, seen):
    x = jnp.zeros((1, 2, 2, 64))
    k = layers.ConvTranspose(128, kernel, strides).init(jax.random.key(0), x)["params"]["kernel"]
    np.testing.assert_allclose(k.var(), 2 / (64 * seen), rtol=0.05)
    k = layers.Conv(128, (3, 3)).init(jax.random.key(0), x)["params"]["kernel"]
    np.testing.assert_allclose(k.var(), 2 / (64 * 9), rtol=0.05)


def test_score_is_a_1x1_convolution_with_float32_logits(assert_same_function, filled):
    x = random(2, 5, 6, 7)
    linens = nn.Conv(3, (1, 1))
    variables = filled(linens, x.shape)
    score = layers.Score(3)
    assert_same_function(
        lambda x, v: score.apply({"params": {"kernel": v, "bias": jnp.ones(3)}}, x),
        lambda x, v: linens.apply({"params": {"kernel": v, "bias": jnp.ones(3)}}, x),
        x,
        variables["params"]["kernel"],
    )
    half = layers.Score(3, jnp.bfloat16)
    logits = half.apply(variables, x.astype(jnp.bfloat16))
    assert logits.dtype == jnp.float32
    gradient = jax.grad(lambda v: half.apply(v, x.astype(jnp.bfloat16)).sum())(variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


def test_batch_norm_has_torchs_constants_and_float32_statistics():
    norm = layers.Norm("batch", dtype=jnp.bfloat16)
    x = (3 + 2 * random(64, 8, 4)).astype(jnp.bfloat16)
    variables = norm.init(jax.random.key(0), x, train=False)
    assert set(variables["params"]) == {"scale", "bias"}
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(updates["batch_stats"]["mean"], 0.1 * exact.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(
        updates["batch_stats"]["var"], 0.9 + 0.1 * exact.var((0, 1)), rtol=1e-4
    )
    zero = jnp.zeros((1, 1, 4))
    variables["batch_stats"]["var"] = jnp.zeros(4)
    variables["batch_stats"]["mean"] = -jnp.ones(4)
    y = layers.Norm("batch").apply(variables, zero, train=False)
    np.testing.assert_allclose(y, 1 / np.sqrt(1e-5), rtol=1e-5)


def test_batch_norm_over_devices_is_batch_norm_of_the_whole_batch():
    x = random(8, 3, 3, 4)
    variables = layers.Norm("batch").init(jax.random.key(0), x, train=False)
    norm = layers.Norm("batch", axis_name="batch")

    def run(shard):
        return norm.apply(variables, shard, train=True, mutable=["batch_stats"])

    y, stats = jax.vmap(run, axis_name="batch")(x.reshape(4, 2, 3, 3, 4))
    whole, whole_stats = layers.Norm("batch").apply(
        variables, x, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y.reshape(x.shape), whole, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), atol=1e-6),
        stats,
        whole_stats,
    )


def test_group_norm_normalises_each_example_by_groups():
    x = 5 + 3 * random(2, 6, 6, 12)
    norm = layers.Norm("group")
    y = norm.apply(norm.init(jax.random.key(0), x, train=True), x, train=True)
    groups = np.asarray(y).reshape(2, 36, 4, 3)  # gcd(8, 12) groups
    np.testing.assert_allclose(groups.mean((1, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(groups.std((1, 3)), 1, atol=1e-3)


def test_unknown_norm():
    with pytest.raises(SegzooError, match="norm is 'layer'; expected one of 'none', 'batch'"):
        layers.Norm("layer").init(jax.random.key(0), jnp.ones((1, 2, 2, 4)), train=False)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_conv_norm_act_has_one_offset(norm):
    block = layers.ConvNormAct(4, norm=norm)
    shapes = jax.eval_shape(
        lambda: block.init(jax.random.key(0), jnp.ones((1, 4, 4, 3)), train=False)
    )
    assert ("bias" in shapes["params"]["conv"]) == (norm == "none")


class TestDropout:
    key = jax.random.key(3)

    def drop(self, x, axis_name=None, rate=0.25, deterministic=False):
        layer = layers.Dropout(rate, axis_name)

        @jax.jit
        def run(x, key):
            return layer.apply({}, x, deterministic=deterministic, rngs={"dropout": key})

        return run(x, self.key)

    def test_is_the_identity_where_it_should(self):
        x = random(2, 3, 4)
        np.testing.assert_array_equal(self.drop(x, deterministic=True), x)
        np.testing.assert_array_equal(self.drop(x, rate=0.0), x)
        np.testing.assert_array_equal(self.drop(x, rate=1.0), 0 * x)

    def test_keeps_the_mean(self):
        y = np.asarray(self.drop(jnp.ones((64, 32, 32))))
        np.testing.assert_allclose(np.unique(y), [0, 4 / 3], rtol=1e-6)
        np.testing.assert_allclose((y == 0).mean(), 0.25, atol=0.01)

    @pytest.mark.parametrize("devices", [2, 8])
    def test_masks_do_not_depend_on_the_split(self, devices):
        x = random(8, 5, 3)
        shards = x.reshape(devices, -1, 5, 3)
        split = jax.jit(jax.vmap(lambda s: self.drop(s, "batch"), axis_name="batch"))(shards)
        np.testing.assert_array_equal(split.reshape(x.shape), self.drop(x))

    def test_examples_have_masks_of_their_own(self):
        masks = np.asarray(self.drop(jnp.ones((4, 64))) == 0)
        assert len({mask.tobytes() for mask in masks}) == 4


class TestBatchNormByImage:
    norm = layers.Norm("batch", epsilon=1e-3, test_statistics="image")

    def variables(self):
        stats = {"mean": jnp.full(4, 7.0), "var": jnp.full(4, 9.0)}
        scale, bias = jnp.asarray([1.0, 2.0, -1.0, 0.5]), jnp.asarray([0.0, 1.0, 2.0, 3.0])
        return {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}

    def test_is_each_images_own_normalisation(self):
        variables = self.variables()
        x = random(3, 5, 6, 4) * np.arange(1, 4).reshape(3, 1, 1, 1) + 2
        # Without a word of what may change: the running statistics stay, unused.
        y = self.norm.apply(variables, x, train=False)
        mean, var = (np.asarray(f(x, (1, 2), keepdims=True)) for f in (np.mean, np.var))
        params = variables["params"]
        expected = (x - mean) / np.sqrt(var + 1e-3) * params["scale"] + params["bias"]
        np.testing.assert_allclose(y, expected, atol=1e-5)
        moved = {**variables, "batch_stats": {"mean": jnp.zeros(4), "var": jnp.ones(4)}}
        np.testing.assert_array_equal(self.norm.apply(moved, x, train=False), y)

    def test_one_image_is_normalised_as_in_training_and_any_batch_one_by_one(self):
        variables, x = self.variables(), random(3, 5, 6, 4)
        y = self.norm.apply(variables, x, train=False)
        for i in range(3):
            one, _ = self.norm.apply(variables, x[i : i + 1], train=True, mutable=["batch_stats"])
            np.testing.assert_allclose(one[0], y[i], atol=1e-5)
        # So devices, each with a share of the batch, have nothing to say to each other.
        split = layers.Norm("batch", axis_name="b", epsilon=1e-3, test_statistics="image")
        run = jax.vmap(lambda x: split.apply(variables, x, train=False), axis_name="b")
        np.testing.assert_allclose(run(x[:, None])[:, 0], y, atol=1e-5)

    def test_training_and_initial_variables_are_batch_norms(self):
        plain = layers.Norm("batch", epsilon=1e-3)
        x = random(3, 5, 6, 4)
        ours, theirs = (n.init(jax.random.key(0), x, train=False) for n in (self.norm, plain))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)
        trained, reference = (
            n.apply(self.variables(), x, train=True, mutable=["batch_stats"])
            for n in (self.norm, plain)
        )
        jax.tree.map(np.testing.assert_array_equal, trained, reference)

    def test_unknown_statistics(self):
        with pytest.raises(SegzooError, match="test_statistics is 'batch'; expected one of"):
            layers.Norm(test_statistics="batch").init(
                jax.random.key(0), jnp.ones((1, 2, 2, 4)), train=False
            )
