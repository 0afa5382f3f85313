"""COCO, prepared from hand-made annotations in its format: what is read, left out and refused."""

import copy
import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as runs

from segzoo import data
from segzoo.data import coco
from segzoo.data.pipeline import eval_batches, train_batches
from segzoo.data.statistics import object_counts
from segzoo.data.transforms import FitSides
from segzoo.errors import SegzooError

RNG = np.random.default_rng(0)
GAPS = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
CATEGORIES = [
    {"id": number, "name": name}
    for number, name in zip(
        sorted(set(range(1, 91)) - GAPS), coco.SPEC.class_names[1:], strict=True
    )
]
SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]  # 3 rows of 4 pixels


def compressed(mask):
    found = runs.encode(np.asfortranarray(mask))
    return {"size": found["size"], "counts": found["counts"].decode()}


CORNER = np.zeros((8, 12), np.uint8)
CORNER[:2, :3] = 1
CROWD = {"size": [8, 12], "counts": [8, 16, 72]}  # columns 1 and 2


def content():
    """Three images of 8x12: overlapping objects and a crowd; none; one."""
    images = [
        {"id": 7 * i, "file_name": f"{i:012}.jpg", "height": 8, "width": 12} for i in range(3)
    ]
    objects = [(0, 1, SQUARE), (0, 90, compressed(CORNER)), (0, 1, CROWD), (14, 13, SQUARE)]
    annotations = [
        {"id": i, "image_id": image, "category_id": kind, "segmentation": outline, "iscrowd": 0}
        for i, (image, kind, outline) in enumerate(objects)
    ]
    annotations[2]["iscrowd"] = 1
    return copy.deepcopy({"images": images, "annotations": annotations, "categories": CATEGORIES})


@pytest.fixture
def write(tmp_path):
    """`write(content, split)` lays out a split; images are made for those that are listed."""

    def lay_out(what, split="train"):
        root = tmp_path / "manual"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / f"{split}2017").mkdir(exist_ok=True)
        for image in what["images"]:
            picture = RNG.integers(0, 256, (8, 12, 3), np.uint8)
            Image.fromarray(picture).save(root / f"{split}2017" / image["file_name"])
        text = what if isinstance(what, str) else json.dumps(what)
        (root / f"annotations/instances_{split}2017.json").write_text(text)
        return root

    return lay_out


