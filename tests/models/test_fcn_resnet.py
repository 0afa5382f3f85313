"""torchvision's FCN: what the auxiliary head is, costs and changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.cost import multiply_adds
from segzoo.encoder import used_features
from segzoo.weights.convert import layouts_of
from segzoo.weights.names import places

SLOW = pytest.mark.slow
NAMES = ("fcn_resnet50", "fcn_resnet101", "deeplabv3_resnet50", "deeplabv3_resnet101")


def shapes_of(model, size=33):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, size, size, 3)))


# torchvision's own numbers, of networks that run the auxiliary head in inference too.
@pytest.mark.parametrize(
    ("name", "gmacs"),
    [
        ("fcn_resnet50", 152.717),
        pytest.param("fcn_resnet101", 232.738, marks=pytest.mark.slow),
        ("deeplabv3_resnet50", 178.722),
        pytest.param("deeplabv3_resnet101", 258.743, marks=pytest.mark.slow),
    ],
)
def test_multiply_adds_with_the_auxiliary_head(name, gmacs):
    model = segzoo.get(name)
    image = jax.ShapeDtypeStruct((1, 520, 520, 3), jnp.float32)

    def run(variables, image):
        return model.apply(variables, image, mutable=["aux_logits"])

    found = multiply_adds(jax.make_jaxpr(run)(shapes_of(model), image))
    assert found / 1e9 == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize("name", NAMES[::2])
def test_the_auxiliary_head_is_there_when_asked_for(name):
    """A quarter of stage 3's 1024 channels, and scores."""
    kept = segzoo.get(name, aux_loss=True)
    params, without = shapes_of(kept)["params"], shapes_of(segzoo.get(name, aux_loss=False))
    auxiliary = params.pop("aux")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, without["params"])
    count = sum(leaf.size for leaf in jax.tree.leaves(auxiliary))
    assert count == 9 * 1024 * 256 + 2 * 256 + 256 * 21 + 21


@pytest.mark.parametrize("name", [pytest.param("fcn_resnet50", marks=SLOW), "deeplabv3_resnet50"])
def test_the_auxiliary_logits_change_nothing(filled, name):
    model = segzoo.get(name, width=2, num_classes=3)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 33, 41, 3)), jnp.float32)
    variables = filled(model, image.shape)

    def run(variables):
        logits, sown = model.apply(variables, image, mutable=["aux_logits"])
        return logits, model.apply(variables, image), sown

    logits, alone, sown = jax.jit(run)(variables)
    np.testing.assert_allclose(logits, alone, rtol=1e-5, atol=1e-5)
    (auxiliary,) = sown["aux_logits"]["logits"]
    assert auxiliary.shape == logits.shape
    assert np.abs(auxiliary - logits).max() > 0.1
    assert used_features(model, variables, image) == (3, 4)
    without = segzoo.get(name, width=2, num_classes=3, aux_loss=False)
    assert used_features(without, variables, image) == (4,)


@pytest.mark.slow
def test_training_with_it_moves_its_statistics_and_without_it_does_not(filled):
    model = segzoo.get("fcn_resnet50", width=2, num_classes=3)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 17, 17, 3)), jnp.float32)
    variables = filled(model, image.shape)

    def statistics(mutable):
        def run(variables):
            rngs = {"dropout": jax.random.key(0)}
            return model.apply(variables, image, train=True, mutable=mutable, rngs=rngs)[1]

        found = jax.jit(run)(variables)
        return found["batch_stats"]["aux"]["conv"]["norm"]["mean"]

    before = variables["batch_stats"]["aux"]["conv"]["norm"]["mean"]
    np.testing.assert_array_equal(statistics(["batch_stats"]), before)
    assert np.all(statistics(["batch_stats", "aux_logits"]) != before)


@pytest.mark.parametrize("name", NAMES[::2])
@pytest.mark.parametrize("size", [(1, 1), (7, 30), pytest.param((64, 65), marks=SLOW)])
def test_any_size(name, size):
    model = segzoo.get(name, width=1, num_classes=1)
    image = jnp.zeros((1, *size, 1))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, *size, 1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=SLOW if "101" in name else ()) for name in NAMES]
)
def test_a_file_of_torchvision_without_the_auxiliary_head_is_complete(name):
    model = segzoo.get(name)
    (whole, encoder) = (layouts := layouts_of(model))[0], layouts[1]
    assert whole.library == "torchvision"
    shapes = traverse_util.flatten_dict(shapes_of(model), sep="/")
    found = places(shapes, whole)
    assert None not in found.values()
    assert len({place.name for place in found.values()}) == len(shapes)
    for path, place in found.items():
        assert whole.is_optional(path.split("/", 1)[1]) == place.name.startswith("aux_classifier.")
        module = path.partition("/")[2].rpartition("/")[0]
        assert whole.path(place.name) == module
    # Files of a classifier fill the encoder.
    assert encoder.encoder_alone


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"aux_loss": 1}, r"aux_loss is 1; expected one of True, False"),
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"dropout": 1}, r"dropout is 1; expected a number"),
        ({"depth": 50}, r"has no override 'depth'"),
    ],
)
@pytest.mark.parametrize("name", NAMES[::2])
def test_impossible_overrides(name, overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get(name, **overrides)
