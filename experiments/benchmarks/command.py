"""The command line that the benchmarks share: options, budget, records, tables.

A subject that has a record is not measured again: a command that was stopped goes on where it was.
What fails is said, and the next subject follows.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from experiments.benchmarks import contest, contestants
from experiments.benchmarks.alternation import Pace
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.worker import NoResult, Worker
from experiments.benchmarks.workloads import DTYPES, PLATFORMS
from segzoo.errors import SegzooError, check_name, check_positive_int
from segzoo.files import write_atomically
from segzoo.report import table

RECORDS = Path("docs/benchmarks")
Lines = list[list[str]]


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """One thing that is measured, for each of its subjects.

    Attributes:
        name: of its module, its records and its table.
        subjects: the names of what it is measured on.
        measure: one subject; what it returns is the record, provenance left out. Raises `NoResult`
            where there is nothing to return.
        head: of its table, the subject and the device first.
        lines: of its table, for a record: one or more, without subject and device.
        numbers: which columns are set to the right.
        options: adds options of its own.
    """

    name: str
    subjects: Callable[[], Sequence[str]]
    measure: Callable[[str, Run], Facts]
    head: tuple[str, ...]
    lines: Callable[[Facts], Lines]
    numbers: Sequence[int] = ()
    options: Callable[[argparse.ArgumentParser], None] = lambda parser: None


class Run:
    """What the subjects of one command share.

    Args:
        settings: the parsed command line.
        say: told of progress.
    """

    def __init__(self, settings: argparse.Namespace, say: Callable[[str], None]):
        self.settings, self.say = settings, say

    @property
    def pace(self) -> Pace:
        """How long is measured."""
        return Pace(self.settings.rounds, self.settings.seconds)

    def start(self, name: str, **environment: str | None) -> Worker:
        """Starts a contestant's process, where jax runs for ours."""
        return contestants.start(name, self.platform, self.settings.timeout, environment)

    @functools.cached_property
    def provenance(self) -> Facts:
        """Device, versions, commit and date, of our side."""
        wanted, timeout = self.settings.platform, self.settings.timeout
        with contestants.start("ours", wanted, timeout) as ours:
            return {**ours.call("provenance"), "platform": ours.call("describe")["platform"]}

    @property
    def platform(self) -> str:
        """ "cpu" or "gpu"."""
        platform: str = self.provenance["platform"]
        if platform not in PLATFORMS:
            raise SegzooError(f"jax runs on {platform!r} here; expected cpu or gpu.")
        return platform

    @functools.cached_property
    def ceiling(self) -> Facts:
        """What products of matrices reach, by contestant: operations per second."""
        self.say("measuring the product of two matrices ...")
        return contest.ceiling(("ours", "torch"), self.platform, DTYPES[self.platform], self.start)

    def peers(self, wanted: Iterable[str]) -> list[str]:
        """Those of the wanted contestants that the command line asks for."""
        chosen = self.settings.peers
        return [name for name in wanted if chosen is None or name in chosen]

    def contest(
        self, builds: dict[str, tuple[str, Facts]], peers: Iterable[str]
    ) -> dict[str, Facts]:
        """Times ours beside peers, see `contest.contest`."""
        return contest.contest(builds, self.peers(peers), self.start, self.pace, self.say)


# --- records -------------------------------------------------------------------------------------


def record_path(benchmark: str, platform: str, root: Path = Path()) -> Path:
    """Returns where the records of a benchmark on one kind of device are kept."""
    return root / RECORDS / f"{benchmark}.{platform}.json"


