"""Attention U-Net: the gate's equations, the published counts, what is sown when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.models.attention_unet import AttentionGate


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture
def gate():
    """A gate with random parameters, a skip of 2-D, and its gating signal."""
    module = AttentionGate()
    skip, gating = random(2, 8, 6, 3), random(2, 4, 3, 5, seed=1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), skip, gating)
    rng = np.random.default_rng(2)
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes)["params"]
    return module, params, skip, gating


def test_parameters_of_the_paper(count_parameters):
    model = segzoo.get("attention_unet", spatial_dims=3, width=16, gates=2)
    assert count_parameters(model, (1, 16, 16, 16, 1)) == 6_404_336  # "6.40M"


def test_equations_of_the_gate(gate):
    module, params, skip, gating = gate
    gated, alpha = module.apply({"params": params}, skip, gating)
    # W_x on 2x2 blocks, W_g and psi per pixel of the coarse grid.
    blocks = np.asarray(skip).reshape(2, 4, 2, 3, 2, 3)
    x = np.einsum("bhiwjc,ijco->bhwo", blocks, params["w_x"]["kernel"])
    g = np.asarray(gating) @ np.asarray(params["w_g"]["kernel"][0, 0]) + params["w_g"]["bias"]
    q = np.maximum(x + g, 0) @ np.asarray(params["psi"]["kernel"][0, 0]) + params["psi"]["bias"]
    coarse = 1 / (1 + np.exp(-q))
    expected = jax.image.resize(coarse, (2, 8, 6, 1), "linear", antialias=False)
    np.testing.assert_allclose(alpha, expected, atol=1e-5)
    np.testing.assert_allclose(gated, expected * skip, atol=1e-5)
    assert "bias" not in params["w_x"]


@pytest.mark.parametrize(("bias", "alpha"), [(-1e4, 0.0), (1e4, 1.0)])
def test_a_gate_at_0_closes_the_skip_and_at_1_opens_it(gate, bias, alpha):
    module, params, skip, gating = gate
    params["psi"]["bias"] = jnp.full((1,), bias)

    def run(skip):
        return module.apply({"params": params}, skip, gating)[0]

    np.testing.assert_allclose(run(skip), alpha * skip, rtol=1e-6)
    gradient = jax.grad(lambda skip: run(skip).sum())(skip)
    np.testing.assert_allclose(gradient, jnp.full_like(skip, alpha), atol=1e-6)


@pytest.mark.parametrize(("spatial_dims", "gates"), [(2, 1), (3, 2)])
def test_attention_lies_on_the_skips_grids_between_0_and_1(filled, spatial_dims, gates):
    model = segzoo.get("attention_unet", width=2, depth=3, spatial_dims=spatial_dims, gates=gates)
    image = random(1, *(13, 16, 9)[:spatial_dims], 1)
    variables = filled(model, image.shape)
    apply = jax.jit(lambda v, x: model.apply(v, x, mutable=["intermediates"]))
    _, sown = apply(variables, image)
    maps = sown["intermediates"]["attention"]
    assert len(maps) == 2  # no gate on the finest of three skips
    for level, attention in zip((2, 1), maps, strict=True):
        grid = tuple(n // 2**level for n in (16, 16, 16)[:spatial_dims])
        assert attention.shape == (1, *grid, gates)
        assert attention.dtype == jnp.float32
        assert 0 < attention.min() < attention.max() < 1


def test_the_scales_are_sown_and_combined(filled):
    model = segzoo.get("attention_unet", width=2, depth=2, num_classes=3)
    image = random(2, 9, 7, 2)
    variables = filled(model, image.shape)
    apply = jax.jit(lambda v, x: model.apply(v, x, mutable=["aux_logits"]))
    logits, sown = apply(variables, image)
    scales = sown["aux_logits"]["logits"]
    assert [scale.shape for scale in scales] == [(2, 9, 7, 3)] * 2
    combine = variables["params"]["combine"]
    expected = jnp.concatenate(scales, -1) @ combine["kernel"][0, 0] + combine["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, image), logits, atol=1e-6)


def test_init_returns_no_auxiliary_collections():
    for deep_supervision in (True, False):
        model = segzoo.get("attention_unet", width=1, deep_supervision=deep_supervision)
        shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
        assert set(shapes) == {"params", "batch_stats"}
        assert ("combine" in shapes["params"]) == deep_supervision


@pytest.mark.parametrize(
    "overrides",
    [{"gates": 2}, {"norm": "none", "deep_supervision": False}, {"spatial_dims": 3}],
    ids=str,
)
def test_gradients_reach_every_parameter(filled, assert_all_learn, overrides):
    model = segzoo.get("attention_unet", width=4, depth=2, num_classes=3, **overrides)
    image = random(2, *(8, 12, 9)[: model.spatial_dims], 2)
    variables = filled(model, image.shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params}, image, train=True, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits))

        return jax.grad(loss)(params)

    assert_all_learn(gradient(variables["params"]))


def test_bfloat16_gives_float32_logits_and_attention(filled):
    model = segzoo.get("attention_unet", width=4, depth=2, dtype="bfloat16")
    image = random(1, 8, 8, 1)
    extra = ["aux_logits", "intermediates"]
    apply = jax.jit(lambda v, x: model.apply(v, x, mutable=extra))
    logits, sown = apply(filled(model, image.shape), image)
    assert {leaf.dtype for leaf in jax.tree.leaves((logits, sown))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"depth": 1}, "depth is 1; expected an integer of at least 2"),
        ({"gates": 0}, "gates is 0; expected an integer of at least 1"),
        ({"deep_supervision": 3}, "deep_supervision is 3; expected True or False"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("attention_unet", **override)


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_on_an_encoder_all_skips_but_the_finest_are_gated(filled, deep_supervision):
    model = segzoo.get(
        "attention_unet",
        backbone="alexnet",
        width=16,
        num_classes=3,
        deep_supervision=deep_supervision,
    )
    image = random(2, 65, 90, 3)  # extended to 96 x 96, where AlexNet's maps do not halve exactly
    variables = filled(model, image.shape)
    logits, sown = jax.jit(lambda v, x: model.apply(v, x, mutable=["intermediates", "aux_logits"]))(
        variables, image
    )
    assert logits.shape == (2, 65, 90, 3)
    maps = sown["intermediates"]["attention"]
    assert [m.shape[1:] for m in maps] == [(5, 5, 1), (11, 11, 1)]
    assert all(0 < m.min() < m.max() < 1 for m in maps)
    scales = jax.tree.leaves(sown.get("aux_logits", {}))
    assert [scale.shape for scale in scales] == [logits.shape] * (5 if deep_supervision else 0)


def test_a_gate_takes_a_signal_of_any_size():
    """As of a dilated encoder, whose maps do not halve, and of a skip of one pixel."""
    module = AttentionGate()
    for skip, gating in (((5, 6), (5, 6)), ((7, 4), (3, 2)), ((1, 1), (1, 1)), ((10, 3), (1, 1))):
        arrays = jnp.zeros((1, *skip, 2)), jnp.zeros((1, *gating, 4))
        (gated, alpha), _ = jax.eval_shape(module.init_with_output, jax.random.key(0), *arrays)
        assert gated.shape == (1, *skip, 2)
        assert alpha.shape == (1, *skip, 1)
