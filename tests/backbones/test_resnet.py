import functools
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.resnet import STAGES, Block, Part, ResNet
from segzoo.cost import multiply_adds
from segzoo.weights.names import places
from segzoo.weights.resnet import layouts


class Inferring(ResNet):
    def __call__(self, image, *, train=False):
        return super().__call__(image, train=train)


class InferringBlock(Block):
    def __call__(self, x, *, train=False):
        return super().__call__(x, train=train)


def shapes_of(model, size=(64, 64)):
    return jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, *size, 3)))


def traced(model, variables, size=(64, 64)):
    return jax.make_jaxpr(model.apply)(variables, jnp.zeros((1, *size, 3)))


def convolutions(model):
    """The (kernel size, stride, dilation) of every convolution.

    As devices other than a CPU compute them, where those of one pixel are no matrix products.
    """

    def found(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "conv_general_dilated":
                strides, dilations = eqn.params["window_strides"], eqn.params["rhs_dilation"]
                assert strides[0] == strides[1]
                assert dilations[0] == dilations[1]
                yield eqn.invars[1].aval.shape[0], strides[0], dilations[0]
            for inner in eqn.params.values():
                if hasattr(inner, "jaxpr"):
                    yield from found(inner.jaxpr)

    with mock.patch("jax.default_backend", return_value="gpu"):
        return list(found(traced(model, shapes_of(model)[1]).jaxpr))


def random_image(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


# Table 1 of the paper: multiply-adds for an image of 224 pixels, in 1e9.
@pytest.mark.parametrize(
    ("depth", "published"), [(18, 1.8), (34, 3.6), (50, 3.8), (101, 7.6), (152, 11.3)]
)
def test_layers_with_weights_and_their_cost(depth, published):
    model = Inferring(depth, variant="paper")
    _, variables = shapes_of(model)
    kernels = [
        path
        for path in traverse_util.flatten_dict(variables["params"], sep="/")
        if path.endswith("kernel") and "shortcut" not in path
    ]
    assert len(kernels) + 1 == depth  # the classifier
    found = multiply_adds(traced(model, variables, (224, 224)))
    assert found / 1e9 == pytest.approx(published, abs=0.07)


@pytest.mark.parametrize(
    ("depth", "channels"), [(34, (64, 64, 128, 256, 512)), (50, (64, 256, 512, 1024, 2048))]
)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_finest_first_at_their_reductions(depth, channels, output_stride):
    model = Inferring(depth, output_stride=output_stride)
    features, _ = shapes_of(model, (96, 75))
    assert tuple(f.shape[-1] for f in features) == channels
    assert model.reductions[-1] == output_stride
    for feature, reduction in zip(features, model.reductions, strict=True):
        assert feature.shape[1:3] == (-(-96 // reduction), -(-75 // reduction))


@pytest.mark.parametrize("parts", [(Part(6, 3), Part(6, 3)), (Part(3, 1), Part(3, 3), Part(6, 1))])
def test_a_block_without_residual_is_the_identity(filled, parts):
    block = InferringBlock(parts)
    x = jnp.abs(random_image(2, 7, 5, 6))
    variables = filled(block, x.shape)
    assert "shortcut" not in variables["params"]
    assert np.any(block.apply(variables, x) != x)
    last = variables["params"][f"conv{len(parts)}"]["norm"]
    last["scale"], last["bias"] = 0 * last["scale"], 0 * last["bias"]
    np.testing.assert_array_equal(block.apply(variables, x), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "variant", "output_strides"),
    [(18, "torchvision", (8, 16)), (50, "torchvision", (8,)), (50, "paper", (8,))],
)
def test_the_dilated_network_holds_every_value_of_the_strided_one(
    filled, depth, variant, output_strides
):
    image = random_image(1, 75, 97, 3)

    def features(output_stride):
        model = Inferring(depth, width=2, output_stride=output_stride, variant=variant)
        variables = filled(model, image.shape)
        return jax.jit(model.apply)(variables, image)

    strided = features(32)
    assert all(np.any(feature > 0) for feature in strided)
    for output_stride in output_strides:
        for fine, coarse in zip(features(output_stride), strided, strict=True):
            step = -(-fine.shape[1] // coarse.shape[1])
            np.testing.assert_allclose(fine[:, ::step, ::step], coarse, rtol=1e-4, atol=1e-5)
        assert step == 32 // output_stride


@pytest.mark.parametrize(
    ("variant", "expected"),
    [("torchvision", [7, 3, 1, 3, 1, 3, 1]), ("paper", [7, 1, 1, 1, 1, 1, 1])],
)
def test_where_a_bottleneck_has_its_stride(variant, expected):
    found = convolutions(Inferring(50, width=2, variant=variant))
    strided = [kernel for kernel, stride, _ in found if stride == 2]
    # A block's own convolution and its shortcut's, in any order.
    assert strided[0] == expected[0]
    assert sorted(strided[1:]) == sorted(expected[1:])


# Chen et al. 2017, section 3.2.1: 2 (1, 2, 4) = (2, 4, 8) at output stride 16.
@pytest.mark.parametrize(
    ("output_stride", "multi_grid", "rates"),
    [
        (32, None, (1, 1, 1)),
        (16, None, (1, 2, 2)),
        (16, (1, 1, 1), (2, 2, 2)),
        (16, (1, 2, 4), (2, 4, 8)),
        (8, None, (2, 4, 4)),
        (8, [1, 2, 4], (4, 8, 16)),
    ],
)
def test_the_rates_of_the_last_stage(output_stride, multi_grid, rates):
    model = Inferring(50, width=2, output_stride=output_stride, multi_grid=multi_grid)
    dilations = [dilation for kernel, _, dilation in convolutions(model) if kernel == 3]
    assert tuple(dilations[-3:]) == rates
    before = {32: (1,) * 6, 16: (1,) * 6, 8: (1, 2, 2, 2, 2, 2)}
    assert tuple(dilations[7:13]) == before[output_stride]
    assert set(dilations[:7]) == {1}


def test_no_block_is_computed_from_all_those_before_it(monkeypatch):
    def most_inputs(blocks):
        monkeypatch.setitem(STAGES, 18, (1, blocks, 1, 1))
        model, image = ResNet(18, width=8), jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
        init = functools.partial(model.init, train=True)
        variables = jax.eval_shape(init, jax.random.key(0), image)

        def objective(params, stats, image):
            parts = {"params": params, "batch_stats": stats}
            features, _ = model.apply(parts, image, train=True, mutable=["batch_stats"])
            return jnp.sum(features[-1] ** 2)

        gradient = jax.jit(jax.grad(objective))
        lowered = gradient.lower(variables["params"], variables["batch_stats"], image)
        program = lowered.compile().as_text()
        return max(part.count(",") + 1 for part in re.findall(r" fusion\(([^)]*)\)", program))

    assert most_inputs(9) <= most_inputs(4)


def test_basic_blocks_have_two_convolutions_at_a_rate():
    model = Inferring(18, width=2, output_stride=16, multi_grid=(1, 2))
    dilations = [dilation for kernel, _, dilation in convolutions(model) if kernel == 3]
    assert dilations[-4:] == [2, 2, 4, 4]


@pytest.mark.parametrize("size", [(1, 1), (2, 33)])
def test_the_smallest_images(filled, size):
    image = random_image(1, *size, 1)
    model = Inferring(18, width=2)
    features = jax.jit(model.apply)(filled(model, image.shape), image)
    assert all(np.isfinite(feature).all() for feature in features)
    assert features[-1].shape[1:3] == (1, -(-size[1] // 32))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, r"output_stride is 4; expected one of 8, 16, 32"),
        ({"variant": "v1"}, r"variant is 'v1'; expected one of 'torchvision', 'paper'"),
        ({"norm": "layer"}, r"norm is 'layer'; expected one of"),
        ({"multi_grid": (1, 2)}, r"multi_grid is \(1, 2\); expected 3 rates, .* of ResNet-50"),
        ({"multi_grid": 2}, r"multi_grid is 2; expected 3 rates"),
        ({"multi_grid": (1, 2, 0)}, r"a rate of multi_grid is 0; expected an integer"),
        ({"dtype": "int8"}, r"dtype is 'int8'; expected a floating type"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("resnet50", **overrides)


def test_impossible_depths_and_images():
    with pytest.raises(SegzooError, match=r"depth is 51; expected one of 18, 34, 50, 101, 152"):
        ResNet(51)
    with pytest.raises(SegzooError, match=r"the image has shape \(64, 64, 3\)"):
        jax.eval_shape(
            segzoo.get("resnet18").init, jax.random.key(0), jax.ShapeDtypeStruct((64, 64, 3), "f4")
        )


# Names and number of the tensors of torchvision's state dicts, without `num_batches_tracked`.
@pytest.mark.parametrize(
    ("name", "tensors", "some"),
    [
        ("resnet18", 102, {"layer2.0.downsample.1.running_var": (128,)}),
        ("resnet50", 267, {"layer1.0.downsample.0.weight": (256, 64, 1, 1)}),
    ],
)
def test_names_in_other_libraries(name, tensors, some):
    model = segzoo.get(name)
    shapes = traverse_util.flatten_dict(shapes_of(model)[1], sep="/")
    for layout in layouts(model):
        found = {
            place.name: place.shape(shapes[path].shape)
            for path, place in places(shapes, layout).items()
        }
        assert len(found) == len(shapes) == tensors
        features = found["fc.weight"][1]
        some = some | {
            "conv1.weight": (64, 3, 7, 7),
            "bn1.bias": (64,),
            "layer4.1.conv2.weight": (512, 512, 3, 3),
            "fc.weight": (1000, features),
        }
        assert some.items() <= found.items()
