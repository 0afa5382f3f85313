"""Outlines become the pixels they should, and what is none is refused before it is drawn."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from segzoo.data import rle

SIZE = (7, 9)
RNG = np.random.default_rng(0)


def runs_of(mask):
    """Uncompressed run lengths by hand: down the columns, the first run outside."""
    flat = np.concatenate([[0], mask.T.ravel(), [2]])
    changes = np.flatnonzero(np.diff(flat))
    runs = np.diff(np.concatenate([[0], changes])).tolist()
    return [*runs, flat.size - 2 - sum(runs)] if sum(runs) < mask.size else runs


def mask_of(segmentation, size=SIZE):
    return rle.decode([rle.encode(segmentation, size)], size)[0]


@pytest.mark.parametrize("seed", range(5))
def test_both_kinds_of_run_lengths_keep_every_pixel(seed):
    mask = (np.random.default_rng(seed).random(SIZE) < 0.4).astype(np.uint8)
    plain = {"size": [*SIZE], "counts": runs_of(mask)}
    np.testing.assert_array_equal(mask_of(plain), mask)
    packed = coco.encode(np.asfortranarray(mask))["counts"].decode()
    np.testing.assert_array_equal(mask_of({"size": [*SIZE], "counts": packed}), mask)


def test_the_lengths_in_a_text_are_read_as_they_are_written():
    for size in ((7, 9), (300, 400)):
        for density in (0.001, 0.3, 0.9):
            mask = (RNG.random(size) < density).astype(np.uint8)
            mask[0, 0] = 1
            text = coco.encode(np.asfortranarray(mask))["counts"]
            assert rle.lengths(text) == runs_of(mask)


def test_a_polygon_covers_the_pixels_whose_centres_it_holds():
    square = np.zeros(SIZE, np.uint8)
    square[1:4, 2:6] = 1
    np.testing.assert_array_equal(mask_of([[2, 1, 6, 1, 6, 4, 2, 4]]), square)
    both = square.copy()
    both[5:7, 7:9] = 1
    parts = [[2, 1, 6, 1, 6, 4, 2, 4], [7, 5, 9, 5, 9, 7, 7, 7], [1, 1, 2, 2]]
    np.testing.assert_array_equal(mask_of(parts), both)


def test_masks_of_several_and_of_no_objects():
    masks = (RNG.random((3, *SIZE)) < 0.5).astype(np.uint8)
    runs = [rle.encode({"size": [*SIZE], "counts": runs_of(mask)}, SIZE) for mask in masks]
    found = rle.decode(runs, SIZE)
    np.testing.assert_array_equal(found, masks)
    assert found.flags.c_contiguous
    assert all(b"\n" not in run for run in runs)
    assert rle.decode([], SIZE).shape == (0, *SIZE)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2]], "less than three points"),
        ([], "less than three points"),
        ([[1, 1, 1, 1, 1, 1]], "covers no pixel"),
        ([[-5, -5, -3, -5, -3, -3]], "covers no pixel"),
        ({"size": [*SIZE], "counts": [63]}, "covers no pixel"),
    ],
)
def test_what_has_no_pixel_is_told_apart(segmentation, message):
    with pytest.raises(rle.NoArea, match=message):
        rle.encode(segmentation, SIZE)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[1, 1, 2, 2, 3]], "has 5 numbers; expected x and y by turns"),
        ([[1, 1, 2, 2, 3, None]], "not a list of numbers"),
        ([1, 1, 2, 2, 3, 3], "not a list of numbers"),
        ([[0, 0, 3, 0, 1e9, 3]], r"goes to x = 1e\+09, far outside of an image of 9x7"),
        ([[0, 0, 3, 0, 1, -8]], "goes to y = -8, far outside"),
        (json.loads("[[0, 0, 3, 0, 1, NaN]]"), "goes to y = nan"),
        ("5 5", "is a str; expected polygons or run lengths"),
        ({"size": [9, 7], "counts": [63]}, r"has the size \[9, 7\] but its image \[7, 9\]"),
        ({"counts": [63]}, "has the size None"),
        ({"size": [7, 9], "counts": [3, 4]}, "add up to 7 pixels; expected 63"),
        ({"size": [7, 9], "counts": [70, -7]}, "none below 0"),
        ({"size": [7, 9], "counts": [62.0, 1]}, "neither a text nor a list of whole numbers"),
        ({"size": [7, 9], "counts": "99"}, "add up to 18 pixels"),
        ({"size": [7, 9], "counts": "o"}, "are cut off"),
        ({"size": [7, 9], "counts": "3 4"}, "hold the letter ' '"),
        ({"size": [7, 9], "counts": ""}, "add up to 0 pixels"),
        ({"size": 7, "counts": [63]}, "has the size 7"),
    ],
)
def test_what_is_no_outline_is_refused(segmentation, message):
    with pytest.raises(rle.OutlineError, match=message) as caught:
        rle.encode(segmentation, SIZE)
    assert not isinstance(caught.value, rle.NoArea)
