"""Batches of objects: a fixed number of places, and few canvases."""

import dataclasses
import logging

import numpy as np
import pytest

from segzoo.data.objects import fill_places, pack_masks, unpack_masks
from segzoo.data.pipeline import eval_batches, train_batches
from segzoo.data.transforms import FitSides
from segzoo.errors import SegzooError


@dataclasses.dataclass
class Objects:
    """Image i is full of i and has `counts[i]` objects, a column each; object m is of class m + 1.

    With `masks` they are bitmaps, else a map of numbers.
    """

    counts: tuple = (0, 1, 3)
    sizes: tuple = ((4, 320),)
    masks: bool = False

    def __len__(self):
        return len(self.counts)

    def objects(self, index):
        return self.counts[index]

    def image_shape(self, index):
        return (*self.sizes[index % len(self.sizes)], 3)

    def __getitem__(self, index):
        count, shape = self.counts[index], self.image_shape(index)
        instances = np.zeros(shape[:-1], np.int32)
        instances[:, :count] = np.arange(1, count + 1)
        numbers = np.arange(1, count + 1, dtype=np.int32)
        pixels = {"instances": instances}
        if self.masks:
            pixels = {"masks": (instances == numbers[:, None, None]).astype(np.uint8)}
        return {
            "image": np.full(shape, index, np.uint8),
            "classes": numbers,
            "crowd": numbers % 3 == 0,
            **pixels,
        }


def take(count, source, **options):
    options = {"batch_size": 3, "seed": 0, **options}
    with train_batches(source, **options) as batches:
        return [next(batches) for _ in range(count)]


def seen(batch):
    return batch["image"][:, 0, 0, 0].tolist()


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("count", [0, 1, 300])
def test_every_object_has_a_place(count, masks):
    source = Objects((count, 2), masks=masks)
    places = 384 if count == 300 else 8
    (batch,) = take(1, source, batch_size=2)
    pixels = (2, places, 4, 320) if masks else (2, 4, 320)
    assert {key: (value.dtype, value.shape) for key, value in batch.items()} == {
        "image": (np.uint8, (2, 4, 320, 3)),
        "size": (np.int32, (2, 2)),
        "index": (np.uint32, (2,)),
        "classes": (np.int32, (2, places)),
        "crowd": (bool, (2, places)),
        "valid": (bool, (2, places)),
        "masks" if masks else "instances": (np.uint8 if masks else np.int32, pixels),
    }
    row = seen(batch).index(0)
    numbers = np.arange(1, count + 1)
    assert batch["valid"][row].sum() == count
    assert batch["valid"][row][:count].all()
    np.testing.assert_array_equal(batch["classes"][row, :count], numbers)
    np.testing.assert_array_equal(batch["crowd"][row, :count], numbers % 3 == 0)
    assert not batch["classes"][row, count:].any()
    expected = source[0]["masks" if masks else "instances"]
    if masks:
        np.testing.assert_array_equal(batch["masks"][row, :count], expected)
        assert not batch["masks"][row, count:].any()
    else:
        np.testing.assert_array_equal(batch["instances"][row], expected)


@pytest.mark.parametrize("masks", [False, True])
def test_of_too_many_the_largest_stay_in_their_order(masks):
    areas = [1, 5, 2, 7, 3]
    instances = np.repeat([0, 1, 2, 3, 4, 5], [2, *areas]).astype(np.int32)[None]
    pixels = {"instances": instances}
    if masks:
        pixels = {"masks": (instances == np.arange(1, 6)[:, None, None]).astype(np.uint8)}
    example = {
        "image": np.zeros((1, 20, 3), np.uint8),
        "classes": np.arange(1, 6, dtype=np.int32),
        "crowd": np.array([0, 1, 0, 0, 1], bool),
        **pixels,
    }
    filled = fill_places(example, 3, "x")
    assert filled["classes"].tolist() == [2, 4, 5]
    assert filled["crowd"].tolist() == [True, False, True]
    assert filled["valid"].all()
    found = filled["masks"] if masks else filled["instances"] == np.arange(1, 4)[:, None, None]
    assert found.sum((1, 2)).tolist() == [5, 7, 3]
    assert fill_places(example, 7, "x")["valid"].tolist() == [True] * 5 + [False] * 2


