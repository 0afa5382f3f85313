"""Augmentation on the device: a pure function of (key, example), for pictures and volumes.

Flips, crops, zoom, rotation and elastic warping are one map from the pixels of the result to places
in the example, so image, label, objects and weight move together and are interpolated once. With
flips and crops alone nothing is interpolated: pixels are copied bit for bit. Every kind of change
draws its own random numbers, so turning one on leaves the others' draws as they were. An example
padded at its ends, with a `size`, is changed as if it ended there.

    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["index"])
    batch = jax.vmap(functools.partial(augment.apply, config))(keys, batch)
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.data import warp
from segzoo.data.spec import VOID
from segzoo.data.warp import Length
from segzoo.errors import SegzooError, check_choice, check_positive_int

# What stands outside the example under fill="void"; the image has its own fill.
_OUTSIDE = {"label": VOID, "instances": 0, "masks": 0, "weight": 0.0}
_INTERPOLATED = ("image", "weight")
# The weights of R, G and B in the luma of ITU-R BT.601, as in other libraries' colour changes.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augment:
    """What `apply` may change in an example; everything is off by default.

    Attributes:
        flip_horizontal: mirror left and right, half of the time.
        flip_vertical: mirror top and bottom, half of the time.
        flip_depth: mirror front and back of a volume, half of the time.
        rotate: largest angle in degrees, either way; of a volume, in the plane of its slices.
        scale: smallest and largest zoom, uniform, the same on all axes; above 1 things get bigger.
        crop_size: size of the result, `*S` pixels; the example's own size by default. The place is
            random: inside the example, or, where the crop is larger, around it.
        elastic_sigma: standard deviation in pixels of the displacements on the coarse grid that
            bends the picture; U-Net: 10 (Ronneberger et al. 2015, sec. 3.1).
        elastic_grid: points of that grid along each axis, the borders included; U-Net: 3.
        fill: what lies outside the example: "mirror" of it, or "void" (label 255, weight 0).
        brightness: the image times 1 +- this fraction.
        contrast: distance from the image's mean grey times 1 +- this fraction.
        saturation: distance from each pixel's own grey times 1 +- this fraction (RGB only).
        gamma: exponent 1 +- this fraction, on the image scaled to 0..1.
        noise: standard deviation of Gaussian noise on each pixel and channel, of 0..255.
    """

    flip_horizontal: bool = False
    flip_vertical: bool = False
    flip_depth: bool = False
    rotate: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)
    crop_size: tuple[int, ...] | None = None
    elastic_sigma: float = 0.0
    elastic_grid: int = 3
    fill: Literal["mirror", "void"] = "mirror"
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    gamma: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise SegzooError(
                    f"augment.{name} is {getattr(self, name)!r}; expected a fraction in 0..1."
                )
        for name, largest in (("rotate", 180.0), ("elastic_sigma", math.inf), ("noise", 255.0)):
            value = getattr(self, name)
            if not (0 <= value <= largest and math.isfinite(value)):
                limit = "" if largest == math.inf else f" and at most {largest:g}"
                raise SegzooError(
                    f"augment.{name} is {value!r}; expected a number of at least 0{limit}."
                )
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < math.inf:
            raise SegzooError(
                f"augment.scale is {self.scale!r}; expected a smallest and a largest zoom above 0."
            )
        if self.crop_size is not None:
            if len(self.crop_size) not in (2, 3):
                raise SegzooError(
                    f"augment.crop_size is {self.crop_size!r}; expected (height, width) or "
                    "(depth, height, width)."
                )
            for length in self.crop_size:
                check_positive_int("augment.crop_size", length)
        check_positive_int("augment.elastic_grid", self.elastic_grid, minimum=2)
        check_choice("augment.fill", self.fill, ("mirror", "void"))

    @property
    def interpolates(self) -> bool:
        """Whether pixels of the result lie between pixels of the example."""
        return bool(self.rotate or self.elastic_sigma or tuple(self.scale) != (1.0, 1.0))

    def output_size(self, input_size: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the spatial size of `apply`'s result for an example of `input_size`."""
        return input_size if self.crop_size is None else tuple(self.crop_size)


