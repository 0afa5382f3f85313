"""Own data: what is right is read as it is, and everything that is wrong is said at once."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from segzoo import data
from segzoo.data.folder import check_folder
from segzoo.errors import SegzooError

RNG = np.random.default_rng(0)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = array if isinstance(array, Image.Image) else Image.fromarray(array)
    image.save(path, **options)


def color(height=6, width=8):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def ids(*values, height=6, width=8):
    """A mask in which every given id occurs."""
    mask = RNG.choice(np.array(values, np.uint8), (height, width))
    mask.flat[: len(values)] = values
    return mask


@pytest.fixture
def root(tmp_path):
    """A faultless folder: 3 train, 2 val; classes 0, 1, 2 and some void."""
    folder = tmp_path / "cells"
    for split, names in (("train", "bac"), ("val", "de")):
        for name in names:
            save(folder / split / "images" / f"{name}.png", color())
            save(folder / split / "masks" / f"{name}.png", ids(0, 1, 2, 255))
    return folder


@pytest.fixture
def check(root, tmp_path):
    return lambda: check_folder(root, tmp_path / "data")


def faults_of(check):
    with pytest.raises(SegzooError) as caught:
        check()
    return str(caught.value)


def test_a_folder_is_a_dataset(root, tmp_path):
    dataset = data.get(str(root), data_dir=tmp_path / "data")
    assert dataset.splits == {"train": 3, "val": 2}
    assert dataset.spec.class_names == ("class 0", "class 1", "class 2")
    assert dataset.spec.channels == 3
    source = dataset.source("train")
    assert [source.name(i) for i in range(3)] == ["a", "b", "c"]
    for i, name in enumerate("abc"):
        with Image.open(root / f"train/images/{name}.png") as image:
            np.testing.assert_array_equal(source[i]["image"], np.array(image))
        with Image.open(root / f"train/masks/{name}.png") as mask:
            np.testing.assert_array_equal(source[i]["label"], np.array(mask))
    images = np.stack([source[i]["image"] for i in range(3)]).astype(float)
    np.testing.assert_allclose(dataset.spec.mean, images.mean((0, 1, 2)))
    np.testing.assert_allclose(dataset.spec.std, images.std((0, 1, 2)))
    part = pickle.loads(pickle.dumps(dataset.source("train[1:]+val[:50%]")))
    assert [part.name(i) for i in range(len(part))] == ["b", "c", "d"]
    by_name = data.get("folder", data_dir=tmp_path / "data", manual_dir=root)
    assert by_name.spec == dataset.spec
    with pytest.raises(SegzooError, match=r"no split 'test'.*train .3., val .2."):
        dataset.source("test")


def test_folder_needs_to_be_named(tmp_path):
    with pytest.raises(SegzooError, match="'folder' needs manual_dir"):
        data.get("folder", data_dir=tmp_path)
    with pytest.raises(SegzooError, match="no such folder"):
        data.get(str(tmp_path / "nowhere"), data_dir=tmp_path)


def test_the_summary_can_be_read(root, check):
    save(root / "val/images/d.png", color(7, 9))
    save(root / "val/masks/d.png", ids(0, 1, 2, height=7, width=9))
    text = str(check())
    assert "3 train, 2 val; RGB, 6x8 to 7x9 pixels" in text
    assert "The sizes differ: set image_size" in text
    assert "class 2" in text
    assert "void" in text


def test_unchanged_files_are_not_read_again(root, check, monkeypatch):
    first = check()
    with monkeypatch.context() as patch:
        patch.setattr("segzoo.data.folder.read_all", None)
        assert check() == first
    save(root / "train/masks/a.png", ids(0, 1, 2, 3))
    os.utime(root / "train/masks/a.png", ns=(1, 1))
    assert check().spec.num_classes == 4


def test_class_names_and_colours(root, check, tmp_path):
    (root / "classes.txt").write_text(
        "ground 0 0 0\nbig tree 10 20 30\n\ncar 40 50 60\nvoid 9 9 9\n"
    )
    mask = ids(0, 1, 2, 255)
    table = {0: (0, 0, 0), 1: (10, 20, 30), 2: (40, 50, 60), 255: (9, 9, 9)}
    painted = np.array([[table[i] for i in row] for row in mask.tolist()], np.uint8)
    save(root / "train/masks/a.png", painted)
    spec = check().spec
    assert spec.class_names == ("ground", "big tree", "car")
    assert spec.palette == ((0, 0, 0), (10, 20, 30), (40, 50, 60))
    source = data.get(str(root), data_dir=tmp_path / "data").source("train")
    np.testing.assert_array_equal(source[0]["label"], mask)
    painted[2, 3] = 1, 2, 3
    save(root / "train/masks/a.png", painted)
    os.utime(root / "train/masks/a.png", ns=(1, 1))
    assert "a.png: 1 pixels have colours that classes.txt does not list, e.g. (1, 2, 3)" in (
        faults_of(check)
    )


def test_palette_masks_count_by_index(root, check, tmp_path):
    mask = ids(0, 1, 2)
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette([255, 255, 255, 0, 0, 0, 7, 7, 7])
    save(root / "train/masks/a.png", picture)
    source = data.get(str(root), data_dir=tmp_path / "data").source("train")
    np.testing.assert_array_equal(source[0]["label"], mask)


def test_one_bit_masks_and_grey_images(root, check):
    for path in sorted(root.rglob("*.png")):
        grey = ids(*range(40)) if path.parent.name == "images" else ids(0, 1) > 0
        save(path, grey)
    summary = check()
    assert summary.spec.num_classes == 2
    assert summary.spec.channels == 1


def test_pictures_lying_on_their_side_are_turned(root, check, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = color(8, 6)
    save(root / "train/images/a.png", stored, exif=exif)
    save(root / "train/masks/a.png", ids(0, 1, 2))
    source = data.get(str(root), data_dir=tmp_path / "data").source("train")
    np.testing.assert_array_equal(source[0]["image"], np.rot90(stored, -1))
    assert source.image_shape(0) == (6, 8, 3)


FAULTS = {
    "no mask": (lambda r: (r / "train/masks/a.png").unlink(), "train/images/a.png: has no mask"),
    "no image": (lambda r: (r / "val/images/d.png").unlink(), "val/masks/d.png: has no image"),
    "size": (
        lambda r: save(r / "train/masks/a.png", ids(0, 1, 2, height=5)),
        "train/masks/a.png: the image is 8x6 and the mask 8x5",
    ),
    "damaged": (
        lambda r: (r / "train/images/b.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        "train/images/b.png: ",
    ),
    "empty file": (
        lambda r: (r / "train/masks/b.png").write_bytes(b""),
        "train/masks/b.png: the file is empty",
    ),
    "colours": (
        lambda r: save(r / "train/masks/b.png", color()),
        "train/masks/b.png: the mask holds colours",
    ),
    "jpeg": (
        lambda r: (
            (r / "train/masks/b.png").unlink(),
            save(r / "train/masks/b.jpg", ids(0, 1, 2)),
        ),
        "train/masks/b.jpg: a JPEG, whose compression alters class ids",
    ),
    "same stem": (
        lambda r: save(r / "train/images/a.jpg", color()),
        "train/images/a.png: has the same stem as a.jpg",
    ),
    "grey": (
        lambda r: save(r / "train/images/a.png", ids(1, 2)),
        "1 images are grey (e.g. train/images/a.png) and 4 have colour (e.g. train/images/b.png)",
    ),
    "16 bits": (
        lambda r: save(r / "train/images/a.png", ids(1, 2).astype(np.uint16) * 999),
        "train/images/a.png: pixels of more than 8 bits",
    ),
    "not an image": (
        lambda r: (r / "train/images/notes.txt").write_text("x"),
        "train/images/notes.txt: not an image file",
    ),
    "folder inside": (
        lambda r: (r / "train/images/more").mkdir(),
        "train/images/more/: a folder among the files",
    ),
    "gap": (
        lambda r: save(r / "train/masks/a.png", ids(0, 1, 7)),
        "the class ids in the masks have gaps (found 0, 1, 2, 7)",
    ),
    "split name": (
        lambda r: (r / "val").rename(r / "valid"),
        "valid/: not a split. Did you mean 'val'",
    ),
    "no train": (lambda r: (r / "train").rename(r / "x"), "train/: missing"),
    "no masks folder": (
        lambda r: (r / "train/masks").rename(r / "train/labels"),
        "train/masks/: missing",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_each_fault_is_named(root, check, kind):
    breaks, message = FAULTS[kind]
    breaks(root)
    assert message in faults_of(check)


def test_all_faults_come_at_once(root, check):
    (root / "train/masks/a.png").unlink()
    save(root / "train/images/b.png", color(5))
    save(root / "val/masks/e.png", color())
    text = faults_of(check)
    assert "3 faults" in text
    for message in ("a.png: has no mask", "b.png: the image is 8x5", "e.png: the mask holds"):
        assert message in text
    for i in range(40):
        save(root / "val/images" / f"x{i}.png", color())
    text = faults_of(check)
    assert "43 faults" in text
    assert "and 23 more" in text
    assert len(text.splitlines()) == 22


def test_0_and_255_is_told_for_what_it_is(root, check):
    for path in root.rglob("masks/*.png"):
        save(path, ids(0, 255))
    assert "if 255 means the foreground, save it as 1" in faults_of(check)
    (root / "classes.txt").write_text("background\ncell\n")
    assert "if 255 means the foreground, save it as 1" in faults_of(check)


def test_ids_are_checked_against_the_class_list(root, check):
    (root / "classes.txt").write_text("ground\ntree\n")
    text = faults_of(check)
    assert "train/masks/a.png: class ids outside 0..1 (found 2); void is 255" in text
    (root / "classes.txt").write_text("ground\ntree\ncar\nnever seen\n")
    summary = check()
    assert summary.spec.num_classes == 4
    assert "No training pixel shows never seen" in str(summary)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb\na", "line 3: 'a' is listed twice"),
        ("a 0 0 0\nb\nc", "1 colours for 3 classes"),
        ("a 0 0 0\nb 0 0 300\nc 1 1 1", "line 2: (0, 0, 300) is no colour"),
        ("a 1 1 1\nb 1 1 1\nc 2 2 2", "line 2: the colour (1, 1, 1) is taken"),
        ("a\nb\nc\nvoid", "line 4: void is no class"),
        ("\n", "0 classes; expected 1 to 255"),
    ],
)
def test_class_lists_are_checked(root, check, text, message):
    (root / "classes.txt").write_text(text)
    assert f"classes.txt: {message}" in faults_of(check)


def test_hidden_files_do_not_matter(root, check):
    for name in (".DS_Store", "._a.png", "Thumbs.db"):
        (root / "train/images" / name).write_bytes(b"x")
    (root / ".git").mkdir()
    assert check().counts == {"train": 3, "val": 2}
