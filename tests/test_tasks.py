import jax.numpy as jnp
import numpy as np
import pytest

from segzoo import tasks
from segzoo.errors import SegzooError
from segzoo.losses import Loss

RNG = np.random.default_rng(0)


def test_semantic_scores_come_from_the_tally():
    task = tasks.for_dataset("semantic", 3)
    label = RNG.integers(0, 3, (2, 8, 8)).astype(np.uint8)
    label[0, 0] = 255
    logits = jnp.asarray(np.eye(3, dtype=np.float32)[np.where(label == 255, 0, label)]) * 9
    tally = np.asarray(task.tally(logits, {"label": label}))
    assert tally.sum() == (label != 255).sum()
    scores = task.scores(tally, ("a", "b", "c"))
    assert scores["miou"] == scores["pixel_accuracy"] == 1.0
    assert "confusion matrix" in scores["definition"]
    total, count = task.loss(logits, {"label": label}, Loss(), None)
    assert count == (label != 255).sum()
    assert total / count < 0.01


def test_labels_and_weights_are_cut_to_what_a_valid_model_covers():
    task = tasks.for_dataset("semantic", 2)
    label = RNG.integers(0, 2, (1, 10, 12)).astype(np.uint8)
    weight = RNG.uniform(size=(1, 10, 12)).astype(np.float32)
    logits = jnp.asarray(RNG.normal(size=(1, 6, 6, 2)), jnp.float32)
    inner = (slice(None), slice(2, 8), slice(3, 9))
    whole = {"label": label, "weight": weight}
    cut = {"label": label[inner], "weight": weight[inner]}
    assert task.loss(logits, whole, Loss(), None) == task.loss(logits, cut, Loss(), None)
    np.testing.assert_array_equal(task.tally(logits, whole), task.tally(logits, cut))


def test_one_logit_tells_two_classes_apart():
    task = tasks.for_dataset("semantic", 2)
    logits = jnp.asarray([[[[-2.0], [3.0]]]])
    tally = task.tally(logits, {"label": jnp.asarray([[[0, 1]]], jnp.uint8)})
    assert tally.tolist() == [[1, 0], [0, 1]]


def test_classification_counts_images():
    task = tasks.for_dataset("classification", 3)
    logits = jnp.eye(3)[jnp.asarray([0, 2, 1, 1])] * 9
    label = jnp.asarray([0, 2, 2, -1], jnp.int32)  # the last is no image
    tally = np.asarray(task.tally(logits, {"label": label}))
    assert tally.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 1]]
    scores = task.scores(tally, ("a", "b", "c"))
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["error"] == pytest.approx(1 / 3)
    assert task.loss(logits, {"label": label}, Loss(), None)[1] == 3


def test_a_task_that_cannot_be_trained_is_said():
    with pytest.raises(SegzooError, match="the task to train is 'panoptic'; expected one of"):
        tasks.for_dataset("panoptic", 3)
