"""Segmenters on the encoder of any classifier: shapes, weights, and where its maps come to lie."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError, assembly, registry, weights
from segzoo.data.spec import DatasetSpec
from segzoo.encoder import apply_with_features, encode, encoder_stages, used_features
from segzoo.experiment import Experiment
from segzoo.models import encoders
from segzoo.receptive_field import model_fields
from segzoo.weights import ModelInfo, flatten

SEGMENTERS = ("unet", "attention_unet", "fcn8s")
# By default one that halves exactly and two that do not; all on request.
QUICK = {"alexnet", "lenet5", "resnet18"}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def shapes_of(model, size, channels=3):
    image = jax.ShapeDtypeStruct((2, *size, channels), jnp.float32)
    return jax.eval_shape(model.init_with_output, jax.random.key(0), image)


@functools.cache
def of_classifier(name):
    _, variables = shapes_of(segzoo.get(name), (128, 128))
    return {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in QUICK else pytest.mark.exhaustive)
        for name in segzoo.list_models(task="classification")
    ],
)
@pytest.mark.parametrize("segmenter", SEGMENTERS)
def test_every_classifier_is_an_encoder(segmenter, name):
    model = segzoo.get(segmenter, backbone=name, num_classes=5)
    logits, variables = shapes_of(model, (75, 97))
    assert logits.shape == (2, 75, 97, 5)
    assert logits.dtype == jnp.float32
    parts = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
    assert parts == of_classifier(name)  # so that its weights fit
    named = [part for stage in model.backbone.stages for part in stage]
    assert sorted(named) == sorted(variables["params"]["backbone"])


@pytest.mark.parametrize("name", sorted(QUICK))
@pytest.mark.parametrize("segmenter", SEGMENTERS)
@pytest.mark.parametrize("size", [(1, 1), (64, 33)])
def test_any_size(segmenter, name, size):
    logits, _ = shapes_of(segzoo.get(segmenter, backbone=name), size)
    assert logits.shape[:-1] == (2, *size)


@pytest.mark.parametrize(
    ("name", "segmenter"),
    [
        ("alexnet", "unet"),
        pytest.param("alexnet", "fcn8s", marks=pytest.mark.slow),
        pytest.param("resnet18", "unet", marks=pytest.mark.slow),
        pytest.param("resnet18", "fcn8s", marks=pytest.mark.slow),
        pytest.param("alexnet", "attention_unet", marks=pytest.mark.slow),
        pytest.param("alexnet", "fcn16s", marks=pytest.mark.slow),
        pytest.param("vgg11", "unet", marks=pytest.mark.slow),
        pytest.param("vgg11_bn", "fcn32s", marks=pytest.mark.slow),
    ],
)
def test_gradients_reach_every_parameter(filled, assert_all_learn, name, segmenter):
    model = segzoo.get(segmenter, backbone=name, width=16, num_classes=3)
    image = random(1, 70, 65, 3)
    variables = filled(model, image.shape)

    def loss(params):
        held = {**variables, "params": params}
        logits, _ = model.apply(held, image, mutable=["aux_logits"])
        return jnp.mean(jnp.sin(3 * logits))

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    assert_all_learn(gradient)


@pytest.mark.parametrize(
    ("segmenter", "used"),
    [
        ("unet", (0, 1, 2, 3, 4)),
        ("attention_unet", (0, 1, 2, 3, 4)),
        ("fcn8s", (2, 3, 4)),
        ("fcn16s", (3, 4)),
        ("fcn32s", (4,)),
    ],
)
def test_the_maps_that_are_used(segmenter, used):
    model = segzoo.get(segmenter, backbone="resnet18", width=4)
    _, variables = shapes_of(model, (64, 64))
    image = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    assert used_features(model, variables, image) == used


@pytest.mark.parametrize(
    ("segmenter", "options"),
    [
        ("unet", {}),
        pytest.param("unet", {"upsample": "transpose"}, marks=pytest.mark.slow),
        pytest.param("attention_unet", {}, marks=pytest.mark.slow),
        ("fcn8s", {}),
    ],
    ids=str,
)
def test_a_map_is_decoded_where_it_lies_in_the_image(segmenter, options):
    """A row of logits depends on the rows of a map around its own place, and on no others."""
    norm = {"norm": "none"} if segmenter != "fcn8s" else {}
    model = segzoo.get(segmenter, backbone="resnet18", width=4, num_classes=1, **norm, **options)
    image = jnp.ones((1, 256, 256, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    positive = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # no ReLU closes
    maps = jax.eval_shape(lambda v, x: encode(model, v, x), positive, image)
    maps = [jnp.ones(leaf.shape) for leaf in maps]

    def row(maps):
        return apply_with_features(model, positive, image, maps)[0, 128, :, 0].sum()

    gradients = jax.jit(jax.grad(row))(maps)
    for place in used_features(model, positive, image):
        reduction = model.backbone.reductions[place]
        rows = np.flatnonzero(np.asarray(gradients[place]).sum((0, 2, 3)))
        assert np.all(np.diff(rows) == 1)
        centre = (rows.min() + rows.max() + 1) / 2 * reduction
        assert abs(centre - 128.5) <= reduction / 2


def test_zeroing_a_map_changes_the_logits(filled):
    model = segzoo.get("unet", backbone="alexnet", width=32)
    image = random(1, 64, 96, 3)
    variables = filled(model, image.shape)
    maps = jax.jit(lambda v, x: encode(model, v, x))(variables, image)
    apply = jax.jit(lambda maps: apply_with_features(model, variables, image, maps))
    whole = apply(maps)
    for place in range(len(maps)):
        without = [jnp.zeros_like(m) if i == place else m for i, m in enumerate(maps)]
        assert np.any(apply(without) != whole), place


def test_a_classifiers_saved_weights_start_the_encoder(tmp_path, filled):
    classifier = segzoo.get("resnet18", width=4, num_classes=10)
    learnt = filled(classifier, (1, 64, 64, 3))
    names = tuple(f"class {i}" for i in range(10))
    info = ModelInfo(
        *("resnet18", {"num_classes": 10, "width": 4}, names, ()),
        mean=(1.0,) * 3,
        std=(2.0,) * 3,
        task="classification",
    )
    path = tmp_path / "resnet18.safetensors"
    weights.save(path, learnt, info)
    for segmenter in SEGMENTERS:
        model = segzoo.get(segmenter, backbone="resnet18", width=4)
        fresh = filled(model, (1, 64, 64, 3), seed=1)
        started, _ = weights.start_from(path, fresh, model, (64, 64, 3))
        started, before = flatten(started), flatten(fresh)
        taken = {path: value for path, value in started.items() if "/backbone/" in path}
        expected = flatten(learnt)
        assert taken.keys() == {path for path in expected if "/backbone/" in path}
        for path_, value in started.items():
            reference = expected if path_ in taken else before
            np.testing.assert_array_equal(value, reference[path_], err_msg=path_)


@pytest.mark.slow
def test_stages_and_receptive_fields_are_those_of_the_encoder():
    model = segzoo.get("unet", backbone="resnet18", width=4)
    assert encoder_stages(model, (64, 64, 3)) == model.backbone.stages
    fields = model_fields(model)
    alone = model_fields(segzoo.get("resnet18"), logits=False)
    assert {place: fields[place] for place in alone} == alone
    assert fields["logits"][0].stride == 1
    # The coarsest map sees 435 pixels; the steps up add their own at their strides.
    assert fields["logits"][0].size > alone["1/32"][0].size


def test_padding_is_to_the_coarsest_stride_and_the_smallest_image():
    class Encoder(nn.Module):
        reductions = (4, 8)
        smallest = 19

        def __call__(self, image, *, train):
            return image, train

    image = random(1, 17, 33, 1)
    ((padded, train), size) = encoders.encode(Encoder(), image, train=True)
    assert size == (24, 40)
    assert train
    np.testing.assert_array_equal(padded[:, :17, :33], image)
    assert encoders.levels(Encoder()) == (1, 2, 4, 8)


def test_the_name_of_an_encoder_is_an_override_like_others():
    spec = DatasetSpec("two", "semantic", ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    experiment = Experiment(
        *("two", "unet", "two", 1, 1), model_args={"backbone": "resnet18", "width": 8}
    )
    model = assembly.build_model(experiment, spec, "batch")
    assert model == segzoo.get("unet", backbone="resnet18", width=8, axis_name="batch")
    assert model.backbone.axis_name == "batch"
    info = assembly.model_info(experiment, spec)
    again = ModelInfo.from_json(info.to_json()).build()
    assert again == segzoo.get("unet", backbone="resnet18", width=8)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("unet", {"backbone": "resnet5"}, "unknown backbone 'resnet5'. Did you mean 'resnet50'"),
        ("unet", {"depth": 4}, "depth is 4; it cannot be combined with backbone 'resnet18'."),
        ("unet_standard", {}, "depth is 3; it cannot be combined with backbone 'resnet18'."),
        ("unet", {"padding": "VALID"}, "padding is 'VALID'; it cannot be combined"),
        ("unet", {"spatial_dims": 3}, "spatial_dims is 3; it cannot be combined"),
        ("unet", {"width": 0}, "width is 0; expected an integer of at least 1"),
        ("unet", {"backbone": "lenet5", "width": 4}, "width is 4; backbone 'lenet5' has one width"),
        ("attention_unet", {"depth": 3}, "depth is 3; it cannot be combined"),
        ("attention_unet", {"spatial_dims": 3}, "spatial_dims is 3; it cannot be combined"),
        (
            "fcn8s",
            {"backbone": "googlenet", "norm": "group"},
            "norm is 'group'; it cannot be chosen for backbone 'googlenet'.",
        ),
        ("fcn8s", {"backbone": "unet"}, "unknown backbone 'unet'"),
    ],
)
def test_impossible_overrides(name, overrides, message):
    with pytest.raises(SegzooError, match=re.escape(message)):
        segzoo.get(name, **{"backbone": "resnet18", **overrides})


def test_the_width_of_an_encoder_scales_the_decoder():
    for name in SEGMENTERS:
        assert "backbone" in registry.entry(name).overrides
    assert segzoo.get("unet", backbone="resnet18").width == 16
    assert segzoo.get("unet", backbone="resnet18", width=16).width == 4
    assert segzoo.get("attention_unet", backbone="efficientnet_b0", width=4).width == 2
    assert segzoo.get("unet", backbone="alexnet", width=1).width == 1