class _Draw(enum.IntEnum):
    """The place of each change's random number among those of one example, uniform in 0..1.

    One array of them all, because every call of a generator costs time, most of all to compile.
    """

    FLIP = 0  # of depth, height and width
    PLACE = 3  # of depth, height and width
    ROTATE = 6
    SCALE = 7
    BRIGHTNESS = 8
    CONTRAST = 9
    SATURATION = 10
    GAMMA = 11
    HOW_MANY = 12


def apply(
    config: Augment,
    key: jax.Array,
    example: Mapping[str, jax.Array],
    fill: jax.Array | np.ndarray | float | None = None,
) -> dict[str, jax.Array]:
    """Augments one example; `jax.vmap` it over a batch with one key per example.

    Geometry comes first, then brightness, contrast, saturation, gamma and noise, in this order.
    Shrinking (zoom below 1) is not low-pass filtered.

    Args:
        config: what may change.
        key: one random key; the result is a function of it and the example alone.
        example: `image` `[*S, C]` in 0..255; `label` `[*S]`, or a scalar (classification), which
            stays; optional `instances` `[*S]`, `masks` `[P, *S]`, `weight` `[*S]`, and `size` int
            `[len(S)]`, how much of an example padded at its ends is example. Other entries stay.
        fill: what the image shows outside the example under `fill="void"`, `[C]` or a scalar, for
            example the mean colour; 0 by default.

    Returns:
        The same entries: `image` float32 in 0..255 and `weight` bilinear, `label`, `instances` and
        `masks` nearest and in their own dtypes, all of spatial size `config.output_size(S)`.

    Raises:
        SegzooError: when the example is neither picture nor volume, its parts differ in size, or
            the configuration does not fit it.
    """
    image = jnp.asarray(example["image"], jnp.float32)
    size = image.shape[:-1]
    _check(config, example, size, image.shape[-1])
    moving = {"image": image} | {
        name: jnp.asarray(example[name])
        for name in _OUTSIDE
        if name in example and np.ndim(example[name]) > 0
    }
    if "masks" in moving:
        moving["masks"] = jnp.moveaxis(moving["masks"], 0, -1)
    extent = _extent(example, size)
    outside = {"image": 0.0 if fill is None else fill, **_OUTSIDE}
    number_key, elastic_key, noise_key = jax.random.split(key, 3)
    numbers = jax.random.uniform(number_key, (_Draw.HOW_MANY,))
    if config.interpolates:
        moved = _warp(config, numbers, elastic_key, moving, outside, extent)
    else:
        moved = _flip_and_crop(config, numbers, moving, outside, extent)
    moved["image"] = _recolour(config, numbers, noise_key, moved["image"])
    if "masks" in moved:
        moved["masks"] = jnp.moveaxis(moved["masks"], -1, 0)
    if "size" in example:
        output = config.output_size(size)
        moved["size"] = jnp.asarray(output, jnp.int32)
        if not config.interpolates:
            moved["size"] = jnp.minimum(moved["size"], example["size"])
    return dict(example) | moved


def _extent(example: Mapping[str, jax.Array], size: tuple[int, ...]) -> tuple[Length, ...]:
    """How far the example itself reaches along each axis: all of `size` unless it is padded."""
    return tuple(example["size"]) if "size" in example else size


