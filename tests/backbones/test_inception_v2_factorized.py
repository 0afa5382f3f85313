"""The factorised Inception v2: Table 1 and Figures 5, 6, 7, 8 and 10."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.backbones.inception import Part
from segzoo.backbones.inception_v2_factorized import (
    SMALLEST,
    STEM,
    AuxiliaryHead,
    InceptionV2Factorized,
)

# Places and channels of a 299x299 image; the pool is between the third and fourth convolution.
TABLE_1 = {
    "conv1": (149, 32),
    "conv2": (147, 32),
    "conv3": (147, 64),
    "conv4": (71, 80),
    "conv5": (35, 192),
    "conv6": (35, 288),
    **{f"inception35{letter}": (35, 288) for letter in "abc"},
    "reduction35": (17, 768),
    **{f"inception17{letter}": (17, 768) for letter in "abcde"},
    "reduction17": (8, 1280),
    **{f"inception8{letter}": (8, 2048) for letter in "ab"},
}


def run(net, size, channels=3):
    """Shapes of the features, of every module's output, and of the variables."""

    def call(key, image):
        maps = {}
        features, variables = net.init_with_output(key, image, train=False, maps=maps)
        return features, maps, variables

    image = jnp.zeros((2, *size, channels))
    return jax.eval_shape(call, jax.random.key(0), image)


def test_output_sizes_of_table_1():
    _, maps, _ = run(InceptionV2Factorized(), (299, 299))
    assert set(maps) == set(TABLE_1)
    for name, (size, channels) in TABLE_1.items():
        assert maps[name].shape[1:] == (size, size, channels), name


def test_it_is_42_layers_deep():
    """Convolutions on the longest path, a 1xn and its nx1 counted as one."""

    def depth(branch):
        layers = 0.0
        for part in branch:
            if isinstance(part, Part):
                layers += 1 if part.kernel_size[0] == part.kernel_size[1] else 0.5
            else:
                layers += 1  # side by side
        return layers

    modules = InceptionV2Factorized().branches.values()
    assert len(STEM) + sum(max(map(depth, branches)) for branches in modules) == 42


@pytest.mark.parametrize(("aux_loss", "expected"), [(False, 26_220_488), (True, 29_547_184)])
def test_parameters(count_parameters, aux_loss, expected):
    model = segzoo.get("inception_v2_factorized", aux_loss=aux_loss)
    assert count_parameters(model, (1, 299, 299, 3)) == expected


def test_parameters_by_layer_arithmetic():
    """Kernels, and scale and offset of batch norm."""

    def conv(c_in, c_out, places=1):
        return c_in * c_out * places + 2 * c_out

    net = run(InceptionV2Factorized(), (299, 299))[-1]["params"]
    found = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in net.items()}
    figure5 = conv(288, 64) + conv(288, 48) + conv(48, 64, 9) + conv(288, 64)
    figure5 += conv(64, 96, 9) + conv(96, 96, 9) + conv(288, 64)
    expected = {
        "conv4": conv(64, 80, 9),
        "conv6": conv(192, 288, 9),
        "inception35b": figure5,
        "reduction35": conv(288, 384, 9) + conv(288, 64) + conv(64, 96, 9) + conv(96, 96, 9),
        "inception17a": conv(768, 192)
        + conv(768, 128)
        + conv(128, 128, 7)
        + conv(128, 192, 7)
        + conv(768, 128)
        + 3 * conv(128, 128, 7)
        + conv(128, 192, 7)
        + conv(768, 192),
        "reduction17": conv(768, 192) + conv(192, 320, 9) + conv(768, 192) + 2 * conv(192, 192, 9),
        "inception8b": conv(2048, 320)
        + conv(2048, 384)
        + 2 * conv(384, 384, 3)
        + conv(2048, 448)
        + conv(448, 384, 9)
        + 2 * conv(384, 384, 3)
        + conv(2048, 192),
    }
    assert {name: found[name] for name in expected} == expected


