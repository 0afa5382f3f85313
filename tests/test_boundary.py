"""Boundary F1 on outlines drawn by hand."""

import math

import numpy as np
import pytest

from segzoo.boundary import BoundaryTally, boundary, boundary_f1
from segzoo.errors import SegzooError


def halves(column, size=(40, 60)):
    """Class 1 from a column on."""
    return np.broadcast_to(np.arange(size[1]) >= column, size).astype(np.uint8)


def test_boundary_is_inside_the_mask_and_not_at_the_border():
    mask = np.zeros((5, 6), bool)
    mask[1:, 2:] = True
    expected = np.zeros_like(mask)
    expected[1, 2:] = True
    expected[1:, 2] = True
    np.testing.assert_array_equal(boundary(mask), expected)


def test_equal_is_one():
    np.testing.assert_array_equal(boundary_f1(halves(20), halves(20), 3), [1, 1, np.nan])


@pytest.mark.parametrize(("shift", "score"), [(1, 1.0), (2, 0.0), (3, 0.0)])
def test_tolerance_is_a_share_of_the_diagonal(shift, score):
    # 0.75 % of hypot(120, 160) = 200 is 1.5 pixels.
    truth, guess = (halves(column, (120, 160)) for column in (80, 80 + shift))
    np.testing.assert_array_equal(boundary_f1(guess, truth, 2), [score, score])
    near = boundary_f1(guess, truth, 2, tolerance=(shift + 0.01) / math.hypot(120, 160))
    np.testing.assert_array_equal(near, [1, 1])


def test_precision_and_recall_are_both_asked():
    truth = halves(20)
    guess = truth.copy()
    guess[10:14, 40:44] = 0  # a hole with 12 outline pixels of class 0, 16 of class 1 around it
    zero, one = boundary_f1(guess, truth, 2)
    # Class 0: 40 right, 12 wrong pixels in the prediction, all 40 of the truth found.
    assert zero == pytest.approx(2 * 40 / (40 + 52))
    assert one == pytest.approx(2 * 40 / (40 + 56))


def test_absent_classes():
    truth, blank = halves(20), np.zeros((40, 60), np.uint8)
    np.testing.assert_array_equal(boundary_f1(blank, truth, 3), [0, 0, np.nan])
    # Class 2 is predicted and not in the truth: it spoils the others only.
    np.testing.assert_array_equal(boundary_f1(halves(20) * 2, truth, 3), [1, 0, np.nan])
    np.testing.assert_array_equal(boundary_f1(blank, blank, 2), [np.nan, np.nan])


def test_void_is_ignored():
    truth = halves(20)
    truth[:, 30:] = 255
    guess = halves(20)
    guess[5:9, 40:50] = 0
    np.testing.assert_array_equal(boundary_f1(guess, truth, 2), [1, 1])


def test_one_logit_has_two_classes_and_volumes_work():
    volume = np.zeros((4, 5, 6), np.uint8)
    volume[1:3, 2:4, 2:5] = 1
    np.testing.assert_array_equal(boundary_f1(volume, volume, 1), [1, 1])


def test_tally_is_the_mean_of_the_images():
    tally = BoundaryTally(2)
    assert tally.score() is None
    truth = halves(20)
    tally.add(truth, truth)
    tally.add(np.zeros_like(truth), truth)
    tally.add(np.zeros_like(truth), np.zeros_like(truth))
    assert tally.score() == 0.5


def test_shapes_must_fit():
    with pytest.raises(SegzooError, match="do not fit"):
        boundary_f1(halves(20), halves(20)[1:], 2)
