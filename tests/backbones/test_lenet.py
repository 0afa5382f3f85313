"""LeNet-5: the paper's counts, Table I, the squashing function, sub-sampling, codes, sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.backbones.lenet import TABLE_I, SparseConv, Subsampling, codes, squash


def random_image(*size, batch=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(batch, *size, 1)), jnp.float32)


def features_of(model, variables, image):
    def run(variables, image):
        return model.apply(variables, image, method=lambda m, x: m.backbone(x, train=False))

    return jax.jit(run)(variables, image)


def logits_of(model, variables, image):
    return jax.jit(model.apply)(variables, image)


def counts(variant):
    shapes = jax.eval_shape(
        segzoo.get("lenet5", variant=variant).init, jax.random.key(0), jnp.zeros((1, 32, 32, 1))
    )["params"]
    layers = {**shapes.pop("backbone"), **shapes}
    return {
        name: sum(leaf.size for leaf in jax.tree.leaves(layer)) for name, layer in layers.items()
    }


def test_the_published_parameters_layer_by_layer():
    published = {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48120, "f6": 10164}
    assert counts("original") == published
    assert sum(published.values()) == 60_000


def test_the_textbooks_parameters():
    layers = counts("modern")
    assert layers == {"c1": 156, "c3": 2416, "c5": 48120, "f6": 10164, "head": 850}
    assert sum(layers.values()) == 61_706


@pytest.mark.parametrize("variant", ["original", "modern"])
def test_the_published_sizes(variant):
    backbone = segzoo.get("lenet5", variant=variant).backbone
    features, variables = jax.eval_shape(
        lambda x: backbone.init_with_output(jax.random.key(0), x, train=False),
        jnp.zeros((2, 32, 32, 1)),
    )
    assert [f.shape[1:] for f in features] == [(28, 28, 6), (10, 10, 16), (1, 1, 120)]
    assert backbone.reductions == (1, 2, 4)
    assert sorted(sum(backbone.stages, ())) == sorted(variables["params"])


def test_table_i():
    assert len(TABLE_I) == 16
    assert sum(map(len, TABLE_I)) == 60
    # Contiguous subsets, around the end, of three and of four; then the rest.
    for size, columns in ((3, TABLE_I[:6]), (4, TABLE_I[6:12])):
        assert [set(c) for c in columns] == [{(k + i) % 6 for i in range(size)} for k in range(6)]
    gaps = [{0, 1, 3, 4}, {1, 2, 4, 5}, {0, 2, 3, 5}]
    assert [set(column) for column in TABLE_I[12:15]] == gaps
    assert TABLE_I[15] == (0, 1, 2, 3, 4, 5)


def test_a_map_of_c3_sees_the_maps_of_its_column_alone(filled):
    module = SparseConv()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 6, 7, 6)), jnp.float32)
    variables = filled(module, x.shape)
    y = module.apply(variables, x)
    assert y.shape == (1, 2, 3, 16)
    kernel = iter(np.moveaxis(np.asarray(variables["params"]["kernel"], np.float64), -1, 0))
    for out, column in enumerate(TABLE_I):
        expected = np.full((2, 3), variables["params"]["bias"][out], np.float64)
        for seen in column:
            taps = next(kernel)
            for i, j in np.ndindex(2, 3):
                expected[i, j] += np.sum(taps * x[0, i : i + 5, j : j + 5, seen])
        np.testing.assert_allclose(y[0, ..., out], expected, atol=1e-5)


def test_the_squashing_function_keeps_one():
    np.testing.assert_allclose(squash(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)
    assert np.isclose(squash(jnp.float32(100)), 1.7159)


def test_subsampling_is_trained():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)), jnp.float32)
    params = {"coefficient": jnp.array([1.0, -2.0, 0.5]), "bias": jnp.array([0.0, 1.0, 2.0])}
    y = Subsampling().apply({"params": params}, x)
    total = sum(x[:, i:4:2, j:4:2] for i in (0, 1) for j in (0, 1))
    np.testing.assert_allclose(y, total * params["coefficient"] + params["bias"], atol=1e-5)


def test_the_codes_of_the_digits():
    found = codes(10)
    assert found.shape == (10, 84)
    assert set(np.unique(found)) == {-1.0, 1.0}
    one = ["".join("#" if pixel > 0 else "." for pixel in row) for row in found[1].reshape(12, 7)]
    assert one == [
        "...##..",
        "..###..",
        ".####..",
        *["...##.."] * 6,
        ".######",
        ".......",
        ".......",
    ]
    # Similar figures have similar codes: 3 is nearer to 9 and 8 than to 1.
    distance = np.sum(found[:, None] != found, axis=-1)
    assert np.all(distance + 100 * np.eye(10) > 10)
    assert max(distance[3, 8], distance[3, 9]) < distance[3, 1]


def test_other_codes_are_random_but_always_the_same():
    many = codes(1000)
    assert many.shape == (1000, 84)
    assert set(np.unique(many)) == {-1.0, 1.0}
    assert abs(many.mean()) < 0.02
    assert len(np.unique(many, axis=0)) == 1000
    np.testing.assert_array_equal(codes(7), many[:7])
    assert "".join("+" if bit > 0 else "-" for bit in many[0, :16]) == FIRST_BITS


FIRST_BITS = "---++-+-+-++---+"


@pytest.mark.parametrize("num_classes", [3, 10])
def test_logits_are_minus_the_squared_distances_to_the_codes(filled, num_classes):
    model = segzoo.get("lenet5", num_classes=num_classes)
    params = filled(model, (1, 32, 32, 1))["params"]
    targets = codes(num_classes)
    for wanted in range(num_classes):
        # F6 sees nothing but its bias, which squashes to the code.
        bias = 1.5 * np.arctanh(targets[wanted] / 1.7159)
        f6 = {"kernel": jnp.zeros((120, 84)), "bias": jnp.asarray(bias, jnp.float32)}
        logits = logits_of(model, {"params": {**params, "f6": f6}}, random_image(32, 32))
        distances = np.sum((targets - targets[wanted]) ** 2, axis=-1)
        np.testing.assert_allclose(logits, -np.stack([distances] * 2), atol=1e-2)


def test_one_logit_is_the_difference_of_two(filled):
    one, two = (segzoo.get("lenet5", num_classes=k) for k in (1, 2))
    image = random_image(32, 32)
    variables = filled(one, image.shape)
    pair = logits_of(two, variables, image)
    np.testing.assert_allclose(
        logits_of(one, variables, image), pair[:, 1:] - pair[:, :1], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("variant", ["original", "modern"])
def test_small_images_are_extended_by_their_border(filled, variant):
    model = segzoo.get("lenet5", variant=variant)
    image = random_image(28, 28)
    variables = filled(model, image.shape)
    padded = jnp.pad(image, ((0, 0), (2, 2), (2, 2), (0, 0)), mode="edge")
    expected = logits_of(model, variables, padded)
    np.testing.assert_allclose(logits_of(model, variables, image), expected, atol=1e-5)
    assert logits_of(model, variables, random_image(1, 31)).shape == (2, 10)


def test_larger_images_are_seen_place_by_place(filled):
    """C5 on a larger image is C5 on every 32x32 window of it, four pixels apart."""
    model = segzoo.get("lenet5")
    image = random_image(36, 40)
    variables = filled(model, image.shape)
    *_, c5 = features_of(model, variables, image)
    assert c5.shape == (2, 2, 3, 120)
    window = image[:, 4:36, 8:40]
    np.testing.assert_allclose(
        c5[:, 1, 2], features_of(model, variables, window)[-1][:, 0, 0], atol=1e-5
    )
    assert logits_of(model, variables, image).shape == (2, 10)


def test_the_papers_initialisation():
    model = segzoo.get("lenet5")
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))["params"]
    layers = {**params.pop("backbone"), **params}
    for name, fan_in in {"c1": 25, "c5": 400, "f6": 120}.items():
        reach = np.abs(layers[name]["kernel"]).max() * fan_in / 2.4
        assert 0.85 < reach <= 1, name
    assert np.abs(layers["s4"]["coefficient"]).max() <= 2.4 / 4
    kernels = iter(np.moveaxis(np.asarray(layers["c3"]["kernel"]), -1, 0))
    for column in TABLE_I:
        reach = np.abs([next(kernels) for _ in column]).max() * 25 * len(column) / 2.4
        assert 0.85 < reach <= 1
    assert all(np.all(layer["bias"] == 0) for layer in layers.values())


def test_activations_of_the_modern_variant(filled):
    image = random_image(32, 32)
    outputs = []
    for activation in ("sigmoid", "tanh", "relu"):
        model = segzoo.get("lenet5", variant="modern", activation=activation)
        outputs.append(logits_of(model, filled(model, image.shape), image))
        c1, *_ = features_of(model, filled(model, image.shape), image)
        lowest = {"sigmoid": 0.0, "tanh": -1.0, "relu": 0.0}[activation]
        assert c1.min() >= lowest
        assert (c1.max() > 1) == (activation == "relu")
    assert np.any(outputs[0] != outputs[1])
    modern = segzoo.get("lenet5", variant="modern")
    assert modern == segzoo.get("lenet5", variant="modern", activation="tanh")


def test_averages_are_taken_in_the_modern_variant(filled):
    model = segzoo.get("lenet5", variant="modern", activation="relu")
    variables = jax.tree.map(jnp.zeros_like, filled(model, (1, 32, 32, 1)))
    backbone = variables["params"]["backbone"]
    backbone["c1"]["bias"] = jnp.full((6,), 3.0)
    backbone["c3"]["kernel"] = backbone["c3"]["kernel"].at[0, 0].set(1 / 6)
    _, c3, _ = features_of(model, variables, random_image(32, 32))
    np.testing.assert_allclose(c3, 3.0, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"variant": "old"}, "variant is 'old'; expected one of 'original', 'modern'"),
        ({"activation": "tanh"}, "activation is 'tanh'; expected none with variant='original'"),
        ({"variant": "modern", "activation": "gelu"}, "activation is 'gelu'; expected one of"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("lenet5", **overrides)
