"""Non-maximum suppression: of boxes that overlap, the best one stays. Exact, with fixed shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from segzoo.ops import boxes as box_ops

Array = jax.Array
BLOCK = 256  # candidates judged together; pairs within a block are compared all at once


def nms(
    boxes: Array,
    scores: Array,
    threshold: float,
    limit: int,
    *,
    classes: Array | None = None,
    valid: Array | None = None,
) -> tuple[Array, Array]:
    """Takes boxes in the order of their scores, those that overlap no better one taken before.

    The greedy algorithm, exactly: of equal scores the first box comes first, and a box goes where
    its IoU with one taken is above the threshold. Candidates are judged a block at a time, until
    `limit` boxes are taken: so the cost follows what is needed, and no matrix of all pairs is made.

    Args:
        boxes: `[N, 4]`.
        scores: `[N]`; a NaN is never taken.
        threshold: the largest IoU two boxes taken can have.
        limit: how many boxes to take at most.
        classes: integers `[N]`; boxes of different classes leave each other alone.
        valid: bool `[N]`, which boxes there are; by default all.

    Returns:
        The indices of the boxes taken, int32 `[limit]`, best first, and which of these entries
        there are, bool `[limit]`; the other indices are 0. No gradient passes.
    """
    boxes, scores = lax.stop_gradient(boxes), lax.stop_gradient(scores)
    count = len(boxes)
    if count == 0:
        return jnp.zeros(limit, jnp.int32), jnp.zeros(limit, bool)
    classes = jnp.zeros(count, jnp.int32) if classes is None else classes.astype(jnp.int32)
    there = ~jnp.isnan(scores) if valid is None else valid & ~jnp.isnan(scores)
    block = min(BLOCK, count)
    # Those that are not there come last, behind any score, also behind one of minus infinity.
    order = jnp.lexsort((jnp.where(there, -scores, jnp.inf), ~there)).astype(jnp.int32)
    order = jnp.pad(order, (0, -count % block))
    available = jnp.sum(there, dtype=jnp.int32)
    earlier = jnp.triu(jnp.ones((block, block), bool), k=1)

    def suppressed(by: Array, by_classes: Array, them: Array, their_classes: Array) -> Array:
        over = box_ops.iou(by, them) > threshold
        return over & (by_classes[:, None] == their_classes[None])

    def judge(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        start, number, taken = state
        places = lax.dynamic_slice(order, (start,), (block,))
        candidates, kinds = boxes[places], classes[places]
        # Entries of `taken` still to be filled suppress nothing.
        before = suppressed(boxes[taken], classes[taken], candidates, kinds)
        before = before & (jnp.arange(limit) < number)[:, None]
        alive = (start + jnp.arange(block) < available) & ~before.any(axis=0)
        stays = _survivors(suppressed(candidates, kinds, candidates, kinds) & earlier, alive)
        position = jnp.where(stays, number + jnp.cumsum(stays) - 1, limit)
        taken = taken.at[position].set(places, mode="drop")
        number = jnp.minimum(number + jnp.sum(stays, dtype=jnp.int32), limit)
        return start + block, number, taken

    def unfinished(state: tuple[Array, Array, Array]) -> Array:
        start, number, _ = state
        return (start < available) & (number < limit)

    zero = jnp.zeros((), jnp.int32)
    start = (zero, zero, jnp.zeros(limit, jnp.int32))
    _, number, taken = lax.while_loop(unfinished, judge, start)
    return taken, jnp.arange(limit) < number


def _survivors(suppresses: Array, alive: Array) -> Array:
    """Who is alive and suppressed by no survivor before it.

    Iterated from everyone: after step i the first i entries are final, as each depends on those
    before it alone. In practice as many steps are needed as chains of overlaps are long.

    Args:
        suppresses: bool `[N, N]`, rows by columns; only entries above the diagonal.
        alive: bool `[N]`.
    """

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stays, _ = state
        after = alive & ~(suppresses & stays[:, None]).any(axis=0)
        return after, (after != stays).any()

    return lax.while_loop(lambda state: state[1], step, (alive, jnp.ones((), bool)))[0]
