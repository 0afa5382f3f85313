"""A file's tensors brought to a model: whole or its encoder, other classes, other channels.

Strict: a tensor that is missing, unexpected or of another shape is an error, which lists them all.
What may differ is the number of classes and of input channels, and heads that only training uses;
each difference is said in a sentence.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import traverse_util

from segzoo.errors import SegzooError
from segzoo.weights.convert import Found, Shapes, Tensors, find, listed
from segzoo.weights.names import Layout

if TYPE_CHECKING:
    import flax.linen as nn

COLLECTIONS = ("params", "batch_stats")


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Tensors that fit a model.

    Attributes:
        values: float32, by path, of the model's shapes.
        fresh: paths that keep their initialisation.
        notes: sentences on all that was not simply taken over.
    """

    values: dict[str, np.ndarray]
    fresh: tuple[str, ...]
    notes: tuple[str, ...]


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"params/a/b/kernel": array}`; empty collections vanish."""
    return traverse_util.flatten_dict(dict(variables), sep="/")


def unflatten(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts: the inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(tensors), sep="/")


def shapes_of(model: nn.Module, image_shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each of a model's tensors, by path; nothing is allocated or run.

    Args:
        model: the model.
        image_shape: `(*S, C)` of an image.
    """
    try:
        hash(model)
    except TypeError:  # it holds a list, say
        return _traced(model, tuple(image_shape))
    return dict(_remembered(model, tuple(image_shape)))


def _traced(model: nn.Module, image_shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), image)
    kept = {name: shapes[name] for name in COLLECTIONS if name in shapes}
    return {path: leaf.shape for path, leaf in flatten(kept).items()}


# Tracing a deep network takes seconds, and a file is compared with the same one several times.
_remembered = functools.lru_cache(maxsize=8)(_traced)


def fit(
    tensors: Tensors,
    model: nn.Module,
    image_shape: Sequence[int],
    where: str,
    *,
    native: bool,
    whole: str | None = None,
    classes: bool = True,
    channels: bool = True,
) -> Fitted:
    """Brings the tensors of a file to a model.

    Args:
        tensors: by the file's names.
        model: the model.
        image_shape: `(*S, C)` of the model's images.
        where: the file, named in messages.
        native: whether the names are our own paths.
        whole: the model's name in messages, where everything is expected; by default the encoder
            alone will do.
        classes: whether the number of classes may be another; the head then starts afresh.
        channels: whether the number of input channels may be another.

    Raises:
        SegzooError: lists missing, unexpected and misshapen tensors; names one that is not finite
            or not of floating type.
    """
    shapes = shapes_of(model, image_shape)
    if native:
        found = _native(tensors, shapes, whole is not None)
    else:
        found = find(tensors, shapes, model, where)
    notes = []
    if found.match is not None and found.match.prefix:
        notes.append(f"the names in {where} begin with {found.match.prefix!r}.")

    missing, absent = _missing(found, shapes, whole is not None)
    unexpected, unneeded = _spare(found, whole is not None)
    of_classes = functools.cache(lambda: _differing(shapes, model, image_shape, classes=1))
    of_channels = functools.cache(lambda: _differing(shapes, model, image_shape, channels=1))
    values, scored, misshapen = dict(found.values), [], []
    for path, value in found.values.items():
        if value.shape == shapes[path]:
            continue
        if classes and path in of_classes():
            scored.append(path)
            continue
        adapted = None
        if channels and path in of_channels():
            adapted = adapt_input(value, shapes[path])
        if adapted is None:
            misshapen.append(path)
            continue
        values[path] = adapted
        notes.append(
            f"{found.name(path)} takes {value.shape[-2]} channels in {where}, here "
            f"{shapes[path][-2]}: {'summed up' if shapes[path][-2] == 1 else 'repeated in turn'}."
        )
    if scored and len(scored) < len(of_classes() & found.values.keys()):
        misshapen += scored  # the file contradicts itself
    faults = {
        "missing": [found.name(path) for path in missing],
        "unexpected": unexpected,
        "of another shape": [
            f"{found.name(path)} {list(np.shape(tensors[found.name(path)]))} instead of "
            f"{found.shape(path, shapes[path])}"
            for path in misshapen
        ],
    }
    refuse(faults, where, whole or describe(model))

    # All that has a length of the number of classes starts afresh together.
    fresh = set(absent)
    if scored:
        fresh |= of_classes() & found.values.keys()
        theirs, ours = (values[scored[-1]].shape[-1], shapes[scored[-1]][-1])
        notes.append(
            f"{where} has {theirs} classes, the model {ours}: {_modules(fresh - set(absent))} "
            "starts afresh."
        )
    if absent:
        notes.append(f"{where} has nothing for {_modules(absent)}, which starts afresh.")
    if unneeded:
        notes.append(
            f"not needed of {where}: {_modules(unneeded)} ({len(unneeded)} "
            f"tensor{'s' * (len(unneeded) > 1)})."
        )
    taken = {
        path: _float32(value, found.name(path), where)
        for path, value in values.items()
        if path not in fresh
    }
    return Fitted(taken, tuple(sorted(fresh)), tuple(notes))


@dataclasses.dataclass(frozen=True)
class Known:
    """What another library's file tells of itself.

    Attributes:
        layout: whose it is.
        classes: how many; None where no tensor tells.
        channels: of the image; None where no tensor tells.
    """

    layout: Layout
    classes: int | None
    channels: int | None


def examine(tensors: Tensors, model: nn.Module, image_shape: Sequence[int], where: str) -> Known:
    """Finds out about another library's file.

    Args:
        tensors: by their names.
        model: the model, with any number of classes.
        image_shape: `(*S, C)` of an image, with any number of channels.
        where: the file, named in messages.
    """
    shapes = shapes_of(model, image_shape)
    found = find(tensors, shapes, model, where)
    assert found.match is not None  # of a layout, or `find` would have raised
    values = found.values
    of_classes = _differing(shapes, model, image_shape, classes=1)
    of_channels = _differing(shapes, model, image_shape, channels=1)
    classes = [v.shape[-1] for path, v in values.items() if path in of_classes and v.ndim == 1]
    channels = [v.shape[-2] for path, v in values.items() if path in of_channels and v.ndim > 2]
    return Known(
        found.match.layout, classes[-1] if classes else None, channels[-1] if channels else None
    )


def refuse(faults: Mapping[str, Sequence[str]], where: str, model: str) -> None:
    """Raises `SegzooError` where there are faulty tensors: all their names, by fault."""
    texts = [
        f"{len(names)} tensor{'s' * (len(names) > 1)} {fault}: {listed(names)}"
        for fault, names in faults.items()
        if names
    ]
    if texts:
        raise SegzooError(f"{where} does not fit {model}: {'; '.join(texts)}.")


def describe(model: nn.Module) -> str:
    """Returns the classes of the model and its backbone, for messages."""
    backbone = getattr(model, "backbone", None)
    return type(model).__name__ + (f" on {type(backbone).__name__}" if backbone else "")


def _native(tensors: Tensors, shapes: Shapes, whole: bool) -> Found:
    """A file with our own paths; of another model's, the encoder."""
    same = whole or tensors.keys() == shapes.keys() or not any(map(in_encoder, tensors))
    paths = [path for path in shapes if same or in_encoder(path)]
    names = {path: n for path in paths for n in (_other_collection(path), path) if n in tensors}
    values = {path: tensors[name] for path, name in names.items()}
    return Found(values, None, tuple(name for name in tensors if name not in names.values()))


def _other_collection(path: str) -> str:
    """Scale and bias of a norm are parameters, of a frozen one they stand by its statistics."""
    collection, _, rest = path.partition("/")
    return "/".join((COLLECTIONS[1 - COLLECTIONS.index(collection)], rest))


def in_encoder(path: str) -> bool:
    """Whether a tensor or, without its collection, a module belongs to the backbone."""
    return "backbone" in path.split("/")[:2]


def _missing(found: Found, shapes: Shapes, whole: bool) -> tuple[list[str], list[str]]:
    """Paths the file lacks: those it should have, and those of parts it may do without."""
    missing: list[str] = []
    absent: list[str] = []
    held = {_part(path) for path in found.values}
    for path in shapes:
        if path in found.values:
            continue
        module = path.partition("/")[2]
        optional = found.match is not None and found.match.layout.is_optional(module)
        free = optional or (not whole and not in_encoder(path) and any(map(in_encoder, shapes)))
        (absent if free and _part(path) not in held else missing).append(path)
    return missing, absent


def _part(path: str) -> str:
    """The outermost module of a tensor."""
    return path.split("/")[1]


def _spare(found: Found, whole: bool) -> tuple[list[str], list[str]]:
    """Names of the file's that contradict the model, and those of parts it has not."""
    prefix = "" if found.match is None else found.match.prefix
    separator = "/" if found.match is None else "."
    # Where their encoder lies: an unknown name there means another network.
    inside = {
        found.name(path).removeprefix(prefix).split(separator)[0]
        for path in found.values
        if in_encoder(path)
    }
    unexpected: list[str] = []
    unneeded: list[str] = []
    for name in found.spare:
        path = found.path(name)
        if path is not None and found.match is not None:
            free = found.match.layout.is_optional(path) or not (whole or in_encoder(path))
        elif path is not None:
            free = not whole and not in_encoder(path)
        else:
            free = not whole and not (
                name.startswith(prefix) and name.removeprefix(prefix).split(separator)[0] in inside
            )
        (unneeded if free else unexpected).append(name)
    return unexpected, unneeded


def _differing(
    shapes: Shapes,
    model: nn.Module,
    image_shape: Sequence[int],
    *,
    classes: int = 0,
    channels: int = 0,
) -> set[str]:
    """Paths whose shapes change with one more class or one more input channel."""
    other = model
    if classes:
        if not hasattr(model, "num_classes"):
            return set()
        other = model.clone(num_classes=model.num_classes + classes)
    *size, depth = image_shape
    there = shapes_of(other, (*size, depth + channels))
    return {path for path, shape in shapes.items() if shape != there[path]}


def adapt_input(kernel: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Brings a convolution over an image to another number of channels.

    One channel answers as the sum of all did to a grey picture in them; n channels take the
    filters in turn, scaled so that the answer to equal channels stays.

    Args:
        kernel: `[*S, C, features]`.
        shape: wanted, `[*S, n, features]`.

    Returns:
        The kernel, or None where the shapes differ in more than the channels.
    """
    if kernel.ndim != len(shape) or kernel.ndim < 3:
        return None
    there, here = kernel.shape[-2], shape[-2]
    if (*kernel.shape[:-2], here, kernel.shape[-1]) != tuple(shape):
        return None
    wide = kernel.astype(np.float32)
    if here == 1:
        return wide.sum(axis=-2, keepdims=True)
    return wide[..., np.arange(here) % there, :] * np.float32(there / here)


def _float32(value: np.ndarray, name: str, where: str) -> np.ndarray:
    if not jax.numpy.issubdtype(value.dtype, np.floating):
        raise SegzooError(f"{where}: {name} is {value.dtype}; expected floating numbers.")
    # A copy of its own: views of one storage, and of files, end here.
    result = np.array(value, np.float32, order="C")
    if not np.isfinite(result).all():
        raise SegzooError(f"{where}: {name} holds numbers that are not finite.")
    return result


def _modules(names: Iterable[str]) -> str:
    """The outermost parts of tensors named by path or in another library's way."""
    parts: dict[str, None] = {}
    for name in names:
        if name.startswith(tuple(f"{collection}/" for collection in COLLECTIONS)):
            parts[_part(name)] = None
        else:
            parts[name.partition(".")[0]] = None
    return listed(sorted(parts), 6)
