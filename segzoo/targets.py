"""What an instance model learns from: boxes, read off the objects' pixels on the device.

Augmentation moves pixels; the boxes around what is left of an object come afterwards, so they are
always right, and an object of which nothing is left is none.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

Array = jax.Array


def targets(example: Mapping[str, Array]) -> dict[str, Array]:
    """Returns the targets of an instance model, see "Instance model" in docs/architecture.md.

    Args:
        example: a batch: `classes` int `[B, P]`, `valid` bool `[B, P]`, optionally `crowd` bool
            `[B, P]`, and the objects' pixels as `instances` int `[B, H, W]`, m + 1 where object m
            is, or as `masks` `[B, P, H, W]`, 0 elsewhere.
    """
    masks = example["masks"] if "masks" in example else example["instances"]
    rows, columns = occupied(masks, example["classes"].shape[1])
    here = {name: example[name] for name in ("classes", "crowd") if name in example}
    return {
        **here,
        "masks": masks,
        "boxes": jnp.stack([_first(rows), _first(columns), _last(rows), _last(columns)], axis=-1),
        "valid": example["valid"] & jnp.any(rows, axis=-1),
    }


def occupied(masks: Array, places: int) -> tuple[Array, Array]:
    """Returns which rows and which columns of an image have a pixel of each object.

    Args:
        masks: `[B, P, H, W]`, or one int map `[B, H, W]`, m + 1 where object m is.
        places: P.

    Returns:
        bool `[B, P, H]` and `[B, P, W]`.
    """
    if masks.ndim == 4:
        return jnp.any(masks != 0, axis=3), jnp.any(masks != 0, axis=2)

    def of_image(ids: Array) -> tuple[Array, Array]:
        height, width = ids.shape
        y, x = jnp.mgrid[:height, :width]
        number = ids - 1  # of no object -1, which must not count from the end
        number = jnp.where(number < 0, places, number)
        rows = jnp.zeros((places, height), bool).at[number, y].set(True, mode="drop")
        columns = jnp.zeros((places, width), bool).at[number, x].set(True, mode="drop")
        return rows, columns

    found: tuple[Array, Array] = jax.vmap(of_image)(masks)
    return found


def _first(occupied: Array) -> Array:
    """The first of the pixels along the last axis, 0 where there is none."""
    return jnp.argmax(occupied, axis=-1).astype(jnp.float32)


def _last(occupied: Array) -> Array:
    """One past the last of the pixels along the last axis, 0 where there is none."""
    past = occupied.shape[-1] - jnp.argmax(occupied[..., ::-1], axis=-1)
    return jnp.where(jnp.any(occupied, axis=-1), past, 0).astype(jnp.float32)
