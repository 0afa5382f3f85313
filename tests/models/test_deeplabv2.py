"""DeepLab v2: counts, the sum over fields of view, and the maximum over the scales of the image."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError, encoder, registry
from segzoo.backbones.resnet import ResNet
from segzoo.layers import Conv
from segzoo.models.deeplabv1 import FIELDS_OF_VIEW, DeepLabV1
from segzoo.models.deeplabv2 import ASPP, MSC, AtrousScore, DeepLabV2
from segzoo.ops.spatial import resize
from segzoo.receptive_field import receptive_fields

# The whole model in a form that compiles fast.
SMALL = {"backbone": "resnet18", "width": 8, "num_classes": 3}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def conv(kernel, c_in, c_out):
    return kernel * kernel * c_in * c_out + c_out


@pytest.mark.parametrize(
    ("rates", "branches"), [((6, 12, 18, 24), 4), ((2, 4, 8, 12), 4), ((12,), 1)]
)
def test_parameters(count_parameters, rates, branches):
    shape = (1, 33, 33, 3)
    vgg = registry.entry("vgg16").parameters - sum(
        [conv(7, 512, 4096), conv(1, 4096, 4096), conv(1, 4096, 1000)]
    )
    branch = conv(3, 512, 1024) + conv(1, 1024, 1024) + conv(1, 1024, 21)
    model = segzoo.get("deeplabv2_vgg16", atrous_rates=rates)
    assert count_parameters(model, shape) == vgg + branches * branch
    resnet = registry.entry("resnet101").parameters - conv(1, 2048, 1000)
    model = segzoo.get("deeplabv2_resnet101", atrous_rates=rates)
    assert count_parameters(model, shape) == resnet + branches * conv(3, 2048, 21)


def test_large_fov_is_that_of_deeplab_without_its_average(filled):
    v2 = segzoo.get("deeplabv2_vgg16", width=2, num_classes=3, atrous_rates=(12,))
    image = random(1, 35, 44, 3)
    variables = filled(v2, image.shape)
    field = FIELDS_OF_VIEW["large"]._replace(average=False)
    v1 = DeepLabV1(3, jnp.float32, None, v2.backbone, field)
    params = {
        "backbone": variables["params"]["backbone"],
        "classifier": variables["params"]["aspp"]["branch1"],
    }
    np.testing.assert_allclose(
        jax.jit(v2.apply)(variables, image), jax.jit(v1.apply)({"params": params}, image), atol=1e-5
    )


@pytest.mark.parametrize("rate", [1, 3, 12])
def test_an_atrous_score_is_a_dilated_convolution(filled, assert_same_function, rate):
    x = random(2, 9, 14, 5)
    params = filled(AtrousScore(3, rate), x.shape)["params"]
    plain = Conv(3, (3, 3), kernel_dilation=rate)

    def as_call(args):
        x, kernel, bias = args
        return {"params": {"kernel": kernel, "bias": bias}}, x

    assert_same_function(
        lambda *args: AtrousScore(3, rate).apply(*as_call(args)),
        lambda *args: plain.apply(*as_call(args)),
        *(x, params["kernel"], params["bias"]),
    )


def test_scores_are_summed_in_float32(filled):
    x = random(1, 9, 9, 64)
    variables = filled(AtrousScore(3, 2), x.shape)
    exact = AtrousScore(3, 2).apply(variables, x)
    half = AtrousScore(3, 2, jnp.bfloat16)
    scores = half.apply(variables, x)
    assert scores.dtype == jnp.float32
    assert np.any(scores != scores.astype(jnp.bfloat16))
    assert 0 < np.abs(scores - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("hidden", [None, 4])
def test_aspp_is_the_sum_of_its_branches(filled, hidden):
    class Pyramid(nn.Module):
        rates: tuple[int, ...]

        @nn.compact
        def __call__(self, x):
            return ASPP(3, self.rates, hidden, name="aspp")(x, train=False)

    x = random(1, 11, 13, 5)
    rates = (1, 2, 4, 12)
    branches = filled(Pyramid(rates), x.shape)["params"]["aspp"]

    def scores(rates, branches):
        return jax.jit(Pyramid(rates).apply)({"params": {"aspp": branches}}, x)

    alone = [
        scores((rate,), {"branch1": branches[f"branch{i}"]}) for i, rate in enumerate(rates, 1)
    ]
    np.testing.assert_allclose(scores(rates, branches), sum(alone), atol=1e-5)
    assert all(np.any(score != alone[0]) for score in alone[1:])


def test_what_a_branch_sees():
    # From the centre 24 positions of 8 pixels either way, for the largest of the rates.
    class Pyramid(nn.Module):
        @nn.compact
        def __call__(self, x):
            return ASPP(1, name="aspp")(x, train=False)

    assert {axis.size for axis in receptive_fields(Pyramid(), channels=2)} == {2 * 24 + 1}


def test_the_published_resnet_has_positions_on_every_eighth_pixel():
    model = segzoo.get("deeplabv2_resnet101", width=1)
    assert isinstance(model.backbone, ResNet)
    assert (model.backbone.depth, model.backbone.variant) == (101, "paper")
    assert model.backbone.reductions == (2, 4, 8, 8, 8)
    *_, last = receptive_fields(segzoo.get("deeplabv2_resnet101", **SMALL).backbone, train=False)
    assert {axis.stride for axis in last} == {8}
    assert {axis.start + axis.size // 2 for axis in last} == {0}


class Encoder(nn.Module):
    """A small encoder on the grid of every 8th pixel."""

    @nn.compact
    def __call__(self, image, *, train):
        return (nn.relu(Conv(6, (17, 17), strides=8, padding=[(8, 8), (8, 8)])(image)),)


@pytest.fixture(scope="module")
def nets():
    def net(scales):
        return DeepLabV2(3, jnp.float32, None, Encoder(), (1, 3), scales=scales)

    return {scales: net(scales) for scales in (MSC, (1.0,))}


def test_the_largest_score_of_all_scales_counts(filled, nets):
    image = random(2, 61, 75, 3)
    variables = filled(nets[MSC], image.shape)
    one = jax.jit(nets[1.0,].apply)
    expected = []
    for height, width in ((31, 38), (46, 57), (61, 75)):
        logits = one(variables, resize(image, (height, width), align_corners=True))
        assert logits.shape == (2, height, width, 3)
        expected.append(resize(logits, (61, 75), align_corners=True))

    logits, sown = jax.jit(lambda v, x: nets[MSC].apply(v, x, mutable=["aux_logits"]))(
        variables, image
    )
    np.testing.assert_allclose(logits, np.max(expected, axis=0), atol=1e-5)
    for found, each in zip(sown["aux_logits"]["logits"], expected, strict=True):
        np.testing.assert_allclose(found, each, atol=1e-5)
    # Each of them has its say somewhere.
    assert len(np.unique(np.argmax(expected, axis=0))) == 3


def test_scales_share_their_weights(nets):
    shapes = [
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
        for net in nets.values()
    ]
    assert shapes[0] == shapes[1]
    assert set(shapes[0]) == {"params"}


def through(reduction):
    """In the place of encoder and scores: every so manieth pixel of the image itself."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, Encoder):
            return (args[0][:, ::reduction, ::reduction],)
        return args[0] if isinstance(context.module, ASPP) else call(*args, **kwargs)

    return intercept


