"""Train steps a second, ours beside PyTorch's, plain linen's and Keras's.

    python -m experiments.benchmarks.train_step [--workload unet64 ...] [--record]

Ours is the step of `segzoo.train` as a run compiles it, without augmentation, on one device.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Lines, Run
from experiments.benchmarks.contest import seconds, spread
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.tables import because, share, short, sizes
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
    passes = PASSES["train_step" if key == "train_step" else "inference"]
    rate = 2 * passes * build["macs"] / build["ours"]["seconds"]
    first = [
        f"{batch} of {sizes(workload['size'])}, {workload['dtype']}",
        f"{build['parameters']:,}",
        short(build["macs"] / batch / 1e9),
        short(rate / 1e9),
        share(rate, record["ceiling"]),
    ]
    return side_by_side(first, build, lambda seconds: batch / seconds)


def side_by_side(first: list[str], build: Facts, unit: Callable[[float], float]) -> Lines:
    """Returns a line for each peer: its name, ours, theirs, the ratio and its spread.

    Args:
        first: what the first line begins with.
        build: a part of a record. Ours in a line is what it was beside that peer.
        unit: from the seconds of a call to the figure that is shown.
    """
    found = []
    for name, entry in build["peers"].items():
        cells = [short(unit(build["ours"]["seconds"])), "", "", ""]
        if entry["state"] == "measured":
            pair = (short(unit(each)) for each in seconds(entry))
            cells = [*pair, f"{entry['ratio']:.2f}", spread(entry)]
        else:
            cells[1] = because(entry)
        found.append([*first, name, *cells])
        first = [""] * len(first)
    return found


HEAD = (
    "workload",
    "on",
    "images of a step",
    "parameters",
    "GMACs of one",
    "GFLOP/s",
    "of the product",
    "beside",
    "ours, images/s",
    "theirs",
    "ours / theirs",
    "pairs",
)
BENCHMARK = Benchmark(
    "train_step", lambda: list(WORKLOADS), measure, HEAD, lines, numbers=(3, 4, 5, 6, 8, 9, 10)
)

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
