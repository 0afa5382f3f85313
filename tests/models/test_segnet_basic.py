"""SegNet-Basic's encoder and the eight decoders of SegNet's Table 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.encoder import apply_with_features, encode
from segzoo.layers import resize
from segzoo.models.segnet_basic import Encoder, Upsampling
from segzoo.ops.normalization import local_contrast_norm

# By layer arithmetic, for 3 colours, 64 features and 11 classes.
NORM = 2 * 64
ENCODER = 49 * 3 * 64 + 3 * 49 * 64 * 64 + 4 * 64 + 4 * NORM
CLASSIFIER = 64 * 11 + 11  # of 64 features
SCORES = 11 * 11 + 11  # of the maps that were reduced to the classes
UPSAMPLING = 4 * (64 * 11 * 11 + 2 * 11)  # 8x8 kernels and their batch norm
COUNTS = {
    "bilinear_basic": ENCODER + CLASSIFIER,
    "segnet_basic": ENCODER + 4 * (49 * 64 * 64 + NORM) + CLASSIFIER,
    "segnet_basic_encoder_addition": ENCODER + 4 * (49 * 64 * 64 + NORM) + CLASSIFIER,
    "segnet_basic_single_channel_decoder": ENCODER + 4 * (49 * 64 + NORM) + CLASSIFIER,
    "fcn_basic": ENCODER + 4 * 64 * 11 + UPSAMPLING + SCORES,
    "fcn_basic_no_addition": ENCODER + 64 * 11 + UPSAMPLING + SCORES,
    "fcn_basic_no_dim_reduction": ENCODER + 4 * (64 * 64 * 64 + NORM) + CLASSIFIER,
    "fcn_basic_no_addition_no_dim_reduction": ENCODER + 4 * (64 * 64 * 64 + NORM) + CLASSIFIER,
}
# Table 1, in millions: they are a quarter of the networks' megabytes, to a tenth of one.
PUBLISHED = {
    "bilinear_basic": 0.625,
    "segnet_basic": 1.425,
    "segnet_basic_encoder_addition": 1.425,
    "segnet_basic_single_channel_decoder": 0.625,
    "fcn_basic": 0.65,
    "fcn_basic_no_addition": 0.65,
}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters(count_parameters, name):
    count = count_parameters(segzoo.get(name), (1, 32, 32, 3))
    assert count == COUNTS[name]
    if name in PUBLISHED:
        assert round(4 * count / 1e6, 1) / 4 == pytest.approx(PUBLISHED[name])
    else:
        # 1.625 in the table; four 8x8 kernels of 64 to 64 features alone and the encoder make
        # more, and no other reading of the text comes closer.
        assert count == 1_662_091
        assert count == pytest.approx(1.625e6, rel=0.025)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (360, 480)])
def test_any_size(name, size):
    model = segzoo.get(name, width=2, num_classes=1)
    image = jnp.zeros((1, *size, 3))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, *size, 1)


def test_a_pixel_of_the_deepest_layer_sees_106_pixels():
    """Section 3.1: a pixel of layer 4, its pool included; read off by a gradient."""
    encoder = Encoder(1)
    shape = (1, 256, 8, 1)
    shapes = jax.eval_shape(
        lambda x: encoder.init(jax.random.key(0), x, train=False), jnp.zeros(shape)
    )
    positive = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # no ReLU closes

    @jax.jit
    def seen(image):
        def feature(image):
            return encoder.apply(positive, image, train=False)[-1][0, 8, 0, 0]

        return jax.grad(feature)(image).sum((0, 2, 3)) > 0

    # Where brightness falls, every pool passes its first row; where it grows, its last.
    growing = jnp.broadcast_to(jnp.linspace(1, 2, 256)[:, None, None], shape)
    first = np.flatnonzero(seen(growing[:, ::-1])).min()
    last = np.flatnonzero(seen(growing)).max()
    assert last - first + 1 == 106


def test_input_norm_is_applied_before_all_else(filled):
    plain, normed = (
        segzoo.get("bilinear_basic", width=4, input_norm=n) for n in ("none", "contrast")
    )
    variables = filled(plain, (1, 20, 20, 3))
    image = random(2, 20, 24, 3)
    expected = jax.jit(plain.apply)(variables, local_contrast_norm(image))
    np.testing.assert_allclose(jax.jit(normed.apply)(variables, image), expected, atol=1e-5)


def heads(filled, name, size=(24, 20), **overrides):
    """The decoder as a function of the encoder's maps, and the maps of a random image."""
    model = segzoo.get(name, width=4, num_classes=3, **overrides)
    image = random(1, *size, 3)
    variables = filled(model, image.shape)

    @jax.jit
    def head(features):
        return apply_with_features(model, variables, image, features)

    return head, list(jax.jit(lambda v, x: encode(model, v, x))(variables, image))


