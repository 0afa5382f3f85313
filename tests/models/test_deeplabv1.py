"""DeepLab: counts, fields of view, the holes, the grid of scores, and scores of several scales."""

import functools
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import segzoo
from segzoo import SegzooError
from segzoo.backbones.vgg import VGG
from segzoo.models.deeplabv1 import (
    FIELDS_OF_VIEW,
    Classifier,
    Perceptron,
    dense_vgg16,
)
from segzoo.receptive_field import receptive_fields


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def in_inference(module):
    """A part of a network, for the fixture `filled`."""
    return SimpleNamespace(init=functools.partial(module.init, train=False))


def conv(kernel, c_in, c_out):
    return kernel * kernel * c_in * c_out + c_out


VGG16 = sum(
    conv(3, c_in, c_out)
    for c_in, c_out in [(3, 64), (64, 64), (64, 128), (128, 128), (128, 256)]
    + [(256, 256)] * 2
    + [(256, 512)]
    + [(512, 512)] * 5
)
# Millions of parameters and pixels of view: Table 1 of arXiv:1606.00915.
PUBLISHED = {"7x7": (134.3, 224), "small": (65.1, 128), "4x4": (65.1, 224), "large": (20.5, 224)}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(count_parameters, name):
    field = FIELDS_OF_VIEW[name]
    hidden = 64 * field.hidden
    count = VGG16 + conv(field.kernel, 512, hidden) + conv(1, hidden, hidden) + conv(1, hidden, 21)
    assert count_parameters(segzoo.get("deeplabv1", field_of_view=name), (1, 33, 33, 3)) == count
    assert round(count / 1e6, 1) == PUBLISHED[name][0]


def test_parameters_of_the_scales(count_parameters):
    scales = sum(
        conv(3, channels, 128) + conv(1, 128, 128) + conv(1, 128, 11)
        for channels in (3, 64, 128, 256, 512)
    )
    counts = [
        count_parameters(segzoo.get(name, num_classes=11), (1, 33, 33, 3))
        for name in ("deeplabv1_msc", "deeplabv1")
    ]
    assert counts[0] - counts[1] == scales


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_field_of_view(name):
    """VGG's fc6 sees 7 cells of 32 pixels, 224; holes keep the way from its first to its last."""
    field = FIELDS_OF_VIEW[name]
    classifier = Classifier(1, 2, field.kernel, field.rate)
    positions = receptive_fields(classifier, channels=2, train=False)[0].size
    assert positions == (field.kernel - 1) * field.rate + 1
    assert 8 * (positions - 1) + 32 == PUBLISHED[name][1]


