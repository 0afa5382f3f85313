"""FCN: counts, the geometry of receptive fields, and growing a finer net from a coarser one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import segzoo
from segzoo import SegzooError
from segzoo.layers import bilinear_kernel, conv_transpose
from segzoo.models.fcn import Upsampling, from_coarser


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("fcn8s", 21, 134_489_759),
        ("fcn8s", 11, 134_348_929),
        ("fcn32s", 21, 136_152_917),
    ],
)
def test_parameters(count_parameters, name, classes, count):
    assert count_parameters(segzoo.get(name, num_classes=classes), (1, 32, 32, 3)) == count


@pytest.mark.parametrize("name", ["fcn32s", "fcn16s", "fcn8s"])
def test_any_size(name):
    model = segzoo.get(name, width=1, num_classes=1)
    for n in (1, 2, 3, 16, 31, 32, 33, 65, 256):
        image = jnp.zeros((1, n, 3 * n + 5, 3))
        logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
        assert logits.shape == (1, n, 3 * n + 5, 1)


# The image pixel at which the receptive field of score i is centred, for an image padded by 100.
CENTRES = {
    32: lambda i: 32 * i + 12.5,
    16: lambda i: 16 * i - 91.5,
    8: lambda i: 8 * i - 95.5,
}


@pytest.mark.parametrize(
    ("finest", "scored"), [(32, 32), (16, 32), (16, 16), (8, 32), (8, 16), (8, 8)]
)
def test_scores_reach_the_pixels_they_were_computed_for(finest, scored):
    n = 160
    rows = {32: 6, 16: 23, 8: 45}  # of each map, for an image of 160 pixels
    scores = {}
    for stride in (s for s in (32, 16, 8) if s >= finest):
        at = (
            CENTRES[stride](np.arange(rows[stride])) if stride == scored else np.zeros(rows[stride])
        )
        ramp = at[:, None] - 2 * at[None, :]
        scores[stride] = jnp.asarray(ramp[None, :, :, None], jnp.float32)
    module = Upsampling(1)
    run = jax.jit(lambda scores: module.init_with_output(jax.random.key(0), scores, (n, n))[0])
    logits = run(scores)[0, :, :, 0]
    pixel = np.arange(n)
    inside = slice(48, 112)
    expected = (pixel[:, None] - 2 * pixel[None, :])[inside, inside]
    np.testing.assert_allclose(logits[inside, inside], expected, atol=1e-3)


def test_the_field_of_view_is_centred_on_the_pixel():
    """The gradient of a score reaches equally far to both sides of its pixel."""
    model = segzoo.get("fcn32s", width=1, num_classes=1)
    shape = (1, 500, 8, 1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    positive = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # no ReLU closes

    def is_score(module, _):
        return module.name == "score_fr"

    @jax.jit
    def seen(image):
        def score(image):
            _, found = model.apply(positive, image, capture_intermediates=is_score)
            return found["intermediates"]["score_fr"]["__call__"][0][0, 7, 0, 0]

        return jax.grad(score)(image).sum((0, 2, 3)) > 0

    # Where brightness falls, every pool passes its first row; where it grows, its last.
    growing = jnp.broadcast_to(jnp.linspace(1, 2, 500)[:, None, None], shape)
    first = np.flatnonzero(seen(growing[:, ::-1])).min()
    last = np.flatnonzero(seen(growing)).max()
    assert last - first + 1 == 404  # the receptive field of the paper's Table 1
    assert (first + last) / 2 == CENTRES[32](7)


@pytest.fixture(scope="module")
def nets():
    return {s: segzoo.get(f"fcn{s}s", width=2, num_classes=3) for s in (32, 16, 8)}


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]


def score_of(model, params, image):
    @jax.jit
    def run(params):
        return model.apply(
            {"params": params}, image, capture_intermediates=lambda m, _: m.name == "score_fr"
        )

    _, found = run(params)
    return found["intermediates"]["score_fr"]["__call__"][0]


def test_a_finer_net_starts_with_the_coarser_ones_predictions(filled, nets):
    image = random(1, 40, 33, 3)
    coarse = filled(nets[32], image.shape)["params"]
    fine = from_coarser(shapes_of(nets[16]), coarse)
    logits = jax.jit(nets[16].apply)({"params": fine}, image)
    x = score_of(nets[32], coarse, image)
    for factor in (2, 16):
        kernel = bilinear_kernel(jax.random.key(0), (2 * factor, 2 * factor, 3, 3))
        x = conv_transpose(x, kernel, (factor, factor))
    np.testing.assert_allclose(logits, x[:, 27 : 27 + 40, 27 : 27 + 33], atol=1e-5)
    # The pool's own scores are there to be learnt.
    logit = lambda p: nets[16].apply({"params": p}, image)[0, 3, 5, 0]  # noqa: E731
    gradient = jax.jit(jax.grad(logit))(fine)
    assert np.any(gradient["score_pool4"]["kernel"] != 0)


def test_what_was_learnt_is_kept(filled, nets):
    coarse = filled(nets[16], (1, 32, 32, 3))["params"]
    fine = from_coarser(shapes_of(nets[8]), coarse)
    jax.tree.map(np.testing.assert_array_equal, fine["backbone"], coarse["backbone"])
    for name in ("fc6", "fc7", "score_fr", "score_pool4"):
        jax.tree.map(np.testing.assert_array_equal, fine[name], coarse[name])
    np.testing.assert_array_equal(
        fine["upsampling"]["upscore2"]["kernel"], coarse["upsampling"]["upscore2"]["kernel"]
    )
    assert not np.any(fine["score_pool3"]["kernel"])
    assert set(fine["upsampling"]) == {"upscore2", "upscore_pool4", "upscore8"}
    assert jax.tree.map(jnp.shape, fine) == jax.tree.map(jnp.shape, shapes_of(nets[8]))


def test_misfits_are_all_listed(filled, nets):
    other = segzoo.get("fcn32s", width=2, num_classes=5)
    coarse = dict(filled(other, (1, 32, 32, 3))["params"], extra={"kernel": jnp.ones(2)})
    del coarse["fc7"]
    with pytest.raises(SegzooError) as error:
        from_coarser(shapes_of(nets[16]), coarse)
    message = str(error.value)
    assert "score_fr/kernel (1, 1, 128, 5) (expected (1, 1, 128, 3))" in message
    assert "extra/kernel (2,) (unknown)" in message
    assert "fc7/conv/kernel (missing)" in message


def test_a_coarser_net_does_not_come_from_a_finer_one(filled, nets):
    fine = filled(nets[8], (1, 32, 32, 3))["params"]
    with pytest.raises(SegzooError, match=r"score_pool3/kernel \(1, 1, 8, 3\) \(unknown\)"):
        from_coarser(shapes_of(nets[16]), fine)


def test_score_layers_start_at_zero_and_up_convolutions_bilinear(nets):
    shapes = shapes_of(nets[8])
    assert {"score_fr", "score_pool4", "score_pool3"} <= set(shapes)
    model = segzoo.get("fcn8s", width=1, num_classes=2)

    @jax.jit
    def init(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)))["params"]
        return {k: v for k, v in params.items() if k.startswith(("score", "upsampling"))}

    params = init(jax.random.key(0))
    assert not any(np.any(params[name]["kernel"]) for name in params if name.startswith("score"))
    np.testing.assert_allclose(
        params["upsampling"]["upscore2"]["kernel"],
        bilinear_kernel(jax.random.key(0), (4, 4, 2, 2)),
    )


def test_gradients_reach_every_parameter_and_drop_out_acts(filled, assert_all_learn):
    model = segzoo.get("fcn8s", width=2, num_classes=3)
    image = random(2, 24, 20, 3)
    params = filled(model, image.shape)["params"]

    @jax.jit
    def run(params, key):
        def loss(params):
            logits = model.apply({"params": params}, image, train=True, rngs={"dropout": key})
            return jnp.sum(jnp.sin(logits))

        return jax.value_and_grad(loss)(params)

    loss, gradient = run(params, jax.random.key(0))
    assert_all_learn(gradient)
    assert loss != run(params, jax.random.key(1))[0]


def test_bfloat16_gives_float32_logits(nets, filled):
    model = segzoo.get("fcn16s", width=2, num_classes=3, dtype="bfloat16")
    image = random(1, 20, 20, 3)
    variables = filled(model, image.shape)
    logits = jax.jit(model.apply)(variables, image)
    assert logits.dtype == jnp.float32
    reference = jax.jit(nets[16].apply)(variables, image)
    assert 0 < np.abs(logits - reference).max() < 0.1 * np.abs(reference).max()


def test_on_vgg16_it_is_the_papers(nets):
    assert segzoo.get("fcn16s", backbone="vgg16", width=2, num_classes=3) == nets[16]
    assert segzoo.get("fcn8s", backbone="vgg16_bn") == segzoo.get("fcn8s", norm="batch")
    assert segzoo.get("fcn8s", backbone="resnet18", norm="group").backbone.norm == "group"
    other = segzoo.get("fcn16s", backbone="vgg19_bn", width=2)
    assert (other.backbone.depth, other.backbone.norm) == (19, "batch")
    assert other.backbone.first_padding == 100


@pytest.mark.parametrize("strides", [(32,), (32, 16), (32, 16, 8), (4,)])
def test_without_a_border_scores_are_interpolated_where_they_lie(strides):
    """Maps that are ramps over the image are summed up to the ramp, away from the borders."""
    size = (160, 128)
    centres = {s: [s * np.arange(n // s) + (s - 1) / 2 for n in size] for s in strides}
    ramps = {s: rows[:, None] - 2 * columns for s, (rows, columns) in centres.items()}
    scores = {s: jnp.asarray(ramp[None, :, :, None], jnp.float32) for s, ramp in ramps.items()}
    module = Upsampling(1, border=False)
    run = jax.jit(lambda scores: module.init_with_output(jax.random.key(0), scores, size)[0])
    logits = run(scores)[0, :, :, 0]
    expected = len(strides) * (np.arange(160)[:, None] - 2 * np.arange(128))
    inside = (slice(48, 112), slice(48, 80))
    np.testing.assert_allclose(logits[inside], expected[inside], atol=1e-3)


def test_a_finer_net_on_another_encoder_starts_with_the_coarser_ones_predictions(filled):
    coarse, fine = (
        segzoo.get(name, backbone="alexnet", width=4, num_classes=3) for name in ("fcn32s", "fcn8s")
    )
    image = random(1, 64, 96, 3)
    learnt = filled(coarse, image.shape)["params"]
    params = from_coarser(shapes_of(fine), learnt)
    assert set(params["upsampling"]) == {"upscore2", "upscore_pool4", "upscore8"}
    assert not np.any(params["score_pool4"]["kernel"])
    jax.tree.map(np.testing.assert_array_equal, params["backbone"], learnt["backbone"])
    logits = jax.jit(fine.apply)({"params": params}, image)
    scores = {
        32: score_of(coarse, learnt, image),
        16: jnp.zeros((1, 3, 5, 3)),
        8: jnp.zeros((1, 7, 11, 3)),
    }
    up = Upsampling(3, border=False)
    expected = jax.jit(lambda s: up.apply({"params": params["upsampling"]}, s, (64, 96)))(scores)
    assert np.any(expected != 0)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_an_encoder_of_a_finer_stride_is_scored_there():
    params = shapes_of(segzoo.get("fcn16s", backbone="lenet5"))
    assert set(params) == {"backbone", "score_fr", "upsampling"}
    assert set(params["upsampling"]) == {"upscore4"}
