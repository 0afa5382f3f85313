"""Augmentation: pixels copied exactly, image and label moved together, void where it belongs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from segzoo.data import augment
from segzoo.data.augment import Augment
from segzoo.data.spec import VOID
from segzoo.errors import SegzooError

BENT = {"rotate": 30.0, "scale": (0.5, 2.0), "elastic_sigma": 3.0}


def numbered(size, channels=1):
    """An example in which every pixel's value is its own index, in all parts."""
    index = np.arange(np.prod(size), dtype=np.int32).reshape(size)
    image = np.repeat(index[..., None], channels, -1).astype(np.float32)
    return {"image": image, "instances": index, "label": (index % 7).astype(np.uint8)}


@functools.cache
def compiled(config):
    one = functools.partial(augment.apply, config)
    return jax.jit(jax.vmap(one, (0, None, None)))


def many(config, example, n=64, fill=0.0):
    """The example augmented with `n` keys, as NumPy arrays with a leading axis."""
    keys = jax.random.split(jax.random.key(0), n)
    result = compiled(config)(keys, example, np.float32(fill))
    return {name: np.asarray(value) for name, value in result.items()}


def check_together(result):
    """The index image says where each pixel came from: label and instances must agree."""
    source = result["image"][..., 0]
    np.testing.assert_array_equal(result["instances"], source)
    np.testing.assert_array_equal(result["label"], result["instances"] % 7)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 5)])
def test_off_means_untouched(size):
    example = numbered(size)
    result = augment.apply(Augment(), jax.random.key(0), example)
    assert result.keys() == example.keys()
    for name, value in example.items():
        assert result[name].dtype == value.dtype
        np.testing.assert_array_equal(result[name], value)


@pytest.mark.parametrize(
    ("field", "axis", "size"),
    [
        ("flip_horizontal", 1, (5, 6)),
        ("flip_vertical", 0, (5, 6)),
        ("flip_horizontal", 2, (3, 4, 5)),
        ("flip_vertical", 1, (3, 4, 5)),
        ("flip_depth", 0, (3, 4, 5)),
    ],
)
def test_flips_are_exact_and_happen_half_of_the_time(field, axis, size):
    example = numbered(size, channels=2)
    result = many(Augment(**{field: True}), example, n=256)
    check_together(result)
    flipped = np.array([not np.array_equal(one, example["image"]) for one in result["image"]])
    for one in result["image"][flipped]:
        np.testing.assert_array_equal(one, np.flip(example["image"], axis))
    assert 0.38 < flipped.mean() < 0.62


@pytest.mark.parametrize("size", [(7, 9), (4, 7, 9)])
def test_crops_are_windows_of_the_example_and_reach_every_place(size):
    example = numbered(size)
    output = tuple(n - 2 for n in size)
    result = many(Augment(crop_size=output), example, n=400)
    check_together(result)
    places = set()
    for one in result["instances"]:
        start = np.unravel_index(one.flat[0], size)
        places.add(start)
        window = tuple(slice(a, a + n) for a, n in zip(start, output, strict=True))
        np.testing.assert_array_equal(one, example["instances"][window])
    assert len(places) == 3 ** len(size)


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4), (1, 6)])
def test_a_larger_crop_is_mirrored_like_numpys_reflect(size):
    example = numbered(size)
    output = tuple(n + 5 for n in size)
    result = many(Augment(crop_size=output), example, n=40)
    check_together(result)
    padded = np.pad(example["instances"], 5, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, output)
    windows = windows.reshape(-1, *output)
    for one in result["instances"]:
        assert any(np.array_equal(one, window) for window in windows)


def test_a_larger_crop_with_void_has_the_whole_example_inside():
    example = numbered((4, 5), channels=3)
    example["weight"] = np.ones((4, 5), np.float32)
    mean = np.float32([10.0, 20.0, 30.0])
    result = many(Augment(crop_size=(7, 6), fill="void"), example, fill=mean)
    outside = result["label"] == VOID
    assert np.all(outside.sum((1, 2)) == 7 * 6 - 4 * 5)
    np.testing.assert_array_equal(result["image"][outside], np.tile(mean, (outside.sum(), 1)))
    assert np.all(result["weight"] == ~outside)
    assert np.all(result["instances"][outside] == 0)
    for one, out in zip(result["instances"], outside, strict=True):
        np.testing.assert_array_equal(one[~out], np.arange(20))
    # One axis larger, the other smaller.
    mixed = many(Augment(crop_size=(6, 3), fill="void"), example, fill=mean)
    assert np.all((mixed["label"] == VOID).sum((1, 2)) == 2 * 3)


