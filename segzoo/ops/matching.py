"""Which candidate boxes stand for which objects, and a random sample of them to learn from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops import boxes as box_ops

Array = jax.Array

POSITIVE, NEGATIVE, NEITHER = 1, 0, -1
IGNORED = 0.5  # a negative with at least this share of it in regions to be ignored is none


def match(
    candidates: Array,
    boxes: Array,
    valid: Array,
    *,
    high: float,
    low: float,
    best_of_each: bool = False,
    ignore: Array | None = None,
) -> tuple[Array, Array]:
    """Assigns to each candidate the object it overlaps most, and tells what it is good for.

    Positive from an IoU of `high` on, negative below `low` (Ren et al. 2015, arXiv:1506.01497,
    section 3.1.2). With `best_of_each` the candidates nearest to an object are positive too, as far
    as they touch it: all of equal IoU (up to rounding), each for the object it overlaps most.

    Args:
        candidates: `[N, 4]`.
        boxes: `[M, 4]`, of the objects.
        valid: bool `[M]`, which of these there are.
        high: the smallest IoU of a positive.
        low: negatives are below.
        best_of_each: see above.
        ignore: bool `[M]`, which boxes are regions with objects not told apart ("crowds"): never
            matched, and a candidate that lies in one by half or more is not negative.

    Returns:
        The index of each candidate's object, int32 `[N]`, 0 without any, and int32 `[N]`
        `POSITIVE`, `NEGATIVE` or `NEITHER`.
    """
    candidates, boxes = lax.stop_gradient(candidates), lax.stop_gradient(boxes)
    objects = valid if ignore is None else valid & ~ignore
    overlap = jnp.where(objects[:, None], box_ops.iou(boxes, candidates), 0.0)  # [M, N]
    index = jnp.argmax(overlap, axis=0).astype(jnp.int32)
    most = jnp.max(overlap, axis=0)
    kind = jnp.where(most >= high, POSITIVE, jnp.where(most < low, NEGATIVE, NEITHER))
    if best_of_each:
        nearest = jnp.max(overlap, axis=1, keepdims=True)
        best = (nearest > 0) & (overlap >= nearest * (1 - 1e-6))
        kind = jnp.where(best.any(axis=0), POSITIVE, kind)
    if ignore is not None:
        share = jnp.where((valid & ignore)[None], box_ops.covered(candidates, boxes), 0.0)
        lost = (jnp.max(share, axis=1) >= IGNORED) & (kind == NEGATIVE)
        kind = jnp.where(lost, NEITHER, kind)
    return index, kind


def sample(key: Array, kind: Array, count: int, fraction: float) -> tuple[Array, Array, Array]:
    """Draws positives and negatives at random.

    Up to `count * fraction` positives; negatives for what is left of `count`.

    Args:
        key: of the random numbers.
        kind: int `[N]`, from `match`.
        count: how many to draw.
        fraction: the largest share of positives.

    Returns:
        Indices int32 `[count]`, positives first; which of these are positives, and which there are
        at all, bool `[count]`. The positives lie within the first `int(count * fraction)`.
    """
    order = jax.random.uniform(key, kind.shape, jnp.float32)
    most = min(int(count * fraction), len(kind))

    def draw(of: int, number: int) -> tuple[Array, Array]:
        best, places = lax.top_k(jnp.where(kind == of, order, -1.0), min(number, len(kind)))
        places = jnp.pad(places.astype(jnp.int32), (0, count - len(places)))
        return places, jnp.sum(best >= 0, dtype=jnp.int32)

    positives, number = draw(POSITIVE, most)
    negatives, others = draw(NEGATIVE, count)
    place = jnp.arange(count, dtype=jnp.int32)
    positive = place < number
    index = jnp.where(positive, positives, negatives[jnp.maximum(place - number, 0)])
    return index, positive, place < number + others
