"""Matching on cases one can draw, and samples that are what was asked for."""

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.ops import matching
from segzoo.ops.matching import NEGATIVE, NEITHER, POSITIVE

match = jax.jit(matching.match, static_argnames="best_of_each")
sample = jax.jit(matching.sample, static_argnums=(2, 3))

OBJECT = [0.0, 0.0, 10.0, 10.0]
# Of the object's area in common: all, 8 of 10 rows, half, a quarter, none.
CANDIDATES = [OBJECT, [0.0, 0, 8, 10], [0.0, 0, 5, 10], [0.0, 0, 2.5, 10], [20.0, 20, 30, 30]]


def matched(candidates, boxes, valid=None, **options):
    valid = [True] * len(boxes) if valid is None else valid
    ignore = options.pop("ignore", None)
    index, kind = match(
        jnp.asarray(candidates),
        jnp.asarray(boxes),
        jnp.asarray(valid),
        ignore=None if ignore is None else jnp.asarray(ignore),
        **options,
    )
    return index.tolist(), kind.tolist()


def test_the_two_thresholds():
    index, kind = matched(CANDIDATES, [OBJECT], high=0.8, low=0.3)
    assert kind == [POSITIVE, POSITIVE, NEITHER, NEGATIVE, NEGATIVE]
    assert index == [0] * 5
    assert matched(CANDIDATES, [OBJECT], high=0.5, low=0.5)[1] == [1, 1, 1, 0, 0]


def test_each_object_keeps_its_nearest_candidates():
    few = CANDIDATES[3:]
    assert matched(few, [OBJECT], high=0.7, low=0.3)[1] == [NEGATIVE, NEGATIVE]
    assert matched(few, [OBJECT], high=0.7, low=0.3, best_of_each=True)[1] == [POSITIVE, NEGATIVE]
    twice = [CANDIDATES[3], [7.5, 0.0, 10.0, 10.0], CANDIDATES[4]]
    found = matched(twice, [OBJECT], high=0.7, low=0.3, best_of_each=True)
    assert found[1] == [POSITIVE, POSITIVE, NEGATIVE]


def test_an_object_nothing_touches_makes_nothing_positive():
    far = [100.0, 100.0, 110.0, 110.0]
    _, kind = matched(CANDIDATES, [far], high=0.7, low=0.3, best_of_each=True)
    assert kind == [NEGATIVE] * 5


def test_a_nearest_candidate_stays_with_the_object_it_overlaps_most():
    small, large = [0.0, 0.0, 3.0, 10.0], [0.0, 0.0, 10.0, 10.0]
    index, kind = matched([large], [small, large], high=0.7, low=0.3, best_of_each=True)
    assert (index, kind) == ([1], [POSITIVE])


def test_objects_that_are_not_there_do_not_count():
    boxes = [OBJECT, [20.0, 20.0, 30.0, 30.0]]
    index, kind = matched(CANDIDATES, boxes, [False, True], high=0.5, low=0.5)
    assert kind == [0, 0, 0, 0, 1]
    assert index[4] == 1
    none = matched(CANDIDATES, boxes, [False, False], high=0.5, low=0.5, best_of_each=True)
    assert none == ([0] * 5, [NEGATIVE] * 5)


def test_in_a_crowd_there_are_no_negatives():
    crowd = [18.0, 18.0, 40.0, 40.0]
    candidates = [*CANDIDATES, [10.0, 18.0, 30.0, 28.0], [4.0, 18.0, 24.0, 28.0]]
    options = {"high": 0.8, "low": 0.3, "best_of_each": True}
    index, kind = matched(candidates, [OBJECT, crowd], ignore=[False, True], **options)
    # Inside; inside by 6 of 10; by 3 of 10.
    assert kind[4:] == [NEITHER, NEITHER, NEGATIVE]
    assert kind[:4] == matched(CANDIDATES, [OBJECT], **options)[1][:4]
    # No crowd is ever matched, and one that is not there changes nothing.
    assert 1 not in index
    absent = matched(candidates, [OBJECT, crowd], [True, False], ignore=[False, True], **options)
    assert absent[1][4:] == [NEGATIVE] * 3
    # An object told apart wins over the crowd around it.
    around = matched([OBJECT], [OBJECT, [0.0, 0, 50, 50]], ignore=[False, True], **options)
    assert around == ([0], [POSITIVE])


def test_boxes_without_area_match_nothing():
    point = [5.0, 5.0, 5.0, 5.0]
    assert matched([point, OBJECT], [point], high=0.5, low=0.5, best_of_each=True)[1] == [0, 0]


def drawn(kind, count, fraction, seed=0):
    found = sample(jax.random.key(seed), jnp.asarray(kind), count, fraction)
    index, positive, valid = map(np.asarray, found)
    assert index.shape == positive.shape == valid.shape == (count,)
    assert not positive[~valid].any()
    chosen = index[valid]
    assert len(set(chosen)) == len(chosen)
    assert (np.asarray(kind)[index[positive]] == POSITIVE).all()
    assert (np.asarray(kind)[index[valid & ~positive]] == NEGATIVE).all()
    assert (np.sort(~positive) == ~positive).all()  # positives come first
    return chosen, positive.sum(), valid.sum()


def test_samples_hold_as_many_as_there_are_and_may_be():
    plenty = np.repeat([POSITIVE, NEGATIVE, NEITHER], [100, 200, 50])
    assert drawn(plenty, 64, 0.25)[1:] == (16, 64)
    few = np.repeat([POSITIVE, NEGATIVE, NEITHER], [3, 200, 50])
    assert drawn(few, 64, 0.25)[1:] == (3, 64)
    short = np.repeat([POSITIVE, NEGATIVE, NEITHER], [100, 20, 50])
    assert drawn(short, 64, 0.5)[1:] == (32, 52)
    assert drawn(np.full(30, NEITHER), 8, 0.5)[1:] == (0, 0)
    assert drawn(np.full(5, NEGATIVE), 8, 0.5)[1:] == (0, 5)
    assert drawn(np.full(3, POSITIVE), 8, 0.5)[1:] == (3, 3)


def test_samples_are_random_and_every_candidate_has_its_chance():
    kind = np.repeat([POSITIVE, NEGATIVE], [40, 40])
    chosen = [set(drawn(kind, 16, 0.5, seed)[0]) for seed in range(60)]
    assert chosen[0] != chosen[1]
    assert set().union(*chosen) == set(range(80))
