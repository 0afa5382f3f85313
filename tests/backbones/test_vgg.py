"""VGG: the published sizes, the contract of a backbone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.backbones.vgg import VGG


def shapes_of(model, image):
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: model.init_with_output(key, x, train=False), image)


# Table 2 of the paper counts the classifier too: 133, 133, 138 and 144 million. It has
# 7 * 7 * 512 * 4096 + 4096 * 4096 + 4096 * 1000 weights and 9192 biases.
@pytest.mark.parametrize(
    ("depth", "millions", "exact"),
    [(11, 133, None), (13, 133, None), (16, 138, 14_714_688), (19, 144, None)],
)
def test_parameters(depth, millions, exact):
    _, variables = shapes_of(VGG(depth), jnp.zeros((1, 32, 32, 3)))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    classifier = 7 * 7 * 512 * 4096 + 4096 * 4096 + 4096 * 1000 + 9192
    assert round((count + classifier) / 1e6) == millions
    assert exact in (None, count)


def test_layers_are_named_as_in_the_caffe_release():
    _, variables = shapes_of(VGG(16, width=1), jnp.zeros((1, 32, 32, 3)))
    assert list(variables["params"]) == [
        f"conv{stage}_{i}"
        for stage, n in enumerate((2, 2, 3, 3, 3), start=1)
        for i in range(1, n + 1)
    ]


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_features_are_the_finest_first_at_their_reductions(ceil_mode):
    model = VGG(16, width=2, norm="batch", ceil_mode=ceil_mode)
    features, _ = shapes_of(model, jnp.zeros((2, 64, 96, 3)))
    assert [f.shape[-1] for f in features] == [2, 4, 8, 16, 16, 16]
    for feature, reduction in zip(features, model.reductions, strict=True):
        assert feature.shape[1:3] == (64 // reduction, 96 // reduction)


@pytest.mark.parametrize(("ceil_mode", "sizes"), [(False, (45, 22, 11)), (True, (45, 23, 12))])
def test_odd_sizes_drop_or_keep_the_remainder(ceil_mode, sizes):
    features, _ = shapes_of(VGG(11, width=1, ceil_mode=ceil_mode), jnp.zeros((1, 45, 45, 1)))
    assert tuple(f.shape[1] for f in features[:3]) == sizes


def test_features_are_computed_and_train_moves_statistics(filled):
    class Fixed(VGG):
        def __call__(self, image, *, train=False):
            return super().__call__(image, train=train)

    model = Fixed(11, width=2, norm="batch")
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32, 32, 3)), jnp.float32)
    variables = filled(model, image.shape)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True, mutable=["batch_stats"]))
    features, updates = apply(variables, image)
    assert all(np.isfinite(f).all() and np.any(f > 0) for f in features)
    before = variables["batch_stats"]["conv1_1"]["norm"]["mean"]
    assert np.all(before != updates["batch_stats"]["conv1_1"]["norm"]["mean"])
