"""Receptive fields: how much of the image a feature sees, exactly, without running the model.

A convolution of kernel k, dilation d and stride s on features whose field is r and whose stride is
j (both in input pixels) gives features of field `r + (k - 1) * d * j` and stride `j * s`; so does a
pool. That recursion holds for a chain. Here the field is read off the ranges of pixels that
`segzoo.reach` finds for every position of a map, whatever the graph in between.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from segzoo.errors import SegzooError
from segzoo.reach import Reach, reach
from segzoo.tiles import input_window

if TYPE_CHECKING:
    import flax.linen as nn

# Sides of the images tried in turn, until some position sees no border. Nothing is allocated; all
# are multiples of every stride in the zoo, and wider than most fields.
SIDES = (4096, 16384)
STRETCH = 128  # twice the coarsest stride there is, 64 pixels


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """What the positions of a map see of the image, along one axis.

    Position i sees the pixels `start + i * stride` to `start + i * stride + size - 1`.

    Attributes:
        size: pixels from the first one seen to the last, far from the borders; the largest one
            where positions differ, as behind up-convolutions. None where there is nothing but
            global pooling (the logits of a classifier).
        stride: pixels from one position to the next; None likewise.
        start: the first pixel position 0 sees; negative in the padding. None likewise.
        whole_image: whether global pooling on the way (squeeze-and-excitation, group norm) shows
            every position the whole image as well. The other attributes leave such paths out.
    """

    size: int | None
    stride: Fraction | None
    start: Fraction | None
    whole_image: bool = False

    def __str__(self) -> str:
        if self.size is None:
            return "whole image"
        return f"{self.size}{' + whole image' if self.whole_image else ''}"


Field = tuple[ReceptiveField, ...]


def receptive_fields(
    model: nn.Module, channels: int = 3, spatial_dims: int = 2, **arguments: Any
) -> Any:
    """Returns the receptive fields of what a module computes.

    Args:
        model: takes `[B, *S, C]` of any size.
        channels: C.
        spatial_dims: the length of `*S`.
        **arguments: further ones of the module's call, e.g. `train=False` for a backbone.

    Returns:
        What the module returns, with a tuple of one `ReceptiveField` per spatial axis in the place
        of each array: for a backbone a tuple of such tuples, finest map first.

    Raises:
        SegzooError: for a model with an operation that cannot be followed, or one whose field is
            larger than the largest image tried.
    """

    def init(key: jax.Array, image: jax.Array) -> Any:
        return model.init(key, image, **arguments)

    def apply(image: jax.Array, variables: Any) -> Any:
        return model.apply(variables, image, **arguments)

    variables = None
    for side in SIDES:
        size, _ = input_window(model, (side,) * spatial_dims)
        image = jax.ShapeDtypeStruct((1, *size, channels), jnp.float32)
        if variables is None:  # they do not depend on the size
            variables = jax.eval_shape(init, jax.random.key(0), image)
        reached = reach(apply, image, variables)
        found = jax.tree.map(field, reached, is_leaf=_is_array)
        if None not in jax.tree.leaves(found, is_leaf=lambda leaf: leaf is None):
            return found
    raise SegzooError(
        f"no feature of {type(model).__name__} lies {SIDES[-1] // 2} pixels from the border "
        "without seeing it."
    )


def model_fields(model: nn.Module, channels: int = 3, *, logits: bool = True) -> dict[str, Field]:
    """Returns the receptive fields of a model of the zoo, by the names of its maps.

    Args:
        model: any module of the zoo.
        channels: C of its input.
        logits: whether to follow the whole model too: not worth it for a classifier, whose logits
            see all there is.

    Returns:
        `{"1/2": ..., "1/4": ...}` by the reductions of the backbone, finest first (a reduction that
        occurs twice is counted: "1/32 (2)"), where the model has a field `backbone`; and "logits".

    Raises:
        SegzooError: see `receptive_fields`.
    """
    dims = getattr(model, "spatial_dims", 2)
    named: dict[str, Field] = {}
    backbone = getattr(model, "backbone", None)
    if backbone is not None:
        maps = receptive_fields(backbone, channels, dims, train=False)
        for reduction, found in zip(backbone.reductions, maps, strict=True):
            name = f"1/{reduction}"
            again = sum(known.split(" ")[0] == name for known in named)
            named[f"{name} ({again + 1})" if again else name] = found
    if logits:
        named["logits"] = receptive_fields(model, channels, dims)
    return named


def describe(found: Field) -> str:
    """Returns the sizes of a field in words: `"212"`, `"851 + whole image"`, `"3 x 5"`."""
    sizes = list(dict.fromkeys(map(str, found)))
    return sizes[0] if len(sizes) == 1 else " x ".join(map(str, found))


def field(lines: tuple[Reach, ...] | None) -> Field | None:
    """Returns the field of a map `[B, *S, C]` from what its positions see, or None.

    None is for an image too small to tell: every position sees the border.
    """
    if lines is None:
        return ()
    axes = [_axis(line, 1 + i) for i, line in enumerate(lines)]
    return None if any(axis is None for axis in axes) else tuple(a for a in axes if a is not None)


def _is_array(node: Any) -> bool:
    return node is None or (isinstance(node, tuple) and all(isinstance(n, Reach) for n in node))


def _axis(line: Reach, axis: int) -> ReceptiveField | None:
    others = tuple(a for a in range(line.first.ndim) if a != axis)
    first, last = line.local_first.min(axis=others), line.local_last.max(axis=others)
    seen = first <= last
    whole_image = bool(np.any((line.first < line.local_first) | (line.last > line.local_last)))
    if not seen.any():
        return ReceptiveField(None, None, None, whole_image)
    (inner,) = np.nonzero(seen & ~line.cut.any(axis=others))
    first, last = first[inner], last[inner]
    # Behind up-convolutions positions repeat after some pixels; only a longer stretch shows that.
    if not len(inner) or first[-1] - first[0] < STRETCH or len(inner) <= inner[-1] - inner[0]:
        return None
    begin = int(inner[0])
    for period in range(1, len(inner) // 2 + 1):
        step = first[period:] - first[:-period]
        if np.all(step == step[0]) and np.all(last[period:] - last[:-period] == step[0]):
            stride = Fraction(int(step[0]), period)
            place = -begin % period  # positions of one phase with position 0
            start = int(first[place]) - (begin + place) * stride
            return ReceptiveField(int((last - first).max()) + 1, stride, start, whole_image)
    return None
