"""What a batch is: which examples, in what order, stacked how. Every function here is pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from segzoo.data.spec import VOID, Example, Source
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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.length, self.seed)


class Loader:
    """Reads examples, transforms them and checks that they are what the contract says."""

    def __init__(self, source: Source, transform: Transform | None, instances: bool) -> None:
        self.source, self.transform, self.instances = source, transform, instances

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
        if not self.instances and "instances" in example:
            example = {key: value for key, value in example.items() if key != "instances"}
        self._check(example, index)
        return example

    def _check(self, example: Example, index: int) -> None:
        image, label = example.get("image"), example.get("label")
        if image is None or label is None:
            raise SegzooError(
                f"{self.name(index)} has the keys {sorted(example)}; expected 'image' and 'label'."
            )
        if image.dtype != np.uint8 or image.ndim < 2:
            raise SegzooError(
                f"the image of {self.name(index)} is {image.dtype}{list(image.shape)}; expected "
                "uint8 [*S, C]."
            )
        space = image.shape[:-1]
        wanted: dict[str, tuple[type, tuple[int, ...]]] = {
            "label": (np.uint8, space) if np.ndim(label) else (np.int32, ()),
            "instances": (np.int32, space),
            "weight": (np.float32, space),
        }
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


class TrainBatch:
    """Loads one process's slice of training batch i."""

    def __init__(
        self, load: Loader, order: Order, batch_size: int, offset: int, local: int
    ) -> None:
        self.load, self.order = load, order
        self.batch_size, self.offset, self.local = batch_size, offset, local

    def __call__(self, number: int) -> Batch:
        """Returns the stacked examples and their places in the stream."""
        first = number * self.batch_size + self.offset
        places = range(first, first + self.local)
        indices = [self.order[place] for place in places]
        examples = self.load(indices)
        self.load.check_alike(examples, indices)
        shape = examples[0]["image"].shape
        for example, index in zip(examples, indices, strict=True):
            if example["image"].shape != shape:
                raise SegzooError(
                    f"{self.load.name(index)} is {_size(example['image'].shape)} but "
                    f"{self.load.name(indices[0])} is {_size(shape)}: set image_size to train on "
                    "images of differing sizes."
                )
        batch = {key: np.stack([example[key] for example in examples]) for key in examples[0]}
        batch["index"] = (np.asarray(places, np.uint64) % 2**32).astype(np.uint32)
        return batch


class EvalBatch:
    """Loads one process's slice of evaluation batch i, padded and filled up.

    Args:
        load: reads examples.
        batch_size: of all processes.
        offset: where in a batch this process's slice begins.
        local: how long the slice is.
        bucket: canvases of images that differ in size are multiples of it.
        uniform: whether all examples have one size; None where that is not known, so that only
            the sizes within a batch can be compared.
    """

    def __init__(
        self,
        load: Loader,
        batch_size: int,
        offset: int,
        local: int,
        bucket: int,
        uniform: bool | None,
    ) -> None:
        self.load, self.batch_size = load, batch_size
        self.offset, self.local, self.bucket = offset, local, bucket
        self.uniform = uniform

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
        canvas = self._canvas(everyone, dict(zip(mine, examples, strict=True)))

        batch: Batch = {}
        for key, like in pattern.items():
            shape = like.shape
            if np.ndim(like) >= len(canvas):
                shape = (*canvas, *like.shape[len(canvas) :])
            padding = _NO_CLASS if key == "label" and not shape else _PADDING.get(key, 0)
            stacked = np.full((self.local, *shape), padding, like.dtype)
            for place, example in enumerate(examples):
                value = example[key]
                inside: tuple[Any, ...] = (place, *map(slice, value.shape))
                stacked[inside] = value
            batch[key] = stacked
        size = np.zeros((self.local, len(canvas)), np.int32)
        for place, example in enumerate(examples):
            size[place] = example["image"].shape[:-1]
        batch["size"] = size
        batch["index"] = np.asarray(places, np.uint64).astype(np.uint32)
        return batch

    def _canvas(self, everyone: range, examples: dict[int, Example]) -> tuple[int, ...]:
        """Returns one spatial shape for the whole batch, the same on every process."""
        shapes = {
            examples[index]["image"].shape[:-1] if index in examples else self._shape(index)
            for index in everyone
        }
        if len(shapes) == 1 and self.uniform is not False:
            return shapes.pop()
        return tuple(
            -(-max(sides) // self.bucket) * self.bucket for sides in zip(*shapes, strict=True)
        )

    def _shape(self, index: int) -> tuple[int, ...]:
        """Returns the spatial shape of another process's example."""
        shape = self.load.known_shape(index)
        return (shape or self.load([index])[0]["image"].shape)[:-1]


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:-1]))
