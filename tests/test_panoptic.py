"""Panoptic quality against values worked out by hand."""

import numpy as np
import pytest

from segzoo import panoptic


def strips(*lengths):
    """A map of one row: so many pixels of object 1, of object 2, and so on; 0 is background."""
    return np.concatenate([np.full(n, number) for number, n in lengths])[None]


def count(truth, found, classes=(1,), found_classes=(1,), crowd=None, num_classes=3):
    crowd = [False] * len(classes) if crowd is None else crowd
    classes, found_classes = np.asarray(classes, np.int32), np.asarray(found_classes, np.int32)
    arrays = (truth, classes, np.asarray(crowd, bool), found, found_classes)
    return panoptic.counts(*arrays, num_classes)


def test_one_match_one_miss_one_mistake():
    # Object 1: 10 pixels, 8 found and 2 beside it: 8 / 12. Object 2 is missed, segment 2 is wrong.
    truth = strips((1, 10), (0, 10), (2, 5), (0, 5))
    found = strips((0, 2), (1, 10), (0, 13), (2, 5))
    result = count(truth, found, (1, 1), (1, 1))
    np.testing.assert_allclose(result[1], [8 / 12, 1, 1, 1])
    scores = panoptic.scores(result)
    assert scores["sq"] == pytest.approx(8 / 12)
    assert scores["rq"] == pytest.approx(1 / (1 + 0.5 + 0.5))
    assert scores["pq"] == pytest.approx(1 / 3)


def test_half_is_no_match():
    result = count(strips((1, 10), (0, 5)), strips((1, 5), (0, 10)))
    assert result[1].tolist() == [0, 0, 1, 1]


def test_a_right_segment_of_the_wrong_class_is_a_miss_and_a_mistake():
    result = count(strips((1, 10)), strips((1, 10)), (1,), (2,))
    assert result[1].tolist() == [0, 0, 0, 1]
    assert result[2].tolist() == [0, 0, 1, 0]
    assert panoptic.scores(result) == {"pq": 0.0, "sq": 0.0, "rq": 0.0}


def test_classes_count_alike_and_images_add_up():
    right = count(strips((1, 10)), strips((1, 10)))
    wrong = count(strips((1, 10)), strips((0, 10)), (2,), ())
    assert panoptic.scores(right + wrong)["pq"] == pytest.approx(0.5)
    assert panoptic.scores(right)["pq"] == 1.0


def test_crowds_are_no_misses_and_what_lies_in_them_no_mistake():
    truth = strips((1, 20), (0, 10))
    inside, beyond = strips((1, 6), (0, 24)), strips((0, 15), (1, 10), (0, 5))
    assert count(truth, inside, crowd=[True])[1].tolist() == [0, 0, 0, 0]
    assert count(truth, beyond, crowd=[True])[1].tolist() == [0, 0, 1, 0]  # just half of it
    assert count(truth, inside, (2,), (1,), [True])[1].tolist() == [0, 0, 1, 0]


def test_nothing_there_and_nothing_found():
    nothing = count(strips((0, 5)), strips((0, 5)), (), ())
    assert panoptic.scores(nothing) == {"pq": None, "sq": None, "rq": None}
    assert panoptic.scores(None)["pq"] is None


def test_numbers_may_be_missing():
    result = count(strips((1, 4), (0, 4)), strips((2, 4), (0, 4)), (1,), (1, 1))
    assert result[1].tolist() == [1, 1, 0, 0]
