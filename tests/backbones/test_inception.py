"""The parts the Inception networks share, against plain pools and by hand."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.backbones.inception import (
    Inception,
    Part,
    ceil_pool,
    conv_unit,
    pool3x3,
    spread_avg_pool,
)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def linens(kind, x):
    pool = {"max": nn.max_pool, "avg": nn.avg_pool}[kind]
    return pool(x, (3, 3), (1, 1), ((1, 1), (1, 1)))


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_the_pool_of_a_module_is_the_usual_one(assert_same_function, kind):
    x = random(2, 6, 7, 3)
    assert_same_function(lambda x: pool3x3(x, kind), lambda x: linens(kind, x), x)


@pytest.mark.parametrize("kind", ["max", "avg"])
def test_a_dilated_pool_pools_every_other_pixel(kind):
    x = random(1, 9, 8, 2)
    y = pool3x3(x, kind, dilation=2)
    for i in range(2):
        for j in range(2):
            expected = linens(kind, x[:, i::2, j::2])
            np.testing.assert_allclose(y[:, i::2, j::2], expected, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
@pytest.mark.parametrize("window", [2, 3])
def test_ceil_mode_keeps_the_remainder(window, size):
    x = random(1, size, size + 3, 2)
    y = ceil_pool(x, window)
    for n, m in zip(x.shape[1:3], y.shape[1:3], strict=True):
        assert m == max(-(-(n - window) // 2), 0) + 1
    for i, j in np.ndindex(*y.shape[1:3]):
        seen = x[:, 2 * i : 2 * i + window, 2 * j : 2 * j + window]
        np.testing.assert_array_equal(y[:, i, j], seen.max((1, 2)))


@pytest.mark.parametrize("window", [2, 3])
def test_a_pool_without_its_stride_has_the_strided_values_between_others(window):
    x = random(1, 8, 6, 2)
    fine = ceil_pool(x, window, stride=1)
    assert fine.shape == x.shape
    np.testing.assert_array_equal(fine[:, ::2, ::2], ceil_pool(x, window))
    spread = jnp.zeros((1, 16, 12, 2)).at[:, ::2, ::2].set(x)
    spread = ceil_pool(spread, window, stride=1, dilation=2)
    np.testing.assert_array_equal(spread[:, ::2, ::2], fine)


# GoogLeNet's auxiliary pools and Inception v3's, at the sizes their papers have there.
@pytest.mark.parametrize(("size", "count", "side", "stride"), [(14, 4, 5, 3), (17, 5, 5, 3)])
def test_spread_windows_are_the_strided_ones_at_the_papers_size(size, count, side, stride):
    x = random(2, size, size, 3)
    expected = nn.avg_pool(x, (side, side), (stride, stride))
    assert expected.shape[1:3] == (count, count)
    np.testing.assert_allclose(spread_avg_pool(x, count, side / size), expected, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (2, 5), (31, 4)])
def test_spread_windows_at_any_size(size):
    y = spread_avg_pool(jnp.ones((1, *size, 2), jnp.bfloat16), 4, 5 / 14)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(y, np.float32), np.ones((1, 4, 4, 2)))
    corners = spread_avg_pool(jnp.arange(31.0).reshape(1, 31, 1, 1), 4, 1 / 31)[0, :, 0, 0]
    np.testing.assert_allclose(corners, [0, 10, 20, 30])


class TestInception:
    def conv(self, part, stride=1, dilation=1, pad=True):
        return conv_unit(part, stride, dilation, pad, norm="none", activation=jax.nn.identity)

    def ones(self, module, x):
        shapes = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
        return jax.tree.map(lambda leaf: jnp.ones(leaf.shape) * (len(leaf.shape) > 1), shapes)

    def test_branches_in_their_order_then_the_pool(self):
        x = random(1, 5, 4, 2)
        one = (Part("one", 1),)
        fork = (Part("a", 1), (Part("wide", 1, (1, 3)), Part("high", 1, (3, 1))))
        module = Inception((one, fork), self.conv, "max")
        y = module.apply(self.ones(module, x), x, train=False)
        total = np.pad(np.asarray(x.sum(-1)), [(0, 0), (1, 1), (1, 1)])
        np.testing.assert_allclose(y[..., 0], total[:, 1:-1, 1:-1], rtol=1e-5)
        wide = total[:, 1:-1, :-2] + total[:, 1:-1, 1:-1] + total[:, 1:-1, 2:]
        high = total[:, :-2, 1:-1] + total[:, 1:-1, 1:-1] + total[:, 2:, 1:-1]
        np.testing.assert_allclose(y[..., 1], wide, atol=1e-5)
        np.testing.assert_allclose(y[..., 2], high, atol=1e-5)
        np.testing.assert_array_equal(y[..., 3:], linens("max", x))

    def test_a_projection_follows_the_pool(self):
        x = random(1, 5, 4, 2)
        module = Inception(((Part("one", 1),),), self.conv, "avg", pool_features=3)
        y = module.apply(self.ones(module, x), x, train=False)
        assert y.shape == (1, 5, 4, 4)
        expected = linens("avg", x).sum(-1, keepdims=True)
        np.testing.assert_allclose(y[..., 1:], np.repeat(expected, 3, -1), atol=1e-5)

    @pytest.mark.parametrize(("pad", "sizes"), [(True, (9, 5, 3, 2, 1)), (False, (9, 4))])
    def test_reductions_halve_any_size(self, pad, sizes):
        branch = (Part("inner", 2, (3, 3)), Part("outer", 3, (3, 3), strided=True))
        module = Inception((branch,), self.conv, stride=2, reduces=True, pad=pad)
        for before, after in itertools.pairwise(sizes):
            x = random(1, before, before + 2, 2)
            y = module.apply(self.ones(module, x), x, train=False)
            assert y.shape == (1, after, after + 1, 5)
