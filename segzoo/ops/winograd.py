"""Convolution along an axis with half the products: Winograd's algorithm.

A window of three rows takes 12 products for four rows of the result. Here six sums of rows are
multiplied instead by six sums of the kernel's rows, and what comes out is added up to the four:
the identity of polynomials that are evaluated at six points, multiplied there and interpolated
(Winograd, "Arithmetic complexity of computations", 1980; Lavin & Gray 2016, arXiv:1509.09308).
Along one axis with these points rounding errors are one and a half times a plain convolution's
(Barabasz et al. 2020, arXiv:1803.10986, on the choice of points).

    y = A^T ((G k) * (B^T x)),    dk = G^T ((A dy) * (B^T x))

`*` is, point by point, whatever is to be done along the other axes: a convolution along the rows,
or one of whole slices. The axis is the first one after the batch, so that what is added up lies in
memory as it is needed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.ops.order import after, once
from segzoo.ops.windows import Numbers, Pairs, pad, padded_size, places, sum_over_blocks

Array = jax.Array

TAPS = 3  # rows of the kernel
ROWS = 4  # rows of the result that are computed together
_POINTS = (0.0, 1.0, -1.0, 0.5, -2.0)  # and infinity
# It pays where so large a share of the rows computed is wanted.
_WANTED = 0.7


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A `[6, 4]`, G `[6, 3]` and B^T `[6, 6]` of Toom and Cook for these points."""
    points = np.array(_POINTS)
    others = [np.delete(points, i) for i in range(len(points))]
    powers = points[:, None] ** np.arange(ROWS)
    scales = [np.prod(point - rest) for point, rest in zip(points, others, strict=True)]
    a = np.vstack([powers, np.eye(ROWS)[-1]])
    g = np.vstack([powers[:, :TAPS] / np.array(scales)[:, None], np.eye(TAPS)[-1]])
    # Coefficients of the polynomials with these zeros, that of the lowest power first.
    b = [np.append(np.poly(rest)[::-1], 0.0) for rest in others]
    return a, g, np.vstack([*b, np.poly(points)[::-1]])


_A, _G, _B = _transforms()


def suits_axis(dtype: object, taps: int, height: int, strides: Numbers, dilation: Numbers) -> bool:
    """Whether a convolution can be computed so, and without too many rows in vain.

    Args:
        dtype: of the image.
        taps: rows of the kernel.
        height: rows of the result.
        strides: one number per spatial axis.
        dilation: pixels between the taps of the kernel, one number per spatial axis.
    """
    if dtype != jnp.float32 or taps != TAPS or max(strides) > 1:
        return False
    group = ROWS * dilation[0]
    return height >= _WANTED * _groups(height, dilation[0]) * group


def convolve_axis(
    x: Array,
    kernel: Any,
    pads: Pairs,
    dilation: int,
    along: Callable[[Array, Any], Array],
    width: int | None = None,
    *,
    together: bool = False,
    as_array: bool,
) -> Array:
    """Convolves along the first spatial axis, and as told along the others.

    Args:
        x: `[B, N, ...]`, float32.
        kernel: `[3, ...]`, or a tree of such arrays.
        pads: zeros before and after, per spatial axis.
        dilation: rows between the taps along this axis.
        along: what a plain convolution would do with a row and a row of the kernel: of
            `[B, q, dilation, ...]` and `[...]`, linear in both, it leaves the first three axes.
        width: how much of the second spatial axis of that is wanted, if not all.
        together: whether the six points are an axis of one batched `along`, which is far less code
            to compile. Else they come one after the other, which takes less memory.
        as_array: whether what comes out is to be added up `once` only. Else XLA would in training
            keep the six parts, half as large again, until the gradient of what follows.

    Returns:
        `[B, N', width, ...]`.
    """
    (height,) = places(padded_size(x.shape[1:2], pads[:1]), (TAPS,), (1,), (dilation,))
    if as_array:  # not before the kernel, which waits for its own gradient
        x = after(x, jax.tree.leaves(kernel)[0])
    sums = _sums(_in_groups(x, pads, dilation, height))

    def part(seen: Array, taps: Any) -> Array:
        y = along(seen, taps)
        return y.reshape(-1, *y.shape[2:])  # [B * q, dilation, ...]

    parts: Sequence[Array] | Array
    if together:
        # The kernel's sums are larger than the kernel: none before there is use for them.
        weights = after(jnp.asarray(_G, x.dtype), x)
        parts = jax.vmap(part)(jnp.stack(sums), jax.tree.map(lambda k: _times(weights, k), kernel))
    else:
        parts = []
        for seen, weights in zip(sums, _G, strict=True):
            taps = jax.tree.map(lambda k, weights=weights: _weighted(weights, list(k)), kernel)
            parts.append(part(_in_turn(seen, parts), taps))
    y = once(_added_up, parts, width) if as_array else _added_up(parts, width)
    return y.reshape(len(x), -1, *y.shape[2:])[:, :height]


