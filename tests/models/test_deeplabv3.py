"""DeepLab v3: rates of its pyramid and its cascade, what each branch sees, where scores land."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.layers import Score
from segzoo.models.aspp import ASPP, on_grid
from segzoo.ops.spatial import pad_to_grid


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def dilations(model):
    """`{path: dilation}` of every 3x3 convolution."""
    found = {}

    def look(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Conv) and module.kernel_size == (3, 3):
            found["/".join(module.path)] = module.kernel_dilation
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    return found


RESNET = {50: 23_508_032, 101: 42_500_160}  # without the classifier
PYRAMID = 2 * (2048 * 256 + 512) + 3 * (9 * 2048 * 256 + 512) + 5 * 256 * 256 + 512
SCORES = 256 * 21 + 21


@pytest.mark.parametrize("depth", [50, pytest.param(101, marks=pytest.mark.slow)])
def test_parameters(count_parameters, depth):
    model = segzoo.get("deeplabv3", backbone=f"resnet{depth}")
    assert count_parameters(model, (1, 33, 33, 3)) == RESNET[depth] + PYRAMID + SCORES
    # torchvision's has another 3x3 convolution, and FCN's head on 1024 channels.
    model = segzoo.get(f"deeplabv3_resnet{depth}")
    more = 9 * 256 * 256 + 512 + (9 * 1024 * 256 + 512 + SCORES)
    assert count_parameters(model, (1, 33, 33, 3)) == RESNET[depth] + PYRAMID + SCORES + more


@pytest.mark.parametrize("blocks", [pytest.param(5, marks=pytest.mark.slow), 4])
def test_parameters_of_the_cascade(count_parameters, blocks):
    unit = 2 * 2048 * 512 + 9 * 512 * 512 + 2 * (2 * 512 + 2048)
    expected = RESNET[101] + 3 * (blocks - 4) * unit + 2048 * 21 + 21
    model = segzoo.get("deeplabv3_cascade", blocks=blocks)
    assert count_parameters(model, (1, 33, 33, 3)) == expected


# Section 3.3: (6, 12, 18) at output stride 16, doubled at 8: the same in pixels of the image.
@pytest.mark.parametrize(
    ("name", "overrides", "rates"),
    [
        ("deeplabv3", {}, (6, 12, 18)),
        ("deeplabv3", {"output_stride": 8}, (12, 24, 36)),
        ("deeplabv3", {"output_stride": 8, "atrous_rates": [3, 6, 9, 12]}, (6, 12, 18, 24)),
        ("deeplabv3_resnet50", {}, (12, 24, 36)),
    ],
)
def test_rates_of_the_pyramid(name, overrides, rates):
    found = dilations(segzoo.get(name, width=2, **overrides))
    branches = [rate for path, rate in found.items() if "aspp/" in path]
    assert tuple(branches) == rates


# Section 3.2.1 and Table 5: unit rates (1, 2, 4) times the rate of the block.
@pytest.mark.parametrize(
    ("overrides", "last_stage"),
    [
        ({}, (2, 4, 8)),
        ({"output_stride": 8}, (4, 8, 16)),
        ({"multi_grid": (1, 1, 1)}, (2, 2, 2)),
        ({"backbone": "resnet50"}, (2, 4, 8)),
        ({"backbone": "resnet18"}, (1, 2, 2, 2)),
        ({"backbone": "resnet18", "multi_grid": [1, 2]}, (2, 2, 4, 4)),
    ],
)
def test_the_multi_grid(overrides, last_stage):
    found = dilations(segzoo.get("deeplabv3", width=2, **overrides))
    encoder = [rate for path, rate in found.items() if path.startswith("backbone/stage4")]
    assert tuple(encoder) == last_stage


# Figure 3b: blocks 4 to 7 at rates 2, 4, 8, 16 (output stride 16), times the multi-grid.
@pytest.mark.parametrize(
    ("overrides", "rates"),
    [
        ({"multi_grid": (1, 1, 1)}, [(2,) * 3, (4,) * 3, (8,) * 3, (16,) * 3]),
        ({}, [(2, 4, 2), (4, 8, 4), (8, 16, 8), (16, 32, 16)]),
        ({"output_stride": 8, "blocks": 6}, [(4, 8, 4), (8, 16, 8), (16, 32, 16)]),
        ({"multi_grid": (1, 2, 4), "blocks": 4}, [(2, 4, 8)]),
    ],
)
def test_rates_of_the_cascade(overrides, rates):
    model = segzoo.get("deeplabv3_cascade", backbone="resnet50", width=2, **overrides)
    found = dilations(model)
    ours = [rate for path, rate in found.items() if path.startswith(("backbone/stage4", "block"))]
    assert ours == [rate for block in rates for rate in block]
    assert list(model.rates) == rates


class Inferring(ASPP):
    def __call__(self, x, *, train=False):
        return super().__call__(x, train=train)


BRANCHES = ("conv1x1", "atrous1", "atrous2", "image_pooling")


@pytest.mark.parametrize("separable", [pytest.param(False, marks=pytest.mark.slow), True])
def test_what_each_branch_of_the_pyramid_sees(filled, separable):
    x = random(1, 17, 15, 4)
    aspp = Inferring((2, 5), 8, separable)
    variables = filled(aspp, x.shape)

    @jax.jit
    def run(x):
        _, found = aspp.apply(
            variables, x, capture_intermediates=lambda module, _: module.name in BRANCHES
        )
        return {name: found["intermediates"][name]["__call__"][0] for name in BRANCHES}

    before, after = run(x), run(x.at[:, 8, 7].add(1.0))

    def moved(name):
        places = np.argwhere(np.any(before[name] != after[name], axis=(0, -1)))
        return {(int(row) - 8, int(column) - 7) for row, column in places}

    assert moved("conv1x1") == {(0, 0)}
    for name, rate in (("atrous1", 2), ("atrous2", 5)):
        taps = {(r, c) for r in (-rate, 0, rate) for c in (-rate, 0, rate)}
        assert moved(name) <= taps
        assert len(moved(name)) >= 7  # ReLU may close some
    # The mean of all places: one value for all, whatever their order.
    assert before["image_pooling"].shape == (1, 1, 1, 8)
    assert np.any(after["image_pooling"] != before["image_pooling"])
    shuffled = np.random.default_rng(1).permutation(np.reshape(x, (-1, 4))).reshape(x.shape)
    again = run(jnp.asarray(shuffled))["image_pooling"]
    np.testing.assert_allclose(again, before["image_pooling"], rtol=1e-4, atol=1e-5)


def test_the_image_level_features_are_the_same_everywhere(filled):
    """With every other branch closed, the pyramid is constant over the image."""
    x = random(1, 9, 7, 4)
    aspp = Inferring((1, 2), 8)
    variables = filled(aspp, x.shape)
    run = jax.jit(aspp.apply)
    assert np.ptp(run(variables, x), axis=(1, 2)).max() > 0.1
    project = variables["params"]["project"]["conv"]
    project["kernel"] = project["kernel"].at[:, :, : 3 * 8].set(0.0)
    constant = run(variables, x)
    assert np.ptp(constant, axis=(1, 2)).max() == 0
    assert constant.max() > 0


def test_one_image_trains_though_its_mean_is_one_place(filled):
    aspp, x = Inferring((1,), 4), random(1, 5, 5, 3)
    variables = filled(aspp, x.shape)

    @jax.jit
    def step(params):
        def loss(params):
            variables_now = {**variables, "params": params}
            y, _ = aspp.apply(variables_now, x, train=True, mutable=["batch_stats"])
            return jnp.sum(jnp.sin(y))

        return jax.value_and_grad(loss)(params)

    loss, gradients = step(variables["params"])
    assert np.isfinite(loss)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(gradients)))


@pytest.mark.parametrize(
    "name",
    ["deeplabv3", pytest.param("deeplabv3_cascade", marks=pytest.mark.slow), "deeplabv3plus"],
)
@pytest.mark.parametrize("size", [pytest.param((65, 49), marks=pytest.mark.slow), (64, 50)])
def test_scores_land_where_their_fields_are_centred(filled, name, size):
    """Cell i is centred on pixel 16 i, and at a quarter of the resolution on pixel 4 i."""
    model = segzoo.get(name, backbone="resnet50", width=1, num_classes=1)
    step = 4 if name == "deeplabv3plus" else 16
    image = jnp.zeros((1, *size, 3))

    def ramp(call, args, kwargs, context):
        if not isinstance(context.module, Score):
            return call(*args, **kwargs)
        rows, columns = (step * jnp.arange(n, dtype=jnp.float32) for n in args[0].shape[1:3])
        return (rows[:, None] - 2 * columns)[None, :, :, None]

    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), variables)
    with nn.intercept_methods(ramp):
        logits = jax.jit(model.apply)(zeros, image)
    expected = np.arange(size[0])[:, None] - 2 * np.arange(size[1])
    np.testing.assert_allclose(logits[0, :, :, 0], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ("resnet18", True),
        pytest.param("efficientnet_b0", True, marks=pytest.mark.slow),
        ("xception41", True),
        ("vgg11", False),
        pytest.param("densenet121", False, marks=pytest.mark.slow),
    ],
)
def test_any_encoder(backbone, expected):
    model = segzoo.get("deeplabv3", backbone=backbone, width=8, num_classes=1)
    for size in ((1, 1), (7, 40)):
        image = jnp.zeros((1, *size, 3))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, *size, 1)

    def last(image):
        encoder = model.backbone
        return encoder.init_with_output(jax.random.key(0), image, train=False)[0][-1]

    padded = jax.eval_shape(lambda x: pad_to_grid(x, 16), jnp.zeros((1, 50, 65, 3)))
    assert padded.shape[1:3] == (65, 65)
    assert on_grid(jax.eval_shape(last, padded), padded, 16) == expected


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("deeplabv3", {"backbone": "resnet5"}, "unknown backbone 'resnet5'. Did you mean"),
        ("deeplabv3", {"backbone": "lenet5"}, "backbone 'lenet5' has no output_stride to set"),
        ("deeplabv3", {"output_stride": 32}, "output_stride is 32; expected one of 8, 16"),
        ("deeplabv3", {"output_stride": "16"}, "output_stride is '16'; expected one of 8, 16"),
        ("deeplabv3", {"multi_grid": ()}, "multi_grid is (); expected 3 rates"),
        ("deeplabv3", {"atrous_rates": 6}, "atrous_rates is 6; expected rates, e.g. (6, 12, 18)"),
        ("deeplabv3", {"atrous_rates": ()}, "atrous_rates is (); expected rates"),
        ("deeplabv3", {"atrous_rates": (6, 0)}, "a rate of atrous_rates is 0; expected an integer"),
        ("deeplabv3", {"width": 0}, "width is 0; expected an integer of at least 1"),
        ("deeplabv3", {"dropout": 1.0}, "dropout is 1.0; expected a number"),
        (
            "deeplabv3",
            {"backbone": "vgg16", "multi_grid": (1, 2, 4)},
            "model 'vgg16' has no override 'multi_grid'",
        ),
        ("deeplabv3_cascade", {"blocks": 3}, "blocks is 3; expected an integer of at least 4"),
        (
            "deeplabv3_cascade",
            {"backbone": "vgg16"},
            "model 'vgg16' has no override 'multi_grid'",
        ),
        (
            "deeplabv3_cascade",
            {"backbone": "vgg16", "multi_grid": None},
            "backbone is 'vgg16' and multi_grid None; expected a ResNet and a rate",
        ),
        (
            "deeplabv3_cascade",
            {"backbone": "resnet18"},
            "multi_grid is (1, 2, 1); expected 2 rates",
        ),
    ],
)
def test_mistakes(name, overrides, message):
    with pytest.raises(SegzooError) as caught:
        segzoo.get(name, **overrides)
    assert message in str(caught.value)
