"""AlexNet: layer arithmetic of both variants, geometry, groups, normalisation, smallest images."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.ops.normalization import local_response_norm
from segzoo.weights import alexnet as alexnet_weights
from segzoo.weights.names import Flattened


def shapes_of(model, size=(224, 224)):
    image = jnp.zeros((1, *size, 3))
    return jax.eval_shape(model.init, jax.random.key(0), image)["params"]


def features_of(model, variables, image):
    def run(variables, image):
        return model.apply(variables, image, method=lambda m, x: m.backbone(x, train=False))

    return jax.jit(run)(variables, image)


def random_image(*size):
    return jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 3)), jnp.float32)


def test_the_papers_parameters_layer_by_layer():
    params = shapes_of(segzoo.get("alexnet", variant="paper"))
    counts = {
        name: math.prod(layer["kernel"].shape) + math.prod(layer["bias"].shape)
        for name, layer in {**params.pop("backbone"), **params}.items()
    }
    assert counts == {
        "conv1": 11 * 11 * 3 * 96 + 96,
        "conv2": 5 * 5 * 48 * 256 + 256,
        "conv3": 3 * 3 * 256 * 384 + 384,
        "conv4": 3 * 3 * 192 * 384 + 384,
        "conv5": 3 * 3 * 192 * 256 + 256,
        "fc6": 6 * 6 * 256 * 4096 + 4096,
        "fc7": 4096 * 4096 + 4096,
        "head": 4096 * 1000 + 1000,
    }
    assert sum(counts.values()) == 60_965_224


@pytest.mark.parametrize(
    ("variant", "channels"),
    [("torchvision", (64, 192, 256, 256)), ("paper", (96, 256, 256, 256))],
)
def test_the_papers_places(variant, channels):
    backbone = segzoo.get("alexnet", variant=variant).backbone
    features, _ = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, train=False),
        jnp.zeros((1, 224, 224, 3)),
    )
    assert [f.shape[1:] for f in features] == [
        (side, side, c) for side, c in zip((55, 27, 13, 6), channels, strict=True)
    ]
    assert backbone.reductions == (4, 8, 16, 32)


def test_width_keeps_proportions():
    full, narrow = shapes_of(segzoo.get("alexnet")), shapes_of(segzoo.get("alexnet", width=4))
    full, narrow = (traverse_util.flatten_dict(p, sep="/") for p in (full, narrow))
    for name, leaf in full.items():
        *_, out = narrow[name].shape
        assert out == (1000 if "head" in name else leaf.shape[-1] // 16), name
    with pytest.raises(SegzooError, match=r"width is 8; expected a multiple of 6"):
        segzoo.get("alexnet", variant="paper", width=8)


def test_the_gpus_share_what_the_third_convolution_sees(filled):
    """A map of the second, fourth and fifth convolution sees one half of the maps before it."""
    model = segzoo.get("alexnet", variant="paper", width=6)
    params = filled(model, (1, 64, 64, 3))["params"]["backbone"]
    seen = [params[f"conv{i}"]["kernel"].shape[2] for i in range(1, 6)]
    maps = [params[f"conv{i}"]["kernel"].shape[3] for i in range(1, 6)]
    assert seen == [3, maps[0] // 2, maps[1], maps[2] // 2, maps[3] // 2]


@pytest.mark.parametrize("variant", ["torchvision", "paper"])
def test_only_the_paper_normalises_responses(filled, variant):
    model = segzoo.get("alexnet", variant=variant, width=6)
    image = random_image(64, 64)
    variables = filled(model, image.shape)
    layer = variables["params"]["backbone"]["conv1"]
    pads = [(2, 2), (2, 2)]
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(image, layer["kernel"], (4, 4), pads, None, None, numbers)
    x = jax.nn.relu(x + layer["bias"])
    expected = local_response_norm(x) if variant == "paper" else x
    conv1, *_ = features_of(model, variables, image)
    np.testing.assert_allclose(conv1, expected, atol=1e-5)


@pytest.mark.parametrize("output_stride", [16, 8])
def test_at_every_nth_place_dilation_gives_what_strides_give(filled, output_stride):
    image = random_image(75, 97)
    strided, dilated = (
        segzoo.get("alexnet", width=4, output_stride=s) for s in (32, output_stride)
    )
    variables = filled(strided, image.shape)
    reductions = dilated.backbone.reductions
    assert reductions == tuple(min(r, output_stride) for r in (4, 8, 16, 32))
    for dense, sparse, there, here in zip(
        features_of(dilated, variables, image),
        features_of(strided, variables, image),
        strided.backbone.reductions,
        reductions,
        strict=True,
    ):
        ratio = there // here
        np.testing.assert_allclose(dense[:, ::ratio, ::ratio], sparse, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_the_smallest_image(output_stride):
    model = segzoo.get("alexnet", width=4, num_classes=3, output_stride=output_stride)
    assert model.backbone.smallest == 63
    assert shapes_of(model, (63, 64))["head"]["kernel"].shape[-1] == 3
    with pytest.raises(SegzooError, match="the image has 64x62 pixels; AlexNet needs at least 63x"):
        shapes_of(model, (64, 62))


def test_the_papers_initialisation():
    model = segzoo.get("alexnet", variant="paper", width=6, num_classes=7)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    layers = {**params.pop("backbone"), **params}
    for name, layer in layers.items():
        expected = 1 if name in ("conv2", "conv4", "conv5", "fc6", "fc7") else 0
        assert np.all(layer["bias"] == expected), name
        assert 0.007 < layer["kernel"].std() < 0.013, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "caffe"}, "variant is 'caffe'; expected one of 'torchvision', 'paper'"),
        ({"width": 0}, "width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, "output_stride is 4"),
        ({"dropout": -0.1}, "dropout is -0.1"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("alexnet", **overrides)


def test_torchvisions_names():
    (layout,) = alexnet_weights.layouts(segzoo.get("alexnet", width=8))
    names = [layout.module(f"backbone/conv{i}") for i in range(1, 6)]
    assert names == ["features.0", "features.3", "features.6", "features.8", "features.10"]
    assert layout.module("fc6") == Flattened("classifier.1", (32, 6, 6))
    assert [layout.module(name) for name in ("fc7", "head")] == ["classifier.4", "classifier.6"]
    assert alexnet_weights.layouts(segzoo.get("alexnet", variant="paper")) == ()
