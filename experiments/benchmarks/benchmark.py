"""What a benchmark is, and what the subjects of one command share."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

from experiments.benchmarks import contest, contestants
from experiments.benchmarks.alternation import Pace
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.worker import Worker
from experiments.benchmarks.workloads import DTYPES, PLATFORMS
from segzoo.errors import SegzooError

Lines = list[list[str]]
_NOT_RUN = {"state": "not run"}


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
        """Where jax runs: "cpu" or "gpu"."""
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
        """Times ours beside peers, see `contest.contest`; of peers not asked for it says so."""
        wanted = list(peers)
        found = contest.contest(builds, self.peers(wanted), self.start, self.pace, self.say)
        for facts in found.values():
            facts["peers"] = every(wanted, facts["peers"])
        return found


def every(wanted: Iterable[str], entries: Facts) -> Facts:
    """Returns an entry for each wanted peer: "not run" where there is none."""
    return {name: entries.get(name, _NOT_RUN) for name in wanted}
