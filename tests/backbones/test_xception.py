"""Xception: its layers and rates, and the dilated network among the strided one's values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.xception import BLOCKS, SeparableConv, Xception
from segzoo.weights.names import places
from segzoo.weights.xception import layouts


class Inferring(Xception):
    def __call__(self, image, *, train=False):
        return super().__call__(image, train=train)


def random_image(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def convolutions(model):
    """`{path: (kernel_size, strides, dilation)}` of a model, in the order of the data."""
    found = {}

    def look(call, args, kwargs, context):
        module = context.module
        if isinstance(module, nn.Conv):
            kernel = module.kernel_size[0]
            found["/".join(module.path)] = kernel, module.strides, module.kernel_dilation
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    return found


@pytest.mark.parametrize("depth", BLOCKS)
def test_as_many_layers_as_its_name_says(depth):
    """A separable convolution is one layer; 1x1 shortcuts do not count."""
    found = convolutions(Inferring(depth, width=2))
    layers = [path for path in found if path.startswith("stem") or "/depthwise" in path]
    assert len(layers) == depth
    assert sum("/pointwise" in path for path in found) == depth - 2
    strided = [path.split("/")[0] for path, (kernel, stride, _) in found.items() if stride == 2]
    # The stem, then the third separable convolution and the shortcut of four blocks.
    assert len(strided) == 1 + 2 * 4
    assert {path for path, (_, stride, _) in found.items() if stride == 2} >= {
        f"{name}/conv3/depthwise/conv" for name in strided[1:]
    }


def test_channels_and_sizes_of_the_features():
    model = Inferring(65)
    shapes, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 97, 65, 3)))
    assert [shape.shape[1:] for shape in shapes] == [
        (49, 33, 128),
        (25, 17, 256),
        (13, 9, 728),
        (7, 5, 1024),
        (4, 3, 2048),
    ]


@pytest.mark.parametrize(
    ("output_stride", "middle", "exit_flow"), [(32, 1, (1, 1)), (16, 1, (1, 2)), (8, 2, (2, 4))]
)
def test_rates(output_stride, middle, exit_flow):
    found = convolutions(Inferring(41, width=2, output_stride=output_stride))
    rates = {}
    for path, (kernel, _, dilation) in found.items():
        if kernel == 3 and path.startswith("block"):
            rates.setdefault(path.split("/")[0], set()).add(dilation)
    last = len(BLOCKS[41]) - 1
    for name, found_rates in rates.items():
        number = int(name.removeprefix("block"))
        expected = exit_flow[number - last + 1] if number >= last - 1 else middle
        assert found_rates == {1 if number < 3 else expected}, name


@pytest.mark.parametrize("output_stride", [pytest.param(16, marks=pytest.mark.slow), 8])
def test_the_dilated_network_holds_every_value_of_the_strided_one(filled, output_stride):
    image = random_image(1, 75, 97, 3)
    variables = filled(Inferring(41, width=2), image.shape)

    def features(output_stride):
        model = Inferring(41, width=2, output_stride=output_stride)
        return jax.jit(model.apply)(variables, image)

    strided = features(32)
    for i, feature in enumerate(strided):
        assert np.any(feature > 0)
        assert np.all(feature >= 0)  # all end in ReLU
        assert feature.shape[1] == -(-75 // 2 ** (i + 1))
    for fine, coarse in zip(features(output_stride), strided, strict=True):
        step = -(-fine.shape[1] // coarse.shape[1])
        np.testing.assert_allclose(fine[:, ::step, ::step], coarse, rtol=1e-4, atol=1e-5)
    assert step == 32 // output_stride


def test_where_relu_stands():
    """With a shortcut before each separable convolution, without one after both its halves."""
    calls = []

    def look(call, args, kwargs, context):
        if isinstance(context.module, SeparableConv):
            calls.append((context.module.path[0], context.module.activation))
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        model = Inferring(41, width=2)
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    last = f"block{len(BLOCKS[41]) - 1}"
    for name, activation in dict.fromkeys(calls):
        assert (activation is nn.relu) == (name == last)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, r"output_stride is 4; expected one of 8, 16, 32"),
        ({"dtype": "int8"}, r"dtype is 'int8'; expected a floating type"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("xception65", **overrides)


def test_an_impossible_depth():
    with pytest.raises(SegzooError, match=r"depth is 50; expected one of 41, 65, 71"):
        Xception(50)


def test_names_in_timm():
    model = segzoo.get("xception65")
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 33, 33, 3)))
    shapes = traverse_util.flatten_dict(shapes, sep="/")
    (layout,) = layouts(model)
    found = {p.name: p.shape(shapes[path].shape) for path, p in places(shapes, layout).items()}
    assert len(found) == len(shapes)
    some = {
        "stem.0.conv.weight": (32, 3, 3, 3),
        "blocks.0.shortcut.conv.weight": (128, 64, 1, 1),
        "blocks.20.stack.conv3.conv_dw.weight": (1536, 1, 3, 3),
        "blocks.20.stack.conv3.bn_pw.running_var": (2048,),
        "head.fc.weight": (1000, 2048),
    }
    assert some.items() <= found.items()
    assert layout.path("blocks.3.stack.conv1.bn_dw.bias") == "backbone/block3/conv1/depthwise/norm"