@pytest.mark.parametrize(("fill", "size"), [("void", (7, 9)), ("mirror", (4, 5, 6))])
def test_sampling_at_whole_pixels_equals_copying(monkeypatch, size, fill):
    example = numbered(size)
    config = Augment(flip_horizontal=True, flip_vertical=True, fill=fill)
    copied = many(config, example)
    monkeypatch.setattr(Augment, "interpolates", True)
    compiled.cache_clear()
    sampled = many(config, example)
    compiled.cache_clear()
    for name in example:
        np.testing.assert_array_equal(sampled[name], copied[name])


def test_a_right_angle_is_a_rot90():
    @jax.jit
    def turn(arrays):
        ones = jnp.ones(augment._Draw.HOW_MANY)  # the largest angle
        config = Augment(rotate=90.0)
        size = arrays["image"].shape[:-1]
        return augment._warp(config, ones, jax.random.key(0), arrays, {}, size)

    example = numbered((6, 6))
    result = turn(example)
    np.testing.assert_array_equal(result["instances"], np.rot90(example["instances"], -1))
    np.testing.assert_allclose(result["image"][..., 0], result["instances"], atol=1e-3)
    volume = numbered((3, 6, 6))
    expected = np.rot90(volume["instances"], -1, axes=(1, 2))
    np.testing.assert_array_equal(turn(volume)["instances"], expected)


def test_a_whole_zoom_repeats_label_pixels():
    # 12 pixels shown on 24 (crop as large as the zoomed example): every pixel twice.
    example = numbered((6, 6))
    config = Augment(scale=(2.0, 2.0), crop_size=(12, 12))
    result = jax.jit(functools.partial(augment.apply, config))(jax.random.key(0), example)
    expected = np.repeat(np.repeat(example["instances"], 2, 0), 2, 1)
    np.testing.assert_array_equal(result["instances"], expected)
    resized = jax.image.resize(jnp.asarray(example["image"]), (12, 12, 1), "linear")
    np.testing.assert_allclose(result["image"][1:-1, 1:-1], resized[1:-1, 1:-1], atol=1e-4)


def test_zoom_stays_inside_and_void_appears_only_when_shrinking():
    example = {
        "image": np.ones((16, 16, 1), np.float32),
        "label": np.zeros((16, 16), np.uint8),
    }
    grown = many(Augment(scale=(1.0, 3.0), fill="void"), example)
    assert np.all(grown["label"] == 0)
    shrunk = many(Augment(scale=(0.5, 0.5), fill="void"), example)
    assert np.all((shrunk["label"] == 0).sum((1, 2)) == 64)
    cropped = many(Augment(scale=(0.5, 0.5), crop_size=(8, 8), fill="void"), example)
    assert np.all(cropped["label"] == 0)