def kernel_gradient_axis(
    x: Array,
    cotangent: Array,
    pads: Pairs,
    dilation: int,
    along: Callable[[Array, Array], Any],
    pixels: float | None = None,
) -> Any:
    """The gradient of `convolve_axis` by its kernel.

    Args:
        x: `[B, N, ...]`, float32.
        cotangent: `[B, N', ...]`.
        pads: zeros before and after, per spatial axis.
        dilation: rows between the taps along this axis.
        along: the gradient along the others by a row of the kernel: of a sum of rows of `x` and one
            of the cotangent's, each `[B, q, dilation, ...]`.
        pixels: about how many of the cotangent's are taken at a time, in blocks of which a batched
            `along` computes the six points at once. If none, the six come one after the other.

    Returns:
        `[3, ...]`, one for each row of the kernel.
    """
    batch, height = cotangent.shape[:2]
    group, groups = ROWS * dilation, _groups(height, dilation)
    rest = [(0, 0)] * (cotangent.ndim - 3)
    met = pad(cotangent, ((0, groups * group - height), *rest))
    met = met.reshape(batch, groups, ROWS, dilation, *met.shape[2:])
    seen = _in_groups(x, pads, dilation, height)
    if pixels is not None:

        def block(seen: Array, met: Array) -> Any:
            return jax.vmap(along)(jnp.stack(_sums(seen)), jnp.stack(_of_cotangent(met)))

        none = ((0, 0),) * (seen.ndim - 2)
        total = sum_over_blocks(block, seen, none, met, 1, 2, pixels)
        return jax.tree.map(functools.partial(_times, jnp.asarray(_G.T, x.dtype)), total)
    parts: list[Array] = []
    for row, met_row in zip(_sums(seen), _of_cotangent(met), strict=True):
        parts.append(along(_in_turn(row, parts), _in_turn(met_row, parts)))
    return jnp.stack([_weighted(weights, parts) for weights in _G.T])


def _in_turn(x: Array, parts: Sequence[Array]) -> Array:
    """Not added up before the last of the parts is there: six of them are larger than the map."""
    return after(x, parts[-1]) if parts else x


def _added_up(parts: Sequence[Array] | Array, width: int | None) -> Array:
    """A^T: six `[P, dilation, W, ...] -> [P, 4 * dilation, width, ...]`."""
    wanted = [part[:, :, :width] for part in parts]
    return jnp.concatenate([_weighted(weights, wanted) for weights in _A.T], axis=1)


def _groups(height: int, dilation: int) -> int:
    """How often that many rows are computed together."""
    return -(-height // (ROWS * dilation))


def _in_groups(x: Array, pads: Pairs, dilation: int, height: int) -> Array:
    """`[B, q + 1, 4, dilation, ...]`: rows that lie `dilation` apart belong together.

    Two neighbouring groups have all that q groups of `4 * dilation` rows of the result need.
    """
    (before, _), *sides = pads
    group, groups = ROWS * dilation, _groups(height, dilation)
    x = pad(x, ((before, (groups + 1) * group - before - x.shape[1]), *sides))
    return x.reshape(len(x), groups + 1, ROWS, dilation, *x.shape[2:])


def _sums(x: Array) -> list[Array]:
    """B^T x: `[B, q + 1, 4, dilation, ...]` -> six `[B, q, dilation, ...]`."""
    rows = []
    for row in range(ROWS + TAPS - 1):
        later, place = divmod(row, ROWS)
        rows.append(x[:, later : x.shape[1] - 1 + later, place])
    return [_weighted(weights, rows) for weights in _B]


def _of_cotangent(met: Array) -> list[Array]:
    """A dy: `[B, q, 4, dilation, ...]` -> six `[B, q, dilation, ...]`."""
    rows = [met[:, :, row] for row in range(ROWS)]
    return [_weighted(weights, rows) for weights in _A]


def _weighted(weights: Sequence[float], arrays: Sequence[Array]) -> Array:
    """The sum of arrays times weights, many of which are 0 or 1."""
    terms = (a if w == 1 else a * float(w) for w, a in zip(weights, arrays, strict=True) if w)
    return functools.reduce(jnp.add, terms)


def _times(matrix: Array, arrays: Array) -> Array:
    """The same for each row of a matrix, as a product: stacking large sums is slower."""
    return jnp.tensordot(matrix, arrays, 1, precision="highest")
