import dataclasses

import jax
import numpy as np
import pytest
from PIL import Image

from segzoo import Predictor, SegzooError, tiles, weights
from segzoo.data.transforms import Fit, resize
from segzoo.metrics import predict_classes
from segzoo.pictures import as_picture, read_picture
from segzoo.predict import full_size_logits, trained_size
from segzoo.weights import ModelInfo


def make_info(channels=3, num_classes=3, **args):
    fields = {k: args.pop(k) for k in ("image_size", "image_fit", "task") if k in args}
    return ModelInfo(
        model="unet",
        model_args={"num_classes": num_classes, "width": 4, "depth": 2, **args},
        class_names=tuple("abc"),
        palette=((0, 0, 0), (255, 0, 0), (0, 255, 0)),
        mean=(120.0, 110.0, 100.0)[:channels],
        std=(60.0, 50.0, 70.0)[:channels],
        in_channels=channels,
        **fields,
    )


def make(info, seed=0):
    rng = np.random.default_rng(seed)
    model = info.build()

    def fill(leaf):
        scale = np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1)) if len(leaf.shape) > 1 else 0.1
        return rng.normal(0, scale, leaf.shape).astype(np.float32)

    return model, jax.tree.map(fill, weights.variable_shapes(model, info))


def picture(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def direct(model, variables, info, image):
    """What a careful user would write by hand: float32 [*S, K]."""
    normalised = (image.astype(np.float32) - np.float32(info.mean)) / np.float32(info.std)
    return np.asarray(full_size_logits(model, variables, normalised[None]))[0]


def test_ids_and_probabilities_are_those_of_the_model():
    info = make_info()
    model, variables = make(info)
    predictor = Predictor(model, variables, info)
    image = picture(40, 56, 3)
    logits = direct(model, variables, info, image)
    ids = predictor(image)
    assert ids.dtype == np.uint8
    assert np.unique(ids).size > 1
    np.testing.assert_array_equal(ids, logits.argmax(-1))
    probabilities = predictor(image, probabilities=True)
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, jax.nn.softmax(logits), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (3, 50), (37, 41), (64, 65)])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_any_size_comes_back_at_its_size(size, padding):
    info = make_info(padding=padding)
    model, variables = make(info)
    ids = Predictor(model, variables, info)(picture(*size, 3))
    assert ids.shape == size
    assert ids.dtype == np.uint8


def test_few_programs_serve_many_sizes():
    info = make_info()
    model, variables = make(info)
    predictor = Predictor(model, variables, info)
    for height in range(33, 64, 5):
        predictor(picture(height, 97 - height, 3))
    assert predictor._ids._cache_size() <= 4


def test_the_size_of_training_is_not_rounded():
    info = make_info(image_size=(37, 41), image_fit="crop")
    model, variables = make(info)
    image = picture(37, 41, 3)
    np.testing.assert_array_equal(
        Predictor(model, variables, info)(image),
        direct(model, variables, info, image).argmax(-1),
    )


def test_padding_is_felt_near_the_far_borders_alone():
    info = make_info()
    model, variables = make(info)
    image = picture(70, 90, 3)
    found = Predictor(model, variables, info)(image, probabilities=True)
    expected = jax.nn.softmax(direct(model, variables, info, image))
    np.testing.assert_allclose(found[:40, :60], expected[:40, :60], atol=1e-5)


def test_valid_models_see_the_mirrored_picture():
    """Every pixel's logits are those of the plain VALID network on a picture mirrored by hand."""
    info = make_info(padding="VALID")
    model, variables = make(info)
    image = np.random.default_rng(0).normal(size=(1, 20, 28, 3)).astype(np.float32)
    window, margin = tiles.input_window(model, (20, 28))
    after = [w - m - s for w, m, s in zip(window, margin, (20, 28), strict=True)]
    pads = [(0, 0), *zip(margin, after, strict=True), (0, 0)]
    by_hand = model.apply(variables, np.pad(image, pads, mode="reflect"))[:, :20, :28]
    np.testing.assert_allclose(full_size_logits(model, variables, image), by_hand, atol=1e-5)


def test_valid_output_is_placed_over_its_own_pixels():
    """A gradient reaches back to the pixel asked about, symmetrically."""
    info = make_info(padding="VALID", num_classes=1, channels=1)
    model, variables = make(info)
    variables = jax.tree.map(np.abs, variables)  # nothing cancels, no ReLU is closed

    def at_centre(image):
        return full_size_logits(model, variables, image)[0, 30, 30, 0]

    reach = np.asarray(jax.jit(jax.grad(at_centre))(np.ones((1, 61, 61, 1), np.float32)))[0, ..., 0]
    rows, columns = np.nonzero(reach)
    for places in (rows, columns):
        assert places.min() > 5  # nothing is felt through the mirrored border
        assert abs((places.min() + places.max()) / 2 - 30) <= 2