def coordinates(size):
    """An example whose image holds each pixel's own coordinates."""
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1).astype(np.float32)
    label = (grid[..., -1] > size[-1] // 2).astype(np.uint8)
    return {"image": grid, "label": label, "weight": grid[..., 0].copy()}


@pytest.mark.parametrize("size", [(40, 48), (12, 24, 20)])
def test_image_label_and_weight_move_together(size):
    # Void marks the outside, where coordinates would not be linear.
    config = Augment(**BENT, flip_horizontal=True, fill="void")
    result = many(config, coordinates(size), n=8)
    inside = result["label"] != VOID
    assert 0.1 < inside.mean() < 1.0
    x = result["image"][..., -1]
    edge = size[-1] // 2
    # Away from the edge by more than the half pixel of nearest sampling, the label is known.
    assert np.all(result["label"][inside & (x > edge + 0.5 + 1e-3)] == 1)
    assert np.all(result["label"][inside & (x < edge + 0.5 - 1e-3)] == 0)
    np.testing.assert_allclose(result["weight"][inside], result["image"][..., 0][inside], atol=1e-3)
    assert np.all(result["image"][~inside] == 0)
    assert np.all(result["weight"][~inside] == 0)


@pytest.mark.parametrize("size", [(40, 48), (12, 24, 20)])
def test_mirrored_results_hold_only_what_the_example_holds(size):
    result = many(Augment(**BENT), coordinates(size), n=8)
    assert set(np.unique(result["label"])) == {0, 1}
    for axis, n in enumerate(size):
        assert result["image"][..., axis].min() >= 0
        assert result["image"][..., axis].max() <= n - 1
    assert np.all(np.isfinite(result["weight"]))


def test_a_zoomed_window_reaches_both_ends_of_its_slack():
    # 8 of 16 pixels are seen, so the window's middle lies between places 3.5 and 11.5.
    result = many(Augment(scale=(2.0, 2.0)), coordinates((16, 16)), n=256)
    middle = result["image"].mean((1, 2))
    assert np.all(middle.min(0) < 4.0)
    assert np.all(middle.max(0) > 11.0)
    np.testing.assert_allclose(middle.mean(0), 7.5, atol=0.6)
    assert abs(np.corrcoef(middle.T)[0, 1]) < 0.3


def test_void_stays_void():
    example = coordinates((40, 48))
    example["label"] = np.full((40, 48), VOID, np.uint8)
    result = many(Augment(**BENT), example, n=8)
    assert np.all(result["label"] == VOID)


@pytest.mark.parametrize(("size", "grid"), [((65, 81), 3), ((17, 33, 25), 3), ((33, 49), 5)])
def test_elastic_displacements_have_the_asked_deviation_on_the_grid(size, grid):
    config = Augment(elastic_sigma=10.0, elastic_grid=grid)
    middle = jnp.full(augment._Draw.HOW_MANY, 0.5)

    @jax.jit
    @jax.vmap
    def shifts(key):
        own = jnp.stack(jnp.meshgrid(*map(jnp.arange, size), indexing="ij"))
        return jnp.stack(augment._grid(config, middle, key, size, size)) - own

    shift = np.asarray(shifts(jax.random.split(jax.random.key(1), 300)))
    assert shift.shape == (300, len(size), *size)
    on_grid = [np.linspace(0, n - 1, grid).astype(int) for n in size]
    at = np.ix_(range(300), range(len(size)), *on_grid)
    np.testing.assert_allclose(shift[at].std(), 10.0, rtol=0.05)
    np.testing.assert_allclose(shift[at].mean(), 0.0, atol=0.5)
    # Between the points the field is smooth, and no wilder than on them.
    assert shift.std() < 10.0
    steps = np.abs(np.diff(shift, axis=-1)).max()
    assert steps < 12 * 10.0 * (grid - 1) / (size[-1] - 1)


EVERYTHING = Augment(
    **BENT,
    flip_horizontal=True,
    flip_vertical=True,
    crop_size=(20, 24),
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    gamma=0.3,
    noise=5.0,
)


@pytest.mark.parametrize(
    "config", [EVERYTHING, Augment(flip_vertical=True, crop_size=(20, 24))], ids=["all", "copy"]
)
def test_the_result_depends_on_key_and_example_alone(config):
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8),
        "label": rng.integers(0, 3, (4, 32, 32)).astype(np.uint8),
        "index": np.arange(4, dtype=np.uint32),
    }
    keys = jax.random.split(jax.random.key(3), 4)
    one = functools.partial(augment.apply, config)
    together = jax.jit(jax.vmap(one))(keys, batch)
    assert together["image"].dtype == jnp.float32
    assert together["image"].shape == (4, 20, 24, 3)
    np.testing.assert_array_equal(together["index"], batch["index"])
    alone = jax.jit(one)
    for i in (3, 0):
        single = alone(keys[i], {name: value[i] for name, value in batch.items()})
        np.testing.assert_allclose(single["image"], together["image"][i], atol=2e-2)
        assert np.mean(np.asarray(single["label"]) != together["label"][i]) < 0.005
    assert np.any(together["image"][0] != together["image"][1])


def test_turning_one_change_on_leaves_the_other_draws_alone():
    example = numbered((9, 9))
    flips = many(Augment(flip_horizontal=True), example)
    both = many(Augment(flip_horizontal=True, brightness=0.5), example)
    np.testing.assert_array_equal(flips["label"], both["label"])


def test_classification_labels_stay():
    example = {"image": np.zeros((8, 8, 1), np.uint8), "label": np.int32(7)}
    for config in (Augment(rotate=9.0), Augment(crop_size=(4, 4), flip_horizontal=True)):
        result = many(config, example, n=2)
        assert result["label"].tolist() == [7, 7]
        assert result["image"].shape == (2, *config.output_size((8, 8)), 1)


def flat(value, channels=3):
    return {"image": np.broadcast_to(np.float32(value), (6, 6, channels))}


