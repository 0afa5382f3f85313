"""Frequencies, weights, mean and std, worked out by hand."""

import numpy as np
import pytest

from segzoo.data import statistics
from segzoo.errors import SegzooError


class Sized:
    """A source of objects that counts what is asked of it."""

    def __init__(self, facts):
        self.facts, self.asked = facts, 0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        self.asked += 1
        return {"classes": np.ones(index, np.int32)}

    def image_shape(self, index):
        self.asked += 1
        return (4 + index // 2, 6, 3)


def test_shapes_and_objects_are_measured_once(tmp_path):
    source = Sized(tmp_path)
    assert statistics.shape_of_each(source).tolist() == [[4, 6, 3], [4, 6, 3], [5, 6, 3]]
    assert statistics.image_shapes(source) == {(4, 6, 3), (5, 6, 3)}
    assert statistics.object_counts(source).tolist() == [0, 1, 2]
    assert source.asked == 6
    again = Sized(tmp_path)
    assert statistics.image_shapes(again) == {(4, 6, 3), (5, 6, 3)}
    assert statistics.object_counts(again).tolist() == [0, 1, 2]
    assert again.asked == 0
    assert statistics.shape_of_each(Listed(LABELS)) is None
    assert statistics.image_shapes(Listed(LABELS)) is None


class Listed:
    """A source of given labels."""

    def __init__(self, labels, facts=None):
        self.labels = [np.array(label, np.uint8) for label in labels]
        self.reads = 0
        if facts is not None:
            self.facts = facts

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads += 1
        label = self.labels[index]
        return {"label": label, "image": np.stack([label, 255 - label], -1)}


# Class 0: 3 of the 8 pixels of both images; class 1: 4 of 8; class 2: 2 of the second's 4.
LABELS = [[[0, 0], [1, 1]], [[0, 1], [2, 2]]]


def test_median_frequency_by_hand():
    source = Listed([[[0, 0], [1, 1]], [[0, 1], [2, 2]], [[1, 1], [1, 255]]])
    counts = statistics.class_pixels(source, 4)
    np.testing.assert_array_equal(counts["pixels"], [3, 6, 2, 0])
    np.testing.assert_array_equal(counts["images"], [2, 3, 1, 0])
    np.testing.assert_array_equal(counts["pixels_of_images"], [8, 12, 4, 0])
    # f = 3/8, 6/12, 2/4: the median is 1/2; a class that never occurs gets 0.
    weights = statistics.median_frequency(source, 4)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, [4 / 3, 1, 1, 0], rtol=1e-6)


def test_balanced_classes_weigh_one():
    weights = statistics.median_frequency(Listed([[[0, 1], [2, 3]]] * 3), 4)
    np.testing.assert_array_equal(weights, 1)


def test_all_void_weighs_nothing():
    np.testing.assert_array_equal(statistics.median_frequency(Listed([[[255]]]), 2), 0)


def test_strange_ids_are_refused():
    with pytest.raises(SegzooError, match=r"outside 0\.\.1 \(found 2\); void is 255"):
        statistics.class_pixels(Listed(LABELS), 2)


def test_facts_are_measured_once(tmp_path):
    source = Listed(LABELS, tmp_path / "facts")
    first = statistics.median_frequency(source, 3)
    assert source.reads == 2
    np.testing.assert_array_equal(statistics.median_frequency(source, 3), first)
    assert source.reads == 2
    (fact,) = (tmp_path / "facts").iterdir()
    fact.write_text("{ half a fi")
    np.testing.assert_array_equal(statistics.median_frequency(source, 3), first)
    assert source.reads == 4


def test_mean_and_std_are_over_pixels_not_images():
    mean, std = statistics.mean_std(Listed([[[10]], [[20, 20, 20]]]))
    np.testing.assert_allclose(mean, [17.5, 237.5])
    np.testing.assert_allclose(std, [np.sqrt(18.75)] * 2)
