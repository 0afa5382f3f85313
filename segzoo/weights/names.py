"""How other libraries store the same weights: their names as data, their axes as rules.

A `Layout` maps the paths of our modules to the names of theirs. What lies below a module follows
from its kind: PyTorch keeps the kernel of a convolution as `[out, in, *S]` and of a dense layer as
`[out, in]` where we have `[*S, in, out]` and `[in, out]`, and calls the scale of a normalisation
`weight` and its statistics `running_mean` and `running_var`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


@dataclasses.dataclass(frozen=True)
class Flattened:
    """A dense layer over flattened features: PyTorch flattens `[C, H, W]`, we `[H, W, C]`.

    Attributes:
        name: the module's name.
        shape: `(C, H, W)` of the features.
    """

    name: str
    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One library's way to store one family of models.

    Attributes:
        library: "torchvision", "timm", ...
        modules: our module's path, below the collection, to theirs. A path may hold fields as in
            `"backbone/stage{s}/block{b}"`, each a whole number, to be used in their name too.
        ignored: endings of tensors of theirs that have no counterpart here.
    """

    library: str
    modules: Mapping[str, str | Flattened]
    ignored: tuple[str, ...] = ("num_batches_tracked",)

    def module(self, path: str) -> str | Flattened | None:
        """Returns their name of the module at our `path`, or None where they have none."""
        for pattern, theirs in self.modules.items():
            # Every {field} stands for digits; what is around it is literal.
            parts = re.split(r"\{(\w+)\}", pattern)
            expression = "".join(
                f"(?P<{part}>\\d+)" if i % 2 else re.escape(part) for i, part in enumerate(parts)
            )
            found = re.fullmatch(expression, path)
            if found is None:
                continue
            if isinstance(theirs, Flattened):
                return theirs
            return theirs.format(**found.groupdict())
        return None


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of our tensors lies in their file.

    Attributes:
        name: of their tensor.
        flattened: `(C, H, W)` of the features a dense kernel takes flattened, or None.
    """

    name: str
    flattened: tuple[int, int, int] | None = None

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their tensor, given that of ours."""
        return (ours[-1], ours[-2], *ours[:-2]) if len(ours) > 1 else ours

    def take(self, theirs: np.ndarray) -> np.ndarray:
        """Returns their tensor in our order of axes."""
        if theirs.ndim < 2:
            return theirs
        if self.flattened is not None:
            c, h, w = self.flattened
            return theirs.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])
        return theirs.transpose(*range(2, theirs.ndim), 1, 0)

    def give(self, ours: np.ndarray) -> np.ndarray:
        """Returns our tensor in their order of axes: the inverse of `take`."""
        if ours.ndim < 2:
            return ours
        if self.flattened is not None:
            c, h, w = self.flattened
            return ours.reshape(h, w, c, -1).transpose(3, 2, 0, 1).reshape(ours.shape[-1], -1)
        return ours.transpose(ours.ndim - 1, ours.ndim - 2, *range(ours.ndim - 2))


def places(paths: Iterable[str], layout: Layout) -> dict[str, Place | None]:
    """Returns where each of our tensors lies in a file of `layout`.

    Args:
        paths: of our tensors with their collection, as `"params/backbone/stem/conv/kernel"`.
        layout: the library's.

    Returns:
        A place for each path, or None for a tensor of a module the layout does not know.
    """
    result: dict[str, Place | None] = {}
    for path in paths:
        module, _, leaf = path.partition("/")[2].rpartition("/")
        theirs = layout.module(module)
        if theirs is None or leaf not in _LEAVES:
            result[path] = None
        elif isinstance(theirs, Flattened):
            shape = theirs.shape if leaf == "kernel" else None
            result[path] = Place(f"{theirs.name}.{_LEAVES[leaf]}", shape)
        else:
            result[path] = Place(f"{theirs}.{_LEAVES[leaf]}")
    return result
