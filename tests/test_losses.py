"""Losses against formulas written out in NumPy, and what void, weights and bad labels do."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from jax.test_util import check_grads

from segzoo import losses
from segzoo.data.spec import VOID
from segzoo.errors import SegzooError
from segzoo.losses import Loss

cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
binary_cross_entropy = jax.jit(losses.binary_cross_entropy, static_argnames="label_smoothing")
dice = jax.jit(losses.dice, static_argnames="smooth")
focal = jax.jit(losses.focal, static_argnames=("gamma", "alpha"))
EVERY = {
    "cross_entropy": cross_entropy,
    "binary_cross_entropy": binary_cross_entropy,
    "dice": dice,
    "focal": focal,
}
every = pytest.mark.parametrize("function", EVERY.values(), ids=EVERY)


def make(shape, seed=0, void=0.2, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=shape, scale=scale).astype(np.float32)
    label = rng.integers(0, max(shape[-1], 2), shape[:-1]).astype(np.uint8)
    label[rng.random(label.shape) < void] = VOID
    return logits, label


@functools.cache
def graded(function):
    """((sum, count), gradient) of logits, label and weight, compiled once for all tests."""
    return jax.jit(jax.value_and_grad(lambda x, y, w: function(x, y, weight=w), has_aux=True))


def softmax(x):
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def check(result, total, count):
    assert [r.dtype for r in result] == [jnp.float32, jnp.float32]
    assert [r.shape for r in result] == [(), ()]
    np.testing.assert_allclose(result[0], total, rtol=2e-5, atol=1e-5)
    assert result[1] == count


@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (2, 3, 4, 2, 5), (6, 10)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs_formula(shape, smoothing):
    logits, label = make(shape)
    k = shape[-1]
    rng = np.random.default_rng(1)
    weight = rng.random(label.shape).astype(np.float32)
    class_weights = rng.random(k).astype(np.float32)
    total = 0.0
    log_p = np.log(softmax(logits))
    for at in np.argwhere(label != VOID):
        row, y = log_p[tuple(at)], label[tuple(at)]
        term = -(1 - smoothing) * class_weights[y] * row[y]
        term -= smoothing / k * (class_weights * row).sum()
        total += term * weight[tuple(at)]
    result = cross_entropy(
        logits, label, weight=weight, class_weights=class_weights, label_smoothing=smoothing
    )
    check(result, total, (label != VOID).sum())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_is_one_against_the_rest(smoothing):
    logits, label = make((2, 5, 4, 3))
    target = (label[..., None] == np.arange(3)) * (1 - smoothing) + smoothing / 2
    p = sigmoid(logits)
    term = -(target * np.log(p) + (1 - target) * np.log(1 - p)).mean(-1)
    result = binary_cross_entropy(logits, label, label_smoothing=smoothing)
    check(result, term[label != VOID].sum(), (label != VOID).sum())


@pytest.mark.parametrize("function", [cross_entropy, binary_cross_entropy, focal])
def test_one_logit_means_class_one(function):
    logits, label = make((3, 4, 4, 1))
    class_weights = np.float32([0.3, 2.0])
    p = sigmoid(logits[..., 0])
    p_y = np.where(label == 1, p, 1 - p)
    term = -np.log(p_y) * np.where(label == 1, 2.0, 0.3)
    if function is focal:
        term = term * (1 - p_y) ** 2
    result = function(logits, label, class_weights=class_weights)
    check(result, term[label != VOID].sum(), (label != VOID).sum())


@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_one_logit_equals_the_pair_of_logits(name):
    logits, label = make((3, 4, 4, 1))
    pair = np.concatenate([np.zeros_like(logits), logits], -1)
    np.testing.assert_allclose(EVERY[name](logits, label), EVERY[name](pair, label), rtol=1e-5)


def dice_reference(logits, label, smooth):
    p = sigmoid(logits) if logits.shape[-1] == 1 else softmax(logits)
    total = 0.0
    for p_image, l_image in zip(p, label, strict=True):
        valid = l_image != VOID
        scores = []
        for c in range(p.shape[-1]):
            truth = l_image[valid] == (1 if p.shape[-1] == 1 else c)
            prob = p_image[valid][..., c]
            if truth.any() or (p.shape[-1] == 1 and valid.any()):
                scores.append(
                    1 - (2 * prob[truth].sum() + smooth) / (prob.sum() + truth.sum() + smooth)
                )
        total += np.mean(scores) * valid.sum() if scores else 0.0
    return total


@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("smooth", [0.0, 1.0])
def test_dice_is_the_mean_over_images_of_the_mean_over_present_classes(k, smooth):
    logits, label = make((3, 6, 5, k), void=0.3)
    label[0][label[0] == 1] = 0  # class 1 is absent from the first image
    label[2] = VOID
    result = dice(logits, label, smooth=smooth)
    check(result, dice_reference(logits, label, smooth), (label != VOID).sum())


def test_dice_without_void_is_the_plain_mean_over_images():
    logits, label = make((4, 6, 5, 3), void=0.0)
    one_by_one = [losses.mean(*dice(logits[i : i + 1], label[i : i + 1])) for i in range(4)]
    np.testing.assert_allclose(losses.mean(*dice(logits, label)), np.mean(one_by_one), rtol=1e-5)


def test_dice_goes_from_one_to_zero():
    label = np.tile(np.arange(3, dtype=np.uint8), (1, 40, 1))
    right = 50.0 * np.eye(3, dtype=np.float32)[label]
    np.testing.assert_allclose(losses.mean(*dice(right, label)), 0.0, atol=1e-6)
    wrong = np.roll(right, 1, axis=-1)
    assert losses.mean(*dice(wrong, label)) > 0.95


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 5.0])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("alpha", [None, 0.25])
def test_focal_is_equation_five(gamma, k, alpha):
    logits, label = make((2, 5, 4, k))
    pair = np.concatenate([np.zeros_like(logits), logits], -1) if k == 1 else logits
    p = np.take_along_axis(softmax(pair), np.where(label == VOID, 0, label)[..., None], -1)[..., 0]
    factor = 1.0 if alpha is None else np.where(label == 0, 1 - alpha, alpha)
    term = -factor * (1 - p) ** gamma * np.log(p)
    result = focal(logits, label, gamma=gamma, alpha=alpha)
    check(result, term[label != VOID].sum(), (label != VOID).sum())


@every
@pytest.mark.parametrize("k", [1, 3])
def test_gradients_are_the_finite_differences(function, k):
    logits, label = make((2, 2, 3, k), scale=1.0)
    check_grads(
        lambda x: function(x, label)[0], (jnp.asarray(logits),), 1, ["rev"], atol=2e-2, rtol=2e-2
    )


@every
@pytest.mark.parametrize("k", [1, 3])
def test_void_counts_nothing_whatever_the_logits_there(function, k):
    logits, label = make((2, 4, 4, k))
    wild = logits.copy()
    wild[label == VOID] = np.inf
    wild[0][label[0] == VOID] = np.nan
    weight = np.where(label == VOID, np.nan, 1.0).astype(np.float32)
    (plain, plain_count), plain_grad = graded(function)(logits, label, np.ones_like(weight))
    (total, count), grad = graded(function)(wild, label, weight)
    assert total == plain
    assert count == plain_count == (label != VOID).sum()
    assert np.all(np.asarray(grad)[label == VOID] == 0.0)
    np.testing.assert_array_equal(grad, plain_grad)
    assert np.any(np.asarray(grad) != 0.0)


@every
@pytest.mark.parametrize("k", [1, 3])
def test_an_all_void_batch_is_a_finite_zero(function, k):
    logits = np.full((2, 4, 4, k), np.nan, np.float32)
    label = np.full((2, 4, 4), VOID, np.uint8)
    (total, count), grad = graded(function)(logits, label, np.ones(label.shape, np.float32))
    assert total == count == losses.mean(total, count) == 0.0
    np.testing.assert_array_equal(grad, np.zeros_like(grad))


@every
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_huge_logits_stay_finite(function, k, size):
    logits, label = make((2, 4, 4, k))
    for scaled in (size * np.sign(logits), size * logits):
        (total, _), grad = graded(function)(
            scaled.astype(np.float32), label, np.ones(label.shape, np.float32)
        )
        assert np.isfinite(total)
        assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("gamma", [0.3, 1.0])
@pytest.mark.parametrize("k", [1, 2])
def test_focal_gradient_is_finite_at_certainty(gamma, k):
    logits = jnp.full((1, 2, k), 200.0).at[..., 0].multiply(-1.0 if k == 2 else 1.0)
    label = jnp.ones((1, 2), jnp.uint8)
    grad = jax.jit(jax.grad(lambda x: focal(x, label, gamma=gamma)[0]))(logits)
    assert np.all(np.isfinite(grad))


def test_small_differences_of_large_logits_are_kept():
    logits = jnp.float32([[1e6, 1e6 + 1.0]])
    result = cross_entropy(logits, jnp.array([0]))
    check(result, np.log1p(np.exp(1.0)), 1)


@every
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("strange", [7, 254])
def test_a_label_that_is_no_class_shows_as_nan(function, k, strange):
    logits, label = make((2, 4, 4, k))
    label = label.astype(np.int32)
    label[1, 2, 3] = strange
    total, count = function(logits, label)
    assert np.isnan(total)
    assert count == (label != VOID).sum()


@every
@pytest.mark.parametrize("k", [1, 3])
def test_a_negative_label_is_void_like_255(function, k):
    logits, label = make((2, 4, 4, k))
    negative = np.where(label == VOID, -1, label.astype(np.int32))
    np.testing.assert_array_equal(function(logits, negative), function(logits, label))


def test_above_255_classes_255_is_a_class_and_void_is_negative():
    logits = np.random.default_rng(0).normal(size=(3, 1000)).astype(np.float32)
    label = np.int32([255, 999, -1])
    term = -np.log(softmax(logits))[[0, 1], [255, 999]]
    check(cross_entropy(logits, label), term.sum(), 2)


@every
def test_bfloat16_is_computed_in_float32(function):
    logits, label = make((2, 4, 4, 3))
    low = jnp.asarray(logits, jnp.bfloat16)
    np.testing.assert_array_equal(function(low, label), function(low.astype(jnp.float32), label))


@every
def test_unit_weights_change_nothing_and_zero_weights_keep_the_count(function):
    logits, label = make((2, 4, 4, 3))
    plain = function(logits, label)
    ones = function(logits, label, weight=np.ones(label.shape, np.float32))
    np.testing.assert_array_equal(plain, ones)
    if function is not dice:
        total, count = function(logits, label, weight=np.zeros(label.shape, np.float32))
        assert total == 0.0
        assert count == plain[1]


@every
def test_parts_of_a_batch_add_up(function):
    logits, label = make((4, 4, 4, 3), void=0.4)
    whole = np.array(function(logits, label))
    parts = sum(np.array(function(logits[i : i + 2], label[i : i + 2])) for i in (0, 2))
    np.testing.assert_allclose(parts, whole, rtol=1e-5)


@every
@pytest.mark.parametrize("k", [1, 4])
def test_classification_is_the_same_with_no_spatial_axes(function, k):
    logits, label = make((6, k), void=0.3)
    flat = function(logits, label)
    spatial = function(logits[:, None, None], label[:, None, None])
    np.testing.assert_allclose(flat, spatial, rtol=1e-6)


def test_loss_is_the_weighted_sum_of_its_terms():
    logits, label = make((2, 5, 5, 3))
    weight = np.random.default_rng(3).random(label.shape).astype(np.float32)
    factors = (0.5, 1.0, 2.0)
    loss = Loss(
        cross_entropy=1.0,
        binary_cross_entropy=0.5,
        dice=2.0,
        focal=0.25,
        class_weights=factors,
        label_smoothing=0.1,
        focal_gamma=1.0,
        focal_alpha=0.3,
        dice_smooth=0.5,
    )
    w = {"weight": weight, "class_weights": jnp.array(factors)}
    parts = [
        (1.0, cross_entropy(logits, label, label_smoothing=0.1, **w)),
        (0.5, binary_cross_entropy(logits, label, label_smoothing=0.1, **w)),
        (2.0, dice(logits, label, weight=weight, smooth=0.5)),
        (0.25, focal(logits, label, gamma=1.0, alpha=0.3, **w)),
    ]
    total, count = jax.jit(loss)(logits, label, weight)
    np.testing.assert_allclose(total, sum(f * part[0] for f, part in parts), rtol=1e-5)
    assert all(part[1] == count for _, part in parts)


def test_class_weights_of_the_data_count_only_when_asked_for():
    logits, label = make((2, 5, 5, 3))
    balance = np.float32([0.5, 1.0, 3.0])
    plain = Loss()(logits, label, class_weights=balance)
    np.testing.assert_array_equal(plain, cross_entropy(logits, label))
    balanced = Loss(class_weights="median_frequency")(logits, label, class_weights=balance)
    np.testing.assert_array_equal(balanced, cross_entropy(logits, label, class_weights=balance))
    with pytest.raises(SegzooError, match="came without"):
        Loss(class_weights="median_frequency")(logits, label)
    with pytest.raises(SegzooError, match="2 numbers; expected 3"):
        Loss(class_weights=(1.0, 2.0))(logits, label)


def test_shapes_that_do_not_belong_together_are_refused():
    logits, label = make((2, 5, 5, 3))
    with pytest.raises(SegzooError, match=r"\(2, 5, 5, 3\).*\(2, 5, 4\)"):
        Loss()(logits, label[:, :, :4])
    with pytest.raises(SegzooError, match="weights of shape"):
        Loss()(logits, label, weight=np.ones((2, 5), np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cross_entropy": 0.0}, "every term"),
        ({"dice": -1.0}, "loss.dice is -1.0"),
        ({"focal": float("nan")}, "loss.focal"),
        ({"label_smoothing": 1.5}, "loss.label_smoothing"),
        ({"focal_alpha": 2.0}, "loss.focal_alpha"),
        ({"focal_gamma": -0.5}, "loss.focal_gamma"),
        ({"auxiliary": float("inf")}, "loss.auxiliary"),
        ({"class_weights": "median"}, "loss.class_weights"),
        ({"class_weights": ()}, "loss.class_weights"),
        ({"class_weights": (1.0, -1.0)}, "loss.class_weights"),
        ({"class_weights": (0.0, 0.0)}, "loss.class_weights"),
    ],
)
def test_impossible_losses_are_refused(fields, message):
    with pytest.raises(SegzooError, match=message):
        Loss(**fields)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--dice", "1", "--cross-entropy", "0"], Loss(dice=1.0, cross_entropy=0.0)),
        (["--class-weights", "median_frequency"], Loss(class_weights="median_frequency")),
        (["--class-weights", "0.5", "1", "2"], Loss(class_weights=(0.5, 1.0, 2.0))),
        (["--focal-alpha", "0.25"], Loss(focal_alpha=0.25)),
    ],
)
def test_the_command_line_can_override_every_field(arguments, expected):
    assert tyro.cli(Loss, args=arguments) == expected
    assert dataclasses.replace(expected) == expected
    hash(expected)


def test_sums_over_devices_are_the_sums_of_one_batch():
    logits, label = make((4, 5, 5, 3), void=0.5)
    label[0] = VOID
    loss = Loss(dice=1.0, focal=0.5)

    def of_device(x, y):
        return jax.lax.psum(loss(x, y), "batch")

    mapped = jax.jit(jax.vmap(of_device, axis_name="batch"))(logits[:, None], label[:, None])
    np.testing.assert_allclose([m[0] for m in mapped], loss(logits, label), rtol=1e-5)
