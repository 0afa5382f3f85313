"""What reformulating brought: the records before it beside those of now, for docs/performance.md.

The records in docs/benchmarks/before/ were measured by the same benchmarks, if not on every device
that has records now. Two runs are not two halves of one: what compares is the ratio to a peer that
both have measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from experiments.benchmarks import primitives, train_step
from experiments.benchmarks.benchmark import Benchmark
from experiments.benchmarks.contest import seconds
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.records import RECORDS, read_all, shown
from experiments.benchmarks.tables import short, sources
from segzoo.report import Table, table

PAGE = "docs/performance.md"
BEFORE = RECORDS / "before"
BENCHMARKS = (train_step.BENCHMARK, primitives.BENCHMARK)

HEAD = (
    "",
    "now on",
    "",
    "beside",
    "ours before, ms",
    "now",
    "theirs before, ms",
    "now",
    "ours / theirs before",
    "now",
)


def tables(root: Path | str = ".") -> list[Table]:
    """Returns a table for each benchmark that has records of before.

    Args:
        root: the repository's root.

    Raises:
        SegzooError: for a damaged record.
    """
    return [
        Table(PAGE, f"progress:{benchmark.name}", _render(benchmark, Path(root)))
        for benchmark in BENCHMARKS
    ]


def _render(benchmark: Benchmark, root: Path) -> str:
    lines: list[list[str]] = []
    then: list[Facts] = []
    now: list[Facts] = []
    before = read_all(benchmark.name, root / BEFORE)
    after = read_all(benchmark.name, root / RECORDS)
    for subject in benchmark.subjects():
        olds = [records[subject] for records in before if subject in records]
        news = [records[subject] for records in after if subject in records]
        if not olds:
            continue
        if not news:
            lines.append([f"`{subject}`", "", "not run", *[""] * (len(HEAD) - 3)])
        for new in news:
            old = next((each for each in olds if each["device"] == new["device"]), olds[0])
            then.append(old)
            now.append(new)
            named = [f"`{subject}`", shown(new["device"])]
            for cells in _beside(old, new):
                lines.append([*named, *cells])
                named = ["", ""]
    text = table(HEAD, lines, range(4, len(HEAD)))
    for when, records in (("Before", then), ("Now", now)):
        text += "".join(f"\n{when}: {source}\n" for source in sources(records))
    return text


def _beside(before: Facts, after: Facts) -> Iterator[list[str]]:
    """A line for every build and every peer that both records have measured."""
    for key, build in before["builds"].items():
        found = after["builds"].get(key, {"peers": {}})["peers"]
        for name, old in build["peers"].items():
            new = found.get(name, {})
            if old["state"] != "measured" or new.get("state") != "measured":
                continue
            ours, theirs = zip(seconds(old), seconds(new), strict=True)
            times = (short(1000 * each) for each in (*ours, *theirs))
            ratios = (f"{entry['ratio']:.2f}" for entry in (old, new))
            yield [key.replace("_", " "), name, *times, *ratios]
