import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.densenet import BLOCKS, DenseLayer, DenseNet, average_pool
from segzoo.measured import Measured
from segzoo.weights.densenet import layouts
from segzoo.weights.names import places


class Inferring(DenseNet):
    def __call__(self, image, *, train=False):
        return super().__call__(image, train=train)


def shapes_of(model, size=(64, 64)):
    return jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, *size, 3)))


def random_image(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# Widths of the maps: k0, and k0 + L k after the first block; a transition halves them.
@pytest.mark.parametrize(
    ("depth", "width", "channels"),
    [
        (121, 64, (64, 256, 512, 1024, 1024)),
        (161, 96, (96, 384, 768, 2112, 2208)),
        (169, 64, (64, 256, 512, 1280, 1664)),
        (201, 64, (64, 256, 512, 1792, 1920)),
    ],
)
def test_layers_and_growth(depth, width, channels):
    model = Inferring(depth, width)
    features, variables = shapes_of(model, (64, 96))
    assert tuple(f.shape[-1] for f in features) == channels
    for feature, reduction in zip(features, model.reductions, strict=True):
        assert feature.shape[1:3] == (64 // reduction, 96 // reduction)

    flat = traverse_util.flatten_dict(variables["params"], sep="/")
    kernels = {path: leaf.shape for path, leaf in flat.items() if path.endswith("kernel")}
    assert len(kernels) + 1 == depth  # the classifier
    k0 = width
    for block, layers in enumerate(BLOCKS[depth], start=1):
        k = model.growth_rate
        for layer in range(1, layers + 1):
            name = f"block{block}_layer{layer}"
            assert kernels[f"{name}/conv1/kernel"] == (1, 1, k0 + (layer - 1) * k, 4 * k)
            assert kernels[f"{name}/conv2/kernel"] == (3, 3, 4 * k, k)
        k0 = (k0 + layers * k) // 2


def test_output_stride_keeps_the_resolution():
    for output_stride, reductions in ((16, (2, 4, 8, 16, 16)), (8, (2, 4, 8, 8, 8))):
        model = Inferring(121, 4, output_stride=output_stride)
        assert model.reductions == reductions
        features, _ = shapes_of(model, (64, 96))
        assert [f.shape[1:3] for f in features] == [(64 // r, 96 // r) for r in reductions]


def test_a_layer_sees_every_layer_before_it_in_order(filled):
    """A layer that reads the channels of one earlier layer alone follows that layer alone."""
    model = Inferring(121, 4)
    image = random_image(1, 32, 32, 3)
    variables = filled(model, image.shape)
    k0, k = 4, 2

    def output(params):
        _, sown = model.apply(
            {**variables, "params": params},
            image,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "block1_layer6",
        )
        return jnp.sum(jnp.square(sown["intermediates"]["block1_layer6"]["__call__"][0]))

    gradient = jax.jit(jax.grad(output))

    def followed(params):
        found = gradient(params)
        kernels = (found[f"block1_layer{i}"]["conv2"]["kernel"] for i in range(1, 7))
        return [i for i, kernel in enumerate(kernels, start=1) if np.any(kernel)]

    params = variables["params"]
    assert followed(params) == [1, 2, 3, 4, 5, 6]
    first, last = k0 + 2 * k, k0 + 3 * k  # the channels of the third layer
    kernel = params["block1_layer6"]["conv1"]["kernel"]
    only = jnp.zeros_like(kernel).at[..., first:last, :].set(kernel[..., first:last, :])
    params["block1_layer6"]["conv1"]["kernel"] = only
    assert followed(params) == [1, 2, 3, 6]


@pytest.mark.slow
def test_the_dilated_network_holds_every_value_of_the_strided_one(filled):
    image = random_image(1, 64, 96, 3)

    def features(output_stride):
        model = Inferring(121, 4, output_stride=output_stride)
        variables = filled(model, image.shape)
        return jax.jit(model.apply)(variables, image)

    for fine, coarse in zip(features(8), features(32), strict=True):
        assert np.any(coarse > 0)
        step = fine.shape[1] // coarse.shape[1]
        np.testing.assert_allclose(fine[:, ::step, ::step], coarse, rtol=1e-4, atol=1e-5)
    assert step == 4


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (2, 3)])
def test_average_pooling(size):
    x = random_image(2, *size, 3)
    np.testing.assert_allclose(
        average_pool(x, 2, 1), nn.avg_pool(x, (2, 2), (2, 2)), rtol=1e-6, atol=1e-6
    )
    kept = average_pool(x, 1, 1)
    assert kept.shape == x.shape
    np.testing.assert_allclose(
        kept[:, :-1, :-1], nn.avg_pool(x, (2, 2), (1, 1)), rtol=1e-6, atol=1e-6
    )
    # Over the end there is nothing to average with.
    np.testing.assert_array_equal(kept[:, -1, -1], x[:, -1, -1])
    # Taps d apart are those of the image's d^2 interleaved parts.
    for row in range(2):
        for column in range(2):
            part = x[:, row::2, column::2]
            np.testing.assert_array_equal(
                average_pool(x, 1, 2)[:, row::2, column::2], average_pool(part, 1, 1)
            )
    ones = jnp.ones_like(x)
    np.testing.assert_array_equal(average_pool(ones, 1, 2), ones)


def test_drop_out_follows_every_convolution_but_the_first(monkeypatch):
    masks = []

    def dropout(x, key, rate, *, first):
        masks.append((rate, x.shape[-1]))
        return x

    monkeypatch.setattr("segzoo.layers.dropout", dropout)
    model = DenseNet(121, 4, dropout=0.2)

    def run(train):
        rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        return model.init(rngs, jnp.zeros((1, 32, 32, 3)), train=train)

    jax.eval_shape(lambda: run(False))
    assert masks == []
    jax.eval_shape(lambda: run(True))
    assert len(masks) == 121 - 2  # neither after the first nor in the classifier
    # A layer's two convolutions, k = 2, and what follows a block of 6.
    assert masks[:13] == [(0.2, 8), (0.2, 2)] * 6 + [(0.2, 8)]


def test_drop_out_zeroes_outputs(filled):
    class Training(DenseLayer):
        def __call__(self, x, *, train=True):
            return super().__call__(Measured(x), train=train)

    x = random_image(2, 16, 16, 4)
    layer = Training(8, dropout=0.5)
    variables = filled(Training(8), x.shape)
    y, _ = layer.apply(variables, x, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    assert np.mean(y == 0) == pytest.approx(0.5, abs=0.05)


def test_small_images(filled):
    """Where a pool finds a single pixel along an axis, it keeps it."""
    image = random_image(1, 1, 40, 1)
    model = Inferring(121, 2)
    variables = filled(model, image.shape)
    features = jax.jit(model.apply)(variables, image)
    assert all(np.isfinite(feature).all() for feature in features)
    assert [f.shape[1:3] for f in features] == [(1, 20), (1, 10), (1, 5), (1, 2), (1, 1)]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 1}, r"width is 1; expected an integer of at least 2"),
        ({"output_stride": 64}, r"output_stride is 64; expected one of 8, 16, 32"),
        ({"norm": "layer"}, r"norm is 'layer'; expected one of"),
        ({"dropout": 1.0}, r"dropout is 1\.0; expected a number of at least 0 and below 1"),
        ({"dtype": "int8"}, r"dtype is 'int8'; expected a floating type"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("densenet121", **overrides)


def test_impossible_depths():
    with pytest.raises(SegzooError, match=r"depth is 120; expected one of 121, 161, 169, 201"):
        DenseNet(120)


def test_names_in_other_libraries():
    model = segzoo.get("densenet161")
    shapes = traverse_util.flatten_dict(shapes_of(model)[1], sep="/")
    tables = {layout.library: {} for layout in layouts(model)}
    assert set(tables) == {"torchvision", "timm"}
    for layout in layouts(model):
        found = {
            place.name: place.shape(shapes[path].shape)
            for path, place in places(shapes, layout).items()
        }
        assert len(found) == len(shapes)
        # torchvision's published files write norm.1 where its modules now say norm1.
        dot = "." if "features.denseblock1.denselayer1.norm.1.weight" in found else ""
        some = {
            "features.conv0.weight": (96, 3, 7, 7),
            "features.norm0.running_mean": (96,),
            f"features.denseblock3.denselayer36.conv{dot}1.weight": (192, 2064, 1, 1),
            f"features.denseblock4.denselayer24.conv{dot}2.weight": (48, 192, 3, 3),
            f"features.denseblock4.denselayer24.norm{dot}1.running_var": (2160,),
            "features.transition3.norm.weight": (2112,),
            "features.transition3.conv.weight": (1056, 2112, 1, 1),
            "features.norm5.bias": (2208,),
            "classifier.weight": (1000, 2208),
        }
        assert some.items() <= found.items()
    # 161 convolutions and dense layers, a bias, and four tensors for each norm.
    assert len(shapes) == 161 + 1 + 4 * 161
