"""docs/benchmarks/*/*.json -> the tables of docs/benchmarks.md."""

from __future__ import annotations

from pathlib import Path

from experiments.benchmarks import (
    compile,
    inference,
    memory,
    pipeline,
    primitives,
    train_step,
)
from experiments.benchmarks.records import RECORDS, read_all
from experiments.benchmarks.tables import render
from segzoo.report import Table

PAGE = "docs/benchmarks.md"
# In the order of the page, which is the order in which they run.
BENCHMARKS = tuple(
    module.BENCHMARK for module in (train_step, inference, primitives, memory, compile, pipeline)
)


def tables(root: Path | str = ".") -> list[Table]:
    """Returns every benchmark's table, for `segzoo report`.

    Args:
        root: the repository's root.

    Raises:
        SegzooError: for a damaged record.
    """
    found = []
    for benchmark in BENCHMARKS:
        text = render(benchmark, read_all(benchmark.name, Path(root) / RECORDS))
        found.append(Table(PAGE, f"benchmarks:{benchmark.name}", text))
    return found
