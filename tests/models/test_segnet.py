"""SegNet: VGG-16 and its mirror image, joined by nothing but indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.backbones.vgg import VGG
from segzoo.models.segnet import unpool


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(model, image=(1, 32, 32, 3)):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(image))["params"]


def test_thirteen_and_thirteen_convolutions_mirror_each_other():
    """Counted by layer: 3x3 kernels, biases, and scale and shift but after the classifier."""
    encoder = [
        *((3, 64), (64, 64)),
        *((64, 128), (128, 128)),
        *((128, 256), (256, 256), (256, 256)),
        *((256, 512), (512, 512), (512, 512)),
        *((512, 512), (512, 512), (512, 512)),
    ]
    decoder = [(c_out, c_in) for c_in, c_out in reversed(encoder[1:])] + [(64, 11)]
    convolutions = encoder + decoder
    norms = encoder + decoder[:-1]
    count = sum(9 * i * o + o for i, o in convolutions) + sum(2 * o for _, o in norms)
    assert count == 29_449_355
    params = shapes_of(segzoo.get("segnet"))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count

    kernels = {
        name: module["conv"]["kernel"].shape[2:] for name, module in params["backbone"].items()
    }
    for name, (c_in, c_out) in kernels.items():
        mirrored = params[f"{name}_D"]
        if name == "conv1_1":
            assert mirrored["kernel"].shape[2:] == (c_out, 11)
        else:
            assert mirrored["conv"]["kernel"].shape[2:] == (c_out, c_in)
            assert mirrored["conv"]["bias"].shape == mirrored["norm"]["scale"].shape == (c_in,)


def test_the_encoder_is_the_classifiers():
    encoder = segzoo.get("segnet", width=4).backbone
    assert isinstance(encoder, VGG)
    classifier = shapes_of(segzoo.get("vgg16_bn", width=4), (1, 224, 224, 3))
    ours = shapes_of(segzoo.get("segnet", width=4))
    assert jax.tree.map(jnp.shape, ours["backbone"]) == jax.tree.map(
        jnp.shape, classifier["backbone"]
    )


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (31, 33), (45, 60), (360, 480)])
def test_any_size(size):
    model = segzoo.get("segnet", width=1, num_classes=2)
    image = jnp.zeros((1, *size, 3))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, *size, 2)


def test_the_decoder_meets_the_sizes_of_the_release():
    """360x480 is pooled to 45x60, 23x30 and 12x15, and unpooled to exactly these again."""
    model = segzoo.get("segnet", width=1)
    sizes = {}

    def note(module, name):
        return module.name is not None and module.name.startswith("conv")

    def run(image):
        return model.init_with_output(jax.random.key(0), image, capture_intermediates=note)

    _, variables = jax.eval_shape(run, jnp.zeros((1, 360, 480, 3)))
    found = variables["intermediates"]
    for stage, size in {
        1: (360, 480),
        2: (180, 240),
        3: (90, 120),
        4: (45, 60),
        5: (23, 30),
    }.items():
        name = f"conv{stage}_2"
        sizes[stage] = found["backbone"][name]["__call__"][0].shape[1:3]
        assert sizes[stage] == found[f"{name}_D"]["__call__"][0].shape[1:3] == size


def test_pool_five_alone_decides_what_the_indices_place(filled):
    """The encoder's maps reach the decoder as places only: a scaled map has the same."""
    model = segzoo.get("segnet", width=2, num_classes=3)
    variables = filled(model, (1, 40, 40, 3))
    image = random(1, 40, 40, 3)
    from segzoo.encoder import apply_with_features, encode

    @jax.jit
    def run(image, scale):
        *maps, pool5 = encode(model, variables, image)
        maps = [scale * m for m in maps]
        return apply_with_features(model, variables, image, [*maps, pool5])

    np.testing.assert_array_equal(run(image, 1.0), run(image, 4.0))
    assert np.any(run(image, 1.0) != run(image, -1.0))


def test_values_return_to_the_pixels_they_came_from():
    encoded = random(1, 5, 4, 2)
    spread = unpool(jnp.ones((1, 3, 2, 2)), encoded)
    kept = np.where(spread, encoded, -np.inf)
    padded = np.pad(encoded, [(0, 0), (0, 1), (0, 0), (0, 0)], constant_values=-np.inf)
    kept = np.pad(kept, [(0, 0), (0, 1), (0, 0), (0, 0)], constant_values=-np.inf)
    tiles = padded.reshape(1, 3, 2, 2, 2, 2)
    np.testing.assert_array_equal(kept.reshape(tiles.shape).max((2, 4)), tiles.max((2, 4)))
    assert spread.sum() == 3 * 2 * 2


def test_impossible_images_and_overrides():
    with pytest.raises(SegzooError, match="width is 0"):
        segzoo.get("segnet", width=0)
    model = segzoo.get("segnet", width=1)
    with pytest.raises(SegzooError, match=r"expected \[B, H, W, C\]"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 8, 3)))
