"""Pictures and volumes at places between their pixels, on the device: sampling, smooth bending."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

Length = int | jax.Array


def sample(
    arrays: Mapping[str, jax.Array],
    places: Sequence[jax.Array],
    extent: tuple[Length, ...],
    outside: Mapping[str, jax.Array | np.ndarray | float] | None,
    linear: Container[str],
) -> dict[str, jax.Array]:
    """Samples arrays at one grid of places.

    Args:
        arrays: `[*S, ...]` by name.
        places: the coordinate in pixels along each axis, one array of the result's size for each.
        extent: how far the arrays are filled along each axis; what lies further is padding.
        outside: what stands beyond, by name, `[...]` or a scalar; None for the mirror image.
        linear: the names of those interpolated linearly; of the others the nearest pixel is taken.

    Returns:
        The arrays at these places, with their axes after `*S`.
    """
    size = next(iter(arrays.values())).shape[: len(places)]
    if outside is None:
        places = [_reflect(x, n) for x, n in zip(places, extent, strict=True)]
    else:
        within = [(x >= -0.5) & (x < n - 0.5) for x, n in zip(places, extent, strict=True)]
        inside = math.prod(within[1:], start=within[0])
        places = [jnp.clip(x, 0, n - 1) for x, n in zip(places, extent, strict=True)]

    nearest = _flat_index([jnp.floor(x + 0.5).astype(jnp.int32) for x in places], size)
    lower = [jnp.floor(x).astype(jnp.int32) for x in places]
    fractions = [x - low for x, low in zip(places, lower, strict=True)]
    corners = []
    for corner in itertools.product((0, 1), repeat=len(size)):
        index = _flat_index([low + up for low, up in zip(lower, corner, strict=True)], size)
        shares = [f if up else 1.0 - f for f, up in zip(fractions, corner, strict=True)]
        corners.append((index, math.prod(shares[1:], start=shares[0])))

    result = {}
    for name, array in arrays.items():
        channels = array.shape[len(size) :]
        flat = array.reshape(-1, *channels)
        if name in linear:
            terms = [
                share.reshape(*share.shape, *[1] * len(channels)) * _take(flat, index)
                for index, share in corners
            ]
            moved = sum(terms[1:], start=terms[0])
        else:
            moved = _take(flat, nearest)
        if outside is not None:
            mask = inside.reshape(*inside.shape, *[1] * len(channels))
            moved = jnp.where(mask, moved, jnp.asarray(outside[name], moved.dtype))
        result[name] = moved
    return result


def bend(key: jax.Array, size: tuple[int, ...], sigma: float, points: int) -> jax.Array:
    """Returns smooth displacements in pixels, Gaussian on a coarse grid, cubic between its points.

    Args:
        key: draws them.
        size: `*S`, in pixels.
        sigma: their standard deviation on the grid, in pixels.
        points: of the grid along each axis, the borders included.

    Returns:
        float32 `[len(S), *S]`.
    """
    field = sigma * jax.random.normal(key, (len(size), *[points] * len(size)))
    for axis, n in enumerate(size, start=1):
        weights = jnp.asarray(cubic_weights(n, points))
        # Full precision: the matrix units of a GPU would round places in the picture.
        field = jnp.tensordot(field, weights, axes=(axis, 1), precision=jax.lax.Precision.HIGHEST)
        field = jnp.moveaxis(field, -1, axis)
    return field


def cubic_weights(n: int, points: int) -> np.ndarray:
    """Returns the matrix `[n, points]` from points to pixels of cubic convolution (Keys, a = -1/2).

    R. Keys, "Cubic Convolution Interpolation for Digital Image Processing", 1981. The first and the
    last point lie on the first and the last pixel; they repeat beyond.
    """
    x = np.linspace(0.0, points - 1.0, n) if n > 1 else np.array([(points - 1) / 2])
    weights = np.zeros((n, points), np.float32)
    for step in range(-1, 3):
        at = np.floor(x).astype(int) + step
        t = np.abs(x - at)
        near = 1.5 * t**3 - 2.5 * t**2 + 1.0
        far = -0.5 * t**3 + 2.5 * t**2 - 4.0 * t + 2.0
        value = np.where(t <= 1, near, np.where(t < 2, far, 0.0))
        np.add.at(weights, (np.arange(n), np.clip(at, 0, points - 1)), value)
    return weights


def _reflect(x: jax.Array, n: Length) -> jax.Array:
    """Mirrors places about the middles of the first and the last of `n` pixels into 0..n-1."""
    if isinstance(n, int) and n == 1:
        return jnp.zeros_like(x)
    x = jnp.mod(x, 2.0 * (n - 1))
    return jnp.minimum(x, 2.0 * (n - 1) - x)


def _flat_index(indices: list[jax.Array], size: tuple[int, ...]) -> jax.Array:
    """Row-major index of pixels; one step beyond the end (of share 0) stays on the last pixel."""
    flat = jnp.int32(0)
    for index, n in zip(indices, size, strict=True):
        flat = flat * n + jnp.minimum(index, n - 1)
    return flat


def _take(flat: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of `flat` by indices that are known to lie inside: the fastest gather on CPU."""
    return flat.at[index].get(mode="promise_in_bounds")
