"""Seconds to the end of the first train step of every model, in a first process and in a second.

    python -m experiments.benchmarks.compile [--workload unet ...] [--record]

The second process finds the programs of the first in jax's cache on disk. Images are small: the
time is that of tracing and compiling. "image sizes" predicts pictures of many sizes and counts the
programs compiled for them, which should be one for each size bucket.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import sizes
from experiments.benchmarks.worker import Failed, Unavailable
from experiments.benchmarks.workloads import DTYPES
from segzoo import registry

SIZES = "image sizes"
SIDE = 96  # of the images, where the model takes images that small
BATCH = 2
PICTURES = 100
SIDES = (200, 300)  # of the pictures, from and below


def subjects() -> list[str]:
    """Every model, and the count over image sizes."""
    return [SIZES, *registry.list_models()]


def measure(name: str, run: Run) -> Facts:
    """Times the first step of a model twice, or counts programs."""
    if name == SIZES:
        return _count(run)
    entry = registry.entry(name)
    *usual, channels = entry.input_shape
    small = [min(side, SIDE) for side in usual]
    for size in dict.fromkeys((tuple(small), tuple(usual))):
        told = {
            "model": name,
            "model_args": {},
            "task": entry.task,
            "classes": entry.overrides["num_classes"],
            "size": size,
            "channels": channels,
            "batch": run.settings.batch_size or BATCH,
            "dtype": DTYPES[run.platform],
        }
        try:
            return {"workload": told, **_twice(told, run)}
        except Unavailable as error:
            if list(size) == usual:
                raise Failed(str(error)) from None
    raise AssertionError("the usual size is always tried")


def _twice(told: Facts, run: Run) -> Facts:
    with tempfile.TemporaryDirectory() as cache:
        kept = {
            "JAX_COMPILATION_CACHE_DIR": cache,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        found = {}
        for name in ("first", "second"):
            with run.start("ours", **kept) as worker:
                found[name] = worker.call("first_step", workload=told)
                parts = [f"{found[name][part]:.1f} s" for part in ("seconds", "state")]
                run.say(f"  {name} process: step {parts[0]}, state {parts[1]}")
    return found


def picture_sizes() -> list[tuple[int, int]]:
    """Sizes of pictures as people have them: any."""
    rng = np.random.default_rng(0)
    return [(int(h), int(w)) for h, w in rng.integers(*SIDES, (PICTURES, 2))]


def _count(run: Run) -> Facts:
    from segzoo.tiles import bucket

    chosen = picture_sizes()
    with run.start("ours") as worker:
        programs = worker.call("programs", sizes=chosen)
    buckets = len({bucket(size) for size in chosen})
    return {"sizes": len(set(chosen)), "buckets": buckets, "programs": programs}


def count_programs(chosen: Sequence[tuple[int, ...]]) -> int:
    """Predicts pictures of these sizes with a narrow U-Net; returns the programs compiled.

    What is compiled once, whatever the sizes, is left out: a picture of one size is predicted with
    two predictors before, and the second's programs are its own.
    """
    import jax

    from segzoo.data.spec import default_palette
    from segzoo.predict import Predictor
    from segzoo.weights import ModelInfo

    count = 0

    def listen(event: str, duration_secs: float, **told: str | int) -> None:
        nonlocal count
        count += event == "/jax/core/compile/backend_compile_duration"

    model = registry.get("unet", width=2, depth=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    info = ModelInfo(
        model="unet",
        model_args={"width": 2, "depth": 1},
        class_names=("background", "thing"),
        palette=default_palette(2),
        mean=(128.0,) * 3,
        std=(64.0,) * 3,
        task="semantic",
        in_channels=3,
    )

    def predict(predictor: Predictor, sizes: Sequence[tuple[int, ...]]) -> None:
        rng = np.random.default_rng(0)
        for size in sizes:
            predictor(rng.integers(0, 256, (*size, 3), dtype=np.uint8))

    predict(Predictor(model, variables, info), chosen[:1])
    predictor = Predictor(model, variables, info)
    jax.monitoring.register_event_duration_secs_listener(listen)
    predict(predictor, chosen)
    return count


def lines(record: Facts) -> Lines:
    """Returns one line."""
    if "programs" in record:
        counts = f"{record['programs']} programs for {record['sizes']} sizes"
        return [["any", "", "", "", "", f"{counts} in {record['buckets']} buckets"]]
    told = record["workload"]
    cells = [f"{told['batch']} of {sizes(told['size'])}"]
    for name in ("first", "second"):
        cells += [f"{record[name][part]:.1f}" for part in ("state", "seconds")]
    return [[*cells, ""]]


HEAD = (
    "model",
    "on",
    "images of a step",
    "state, s",
    "first step, s",
    "second process: state, s",
    "first step, s",
    "",
)
BENCHMARK = Benchmark("compile", subjects, measure, HEAD, lines, numbers=(3, 4, 5, 6))

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
