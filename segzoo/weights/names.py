"""How other libraries store the same weights: their names as data, their axes as rules.

A `Layout` maps the paths of our modules to the names of theirs. What lies below a module follows
from its kind: PyTorch keeps the kernel of a convolution as `[out, in, *S]` and of a dense layer as
`[out, in]` where we have `[*S, in, out]` and `[in, out]`, and calls the scale of a normalisation
`weight` and its statistics `running_mean` and `running_var`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
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


# Of red, green and blue, of 0..255: what most networks' images are normalised with.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Flattened:
    """A dense layer over flattened features: PyTorch flattens `[C, H, W]`, we `[H, W, C]`.

    Either side may write it as the convolution it equals, over a window of the features' size.

    Attributes:
        name: the module's name.
        shape: `(C, H, W)` of the features.
        convolution: whether theirs is the convolution, with a kernel `[out, C, H, W]`.
    """

    name: str
    shape: tuple[int, int, int]
    convolution: bool = False


@dataclasses.dataclass(frozen=True)
class Transposed:
    """A transposed convolution: PyTorch keeps its kernel as `[in, out, *S]`, we its mirror image.

    Attributes:
        name: the module's name; may hold fields.
    """

    name: str


Theirs = str | Flattened | Transposed


@dataclasses.dataclass(frozen=True)
class Layout:
    """One library's way to store one family of models.

    Attributes:
        library: "torchvision", "timm", ...
        modules: our module's path, below the collection, to theirs. A path may hold fields as in
            `"backbone/stage{s}/block{b}"`, each a whole number, to be used in their name too.
        ignored: endings of tensors of theirs that have no counterpart here.
        optional: our paths of parts a file or a model may do without: heads for training only.
        encoder_alone: whether only the modules in `backbone/` are meant.
        mean: of each channel of the images the library's weights were trained on, of 0..255, in the
            order red, green, blue; ImageNet's by default.
        std: what they were divided by, likewise.
        blue_first: our path of the kernel over the image, where theirs takes blue, green, red.
    """

    library: str
    modules: Mapping[str, Theirs]
    ignored: tuple[str, ...] = ("num_batches_tracked",)
    optional: tuple[str, ...] = ()
    encoder_alone: bool = False
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    blue_first: str | None = None

    def module(self, path: str) -> Theirs | None:
        """Returns their name of the module at our `path`, or None where they have none."""
        for pattern, theirs in self.modules.items():
            found = _expression(pattern).fullmatch(path)
            if found is None:
                continue
            if isinstance(theirs, Flattened):
                return theirs
            if isinstance(theirs, Transposed):
                return Transposed(theirs.name.format(**found.groupdict()))
            return theirs.format(**found.groupdict())
        return None

    def path(self, tensor: str) -> str | None:
        """Returns our path of the module their tensor belongs to, or None for no known module."""
        module = tensor.rpartition(".")[0]
        for pattern, theirs in self.modules.items():
            name = theirs if isinstance(theirs, str) else theirs.name
            found = _expression(name).fullmatch(module)
            if found is not None:
                return pattern.format(**found.groupdict())
        return None

    def is_optional(self, path: str) -> bool:
        """Whether our module at `path` is, or lies in, one of the optional parts."""
        return any(path == part or path.startswith(f"{part}/") for part in self.optional)


@functools.cache
def _expression(pattern: str) -> re.Pattern[str]:
    """Every {field} stands for digits, the same ones each time; what is around it is literal."""
    seen: set[str] = set()
    expression = ""
    for i, part in enumerate(re.split(r"\{(\w+)\}", pattern)):
        if i % 2 == 0:
            expression += re.escape(part)
        elif part in seen:
            expression += f"(?P={part})"
        else:
            expression += f"(?P<{part}>\\d+)"
            seen.add(part)
    return re.compile(expression)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one of our tensors lies in their file.

    Attributes:
        name: of their tensor.
        flattened: `(C, H, W)` of the features a dense kernel takes flattened, or None.
        convolution: whether their kernel keeps these axes apart.
        transposed: whether it is the kernel of a transposed convolution.
    """

    name: str
    flattened: tuple[int, int, int] | None = None
    convolution: bool = False
    transposed: bool = False

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the shape of their tensor, given that of ours."""
        if self.flattened is not None and len(ours) > 1:
            inputs = self.flattened if self.convolution else (math.prod(self.flattened),)
            return (ours[-1], *inputs)
        if self.transposed:
            return (*ours[-2:], *ours[:-2])
        return (ours[-1], ours[-2], *ours[:-2]) if len(ours) > 1 else ours

    def take(self, theirs: np.ndarray) -> np.ndarray:
        """Returns their tensor in our order of axes; flattened features stay one axis."""
        if theirs.ndim < 2:
            return theirs
        if self.flattened is not None:
            c, h, w = self.flattened
            return theirs.reshape(-1, c, h, w).transpose(2, 3, 1, 0).reshape(-1, theirs.shape[0])
        if self.transposed:
            ours = theirs.transpose(*range(2, theirs.ndim), 0, 1)
            return np.flip(ours, axis=tuple(range(ours.ndim - 2)))
        return theirs.transpose(*range(2, theirs.ndim), 1, 0)

    def give(self, ours: np.ndarray) -> np.ndarray:
        """Returns our tensor in their order of axes: the inverse of `take`."""
        if ours.ndim < 2:
            return ours
        if self.flattened is not None:
            c, h, w = self.flattened
            kernel = ours.reshape(h, w, c, -1).transpose(3, 2, 0, 1)
            return kernel if self.convolution else kernel.reshape(len(kernel), -1)
        if self.transposed:
            spatial = tuple(range(ours.ndim - 2))
            return np.flip(ours, axis=spatial).transpose(ours.ndim - 2, ours.ndim - 1, *spatial)
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
        alien = layout.encoder_alone and not module.startswith("backbone/")
        theirs = None if alien else layout.module(module)
        if theirs is None or leaf not in _LEAVES:
            result[path] = None
        elif isinstance(theirs, Flattened):
            kernel = leaf == "kernel"
            result[path] = Place(
                f"{theirs.name}.{_LEAVES[leaf]}",
                theirs.shape if kernel else None,
                theirs.convolution and kernel,
            )
        elif isinstance(theirs, Transposed):
            result[path] = Place(f"{theirs.name}.{_LEAVES[leaf]}", transposed=leaf == "kernel")
        else:
            result[path] = Place(f"{theirs}.{_LEAVES[leaf]}")
    return result
