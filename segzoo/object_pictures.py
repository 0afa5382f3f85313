"""Pictures of objects: masks, boxes, classes and scores over the image, each in its own colour."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from segzoo.data.spec import Color
from segzoo.instances import CONFIDENT, Objects
from segzoo.visualize import compose, font, rgb

_SMALLEST, _LARGEST = 480, 960  # longer sides of a picture, in pixels
FEW = 12  # of more objects, labels are written where they fit
_TINT = 0.45  # the weight of an object's colour on its pixels
_GOLDEN = 0.618034  # hues in steps of this are far apart, however many there are


def draw_objects(
    image: np.ndarray, objects: Objects, class_names: Sequence[str], *, scores: bool = True
) -> Image.Image:
    """Draws objects over their image.

    Where objects overlap the smaller lies on top. A label that is wider than its object is left out
    where there are many. Small pictures are enlarged by a whole factor, large ones reduced.

    Args:
        image: uint8 `[H, W]` or `[H, W, C]`.
        objects: of this image.
        class_names: one name per class, the background first; with a single class of objects
            it is not written on each.
        scores: write them.

    Returns:
        An RGB image.
    """
    picture = Image.fromarray(rgb(image))
    longest = max(picture.size)
    scale = math.ceil(_SMALLEST / longest) if longest < _SMALLEST else min(1, _LARGEST / longest)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    pixels = np.asarray(picture.resize((width, height), how), np.float64)

    order = np.argsort(-objects.masks.sum((1, 2)), kind="stable")
    ids = np.zeros(objects.masks.shape[1:], np.int32)
    for n in order:
        ids[objects.masks[n]] = n + 1
    ids = np.asarray(Image.fromarray(ids).resize((width, height), Image.Resampling.NEAREST))
    colors = np.array([(0, 0, 0), *(_color(n) for n in range(len(objects)))])
    weight = np.where(_edges(ids), 1.0, _TINT)[..., None] * (ids > 0)[..., None]
    pixels = (1 - weight) * pixels + weight * colors[ids]

    sheet = Image.fromarray(np.round(pixels).astype(np.uint8))
    pen = ImageDraw.Draw(sheet)
    ratio = np.array([height, width, height, width]) / np.tile(objects.masks.shape[1:], 2)
    for n in order:
        y0, x0, y1, x1 = (objects.boxes[n] * ratio).round().astype(int).tolist()
        pen.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=_color(n))
        label = _label(objects, n, class_names, scores)
        if label and (len(objects) <= FEW or font(12).getlength(label) <= x1 - x0):
            _write(pen, label, x0, y0, _color(n))
    return sheet


def object_panel(
    image: np.ndarray,
    truth: Objects | None,
    found: Objects,
    class_names: Sequence[str],
    *,
    confident: float = CONFIDENT,
    title: str = "",
) -> Image.Image:
    """Draws image, truth and what was found side by side.

    Args:
        image: uint8 `[H, W, C]`.
        truth: its objects, or None.
        found: detections; those that score `confident` or more are drawn.
        class_names: one name per class, the background first.
        confident: see `found`.
        title: a line above everything.

    Returns:
        An RGB image.
    """
    sure = found.only(found.scores >= confident)
    cells = [("image", draw_objects(image, found.only(np.zeros(len(found), bool)), class_names))]
    if truth is not None:
        drawn = draw_objects(image, truth, class_names, scores=False)
        cells.append((f"truth: {_count(len(truth))}", drawn))
    drawn = draw_objects(image, sure, class_names)
    cells.append((f"found: {_count(len(sure))} at {confident:g} or more", drawn))
    return compose(title, cells, [])


def _count(number: int) -> str:
    return f"{number} object{'' if number == 1 else 's'}"


def _color(n: int) -> Color:
    # Light and dark by turns too, as hues alone repeat in the eye.
    red, green, blue = colorsys.hsv_to_rgb(_GOLDEN * n % 1.0, 0.85, 1.0 if n % 2 else 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def _edges(ids: np.ndarray) -> np.ndarray:
    """The pixels of objects beside others than their own."""
    around = np.pad(ids, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    return np.any([ids != neighbour for neighbour in neighbours], axis=0) & (ids > 0)


def _label(objects: Objects, n: int, class_names: Sequence[str], scores: bool) -> str:
    known = objects.classes[n] < len(class_names)
    name = class_names[objects.classes[n]] if known else f"class {objects.classes[n]}"
    words = [name] if len(class_names) > 2 else []
    words += ["crowd"] if objects.crowd[n] else []
    words += [f"{objects.scores[n]:.2f}"] if scores else []
    return " ".join(words)


def _write(pen: ImageDraw.ImageDraw, label: str, x: int, y: int, color: Color) -> None:
    """Writes on a ground of the object's colour, above its box or, at the border, inside."""
    height = 15
    y = y - height if y >= height else y
    dark = np.dot(color, (0.299, 0.587, 0.114)) < 128
    pen.rectangle((x, y, x + font(12).getlength(label) + 3, y + height - 1), fill=color)
    pen.text((x + 2, y), label, (255, 255, 255) if dark else (0, 0, 0), font(12))
