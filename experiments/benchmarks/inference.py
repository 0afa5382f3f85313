"""Forward passes a second, at batch 1 and at the workload's batch, beside the same peers.

    python -m experiments.benchmarks.inference [--workload unet64 ...] [--record]

From uint8 images on the device to float32 logits on the device.
"""

from __future__ import annotations

import sys

from experiments.benchmarks import command
from experiments.benchmarks.benchmark import Benchmark, Run
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.train_step import HEAD, lines, workload
from experiments.benchmarks.workloads import WORKLOADS, as_arguments


def measure(name: str, run: Run) -> Facts:
    """Times one workload's forward pass at both batches."""
    chosen = workload(name, run)
    told = as_arguments(chosen, run.platform, run.settings.batch_size)
    builds = {
        str(batch): ("inference", {"workload": {**told, "batch": batch}})
        for batch in dict.fromkeys((1, told["batch"]))
    }
    ceiling = run.ceiling
    return {"workload": told, "ceiling": ceiling, "builds": run.contest(builds, chosen.peers)}


BENCHMARK = Benchmark(
    "inference", lambda: list(WORKLOADS), measure, HEAD, lines, numbers=(3, 4, 5, 6, 8, 9, 10)
)

if __name__ == "__main__":
    sys.exit(command.run([BENCHMARK], doc=__doc__))
