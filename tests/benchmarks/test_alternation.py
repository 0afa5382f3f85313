import pytest

from experiments.benchmarks.alternation import Pace, alternate, calls_for, ratio
from segzoo import SegzooError


def contestant(log, name, seconds_a_call):
    def block(calls):
        log.append((name, calls))
        return calls * seconds_a_call

    return block


def test_blocks_take_turns_and_each_has_calls_for_the_time_asked():
    log = []
    blocks = [contestant(log, "a", 0.1), contestant(log, "b", 3.0)]
    a, b = alternate(blocks, Pace(rounds=3, seconds=1.0))
    assert log[:2] == [("a", 2), ("b", 2)]  # to find out how long a call takes
    assert log[2:] == [("a", 10), ("b", 1)] * 3
    assert a == pytest.approx([10.0] * 3)
    assert b == pytest.approx([1 / 3] * 3)


def test_a_block_has_at_least_one_call():
    assert calls_for(lambda calls: 100.0 * calls, 1.0) == 1
    assert calls_for(lambda calls: 0.0, 1.0) == 1


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_pairs():
    found = ratio([2.0, 4.0, 9.0], [1.0, 4.0, 3.0])
    assert found.value == pytest.approx(4.0 / 3.0)
    assert (found.lowest, found.highest) == (1.0, 3.0)


def test_no_round_is_refused():
    with pytest.raises(SegzooError, match="rounds is 0"):
        alternate([lambda calls: 1.0], Pace(rounds=0))
