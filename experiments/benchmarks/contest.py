"""Ours beside each peer in turn: built alike, checked to be alike, timed in alternation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from experiments.benchmarks.alternation import Pace, alternate, ratio
from experiments.benchmarks.contestants import Facts
from experiments.benchmarks.worker import Failed, NoResult, Unavailable, Worker

Say = Callable[[str], None]
Start = Callable[[str], Worker]
# Sides of the matrices whose product is the ceiling.
SIDES = {"cpu": 2048, "gpu": 8192}


def contest(
    builds: Mapping[str, tuple[str, Facts]],
    peers: Sequence[str],
    begin: Start,
    pace: Pace,
    say: Say,
) -> dict[str, Facts]:
    """Times ours beside each peer, every peer in a process of its own beside ours.

    Args:
        builds: what is timed by its key: a contestant's method, and its arguments.
        peers: names of contestants.
        begin: starts a contestant's process.
        pace: how long is measured.
        say: told of every result.

    Returns:
        For each build `parameters` and `macs` where it has them; `ours`: `seconds` a call (median),
        `first_seconds`, `rates`; and `peers`: for each `state`, "measured" with the same figures
        and `ratio`, `lowest`, `highest`, the times ours is as fast, or "not installed",
        "unavailable" or "failed" with `why`.

    Raises:
        Failed: when ours fails.
    """
    with begin("ours") as ours:
        platform = ours.call("describe")["platform"]
        found = {key: _build(ours, key, build) for key, build in builds.items()}
        rates: dict[str, list[float]] = {key: [] for key in builds}
        for facts in found.values():
            facts["peers"] = {}
        for name in peers:
            for key, entry in beside(ours, name, builds, found, platform, begin, pace).items():
                rates[key] += entry.get("ours_rates", [])
                found[key]["peers"][name] = entry
                say(f"  {key} {name}: {told(entry)}")
        for key, facts in found.items():
            # No peer could take part: ours is timed all the same.
            rates[key] = rates[key] or _alone(ours, key, pace)
            facts["ours"] = {**facts["ours"], **_summary(rates[key])}
    return found


def beside(
    ours: Worker,
    name: str,
    builds: Mapping[str, tuple[str, Facts]],
    found: Mapping[str, Facts],
    platform: str,
    begin: Start,
    pace: Pace,
) -> dict[str, Facts]:
    """Times ours beside one peer; whatever keeps the peer from it is told in its entries.

    Returns:
        An entry for each build, see `contest`; `ours_rates` in it are ours beside this peer.
    """
    entries: dict[str, Facts] = {}
    try:
        with begin(name) as peer:
            described = peer.call("describe")
            if described["platform"] != platform:
                raise Unavailable(f"it sees a {described['platform']} only")
            for key, build in builds.items():
                theirs = _build(peer, key, build)
                check_same(found[key], theirs, name)
                blocks = [functools.partial(_block, worker, key) for worker in (ours, peer)]
                a, b = alternate(blocks, pace)
                compared = ratio(a, b)
                entries[key] = {
                    "state": "measured",
                    **theirs["ours"],
                    **_summary(b),
                    "ratio": compared.value,
                    "lowest": compared.lowest,
                    "highest": compared.highest,
                    "versions": described["versions"],
                    "ours_rates": _rounded(a),
                }
    except NoResult as error:
        if ours.failed:
            raise
        return dict.fromkeys(builds, error.entry) | entries
    return entries


def check_same(ours: Facts, theirs: Facts, name: str) -> None:
    """Raises `Failed` unless both networks have the same number of parameters."""
    if ours.get("parameters") != theirs.get("parameters"):
        raise Failed(
            f"{name} has {theirs.get('parameters'):,} parameters and ours "
            f"{ours.get('parameters'):,}; expected the same network"
        )


def ceiling(names: Iterable[str], platform: str, dtype: str, begin: Start) -> Facts:
    """Measures what the machine reaches in products of large square matrices.

    Args:
        names: contestants, each of which multiplies.
        platform: decides the size.
        dtype: of the matrices.
        begin: starts a contestant's process.

    Returns:
        Operations per second by contestant, the best of five blocks; those that cannot are left
        out.
    """
    side, reached = SIDES[platform], {}
    sides = {"side": side, "dtype": dtype}
    for name in names:
        try:
            with begin(name) as worker:
                worker.call("build", key="product", method="product", arguments=sides)
                block = functools.partial(_block, worker, "product")
                block(1)
                seconds = min(block(4) / 4 for _ in range(5))
        except NoResult:
            continue
        reached[name] = 2 * side**3 / seconds
    return reached


def told(entry: Facts) -> str:
    """Says one peer's entry in a few words."""
    if entry["state"] == "measured":
        return f"ours {entry['ratio']:.2f} times as fast ({spread(entry)})"
    return f"{entry['state']} ({entry['why']})"


def seconds(entry: Facts) -> tuple[float, float]:
    """What a call took, ours beside that peer and the peer's own."""
    return 1 / median(entry["ours_rates"]), entry["seconds"]


def spread(entry: Facts) -> str:
    """Returns the lowest and highest ratio of the pairs."""
    return f"{entry['lowest']:.2f}..{entry['highest']:.2f}"


def _build(worker: Worker, key: str, build: tuple[str, Facts]) -> Facts:
    method, arguments = build
    facts: Facts = worker.call("build", key=key, method=method, arguments=arguments)
    return {**facts, "ours": {"first_seconds": _block(worker, key, 1)}}


def _block(worker: Worker, key: str, calls: int) -> float:
    seconds: float = worker.call("block", calls=calls, key=key)
    return seconds


def _alone(ours: Worker, key: str, pace: Pace) -> list[float]:
    """Our rates, with nobody beside."""
    return alternate([functools.partial(_block, ours, key)], pace)[0]


def _summary(rates: Sequence[float]) -> dict[str, Any]:
    return {"seconds": 1 / median(rates), "rates": _rounded(rates)}


def _rounded(rates: Sequence[float]) -> list[float]:
    return [float(f"{rate:.5g}") for rate in rates]
