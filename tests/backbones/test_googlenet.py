"""GoogLeNet: Table 1 row by row, the auxiliary classifiers, strides and dilations, variants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.googlenet import AuxiliaryHead, GoogLeNet
from segzoo.layers import max_pool
from segzoo.ops.normalization import local_response_norm
from segzoo.weights.googlenet import layouts
from segzoo.weights.names import places

# Places and channels of a 224x224 image; ops in millions of multiply-adds as printed.
TABLE_1 = {
    "conv1": (112, 64, None),
    "conv2": (56, 64, None),
    "conv3": (56, 192, None),
    "inception3a": (28, 256, 128),
    "inception3b": (28, 480, 304),
    "inception4a": (14, 512, 73),
    "inception4b": (14, 512, 88),
    "inception4c": (14, 512, 100),
    "inception4d": (14, 528, 119),
    "inception4e": (14, 832, 170),
    "inception5a": (7, 832, 54),
    "inception5b": (7, 1024, 71),
}
# The column of parameters in units of 1024, where it agrees with the columns of channels. (It does
# not in 4a, 4c, 4d, 4e, 5a and 5b, though the ops there do, but for 5a: they come from its 1072.)
KILO = {"inception3a": 159, "inception3b": 380, "inception4b": 437}


def run(net, size, channels=3, dtype=jnp.float32):
    """Shapes of the features, of every module's output, and of the variables."""

    def call(key, image):
        maps = {}
        features, variables = net.init_with_output(key, image, train=False, maps=maps)
        return features, maps, variables

    image = jnp.zeros((2, *size, channels), dtype)
    return jax.eval_shape(call, jax.random.key(0), image)


def kernels(tree):
    flat = traverse_util.flatten_dict(tree, sep="/")
    return {path: leaf.shape for path, leaf in flat.items() if path.endswith("kernel")}


@pytest.mark.parametrize("variant", ["torchvision", "paper"])
def test_output_sizes_of_table_1(variant):
    _, maps, _ = run(GoogLeNet(variant=variant), (224, 224))
    assert {name: leaf.shape[1:] for name, leaf in maps.items()} == {
        name: (size, size, channels) for name, (size, channels, _) in TABLE_1.items()
    }


def test_operations_and_parameters_of_table_1():
    _, _, variables = run(GoogLeNet(variant="paper"), (224, 224))
    weights = {
        name: sum(int(np.prod(shape)) for shape in kernels(tree).values())
        for name, tree in variables["params"].items()
    }
    for name, (size, _, millions) in TABLE_1.items():
        if millions is not None and name != "inception5a":
            assert abs(weights[name] * size**2 / 1e6 - millions) < 1, name
    assert round((weights["conv2"] + weights["conv3"]) * 56**2 / 1e6) == 360
    assert (weights["conv2"] + weights["conv3"]) // 1024 == 112
    for name, kilo in KILO.items():
        assert abs(weights[name] / 1024 - kilo) <= 1, name


# With biases or batch norm, 1000 classes; the last two are those of the release for Caffe.
@pytest.mark.parametrize(
    ("variant", "aux_loss", "expected"),
    [
        ("torchvision", False, 6_624_904),
        ("torchvision", True, 13_004_888),
        ("paper", False, 6_998_552),
        ("paper", True, 13_378_280),
    ],
)
def test_parameters(count_parameters, variant, aux_loss, expected):
    model = segzoo.get("googlenet", variant=variant, aux_loss=aux_loss)
    assert count_parameters(model, (1, 224, 224, 3)) == expected


def test_variants():
    published = run(GoogLeNet(variant="paper"), (64, 64))[-1]
    usual = run(GoogLeNet(), (64, 64))[-1]
    assert set(published) == {"params"}
    assert set(usual) == {"params", "batch_stats"}
    assert kernels(published["params"])["inception4c/conv5x5/conv/kernel"] == (5, 5, 24, 64)
    assert kernels(usual["params"])["inception4c/conv5x5/conv/kernel"] == (3, 3, 24, 64)
    assert "bias" in published["params"]["conv1"]["conv"]
    assert "bias" not in usual["params"]["conv1"]["conv"]
    assert segzoo.get("googlenet").dropout == 0.2
    assert segzoo.get("googlenet", variant="paper").dropout == 0.4


def test_the_paper_normalises_after_the_first_pool_and_before_the_second(filled):
    model = segzoo.get("googlenet", width=8, variant="paper")
    image = 50 * jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 32, 3)), jnp.float32)
    variables = filled(model, image.shape)

    @jax.jit
    def compute(variables, image):
        maps = {}
        model.bind(variables).backbone(image, train=False, maps=maps)
        return {name: maps[name] for name in ("conv1", "conv2", "conv3", "inception3a")}

    maps = compute(variables, image)

    def normalised(x):
        y = local_response_norm(x, k=1.0, n=5, alpha=2e-5, beta=0.75)
        assert np.abs(y - x).max() > 1e-3
        return y

    def convolve(x, path):
        params = variables["params"]["backbone"]
        for name in path:
            params = params[name]
        y = x @ params["conv"]["kernel"][0, 0] + params["conv"]["bias"]
        return np.maximum(y, 0)

    def pool(x):
        return max_pool(x, (3, 3), (2, 2), [(0, 1), (0, 1)])

    second = convolve(normalised(pool(maps["conv1"])), ("conv2",))
    np.testing.assert_allclose(maps["conv2"], second, rtol=1e-4, atol=1e-4)
    first = convolve(pool(normalised(maps["conv3"])), ("inception3a", "conv1x1"))
    ours = maps["inception3a"][..., : first.shape[-1]]
    np.testing.assert_allclose(ours, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_finest_first_at_their_reductions(output_stride):
    net = GoogLeNet(output_stride=output_stride)
    features, _, _ = run(net, (64, 96))
    assert [f.shape[-1] for f in features] == [64, 192, 480, 832, 1024]
    for feature, reduction in zip(features, net.reductions, strict=True):
        assert feature.shape[1:3] == (64 // reduction, 96 // reduction)


@pytest.mark.parametrize("variant", ["torchvision", "paper"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 50)])
def test_any_size_and_channels(variant, size):
    features, _, _ = run(GoogLeNet(width=4, variant=variant), size, channels=5)
    assert all(0 not in feature.shape for feature in features)
    model = segzoo.get("googlenet", width=4, variant=variant, aux_loss=True, num_classes=7)
    image = jnp.zeros((1, *size, 5))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, 7)


