"""Gaussian filtering in many dimensions on the permutohedral lattice (Adams, Baek & Davis 2010).

    y_i = sum_j exp(-|f_i - f_j|^2 / 2) x_j        f_i in R^d; time and memory linear in the points

Every point lies in a simplex of the lattice A*_d and spreads its value over the d + 1 vertices of
the simplex ("splat"); the vertices are blurred along each of the d + 1 axes of the lattice; and
each point reads its value back from its simplex ("slice"). The lattice depends on the features
alone: it is built once, and then filters any number of values.

All shapes are static. The vertices are found with a hash table whose insertions run side by side,
in rounds. Values are rows `[V, K]`, moved whole by gathers; loops over colours and axes are scans,
because XLA would otherwise fuse their steps and compute the gathered rows over and over.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array

_BLOCK = 2048  # points whose simplices are found at a time: what stays in a core's cache
_MIX = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1], np.uint32)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "weights", "keys", "number", "first", "table", "count"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Simplices:
    """The simplex of every point, and a hash table of all vertices.

    The d + 1 vertices of a simplex differ in colour: the remainder of their coordinates modulo
    d + 1. An entry is one vertex of one point; E is at least (d + 1) N.

    Attributes:
        rows: int32 `[d + 1, N]`, the number of each point's vertex of each colour.
        weights: float32 `[d + 1, N]`, barycentric coordinates; they sum to 1.
        keys: int32 `[E, d]`, the coordinates of each entry's vertex but the last, which makes their
            sum 0.
        number: int32 `[E]`, the number of each entry's vertex.
        first: bool `[E]`, whether it is the vertex's first entry: the one in the table.
        table: int32 `[T]`, the entry that owns each slot, or E for none.
        count: int32 `[]`, the number of vertices.
    """

    rows: Array
    weights: Array
    keys: Array
    number: Array
    first: Array
    table: Array
    count: Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["rows", "inward", "outward", "after", "before", "overflow"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Lattice:
    """What filtering needs: rows and weights.

    Values on the lattice are `[V + 1, K]`, V the capacity. Row V stays 0 and stands for every
    vertex that does not exist.

    Attributes:
        rows: int32 `[d + 1, N]`, the rows of each point's vertices.
        inward: float32 `[d + 1, N]`, weights of the splat; NaN after an overflow.
        outward: float32 `[d + 1, N]`, weights of the slice.
        after: int32 `[d + 1, V + 1]`, the row of the next vertex along each axis.
        before: int32 `[d + 1, V + 1]`, the row of the previous one.
        overflow: bool `[]`, whether there are more vertices than the capacity.
    """

    rows: Array
    inward: Array
    outward: Array
    after: Array
    before: Array
    overflow: Array

    def __call__(self, values: Array) -> Array:
        """Filters values `[N, K]`; see `apply`."""
        return apply(self, values)

    def scaled(self, before: Array | float, after: Array | float) -> Lattice:
        """Returns the filter of `before * values`, times `after`, each one factor per point."""
        return dataclasses.replace(self, inward=self.inward * before, outward=self.outward * after)


def build(features: Array, capacity: int | None = None) -> Lattice:
    """Builds the lattice of features: `connect(locate(features), capacity)`.

    Args:
        features: float `[N, d]`, in units of the kernel's standard deviation along each axis.
        capacity: the most vertices there may be; by default (d + 1) N, which is always enough.
    """
    points, dims = features.shape
    return connect(locate(features), (dims + 1) * points if capacity is None else capacity)


def locate(features: Array) -> Simplices:
    """Finds the simplex of every point.

    Args:
        features: float `[N, d]`, finite and below about 10^6.

    Returns:
        The simplices; their `count` is the capacity that `connect` needs.
    """
    points, dims = features.shape
    # Blocks come first, then colours: so a block's vertices get numbers close to each other.
    size = min(_BLOCK, points)
    blocks = -(-points // size)
    padded = jnp.pad(features.astype(jnp.float32), ((0, blocks * size - points), (0, 0)), "edge")
    keys, weights = lax.map(_enclose, padded.reshape(blocks, size, dims))
    keys = keys.reshape(-1, dims)
    owner, table = _insert(keys)
    first = owner == jnp.arange(len(owner), dtype=jnp.int32)
    numbers = jnp.cumsum(first, dtype=jnp.int32) - 1

    def by_color(x: Array) -> Array:
        x = jnp.moveaxis(x.reshape(blocks, dims + 1, size), 0, 1)
        return x.reshape(dims + 1, blocks * size)[:, :points]

    number = _take(numbers, owner)
    return Simplices(
        rows=by_color(number),
        weights=by_color(weights),
        keys=keys,
        number=number,
        first=first,
        table=table,
        count=numbers[-1] + 1,
    )


def _enclose(features: Array) -> tuple[Array, Array]:
    """Returns the keys `[d + 1, n, d]` and weights `[d + 1, n]` of the points' vertices.

    Adams et al. 2010, section 3: lift the points onto the hyperplane of coordinates that sum to 0,
    round them to a vertex of colour 0, and sort what is left to find the simplex.
    """
    dims = features.shape[1]
    side = dims + 1
    lifted = jnp.matmul(_lift(dims), features.T, precision=lax.Precision.HIGHEST)
    nearest = jnp.round(lifted / side)
    left = lifted - nearest * side
    # The rank of a coordinate counts those with more left over; of equal ones the later.
    earlier = np.tri(side, k=-1, dtype=bool)[..., None]  # [i, j]: j before i
    ahead = (left[None] > left[:, None]) | (earlier & (left[None] == left[:, None]))
    rank = ahead.sum(1, dtype=jnp.int32)
    # Coordinates rounded too far, so that the sum is not 0, are those of extreme rank: turn back.
    rank = rank + nearest.sum(0).astype(jnp.int32)
    turn = jnp.where(rank < 0, 1, jnp.where(rank > dims, -1, 0))
    rank, vertex = rank + turn * side, nearest.astype(jnp.int32) + turn
    fraction = lifted / side - vertex
    colors = np.arange(side)[:, None, None]
    ascending = (fraction * (rank == dims - colors)).sum(1)
    weights = jnp.concatenate([1 + ascending[:1] - ascending[-1:], ascending[1:] - ascending[:-1]])
    keys = vertex * side + jnp.where(rank <= dims - colors, colors, colors - side)
    return jnp.moveaxis(keys[:, :dims], 1, 2), weights


def _lift(dims: int) -> np.ndarray:
    """The matrix `[d + 1, d]` onto the hyperplane, float32.

    Its orthogonal columns are scaled by (d + 1) sqrt(2 / 3), so that splat, blur and slice together
    have a standard deviation of 1 in the units of the features.
    """
    matrix = np.zeros((dims + 1, dims))
    for axis in range(dims):
        matrix[: axis + 1, axis] = 1
        matrix[axis + 1, axis] = -(axis + 1)
        matrix[:, axis] /= math.sqrt((axis + 1) * (axis + 2))
    return (matrix * (math.sqrt(2 / 3) * (dims + 1))).astype(np.float32)


# --- the hash table ------------------------------------------------------------------------------


def _insert(keys: Array) -> tuple[Array, Array]:
    """Puts all keys `[E, d]` into a hash table, side by side.

    In each round the keys still on their way claim their slot if it is free, and the first of them
    gets it. Those that find an equal key there have arrived; the others try their next slot. A slot
    never changes hands and equal keys try the same slots, so they meet.

    Returns:
        For each key the entry of the first equal one, int32 `[E]`, and the table.
    """
    count = len(keys)
    size = 2 ** math.ceil(math.log2(2 * count))  # at most half full
    entry = jnp.arange(count, dtype=jnp.int32)
    slot, step = _slots(keys, size)

    def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
        table, slot, owner, away = state
        free = away & (_take(table, slot) == count)
        table = table.at[jnp.where(free, slot, size)].min(entry, mode="drop")
        owner = jnp.where(away, _take(table, slot), owner)
        away = away & jnp.any(_take(keys, owner) != keys, axis=-1)
        return table, jnp.where(away, (slot + step) & (size - 1), slot), owner, away

    table, everyone = jnp.full(size, count, jnp.int32), jnp.ones(count, bool)
    state: tuple[Array, ...] = table, slot, entry, everyone
    table, _, owner, _ = lax.while_loop(lambda state: jnp.any(state[-1]), attempt, state)
    return owner, table


def _find(keys: Array, table: Array, wanted: Array, asked: Array) -> Array:
    """Returns the entries of the keys `wanted` `[..., d]` where `asked`, E where there is none."""
    count, size = len(keys), len(table)
    slot, step = _slots(wanted, size)

    def attempt(state: tuple[Array, ...]) -> tuple[Array, ...]:
        slot, entry, away = state
        owner = _take(table, slot)
        equal = jnp.all(keys.at[owner].get(mode="clip") == wanted, axis=-1) & (owner < count)
        entry = jnp.where(away & equal, owner, entry)
        return (slot + step) & (size - 1), entry, away & ~equal & (owner < count)

    state: tuple[Array, ...] = slot, jnp.full(slot.shape, count, jnp.int32), asked
    return lax.while_loop(lambda state: jnp.any(state[-1]), attempt, state)[1]


def _slots(keys: Array, size: int) -> tuple[Array, Array]:
    """Returns the first slot of each key, and the odd step to its next ones."""
    mixed = jnp.zeros(keys.shape[:-1], jnp.uint32)
    for axis in range(keys.shape[-1]):
        mixed = (mixed ^ keys[..., axis].astype(jnp.uint32)) * _MIX[axis % len(_MIX)]
        mixed = mixed ^ (mixed >> 15)
    step = (mixed * _MIX[0] >> 7) | 1
    return (mixed & (size - 1)).astype(jnp.int32), (step & (size - 1)).astype(jnp.int32)


def _take(array: Array, index: Array) -> Array:
    """`array[index]` along the first axis, for an index known to be inside."""
    return array.at[index].get(mode="promise_in_bounds")


# --- the lattice ---------------------------------------------------------------------------------


def connect(simplices: Simplices, capacity: int) -> Lattice:
    """Builds the lattice of located points.

    Args:
        simplices: from `locate`.
        capacity: rows for vertices, at least `simplices.count`. With less, `overflow` is True and
            whatever is filtered becomes NaN.
    """
    overflow = simplices.count > capacity
    rows = jnp.minimum(simplices.rows, capacity)
    after, before = _neighbors(simplices, capacity)
    inward = jnp.where(overflow, jnp.nan, simplices.weights)
    # Of a value on a vertex, the blur of all axes brings back 1 + 2^-d.
    outward = simplices.weights / (1 + 0.5 ** (len(rows) - 1))
    return Lattice(rows, inward, outward, after, before, overflow)


def _neighbors(simplices: Simplices, capacity: int) -> tuple[Array, Array]:
    """Returns the rows after and before each row along each axis, `[d + 1, V + 1]` both.

    A step along axis j takes d from coordinate j and adds 1 to the others.
    """
    keys = simplices.keys
    entries, dims = keys.shape
    colors = dims + 1
    place = jnp.where(simplices.first, simplices.number, capacity)
    owner = jnp.full(capacity, entries, jnp.int32)
    owner = owner.at[place].set(jnp.arange(entries, dtype=jnp.int32), mode="drop")
    owner = jnp.append(owner, jnp.int32(entries))
    exists = jnp.broadcast_to(owner < entries, (colors, capacity + 1))
    steps = 1 - colors * np.eye(colors, dims, dtype=np.int32)
    wanted = keys.at[owner].get(mode="clip") + steps[:, None]
    found = _find(keys, simplices.table, wanted, exists)
    number = simplices.number.at[found].get(mode="clip")
    after = jnp.where(found < entries, jnp.minimum(number, capacity), capacity)
    here = jnp.arange(capacity + 1, dtype=jnp.int32)
    before = jnp.full((colors, capacity + 1), capacity, jnp.int32)
    before = before.at[np.arange(colors)[:, None], after].set(here)
    return after, before.at[:, capacity].set(capacity)


# --- filtering -----------------------------------------------------------------------------------


@jax.custom_vjp
def apply(lattice: Lattice, values: Array) -> Array:
    """Filters values: splat, blur, slice.

    Differentiable with respect to `values`: the gradient goes through the transposed filter, which
    blurs along the axes in reverse order. The lattice is a constant.

    Args:
        lattice: of N points.
        values: float32 `[N, K]`.

    Returns:
        float32 `[N, K]`, the values under a Gaussian; NaN after an overflow.
    """
    return _filter(lattice, values, lattice.inward, lattice.outward)


def _filter(
    lattice: Lattice, values: Array, inward: Array, outward: Array, reverse: bool = False
) -> Array:
    def splat(nodes: Array, corner: tuple[Array, Array]) -> tuple[Array, None]:
        rows, weights = corner
        return nodes.at[rows].add(weights[:, None] * values, mode="promise_in_bounds"), None

    def blur(nodes: Array, axis: tuple[Array, Array]) -> tuple[Array, None]:
        after, before = axis
        return nodes + 0.5 * (_take(nodes, after) + _take(nodes, before)), None

    nodes = jnp.zeros((lattice.after.shape[1], values.shape[1]), values.dtype)
    nodes, _ = lax.scan(splat, nodes, (lattice.rows, inward))
    nodes, _ = lax.scan(blur, nodes, (lattice.after, lattice.before), reverse=reverse)
    corners = zip(lattice.rows, outward, strict=True)
    terms = (weights[:, None] * _take(nodes, rows) for rows, weights in corners)
    return functools.reduce(jnp.add, terms)


def _forward(lattice: Lattice, values: Array) -> tuple[Array, Lattice]:
    return apply(lattice, values), lattice


def _backward(lattice: Lattice, cotangent: Array) -> tuple[None, Array]:
    return None, _filter(lattice, cotangent, lattice.outward, lattice.inward, reverse=True)


apply.defvjp(_forward, _backward)
