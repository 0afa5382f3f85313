"""The dense CRF against its equations, and against the authors' C++ code."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.errors import SegzooError
from segzoo.ops import dense_crf
from segzoo.ops.dense_crf import DenseCRF, mean_field
from segzoo.ops.gaussian import Exact, normalized

GOLDENS = Path(__file__).parents[1] / "goldens" / "dense_crf.npz"
SOFT = DenseCRF(iterations=3, appearance_width=10.0, appearance_color=20.0)
EXACT = dataclasses.replace(SOFT, method="exact")


def scene(size=(12, 10), channels=3, classes=3, seed=0):
    """Halves of different colour with noise, and noisy logits."""
    rng = np.random.default_rng(seed)
    place = np.indices(size).reshape(len(size), *size)
    right = place[-1] >= size[-1] // 2
    image = np.clip(80 + 90 * right[..., None] + rng.normal(0, 5, (*size, channels)), 0, 255)
    logits = np.eye(classes)[right.astype(int) % classes] + rng.normal(size=(*size, classes))
    return logits.astype(np.float32)[None], image.astype(np.uint8)[None]


@pytest.mark.parametrize("mode", ["symmetric", "before", "after", "none"])
@pytest.mark.parametrize("name", ["picture", "volume"])
def test_equals_the_authors_code(name, mode):
    golden = np.load(GOLDENS)
    weights = (0.02, 0.02) if mode == "none" else (3.0, 4.0)
    config = DenseCRF(10, weights[0], 3.0, weights[1], 20.0, 8.0, normalization=mode)
    marginals = dense_crf.dense_crf(
        golden[f"{name}_logits"][None], golden[f"{name}_image"][None], config
    )[0]
    expected = golden[f"{name}_{mode}"].astype(np.float32)
    assert (np.argmax(marginals, -1) == expected.argmax(-1)).mean() >= 0.995
    assert (expected.argmax(-1) != golden[f"{name}_logits"].argmax(-1)).mean() > 0.02
    np.testing.assert_allclose(marginals, expected, atol=2e-3)


@pytest.mark.parametrize("name", ["picture", "volume"])
def test_equals_the_authors_code_with_a_matrix(name):
    golden = np.load(GOLDENS)
    config = DenseCRF(appearance_width=20.0, appearance_color=8.0)
    marginals = dense_crf.dense_crf(
        golden[f"{name}_logits"][None],
        golden[f"{name}_image"][None],
        config,
        compatibility=golden[f"{name}_matrix"],
    )[0]
    np.testing.assert_allclose(
        marginals, golden[f"{name}_compatibility"].astype(np.float32), atol=2e-3
    )


@pytest.mark.parametrize("mode", ["symmetric", "before", "after", "none"])
def test_exact_is_the_equation(mode):
    logits, image = scene((5, 4))
    config = DenseCRF(2, 0.6, 2.0, 0.7, 6.0, 30.0, mode, "exact")
    place = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0), indexing="ij"), -1).reshape(-1, 2)
    color = image.reshape(-1, 3).astype(float)

    def square(x):
        return ((x[:, None] - x[None]) ** 2).sum(-1)

    matrices = []
    for k in (
        np.exp(-square(place) / (2 * 2.0**2)),
        np.exp(-square(place) / (2 * 6.0**2) - square(color) / (2 * 30.0**2)),
    ):
        n = k.sum(1)
        matrices.append(
            {
                "symmetric": k / np.sqrt(n[:, None] * n[None]),
                "before": k / n[None],
                "after": k / n[:, None],
                "none": k,
            }[mode]
        )
    unary = logits.reshape(-1, 3).astype(float)
    mu = 1 - np.eye(3)
    q = np.exp(unary) / np.exp(unary).sum(1, keepdims=True)
    for _ in range(2):
        energy = -unary + (0.6 * matrices[0] @ q + 0.7 * matrices[1] @ q) @ mu.T
        q = np.exp(-energy) / np.exp(-energy).sum(1, keepdims=True)
    for compatibility in (None, mu):
        got = dense_crf.dense_crf(logits, image, config, compatibility=compatibility)
        np.testing.assert_allclose(got[0].reshape(-1, 3), q, atol=1e-5)


@pytest.mark.parametrize(("size", "channels"), [((12, 10), 3), ((5, 6, 7), 1), ((1, 30), 3)])
def test_lattice_is_near_the_exact_form(size, channels):
    logits, image = scene(size, channels)
    got, expected = (dense_crf.dense_crf(logits, image, c) for c in (SOFT, EXACT))
    assert np.abs(expected - jax.nn.softmax(logits)).max() > 0.2
    np.testing.assert_allclose(got, expected, atol=0.12)
    assert float(jnp.abs(got - expected).mean()) < 0.02
    np.testing.assert_allclose(got.sum(-1), 1, atol=1e-5)


def test_constant_image_is_plain_smoothing():
    logits, image = scene()
    flat = np.full_like(image, 77)
    got = dense_crf.dense_crf(logits, flat, dataclasses.replace(EXACT, smoothness_weight=0.0))
    smooth = dataclasses.replace(
        EXACT, appearance_weight=0.0, smoothness_weight=4.0, smoothness_width=10.0
    )
    np.testing.assert_allclose(got, dense_crf.dense_crf(logits, image, smooth), atol=1e-5)


def test_appearance_keeps_edges_that_smoothness_blurs():
    logits, image = scene((16, 16), classes=2)
    truth = np.arange(16) >= 8
    sharp = dense_crf.dense_crf(logits, image, dataclasses.replace(SOFT, appearance_weight=10.0))
    np.testing.assert_array_equal(np.argmax(sharp[0], -1), np.broadcast_to(truth, (16, 16)))


def test_classes_may_change_places():
    logits, image = scene(classes=5)
    order = np.array([3, 0, 4, 1, 2])
    got = dense_crf.dense_crf(logits[..., order], image, SOFT)
    np.testing.assert_allclose(got, dense_crf.dense_crf(logits, image, SOFT)[..., order], atol=1e-5)


def test_mirrored_image_gives_mirrored_marginals():
    logits, image = scene()
    got = dense_crf.dense_crf(logits[:, :, ::-1], image[:, :, ::-1], EXACT)
    np.testing.assert_allclose(
        got[:, :, ::-1], dense_crf.dense_crf(logits, image, EXACT), atol=1e-5
    )


def test_one_logit_is_two_classes():
    logits, image = scene(classes=2)
    single = logits[..., 1:] - logits[..., :1]
    got = dense_crf.dense_crf(single, image, SOFT)
    assert got.shape == single.shape
    np.testing.assert_allclose(got, dense_crf.dense_crf(logits, image, SOFT)[..., 1:], atol=1e-5)


def test_batch_is_image_by_image_traced_or_not():
    pairs = [scene(seed=seed) for seed in (1, 2)]
    logits, image = (np.concatenate(arrays) for arrays in zip(*pairs, strict=True))
    whole = dense_crf.dense_crf(logits, image, SOFT)
    single = [dense_crf.dense_crf(*pair, SOFT) for pair in pairs]
    np.testing.assert_allclose(whole, np.concatenate(single), atol=1e-6)
    run = jax.jit(lambda logits, image: dense_crf.dense_crf(logits, image, SOFT, capacity=600))
    np.testing.assert_allclose(run(logits, image), whole, atol=1e-5)
    run(logits + 1, image[::-1])
    assert run._cache_size() == 1

    def one(logits, image):
        return dense_crf.dense_crf(logits[None], image[None], SOFT, capacity=600)[0]

    np.testing.assert_allclose(jax.vmap(one)(logits, image), whole, atol=1e-5)


def test_sizes_are_rounded_up_to_few():
    sizes = np.arange(1, 5000)
    rounded = np.array([dense_crf.padded(int(size)) for size in sizes])
    assert (rounded >= sizes).all()
    assert (rounded <= sizes * (1 + 1 / 32) + 1).all()
    assert len(np.unique(rounded)) < 350


def test_images_of_one_size_share_a_program():
    before = dense_crf._infer._cache_size()
    for seed in (1, 2, 3):
        dense_crf.dense_crf(*scene((9, 9), seed=seed), SOFT)
        dense_crf.dense_crf(
            *scene((9, 9), seed=seed), dataclasses.replace(SOFT, appearance_weight=5.0)
        )
    assert dense_crf._infer._cache_size() - before <= 2  # rounded capacities


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_cast(dtype):
    logits, image = scene()
    half = jnp.asarray(logits, dtype)
    got = dense_crf.dense_crf(half, jnp.asarray(image, jnp.float32), SOFT)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(
        got, dense_crf.dense_crf(half.astype(jnp.float32), image, SOFT), atol=1e-6
    )


def test_no_iterations_or_no_kernels_are_the_softmax():
    logits, image = scene()
    for config in (
        dataclasses.replace(SOFT, iterations=0),
        dataclasses.replace(SOFT, smoothness_weight=0.0, appearance_weight=0.0),
    ):
        got = dense_crf.dense_crf(logits, image, config)
        np.testing.assert_allclose(got, jax.nn.softmax(logits), atol=1e-6)


@pytest.mark.slow
def test_gradients_are_those_of_finite_differences():
    """With respect to logits, weights and compatibilities; the lattice is not symmetric here."""
    with jax.default_matmul_precision("highest"):
        logits, image = scene((5, 4))
        flat = jnp.asarray(logits.reshape(-1, 3))
        kernels = dense_crf.kernels(
            jnp.asarray(image[0]), dataclasses.replace(SOFT, normalization="after")
        )
        weigh = jnp.asarray(np.random.default_rng(3).normal(size=flat.shape), jnp.float32)
        mu = jnp.asarray(np.random.default_rng(4).uniform(0, 1, (3, 3)), jnp.float32)

        @jax.jit
        def loss(logits, weights, mu):
            return (weigh * jax.nn.softmax(mean_field(logits, kernels, weights, mu, 3))).sum()

        arguments = flat, [jnp.asarray([0.5, 1.0, 1.5]), jnp.asarray(2.0)], mu
        gradients = jax.grad(loss, argnums=(0, 1, 2))(*arguments)
        leaves, tree = jax.tree.flatten(arguments)
        for i, gradient in enumerate(jax.tree.leaves(gradients)):
            direction = np.random.default_rng(i).normal(size=leaves[i].shape).astype(np.float32)
            step = 1e-2

            def along(t, i=i, direction=direction):
                moved = [*leaves[:i], leaves[i] + t * direction, *leaves[i + 1 :]]
                return float(loss(*jax.tree.unflatten(tree, moved)))

            slope = (along(step) - along(-step)) / (2 * step)
            assert abs(slope) > 1e-3
            np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=0.02, atol=2e-3)


@pytest.mark.slow
def test_exact_and_lattice_give_like_gradients():
    logits, image = scene((6, 5))

    def loss(logits, config):
        return jnp.square(dense_crf.dense_crf(logits, image, config, capacity=200)[..., 0]).sum()

    got, expected = (jax.grad(loss)(jnp.asarray(logits), config) for config in (SOFT, EXACT))
    cosine = (got * expected).sum() / (jnp.linalg.norm(got) * jnp.linalg.norm(expected))
    assert cosine > 0.95


def test_overflow_is_never_silent():
    logits, image = scene()
    with pytest.raises(SegzooError, match=r"capacity is 5; the lattice of this image needs \d+"):
        dense_crf.dense_crf(logits, image, SOFT, capacity=5)
    traced = jax.jit(lambda x: dense_crf.dense_crf(x, image, SOFT, capacity=5))(logits)
    assert np.isnan(traced).all()


def test_normalised_rows_sum_to_one():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 2)), jnp.float32)
    ones = jnp.ones((50, 1))
    np.testing.assert_allclose(normalized(Exact(x), 50, "after")(ones), ones, atol=1e-5)
    matrix = normalized(Exact(x), 50, "symmetric")(jnp.eye(50))
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("iterations", -1),
        ("iterations", 2.0),
        ("smoothness_weight", -0.1),
        ("appearance_width", 0),
        ("appearance_color", float("nan")),
        ("smoothness_width", "wide"),
        ("normalization", "sideways"),
        ("method", "fast"),
    ],
)
def test_impossible_parameters(field, value):
    with pytest.raises(SegzooError, match=field):
        DenseCRF(**{field: value})


def test_shapes_that_do_not_fit():
    logits, image = scene()
    for bad in (
        lambda: dense_crf.dense_crf(logits[0], image[0, :5], SOFT),
        lambda: dense_crf.dense_crf(logits, image[:, 1:], SOFT),
        lambda: dense_crf.dense_crf(logits[:, :0], image[:, :0], SOFT),
        lambda: dense_crf.dense_crf(logits, image, SOFT, compatibility=np.eye(2)),
    ):
        with pytest.raises(SegzooError):
            bad()
