"""Mask R-CNN's weights in torchvision's files, and its values stage by stage."""

import jax
import jax.numpy as jnp
import mask_rcnn_parity as shared
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo.layers import ConvTranspose
from segzoo.weights.convert import find, layouts_of, to_theirs
from segzoo.weights.fit import fit, shapes_of
from segzoo.weights.names import Layout, Transposed, places

SHAPE = (64, 64, 3)


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}


@pytest.mark.slow
def test_the_same_weights_give_torchvisions_values():
    variances, golden = shared.read()
    variables, _ = shared.our_tensors(variances)
    for size, expected in golden.items():
        found = shared.our_outputs(variables, shared.picture(size), expected["proposals"])
        # In the order of the data, so that the first to fail is where the fault is.
        for name, error in shared.errors(shared.digest(found), expected).items():
            assert error <= shared.TOLERANCE, (name, size)


def test_both_generations_of_names_come_back():
    model = segzoo.get("mask_rcnn_resnet50_fpn", width=2, num_classes=3)
    shapes = shapes_of(model, SHAPE)
    ours = drawn(shapes)
    today = to_theirs(ours, model, "torchvision")
    assert today["roi_heads.mask_predictor.conv5_mask.weight"].shape == (8, 8, 2, 2)
    assert today["roi_heads.box_head.fc6.weight"].shape == (32, 8 * 7 * 7)
    assert today["backbone.fpn.inner_blocks.0.0.weight"].shape == (8, 8, 1, 1)
    earlier = {
        place.name: place.give(ours[path])
        for path, place in places(shapes, layouts_of(model)[1]).items()
    }
    assert "roi_heads.mask_head.mask_fcn1.weight" in earlier
    assert "rpn.head.conv.bias" in earlier
    for tensors in (today, earlier):
        found = find(tensors, shapes, model, "file")
        assert not found.spare
        assert found.values.keys() == shapes.keys()
        for path, value in ours.items():
            np.testing.assert_array_equal(found.values[path], value, err_msg=path)


def test_a_transposed_kernel_is_mirrored():
    """Ours is scattered upside down, theirs as it is."""
    module = ConvTranspose(1, (2, 2))
    layout = Layout("torchvision", {"up": Transposed("up")})
    (place,) = places(["params/up/kernel"], layout).values()
    theirs = np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2)
    variables = {"params": {"kernel": place.take(theirs), "bias": jnp.zeros(1)}}
    pixel = jnp.ones((1, 1, 1, 1))
    np.testing.assert_array_equal(module.apply(variables, pixel)[0, :, :, 0], theirs[0, 0])
    np.testing.assert_array_equal(place.give(place.take(theirs)), theirs)
    assert place.shape((2, 2, 5, 7)) == (5, 7, 2, 2)


@pytest.mark.parametrize("own", [True, False])
def test_a_classifier_gives_a_frozen_encoder_its_norms_and_back(own):
    classifier = segzoo.get("resnet50", width=2)
    model = segzoo.get("mask_rcnn_resnet50_fpn", width=2, num_classes=3)
    source = drawn(shapes_of(classifier, SHAPE))
    tensors = source if own else to_theirs(source, classifier, "torchvision")
    fitted = fit(tensors, model, SHAPE, "file", native=own)
    assert "batch_stats/backbone/stem/norm/scale" in fitted.values
    for path, value in fitted.values.items():
        assert path.split("/")[1] == "backbone"
        other = path.replace("batch_stats/", "params/")
        expected = source[path] if path in source else source[other]
        np.testing.assert_array_equal(value, expected, err_msg=path)
    backbone = {path for path in shapes_of(model, SHAPE) if path.split("/")[1] == "backbone"}
    assert fitted.values.keys() == backbone


def test_frozen_norms_are_batch_norms_by_their_statistics(filled):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 40, 3)), jnp.float32)
    trained = segzoo.get("resnet50", width=2, num_classes=3)
    frozen = segzoo.get("resnet50", width=2, num_classes=3, norm="frozen")
    variables = filled(trained, image.shape)
    tensors = traverse_util.flatten_dict(variables, sep="/")
    moved = {
        (f"batch_stats/{path.partition('/')[2]}" if "/norm/" in path else path): value
        for path, value in tensors.items()
    }
    expected = jax.jit(trained.apply)(variables, image)
    got = jax.jit(frozen.apply)(traverse_util.unflatten_dict(moved, sep="/"), image)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_the_first_weights_of_coco_want_no_epsilon():
    """Of a variance of 1e-5, 1e-5 more is a factor of the square root of 2."""
    plain, exact = (
        segzoo.get("mask_rcnn_resnet50_fpn", width=2, norm_epsilon=epsilon).backbone
        for epsilon in (1e-5, 0.0)
    )
    image = jnp.ones((1, 32, 32, 3))
    shapes = jax.eval_shape(lambda x: plain.init(jax.random.key(0), x, train=False), image)
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, 1e-5 if path[-1].key == "var" else 0.1), shapes
    )
    first, other = (b.apply(variables, image, train=False)[0] for b in (plain, exact))
    bias = 0.1
    scale = (np.asarray(other).max() - bias) / (np.asarray(first).max() - bias)
    np.testing.assert_allclose(scale, np.sqrt(2), rtol=1e-3)
