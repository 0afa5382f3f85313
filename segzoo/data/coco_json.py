"""Reading and checking annotations in COCO's format: which objects are in which image.

A file holds `images` (`id`, `file_name`, `height`, `width`), `categories` (`id`, `name`) and
`annotations` (`image_id`, `category_id`, `segmentation`, and `iscrowd`, 1 for regions of objects
not told apart). The categories become the classes 1, 2, ... in the order of their ids, which may
have gaps. Objects without any pixel are left out, and counted.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from segzoo.data import rle
from segzoo.data.originals import read_bytes
from segzoo.errors import SegzooError, did_you_mean

T = TypeVar("T")

LONGEST = 2**16
"""No image file has longer sides, in pixels."""

KEYS = ("images", "annotations", "categories")


class Picture(NamedTuple):
    """An image and its objects.

    Attributes:
        name: its file's name.
        size: `(H, W)`.
        classes: of the objects, from 1 on.
        crowd: which of them are regions of objects not told apart.
        masks: their pixels, as `rle.encode` returns them.
    """

    name: str
    size: tuple[int, int]
    classes: list[int]
    crowd: list[bool]
    masks: list[bytes]


@dataclasses.dataclass(frozen=True)
class Annotations:
    """What a file says.

    Attributes:
        class_names: "background", then the categories.
        pictures: in the order of the file, also those without objects.
        left_out: how many objects have no pixel, in words with an example; empty if none.
    """

    class_names: tuple[str, ...]
    pictures: list[Picture]
    left_out: str


def read_annotations(path: Path, faults: list[str]) -> Annotations:
    """Reads a file of annotations.

    Args:
        path: of the file.
        faults: receives what is wrong, a sentence each.
    """
    content = _load(path, faults)
    if faults:
        return Annotations(("background",), [], "")
    reader = _Reader(path.name, faults)
    reader.read_categories(content["categories"], content["annotations"])
    reader.read_images(content["images"])
    reader.read_objects(content["annotations"])
    return Annotations(("background", *reader.names), list(reader.pictures.values()), reader.note())


def _load(path: Path, faults: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(read_bytes(path))
    except SegzooError as error:
        faults.append(str(error))
    except (ValueError, RecursionError) as error:
        faults.append(f"{path.name}: not valid JSON ({error}).")
    else:
        if not isinstance(content, dict):
            found = type(content).__name__
            faults.append(f"{path.name}: a {found}; expected an object with {', '.join(KEYS)}.")
            return {}
        for key in KEYS:
            if key not in content:
                near = did_you_mean(key, content)
                faults.append(f"{path.name}: has no {key!r}.{near if 'mean' in near else ''}")
            elif not isinstance(content[key], list) or not all(
                isinstance(entry, dict) for entry in content[key]
            ):
                faults.append(f"{path.name}: {key!r} is not a list of objects.")
        return content
    return {}


class _Reader:
    """Gathers the parts of one file, and what is wrong with them."""

    def __init__(self, file: str, faults: list[str]) -> None:
        self.file, self.faults = file, faults
        self.classes: dict[int, int] = {}  # category id -> class
        self.names: list[str] = []
        self.pictures: dict[int, Picture] = {}
        self.empty: Counter[str] = Counter()
        self.example = ""

    def fault(self, text: str) -> None:
        # JSON may hold what no terminal can show.
        shown = text.encode(errors="backslashreplace").decode()
        self.faults.append(f"{self.file}: {shown}.")

    def read_categories(
        self, categories: list[dict[str, Any]], annotations: list[dict[str, Any]]
    ) -> None:
        for entry in categories:
            if type(entry.get("id")) is not int or not _is_text(entry.get("name")):
                self.fault(f"the category {_short(entry)} needs 'id', a whole number, and 'name'")
                return
        if not categories:
            self.fault("lists no categories")
        for what in ("id", "name") if categories else ():
            value, times = Counter(entry[what] for entry in categories).most_common(1)[0]
            if times > 1:
                self.fault(f"{times} categories have the {what} {value!r}")
                return
        # Some programs list the background, which has no objects.
        used = [entry.get("category_id") for entry in annotations]
        ordered = sorted(categories, key=lambda entry: entry["id"])
        ordered = [e for e in ordered if e["name"].lower() != "background" or e["id"] in used]
        self.names = [entry["name"] for entry in ordered]
        self.classes = {entry["id"]: number for number, entry in enumerate(ordered, 1)}
        if "background" in map(str.lower, self.names):
            self.fault("the category 'background' has objects; expected things only")

    def read_images(self, images: list[dict[str, Any]]) -> None:
        names: set[str] = set()
        for entry in images:
            # LVIS gives addresses, which end in the name.
            name = entry.get("file_name") or str(entry.get("coco_url", "")).rpartition("/")[-1]
            number = entry.get("id")
            size: tuple[Any, Any] = entry.get("height"), entry.get("width")
            if type(number) is not int or not _is_text(name):
                self.fault(f"the image {_short(entry)} needs 'id', a whole number, and 'file_name'")
            elif not all(type(side) is int and 0 < side <= LONGEST for side in size):
                self.fault(f"the image {name} has the height {size[0]} and the width {size[1]}")
            elif number in self.pictures:
                self.fault(f"{self.pictures[number].name} and {name} have the same id {number}")
            elif name in names:
                self.fault(f"the image {name} is listed twice")
            else:
                names.add(name)
                self.pictures[number] = Picture(name, size, [], [], [])
        if not images:
            self.fault("lists no images")

    def read_objects(self, annotations: list[dict[str, Any]]) -> None:
        for place, entry in enumerate(annotations):
            name = f"annotation {entry.get('id', f'number {place}')}"
            picture = _at(self.pictures, entry.get("image_id"))
            if picture is None:
                self.fault(f"{name} is of an image with the id {entry.get('image_id')}, not listed")
                continue
            name += f" ({picture.name})"
            number = _at(self.classes, entry.get("category_id"))
            if number is None:
                known = ", ".join(map(str, list(self.classes)[:10]))
                more = ", ..." if len(self.classes) > 10 else ""
                self.fault(
                    f"{name} has the category {entry.get('category_id')}; known: {known}{more}"
                )
                continue
            try:
                mask = _mask(entry, picture.size)
            except rle.NoArea as error:
                self.empty[str(error)] += 1
                self.example = self.example or f"{name}: {error}"
                continue
            except rle.OutlineError as error:
                self.fault(f"{name}: {error}")
                continue
            picture.classes.append(number)
            picture.crowd.append(bool(entry.get("iscrowd", 0)))
            picture.masks.append(mask)
        if annotations and sum(self.empty.values()) == len(annotations):
            self.fault(f"none of its {len(annotations)} objects has pixels, e.g. {self.example}")

    def note(self) -> str:
        """Returns what was left out, in words."""
        count = sum(self.empty.values())
        return f"{self.file}: objects without area: {count}, e.g. {self.example}" if count else ""


def _at(table: dict[int, T], key: Any) -> T | None:
    """Returns an entry of a table; whatever is no whole number has none."""
    return table.get(key) if type(key) is int else None


def _is_text(value: Any) -> bool:
    """Returns whether a value is a text that can be written (JSON has others, too)."""
    try:
        return isinstance(value, str) and bool(value.encode())
    except UnicodeEncodeError:
        return False


def _mask(entry: dict[str, Any], size: tuple[int, int]) -> bytes:
    box = entry.get("bbox")
    sides = box[2:] if isinstance(box, list) else []
    if any(type(side) in (int, float) and not side > 0 for side in sides):
        raise rle.NoArea("its box has no area")
    if not entry.get("segmentation"):
        raise rle.NoArea("it has no segmentation")
    return rle.encode(entry["segmentation"], size)


def _short(entry: dict[str, Any]) -> str:
    text = json.dumps(entry)
    return text if len(text) <= 80 else f"{text[:77]}..."
