"""Host-side transforms of one example: `Fit` to a size, `FitSides`, and U-Net's `BorderWeight`.

A transform is a frozen, picklable callable from example to example. One that changes the size has
`output_shape(image_shape) -> image_shape`, by which evaluation knows it without loading images. One
that leaves images of several sizes has `canvases`, the few sizes `*S` that batches are padded to.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import scipy  # whose parts come in when they are first used
from PIL import Image

from segzoo.data.spec import NO_PIXELS, VOID, Example
from segzoo.errors import SegzooError, check_choice, check_positive_int
from segzoo.files import write_atomically

_OUTSIDE = {"image": 0, "label": VOID, "instances": 0, "weight": 0}


@dataclasses.dataclass(frozen=True)
class Fit:
    """Brings an example to a size, which training in batches needs.

    Images are interpolated linearly, averaging where they shrink (antialiased), labels and
    instances take the nearest pixel. Pixel centres are at half integers.

    Attributes:
        size: `*S`: height and width (or depth, height, width) in pixels.
        mode: "resize" stretches; "pad" scales by the same factor on every axis so that all of the
            image fits, and fills up at the bottom and right; "crop" keeps the scale, cuts out the
            centre and, where the image is smaller, fills up at the bottom and right. What is
            filled up is void.
    """

    size: tuple[int, ...]
    mode: Literal["resize", "pad", "crop"] = "resize"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        for side in self.size:
            check_positive_int("image_size", side)
        check_choice("image_fit", self.mode, ("resize", "pad", "crop"))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape `[*S, C]` of an image that came in with `shape`."""
        return (*self.size, shape[-1])

    def __call__(self, example: Example) -> Example:
        """Returns the example at the wanted size.

        Raises:
            SegzooError: when the image has another number of axes than `size`.
        """
        space = example["image"].shape[:-1]
        if len(space) != len(self.size):
            raise SegzooError(
                f"image_size {self.size} has {len(self.size)} axes but the images have "
                f"{len(space)}, {space}."
            )
        if space == self.size:
            return example
        return _moved(example, lambda key, value: self._fit(key, value, space))

    def _fit(self, key: str, value: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
        size = self.size
        if self.mode == "pad":
            scale = min(new / old for new, old in zip(self.size, space, strict=True))
            size = tuple(
                min(new, max(1, round(old * scale)))
                for new, old in zip(self.size, space, strict=True)
            )
        if self.mode == "crop":
            starts = [max(0, (old - new) // 2) for new, old in zip(self.size, space, strict=True)]
            value = value[
                tuple(slice(a, a + new) for a, new in zip(starts, self.size, strict=True))
            ]
        else:
            value = _resized(key, value, size)
        if value.shape[: len(size)] == self.size:
            return value
        fitted = np.full(
            (*self.size, *value.shape[len(self.size) :]), _OUTSIDE.get(key, 0), value.dtype
        )
        fitted[tuple(map(slice, value.shape[: len(self.size)]))] = value
        return fitted


@dataclasses.dataclass(frozen=True)
class FitSides:
    """Scales an example until its shorter side has a length, or its longer side reaches another.

    What detectors are trained on (He et al. 2017, arXiv:1703.06870, section 3.1: the shorter side
    800 pixels); images keep their proportions, so their sizes differ, and those of a batch are
    padded to one of `canvases`. Otherwise as `Fit`.

    Attributes:
        size: the shorter side, and the most of the longer one, in pixels.
    """

    size: tuple[int, ...]
    multiple: ClassVar[int] = 32
    """What the sides of the canvases are multiples of: the coarsest stride of most networks."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        for side in self.size:
            check_positive_int("image_size", side)
        if len(self.size) != 2 or self.size[0] > self.size[1]:
            raise SegzooError(
                f"image_size is {self.size}; expected the shorter side and the most of the longer "
                "one, e.g. 800 1333, with image_fit 'sides'."
            )

    @property
    def canvases(self) -> tuple[tuple[int, ...], ...]:
        """The sizes `(H, W)` that batches are padded to, smallest first.

        For images of up to 4:3, as most cameras make them, and for longer ones: lying, standing,
        and a square for batches with both.
        """
        short, long = self.size
        ends = [min(long, (4 * short + 2) // 3), long]
        short, *ends = (-(-side // self.multiple) * self.multiple for side in (short, *ends))
        sizes = [size for end in ends for size in ((short, end), (end, short), (end, end))]
        return tuple(sorted(dict.fromkeys(sizes), key=math.prod))

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape `[H, W, C]` of an image that came in with `shape`.

        Raises:
            SegzooError: for a volume.
        """
        *space, channels = shape
        if len(space) != 2:
            raise SegzooError(f"image_fit 'sides' is for pictures; found the size {tuple(space)}.")
        short, long = self.size
        # In whole numbers: the two sides of the comparison are scales times min * max.
        low, high = min(space), max(space)
        over, under = (short, low) if short * high <= long * low else (long, high)
        height, width = (max(1, (2 * side * over + under) // (2 * under)) for side in space)
        return height, width, channels

    def __call__(self, example: Example) -> Example:
        """Returns the example at its size."""
        old = example["image"].shape
        new = self.output_shape(old)
        if new == old:
            return example
        return _moved(example, lambda key, value: _resized(key, value, new[:-1]))


def _moved(example: Example, move: Callable[[str, np.ndarray], np.ndarray]) -> Example:
    """Moves whatever covers the image's pixels; `move` gets arrays whose first axes are `*S`."""
    moved = {}
    for key, value in example.items():
        if key == "masks":
            value = np.ascontiguousarray(np.moveaxis(move(key, np.moveaxis(value, 0, -1)), -1, 0))
        elif key not in NO_PIXELS and value.ndim:  # a classification's label has no axes
            value = np.ascontiguousarray(move(key, value))
        moved[key] = value
    return moved


def _resized(key: str, value: np.ndarray, size: Sequence[int]) -> np.ndarray:
    return resize(value, size) if key in ("image", "weight") else resize_nearest(value, size)


def resize(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes linearly, averaging over the source pixels a target pixel covers.

    Args:
        array: uint8 `[*S, C]` or float32 `[*S]`.
        size: the new `*S`.

    Returns:
        The same dtype, at the new size.
    """
    if len(size) == 2 and (array.ndim == 2 or array.shape[-1] in (1, 3)):
        plain = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
        resized = Image.fromarray(plain).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.array(resized).reshape(*size, *array.shape[2:])
    result = array.astype(np.float32)
    for axis, new in enumerate(size):
        if new != array.shape[axis]:
            weights = _linear_weights(array.shape[axis], new)
            result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
    if np.issubdtype(array.dtype, np.integer):
        result = np.rint(result)
    return result.astype(array.dtype)


def _linear_weights(old: int, new: int) -> np.ndarray:
    """Returns the float32 [new, old] matrix of a triangle filter as wide as a target pixel."""
    scale = old / new
    centers = (np.arange(new) + 0.5) * scale
    distance = np.abs(np.arange(old) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distance)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def resize_nearest(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Resizes by taking the nearest source pixel; dtype and values stay.

    Args:
        array: `[*S, ...]`.
        size: the new `*S`.
    """
    for axis, new in enumerate(size):
        old = array.shape[axis]
        # floor((i + 1/2) old / new), in whole numbers.
        array = array.take((2 * np.arange(new) + 1) * old // (2 * new), axis)
    return array


@dataclasses.dataclass(frozen=True)
class BorderWeight:
    """Adds U-Net's weight map (Ronneberger et al., arXiv:1505.04597, eq. 2), as `weight`.

    w(x) = w_c(x) + w0 * exp(-(d1(x) + d2(x))^2 / (2 sigma^2)), where d1 is the distance to the
    border of the nearest cell and d2 to that of the second nearest, in pixels: thin gaps between
    cells, which the network must learn to keep apart, count most. The second term is added to
    the pixels outside every cell, as in the paper's Fig. 3 d; it is absent where there are fewer
    than two cells. w_c balances the classes of the example: each class that occurs has the same
    total weight, and the mean of w_c over the pixels that are not void is 1. Void weighs 0.

    Cells are the example's `instances` if there are any, else the connected components of `cell`
    in the label (diagonal neighbours belong together).

    Attributes:
        w0: weight of the borders; the paper's 10.
        sigma: reach of the borders in pixels; the paper's "about 5".
        cell: the class whose instances are to be kept apart.
        balance: include w_c; otherwise it is 1.
        cache_dir: a folder to keep the maps in, by content and parameters; None computes them
            each time.
    """

    w0: float = 10.0
    sigma: float = 5.0
    cell: int = 1
    balance: bool = True
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.w0 >= 0 or not self.sigma > 0:
            raise SegzooError(
                f"BorderWeight has w0 {self.w0!r} and sigma {self.sigma!r}; expected w0 of at "
                "least 0 and sigma above 0."
            )

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns `shape`: sizes stay."""
        return shape

    def __call__(self, example: Example) -> Example:
        """Returns the example with `weight` float32 `[*S]`; a weight it had is multiplied in.

        Raises:
            SegzooError: when the label is not a class id per pixel.
        """
        label = example.get("label")
        if label is None:
            raise SegzooError("border_weight is for semantic segmentation; found objects.")
        if not label.ndim:
            raise SegzooError("BorderWeight needs a label for every pixel, not one per image.")
        weight = self._cached(label, example.get("instances"))
        if "weight" in example:
            weight = weight * example["weight"]
        return {**example, "weight": weight}

    def _cached(self, label: np.ndarray, instances: np.ndarray | None) -> np.ndarray:
        if self.cache_dir is None:
            return self.weight(label, instances)
        content = hashlib.sha256(
            repr((1, self.w0, self.sigma, self.cell, self.balance, label.shape)).encode()
        )
        content.update(label.tobytes())
        if instances is not None:
            content.update(instances.tobytes())
        path = Path(self.cache_dir) / f"{content.hexdigest()[:32]}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            pass  # not computed yet, or damaged
        weight = self.weight(label, instances)
        buffer = io.BytesIO()
        np.save(buffer, weight)
        write_atomically(path, buffer.getvalue())
        return weight

    def weight(self, label: np.ndarray, instances: np.ndarray | None = None) -> np.ndarray:
        """Returns the map, float32 `[*S]`.

        Args:
            label: uint8 `[*S]`.
            instances: int32 `[*S]`, 0 is no instance.
        """
        valid = label != VOID
        weight = class_balance(label) if self.balance else valid.astype(np.float32)
        if instances is None or not instances.any():
            everywhere = np.ones((3,) * label.ndim)
            instances, _ = scipy.ndimage.label(label == self.cell, everywhere)
        # Beyond six sigma the term is below w0 * 2e-8, nothing in float32 beside w_c.
        nearest, second = two_distances(instances, 6 * self.sigma)
        gap = valid & (instances == 0) & (label != self.cell)
        # Infinite distances, where cells are missing, give exp(-inf) = 0.
        border = self.w0 * np.exp(-((nearest + second) ** 2) / (2 * self.sigma**2))
        return (weight + np.where(gap, border, 0)).astype(np.float32)


def class_balance(label: np.ndarray) -> np.ndarray:
    """Returns w_c, float32 `[*S]`: classes that occur share the weight equally, mean 1, void 0."""
    counts = np.bincount(label.ravel(), minlength=VOID + 1)[:VOID]
    occurs = counts > 0
    of_class = np.zeros(VOID + 1, np.float32)
    if occurs.any():
        of_class[:VOID][occurs] = counts.sum() / (occurs.sum() * counts[occurs])
    return of_class[label]


def two_distances(instances: np.ndarray, reach: float = np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Returns each pixel's Euclidean distance to the nearest and to the second nearest instance.

    Args:
        instances: integer `[*S]`, 0 is no instance.
        reach: distances above this need not be known; the smaller, the faster.

    Returns:
        float64 `[*S]` twice, in pixels between centres; infinite where there is no such instance
        (within reach).
    """
    nearest = np.full(instances.shape, np.inf)
    second = np.full(instances.shape, np.inf)
    margin = max(instances.shape) if np.isinf(reach) else int(np.ceil(reach))
    for number, box in enumerate(scipy.ndimage.find_objects(instances), 1):
        if box is None:
            continue
        near = tuple(slice(max(0, side.start - margin), side.stop + margin) for side in box)
        distance = scipy.ndimage.distance_transform_edt(instances[near] != number)
        second[near] = np.minimum(second[near], np.maximum(nearest[near], distance))
        nearest[near] = np.minimum(nearest[near], distance)
    return nearest, second
