"""Spatial operations: pad, crop, resize.

Everything works on channels-last arrays `[B, *S, C]` with any number of spatial axes. Where the
gradient of the textbook form is slow on CPU (interpolation: by factors of 10 and more), an
algebraically equal form takes its place; the tests hold values and gradients of both together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.layout import Layout, with_layout_constraint

from segzoo.ops.windows import crop

Array = jax.Array


def pad_to_multiple(x: Array, multiple: int | Sequence[int]) -> Array:
    """Pads the spatial axes at their ends up to the next multiple, by mirroring.

    Mirroring is how U-Net extrapolates missing context (Ronneberger et al. 2015, Figure 2). Padding
    at the end alone leaves pixel 0 on the same place of every pooling grid. Any size of at least 1
    works, also one smaller than the padding.

    Args:
        x: `[B, *S, C]`.
        multiple: one number, or one per spatial axis.

    Returns:
        `[B, *S', C]`, `S'` the smallest multiples that cover `S`; `x` itself if nothing is missing.
    """
    rank = x.ndim - 2
    multiples = (multiple,) * rank if isinstance(multiple, int) else tuple(multiple)
    pads = [-size % m for size, m in zip(x.shape[1:-1], multiples, strict=True)]
    if not any(pads):
        return x
    return jnp.pad(x, [(0, 0), *((0, pad) for pad in pads), (0, 0)], mode="symmetric")


def pad_to_grid(x: Array, stride: int) -> Array:
    """Pads the spatial axes with zeros at their ends until a grid of every `stride`-th pixel fits.

    Of `stride * k + 1` pixels the first and the last lie on the grid. Convolutions and pools of odd
    kernels with as many zeros on both sides keep their values there, and interpolation between
    these (`resize` with `align_corners`) goes back to the pixels they came from (Chen et al. 2015,
    arXiv:1412.7062, whose released networks fill images up with their mean to 321 or 513 pixels).

    Args:
        x: `[B, *S, C]`.
        stride: pixels from one point of the grid to the next.

    Returns:
        `[B, *S', C]`, `S'` the smallest sizes of that form that cover `S`.
    """
    pads = [(1 - size) % stride for size in x.shape[1:-1]]
    return jnp.pad(x, [(0, 0), *((0, pad) for pad in pads), (0, 0)])


def crop_to(x: Array, size: Sequence[int]) -> Array:
    """Keeps the first `size` of each spatial axis: the inverse of the pads at their ends."""
    return crop(x, (0,) * len(size), size)


def center_crop(x: Array, size: Sequence[int]) -> Array:
    """Keeps the central `size` of each spatial axis, the extra pixel of odd margins at the end."""
    starts = [(n - m) // 2 for n, m in zip(x.shape[1:-1], size, strict=True)]
    return crop(x, starts, size)


def resize(x: Array, size: Sequence[int], *, align_corners: bool = False) -> Array:
    """Resizes the spatial axes by (bi-, tri-) linear interpolation, one axis after the other.

    Pixel centres lie at half-integers, and borders are continued with the edge value, as in
    `jax.image.resize(..., "linear", antialias=False)`. There is no antialiasing when shrinking.
    Reverse-mode differentiation only.

    Args:
        x: `[B, *S, C]`, floating.
        size: the new sizes of the spatial axes.
        align_corners: put the centres of the first and last pixels of input and output onto each
            other, instead of the outer borders of the images.

    Returns:
        `[B, *size, C]` in the dtype of `x`.
    """
    return _linear_map(
        x, size, functools.partial(_interpolation_matrix, align_corners=align_corners)
    )


@functools.lru_cache(maxsize=256)
def _interpolation_matrix(n_in: int, n_out: int, align_corners: bool) -> np.ndarray:
    """`[n_out, n_in]` weights of linear interpolation along one axis; each row sums to 1."""
    place = np.arange(n_out, dtype=np.float64)
    if align_corners:
        source = place * ((n_in - 1) / max(n_out - 1, 1))
    else:
        source = (place + 0.5) * (n_in / n_out) - 0.5
    source = np.clip(source, 0.0, n_in - 1)
    # Hat functions around the source pixels: zero beyond a distance of one.
    distance = np.abs(source[:, None] - np.arange(n_in))
    return np.maximum(0.0, 1.0 - distance)


def resize_nearest(x: Array, size: Sequence[int]) -> Array:
    """Resizes the spatial axes by repeating pixels, or leaving some out.

    Along an axis, pixel i of m is pixel floor(i n / m) of n, as in PyTorch's mode "nearest".
    Reverse-mode differentiation only.

    Args:
        x: `[B, *S, C]`, floating.
        size: the new sizes of the spatial axes.

    Returns:
        `[B, *size, C]` in the dtype of `x`.
    """
    return _linear_map(x, size, _choosing_matrix)


@functools.lru_cache(maxsize=256)
def _choosing_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`[n_out, n_in]` with a single 1 in each row, at the pixel it takes."""
    source = np.arange(n_out) * n_in // n_out
    return (source[:, None] == np.arange(n_in)).astype(np.float64)


