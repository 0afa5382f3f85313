"""Operations that only move entries about: how they move ranges.

Each function takes `(parameters, shape, new shape, other operands)` and returns how to move an
array of ranges (None where that cannot be told), and for each axis of the result the axes it comes
from.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from segzoo.errors import SegzooError
from segzoo.reach.values import Fixed, Shape, Value, pad_axis

Sources = tuple[tuple[int, ...], ...]  # for each axis of a result, the axes it comes from
Move = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _move_same(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    return lambda x, edge, hole: x, tuple((a,) for a in range(len(shape)))


def _move_transpose(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    order = params["permutation"]
    return (
        lambda x, edge, hole: np.transpose(x, (0, *(1 + a for a in order))),
        tuple((a,) for a in order),
    )


def _move_reverse(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    axes = tuple(1 + a for a in params["dimensions"])
    return lambda x, edge, hole: np.flip(x, axes), tuple((a,) for a in range(len(shape)))


def _move_squeeze(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    gone = params["dimensions"]
    kept = tuple((a,) for a in range(len(shape)) if a not in gone)
    return lambda x, edge, hole: np.squeeze(x, tuple(1 + a for a in gone)), kept


def _move_broadcast(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    target = params["broadcast_dimensions"]

    def move(x: np.ndarray, edge: np.ndarray, hole: np.ndarray) -> np.ndarray:
        wide = [1] * len(new)
        for axis, n in zip(target, x.shape[1:], strict=True):
            wide[axis] = n
        return x.reshape(x.shape[0], *wide)

    sources: list[tuple[int, ...]] = [() for _ in new]
    for axis, at in enumerate(target):
        sources[at] = (axis,)
    return move, tuple(sources)


def _move_slice(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    strides = params["strides"] or (1,) * len(shape)
    spans = list(zip(params["start_indices"], params["limit_indices"], strides, strict=True))
    return _spans(shape, spans)


def _move_dynamic_slice(
    params: Any, shape: Shape, new: Shape, others: list[Value]
) -> tuple[Move | None, Sources]:
    starts = [other.value if isinstance(other, Fixed) else None for other in others]
    if any(start is None for start in starts):
        return None, ()
    sizes = params["slice_sizes"]
    # The operation moves a start that would pass the end, as documented.
    first = [
        int(np.clip(start, 0, n - size))
        for start, n, size in zip(starts, shape, sizes, strict=True)
        if start is not None
    ]
    return _spans(shape, [(a, a + size, 1) for a, size in zip(first, sizes, strict=True)])


def _spans(shape: Shape, spans: list[tuple[int, int, int]]) -> tuple[Move, Sources]:
    def move(x: np.ndarray, edge: np.ndarray, hole: np.ndarray) -> np.ndarray:
        index = [slice(None)]
        for n, true, span in zip(x.shape[1:], shape, spans, strict=True):
            index.append(slice(*span) if n == true else slice(None))
        return x[tuple(index)]

    return move, tuple((a,) for a in range(len(shape)))


def _move_pad(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    def move(x: np.ndarray, edge: np.ndarray, hole: np.ndarray) -> np.ndarray:
        for axis, amount in enumerate(params["padding_config"]):
            if x.shape[1 + axis] == shape[axis]:
                x = pad_axis(x, 1 + axis, amount, edge, hole)
        return x

    return move, tuple((a,) for a in range(len(shape)))


def _move_reshape(params: Any, shape: Shape, new: Shape, others: Any) -> tuple[Move, Sources]:
    if params.get("dimensions") is not None:
        raise SegzooError("a reshape that also permutes axes has no rule.")
    groups = _groups(shape, new)

    def move(x: np.ndarray, edge: np.ndarray, hole: np.ndarray) -> np.ndarray:
        full, result = [x.shape[0]], [x.shape[0]]
        for before, after in groups:
            if all(x.shape[1 + a] == 1 for a in before):
                full += [1] * len(before)
                result += [1] * len(after)
            else:
                full += [shape[a] for a in before]
                result += [new[a] for a in after]
        return np.broadcast_to(x, full).reshape(result)

    sources: list[tuple[int, ...]] = [() for _ in new]
    for before, after in groups:
        for axis in after:
            sources[axis] = before
    return move, tuple(sources)


def _groups(shape: Shape, new: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shortest runs of axes with equal products, before and after a reshape."""
    if 0 in shape:
        return [(tuple(range(len(shape))), tuple(range(len(new))))]
    groups: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    i = j = 0
    while i < len(shape) or j < len(new):
        before, after = [i] if i < len(shape) else [], [j] if j < len(new) else []
        i, j = i + len(before), j + len(after)
        while (a := math.prod(shape[k] for k in before)) != (b := math.prod(new[k] for k in after)):
            if a < b:
                before.append(i)
                i += 1
            else:
                after.append(j)
                j += 1
        groups.append((tuple(before), tuple(after)))
    return groups


def _move_gather(
    params: Any, shape: Shape, new: Shape, others: list[Value]
) -> tuple[Move | None, Sources]:
    """Takes whole slices at constant places along one axis, as `jnp.take` does."""
    (indices,) = others
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    value = indices.value if isinstance(indices, Fixed) else None
    if value is None or len(numbers.start_index_map) != 1 or numbers.operand_batching_dims:
        return None, ()
    (axis,) = numbers.start_index_map
    whole = (*shape[:axis], 1, *shape[axis + 1 :])
    if numbers.collapsed_slice_dims != (axis,) or sizes != whole or value.ndim != 2:
        return None, ()
    places = value[:, 0]
    at = next(a for a in range(len(new)) if a not in numbers.offset_dims)
    if at != axis:
        return None, ()
    inside = (places >= 0) & (places < shape[axis])

    def move(x: np.ndarray, edge: np.ndarray, hole: np.ndarray) -> np.ndarray:
        if x.shape[1 + axis] != shape[axis]:
            return x
        taken = np.take(x, np.clip(places, 0, shape[axis] - 1), 1 + axis)
        line = inside.reshape(-1, *(1,) * (taken.ndim - 2 - axis))
        return np.where(line, taken, hole.reshape(-1, *(1,) * (taken.ndim - 1)))

    return move, tuple((a,) for a in range(len(shape)))


MOVES: dict[str, Callable[..., tuple[Move | None, Sources]]] = {
    "broadcast_in_dim": _move_broadcast,
    "dynamic_slice": _move_dynamic_slice,
    "gather": _move_gather,
    "pad": _move_pad,
    "reshape": _move_reshape,
    "rev": _move_reverse,
    "slice": _move_slice,
    "squeeze": _move_squeeze,
    "transpose": _move_transpose,
}