def test_features_and_stages():
    net = InceptionV2Factorized()
    features, _, variables = run(net, (299, 299))
    assert [f.shape[1] for f in features] == [147, 71, 35, 17, 8]
    assert [f.shape[-1] for f in features] == [64, 80, 288, 768, 2048]
    assert len(net.reductions) == len(features)
    assert [name for stage in net.stages for name in stage] == list(TABLE_1)
    assert set(variables["params"]) == set(TABLE_1)


def test_with_padding_the_features_lie_on_the_image():
    net = InceptionV2Factorized(padding="SAME", width=4)
    for size in ((64, 96), (1, 3), (75, 97)):
        features, _, _ = run(net, size)
        for feature, reduction in zip(features, net.reductions, strict=True):
            assert feature.shape[1:3] == tuple(-(-n // reduction) for n in size)


@pytest.mark.parametrize("size", [(1, 1), (74, 80), (SMALLEST, SMALLEST)])
def test_small_images_are_surrounded_with_zeros(size):
    features, _, _ = run(InceptionV2Factorized(width=4), size, channels=2)
    assert features[-1].shape[1:3] == (1, 1)


@pytest.mark.slow
def test_the_surround_is_even(filled):
    model = segzoo.get("inception_v2_factorized", width=4, num_classes=3)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 70, 75, 3)), jnp.float32)
    variables = filled(model, image.shape)
    forward = jax.jit(model.apply)
    wide = jnp.pad(image, [(0, 0), (2, 3), (0, 0), (0, 0)])
    np.testing.assert_allclose(forward(variables, image), forward(variables, wide), atol=1e-5)


class TestAuxiliaryClassifier:
    def test_is_that_of_figure_8(self):
        model = segzoo.get("inception_v2_factorized", aux_loss=True)
        image = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
        params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
        assert params["aux"]["conv1x1"]["conv"]["kernel"].shape == (1, 1, 768, 128)
        assert params["aux"]["conv5x5"]["conv"]["kernel"].shape == (5, 5, 128, 768)
        assert params["aux"]["score"]["kernel"].shape == (768, 1000)
        # Batch-normalised.
        assert set(params["aux"]["conv5x5"]) == {"conv", "norm"}
        assert set(params["aux"]["conv5x5"]["conv"]) == {"kernel"}

    @pytest.mark.parametrize("size", [(1, 1), (3, 2), (17, 17), (20, 31)])
    def test_takes_maps_of_any_size(self, size):
        head = AuxiliaryHead(4, InceptionV2Factorized().conv, 2, 3)
        x = jnp.ones((2, *size, 6))

        def call(x):
            return head.init_with_output(jax.random.key(0), x, train=False)

        logits, _ = jax.eval_shape(call, x)
        assert logits.shape == (2, 4)
        assert logits.dtype == jnp.float32

    def test_runs_only_when_its_logits_are_wanted(self):
        model = segzoo.get("inception_v2_factorized", width=4, num_classes=5, aux_loss=True)
        image = jax.ShapeDtypeStruct((2, 80, 80, 3), jnp.float32)
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
        assert set(variables) == {"params", "batch_stats"}
        _, sown = jax.eval_shape(
            lambda v, x: model.apply(v, x, mutable=["aux_logits"]), variables, image
        )
        (logits,) = sown["aux_logits"]["logits"]
        assert (logits.shape, logits.dtype) == ((2, 5), jnp.float32)
        for collection in variables.values():
            del collection["aux"]
        assert jax.eval_shape(model.apply, variables, image).shape == (2, 5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"padding": "same"}, r"padding is 'same'; expected one of 'VALID', 'SAME'"),
        ({"dropout": -1}, r"dropout is -1; expected a number"),
        ({"aux_loss": None}, r"aux_loss is None; expected one of True, False"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("inception_v2_factorized", **override)
