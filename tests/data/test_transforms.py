"""Sizes and U-Net's weight map."""

import pickle

import numpy as np
import pytest
from PIL import Image

from segzoo.data.transforms import (
    BorderWeight,
    Fit,
    FitSides,
    class_balance,
    resize,
    resize_nearest,
    two_distances,
)
from segzoo.errors import SegzooError

RNG = np.random.default_rng(0)


def example(*space, channels=3):
    return {
        "image": RNG.integers(0, 256, (*space, channels), np.uint8),
        "label": RNG.integers(0, 5, space, np.uint8),
        "instances": RNG.integers(0, 900, space, np.int32),
        "weight": RNG.random(space, np.float32),
    }


@pytest.mark.parametrize("mode", ["resize", "pad", "crop"])
@pytest.mark.parametrize("space", [(9, 16), (20, 7), (12, 10), (4, 5, 6)])
def test_everything_gets_the_size(mode, space):
    size = (12, 10) if len(space) == 2 else (3, 7, 5)
    fit = Fit(size, mode)
    before = example(*space)
    after = fit(before)
    for key, value in after.items():
        assert value.shape[: len(size)] == size
        assert value.dtype == before[key].dtype
        assert value.flags.c_contiguous
    assert fit.output_shape(before["image"].shape) == after["image"].shape
    assert set(np.unique(after["label"])) <= set(np.unique(before["label"])) | {255}
    assert pickle.loads(pickle.dumps(fit)) == fit


def objects(*space, count=3):
    """The same objects as bitmaps and as a map of numbers."""
    instances = RNG.integers(0, count + 1, space, np.int32)
    places = np.arange(1, count + 1)[:, None, None]
    return {
        "image": RNG.integers(0, 256, (*space, 3), np.uint8),
        "classes": np.arange(1, count + 1, dtype=np.int32),
        "crowd": np.zeros(count, bool),
        "instances": instances,
        "masks": (instances == places).astype(np.uint8),
    }


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize(
    "fit",
    [*(Fit((13, 9), mode) for mode in ("resize", "pad", "crop")), FitSides((13, 20))],
)
def test_bitmaps_move_as_a_map_of_numbers(fit, count):
    before = objects(10, 16, count=count)
    after = fit(before)
    assert after["image"].shape == fit.output_shape(before["image"].shape)
    numbers = np.arange(1, count + 1)[:, None, None]
    np.testing.assert_array_equal(after["masks"], after["instances"] == numbers)
    assert after["masks"].dtype == np.uint8
    assert after["masks"].flags.c_contiguous
    for key in ("classes", "crowd"):
        np.testing.assert_array_equal(after[key], before[key])


@pytest.mark.parametrize(
    ("space", "size"),
    [
        ((480, 640), (800, 1067)),  # COCO's most common size, at Mask R-CNN's scale
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),
        ((300, 640), (625, 1333)),  # the longer side is full first
        ((1600, 2000), (800, 1000)),
        ((800, 1333), (800, 1333)),
        ((1, 5000), (1, 1333)),
    ],
)
def test_the_shorter_side_gets_its_length_unless_the_longer_would_be_too_long(space, size):
    fit = FitSides((800, 1333))
    assert fit.output_shape((*space, 3)) == (*size, 3)
    height, width = next(
        canvas for canvas in fit.canvases if canvas[0] >= size[0] and canvas[1] >= size[1]
    )
    assert height % 32 == width % 32 == 0


def test_canvases_are_few_and_hold_everything():
    assert FitSides((800, 1333)).canvases == (
        (800, 1088),
        (1088, 800),
        (800, 1344),
        (1344, 800),
        (1088, 1088),
        (1344, 1344),
    )
    assert FitSides((64, 64)).canvases == ((64, 64),)
    assert pickle.loads(pickle.dumps(FitSides([3, 5]))) == FitSides((3, 5))
    before = objects(6, 8)
    assert FitSides((6, 8))(before) is before


@pytest.mark.parametrize("size", [(800,), (5, 4), (0, 4), (3, 4, 5), (2.5, 4)])
def test_impossible_sides_are_refused(size):
    with pytest.raises(SegzooError, match="image_size is"):
        FitSides(size)


