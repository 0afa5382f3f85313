"""Update rules against PyTorch's, written out by hand; schedules, decay and clipping."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from segzoo import optim
from segzoo.errors import SegzooError
from segzoo.optim import Optimizer

GRADIENTS = np.random.default_rng(0).normal(size=(6, 3, 4))


def run(optimizer, gradients, params=None, steps=100):
    """The parameters after the given gradients, one after the other, starting from ones."""
    gradients = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), list(gradients))
    transformation = optimizer.build(steps)
    params = jnp.ones(gradients[0].shape) if params is None else params
    state = transformation.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = transformation.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_is_torchs(nesterov, weight_decay):
    p, m = np.ones((3, 4)), np.zeros((3, 4))
    for g in GRADIENTS:
        g = g + weight_decay * p
        m = 0.9 * m + g
        p = p - 0.05 * (g + 0.9 * m if nesterov else m)
    optimizer = Optimizer("sgd", 0.05, momentum=0.9, nesterov=nesterov, weight_decay=weight_decay)
    np.testing.assert_allclose(run(optimizer, GRADIENTS), p, rtol=1e-5)


def test_plain_sgd_walks_down_the_gradient():
    expected = 1 - 0.1 * GRADIENTS.sum(0)
    np.testing.assert_allclose(run(Optimizer("sgd", 0.1), GRADIENTS), expected, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_torchs(momentum):
    p, v, m = np.ones((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
    schedule = Optimizer(learning_rate=0.01, schedule="poly").learning_rate_at(6)
    for i, g in enumerate(GRADIENTS):
        g = g + 0.1 * p
        v = 0.95 * v + 0.05 * g**2
        m = momentum * m + g / (np.sqrt(v) + 1e-3)
        p = p - float(schedule(i)) * m
    optimizer = Optimizer(
        "rmsprop",
        0.01,
        momentum=momentum,
        rms_decay=0.95,
        eps=1e-3,
        weight_decay=0.1,
        schedule="poly",
    )
    np.testing.assert_allclose(run(optimizer, GRADIENTS, steps=6), p, rtol=1e-5)


def test_rmsprop_with_eps_under_the_root_is_lasagnes():
    p, v = np.ones((3, 4)), np.zeros((3, 4))
    gradients = 1e-3 * GRADIENTS  # small enough for eps to matter
    for g in gradients:
        v = 0.9 * v + 0.1 * g**2
        p = p - 0.01 * g / np.sqrt(v + 1e-6)
    optimizer = Optimizer("rmsprop", 0.01, eps=1e-6, eps_in_root=True)
    np.testing.assert_allclose(run(optimizer, gradients), p, rtol=1e-5)
    outside = run(Optimizer("rmsprop", 0.01, eps=1e-6), gradients)
    assert np.abs(outside - p).max() > 1e-2


def test_eps_in_root_is_rmsprops():
    with pytest.raises(SegzooError, match="eps_in_root is for rmsprop"):
        Optimizer("adam", eps_in_root=True)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_penalises_and_adamw_decays(name):
    p, m, v = np.ones((3, 4)), np.zeros((3, 4)), np.zeros((3, 4))
    for t, g in enumerate(GRADIENTS, start=1):
        if name == "adam":
            g = g + 0.1 * p
        else:
            p = p * (1 - 0.01 * 0.1)
        m = 0.8 * m + 0.2 * g
        v = 0.95 * v + 0.05 * g**2
        p = p - 0.01 * (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-3)
    optimizer = Optimizer(name, 0.01, beta1=0.8, beta2=0.95, eps=1e-3, weight_decay=0.1)
    np.testing.assert_allclose(run(optimizer, GRADIENTS), p, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_decay_spares_biases_and_scales_unless_told(name, decay_all):
    params = {
        "conv": {"kernel": jnp.ones((3, 3, 2, 2)), "bias": jnp.ones(2)},
        "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    }
    transformation = Optimizer(name, 0.1, weight_decay=0.5, decay_all=decay_all).build(10)
    still = jax.tree.map(jnp.zeros_like, params)
    updates, _ = transformation.update(still, transformation.init(params), params)
    assert np.all(updates["conv"]["kernel"] < 0)
    for vector in (updates["conv"]["bias"], updates["norm"]["scale"], updates["norm"]["bias"]):
        assert np.all(vector < 0) if decay_all else np.all(vector == 0)


def test_clipping_bounds_the_global_norm_and_leaves_small_gradients():
    params = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    transformation = Optimizer("sgd", 1.0, clip_norm=2.0).build(10)
    large = {"a": jnp.full(3, 10.0), "b": jnp.full((2, 2), -10.0)}
    updates, _ = transformation.update(large, transformation.init(params), params)
    squares = sum(float(jnp.sum(u**2)) for u in updates.values())
    assert math.sqrt(squares) == pytest.approx(2.0, rel=1e-5)
    np.testing.assert_allclose(updates["a"], -updates["b"][0, 0], rtol=1e-6)
    small = jax.tree.map(lambda g: g / 100.0, large)
    updates, _ = transformation.update(small, transformation.init(params), params)
    np.testing.assert_allclose(updates["a"], -0.1, rtol=1e-6)


def test_clipping_comes_before_weight_decay():
    gradient = jnp.zeros((2, 2))
    optimizer = Optimizer("sgd", 1.0, clip_norm=1e-3, weight_decay=0.5)
    np.testing.assert_allclose(run(optimizer, [gradient]), 0.5)


def rates(optimizer, steps, upto=None):
    schedule = optimizer.learning_rate_at(steps)
    return np.array([float(schedule(i)) for i in range((upto or steps) + 1)])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "poly", "exponential", "step"])
def test_warm_up_grows_to_the_top_and_then_the_schedule_falls(schedule):
    optimizer = Optimizer(
        learning_rate=0.5, warmup_steps=5, schedule=schedule, decay_steps=4, final_fraction=0.1
    )
    lr = rates(optimizer, 20, upto=25)
    assert lr[0] == pytest.approx(0.5 / 6)
    assert np.all(np.diff(lr[:6]) > 0)
    assert lr[5] == lr.max() == pytest.approx(0.5)
    assert np.all(np.diff(lr[5:]) <= 0)
    assert np.all(lr[20:] == lr[20])
    assert lr[20] == pytest.approx(0.5 if schedule == "constant" else 0.05)
    # As in a train step: compiled, where 1 - 15 / 15 may come out below 0 and have no power.
    array = jax.jit(optimizer.learning_rate_at(20))(jnp.arange(26))
    assert array.dtype == jnp.float32
    np.testing.assert_allclose(array, lr, rtol=1e-6)


def test_schedules_at_known_places():
    assert rates(Optimizer(learning_rate=2.0), 3).tolist() == [2.0] * 4
    cosine = rates(Optimizer(learning_rate=2.0, schedule="cosine"), 8)
    np.testing.assert_allclose(cosine[[0, 4, 8]], [2.0, 1.0, 0.0], atol=1e-6)
    poly = rates(Optimizer(learning_rate=0.007, schedule="poly"), 30)
    np.testing.assert_allclose(poly[[0, 15, 30]], [0.007, 0.007 * 0.5**0.9, 0.0], rtol=1e-5)
    settings = {"learning_rate": 1.0, "decay_rate": 0.5, "decay_steps": 10}
    smooth = rates(Optimizer(schedule="exponential", **settings), 40)
    np.testing.assert_allclose(smooth[[0, 5, 10, 40]], [1, math.sqrt(0.5), 0.5, 0.0625], rtol=1e-5)
    stairs = rates(Optimizer(schedule="step", **settings), 40)
    np.testing.assert_allclose(stairs[[0, 9, 10, 19, 20, 40]], [1, 1, 0.5, 0.5, 0.25, 0.0625])


def test_the_update_follows_the_schedule():
    optimizer = Optimizer("sgd", 1.0, schedule="poly", warmup_steps=2, final_fraction=0.2)
    ones = [np.ones((2, 2))] * 8
    np.testing.assert_allclose(run(optimizer, ones, steps=8), 1 - rates(optimizer, 8)[:8].sum())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "lamb"}, "optimizer.name is 'lamb'; expected one of 'sgd'"),
        ({"schedule": "linear"}, "optimizer.schedule"),
        ({"learning_rate": 0.0}, "optimizer.learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "optimizer.learning_rate"),
        ({"name": "sgd", "momentum": 1.0}, "optimizer.momentum"),
        ({"momentum": 0.9}, "adam has none.*beta1"),
        ({"name": "sgd", "nesterov": True}, "nesterov needs"),
        ({"beta2": -0.1}, "optimizer.beta2"),
        ({"weight_decay": -1e-4}, "optimizer.weight_decay"),
        ({"clip_norm": 0.0}, "optimizer.clip_norm"),
        ({"warmup_steps": -1}, "optimizer.warmup_steps"),
        ({"warmup_steps": 1.5}, "optimizer.warmup_steps"),
        ({"final_fraction": 1.5}, "optimizer.final_fraction"),
        ({"decay_rate": 0.0}, "optimizer.decay_rate"),
        ({"schedule": "step"}, "needs optimizer.decay_steps"),
        ({"decay_steps": 0}, "optimizer.decay_steps"),
        ({"power": -1.0}, "optimizer.power"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(SegzooError, match=message):
        Optimizer(**fields)


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(SegzooError, match="warmup_steps is 10; expected fewer than the 10 steps"):
        Optimizer(warmup_steps=10).build(10)


def test_the_command_line_can_override_every_field():
    arguments = ["--name", "sgd", "--momentum", "0.9", "--nesterov", "--clip-norm", "1"]
    expected = Optimizer("sgd", momentum=0.9, nesterov=True, clip_norm=1.0)
    assert tyro.cli(Optimizer, args=arguments) == expected
    hash(dataclasses.replace(expected))


def test_the_rate_falls_at_the_milestones_counted_with_the_warm_up():
    optimizer = Optimizer(learning_rate=0.5, schedule="step", milestones=(6, 8), warmup_steps=3)
    rate = optimizer.learning_rate_at(10)
    rates = [float(rate(step)) for step in (0, 3, 5, 6, 7, 8, 9)]
    np.testing.assert_allclose(rates, [0.125, 0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"milestones": (5,)},
        {"milestones": (5,), "schedule": "step", "decay_steps": 3},
        {"milestones": (0,), "schedule": "step"},
    ],
)
def test_milestones_are_steps_of_the_schedule_step_alone(wrong):
    with pytest.raises(SegzooError, match=r"optimizer\.milestones"):
        Optimizer(**wrong)


@pytest.fixture
def shapes(monkeypatch):
    """Arrays of which some are small, with the limit between those sizes."""
    monkeypatch.setattr(optim, "JOINED", 6)
    return {
        "a": {"bias": (3,), "kernel": (2, 3), "large": (7, 1)},
        "b": {"bias": (9,), "scale": (1,), "x": (), "kernel": (1, 1, 2, 1)},
    }


def drawn(shapes, count):
    draw = np.random.default_rng(1).normal
    return [
        jax.tree.map(
            lambda shape: jnp.asarray(draw(size=shape), jnp.float32),
            shapes,
            is_leaf=lambda shape: isinstance(shape, tuple),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("decay_all", [False, True])
def test_small_arrays_are_updated_as_if_each_by_itself(name, decay_all, shapes):
    optimizer = Optimizer(name, 0.1, weight_decay=0.01, decay_all=decay_all, eps=1e-3)
    params, *gradients = drawn(shapes, 5)
    joint = run(optimizer, [optim.join(g) for g in gradients], optim.join(params))
    found = optim.part(joint, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(found)):
        alone = run(
            optimizer, [jax.tree.leaves(g)[i] for g in gradients], jax.tree.leaves(params)[i]
        )
        np.testing.assert_allclose(leaf, alone, rtol=1e-5, err_msg=jax.tree_util.keystr(path))


def test_what_is_joined_and_what_is_not(shapes):
    (params,) = drawn(shapes, 1)
    joint = optim.join(params)
    others = {leaf.shape for leaf in jax.tree.leaves(joint.pop("others"))}
    assert others == {(7, 1), ()}
    assert {name: leaf.shape for name, leaf in joint.items()} == {
        "vectors": (13,),
        "kernels": (1, 8),
    }
    np.testing.assert_allclose(
        optax.tree.norm(optim.join(params)), optax.tree.norm(params), rtol=1e-6
    )


def test_nothing_to_join():
    params = {"alpha": jnp.ones(()), "kernel": jnp.ones((512, 513))}
    joint = optim.join(params)
    assert joint.keys() == {"others"}
    assert optim.part(joint, params) == params


def test_arrays_of_a_shape_are_updated_by_the_same_code(one_code):
    params = {"a": jnp.ones(7), "b": [jnp.ones(5), jnp.ones(7)], "c": jnp.ones(7)}

    def update(params, joint):
        return jax.tree.map(jnp.add, params, optim.part(joint, params))

    compiled = jax.jit(update).lower(params, optim.join(params)).compile()
    assert one_code(compiled, "f32[7]") == 3
