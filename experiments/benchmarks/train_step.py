"""Train steps a second, ours beside PyTorch's, plain linen's and Keras's.

    python -m experiments.benchmarks.train_step [--workload unet64 ...] [--record]

Ours is the step of `segzoo.train` as a run compiles it, without augmentation, on one device.
"""

from __future__ import annotations

import sys

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run
from experiments.benchmarks.contest import spread
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import share, short, sizes
from experiments.benchmarks.workloads import WORKLOADS, Workload, as_arguments, tiny

# Operations of forward and backward, a multiply-add counting two: the gradient is two products for
# every one on the way.
PASSES = {"train_step": 3, "inference": 1}


def workload(name: str, run: Run) -> Workload:
    """Returns a workload, cut down where the command line says so."""
    found = WORKLOADS[name]
    return tiny(found) if run.settings.tiny else found


def measure(name: str, run: Run) -> Facts:
    """Times one workload's train step beside its peers."""
    chosen = workload(name, run)
    told = as_arguments(chosen, run.platform, run.settings.batch_size)
    builds = {"train_step": ("train_step", {"workload": told})}
    ceiling = run.ceiling
    return {"workload": told, "ceiling": ceiling, "builds": run.contest(builds, chosen.peers)}


def lines(record: Facts) -> Lines:
    """Returns a line for each build and peer."""
    return [line for key in record["builds"] for line in of_build(record, key)]


def of_build(record: Facts, key: str) -> Lines:
    """Returns a line for each peer of one build, ours in the first.

    Args:
        record: its `workload`, `ceiling` and `builds`; a build's own batch is that of its key.
        key: of the build: "train_step", or the batch of an inference.
    """
    workload, build = record["workload"], record["builds"][key]
    batch = workload["batch"] if key == "train_step" else int(key)
    seconds = build["ours"]["seconds"]
    passes = PASSES["train_step" if key == "train_step" else "inference"]
    rate = 2 * passes * build["macs"] / seconds
    first = [
        f"{batch} of {sizes(workload['size'])}, {workload['dtype']}",
        f"{build['parameters']:,}",
        short(build["macs"] / batch / 1e9),
        short(batch / seconds),
        short(rate / 1e9),
        share(rate, record["ceiling"]),
    ]
    found = []
    for name, entry in build["peers"].items() or [("nobody", None)]:
        found.append([*first, name, *beside(entry, batch)])
        first = [""] * len(first)
    return found


def beside(entry: Facts | None, images: int = 1) -> list[str]:
    """Returns the cells of one peer: images a second, the ratio, its spread."""
    if entry is None:
        return [""] * 3
    if entry["state"] != "measured":
        return [f"{entry['state']}: {entry['why']}", "", ""]
    return [short(images / entry["seconds"]), f"{entry['ratio']:.2f}", spread(entry)]


HEAD = (
    "workload",
    "on",
    "images of a step",
    "parameters",
    "GMACs of one",
    "ours, images/s",
    "GFLOP/s",
    "of the product",
    "beside",
    "images/s",
    "ours / theirs",
    "pairs",
)
BENCHMARK = Benchmark(
    "train_step", lambda: list(WORKLOADS), measure, HEAD, lines, numbers=(3, 4, 5, 6, 7, 9, 10)
)

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