def test_brightness_scales_and_clips():
    result = many(Augment(brightness=0.5), flat(100.0), n=200)["image"]
    assert result.min() >= 50.0
    assert result.max() <= 150.0
    assert result.min() < 60.0
    assert result.max() > 140.0
    assert np.all(result.std((1, 2, 3)) < 1e-3)
    assert many(Augment(brightness=0.5), flat(250.0))["image"].max() == 255.0


def test_contrast_keeps_the_mean_grey_and_saturation_each_pixels_grey():
    rng = np.random.default_rng(0)
    example = {"image": rng.uniform(100, 150, (6, 6, 3)).astype(np.float32)}
    luma = np.float32([0.299, 0.587, 0.114])
    contrast = many(Augment(contrast=0.5), example)["image"]
    np.testing.assert_allclose(
        (contrast @ luma).mean((1, 2)), (example["image"] @ luma).mean(), rtol=1e-4
    )
    spread = contrast.std((1, 2, 3)) / example["image"].std()
    assert spread.min() < 0.7 < 1.3 < spread.max()
    saturation = many(Augment(saturation=0.5), example)["image"]
    np.testing.assert_allclose(
        saturation @ luma, np.broadcast_to(example["image"] @ luma, (64, 6, 6)), rtol=1e-4
    )
    assert saturation.std() > 0
    grey = flat(np.float32(77.0))
    np.testing.assert_allclose(many(Augment(saturation=1.0), grey)["image"], 77.0, rtol=1e-5)


def test_gamma_keeps_black_and_white():
    image = np.float32([0.0, 64.0, 128.0, 255.0]).reshape(2, 2, 1)
    result = many(Augment(gamma=0.5), {"image": image})["image"].reshape(-1, 4)
    np.testing.assert_allclose(result[:, 0], 0.0, atol=1e-3)
    np.testing.assert_allclose(result[:, 3], 255.0, rtol=1e-5)
    exponent = np.log(result[:, 1:3] / 255) / np.log(image.ravel()[1:3] / 255)
    np.testing.assert_allclose(exponent[:, 0], exponent[:, 1], rtol=1e-3)
    assert exponent.min() >= 0.49
    assert exponent.max() <= 1.51


def test_noise_has_its_deviation():
    result = many(Augment(noise=5.0), flat(128.0), n=100)["image"]
    np.testing.assert_allclose(result.std(), 5.0, rtol=0.05)
    np.testing.assert_allclose(result.mean(), 128.0, atol=0.3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rotate": -1.0}, "augment.rotate"),
        ({"rotate": 181.0}, "at most 180"),
        ({"scale": (0.0, 1.0)}, "augment.scale"),
        ({"scale": (2.0, 1.0)}, "augment.scale"),
        ({"scale": (1.0, float("inf"))}, "augment.scale"),
        ({"crop_size": (0, 8)}, "augment.crop_size"),
        ({"crop_size": (8,)}, "augment.crop_size"),
        ({"elastic_sigma": float("inf")}, "augment.elastic_sigma"),
        ({"elastic_grid": 1}, "augment.elastic_grid"),
        ({"fill": "zero"}, "augment.fill"),
        ({"brightness": 1.5}, "augment.brightness"),
        ({"gamma": float("nan")}, "augment.gamma"),
        ({"noise": -1.0}, "augment.noise"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(SegzooError, match=message):
        Augment(**fields)


@pytest.mark.parametrize(
    ("config", "example", "message"),
    [
        (Augment(flip_depth=True), numbered((4, 4)), "flip_depth needs volumes"),
        (Augment(saturation=0.1), numbered((4, 4)), "RGB"),
        (Augment(crop_size=(4, 4, 4)), numbered((4, 4)), "expected 2 numbers"),
        (Augment(), numbered((4,)), "1 spatial axes"),
        (
            Augment(),
            numbered((4, 4)) | {"label": np.zeros((4, 5), int)},
            r"label of shape \(4, 5\)",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused(config, example, message):
    with pytest.raises(SegzooError, match=message):
        augment.apply(config, jax.random.key(0), example)


def test_the_command_line_can_override_every_field():
    arguments = ["--crop-size", "64", "96", "--scale", "0.5", "2", "--rotate", "10"]
    arguments += ["--flip-horizontal", "--fill", "void"]
    expected = Augment(
        crop_size=(64, 96), scale=(0.5, 2.0), flip_horizontal=True, fill="void", rotate=10.0
    )
    assert tyro.cli(Augment, args=arguments) == expected
    hash(dataclasses.replace(expected))
