"""Contestants in alternation, A B A B ..., and the ratio of their speeds.

Whatever slows the machine for a while slows both, and the ratio of a pair says less about the
machine than either number does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import median

from segzoo.errors import check_positive_int

Block = Callable[[int], float]
"""Makes so many calls and returns the seconds they took together."""


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long is measured.

    Attributes:
        rounds: pairs of blocks.
        seconds: that a block takes at least; one call where a call takes longer.
    """

    rounds: int = 5
    seconds: float = 1.0


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast A is as B.

    Attributes:
        value: the ratio of the median rates.
        lowest: of the ratios of the pairs.
        highest: of the ratios of the pairs.
    """

    value: float
    lowest: float
    highest: float


def calls_for(block: Block, seconds: float) -> int:
    """Returns how many calls take so many seconds, at least 1; makes two calls to find out."""
    each = block(2) / 2
    return max(1, round(seconds / each)) if each > 0 else 1


def alternate(blocks: Sequence[Block], pace: Pace) -> list[list[float]]:
    """Runs a block of each in turn, and again.

    Returns:
        For each the calls a second of all its blocks.
    """
    check_positive_int("rounds", pace.rounds)
    calls = [calls_for(block, pace.seconds) for block in blocks]
    rates: list[list[float]] = [[] for _ in blocks]
    for _ in range(pace.rounds):
        for block, count, found in zip(blocks, calls, rates, strict=True):
            found.append(count / block(count))
    return rates


def ratio(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Compares the rates of two contestants, pair by pair of their blocks."""
    pairs = [x / y for x, y in zip(a, b, strict=True)]
    return Ratio(median(a) / median(b), min(pairs), max(pairs))