def test_full_size_logits_is_the_plain_model_elsewhere():
    info = make_info()
    model, variables = make(info)
    image = np.random.default_rng(0).normal(size=(2, 21, 30, 3)).astype(np.float32)
    np.testing.assert_array_equal(
        full_size_logits(model, variables, image), model.apply(variables, image)
    )
    jitted = jax.jit(lambda v, x: full_size_logits(model, v, x))(variables, image)
    np.testing.assert_allclose(jitted, model.apply(variables, image), atol=1e-5)


def test_tiles_of_a_valid_model_fit_together_exactly():
    info = make_info(padding="VALID")
    model, variables = make(info)
    image = picture(70, 83, 3)
    whole = Predictor(model, variables, info)(image, probabilities=True)
    tiled = Predictor(model, variables, info, tile=32)(image, probabilities=True)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_tiles_agree_with_the_whole_where_no_border_is_near():
    info = make_info()
    model, variables = make(info)
    image = picture(96, 256, 3)
    whole = Predictor(model, variables, info)(image, probabilities=True)
    tiled = Predictor(model, variables, info, tile=(96, 128), overlap=32)(image, probabilities=True)
    assert tiled.shape == whole.shape
    # The receptive field reaches 22 pixels; the seam of the first two tiles lies at 96..128.
    np.testing.assert_allclose(tiled[:, :72], whole[:, :72], atol=1e-5)
    np.testing.assert_allclose(tiled.sum(-1), 1, atol=1e-5)
    ids = Predictor(model, variables, info, tile=(96, 128), overlap=32)(image)
    np.testing.assert_array_equal(ids, tiled.argmax(-1))


def test_large_pictures_are_tiled_unasked(monkeypatch):
    monkeypatch.setattr("segzoo.predict.WHOLE", 64 * 64)
    monkeypatch.setitem(__import__("segzoo.predict").predict.TILE, 2, 64)
    info = make_info()
    model, variables = make(info)
    predictor = Predictor(model, variables, info)
    assert predictor(picture(64, 64, 3)).shape == (64, 64)
    assert predictor._logits._cache_size() == 0
    assert predictor(picture(150, 80, 3)).shape == (150, 80)
    assert predictor._logits._cache_size() == 1


@pytest.mark.parametrize("size", [(64,), (65,), (150, 64), (33, 200), (50, 60, 70)])
@pytest.mark.parametrize("overlap", [0, 7, 16])
def test_windows_cover_and_sum_to_one(size, overlap):
    tiling = tiles.Tiling(size, (32,) * len(size), (overlap,) * len(size))
    total = np.zeros(tiling.covered)
    for _, indices in tiling.rows():
        for index in indices:
            start = tiling.start(index)
            total[tuple(slice(s, s + 32) for s in start)] += tiling.window(index)[..., 0]
    assert all(c >= s for c, s in zip(tiling.covered, size, strict=True))
    np.testing.assert_allclose(total, 1, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 5])
def test_mirror_is_reflection_however_far(length):
    line = np.arange(length)
    found = tiles.mirror(line, (7,), (9,))
    expected = np.pad(line, (7, 9), mode="reflect") if length > 1 else np.zeros(17)
    np.testing.assert_array_equal(found, expected)


def test_buckets_are_few_and_never_smaller():
    sizes = {tiles.bucket((n, n + 1))[0] for n in range(1, 1025)}
    assert len(sizes) < 20
    assert all(tiles.bucket((n, 3))[0] >= n for n in range(1, 3000))
    assert tiles.bucket((360, 480)) == (360, 480)
    assert tiles.bucket((500, 375)) == (512, 384)


def test_one_logit_is_thresholded_at_one_half():
    info = make_info(num_classes=1)
    model, variables = make(info)
    image = picture(32, 32, 3)
    probabilities = Predictor(model, variables, info)(image, probabilities=True)
    ids = Predictor(model, variables, info)(image)
    assert probabilities.shape == (32, 32, 1)
    assert set(np.unique(ids)) == {0, 1}
    np.testing.assert_array_equal(ids, probabilities[..., 0] > 0.5)


def test_volumes():
    info = make_info(channels=1, spatial_dims=3, depth=1)
    model, variables = make(info)
    volume = picture(9, 17, 24)
    ids = Predictor(model, variables, info)(volume)
    assert ids.shape == (9, 17, 24)
    tiled = Predictor(model, variables, info, tile=16, overlap=8)(volume)
    assert tiled.shape == ids.shape
    with pytest.raises(SegzooError, match=r"expected \[D, H, W\]"):
        Predictor(model, variables, info)(picture(9, 17))