def test_maps_are_centred_on_every_so_manieth_pixel():
    # By the recursion r + (k - 1) d j, from conv1_2 to pool5.
    sizes, strides = [5, 15, 43, 99, 211, 227], [1, 2, 4, 8, 8, 8]
    backbone = dense_vgg16(1, "none", jnp.float32, None)
    fields = receptive_fields(backbone, train=False)
    assert backbone.reductions == tuple(strides)
    for axes, size, stride in zip(fields, sizes, strides, strict=True):
        assert [(a.size, a.stride, a.start) for a in axes] == [(size, stride, -(size // 2))] * 2


def test_what_a_logit_sees():
    # pool5, its average and fc6; a pixel is interpolated between scores 8 pixels apart.
    fields = receptive_fields(segzoo.get("deeplabv1", width=1, num_classes=1))
    assert {axis.size for axis in fields} == {227 + 2 * 8 + 2 * 12 * 8 + 8}


@pytest.mark.parametrize(("kernel", "rate"), [(3, 12), (4, 4), (7, 4)])
def test_holes_are_zeros_between_the_taps(filled, assert_same_function, kernel, rate):
    x = random(1, 29, 31, 2)
    classifier = Classifier(3, 4, kernel, rate)

    params = filled(in_inference(classifier), x.shape)["params"]

    def holes(kernel):
        fc6 = {"conv": {**params["fc6"]["conv"], "kernel": kernel}}
        return classifier.apply({"params": {**params, "fc6": fc6}}, x, train=False)

    def plain(taps):
        size = (kernel - 1) * rate + 1  # 25 for LargeFOV
        full = jnp.zeros((size, size, *taps.shape[2:])).at[::rate, ::rate].set(taps)
        y = lax.conv_general_dilated(
            x,
            full,
            (1, 1),
            [(size // 2, size // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        y = nn.relu(y + params["fc6"]["conv"]["bias"])
        fc7, score = params["fc7"]["conv"], params["score"]
        y = nn.relu(y @ fc7["kernel"][0, 0] + fc7["bias"])
        return y @ score["kernel"][0, 0] + score["bias"]

    assert_same_function(holes, plain, params["fc6"]["conv"]["kernel"])


@pytest.mark.parametrize("stride", [1, 2])
def test_pools_are_centred_and_take_the_border_as_it_is(assert_same_function, stride):
    backbone = VGG(pool_size=3)

    def pool(x):
        return nn.max_pool(x, (3, 3), (stride, stride), ((1, 1), (1, 1)))

    for size in ((9, 17), (1, 4)):
        assert_same_function(lambda x: backbone.pool(x, stride), pool, random(2, *size, 3) - 9)


def test_dilation_is_the_strided_network_shifted_and_stitched(filled):
    """Section 3.1: the stride of 16, at shifts by 8 pixels, interleaved."""
    image = random(1, 321, 33, 3)
    dense, strided = (VGG(width=2, output_stride=s, pool_size=3) for s in (8, 16))

    params = filled(in_inference(dense), image.shape)["params"]

    def conv5_3(vgg):
        return jax.jit(lambda image: vgg.apply({"params": params}, image, train=False)[4])

    at_8 = conv5_3(dense)(image)
    assert at_8.shape[1:3] == (41, 5)
    even, odd = conv5_3(strided)(image), conv5_3(strided)(image[:, 8:])
    np.testing.assert_allclose(at_8[:, ::2, ::2], even, atol=1e-5)
    # The shifted image has lost its first rows: positions whose field of 211 pixels sees them.
    inside = 15
    assert 8 * inside - 211 // 2 >= 8 > 8 * (inside - 2) - 211 // 2
    np.testing.assert_allclose(at_8[:, inside::2, ::2], odd[:, inside // 2 :], atol=1e-5)
    assert np.abs(at_8).max() > 0.1


def outputs(model, variables, image):
    """The logits, and what each module below the model gives."""

    @jax.jit
    def run(variables):
        return model.apply(variables, image, capture_intermediates=lambda m, _: len(m.path) == 1)

    logits, state = run(variables)
    return logits, {name: found["__call__"][0] for name, found in state["intermediates"].items()}


@pytest.fixture(scope="module")
def multi_scale():
    return segzoo.get("deeplabv1_msc", width=2, num_classes=3)


def test_scores_of_all_scales_add_up_at_every_eighth_pixel(filled, multi_scale):
    """There is no interpolation there: it is what the release trains on."""
    image = random(2, 41, 57, 3)
    logits, found = outputs(multi_scale, filled(multi_scale, image.shape), image)
    names = ["image_ms", "pool1_ms", "pool2_ms", "pool3_ms", "pool4_ms", "classifier"]
    assert set(found) == {"backbone", *names}
    strides = [1, 2, 4, 8, 8, 8]
    scores = [found[n][:, :: 8 // s, :: 8 // s] for n, s in zip(names, strides, strict=True)]
    assert {s.shape for s in scores} == {(2, 6, 8, 3)}
    np.testing.assert_allclose(logits[:, ::8, ::8], sum(scores), atol=1e-5)


@pytest.mark.parametrize("size", [(41, 57), (6, 20)])
def test_scores_reach_the_pixels_they_were_computed_for(filled, multi_scale, size):
    def ramps(call, args, kwargs, context):
        if not isinstance(context.module, Classifier | Perceptron):
            return call(*args, **kwargs)
        rows, columns = args[0].shape[1:3]
        stride = 1 if rows == padded[0] else (padded[0] - 1) // (rows - 1)
        y, x = jnp.arange(rows)[:, None] * stride, jnp.arange(columns) * stride
        return (y - 2.0 * x)[None, :, :, None]

    image = jnp.zeros((1, *size, 3))
    padded = [-(-(n - 1) // 8) * 8 + 1 for n in size]
    variables = filled(multi_scale, image.shape)
    with nn.intercept_methods(ramps):
        logits = jax.jit(multi_scale.apply)(variables, image)[0, :, :, 0]
    y, x = np.arange(size[0])[:, None], np.arange(size[1])
    np.testing.assert_allclose(logits, 6 * (y - 2.0 * x), atol=1e-3)


def test_features_are_averaged_before_fc6_zeros_around_them(filled):
    model = segzoo.get("deeplabv1", width=2, num_classes=4)
    image = random(1, 33, 33, 3)

    def see(call, args, kwargs, context):
        """Leaves the features themselves in the place of their scores."""
        return args[0] if isinstance(context.module, Classifier) else call(*args, **kwargs)

    with nn.intercept_methods(see):
        logits, found = outputs(model, filled(model, image.shape), image)
    averaged, pool5 = logits[0, ::8, ::8], found["backbone"][-1][0]
    np.testing.assert_allclose(averaged[2, 3], pool5[1:4, 2:5].mean((0, 1)), atol=1e-5)
    np.testing.assert_allclose(averaged[0, 0], pool5[:2, :2].sum((0, 1)) / 9, atol=1e-5)


def test_without_scores_of_their_own_the_scales_change_nothing(filled, multi_scale):
    image = random(1, 19, 30, 3)
    params = dict(filled(multi_scale, image.shape)["params"])
    for name in [name for name in params if name.endswith("_ms")]:
        params[name] = {
            **params[name],
            "score": jax.tree.map(jnp.zeros_like, params[name]["score"]),
        }
    single = segzoo.get("deeplabv1", width=2, num_classes=3)
    kept = {name: params[name] for name in ("backbone", "classifier")}
    np.testing.assert_allclose(
        jax.jit(multi_scale.apply)({"params": params}, image),
        jax.jit(single.apply)({"params": kept}, image),
        atol=1e-5,
    )


def test_an_image_of_any_size_is_filled_up_with_zeros(filled):
    model = segzoo.get("deeplabv1", width=2, num_classes=2)
    image = random(1, 19, 30, 3)
    variables = filled(model, image.shape)
    full = jnp.pad(image, [(0, 0), (0, 6), (0, 3), (0, 0)])
    apply = jax.jit(model.apply)
    np.testing.assert_array_equal(apply(variables, image), apply(variables, full)[:, :19, :30])


@pytest.mark.parametrize("name", ["deeplabv1", "deeplabv1_msc", "deeplabv1_4x4"])
def test_any_size(name):
    model = segzoo.get(name, width=1, num_classes=1)
    for n in (1, 2, 8, 9, 65):
        image = jnp.zeros((1, n, 3 * n + 5, 3))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, n, 3 * n + 5, 1)


def test_new_layers_start_as_in_the_release():
    key, x = jax.random.key(0), jnp.zeros((1, 1, 1, 64))
    parts = (Classifier(50, 100), Perceptron(50, 100))
    init = jax.jit(lambda key: [part.init(key, x, train=False)["params"] for part in parts])
    classifier, perceptron = init(key)

    def spread(layer):
        assert not np.any(layer["bias"])
        return np.std(layer["kernel"])

    np.testing.assert_allclose(spread(classifier["score"]), 0.01, rtol=0.05)
    np.testing.assert_allclose(spread(perceptron["score"]), 0.01, rtol=0.05)
    np.testing.assert_allclose(spread(perceptron["conv"]), 0.001, rtol=0.05)
    np.testing.assert_allclose(spread(perceptron["fc"]), 0.001, rtol=0.05)
    he = np.sqrt(2 / (9 * 64))
    np.testing.assert_allclose(spread(classifier["fc6"]["conv"]), he, rtol=0.05)


@pytest.mark.parametrize("part", [Classifier(2, 8), Perceptron(2, 8)])
def test_half_of_either_hidden_layer_is_dropped(part):
    x = random(1, 5, 5, 3)
    shapes = jax.eval_shape(in_inference(part).init, jax.random.key(0), x)
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), shapes)
    dropped = []

    def look(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if type(context.module).__name__ == "Dropout":
            dropped.append(np.mean(np.asarray(result) == 0))
        return result

    with nn.intercept_methods(look):
        part.apply(variables, abs(x), train=True, rngs={"dropout": jax.random.key(1)})
        part.apply(variables, abs(x), train=False)
    assert len(dropped) == 4
    assert all(0.3 < share < 0.7 for share in dropped[:2])
    assert dropped[2:] == [0, 0]


def test_batch_norm_is_an_addition_to_vgg_alone():
    model = segzoo.get("deeplabv1_msc", width=1, norm="batch")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 9, 9, 3)))
    assert set(shapes["batch_stats"]) == {"backbone"}
    assert set(shapes["params"]["backbone"]["conv1_1"]) == {"conv", "norm"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"field_of_view": "huge"}, "field_of_view is 'huge'; expected one of 'large', 'small'"),
        ({"multi_scale": 1}, "multi_scale is 1; expected True or False"),
        ({"width": 0}, "width is 0"),
        ({"dropout": 1.0}, r"dropout is 1\.0"),
        ({"norm": "instance"}, "norm is 'instance'"),
        ({"dtype": "int32"}, "dtype is 'int32'"),
    ],
)
def test_impossible_values(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("deeplabv1", **overrides)


def test_a_variant_keeps_its_field_of_view():
    with pytest.raises(SegzooError, match="'deeplabv1_7x7' has no override 'field_of_view'"):
        segzoo.get("deeplabv1_7x7", field_of_view="large")
    assert segzoo.get("deeplabv1_small", multi_scale=True).field_of_view == (4, 4, 64, False)


def test_an_image_of_another_rank():
    with pytest.raises(SegzooError, match="expected \\[B, H, W, C\\]"):
        jax.eval_shape(
            segzoo.get("deeplabv1", width=1).init, jax.random.key(0), jnp.zeros((9, 9, 3))
        )
