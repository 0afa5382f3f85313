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


class DenseMaps:
    """The maps that a dense block has so far: its input, and those that its layers made.

    In training they are laid side by side anew for each layer: of pieces that are made once and
    read by the gradients of all later layers XLA makes the fastest program. Elsewhere the maps of
    each layer are written into an array with room for all. XLA lays pieces side by side on a single
    core and a few maps at a time, which took a quarter of such a network's time.
    """

    def __init__(self, *inputs: Measured, room: int, train: bool):
        """Begins with the input of a block.

        Args:
            inputs: `[B, *S, C0], [B, *S, C1], ...`, which belong side by side.
            room: how many maps will be added.
            train: as for `segzoo.layers.Norm`.
        """
        self._inputs = sum(x.x.shape[-1] for x in inputs)
        self._filled = self._inputs
        self._pieces: list[Measured] | None = None
        if train:
            self._pieces = [side_by_side(*inputs)] if len(inputs) > 1 else list(inputs)
            return
        first, *others = (x.x for x in inputs)
        self._filled = first.shape[-1]
        room += self._inputs - self._filled
        self._array = jnp.pad(first, [(0, 0)] * (first.ndim - 1) + [(0, room)])
        for x in others:
            self._write(x)

    def append(self, new: Measured) -> None:
        """Adds the maps of a layer, `[B, *S, k]`."""
        if self._pieces is not None:
            self._pieces.append(new)
        else:
            self._write(new.x)

    @property
    def so_far(self) -> tuple[Measured, ...]:
        """All maps, to be laid side by side."""
        return (self._read(0),) if self._pieces is None else tuple(self._pieces)

    @property
    def new(self) -> Measured:
        """The maps of the layers, `[B, *S, layers * k]`."""
        return self._read(self._inputs) if self._pieces is None else side_by_side(*self._pieces[1:])

    @property
    def whole(self) -> Measured:
        """All maps, side by side."""
        return self._read(0) if self._pieces is None else side_by_side(self._pieces[0], self.new)

    def _write(self, x: Array) -> None:
        self._array = jax.lax.dynamic_update_slice_in_dim(self._array, x, self._filled, -1)
        self._filled += x.shape[-1]

    def _read(self, start: int) -> Measured:
        return Measured(jax.lax.slice_in_dim(self._array, start, self._filled, axis=-1))
