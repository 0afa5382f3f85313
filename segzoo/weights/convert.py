"""Another library's tensors <-> ours: which layout they are in, and each tensor's place."""

from __future__ import annotations

import collections
import dataclasses
import importlib
import importlib.util
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from segzoo.errors import SegzooError, check_name
from segzoo.weights.names import Layout, Place, places

if TYPE_CHECKING:
    import flax.linen as nn

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]

_LISTED = 20  # names in an error, at most; then their number


def layouts_of(model: nn.Module) -> tuple[Layout, ...]:
    """Returns how other libraries store a model: as a whole first, then its backbone.

    The table of `segzoo/models/x.py` or `segzoo/backbones/x.py` is `segzoo/weights/x.py`.

    Args:
        model: a module of this package, or one whose field `backbone` is.
    """
    backbone = getattr(model, "backbone", None)
    found = _table(model, model)
    if not _is_classifier(model):
        return (*found, *(_encoder_alone(layout) for layout in _table(backbone, model)))
    return found + _table(backbone, model)


def _table(part: object, model: nn.Module) -> tuple[Layout, ...]:
    home, _, name = type(part).__module__.rpartition(".")
    table = f"segzoo.weights.{name}"
    if home not in ("segzoo.models", "segzoo.backbones") or not importlib.util.find_spec(table):
        return ()
    layouts = getattr(importlib.import_module(table), "layouts", None)
    return layouts(model) if layouts is not None else ()


def _is_classifier(model: nn.Module) -> bool:
    return type(model).__module__.startswith("segzoo.backbones.")


def _encoder_alone(layout: Layout) -> Layout:
    """A classifier's layout without its head, whose name may be another module's elsewhere."""
    return dataclasses.replace(layout, optional=(), encoder_alone=True)


@dataclasses.dataclass(frozen=True)
class Match:
    """A file read as a layout.

    Attributes:
        layout: whose names it has.
        prefix: what they begin with there: "module." in a file written under `DataParallel`,
            "backbone." where the network is a part of a larger one.
        places: of our tensors, by path; None where the layout has none.
    """

    layout: Layout
    prefix: str
    places: Mapping[str, Place | None]


def recognise(tensors: Tensors, paths: Iterable[str], model: nn.Module, where: str) -> Match:
    """Finds the layout and prefix under which most of a model's tensors are in a file.

    Args:
        tensors: by their names.
        paths: of the model's tensors.
        model: the model.
        where: the file, named in errors.

    Raises:
        SegzooError: when no layout of the model's family has a single name of the file's.
    """
    paths = list(paths)
    best: tuple[int, Match] | None = None
    layouts = layouts_of(model)
    for layout in layouts:
        found = places(paths, layout)
        wanted = {place.name for place in found.values() if place is not None}
        prefixes: collections.Counter[str] = collections.Counter()
        for name in tensors:
            parts = name.split(".")
            for i in range(len(parts)):
                if ".".join(parts[i:]) in wanted:
                    prefixes[".".join([*parts[:i], ""]) if i else ""] += 1
        for prefix, count in prefixes.items():
            if best is None or count > best[0]:
                best = count, Match(layout, prefix, found)
    if best is not None:
        return best[1]
    if not layouts:
        raise SegzooError(f"{where}: no other library's layout of {family(model)} is known.")
    some = ", ".join(repr(name) for name in list(tensors)[:3])
    known = {_first(paths, layout): layout.library for layout in reversed(layouts)}
    expected = " or ".join(f"{name!r} ({library})" for name, library in known.items())
    raise SegzooError(
        f"{where} is in no known layout of {family(model)}: it holds {some or 'no tensors'}; "
        f"expected names such as {expected}."
    )


def family(model: nn.Module) -> str:
    """Returns the name of the backbone's class, or of the model's where it has none."""
    return type(getattr(model, "backbone", None) or model).__name__


