"""Feature pyramid network (Lin et al. 2017, arXiv:1612.03144, Figure 3).

The backbone's maps C2 to C5, each brought to the same channels by a 1x1 convolution (lateral), join
from the top down: the coarser map, its pixels repeated, plus the lateral one. A 3x3 convolution
takes the edges off each sum, and P6 is every other pixel of P5 (section 4.1, footnote 2). As in the
paper there is no non-linearity here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from segzoo.layers import Conv

Array = jax.Array


class FPN(nn.Module):
    """The pyramid over a backbone's features.

    Attributes:
        features: channels of every level, 256 in the paper.
        dtype: of the computation.
    """

    features: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> tuple[Array, ...]:
        """Builds the pyramid.

        Args:
            maps: C2 to C5, `[B, h, w, C]` each, every one half as large as the one before or, where
                that was odd, a pixel more.

        Returns:
            P2 to P6: one level more than maps, `[B, h, w, features]`.
        """
        pyramid: list[Array] = []
        above: Array | None = None
        for level, x in reversed(list(enumerate(maps, start=2))):
            lateral = self._conv(1, f"lateral{level}")(x)
            if above is not None:
                lateral = lateral + _enlarge(above, lateral.shape[1:3])
            above = lateral
            pyramid.insert(0, self._conv(3, f"output{level}")(lateral))
        return (*pyramid, pyramid[-1][:, ::2, ::2])

    def _conv(self, size: int, name: str) -> nn.Module:
        conv: nn.Module = Conv(self.features, (size, size), dtype=self.dtype, name=name)
        return conv


def _enlarge(x: Array, size: tuple[int, ...]) -> Array:
    """Repeats every pixel twice; where the finer map is odd, the last one once."""
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]