def test_a_dilated_net_agrees_with_the_strided_one_at_its_places(filled):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 64, 96, 3)), jnp.float32)
    variables = filled(segzoo.get("googlenet", width=8), image.shape)

    def features(output_stride):
        model = segzoo.get("googlenet", width=8, output_stride=output_stride)
        call = jax.jit(lambda v, x: model.bind(v).backbone(x, train=False))
        return call(variables, image)

    for coarse, fine in zip(features(32), features(8), strict=True):
        step = fine.shape[1] // coarse.shape[1]
        size = np.abs(coarse).max()
        np.testing.assert_allclose(fine[:, ::step, ::step] / size, coarse / size, atol=1e-5)
    assert step == 4


class TestAuxiliaryClassifiers:
    image = jax.ShapeDtypeStruct((3, 64, 64, 3), jnp.float32)

    def shapes(self, **overrides):
        model = segzoo.get("googlenet", width=8, num_classes=5, **overrides)
        return model, jax.eval_shape(model.init, jax.random.key(0), self.image)

    def test_their_layers_are_those_of_section_5(self):
        model = segzoo.get("googlenet", aux_loss=True)
        image = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        for head, channels in (("aux1", 512), ("aux2", 528)):
            assert kernels(params[head]) == {
                "conv/conv/kernel": (1, 1, channels, 128),
                "fc1/kernel": (4 * 4 * 128, 1024),
                "fc2/kernel": (1024, 1000),
            }

    def test_exist_only_when_asked_for(self):
        _, variables = self.shapes(aux_loss=True)
        assert set(variables["params"]) == {"backbone", "head", "aux1", "aux2"}
        _, plain = self.shapes()
        assert set(plain["params"]) == {"backbone", "head"}
        assert set(variables) == set(plain) == {"params", "batch_stats"}

    def test_run_only_when_their_logits_are_wanted(self):
        model, variables = self.shapes(aux_loss=True)
        _, sown = jax.eval_shape(
            lambda v, x: model.apply(v, x, mutable=["aux_logits"]), variables, self.image
        )
        auxiliary = sown["aux_logits"]["logits"]
        assert [(a.shape, a.dtype) for a in auxiliary] == [((3, 5), jnp.float32)] * 2
        # Otherwise their parameters are not even looked at.
        for collection in variables.values():
            for head in ("aux1", "aux2"):
                del collection[head]
        assert jax.eval_shape(model.apply, variables, self.image).shape == (3, 5)

    def test_need_the_backbone_to_run(self):
        model, variables = self.shapes(aux_loss=True)

        def stored(call, args, kwargs, context):
            if isinstance(context.module, GoogLeNet) and context.method_name == "__call__":
                return (jnp.ones((3, 2, 2, 128)),)
            return call(*args, **kwargs)

        def forward(mutable):
            with nn.intercept_methods(stored):
                return jax.eval_shape(
                    lambda v, x: model.apply(v, x, mutable=mutable), variables, self.image
                )

        assert forward(["batch_stats"])[0].shape == (3, 5)
        with pytest.raises(SegzooError, match=r"needs the output of inception4a inside"):
            forward(["aux_logits"])

    def test_drop_most_of_the_hidden_layer_in_training(self):
        net = GoogLeNet(variant="paper")
        head = AuxiliaryHead(1, net.conv, features=2, hidden=4000)
        x = jnp.ones((1, 14, 14, 3))
        shapes = jax.eval_shape(lambda x: head.init(jax.random.key(0), x, train=False), x)
        # With ones all hidden units are equal, and the logit is a multiple of those that are kept.
        variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
        kept = [
            head.apply(variables, x, train=train, rngs={"dropout": jax.random.key(0)}).item()
            for train in (False, True)
        ]
        assert abs(kept[1] / kept[0] - 1) < 0.1
        assert kept[1] != kept[0]
        assert head.dropout == 0.7


def test_names_in_torchvision():
    model = segzoo.get("googlenet", aux_loss=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    flat = traverse_util.flatten_dict(shapes, sep="/")
    (layout,) = layouts(model)
    found = places(flat, layout)
    names = {place.name for place in found.values()}
    assert len(names) == len(flat)
    assert {
        "conv1.conv.weight",
        "inception4c.branch3.1.bn.running_var",
        "inception5b.branch4.1.conv.weight",
        "aux2.fc1.weight",
        "fc.bias",
    } < names
    assert layouts(segzoo.get("googlenet", variant="paper")) == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, r"output_stride is 4; expected one of 8, 16, 32"),
        ({"aux_loss": 0.3}, r"aux_loss is 0.3; expected one of True, False"),
        ({"variant": "caffe"}, r"variant is 'caffe'; expected one of 'torchvision', 'paper'"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("googlenet", **override)
