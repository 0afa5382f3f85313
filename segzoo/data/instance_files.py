"""The files of a folder of objects: images, ids and annotations, found, paired and read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segzoo.data import decode, rle
from segzoo.data.coco_json import Picture, read_annotations
from segzoo.data.folder_files import (
    Found,
    check_covers,
    read_classes,
    read_lossless,
    read_picture,
)
from segzoo.data.folder_tree import files_by_stem, find_splits, is_hidden
from segzoo.data.spec import Example
from segzoo.errors import SegzooError, did_you_mean

JSON = "annotations.json"
EXPECTED = f"train/images and train/instances or train/{JSON}"
ONE_KIND = "object"


class Maps(NamedTuple):
    """An image and its files of ids, each with the class of its objects."""

    name: str
    image: Path
    maps: tuple[tuple[int, Path], ...]

    def read(self) -> tuple[list[int], list[np.ndarray]]:
        """Returns the classes of the objects, and the files' ids numbered from 1 on, in a row."""
        classes: list[int] = []
        numbered: list[np.ndarray] = []
        for number, path in self.maps:
            ids = decode.decode_ids(read_lossless(path), str(path), upright=True)
            present = np.bincount(ids.ravel()) > 0
            present[0] = False
            numbers = np.zeros(len(present), np.int32)
            count = int(present.sum())
            numbers[present] = np.arange(1, count + 1) + len(classes)
            numbered.append(numbers[ids])
            classes += [number] * count
        return classes, numbered

    def check(self) -> Found:
        """Reads all of it."""
        found = read_picture(self.image)
        try:
            classes, numbered = self.read()
            for (_, path), numbers in zip(self.maps, numbered, strict=True):
                check_covers(path, numbers, found.size)
            found.ids = Counter(classes)
            if len({numbers.shape for numbers in numbered}) == 1:
                found.overlaps = bool(((np.stack(numbered) > 0).sum(0) > 1).any())
        except SegzooError as error:
            found.faults.append(str(error))
        return found

    def objects(self, size: tuple[int, int], overlaps: bool) -> Example:
        """Returns all of an example but the image."""
        classes, numbered = self.read()
        example = {"classes": np.array(classes, np.int32), "crowd": np.zeros(len(classes), bool)}
        if not overlaps:
            instances = np.zeros(size, np.int32)
            for numbers in numbered:
                instances += numbers
            return {**example, "instances": instances}
        masks = np.zeros((len(classes), *size), np.uint8)
        for numbers in numbered:
            for number in np.unique(numbers[numbers > 0]).tolist():
                masks[number - 1] = numbers == number
        return {**example, "masks": masks}


class Outlined(NamedTuple):
    """An image and its objects as annotations list them."""

    name: str
    image: Path
    picture: Picture

    def check(self) -> Found:
        """Reads the image; the annotations have been read."""
        found = read_picture(self.image)
        size = self.picture.size
        if found.size not in (None, size):
            found.faults.append(
                f"{self.image}: the image is {found.size[1]}x{found.size[0]} and its annotations "
                f"are of {size[1]}x{size[0]} pixels (width x height)."
            )
        found.ids = Counter(self.picture.classes)
        found.overlaps = True
        return found

    def objects(self, size: tuple[int, int], overlaps: bool) -> Example:
        """Returns all of an example but the image."""
        del size, overlaps
        return {
            "classes": np.array(self.picture.classes, np.int32),
            "crowd": np.array(self.picture.crowd, bool),
            "masks": rle.decode(self.picture.masks, self.picture.size),
        }


Entry = Maps | Outlined


