"""The lattice against the Gaussian it stands for, and against its own definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops import permutohedral
from segzoo.ops.gaussian import exact

build = jax.jit(permutohedral.build, static_argnames="capacity")
locate = jax.jit(permutohedral.locate)
connect = jax.jit(permutohedral.connect, static_argnames="capacity")


def features(points=400, dims=5, spread=3.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(0, spread, (points, dims)), jnp.float32)


@pytest.fixture(scope="module")
def located():
    return locate(features())


def test_simplices_enclose_their_points(located):
    x = np.asarray(features())
    dims = x.shape[1]
    weights = np.asarray(located.weights)
    assert weights.min() > -1e-5
    np.testing.assert_allclose(weights.sum(0), 1, atol=1e-6)
    keys = np.zeros((int(located.count), dims), int)
    keys[np.asarray(located.number)] = np.asarray(located.keys)
    vertices = keys[np.asarray(located.rows)]  # [d + 1, N, d]
    vertices = np.concatenate([vertices, -vertices.sum(-1, keepdims=True)], axis=-1)
    # The point is the mean of its vertices under the weights, lifted onto the hyperplane.
    lifted = x @ permutohedral._lift(dims).T
    np.testing.assert_allclose((weights[..., None] * vertices).sum(0), lifted, atol=1e-4)
    # Vertex r has remainder r in every coordinate; two of a simplex differ by at most d + 1.
    assert (vertices % (dims + 1) == np.arange(dims + 1)[:, None, None]).all()
    assert np.ptp(vertices, axis=0).max() <= dims + 1


def test_equal_vertices_and_only_those_share_a_number(located):
    keys = [tuple(key) for key in np.asarray(located.keys).tolist()]
    numbers = np.asarray(located.number).tolist()
    assert len(set(keys)) == len(set(zip(keys, numbers, strict=True))) == int(located.count)
    assert sorted(set(numbers)) == list(range(int(located.count)))


@pytest.mark.parametrize("room", [0, 50])
def test_neighbors_are_one_step_apart(located, room):
    count, dims = int(located.count), located.keys.shape[1]
    lattice = connect(located, capacity=count + room)
    keys = np.zeros((count, dims), int)
    keys[np.asarray(located.number)] = np.asarray(located.keys)
    place = {tuple(key): number for number, key in enumerate(keys.tolist())}
    for axis, sign in itertools.product(range(dims + 1), (1, -1)):
        step = np.ones(dims + 1, int)
        step[axis] -= dims + 1
        wanted = keys + sign * step[:dims]
        expected = [place.get(tuple(key), count + room) for key in wanted.tolist()]
        rows = np.asarray((lattice.after if sign == 1 else lattice.before)[axis])
        assert rows[:count].tolist() == expected
        assert (rows[count:] == count + room).all()
    assert (np.asarray(lattice.after)[:, :count] < count).any()


def gaussian_error(dims, points):
    """The largest error of a normalised filter against the exact one, on values of 0..1."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(0, 6 / dims, (points, dims)), jnp.float32)
    values = jnp.asarray(rng.uniform(size=(points, 3)), jnp.float32)
    both = jnp.concatenate([values, jnp.ones((points, 1))], axis=1)
    got, expected = build(x)(both), exact(x, both)
    difference = got[:, :3] / got[:, 3:] - expected[:, :3] / expected[:, 3:]
    return float(jnp.abs(difference).max())


@pytest.mark.parametrize("dims", [1, 2, 3, 5])
def test_filter_is_nearly_the_gaussian(dims):
    assert gaussian_error(dims, 600) < 0.06


def test_impulse_has_the_kernels_width():
    """Along a line of dense points the response to an impulse has variance 1 in every dimension."""
    x = np.linspace(-8, 8, 801)[:, None]
    impulse = jnp.zeros((801, 1)).at[400].set(1.0)
    response = np.asarray(build(jnp.asarray(x, jnp.float32))(impulse))[:, 0]
    response = response / response.sum()
    assert abs((response * x[:, 0] ** 2).sum() - 1) < 0.15


def test_values_are_filtered_one_by_one_and_linearly():
    x = features(points=150)
    lattice = build(x)
    values = jnp.asarray(np.random.default_rng(1).normal(size=(150, 5)), jnp.float32)
    whole = lattice(values)
    one = lattice(values[:, 2:3])
    np.testing.assert_allclose(whole[:, 2:3], one, atol=1e-5)
    np.testing.assert_allclose(
        lattice(2 * values + 1), 2 * whole + lattice(jnp.ones((150, 5))), rtol=1e-4, atol=1e-4
    )


def test_gradient_is_the_transposed_filter():
    x = features(points=60, spread=1.0)
    lattice = build(x).scaled(jnp.linspace(0.5, 2, 60), jnp.linspace(3, 1, 60))
    matrix = np.asarray(lattice(jnp.eye(60)))
    cotangent = jnp.asarray(np.random.default_rng(2).normal(size=(60, 2)), jnp.float32)
    _, pull = jax.vjp(lattice, jnp.zeros((60, 2)))
    np.testing.assert_allclose(pull(cotangent)[0], matrix.T @ np.asarray(cotangent), atol=1e-4)
    # The blur is not symmetric where vertices are missing: the order of the axes matters.
    assert np.abs(matrix - matrix.T).max() > 1e-3


def test_too_small_a_capacity_is_never_silent(located):
    lattice = connect(located, capacity=int(located.count) - 1)
    assert bool(lattice.overflow)
    assert np.isnan(lattice(jnp.ones((400, 2)))).all()
    assert not bool(connect(located, capacity=int(located.count)).overflow)


def test_capacity_changes_nothing(located):
    values = jnp.asarray(np.random.default_rng(3).normal(size=(400, 3)), jnp.float32)
    count = int(located.count)
    few = connect(located, capacity=count)(values)
    np.testing.assert_array_equal(few, connect(located, capacity=2 * count)(values))


def test_vmap_equals_one_by_one():
    x = jnp.stack([features(points=70, seed=seed) for seed in (4, 5)])
    values = jnp.asarray(np.random.default_rng(6).normal(size=(2, 70, 3)), jnp.float32)
    run = jax.jit(lambda x, values: build(x, capacity=420)(values))
    both = jax.jit(jax.vmap(run))(x, values)
    for i in range(2):
        np.testing.assert_allclose(both[i], run(x[i], values[i]), atol=1e-5)


@pytest.mark.parametrize("points", [1, 5])
def test_few_points(points):
    lattice = build(jnp.zeros((points, 5)))
    np.testing.assert_allclose(lattice(jnp.ones((points, 1))), points, rtol=0.05)


def test_crowded_hash_table():
    """As many vertices as entries: every point alone."""
    x = features(points=300, dims=3, spread=1e4)
    simplices = locate(x)
    assert int(simplices.count) == len(np.unique(np.asarray(simplices.keys), axis=0))
    assert int(simplices.count) > 1000
