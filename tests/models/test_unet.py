"""U-Net: the paper's geometry and counts, and what holds for every variant."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("overrides", "channels", "count"),
    [
        ({"num_classes": 2}, 1, 31_030_658),
        ({"num_classes": 2, "padding": "VALID"}, 1, 31_030_658),
        ({"num_classes": 1}, 3, 31_031_745),
        ({"num_classes": 2, "norm": "batch"}, 3, 31_037_698),
    ],
)
def test_parameters(count_parameters, overrides, channels, count):
    size = 188 if overrides.get("padding") == "VALID" else 16
    model = segzoo.get("unet", **overrides)
    assert count_parameters(model, (1, size, size, channels)) == count


def test_3d_baseline_of_the_attention_u_net_paper(count_parameters):
    model = segzoo.get("unet", spatial_dims=3, width=16, norm="batch", upsample="bilinear")
    assert int(count_parameters(model, (1, 16, 16, 16, 1)) / 1e4) == 588  # "5.88M"


def test_the_papers_geometry():
    model = segzoo.get("unet", padding="VALID")
    image = jnp.zeros((1, 572, 572, 1))
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    assert logits.shape == (1, 388, 388, 2)
    assert model.input_size((388, 388)) == (572, 572)


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("output", [(1, 1), (4, 5), (37, 36), (388, 100)])
def test_input_size_is_the_smallest_that_covers(depth, output):
    model = segzoo.get("unet", padding="VALID", depth=depth, width=1)

    def output_of(size):
        image = jnp.zeros((1, *size, 1))
        return jax.eval_shape(model.init_with_output, jax.random.key(0), image)[0].shape[1:-1]

    size = model.input_size(output)
    covered = output_of(size)
    assert all(got >= wanted for got, wanted in zip(covered, output, strict=True))
    step = 2**depth
    smallest = model.input_size((1, 1))
    for axis in (0, 1):
        smaller = tuple(n - step * (i == axis) for i, n in enumerate(size))
        if smaller[axis] >= smallest[axis]:
            assert output_of(smaller)[axis] < output[axis]


def test_an_image_that_does_not_fit_names_the_nearest_sizes():
    model = segzoo.get("unet", padding="VALID")
    with pytest.raises(SegzooError, match=r"570 x 572 .* nearest valid size is 556 or 572 x 572\."):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 570, 572, 1)))
    with pytest.raises(SegzooError, match=r"20 x 700 .* nearest valid size is 188 x 700\."):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 20, 700, 1)))


@pytest.mark.parametrize(("closed", "reach", "grid"), [(None, 20, 4), (1, 12, 2), (0, 4, 0)])
def test_a_valid_output_is_the_centre_of_its_input(closed, reach, grid):
    """Also seen through the skips alone: with the up-convolution to a level closed."""
    model = segzoo.get("unet", padding="VALID", depth=2, width=1, num_classes=1, dropout=0.0)
    size = model.input_size((12, 12))
    image = jnp.ones((1, *size, 1))
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    positive = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # no ReLU closes
    if closed is not None:
        kernel = positive["params"][f"upsample{closed}"]["kernel"]
        positive["params"][f"upsample{closed}"]["kernel"] = jnp.zeros_like(kernel)

    @jax.jit
    def seen(pixel):
        logit = lambda x: model.apply(positive, x)[0, pixel, pixel, 0]  # noqa: E731
        return jax.grad(logit)(image)[0, :, :, 0] > 0

    margin = (size[0] - jax.eval_shape(model.apply, positive, image).shape[1]) / 2
    for pixel in (0, 5, 11):
        rows, columns = np.nonzero(seen(pixel))
        np.testing.assert_array_equal(np.unique(rows), np.unique(columns))
        before, after = pixel + margin - rows.min(), rows.max() - (pixel + margin)
        # Equally far to both sides, up to where the pixel lies in the pooling grid.
        assert abs(before - reach) <= grid, (before, after)
        assert abs(after - reach) <= grid, (before, after)


@pytest.mark.parametrize(
    "variant", [("unet_context", 4), ("unet_standard", 3), ("unet_precision", 2)]
)
def test_named_depths(variant):
    name, depth = variant
    named = segzoo.get(name, width=4, norm="group")
    assert named == segzoo.get("unet", depth=depth, width=4, norm="group")
    with pytest.raises(SegzooError, match="no override 'depth'"):
        segzoo.get(name, depth=1)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (19, 16)])
def test_any_size(filled, size):
    model = segzoo.get("unet", width=2, num_classes=3)
    image = random(1, *size, 3)
    logits = jax.jit(model.apply)(filled(model, image.shape), image)
    assert logits.shape == (1, *size, 3)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"norm": "batch", "upsample": "bilinear"},
        {"norm": "group", "spatial_dims": 3},
    ],
    ids=str,
)
def test_gradients_reach_every_parameter(filled, assert_all_learn, overrides):
    model = segzoo.get("unet", width=4, depth=1, num_classes=3, dropout=0.2, **overrides)
    image = random(2, *(9, 12, 10)[: model.spatial_dims], 2)
    variables = filled(model, image.shape)

    @jax.jit
    def gradient(params):
        def loss(params):
            logits, _ = model.apply(
                {**variables, "params": params},
                image,
                train=True,
                rngs={"dropout": jax.random.key(0)},
                mutable=["batch_stats"],
            )
            return jnp.sum(jnp.sin(logits))

        return jax.grad(loss)(params)

    assert_all_learn(gradient(variables["params"]))


def test_batch_statistics_move_in_training_alone(filled):
    model = segzoo.get("unet", width=2, depth=1, norm="batch", dropout=0.0)
    image = 3 + random(2, 8, 8, 1)
    variables = filled(model, image.shape)

    @functools.partial(jax.jit, static_argnums=0)
    def after(train):
        updates = model.apply(variables, image, train=train, mutable=["batch_stats"])[1]
        return updates["batch_stats"]

    jax.tree.map(np.testing.assert_array_equal, after(False), variables["batch_stats"])
    for old, new in zip(
        jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(after(True)), strict=True
    ):
        assert np.all(old != new)


def test_drop_out_ends_the_contracting_path(filled):
    model = segzoo.get("unet", width=4, depth=1, dropout=0.5)
    image = random(1, 8, 8, 1)
    variables = filled(model, image.shape)
    run = jax.jit(
        lambda key: model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(key)})
    )
    assert np.any(run(0) != run(1))
    np.testing.assert_array_equal(run(0), run(0))
    evaluate = jax.jit(model.apply)  # without any rng
    assert np.isfinite(evaluate(variables, image)).all()


def test_bfloat16_computes_near_float32(filled):
    image = random(1, 16, 16, 3)
    exact = segzoo.get("unet", width=8, depth=2)
    half = segzoo.get("unet", width=8, depth=2, dtype="bfloat16")
    variables = filled(half, image.shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    logits = jax.jit(half.apply)(variables, image)
    assert logits.dtype == jnp.float32
    reference = jax.jit(exact.apply)(variables, image)
    assert 0 < np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"padding": "same"}, "padding is 'same'; expected one of 'SAME', 'VALID'"),
        ({"norm": "layer"}, "norm is 'layer'; expected one of 'none', 'batch', 'group'"),
        ({"upsample": "cubic"}, "upsample is 'cubic'"),
        ({"spatial_dims": 1}, "spatial_dims is 1; expected one of 2, 3"),
        ({"depth": 0}, "depth is 0; expected an integer of at least 1"),
        ({"width": 2.5}, "width is 2.5"),
        ({"dropout": 1.0}, "dropout is 1.0; expected a number of at least 0 and below 1"),
        ({"dtype": "float7"}, "dtype is 'float7'; expected a floating type"),
        ({"dtype": "int32"}, "dtype is 'int32'; expected a floating type"),
    ],
)
def test_impossible_overrides(override, message):
    with pytest.raises(SegzooError, match=message):
        segzoo.get("unet", **override)


@pytest.mark.parametrize("shape", [(8, 8, 3), (1, 8, 8, 8, 3), (1, 0, 8, 3)])
def test_impossible_images(shape):
    with pytest.raises(SegzooError, match=r"expected \[B, H, W, C\]"):
        jax.eval_shape(segzoo.get("unet", width=1).init, jax.random.key(0), jnp.zeros(shape))


class TestRemat:
    x = random(2, 16, 16, 3)

    def pullback(self, remat):
        model = segzoo.get("unet", width=4, depth=2, norm="batch", remat=remat)
        variables = jax.eval_shape(model.init, jax.random.key(0), self.x)
        variables = jax.tree.map(lambda leaf: jnp.abs(random(*leaf.shape)), variables)

        def loss(params):
            held, rngs = {**variables, "params": params}, {"dropout": jax.random.key(1)}
            y, _ = model.apply(held, self.x, train=True, rngs=rngs, mutable=["batch_stats"])
            return jnp.sin(y).sum()

        return lambda params: jax.vjp(loss, params)[1], variables["params"]

    def test_remembers_less(self):
        kept = [
            sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(*self.pullback(remat))))
            for remat in (False, True)
        ]
        assert kept[1] < 0.7 * kept[0]

    def test_computes_the_same(self):
        found = []
        for remat in (False, True):
            pullback, params = self.pullback(remat)
            gradient = jax.jit(lambda params, pullback=pullback: pullback(params)(jnp.ones(())))
            found.append(jax.tree.leaves(gradient(params)))
        for plain, again in zip(*found, strict=True):
            np.testing.assert_allclose(plain, again, rtol=1e-3, atol=1e-3)

    def test_is_an_override(self):
        assert segzoo.get("unet", remat=True).remat
        assert segzoo.get("unet_standard", remat=True).remat
        with pytest.raises(SegzooError, match=r"remat is 1; expected True or False"):
            segzoo.get("unet", remat=1)
        with pytest.raises(SegzooError, match=r"remat is True; it cannot be combined"):
            segzoo.get("unet", backbone="resnet18", remat=True)