def test_sides_are_of_pictures():
    with pytest.raises(SegzooError, match=r"is for pictures; found the size \(4, 5, 6\)"):
        FitSides((3, 5)).output_shape((4, 5, 6, 1))


def test_the_right_size_is_left_alone():
    before = example(6, 8)
    assert Fit((6, 8))(before) is before


def test_pad_keeps_the_aspect_ratio():
    before = example(8, 4)
    after = Fit((16, 16), "pad")(before)
    np.testing.assert_array_equal(
        after["label"][:, :8], np.repeat(np.repeat(before["label"], 2, 0), 2, 1)
    )
    assert (after["label"][:, 8:] == 255).all()
    assert (after["weight"][:, 8:] == 0).all()
    assert (after["image"][:, 8:] == 0).all()


def test_crop_keeps_the_scale():
    before = example(8, 4)
    after = Fit((4, 6), "crop")(before)
    np.testing.assert_array_equal(after["image"][:, :4], before["image"][2:6])
    np.testing.assert_array_equal(after["label"][:, :4], before["label"][2:6])
    assert (after["label"][:, 4:] == 255).all()


def test_resize_averages_where_it_shrinks():
    checks = np.indices((32, 32)).sum(0) % 2 * np.uint8(200)
    small = resize(checks.astype(np.uint8)[..., None], (8, 8))
    # Nearest or plain bilinear sampling would give 0, 100 or 200 by chance of the phase.
    assert abs(small[1:-1, 1:-1].astype(int) - 100).max() <= 2


@pytest.mark.parametrize("size", [(5, 9), (31, 40), (13, 9)])
def test_volumes_resize_as_pictures_do(size):
    """The separable filter for any number of axes equals Pillow's in two."""
    image = RNG.random((13, 17)).astype(np.float32)
    ours = resize(np.stack([image] * 2), (2, *size))
    np.testing.assert_allclose(ours[0], resize(image, size), atol=1e-5)


@pytest.mark.parametrize("size", [(5, 9), (31, 40), (13, 9)])
def test_nearest_is_pillows(size):
    label = RNG.integers(0, 255, (13, 17), np.uint8)
    expected = Image.fromarray(label).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_nearest(label, size), np.array(expected))


def test_a_class_label_has_nothing_to_fit():
    digit = {"image": np.zeros((28, 28, 1), np.uint8), "label": np.array(7, np.int32)}
    after = Fit((32, 32))(digit)
    assert after["label"] == 7
    assert after["image"].shape == (32, 32, 1)


def test_impossible_sizes_are_refused():
    with pytest.raises(SegzooError, match="image_size is 0"):
        Fit((0, 4))
    with pytest.raises(SegzooError, match="image_fit is 'squash'"):
        Fit((4, 4), "squash")
    with pytest.raises(SegzooError, match="2 axes but the images have 3"):
        Fit((4, 4))(example(4, 4, 4))


# --- U-Net's weight map -------------------------------------------------------------------------


def two_squares(gap=4):
    """Two 6x6 cells side by side with `gap` pixels between, in 20 rows."""
    label = np.zeros((20, 20 + gap), np.uint8)
    label[7:13, 4:10] = 1
    label[7:13, 10 + gap : 16 + gap] = 1
    return label


def weigh(label, **fields):
    return BorderWeight(**fields)({"image": None, "label": label})["weight"]


def test_the_gap_between_two_squares_by_hand():
    label = two_squares(gap=4)
    weight = weigh(label, balance=False)
    # From column 10 the left square is 1 pixel away and the right one 4; from 11, 2 and 3.
    expected = 1 + 10 * np.exp(-((1 + 4) ** 2) / (2 * 5**2))
    np.testing.assert_allclose(weight[10, 10:14], expected, rtol=1e-6)
    # 3 rows above the squares' upper corners: by Pythagoras.
    d1, d2 = np.hypot(3, 1), np.hypot(3, 4)
    np.testing.assert_allclose(weight[4, 10], 1 + 10 * np.exp(-((d1 + d2) ** 2) / 50), rtol=1e-6)
    # Inside the cells only w_c counts.
    assert (weight[label == 1] == 1).all()


