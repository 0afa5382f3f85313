"""The confusion matrix and the scores, against scikit-learn and by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from segzoo import metrics
from segzoo.errors import SegzooError

VOID = 255


def names(k):
    return [f"class {i}" for i in range(k)]


def make(shape, k, seed=0, void=0.2):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, k, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.6, label, rng.integers(0, k, shape))
    label[rng.random(shape) < void] = VOID
    return prediction.astype(np.uint8), label


@pytest.mark.parametrize("shape", [(2, 7, 5), (2, 3, 4, 5), (40,)])
@pytest.mark.parametrize("k", [2, 5])
def test_matrix_and_scores_agree_with_scikit_learn(shape, k):
    prediction, label = make(shape, k)
    matrix = metrics.confusion_matrix(prediction, label, k)
    assert matrix.dtype == jnp.int32
    truth, guess = label[label != VOID], prediction[label != VOID]
    expected = sklearn_metrics.confusion_matrix(truth, guess, labels=range(k))
    np.testing.assert_array_equal(matrix, expected)
    result = metrics.scores(np.asarray(matrix), names(k))
    iou = sklearn_metrics.jaccard_score(truth, guess, average=None, labels=range(k))
    f1 = sklearn_metrics.f1_score(truth, guess, average=None, labels=range(k))
    recall = sklearn_metrics.recall_score(truth, guess, average=None, labels=range(k))
    np.testing.assert_allclose(list(result["iou"].values()), iou)
    np.testing.assert_allclose(list(result["dice"].values()), f1)
    np.testing.assert_allclose(list(result["accuracy"].values()), recall)
    assert result["miou"] == pytest.approx(iou.mean())
    assert result["mean_dice"] == pytest.approx(f1.mean())
    assert result["pixel_accuracy"] == pytest.approx((truth == guess).mean())
    assert result["class_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, guess)
    )
    weighted = sklearn_metrics.jaccard_score(truth, guess, average="weighted", labels=range(k))
    assert result["fw_iou"] == pytest.approx(weighted)
    assert result["pixels"] == truth.size
    assert list(result["iou"]) == names(k)


def test_rows_are_the_truth():
    matrix = metrics.confusion_matrix(jnp.array([2, 2, 0]), jnp.array([1, 1, 0]), 3)
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 2], [0, 0, 0]])


def test_absent_classes_are_none_and_only_predicted_ones_are_zero():
    # Truth: classes 0 and 1. Prediction: classes 0 and 2. Class 3 occurs nowhere.
    label = np.uint8([0, 0, 1, 1])
    prediction = np.uint8([0, 0, 2, 0])
    result = metrics.scores(np.asarray(metrics.confusion_matrix(prediction, label, 4)), "abcd")
    assert result["iou"] == {"a": 2 / 3, "b": 0.0, "c": 0.0, "d": None}
    assert result["miou"] == pytest.approx((2 / 3 + 0 + 0) / 3)
    assert result["accuracy"] == {"a": 1.0, "b": 0.0, "c": None, "d": None}
    assert result["class_accuracy"] == 0.5
    assert result["dice"] == {"a": 4 / 5, "b": 0.0, "c": 0.0, "d": None}
    assert result["fw_iou"] == pytest.approx(0.5 * 2 / 3)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_nothing_but_void_scores_none():
    label = np.full((2, 3), VOID, np.uint8)
    matrix = np.asarray(metrics.confusion_matrix(np.zeros_like(label), label, 3))
    assert matrix.sum() == 0
    result = metrics.scores(matrix, names(3))
    for key in ("miou", "pixel_accuracy", "class_accuracy", "mean_dice", "fw_iou"):
        assert result[key] is None
    assert set(result["iou"].values()) == {None}
    assert metrics.classification_scores(matrix)["error"] is None


def test_a_perfect_prediction_scores_one():
    _, label = make((3, 8, 8), 4, void=0.0)
    result = metrics.scores(np.asarray(metrics.confusion_matrix(label, label, 4)), names(4))
    for key in ("miou", "pixel_accuracy", "class_accuracy", "mean_dice", "fw_iou"):
        assert result[key] == 1.0


def test_parts_sum_to_the_whole_under_jit_and_vmap():
    prediction, label = make((6, 9, 7), 5)
    tally = jax.jit(metrics.confusion_matrix, static_argnums=2)
    whole = tally(prediction, label, 5)
    parts = sum(tally(prediction[i : i + 2], label[i : i + 2], 5) for i in range(0, 6, 2))
    mapped = jax.vmap(lambda p, y: metrics.confusion_matrix(p, y, 5))(prediction, label)
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(mapped.sum(0), whole)


@pytest.mark.parametrize("strange", [-1, 3, 250, 10_000])
def test_ids_that_are_no_class_are_not_counted(strange):
    label = np.array([0, 1, strange, 2])
    guess = np.array([0, 1, 1, strange])
    matrix = np.asarray(metrics.confusion_matrix(guess, label, 3))
    np.testing.assert_array_equal(matrix, np.diag([1, 1, 0]))


def test_counts_are_exact_where_float32_stops():
    size = 2**24 + 3
    label = jnp.zeros(size, jnp.uint8)
    assert metrics.confusion_matrix(label, label, 2)[0, 0] == size
    matrix = np.array([[2**40 + 1, 1], [0, 2**40]])
    assert metrics.scores(matrix, ("a", "b"))["pixels"] == 2**41 + 2


def test_one_logit_is_two_classes():
    logits = jnp.array([[-1.0], [0.0], [0.1], [5.0]])
    prediction = metrics.predict_classes(logits)
    assert prediction.dtype == jnp.uint8
    np.testing.assert_array_equal(prediction, [0, 0, 1, 1])
    matrix = metrics.confusion_matrix(prediction, jnp.array([0, 1, 1, VOID]), 1)
    np.testing.assert_array_equal(matrix, [[1, 0], [1, 1]])


@pytest.mark.parametrize(("k", "dtype"), [(2, jnp.uint8), (256, jnp.uint8), (300, jnp.int32)])
def test_prediction_is_the_largest_logit(k, dtype):
    logits = np.random.default_rng(0).normal(size=(2, 4, 3, k)).astype(np.float32)
    prediction = metrics.predict_classes(logits)
    assert prediction.dtype == dtype
    np.testing.assert_array_equal(prediction, logits.argmax(-1))


def test_above_255_classes_255_is_a_class():
    label = jnp.array([255, 999, -1], jnp.int32)
    matrix = metrics.confusion_matrix(label, label, 1000)
    assert matrix[255, 255] == matrix[999, 999] == 1
    assert matrix.sum() == 2


def test_classification_scores():
    prediction, label = make((200,), 4)
    truth, guess = label[label != VOID], prediction[label != VOID]
    result = metrics.classification_scores(
        np.asarray(metrics.confusion_matrix(prediction, label, 4))
    )
    assert result["images"] == truth.size
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(truth, guess))
    assert result["error"] == pytest.approx(sklearn_metrics.zero_one_loss(truth, guess))
    assert result["class_accuracy"] == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(truth, guess)
    )
    json.dumps(result, allow_nan=False)


def test_what_does_not_belong_together_is_refused():
    with pytest.raises(SegzooError, match=r"\(2, 3\).*\(3, 2\)"):
        metrics.confusion_matrix(np.zeros((2, 3), int), np.zeros((3, 2), int), 2)
    for class_names in (["a"], ["a", "a"], ["a", "b", "c"]):
        with pytest.raises(SegzooError, match="class names"):
            metrics.scores(np.eye(2, dtype=int), class_names)
    with pytest.raises(SegzooError, match=r"shape \(2, 3\)"):
        metrics.scores(np.zeros((2, 3), int), ["a", "b"])
