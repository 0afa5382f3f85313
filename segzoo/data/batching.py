"""What batch i is, a pure function of i: its examples read and checked, stacked and padded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segzoo.data.objects import fill_places, pack_masks
from segzoo.data.order import Order
from segzoo.data.spec import NO_PIXELS, VOID, Example, Source
from segzoo.errors import SegzooError

Batch = dict[str, np.ndarray]
Transform = Callable[[Example], Example]

_PADDING = {"image": 0, "label": VOID, "instances": 0, "weight": 0}
"""What lies outside an image, by key: pixels that count nothing."""

_NO_CLASS = -1
"""The label of an image that is not there, for classification, where 255 may be a class."""


class Loader:
    """Reads examples, transforms them and checks that they are what the contract says.

    Args:
        source: the examples.
        transform: of one example, on the host.
        instances: keep the instance ids of semantic examples.
        places: how many objects an example of the task "instance" has room for.
    """

    def __init__(
        self,
        source: Source,
        transform: Transform | None,
        instances: bool,
        places: int | None = None,
    ) -> None:
        self.source, self.transform = source, transform
        self.instances, self.places = instances, places

    def __call__(self, indices: Sequence[int]) -> list[Example]:
        """Returns the examples of these indices, in their order."""
        if hasattr(self.source, "__getitems__"):
            found = self.source.__getitems__(indices)
        else:
            found = [self.source[index] for index in indices]
        return [self._finish(example, index) for example, index in zip(found, indices, strict=True)]

    def name(self, index: int) -> str:
        """Returns what to call an example in a message."""
        name = getattr(self.source, "name", None)
        return f"example {index}" + (f" ({name(index)})" if name else "")

    def known_shape(self, index: int) -> tuple[int, ...] | None:
        """Returns the shape of an image after the transform if no image must be loaded for it."""
        known = getattr(self.source, "image_shape", None)
        output_shape = getattr(self.transform, "output_shape", None)
        if known is None or (self.transform is not None and output_shape is None):
            return None
        shape = known(index)
        return output_shape(shape) if output_shape else shape

    def _finish(self, example: Example, index: int) -> Example:
        if self.transform is not None:
            example = self.transform(example)
        objects = "classes" in example
        if not self.instances and not objects and "instances" in example:
            example = {key: value for key, value in example.items() if key != "instances"}
        self._check(example, index)
        return fill_places(example, self.places, self.name(index)) if objects else example

    def _check(self, example: Example, index: int) -> None:
        image, label, classes = (example.get(key) for key in ("image", "label", "classes"))
        if image is None or (label is None) == (classes is None):
            raise SegzooError(
                f"{self.name(index)} has the keys {sorted(example)}; expected 'image' and 'label', "
                "or 'image', 'classes', 'crowd' and one of 'instances' and 'masks'."
            )
        if image.dtype != np.uint8 or image.ndim < 2:
            raise SegzooError(
                f"the image of {self.name(index)} is {image.dtype}{list(image.shape)}; expected "
                "uint8 [*S, C]."
            )
        space = image.shape[:-1]
        wanted: dict[str, tuple[type, tuple[int, ...]]] = {
            "label": (np.uint8, space) if label is not None and label.ndim else (np.int32, ()),
            "instances": (np.int32, space),
            "weight": (np.float32, space),
        }
        if classes is not None:
            count = classes.size
            wanted["classes"], wanted["crowd"] = (np.int32, (count,)), (bool, (count,))
            wanted["masks"] = (np.uint8, (count, *space))
            if "crowd" not in example or ("instances" in example) == ("masks" in example):
                raise SegzooError(
                    f"{self.name(index)} has the keys {sorted(example)}; expected 'crowd' and one "
                    "of 'instances' and 'masks' beside 'classes'."
                )
        for key, (dtype, shape) in wanted.items():
            if key in example and (example[key].dtype != dtype or np.shape(example[key]) != shape):
                raise SegzooError(
                    f"the {key} of {self.name(index)} is "
                    f"{example[key].dtype}{list(np.shape(example[key]))}; expected "
                    f"{np.dtype(dtype)}{list(shape)}, as its image is {list(image.shape)}."
                )

    def check_alike(self, examples: Sequence[Example], indices: Sequence[int]) -> None:
        """Checks that examples have the same keys and numbers of channels, so that they stack."""
        first = examples[0]
        for example, index in zip(examples, indices, strict=True):
            if example.keys() != first.keys():
                raise SegzooError(
                    f"{self.name(index)} has the keys {sorted(example)} but "
                    f"{self.name(indices[0])} {sorted(first)}."
                )
            ours, theirs = example["image"], first["image"]
            if ours.shape[-1] != theirs.shape[-1] or ours.ndim != theirs.ndim:
                raise SegzooError(
                    f"the image of {self.name(index)} is {list(ours.shape)} but that of "
                    f"{self.name(indices[0])} {list(theirs.shape)}; they cannot share a batch."
                )


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The one size that the images of a batch are padded to.

    Attributes:
        bucket: sides are multiples of it where images differ in size.
        uniform: whether all examples have one size; None where that is not known, so that only
            the sizes within a batch can be compared.
        choices: where given, the first of these that holds the images.
    """

    bucket: int
    uniform: bool | None
    choices: tuple[tuple[int, ...], ...] = ()

    def __call__(self, shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
        """Returns the size `*S` for images of these sizes."""
        distinct = set(shapes)
        if len(distinct) == 1 and (self.uniform or (self.uniform is None and not self.choices)):
            return distinct.pop()
        largest = [max(sides) for sides in zip(*distinct, strict=True)]
        for choice in self.choices:
            if all(side <= room for side, room in zip(largest, choice, strict=True)):
                return choice
        return tuple(-(-side // self.bucket) * self.bucket for side in largest)


def stack(
    examples: Sequence[Example], pattern: Example, canvas: tuple[int, ...], count: int
) -> Batch:
    """Stacks examples, padded at their ends, and fills up with examples where nothing counts.

    Args:
        examples: at most `count`.
        pattern: an example for the keys and dtypes.
        canvas: the size `*S` to pad to.
        count: the length of the batch.

    Returns:
        The batch. Masks are packed as `mask_bits`, only as many as the fullest image has: many
        batches are under way at a time.
    """
    size = np.zeros((count, len(canvas)), np.int32)
    for place, example in enumerate(examples):
        size[place] = example["image"].shape[:-1]
    batch: Batch = {"size": size}
    space = pattern["image"].shape[:-1]  # what has this shape too is made of pixels
    if "masks" in pattern:
        examples, pattern = [_packed(example) for example in examples], _packed(pattern)
    for key, like in pattern.items():
        shape = like.shape
        if key == "mask_bits":
            most = max(len(example[key]) for example in [*examples, pattern])
            shape = (most, *canvas[:-1], -(-canvas[-1] // 8))
        elif key not in NO_PIXELS and shape[: len(canvas)] == space:
            shape = (*canvas, *like.shape[len(canvas) :])
        padding = _NO_CLASS if key == "label" and not shape else _PADDING.get(key, 0)
        if len(examples) == count and all(example[key].shape == shape for example in examples):
            batch[key] = np.stack([example[key] for example in examples])
            continue
        stacked = np.full((count, *shape), padding, like.dtype)
        for place, example in enumerate(examples):
            inside: tuple[Any, ...] = (place, *map(slice, example[key].shape))
            stacked[inside] = example[key]
        batch[key] = stacked
    return batch


def _packed(example: Example) -> Example:
    rest = {key: value for key, value in example.items() if key != "masks"}
    return {**rest, "mask_bits": pack_masks(example["masks"])}


class TrainBatch:
    """Loads one process's slice of training batch i.

    Args:
        load: reads examples.
        order: which examples, in which order.
        batch_size: of all processes.
        offset: where in a batch this process's slice begins.
        local: how long the slice is.
        canvas: what images that differ in size are padded to; None refuses them.
    """

    def __init__(
        self,
        load: Loader,
        order: Order,
        batch_size: int,
        offset: int,
        local: int,
        canvas: Canvas | None = None,
    ) -> None:
        self.load, self.order = load, order
        self.batch_size, self.offset, self.local = batch_size, offset, local
        self.canvas = canvas

    def __call__(self, number: int) -> Batch:
        """Returns the stacked examples and their places in the stream."""
        everyone = self.order.batch(number, self.batch_size)
        mine = everyone[self.offset : self.offset + self.local]
        examples = self.load(mine)
        self.load.check_alike(examples, mine)
        if self.canvas is None:
            canvas = self._one_size(examples, mine)
        else:
            canvas = self.canvas(_sizes(self.load, everyone, mine, examples))
        batch = stack(examples, examples[0], canvas, self.local)
        if "classes" not in batch:
            del batch["size"]  # no label is learned from padding
        first = number * self.batch_size + self.offset
        places = np.asarray(range(first, first + self.local), np.uint64)
        batch["index"] = (places % 2**32).astype(np.uint32)
        return batch

    def _one_size(self, examples: Sequence[Example], indices: Sequence[int]) -> tuple[int, ...]:
        shape = examples[0]["image"].shape
        for example, index in zip(examples, indices, strict=True):
            if example["image"].shape != shape:
                raise SegzooError(
                    f"{self.load.name(index)} is {_size(example['image'].shape)} but "
                    f"{self.load.name(indices[0])} is {_size(shape)}: set image_size to train on "
                    "images of differing sizes."
                )
        return shape[:-1]


class EvalBatch:
    """Loads one process's slice of evaluation batch i, padded and filled up.

    Args:
        load: reads examples.
        batch_size: of all processes.
        offset: where in a batch this process's slice begins.
        local: how long the slice is.
        canvas: what images that differ in size are padded to.
    """

    def __init__(
        self, load: Loader, batch_size: int, offset: int, local: int, canvas: Canvas
    ) -> None:
        self.load, self.batch_size = load, batch_size
        self.offset, self.local, self.canvas = offset, local, canvas

    def __call__(self, number: int) -> Batch:
        """Returns the stacked examples, their places in the source and their sizes."""
        first = number * self.batch_size
        everyone = range(first, min(first + self.batch_size, len(self.load.source)))
        places = range(first + self.offset, first + self.offset + self.local)
        mine = [place for place in places if place in everyone]
        examples = self.load(mine)
        # A process without an example of its own borrows one, for its keys and dtypes.
        pattern = examples[0] if examples else self.load([first])[0]
        if examples:
            self.load.check_alike(examples, mine)
        canvas = self.canvas(_sizes(self.load, everyone, mine, examples))
        batch = stack(examples, pattern, canvas, self.local)
        batch["index"] = np.asarray(places, np.uint64).astype(np.uint32)
        return batch


def _sizes(
    load: Loader, everyone: Sequence[int], mine: Sequence[int], examples: Sequence[Example]
) -> set[tuple[int, ...]]:
    """Returns the sizes `*S` of a whole batch's images, the same on every process."""
    known = {
        index: example["image"].shape[:-1] for index, example in zip(mine, examples, strict=True)
    }
    for index in everyone:
        if index not in known:
            shape = load.known_shape(index)
            known[index] = (shape or load([index])[0]["image"].shape)[:-1]
    return set(known.values())


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:-1]))
