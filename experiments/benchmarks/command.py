"""The command line that the benchmarks share: options, budget, what is left to do.

A subject that has a record is not measured again: a command that was stopped goes on where it was.
What fails is said, and the next subject follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from experiments.benchmarks import contestants
from experiments.benchmarks.benchmark import Benchmark, Run
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.records import (
    RECORDS,
    entries,
    read_records,
    record_path,
    write_record,
)
from experiments.benchmarks.tables import render
from experiments.benchmarks.worker import Failed, NoResult
from experiments.benchmarks.workloads import PLATFORMS
from segzoo.errors import SegzooError, check_name, check_positive_int


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SegzooError(f"{message} (see --help).")


def parser(benchmarks: Sequence[Benchmark], doc: str | None) -> argparse.ArgumentParser:
    """Returns the parser of a command of one benchmark or several."""
    parser = _Parser(
        prog="python -m experiments.benchmarks"
        + (f".{benchmarks[0].name}" if len(benchmarks) == 1 else ""),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    if len(benchmarks) > 1:
        add("--only", nargs="+", metavar="BENCHMARK", help="measure these alone")
    add("--workload", nargs="+", metavar="NAME", help="measure on these alone")
    add("--record", action="store_true", help=f"keep the figures in {RECORDS}, one by one")
    add("--again", action="store_true", help="with --record: what was recorded already, too")
    add("--budget-minutes", type=float, metavar="N", help="begin nothing new after N minutes")
    add("--platform", choices=PLATFORMS, help="default: where jax runs by itself")
    add("--peers", nargs="*", metavar="PEER", help="beside these alone; none: ours alone")
    add("--batch-size", type=int, metavar="B", help="instead of the workload's")
    add("--rounds", type=int, default=5, help="pairs of blocks (%(default)s)")
    add("--seconds", type=float, default=1.0, help="a block takes at least (%(default)s)")
    add("--timeout", type=float, default=1800.0, help="seconds for one answer (%(default)s)")
    add("--tiny", action="store_true", help="narrow networks, small images: to see that it works")
    for benchmark in benchmarks:
        benchmark.options(parser)
    return parser


def run(
    benchmarks: Sequence[Benchmark], arguments: Sequence[str] | None = None, doc: str | None = None
) -> int:
    """Measures, prints tables and records when asked to; returns the exit code.

    Returns:
        0; 1 where something failed; 2 for a mistake; 130 after Ctrl-C.
    """
    try:
        settings = parser(benchmarks, doc).parse_args(arguments)
        return _run(benchmarks, settings)
    except SegzooError as error:
        sys.stderr.write(f"segzoo: {error}\n")
        return 2
    except NoResult as error:
        sys.stderr.write(f"segzoo: nothing can be measured: {error.state} ({error}).\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(
            "segzoo: interrupted; with --record the same command goes on from there.\n"
        )
        return 130


def _run(benchmarks: Sequence[Benchmark], settings: argparse.Namespace) -> int:
    chosen = _chosen(benchmarks, settings)
    here = Run(settings, lambda text: print(text, file=sys.stderr, flush=True))
    began = time.monotonic()
    measured: dict[str, dict[str, Facts]] = {benchmark.name: {} for benchmark in chosen}
    failed = left = 0
    try:
        for benchmark, subject in _jobs(chosen, here):
            if settings.budget_minutes and time.monotonic() - began > 60 * settings.budget_minutes:
                left += 1
                continue
            here.say(f"{benchmark.name} {subject} ...")
            try:
                record = _measure(benchmark, subject, here)
            except NoResult as error:
                here.say(f"{benchmark.name} {subject}: {error.state} ({error})")
                failed += isinstance(error, Failed)
                continue
            failed += any(entry["state"] == "failed" for entry in entries(record))
            measured[benchmark.name][subject] = record
            if settings.record:
                write_record(_path(benchmark, here), subject, record)
    finally:  # what was measured is shown after Ctrl-C, too
        for benchmark in chosen:
            _print(benchmark, here, measured[benchmark.name])
    if left:
        here.say(f"{left} left for want of time; with --record the same command goes on there.")
    return 1 if failed else 0


def _jobs(benchmarks: Iterable[Benchmark], here: Run) -> Iterator[tuple[Benchmark, str]]:
    """What is to be measured; what was recorded already is said and left out."""
    settings = here.settings
    for benchmark in benchmarks:
        known: dict[str, Facts] = {}
        if settings.record and not settings.again:
            known = read_records(_path(benchmark, here))
        for subject in benchmark.subjects():
            if settings.workload and subject not in settings.workload:
                continue
            if subject in known:
                here.say(f"{benchmark.name} {subject}: recorded already")
                continue
            yield benchmark, subject


def _path(benchmark: Benchmark, here: Run) -> Path:
    return record_path(benchmark.name, here.provenance["device"])


def _measure(benchmark: Benchmark, subject: str, here: Run) -> Facts:
    """Returns the record of one subject."""
    record = benchmark.measure(subject, here)
    how = {"rounds": here.settings.rounds, "block_seconds": here.settings.seconds}
    return {**record, "settings": how, **here.provenance}


def _chosen(benchmarks: Sequence[Benchmark], settings: argparse.Namespace) -> list[Benchmark]:
    """Checks the command line, and returns the benchmarks it asks for."""
    only = getattr(settings, "only", None)
    for name in only or ():
        check_name("benchmark", name, [b.name for b in benchmarks])
    chosen = [b for b in benchmarks if only is None or b.name in only]
    subjects = [subject for b in chosen for subject in b.subjects()]
    for name in settings.workload or ():
        check_name("workload", name, subjects)
    for name in settings.peers or ():
        check_name("peer", name, contestants.PEERS)
    check_positive_int("--rounds", settings.rounds)
    if settings.batch_size is not None:
        check_positive_int("--batch-size", settings.batch_size)
    for option in ("seconds", "timeout", "budget_minutes"):
        value = getattr(settings, option)
        if value is not None and not value > 0:
            raise SegzooError(
                f"--{option.replace('_', '-')} is {value}; expected a number above 0."
            )
    if settings.record and settings.tiny:
        raise SegzooError("--record takes the workloads as they are, not --tiny.")
    return chosen


def _print(benchmark: Benchmark, here: Run, records: dict[str, Facts]) -> None:
    if records:
        shown = dataclasses.replace(benchmark, subjects=lambda: list(records))
        print(f"\n{benchmark.name}\n\n{render(shown, [records])}", flush=True)
