"""From a source to batches: Grain's threads and worker processes over random access.

Batch i of a training run is a function of (seed, i) alone: not of the number of processes, workers
or threads, nor of where the run was started again. So the step number is the place in the data,
and nothing else needs saving.
"""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar

import grain
import numpy as np

from segzoo.data.batching import (
    Batch,
    Canvas,
    EvalBatch,
    Loader,
    TrainBatch,
    Transform,
)
from segzoo.data.objects import MOST, choose_places, unpack_masks
from segzoo.data.order import GroupedOrder, Order
from segzoo.data.spec import Source
from segzoo.data.statistics import image_shapes, shape_of_each
from segzoo.errors import SegzooError, check_positive_int

T = TypeVar("T")
U = TypeVar("U")


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
        if "mask_bits" in batch:
            places, width = batch["valid"].shape[1], batch["image"].shape[-2]
            masks = unpack_masks(batch["mask_bits"], places, width)
            batch = {key: value for key, value in batch.items() if key != "mask_bits"}
            batch["masks"] = masks
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
    places: int | None = None,
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
            and heavy transforms only, and a script that asks for them needs its
            `if __name__ == "__main__":`, as all that starts processes in Python does.
        instances: keep the instance ids after `transform`, which most tasks have no use for.
        places: of the task "instance", how many objects an image has room for; by default for as
            many as any image of the source has, up to `segzoo.data.objects.MOST`. Of more, the
            largest are kept, which is said once.

    Returns:
        Batches of `batch_size / process_count` stacked examples with `index` uint32 [B], the
        examples' places in the stream of all processes (modulo 2**32). Where the transform has
        `canvases`, a batch is of images of like shape (see `GroupedOrder`), padded at their ends to
        one of these. Of the task "instance" there are `size` int32 [B, number of spatial axes],
        before padding, and P places for objects: `classes` int32 [B, P], `valid` and `crowd` bool
        [B, P], and `instances` int32 [B, *S] or `masks` uint8 [B, P, *S].

    Raises:
        SegzooError: for impossible numbers; from `next`, for examples that cannot be read or have
            differing sizes.
    """
    local = _check(source, batch_size, process_index, process_count, threads, workers)
    check_positive_int("seed", seed, 0)
    check_positive_int("start", start, 0)
    places = choose_places(source, places, MOST)
    order, canvas = Order(len(source), seed), None
    canvases = getattr(transform, "canvases", ())
    if canvases:
        canvas = Canvas(1, _uniform(source, transform), canvases)
        groups = _groups(source, transform, canvas)
        if groups is not None:
            order = GroupedOrder(groups, seed, batch_size)
    load = TrainBatch(
        Loader(source, transform, instances, places),
        order,
        batch_size,
        process_index * local,
        local,
        canvas,
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
    places: int | None = None,
) -> Batches:
    """Returns batches that hold every example exactly once, in order.

    The last batch is filled up with examples of zeros whose labels are void; every process gets
    the same number of batches of the same shapes. Where images differ in size, those of a batch
    are padded at the bottom and right, label void, to one canvas whose sides are multiples of
    `bucket`, so that few distinct shapes have to be compiled.

    Args:
        source: the examples.
        batch_size: of all processes together.
        transform: a picklable function of one example. By its method
            `output_shape(image_shape) -> image_shape`, if it has one, sizes are known without
            loading images; else several processes load each other's.
        process_index: which contiguous slice of each batch to load.
        process_count: into how many slices a batch is cut.
        bucket: in pixels; canvases of images that differ in size are multiples of it.
        threads: as for `train_batches`.
        workers: as for `train_batches`.
        instances: keep the instance ids after `transform`.
        places: of the task "instance", how many objects an image has room for; by default for as
            many as any image of the source has. All that is missing is invalid.

    Returns:
        Batches of `batch_size / process_count` stacked examples with `index` uint32 [B], the
        examples' places in the source (`len(source)` and more for those filled in), and `size`
        int32 [B, number of spatial axes], their sizes before padding (0 for those filled in).

    Raises:
        SegzooError: for impossible numbers; from `next`, for examples that cannot be read.
    """
    local = _check(source, batch_size, process_index, process_count, threads, workers)
    check_positive_int("bucket", bucket)
    load = EvalBatch(
        Loader(source, transform, instances, choose_places(source, places)),
        batch_size,
        process_index * local,
        local,
        Canvas(bucket, _uniform(source, transform), getattr(transform, "canvases", ())),
    )
    batches = grain.MapDataset.range(-(-len(source) // batch_size)).map(load)
    return Batches(batches, threads, workers)


def device_prefetch(
    batches: Iterable[T], put: Callable[[T], U], depth: int = 2
) -> Generator[U, None, None]:
    """Yields `put(batch)` for each batch, keeping `depth` of them on their way to the device.

    `put` starts a copy and returns at once, as `jax.device_put` does, so copies overlap with the
    steps that use earlier batches.

    Args:
        batches: on the host.
        put: starts the copy of one batch to where it is used.
        depth: how many batches to be ahead; 0 copies when asked.
    """
    ahead: collections.deque[U] = collections.deque()
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


def _uniform(source: Source, transform: Transform | None) -> bool | None:
    """Returns whether all images have one shape after `transform`, None if that is unknown."""
    output_shape = getattr(transform, "output_shape", None)
    if transform is not None and output_shape is None:
        return None
    shapes = image_shapes(source)
    if shapes is None:
        return None
    return len({output_shape(shape) if output_shape else shape for shape in shapes}) == 1


def _groups(source: Source, transform: Transform | None, canvas: Canvas) -> np.ndarray | None:
    """Returns which of the canvases each example would have alone, int64 [N], if they differ.

    None too where sizes are not known without loading the images.
    """
    output_shape = getattr(transform, "output_shape", None)
    shapes = shape_of_each(source)
    if canvas.uniform or output_shape is None or shapes is None:
        return None
    distinct, of_each = np.unique(shapes, axis=0, return_inverse=True)
    chosen = [canvas([output_shape(tuple(shape))[:-1]]) for shape in distinct.tolist()]
    numbers = {choice: number for number, choice in enumerate(sorted(set(chosen)))}
    return np.array([numbers[choice] for choice in chosen])[of_each.ravel()]


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
