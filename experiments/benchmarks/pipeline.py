"""Images per second of the input pipeline alone, by threads and worker processes.

    python -m experiments.benchmarks.pipeline [--dataset shapes] [--batch-size 16] [--seconds 3]

Decoding alone, in one thread, is the yardstick: a pipeline cannot beat it times the cores. Compare
with the images per second that a training step consumes; the pipeline should give twice that.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

from segzoo import data
from segzoo.data.pipeline import train_batches
from segzoo.data.spec import Source
from segzoo.data.transforms import Fit


def decode_rate(source: Source, seconds: float) -> float:
    """Returns the examples per second that one thread reads and decodes, one by one."""
    source[0]  # opens the files
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        source[count % len(source)]
        count += 1
    return count / (time.perf_counter() - begin)


def batch_rate(
    source: Source, batch_size: int, threads: int, workers: int, seconds: float, fit: Fit | None
) -> float:
    """Returns the examples per second that `train_batches` gives, start-up left out."""
    with train_batches(
        source, batch_size=batch_size, seed=0, transform=fit, threads=threads, workers=workers
    ) as batches:
        for _ in range(4):
            next(batches)
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds:
            next(batches)
            count += batch_size
        return count / (time.perf_counter() - begin)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures and prints a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--dataset", default="shapes")
    parser.add_argument("--data-dir")
    parser.add_argument("--manual-dir")
    parser.add_argument("--split", default="train")
    parser.add_argument("--image-size", type=int, nargs="+", help="resize to it, height and width")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each measurement")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args(arguments)

    source = data.get(args.dataset, args.data_dir, args.manual_dir).source(args.split)
    example = source[0]
    fit = Fit(tuple(args.image_size)) if args.image_size else None
    print(
        f"{args.dataset} {args.split}: {len(source)} images, the first {example['image'].shape}; "
        f"batches of {args.batch_size}; {os.cpu_count()} cores"
    )
    rate = decode_rate(source, args.seconds)
    print(f"reading and decoding, one by one: {rate:8.0f} images/s ({1000 / rate:.2f} ms each)")
    for workers in args.workers:
        for threads in args.threads:
            rate = batch_rate(source, args.batch_size, threads, workers, args.seconds, fit)
            print(f"{workers} workers, {threads} threads: {rate:8.0f} images/s")


if __name__ == "__main__":
    main()
