import json

import numpy as np
import pytest
from PIL import Image

from segzoo import SegzooError, visualize

NAMES = ("background", "cell", "a class with a long name", "unseen")
PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0), (1, 2, 3))


def scene(height=64, width=48):
    truth = np.zeros((height, width), np.uint8)
    truth[: height // 2] = 1
    truth[:, -4:] = 255
    prediction = truth.copy()
    prediction[truth == 255] = 0
    prediction[-8:, :8] = 2
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image, truth, prediction


def colors_of(image):
    return set(map(tuple, np.asarray(image).reshape(-1, 3).tolist()))


def test_classes_have_their_colours_and_void_has_none_of_them():
    ids = np.array([[0, 1], [2, 255]], np.uint8)
    colors = visualize.colorize(ids, PALETTE)
    assert [tuple(c) for c in colors.reshape(-1, 3)[:3]] == list(PALETTE[:3])
    assert tuple(colors[1, 1]) not in PALETTE
    void = visualize.colorize(np.full((16, 16), 255, np.uint8), PALETTE)
    assert len(colors_of(void)) == 2  # a pattern: any single colour may be a class


def test_ids_past_the_palette_still_show():
    colors = visualize.colorize(np.array([[3, 9]]), PALETTE[:2])
    assert len({tuple(c) for c in colors[0]} | {PALETTE[0]}) == 3


def test_a_panel_tells_right_wrong_and_void_apart():
    panel = visualize.panel(*scene(), NAMES, PALETTE)
    assert panel.mode == "RGB"
    shown = colors_of(panel)
    assert {visualize.CORRECT, visualize.WRONG, *PALETTE[:3]} <= shown
    assert PALETTE[3] not in shown  # the legend names the classes shown, no others
    _, truth, prediction = scene()
    wrong = np.asarray(panel) == visualize.WRONG
    factor = 4  # 64 pixels are enlarged to 256
    swatch = 14 * 14
    valid = truth != 255
    errors = int((valid & (truth != prediction)).sum())
    assert wrong.all(-1).sum() == errors * factor**2 + swatch


def test_a_perfect_prediction_shows_no_error():
    image, truth, _ = scene()
    prediction = np.where(truth == 255, 0, truth)
    panel = np.asarray(visualize.panel(image, truth, prediction, NAMES, PALETTE))
    assert (panel == visualize.WRONG).all(-1).sum() == 14 * 14  # the legend's swatch


@pytest.mark.parametrize("size", [(64, 64), (16, 200), (360, 480), (512, 512), (1, 1)])
def test_panels_of_all_sizes_hold_whole_pictures(size):
    panel = visualize.panel(*scene(*size), NAMES, PALETTE, title="images/0001.png")
    assert panel.width >= 4 * max(1, min(size[1], 256))
    assert panel.width < 4 * 800
    assert panel.height > size[0]


def test_grey_images_and_panels_without_truth():
    image, truth, prediction = scene()
    for grey in (image[..., 0], image[..., :1]):
        assert visualize.panel(grey, truth, prediction, NAMES, PALETTE).mode == "RGB"
    with_truth = visualize.panel(image, truth, prediction, NAMES, PALETTE)
    without = visualize.panel(image, None, prediction, NAMES, PALETTE)
    assert without.width < with_truth.width
    assert visualize.WRONG not in colors_of(without)


def test_the_middle_slice_of_volumes_is_drawn():
    image, truth, prediction = (np.stack([a, a, a]) for a in scene())
    flat = visualize.panel(*scene(), NAMES, PALETTE)
    assert visualize.panel(image, truth, prediction, NAMES, PALETTE) == flat


def test_sizes_must_agree():
    image, truth, prediction = scene()
    with pytest.raises(SegzooError, match="differ in size"):
        visualize.panel(image[1:], truth, prediction, NAMES, PALETTE)


def test_all_void_panels_work():
    image, truth, prediction = scene()
    visualize.panel(image, np.full_like(truth, 255), prediction, NAMES, PALETTE)


def test_overlay_mixes_and_leaves_void_alone():
    image, truth, _ = scene()
    mixed = np.asarray(visualize.overlay(image, truth, PALETTE, alpha=0.5)).astype(int)
    np.testing.assert_array_equal(mixed[truth == 255], image[truth == 255])
    expected = (image[truth == 1].astype(int) + PALETTE[1]) / 2
    assert np.abs(mixed[truth == 1] - expected).max() <= 0.5


def test_grids_hold_every_panel():
    panels = [Image.new("RGB", (10, 20), (i, 0, 0)) for i in range(3)]
    sheet = visualize.grid(panels, columns=2)
    assert sheet.size == (20, 40)
    assert {(0, 0, 0), (1, 0, 0), (2, 0, 0)} <= colors_of(sheet)
    with pytest.raises(SegzooError):
        visualize.grid([])


def test_curves(tmp_path):
    rows = [{"step": s, "split": "train", "loss": 1 / s} for s in range(1, 50)]
    rows += [{"step": s, "split": "val", "loss": 1.0, "miou": s / 100} for s in (10, 20)]
    rows += [{"step": 30, "split": "val", "loss": float("nan"), "miou": None}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 3')
    image = visualize.curves(path)
    assert image.size == (1200, 456)
    assert len(colors_of(image)) > 10
    assert list(tmp_path.iterdir()) == [path]


def test_curves_need_rows(tmp_path):
    with pytest.raises(SegzooError, match="holds no rows"):
        visualize.curves(tmp_path / "metrics.jsonl")
