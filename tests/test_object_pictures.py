"""Objects over their image."""

import numpy as np
import pytest

from segzoo.instances import Objects
from segzoo.object_pictures import draw_objects, object_panel

NAMES = ("background", "ball", "box")


def objects(number, size=(60, 80)):
    """Squares in a row, the second half of which lie over the first halves."""
    masks = np.zeros((number, *size), bool)
    boxes = np.zeros((number, 4), np.float32)
    for n in range(number):
        masks[n, 10:30, 5 * n : 5 * n + 20] = True
        boxes[n] = 10, 5 * n, 30, min(5 * n + 20, size[1])
    scores = np.linspace(0.9, 0.1, number).astype(np.float32)
    kinds = np.full(number, 2, np.int32)
    return Objects(kinds, masks, boxes, scores, np.zeros(number, bool))


def test_pixels_of_objects_are_tinted_each_in_its_colour_and_no_others():
    image = np.full((60, 80, 3), 100, np.uint8)
    plain = np.asarray(draw_objects(image, objects(0), NAMES))
    assert plain.shape == (360, 480, 3)  # six times as large: 480 pixels at least
    assert (plain == 100).all()
    drawn = np.asarray(draw_objects(image, objects(1), NAMES, scores=False))
    changed = (drawn != 100).any(-1)
    assert changed[10 * 6 + 1 : 30 * 6 - 1, 1 : 20 * 6 - 1].all()
    assert not changed[30 * 6 + 1 :].any()
    two = np.asarray(draw_objects(image, objects(2), NAMES, scores=False))
    assert (two[120, 15] != two[120, 142]).any()


@pytest.mark.parametrize("image", [np.zeros((60, 80), np.uint8), np.zeros((60, 80, 1), np.uint8)])
def test_grey_pictures_and_classes_without_a_name_are_drawn(image):
    found = objects(3)
    found.classes[:] = 7
    assert draw_objects(image, found, NAMES).size == (480, 360)


def test_large_pictures_are_reduced():
    picture = draw_objects(np.zeros((1200, 2400, 3), np.uint8), objects(2, (1200, 2400)), NAMES)
    assert picture.size == (960, 480)


def test_a_panel_shows_the_sure_ones_beside_the_truth():
    image = np.full((60, 80, 3), 100, np.uint8)
    both = object_panel(image, objects(3), objects(4), NAMES, title="one")
    alone = object_panel(image, None, objects(4), NAMES)
    assert both.width > alone.width > 2 * 480
    nothing = object_panel(image, objects(0), objects(4).only(np.zeros(4, bool)), NAMES)
    assert nothing.width == both.width
    assert (np.asarray(nothing)[-100:, 100:500] == 100).any()
