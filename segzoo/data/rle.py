"""Run lengths, COCO's way to write the pixels of an object; polygons become them.

Pixels are counted down the columns, in runs that are in turn outside and inside of the object: a
list of numbers ("uncompressed") or a short text, six bits a letter ("compressed"). Polygons are
drawn by pycocotools, whose pixels are those that published scores were measured on; it trusts what
it reads, so everything is checked before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco

Size = tuple[int, int]


class OutlineError(ValueError):
    """What is wrong with an outline, as the end of a sentence."""


class NoArea(OutlineError):
    """The outline has no pixel."""


def encode(segmentation: Any, size: Size) -> bytes:
    """Returns an object's pixels as compressed run lengths.

    Args:
        segmentation: as in COCO's files: polygons `[[x0, y0, x1, y1, ...], ...]` in pixels, whose
            union it is, or run lengths `{"size": [H, W], "counts": ...}` of either kind.
        size: `(H, W)` of the image.

    Returns:
        ASCII letters, none of which is a line's end.

    Raises:
        NoArea: when it covers no pixel.
        OutlineError: when it is no outline, or not one of an image of this size.
    """
    if isinstance(segmentation, dict):
        rle = _checked_runs(segmentation, size)
    elif isinstance(segmentation, list):
        # A polygon of two points encloses nothing.
        polygons = [p for p in (_checked_polygon(p, size) for p in segmentation) if len(p) >= 6]
        if not polygons:
            raise NoArea("its outline has less than three points")
        rle = coco.merge(coco.frPyObjects(polygons, *size))
    else:
        raise OutlineError(
            f"its segmentation is a {type(segmentation).__name__}; expected polygons or run lengths"
        )
    if not coco.area(rle):
        raise NoArea("its outline covers no pixel")
    return bytes(rle["counts"])


def decode(runs: Sequence[bytes], size: Size) -> np.ndarray:
    """Returns masks, uint8 `[M, H, W]`, 0 or 1, of what `encode` returned."""
    # pycocotools' own decoder warns with numpy 2, and knows only Fortran's order.
    columns = np.zeros((len(runs), size[1], size[0]), np.uint8)
    for mask, counts in zip(columns, runs, strict=True):
        counted = lengths(counts)
        inside = np.arange(len(counted), dtype=np.uint8) & 1
        mask[...] = np.repeat(inside, counted).reshape(mask.shape)
    return np.ascontiguousarray(np.swapaxes(columns, 1, 2))


def lengths(counts: bytes) -> list[int]:
    """Returns the run lengths that a compressed text stands for.

    A letter has five bits of a number, the low ones first, and one that says whether more follow;
    the last letter's fifth bit is the sign. From the fourth run on it is the difference to the run
    before the last that is written.

    Raises:
        OutlineError: for a text that is none.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = letter - 48
        if not 0 <= bits < 64:
            raise OutlineError(f"its run lengths hold the letter {chr(letter)!r}")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise OutlineError("its run lengths are cut off")
    return runs


def _checked_runs(segmentation: dict[str, Any], size: Size) -> dict[str, Any]:
    counts = segmentation.get("counts")
    if segmentation.get("size") != list(size):
        raise OutlineError(
            f"its mask has the size {segmentation.get('size')} but its image {list(size)} (height, "
            "width)"
        )
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if isinstance(counts, bytes):
        runs = lengths(counts)
    elif isinstance(counts, list) and all(type(run) is int for run in counts):
        runs = counts
    else:
        raise OutlineError("its run lengths are neither a text nor a list of whole numbers")
    if sum(runs) != size[0] * size[1] or min(runs) < 0:
        raise OutlineError(
            f"its run lengths add up to {sum(runs)} pixels; expected {size[0] * size[1]}, none "
            "below 0"
        )
    if isinstance(counts, bytes):
        return {"size": list(size), "counts": counts}
    return coco.frPyObjects({"size": list(size), "counts": runs}, *size)


def _checked_polygon(polygon: Any, size: Size) -> list[float]:
    if not isinstance(polygon, list) or not all(type(x) in (int, float) for x in polygon):
        raise OutlineError("its polygon is not a list of numbers x0, y0, x1, y1, ...")
    if len(polygon) % 2:
        raise OutlineError(f"its polygon has {len(polygon)} numbers; expected x and y by turns")
    for axis, side in enumerate(reversed(size)):
        for value in polygon[axis::2]:
            # A little outside is common; far outside is another unit, or another image.
            if not -side <= value <= 2 * side:
                raise OutlineError(
                    f"its polygon goes to {'xy'[axis]} = {value:g}, far outside of an image of "
                    f"{size[1]}x{size[0]} pixels (width x height)"
                )
    return polygon