def test_pictures_are_predicted_at_the_scale_of_training():
    info = make_info(image_size=(32, 48), image_fit="resize")
    model, variables = make(info)
    predictor = Predictor(model, variables, info)
    image = picture(75, 61, 3)
    logits = direct(model, variables, info, resize(image, (32, 48)))
    expected = np.stack([resize(logits[..., k], (75, 61)) for k in range(3)], axis=-1)
    np.testing.assert_array_equal(predictor(image), expected.argmax(-1))
    found = predictor(image, probabilities=True)
    np.testing.assert_allclose(found, jax.nn.softmax(expected), atol=1e-5)
    predictor(picture(20, 99, 3))
    assert predictor._logits._cache_size() == 1


def test_scale_of_training():
    size = (100, 200)
    assert trained_size(size, make_info()) == size
    assert trained_size(size, make_info(image_size=(50, 50), image_fit="crop")) == size
    assert trained_size(size, make_info(image_size=(50, 50), image_fit="resize")) == (50, 50)
    assert trained_size(size, make_info(image_size=(50, 50), image_fit="pad")) == (25, 50)


@pytest.mark.parametrize("fit", ["resize", "pad"])
def test_the_scale_is_that_of_the_training_transform(fit):
    image = picture(53, 81, 3)
    fitted = Fit((32, 32), fit)({"image": image})["image"]
    working = trained_size((53, 81), make_info(image_size=(32, 32), image_fit=fit))
    np.testing.assert_array_equal(fitted[: working[0], : working[1]], resize(image, working))


def test_volumes_are_predicted_at_the_scale_of_training():
    info = make_info(channels=1, spatial_dims=3, depth=1, image_size=(8, 8, 8), image_fit="resize")
    model, variables = make(info)
    assert Predictor(model, variables, info)(picture(5, 12, 20)).shape == (5, 12, 20)


# --- pictures ------------------------------------------------------------------------------------


def test_grey_and_colour_are_converted():
    grey, rgb, rgba = picture(4, 5), picture(4, 5, 3), picture(4, 5, 4)
    np.testing.assert_array_equal(as_picture(grey, 3), np.repeat(grey[..., None], 3, -1))
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(as_picture(rgb, 1)[..., 0], luma)
    np.testing.assert_array_equal(as_picture(rgba, 3), rgba[..., :3])
    np.testing.assert_array_equal(as_picture(rgba, 4), rgba)
    np.testing.assert_array_equal(as_picture(Image.fromarray(rgb), 3), rgb)
    np.testing.assert_array_equal(as_picture(Image.fromarray(grey).convert("1"), 1) % 255, 0)
    paletted = Image.fromarray(rgb).convert("P")
    np.testing.assert_array_equal(as_picture(paletted, 3), np.asarray(paletted.convert("RGB")))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), "dtype float32; expected uint8"),
        (np.zeros((4, 4, 7), np.uint8), "7 channels; the model takes 3"),
        (np.zeros((4,), np.uint8), r"shape \[4\]; expected \[H, W\]"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \[0, 4, 3\]"),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "more than 8 bits"),
    ],
)
def test_other_pictures_are_refused(image, message):
    with pytest.raises(SegzooError, match=message):
        as_picture(image, 3)


def test_files_are_read_upright(tmp_path):
    image = Image.fromarray(picture(4, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "a.png", exif=exif)
    found = read_picture(tmp_path / "a.png", 3)
    np.testing.assert_array_equal(found, np.rot90(np.asarray(image), -1))


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture(40, 40, 3)).save(tmp_path / "whole.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    for name in ("text.png", "half.png", "object.npy", "none.png"):
        with pytest.raises(SegzooError, match=name.replace(".", r"\.")):
            read_picture(tmp_path / name, 3)
    with pytest.raises(SegzooError, match=r"expected a \.npy file"):
        read_picture(tmp_path / "whole.png", 1, spatial_dims=3)


def test_paths_and_images_and_arrays_agree(tmp_path):
    info = make_info()
    model, variables = make(info)
    predictor = Predictor(model, variables, info)
    array = picture(24, 32, 3)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = predictor(array)
    for image in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(array)):
        np.testing.assert_array_equal(predictor(image), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": 0}, "tile is 0"),
        ({"tile": (32, 32, 32)}, "one for each of 2 axes"),
        ({"tile": 32, "overlap": 17}, "at most half the tile"),
        ({"overlap": -1}, "overlap is -1"),
    ],
)
def test_impossible_tiles_are_refused(arguments, message):
    info = make_info()
    model, variables = make(info)
    with pytest.raises(SegzooError, match=message):
        Predictor(model, variables, info, **arguments)


def test_classifiers_are_refused():
    info = make_info()
    model, variables = make(info)
    with pytest.raises(SegzooError, match="task 'classification'"):
        Predictor(model, variables, dataclasses.replace(info, task="classification"))


def test_ids_follow_the_metric():
    info = make_info()
    model, variables = make(info)
    image = picture(16, 16, 3)
    np.testing.assert_array_equal(
        Predictor(model, variables, info)(image),
        predict_classes(direct(model, variables, info, image)),
    )
