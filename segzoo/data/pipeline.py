"""From a source to batches: Grain's threads and worker processes over random access.

Batch i of a training run is a function of (seed, i) alone: not of the number of processes, workers
or threads, nor of where the run was started again. So the step number is the place in the data,
and nothing else needs saving.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import grain
import numpy as np

from segzoo.data.spec import VOID, Example, Source
from segzoo.errors import SegzooError, check_positive_int

Batch = dict[str, np.ndarray]
Transform = Callable[[Example], Example]
T = TypeVar("T")

_PADDING = {"image": 0, "label": VOID, "instances": 0, "weight": 0}
"""What lies outside an image, by key: pixels that count nothing."""


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


class Batches(Iterator[Batch]):
    """An iterator of batches; `close` it, or leave its `with` block, to end threads and workers.

    Raises (from `next`):
        SegzooError: when an example cannot be read or does not fit the others; its file is named.
    """

    def __init__(self, batches: grain.MapDataset, threads: int, workers: int) -> None:
        # Each worker process reads ahead too, so a deep buffer would only hold memory.
        options = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0
        )
        dataset = batches.to_iter_dataset(options)
        if workers:
            _parse_flags()
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
            )
        self._iterator: Any = iter(dataset)
        self._shared = workers > 0

    def __next__(self) -> Batch:
        if self._iterator is None:
            raise StopIteration
        batch = next(self._iterator)
        if self._shared:
            # Out of the workers' shared memory, which must not outlive the iterator.
            batch = {key: np.array(value) for key, value in batch.items()}
        return batch

    def close(self) -> None:
        """Ends the threads and worker processes; the iterator is then at its end."""
        iterator, self._iterator = self._iterator, None
        if iterator is not None:
            iterator.close()

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_iterator", None) is not None:
            self.close()


def _parse_flags() -> None:
    """Lets Grain's workers start in a program that did not parse absl's flags."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def train_batches(
    source: Source,
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    threads: int = 2,
    workers: int = 0,
    instances: bool = False,
) -> Batches:
    """Returns the endless stream of training batches, from batch number `start` on.

    Every epoch visits each example once, in an order of its own; batches run across the borders of
    epochs, so all have `batch_size` examples, even when the dataset has fewer.

    Args:
        source: the examples.
        batch_size: of all processes together.
        seed: of the order, at least 0.
        start: the number of the first batch: the step at which a run goes on.
        transform: a picklable function of one example, run on the host.
        process_index: which contiguous slice of each batch to load.
        process_count: into how many slices a batch is cut.
        threads: that load batches ahead, in this process or in each worker; 0 loads on demand.
        workers: processes that load batches ahead; 0 loads in this one. They pay with many cores
            and heavy transforms only.
        instances: keep the instance ids after `transform`, which most tasks have no use for.

    Returns:
        Batches of `batch_size / process_count` stacked examples with `index` uint32 [B], the
        examples' places in the stream of all processes (modulo 2**32).

    Raises:
        SegzooError: for impossible numbers; from `next`, for examples that cannot be read or have
            differing sizes.
    """
    local = _check(source, batch_size, process_index, process_count, threads, workers)
    check_positive_int("seed", seed, 0)
    check_positive_int("start", start, 0)
    load = _TrainBatch(
        _Loader(source, transform, instances),
        Order(len(source), seed),
        batch_size,
        process_index * local,
        local,
    )
    batches = grain.MapDataset.range(start, sys.maxsize // batch_size).map(load)
    return Batches(batches, threads, workers)


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    transform: Transform | None = None,
    process_index: int = 0,
    process_count: int = 1,
    bucket: int = 32,
    threads: int = 2,
    workers: int = 0,
    instances: bool = False,
) -> Batches:
    """Returns batches that hold every example exactly once, in order.

    The last batch is filled up with examples of zeros whose labels are void; every process gets
    the same number of batches of the same shapes. Where images differ in size, all those of a
    batch are padded at the bottom and right, label void, to one canvas whose sides are multiples
    of `bucket`, so that few distinct shapes have to be compiled.

    Args:
        source: the examples.
        batch_size: of all processes together.
        transform: a picklable function of one example. With several processes, its method
            `output_shape(image_shape) -> image_shape`, if it has one, spares them loading each
            other's images.
        process_index: which contiguous slice of each batch to load.
        process_count: into how many slices a batch is cut.
        bucket: in pixels; canvases of images that differ in size are multiples of it.
        threads: as for `train_batches`.
        workers: as for `train_batches`.
        instances: keep the instance ids after `transform`.

    Returns:
        Batches of `batch_size / process_count` stacked examples with `index` uint32 [B], the
        examples' places in the source (`len(source)` and more for those filled in), and `size`
        int32 [B, number of spatial axes], their sizes before padding (0 for those filled in).

    Raises:
        SegzooError: for impossible numbers; from `next`, for examples that cannot be read.
    """
    local = _check(source, batch_size, process_index, process_count, threads, workers)
    check_positive_int("bucket", bucket)
    load = _EvalBatch(
        _Loader(source, transform, instances),
        batch_size,
        process_index * local,
        local,
        bucket,
    )
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load)
    return Batches(batches, threads, workers)


