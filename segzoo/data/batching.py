"""What a batch is: which examples, in what order, stacked how. Every function here is pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segzoo.data.objects import fill_places, pack_masks
from segzoo.data.spec import NO_PIXELS, VOID, Example, Source
from segzoo.errors import SegzooError

Batch = dict[str, np.ndarray]
Transform = Callable[[Example], Example]

_PADDING = {"image": 0, "label": VOID, "instances": 0, "weight": 0}
"""What lies outside an image, by key: pixels that count nothing."""

_NO_CLASS = -1
"""The label of an image that is not there, for classification, where 255 may be a class."""


class Order:
    """The endless order of a training run: every epoch its own permutation of the examples.

    Place i of the stream is example `permutation(epoch)[i % n]` with `epoch = i // n`. The
    permutation sorts raw words of PCG64, which numpy keeps the same in every version.

    Args:
        length: the number of examples, n.
        seed: of the whole run, at least 0.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length, self.seed = length, seed
        # The current epoch and, in a batch across the border of two, the next. Threads may
        # replace this at the same time: each puts in a whole, correct tuple.
        self._recent: tuple[tuple[int, np.ndarray], ...] = ()

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the order of one epoch, int64 `[n]`."""
        recent = self._recent
        for known, found in recent:
            if known == epoch:
                return found
        bits = np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))
        # A single word would come back as a Python integer.
        found = np.argsort(np.atleast_1d(bits.random_raw(self.length)), kind="stable")
        self._recent = (*recent[-1:], (epoch, found))
        return found

    def __getitem__(self, place: int) -> int:
        epoch, within = divmod(place, self.length)
        return int(self.permutation(epoch)[within])

    def batch(self, number: int, size: int) -> list[int]:
        """Returns the examples of batch `number`."""
        return [self[place] for place in range(number * size, (number + 1) * size)]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.length, self.seed)


class GroupedOrder(Order):
    """An order where each batch is of one group, so that images of like shape share a canvas.

    Every group has a stream of its own: its examples, epoch after epoch, in the order in which
    `Order` would come to them. Its batches are cut out of that stream, and each is due when the
    last of its examples would be. So every epoch of a group shows each of its examples once, and
    groups come as often as they are large.

    Args:
        groups: of every example, integers `[n]`.
        seed: of the whole run, at least 0.
        size: of the batches.
    """

    def __init__(self, groups: np.ndarray, seed: int, size: int) -> None:
        super().__init__(len(groups), seed)
        self.groups, self.size = groups, size
        self._counts = np.bincount(groups).astype(np.int64)

    def batch(self, number: int, size: int) -> list[int]:
        """Returns the examples of batch `number`."""
        assert size == self.size
        # At most n / size batches are due in an epoch, and few of those due are ever behind.
        epoch = number * size // self.length
        while self._due(epoch + 1) <= number:
            epoch += 1
        order = self.permutation(epoch)
        groups = self.groups[order]
        # Where in its group's stream each example of this epoch is.
        place = np.empty(self.length, np.int64)
        for group, count in enumerate(self._counts):
            place[groups == group] = epoch * count + np.arange(count)
        last = np.flatnonzero((place + 1) % size == 0)[number - self._due(epoch)]
        end = int(place[last]) + 1
        return self._stream(int(groups[last]), end - size, end)

    def _due(self, epoch: int) -> int:
        """Returns how many batches are due before an epoch begins."""
        return int((epoch * self._counts // self.size).sum())

    def _stream(self, group: int, start: int, stop: int) -> list[int]:
        """Returns a part of a group's stream."""
        count = int(self._counts[group])
        found: list[int] = []
        for epoch in range(start // count, (stop - 1) // count + 1):
            order = self.permutation(epoch)
            members = order[self.groups[order] == group]
            first = epoch * count
            found += members[max(start - first, 0) : stop - first].tolist()
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.groups, self.seed, self.size)


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
