"""EfficientNet: Table 1 and its scaling, the parts of a block, strides, dilations, variants."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import segzoo
from segzoo import SegzooError
from segzoo.backbones.efficientnet import (
    HEAD_CHANNELS,
    STAGES,
    STEM_CHANNELS,
    EfficientNet,
    MBConv,
    SqueezeExcite,
    StochasticDepth,
    round_channels,
)
from segzoo.layers import ConvNormAct

NAMES = [f"efficientnet_b{i}" for i in range(8)]


def features_of(model, size, channels=3):
    image = jnp.zeros((2, *size, channels))
    run = jax.eval_shape(
        lambda key, x: model.init_with_output(key, x, train=False), jax.random.key(0), image
    )
    return run


def calls(model, size=(32, 32), train=False):
    """Every module the model calls, in order."""
    modules = []

    def note(call, args, kwargs, context):
        if context.method_name == "__call__":
            modules.append(context.module)
        return call(*args, **kwargs)

    def run(key, image):
        with nn.intercept_methods(note):
            return model.init_with_output({"params": key, "dropout": key}, image, train=train)

    jax.eval_shape(run, jax.random.key(0), jnp.zeros((2, *size, 3)))
    return modules


# (stem, stages 2 to 8, head), and blocks of each stage, as the TensorFlow release has them.
@pytest.mark.parametrize(
    ("name", "channels", "blocks"),
    [
        ("b0", (32, 16, 24, 40, 80, 112, 192, 320, 1280), (1, 2, 2, 3, 3, 4, 1)),
        ("b2", (32, 16, 24, 48, 88, 120, 208, 352, 1408), (2, 3, 3, 4, 4, 5, 2)),
        ("b3", (40, 24, 32, 48, 96, 136, 232, 384, 1536), (2, 3, 3, 5, 5, 6, 2)),
        ("b7", (64, 32, 48, 80, 160, 224, 384, 640, 2560), (4, 7, 7, 10, 10, 13, 4)),
    ],
)
def test_compound_scaling(name, channels, blocks):
    model = segzoo.get(f"efficientnet_{name}").backbone
    published = (STEM_CHANNELS, *(stage.channels for stage in STAGES), HEAD_CHANNELS)
    assert tuple(map(model.channels, published)) == channels
    assert tuple(map(model.blocks, STAGES)) == blocks
    assert tuple(map(len, model.stages)) == (1, *blocks)


def test_channels_are_rounded_to_eight_and_lose_little():
    for channels in np.linspace(8, 3000, 997):
        rounded = round_channels(channels)
        assert rounded % 8 == 0
        assert rounded >= 0.9 * channels
        assert abs(rounded - channels) <= 4 or rounded - 8 < 0.9 * channels
    assert round_channels(11.5) == 16  # the nearest multiple, 8, would be below 90 %


def test_width_keeps_proportions():
    model = segzoo.get("efficientnet_b0", width=8).backbone
    assert [model.channels(stage.channels) for stage in STAGES] == [4, 6, 10, 20, 28, 48, 80]
    assert segzoo.get("efficientnet_b3", width=40).backbone.channels(112) == 136
    assert segzoo.get("efficientnet_b0", width=1).backbone.channels(16) == 1


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b3"])
def test_stages_hold_every_parameter_once(name):
    model = segzoo.get(name).backbone
    _, variables = features_of(model, (32, 32))
    modules = [module for stage in model.stages for module in stage]
    assert sorted(modules) == sorted(variables["params"])
    assert len(set(modules)) == len(modules)


@pytest.mark.parametrize("output_stride", [8, 16, 32])
def test_features_are_the_finest_first_at_their_reductions(output_stride):
    model = EfficientNet(output_stride=output_stride)
    features, _ = features_of(model, (64, 96))
    assert [f.shape[-1] for f in features] == [16, 24, 40, 112, 320]
    for feature, reduction in zip(features, model.reductions, strict=True):
        assert feature.shape[1:3] == (64 // reduction, 96 // reduction)


@pytest.mark.parametrize("variant", ["torchvision", "paper"])
@pytest.mark.parametrize("size", [(1, 1), (33, 50)])
def test_odd_sizes_are_rounded_up(variant, size):
    model = EfficientNet(width=4, variant=variant)
    features, _ = features_of(model, size, channels=5)
    for feature, reduction in zip(features, model.reductions, strict=True):
        assert feature.shape[1:3] == tuple(-(-n // reduction) for n in size)


@pytest.mark.slow
@pytest.mark.parametrize("output_stride", [8, 16])
def test_a_dilated_net_agrees_with_the_strided_one_at_its_places(filled, output_stride):
    image = jnp.asarray(np.random.default_rng(0).normal(size=(1, 32, 64, 3)), jnp.float32)
    strided = segzoo.get("efficientnet_b0", width=4).backbone
    dilated = segzoo.get("efficientnet_b0", width=4, output_stride=output_stride).backbone

    class Fixed(nn.Module):
        backbone: nn.Module

        def __call__(self, image):
            return self.backbone(image, train=False)

    # Gates see all places, so they would differ; without their kernels they are constants.
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: 0 * leaf if path[-3].key == "squeeze_excite" else leaf,
        filled(Fixed(strided), image.shape),
    )
    expected = jax.jit(Fixed(strided).apply)(variables, image)
    for coarse, fine, reduction in zip(
        expected, jax.jit(Fixed(dilated).apply)(variables, image), dilated.reductions, strict=True
    ):
        step = fine.shape[1] // coarse.shape[1]
        assert fine.shape[1] * reduction == 32
        np.testing.assert_allclose(fine[:, ::step, ::step], coarse, atol=1e-5)
    assert step == 32 // output_stride


class TestMBConv:
    def conv(self, features, kernel_size, stride=1, dilation=1, **more):
        more = {"activation": nn.silu, **more}
        return ConvNormAct(features, kernel_size, stride, dilation, norm="batch", **more)

    def params(self, block, channels):
        key, x = jax.random.key(0), jnp.zeros((1, 8, 8, channels))
        return jax.eval_shape(lambda x: block.init(key, x, train=False), x)["params"]

    def test_parts_and_their_widths(self):
        params = self.params(MBConv(24, self.conv, 6, 5), 16)
        assert {
            path: leaf.shape
            for path, leaf in traverse_util.flatten_dict(params, sep="/").items()
            if path.endswith("kernel")
        } == {
            "expand/conv/kernel": (1, 1, 16, 96),
            "depthwise/conv/kernel": (5, 5, 1, 96),
            "squeeze_excite/reduce/kernel": (1, 1, 96, 4),  # a quarter of 16, not of 96
            "squeeze_excite/expand/kernel": (1, 1, 4, 96),
            "project/conv/kernel": (1, 1, 96, 24),
        }
        assert "bias" not in params["depthwise"]["conv"]
        assert "bias" in params["squeeze_excite"]["reduce"]

    def test_no_expansion_by_one(self):
        assert set(self.params(MBConv(8, self.conv, 1), 16)) == {
            "depthwise",
            "squeeze_excite",
            "project",
        }

    @pytest.mark.parametrize(
        ("features", "stride", "residual"), [(8, 1, True), (8, 2, False), (12, 1, False)]
    )
    def test_the_residual_joins_equal_shapes_and_is_linear(self, features, stride, residual):
        block = MBConv(features, self.conv, stride=stride)
        x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 8)), jnp.float32)
        variables = jax.jit(lambda x: block.init(jax.random.key(0), x, train=False))(x)
        # A projection to zero leaves the shortcut, which no activation follows.
        scale = variables["params"]["project"]["norm"]["scale"]
        variables["params"]["project"]["norm"]["scale"] = 0 * scale
        y = jax.jit(lambda v, x: block.apply(v, x, train=False))(variables, x)
        assert y.shape == (1, 8 // stride, 8 // stride, features)
        np.testing.assert_array_equal(y, x if residual else np.zeros_like(y))


def test_squeeze_excite_gates_channels_by_their_means():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 7, 6)), jnp.float32)
    module = SqueezeExcite(3)
    variables = module.init(jax.random.key(0), x)
    weights = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), variables["params"]
    )
    y = module.apply({"params": weights}, x)

    def dense(name, v):
        return v @ weights[name]["kernel"][0, 0] + weights[name]["bias"]

    hidden = dense("reduce", x.mean((1, 2)))
    gate = 1 / (1 + np.exp(-dense("expand", hidden / (1 + np.exp(-hidden)))))
    np.testing.assert_allclose(y, x * gate[:, None, None, :], rtol=1e-5)


class TestStochasticDepth:
    def apply(self, x, rate=0.25, axis_name=None, seed=0, deterministic=False):
        module = StochasticDepth(rate, axis_name)
        rngs = {"dropout": jax.random.key(seed)}
        return module.apply({}, x, deterministic=deterministic, rngs=rngs)

    def test_whole_examples_at_the_rate_and_the_mean_kept(self):
        y = np.asarray(self.apply(jnp.ones((4000, 2, 3))))
        dropped = np.all(y == 0, axis=(1, 2))
        np.testing.assert_allclose(y[~dropped], 4 / 3, rtol=1e-6)
        assert abs(dropped.mean() - 0.25) < 0.03
        assert abs(y.mean() - 1) < 0.04

    def test_is_the_identity_in_evaluation_and_at_rate_zero(self):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2)))
        np.testing.assert_array_equal(self.apply(x, deterministic=True), x)
        np.testing.assert_array_equal(self.apply(x, rate=0.0), x)

    def test_depends_on_the_key_alone_however_the_batch_is_split(self):
        x = jnp.ones((64, 1))
        whole = self.apply(x)
        np.testing.assert_array_equal(self.apply(x), whole)
        assert np.any(self.apply(x, seed=1) != whole)
        for parts in (2, 8):
            split = jax.vmap(lambda x: self.apply(x, axis_name="batch"), axis_name="batch")
            shares = split(x.reshape(parts, -1, 1))
            np.testing.assert_array_equal(shares.reshape(64, 1), whole)

    def test_blocks_of_any_rate_scale_by_the_same_code(self, one_code):
        def run(x, weights):
            for seed, weight in enumerate(weights):
                x = x + self.apply(x @ weight, rate=0.1 * (seed + 1), seed=seed)
            return x

        compiled = jax.jit(run).lower(jnp.ones((2, 3, 4)), jnp.ones((3, 4, 4))).compile()
        assert one_code(compiled, "f32[2,3,4]") == 3

    def test_rates_grow_linearly_over_the_blocks(self):
        model = EfficientNet(width=2, stochastic_depth=0.2)
        blocks = [module for module in calls(model, train=True) if isinstance(module, MBConv)]
        rates = [block.drop_rate for block in blocks]
        np.testing.assert_allclose(rates, 0.2 * np.arange(16) / 16)
        plain = calls(EfficientNet(width=2, stochastic_depth=0.0))
        assert {m.drop_rate for m in plain if isinstance(m, MBConv)} == {0.0}


def test_training_needs_a_key_and_moves_statistics(filled):
    model = segzoo.get("efficientnet_b0", width=4, num_classes=3)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    variables = filled(model, image.shape)

    @jax.jit
    def run(key):
        rngs = {"dropout": key}
        return model.apply(variables, image, train=True, rngs=rngs, mutable=["batch_stats"])

    logits, updates = run(jax.random.key(0))
    again, _ = run(jax.random.key(0))
    other, _ = run(jax.random.key(1))
    np.testing.assert_array_equal(logits, again)
    assert np.any(logits != other)
    before = traverse_util.flatten_dict(variables["batch_stats"])
    for path, after in traverse_util.flatten_dict(updates["batch_stats"]).items():
        assert np.any(after != before[path]), path


# The release's rates of drop-out; torchvision's batch norms.
@pytest.mark.parametrize(
    ("names", "rates", "epsilon", "momentum"),
    [(NAMES[:5], (0.2, 0.2, 0.3, 0.3, 0.4), 1e-5, 0.9), (NAMES[5:], (0.4, 0.5, 0.5), 1e-3, 0.99)],
)
def test_regularisation_and_norms(names, rates, epsilon, momentum):
    for name, rate in zip(names, rates, strict=True):
        model = segzoo.get(name)
        assert model.dropout == rate
        assert (model.backbone.epsilon, model.backbone.momentum) == (epsilon, momentum)
        paper = segzoo.get(name, variant="paper").backbone
        assert (paper.epsilon, paper.momentum) == (1e-3, 0.99)


def test_variants_reach_every_convolution():
    for variant, epsilon in (("torchvision", 1e-5), ("paper", 1e-3)):
        units = [
            module
            for module in calls(segzoo.get("efficientnet_b0", width=4, variant=variant))
            if isinstance(module, ConvNormAct)
        ]
        assert len(units) == 1 + 16 * 3 - 1 + 1
        for unit in units:
            assert unit.epsilon == epsilon
            pad = unit.kernel_size // 2
            assert unit.padding == ("SAME" if variant == "paper" else ((pad, pad), (pad, pad)))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"width": 0}, r"width is 0; expected an integer of at least 1"),
        ({"output_stride": 4}, r"output_stride is 4; expected one of 8, 16, 32"),
        ({"dropout": 1.0}, r"dropout is 1.0; expected a number"),
        ({"stochastic_depth": -0.1}, r"stochastic_depth is -0.1; expected a number"),
        ({"variant": "keras"}, r"variant is 'keras'; expected one of 'torchvision', 'paper'"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("efficientnet_b4", **override)
