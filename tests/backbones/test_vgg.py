"""VGG: the published sizes, the contract of a backbone, the classifier it shares with AlexNet."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.backbones.vgg import VGG
from segzoo.layers import Dropout
from segzoo.weights import vgg as vgg_weights
from segzoo.weights.names import Flattened


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


def test_every_parameter_belongs_to_a_stage():
    for depth in (11, 13, 16, 19):
        _, variables = shapes_of(VGG(depth, width=1), jnp.zeros((1, 32, 32, 3)))
        assert [name for stage in VGG(depth).stages for name in stage] == list(variables["params"])
    assert list(map(len, VGG(19).stages)) == [2, 2, 4, 4, 4]


def test_batch_norm_leaves_the_biases():
    _, variables = shapes_of(VGG(11, width=2, norm="batch"), jnp.zeros((1, 32, 32, 3)))
    for layer in variables["params"].values():
        assert set(layer["conv"]) == {"kernel", "bias"}
        assert set(layer["norm"]) == {"scale", "bias"}


@pytest.mark.parametrize("output_stride", [16, 8])
def test_at_every_nth_place_dilation_gives_what_strides_give(filled, output_stride):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 64, 96, 3)), jnp.float32)
    strided, dilated = (segzoo.get("vgg11", width=2, output_stride=s) for s in (32, output_stride))
    variables = filled(strided, image.shape)
    compute = functools.partial(features_of, variables=variables, image=image)
    reductions = dilated.backbone.reductions
    assert reductions == tuple(min(r, output_stride) for r in strided.backbone.reductions)
    ratios = [r // s for r, s in zip(strided.backbone.reductions, reductions, strict=True)]
    assert max(ratios) == 32 // output_stride
    for dense, sparse, ratio in zip(compute(dilated), compute(strided), ratios, strict=True):
        np.testing.assert_allclose(dense[:, ::ratio, ::ratio], sparse, atol=1e-5)


def features_of(classifier, variables, image):
    def run(variables, image):
        return classifier.apply(variables, image, method=lambda m, x: m.backbone(x, train=False))

    return jax.jit(run)(variables, image)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (21, 23), (33, 260)])
@pytest.mark.parametrize("output_stride", [8, 32])
def test_images_of_any_size_are_classified(filled, size, output_stride):
    model = segzoo.get("vgg11", width=2, num_classes=3, output_stride=output_stride)
    variables = filled(model, (1, 32, 32, 3))
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)
    logits = jax.jit(model.apply)(variables, image)
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


def test_the_classifier_sees_places_row_by_row(filled):
    model = segzoo.get("vgg11", width=2, num_classes=3)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 224, 224, 3)), jnp.float32)
    variables = filled(model, image.shape)
    pool5 = features_of(model, variables, image)[-1]
    assert pool5.shape == (2, 7, 7, 16)  # the paper's: nothing is pooled
    x = np.asarray(pool5, np.float64).reshape(2, -1)
    for name in ("fc6", "fc7", "head"):
        layer = variables["params"][name]
        x = x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])
        if name != "head":
            x = np.maximum(x, 0)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, image), x, rtol=1e-4, atol=1e-4)


def dense_layers_of(name, **overrides):
    """The names of the classifier's modules in the order of their calls, drop-out as "drop"."""
    order = []

    def note(call, args, kwargs, context):
        module = context.module
        if context.method_name == "__call__" and module.path and module.path[0] != "backbone":
            order.append("drop" if isinstance(module, Dropout) else module.name)
        return call(*args, **kwargs)

    def run(key):
        with nn.intercept_methods(note):
            model = segzoo.get(name, **overrides)
            rngs = {"params": key, "dropout": key}
            return model.init(rngs, jnp.zeros((1, 64, 64, 3)), train=True)

    jax.eval_shape(run, jax.random.key(0))
    return order


def test_drop_out_is_after_the_hidden_layers():
    after = ["fc6", "drop", "fc7", "drop", "head"]
    assert dense_layers_of("vgg11", width=2) == after
    assert dense_layers_of("alexnet", width=6, variant="paper") == after
    # torchvision's AlexNet drops out what enters them.
    before = ["drop", "fc6", "drop", "fc7", "head"]
    assert dense_layers_of("alexnet", width=6) == before


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 0}, "width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, "output_stride is 4; expected one of 8, 16, 32"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number of at least 0 and below 1"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("vgg16", **overrides)


def test_an_image_of_another_rank():
    model = segzoo.get("vgg11", width=2)
    with pytest.raises(SegzooError, match=r"the image has shape \(32, 32, 3\)"):
        shapes_of(model, jnp.zeros((32, 32, 3)))


def test_torchvisions_names():
    layout, _ = vgg_weights.layouts(segzoo.get("vgg16", width=8))
    convs = [name for stage in VGG(16).stages for name in stage]
    numbers = [0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28]
    assert [layout.module(f"backbone/{name}/conv") for name in convs] == [
        f"features.{number}" for number in numbers
    ]
    assert layout.module("fc6") == Flattened("classifier.0", (64, 7, 7))
    assert layout.module("fc7") == "classifier.3"
    assert layout.module("head") == "classifier.6"
    layout, _ = vgg_weights.layouts(segzoo.get("vgg11_bn"))
    assert layout.module("backbone/conv5_2/conv") == "features.25"
    assert layout.module("backbone/conv5_2/norm") == "features.26"
