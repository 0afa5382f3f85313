"""Which input pixels every value of a program depends on, read off its jaxpr without running it.

The program is walked once. Beside every value that depends on the image go, for each spatial axis
of the image, the first and the last pixel each of its entries sees: exact at the borders too, as
the padding of a convolution contributes nothing. One range per axis and entry is enough, the field
of an entry being a box.

An array of ranges has the rank of its value, but size 1 along every axis on which nothing changes:
a feature map of any size costs one line of numbers for each spatial axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from segzoo.errors import SegzooError
from segzoo.ops.convolution import as_written
from segzoo.reach.moves import MOVES
from segzoo.reach.rules import RULES
from segzoo.reach.values import Fixed, Line, Seen, Shape, Unknown, Value

__all__ = ["Reach", "called", "reach"]

LARGEST = 2**20  # entries of a constant that is worth knowing


@dataclasses.dataclass(frozen=True)
class Reach:
    """The input pixels the entries of a value see, along one axis of the image.

    All arrays have the rank of the value, and size 1 along the axes on which nothing changes. Where
    nothing is seen, `first > last`.

    Attributes:
        first: the first pixel seen.
        last: the last pixel seen.
        local_first: the first pixel seen, leaving out what passes through global pooling (a
            reduction that leaves no axis of places).
        local_last: the last one, likewise.
        cut: whether padding is seen too, through local paths: the local range would be larger
            inside a larger image.
    """

    first: np.ndarray
    last: np.ndarray
    local_first: np.ndarray
    local_last: np.ndarray
    cut: np.ndarray


def reach(function: Callable[..., Any], image: Any, *others: Any) -> Any:
    """Returns what the results of a function see of an image.

    Args:
        function: `(image, *others) -> ` any tree of arrays.
        image: `[B, *S, C]`, an array or a `jax.ShapeDtypeStruct`; only its shape is used.
        *others: further arguments, likewise.

    Returns:
        The same tree with, for each array, a tuple of one `Reach` for each of `*S`, or None where
        the array does not depend on the image.

    Raises:
        SegzooError: when a result depends on the image through an operation without a rule.
    """
    with as_written():
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(image, *others)
    arguments: list[Value] = [Fixed(tuple(var.aval.shape)) for var in closed.jaxpr.invars]
    arguments[0] = _image(tuple(image.shape))
    results = [_finish(value) for value in _run(closed, arguments)]
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


def _image(shape: Shape) -> Seen:
    lines = []
    for axis in range(1, len(shape) - 1):
        pixel = np.arange(shape[axis], dtype=np.int32)
        ranges = np.stack([pixel, -pixel, pixel, -pixel, 0 * pixel])
        wide = [1] * len(shape)
        wide[axis] = shape[axis]
        lines.append(Line(ranges.reshape(5, *wide), frozenset({axis})))
    return Seen(shape, tuple(lines))


def _finish(value: Value) -> tuple[Reach, ...] | None:
    if isinstance(value, Unknown):
        raise SegzooError(
            f"the receptive field cannot be followed through the operation {value.operation!r}."
        )
    if isinstance(value, Fixed):
        return None
    found = []
    for line in value.lines:
        first, last, local_first, local_last, cut = line.ranges
        found.append(Reach(first, -last, local_first, -local_last, cut < 0))
    return tuple(found)


def called(eqn: Any) -> core.ClosedJaxpr | None:
    """Returns the program an equation calls once with its own operands (`jit`, ...), or None."""
    for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
        inner = eqn.params.get(name)
        if isinstance(inner, core.Jaxpr):
            inner = core.ClosedJaxpr(inner, ())
        if isinstance(inner, core.ClosedJaxpr) and eqn.primitive.name not in ("scan", "while"):
            return inner if len(inner.jaxpr.invars) == len(eqn.invars) else None
    return None


def _run(closed: core.ClosedJaxpr, arguments: Sequence[Value]) -> list[Value]:
    known: dict[Any, Value] = {}

    def read(atom: Any) -> Value:
        return _constant(atom.val) if isinstance(atom, core.Literal) else known[atom]

    known.update(zip(closed.jaxpr.constvars, map(_constant, closed.consts), strict=True))
    known.update(zip(closed.jaxpr.invars, arguments, strict=True))
    for eqn in closed.jaxpr.eqns:
        known.update(zip(eqn.outvars, _step(eqn, [read(a) for a in eqn.invars]), strict=True))
    return [read(atom) for atom in closed.jaxpr.outvars]


def _constant(value: Any) -> Fixed:
    shape = tuple(np.shape(value))
    if math.prod(shape) > LARGEST or not isinstance(value, jax.Array | np.ndarray | np.generic):
        small = isinstance(value, bool | int | float)
        return Fixed(shape, np.asarray(value) if small else None)
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended):  # random keys
        return Fixed(shape)
    return Fixed(shape, np.asarray(value))


def _step(eqn: Any, operands: list[Value]) -> list[Value]:
    shapes = [tuple(getattr(var.aval, "shape", ())) for var in eqn.outvars]
    fixed = [value for value in operands if isinstance(value, Fixed)]
    constant = len(fixed) == len(operands) and all(value.value is not None for value in fixed)
    name = eqn.primitive.name
    if len(fixed) == len(operands) and not constant:
        return _step_fixed(eqn, fixed, shapes)
    inner = called(eqn)
    if inner is not None:
        return _run(inner, operands)
    if constant:
        if max(map(math.prod, shapes), default=0) > LARGEST or eqn.effects:
            return _step_fixed(eqn, fixed, shapes)
        values = [
            jax.numpy.asarray(value.value, atom.aval.dtype)
            for value, atom in zip(fixed, eqn.invars, strict=True)
        ]
        results = eqn.primitive.bind(*values, **eqn.params)
        return [_constant(r) for r in (results if eqn.primitive.multiple_results else [results])]
    if any(isinstance(value, Unknown) for value in operands):
        lost = next(value for value in operands if isinstance(value, Unknown))
        return [Unknown(shape, lost.operation) for shape in shapes]
    rule = RULES.get(name)
    results = rule(eqn, operands, shapes) if rule else None
    if results is None:
        return [Unknown(shape, name) for shape in shapes]
    return results


def _step_fixed(eqn: Any, operands: list[Fixed], shapes: list[Shape]) -> list[Value]:
    """Follows the zeros of a kernel that is not known itself, as far as they are moved about."""
    name = eqn.primitive.name
    masks = [value.nonzero for value in operands]
    if all(mask is None for mask in masks) and name != "pad":
        return [Fixed(shape) for shape in shapes]
    shape = shapes[0]
    if name in ("convert_element_type", "copy", "stop_gradient", "neg"):
        return [Fixed(shape, mask=masks[0])]
    if name == "mul":
        wide = [
            np.ones((1,) * (1 + len(shape)), bool) if m is None else m.reshape(1, *m.shape[1:])
            for m in masks
        ]
        if all(m.ndim == 1 + len(shape) for m in wide):
            return [Fixed(shape, mask=np.logical_and(*wide))]
    if name in MOVES:
        move, _ = MOVES[name](eqn.params, operands[0].shape, shape, operands[1:])
        mask = np.ones((1,) * (1 + len(operands[0].shape)), bool) if masks[0] is None else masks[0]
        if name == "pad":
            if operands[1].value is None or np.any(operands[1].value != 0):
                return [Fixed(shape)]
            mask = np.broadcast_to(mask, (1, *operands[0].shape))
        if move is not None:
            none = np.array([False])
            return [Fixed(shape, mask=move(mask, none, none))]
    return [Fixed(shape) for shape in shapes]
