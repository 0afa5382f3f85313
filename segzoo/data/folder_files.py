"""Reading the files of an own-data folder: class list, images and masks, a fault per sentence."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from segzoo.cores import usable_cores
from segzoo.data import decode
from segzoo.data.originals import Pair, check_ids, read_bytes
from segzoo.data.spec import VOID, Color
from segzoo.errors import SegzooError

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Classes:
    """What `classes.txt` says.

    Attributes:
        names: of class 0, 1, ...; empty when there is no such file.
        colors: the class id (or 255, void) that each colour stands for; empty without colours.
        palette: one colour per class; empty without colours.
    """

    names: tuple[str, ...] = ()
    colors: Mapping[Color, int] = dataclasses.field(default_factory=dict)
    palette: tuple[Color, ...] = ()


def read_classes(path: Path, faults: list[str]) -> Classes:
    """Reads `classes.txt`, where every line is `name` or `name r g b`; blank lines are skipped.

    Args:
        path: need not exist.
        faults: receives what is wrong, a sentence each.
    """
    if not path.exists():
        return Classes()
    try:
        lines = read_bytes(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        faults.append("classes.txt: not a text file in UTF-8.")
        return Classes()
    names: list[str] = []
    colors: dict[Color, int] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        color: Color | None = None
        if len(words) > 3 and all(word.isdecimal() for word in words[-3:]):
            red, green, blue = map(int, words[-3:])
            color, words = (red, green, blue), words[:-3]
            if max(color) > 255:
                faults.append(f"classes.txt: line {number}: {color} is no colour of 0..255.")
            elif color in colors:
                faults.append(f"classes.txt: line {number}: the colour {color} is taken already.")
        name = " ".join(words)
        if name in names:
            faults.append(f"classes.txt: line {number}: {name!r} is listed twice.")
        is_void = name.lower() == "void"
        if is_void and color is None:
            faults.append(
                f"classes.txt: line {number}: void is no class; it is 255 in every mask, and is "
                "named here only to give it a colour."
            )
        if color is not None:
            colors[color] = VOID if is_void else len(names)
        if not is_void:
            names.append(name)
    palette = tuple(color for color, class_id in colors.items() if class_id != VOID)
    if not 1 <= len(names) <= VOID:
        faults.append(f"classes.txt: {len(names)} classes; expected 1 to {VOID}.")
    if colors and len(palette) != len(names):
        faults.append(f"classes.txt: {len(palette)} colours for {len(names)} classes.")
    return Classes(tuple(names), colors, palette)


def read_mask(path: Path, classes: Classes) -> np.ndarray:
    """Reads a mask's class ids.

    Args:
        path: of the mask.
        classes: with names, ids are checked against their number; with colours, a mask may be
            painted in them.

    Returns:
        uint8 `[H, W]`.

    Raises:
        SegzooError: when the file is damaged or holds what is no class.
    """
    data, name = read_lossless(path), str(path)
    if classes.colors and decode.has_colors(data, name):
        image = decode.decode_image(data, 3, name, upright=True)
        return _ids_of_colors(image, classes.colors, name)
    ids = decode.decode_ids(data, name, upright=True)
    return check_ids(ids, len(classes.names) or VOID, name)


def read_lossless(path: Path) -> bytes:
    """Returns the bytes of a file of ids.

    Raises:
        SegzooError: when it cannot be read, or is a JPEG.
    """
    data = read_bytes(path)
    if decode.is_jpeg(data, str(path)):
        raise SegzooError(f"{path}: a JPEG, whose compression alters class ids; save it as PNG.")
    return data


def _ids_of_colors(image: np.ndarray, colors: Mapping[Color, int], name: str) -> np.ndarray:
    codes = image.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    known = np.array([red << 16 | green << 8 | blue for red, green, blue in colors], np.int32)
    order = np.argsort(known)
    place = np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)
    strange = codes != known[order][place]
    if strange.any():
        color = tuple(image[strange][0].tolist())
        raise SegzooError(
            f"{name}: {int(strange.sum())} pixels have colours that classes.txt does not list, "
            f"e.g. {color}."
        )
    ids = np.array(list(colors.values()), np.uint8)
    return ids[order][place]


@dataclasses.dataclass
class Found:
    """What the files of one example hold, or what is wrong with them.

    Attributes:
        faults: a sentence each.
        channels: of the image, 1 or 3.
        size: of the image, `(H, W)`; None where it cannot be read.
        levels: how often each value occurs in each channel, int64 [C, 256].
        ids: how many pixels, or objects, are of which class.
        overlaps: whether objects share pixels.
    """

    faults: list[str] = dataclasses.field(default_factory=list)
    channels: int = 0
    size: tuple[int, int] | None = None
    levels: np.ndarray | None = None
    ids: Counter[int] = dataclasses.field(default_factory=Counter)
    overlaps: bool = False


@dataclasses.dataclass
class Reading:
    """Sums over all files of a folder.

    Attributes:
        ids: per split, how many pixels, or objects, are of which class.
        counts: per split, for each example the sum of these.
        sizes: the distinct image sizes, `(H, W)`.
        levels: how often each value occurs in each channel of the training images, int64 [C, 256].
        overlaps: whether objects of any image share pixels.
    """

    ids: dict[str, Counter[int]]
    counts: dict[str, list[int]]
    sizes: set[tuple[int, int]]
    levels: np.ndarray
    overlaps: bool = False

    def mean_std(self) -> tuple[list[float], list[float]]:
        """Returns each channel's mean and standard deviation over the training images, 0..255."""
        values = np.arange(256)
        count = self.levels.sum(1)
        mean = (self.levels * values).sum(1) / count
        variance = (self.levels * (values - mean[:, None]) ** 2).sum(1) / count
        # A channel of one value has nothing to be scaled by.
        std = np.where(variance > 0, np.sqrt(variance), 1.0)
        return mean.tolist(), std.tolist()


