"""Reading the original files of a dataset: finding them, and saying plainly what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segzoo.data import decode
from segzoo.data.spec import VOID
from segzoo.errors import SegzooError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
"""The image files that are looked for, in lower or upper case."""


def need(name: str, manual_dir: Path, paths: Iterable[str], layout: str) -> None:
    """Checks that original files are present.

    Args:
        name: the dataset's name.
        manual_dir: where they should be.
        paths: relative to `manual_dir`.
        layout: what belongs there, for the message.

    Raises:
        SegzooError: which says what to put where, and how much of it is there.
    """
    wanted = list(paths)
    missing = [path for path in wanted if not (manual_dir / path).exists()]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SegzooError(
            f"dataset {name!r} needs its original files in {manual_dir}: {layout}. Found "
            f"{len(wanted) - len(missing)} of {len(wanted)}; missing {shown}."
        )


def read_bytes(path: Path) -> bytes:
    """Returns a file's bytes.

    Raises:
        SegzooError: when it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SegzooError(f"{path}: cannot be read ({error.strerror}).") from error


def read_names(path: Path) -> list[str]:
    """Returns the lines of a list of names, blank ones left out.

    Raises:
        SegzooError: when the list cannot be read, is empty or names something twice.
    """
    try:
        lines = read_bytes(path).decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise SegzooError(f"{path}: not a text file.") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise SegzooError(f"{path}: the list is empty.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SegzooError(f"{path}: {twice!r} is listed twice.")
    return names


def check_ids(ids: np.ndarray, num_classes: int, name: str) -> np.ndarray:
    """Returns class ids as uint8 after checking their range; void is 255.

    Raises:
        SegzooError: for ids that are neither a class nor void.
    """
    used = np.flatnonzero(np.bincount(ids.ravel(), minlength=VOID + 1))
    strange = used[(used >= num_classes) & (used != VOID)]
    if strange.size:
        found = ", ".join(str(i) for i in strange[:5]) + (", ..." if strange.size > 5 else "")
        raise SegzooError(
            f"{name}: class ids outside 0..{num_classes - 1} (found {found}); void is {VOID}."
        )
    return ids.astype(np.uint8)


def check_same_size(image: bytes | np.ndarray, mask: np.ndarray, name: str) -> None:
    """Checks that an image and its mask cover the same pixels.

    Raises:
        SegzooError: when their heights or widths differ.
    """
    shape = decode.image_shape(image, name) if isinstance(image, bytes) else image.shape[:2]
    if shape != mask.shape[:2]:
        raise SegzooError(
            f"{name}: the image is {shape[1]}x{shape[0]} and the mask "
            f"{mask.shape[1]}x{mask.shape[0]} pixels (width x height)."
        )


def find_image(folder: Path, stem: str) -> Path | None:
    """Returns `folder/stem` with the first image suffix that exists, or None."""
    for suffix in SUFFIXES:
        for spelt in (suffix, suffix.upper()):
            path = folder / f"{stem}{spelt}"
            if path.exists():
                return path
    return None


class Pair(NamedTuple):
    """An image's name, its file and its mask's file."""

    name: str
    image: Path
    mask: Path


def listed_pairs(
    dataset: str,
    manual_dir: Path,
    counts: Mapping[str, int],
    layout: str,
    folders: Sequence[tuple[str, str]] = (("images", "masks"),),
) -> dict[str, list[Pair]]:
    """Pairs images with masks by the names in `<split>.txt`.

    A line of a list is a name without suffix, or a path whose last part is one (a second path on
    the line, to the mask, is not needed).

    Args:
        dataset: the dataset's name, for messages.
        manual_dir: where the lists and folders are.
        counts: how many examples each split must have.
        layout: what belongs in `manual_dir`, for messages.
        folders: pairs of folders of images and masks to look in; `{split}` stands for the split.

    Raises:
        SegzooError: for missing files, with how many were found, and for lists of another length.
    """
    need(dataset, manual_dir, [f"{split}.txt" for split in counts], layout)
    splits: dict[str, list[Pair]] = {}
    missing: list[Path] = []
    for split, count in counts.items():
        file = manual_dir / f"{split}.txt"
        names = [Path(line.split()[0]).stem for line in read_names(file)]
        if len(names) != count:
            raise SegzooError(f"{file} lists {len(names)} images; expected {count}. {layout}")
        splits[split] = []
        places = [
            (manual_dir / image.format(split=split), manual_dir / mask.format(split=split))
            for image, mask in folders
        ]
        images, masks = next(
            (place for place in places if all(folder.is_dir() for folder in place)), places[0]
        )
        for name in names:
            image, mask = find_image(images, name), find_image(masks, name)
            missing += [images / name] * (image is None) + [masks / name] * (mask is None)
            if image is not None and mask is not None:
                splits[split].append(Pair(name, image, mask))
    if missing:
        total = 2 * sum(counts.values())
        raise SegzooError(
            f"dataset {dataset!r} needs its original files in {manual_dir}: {layout} Found "
            f"{total - len(missing)} of {total} images and masks; missing e.g. {missing[0]}.png."
        )
    return splits


def read_image(path: Path, channels: int) -> bytes:
    """Returns an image file's bytes after checking that they decode.

    Raises:
        SegzooError: when the file cannot be read or is damaged.
    """
    data = read_bytes(path)
    decode.decode_image(data, channels, str(path))
    return data


def read_ids(path: Path) -> np.ndarray:
    """Returns a mask file's ids as stored, uint8 or uint16 `[H, W]`.

    Raises:
        SegzooError: when the file cannot be read, is damaged or holds colours.
    """
    return decode.decode_ids(read_bytes(path), str(path))


def read_pages(path: Path) -> Iterator[np.ndarray]:
    """Yields the pages of a stack of 8-bit grey images, uint8 `[H, W]`.

    Raises:
        SegzooError: when the file cannot be read or is damaged.
    """
    yield from decode.decode_pages(read_bytes(path), str(path))