def _check(
    config: Augment, example: Mapping[str, jax.Array], size: tuple[int, ...], channels: int
) -> None:
    if len(size) not in (2, 3):
        raise SegzooError(
            f"augment got an image of {len(size)} spatial axes; expected a picture or a volume."
        )
    for name in _OUTSIDE:
        shape = np.shape(example[name]) if name in example else ()
        if (shape[1:] if name == "masks" else shape) not in ((), size):
            raise SegzooError(f"augment got a {name} of shape {shape} for an image of size {size}.")
    output = config.output_size(size)
    if len(output) != len(size):
        raise SegzooError(
            f"augment.crop_size is {config.crop_size!r}; expected {len(size)} numbers for images "
            f"of size {size}."
        )
    larger = any(o > s for o, s in zip(output, size, strict=True))
    if "classes" in example and config.fill == "mirror" and (config.interpolates or larger):
        raise SegzooError(
            "augment.fill is 'mirror', which shows objects twice; expected 'void' where objects "
            "are zoomed, rotated or bent."
        )
    if config.flip_depth and len(size) == 2:
        raise SegzooError("augment.flip_depth needs volumes; the images have no depth.")
    if config.saturation and channels != 3:
        raise SegzooError(
            f"augment.saturation needs RGB images; the images have {channels} channels."
        )


def _flips(config: Augment, numbers: jax.Array, ndim: int) -> list[tuple[int, jax.Array]]:
    """The axes that may flip, each with whether it does."""
    flips = (config.flip_depth, config.flip_vertical, config.flip_horizontal)
    coins = numbers[_Draw.FLIP : _Draw.FLIP + 3] < 0.5
    return [(axis - 3 + ndim, coins[axis]) for axis in range(3) if flips[axis]]


def _place(numbers: jax.Array, ndim: int) -> jax.Array:
    """Where along its slack the crop lies, 0..1 per axis."""
    return numbers[_Draw.PLACE + 3 - ndim : _Draw.PLACE + 3]


def _flip_and_crop(
    config: Augment,
    numbers: jax.Array,
    arrays: dict[str, jax.Array],
    outside: Mapping[str, jax.Array | np.ndarray | float],
    extent: tuple[Length, ...],
) -> dict[str, jax.Array]:
    """Copies pixels, bit for bit: flips, then a crop at a random whole-pixel place."""
    size = arrays["image"].shape[:-1]
    output = config.output_size(size)
    flips = _flips(config, numbers, len(size))
    padded = not isinstance(extent[0], int)
    slack: np.ndarray | jax.Array = np.abs(np.subtract(size, output))
    if padded:  # padding stays at the ends: no crop begins in it, or before the example
        slack = jnp.maximum(jnp.stack(extent) - jnp.asarray(output), 0)
    place = jnp.floor(_place(numbers, len(size)) * (slack + 1)).astype(jnp.int32)
    place = jnp.minimum(place, slack)  # a number just below 1 may round up
    # As much around the example as the crop is larger, so that every place is a slice.
    border = [max(o - s, 0) for s, o in zip(size, output, strict=True)]
    result = {}
    for name, array in arrays.items():
        for axis, coin in flips:
            mirrored = jnp.flip(array, axis)
            if padded:
                mirrored = jnp.roll(mirrored, extent[axis] - size[axis], axis)
            array = jnp.where(coin, mirrored, array)
        if any(border) and padded:
            ends = [(0, b) for b in border] + [(0, 0)] * (array.ndim - len(border))
            array = jnp.pad(array, ends)
        elif any(border):
            array = _surround(array, border, None if config.fill == "mirror" else outside[name])
        if output != size:
            start = [*place, *[0] * (array.ndim - len(size))]
            array = jax.lax.dynamic_slice(array, start, (*output, *array.shape[len(size) :]))
        result[name] = array
    return result


def _surround(
    array: jax.Array, border: list[int], value: jax.Array | np.ndarray | float | None
) -> jax.Array:
    """Pads `border` pixels on both sides of each axis: with `value`, or None for the mirror."""
    pads = [(b, b) for b in border] + [(0, 0)] * (array.ndim - len(border))
    if value is None:
        return jnp.pad(array, pads, mode="reflect")
    shape = [n + before + after for n, (before, after) in zip(array.shape, pads, strict=True)]
    inner = tuple(slice(b, b + n) for n, (b, _) in zip(array.shape, pads, strict=True))
    return jnp.broadcast_to(jnp.asarray(value, array.dtype), shape).at[inner].set(array)


