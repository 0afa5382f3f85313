"""Gaussian kernels between all pixels of an image: exact or on a lattice, normalised."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from segzoo.ops.permutohedral import Lattice

Array = jax.Array
Normalization = Literal["symmetric", "before", "after", "none"]

_ROWS = 256  # rows of the exact kernel matrix held at a time


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["features", "before", "after"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Exact:
    """A Gaussian kernel applied as it stands, in time quadratic in the pixels.

    Attributes:
        features: float32 `[N, d]`, in standard deviations.
        before: a factor, or `[N]`, multiplied before filtering.
        after: likewise after it.
    """

    features: Array
    before: Array | float = 1.0
    after: Array | float = 1.0

    def __call__(self, values: Array) -> Array:
        """Filters values `[N, K]`; differentiable with respect to them."""
        before, after = jnp.asarray(self.before), jnp.asarray(self.after)
        return after[..., None] * exact(self.features, before[..., None] * values)

    def scaled(self, before: Array | float, after: Array | float) -> Exact:
        """Returns the filter of `before * values`, times `after`, each one factor per pixel."""
        return Exact(self.features, self.before * before, self.after * after)


Kernel = Lattice | Exact
"""A linear map of `[N, K]`, called; `scaled` normalises it."""


def normalized(kernel: Kernel, points: int, normalization: Normalization) -> Kernel:
    """Divides a kernel of N points by its row sums; see `DenseCRF.normalization`."""
    if normalization == "none":
        return kernel
    sums = kernel(jnp.ones((points, 1), jnp.float32))[:, 0]
    if normalization == "symmetric":
        return kernel.scaled(lax.rsqrt(sums), lax.rsqrt(sums))
    return (
        kernel.scaled(1 / sums, 1.0) if normalization == "before" else kernel.scaled(1.0, 1 / sums)
    )


@jax.custom_vjp
def exact(features: Array, values: Array) -> Array:
    """Filters exactly: `y_i = sum_j exp(-|f_i - f_j|^2 / 2) x_j`, blocks of rows at a time.

    The kernel matrix is symmetric, so it is its own gradient. The features are a constant.

    Args:
        features: float32 `[N, d]`, in standard deviations.
        values: float32 `[N, K]`.

    Returns:
        float32 `[N, K]`.
    """
    points, dims = features.shape
    size = min(_ROWS, points)
    blocks = -(-points // size)
    padded = jnp.pad(features, ((0, blocks * size - points), (0, 0)))

    def block(rows: Array) -> Array:
        # Not |a|^2 + |b|^2 - 2ab: in float32 that is wrong where the features are large.
        distance = sum(jnp.square(rows[:, None, i] - features[:, i]) for i in range(dims))
        weights = jnp.exp(-0.5 * jnp.asarray(distance))
        return jnp.matmul(weights, values, precision=lax.Precision.HIGHEST)

    filtered = lax.map(block, padded.reshape(blocks, size, dims))
    return filtered.reshape(blocks * size, -1)[:points]


def _forward(features: Array, values: Array) -> tuple[Array, Array]:
    return exact(features, values), features


def _backward(features: Array, cotangent: Array) -> tuple[None, Array]:
    return None, exact(features, cotangent)


exact.defvjp(_forward, _backward)


def positions(size: Sequence[int], width: float) -> np.ndarray:
    """Returns the features of the smoothness kernel, float32 `[N, axes]`, the last axis first.

    Args:
        size: `*S`; N is their product.
        width: the standard deviation in pixels.
    """
    grid = np.indices(size, np.float32).reshape(len(size), -1)
    return np.ascontiguousarray(grid[::-1].T) / np.float32(width)


def appearance(image: Array | np.ndarray, width: float, color: float) -> Array | np.ndarray:
    """Returns the features of the appearance kernel, float32 `[N, axes + C]`.

    Args:
        image: `[*S, C]`, 0..255, any dtype.
        width: the standard deviation in position, in pixels.
        color: the standard deviation in colour.

    Returns:
        A numpy array of a numpy array.
    """
    numpy = np if isinstance(image, np.ndarray) else jnp
    colors = image.reshape(-1, image.shape[-1]).astype(np.float32) / np.float32(color)
    return numpy.concatenate([positions(image.shape[:-1], width), colors], axis=1)