@pytest.mark.parametrize("name", COUNTS)
def test_what_of_the_encoder_each_decoder_uses(filled, name):
    """Pooled values where maps are added; places of maxima where it unpools; else pool 4 alone."""
    head, features = heads(filled, name)
    before = head(features)

    def changed(change):
        return [
            bool(np.any(head([*features[:i], change(features[i]), *features[i + 1 :]]) != before))
            for i in range(5)
        ]

    unpools = name.startswith("segnet")
    adds = name in {
        "segnet_basic_encoder_addition",
        "fcn_basic",
        "fcn_basic_no_dim_reduction",
    }
    # Pool 4 is the fifth map; the map before it is pooled already. Scaling moves no maximum.
    assert changed(lambda x: 3 * x) == [adds, adds, adds, False, True]
    # The mirror image of every window has the same maxima elsewhere.
    moved = changed(lambda x: x[:, :, ::-1])
    assert moved[:4] == ([True] * 4 if unpools else [adds, adds, adds, False])


def test_added_maps_are_the_pooled_ones(filled):
    """What a pool drops is not added: it may fall as low as it likes."""
    head, features = heads(filled, "fcn_basic", (24, 24))
    lowered = []
    for x in map(np.asarray, features[:3]):
        tiles = x.reshape(1, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 4)
        dropped = tiles < tiles.max((2, 4), keepdims=True)
        lowered.append(np.where(dropped, tiles - 7.0, tiles).reshape(x.shape))
        assert dropped.any()
    np.testing.assert_array_equal(head([*lowered, *features[3:]]), head(features))


def test_decoder_filters_of_a_single_channel_see_their_own_map_alone(filled):
    model = segzoo.get("segnet_basic_single_channel_decoder", width=4)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    for stage in range(1, 5):
        assert shapes[f"decode{stage}"]["conv"]["kernel"].shape == (7, 7, 1, 4)
        assert set(shapes[f"decode{stage}"]["conv"]) == {"kernel"}  # no bias in the decoder


def test_the_decoder_is_linear(filled):
    """No ReLU, and batch norm with fixed statistics: superposition holds up to the offset."""
    head, features = heads(filled, "segnet_basic")
    *maps, pool4 = features
    other = random(*pool4.shape, seed=3)
    zero = head([*maps, 0 * pool4])
    both = head([*maps, pool4 + other]) - zero
    apart = (head([*maps, pool4]) - zero) + (head([*maps, other]) - zero)
    np.testing.assert_allclose(both, apart, atol=1e-4)
    assert np.abs(both).max() > 0.1


@pytest.mark.parametrize("size", [(20, 24), (19, 23)])
def test_upsampling_starts_as_interpolation(size):
    """Where the wide kernel lies inside, a plane stays a plane, at twice the resolution."""
    h, w = 10, 12
    rows, columns = np.arange(h)[:, None], np.arange(w)
    plane = jnp.asarray((rows - 2 * columns)[None, :, :, None], jnp.float32)
    module = Upsampling()
    run = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x, size, train=False)[0])
    got = run(plane) / 4  # the gain that batch norm takes away in training
    assert got.shape == (1, *size, 1)
    inside = np.s_[:, 4:-5, 4:-5]
    exact = resize(plane, (2 * h, 2 * w))[:, : size[0], : size[1]]
    np.testing.assert_allclose(got[inside], exact[inside], atol=1e-3)


def test_bilinear_interpolates_the_last_scores(filled):
    head, features = heads(filled, "bilinear_basic", (32, 48))
    flat = jnp.ones_like(features[-1]) * jnp.arange(4.0)
    logits = head([*features[:-1], flat])
    np.testing.assert_allclose(logits, jnp.broadcast_to(logits[:, :1, :1], logits.shape), atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 0}, "width is 0"),
        ({"input_norm": "local"}, "input_norm is 'local'; expected one of 'none', 'contrast'"),
        ({"decoder": None}, "has no override 'decoder'"),
        ({"encoder_addition": True}, "has no override 'encoder_addition'"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("segnet_basic", **overrides)