@pytest.fixture
def open_it(tmp_path):
    return lambda: data.get("coco", data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")


def test_objects_are_read_with_their_classes_and_pixels(write, open_it):
    write(content())
    write(content(), "val")
    dataset = open_it()
    assert dataset.splits == {"train": 3, "val": 3}
    source = pickle.loads(pickle.dumps(dataset.source("train")))
    assert [source.name(i) for i in range(3)] == [f"{i:012}.jpg" for i in range(3)]
    assert [source.objects(i) for i in range(3)] == [3, 0, 1]
    first, second, third = (source[i] for i in range(3))
    assert first["classes"].tolist() == [1, 80, 1]  # person, toothbrush, person
    assert first["crowd"].tolist() == [False, False, True]
    square = np.zeros((8, 12), np.uint8)
    square[1:4, 2:6] = 1
    crowd = np.zeros((8, 12), np.uint8)
    crowd[:, 1:3] = 1
    np.testing.assert_array_equal(first["masks"], [square, CORNER, crowd])
    assert coco.SPEC.class_names[third["classes"][0]] == "stop sign"  # 13, the first after a gap
    assert second["masks"].shape == (0, 8, 12)
    for example in (first, second, third):
        dtypes = {key: value.dtype for key, value in example.items()}
        assert dtypes == {
            "image": np.uint8,
            "classes": np.int32,
            "crowd": bool,
            "masks": np.uint8,
        }


def test_batches_of_it_have_places_for_all(write, open_it):
    write(content())
    source = open_it().source("train")
    with train_batches(source, batch_size=3, seed=0, transform=FitSides((16, 32))) as batches:
        batch = next(batches)
    assert batch["masks"].shape == (3, 8, 16, 24)  # all have this size
    assert sorted(batch["valid"].sum(1).tolist()) == [0, 1, 3]
    np.testing.assert_array_equal(batch["size"], [[16, 24]] * 3)
    areas = batch["masks"].sum((2, 3))
    assert sorted(areas[areas > 0].tolist()) == [24, 48, 48, 64]
    (batch,) = eval_batches(source, batch_size=4)
    np.testing.assert_array_equal(batch["valid"].sum(1), [3, 0, 1, 0])
    assert batch["crowd"].sum() == 1


def test_large_datasets_are_written_in_order_and_in_parts(write, open_it, monkeypatch, tmp_path):
    monkeypatch.setattr(coco.Coco, "LARGE", 2)
    what = content()
    what["images"].reverse()
    write(what)
    dataset = open_it()
    source = dataset.source("train[1:]")
    assert len(list((tmp_path / "data").rglob("*.array_record*"))) == 2
    assert [source.name(i) for i in range(2)] == ["000000000001.jpg", "000000000000.jpg"]
    assert source[1]["classes"].tolist() == [1, 80, 1]
    left = {path.name for path in (tmp_path / "data/segzoo/coco").iterdir()}
    assert left == {"1.0.0", ".lock"}


def test_preparing_notes_what_batches_need(write, open_it):
    write(content())
    dataset = open_it()
    source = dataset.source("train")
    assert json.loads((source.facts / "object_counts.json").read_text()) == [3, 0, 1]
    assert json.loads((source.facts / "shape_of_each.json").read_text()) == [[8, 12, 3]] * 3
    assert object_counts(dataset.source("train[1:]")).tolist() == [0, 1]


def test_one_split_is_enough_and_said(write, open_it, caplog):
    write(content(), "val")
    with caplog.at_level(logging.WARNING):
        assert open_it().splits == {"val": 3}
    assert "only the split 'val' is there" in caplog.text


def test_objects_without_area_are_left_out_and_counted(write, open_it, caplog):
    what = content()
    what["annotations"][0]["segmentation"] = [[1, 1, 1, 1, 1, 1]]
    what["annotations"][1]["bbox"] = [3, 3, 0, 5]
    what["annotations"][3]["segmentation"] = []
    write(what)
    with caplog.at_level(logging.WARNING):
        source = open_it().source("train")
    assert [source.objects(i) for i in range(3)] == [1, 0, 0]
    (said,) = [m for m in caplog.messages if "without area" in m]
    assert said.startswith(
        "instances_train2017.json: objects without area: 3, e.g. annotation 0 (000000000000.jpg): "
        "its outline covers no pixel"
    )


def change(path, value):
    def apply(what):
        *way, last = path
        for step in way:
            what = what[step]
        if value is None:
            del what[last]
        else:
            what[last] = value

    return apply


FAULTS = {
    "category": (
        change(["annotations", 0, "category_id"], 12),
        r"annotation 0 \(000000000000.jpg\) has the category 12; known: 1, 2, ",
    ),
    "image": (
        change(["annotations", 3, "image_id"], 5),
        "annotation 3 is of an image with the id 5, not listed",
    ),
    "outline": (
        change(["annotations", 0, "segmentation"], [[1, 2, 3, 4, 5]]),
        r"annotation 0 \(000000000000.jpg\): its polygon has 5 numbers",
    ),
    "size of run lengths": (
        change(["annotations", 2, "segmentation", "size"], [12, 8]),
        r"has the size \[12, 8\] but its image \[8, 12\]",
    ),
    "key": (change(["annotations"], None), "has no 'annotations'"),
    "list": (change(["images"], {"a": 1}), "'images' is not a list of objects"),
    "no id": (change(["images", 1, "id"], "x"), "needs 'id', a whole number, and 'file_name'"),
    "no size": (change(["images", 1, "width"], 0), "has the height 8 and the width 0"),
    "same id": (change(["images", 1, "id"], 0), "000000000000.jpg and 000000000001.jpg have the s"),
    "same file": (change(["images", 1, "file_name"], "000000000000.jpg"), "is listed twice"),
    "category names": (
        change(["categories", 0, "name"], "car"),
        "2 categories have the name 'car'",
    ),
    "other categories": (
        change(["categories", 0, "name"], "human"),
        "lists 80 categories, human, bicycle, car, ...; expected COCO's 80",
    ),
    "wrong size": (
        change(["images", 1, "height"], 9),
        "000000000001.jpg: the image is 12x8 and its annotations are of 12x9 pixels",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_wrong_annotations_are_named(write, open_it, kind):
    breaks, message = FAULTS[kind]
    what = content()
    root = write(what)
    breaks(what)
    (root / "annotations/instances_train2017.json").write_text(json.dumps(what))
    with pytest.raises(SegzooError, match=message) as caught:
        open_it().source("train")
    assert str(root) in str(caught.value)
    assert not [p for p in (root.parent / "data").rglob("*") if p.is_file() and p.name != ".lock"]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [', "instances_train2017.json: not valid JSON"),
        ("[]", "instances_train2017.json: a list; expected an object with images"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_broken_files_are_named(write, open_it, text, message):
    root = write(content())
    (root / "annotations/instances_train2017.json").write_text(text)
    with pytest.raises(SegzooError, match=message):
        open_it().source("train")


def test_missing_and_damaged_images_are_named(write, open_it):
    with pytest.raises(SegzooError, match=r"Found 0 of 2; missing annotations/instances_train2017"):
        open_it().source("train")
    root = write(content())
    image = root / "train2017/000000000001.jpg"
    whole = image.read_bytes()
    image.write_bytes(whole[:200])
    with pytest.raises(SegzooError, match=r"000000000001\.jpg: the image is damaged"):
        open_it().source("train")
    image.unlink()
    with pytest.raises(SegzooError, match=r"1 of 3 images listed in .* are missing, e\.g\. 0000"):
        open_it().source("train")
    (root / "train2017").rename(root / "training")
    with pytest.raises(SegzooError, match=r"Found 0 of 1; missing train2017\."):
        open_it().source("train")
