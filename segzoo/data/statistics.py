"""What is measured on a source once and kept: class frequencies, sizes, objects, mean and std."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segzoo.data.spec import VOID, Example, Source
from segzoo.errors import SegzooError
from segzoo.files import write_atomically


def remembered(path: Path, measure: Callable[[], Any]) -> Any:
    """Returns `measure()`, which is kept at `path` as JSON and not measured again.

    Args:
        path: its name stands for everything that the fact depends on.
        measure: returns something JSON can hold.
    """
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        pass  # not measured yet, or damaged
    fact = measure()
    # In a read-only place it is measured again next time.
    with contextlib.suppress(SegzooError):
        write_atomically(path, json.dumps(fact).encode())
    return fact


def _remembered_of(source: Source, name: str, measure: Callable[[], Any]) -> Any:
    folder: Path | None = getattr(source, "facts", None)
    return measure() if folder is None else remembered(folder / f"{name}.json", measure)


def examples(source: Source, at_once: int = 64) -> Iterator[Example]:
    """Yields every example in order; sources that can read several at once do."""
    batched = getattr(source, "__getitems__", None)
    for start in range(0, len(source), at_once):
        indices = range(start, min(start + at_once, len(source)))
        yield from batched(indices) if batched else (source[index] for index in indices)


def class_pixels(source: Source, num_classes: int) -> dict[str, np.ndarray]:
    """Counts pixels by class over a source.

    Args:
        source: of semantic labels.
        num_classes: K.

    Returns:
        int64 [K] each: `pixels` of the class, `images` that contain it, and `pixels_of_images`,
        all pixels of those images, void ones included.

    Raises:
        SegzooError: for class ids outside 0..K-1 that are not void.
    """

    def measure() -> dict[str, list[int]]:
        pixels, images, of_images = np.zeros((3, num_classes), np.int64)
        for index, example in enumerate(examples(source)):
            label = example["label"]
            counts = np.bincount(np.ravel(label), minlength=VOID + 1)
            if counts[num_classes:VOID].any() or len(counts) > VOID + 1:
                strange = [i for i in np.flatnonzero(counts).tolist() if i >= num_classes]
                raise SegzooError(
                    f"example {index}: class ids outside 0..{num_classes - 1} (found "
                    f"{', '.join(map(str, strange[:5]))}); void is {VOID}."
                )
            present = counts[:num_classes] > 0
            pixels += counts[:num_classes]
            images += present
            of_images += present * np.size(label)
        return {
            "pixels": pixels.tolist(),
            "images": images.tolist(),
            "pixels_of_images": of_images.tolist(),
        }

    counts = _remembered_of(source, f"class_pixels-{num_classes}", measure)
    return {key: np.asarray(values, np.int64) for key, values in counts.items()}


def median_frequency(source: Source, num_classes: int) -> np.ndarray:
    """Returns the class weights of median-frequency balancing (SegNet, arXiv:1511.00561, 3.1).

    The frequency f of a class is its number of pixels divided by the number of pixels of the
    images that contain it; its weight is the median of f over the classes that occur, divided by
    its f. A class that never occurs has no f: its weight is 0.

    Args:
        source: of semantic labels; usually the training split.
        num_classes: K.

    Returns:
        float32 [K].
    """
    counts = class_pixels(source, num_classes)
    occurs = counts["pixels"] > 0
    weights = np.zeros(num_classes)
    frequency = counts["pixels"][occurs] / counts["pixels_of_images"][occurs]
    if occurs.any():
        weights[occurs] = np.median(frequency) / frequency
    return weights.astype(np.float32)


def shape_of_each(source: Source) -> np.ndarray | None:
    """Returns the shape of every image, int64 `[N, axes]`, None if the source cannot tell."""
    shape = getattr(source, "image_shape", None)
    if shape is None:
        return None

    def measure() -> list[list[int]]:
        return [list(shape(index)) for index in range(len(source))]

    return np.asarray(_remembered_of(source, "shape_of_each", measure), np.int64)


def image_shapes(source: Source) -> set[tuple[int, ...]] | None:
    """Returns the distinct shapes `[*S, C]` of the images, None if the source cannot tell."""
    shapes = shape_of_each(source)
    return None if shapes is None else set(map(tuple, np.unique(shapes, axis=0).tolist()))


def object_counts(source: Source) -> np.ndarray:
    """Returns how many objects each example has, int64 [N].

    Args:
        source: of the task "instance".
    """

    def measure() -> list[int]:
        count = getattr(source, "objects", None)
        if count is not None:
            return [int(count(index)) for index in range(len(source))]
        return [len(example["classes"]) for example in examples(source)]

    return np.asarray(_remembered_of(source, "object_counts", measure), np.int64)


def mean_std(source: Source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the mean and standard deviation of each channel over all pixels, in 0..255 units."""

    def measure() -> list[list[float]]:
        total, squares, count = np.zeros(1), np.zeros(1), 0
        for example in examples(source):
            image = example["image"]
            # Exact in int64: 255**2 times 10**14 pixels would still fit.
            flat = image.reshape(-1, image.shape[-1]).astype(np.int64)
            total, squares = total + flat.sum(0), squares + (flat * flat).sum(0)
            count += len(flat)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        return [mean.tolist(), std.tolist()]

    mean, std = _remembered_of(source, "mean_std", measure)
    return tuple(mean), tuple(std)