@pytest.mark.parametrize("size", [(65, 97), (33, 193)])
def test_the_scales_show_the_same_places(nets, size):
    """Sizes of which the grid fits every scale: nothing is filled up."""
    y, x = jnp.arange(size[0])[:, None], jnp.arange(size[1])
    ramp = jnp.broadcast_to((y - 2.0 * x)[None, :, :, None], (1, *size, 1))
    with nn.intercept_methods(through(8)):
        run = jax.jit(lambda image: nets[MSC].apply({}, image, mutable=["aux_logits"]))
        logits, sown = run(ramp)
    for found in (logits, *sown["aux_logits"]["logits"]):
        np.testing.assert_allclose(found, ramp, atol=1e-3)


def test_maps_beside_the_grid_are_fitted_by_their_borders():
    """Cells of a densely pooling encoder tile the image; the remainder has none."""
    model = segzoo.get("deeplabv2_resnet101", backbone="vgg11", width=1, num_classes=1)
    cells = random(1, 4, 5, 1)

    def intercept(call, args, kwargs, context):
        return cells if isinstance(context.module, ASPP) else call(*args, **kwargs)

    image = jnp.zeros((1, 33, 41, 3))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
    with nn.intercept_methods(intercept):
        logits = jax.jit(model.apply)(variables, image)
    np.testing.assert_allclose(logits, resize(cells, (33, 41)), atol=1e-5)


