"""Maps measured once, however many layers normalise them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.backbones import densenet
from segzoo.backbones.classifier import Classifier
from segzoo.layers import Norm
from segzoo.measured import DenseMaps, Measured, side_by_side
from segzoo.measured import measure as measure_for
from segzoo.models import fc_densenet
from segzoo.ops.batch_norm import batch_statistics


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


measure = functools.partial(measure_for, norm="batch", axis_name=None, train=True)


def test_side_by_side_is_measured_as_a_whole():
    maps = [3 * random(2, 4, 5, channels, seed=channels) + channels for channels in (1, 4, 2)]
    whole = jnp.concatenate(maps, axis=-1)
    x, statistics = side_by_side(*(measure(m) for m in maps))
    np.testing.assert_array_equal(x, whole)
    np.testing.assert_allclose(statistics, batch_statistics(whole), rtol=1e-6)


def test_what_is_not_measured_is_unknown_as_a_whole():
    x = random(2, 4, 5, 3)
    together, statistics = side_by_side(measure(x), Measured(x))
    assert together.shape == (2, 4, 5, 6)
    assert statistics is None


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("inputs", [(3,), (1, 4)])
def test_a_dense_block_sees_its_maps_in_order(inputs, train):
    parts = [random(2, 4, 5, channels, seed=channels) for channels in (*inputs, 2, 5)]
    count = len(inputs)
    told = functools.partial(measure_for, norm="batch", axis_name=None, train=train)

    @jax.jit
    def run(*parts):
        maps = DenseMaps(*map(told, parts[:count]), room=9, train=train)
        seen = []
        for part in parts[count:]:
            seen.append(side_by_side(*maps.so_far))
            maps.append(told(part))
        return seen, maps.new, maps.whole

    (first, second), new, whole = run(*parts)
    for found, expected in (
        (first, parts[:count]),
        (second, parts[: count + 1]),
        (new, parts[count:]),
        (whole, parts),
    ):
        expected = jnp.concatenate(expected, axis=-1)
        np.testing.assert_array_equal(found.x, expected)
        if train:
            np.testing.assert_allclose(found.statistics, batch_statistics(expected), rtol=1e-6)
        else:
            assert found.statistics is None

    def total(*parts):
        return sum(jnp.sum(jnp.sin(m.x)) for m in jax.tree.leaves(run(*parts), is_leaf=is_measured))

    def is_measured(part):
        return isinstance(part, Measured)

    for part, gradient in zip(
        parts, jax.grad(total, tuple(range(len(parts))))(*parts), strict=True
    ):
        times = 2 if part is parts[-1] else 3  # of the four stacks
        np.testing.assert_allclose(gradient, times * jnp.cos(part), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("unread", [{"train": False}, {"norm": "group"}, {"norm": "none"}])
def test_what_no_batch_norm_reads_in_training_is_not_measured(unread):
    assert measure(random(2, 4, 5, 3), **unread).statistics is None


def test_a_norm_believes_what_it_is_told():
    x = random(4, 6, 5, 3)
    norm = Norm("batch")
    variables = norm.init(jax.random.key(0), x, train=False)

    def run(statistics, train=True):
        return norm.apply(variables, x, train=train, statistics=statistics, mutable=["batch_stats"])

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6),
        run(batch_statistics(x)),
        run(None),
    )
    told = (jnp.full(3, 2.0), jnp.full(3, 4.0))
    y, state = run(told)
    np.testing.assert_allclose(y, (x - 2) / np.sqrt(4 + 1e-5), rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["mean"], 0.2, rtol=1e-5)
    np.testing.assert_allclose(state["batch_stats"]["var"], 1.3, rtol=1e-5)
    y, _ = run(told, train=False)  # the running statistics, as ever
    np.testing.assert_allclose(y, x, rtol=1e-4)


@pytest.mark.parametrize("name", ["fc_densenet", "densenet"])
def test_measured_once_a_network_trains_as_if_each_layer_measured(name, monkeypatch, filled):
    monkeypatch.setitem(densenet.BLOCKS, 121, (2, 1, 2, 1))
    module, net = {
        "fc_densenet": (
            fc_densenet,
            fc_densenet.FCDenseNet(
                3, jnp.float64, blocks=(2, *(1,) * 10), width=4, growth_rate=3, dropout=0.0
            ),
        ),
        "densenet": (
            densenet,
            Classifier(densenet.DenseNet(121, 4, dtype=jnp.float64), 3, jnp.float64),
        ),
    }[name]
    measured = []

    def run():
        image = np.asarray(random(2, 64, 64, 3), np.float64)
        variables = filled(net, image.shape)

        def loss(params):
            y, state = net.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return (jnp.sin(y) * random(*y.shape, seed=1)).sum(), state

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    with jax.enable_x64():
        once = run()
        monkeypatch.setattr(module, "measure", lambda x, **_: measured.append(x) or Measured(x))
        each = run()
    assert len(measured) > 9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), once, each)