@pytest.mark.parametrize("width", [1, 8, 13])
def test_packed_masks_come_back(width):
    masks = np.random.default_rng(0).integers(0, 2, (2, 3, 4, width), np.uint8)
    bits = pack_masks(masks)
    assert bits.shape == (2, 3, 4, -(-width // 8))
    found = unpack_masks(bits, 5, width)
    np.testing.assert_array_equal(found[:, :3], masks)
    assert found.shape == (2, 5, 4, width)
    assert not found[:, 3:].any()


def test_what_is_left_out_is_counted_and_said(caplog):
    source = Objects((3, 600, 700), ((4, 700),))
    with caplog.at_level(logging.WARNING):
        (batch,) = take(1, source)
    assert batch["valid"].sum(1).max() == batch["valid"].shape[1] == 512
    assert caplog.messages == [
        "2 of 3 images have more than 512 objects: the largest are kept, 276 of 1303 objects are "
        "left out"
    ]
    assert take(1, source, places=20)[0]["classes"].shape == (3, 20)
    # Scores are of all objects.
    (batch,) = eval_batches(source, batch_size=3)
    assert batch["valid"].sum(1).tolist() == [3, 600, 700]
    assert batch["valid"].shape[1] == 1024


@pytest.mark.parametrize("masks", [False, True])
def test_evaluation_sees_every_object_once(masks):
    source = Objects((0, 1, 3, 2, 9), ((4, 320), (6, 330)), masks)
    batches = list(eval_batches(source, batch_size=4))
    assert [b["image"].shape for b in batches] == [(4, 32, 352, 3), (4, 32, 320, 3)]
    valid = np.concatenate([batch["valid"] for batch in batches])
    assert valid.sum(1).tolist() == [0, 1, 3, 2, 9, 0, 0, 0]
    assert valid.shape[1] == 16
    for batch in batches:
        for row, index in enumerate(batch["index"]):
            if index >= len(source):
                assert not batch["size"][row].any()
                continue
            height, width = batch["size"][row]
            key = "masks" if masks else "instances"
            expected = source[index][key]
            found = batch[key][row][..., :height, :width]
            np.testing.assert_array_equal(found[: len(expected)] if masks else found, expected)
            assert batch[key][row].sum() == expected.sum()


def test_processes_and_workers_agree():
    sizes = ((20, 30), (30, 20), (20, 40))
    source = Objects((3, 1, 0, 7, 2, 9, 4), sizes)
    options = {"batch_size": 4, "transform": FitSides((64, 128))}
    whole = take(6, source, **options)
    parts = [take(6, source, process_index=i, process_count=2, **options) for i in range(2)]
    later = take(2, source, start=4, threads=0, **options)
    for number, batch in enumerate(whole):
        for key, value in batch.items():
            joined = np.concatenate([part[number][key] for part in parts])
            np.testing.assert_array_equal(joined, value)
            if number >= 4:
                np.testing.assert_array_equal(later[number - 4][key], value)


# --- Canvases -----------------------------------------------------------------------------------


def test_a_batch_is_of_images_of_one_canvas():
    sizes = ((20, 30), (30, 20), (20, 40), (20, 20))  # 3:2 lying and standing, 2:1, square
    source = Objects((1,) * 40, sizes)
    transform = FitSides((64, 128))
    shapes = set()
    for batch in take(20, source, transform=transform):
        shapes.add(batch["image"].shape[1:3])
        for image, size, index in zip(batch["image"], batch["size"], seen(batch), strict=True):
            assert tuple(size) == transform.output_shape(source.image_shape(index))[:2]
            assert (image[: size[0], : size[1]] == index).all()
            assert not image[size[0] :].any()
            assert not image[:, size[1] :].any()
    # 3:2 and a square fit where 4:3 does; no batch is of lying and standing images.
    assert shapes == {(64, 96), (96, 64), (64, 128)}
    (batch,) = eval_batches(Objects((1, 1), sizes), batch_size=2, transform=transform)
    assert batch["image"].shape[1:3] == (96, 96)


def test_images_of_one_size_are_not_padded():
    (batch,) = take(1, Objects(sizes=((20, 30),)), transform=FitSides((40, 100)))
    assert batch["image"].shape == (3, 40, 60, 3)


def test_differing_sizes_need_a_transform():
    with pytest.raises(SegzooError, match="set image_size to train"):
        take(2, Objects(sizes=((4, 320), (5, 320))))


# --- What is refused ----------------------------------------------------------------------------


@dataclasses.dataclass
class Spoilt(Objects):
    """With entries replaced."""

    changes: dict = dataclasses.field(default_factory=dict)

    def __getitem__(self, index):
        example = {**super().__getitem__(index), **self.changes}
        return {key: value for key, value in example.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crowd": None}, r"example \d has the keys .*expected 'crowd' and one of 'instances' and"),
        ({"instances": None}, "expected 'crowd' and one of"),
        ({"masks": np.zeros((2, 4, 320), np.uint8)}, "expected 'crowd' and one of"),
        ({"label": np.zeros((4, 320), np.uint8)}, "or 'image', 'classes', 'crowd' and one of"),
        ({"classes": np.ones(2)}, r"classes of example \d is float64\[2\]; expected int32\[2\]"),
        ({"crowd": np.zeros(3, bool)}, r"is bool\[3\]; expected bool\[2\]"),
        (
            {"instances": None, "masks": np.zeros((2, 4, 9), np.uint8)},
            r"masks of example \d is uint8\[2, 4, 9\]; expected uint8\[2, 4, 320\]",
        ),
        (
            {"instances": np.full((4, 320), 3, np.int32)},
            r"example \d has 2 classes of objects, but its instances go up to 3; expected m \+ 1",
        ),
    ],
)
def test_examples_are_checked(changes, message):
    with pytest.raises(SegzooError, match=message):
        take(1, Spoilt((2, 2), changes=changes))


def test_places_are_checked():
    with pytest.raises(SegzooError, match="places is 0; expected an integer of at least 1"):
        take(1, Objects(), places=0)

    class Uncounted(Objects):
        objects = property()

    with pytest.raises(SegzooError, match=r"has no method 'objects' that counts them"):
        take(1, Uncounted())