def _first(paths: list[str], layout: Layout) -> str:
    return next(place.name for place in places(paths, layout).values() if place is not None)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file holds, by our paths.

    Attributes:
        values: in our order of axes; their shapes may still differ from the model's.
        match: how the file is read, or None for one that has our own paths.
        spare: names of the file's that are no tensor of the model's.
    """

    values: Mapping[str, np.ndarray]
    match: Match | None
    spare: tuple[str, ...]

    def name(self, path: str) -> str:
        """Returns what the file calls, or would call, our tensor at `path`."""
        place = self.match.places[path] if self.match is not None else None
        return path if place is None or self.match is None else self.match.prefix + place.name

    def shape(self, path: str, ours: tuple[int, ...]) -> list[int]:
        """Returns the shape the file would give a tensor that has the shape `ours` here."""
        place = self.match.places[path] if self.match is not None else None
        return list(ours if place is None else place.shape(ours))

    def path(self, name: str) -> str | None:
        """Returns our path of the module a spare tensor belongs to; None if it is unknown."""
        if self.match is None:
            return name.partition("/")[2]
        if not name.startswith(self.match.prefix):
            return None
        return self.match.layout.path(name.removeprefix(self.match.prefix))


def find(tensors: Tensors, shapes: Shapes, model: nn.Module, where: str) -> Found:
    """Reads another library's tensors as those of a model.

    Args:
        tensors: by their names.
        shapes: of the model's tensors, by path.
        model: the model.
        where: the file, named in errors.

    Raises:
        SegzooError: when the file is in no layout known for the model.
    """
    match = recognise(tensors, shapes, model, where)
    values, used = {}, set()
    for path, place in match.places.items():
        if place is None or match.prefix + place.name not in tensors:
            continue
        used.add(match.prefix + place.name)
        theirs = tensors[match.prefix + place.name]
        ours = _ours(theirs, place, shapes[path])
        if path == match.layout.blue_first and ours.ndim > 2:
            ours = ours[..., ::-1, :]
        values[path] = ours
    ignored = match.layout.ignored
    spare = tuple(n for n in tensors if n not in used and not n.endswith(ignored))
    return Found(values, match, spare)


def _ours(theirs: np.ndarray, place: Place, shape: tuple[int, ...]) -> np.ndarray:
    """Their tensor in our order of axes; one of another shape may stay as it is, to be refused."""
    if place.flattened is not None and theirs.shape[1:] != place.shape(shape)[1:]:
        return theirs
    ours = place.take(theirs)
    # A dense layer and the convolution it equals differ only in axes of one place.
    same = len(ours.shape) != len(shape) and ours.shape[-1:] == shape[-1:]
    return ours.reshape(shape) if same and ours.size == np.prod(shape) else ours


def to_theirs(values: Tensors, model: nn.Module, library: str) -> dict[str, np.ndarray]:
    """Returns a model's tensors under another library's names and in its order of axes.

    Args:
        values: by our path.
        model: the model.
        library: "torchvision", "timm", ...

    Raises:
        SegzooError: when the library has no layout for the model, or none for some of its tensors.
    """
    layouts = layouts_of(model)
    known = sorted({layout.library for layout in layouts})
    if not known:
        raise SegzooError(f"no other library's layout of {family(model)} is known.")
    check_name(f"layout of {family(model)}", library, known)
    unknown: list[str] = []
    for layout in (layout for layout in layouts if layout.library == library):
        found = places(values, layout)
        unknown = [path for path, place in found.items() if place is None]
        if not unknown:
            named = {}
            for path, place in found.items():
                assert place is not None  # as nothing is unknown
                flip = path == layout.blue_first
                ours = values[path][..., ::-1, :] if flip else values[path]
                named[place.name] = np.ascontiguousarray(place.give(ours))
            return named
    raise SegzooError(f"{library} has no place for {listed(unknown)} of {family(model)}.")


def listed(names: Iterable[str], most: int = _LISTED) -> str:
    """Returns the names, the first few with the number of the rest where there are many."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
