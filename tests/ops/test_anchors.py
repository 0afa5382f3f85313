"""Anchors: the rounded boxes of networks in circulation, row by row."""

import numpy as np

from segzoo.ops.anchors import base_anchors, grid_anchors


def test_base_anchors():
    # 32 pixels at heights per width of 1/2, 1 and 2: 22.6 x 45.3, 32 x 32 and 45.3 x 22.6.
    expected = [[-11, -23, 11, 23], [-16, -16, 16, 16], [-23, -11, 23, 11]]
    assert base_anchors([32], [0.5, 1.0, 2.0]).tolist() == expected


def test_halves_are_rounded_to_even():
    assert base_anchors([5, 7], [1.0]).tolist() == [[-2, -2, 2, 2], [-4, -4, 4, 4]]


def test_ratios_come_before_sizes():
    sides = base_anchors([10, 20], [1.0, 4.0])
    high, wide = sides[:, 2] - sides[:, 0], sides[:, 3] - sides[:, 1]
    assert high.tolist() == [10, 20, 20, 40]
    assert wide.tolist() == [10, 20, 4, 10]  # 5 / 2 is rounded to 2


def test_a_grid_goes_row_by_row_and_may_have_other_strides_across():
    base = base_anchors([2, 4], [1.0])
    grid = grid_anchors(base, (2, 3), (10, 7))
    assert grid.dtype == np.float32
    centers = (grid[:, :2] + grid[:, 2:]) / 2
    places = [(y, x) for y in (0, 10) for x in (0, 7, 14)]
    assert centers.tolist() == [list(place) for place in places for _ in range(2)]
    assert (grid[0] == base[0]).all()
    assert (grid[1] == base[1]).all()
