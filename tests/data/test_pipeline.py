"""Batches are a function of (seed, number) alone, and evaluation sees everything once."""

import dataclasses
import threading

import numpy as np
import pytest

from segzoo.data.pipeline import device_prefetch, eval_batches, train_batches
from segzoo.data.transforms import Fit, FitSides
from segzoo.errors import SegzooError


@dataclasses.dataclass
class Numbered:
    """A source whose image i is full of i, with sizes and flaws to order."""

    length: int = 10
    sizes: tuple = ((4, 6),)
    damaged: int | None = None
    tells_shapes: bool = True

    def __post_init__(self):
        if self.tells_shapes:
            self.image_shape = self._shape

    def __len__(self):
        return self.length

    def _shape(self, index):
        return (*self.sizes[index % len(self.sizes)], 3)

    def __getitem__(self, index):
        if index == self.damaged:
            raise SegzooError("images/0007.png: the image is damaged or cut off.")
        shape = self._shape(index)
        return {
            "image": np.full(shape, index, np.uint8),
            "label": np.full(shape[:-1], index % 3, np.uint8),
            "instances": np.full(shape[:-1], index, np.int32),
        }

    def __reduce__(self):
        return type(self), (self.length, self.sizes, self.damaged, self.tells_shapes)


def seen(batch):
    """Returns which examples a batch holds."""
    return batch["image"].reshape(len(batch["image"]), -1)[:, 0].tolist()


def take(count, source=None, **options):
    options = {"batch_size": 4, "seed": 3, **options}
    with train_batches(source or Numbered(), **options) as batches:
        return [next(batches) for _ in range(count)]


def assert_same(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
            assert a[key].dtype == b[key].dtype


# --- Training -----------------------------------------------------------------------------------


def test_every_epoch_shows_each_example_once_in_its_own_order():
    stream = [i for batch in take(10) for i in seen(batch)]  # 4 epochs of 10, batches across them
    epochs = [stream[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_index_is_the_place_in_the_stream():
    for number, batch in enumerate(take(3)):
        np.testing.assert_array_equal(batch["index"], 4 * number + np.arange(4))
        assert batch["index"].dtype == np.uint32
    (late,) = take(1, start=2**30, batch_size=6)
    np.testing.assert_array_equal(late["index"], (6 * 2**30 + np.arange(6)) % 2**32)


def test_starting_again_continues_exactly():
    assert_same(take(6)[4:], take(2, start=4))


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 1}, {"threads": 5}])
def test_threads_change_nothing(options):
    assert_same(take(6), take(6, **options))


def test_workers_change_nothing():
    assert_same(take(5, start=2), take(5, start=2, workers=2, threads=1))


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_one_stream(count):
    parts = [take(5, process_index=i, process_count=count) for i in range(count)]
    joined = [
        {key: np.concatenate([part[n][key] for part in parts]) for key in parts[0][n]}
        for n in range(5)
    ]
    assert_same(take(5), joined)


def test_a_batch_may_be_larger_than_the_dataset():
    (batch,) = take(1, Numbered(3), batch_size=8)
    assert sorted(seen(batch)[:3]) == sorted(seen(batch)[3:6]) == [0, 1, 2]
    assert len(set(seen(batch)[6:])) == 2


def test_only_what_tasks_use_is_kept():
    assert take(1)[0].keys() == {"image", "label", "index"}
    assert take(1, instances=True)[0]["instances"].dtype == np.int32


def test_differing_sizes_need_image_size():
    source = Numbered(sizes=((4, 6), (5, 6)))
    with pytest.raises(SegzooError, match=r"example \d+ is .x6 but .*: set image_size"):
        take(3, source)
    assert take(1, source, transform=Fit((4, 4)))[0]["image"].shape == (4, 4, 4, 3)


def test_sides_pad_labels_with_void():
    source = Numbered(sizes=((4, 6), (9, 5)))
    for batch in take(4, source, transform=FitSides((16, 64))):
        assert batch["image"].shape == (4, 32, 32, 3)
        assert ((batch["label"] == 255).sum((1, 2)) >= 32 * 32 - 16 * 29).all()
        assert batch.keys() == {"image", "label", "index"}


@pytest.mark.parametrize("options", [{"threads": 0}, {"threads": 2}, {"workers": 1}])
def test_a_damaged_file_is_named(options):
    with pytest.raises(SegzooError, match=r"images/0007\.png: the image is damaged"):
        take(4, Numbered(damaged=7), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 cannot be divided among 4"),
        ({"process_index": 2, "process_count": 2}, r"process_index is 2; expected 0\.\.1"),
        ({"seed": -1}, "seed is -1"),
        ({"start": -1}, "start is -1"),
        ({"threads": -1}, "threads is -1"),
        ({"workers": 1.5}, "workers is 1.5"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(SegzooError, match=message):
        take(1, **options)


def test_an_empty_source_is_refused():
    with pytest.raises(SegzooError, match="no examples"):
        train_batches(Numbered(0), batch_size=4, seed=0)


@dataclasses.dataclass
class Spoil:
    """A transform that replaces an entry."""

    key: str
    value: np.ndarray | None

    def __call__(self, example):
        example = {**example, self.key: self.value}
        return {key: value for key, value in example.items() if value is not None}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("label", None, "has the keys .*expected 'image' and 'label'"),
        ("image", np.zeros((4, 6, 3), np.float32), r"is float32\[4, 6, 3\]; expected uint8"),
        ("label", np.zeros((4, 5), np.uint8), r"label of example \d+ is uint8\[4, 5\]; expected "),
        ("label", np.zeros((4, 6), np.int64), r"is int64\[4, 6\]; expected uint8\[4, 6\]"),
        ("label", np.array(1), r"is int64\[\]; expected int32\[\]"),
        ("weight", np.zeros((4, 6)), r"weight of .*expected float32\[4, 6\]"),
    ],
)
def test_examples_are_checked(key, value, message):
    with pytest.raises(SegzooError, match=message):
        take(1, transform=Spoil(key, value))


