"""Objects one by one, out of a dataset that keeps instance ids; and made-up ones."""

import pickle

import numpy as np
import pytest

from segzoo import data
from segzoo.data import shapes
from segzoo.data.coco import SPEC as COCO
from segzoo.data.instances import InstanceSource, objects_of
from segzoo.data.made import MadeDataset
from segzoo.data.pipeline import eval_batches, train_batches
from segzoo.data.statistics import object_counts
from segzoo.errors import SegzooError


def test_ids_become_numbers_without_gaps():
    ids = np.array([[0, 9, 9, 300], [4, 4, 9, 300]], np.uint16)
    label = np.array([[0, 1, 1, 2], [2, 2, 1, 2]], np.uint8)
    instances, classes = objects_of(label, ids)
    np.testing.assert_array_equal(instances, [[0, 2, 2, 3], [1, 1, 2, 3]])
    assert instances.dtype == classes.dtype == np.int32
    assert classes.tolist() == [2, 1, 2]


def test_most_pixels_tell_the_class():
    _, classes = objects_of(np.array([1, 2, 2, 0, 1], np.uint8), np.array([5, 5, 5, 0, 7]))
    assert classes.tolist() == [2, 1]


@pytest.mark.parametrize("full", [False, True])
def test_images_may_be_empty_or_full(full):
    instances, classes = objects_of(np.full((2, 3), int(full), np.uint8), np.full((2, 3), full * 8))
    assert (instances == int(full)).all()
    assert classes.tolist() == [1] * full


class Semantic:
    """Two touching objects of one class, and one of another."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        ids = np.array([[1, 1, 2, 2, 0, 5]], np.int32)
        label = np.array([[1, 1, 1, 1, 0, 2]], np.uint8)
        return {"image": np.zeros((1, 6, 3), np.uint8), "label": label, "instances": ids}


def test_touching_objects_are_kept_apart():
    source = InstanceSource(Semantic())
    example = source[0]
    assert example.keys() == {"image", "classes", "crowd", "instances"}
    np.testing.assert_array_equal(example["instances"], [[1, 1, 2, 2, 0, 3]])
    assert example["classes"].tolist() == [1, 1, 2]
    assert not example["crowd"].any()
    assert (source.objects(0), source.name(0), source.image_shape(0)) == (3, "0", (1, 6, 3))
    assert len(source.__getitems__([0, 0])) == 2


def test_generated_shapes_are_objects(monkeypatch, tmp_path):
    monkeypatch.setattr(shapes, "SPLITS", {"train": 4, "val": 2, "test": 2})
    dataset = data.get("shapes_instances", data_dir=tmp_path)
    assert dataset.spec.class_names == ("background", "ellipse", "rectangle")
    source = pickle.loads(pickle.dumps(dataset.source("val")))
    assert source.name(1) == "0005"
    example, drawn = source[1], shapes.draw(5)
    ids = np.unique(drawn["instances"])[1:]
    assert len(example["classes"]) == len(ids) == source.objects(1)
    for number, (wanted, kind) in enumerate(zip(ids, example["classes"], strict=True), 1):
        inside = example["instances"] == number
        np.testing.assert_array_equal(inside, drawn["instances"] == wanted)
        assert (drawn["label"][inside] == kind).all()
    # The prepared files are those of "shapes", and so is what was measured on them.
    assert (tmp_path / "segzoo" / "shapes").exists()
    assert not (tmp_path / "segzoo" / "shapes_instances").exists()
    assert object_counts(source).tolist() == [source.objects(i) for i in range(2)]
    with train_batches(dataset.source("train"), batch_size=2, seed=0) as batches:
        assert next(batches)["instances"].shape == (2, 128, 128)
    with pytest.raises(SegzooError, match="no split 'validation'"):
        dataset.source("validation")


@pytest.mark.parametrize(
    "spec", [COCO, data.get("dsb2018_nuclei_instances").spec], ids=["masks", "instances"]
)
def test_made_up_objects_are_like_the_dataset(spec):
    dataset = MadeDataset(spec, (48, 80), {"train": 6, "val": 2})
    source = dataset.source("train")
    assert [source.objects(i) for i in range(6)] == object_counts(source).tolist()
    for i in range(6):
        example = source[i]
        assert ("masks" in example) == spec.overlaps
        assert 1 <= example["classes"].min() <= example["classes"].max() < spec.num_classes
    with train_batches(source, batch_size=3, seed=0) as batches:
        batch = next(batches)
    assert batch["image"].shape == (3, 48, 80, spec.channels)
    assert (batch["valid"].sum(1) >= 1).all()
    pixels = batch["masks"].max(1) if spec.overlaps else batch["instances"] > 0
    assert (pixels.any((1, 2))).all()
    (batch,) = eval_batches(dataset.source("val"), batch_size=4)
    assert batch["valid"].any(1).tolist() == [True, True, False, False]
