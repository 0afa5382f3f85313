"""Names, specs and split expressions."""

import pytest

from segzoo import data
from segzoo.data import spec as spec_module
from segzoo.data.spec import DatasetSpec, default_palette, select
from segzoo.errors import SegzooError

LENGTHS = {"train": 30, "val": 7}


def test_every_dataset_describes_itself_without_its_files(tmp_path):
    names = data.list_datasets()
    assert {"camvid", "isbi2012_em", "dsb2018_nuclei", "mnist", "oxford_iiit_pet"} < set(names)
    for name in names:
        if name == "folder":
            continue
        spec = data.get(name, data_dir=tmp_path).spec
        assert spec.name == name
        assert spec.description
        assert spec.terms
        assert len(spec.palette) == spec.num_classes == len(set(spec.class_names))
        assert spec.channels in (1, 3)
        assert all(0 < m < 255 for m in spec.mean)
    assert not list(tmp_path.iterdir())


def test_unknown_dataset_names_the_nearest():
    with pytest.raises(SegzooError, match=r"unknown dataset 'camvit'\. Did you mean 'camvid'"):
        data.get("camvit")


def test_a_name_is_registered_once(monkeypatch):
    monkeypatch.setattr(spec_module, "_FACTORIES", dict(spec_module._FACTORIES))

    def factory(data_dir, manual_dir):
        raise AssertionError

    data.list_datasets()
    with pytest.raises(SegzooError, match="'camvid' is registered already"):
        data.register_dataset("camvid")(factory)
    data.register_dataset("mine")(factory)
    assert "mine" in data.list_datasets()


def test_data_dir_follows_tfds(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert spec_module.default_data_dir() == tmp_path
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert spec_module.default_data_dir().name == "tensorflow_datasets"


@pytest.mark.parametrize(
    ("split", "ranges"),
    [
        ("train", [("train", 0, 30)]),
        ("train[:80%]", [("train", 0, 24)]),
        ("train[80%:]", [("train", 24, 30)]),
        ("train[-5:]", [("train", 25, 30)]),
        ("train[10:20]+val", [("train", 10, 20), ("val", 0, 7)]),
        ("all", [("train", 0, 30), ("val", 0, 7)]),
    ],
)
def test_split_expressions_are_those_of_tfds(split, ranges):
    assert select(LENGTHS, split, "x") == ranges


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("trian", "no split 'trian'. Did you mean 'train'"),
        ("train+test", "no split 'test'.*train .30., val .7."),
        ("", "no split ''"),
        ("train[a]", "cannot be read; expected e.g."),
        ("train[:31]", "cannot be read"),
        ("train[:0]", "selects no example"),
        ("val[5:2]", "selects no example"),
        (None, "not a string"),
    ],
)
def test_wrong_splits_are_refused(split, message):
    with pytest.raises(SegzooError, match=message):
        select(LENGTHS, split, "x")


def test_palette_is_pascal_voc():
    assert default_palette(22)[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert default_palette(21)[15] == (192, 128, 128)  # person
    assert len(set(default_palette(256))) == 256


@pytest.mark.parametrize(
    "change",
    [
        {"class_names": ()},
        {"class_names": tuple(map(str, range(256)))},
        {"palette": ((0, 0, 0),)},
        {"std": (1.0, 1.0)},
        {"mean": (), "std": ()},
        {"task": "instance", "class_names": ("a", "b")},
        {"task": "instance", "class_names": ("background",)},
    ],
)
def test_impossible_specs_are_refused(change):
    fields = {"task": "semantic", "class_names": ("a", "b"), "mean": (1.0,), "std": (1.0,)}
    with pytest.raises(SegzooError):
        DatasetSpec("x", **{**fields, **change})


def test_objects_may_be_of_more_classes_than_pixels():
    names = ("background", *map(str, range(1203)))
    assert DatasetSpec("x", "instance", names, (1.0,), (1.0,)).num_classes == 1204


def test_255_classes_leave_room_for_void():
    names = tuple(map(str, range(255)))
    assert DatasetSpec("x", "semantic", names, (1.0,), (1.0,)).num_classes == 255