def test_closing_ends_the_threads():
    before = threading.active_count()
    batches = train_batches(Numbered(), batch_size=2, seed=0, threads=3)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)
    for thread in threading.enumerate():
        if thread.name.startswith("grain-prefetch"):
            thread.join(10)
    assert threading.active_count() <= before


# --- Evaluation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 16])
def test_every_example_comes_exactly_once(batch_size):
    batches = list(eval_batches(Numbered(), batch_size=batch_size))
    assert len(batches) == -(-10 // batch_size)
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index, np.arange(len(index)))
    real = index < 10
    images = np.concatenate([batch["image"] for batch in batches])
    labels = np.concatenate([batch["label"] for batch in batches])
    sizes = np.concatenate([batch["size"] for batch in batches])
    np.testing.assert_array_equal(images[real][:, 0, 0, 0], np.arange(10))
    assert (images[~real] == 0).all()
    assert (labels[~real] == 255).all()
    assert (labels[real] != 255).all()
    np.testing.assert_array_equal(sizes, np.where(real[:, None], [4, 6], 0))


@pytest.mark.parametrize("tells_shapes", [True, False])
@pytest.mark.parametrize("sizes", [((4, 6),), ((4, 6), (9, 3), (40, 2), (4, 30))])
def test_processes_agree_on_number_and_shape(sizes, tells_shapes):
    source = Numbered(9, sizes, tells_shapes=tells_shapes)
    parts = [
        list(eval_batches(source, batch_size=8, process_index=i, process_count=4)) for i in range(4)
    ]
    assert {len(part) for part in parts} == {2}
    joined = [
        {key: np.concatenate([part[n][key] for part in parts]) for key in parts[0][n]}
        for n in range(2)
    ]
    assert_same(list(eval_batches(source, batch_size=8)), joined)
    # Processes 1 to 3 have nothing left in the last batch, in the right shape all the same.
    assert (parts[3][1]["label"] == 255).all()


def test_differing_sizes_share_few_canvases():
    sizes = tuple((h, w) for h in range(20, 50, 3) for w in range(20, 50, 7))
    source = Numbered(len(sizes), sizes)
    for batch_size in (1, 4):
        shapes = set()
        for batch in eval_batches(source, batch_size=batch_size):
            shapes.add(batch["image"].shape)
            for image, label, index, size in zip(
                *(batch[key] for key in ("image", "label", "index", "size")), strict=True
            ):
                if index >= len(source):
                    continue
                height, width = size
                assert (height, width) == sizes[index]
                assert (image[:height, :width] == index).all()
                assert (label[:height, :width] == index % 3).all()
                assert (label != 255).sum() == height * width
        assert shapes <= {(batch_size, h, w, 3) for h in (32, 64) for w in (32, 64)}


def test_bucket_sets_the_steps():
    source = Numbered(2, ((10, 7), (11, 5)))
    (batch,) = eval_batches(source, batch_size=2, bucket=8)
    assert batch["image"].shape == (2, 16, 8, 3)
    (batch,) = eval_batches(source, batch_size=2, transform=Fit((10, 7)))
    assert batch["image"].shape == (2, 10, 7, 3)


class Digits(Numbered):
    """A source for classification."""

    def __getitem__(self, index):
        return {**super().__getitem__(index), "label": np.array(index, np.int32)}


def test_class_labels_are_filled_up_with_void():
    batches = list(eval_batches(Digits(5), batch_size=4))
    labels = np.concatenate([batch["label"] for batch in batches])
    assert labels.dtype == np.int32
    assert labels.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    assert take(1, Digits(5))[0]["label"].shape == (4,)


def test_threads_and_workers_change_no_evaluation():
    expected = list(eval_batches(Numbered(), batch_size=4, threads=0))
    assert_same(expected, list(eval_batches(Numbered(), batch_size=4, threads=3)))
    with eval_batches(Numbered(), batch_size=4, workers=2) as batches:
        assert_same(expected, list(batches))


# --- To the device ------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1, 2, 7])
def test_prefetch_keeps_order_and_distance(depth):
    started = []

    def put(item):
        started.append(item)
        return -item

    results = device_prefetch(iter(range(5)), put, depth)
    assert next(results) == 0
    assert len(started) == min(5, depth + 1)
    assert list(results) == [-1, -2, -3, -4]
    assert started == list(range(5))


def test_prefetch_closes_what_it_reads():
    batches = train_batches(Numbered(), batch_size=2, seed=0)
    ahead = device_prefetch(batches, lambda batch: batch)
    next(ahead)
    ahead.close()
    with pytest.raises(StopIteration):
        next(batches)
