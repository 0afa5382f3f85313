"""The order is a function of seed and place, and shows each example as often as any other."""

import pickle

import numpy as np
import pytest

from segzoo.data.order import GroupedOrder, Order


def test_the_order_is_fixed_for_ever():
    assert Order(8, 0).permutation(0).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert [Order(8, 1)[place] for place in range(7, 12)] == [1, 5, 6, 3, 0]


def test_orders_are_uniform():
    """Each example is as likely to come first as any other (chi-squared, 9 degrees, p = 0.001)."""
    first = np.bincount([Order(10, seed)[0] for seed in range(2000)], minlength=10)
    assert ((first - 200) ** 2 / 200).sum() < 27.9


def test_seeds_and_neighbouring_epochs_differ():
    orders = {tuple(Order(10, seed).permutation(epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


# --- Groups -------------------------------------------------------------------------------------


def stream_of(order, group, batches):
    return [i for batch in batches if order.groups[batch[0]] == group for i in batch]


@pytest.mark.parametrize("size", [1, 4, 7, 50])
def test_every_epoch_of_a_group_shows_each_example_once(size):
    groups = np.random.default_rng(0).permutation([0] * 23 + [1] * 6 + [2])
    order = GroupedOrder(groups, 5, size)
    batches = [order.batch(number, size) for number in range(300 // size)]
    for batch in batches:
        assert len({int(groups[index]) for index in batch}) == 1
        assert len(batch) == size
    orders = []
    for group in range(3):
        members = np.flatnonzero(groups == group).tolist()
        stream = stream_of(order, group, batches)
        epochs = [stream[i : i + len(members)] for i in range(0, len(stream), len(members))]
        for epoch in epochs[:-1]:
            assert sorted(epoch) == members
        orders += [tuple(epoch) for epoch in epochs[:-1] if len(members) == 23]
        # As often as it is large, but for what is not full yet.
        assert abs(len(stream) - 300 * len(members) / 30) <= 2 * size
    assert len(set(orders)) == len(orders)


def test_a_batch_of_a_group_is_a_function_of_its_number():
    groups = np.arange(50) % 3 == 0
    order = GroupedOrder(groups.astype(int), 1, 8)
    forwards = [order.batch(number, 8) for number in range(40)]
    again = pickle.loads(pickle.dumps(order))
    assert [again.batch(number, 8) for number in reversed(range(40))] == forwards[::-1]
    assert GroupedOrder(groups.astype(int), 2, 8).batch(0, 8) != forwards[0]
    late = 10**9
    assert order.batch(late, 8) == again.batch(late, 8)
