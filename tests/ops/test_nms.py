"""Non-maximum suppression against the loop of the textbook."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segzoo.ops import nms as module

nms = jax.jit(module.nms, static_argnums=3)


def every_iou(boxes):
    first, last = boxes[:, None, :2], boxes[:, None, 2:]
    shared = np.minimum(last, boxes[:, 2:]) - np.maximum(first, boxes[:, :2])
    common = np.prod(np.maximum(shared, 0), axis=-1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=-1)
    union = areas[:, None] + areas - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def textbook(boxes, scores, threshold, limit, classes=None, valid=None):
    over = every_iou(boxes) > threshold
    if classes is not None:
        over &= classes[:, None] == classes
    taken = []
    for i in np.argsort(-scores, kind="stable"):
        there = valid is None or valid[i]
        if there and len(taken) < limit and not over[i, taken].any():
            taken.append(i)
    return taken


def crowded(rng, number, side=30):
    # Whole numbers: every IoU is the same in float32 and float64 up to the last digit or so.
    corner = rng.integers(0, side, size=(number, 2))
    return np.concatenate([corner, corner + rng.integers(0, 12, size=(number, 2))], axis=1).astype(
        np.float32
    )


def check(boxes, scores, threshold, limit, classes, valid):
    index, kept = nms(boxes, scores, threshold, limit, classes=classes, valid=valid)
    assert index.dtype == jnp.int32
    assert index.shape == kept.shape == (limit,)
    expected = textbook(boxes, scores, threshold, limit, classes, valid)
    assert np.asarray(index)[np.asarray(kept)].tolist() == expected
    assert not np.any(np.asarray(index)[~np.asarray(kept)])
    assert kept[: len(expected)].all()


@pytest.mark.parametrize("number", [1, 7, 600])  # less than a block, and several with a remainder
@pytest.mark.parametrize("limit", [20, 700])
def test_it_takes_what_the_textbook_takes(number, limit):
    rng = np.random.default_rng(number)
    for threshold in (0.0, 0.45, 1.0):
        scores = rng.integers(0, 50, size=number).astype(np.float32) / 50  # many are equal
        classes = rng.integers(0, 3, size=number)
        valid = rng.random(number) < 0.8
        check(crowded(rng, number), scores, threshold, limit, classes, valid)


def test_long_chains_within_a_block():
    # Each box overlaps with its neighbours alone: every other one stays.
    start = np.arange(200, dtype=np.float32)
    boxes = np.stack([start, start * 0, start + 2, start * 0 + 1], axis=1)
    index, kept = nms(jnp.asarray(boxes), jnp.asarray(-start), 0.3, 150)
    assert kept.sum() == 100
    assert index[:100].tolist() == list(range(0, 200, 2))


def test_the_threshold_itself_is_allowed():
    boxes = jnp.asarray([[0.0, 0.0, 1.0, 4.0], [0.0, 0.0, 1.0, 2.0], [0.0, 0.0, 1.0, 3.0]])
    scores = jnp.asarray([3.0, 2.0, 1.0])
    assert nms(boxes, scores, 0.5, 3)[1].tolist() == [True, True, False]


def test_a_block_more_or_less_changes_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    boxes, scores = jnp.asarray(crowded(rng, 90)), jnp.asarray(rng.random(90), jnp.float32)
    expected = nms(boxes, scores, 0.3, 40)
    monkeypatch.setattr(module, "BLOCK", 7)
    found = module.nms(boxes, scores, 0.3, 40)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def test_images_of_a_batch_do_not_see_each_other():
    rng = np.random.default_rng(6)
    boxes = np.stack([crowded(rng, 300) for _ in range(3)])
    scores = rng.random((3, 300)).astype(np.float32)
    index, kept = jax.jit(jax.vmap(lambda b, s: nms(b, s, 0.3, 50)))(boxes, scores)
    for i in range(3):
        expected = textbook(boxes[i], scores[i], 0.3, 50)
        assert np.asarray(index[i])[np.asarray(kept[i])].tolist() == expected


def test_nothing_to_take():
    boxes = jnp.zeros((4, 4))
    nothing = jnp.zeros(4, bool)
    for valid, scores in ((nothing, jnp.ones(4)), (None, jnp.full(4, jnp.nan))):
        index, kept = nms(boxes, scores, 0.5, 3, valid=valid)
        assert index.tolist() == [0, 0, 0]
        assert not kept.any()
    index, kept = nms(jnp.zeros((0, 4)), jnp.zeros(0), 0.5, 3)
    assert not kept.any()


def test_the_lowest_scores_there_are_come_before_those_that_are_not():
    boxes = jnp.asarray([[0.0, 0, 1, 1], [2, 2, 3, 3], [4, 4, 5, 5]])
    scores = jnp.asarray([5.0, -jnp.inf, 1.0])
    index, kept = nms(boxes, scores, 0.5, 3, valid=jnp.asarray([False, True, True]))
    assert index[kept].tolist() == [2, 1]


def test_no_gradient_passes():
    boxes = jnp.asarray(crowded(np.random.default_rng(7), 20))

    def function(boxes):
        index, kept = nms(boxes, jnp.sum(boxes, axis=1), 0.5, 5)
        return jnp.sum(jnp.where(kept[:, None], boxes[index], 0.0))

    gradient = jax.jit(jax.grad(function))(boxes)
    assert set(np.unique(gradient)) == {0.0, 1.0}
