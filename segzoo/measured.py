"""Feature maps that many layers normalise, and their batch statistics.

In a dense block every layer normalises the maps of all layers before it. Their statistics are the
same each time: measured where a map is made, they cost one pass over it instead of one in every
layer, and there is no need to lay all maps side by side to measure them.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from segzoo.layers import NormKind
from segzoo.ops.batch_norm import batch_statistics

Array = jax.Array


class Measured(NamedTuple):
    """Maps and what `segzoo.layers.Norm` needs to know of them.

    Attributes:
        x: `[B, *S, C]`.
        statistics: mean and variance of the batch, `[C]` each; None where nobody asks for them.
    """

    x: Array
    statistics: tuple[Array, Array] | None = None


def measure(x: Array, *, norm: NormKind, axis_name: str | None, train: bool) -> Measured:
    """Measures maps, where what reads them is batch norm in training.

    Args:
        x: `[B, *S, C]`.
        norm: of the layers that read them.
        axis_name: the mapped axis over whose devices statistics are averaged.
        train: as for `segzoo.layers.Norm`.
    """
    return Measured(x, batch_statistics(x, axis_name) if train and norm == "batch" else None)


def side_by_side(*maps: Measured) -> Measured:
    """Concatenates maps of one size, `[B, *S, C0], [B, *S, C1], ... -> [B, *S, C0 + C1 + ...]`."""
    x = jnp.concatenate([m.x for m in maps], axis=-1)
    known = [m.statistics for m in maps if m.statistics is not None]
    if len(known) < len(maps):
        return Measured(x)
    # Two arrays, not one: read by rows, it would be taken apart at every pixel.
    mean, var = (jnp.concatenate(parts) for parts in zip(*known, strict=True))
    return Measured(x, (mean, var))
