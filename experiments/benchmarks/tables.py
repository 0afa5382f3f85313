"""Tables of records, as Markdown, and what their cells are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.benchmarks.benchmark import Benchmark, Lines
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.records import entries, shown
from segzoo.report import table


def render(benchmark: Benchmark, records: Iterable[dict[str, Facts]]) -> str:
    """Returns a benchmark's table, and where its numbers come from.

    Args:
        benchmark: whose.
        records: of each device, by subject; a subject without any is "not run".
    """
    lines: Lines = []
    used: list[Facts] = []
    for subject in benchmark.subjects():
        found = [each[subject] for each in records if subject in each]
        if not found:
            blank = [""] * (len(benchmark.head) - 3)
            lines.append([f"`{subject}`", "", "not run", *blank])
        for record in found:
            named = [f"`{subject}`", shown(record["device"])]
            for line in benchmark.lines(record):
                lines.append([*named, *line])
                named = ["", ""]
        used += found
    text = "".join(f"\n{source}\n" for source in sources(used))
    return table(benchmark.head, lines, benchmark.numbers) + text


def sources(records: Iterable[Facts]) -> list[str]:
    """Returns a line for every date, commit and device: versions, the best products of matrices."""
    versions: dict[str, dict[str, str]] = {}
    ceilings: dict[str, dict[str, float]] = {}
    for record in records:
        place = f"{record['date']}, `{record['commit'][:9]}`, {record['device']}"
        mine, best = versions.setdefault(place, {}), ceilings.setdefault(place, {})
        mine["jax"] = record["versions"]["jax"]
        for entry in entries(record):
            mine |= entry.get("versions", {})
        for name, rate in record.get("ceiling", {}).items():
            best[name] = max(rate, best.get(name, 0.0))
    lines = []
    for place, mine in versions.items():
        line = f"{place}: {', '.join(f'{name} {version}' for name, version in mine.items())}"
        reached = (f"{name} {short(rate / 1e9)}" for name, rate in ceilings[place].items())
        if ceilings[place]:
            line += f"; products of matrices, GFLOP/s: {', '.join(reached)}"
        lines.append(f"{line}.")
    return lines


def share(rate: float, ceiling: Facts) -> str:
    """Returns what part of the best product of matrices a rate is."""
    return f"{100 * rate / max(ceiling.values()):.0f} %" if ceiling else "-"


def because(entry: Facts) -> str:
    """Says why a peer's entry has no figure."""
    return ": ".join(entry[part] for part in ("state", "why") if entry.get(part))


def short(number: float) -> str:
    """Three digits; large numbers in full."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def sizes(numbers: Sequence[int]) -> str:
    """128x128."""
    return "x".join(map(str, numbers))
