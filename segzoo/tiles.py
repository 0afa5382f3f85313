"""The geometry of prediction: mirrored borders, size buckets, overlapping tiles.

`*S` is any number of spatial axes; nothing here knows classes or files.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import flax.linen as nn

Size = tuple[int, ...]
AnyArray = TypeVar("AnyArray", bound=Any)  # numpy's or jax's


def is_valid(model: nn.Module) -> bool:
    """Whether the model's output is smaller than its input (the paper's own geometry)."""
    return getattr(model, "padding", None) == "VALID" and hasattr(model, "input_size")


def input_window(model: nn.Module, size: Size) -> tuple[Size, Size]:
    """Returns the input a model needs for logits of `size`, and how far it begins before them.

    Args:
        model: a module; only those with `padding="VALID"` need more than `size`.
        size: `*S`.

    Returns:
        The size of the input and, per axis, the number of its leading pixels that lie before the
        first pixel of the output. The output may reach past `size`.
    """
    if not is_valid(model):
        return size, (0,) * len(size)
    window: Size = tuple(model.input_size(size))
    margins = []
    for axis, length in enumerate(size):
        # The output of this window is the largest one that needs no larger window.
        while True:
            longer = (*size[:axis], length + 1, *size[axis + 1 :])
            if model.input_size(longer)[axis] != window[axis]:
                break
            length += 1
        margins.append((window[axis] - length) // 2)
    return window, tuple(margins)


def mirror(array: AnyArray, before: Size, after: Size, first_axis: int = 0) -> AnyArray:
    """Extends spatial axes by mirroring about their first and last pixel, as far as asked.

    Args:
        array: numpy's or jax's.
        before: pixels to add before each spatial axis.
        after: pixels to add after each; negative ones crop.
        first_axis: where the spatial axes begin.
    """
    for axis, (ahead, behind) in enumerate(zip(before, after, strict=True), first_axis):
        if ahead or behind:
            # One gather per axis: unlike `pad`, it takes borders wider than the picture.
            array = array.take(_mirrored(array.shape[axis], ahead, behind), axis=axis)
    return array


def _mirrored(length: int, before: int, after: int) -> np.ndarray:
    """Indices 2 1 | 0 1 2 3 | 2 1 ...: a triangle wave of period 2 (length - 1)."""
    period = max(2 * (length - 1), 1)
    place = np.arange(-before, length + after) % period
    return np.where(place < length, place, period - place)


def bucket(size: Size) -> Size:
    """Rounds a size up to one of few, so that pictures of all sizes share compiled programs.

    Sizes that are multiples of 8 on every axis, as cameras and data sets have them, stay as they
    are. Others go up to the next of four steps per octave, multiples of 32 at least: an axis grows
    by a quarter at most once it is longer than 128.
    """
    if all(length % 8 == 0 for length in size):
        return size
    return tuple(_bucket(length) for length in size)


def _bucket(length: int) -> int:
    step = max(32, 2 ** (length.bit_length() - 3))
    return math.ceil(length / step) * step


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Tiles of one size that cover a picture, each axis on its own.

    Neighbours overlap; windows that sum to one blend them. The last tiles may reach past the
    picture: all tiles keep the same alignment to the strides of the model.

    Attributes:
        size: `*S` of the picture.
        tile: `*S` of every tile.
        overlap: pixels shared by neighbours, at most half a tile, so that no more than two tiles
            meet on an axis.
    """

    size: Size
    tile: Size
    overlap: Size

    @property
    def step(self) -> Size:
        """The distance between neighbours."""
        return tuple(t - o for t, o in zip(self.tile, self.overlap, strict=True))

    @property
    def counts(self) -> Size:
        """The number of tiles along each axis."""
        axes = zip(self.size, self.tile, self.step, strict=True)
        return tuple(max(0, math.ceil((s - t) / step)) + 1 for s, t, step in axes)

    @property
    def covered(self) -> Size:
        """The size all tiles cover together, at least `size`."""
        axes = zip(self.counts, self.step, self.overlap, strict=True)
        return tuple(count * step + overlap for count, step, overlap in axes)

    def rows(self) -> Iterator[tuple[int, list[Size]]]:
        """Yields the tiles in rows along the first axis: its index, the indices of its tiles."""
        first, *others = self.counts
        for row in range(first):
            yield row, list(itertools.product((row,), *(range(count) for count in others)))

    def start(self, index: Size) -> Size:
        """Returns where a tile begins in the picture."""
        return tuple(i * step for i, step in zip(index, self.step, strict=True))

    def window(self, index: Size) -> np.ndarray:
        """Returns the weights `[*S, 1]` of a tile, float32; those of all tiles sum to one."""
        weights = np.ones((1,) * (len(self.size) + 1), np.float32)
        for axis, (i, count) in enumerate(zip(index, self.counts, strict=True)):
            shape = [1] * weights.ndim
            shape[axis] = self.tile[axis]
            line = _line(self.tile[axis], self.overlap[axis], i > 0, i < count - 1)
            weights = weights * line.reshape(shape)
        return weights


def _line(tile: int, overlap: int, rises: bool, falls: bool) -> np.ndarray:
    """One axis of a window: a raised cosine where a neighbour overlaps, one elsewhere."""
    line = np.ones(tile, np.float32)
    ramp = np.sin(np.pi / 2 * (np.arange(overlap) + 0.5) / max(overlap, 1)) ** 2
    if rises:
        line[:overlap] = ramp
    if falls:
        line[tile - overlap :] = ramp[::-1]
    return line
