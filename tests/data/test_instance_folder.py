"""Own data with objects: ids and annotations are read as they are, and faults are told at once."""

import json
import os
import pickle

import numpy as np
import pytest
from PIL import Image

from segzoo import data
from segzoo.cli import main
from segzoo.data.folder import check_folder
from segzoo.errors import SegzooError

RNG = np.random.default_rng(0)
TOUCHING = np.array([[0, 300, 300, 7, 7, 0, 0, 0]] * 6, np.uint16)  # two objects, 16 bits
EMPTY = np.zeros((6, 8), np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def color(height=6, width=8):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def root(tmp_path):
    """Objects of one kind: 3 train, the last without any; 2 val."""
    folder = tmp_path / "cells"
    for split, names in (("train", "abc"), ("val", "de")):
        for name in names:
            save(folder / split / "images" / f"{name}.png", color())
            save(folder / split / "instances" / f"{name}.png", TOUCHING)
    save(folder / "train/instances/c.png", EMPTY)
    return folder


@pytest.fixture
def kinds(tmp_path):
    """A folder for each kind of object: nuclei within cells, and no nucleus in b."""
    folder = tmp_path / "kinds"
    for name in "ab":
        save(folder / "train/images" / f"{name}.jpg", color())
        save(folder / "train/instances/cell" / f"{name}.png", TOUCHING)
    save(folder / "train/instances/nucleus/a.png", (TOUCHING == 7).astype(np.uint8) * 255)
    return folder


@pytest.fixture
def listed(tmp_path):
    """Annotations in COCO's format, an overlap and a crowd among them."""
    folder = tmp_path / "listed"
    for split in ("train", "val"):
        for name in "ab":
            save(folder / split / "images" / f"{name}.png", color())
        write(folder, annotations(), split)
    return folder


def annotations():
    box = [1, 1, 5, 1, 5, 4, 1, 4]
    objects = [(0, 4, [box], 0), (0, 9, [[3, 2, 8, 2, 8, 6, 3, 6]], 0), (0, 4, [box], 1)]
    return {
        "images": [
            {"id": i, "file_name": f"{name}.png", "height": 6, "width": 8}
            for i, name in enumerate("ab")
        ],
        "categories": [{"id": 9, "name": "tree"}, {"id": 4, "name": "car"}],
        "annotations": [
            {"id": i, "image_id": image, "category_id": kind, "segmentation": s, "iscrowd": crowd}
            for i, (image, kind, s, crowd) in enumerate(objects)
        ],
    }


def write(root, what, split="train"):
    path = root / split / "annotations.json"
    path.write_text(json.dumps(what))
    os.utime(path, ns=(1, RNG.integers(10**9)))


@pytest.fixture
def open_it(tmp_path):
    return lambda root: data.get(str(root), data_dir=tmp_path / "data")


def faults_of(root, tmp_path):
    with pytest.raises(SegzooError) as caught:
        check_folder(root, tmp_path / "data")
    return str(caught.value)


# --- Reading ------------------------------------------------------------------------------------


def test_a_folder_of_ids_is_a_dataset(root, open_it):
    dataset = open_it(root)
    spec = dataset.spec
    assert (spec.task, spec.class_names) == ("instance", ("background", "object"))
    assert not spec.overlaps
    assert dataset.splits == {"train": 3, "val": 2}
    source = pickle.loads(pickle.dumps(dataset.source("train+val[:1]")))
    assert [source.name(i) for i in range(4)] == ["a", "b", "c", "d"]
    assert [source.objects(i) for i in range(4)] == [2, 2, 0, 2]
    assert source.image_shape(0) == (6, 8, 3)
    example = source[0]
    # In the order of the ids, and touching objects stay apart.
    np.testing.assert_array_equal(example["instances"], [[0, 2, 2, 1, 1, 0, 0, 0]] * 6)
    assert example["instances"].dtype == example["classes"].dtype == np.int32
    assert example["classes"].tolist() == [1, 1]
    assert example["crowd"].tolist() == [False, False]
    assert source[2]["classes"].shape == (0,)
    with Image.open(root / "train/images/a.png") as image:
        np.testing.assert_array_equal(example["image"], np.array(image))


def test_kinds_may_overlap(kinds, open_it):
    dataset = open_it(kinds)
    assert dataset.spec.class_names == ("background", "cell", "nucleus")
    assert dataset.spec.overlaps
    source = dataset.source("train")
    assert source[0]["classes"].tolist() == [1, 1, 2]
    masks = np.stack([TOUCHING == 7, TOUCHING == 300, TOUCHING == 7])
    np.testing.assert_array_equal(source[0]["masks"], masks)
    assert source[1]["masks"].shape == (2, 6, 8)


def test_kinds_that_do_not_overlap_share_one_map(kinds, open_it):
    save(kinds / "train/instances/nucleus/a.png", (TOUCHING == 0).astype(np.uint8))
    (kinds / "classes.txt").write_text("background\nnucleus\ncell\nnever seen\n")
    dataset = open_it(kinds)
    assert dataset.spec.class_names == ("background", "nucleus", "cell", "never seen")
    assert not dataset.spec.overlaps
    example = dataset.source("train")[0]
    assert example["classes"].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(example["instances"], [[1, 3, 3, 2, 2, 1, 1, 1]] * 6)


def test_annotations_are_a_dataset(listed, open_it):
    dataset = open_it(listed)
    assert dataset.spec.class_names == ("background", "car", "tree")
    assert dataset.spec.overlaps
    source = pickle.loads(pickle.dumps(dataset.source("train")))
    assert [source.objects(i) for i in range(2)] == [3, 0]
    example = source[0]
    assert example["classes"].tolist() == [1, 2, 1]
    assert example["crowd"].tolist() == [False, False, True]
    assert example["masks"].sum((1, 2)).tolist() == [12, 20, 12]
    assert (example["masks"][0] & example["masks"][1]).sum() == 4
    assert source[1]["masks"].shape == (0, 6, 8)


@pytest.mark.parametrize("place", ["C:\\data\\photos\\a.png", "more/a.png", "{}/elsewhere/a.png"])
def test_file_names_of_other_programs(listed, open_it, tmp_path, place):
    save(tmp_path / "elsewhere/a.png", color(3, 3))
    what = annotations()
    what["images"][0]["file_name"] = place.format(tmp_path)
    what["images"][1] = {"id": 1, "coco_url": "http://x/y/b.png", "height": 6, "width": 8}
    what["categories"].append({"id": 0, "name": "background"})
    write(listed, what)
    dataset = open_it(listed)
    assert dataset.spec.class_names == ("background", "car", "tree")
    assert [dataset.source("train").name(i) for i in range(2)] == ["a", "b"]


# --- Checking -----------------------------------------------------------------------------------


def test_the_summary_can_be_read(root, kinds, listed, tmp_path, capsys):
    text = str(check_folder(root, tmp_path / "data"))
    assert "3 train, 2 val; RGB, 6x8 pixels (height x width)." in text
    assert "8 objects, 0 to 2 in an image." in text
    assert "The sizes differ" not in text
    assert text.splitlines()[-1].split() == ["1", "object", "4", "4"]
    (kinds / "classes.txt").write_text("cell\nnucleus\nnever seen\n")
    text = str(check_folder(kinds, tmp_path / "data"))
    assert "5 objects, 2 to 3 in an image, some of which overlap." in text
    assert "No training image shows never seen." in text
    what = annotations()
    what["annotations"][1]["bbox"] = [1, 1, 0, 0]
    write(listed, what)
    save(listed / "val/images/more/z.png", color())
    assert main(["check-data", str(listed), "--data-dir", str(tmp_path / "data")]) == 0
    text = capsys.readouterr().out
    assert "train/annotations.json: objects without area: 1, e.g. annotation 1 (a.png)" in text
    assert "files that annotations.json does not list are not used: 1, e.g. more/z.png." in text


def test_unchanged_files_are_not_read_again(root, open_it, monkeypatch, tmp_path):
    first = open_it(root).spec
    with monkeypatch.context() as patch:
        patch.setattr("segzoo.data.instance_folder.read_all", None)
        assert open_it(root).spec == first
    save(root / "train/instances/b.png", EMPTY)
    os.utime(root / "train/instances/b.png", ns=(1, 1))
    assert open_it(root).source("train").objects(1) == 0


def test_one_object_an_image_is_remarked_on(root, tmp_path):
    for path in root.rglob("instances/*.png"):
        save(path, (TOUCHING > 0).astype(np.uint8) * 255)
    assert "No image has more than one object" in str(check_folder(root, tmp_path / "data"))


FAULTS = {
    "no ids": (
        lambda r: (r / "train/instances/a.png").unlink(),
        "train/images/a.png: has no file in instances/; an image without objects needs one that",
    ),
    "no image": (lambda r: (r / "val/images/d.png").unlink(), "val/instances/d.png: has no image"),
    "size": (
        lambda r: save(r / "train/instances/a.png", EMPTY[:5]),
        "train/instances/a.png: the image is 8x6 and the mask 8x5",
    ),
    "damaged": (
        lambda r: (r / "train/instances/b.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        "train/instances/b.png: ",
    ),
    "colours": (
        lambda r: save(r / "train/instances/b.png", color()),
        "train/instances/b.png: the mask holds colours",
    ),
    "jpeg": (
        lambda r: (
            (r / "train/instances/b.png").unlink(),
            save(r / "train/instances/b.jpg", EMPTY),
        ),
        "train/instances/b.jpg: a JPEG, whose compression alters",
    ),
    "grey": (
        lambda r: save(r / "train/images/a.png", EMPTY),
        "1 images are grey (e.g. train/images/a.png) and 4 have colour",
    ),
    "no objects": (
        lambda r: [save(path, EMPTY) for path in (r / "train/instances").iterdir()],
        "train/: none of its images has an object",
    ),
    "split name": (
        lambda r: (r / "val").rename(r / "valid"),
        "valid/: not a split. Did you mean 'val'",
    ),
    "misspelt": (
        lambda r: [(r / s / "instances").rename(r / s / "instance") for s in ("train", "val")],
        "train/masks/: missing; found 'instance'. Did you mean 'instances'?",
    ),
    "one misspelt": (
        lambda r: (r / "val/instances").rename(r / "val/instance"),
        "val/instances/: missing; found 'instance'. Did you mean 'instances'?",
    ),
    "no images": (
        lambda r: (r / "train/images").rename(r / "train/image"),
        "train/images/: missing; found 'image'. Did you mean 'images'?",
    ),
    "both": (
        lambda r: save(r / "train/masks/a.png", EMPTY),
        "train holds masks/ and instances; expected masks for a class per pixel",
    ),
    "several names": (
        lambda r: (r / "classes.txt").write_text("cell\nnucleus\n"),
        "classes.txt: names 2 kinds of objects, but instances/ has no folder for each",
    ),
    "class folder": (
        lambda r: save(r / "train/instances/cell/a.png", EMPTY),
        "train/instances/a.png: beside the folders of the classes",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_of_ids_is_named(root, tmp_path, kind):
    breaks, message = FAULTS[kind]
    breaks(root)
    assert message in faults_of(root, tmp_path)


def test_faults_of_kinds_are_named(kinds, tmp_path):
    (kinds / "classes.txt").write_text("cell\nnuclei\n")
    text = faults_of(kinds, tmp_path)
    assert "instances/nucleus/: not in classes.txt. Did you mean 'nuclei'?" in text
    (kinds / "classes.txt").unlink()
    (kinds / "train/instances/cell/b.png").unlink()
    assert "b.jpg: has no file in any folder of instances/" in faults_of(kinds, tmp_path)


def drop(*path):
    def apply(what):
        for step in path[:-1]:
            what = what[step]
        del what[path[-1]]

    return apply


def rename(what):
    what["categories"][0]["name"] = "bush"


def enlarge(what):
    what["images"][1]["width"] = 9


def unknown(what):
    what["annotations"][0]["category_id"] = 5


def flatten(what):
    for entry in what["annotations"]:
        entry["segmentation"] = []


def background(what):
    what["categories"][0]["name"] = "background"


JSON_FAULTS = {
    "key": (drop("categories"), "train/annotations.json: has no 'categories'."),
    "category": (
        unknown,
        "train/annotations.json: annotation 0 (a.png) has the category 5; known: 4, 9.",
    ),
    "differing": (
        rename,
        "val/annotations.json: its categories differ from those of train/annotations.json (bush, ",
    ),
    "size": (enlarge, "train/images/b.png: the image is 8x6 and its annotations are of 9x6"),
    "boxes only": (flatten, "none of its 3 objects has pixels, e.g. annotation 0 (a.png): it has"),
    "background": (background, "the category 'background' has objects"),
}


@pytest.mark.parametrize("kind", JSON_FAULTS)
def test_each_fault_of_annotations_is_named(listed, tmp_path, kind):
    breaks, message = JSON_FAULTS[kind]
    what = annotations()
    breaks(what)
    write(listed, what)
    assert message in faults_of(listed, tmp_path)


def test_faults_of_the_files_beside_annotations_are_named(listed, tmp_path):
    (listed / "train/images/a.png").unlink()
    (listed / "val/annotations.json").rename(listed / "val/annotation.json")
    (listed / "classes.txt").write_text("car\ntree\n")
    text = faults_of(listed, tmp_path)
    for message in (
        "train/images/a.png: missing, listed in annotations.json.",
        "val/annotations.json: missing, but train/ has one.",
        "classes.txt: annotations.json names the classes; remove one of the two.",
    ):
        assert message in text
    (listed / "val/annotations.json").write_text("{")
    assert "val/annotations.json: not valid JSON" in faults_of(listed, tmp_path)