class Tree:
    """The files of a folder of objects, found and paired; annotations are read.

    Attributes:
        entries: the examples of each split.
        names: of the classes, the background not among them.
        palette: one colour for each, if classes.txt gives some.
        files: all that the dataset depends on.
        notes: what should be known, a sentence each.
    """

    def __init__(self, root: Path, faults: list[str]) -> None:
        self.root, self.faults = root, faults
        self.entries: dict[str, list[Entry]] = {}
        self.files: list[Path] = [root / "classes.txt"]
        self.notes: list[str] = []
        classes = read_classes(root / "classes.txt", faults)
        named = [
            (name, classes.palette[i] if classes.palette else None)
            for i, name in enumerate(classes.names)
            if name.lower() != "background"
        ]
        self.names = tuple(name for name, _ in named)
        self.palette = tuple(color for _, color in named if color is not None)
        splits = find_splits(root, EXPECTED, faults)
        by_json = [split for split in splits if (root / split / JSON).exists()]
        if by_json and len(by_json) < len(splits):
            missing = next(split for split in splits if split not in by_json)
            faults.append(f"{missing}/{JSON}: missing, but {by_json[0]}/ has one.")
        if by_json:
            self._read_json(by_json, bool(classes.names))
        else:
            self._find_maps(splits)

    # --- Annotations ---

    def _read_json(self, splits: Sequence[str], has_list: bool) -> None:
        if has_list:
            self.faults.append(f"classes.txt: {JSON} names the classes; remove one of the two.")
        self.names, self.palette, first = (), (), ""
        for split in splits:
            folder = self.root / split
            faults: list[str] = []
            annotations = read_annotations(folder / JSON, faults)
            # Annotations give the name of their file, which is the same in every split.
            self.faults += [f"{split}/{fault.removeprefix(f'{folder}/')}" for fault in faults]
            self.files.append(folder / JSON)
            if annotations.left_out:
                self.notes.append(f"{split}/{annotations.left_out}; they are left out.")
            names = annotations.class_names[1:]
            if first and names and names != self.names:
                differing = sorted(set(names) ^ set(self.names)) or ["their order"]
                self.faults.append(
                    f"{split}/{JSON}: its categories differ from those of {first}/{JSON} "
                    f"({', '.join(differing[:3])})."
                )
            elif names and not first:
                self.names, first = names, split
            self.entries[split] = self._outlined(split, annotations.pictures)

    def _outlined(self, split: str, pictures: Sequence[Picture]) -> list[Entry]:
        folder = self.root / split / "images"
        if not folder.is_dir():
            self.faults.append(f"{split}/images/: missing.")
            return []
        entries: list[Entry] = []
        for picture in pictures:
            # Some programs write the path the image had on their machine.
            places = [
                folder / picture.name,
                folder / picture.name.replace("\\", "/").split("/")[-1],
            ]
            path = next((p for p in places if p.is_file() and p.is_relative_to(folder)), None)
            if path is None:
                self.faults.append(f"{split}/images/{picture.name}: missing, listed in {JSON}.")
            else:
                entries.append(Outlined(path.stem, path, picture))
        self.files += [entry.image for entry in entries]
        listed = {entry.image for entry in entries}
        others = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path not in listed and not is_hidden(path)
        ]
        if others and pictures:
            self.notes.append(
                f"{split}/images/: files that {JSON} does not list are not used: {len(others)}, "
                f"e.g. {others[0].relative_to(folder)}."
            )
        return entries

    # --- Files of ids ---

    def _find_maps(self, splits: Sequence[str]) -> None:
        folders = [self.root / split / "instances" for split in splits]
        found = {
            path.name
            for folder in folders
            if folder.is_dir()
            for path in folder.iterdir()
            if path.is_dir() and not is_hidden(path)
        }
        if not found:
            if len(self.names) > 1:
                self.faults.append(
                    f"classes.txt: names {len(self.names)} kinds of objects, but instances/ has no "
                    "folder for each."
                )
            self.names = self.names or (ONE_KIND,)
        elif self.names:
            for name in sorted(found - set(self.names)):
                hint = did_you_mean(name, self.names)
                self.faults.append(f"instances/{name}/: not in classes.txt.{hint}")
        else:
            self.names = tuple(sorted(found))
        for split in splits:
            self.entries[split] = self._maps(split, found)

    def _maps(self, split: str, kinds: set[str]) -> list[Entry]:
        root, faults = self.root, self.faults
        images = files_by_stem(root, root / split / "images", faults)
        folder = root / split / "instances"
        maps: dict[str, list[tuple[int, Path]]] = {stem: [] for stem in images}
        for number, name in enumerate(self.names, 1):
            place = folder / name if kinds else folder
            if kinds and not place.is_dir():
                continue
            for stem, path in files_by_stem(root, place, faults).items():
                if stem in maps:
                    maps[stem].append((number, path))
                elif images:
                    faults.append(f"{path.relative_to(root)}: has no image.")
        if kinds and folder.is_dir():
            faults += [
                f"{path.relative_to(root)}: beside the folders of the classes; expected it in one."
                for path in sorted(folder.iterdir())
                if path.is_file() and not is_hidden(path)
            ]
        if any(maps.values()):
            where = "any folder of instances/" if kinds else "instances/"
            faults += [
                f"{images[stem].relative_to(root)}: has no file in {where}; an image without "
                "objects needs one that is 0 everywhere."
                for stem, found in maps.items()
                if not found
            ]
        self.files += [*images.values(), *(path for found in maps.values() for _, path in found)]
        return [Maps(stem, images[stem], tuple(found)) for stem, found in maps.items() if found]