def read_records(path: Path) -> dict[str, Facts]:
    """Returns records by subject; none where there is no file.

    Raises:
        SegzooError: for a file that holds something else.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegzooError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(found, dict) or not all(isinstance(v, dict) for v in found.values()):
        raise SegzooError(f"{path} is not an object of records; expected what was written there.")
    return found


def write_record(path: Path, subject: str, record: Facts) -> None:
    """Puts one record into a file beside those that are there."""
    records = {**read_records(path), subject: record}
    write_atomically(path, (json.dumps(records, indent=1) + "\n").encode())


# --- tables --------------------------------------------------------------------------------------


def render(benchmark: Benchmark, records: dict[str, dict[str, Facts]]) -> str:
    """Returns a benchmark's table, and where its numbers come from.

    Args:
        benchmark: whose.
        records: by platform, by subject; a subject without any is "not run".
    """
    lines: Lines = []
    sources: dict[str, dict[str, str]] = {}
    for subject in benchmark.subjects():
        found = {p: records[p][subject] for p in records if subject in records[p]}
        if not found:
            blank = [""] * (len(benchmark.head) - 3)
            lines.append([f"`{subject}`", "", "not run", *blank])
        for platform, record in found.items():
            named = [f"`{subject}`", platform.upper()]
            for line in benchmark.lines(record):
                lines.append([*named, *line])
                named = ["", ""]
            place = f"{record['date']}, `{record['commit'][:9]}`, {record['device']}"
            sources.setdefault(place, {}).update(_versions(record))
    text = table(benchmark.head, lines, benchmark.numbers)
    for place, versions in sources.items():
        text += f"\n{place}: {', '.join(f'{name} {v}' for name, v in versions.items())}.\n"
    return text


def _versions(record: Facts) -> dict[str, str]:
    versions = {"jax": record["versions"]["jax"]}
    for entry in _entries(record):
        versions |= entry.get("versions", {})
    return versions


def _entries(record: Facts) -> Iterable[Facts]:
    for part in (record, *record.get("builds", {}).values()):
        yield from part.get("peers", {}).values()


def share(rate: float, ceiling: Facts) -> str:
    """Returns what part of the best product of matrices a rate is."""
    return f"{100 * rate / max(ceiling.values()):.0f} %" if ceiling else "-"


def short(number: float) -> str:
    """Three digits, without an exponent."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.3g}" if number >= 1e-3 else f"{number:.1g}"


# --- the command ---------------------------------------------------------------------------------


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
    add("--timeout", type=float, default=900.0, help="seconds for one answer (%(default)s)")
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
    for benchmark, subject in _jobs(chosen, here):
        if settings.budget_minutes and time.monotonic() - began > 60 * settings.budget_minutes:
            left += 1
            continue
        record = _measure(benchmark, subject, here)
        if record is None or any(entry["state"] == "failed" for entry in _entries(record)):
            failed += 1
        if record is not None:
            measured[benchmark.name][subject] = record
            if settings.record:
                write_record(record_path(benchmark.name, here.platform), subject, record)
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
            known = read_records(record_path(benchmark.name, here.platform))
        for subject in benchmark.subjects():
            if settings.workload and subject not in settings.workload:
                continue
            if subject in known:
                here.say(f"{benchmark.name} {subject}: recorded already")
                continue
            yield benchmark, subject


def _measure(benchmark: Benchmark, subject: str, here: Run) -> Facts | None:
    """Returns the record of one subject; None, and says so, where there is none."""
    here.say(f"{benchmark.name} {subject} ...")
    try:
        record = benchmark.measure(subject, here)
    except NoResult as error:
        here.say(f"{benchmark.name} {subject}: {error.state} ({error})")
        return None
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
    if settings.record and settings.peers is not None:
        raise SegzooError("--record takes every peer; expected no --peers.")
    return chosen


def _print(benchmark: Benchmark, here: Run, records: dict[str, Facts]) -> None:
    if records:
        shown = dataclasses.replace(benchmark, subjects=lambda: list(records))
        print(f"\n{benchmark.name}\n\n{render(shown, {here.platform: records})}", flush=True)


def sizes(numbers: Sequence[int]) -> str:
    """128x128."""
    return "x".join(map(str, numbers))
