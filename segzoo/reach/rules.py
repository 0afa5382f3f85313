"""What the result of each operation sees, given what its operands see."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from segzoo.reach.moves import MOVES, Sources
from segzoo.reach.values import NOTHING, PADDING, Fixed, Line, Seen, Shape, Value, compact, pad_axis


def _seen(shape: Shape, lines: Iterable[Line]) -> list[Value]:
    return [Seen(shape, tuple(lines))]


def _places(
    sources: Sources, places: frozenset[int], before: Shape, after: Shape
) -> frozenset[int]:
    """The axes of a result that are places: those longer than 1 that come from such an axis."""
    return frozenset(
        axis
        for axis, origins in enumerate(sources)
        if after[axis] > 1 and any(o in places and before[o] > 1 for o in origins)
    )


def _pool(line: Line, ranges: np.ndarray, places: frozenset[int]) -> Line:
    """A line after a reduction: where that took the last place away, nothing local is left."""
    if line.places and not places:
        ranges = ranges.copy()
        ranges[2:] = NOTHING[2:].reshape(3, *(1,) * (ranges.ndim - 1))
    return Line(ranges, places)


def _union(lines: Sequence[Line]) -> Line:
    ranges = functools.reduce(np.minimum, (line.ranges for line in lines))
    return Line(ranges, frozenset().union(*(line.places for line in lines)))


def _aligned(value: Seen, rank: int) -> tuple[Line, ...]:
    """A scalar joins arrays of any rank."""
    if len(value.shape) == rank:
        return value.lines
    return tuple(Line(line.ranges.reshape(5, *(1,) * rank), frozenset()) for line in value.lines)


def _elementwise(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    """Every entry sees what the entries at its place see; a constant zero hides its factor."""
    rank = len(shapes[0])
    seen = [_aligned(value, rank) for value in operands if isinstance(value, Seen)]
    lines = [_union(axis) for axis in zip(*seen, strict=True)]
    if eqn.primitive.name == "mul" and len(seen) == 1:
        (factor,) = (value for value in operands if isinstance(value, Fixed))
        mask = factor.nonzero
        if mask is not None and mask.ndim == 1 + rank:
            lines = [Line(_hidden(x.ranges, mask), x.places) for x in lines]
    return [value for shape in shapes for value in _seen(shape, lines)]


def _hidden(ranges: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """What is left where a mask is false, as far as the ranges change along its axes at all."""
    same = tuple(axis for axis in range(1, mask.ndim) if ranges.shape[axis] == 1)
    mask = np.any(mask, axis=same, keepdims=True)
    return np.where(mask, ranges, NOTHING.reshape(5, *(1,) * (ranges.ndim - 1)))


def _moved(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value] | None:
    value, *others = operands
    if not isinstance(value, Seen) or any(isinstance(other, Seen) for other in others):
        return None
    move, sources = MOVES[eqn.primitive.name](eqn.params, value.shape, shapes[0], others)
    if move is None:
        return None
    return _seen(
        shapes[0],
        (
            Line(
                move(line.ranges, PADDING, NOTHING),
                _places(sources, line.places, value.shape, shapes[0]),
            )
            for line in value.lines
        ),
    )


def _concatenate(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    axis, shape = eqn.params["dimension"], shapes[0]
    operands = [value for value in operands if value.shape[axis] > 0]
    seen = [value for value in operands if isinstance(value, Seen)]
    if not seen:  # of the image there were no entries
        return [Fixed(shape)]
    lines = []
    for i in range(len(seen[0].lines)):
        here = [value.lines[i] for value in seen]
        places = frozenset().union(*(line.places for line in here))
        first = here[0].ranges
        same = first.shape[1 + axis] == 1 and shape[axis] > 1
        if same and all(np.array_equal(line.ranges, first) for line in here):
            # Nothing changes along the axis; what does not depend on the image is let pass.
            lines.append(Line(first, places))
            continue
        fill = (PADDING if axis in places else NOTHING).reshape(5, *(1,) * len(shape))
        rest = iter(here)
        parts = [next(rest).ranges if isinstance(v, Seen) else fill for v in operands]
        wide = list(np.broadcast_shapes(*(np.delete(p.shape, 1 + axis) for p in parts)))
        lengths = [value.shape[axis] for value in operands]
        whole = [
            np.broadcast_to(part, (*wide[: 1 + axis], length, *wide[1 + axis :]))
            for part, length in zip(parts, lengths, strict=True)
        ]
        lines.append(Line(compact(np.concatenate(whole, 1 + axis), 1 + axis), places))
    return _seen(shape, lines)


def _update(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value] | None:
    """`dynamic_update_slice`, at constant places."""
    value, update, *others = operands
    shape = shapes[0]
    starts = [other.value if isinstance(other, Fixed) else None for other in others]
    lines = []
    for i in range(len(next(v for v in (value, update) if isinstance(v, Seen)).lines)):
        here = [v.lines[i] for v in (value, update) if isinstance(v, Seen)]
        places = frozenset().union(*(line.places for line in here))
        partial = [axis for axis, n in enumerate(shape) if update.shape[axis] != n]
        fill = PADDING if places.intersection(partial) else NOTHING
        old, new = (
            v.lines[i].ranges if isinstance(v, Seen) else fill.reshape(5, *(1,) * len(shape))
            for v in (value, update)
        )
        wide, span = [5], [slice(None)]
        for axis, (n, start) in enumerate(zip(shape, starts, strict=True)):
            size = update.shape[axis]
            if axis not in partial:
                wide.append(max(old.shape[1 + axis], new.shape[1 + axis]))
                span.append(slice(None))
                continue
            if start is None:
                return None
            wide.append(n)
            # The operation moves a start that would pass the end, as documented.
            first = int(np.clip(start, 0, n - size))
            span.append(slice(first, first + size))
        ranges = np.broadcast_to(old, wide).copy()
        ranges[tuple(span)] = new
        for axis in partial:
            ranges = compact(ranges, 1 + axis)
        lines.append(Line(ranges, places))
    return _seen(shape, lines)


def _split(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    (value,), axis = operands, eqn.params["axis"]
    assert isinstance(value, Seen)
    results: list[Value] = []
    start = 0
    for shape in shapes:
        stop = start + shape[axis]
        span = [slice(None)] * (1 + len(shape))
        span[1 + axis] = slice(start, stop)
        lines = []
        for line in value.lines:
            whole = line.ranges.shape[1 + axis] == value.shape[axis]
            lines.append(Line(line.ranges[tuple(span)] if whole else line.ranges, line.places))
        results += _seen(shape, lines)
        start = stop
    return results


def _reduce(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    axes = tuple(eqn.params["axes"])
    seen = [value for value in operands if isinstance(value, Seen)]
    shape = seen[0].shape
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    lines = []
    for line in (_union(axis) for axis in zip(*(value.lines for value in seen), strict=True)):
        ranges = line.ranges.min(axis=tuple(1 + axis for axis in axes))
        sources = tuple((axis,) for axis in kept)
        lines.append(_pool(line, ranges, _places(sources, line.places, shape, shapes[0])))
    return [value for out in shapes for value in _seen(out, lines)]


def _accumulate(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    (value,), axis = operands, 1 + eqn.params["axis"]
    assert isinstance(value, Seen)
    lines = []
    for line in value.lines:
        ranges = np.flip(line.ranges, axis) if eqn.params["reverse"] else line.ranges
        ranges = np.minimum.accumulate(ranges, axis)
        ranges = np.flip(ranges, axis) if eqn.params["reverse"] else ranges
        lines.append(Line(ranges, line.places))
    return _seen(shapes[0], lines)


def _sort(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    axis = eqn.params["dimension"]
    seen = [value for value in operands if isinstance(value, Seen)]
    lines = []
    for line in (_union(axes) for axes in zip(*(value.lines for value in seen), strict=True)):
        places = line.places - {axis}
        lines.append(_pool(line, line.ranges.min(1 + axis, keepdims=True), places))
    return [value for out in shapes for value in _seen(out, lines)]


def _slide(
    ranges: np.ndarray,
    axis: int,
    length: int,
    *,
    size: int,
    stride: int = 1,
    dilation: int = 1,
    padding: tuple[int, int] = (0, 0),
    spread: int = 1,
) -> np.ndarray:
    """The union over a sliding window, `length` being the true one of the axis."""
    if ranges.shape[axis] != length:
        return ranges  # nothing changes along it
    ranges = pad_axis(ranges, axis, (*padding, spread - 1), PADDING, NOTHING)
    count = (ranges.shape[axis] - (size - 1) * dilation - 1) // stride + 1
    if count < 1:
        return np.take(ranges, [], axis)
    taps = []
    for tap in range(size):
        span = [slice(None)] * ranges.ndim
        start = tap * dilation
        span[axis] = slice(start, start + (count - 1) * stride + 1, stride)
        taps.append(ranges[tuple(span)])
    return functools.reduce(np.minimum, taps)


def _convolution(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value] | None:
    value, kernel = operands
    if not isinstance(value, Seen) or not isinstance(kernel, Fixed):
        return None
    if eqn.params["batch_group_count"] != 1:
        return None
    spec = eqn.params["dimension_numbers"]
    groups = eqn.params["feature_group_count"]
    lines = []
    for line in value.lines:
        ranges = np.transpose(line.ranges, (0, *(1 + axis for axis in spec.lhs_spec)))
        if ranges.shape[2] > 1:  # each group sees its own channels
            grouped = ranges.reshape(*ranges.shape[:2], groups, -1, *ranges.shape[3:]).min(axis=3)
            ranges = compact(grouped, 2)
            if ranges.shape[2] > 1:
                ranges = np.repeat(ranges, shapes[0][spec.out_spec[1]] // groups, axis=2)
        for i, axis in enumerate(spec.lhs_spec[2:]):
            ranges = _slide(
                ranges,
                3 + i,
                value.shape[axis],
                size=kernel.shape[spec.rhs_spec[2 + i]],
                stride=eqn.params["window_strides"][i],
                dilation=eqn.params["rhs_dilation"][i],
                padding=eqn.params["padding"][i],
                spread=eqn.params["lhs_dilation"][i],
            )
        back = np.argsort(spec.out_spec)
        sources = tuple((spec.lhs_spec[i],) if i != 1 else () for i in back)
        places = _places(sources, line.places, value.shape, shapes[0])
        lines.append(Line(np.transpose(ranges, (0, *(1 + back))), places))
    return _seen(shapes[0], lines)


def _reduce_window(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value] | None:
    value, *others = operands
    if not isinstance(value, Seen) or any(isinstance(other, Seen) for other in others):
        return None
    p = eqn.params
    lines = []
    for line in value.lines:
        ranges = line.ranges
        for axis, length in enumerate(value.shape):
            ranges = _slide(
                ranges,
                1 + axis,
                length,
                size=p["window_dimensions"][axis],
                stride=p["window_strides"][axis],
                dilation=p["window_dilation"][axis],
                padding=p["padding"][axis],
                spread=p["base_dilation"][axis],
            )
        sources = tuple((axis,) for axis in range(len(value.shape)))
        places = _places(sources, line.places, value.shape, shapes[0])
        lines.append(_pool(line, ranges, places))
    return _seen(shapes[0], lines)


def _dot_general(eqn: Any, operands: list[Value], shapes: list[Shape]) -> list[Value]:
    contracted, batched = eqn.params["dimension_numbers"]
    free = [
        [a for a in range(len(x.shape)) if a not in contracted[i] and a not in batched[i]]
        for i, x in enumerate(operands)
    ]
    parts = []
    for i, value in enumerate(operands):
        if not isinstance(value, Seen):
            continue
        other, theirs = operands[1 - i], free[1 - i]
        columns = None
        if isinstance(other, Fixed) and other.nonzero is not None and not batched[i]:
            columns = np.broadcast_to(other.nonzero, (1, *other.shape))[0]
            columns = np.transpose(columns, (*contracted[1 - i], *theirs))
        kept = (*batched[i], *free[i])
        at = len(kept) if i == 0 else len(batched[i])  # where the axes of the other one come in
        sources: list[tuple[int, ...]] = [(a,) for a in kept]
        sources[at:at] = [()] * len(theirs)
        lines = []
        for line in value.lines:
            order = (0, *(1 + a for a in (*kept, *contracted[i])))
            ranges = _contract(np.transpose(line.ranges, order), 1 + len(kept), columns)
            span = range(1 + len(kept), ranges.ndim)
            if columns is None:
                ranges = np.expand_dims(ranges, tuple(range(1 + at, 1 + at + len(theirs))))
            else:
                ranges = np.moveaxis(ranges, span, range(1 + at, 1 + at + len(span)))
            places = _places(tuple(sources), line.places, value.shape, shapes[0])
            lines.append(_pool(line, ranges, places))
        parts.append(lines)
    return _seen(shapes[0], (_union(axis) for axis in zip(*parts, strict=True)))


def _contract(ranges: np.ndarray, kept: int, columns: np.ndarray | None) -> np.ndarray:
    """The union over the last axes, K, of ranges: `[..., *K] -> [...]`.

    With columns, booleans `[*K, *N]`, it is taken where they hold: `[..., *K] -> [..., *N]`.
    """
    inner = tuple(range(kept, ranges.ndim))
    if columns is None:
        return ranges.min(axis=inner)
    depth = len(inner)
    if all(ranges.shape[axis] == 1 for axis in inner):
        columns = np.any(columns, axis=tuple(range(depth)), keepdims=True)
    ranges = np.broadcast_to(ranges, (*ranges.shape[:kept], *columns.shape[:depth]))
    flat = ranges.reshape(*ranges.shape[:kept], -1)
    # Few columns differ: one for each phase of a transposed convolution.
    different, place = np.unique(columns.reshape(flat.shape[-1], -1), axis=1, return_inverse=True)
    nothing = np.broadcast_to(NOTHING.reshape(5, *(1,) * (kept - 1)), flat.shape[:-1])
    unions = [flat[..., c].min(axis=-1) if c.any() else nothing for c in different.T]
    result = np.stack(unions, axis=-1)[..., place.reshape(-1)]
    result = result.reshape(*flat.shape[:-1], *columns.shape[depth:])
    for axis in range(kept, result.ndim):
        result = compact(result, axis)
    return result


RULES: dict[str, Callable[..., list[Value] | None]] = {
    **dict.fromkeys(
        [
            *("abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan"),
            *("atan2", "atanh", "cbrt", "ceil", "clamp", "convert_element_type", "copy"),
            *("cos", "cosh", "div", "eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1"),
            *("floor", "ge", "gt", "integer_pow", "is_finite", "layout_constraint", "le", "log"),
            *("log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not"),
            *("optimization_barrier", "or", "pow", "reduce_precision", "rem", "round"),
            *("rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square"),
            *("stop_gradient", "sub", "tan", "tanh", "xor"),
        ],
        _elementwise,
    ),
    **dict.fromkeys(MOVES, _moved),
    "concatenate": _concatenate,
    "conv_general_dilated": _convolution,
    "dot_general": _dot_general,
    "dynamic_update_slice": _update,
    "sort": _sort,
    "split": _split,
    **dict.fromkeys(("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _accumulate),
    **dict.fromkeys(
        [
            *("argmax", "argmin", "reduce_and", "reduce_max", "reduce_min", "reduce_or"),
            *("reduce_prod", "reduce_sum", "reduce_xor"),
        ],
        _reduce,
    ),
    **dict.fromkeys(
        ("reduce_window", "reduce_window_max", "reduce_window_min", "reduce_window_sum"),
        _reduce_window,
    ),
}