class Entry(Protocol):
    """An example of a folder."""

    @property
    def image(self) -> Path:
        """The image's file."""
        ...


E = TypeVar("E", bound=Entry)


def read_all(
    root: Path,
    entries: Mapping[str, Sequence[E]],
    read: Callable[[E], Found],
    faults: list[str],
) -> Reading:
    """Reads every file of a folder.

    Args:
        root: file names in messages are relative to it.
        entries: the examples of each split.
        read: reads those of an example.
        faults: receives what is wrong, a sentence each.
    """
    everything = [(split, entry) for split, found in entries.items() for entry in found]
    log.warning("checking %d images and their masks in %s (once)", len(everything), root)
    reading = Reading(
        {split: Counter() for split in entries},
        {split: [] for split in entries},
        set(),
        np.zeros((3, 256), np.int64),
    )
    first: dict[int, Path] = {}
    kinds: Counter[int] = Counter()
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:
        reads = pool.map(lambda pair: read(pair[1]), everything)
        for (split, entry), found in zip(everything, reads, strict=True):
            faults += [fault.replace(f"{root}{os.sep}", "") for fault in found.faults]
            reading.ids[split].update(found.ids)
            reading.counts[split].append(found.ids.total())
            reading.overlaps |= found.overlaps
            if found.size is not None and found.levels is not None:
                first.setdefault(found.channels, entry.image.relative_to(root))
                kinds[found.channels] += 1
                reading.sizes.add(found.size)
                if split == "train":
                    reading.levels[: found.channels] += found.levels
    if len(kinds) > 1:
        faults.append(
            f"{kinds[1]} images are grey (e.g. {first[1]}) and {kinds[3]} have colour (e.g. "
            f"{first[3]}); save all of them alike."
        )
    if kinds:
        reading.levels = reading.levels[: max(kinds)]
    return reading


def read_pair(pair: Pair, classes: Classes) -> Found:
    """Reads an image and its mask."""
    found = read_picture(pair.image)
    try:
        mask = read_mask(pair.mask, classes)
        counts = np.bincount(mask.ravel(), minlength=VOID + 1)
        found.ids = Counter({i: int(counts[i]) for i in np.flatnonzero(counts).tolist()})
        check_covers(pair.mask, mask, found.size)
    except SegzooError as error:
        found.faults.append(str(error))
    return found


def read_picture(path: Path) -> Found:
    """Reads an image: its channels, its size and how often each value occurs."""
    found = Found()
    try:
        data, name = read_bytes(path), str(path)
        found.channels = decode.image_channels(data, name)
        image = decode.decode_image(data, found.channels, name, upright=True)
        found.size = (image.shape[0], image.shape[1])
        found.levels = np.stack(
            [np.bincount(image[..., c].ravel(), minlength=256) for c in range(image.shape[-1])]
        )
    except SegzooError as error:
        found.faults.append(str(error))
    return found


def check_covers(path: Path, mask: np.ndarray, size: tuple[int, int] | None) -> None:
    """Checks that a mask covers the pixels of its image, if that could be read.

    Raises:
        SegzooError: when their heights or widths differ.
    """
    if size is not None and mask.shape[:2] != size:
        raise SegzooError(
            f"{path}: the image is {size[1]}x{size[0]} and the mask "
            f"{mask.shape[1]}x{mask.shape[0]} pixels (width x height)."
        )