def _warp(
    config: Augment,
    numbers: jax.Array,
    elastic_key: jax.Array,
    arrays: dict[str, jax.Array],
    outside: Mapping[str, jax.Array | np.ndarray | float],
    extent: tuple[Length, ...],
) -> dict[str, jax.Array]:
    """Samples all arrays at one grid of places, the image and the weight linearly."""
    size = arrays["image"].shape[:-1]
    places = _grid(config, numbers, elastic_key, config.output_size(size), extent)
    beyond = None if config.fill == "mirror" else outside
    return warp.sample(arrays, places, extent, beyond, linear=_INTERPOLATED)


def _grid(
    config: Augment,
    numbers: jax.Array,
    elastic_key: jax.Array,
    output: tuple[int, ...],
    extent: tuple[Length, ...],
) -> list[jax.Array]:
    """The place in the example of each pixel of the result, one array `[*output]` per axis.

    From the result to the example: bend, flip, rotate, zoom about the middle, move to the place.
    """
    ndim = len(output)
    axes = np.meshgrid(
        *[np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in output], indexing="ij", sparse=True
    )
    x = [jnp.asarray(axis, jnp.float32) for axis in axes]
    if config.elastic_sigma:
        bend = warp.bend(elastic_key, output, config.elastic_sigma, config.elastic_grid)
        x = [axis + bend[i] for i, axis in enumerate(x)]
    for axis, coin in _flips(config, numbers, ndim):
        x[axis] = jnp.where(coin, -x[axis], x[axis])
    if config.rotate:
        angle = jnp.deg2rad(config.rotate) * _either_way(numbers[_Draw.ROTATE])
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        x[-2], x[-1] = cos * x[-2] - sin * x[-1], sin * x[-2] + cos * x[-1]
    smallest, largest = config.scale
    zoom = smallest + (largest - smallest) * numbers[_Draw.SCALE]
    # The window spans output / zoom of the example; its middle may lie where it stays inside, or,
    # where it is the larger, where it keeps the whole example inside.
    size = jnp.stack([jnp.asarray(length) for length in extent])
    slack = size - jnp.asarray(output) / zoom
    middle = (size - 1) / 2 + slack * (_place(numbers, ndim) - 0.5)
    return [jnp.broadcast_to(axis / zoom + middle[i], output) for i, axis in enumerate(x)]


def _recolour(
    config: Augment, numbers: jax.Array, noise_key: jax.Array, image: jax.Array
) -> jax.Array:
    """Brightness, contrast, saturation, gamma and noise of an image `[*S, C]` in 0..255."""
    changed = image
    luma = jnp.asarray(_LUMA if image.shape[-1] == 3 else 1 / image.shape[-1], jnp.float32)
    if config.brightness:
        changed = changed * (1.0 + config.brightness * _either_way(numbers[_Draw.BRIGHTNESS]))
    if config.contrast:
        grey = jnp.mean(jnp.sum(changed * luma, axis=-1))
        changed = grey + (changed - grey) * (
            1.0 + config.contrast * _either_way(numbers[_Draw.CONTRAST])
        )
    if config.saturation:
        grey = jnp.sum(changed * luma, axis=-1, keepdims=True)
        factor = 1.0 + config.saturation * _either_way(numbers[_Draw.SATURATION])
        changed = grey + (changed - grey) * factor
    if config.gamma:
        exponent = 1.0 + config.gamma * _either_way(numbers[_Draw.GAMMA])
        changed = 255.0 * (jnp.clip(changed, 0.0, 255.0) / 255.0) ** exponent
    if config.noise:
        noise = jax.random.normal(noise_key, image.shape)
        changed = changed + config.noise * noise
    return image if changed is image else jnp.clip(changed, 0.0, 255.0)


def _either_way(number: jax.Array) -> jax.Array:
    """A number uniform in 0..1 as one uniform in -1..1."""
    return 2.0 * number - 1.0
