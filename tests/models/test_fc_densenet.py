"""FC-DenseNet: the paper's Table 2 (with its erratum), and what goes where between the paths."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import segzoo
from segzoo import SegzooError
from segzoo.layers import conv_transpose
from segzoo.measured import Measured, measure
from segzoo.models.fc_densenet import DenseBlock, FCDenseNet, TransitionUp

NAMES = ["fc_densenet56", "fc_densenet67", "fc_densenet103", "fc_densenet_classic"]
LAYERS = {
    "fc_densenet56": ([4] * 11, 12),
    "fc_densenet67": ([5] * 11, 16),
    "fc_densenet103": ([4, 5, 7, 10, 12, 15, 12, 10, 7, 5, 4], 16),
    "fc_densenet_classic": ([4, 5, 7, 10, 12, 15], 16),
}
BLOCKS = [*(f"down{i}" for i in range(5)), "bottleneck", *(f"up{i}" for i in range(4, -1, -1))]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def kernels(name):
    """The shape of every kernel of the published network, by its place."""
    init = segzoo.get(name).init
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    flat = flatten_dict(shapes, sep="/")
    return {key.removesuffix("/kernel"): v.shape for key, v in flat.items() if "kernel" in key}


def tiny(**changes):
    """One layer to a block, so that it compiles at once."""
    fields = {"num_classes": 3, "blocks": (2, *(1,) * 10), "width": 4, "growth_rate": 3}
    return FCDenseNet(**{**fields, "dropout": 0.0, **changes})


def run(model, variables, image, **options):
    apply = functools.partial(model.apply, **options)
    return jax.jit(apply)(variables, image)


# --- Table 2 -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "m"),
    [
        ("fc_densenet103", (112, 192, 304, 464, 656, 896, 1088, 816, 576, 384, 256)),
        ("fc_densenet67", (128, 208, 288, 368, 448, 528, 608, 528, 448, 368, 288)),
        ("fc_densenet56", (96, 144, 192, 240, 288, 336, 384, 336, 288, 240, 192)),
    ],
)
def test_the_stack_after_every_block(name, m):
    found = kernels(name)
    blocks, growth = LAYERS[name]
    for block, layers, expected in zip(BLOCKS, blocks, m, strict=True):
        # The last layer sees all but its own maps.
        assert found[f"{block}/layer{layers}/conv"][-2] + growth == expected
    for level in range(5):
        assert found[f"transition_down{level}/layer/conv"] == (1, 1, m[level], m[level])
    assert found["score"] == (1, 1, m[-1], 11)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_adds_the_growth_rate_and_sees_all_before_it(name):
    found = kernels(name)
    blocks, growth = LAYERS[name]
    for block, layers in zip(BLOCKS, blocks, strict=False):
        shapes = [found[f"{block}/layer{i}/conv"] for i in range(1, layers + 1)]
        assert f"{block}/layer{layers + 1}/conv" not in found
        assert {(height, width, new) for height, width, _, new in shapes} == {(3, 3, growth)}
        assert {int(step) for step in np.diff([shape[2] for shape in shapes])} == {growth}


@pytest.mark.parametrize("depth", [56, 67, 103])
def test_the_layers_of_its_name(depth):
    assert len(kernels(f"fc_densenet{depth}")) == depth


@pytest.mark.parametrize("name", NAMES[:3])
def test_only_new_maps_are_up_sampled(name):
    blocks, growth = LAYERS[name]
    for level in range(5):
        maps = blocks[9 - level] * growth
        assert kernels(name)[f"transition_up{level}/conv"] == (3, 3, maps, maps)


def test_the_classic_way_up_is_of_twenty_million_parameters(count_parameters):
    """By arithmetic, on the way down of FC-DenseNet103."""

    def layer(c_in, c_out, size):
        return 2 * c_in + size * size * c_in * c_out + c_out

    total, m, skips = 27 * 48 + 48, 48, []
    for block, layers in enumerate((4, 5, 7, 10, 12, 15)):
        for _ in range(layers):
            total, m = total + layer(m, 16, 3), m + 16
        if block < 5:
            skips.append(m)
            total += layer(m, m, 1)
    c = 15 * 16
    for filters, skip in zip((512, 256, 128, 128, 64), reversed(skips), strict=True):
        total += 2 * 2 * c * filters + filters
        total += layer(filters + skip, filters, 3) + 2 * layer(filters, filters, 3)
        c = filters
    total += c * 11 + 11
    assert total == 20_215_995
    assert count_parameters(segzoo.get("fc_densenet_classic"), (1, 32, 32, 3)) == total


# --- wiring --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (45, 53)])
def test_every_value_reaches_its_place(filled, size):
    model = tiny()
    image = random(1, *size, 3)
    variables = filled(model, image.shape)
    logits, state = run(model, variables, image, capture_intermediates=True, mutable=True)
    seen = {k: v for k, v in state["intermediates"].items() if k != "__call__"}
    output = {name: calls["__call__"][0] for name, calls in seen.items()}
    params = variables["params"]
    stack, new = output["conv"], None
    skips = []
    for level in range(5):
        new = output[f"down{level}"][0].x
        skips.append(jnp.concatenate([stack, new], axis=-1))
        stack = output[f"transition_down{level}"]
        assert stack.shape[1:3] == tuple(n // 2 for n in skips[-1].shape[1:3])
    new = output["bottleneck"][0].x
    for level in range(4, -1, -1):
        skip, up = skips[level], params[f"transition_up{level}"]["conv"]
        whole = conv_transpose(new, up["kernel"], (2, 2)) + up["bias"]
        height, width = skip.shape[1:3]
        up = output[f"transition_up{level}"]
        np.testing.assert_allclose(up, whole[:, :height, :width], atol=1e-5)
        stack, new = jnp.concatenate([up, skip], axis=-1), output[f"up{level}"][0].x
        of_block = {kind: tree[f"up{level}"] for kind, tree in variables.items()}
        block = DenseBlock(1, 3, False, {"dropout": 0.0, "norm": "batch", "axis_name": None})
        seen, _ = block.apply(of_block, Measured(stack), train=False)
        np.testing.assert_allclose(new, seen.x, atol=1e-5)
    score = params["score"]
    expected = jnp.concatenate([stack, new], -1) @ score["kernel"][0, 0] + score["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_dense_block_gives_its_new_maps_alone_too(filled):
    options = {"dropout": 0.0, "norm": "none", "axis_name": None}
    block = DenseBlock(3, 2, False, options)
    x = Measured(random(1, 4, 5, 6))
    init = functools.partial(block.init, train=False)
    params = jax.tree.map(
        lambda s: random(*s.shape), jax.eval_shape(init, jax.random.key(0), x)["params"]
    )

    def without(*layers):
        cut = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in layers}
        new, whole = block.apply({"params": {**params, **cut}}, x, train=False)
        np.testing.assert_array_equal(whole.x, jnp.concatenate([x.x, new.x], -1))
        return np.asarray(new.x)

    y = without()
    assert y.shape == (1, 4, 5, 6)
    # A layer feeds those after it, and itself only; the input feeds all of them.
    for number, first in ((1, 0), (2, 2), (3, 4)):
        changed = (without(f"layer{number}") != y).any((0, 1, 2))
        assert changed.tolist() == [place >= first for place in range(6)]
    assert not without("layer1", "layer2", "layer3").any()


@pytest.mark.parametrize("kernel_size", [2, 3])
@pytest.mark.parametrize("size", [(4, 6), (5, 7), (3, 2)])
def test_transition_up_meets_a_skip_of_any_size(kernel_size, size):
    small = random(1, *(n // 2 for n in size), 3)
    up = TransitionUp(4, kernel_size)
    y, variables = up.init_with_output(jax.random.key(0), small, size)
    assert y.shape == (1, *size, 4)
    whole = conv_transpose(small, variables["params"]["conv"]["kernel"], (2, 2))
    near = whole[:, : size[0], : size[1]]
    np.testing.assert_allclose(y[:, : near.shape[1], : near.shape[2]], near, atol=1e-6)
    assert np.all(np.any(y != 0, axis=(0, 3)))  # nothing is left empty


@pytest.mark.parametrize("size", [(20, 45), (1, 33), (31, 1)])
def test_images_below_32_pixels_are_mirrored(filled, size):
    model = tiny()
    variables = filled(model, (1, 32, 32, 3))
    image = random(1, *size, 3)
    pads = [(0, 0), *((0, max(0, 32 - n)) for n in size), (0, 0)]
    mirrored = jnp.pad(image, pads, mode="symmetric")
    logits = run(model, variables, image)
    assert logits.shape == (1, *size, 3)
    expected = run(model, variables, mirrored)[:, : size[0], : size[1]]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_the_classic_way_up_takes_odd_sizes(filled):
    model = tiny(blocks=(1,) * 6, classic=(5, 4, 4, 3, 3))
    image = random(2, 45, 53, 3)
    logits = run(model, filled(model, image.shape), image)
    assert logits.shape == (2, 45, 53, 3)
    assert np.isfinite(logits).all()


# --- training ------------------------------------------------------------------------------------


def test_he_uniform():
    variables = jax.jit(tiny(width=32, growth_rate=8).init)(
        jax.random.key(0), jnp.zeros((1, 32, 32, 3))
    )
    for name, value in flatten_dict(variables["params"], sep="/").items():
        if not name.endswith("kernel"):
            assert np.all(value == (1 if name.endswith("scale") else 0)), name
            continue
        bound = np.sqrt(6 / np.prod(value.shape[:-1]))
        assert np.abs(value).max() <= bound, name
        assert np.abs(value).max() > 0.8 * bound, name
        # Uniform, not a clipped Gaussian: its standard deviation is the bound over sqrt(3).
        assert 0.85 < np.std(value) * np.sqrt(3) / bound < 1.15, name


class TestRemat:
    x = random(2, 6, 5, 4)

    def block(self, remat):
        return DenseBlock(4, 2, remat, {"dropout": 0.2, "norm": "batch", "axis_name": None})

    def variables(self):
        init = functools.partial(self.block(False).init, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), Measured(self.x))
        return jax.tree.map(lambda leaf: jnp.abs(random(*leaf.shape)), shapes)

    def objective(self, remat):
        def loss(params, x):
            held = {**self.variables(), "params": params}
            options = {"mutable": ["batch_stats"], "rngs": {"dropout": jax.random.key(1)}}
            maps = measure(x, norm="batch", axis_name=None, train=True)
            (new, _), updates = self.block(remat).apply(held, maps, train=True, **options)
            return jnp.sin(new.x).sum(), updates

        return loss

    def test_remembers_less(self):
        def remembered(remat):
            def pullback(params, x):
                return jax.vjp(lambda *inputs: self.objective(remat)(*inputs)[0], params, x)[1]

            kept = jax.eval_shape(pullback, self.variables()["params"], self.x)
            return sum(leaf.size for leaf in jax.tree.leaves(kept))

        assert remembered(True) < 0.6 * remembered(False)
        assert segzoo.get("fc_densenet56", remat=True).remat

    @pytest.mark.slow
    def test_computes_the_same(self, usual_emitters):
        found = []
        for remat in (False, True):
            step = jax.value_and_grad(self.objective(remat), argnums=(0, 1), has_aux=True)
            run = jax.jit(step, compiler_options=usual_emitters)
            found.append(run(self.variables()["params"], self.x))
        for plain, again in zip(*map(jax.tree.leaves, found), strict=True):
            np.testing.assert_allclose(plain, again, atol=1e-3)


def test_statistics_of_the_image_at_hand(filled):
    """One image is scored as in training (without drop-out), whatever the running statistics."""
    model = tiny(test_statistics="image")
    images = random(2, 64, 64, 3) * jnp.asarray([1.0, 3.0]).reshape(2, 1, 1, 1)
    variables = filled(model, images.shape)
    together = run(model, variables, images)
    others = {**variables, "batch_stats": jax.tree.map(jnp.ones_like, variables["batch_stats"])}
    np.testing.assert_array_equal(run(model, others, images), together)
    for place in range(2):
        alone = images[place : place + 1]
        trained, updates = run(model, variables, alone, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(trained[0], together[place], atol=2e-3)
        assert jax.tree.structure(updates["batch_stats"]) == jax.tree.structure(
            variables["batch_stats"]
        )
    assert np.any(np.abs(run(tiny(), variables, images) - together) > 0.1)


def test_statistics_are_the_running_ones_by_default():
    assert segzoo.get("fc_densenet56").test_statistics == "running"


# --- overrides -----------------------------------------------------------------------------------


def test_width_scales_everything():
    narrow = segzoo.get("fc_densenet_classic", width=12)
    assert (narrow.width, narrow.growth_rate) == (12, 4)
    assert narrow.classic == (128, 64, 32, 32, 16)
    assert segzoo.get("fc_densenet56", width=1).growth_rate == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"test_statistics": "batch"}, "test_statistics is 'batch'; expected one of 'running', 'i"),
        ({"remat": 1}, "remat is 1; expected True or False"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number of at least 0 and below 1"),
        ({"width": 0}, "width is 0; expected an integer of at least 1"),
        ({"blocks": (1, 2)}, "has no override 'blocks'"),
    ],
)
def test_impossible_overrides(overrides, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("fc_densenet56", **overrides)
