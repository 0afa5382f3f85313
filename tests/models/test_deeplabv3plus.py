"""DeepLab v3+: the paper's cost, its decoder, and separable convolutions."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.xception import SeparableConv
from segzoo.cost import measure
from segzoo.encoder import apply_with_features, encode, used_features
from segzoo.models.deeplabv3plus import Decoder

SLOW = ("efficientnet_b0", "densenet121")


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


# Table 5: Xception, decoder and separable convolutions, by output stride.
@pytest.mark.parametrize(
    ("output_stride", "published"), [(16, 54.17), pytest.param(8, 177.1, marks=pytest.mark.slow)]
)
def test_the_papers_multiply_adds(output_stride, published):
    cost = measure(segzoo.get("deeplabv3plus", output_stride=output_stride), (513, 513), 3)
    assert cost.macs / 1e9 == pytest.approx(published, rel=0.01)


def test_parameters(count_parameters):
    pyramid = 2 * (2048 * 256 + 512) + 3 * (9 * 2048 * 256 + 512) + 5 * 256 * 256 + 512
    decoder = 256 * 48 + 96 + 9 * (48 + 256) * 256 + 512 + 9 * 256 * 256 + 512
    scores = 256 * 21 + 21
    model = segzoo.get("deeplabv3plus", backbone="resnet101", separable=False)
    expected = 42_500_160 + pyramid + decoder + scores
    assert count_parameters(model, (1, 33, 33, 3)) == expected

    def separable(c_in, c_out):
        return 9 * c_in + 2 * c_in + c_in * c_out + 2 * c_out

    whole = [3 * (9 * 2048 * 256 + 512), 9 * 304 * 256 + 512, 9 * 256 * 256 + 512]
    parts = [3 * separable(2048, 256), separable(304, 256), separable(256, 256)]
    model = segzoo.get("deeplabv3plus", backbone="resnet101")
    assert count_parameters(model, (1, 33, 33, 3)) == expected - sum(whole) + sum(parts)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_the_parts_of_figure_2(output_stride):
    """The features before stride 8, 48 channels of them, beside the pyramid's 256."""
    model = segzoo.get("deeplabv3plus", output_stride=output_stride)
    seen = {}

    def look(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, Decoder | SeparableConv) or context.module.name == "reduce":
            path = "/".join(context.module.path)
            seen[path] = [a.shape[1:] for a in (*args, result)]
        return result

    with nn.intercept_methods(look):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 513, 513, 3)))
    coarse = 512 // output_stride + 1
    fine = (129, 129)
    assert seen["decoder"] == [(coarse, coarse, 256), (*fine, 256), (*fine, 256)]
    assert seen["decoder/reduce"] == [(*fine, 256), (*fine, 48)]
    assert seen["decoder/conv1"] == [(*fine, 304), (*fine, 256)]
    assert seen["decoder/conv2"] == [(*fine, 256), (*fine, 256)]
    assert [name for name in seen if name.startswith("aspp/")] == [
        f"aspp/atrous{number}" for number in (1, 2, 3)
    ]


def test_fine_detail_reaches_the_logits_by_the_decoder_alone():
    """A logit sees the low-level features around its pixel, and nothing of them farther away."""
    model = segzoo.get("deeplabv3plus", backbone="resnet18", width=4, num_classes=2)
    image = jax.ShapeDtypeStruct((1, 65, 65, 3), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    assert used_features(model, shapes, image) == (1, 4)

    def open_everywhere(path, leaf):  # no ReLU closes
        return jnp.full(leaf.shape, 0.0 if path[-1].key == "mean" else 0.1)

    variables = jax.tree_util.tree_map_with_path(open_everywhere, shapes)
    features = jax.eval_shape(lambda v, x: encode(model, v, x), variables, image)
    features = [jnp.ones(feature.shape) for feature in features]

    def logit(low_level):
        given = [features[0], low_level, *features[2:]]
        return apply_with_features(model, variables, jnp.ones(image.shape), given)[0, 32, 24, 0]

    gradient = jax.jit(jax.grad(logit))(features[1])
    rows, columns = np.nonzero(np.any(gradient[0] != 0, axis=-1))
    # Pixel (32, 24) is cell (8, 6); two 3x3 convolutions see 5x5 cells around it.
    assert (rows.min(), rows.max()) == (6, 10)
    assert (columns.min(), columns.max()) == (4, 8)


def test_separable_convolutions_are_a_filter_per_channel_and_a_1x1(filled):
    model = segzoo.get("deeplabv3plus", backbone="resnet18", width=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))["params"]
    found = traverse_util.flatten_dict(shapes, sep="/")
    assert found["aspp/atrous1/depthwise/conv/kernel"].shape == (3, 3, 1, 32)
    assert found["aspp/atrous1/pointwise/conv/kernel"].shape == (1, 1, 32, 16)
    assert found["decoder/conv1/depthwise/conv/kernel"].shape == (3, 3, 1, 16 + 3)
    # Norm and ReLU after both.
    assert "decoder/conv1/depthwise/norm/scale" in found
    x = random(1, 7, 7, 19)

    class Inferring(nn.Module):
        @nn.compact
        def __call__(self, x):
            return SeparableConv(8, name="conv")(x, train=False)

    variables = filled(Inferring(), x.shape)
    keep = lambda module, _: module.name in ("depthwise", "pointwise")  # noqa: E731
    _, seen = Inferring().apply(variables, x, capture_intermediates=keep)
    for name in ("depthwise", "pointwise"):
        (value,) = seen["intermediates"]["conv"][name]["__call__"]
        assert value.min() == 0
        assert value.max() > 0


@pytest.mark.parametrize(
    "backbone",
    ["vgg11", "resnet50", *(pytest.param(b, marks=pytest.mark.slow) for b in SLOW)],
)
def test_any_encoder_and_size(backbone):
    model = segzoo.get("deeplabv3plus", backbone=backbone, width=8, num_classes=1)
    for size in ((1, 1), (7, 40)):
        image = jnp.zeros((1, *size, 3))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, *size, 1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "xception56"}, "unknown backbone 'xception56'. Did you mean 'xception65'"),
        ({"output_stride": 4}, "output_stride is 4; expected one of 8, 16"),
        ({"separable": "yes"}, "separable is 'yes'; expected one of True, False"),
        ({"multi_grid": (1, 2, 4)}, "model 'xception65' has no override 'multi_grid'"),
        ({"dropout": -1}, "dropout is -1; expected a number"),
        ({"num_classes": 0}, "num_classes is 0; expected an integer"),
    ],
)
def test_mistakes(overrides, message):
    with pytest.raises(SegzooError) as caught:
        segzoo.get("deeplabv3plus", **overrides)
    assert message in str(caught.value)
