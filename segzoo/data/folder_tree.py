"""The tree of an own-data folder: its splits, its files by name, its fingerprint, its faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from segzoo.data.originals import SUFFIXES
from segzoo.errors import SegzooError, did_you_mean

SPLITS = ("train", "val", "test")
PARTS = ("images", "masks", "instances", "annotations.json")
FAULTS_SHOWN = 20


def find_splits(root: Path, expected: str, faults: list[str]) -> list[str]:
    """Returns the splits that a folder has.

    Args:
        root: the folder.
        expected: what belongs in it, for messages.
        faults: receives what is wrong, a sentence each.

    Raises:
        SegzooError: when there is no such folder.
    """
    if not root.is_dir():
        raise SegzooError(f"{root}: no such folder; expected one with {expected}.")
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and path.name[0] != ".")
    for name in found:
        # Another spelling of a split would be left out in silence.
        hint = did_you_mean(name, SPLITS)
        if name not in SPLITS and "mean" in hint:
            faults.append(f"{name}/: not a split.{hint}")
    if "train" not in found:
        listed = ", ".join(f"{name}/" for name in found) or "no folders"
        faults.append(f"train/: missing; expected {expected}, found {listed}.")
    return [split for split in SPLITS if split in found]


def files_by_stem(root: Path, folder: Path, faults: list[str]) -> dict[str, Path]:
    """Returns the image files of a folder by their names up to the ending, sorted.

    Args:
        root: file names in messages are relative to it.
        folder: need not exist, which is a fault, as is what is no image file.
        faults: receives what is wrong, a sentence each.
    """
    found: dict[str, Path] = {}
    if not folder.is_dir():
        faults.append(f"{folder.relative_to(root)}/: missing{_misspelt(folder.parent)}")
        return found
    for path in sorted(folder.iterdir()):
        if is_hidden(path):
            continue
        shown = path.relative_to(root)
        if path.is_dir():
            faults.append(f"{shown}/: a folder among the files; expected image files only.")
        elif path.suffix.lower() not in SUFFIXES:
            faults.append(f"{shown}: not an image file; expected {', '.join(SUFFIXES)}.")
        elif path.stem in found:
            faults.append(f"{shown}: has the same stem as {found[path.stem].name}.")
        else:
            found[path.stem] = path
    if not found:
        faults.append(f"{folder.relative_to(root)}/: holds no image files.")
    return found


def is_hidden(path: Path) -> bool:
    """Returns whether a file is the operating system's and not the user's."""
    return path.name.startswith(".") or path.name in ("Thumbs.db", "desktop.ini")


def _misspelt(folder: Path) -> str:
    """Returns what in a split's folder may be another spelling of one of its parts."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        hint = did_you_mean(path.name, PARTS)
        if path.name not in PARTS and "mean" in hint:
            return f"; found {path.name!r}.{hint}"
    return "."


def fingerprint(root: Path, files: Iterable[Path]) -> str:
    """Returns a name that changes when any file's name, size or time does."""
    digest = hashlib.sha256(str(root).encode())
    for path in files:
        try:
            state = path.stat()
        except OSError:
            continue  # reported when it is read
        digest.update(json.dumps([str(path), state.st_size, state.st_mtime_ns]).encode())
    return f"{root.name}-{digest.hexdigest()[:16]}"


def subset_key(images: Iterable[Path]) -> str:
    """Returns a name for a part of a folder: what is measured on it is its own."""
    return hashlib.sha256("\n".join(map(str, images)).encode()).hexdigest()[:16]


def faults_error(root: Path, faults: Sequence[str]) -> SegzooError:
    """Returns the exception that tells the faults of a folder."""
    if len(faults) == 1:
        return SegzooError(f"{root}: {faults[0]}")
    lines = [f"{root}: {len(faults)} faults.", *(f"  {fault}" for fault in faults[:FAULTS_SHOWN])]
    if len(faults) > FAULTS_SHOWN:
        lines.append(f"  ... and {len(faults) - FAULTS_SHOWN} more.")
    return SegzooError("\n".join(lines))
