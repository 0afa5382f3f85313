"""BN-Inception: Figure 5 row by row, strides and dilations, variants, names elsewhere."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.inception import Inception
from segzoo.backbones.inception_v2 import InceptionV2
from segzoo.weights.inception_v2 import layouts
from segzoo.weights.names import places

# Places and channels of a 224x224 image in Figure 5; Caffe's release has more in three modules.
FIGURE_5 = {
    "conv1": (112, 64),
    "conv2": (56, 192),
    "inception3a": (28, 256),
    "inception3b": (28, 320),
    "inception3c": (14, 576),
    "inception4a": (14, 576),
    "inception4b": (14, 576),
    "inception4c": (14, 576),
    "inception4d": (14, 576),
    "inception4e": (7, 1024),
    "inception5a": (7, 1024),
    "inception5b": (7, 1024),
}
CAFFE = {"inception4c": (14, 608), "inception4d": (14, 608), "inception4e": (7, 1056)}


def run(net, size, channels=3):
    """Shapes of the features, of every module's output, and of the variables."""

    def call(key, image):
        variables = net.init(key, image, train=False)
        features, found = net.apply(
            variables, image, train=False, capture_intermediates=True, mutable=["intermediates"]
        )
        return features, found["intermediates"], variables

    image = jnp.zeros((2, *size, channels))
    return jax.eval_shape(call, jax.random.key(0), image)


def shapes(variables):
    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    return {path: leaf.shape for path, leaf in flat.items()}


@pytest.mark.parametrize(("variant", "more"), [("paper", {}), ("caffe", CAFFE)])
def test_output_sizes_of_figure_5(variant, more):
    _, found, _ = run(InceptionV2(variant=variant), (224, 224))
    for name, (size, channels) in (FIGURE_5 | more).items():
        assert found[name]["__call__"][0].shape[1:] == (size, size, channels), name


# The release's number is also that of pretrainedmodels' `bninception`.
@pytest.mark.parametrize(("variant", "expected"), [("caffe", 11_295_240), ("paper", 11_188_288)])
def test_parameters(count_parameters, variant, expected):
    model = segzoo.get("inception_v2", variant=variant)
    assert count_parameters(model, (1, 224, 224, 3)) == expected


def test_modules():
    found = shapes(run(InceptionV2(), (64, 64))[-1])
    kernels = {path[:-12]: shape for path, shape in found.items() if path.endswith("conv/kernel")}
    assert {p: s for p, s in kernels.items() if p.startswith("inception4a")} == {
        "inception4a/conv1x1": (1, 1, 576, 224),
        "inception4a/reduce3x3": (1, 1, 576, 64),
        "inception4a/conv3x3": (3, 3, 64, 96),
        "inception4a/reduce_double": (1, 1, 576, 96),
        "inception4a/double1": (3, 3, 96, 128),
        "inception4a/double2": (3, 3, 128, 128),
        "inception4a/pool_proj": (1, 1, 576, 128),
    }
    # Modules with a stride: no 1x1 branch, and the pool passes through.
    assert {p: s for p, s in kernels.items() if p.startswith("inception3c")} == {
        "inception3c/reduce3x3": (1, 1, 320, 128),
        "inception3c/conv3x3": (3, 3, 128, 160),
        "inception3c/reduce_double": (1, 1, 320, 64),
        "inception3c/double1": (3, 3, 64, 96),
        "inception3c/double2": (3, 3, 96, 96),
    }


def test_the_pools_are_averages_but_for_the_last_and_those_with_a_stride():
    pools = {}

    def note(call, args, kwargs, context):
        if isinstance(context.module, Inception):
            pools[context.module.name] = (context.module.pool, context.module.stride)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        run(InceptionV2(), (64, 64))
    modules = [name for name in FIGURE_5 if name.startswith("inception")]
    expected = dict.fromkeys(modules, ("avg", 1)) | {
        "inception3c": ("max", 2),
        "inception4e": ("max", 2),
        "inception5b": ("max", 1),
    }
    assert pools == expected


def test_variants():
    caffe, paper = (shapes(run(InceptionV2(variant=v), (64, 64))[-1]) for v in ("caffe", "paper"))
    assert caffe["conv1/conv/kernel"] == (7, 7, 3, 64)
    assert "conv1/conv/bias" in caffe
    # Separable, of depth multiplier 8; no biases before batch norm.
    assert paper["conv1_depthwise/kernel"] == (7, 7, 1, 24)
    assert paper["conv1/conv/kernel"] == (1, 1, 24, 64)
    assert not any(path.endswith("conv/bias") for path in paper)
    assert paper["inception4d/pool_proj/conv/kernel"] == (1, 1, 576, 96)


@pytest.mark.parametrize(("variant", "middle"), [("caffe", 608), ("paper", 576)])
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_finest_first_at_their_reductions(variant, middle, output_stride):
    net = InceptionV2(output_stride=output_stride, variant=variant)
    features, _, variables = run(net, (64, 96))
    assert [f.shape[-1] for f in features] == [64, 192, 320, middle, 1024]
    for feature, reduction in zip(features, net.reductions, strict=True):
        assert feature.shape[1:3] == (64 // reduction, 96 // reduction)
    assert {name for stage in net.stages for name in stage} == set(variables["params"])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 50), (75, 97)])
def test_any_size_and_channels(size):
    features, _, _ = run(InceptionV2(width=4), size, channels=5)
    assert all(0 not in feature.shape for feature in features)


def test_a_dilated_net_agrees_with_the_strided_one_at_its_places(filled):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 96, 3)), jnp.float32)
    variables = filled(segzoo.get("inception_v2", width=8), image.shape)

    def features(output_stride):
        model = segzoo.get("inception_v2", width=8, output_stride=output_stride)
        call = jax.jit(lambda v, x: model.bind(v).backbone(x, train=False))
        return call(variables, image)

    for coarse, fine in zip(features(32), features(8), strict=True):
        step = fine.shape[1] // coarse.shape[1]
        size = np.abs(coarse).max()
        np.testing.assert_allclose(fine[:, ::step, ::step] / size, coarse / size, atol=1e-5)
    assert step == 4


def test_names_in_pretrainedmodels():
    model = segzoo.get("inception_v2")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    flat = traverse_util.flatten_dict(variables, sep="/")
    (layout,) = layouts(model)
    names = {place.name for place in places(flat, layout).values()}
    assert len(names) == len(flat)
    assert {
        "conv1_7x7_s2.bias",
        "conv2_3x3_reduce_bn.running_mean",
        "inception_3c_double_3x3_2.weight",
        "inception_5b_pool_proj_bn.weight",
        "last_linear.bias",
    } < names
    assert layouts(segzoo.get("inception_v2", variant="paper")) == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, r"output_stride is 4; expected one of 8, 16, 32"),
        ({"dropout": 1}, r"dropout is 1; expected a number"),
        ({"variant": "slim"}, r"variant is 'slim'; expected one of 'caffe', 'paper'"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("inception_v2", **override)