def device_prefetch(batches: Iterable[T], put: Callable[[T], T], depth: int = 2) -> Iterator[T]:
    """Yields `put(batch)` for each batch, keeping `depth` of them on their way to the device.

    `put` starts a copy and returns at once, as `jax.device_put` does, so copies overlap with the
    steps that use earlier batches.

    Args:
        batches: on the host.
        put: starts the copy of one batch to where it is used.
        depth: how many batches to be ahead; 0 copies when asked.
    """
    ahead: collections.deque[T] = collections.deque()
    try:
        for batch in batches:
            ahead.append(put(batch))
            if len(ahead) > depth:
                yield ahead.popleft()
        while ahead:
            yield ahead.popleft()
    finally:
        close = getattr(batches, "close", None)
        if close is not None:
            close()


# --- Loading ------------------------------------------------------------------------------------


def _check(
    source: Source,
    batch_size: int,
    process_index: int,
    process_count: int,
    threads: int,
    workers: int,
) -> int:
    """Checks the numbers and returns the batch size of one process."""
    check_positive_int("batch_size", batch_size)
    check_positive_int("process_count", process_count)
    check_positive_int("threads", threads, 0)
    check_positive_int("workers", workers, 0)
    if not 0 <= process_index < process_count:
        raise SegzooError(f"process_index is {process_index}; expected 0..{process_count - 1}.")
    if batch_size % process_count:
        raise SegzooError(
            f"batch_size {batch_size} cannot be divided among {process_count} processes."
        )
    if not len(source):
        raise SegzooError("the split has no examples.")
    return batch_size // process_count


class _Loader:
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


class _TrainBatch:
    """Loads one process's slice of training batch i."""

    def __init__(
        self, load: _Loader, order: Order, batch_size: int, offset: int, local: int
    ) -> None:
        self.load, self.order = load, order
        self.batch_size, self.offset, self.local = batch_size, offset, local

    def __call__(self, number: int) -> Batch:
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


class _EvalBatch:
    """Loads one process's slice of evaluation batch i, padded and filled up."""

    def __init__(
        self, load: _Loader, batch_size: int, offset: int, local: int, bucket: int
    ) -> None:
        self.load, self.batch_size = load, batch_size
        self.offset, self.local, self.bucket = offset, local, bucket

    def __call__(self, number: int) -> Batch:
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
            stacked = np.full((self.local, *shape), _PADDING.get(key, 0), like.dtype)
            for row, example in zip(stacked, examples, strict=False):
                value = example[key]
                row[tuple(map(slice, value.shape))] = value
            if np.ndim(like) == 0:
                for place, example in enumerate(examples):
                    stacked[place] = example[key]
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
        if len(shapes) == 1:
            return shapes.pop()
        return tuple(
            -(-max(sides) // self.bucket) * self.bucket for sides in zip(*shapes, strict=True)
        )

    def _shape(self, index: int) -> tuple[int, ...]:
        """Returns the spatial shape of another process's example."""
        transform, known = self.load.transform, getattr(self.load.source, "image_shape", None)
        output_shape = getattr(transform, "output_shape", None)
        if known is not None and (transform is None or output_shape is not None):
            shape = known(index)
            return (output_shape(shape) if output_shape else shape)[:-1]
        return self.load([index])[0]["image"].shape[:-1]


def _size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape[:-1]))
