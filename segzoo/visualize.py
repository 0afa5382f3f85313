"""Panels to look at: image, truth, prediction and errors with a legend; curves of a run."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segzoo.data.spec import VOID, Color, default_palette
from segzoo.errors import SegzooError

CORRECT: Color = (222, 226, 230)
WRONG: Color = (208, 0, 64)
_INK: Color = (33, 37, 41)
_PAPER: Color = (255, 255, 255)
_HATCH = ((255, 255, 255), (134, 142, 150))  # void: a pattern, as every colour may be a class
_GAP = 12
_SMALLEST, _LARGEST = 256, 768  # sides of a picture on the panel, in pixels


def colorize(ids: np.ndarray, palette: Sequence[Color]) -> np.ndarray:
    """Paints class ids in the palette, void as a diagonal hatch.

    Args:
        ids: integer `[H, W]`; ids past the palette take the default palette's colours.
        palette: one RGB colour per class.

    Returns:
        uint8 `[H, W, 3]`.
    """
    table = np.array(default_palette(256), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8).reshape(-1, 3)[:256]
    colors = table[ids]
    void = ids == VOID
    if void.any():
        colors[void] = _hatch(ids.shape)[void]
    return colors


def overlay(
    image: np.ndarray, ids: np.ndarray, palette: Sequence[Color], alpha: float = 0.5
) -> Image.Image:
    """Lays the classes' colours over a picture; void pixels show the picture alone.

    Args:
        image: uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`.
        ids: integer `[H, W]`.
        palette: one RGB colour per class.
        alpha: the weight of the colours, 0..1.

    Returns:
        An RGB image of the same size.
    """
    picture = rgb(image).astype(np.float32)
    mixed = (1 - alpha) * picture + alpha * colorize(ids, palette)
    mixed = np.where((ids == VOID)[..., None], picture, mixed)
    return Image.fromarray(np.round(mixed).astype(np.uint8))


def panel(
    image: np.ndarray,
    truth: np.ndarray | None,
    prediction: np.ndarray,
    class_names: Sequence[str],
    palette: Sequence[Color],
    *,
    title: str = "",
) -> Image.Image:
    """Draws image, truth, prediction and errors side by side, with a legend of the classes shown.

    Errors tell right from wrong from void. Without truth: image, prediction and overlay. Small
    pictures are enlarged by a whole factor without smoothing, large ones are reduced; of a volume
    the middle slice is drawn.

    Args:
        image: uint8 `[*S]` or `[*S, C]` with one or three channels.
        truth: integer `[*S]`, 255 is void; or None.
        prediction: integer `[*S]`.
        class_names: one name per class.
        palette: one RGB colour per class.
        title: a line above everything, such as the file's name.

    Returns:
        An RGB image.

    Raises:
        SegzooError: when the sizes of image, truth and prediction differ.
    """
    image, truth, prediction = _middle(image, truth, prediction)
    cells: list[tuple[str, np.ndarray]] = [("image", rgb(image))]
    legend = [(_name(i, class_names), _swatch(i, palette)) for i in _shown(truth, prediction)]
    if truth is None:
        cells.append(("prediction", colorize(prediction, palette)))
        cells.append(("overlay", np.asarray(overlay(image, prediction, palette))))
    else:
        cells.append(("truth", colorize(truth, palette)))
        cells.append(("prediction", colorize(prediction, palette)))
        errors, share = _errors(truth, prediction)
        cells.append((f"errors: {share}", errors))
        if (truth == VOID).any():
            legend.append(("void", _hatch((14, 14))))
        legend += [("correct", _plain(CORRECT)), ("wrong", _plain(WRONG))]
    return compose(title, [(name, _fit(cell)) for name, cell in cells], legend)


def grid(panels: Iterable[Image.Image], columns: int = 1) -> Image.Image:
    """Sets panels out in rows, left-aligned, on white.

    Raises:
        SegzooError: when there is none.
    """
    images = list(panels)
    if not images:
        raise SegzooError("a grid needs at least one panel; got none.")
    rows = [images[i : i + columns] for i in range(0, len(images), columns)]
    width = max(sum(image.width for image in row) for row in rows)
    height = sum(max(image.height for image in row) for row in rows)
    sheet = Image.new("RGB", (width, height), _PAPER)
    y = 0
    for row in rows:
        x = 0
        for image in row:
            sheet.paste(image, (x, y))
            x += image.width
        y += max(image.height for image in row)
    return sheet


def curves(metrics: Path | str) -> Image.Image:
    """Draws the loss and the validation scores of a run over its steps.

    Args:
        metrics: a run's `metrics.jsonl`.

    Returns:
        An RGB image, 1200 pixels wide.

    Raises:
        SegzooError: when the file is missing or holds no row.
    """
    from matplotlib.figure import Figure  # its own object: no pyplot, no state, no display

    from segzoo.runlog import read_rows

    rows = read_rows(Path(metrics))
    if not rows:
        raise SegzooError(f"{metrics} holds no rows to draw.")
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    losses, scores = figure.subplots(1, 2)
    steps, values = _series(rows, "train", "loss")
    if steps:
        losses.plot(steps, values, color="#4c6ef5", alpha=0.25, linewidth=1)
        # Over about a tenth of the run; a short one has little to smooth.
        decay = min(0.9, max(0.0, 1.0 - 10.0 / len(values)))
        losses.plot(steps, _smooth(values, decay), color="#4c6ef5", label="train (smoothed)")
    steps, values = _series(rows, "val", "loss")
    if steps:
        losses.plot(steps, values, color="#e8590c", marker="o", markersize=3, label="val")
    losses.set(title="loss", xlabel="step")
    drawn: list[str] = []
    for name, color in (
        ("miou", "#e8590c"),
        ("pixel_accuracy", "#2b8a3e"),
        ("accuracy", "#2b8a3e"),
        ("mask_ap", "#e8590c"),
        ("box_ap", "#2b8a3e"),
        ("pq", "#4c6ef5"),
    ):
        steps, values = _series(rows, "val", name)
        if steps:
            percent = [100 * value for value in values]
            scores.plot(steps, percent, color=color, marker="o", markersize=3, label=name)
            if not drawn:
                best = int(np.argmax(percent))
                scores.annotate(
                    f"{percent[best]:.1f}",
                    (steps[best], percent[best]),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    color=color,
                )
            drawn.append(name)
    scores.set(title="validation, percent", xlabel="step")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        axes.margins(y=0.12)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120, format="png")
    with Image.open(buffer) as image:
        return image.convert("RGB")


def _series(rows: list[dict[str, Any]], split: str, name: str) -> tuple[list[int], list[float]]:
    """The finite values of one score, with their steps."""
    found = [
        (int(row["step"]), float(row[name]))
        for row in rows
        if row.get("split") == split
        and isinstance(row.get(name), int | float)
        and math.isfinite(row[name])
    ]
    return [step for step, _ in found], [value for _, value in found]


def _smooth(values: list[float], decay: float) -> list[float]:
    """An exponential average, corrected for its start at zero."""
    average, weight, smoothed = 0.0, 0.0, []
    for value in values:
        average = decay * average + (1 - decay) * value
        weight = decay * weight + (1 - decay)
        smoothed.append(average / weight)
    return smoothed


def _middle(
    image: np.ndarray, truth: np.ndarray | None, prediction: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Checks the sizes, and takes the middle slice of volumes."""
    size = prediction.shape
    if image.shape[: len(size)] != size or (truth is not None and truth.shape != size):
        shapes = [list(array.shape) for array in (image, truth, prediction) if array is not None]
        raise SegzooError(
            f"image{'' if truth is None else ', truth'} and prediction differ in size: "
            f"{', '.join(str(shape) for shape in shapes)}."
        )
    if len(size) == 3:
        half = size[0] // 2
        return image[half], None if truth is None else truth[half], prediction[half]
    return image, truth, prediction


def rgb(image: np.ndarray) -> np.ndarray:
    """Returns a picture uint8 `[H, W]` or `[H, W, C]` as `[H, W, 3]`."""
    if image.ndim == 2:
        image = image[..., None]
    if image.shape[-1] not in (1, 3):
        image = image[..., :1]  # of other channels, the first, as grey
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def _errors(truth: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, str]:
    valid = truth != VOID
    wrong = valid & (truth != prediction)
    colors = np.empty((*truth.shape, 3), np.uint8)
    colors[:] = CORRECT
    colors[wrong] = WRONG
    colors[~valid] = _hatch(truth.shape)[~valid]
    if not valid.any():
        return colors, "all void"
    return colors, f"{100 * wrong.sum() / valid.sum():.1f} % wrong"


def _hatch(size: tuple[int, ...]) -> np.ndarray:
    """Diagonal stripes, uint8 `[H, W, 3]`."""
    stripe = np.add.outer(np.arange(size[0]), np.arange(size[1])) // 2 % 2
    return np.array(_HATCH, np.uint8)[stripe]


def _plain(color: Color) -> np.ndarray:
    return np.full((14, 14, 3), color, np.uint8)


def _swatch(class_id: int, palette: Sequence[Color]) -> np.ndarray:
    return colorize(np.full((14, 14), class_id), palette)


def _shown(truth: np.ndarray | None, prediction: np.ndarray) -> list[int]:
    ids = set(np.unique(prediction).tolist())
    if truth is not None:
        ids |= set(np.unique(truth).tolist())
    return sorted(ids - {VOID})


def _name(class_id: int, class_names: Sequence[str]) -> str:
    return class_names[class_id] if class_id < len(class_names) else f"class {class_id}"


def _fit(colors: np.ndarray) -> Image.Image:
    """Brings a picture to a legible size; class colours never mix."""
    height, width = colors.shape[:2]
    longest = max(height, width)
    picture = Image.fromarray(colors)
    if longest < _SMALLEST:
        factor = math.ceil(_SMALLEST / longest)
        return picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    if longest > _LARGEST:
        size = (max(1, width * _LARGEST // longest), max(1, height * _LARGEST // longest))
        return picture.resize(size, Image.Resampling.NEAREST)
    return picture


@functools.cache
def font(size: int) -> Any:
    """Returns the font of a size."""
    return ImageFont.load_default(size)


def compose(
    title: str, cells: list[tuple[str, Image.Image]], legend: list[tuple[str, np.ndarray]]
) -> Image.Image:
    """Lays out titles, pictures and the legend, which wraps to the panel's width.

    Args:
        title: a line above everything; may be empty.
        cells: pictures of one height, with what stands above each.
        legend: names and their swatches uint8 `[14, 14, 3]`; may be empty.
    """
    plain, bold = font(15), font(17)
    cell_width = max(max(math.ceil(plain.getlength(name)), cell.width) for name, cell in cells)
    width = len(cells) * (cell_width + _GAP) + _GAP
    entry_width = [14 + 6 + math.ceil(plain.getlength(name)) + 18 for name, _ in legend]
    width = max(width, 2 * _GAP + max(entry_width, default=0))
    places, x, line = [], _GAP, 0
    for entry in entry_width:
        if x > _GAP and x + entry > width - _GAP + 18:
            x, line = _GAP, line + 1
        places.append((x, line))
        x += entry
    top = _GAP + (26 if title else 0)
    pictures = top + 24
    below = pictures + cells[0][1].height + _GAP
    lines = line + 1 if legend else 0
    sheet = Image.new("RGB", (width, below + lines * 24 + _GAP // 2), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_GAP, _GAP - 2), title, _INK, bold)
    for i, (name, cell) in enumerate(cells):
        left = _GAP + i * (cell_width + _GAP)
        draw.text((left, top), name, _INK, plain)
        sheet.paste(cell, (left, pictures))
    for (name, swatch), (left, row) in zip(legend, places, strict=True):
        y = below + row * 24
        sheet.paste(Image.fromarray(swatch), (left, y + 2))
        draw.rectangle((left - 1, y + 1, left + 14, y + 16), outline=_INK)
        draw.text((left + 20, y), name, _INK, plain)
    return sheet
