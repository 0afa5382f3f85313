"""Images per second of the input pipeline alone, by threads and worker processes.

    python -m experiments.benchmarks.pipeline --workload shapes [--batch-size 16] [--record]

Decoding alone, in one thread, is the yardstick: a pipeline cannot beat it times the cores. Compare
with the images per second that a training step consumes; the pipeline should give twice that.
"""

from __future__ import annotations

import argparse
import sys
import time

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import short, sizes
from experiments.benchmarks.worker import Unavailable
from segzoo import data
from segzoo.cores import usable_cores
from segzoo.data.pipeline import train_batches
from segzoo.data.spec import Source
from segzoo.data.transforms import Fit
from segzoo.errors import SegzooError

BATCH = 16


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


def subjects() -> list[str]:
    """Every dataset with a name; those whose files are not at hand are said and left out."""
    return [name for name in data.list_datasets() if name != "folder"]


def measure(name: str, run: Run) -> Facts:
    """Measures decoding, then every number of threads and workers."""
    settings = run.settings
    try:
        source = data.get(name, settings.data_dir, settings.manual_dir).source(settings.split)
    except SegzooError as error:
        raise Unavailable(str(error)) from None
    fit = Fit(tuple(settings.image_size)) if settings.image_size else None
    batch, seconds = settings.batch_size or BATCH, settings.seconds
    rates = []
    alone = decode_rate(source, seconds)
    run.say(f"  reading and decoding, one by one: {alone:.0f} images/s")
    for workers in settings.workers:
        for threads in settings.threads:
            rate = batch_rate(source, batch, threads, workers, seconds, fit)
            run.say(f"  {workers} workers, {threads} threads: {rate:.0f} images/s")
            rates.append({"workers": workers, "threads": threads, "rate": rate})
    return {
        "dataset": name,
        "split": settings.split,
        "images": len(source),
        "size": list(source[0]["image"].shape[:-1]),
        "batch": batch,
        "cores": usable_cores(),
        "decode_rate": alone,
        "rates": rates,
    }


def lines(record: Facts) -> Lines:
    """Returns a line for decoding alone, and one for every number of threads and workers."""
    what = f"{record['batch']} of {sizes(record['size'])}"
    alone = record["decode_rate"]
    found = [[what, "", "decoding, one by one", short(alone), "1.00"]]
    for entry in record["rates"]:
        ratio = entry["rate"] / alone
        cells = [str(entry["workers"]), str(entry["threads"]), short(entry["rate"])]
        found.append(["", *cells, f"{ratio:.2f}"])
    return found


def options(parser: argparse.ArgumentParser) -> None:
    """Adds the dataset's."""
    group = parser.add_argument_group("pipeline")
    group.add_argument("--data-dir", help="where prepared datasets are kept")
    group.add_argument("--manual-dir", help="where the dataset's original files lie")
    group.add_argument("--split", default="train", help="(%(default)s)")
    group.add_argument("--image-size", type=int, nargs="+", help="resize to it, height and width")
    group.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2, 4])
    group.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])


HEAD = ("dataset", "on", "images of a batch", "workers", "threads", "images/s", "x decoding")
BENCHMARK = Benchmark("pipeline", subjects, measure, HEAD, lines, numbers=(5, 6), options=options)

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