def test_the_map_is_as_symmetric_as_the_cells():
    weight = weigh(two_squares())
    np.testing.assert_allclose(weight, weight[:, ::-1], rtol=1e-6)
    np.testing.assert_allclose(weight, weight[::-1], rtol=1e-6)
    turned = weigh(np.ascontiguousarray(two_squares().T))
    np.testing.assert_allclose(turned, weight.T, rtol=1e-6)


def test_thin_gaps_weigh_most():
    peaks = [weigh(two_squares(gap), balance=False).max() for gap in (2, 4, 8, 16)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] == pytest.approx(1 + 10 * np.exp(-9 / 50), rel=1e-6)


@pytest.mark.parametrize("cells", [0, 1])
def test_fewer_than_two_cells_have_no_border(cells):
    label = two_squares()
    label[:, 10 if cells else 0 :] = 0
    np.testing.assert_array_equal(weigh(label, balance=False), 1)


def test_touching_instances_are_two_cells():
    label = np.ones((9, 12), np.uint8)
    label[:, 5:7] = 0
    label[4, 5:7] = 1  # a bridge makes one component of the two
    instances = np.where(label == 1, 1 + (np.arange(12) >= 6), 0).astype(np.int32)
    transform = BorderWeight(balance=False)
    assert transform({"label": label})["weight"].max() == 1
    assert transform({"label": label, "instances": instances})["weight"].max() > 5


def test_void_weighs_nothing():
    label = two_squares()
    label[10, 11] = 255
    assert weigh(label)[10, 11] == 0


def test_another_class_can_be_the_cell():
    label = two_squares()
    np.testing.assert_allclose(weigh(1 - label, cell=0), weigh(label), rtol=1e-6)


def test_class_balance_shares_equally():
    label = np.array([[0, 0, 0, 1], [0, 0, 0, 255]], np.uint8)
    weight = class_balance(label)
    assert weight[label == 0].sum() == pytest.approx(weight[label == 1].sum())
    assert weight.sum() == pytest.approx(7)
    assert weight[1, 3] == 0
    assert not class_balance(np.full((2, 2), 255, np.uint8)).any()


def test_reach_changes_nothing_within_it():
    instances = np.zeros((40, 50), np.int32)
    for number, (y, x) in enumerate(RNG.integers(0, 36, (12, 2)), 1):
        instances[y : y + 4, x : x + 4] = number
    exact, near = two_distances(instances), two_distances(instances, 9)
    for a, b in zip(exact, near, strict=True):
        np.testing.assert_array_equal(a[a <= 9], b[a <= 9])
        assert (b[a > 9] > 9).all()


def test_volumes_have_weights_too():
    label = np.zeros((6, 8, 9), np.uint8)
    label[1:5, 2:6, 1:4] = label[1:5, 2:6, 6:8] = 1
    weight = weigh(label, balance=False)
    assert weight[3, 4, 4] == pytest.approx(1 + 10 * np.exp(-9 / 50), rel=1e-6)


def test_maps_are_kept_by_content_and_parameters(tmp_path, monkeypatch):
    first = weigh(two_squares(), cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("segzoo.data.transforms.two_distances", None)
        np.testing.assert_array_equal(weigh(two_squares(), cache_dir=tmp_path), first)
    assert not np.array_equal(weigh(two_squares(), sigma=3, cache_dir=tmp_path), first)
    assert not np.array_equal(weigh(1 - two_squares(), cache_dir=tmp_path), first)
    assert len(list(tmp_path.iterdir())) == 3
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    np.testing.assert_array_equal(weigh(two_squares(), cache_dir=tmp_path), first)


def test_impossible_parameters_are_refused():
    with pytest.raises(SegzooError, match="sigma 0"):
        BorderWeight(sigma=0)
    with pytest.raises(SegzooError, match="a label for every pixel"):
        weigh(np.array(3, np.int32))


def test_borders_are_not_of_objects():
    with pytest.raises(SegzooError, match="border_weight is for semantic segmentation"):
        BorderWeight()(objects(6, 8))
