"""Annotations in COCO's format: whatever stands in them is read or named, and nothing breaks."""

import copy
import json

import pytest

from segzoo.data.coco_json import read_annotations

WHOLE = {
    "images": [{"id": i, "file_name": f"{i}.png", "height": 6, "width": 8} for i in range(3)],
    "categories": [{"id": 9, "name": "tree"}, {"id": 4, "name": "car"}],
    "annotations": [
        {
            "id": 0,
            "image_id": 0,
            "category_id": 4,
            "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]],
            "iscrowd": 0,
            "bbox": [1, 1, 4, 3],
        },
        {
            "id": 1,
            "image_id": 1,
            "category_id": 9,
            "segmentation": {"size": [6, 8], "counts": [10, 5, 33]},
            "iscrowd": 1,
        },
        {
            "id": 2,
            "image_id": 1,
            "category_id": 9,
            "segmentation": {"size": [6, 8], "counts": ":5Q1"},
        },
    ],
}
STRANGE = [None, -1, 1.5, "x", "", [], {}, [[]], [None], True, 1e300, 10**30, "\ud800"]
STRANGE.append(float("nan"))


def read(path, content):
    path.write_text(json.dumps(content))
    faults = []
    return read_annotations(path, faults), faults


def test_pictures_come_in_the_order_of_the_file_and_classes_in_that_of_their_ids(tmp_path):
    found, faults = read(tmp_path / "a.json", WHOLE)
    assert not faults
    assert found.class_names == ("background", "car", "tree")
    assert [picture.name for picture in found.pictures] == ["0.png", "1.png", "2.png"]
    assert [picture.classes for picture in found.pictures] == [[1], [2, 2], []]
    assert [picture.crowd for picture in found.pictures] == [[False], [True, False], []]
    # Both kinds of run lengths say the same.
    assert len(set(found.pictures[1].masks)) == 1
    assert found.left_out == ""


def places_in(value, way=()):
    if way:
        yield way
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places_in(value[key], (*way, key))


@pytest.mark.parametrize("strange", STRANGE, ids=ascii)
def test_whatever_is_wrong_is_said_in_a_sentence(tmp_path, strange):
    said = 0
    for *way, last in places_in(WHOLE):
        content = copy.deepcopy(WHOLE)
        at = content
        for step in way:
            at = at[step]
        at[last] = strange
        found, faults = read(tmp_path / "a.json", content)
        for fault in faults:
            assert fault.startswith("a.json: ")
            assert fault.endswith(".")
            assert "\n" not in fault
            assert len(fault) < 300
            fault.encode()  # can be printed
        said += bool(faults)
        assert faults or len(found.pictures) == 3
    assert said > 15
