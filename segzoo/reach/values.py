"""What is known of a value while its program is walked: ranges of pixels, or where it is zero."""

from __future__ import annotations

import dataclasses

import numpy as np

Shape = tuple[int, ...]

# Five numbers are kept for each entry, so that every union is a minimum: the first pixel, minus the
# last; the same without the paths through global pooling; -1 where padding was seen.
FAR = np.int32(2**30)
NOTHING = np.array([FAR, FAR, FAR, FAR, 0], np.int32)
PADDING = np.array([FAR, FAR, FAR, FAR, -1], np.int32)


@dataclasses.dataclass(frozen=True)
class Line:
    """The ranges along one axis of the image, and which axes of the value are places on it."""

    ranges: np.ndarray
    places: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Seen:
    """A value that depends on the image."""

    shape: Shape
    lines: tuple[Line, ...]


@dataclasses.dataclass(frozen=True)
class Fixed:
    """A value that does not: its entries if they are constant, and where it can be non-zero."""

    shape: Shape
    value: np.ndarray | None = None
    mask: np.ndarray | None = None  # [1, *compact], None where nothing is known to be zero

    @property
    def nonzero(self) -> np.ndarray | None:
        """`[1, *compact]` of booleans, or None."""
        if self.value is None:
            return self.mask
        mask = (self.value != 0)[None]
        return None if mask.all() else mask


@dataclasses.dataclass(frozen=True)
class Unknown:
    """A value that depends on the image through an operation without a rule."""

    shape: Shape
    operation: str


Value = Seen | Fixed | Unknown


def compact(ranges: np.ndarray, axis: int) -> np.ndarray:
    """Keeps one entry of an axis on which nothing changes."""
    first = np.take(ranges, [0], axis) if ranges.shape[axis] else ranges
    return first if np.array_equal(np.broadcast_to(first, ranges.shape), ranges) else ranges


def pad_axis(
    x: np.ndarray, axis: int, amount: tuple[int, int, int], edge: np.ndarray, hole: np.ndarray
) -> np.ndarray:
    """Pads one axis (negative amounts crop), with holes between its entries."""
    before, after, interior = amount
    if interior and x.shape[axis] > 1:
        n = (x.shape[axis] - 1) * (interior + 1) + 1
        wide = _filled(x, axis, n, hole)
        span = [slice(None)] * x.ndim
        span[axis] = slice(None, None, interior + 1)
        wide[tuple(span)] = x
        x = wide
    parts = [x]
    if before > 0:
        parts.insert(0, _filled(x, axis, before, edge))
    if after > 0:
        parts.append(_filled(x, axis, after, edge))
    x = np.concatenate(parts, axis) if len(parts) > 1 else x
    span = [slice(None)] * x.ndim
    span[axis] = slice(max(-before, 0), x.shape[axis] - max(-after, 0))
    return x[tuple(span)]


def _filled(x: np.ndarray, axis: int, length: int, fill: np.ndarray) -> np.ndarray:
    shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
    return np.broadcast_to(fill.reshape(-1, *(1,) * (x.ndim - 1)), shape).copy()