def adaptive_avg_pool(x: Array, size: Sequence[int]) -> Array:
    """Averages the spatial axes into `size` bins each, for any input size, as PyTorch does.

    Along an axis of n pixels, bin i of m holds the pixels from floor(i n / m) up to, but without,
    ceil((i + 1) n / m): bins share border pixels where m does not divide n, and repeat pixels where
    it is larger. Sums are in float32. Reverse-mode differentiation only.

    Args:
        x: `[B, *S, C]`, floating.
        size: the new sizes of the spatial axes.

    Returns:
        `[B, *size, C]` in the dtype of `x`.
    """
    return _linear_map(x.astype(jnp.float32), size, _averaging_matrix).astype(x.dtype)


@functools.lru_cache(maxsize=256)
def _averaging_matrix(n_in: int, n_out: int) -> np.ndarray:
    """`[n_out, n_in]` weights of the means over bins along one axis; each row sums to 1."""
    index = np.arange(n_out)[:, None]
    place = np.arange(n_in)
    inside = (index * n_in // n_out <= place) & (place < -(-(index + 1) * n_in // n_out))
    return inside / inside.sum(axis=1, keepdims=True)


def _linear_map(x: Array, size: Sequence[int], matrix: Callable[[int, int], np.ndarray]) -> Array:
    """Multiplies spatial axes whose size changes by the `[n_out, n_in]` matrices of their sizes."""
    axes = enumerate(zip(x.shape[1:-1], size, strict=True), start=1)
    matrices = {axis: matrix(*sizes) for axis, sizes in axes if sizes[0] != sizes[1]}
    return _multiplied_by(matrices)(x) if matrices else x


def _multiplied_by(matrices: Mapping[int, np.ndarray]) -> Callable[[Array], Array]:
    """The products of constant matrices with axes; its gradient is that of the transposed ones.

    Left to itself, differentiation would turn the gathers of `_product` into scatters, which are
    slow; the transposed products are gathers again.
    """

    @jax.custom_vjp
    def apply(x: Array) -> Array:
        # Rows first, in the gradient too: they are far from each other in memory, and gathered as a
        # whole.
        for axis, matrix in matrices.items():
            x = _product(matrix, x, axis)
        if jax.default_backend() == "cpu":
            # XLA gathers into an array whose first axis is the gathered one. It likes to leave that
            # order to what follows, which then goes through memory in large steps, or copies it.
            x = with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
        return x

    def forward(x: Array) -> tuple[Array, None]:
        return apply(x), None

    def backward(_: None, cotangent: Array) -> tuple[Array]:
        back = {axis: matrix.T for axis, matrix in matrices.items()}
        return (_multiplied_by(back)(cotangent),)

    apply.defvjp(forward, backward)
    return apply


def _product(matrix: np.ndarray, x: Array, axis: int) -> Array:
    """Multiplies along `axis`, by as many gathers as a row has entries when those are few."""
    entries = int((matrix != 0).sum(axis=1).max())
    if entries > 64:
        weights = jnp.asarray(matrix, x.dtype)
        y = jnp.tensordot(weights, x, axes=(1, axis), precision=lax.Precision.HIGHEST)
        return jnp.moveaxis(y, 0, axis)
    wide = jnp.promote_types(x.dtype, jnp.float32)
    places = np.argsort(matrix == 0, axis=1, kind="stable")[:, :entries]
    weights = jnp.asarray(np.take_along_axis(matrix, places, axis=1), wide)
    weights = jnp.expand_dims(weights.T, [1 + i for i in range(x.ndim) if i != axis])
    terms = (jnp.take(x, places[:, j], axis=axis).astype(wide) * weights[j] for j in range(entries))
    return functools.reduce(jnp.add, terms).astype(x.dtype)