def test_features_are_those_of_a_single_scale(filled, nets):
    image = random(1, 17, 17, 3)
    variables = filled(nets[1.0,], image.shape)

    def features(scales):
        return jax.eval_shape(lambda v: encoder.encode(nets[scales], v, image), variables)

    assert [found.shape for found in features((1.0,))] == [(1, 3, 3, 6)]
    with pytest.raises(SegzooError, match="calls its encoder 3 times"):
        features(MSC)


@pytest.mark.parametrize("name", ["deeplabv2_vgg16", "deeplabv2_resnet101"])
def test_any_size(name):
    small = {"width": 1, "num_classes": 1, "scales": (0.5, 1.0, 1.25)}
    if name.endswith("resnet101"):
        small["backbone"] = "resnet18"
    model = segzoo.get(name, **small)
    for n in (1, 8, 65):
        image = jnp.zeros((1, n, 3 * n + 5, 3))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, n, 3 * n + 5, 1)


@pytest.mark.parametrize(
    ("backbone", "variant", "built"),
    [
        ("resnet50", None, "paper"),
        ("resnet50", "torchvision", "torchvision"),
        ("resnet18", None, "torchvision"),
        ("densenet121", None, None),
        ("efficientnet_b0", "paper", "paper"),
    ],
)
def test_encoders_by_name(backbone, variant, built):
    model = segzoo.get("deeplabv2_resnet101", backbone=backbone, variant=variant, width=8)
    assert getattr(model.backbone, "variant", None) == built
    assert model.backbone.reductions[-1] == 8
    whole = segzoo.get("deeplabv2_resnet101", backbone=backbone).backbone
    assert whole.width == registry.entry(backbone).overrides["width"]


def test_new_layers_start_from_a_gaussian_of_a_hundredth():
    params = AtrousScore(50, 2).init(jax.random.key(0), jnp.zeros((1, 1, 1, 64)))["params"]
    np.testing.assert_allclose(np.std(params["kernel"]), 0.01, rtol=0.05)
    assert not np.any(params["bias"])


def test_drop_out_differs_from_scale_to_scale(filled):
    model = DeepLabV2(3, jnp.float32, None, Encoder(), (2,), hidden=8, scales=(1.0, 1.0))
    image = random(1, 17, 25, 3)
    variables = filled(model, image.shape)

    def run(train):
        rngs = {"dropout": jax.random.key(0)}
        _, sown = model.apply(variables, image, train=train, mutable=["aux_logits"], rngs=rngs)
        return sown["aux_logits"]["logits"]

    run = jax.jit(run, static_argnums=0)
    once, again = run(False)
    np.testing.assert_array_equal(once, again)
    once, again = run(True)
    assert np.any(once != again)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"atrous_rates": ()}, r"atrous_rates is \(\); expected one rate or more"),
        ({"atrous_rates": 12}, "atrous_rates is 12; expected one rate or more"),
        ({"atrous_rates": (6, 0)}, "a rate of atrous_rates is 0"),
        ({"scales": ()}, r"scales is \(\); expected one scale or more"),
        ({"scales": "msc"}, "scales is 'msc'"),
        ({"scales": (1.0, -1)}, "a scale of scales is -1; expected a number above 0"),
        ({"scales": (float("nan"),)}, "a scale of scales is nan"),
        ({"width": 0}, "width is 0"),
        ({"dtype": "int32"}, "dtype is 'int32'"),
    ],
)
@pytest.mark.parametrize("name", ["deeplabv2_vgg16", "deeplabv2_resnet101"])
def test_impossible_values(name, overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get(name, **overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "resnet1O1"}, "unknown backbone 'resnet1O1'.*'resnet101'"),
        ({"backbone": "lenet5"}, "'lenet5' has no output_stride to set"),
        ({"backbone": "densenet121", "variant": "paper"}, "has no override 'variant'"),
        ({"variant": "caffe"}, "variant is 'caffe'"),
    ],
)
def test_impossible_encoders(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("deeplabv2_resnet101", **overrides)


def test_lists_will_do_for_what_a_file_names():
    model = segzoo.get("deeplabv2_resnet101", **SMALL, atrous_rates=[6, 12], scales=[1, 0.5])
    assert hash(model) == hash(
        segzoo.get("deeplabv2_resnet101", **SMALL, atrous_rates=(6, 12), scales=(1, 0.5))
    )
